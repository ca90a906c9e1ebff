"""A network that certifies itself: its own codes where their gap is small, the solver's elsewhere."""

from __future__ import annotations

import dataclasses
import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checks import require_integer, require_number
from ..errors import DSCWarning, NotConvergedError, ParameterError, ShapeError, UnsupportedError
from ..problems import Codes, LayeredSparseApproximation, Problem, SparseApproximation, assess
from ..problems.operators import Blocks
from ..problems.sums import per_sample
from ..solvers import Solution, solve
from ..solvers.solve import AnySolver

_FAILURES = ("warn", "raise", "ignore")
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class SafeguardReport:
    """What a call of `Safeguarded` found, per sample in the shape of the signal's batch axes.

    Attributes:
        needed: Whether the network's codes were not good enough and the solver was asked.
        network_gap: The relative gap of the network's codes, float64; NaN where they are not finite.
        relative_gap: The relative gap of the codes that were returned, float64.
        tol: What was asked for.
        solution: The solver's answer for the samples that needed it, in their order (None if none did); for all samples
            where the problem has tensors as settings, which may belong to single samples.
    """

    needed: Tensor
    network_gap: Tensor
    relative_gap: Tensor
    tol: float
    solution: Solution | None

    @property
    def share(self) -> float:
        """The share of samples that needed the solver; 0 for an empty batch."""
        return float(self.needed.double().mean()) if self.needed.numel() else 0.0

    @property
    def certified(self) -> Tensor:
        """Whether ``relative_gap ≤ tol``; False where the gap is NaN."""
        return self.relative_gap <= self.tol

    def __str__(self) -> str:
        if not self.needed.numel():
            return "safeguard of an empty batch"
        finite = self.relative_gap[torch.isfinite(self.relative_gap)]
        worst = f"{float(finite.max()):.2g}" if finite.numel() else "none finite"
        parts = [
            f"{int(self.needed.sum())}/{self.needed.numel()} needed the solver",
            f"relative gap ≤ {worst} ({self.tol:.2g} was asked for)",
        ]
        failed = int((~self.certified).sum())
        return " · ".join([*parts, *([f"{failed} not certified"] if failed else [])])

    def __repr__(self) -> str:
        return f"<SafeguardReport {self}>"


