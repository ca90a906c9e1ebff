"""One image of a convolutional Lasso problem on its way to its codes: rounds of working sets, sweeps and Newton steps.

What the rounds are is said in `_kernels_conv.py`, which hands out the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from ._kernels_lists import advance, clip_signs, collect, first_gradient, objective_value, scatter, sums
from ._kernels_windows import (
    Grid,
    Integers,
    Reals,
    correlate_strips,
    gradient_rows,
    subtract_strips,
    sweep_strips,
)

# Calls work(i, count) for i below count, at once or one by one, and waits for all.
Spread = Callable[[Callable[[int, int], None]], None]

_SLACK = {4: 1e-6, 8: 1e-13}  # relative excess of |g_i| over w_i that counts as rounding, by bytes of a number
_NOISE = {4: 1e-7, 8: 1e-14}  # relative fall of the objective that may be rounding
_FALL = 0.5  # entries above this share of the largest |g_i|/w_i enter the working set
_EARLY_SWEEPS = 3  # sweeps of a round that only collects entries
_LAST_SWEEPS = 8
_SHALLOW, _DEEP = 8, 64  # steps of conjugate gradients: deep where the signs rest
_ENERGY = 1e-4  # share of the gradient's energy at which they stop
_TRIALS = 5  # halvings of a step that does not pay
_STRIP = 16  # least rows of a strip
_IDLE = {4: 3, 8: 6}  # rounds in a row without progress that end the work in a precision
_FLOOR = 1e-6  # the gap counts against the objective, but not below this share of ½‖y‖²


def alone(work: Callable[[int, int], None]) -> None:
    """Do the whole of a work that may be shared."""
    work(0, 1)


class Work:
    """One image on its way to its codes."""

    def __init__(
        self, grid: Grid, kernels: Reals, image: Reals, weights: Reals, start: Reals, nonnegative: bool, ring: bool
    ) -> None:
        """Set up at scale one: image ``(C, H, W)``, weights ``(1 or h, atoms, 1 or w)``, start ``(atoms, h, w)``."""
        channels, height, width = image.shape
        self.grid, self.nonnegative, self.ring = grid, nonnegative, ring
        padded = np.zeros((*kernels.shape[:2], grid.wide), image.dtype)
        padded[:, :, : kernels.shape[2]] = kernels
        self.kernels = padded.reshape(-1)
        self.norms = (padded.astype(np.float64) ** 2).sum((1, 2)).astype(image.dtype)
        lines = np.zeros((grid.height + grid.lines + 1, grid.pitch), image.dtype)
        lines[: grid.height, :width] = image.transpose(1, 0, 2).reshape(height * channels, width)
        self.data, self.r = lines.reshape(-1), lines.copy().reshape(-1)
        self.energy = 0.5 * float((self.data.astype(np.float64) ** 2).sum())
        self.w = weights
        self.x = np.ascontiguousarray(start.transpose(1, 0, 2))
        self.used = (self.x != 0).any(2)
        self.g = np.zeros_like(self.x)
        self.row_ratio = np.zeros(self.x.shape[:2], image.dtype)
        rows = len(self.x)
        reach = -(-(grid.lines - 1) // grid.down)  # rows of a strip that keep its neighbors apart
        self.strip = max(_STRIP, reach)
        self.count = max(rows // self.strip, 1)
        self.count -= self.count % 2 if ring and self.count > 1 else 0
        self.depth = _SHALLOW
        self.starts = np.zeros(rows + 1, np.int64)
        self.collect(math.inf, alone)

    def collect(self, level: float, spread: Spread) -> None:
        """List the entries in use and those above `level`, row by row."""
        rows = len(self.x)
        none, no_values = np.empty(0, np.int64), np.empty(0, self.x.dtype)
        self.at, self.atom, self.place, self.values, self.weights = none, none, none, no_values, no_values

        def part(i: int, step: int, fill: bool) -> None:
            first, last = i * rows // step, (i + 1) * rows // step
            collect(
                self.grid, self.x, self.g, self.w, self.row_ratio, self.used, level, self.nonnegative, first, last,
                fill, self.starts, self.at, self.atom, self.place, self.values, self.weights
            )  # fmt: skip

        spread(lambda i, step: part(i, step, False))
        np.cumsum(self.starts, out=self.starts)
        total = int(self.starts[-1])
        self.at, self.atom, self.place, self.order = (np.empty(total, np.int64) for _ in range(4))
        self.values, self.weights = np.empty(total, self.x.dtype), np.empty(total, self.x.dtype)
        spread(lambda i, step: part(i, step, True))

    def strips(self, odd: bool) -> Integers:
        """Return where the strips begin in the list, and its end."""
        rows = len(self.x)
        edges = [i * rows // self.count for i in range(self.count + 1)]
        if odd and not self.ring and self.count > 1:
            half = (edges[1] + 1) // 2
            edges = [0, *(edge - half for edge in edges[1:]), rows]
        return self.starts[edges]

    def sweep(self, sweeps: int, odd: bool, spread: Spread) -> None:
        """Sweep over the working set."""
        bounds = self.strips(odd)

        def work(i: int, step: int, color: int = 0) -> None:
            sweep_strips(
                self.grid, self.r, self.kernels, self.norms, self.at, self.atom, self.values, self.weights, bounds,
                color + 2 * i, 2 * step, sweeps, self.nonnegative, self.order
            )  # fmt: skip

        for color in range(2):
            spread(partial(work, color=color))

    def subtract(self, image: Reals, values: Reals, spread: Spread) -> None:
        """Subtract D times the listed values from an image."""
        bounds = self.strips(False)

        def work(i: int, step: int, color: int = 0) -> None:
            subtract_strips(
                self.grid, image, self.kernels, self.at, self.atom, values, bounds, color + 2 * i, 2 * step
            )  # fmt: skip

        for color in range(2):
            spread(partial(work, color=color))

    def correlate(self, image: Reals, out: Reals, spread: Spread) -> None:
        """Correlate an image with the listed entries."""
        bounds = self.strips(False)

        def work(i: int, step: int) -> None:
            correlate_strips(self.grid, image, self.kernels, self.at, self.atom, bounds, i, step, out)

        spread(work)

    def residual(self, spread: Spread) -> None:
        """Compute the residual anew: what sweeps leave in it carries their rounding."""
        self.r[:] = self.data
        self.subtract(self.r, self.values, spread)

    def newton(self, spread: Spread) -> None:
        """Solve the normal equations of the support by conjugate gradients, and go there as far as it pays.

        Entries whose sign would change stop at zero; the step is halved until the objective falls.
        """
        self.keep_support()
        x, w = self.values, self.weights
        direction, right = np.zeros_like(x), np.empty_like(x)
        product = np.empty_like(x)
        self.correlate(self.r, right, spread)
        norms = self.norms[self.atom]
        search, energy = np.empty_like(x), first_gradient(right, x, w, norms)
        search[:] = right / norms
        shadow, change = np.zeros_like(self.r), np.zeros_like(self.r)
        first = energy
        for _ in range(self.depth):
            shadow[:] = 0
            self.subtract(shadow, search, spread)  # -D p
            self.correlate(shadow, product, spread)  # -DᵀD p
            following, length = advance(direction, right, search, product, norms, energy, change, shadow)
            if length == 0:
                break
            energy = following
            if energy <= _ENERGY * first:
                break
        before = objective_value(self.grid, self.r, x, w)
        length = 1.0
        trial, excess, r = np.empty_like(x), np.empty_like(x), np.empty_like(self.r)
        for _ in range(_TRIALS):
            clip_signs(x, direction, length, trial, excess)
            r[:] = self.r + self.r.dtype.type(length) * change
            self.subtract(r, excess, spread)
            after = objective_value(self.grid, r, trial, w)
            if after < before:
                self.values[:] = trial
                self.r = r
                break
            length *= 0.5
        if length == 1.0:
            self.depth = min(2 * self.depth, _DEEP)
        elif length < 0.5:
            self.depth = max(self.depth // 2, _SHALLOW)

    def keep_support(self) -> None:
        """Take the entries at zero off the list."""
        keep = self.values != 0
        counts = np.concatenate([[0], np.cumsum(keep)])
        self.starts = counts[self.starts]
        self.at, self.atom, self.place = self.at[keep], self.atom[keep], self.place[keep]
        self.values, self.weights, self.order = self.values[keep], self.weights[keep], self.order[: counts[-1]]

    def gradient(self, spread: Spread) -> float:
        """Correlate the residual with all kernels; return the largest ``|g_i|/w_i``."""
        grid, rows = self.grid, len(self.x)
        if self.ring:
            lines = self.r.reshape(-1, grid.pitch)
            ring = np.arange(grid.length, grid.length + grid.wide) % grid.length
            lines[:, grid.length : grid.length + grid.wide] = lines[:, ring]
            lines[grid.height : -1] = lines[np.arange(grid.lines) % grid.height]

        def work(i: int, step: int) -> None:
            first, last = i * rows // step, (i + 1) * rows // step
            gradient_rows(
                grid, self.r, self.kernels, self.w, self.nonnegative, first, last, self.g, self.row_ratio
            )  # fmt: skip

        spread(work)
        return float(self.row_ratio.max()) if self.row_ratio.size else 0.0

    def gap(self, worst: float) -> tuple[float, float]:
        """Return the objective and the duality gap, at the dual point θ = αr scaled into ``|d_iᵀθ| <= w_i``."""
        rr, ry, penalty, inner = sums(self.grid, self.r, self.data, self.g, self.place, self.values, self.weights)
        alpha = max(ry / rr, 0.0) if rr > 0 else 0.0
        if alpha * worst > 1:
            alpha = 1 / worst
        return 0.5 * rr + penalty, max(0.5 * (1 - alpha) ** 2 * rr + (penalty - alpha * inner), 0.0)

    def measure(self, spread: Spread) -> tuple[float, float, float]:
        """Return the largest ``|g_i|/w_i``, the objective and the relative gap."""
        worst = self.gradient(spread)
        objective, gap = self.gap(worst)
        scale = max(objective, _FLOOR * self.energy)
        return worst, objective, gap / scale if scale > 0 else 0.0

    def run(self, tol: float, rounds: int, spread: Spread) -> tuple[int, float]:
        """Return the rounds taken and the last relative gap."""
        slack = _SLACK[self.x.itemsize]
        best, lowest, idle, done = math.inf, math.inf, 0, 0
        self.residual(spread)
        while True:
            worst, objective, gap = self.measure(spread)
            idle = idle + 1 if gap > 0.95 * best and objective > lowest * (1 - _NOISE[self.x.itemsize]) else 0
            best, lowest = min(best, gap), min(lowest, objective)
            if gap <= tol or done >= rounds or idle > _IDLE[self.x.itemsize]:
                return done, gap
            level = max(1 + slack, _FALL * worst)
            last = level <= 1 + slack
            self.collect(level, spread)
            self.sweep(_LAST_SWEEPS if last else _EARLY_SWEEPS, done % 2 == 1, spread)
            scatter(self.x, self.used, self.starts, self.place, self.atom, self.values)
            if last:
                self.newton(spread)
                scatter(self.x, self.used, self.starts, self.place, self.atom, self.values)
                self.residual(spread)
            done += 1
