"""The recursions of the multi-layer synthesis problem: one threshold per layer and step, without an inner problem."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_number
from deep_sparse_coding.dictionaries import Dictionary
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.problems.base import per_sample
from deep_sparse_coding.problems.multilayer import MultiLayerLasso, cascade_codes, threshold_pass

from .loop import Callback, Progress
from .solution import History, Solution, Status, settle

_FIRST_CHECK = 10
_CHECK_SHARE = 0.125
# Codes that move less than this between two checks, relative to their size, are at rest.
_REST = {torch.float32: 1e-6, torch.float64: 1e-12}


class MultiLayerSolver(ABC):
    """A method for `MultiLayerLasso`."""

    #: The first layer's step as a share of ``1/‖D_1‖²``.
    relaxation: float

    @property
    def name(self) -> str:
        """The name that solutions print."""
        return type(self).__name__

    @abstractmethod
    def next_momentum(self, momentum: float) -> float:
        """Return ``t_{k+1}``; the next point is ``x + (t_k - 1)/t_{k+1} (x - x before)``."""


@dataclass(frozen=True)
class MLISTA(MultiLayerSolver):
    """Multi-layer ISTA for ``min_x ½‖y - D_1···D_J x‖² + Σ_j lam_j‖x_j‖₁``, ``x_J = x``, ``x_{j-1} = D_j x_j``.

    Every step goes from the signal up: ``γ_j = S_{t_j lam_j}(x_j - s_j D_jᵀ(D_j x_j - γ_{j-1}))`` with ``γ_0 = y`` and
    ``t_j = s_1···s_j``, the last of which is the new x. (Thresholds ``s_j lam_j`` instead, as in networks that unroll
    it, are other lam.) The proximal operator of a sum of norms of ``D_{j+1}···D_J x`` is not the chain of their
    thresholds, so for more than one layer the fixed point is *not exactly a minimizer*: it is one up to an error that
    shrinks with the first step (the theorem of Sulam et al. on fixed points), at the price of more steps. The
    certificate says how far at most; where it does not come down to `tol` a sample ends as STALLED or MAX_STEPS, which
    is the method's limit. For the minimizer itself solve `JointLasso` with growing ``β_2, ..., β_J``. With one layer it
    is ISTA.

    Attributes:
        relaxation: In (0, 1]; the steps are ``s_1 = relaxation/‖D_1‖²`` and ``s_j = 1/‖D_j‖²``. Smaller ones bring the
            fixed point nearer to the minimizer.

    Raises:
        ParameterError: `relaxation` out of range.

    Source: Sulam, Aberdam, Beck & Elad 2019, ML-ISTA.
    """

    relaxation: float = 1.0

    def __post_init__(self) -> None:
        require_number("relaxation", self.relaxation, minimum=0.0, maximum=1.0, strict=True)

    def next_momentum(self, momentum: float) -> float:
        """Return 1: no momentum."""
        return 1.0


@dataclass(frozen=True)
class MLFISTA(MultiLayerSolver):
    """Multi-layer FISTA: `MLISTA` whose deepest codes are extrapolated before every pass.

    ``z = x + (t - 1)/t⁺ (x - x before)``, ``t⁺ = (1 + √(1 + 4t²))/2``. Same problem, same limit, fewer steps. With one
    layer it is FISTA without restarts.

    Attributes:
        relaxation: As in `MLISTA`.

    Raises:
        ParameterError: `relaxation` out of range.

    Source: Sulam, Aberdam, Beck & Elad 2019, ML-FISTA.
    """

    relaxation: float = 1.0

    def __post_init__(self) -> None:
        require_number("relaxation", self.relaxation, minimum=0.0, maximum=1.0, strict=True)

    def next_momentum(self, momentum: float) -> float:
        """Return ``(1 + √(1 + 4t²))/2``."""
        return (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2


@dataclass(frozen=True, eq=False)
class _Best:
    """The codes with the smallest gap so far, and what they are."""

    codes: Tensor
    gap: Tensor
    steps: Tensor
    status: Tensor

    def update(self, codes: Tensor, gap: Tensor, relative: Tensor, step: int, tol: float, at_rest: Tensor) -> None:
        """Take over, in place, what is better in samples that have not ended, and end those that are done."""
        going = self.status == Status.MAX_STEPS
        rows = (going & ((gap < self.gap) | (relative <= tol))).nonzero().flatten()
        self.codes[rows], self.gap[rows] = codes[rows], gap[rows]
        self.steps[going] = step
        self.status[going & at_rest] = int(Status.STALLED)
        self.status[going & ~torch.isfinite(gap)] = int(Status.DIVERGED)
        self.status[going & (relative <= tol)] = int(Status.CONVERGED)


def solve_multilayer(
    problem: MultiLayerLasso,
    signal: Tensor,
    solver: object,
    *,
    tol: float,
    max_steps: int,
    start: Tensor | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Run a recursion on a checked signal, certify what it found, and return the codes with the smallest gap.

    Args:
        problem: The problem.
        signal: ``(*batch, ...)``, checked.
        solver: `MLISTA` or `MLFISTA`; None for `MLFISTA`.
        tol: The relative gap at which a sample has converged.
        max_steps: The most steps.
        start: Deepest codes, flat, or None for zeros.
        callback: Called at every check; returning True stops the run.

    Raises:
        ParameterError: Another kind of solver.
    """
    solver = MLFISTA() if solver is None else solver
    if not isinstance(solver, MultiLayerSolver):
        raise ParameterError(f"solver is {solver!r}; expected dsc.MLISTA() or dsc.MLFISTA() for a MultiLayerLasso")
    flat, shape, layers = problem.flat_signal(signal), problem.batch_shape(signal), problem.model.layers
    weights = problem.layer_weights(signal)
    finite = torch.isfinite(flat).flatten(1).all(1)
    for weight in weights:
        finite &= torch.isfinite(weight).flatten(1).all(1).expand(len(flat))
    clean = torch.where(per_sample(finite, flat), flat, 0.0)
    judged = clean.reshape(signal.shape)
    codes = _zeros(layers, clean) if start is None else start.clone()
    steps = tuple((1.0 if j else solver.relaxation) / float(d.operator_norm()) ** 2 for j, d in enumerate(layers))
    best = _Best(
        codes.clone(),
        torch.full((len(flat),), math.inf, dtype=torch.float64),
        torch.zeros(len(flat), dtype=torch.int64),
        torch.full((len(flat),), int(Status.MAX_STEPS)),
    )
    point, momentum, next_check, seen = codes, 1.0, 0, codes
    checks: list[tuple[int, float, Tensor, Tensor]] = []
    began, stopped = time.perf_counter(), False
    for step in range(max_steps + 1):
        if step >= next_check or step == max_steps:
            found = problem.certificate(codes.reshape(*shape, *codes.shape[1:]), judged)
            gap, relative = found.gap.reshape(-1).cpu(), found.relative_gap.reshape(-1).cpu()
            size = codes.flatten(1).abs().amax(1) if codes[:1].numel() else codes.new_zeros(len(codes))
            moved = (codes - seen).flatten(1).abs().amax(1) if codes[:1].numel() else size
            at_rest = (moved <= _REST[codes.dtype] * size).cpu() & (step > 0)
            best.update(codes, gap, relative, step, tol, at_rest)
            checks.append((step, time.perf_counter() - began, found.objective.reshape(-1).cpu(), relative))
            going = best.status == Status.MAX_STEPS
            if callback is not None:
                worst = relative[going] if bool(going.any()) else relative
                largest = float(worst.max()) if len(worst) else 0.0
                stopped = callback(Progress(step, max_steps, int(going.sum()), len(flat), largest)) is True
            if stopped or not bool(going.any()):
                break
            seen, next_check = codes, step + max(_FIRST_CHECK, int(_CHECK_SHARE * step))
        if step == max_steps:
            break
        made = cascade_codes(layers, point)
        after, _ = threshold_pass(layers, weights, steps, clean, made)
        following = solver.next_momentum(momentum)
        point = torch.add(after, after - codes, alpha=(momentum - 1) / following)
        codes, momentum = after, following
    best.codes[~finite] = math.nan
    best.status[~finite.cpu()] = int(Status.NONFINITE_INPUT)
    answer = best.codes.reshape(*shape, *codes.shape[1:])
    certificate = problem.certificate(answer, signal)
    history = History(
        tuple(check[0] for check in checks),
        tuple(check[1] for check in checks),
        torch.stack([check[2] for check in checks]),
        torch.stack([check[3] for check in checks]),
    )
    status = settle(best.status, certificate, tol)
    taken = best.steps.reshape(shape)
    return Solution(answer, status, taken, certificate, (history,), solver.name, tol, problem, signal.detach(), stopped)


def _zeros(layers: Sequence[Dictionary], signal: Tensor) -> Tensor:
    """Return deepest codes that are zero."""
    shape = tuple(signal.shape[1:])
    for layer in layers:
        shape = layer.exact_code_shape(shape[1:])
    return signal.new_zeros(len(signal), *shape)
