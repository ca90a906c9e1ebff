"""Sparse codes on the way: some steps of FISTA from codes at hand, never to a worse objective."""

from __future__ import annotations

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary, DenseDictionary, Dictionary
from deep_sparse_coding.dictionaries.random import generator
from deep_sparse_coding.problems import Lasso, StandardForm
from deep_sparse_coding.problems.base import form_objective
from deep_sparse_coding.solvers import FISTA
from deep_sparse_coding.solvers.proximal import FISTAState

# Power iteration on a small grid sees less than the whole norm; steps too long are caught by the objective.
_SAFETY = 1.1
_ITERATIONS = 6
_GRID_KERNELS = 3
_RETRIES = 3
_ROUNDING = 1e-5


class Coder:
    """Improves codes of one layer by FISTA, with a step length that follows the dictionary as it is learned.

    A proved bound of ‖D‖ costs more than the steps it is for, so the norm is followed by a few power iterations from
    the vector of the last time. A sample whose objective has risen keeps its old codes, and the next steps are shorter.

    Args:
        lam: The weight of the ℓ1 norm.
        nonnegative: Hold the codes at or above zero.
        seed: Of the first vector of the power iteration.
    """

    def __init__(self, lam: float, nonnegative: bool, seed: int) -> None:
        self.lam, self.nonnegative = lam, nonnegative
        self._vector: Tensor | None = None
        self._caution = 1.0
        self._seed = seed

    def improve(self, dictionary: Dictionary, signal: Tensor, start: Tensor | None, steps: int) -> Tensor:
        """Return codes ``(samples, atoms, ...)`` after `steps` steps from `start` (zeros if None)."""
        form = Lasso(dictionary, self.lam, nonnegative=self.nonnegative).form(signal)
        begin = form.zeros() if start is None else (start,)
        before = self._objective(form, begin[0])
        codes = self._run(form, dictionary, begin[0], steps)
        after = self._objective(form, codes)
        for _ in range(_RETRIES):
            # Codes that were optimal to rounding may rise by rounding too; steps that were too long do more.
            if bool((after <= before * (1 + _ROUNDING)).all()):
                break
            self._caution *= 1.5
            codes = self._run(form, dictionary, begin[0], steps)
            after = self._objective(form, codes)
        worse = ~(after <= before)  # True for NaN
        return torch.where(worse.reshape(-1, *(1,) * (codes.ndim - 1)), begin[0], codes)

    def _run(self, form: StandardForm, dictionary: Dictionary, begin: Tensor, steps: int) -> Tensor:
        solver = FISTA()
        lipschitz = self._caution * self._squared_norm(dictionary, form.data[0])
        state = FISTAState((begin,), 0, (begin,), form.data[0].new_ones(form.batch), (lipschitz,))
        for _ in range(steps):
            state = solver.step(form, state)
        return state.codes[0]

    def _objective(self, form: StandardForm, codes: Tensor) -> Tensor:
        return form_objective(form, (codes,), form.residual((codes,))).double()

    def _squared_norm(self, dictionary: Dictionary, signal: Tensor) -> float:
        """Return ``‖D‖²``, nearly, with a margin."""
        if isinstance(dictionary, DenseDictionary):
            return float(torch.linalg.matrix_norm(dictionary.matrix.detach().double(), 2)) ** 2
        assert isinstance(dictionary, ConvDictionary)
        vector = self._vector
        if vector is None:
            grid = dictionary.code_shape(tuple(signal.shape[2:]))[1:]
            small = tuple(min(n, _GRID_KERNELS * (lag + 1)) for n, lag in zip(grid, dictionary.lags, strict=True))
            vector = torch.randn(1, dictionary.atoms, *small, generator=generator(self._seed), dtype=torch.float64)
            vector = vector.to(dtype=dictionary.dtype, device=dictionary.device)
            vector = vector / torch.linalg.vector_norm(vector)
        value = 0.0
        for _ in range(_ITERATIONS if self._vector is not None else 4 * _ITERATIONS):
            image = dictionary.analyze(dictionary.synthesize(vector))
            value = float(torch.linalg.vector_norm(image))
            vector = image / value
        self._vector = vector
        return _SAFETY * value
