"""Basis pursuit by a search for the lam whose Lasso leaves a residual of norm ε, all samples at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deep_sparse_coding.problems import BasisPursuit, Blocks, Certificate, StandardForm, assess
from deep_sparse_coding.problems.base import inner, penalty, per_sample, squared_norm, unresolved
from deep_sparse_coding.problems.constrained import assess_pursuit, with_lam
from deep_sparse_coding.problems.dual import largest_ratio

from .base import select_blocks
from .solution import History, Solution, Status, settle

#: Solves a Lasso: form, start, relative gap, most steps -> codes, steps per sample.
SolveLasso = Callable[[StandardForm, Blocks, float, int], tuple[Blocks, Tensor]]
#: Told of every round: steps, samples still at work, their largest relative gap; True stops the search.
Report = Callable[[int, int, float], bool]

_ROUNDS = 60
# A sample is given up when its best gap has not fallen by this share over so many rounds.
_PATIENCE, _FALL = 8, 0.1
# Codes aim below ε by this share of ‖b‖, so that rounding of the residual does not make them infeasible.
_MARGIN = 32 * torch.finfo(torch.float64).eps
# A bracket narrower than this cannot help any more: what is missing is the accuracy of the inner Lasso.
_NARROW = 1e-7
_FINEST = 1e-14
# The Lassos resolve ρ to about √(this).
_RESOLVED = 1e-3
# Where no support seen so far reaches ε, lam falls by this factor; below `_LOWEST`·lam_max·ε/‖b‖ nothing will.
_DROP, _LOWEST = 0.05, 1e-6
_FIT_STEPS, _FIT_TOL = 300, 1e-12
_PULLS = 12


@dataclass(eq=False)
class _Points:
    """Codes on one side of ε, one per sample: lam, codes, residual and its norm; `known` where there are any."""

    known: Tensor
    lam: Tensor
    codes: Blocks
    residual: Blocks
    norm: Tensor

    def put(self, rows: Tensor, lam: Tensor, codes: Blocks, residual: Blocks, norm: Tensor) -> None:
        """Replace the samples `rows`."""
        self.known[rows], self.lam[rows], self.norm[rows] = True, lam, norm
        for mine, new in zip((*self.codes, *self.residual), (*codes, *residual), strict=True):
            mine[rows] = new

    def at(self, rows: Tensor) -> _Points:
        """Return the samples `rows`."""
        return _Points(
            self.known[rows],
            self.lam[rows],
            select_blocks(self.codes, rows),
            select_blocks(self.residual, rows),
            self.norm[rows],
        )


def solve_pursuit(
    problem: BasisPursuit,
    signal: Tensor,
    start: Blocks | None,
    *,
    tol: float,
    max_steps: int,
    solve_lasso: SolveLasso,
    report: Report,
    name: str,
) -> Solution:
    """Solve basis pursuit.

    With ρ(lam) the residual norm of the Lasso's solution, ``lam ε/ρ(lam)`` bounds the wanted lam from above where
    ``ρ ≥ ε`` and from below where ``ρ ≤ ε``, and ρ² is linear in lam² as long as support and signs stay: each round
    solves one Lasso, warm-started, at the secant between the nearest points on both sides. The codes returned are the
    point of norm ε on the line between the two, which is feasible whatever the accuracy of the Lassos, and exact once
    both have the same support and signs. All work is done in float64; codes are rounded once, and checked after that.

    Args:
        problem: What to solve.
        signal: ``(*batch, ...)``, checked.
        start: Codes to start from, or None.
        tol: The relative gap that is wanted.
        max_steps: The most steps of the inner solver per sample, over all rounds.
        solve_lasso: The inner solver.
        report: Told of every round.
        name: What the solution calls the solver.

    Source: G6 of docs/theory.md.
    """
    shape = problem.batch_shape(signal)
    form, limits = problem.form(signal), problem.limits(signal)
    bad = ~torch.isfinite(form.data[0]).flatten(1).all(1)
    lost = unresolved(form.data, squared_norm(form.data)) & ~bad
    void = bad | lost
    if bool(void.any()):
        # A sample of zeros is solved by zeros at once, and disturbs nothing.
        data = form.data[0].clone()
        data[void] = 0.0
        form, limits = replace(form, data=(data,)), torch.where(void, 0.0, limits)
    search = _Search(form, limits, signal.dtype, tol, max_steps, solve_lasso, report)
    search.run(start)
    codes, status = search.best, search.status
    status[lost.cpu()] = int(Status.DIVERGED)
    status[bad.cpu()] = int(Status.NONFINITE_INPUT)
    for block in codes:
        block[bad] = math.nan
    answer = problem.unpack(codes, shape)
    certificate = assess(problem, signal, answer)
    return Solution(
        answer, settle(status, certificate, tol), search.steps.reshape(shape), certificate, (search.history(),), name,
        tol, problem, signal.detach(), search.stopped,
    )  # fmt: skip


class _Search:
    """The search over a flat batch of finite samples; `best` are codes in the user's precision, NaN where none."""

    def __init__(
        self,
        form: StandardForm,
        limits: Tensor,
        dtype: torch.dtype,
        tol: float,
        max_steps: int,
        solve_lasso: SolveLasso,
        report: Report,
    ) -> None:
        self.form, self.limits, self.dtype = form, limits, dtype
        self.tol, self.max_steps, self.solve_lasso, self.report = tol, max_steps, solve_lasso, report
        batch, device = form.batch, limits.device
        self.goal = limits - _MARGIN * torch.maximum(squared_norm(self.form.data).sqrt(), limits)
        self.status = torch.full((batch,), int(Status.MAX_STEPS))
        self.steps = torch.zeros(batch, dtype=torch.int64)
        self.best = tuple(
            torch.full_like(block, math.nan, dtype=dtype) for block in form.zeros()
        )  # in the user's precision
        self.gap = torch.full((batch,), math.inf, dtype=torch.float64, device=device)
        self.value = torch.full_like(self.gap, math.nan)
        self.stopped = False
        self._checks: list[tuple[int, float, Tensor, Tensor]] = []
        self._began = time.perf_counter()

    def run(self, start: Blocks | None) -> None:
        """Search until every sample has ended."""
        form = self.form
        everyone = torch.arange(form.batch, device=self.limits.device)
        zeros = form.zeros()
        norm = squared_norm(form.data).sqrt()
        self._judge(everyone, zeros)
        if start is not None:
            self._judge(everyone, tuple(block.double() for block in start))
        top = largest_ratio(form)
        outside = (distance_to_range(form, self.limits) >= self.limits) & (norm > self.limits)
        # With no correlation at all the zero code is the best fit (non-negative codes).
        outside |= (top == 0) & (norm > self.limits)
        self._end(outside.nonzero().flatten(), Status.INFEASIBLE)
        self._end(((self.gap <= self.tol) & ~outside).nonzero().flatten(), Status.CONVERGED)
        self._record(everyone)
        active = ((self.gap > self.tol) & ~outside).nonzero().flatten()
        ratio = (self.limits / norm.clamp_min(torch.finfo(torch.float64).tiny)).clamp_max(1.0)
        lowest = _LOWEST * ratio * top
        lam = ratio * top
        above = _Points(torch.ones_like(outside), top.clone(), form.zeros(), _copy(form.data), norm.clone())
        nothing = _copy(form.data)
        below = _Points(torch.zeros_like(outside), torch.zeros_like(top), zeros, nothing, torch.zeros_like(top))
        warm = form.zeros() if start is None else tuple(block.double().clone() for block in start)
        side = torch.zeros(form.batch, device=top.device)  # how often in a row the same side was hit, with its sign
        accuracy = torch.ones_like(top)
        kept: list[Tensor] = [self.gap.clone()]
        for _ in range(_ROUNDS):
            left = self.max_steps - int(self.steps[active.cpu()].max()) if len(active) else 0
            if not len(active) or left <= 0 or self.stopped:
                break
            some, here = form.select(active), lam[active]
            begin = select_blocks(warm, active)
            wanted = self._inner_tol(some, here, begin, active, accuracy)
            codes, steps = self.solve_lasso(with_lam(some, here), begin, wanted, left)
            self.steps[active.cpu()] += steps.cpu()
            residual = some.residual(codes)
            rho = squared_norm(residual).sqrt()
            for mine, new in zip(warm, codes, strict=True):
                mine[active] = new
            high = rho > self.goal[active]
            for points, which in ((above, high), (below, ~high)):
                put = which.nonzero().flatten()
                points.put(active[put], here[put], select_blocks(codes, put), select_blocks(residual, put), rho[put])
            self._fit(active[high & ~below.known[active]], above, below)
            side[active] = torch.where(high, side[active].clamp_min(0) + 1, side[active].clamp_max(0) - 1)
            both = active[below.known[active]]
            if len(both):
                self._judge(both, _blend(above.at(both), below.at(both), self.goal[both]))
            lam[active], narrow = _next_lam(above.at(active), below.at(active), self.goal[active], side[active])
            finer = narrow | (~below.known[active] & (side[active] > 1))
            accuracy[active] = torch.where(finer, 0.1 * accuracy[active], accuracy[active])
            kept.append(self.gap.clone())
            done = self.gap[active] <= self.tol
            lost = ~below.known[active] & (lam[active] < lowest[active])
            stale = torch.zeros_like(done)
            if len(kept) > _PATIENCE:
                old = kept[-1 - _PATIENCE][active]
                stale = torch.isfinite(old) & (self.gap[active] > (1 - _FALL) * old) & below.known[active]
            self._end(active[done], Status.CONVERGED)
            self._end(active[lost & ~done], Status.INFEASIBLE)
            self._end(active[stale & ~done], Status.STALLED)
            self._record(active)
            active = active[~(done | lost | stale)]
        else:
            self._end(active, Status.STALLED)

    def _end(self, rows: Tensor, status: Status) -> None:
        self.status[rows.cpu()] = int(status)
        if status == Status.INFEASIBLE:
            for block in self.best:
                block[rows] = math.nan

    def _inner_tol(self, form: StandardForm, lam: Tensor, codes: Blocks, active: Tensor, accuracy: Tensor) -> float:
        """Return the relative gap g for the Lassos: it is g·P/lam in ours, and moves ρ by at most √(2gP)."""
        share = 0.5 * self.goal[active].square() / (lam * penalty(form, codes))
        share = torch.where(torch.isfinite(share), share, 1.0)
        gaps = torch.minimum(torch.full_like(share, 0.1 * self.tol), _RESOLVED * share) / (1 + share)
        return max(_FINEST, float((accuracy[active] * gaps).min()))

    def _fit(self, rows: Tensor, above: _Points, below: _Points) -> None:
        """Take the least-squares fit on the support of the points above as points below, at lam = 0, where it is one.

        On one support and sign that is the end of the path, so that the line to it is the path itself.
        """
        if not len(rows):
            return
        form, points = self.form.select(rows), above.at(rows)
        fit = least_squares(form, points.codes, points.residual, 0.5 * self.goal[rows])
        residual = form.residual(fit)
        norm = squared_norm(residual).sqrt()
        put = (norm <= self.goal[rows]).nonzero().flatten()
        zeros = torch.zeros_like(norm[put])
        below.put(rows[put], zeros, select_blocks(fit, put), select_blocks(residual, put), norm[put])

    def _judge(self, rows: Tensor, codes: Blocks) -> None:
        """Assess codes as they would be returned, and keep those that are better than what there is."""
        whole = len(rows) == self.form.batch
        form, limits = (self.form, self.limits) if whole else (self.form.select(rows), self.limits[rows])
        rounded = _pull_inside(form, limits, codes, self.dtype)
        certificate: Certificate = assess_pursuit(form, limits, rounded)
        better = certificate.relative_gap < self.gap[rows]
        keep = better.nonzero().flatten()
        self.gap[rows[keep]] = certificate.relative_gap[keep]
        self.value[rows[keep]] = certificate.objective[keep]
        for best, block in zip(self.best, rounded, strict=True):
            best[rows[keep]] = block[keep]

    def _record(self, active: Tensor) -> None:
        seconds = time.perf_counter() - self._began
        step = int(self.steps.max()) if len(self.steps) else 0
        self._checks.append((step, seconds, self.value.cpu().clone(), self.gap.cpu().clone()))
        if len(self.gap):
            worst = float(self.gap[active].max()) if len(active) else float(self.gap.max())
            self.stopped = self.report(step, int((self.gap[active] > self.tol).sum()), worst)

    def history(self) -> History:
        """Return what every round saw."""
        steps, seconds, values, gaps = zip(*self._checks, strict=True)
        return History(steps, seconds, torch.stack(values), torch.stack(gaps))


