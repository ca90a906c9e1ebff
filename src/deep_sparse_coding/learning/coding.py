"""Sparse codes on the way: coordinate descent, or some steps of FISTA, from codes at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary, DenseDictionary, Dictionary
from deep_sparse_coding.dictionaries.random import generator
from deep_sparse_coding.problems import Lasso, StandardForm
from deep_sparse_coding.problems.base import form_objective
from deep_sparse_coding.solvers import FISTA, ConvCoordinateDescent, CoordinateDescent
from deep_sparse_coding.solvers.proximal import FISTAState

# Power iteration on a small grid sees less than the whole norm; steps too long are caught by the objective.
_SAFETY = 1.1
_ITERATIONS = 6
_GRID_KERNELS = 3
_RETRIES = 3
_ROUNDING = 1e-5


class Coder:
    """Improves codes of one layer: compiled coordinate descent where it runs, else FISTA.

    FISTA's step length follows the dictionary as it is learned: a proved bound of ‖D‖ costs more than the steps it is
    for, so the norm is followed by a few power iterations from the vector of the last time. A sample whose objective
    has risen keeps its old codes, and the next steps are shorter.

    Args:
        lam: The weight of the ℓ1 norm.
        nonnegative: Hold the codes at or above zero.
        seed: Of the first vector of the power iteration.
        tol: The relative gap at which coordinate descent leaves a sample; 0 has FISTA at work everywhere.
    """

    def __init__(self, lam: float, nonnegative: bool, seed: int, tol: float = 0.0) -> None:
        self.lam, self.nonnegative, self.tol = lam, nonnegative, tol
        self._vector: Tensor | None = None
        self._caution = 1.0
        self._seed = seed

    def state(self) -> tuple[Tensor | None, float]:
        """Return what changes from call to call, for a checkpoint."""
        return self._vector, self._caution

    def restore(self, vector: Tensor | None, caution: float) -> None:
        """Go on from what `state` returned."""
        self._vector, self._caution = vector, caution

    def improve(
        self, dictionary: Dictionary, signal: Tensor, start: Tensor | None, steps: int, mask: Tensor | None = None
    ) -> Tensor:
        """Return codes ``(samples, atoms, ...)`` after at most `steps` steps from `start` (zeros if None).

        Args:
            dictionary: D.
            signal: ``(samples, channels, ...)``.
            start: Codes to begin from.
            steps: Steps of FISTA, or rounds of coordinate descent, which stop at the gap.
            mask: 1 where the signal was observed, in its shape.
        """
        form = Lasso(dictionary, self.lam, nonnegative=self.nonnegative, mask=mask).form(signal)
        begin = form.zeros() if start is None else (start,)
        if self.tol > 0:
            for solver in (CoordinateDescent(rounds=steps), ConvCoordinateDescent(rounds=steps)):
                if solver.refuse(form) is None:
                    return solver.step(form, solver.init(form, begin, self.tol)).codes[0]  # type: ignore[arg-type]
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
