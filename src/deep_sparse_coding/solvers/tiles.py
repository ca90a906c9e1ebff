"""Code maps too large to be worked on at once: tile after tile, each a small problem of its own, certified as a whole.

With all codes but those of one tile held fixed, the objective is a Lasso in these on the window of the signal below
them: what the others leave of the signal is its data. Solving tile after tile, with the tiles laid half a tile off in
every other sweep, is block coordinate descent, which converges for separable penalties (Tseng 2001); seams of one sweep
lie in the middle of a tile in the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.problems import Blocks, Certificate, StandardForm
from deep_sparse_coding.problems.strips import assess_strips, strip_rows, window_form, windows_of

from .base import Solver
from .batches import Outcome, join_certificates
from .loop import Progress, Run, Settings
from .memory import in_words, memory_need
from .solution import History, Status

# A tile is solved to this share of the gap of the whole, or of the gap that is wanted.
_SHARE_OF_GAP = 0.1
_SHARE_OF_TOL = 0.3
_FIRST_TOL = 1e-2
# A sweep that lowers the gap by less than this share does not count as progress; so many of them are a stall.
_STALL_FALL = 0.02
_PATIENCE = 6
# Tiles reach into their neighbors by this many times the lags at which atoms overlap.
_REACH = 2
# Tiles narrower than this many positions would be mostly seam.
_NARROWEST = 8

SolverChoice = Callable[[StandardForm], Solver[Any]]


@dataclass(frozen=True)
class TilePlan:
    """How a code map is cut.

    Attributes:
        tile: Positions per axis of a tile.
        overlap: Positions per axis by which it reaches into its neighbors, on each side.
        rows: Positions along the first axis of a strip of the certificate.
    """

    tile: tuple[int, ...]
    overlap: tuple[int, ...]
    rows: int


def plan_tiles(form: StandardForm, choose: SolverChoice, limit: int) -> TilePlan:
    """Return tiles that are worked on within a limit in bytes, for the samples of a form one by one.

    Raises:
        ParameterError: Not even the smallest tile fits, or the form is not one that can be cut.
    """
    windows = windows_of(form)
    one = form.select(torch.tensor([0], device=form.data[0].device))
    item = form.data[0].element_size()
    sample = form.data[0][:1].numel()
    # The answer with its start and the best so far, and the signal and its residual in float64, stay.
    kept = form.batch * item * form.code_shapes[0][0] * math.prod(windows.grid) * 3 + 8 * 4 * sample
    box = tuple(min(n, largest) for n, largest in zip(windows.grid, windows.largest(), strict=True))
    while True:
        small = window_form(one, windows, windows.at([(0, n) for n in box])).form
        need = memory_need(small, choose(small))
        if kept + need.total <= limit:
            reach = zip(box, windows.grid, windows.dictionary.lags, strict=True)
            overlap = tuple(0 if n == whole else min(_REACH * lag, n // 4) for n, whole, lag in reach)
            tile = tuple(n - 2 * o for n, o in zip(box, overlap, strict=True))
            return TilePlan(tile, overlap, strip_rows(form, limit - kept))
        widest = max(range(len(box)), key=lambda axis: box[axis])
        if box[widest] <= _NARROWEST:
            raise ParameterError(
                f"max_memory is {in_words(limit)}; expected at least {in_words(kept + need.total)}, what the codes and "
                f"tiles of {' × '.join(map(str, box))} positions take: raise it, or pass fewer samples"
            )
        box = tuple(-(-n // 2) if axis == widest else n for axis, n in enumerate(box))


def run_tiles(
    form: StandardForm, exact: StandardForm, start: Blocks, settings: Settings, choose: SolverChoice, plan: TilePlan
) -> Outcome:
    """Return the outcome of sweeps over the tiles of every sample; `steps` counts sweeps."""
    began = time.perf_counter()
    parts = []
    for i in range(form.batch):
        one = torch.tensor([i], device=form.data[0].device)
        here = replace(settings, max_steps=0) if parts and parts[-1].stopped else settings
        sweep = _Sweeps(form.select(one), exact.select(one), start[0][i : i + 1], here, choose, plan, began)
        parts.append(sweep.run())
    length = max(len(part.history.steps) for part in parts)
    longest = next(part.history for part in parts if len(part.history.steps) == length)
    tables = [
        torch.cat([torch.cat([t, t[-1:].expand(length - len(t), -1)]) for t in column], 1)
        for column in ([p.history.objective for p in parts], [p.history.relative_gap for p in parts])
    ]
    return Outcome(
        (torch.cat([part.codes[0] for part in parts]),),
        torch.cat([part.status for part in parts]),
        torch.cat([part.steps for part in parts]),
        History(longest.steps, longest.seconds, tables[0], tables[1]),
        any(part.stopped for part in parts),
        join_certificates([part.certificate for part in parts]),
    )


class _Sweeps:
    """Sweeps over the tiles of one sample."""

    def __init__(
        self,
        form: StandardForm,
        exact: StandardForm,
        start: Tensor,
        settings: Settings,
        choose: SolverChoice,
        plan: TilePlan,
        began: float,
    ) -> None:
        self.form, self.exact, self.settings, self.choose, self.plan = form, exact, settings, choose, plan
        self.windows = windows_of(form)
        self.precise = self.windows.cast(torch.float64)
        self.codes = start.clone()
        self.best = start.clone()
        self.proof = assess_strips(exact, (self.codes,), plan.rows)
        self.checks: list[tuple[int, float, Certificate]] = []
        self.began = began

    def run(self) -> Outcome:
        """Sweep until the whole is certified, no longer improves, or the sweeps have run out."""
        status, best_gap, waited, sweep, stopped = Status.MAX_STEPS, float("inf"), 0, 0, False
        while True:
            certificate = assess_strips(self.exact, (self.codes,), self.plan.rows) if sweep else self.proof
            self.checks.append((sweep, time.perf_counter() - self.began, certificate))
            gap, absolute = float(certificate.relative_gap), float(certificate.gap)
            waited = 0 if absolute < (1 - _STALL_FALL) * best_gap else waited + 1
            if absolute < best_gap or gap <= self.settings.tol:
                best_gap = min(absolute, best_gap)
                self.best.copy_(self.codes)
                self.proof = certificate
            if self.settings.callback is not None:
                seen = Progress(
                    sweep, self.settings.max_steps, int(gap > self.settings.tol), 1, gap, self.settings.layer
                )
                stopped = self.settings.callback(seen) is True
            if gap <= self.settings.tol:
                status = Status.CONVERGED
            elif not torch.isfinite(certificate.objective).all():
                status = Status.DIVERGED
            elif waited >= _PATIENCE:
                status = Status.STALLED
            if status != Status.MAX_STEPS or stopped or sweep >= self.settings.max_steps:
                return self._outcome(status, sweep, stopped)
            self._sweep(sweep, gap)
            sweep += 1

    def _sweep(self, number: int, gap: float) -> None:
        """Solve every tile once, with what the others leave of the signal as its data."""
        tol = min(_FIRST_TOL, max(_SHARE_OF_GAP * gap, _SHARE_OF_TOL * self.settings.tol))
        rest = self._residual()
        shift = tuple(bool(number >> axis & 1) for axis in range(len(self.plan.tile)))
        for window in self.windows.tiling(self.plan.tile, self.plan.overlap, shift):
            before = window.cut_codes(self.codes)
            exact = window_form(self.exact, self.precise, window, window.take(rest)).form
            own = exact.operator.synthesize((before.double(),))[0]
            exact = replace(exact, data=(exact.data[0] + own,))
            form = window_form(self.form, self.windows, window, exact.data[0].to(self.codes.dtype)).form
            # Strips know the scaled residual only, and so must the tiles: one that stops sooner leaves it as it is.
            inner = Settings(None, tol, self.settings.max_steps, None, corrected=False)
            run = Run(form, exact, self.choose(form), inner)
            run.iterate((before,))
            change = before.double() - run.codes[0].double()
            if bool((change != 0).any()):
                window.put_codes(self.codes, run.codes[0])
                window.add(rest, exact.operator.synthesize((change,))[0])

    def _residual(self) -> Tensor:
        """Return ``b - A x`` in float64, formed tile by tile."""
        rest = self.exact.data[0].clone()
        nothing = (0,) * len(self.plan.tile)
        for window in self.windows.tiling(self.plan.tile, nothing, (False,) * len(nothing)):
            operator = window_form(self.exact, self.precise, window).form.operator
            window.add(rest, -operator.synthesize((window.cut_codes(self.codes).double(),))[0])
        return rest

    def _outcome(self, status: Status, sweeps: int, stopped: bool) -> Outcome:
        table = [torch.stack([getattr(c[2], name) for c in self.checks]) for name in ("objective", "relative_gap")]
        history = History(tuple(c[0] for c in self.checks), tuple(c[1] for c in self.checks), table[0], table[1])
        return Outcome((self.best,), torch.tensor([int(status)]), torch.tensor([sweeps]), history, stopped, self.proof)
