"""The one loop: step, check the certificate, let samples go as they end."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_integer, require_number
from deep_sparse_coding.errors import DSCWarning, NotConvergedError, ParameterError, UnsupportedError
from deep_sparse_coding.problems import (
    BasisPursuit,
    Blocks,
    Certificate,
    Codes,
    ConvexProblem,
    LayeredBasisPursuit,
    LayeredLasso,
    Problem,
    StandardForm,
    assess,
    assess_form,
)

from .base import Solver, State, select_blocks
from .choice import choose_solver
from .constrained import solve_pursuit
from .gradients import attach_gradients
from .solution import History, Solution, Status

# The gap counts as falling while it loses this share of itself over a window of checks.
_STALL_FALL = 0.02
_STALL_CHECKS = 8
# Started near the answer to a neighboring problem, an accelerated method first loses ground: patience is longer.
_STALL_CHECKS_WARM = 24
# A check costs about two steps: it comes again after this share of the steps so far.
_CHECK_SHARE = 0.125


@dataclass(frozen=True, eq=False)
class Progress:
    """What a callback sees at every check.

    Attributes:
        step: Steps taken.
        max_steps: The limit.
        active: Samples that have not ended.
        samples: Samples in all.
        relative_gap: The largest relative gap of the active ones.
        layer: The layer at work, counted from 1, for layered problems; else 1.
    """

    step: int
    max_steps: int
    active: int
    samples: int
    relative_gap: float
    layer: int = 1


Callback = Callable[[Progress], bool | None]


def solve(
    problem: Problem,
    signal: Tensor,
    solver: Solver[Any] | None = None,
    *,
    tol: float = 1e-6,
    max_steps: int = 10_000,
    start: Codes | None = None,
    on_failure: str = "warn",
    callback: Callback | None = None,
    differentiable: bool = False,
) -> Solution:
    """Solve a sparse coding problem and certify the answer, sample by sample.

    Args:
        problem: A `Lasso`, `LayeredLasso` or `JointLasso`.
        signal: ``(*batch, ...)`` in the dictionary's dtype and on its device. float32 is solved in float32 first;
            samples that it cannot bring to `tol` are finished in float64.
        solver: How; None chooses by structure, size and device, and the solution says which.
        tol: The relative duality gap at which a sample has converged, computed in float64 from the codes that are
            returned.
        max_steps: The most steps (per layer for layered problems).
        start: Codes to start from, as a solution has them; an optimal start takes 0 steps.
        on_failure: "warn", "raise" or "ignore" when a sample does not converge.
        callback: Called at every check; returning True stops the run, with the best codes so far.
        differentiable: Whether the codes carry gradients with respect to the signal, the atoms, lam and weights, as far
            as these require them, by implicit differentiation on the support (not through the steps; once, not twice):
            exact up to `tol` for a unique minimizer away from kinks. The certificate carries none.

    Returns:
        A `Solution`. A sample that is not finite gets NaN codes and NONFINITE_INPUT; it never spoils the others.

    Raises:
        NotConvergedError: With ``on_failure="raise"``.
        ParameterError: A setting out of range or a start that is not finite.
        ShapeError, DtypeError, DeviceError: A signal or a start that does not fit.
        UnsupportedError: The solver does not take this problem.
    """
    if on_failure not in ("warn", "raise", "ignore"):
        raise ParameterError(f"on_failure is {on_failure!r}; expected 'warn', 'raise' or 'ignore'")
    solution = solve_quietly(problem, signal, solver, tol=tol, max_steps=max_steps, start=start, callback=callback)
    solution = _report(solution, on_failure)
    return replace(solution, codes=attach_gradients(problem, signal, solution.codes)) if differentiable else solution


def solve_quietly(
    problem: Problem,
    signal: Tensor,
    solver: Solver[Any] | None,
    *,
    tol: float,
    max_steps: int,
    start: Codes | None = None,
    callback: Callback | None = None,
) -> Solution:
    """Return what `solve` returns, after the same checks, without a word about samples that failed or are zero."""
    if not isinstance(problem, Problem):
        raise ParameterError(f"problem is a {type(problem).__name__}; expected dsc.Lasso, dsc.BasisPursuit or the like")
    if solver is not None and not isinstance(solver, Solver):
        raise ParameterError(f"solver is {solver!r}; expected a solver such as dsc.FISTA(), or None to have one chosen")
    tol = require_number("tol", tol, minimum=0.0)
    max_steps = require_integer("max_steps", max_steps, minimum=0)
    signal = problem.check_signal(signal)
    blocks = None if start is None else _check_start(problem, signal, start)
    with torch.no_grad():
        settings = _Settings(solver, tol, max_steps, callback)
        if isinstance(problem, LayeredLasso | LayeredBasisPursuit):
            return _solve_layers(problem, signal, settings, blocks)
        return _solve_single(problem, signal, settings, blocks)


@dataclass(frozen=True, eq=False)
class _Settings:
    solver: Solver[Any] | None
    tol: float
    max_steps: int
    callback: Callback | None
    layer: int = 1
    stall_checks: int = _STALL_CHECKS


def _check_start(problem: Problem, signal: Tensor, start: Codes) -> Blocks:
    blocks = problem.pack(start, signal)
    bad = sum(int((~torch.isfinite(block)).sum()) for block in blocks)
    if bad:
        raise ParameterError(
            f"start has {bad} entries that are not finite; expected finite codes: leave start out, or repair it with "
            "torch.nan_to_num"
        )
    return blocks


def _solve_single(problem: Problem, signal: Tensor, settings: _Settings, start: Blocks | None) -> Solution:
    if isinstance(problem, ConvexProblem):
        return _solve_convex(problem, signal, settings, start)
    if isinstance(problem, BasisPursuit):
        return _solve_pursuit(problem, signal, settings, start)
    raise UnsupportedError(f"solve does not take a {type(problem).__name__}")


def _solve_pursuit(problem: BasisPursuit, signal: Tensor, settings: _Settings, start: Blocks | None) -> Solution:
    form = problem.form(signal).cast(torch.float64)
    solver = settings.solver or choose_solver(form)
    reason = solver.refuse(form)
    if reason:
        raise UnsupportedError(reason)

    def lasso(here: StandardForm, begin: Blocks, tol: float, limit: int) -> tuple[Blocks, Tensor]:
        run = _Run(here, solver, _Settings(solver, tol, limit, None, stall_checks=_STALL_CHECKS_WARM))
        run.iterate(begin)
        return run.codes, run.steps_taken

    def report(step: int, active: int, gap: float) -> bool:
        seen = Progress(step, settings.max_steps, active, form.batch, gap, settings.layer)
        return settings.callback is not None and settings.callback(seen) is True

    return solve_pursuit(
        problem,
        signal,
        start,
        tol=settings.tol,
        max_steps=settings.max_steps,
        solve_lasso=lasso,
        report=report,
        name=f"{solver.name} in a search for lam",
    )


def _solve_convex(problem: ConvexProblem, signal: Tensor, settings: _Settings, start: Blocks | None) -> Solution:
    form = problem.form(signal)
    solver = settings.solver or choose_solver(form)
    reason = solver.refuse(form)
    if reason:
        raise UnsupportedError(reason)
    finite = _finite_samples(form)
    good = finite.nonzero().flatten()
    whole = len(good) == form.batch
    run = _Run(form if whole else form.select(good), solver, settings)
    begin = form.zeros() if start is None else start
    run.iterate(begin if whole else select_blocks(begin, good))

    codes, status = run.codes, run.status
    steps, history = run.steps_taken, run.history()
    if not whole:
        codes = tuple(_spread(block, good, form.batch, math.nan) for block in codes)
        ended = torch.full((form.batch,), int(Status.NONFINITE_INPUT))
        ended[good.cpu()] = status
        status, steps = ended, _spread(steps, good.cpu(), form.batch, 0)
        history = History(
            history.steps,
            history.seconds,
            _spread(history.objective.T, good.cpu(), form.batch, math.nan).T,
            _spread(history.relative_gap.T, good.cpu(), form.batch, math.nan).T,
        )
    shape = problem.batch_shape(signal)
    answer = problem.unpack(codes, shape)
    certificate = assess(problem, signal, answer)
    status = _settle(status, certificate, settings.tol)
    return Solution(
        answer,
        status,
        steps.reshape(shape),
        certificate,
        (history,),
        solver.name,
        settings.tol,
        problem,
        signal.detach(),
        run.stopped,
    )


def _settle(status: Tensor, certificate: Certificate, tol: float) -> tuple[Status, ...]:
    """Return the statuses, CONVERGED exactly where the final certificate says so."""
    gaps = certificate.relative_gap.flatten().cpu()
    settled = []
    for code, gap in zip(status.tolist(), gaps.tolist(), strict=True):
        proved = gap <= tol  # False for NaN
        if proved and code != Status.NONFINITE_INPUT:
            settled.append(Status.CONVERGED)
        else:
            settled.append(Status.STALLED if code == Status.CONVERGED else Status(code))
    return tuple(settled)


def _solve_layers(
    problem: LayeredLasso | LayeredBasisPursuit, signal: Tensor, settings: _Settings, start: Blocks | None
) -> Solution:
    current, solutions = signal, []
    stopped = False
    for j, stage in enumerate(problem.stages):
        # After a stop the layers above are left at their start: what was not worked on is not made up.
        limit = 0 if stopped else settings.max_steps
        here = _Settings(settings.solver, settings.tol, limit, settings.callback, layer=j + 1)
        solution = _solve_single(stage, current, here, None if start is None else (start[j],))
        solutions.append(solution)
        stopped = stopped or solution.stopped
        current = cast(Tensor, solution.codes)  # the codes of one layer are one tensor
    codes = tuple(solution.codes for solution in solutions)
    return Solution(
        codes,
        tuple(max(column) for column in zip(*(solution.status for solution in solutions), strict=True)),
        torch.stack([solution.steps for solution in solutions]).sum(0),
        assess(problem, signal, codes),
        tuple(solution.history[0] for solution in solutions),
        " + ".join(dict.fromkeys(solution.solver for solution in solutions)),
        settings.tol,
        problem,
        signal.detach(),
        stopped,
    )


class _Run:
    """One pass of the loop over a flat batch of finite samples."""

    def __init__(self, form: StandardForm, solver: Solver[Any], settings: _Settings) -> None:
        self.form, self.solver, self.settings = form, solver, settings
        self.exact = form.cast(torch.float64)
        batch = form.batch
        self.status = torch.full((batch,), int(Status.MAX_STEPS))
        self.steps_taken = torch.zeros(batch, dtype=torch.int64)
        self.best_gap = torch.full((batch,), math.inf, dtype=torch.float64)
        self.codes: Blocks = form.zeros()
        self.stopped = False
        self._checks: list[tuple[int, float, Tensor, Tensor]] = []
        self._gaps: list[Tensor] = []
        self._steps_before = 0
        self._began = time.perf_counter()

    def iterate(self, start: Blocks) -> None:
        """Step and check until every sample has ended; what float32 cannot finish goes on in float64."""
        self.codes = tuple(block.clone() for block in start)
        everyone = torch.arange(self.form.batch)
        self._pass(self.form, everyone, start)
        if self.form.data[0].dtype == torch.float32:
            stuck = (self.status == Status.STALLED).nonzero().flatten()
            here = stuck.to(self.form.data[0].device)
            best = tuple(block.double() for block in select_blocks(self.codes, here))
            self._gaps.clear()
            self._pass(self.exact.select(here), stuck, best)

    def _pass(self, form: StandardForm, active: Tensor, start: Blocks) -> None:
        """Run the loop for the samples `active`, in the precision of `form`."""
        limit = self.settings.max_steps - self._steps_before
        if not len(active) or limit < 0 or self.stopped:
            return
        self.status[active] = int(Status.MAX_STEPS)
        exact = form.cast(torch.float64)
        state = self.solver.init(form, start, self.settings.tol)
        next_check = 0
        while True:
            if state.steps >= next_check or state.steps >= limit:
                keep = self._check(exact, state, active)
                if self.stopped or not len(keep) or state.steps >= limit:
                    break
                if len(keep) < len(active):
                    here = keep.to(form.data[0].device)
                    form, exact, state = form.select(here), exact.select(here), state.select(here)
                    active = active[keep]
                next_check = state.steps + max(self.solver.check_every, int(_CHECK_SHARE * state.steps))
            state = self.solver.step(form, state)
        self._steps_before += state.steps

    def _check(self, exact: StandardForm, state: State, active: Tensor) -> Tensor:
        """Assess the active samples, keep the best codes, end those that are done; return the indices that go on."""
        # What is judged is what would be returned: codes in the user's precision.
        codes = tuple(block.to(self.codes[0].dtype) for block in state.codes)
        step, seconds = self._steps_before + state.steps, time.perf_counter() - self._began
        certificate = assess_form(exact, codes)
        gap, objective = certificate.relative_gap.cpu(), certificate.objective.cpu()
        finite = torch.isfinite(objective) & torch.isfinite(gap)
        unchanged = self._unchanged(codes, active)
        better = finite & (gap < self.best_gap[active])
        if bool(better.any()):
            rows = better.nonzero().flatten()
            self.best_gap[active[rows]] = gap[rows]
            for best, block in zip(self.codes, codes, strict=True):
                best[active[rows].to(best.device)] = block[rows.to(block.device)]
        self.steps_taken[active] = step
        self._record(step, seconds, active, objective, gap)

        ended = torch.full((len(active),), -1)
        stalled = self._stalled(active) | (unchanged & (state.steps > 0))
        ended[stalled] = int(Status.STALLED)
        ended[~finite] = int(Status.DIVERGED)
        ended[finite & (gap <= self.settings.tol)] = int(Status.CONVERGED)
        done = ended >= 0
        self.status[active[done]] = ended[done]
        keep = (~done).nonzero().flatten()
        callback = self.settings.callback
        if callback is not None:
            worst = float(gap[keep].max()) if len(keep) else float(gap.max())
            seen = Progress(step, self.settings.max_steps, len(keep), self.form.batch, worst, self.settings.layer)
            self.stopped = callback(seen) is True
        return keep

    def _unchanged(self, codes: Blocks, active: Tensor) -> Tensor:
        """Return which samples hold the very codes that were best before: a fixed point of the arithmetic."""
        same = torch.ones(len(active), dtype=torch.bool)
        for best, block in zip(self.codes, codes, strict=True):
            rows = best if len(active) == len(best) else best[active.to(best.device)]
            same &= (rows == block).flatten(1).all(1).cpu()
        return same

    def _record(self, step: int, seconds: float, active: Tensor, objective: Tensor, gap: Tensor) -> None:
        if self._checks:
            objectives, gaps = self._checks[-1][2].clone(), self._checks[-1][3].clone()
        else:
            objectives = torch.full((self.form.batch,), math.nan, dtype=torch.float64)
            gaps = objectives.clone()
        objectives[active], gaps[active] = objective, gap
        self._checks.append((step, seconds, objectives, gaps))
        self._gaps.append(self.best_gap.clone())

    def _stalled(self, active: Tensor) -> Tensor:
        """Return which samples' best gap has hardly fallen over the last checks."""
        window = self.settings.stall_checks
        if len(self._gaps) <= window:
            return torch.zeros(len(active), dtype=torch.bool)
        before, now = self._gaps[-1 - window][active], self._gaps[-1][active]
        return now > (1 - _STALL_FALL) * before

    def history(self) -> History:
        """Return what the checks saw."""
        empty = torch.zeros(0, self.form.batch, dtype=torch.float64)
        return History(
            tuple(check[0] for check in self._checks),
            tuple(check[1] for check in self._checks),
            torch.stack([check[2] for check in self._checks]) if self._checks else empty,
            torch.stack([check[3] for check in self._checks]) if self._checks else empty,
        )


