"""What `solve` returns: codes, a status per sample with its meaning, the certificate, and how it went."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_integer
from deep_sparse_coding.errors import NotConvergedError, ParameterError
from deep_sparse_coding.problems import (
    Certificate,
    Codes,
    LayeredSparseApproximation,
    MultiLayerLasso,
    Problem,
    SparseApproximation,
)
from deep_sparse_coding.problems.screening import Screening, screen


class Status(IntEnum):
    """How a sample ended, and so what its codes are.

    CONVERGED: the relative gap, recomputed in float64 from the codes, is at most ``tol``; nothing else is called so.
        Only for ℓ0 problems, which have no such gap, it means that the constraints are met.
    MAX_STEPS: the codes with the smallest gap seen when the steps ran out (or a callback stopped the run).
    STALLED: the same, when the gap no longer fell.
    NONFINITE_INPUT: the signal (or its lam) is NaN or infinite; the codes are NaN.
    DIVERGED: the iteration, or the square of the signal, left the range of the numbers; the codes are the best finite
        ones seen.
    INFEASIBLE: no codes meet the constraints; the codes are NaN.
    """

    CONVERGED = 0
    MAX_STEPS = 1
    STALLED = 2
    NONFINITE_INPUT = 3
    DIVERGED = 4
    INFEASIBLE = 5


_L0_WORDS = {
    Status.CONVERGED: "the constraints are met after {steps} steps; that no better codes exist is not proved (ℓ0)",
    Status.MAX_STEPS: "ran out of steps: {steps} atoms were chosen; raise max_steps",
    Status.STALLED: "greedy selection did not come within epsilon with the {steps} atoms it may use, which proves "
    "nothing (ℓ0): raise sparsity or epsilon, or try dsc.Exhaustive() if the problem is tiny",
}


@dataclass(frozen=True, eq=False)
class History:
    """What every check of the loop saw; a sample that has ended keeps its last values.

    Attributes:
        steps: The step of each check.
        seconds: Seconds since the start.
        objective: ``(checks, samples)``, float64.
        relative_gap: ``(checks, samples)``, float64.
    """

    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    objective: Tensor
    relative_gap: Tensor


@dataclass(frozen=True, eq=False)
class Solution:
    """Codes with evidence.

    Attributes:
        codes: A tensor ``(*batch, ...)``, or a tuple with one per layer.
        status: One `Status` per sample, in the order of the flattened batch.
        steps: Steps taken by each sample, ``(*batch,)``.
        certificate: Objective, dual value and gap in float64, recomputed from `codes`.
        history: What the checks on the way saw, one history per layer for layered problems.
        solver: The solver's name.
        tol: The relative gap that was asked for.
        problem: What was solved.
        signal: For which signal.
        stopped: Whether a callback ended the run.
    """

    codes: Codes
    status: tuple[Status, ...]
    steps: Tensor
    certificate: Certificate
    history: tuple[History, ...]
    solver: str
    tol: float
    problem: Problem
    signal: Tensor
    stopped: bool = field(default=False)

    @property
    def converged(self) -> Tensor:
        """True per sample that has converged (see `Status`), ``(*batch,)``."""
        flags = torch.tensor([int(status) for status in self.status], dtype=torch.int64) == Status.CONVERGED
        return flags.reshape(self.certificate.gap.shape)

    def message(self, index: int) -> str:
        """Return what happened to sample `index` (of the flattened batch), the likely cause and what to do.

        Raises:
            ParameterError: There is no such sample.
        """
        index = require_integer("index", index, minimum=-len(self.status))
        if index >= len(self.status):
            raise ParameterError(f"index is {index} and there are {len(self.status)} samples; expected a smaller one")
        status = self.status[index]
        gap = float(self.certificate.relative_gap.flatten()[index])
        steps = int(self.steps.flatten()[index])
        if isinstance(self.problem, SparseApproximation | LayeredSparseApproximation) and status in _L0_WORDS:
            if status == Status.CONVERGED and gap == 0:
                return f"proved optimal with {steps} steps"
            return _L0_WORDS[status].format(steps=steps)
        reached = f"relative gap {gap:.2g} after {steps} steps, {self.tol:.2g} was asked for"
        if status == Status.CONVERGED:
            return f"converged: relative gap {gap:.2g} ≤ {self.tol:.2g} after {steps} steps"
        if status == Status.MAX_STEPS:
            if self.stopped:
                return f"stopped by the callback: {reached}; continue with start=solution.codes"
            return f"ran out of steps: {reached}; raise max_steps, start from these codes (start=), or loosen tol"
        if status == Status.STALLED:
            if isinstance(self.problem, MultiLayerLasso):
                return (
                    f"stalled: {reached}; this is the method's own limit: pass a smaller relaxation to dsc.MLFISTA() "
                    "or solve dsc.JointLasso with a large beta, whose certificate is tight"
                )
            if self.signal.dtype == torch.float32:
                return f"stalled: {reached}; float32 resolves no more: use .double() on dictionary and signal"
            return f"stalled: {reached}; this is the resolution of the solver: loosen tol or use another solver"
        if status == Status.NONFINITE_INPUT:
            return "the signal or its lam is NaN or infinite; its codes are NaN: remove or repair this sample"
        if status == Status.DIVERGED:
            return f"left the range of the numbers after {steps} steps: scale the signal towards 1, or use float64"
        return (
            "infeasible: no codes meet the constraints, whatever the dictionary makes is at least epsilon away from "
            "the signal: raise epsilon, allow more atoms, or drop nonnegative"
        )

    def unwrap(self) -> Codes:
        """Return the codes if every sample converged.

        Raises:
            NotConvergedError: One did not; the message names the first few and the remedy.
        """
        failed = [i for i, status in enumerate(self.status) if status != Status.CONVERGED]
        if failed:
            lines = [f"  sample {i}: {self.message(i)}" for i in failed[:3]]
            more = [f"  ... and {len(failed) - 3} more"] if len(failed) > 3 else []
            head = f"{len(failed)} of {len(self.status)} samples did not converge"
            raise NotConvergedError("\n".join([head, *lines, *more]))
        return self.codes

    @property
    def zero_fraction(self) -> float:
        """The share of code entries that are exactly zero, over all layers and finite samples."""
        blocks = self.codes if isinstance(self.codes, tuple) else (self.codes,)
        finite = [block[torch.isfinite(block)] for block in blocks]
        total = sum(block.numel() for block in finite)
        return sum(int((block == 0).sum()) for block in finite) / total if total else 1.0

    def screening(self) -> Screening:
        """Return how many codes are proved zero in every minimizer, whatever the status; computed when asked.

        Raises:
            UnsupportedError: Constrained or ℓ0 problems, bounds, groups.

        Source: "Certain zeros" in G5 of docs/theory.md.
        """
        return screen(self.problem, self.signal, self.codes)

    def __str__(self) -> str:
        done = sum(status == Status.CONVERGED for status in self.status)
        parts = [f"{done}/{len(self.status)} converged", self.solver]
        if self.status:
            gaps = self.certificate.relative_gap[torch.isfinite(self.certificate.relative_gap)]
            parts.append(f"{int(self.steps.max())} steps")
            if isinstance(self.problem, SparseApproximation | LayeredSparseApproximation) and bool((gaps > 0).any()):
                parts.append("no gap (ℓ0)")
            else:
                parts.append(f"gap ≤ {gaps.max():.1e}" if gaps.numel() else "no finite gap")
            parts.append(f"{100 * self.zero_fraction:.1f} % zeros")
        counts = {status: self.status.count(status) for status in Status if status != Status.CONVERGED}
        parts += [f"{count} {status.name}" for status, count in counts.items() if count]
        return " · ".join(parts)

    def __repr__(self) -> str:
        return f"<Solution {self}>"


def settle(status: Tensor, certificate: Certificate, tol: float) -> tuple[Status, ...]:
    """Return the statuses, CONVERGED exactly where the final certificate says so and the codes are an answer."""
    proved = certificate.relative_gap.flatten().cpu() <= tol  # False for NaN
    never = (status == Status.NONFINITE_INPUT) | (status == Status.INFEASIBLE)
    status = torch.where(proved & ~never, int(Status.CONVERGED), status)
    status = torch.where(~proved & (status == Status.CONVERGED), int(Status.STALLED), status)
    members = {int(member): member for member in Status}  # faster than calling the class for every sample
    return tuple(members[code] for code in status.tolist())
