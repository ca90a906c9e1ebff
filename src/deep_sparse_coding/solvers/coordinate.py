"""Coordinate descent on the active set, compiled, for dense dictionaries on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_integer
from deep_sparse_coding.problems import Blocks, StandardForm

from .base import CodesState, Solver

# Above this many columns the Gram matrix (8 bytes an entry) no longer pays: 16384² are 2 GB, and 1 GB in float32.
_LARGEST = 16384
# The kernel aims below tol: what it proves must survive rounding of the codes to the user's precision.
_AIM = {torch.float64: 0.9, torch.float32: 0.3}


@dataclass(frozen=True, eq=False)
class CoordinateState(CodesState):
    """Codes, the relative gap to aim at, and the numbers the kernel reads, which all samples share.

    Attributes:
        aim: The kernel's own tolerance.
        matrix: A, float64.
        gram: ``AᵀA``.
    """

    aim: float
    matrix: Tensor
    gram: Tensor


@dataclass(frozen=True)
class CoordinateDescent(Solver[CoordinateState]):
    """Working sets, cyclic coordinate descent on their Gram matrix, and an exact finish on the active set.

    One step runs the compiled kernel, which works on each signal by itself in float64: it grows a working set along a
    falling threshold, sweeps over it, solves the normal equations of the active set by Cholesky up to the first change
    of sign, and looks at the full gradient only between these rounds. Dense joint problems are solved as one Lasso in
    the stacked matrix.

    Attributes:
        rounds: The most rounds of one step; `steps` of a solution counts rounds.

    Source: Friedman, Hastie & Tibshirani 2010 (coordinate descent); Massias, Gramfort & Salmon 2018 (working sets).
    """

    rounds: int = 200
    check_every = 1

    def __post_init__(self) -> None:
        require_integer("rounds", self.rounds, minimum=1)

    def refuse(self, form: StandardForm) -> str | None:
        """Return why not: convolutions, masks per sample, other devices, weights that do not factor, too many atoms."""
        use = "use dsc.FISTA()"
        if form.data[0].device.type != "cpu":
            return f"CoordinateDescent runs on the CPU and the signal is on {form.data[0].device}; {use}"
        if sum(shape[0] for shape in form.code_shapes) > _LARGEST:
            return f"CoordinateDescent keeps the Gram matrix and takes up to {_LARGEST} atoms; {use}"
        if form.operator.matrix() is None:
            return f"CoordinateDescent takes dense dictionaries whose mask, if any, is shared by all samples; {use}"
        if _factor_weights(form) is None:
            return f"CoordinateDescent takes lam per sample times weights per atom, not both mixed; {use}"
        return None

    def init(self, form: StandardForm, start: Blocks, tol: float) -> CoordinateState:
        """Return the state at `start`, with the Gram matrix at hand."""
        matrix = form.operator.matrix()
        assert matrix is not None, "refuse() has been asked"
        matrix = matrix.double().contiguous()
        return CoordinateState(start, 0, _AIM[form.data[0].dtype] * tol, matrix, matrix.T @ matrix)

    def step(self, form: StandardForm, state: CoordinateState) -> CoordinateState:
        """Return the state after one run of the kernel."""
        from ._kernels_dense import solve_batch

        factors = _factor_weights(form)
        assert factors is not None, "refuse() has been asked"
        lam, weights = factors
        data = torch.cat([block.flatten(1) for block in form.data], 1).double().contiguous()
        start = torch.cat([block.flatten(1) for block in state.codes], 1).double().contiguous()
        codes, rounds, _ = solve_batch(
            state.matrix.numpy(),
            state.gram.numpy(),
            data.numpy(),
            lam.numpy(),
            weights.numpy(),
            form.nonnegative,
            state.aim,
            self.rounds,
            start.numpy(),
            threads=torch.get_num_threads(),
        )
        flat = torch.from_numpy(codes).to(form.data[0].dtype)
        blocks = flat.split([shape[0] for shape in form.code_shapes], 1)
        used = int(rounds.max()) if len(rounds) else 0
        return replace(state, codes=tuple(block.contiguous() for block in blocks), steps=state.steps + max(used, 1))


def _factor_weights(form: StandardForm) -> tuple[Tensor, Tensor] | None:
    """Return ``(lam per sample, weights per atom)`` whose product the form's weights are, or None."""
    batch = form.batch
    if all(len(w) == 1 for w in form.weights):
        row = torch.cat([w.expand(1, *s).flatten(1) for w, s in zip(form.weights, form.code_shapes, strict=True)], 1)
        return torch.ones(batch, dtype=torch.float64), row[0].double().contiguous()
    whole = torch.cat(
        [w.expand(batch, *s).flatten(1) for w, s in zip(form.weights, form.code_shapes, strict=True)], 1
    ).double()
    finite = torch.where(torch.isfinite(whole), whole, 0.0)
    lam = finite.amax(1)
    if bool((lam == 0).any()):
        # A sample without penalty: it factors only if every atom's weight is 0, with lam = 0.
        if bool((whole[lam == 0] != 0).any()):
            return None
        if not bool((lam > 0).any()):
            return lam, torch.ones(whole.shape[1], dtype=torch.float64)
    reference = whole[int((lam > 0).nonzero()[0])]
    weights = reference / lam[int((lam > 0).nonzero()[0])]
    product = torch.where(torch.isinf(weights), weights, lam[:, None] * weights)
    rounding = 8 * torch.finfo(form.weights[0].dtype).eps
    same = torch.isclose(product, whole, rtol=rounding, atol=0.0) | (lam == 0)[:, None]
    return (lam, weights.contiguous()) if bool(same.all()) else None