def _finite_samples(form: StandardForm) -> Tensor:
    """Return which samples have finite data and weights that are not NaN."""
    finite = torch.ones(form.batch, dtype=torch.bool, device=form.data[0].device)
    for block in form.data:
        finite &= torch.isfinite(block).flatten(1).all(1)
    for weight in form.weights:
        finite &= (~torch.isnan(weight)).flatten(1).all(1).expand(form.batch)
    return finite


def _spread(rows: Tensor, places: Tensor, length: int, fill: float) -> Tensor:
    whole = rows.new_full((length, *rows.shape[1:]), fill)
    whole[places] = rows
    return whole


def _report(solution: Solution, on_failure: str) -> Solution:
    """Say aloud what must not be silent: samples that failed, and lam at or above lam_max."""
    failed = [i for i, status in enumerate(solution.status) if status != Status.CONVERGED]
    if failed and on_failure != "ignore":
        words = f"{len(failed)} of {len(solution.status)} samples did not converge; sample {failed[0]}: "
        words += solution.message(failed[0])
        if on_failure == "raise":
            raise NotConvergedError(words)
        warnings.warn(words, DSCWarning, stacklevel=3)
    blocks = solution.codes if isinstance(solution.codes, tuple) else (solution.codes,)
    axes = solution.certificate.gap.ndim
    if blocks[0].numel():
        zero = (blocks[0] == 0).flatten(axes).all(-1) if blocks[0].ndim > axes else blocks[0] == 0
        nonzero_signal = (solution.signal != 0).flatten(axes).any(-1)
        empty = int((zero & nonzero_signal & solution.converged.to(zero.device)).sum())
        if empty:
            warnings.warn(_zero_words(solution, empty), DSCWarning, stacklevel=3)
    return solution


def _zero_words(solution: Solution, count: int) -> str:
    largest = float(solution.problem.lam_max(solution.signal).detach().max())
    which = f"{count} of {len(solution.status)} samples, whose codes are all zero"
    if isinstance(solution.problem, BasisPursuit | LayeredBasisPursuit):
        return (
            f"epsilon is at or above the norm of the signal for {which}; expected a smaller epsilon: the largest norm "
            f"here is {largest:.4g} (problem.lam_max(signal))"
        )
    return (
        f"lam is at or above lam_max for {which}; expected a smaller lam: the largest lam_max here is {largest:.4g} "
        "(problem.lam_max(signal))"
    )
