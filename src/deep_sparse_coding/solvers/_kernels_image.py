"""One image of a convolutional Lasso problem on its way to its codes: rounds of working sets, sweeps and Newton steps.

What the rounds are is said in `_kernels_conv.py`, which hands out the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_correlate import KERNELS, SPAN, Integers, Reals, correlate_rows, phases, span, taps
from ._kernels_lists import (
    advance,
    clip_signs,
    collect,
    complementarity,
    first_gradient,
    keep_used,
    objective_value,
    sums,
)
from ._kernels_windows import Grid, correlate_strips, subtract_strips, sweep_strips

forget_stale_kernels()

# Calls work(i, count) for i below count, at once or one by one, and waits for all.
Spread = Callable[[Callable[[int, int], None]], None]

_SLACK = {4: 1e-6, 8: 1e-13}  # relative excess of |g_i| over w_i that counts as rounding, by bytes of a number
_NOISE = {4: 1e-7, 8: 1e-14}  # relative fall of the objective that may be rounding
_FALL = 0.5  # entries above this share of the largest |g_i|/w_i enter the working set
_NEAR = 3.0  # a largest |g_i|/w_i at which all entries above one enter
_EARLY_SWEEPS = 3  # sweeps of a round that only collects entries
_LAST_SWEEPS = 5
_SHALLOW, _DEEP = 8, 64  # steps of conjugate gradients: deep where the signs rest
_ENERGY = {4: 1e-3, 8: 1e-4}  # share of the gradient's energy at which they stop
_TRIALS = 5  # halvings of a step that does not pay
_STRIP = 16  # least rows of a strip
_IDLE = {4: 3, 8: 6}  # rounds in a row without progress that end the work in a precision
_FLOOR = 1e-6  # the gap counts against the objective, but not below this share of ½‖y‖²
_SHARED = 1 << 17  # groups of numbers below which a pass over the list is not worth a second thread


def alone(work: Callable[[int, int], None]) -> None:
    """Do the whole of a work that may be shared."""
    work(0, 1)


class Entries(NamedTuple):
    """Codes that are not zero.

    Attributes:
        starts: Where the rows begin, and the end, ``(h + 1,)``.
        place: ``(row·atoms + kernel)·width + column``, rising.
        values: The codes.
    """

    starts: Integers
    place: Integers
    values: Reals


class Work:
    """One image on its way to its codes."""

    def __init__(
        self,
        grid: Grid,
        kernels: Reals,
        image: Reals,
        mask: Reals | None,
        weights: Reals,
        shape: tuple[int, int, int],
        entries: Entries,
        nonnegative: bool,
        ring: bool,
    ) -> None:
        """Set up at scale one.

        Args:
            grid: Sizes.
            kernels: ``(atoms, lines, kw)``.
            image: ``(C, H, W)``; zero where the mask is.
            mask: Ones and zeros ``(C, H, W)``, or None.
            weights: ``(1 or h, atoms, 1 or width)``.
            shape: Of the codes, ``(h, atoms, width)``.
            entries: Codes to start from, in the image's precision.
            nonnegative: Whether codes stay at or above zero.
            ring: Whether kernels wrap around.
        """
        self.grid, self.nonnegative, self.ring = grid, nonnegative, ring
        kind = image.dtype
        self.rows, self.atoms, self.width = shape
        padded = np.zeros((*kernels.shape[:2], grid.wide), kind)
        padded[:, :, : kernels.shape[2]] = kernels
        self.kernels = padded.reshape(-1)
        self.lines = grid.height + grid.lines + 1 + -(-SPAN // (grid.pitch * image.itemsize))
        self.taps = self.layout(kernels)
        self.buffer_size = KERNELS * span(self.width, kind)
        self.data = self.image(image)
        self.r = self.data.copy()
        self.energy = 0.5 * float((self.data.astype(np.float64) ** 2).sum())
        self.w = weights
        self.g = np.empty((self.rows, self.atoms, span(self.width, kind)), kind)
        self.row_ratio = np.zeros((self.rows, self.atoms), kind)
        if mask is None:
            self.mask = np.empty(0, kind)
            self.squares = (kernels.astype(np.float64) ** 2).sum((1, 2)).astype(kind).reshape(1, -1, 1)
        else:
            self.mask = self.image(mask)
            self.squares = np.empty_like(self.g)
            ones = np.ones((1, self.atoms, 1), kind)
            self.map(self.mask, self.layout(kernels**2), ones, -1.0, self.squares, alone)
        reach = -(-(grid.lines - 1) // grid.down)  # rows of a strip that keep its neighbors apart
        self.count = max(self.rows // max(_STRIP, reach), 1)
        self.count -= self.count % 2 if ring and self.count > 1 else 0
        self.depth = _SHALLOW
        self.starts, self.place, self.values = entries
        self.collect(math.inf, alone)

    def image(self, image: Reals) -> Reals:
        """Return ``(C, H, W)`` as lines with a margin of zeros, flat."""
        channels, height, width = image.shape
        lines = np.zeros((self.lines, self.grid.pitch), image.dtype)
        start = self.grid.origin
        lines[: self.grid.height, start : start + width] = image.transpose(1, 0, 2).reshape(height * channels, width)
        return lines.reshape(-1)

    def collect(self, level: float, spread: Spread) -> None:
        """List the entries in use and those above `level`, row by row."""
        rows, kind = self.rows, self.values.dtype
        before = (self.starts, self.place, self.values)
        starts = np.zeros(rows + 1, np.int64)

        def part(i: int, step: int, fill: bool, lists: tuple[Any, ...]) -> None:
            first, last = i * rows // step, (i + 1) * rows // step
            collect(
                self.grid, self.width, self.g, self.w, self.squares, self.row_ratio, level, self.nonnegative, first,
                last, *before, fill, starts, *lists
            )  # fmt: skip

        def lists(size: int) -> tuple[Any, ...]:
            return (*(np.empty(size, np.int64) for _ in range(3)), *(np.empty(size, kind) for _ in range(3)))

        spread(partial(part, fill=False, lists=lists(0)))
        np.cumsum(starts, out=starts)
        new = lists(int(starts[-1]))
        spread(partial(part, fill=True, lists=new))
        self.starts = starts
        self.at, self.kernel, self.place, self.values, self.weights, self.norms = new

    def strips(self, odd: bool) -> Integers:
        """Return where the strips begin in the list, and its end."""
        edges = [i * self.rows // self.count for i in range(self.count + 1)]
        if odd and not self.ring and self.count > 1:
            half = (edges[1] + 1) // 2
            edges = [0, *(edge - half for edge in edges[1:]), self.rows]
        return self.starts[edges]

    def share(self, spread: Spread) -> Spread:
        """Return how to do one pass over the list: by threads if it is long."""
        return spread if len(self.values) * self.grid.lines * self.grid.wide > 8 * _SHARED else alone

    def sweep(self, sweeps: int, odd: bool, spread: Spread) -> None:
        """Sweep over the working set."""
        bounds, order = self.strips(odd), np.empty(len(self.values), np.int64)

        def work(i: int, step: int, color: int) -> None:
            sweep_strips(
                self.grid, self.r, self.mask, self.kernels, self.at, self.kernel, self.values, self.weights,
                self.norms, bounds, color + 2 * i, 2 * step, sweeps, self.nonnegative, order
            )  # fmt: skip

        for color in range(2):
            spread(partial(work, color=color))
        self.keep_used()

    def subtract(self, image: Reals, values: Reals, spread: Spread) -> None:
        """Subtract D times the listed values from an image, where the mask is one."""
        bounds = self.strips(False)

        def work(i: int, step: int, color: int) -> None:
            subtract_strips(
                self.grid, image, self.mask, self.kernels, self.at, self.kernel, values, bounds, color + 2 * i, 2 * step
            )

        for color in range(2):
            self.share(spread)(partial(work, color=color))

    def correlate(self, image: Reals, out: Reals, spread: Spread) -> None:
        """Correlate an image with the listed entries."""
        bounds = self.strips(False)

        def work(i: int, step: int) -> None:
            correlate_strips(self.grid, image, self.kernels, self.at, self.kernel, bounds, i, step, out)

        self.share(spread)(work)

    def residual(self, spread: Spread) -> None:
        """Compute the residual anew: what sweeps leave in it carries their rounding."""
        self.r[:] = self.data
        self.subtract(self.r, self.values, spread)

    def newton(self, spread: Spread) -> None:
        """Solve the normal equations of the support by conjugate gradients, and go there as far as it pays.

        Entries whose sign would change stop at zero; the step is halved until the objective falls.
        """
        x, w, norms = self.values, self.weights, self.norms
        direction, right = np.zeros_like(x), np.empty_like(x)
        product = np.empty_like(x)
        self.correlate(self.r, right, spread)
        search, energy = np.empty_like(x), first_gradient(right, x, w, norms)
        search[:] = right / norms
        shadow, change = np.zeros_like(self.r), np.zeros_like(self.r)
        first = energy
        for _ in range(self.depth):
            shadow[:] = 0
            self.subtract(shadow, search, spread)  # -M D p
            self.correlate(shadow, product, spread)  # -DᵀM D p
            following, length = advance(direction, right, search, product, norms, energy, change, shadow)
            if length == 0:
                break
            energy = following
            if energy <= _ENERGY[x.itemsize] * first:
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
        self.keep_used()

    def keep_used(self) -> None:
        """Take the entries at zero off the list."""
        lists = (self.at, self.kernel, self.place, self.values, self.weights, self.norms)
        left = keep_used(self.starts, *lists)
        self.at, self.kernel, self.place, self.values, self.weights, self.norms = (part[:left] for part in lists)

    def layout(self, kernels: Reals) -> tuple[Integers, Reals]:
        """Return kernels ``(atoms, lines, kw)`` as `correlate_rows` takes them."""
        return taps(kernels, self.grid.pitch, self.grid.right, self.lines * self.grid.pitch)

    def map(
        self, image: Reals, kernels: tuple[Integers, Reals], w: Reals, bar: float, out: Reals, spread: Spread
    ) -> None:
        """Correlate an image with kernels at all positions; rows whose largest ratio is at most `bar` are left out."""
        grid, rows = self.grid, self.rows
        lines = image.reshape(-1, grid.pitch)
        if self.ring:
            ring = np.arange(grid.wide) % grid.length
            end = grid.origin + grid.length
            lines[:, end : end + grid.wide] = lines[:, grid.origin + ring]
            lines[grid.height : grid.height + grid.lines] = lines[np.arange(grid.lines) % grid.height]
        dealt = phases(lines, grid.origin, grid.right)

        def work(i: int, step: int) -> None:
            first, last = i * rows // step, (i + 1) * rows // step
            buffer = np.empty(self.buffer_size, image.dtype)
            correlate_rows(
                dealt, grid.down * grid.pitch, *kernels, self.width, w, bar, self.nonnegative, first,
                last, out, self.row_ratio, buffer
            )  # fmt: skip

        spread(work)

    def gradient(self, bar: float, spread: Spread) -> float:
        """Correlate the residual with all kernels; return the largest ``|g_i|/w_i``; keep rows above `bar`."""
        self.map(self.r, self.taps, self.w, bar, self.g, spread)
        return float(self.row_ratio.max()) if self.row_ratio.size else 0.0

    def gap(self, worst: float, spread: Spread) -> tuple[float, float]:
        """Return the objective and the duality gap, at the dual point θ = αr scaled into ``|d_iᵀθ| <= w_i``."""
        correlations = np.empty_like(self.values)
        self.correlate(self.r, correlations, spread)
        rr, ry, penalty = sums(self.grid, self.r, self.data, self.values, self.weights)
        alpha = ry / rr if rr > 0 else 0.0
        if alpha < 0 and self.nonnegative:
            # A dual point on the other side of zero is bound by what correlates negatively.
            np.negative(self.r, out=self.r)
            worst = self.gradient(math.inf, spread)
            np.negative(self.r, out=self.r)
        if abs(alpha) * worst > 1:
            alpha = math.copysign(1 / worst, alpha)
        rest = complementarity(correlations, self.values, self.weights, alpha)
        return 0.5 * rr + penalty, 0.5 * (1 - alpha) ** 2 * rr + rest

    def measure(self, bar: float, spread: Spread) -> tuple[float, float, float]:
        """Return the largest ``|g_i|/w_i``, the objective and the relative gap; rows above `bar` are kept in g."""
        worst = self.gradient(bar, spread)
        objective, gap = self.gap(worst, spread)
        scale = max(objective, _FLOOR * self.energy)
        return worst, objective, gap / scale if scale > 0 else 0.0

    def certificate(self, spread: Spread) -> tuple[float, float]:
        """Return the objective and the duality gap of the codes as they are."""
        self.residual(spread)
        return self.gap(self.gradient(math.inf, spread), spread)

    def distance(self, spread: Spread) -> float:
        """Return the relative gap of the codes as they are."""
        self.residual(spread)
        return self.measure(math.inf, spread)[2]

    def run(self, tol: float, rounds: int, spread: Spread) -> tuple[int, float]:
        """Return the rounds taken and the last relative gap."""
        slack = _SLACK[self.values.itemsize]
        best, lowest, idle, done = math.inf, math.inf, 0, 0
        self.residual(spread)
        while True:
            worst, objective, gap = self.measure(1.0, spread)
            rests = gap > 0.95 * best and objective > lowest * (1 - _NOISE[self.values.itemsize])
            idle = idle + 1 if rests else 0
            best, lowest = min(best, gap), min(lowest, objective)
            if gap <= tol or done >= rounds or idle > _IDLE[self.values.itemsize]:
                return done, gap
            last = worst <= _NEAR
            level = 1 + slack if last else _FALL * worst
            self.collect(level, spread)
            self.sweep(_LAST_SWEEPS if last else _EARLY_SWEEPS, done % 2 == 1, spread)
            if last:
                self.newton(spread)
                self.residual(spread)
            done += 1
