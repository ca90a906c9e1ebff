"""Coordinate descent on the active set, compiled, for dense dictionaries on a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from deep_sparse_coding.checks import require_integer
from deep_sparse_coding.dictionaries import DenseDictionary
from deep_sparse_coding.problems import Blocks, Certificate, StandardForm, assess_form
from deep_sparse_coding.problems.operators import ChainOperator, Operator, RidgeOperator, SingleOperator

from .base import CodesState, Solver, all_zero, select_blocks
from .compiled_certificate import certify_compiled, with_violations

# Entries of the matrix A that are kept, in float64, transposed and in float32: 2**28 take 5 GB.
_LARGEST = 2**28
# The Gram matrix of this many atoms costs less than a millisecond; that of more than the second number takes over 3 GB.
_GRAM_ALWAYS, _GRAM_NEVER = 512, 16384
# Between them it pays from this many signals per atom: without it every round multiplies all atoms with the residual.
_GRAM_SIGNALS = 1 / 8
# Entries of float64 codes that a path holds at once: 256 MB.
_SLICE = 2**25
# Samples from which the compiled certificate pays for the copies of the atoms that it makes.
_COMPILED = 64
# The kernel aims below tol: what it proves must survive rounding of the codes to the user's precision.
_AIM = {torch.float64: 0.9, torch.float32: 0.3}


@dataclass(frozen=True, eq=False)
class CoordinateState(CodesState):
    """Codes, the relative gap to aim at, and the numbers that the kernel reads.

    Attributes:
        aim: The kernel's own tolerance.
        matrix: A without a mask per sample, float64, shared by all samples.
        gram: ``AᵀA``, or None where it does not pay.
        masks: The factors on the entries of each sample's data, ``(batch, rows)``, or None if A is the same for all.
    """

    aim: float
    matrix: Tensor
    gram: Tensor | None
    masks: Tensor | None

    def select(self, keep: Tensor) -> CoordinateState:
        """Return the state of the samples `keep`."""
        masks = None if self.masks is None else self.masks[keep]
        return replace(self, codes=select_blocks(self.codes, keep), masks=masks)


@dataclass(frozen=True)
class CoordinateDescent(Solver[CoordinateState]):
    """Working sets, cyclic coordinate descent on their Gram matrix, and an exact finish on the active set.

    One step runs the compiled kernel, which works on each signal by itself in float64: it grows a working set along a
    falling threshold, sweeps over it, solves the normal equations of the active set by Cholesky up to the first change
    of sign, and looks at the full gradient only between these rounds. Gradients come from the Gram matrix of all atoms
    where the batch is large enough to pay for it, else from the residual: so one signal may have tens of thousands of
    atoms, and every sample a mask of its own. Dense joint problems are solved as one Lasso in the stacked matrix.

    Attributes:
        rounds: The most rounds of one step; `steps` of a solution counts rounds.

    Source: Friedman, Hastie & Tibshirani 2010 (coordinate descent); Massias, Gramfort & Salmon 2018 (working sets).
    """

    rounds: int = 200
    check_every = 1
    makes_new_codes = True
    finds_zero = True

    def __post_init__(self) -> None:
        require_integer("rounds", self.rounds, minimum=1)

    def refuse(self, form: StandardForm) -> str | None:
        """Return why not: convolutions, other penalties, other devices, matrices that are too large."""
        use = "use dsc.FISTA()"
        if form.beyond:
            return f"CoordinateDescent takes no {form.beyond}; {use}"
        if form.data[0].device.type != "cpu":
            return f"CoordinateDescent runs on the CPU and the signal is on {form.data[0].device}; {use}"
        if not _is_dense(form.operator):
            return f"CoordinateDescent takes dense dictionaries only; {use}"
        rows, atoms = _row_count(form), sum(shape[0] for shape in form.code_shapes)
        if rows * atoms > _LARGEST:
            return f"CoordinateDescent keeps a matrix of up to {_LARGEST} entries, and this is {rows} × {atoms}; {use}"
        return None

    def init(self, form: StandardForm, start: Blocks, tol: float) -> CoordinateState:
        """Return the state at `start`, with the Gram matrix at hand where it pays."""
        operator, masks = _split_mask(form.operator, _row_count(form))
        matrix = operator.matrix()
        assert matrix is not None, "refuse() has been asked"
        matrix = matrix.double().contiguous()
        gram = matrix.T @ matrix if masks is None and _gram_pays(form.batch, matrix.shape[1]) else None
        return CoordinateState(start, 0, _AIM[form.data[0].dtype] * tol, matrix, gram, masks)

    def step(self, form: StandardForm, state: CoordinateState) -> CoordinateState:
        """Return the state after one run of the kernel."""
        lam, weights = _lam_and_weights(form)
        codes, rounds = self._run(form, state, lam, weights)
        flat = torch.from_numpy(codes).to(form.data[0].dtype)
        blocks = flat.split([shape[0] for shape in form.code_shapes], 1)
        used = int(rounds.max()) if len(rounds) else 0
        return replace(state, codes=tuple(block.contiguous() for block in blocks), steps=state.steps + max(used, 1))

    def solve_multiples(self, form: StandardForm, multiples: Tensor, tol: float) -> tuple[Blocks, Tensor]:
        """Return codes for falling multiples of the form's weights, each started from the ones before in one call.

        Args:
            form: A problem that `refuse` lets pass; its data finite.
            multiples: ``(steps, batch)``, float64, finite, falling along the first axis.
            tol: The relative gap that is wanted.

        Returns:
            One block ``(steps, batch, ...)`` per layer, and rounds ``(steps, batch)``.
        """
        state = self.init(form, form.zeros(), tol)
        steps, dtype = len(multiples), form.data[0].dtype
        codes = tuple(block.new_zeros(steps, *block.shape) for block in state.codes)
        rounds = torch.zeros(steps, form.batch, dtype=torch.int64)
        width = sum(shape[0] for shape in form.code_shapes)
        for rows in torch.arange(form.batch).split(max(1, _SLICE // (steps * width))):
            here = form.select(rows)
            lam, weights = _lam_and_weights(here)
            part, used = self._run(here, state.select(rows), multiples[:, rows] * lam, weights)
            rounds[:, rows] = torch.from_numpy(used)
            for whole, block in zip(
                codes, torch.from_numpy(part).split([shape[0] for shape in form.code_shapes], 2), strict=True
            ):
                whole[:, rows] = block.to(dtype)
        return codes, rounds

    def assess(self, form: StandardForm, codes: Blocks, tol: float) -> Certificate:
        """Return the certificate of flat codes that `assess_form` returns, as far as that will do by compiled passes.

        Samples whose relative gap at the scaled residual is above `tol`, and whose codes are not zero, are left to it,
        and so are batches that are too small for the preparation of the atoms to pay.

        Args:
            form: The problem, in float64.
            codes: Finite codes, one block ``(batch, atoms)`` per layer.
            tol: The relative gap that is small enough.
        """
        form = form.cast(torch.float64)
        if form.batch < _COMPILED or self.refuse(form) is not None or any(bool((w <= 0).any()) for w in form.weights):
            return assess_form(form, codes, tol)
        from ._kernels_certificate import assess_batch

        operator, masks = _split_mask(form.operator, _row_count(form))
        matrix = operator.matrix()
        assert matrix is not None, "refuse() has been asked"
        lam, weights = _lam_and_weights(form)
        objective, gap = assess_batch(
            matrix.numpy(),
            _joined(form.data).numpy(),
            _joined(codes).detach().numpy(),
            lam.numpy(),
            weights.numpy(),
            form.nonnegative,
            threads=torch.get_num_threads(),
            masks=None if masks is None else masks.numpy(),
        )
        left = torch.from_numpy(gap).isnan().nonzero().flatten()
        if len(left):
            second = assess_form(form.select(left), select_blocks(codes, left), math.inf)
            objective[left.numpy()], gap[left.numpy()] = second.objective.numpy(), second.gap.numpy()
        found = with_violations(form, codes, (objective, gap))
        return certify_compiled(form, codes, *found, tol)

    def _run(self, form: StandardForm, state: CoordinateState, lam: Tensor, weights: Tensor) -> tuple[Any, Any]:
        """Return codes and rounds as NumPy has them, for one lam per sample ``(batch,)`` or a path of them."""
        from ._kernels_dense import solve_batch

        data = _joined(form.data).double().contiguous()
        start = None
        if not all_zero(state.codes):
            start = _joined(state.codes).double().contiguous().numpy()
        codes, rounds, _ = solve_batch(
            state.matrix.numpy(),
            None if state.gram is None else state.gram.numpy(),
            data.numpy(),
            lam.numpy(),
            weights.numpy(),
            form.nonnegative,
            state.aim,
            self.rounds,
            start,
            threads=torch.get_num_threads(),
            masks=None if state.masks is None else state.masks.double().contiguous().numpy(),
        )
        return codes, rounds


def _is_dense(operator: Operator) -> bool:
    """Return whether an operator is a matrix, up to a mask per sample."""
    if isinstance(operator, RidgeOperator):
        return _is_dense(operator.inner)
    if isinstance(operator, ChainOperator):
        return all(isinstance(layer, DenseDictionary) for layer in operator.layers)
    return isinstance(operator, SingleOperator) and isinstance(operator.dictionary, DenseDictionary)


def _joined(blocks: Blocks) -> Tensor:
    """Return blocks side by side, ``(batch, entries)``; one block is not copied."""
    flat = [block.flatten(1) for block in blocks]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)


def _row_count(form: StandardForm) -> int:
    return sum(math.prod(block.shape[1:]) for block in form.data)


def _split_mask(operator: Operator, rows: int) -> tuple[Operator, Tensor | None]:
    """Return an operator without its mask per sample, and the mask on all its rows: 1 where it has nothing to say."""
    if isinstance(operator, RidgeOperator):
        inner, mask = _split_mask(operator.inner, rows)
        return replace(operator, inner=inner), mask
    if not isinstance(operator, SingleOperator | ChainOperator) or operator.mask is None or len(operator.mask) == 1:
        return operator, None
    mask = operator.mask.flatten(1)
    return replace(operator, mask=None), pad(mask, (0, rows - mask.shape[1]), value=1.0)


def _gram_pays(signals: int, atoms: int) -> bool:
    return atoms <= _GRAM_ALWAYS or (atoms <= _GRAM_NEVER and signals >= _GRAM_SIGNALS * atoms)


def _lam_and_weights(form: StandardForm) -> tuple[Tensor, Tensor]:
    """Return lam per sample ``(batch,)`` and weights ``(1 or batch, atoms)`` whose product the form's weights are."""
    atoms = sum(shape[0] for shape in form.code_shapes)
    first = form.weights[0]
    if len(form.weights) == 1 and math.prod(first.shape[1:]) == 1:
        lam = first.flatten().double().expand(form.batch).contiguous()
        return lam, torch.ones(1, atoms, dtype=torch.float64)
    samples = max(len(w) for w in form.weights)
    pairs = zip(form.weights, form.code_shapes, strict=True)
    whole = torch.cat([w.expand(samples, *shape).flatten(1) for w, shape in pairs], 1)
    return torch.ones(form.batch, dtype=torch.float64), whole.double().contiguous()