def _next_lam(above: _Points, below: _Points, goal: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next lam per sample, and where the bracket asks for Lassos that are solved better."""
    upper = above.lam * goal / above.norm  # G6: at or above the wanted lam
    lower = torch.where(below.known, below.lam * (goal / below.norm.clamp_min(1e-300)).clamp_min(1.0), 0.0)
    lower = torch.minimum(lower, above.lam)
    # ρ² is linear in lam² on one support; the end that stays twice counts half (Illinois), so that both ends move.
    high, low = above.norm.square() - goal.square(), goal.square() - below.norm.square()
    low = low * 0.5 ** (side - 1).clamp_min(0)
    high = high * 0.5 ** (-side - 1).clamp_min(0)
    share = torch.where(high + low > 0, low / (high + low), 0.5)
    secant = (below.lam.square() + share * (above.lam.square() - below.lam.square())).clamp_min(0).sqrt()
    # Bounds that contradict each other come from Lassos that were not solved well enough.
    odd = lower > upper
    target = torch.where(odd, secant, torch.minimum(torch.maximum(secant, lower), upper))
    narrow = below.known & (odd | (above.lam - below.lam <= _NARROW * above.lam))
    target = torch.where(narrow & ~odd, above.lam * (1 - _NARROW * torch.sign(side)), target)
    # From above only: a little under the bound, so that the other side is found; far under it where that does not help.
    factor = torch.where(side <= 1, 0.9, torch.where(side <= 2, 0.8, torch.where(side <= 3, 0.5, _DROP)))
    return torch.where(below.known, target, factor * upper), narrow


def _blend(above: _Points, below: _Points, goal: Tensor) -> Blocks:
    """Return the codes on the line between the two points whose residual has the norm `goal` (that is a quadratic)."""
    turn = tuple(a - b for a, b in zip(above.residual, below.residual, strict=True))
    a, b = squared_norm(turn), inner(below.residual, turn)
    c = below.norm.square() - goal.square()  # at or below 0
    root = (b.square() - a * c).clamp_min(0).sqrt()
    # The positive root of a t² + 2 b t + c = 0 in the form that does not cancel.
    t = torch.where(b > 0, -c / (b + root), (root - b) / a)
    t = torch.where(torch.isfinite(t), t, 0.0).clamp(0, 1)
    mixed = []
    for u, v in zip(above.codes, below.codes, strict=True):
        mixed.append(v + per_sample(t, v) * (u - v))
    return tuple(mixed)


def _pull_inside(form: StandardForm, limits: Tensor, codes: Blocks, dtype: torch.dtype) -> Blocks:
    """Return codes in a lower precision whose residual is still within the limits, where a small change does that.

    A step ``x + t Aᵀr`` on the support shortens the residual; t is what undoes the rounding, with some room.
    """
    rounded, t = tuple(block.to(dtype) for block in codes), torch.zeros_like(limits)
    for _ in range(_PULLS):
        now = tuple(block.double() for block in rounded)
        residual = form.residual(now)
        excess = squared_norm(residual).sqrt() - limits
        if not bool((excess > 0).any()):
            break
        slope = tuple(torch.where(x != 0, c, 0.0) for x, c in zip(codes, form.operator.analyze(residual), strict=True))
        image = form.operator.synthesize(slope)
        pull = inner(residual, image) / limits.clamp_min(torch.finfo(torch.float64).tiny)
        more = torch.where(pull > 0, torch.maximum(4 * t, 2 * excess / pull), t)
        t = torch.where(excess > 0, more, t)
        moved = tuple(x + per_sample(t, x) * s for x, s in zip(codes, slope, strict=True))
        if form.nonnegative:
            moved = tuple(x.clamp_min(0) for x in moved)
        rounded = tuple(block.to(dtype) for block in moved)
    return rounded


def distance_to_range(form: StandardForm, limits: Tensor) -> Tensor:
    """Return ``min_x ‖b - A x‖`` per sample: exact for a matrix, else by conjugate gradients (from above).

    Iterations end for a sample as soon as its residual is within `limits`; signs are not asked for.
    """
    matrix = form.operator.matrix()
    if matrix is not None:
        usable = torch.isfinite(form.weights[0][0]).expand(matrix.shape[1])
        basis, sizes, _ = torch.linalg.svd(matrix[:, usable], full_matrices=False)
        largest = sizes.max() if len(sizes) else sizes.new_zeros(())
        basis = basis[:, sizes > largest * max(matrix.shape) * torch.finfo(torch.float64).eps]
        flat = form.data[0].flatten(1)
        return torch.linalg.vector_norm(flat - (flat @ basis) @ basis.T, dim=1)
    everything = tuple(torch.ones_like(block) for block in form.zeros())
    return squared_norm(form.residual(least_squares(form, form.zeros(), form.data, 0.5 * limits, everything))).sqrt()


def least_squares(
    form: StandardForm, codes: Blocks, residual: Blocks, enough: Tensor, support: Blocks | None = None
) -> Blocks:
    """Return ``codes + δ``, δ on their support (or on `support`, ones and zeros), with ``‖residual - A δ‖`` least.

    By conjugate gradients, all samples at once.

    A sample is done when that norm is below `enough`, or cannot fall any further.
    """
    support = tuple((x != 0).to(torch.float64) for x in codes) if support is None else support
    back = tuple(s * c for s, c in zip(support, form.operator.analyze(residual), strict=True))
    step, old = back, squared_norm(back)
    first = old.clone()
    for _ in range(_FIT_STEPS):
        going = (squared_norm(residual).sqrt() > enough) & (old > _FIT_TOL**2 * first)
        if not bool(going.any()):
            break
        image = form.operator.synthesize(step)
        curvature = squared_norm(image)
        move = torch.where(going & (curvature > 0), old / curvature, 0.0)
        codes = tuple(x + per_sample(move, d) * d for x, d in zip(codes, step, strict=True))
        residual = tuple(r - per_sample(move, a) * a for r, a in zip(residual, image, strict=True))
        back = tuple(s * c for s, c in zip(support, form.operator.analyze(residual), strict=True))
        new = squared_norm(back)
        turn = torch.where(going & (old > 0), new / old, 0.0)
        step = tuple(b + per_sample(turn, d) * d for b, d in zip(back, step, strict=True))
        old = new
    return codes


def _copy(blocks: Blocks) -> Blocks:
    return tuple(block.clone() for block in blocks)
