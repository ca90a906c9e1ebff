"""The one loop: step, check the certificate, let samples go as they end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deep_sparse_coding.problems import Blocks, Certificate, StandardForm
from deep_sparse_coding.problems.sums import used_rows

from .base import Solver, State, all_zero, select_blocks
from .greedy import Pursuit
from .solution import History, Status

if TYPE_CHECKING:
    from .multilayer import MultiLayerSolver

# A sample has stalled when the smallest gap of a window of checks lost less than this share against the window before.
# Two windows, since an accelerated method that starts near the answer to a neighboring problem first loses ground.
_STALL_FALL = 0.02
_STALL_WINDOW = 8
# What float32 cannot finish goes on in float64, so there is no need for patience.
_STALL_WINDOW_FLOAT32 = 4
# What counts as rest of the objective over a window, relative to itself.
_RESOLUTION = {torch.float32: 1e-6, torch.float64: 1e-9}
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


@dataclass(frozen=True, eq=False)
class Settings:
    """What one run of the loop is told.

    Attributes:
        solver: The solver, or None to have one chosen.
        tol: The relative gap at which a sample has converged.
        max_steps: The most steps.
        callback: Called at every check.
        layer: What `Progress` says.
        max_memory: A limit in bytes, or None.
        corrected: Whether checks may try a second dual point (`assess_form`).
    """

    solver: Solver[Any] | Pursuit | MultiLayerSolver | None
    tol: float
    max_steps: int
    callback: Callback | None
    layer: int = 1
    max_memory: int | None = None
    corrected: bool = True


class Run:
    """One pass of the loop over a flat batch of finite samples."""

    def __init__(self, form: StandardForm, exact: StandardForm, solver: Solver[Any], settings: Settings) -> None:
        """Hold the form to work on and the same in float64, by which it is judged."""
        self.form, self.exact, self.solver, self.settings = form, exact, solver, settings
        batch = form.batch
        self.status = torch.full((batch,), int(Status.MAX_STEPS))
        self.steps_taken = torch.zeros(batch, dtype=torch.int64)
        self.codes: Blocks = ()
        self._own = False  # whether the codes are no longer the caller's start, and may be written into
        # Of the codes that are kept, the assessor's words: NaN until codes with a finite gap have been seen.
        self.best_gap = torch.full((batch,), math.inf, dtype=torch.float64)
        self.best_objective = torch.full((batch,), math.nan, dtype=torch.float64)
        self.best_relative = self.best_objective.clone()
        self.stopped = False
        self._checks: list[tuple[int, float, Tensor, Tensor]] = []
        self._gaps: list[Tensor] = []
        self._window, self._resolution = _STALL_WINDOW, _RESOLUTION[torch.float64]
        self._steps_before = 0
        self._began = time.perf_counter()

    def iterate(self, start: Blocks) -> None:
        """Step and check until every sample has ended; what float32 cannot finish goes on in float64."""
        self.codes = start
        everyone = torch.arange(self.form.batch)
        self._pass(self.form, self.exact, everyone, start)
        if self.form.data[0].dtype == torch.float32:
            stuck = (self.status == Status.STALLED).nonzero().flatten()
            here = stuck.to(self.form.data[0].device)
            best = tuple(block.double() for block in select_blocks(self.codes, here))
            self._gaps.clear()
            finish = self.exact.select(here)
            self._pass(finish, finish, stuck, best)
        if not self._own:  # nothing better was found: the answer must not be the caller's tensor
            self.codes, self._own = tuple(block.clone() for block in self.codes), True

    def _pass(self, form: StandardForm, exact: StandardForm, active: Tensor, start: Blocks) -> None:
        """Run the loop for the samples `active`, in the precision of `form`, judged by `exact`."""
        limit = self.settings.max_steps - self._steps_before
        if not len(active) or limit < 0 or self.stopped:
            return
        self.status[active] = int(Status.MAX_STEPS)
        dtype = form.data[0].dtype
        self._window = _STALL_WINDOW_FLOAT32 if dtype == torch.float32 else _STALL_WINDOW
        self._resolution = _RESOLUTION[dtype]
        if not self.solver.makes_new_codes:
            start = tuple(block.contiguous() for block in start)
        state = self.solver.init(form, start, self.settings.tol)
        skips = self.solver.finds_zero and limit > 0 and self.settings.callback is None and all_zero(start)
        next_check = 1 if skips else 0
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
        certificate = self.solver.assess(exact, codes, self.settings.tol if self.settings.corrected else math.inf)
        gap, objective = certificate.relative_gap.cpu(), certificate.objective.cpu()
        finite = torch.isfinite(objective) & torch.isfinite(gap)
        proved = finite & (gap <= self.settings.tol)
        # The state before the first step is the start itself.
        unchanged = self._unchanged(codes, active, finite & ~proved if state.steps else torch.zeros_like(finite))
        # Codes of zero that are an answer were the start already, if this is the first look at them.
        first = not self._checks and state.steps > 0
        # The absolute gap bounds the distance to the minimum also where the relative one stays at 1.
        absolute = certificate.gap.cpu()
        better = finite & ((absolute < self.best_gap[active]) | proved)
        self._keep(codes, active, better, (objective, absolute, gap))
        self.steps_taken[active] = torch.where(proved & ~_used(codes), 0, step) if first else step
        self._record(step, seconds, active, objective, gap)

        ended = torch.full((len(active),), -1)
        stalled = self._stalled(active) | unchanged
        ended[stalled] = int(Status.STALLED)
        ended[~finite] = int(Status.DIVERGED)
        ended[proved] = int(Status.CONVERGED)
        done = ended >= 0
        self.status[active[done]] = ended[done]
        keep = (~done).nonzero().flatten()
        callback = self.settings.callback
        if callback is not None:
            worst = float(gap[keep].max()) if len(keep) else float(gap.max())
            seen = Progress(step, self.settings.max_steps, len(keep), self.form.batch, worst, self.settings.layer)
            self.stopped = callback(seen) is True
        return keep

    def _keep(self, codes: Blocks, active: Tensor, better: Tensor, words: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep the codes of the samples that are better than before, and what was said of them."""
        if bool(better.all()) and len(active) == self.form.batch:
            if any(block is not best for block, best in zip(codes, self.codes, strict=True)):
                fresh = self.solver.makes_new_codes  # else a step may use up its state
                self.codes, self._own = codes if fresh else tuple(block.clone() for block in codes), True
            self.best_objective, self.best_gap, self.best_relative = (part.clone() for part in words)
            return
        rows = better.nonzero().flatten()
        if len(rows):
            if not self._own:
                self.codes, self._own = tuple(block.clone() for block in self.codes), True
            places = active[rows]
            kept = (self.best_objective, self.best_gap, self.best_relative)
            for best, part in zip((*kept, *self.codes), (*words, *codes), strict=True):
                best[places.to(best.device)] = part[rows.to(part.device)]

    def certificate(self) -> Certificate:
        """Return the certificate of the codes that were kept: what the assessor found when it saw them."""
        device = self.codes[0].device
        objective, gap = self.best_objective.to(device), self.best_gap.to(device)
        relative, dual = self.best_relative.to(device), objective - gap
        unseen = torch.isnan(objective).nonzero().flatten()
        if not len(unseen):
            return Certificate(objective, dual, gap, relative)
        codes = select_blocks(self.codes, unseen)
        parts = self.solver.assess(self.exact.select(unseen), codes, self.settings.tol)
        return Certificate(
            objective.index_copy(0, unseen, parts.objective),
            dual.index_copy(0, unseen, parts.dual),
            gap.index_copy(0, unseen, parts.gap),
            relative.index_copy(0, unseen, parts.relative_gap),
        )

    def _unchanged(self, codes: Blocks, active: Tensor, asked: Tensor) -> Tensor:
        """Return which samples, of those asked for, hold the very codes that were best before: a fixed point."""
        same, rows = asked.clone(), asked.nonzero().flatten()
        if not len(rows):
            return same
        for best, block in zip(self.codes, codes, strict=True):
            here = rows.to(block.device)
            same[rows] &= (best[active[rows].to(best.device)] == block[here]).flatten(1).all(1).cpu()
        return same

    def _record(self, step: int, seconds: float, active: Tensor, objective: Tensor, gap: Tensor) -> None:
        if self._checks:
            objectives, gaps = self._checks[-1][2].clone(), self._checks[-1][3].clone()
        else:
            objectives = torch.full((self.form.batch,), math.nan, dtype=torch.float64)
            gaps = objectives.clone()
        objectives[active], gaps[active] = objective, gap
        self._checks.append((step, seconds, objectives, gaps))
        self._gaps.append(gaps)

    def _stalled(self, active: Tensor) -> Tensor:
        """Return which samples' gap has hardly fallen over the last checks, and whose objective rests too."""
        window = self._window
        if len(self._gaps) <= 2 * window:
            return torch.zeros(len(active), dtype=torch.bool)
        before, now = _smallest(self._gaps, window, active)
        # A gap may rest while the codes still improve: where the dual point is what lags behind.
        objective, lower = _smallest([check[2] for check in self._checks[-2 * window :]], window, active)
        return (now > (1 - _STALL_FALL) * before) & (lower >= (1 - self._resolution) * objective)

    def history(self) -> History:
        """Return what the checks saw."""
        empty = torch.zeros(0, self.form.batch, dtype=torch.float64)
        return History(
            tuple(check[0] for check in self._checks),
            tuple(check[1] for check in self._checks),
            torch.stack([check[2] for check in self._checks]) if self._checks else empty,
            torch.stack([check[3] for check in self._checks]) if self._checks else empty,
        )


def _used(codes: Blocks) -> Tensor:
    """Return which samples have codes that are not all zero."""
    return torch.stack([used_rows(block) for block in codes]).any(0).cpu()


def _smallest(values: list[Tensor], window: int, active: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest value of every active sample in the window before the last, and in the last."""
    before, now = torch.stack(values[-2 * window : -window]), torch.stack(values[-window:])
    return before[:, active].amin(0), now[:, active].amin(0)