class Safeguarded(nn.Module):
    """A network whose codes are certified sample by sample, and replaced by the solver's where they fall short.

    ``relative_gap(codes) ≤ tol`` for every input, whatever the network: its codes where their certificate says so, and
    ``solve(start=codes)`` elsewhere. Codes that are not finite, or worse than zero codes, are no start: there the
    solver starts from zero. No gradients pass.

    Args:
        net: Any module that takes the problem's signals, with their batch axes, and returns codes as the problem's
            solutions have them: a tensor, or a tuple with one per layer.
        problem: What the codes should minimize; its dtype and device are those of the network.
        tol: The relative duality gap that is small enough.
        solver: As in `solve`; None has one chosen.
        max_steps: The solver's most steps.
        on_failure: "warn", "raise" or "ignore" when a sample misses `tol` even so (a signal that is not finite, steps
            that run out).

    Attributes:
        last: The report of the last call; None before the first.

    Raises:
        ParameterError: A setting out of range.
        UnsupportedError: An ℓ0 problem, whose codes have no gap.

    Source: N10 of docs/theory.md; the gap: G5.
    """

    last: SafeguardReport | None

    def __init__(
        self,
        net: nn.Module,
        problem: Problem,
        *,
        tol: float = 1e-3,
        solver: AnySolver | None = None,
        max_steps: int = 10_000,
        on_failure: str = "warn",
    ) -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise ParameterError(f"net is a {type(net).__name__}; expected a torch.nn.Module that returns codes")
        if not isinstance(problem, Problem):
            raise ParameterError(f"problem is a {type(problem).__name__}; expected dsc.Lasso, dsc.JointLasso or alike")
        if isinstance(problem, SparseApproximation | LayeredSparseApproximation):
            raise UnsupportedError(
                f"a {type(problem).__name__} has no duality gap that certifies codes; use dsc.Lasso or "
                "dsc.BasisPursuit, or their layered forms"
            )
        if not isinstance(on_failure, str) or on_failure not in _FAILURES:
            raise ParameterError(f"on_failure is {on_failure!r}; expected 'warn', 'raise' or 'ignore'")
        self.net = net
        self.problem = problem
        self.tol = require_number("tol", tol, minimum=0.0)
        self.solver = solver
        self.max_steps = require_integer("max_steps", max_steps, minimum=0)
        self.on_failure = on_failure
        self.last = None

    def forward(self, signal: Tensor) -> Codes:
        """Return codes whose relative gap is at most `tol`, and leave the report in `last`.

        Args:
            signal: ``(*batch, ...)`` as the problem takes it.

        Returns:
            Codes as the problem's solutions have them, without a graph.

        Raises:
            ShapeError: The network returned something of another shape.
            NotConvergedError: A sample misses `tol` and ``on_failure="raise"``.
            DSCError: A signal that does not fit, or codes of another dtype or device.
        """
        problem = self.problem
        signal = problem.check_signal(signal).detach()
        batch = problem.batch_shape(signal)
        with torch.no_grad():
            proposed = _as_codes(self.net(signal))
            try:
                blocks = problem.pack(proposed, signal)
            except ShapeError as error:
                raise ShapeError(f"the network's output does not fit the problem: {error}") from None
            finite = torch.stack([torch.isfinite(block).flatten(1).all(1) for block in blocks]).all(0)
            clean = tuple(torch.where(per_sample(finite, block), block, 0.0) for block in blocks)
            found = assess(problem, signal, problem.unpack(clean, batch), self.tol)
            gap = torch.where(finite, found.relative_gap.reshape(-1), math.nan)
            needed = ~(gap <= self.tol)
            if not bool(needed.any()):
                self.last = SafeguardReport(
                    needed.reshape(batch), gap.reshape(batch), gap.reshape(batch), self.tol, None
                )
                return problem.unpack(blocks, batch)
            start = self._starts(signal, clean, found.objective.reshape(-1))
            codes, relative, solution = self._solve(signal, blocks, start, needed, gap)
        self.last = SafeguardReport(
            needed.reshape(batch), gap.reshape(batch), relative.reshape(batch), self.tol, solution
        )
        self._report(solution, needed)
        return problem.unpack(codes, batch)

    def extra_repr(self) -> str:
        """Return the words between the brackets of the printed form."""
        return f"problem={type(self.problem).__name__}, tol={self.tol:g}"

    def _starts(self, signal: Tensor, clean: Blocks, objective: Tensor) -> Blocks:
        """Return the network's codes where they are better than none, else zero."""
        batch = self.problem.batch_shape(signal)
        zeros = tuple(torch.zeros_like(block) for block in clean)
        nothing = self.problem.objective(self.problem.unpack(zeros, batch), signal).reshape(-1)
        better = objective <= nothing
        return tuple(torch.where(per_sample(better, block), block, 0.0) for block in clean)

    def _solve(
        self, signal: Tensor, blocks: Blocks, start: Blocks, needed: Tensor, gap: Tensor
    ) -> tuple[Blocks, Tensor, Solution]:
        """Return codes and relative gaps of all samples, flat, with the solver's where they are needed."""
        problem, batch = self.problem, self.problem.batch_shape(signal)
        rows = needed.nonzero().flatten()
        if _has_tensors(problem):
            asked, begin, taken = signal, problem.unpack(start, batch), rows
        else:
            asked = signal.reshape(len(needed), *signal.shape[len(batch) :])[rows]
            begin = problem.unpack(tuple(block[rows] for block in start), (len(rows),))
            taken = torch.arange(len(rows), device=rows.device)
        solution = solve(
            problem, asked, self.solver, tol=self.tol, max_steps=self.max_steps, start=begin, on_failure="ignore"
        )
        solved = problem.pack(solution.codes, asked)
        codes = tuple(own.index_copy(0, rows, other[taken]) for own, other in zip(blocks, solved, strict=True))
        relative = gap.index_copy(0, rows, solution.certificate.relative_gap.reshape(-1)[taken].to(gap))
        return codes, relative, solution

    def _report(self, solution: Solution, needed: Tensor) -> None:
        report = self.last
        assert report is not None, "a report was just written"
        failed = (~report.certified).flatten().nonzero().flatten().tolist()
        if not failed or self.on_failure == "ignore":
            return
        whole = len(solution.status) == len(needed)
        place = range(len(needed)) if whole else (needed.flatten().cumsum(0) - 1).tolist()
        lines = [f"  sample {i}: {solution.message(int(place[i]))}" for i in failed[:_SHOWN]]
        more = [f"  ... and {len(failed) - _SHOWN} more"] if len(failed) > _SHOWN else []
        head = f"{len(failed)} of {len(needed)} samples are not certified, neither by the network nor by the solver"
        text = "\n".join([head, *lines, *more])
        if self.on_failure == "raise":
            raise NotConvergedError(text)
        warnings.warn(text, DSCWarning, stacklevel=5)


def _as_codes(output: object) -> Codes:
    """Return a list of layers as a tuple; what is no codes at all is found by the problem's checks."""
    if isinstance(output, list):
        return tuple(output)
    return output  # type: ignore[return-value]


def _has_tensors(problem: Problem) -> bool:
    """Return whether a setting is a tensor: it may belong to single samples, so that no samples are taken out."""
    assert dataclasses.is_dataclass(problem), "problems are frozen dataclasses"
    for field in dataclasses.fields(problem):
        value = getattr(problem, field.name)
        entries = value if isinstance(value, tuple) else (value,)
        if any(isinstance(entry, Tensor) for entry in entries):
            return True
    return False
