"""Compiled CPU solver of convolutional Lasso problems: working sets and coordinate descent on the residual image.

For every image y with weights w it minimizes ½‖y - Dx‖² + Σ w_i|x_i| in rounds:

1. the correlations g = Dᵀ(y - Dx) at all positions;
2. the duality gap; stop when it is small enough;
3. the working set: entries in use, and those whose |g_i|/w_i exceeds a threshold that falls with the largest of them;
4. sweeps of coordinate descent over the working set. The residual is an image; an update reads and writes the window
   of one kernel in it, and nothing else is kept up to date.

The rows of the code grid are cut into strips of two colors. Strips of one color share no pixel of the residual, so
threads take them in any order with the same result to the last bit; several images are shared out whole. Strips move
by half their height from round to round, so that no border stays one. No thread outlives the call.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._kernels_windows import GROUP, Grid, Integers, Reals, correlate_strips, gradient_rows, jit, subtract_strips, sweep_strips

Floats = NDArray[np.float64]
Spread = Callable[[Callable[[int, int], None]], None]

_SLACK = {4: 1e-6, 8: 1e-13}  # relative excess of |g_i| over w_i that counts as rounding, by bytes of a number
_NOISE = {4: 1e-7, 8: 1e-14}  # relative fall of the objective that may be rounding
_FALL = 0.5  # entries above this share of the largest |g_i|/w_i enter the working set
_EARLY_SWEEPS = 3  # sweeps of a round that only collects entries
_LAST_SWEEPS = 8
_STRIP = 16  # least rows of a strip
_ROWS = 16  # rows of the code grid that a thread correlates at once
_IDLE = 6  # rounds in a row without progress that end the work on an image
_SMALLEST = 2.0**-100  # weights below have no influence on codes of scale one


@jit
def _collect(
    grid: Grid, x: Reals, g: Reals, w: Reals, row_ratio: Reals, used: Any, level: float, nonnegative: bool, first: int,
    last: int, fill: bool, starts: Integers, at: Integers, atom: Integers, place: Integers, values: Reals,
    weights: Reals
) -> None:  # fmt: skip
    """Count the entries of rows first..last that are in use or above `level`, or list them from starts[row] on."""
    atoms, width = x.shape[1], x.shape[2]
    bar = x.dtype.type(level)
    for y in range(first, last):
        count = 0
        line = y * grid.down
        for a in range(atoms):
            if not used[y, a] and not row_ratio[y, a] > bar:
                continue
            for k in range(width):
                value = x[y, a, k]
                size = g[y, a, k] if nonnegative else abs(g[y, a, k])
                if value != 0 or size > bar * w[y, a, k]:
                    if fill:
                        e = starts[y] + count
                        column = k * grid.right
                        if line <= grid.last_line and column <= grid.last_column:
                            at[e] = line * grid.pitch + column
                        else:
                            at[e] = -1 - (line * grid.length + column)
                        atom[e] = a
                        place[e] = (y * atoms + a) * width + k
                        values[e] = value
                        weights[e] = w[y, a, k]
                    count += 1
        if not fill:
            starts[y + 1] = count


@jit
def _scatter(x: Reals, used: Any, starts: Integers, place: Integers, atom: Integers, values: Reals) -> None:
    """Write the listed codes back to the code grid."""
    flat = x.reshape(-1)
    for y in range(x.shape[0]):
        used[y] = False
        for e in range(starts[y], starts[y + 1]):
            flat[place[e]] = values[e]
            if values[e] != 0:
                used[y, atom[e]] = True


@jit
def _sums(
    grid: Grid, r: Reals, data: Reals, g: Reals, place: Integers, values: Reals, weights: Reals
) -> tuple[float, float, float, float]:
    """Return ``‖r‖², ⟨r, y⟩, Σ w|x|, ⟨x, g⟩``, each in float64."""
    rr = ry = penalty = inner = 0.0
    for line in range(grid.height):
        start = line * grid.pitch
        for k in range(start, start + grid.length):
            rr += np.float64(r[k]) * np.float64(r[k])
            ry += np.float64(r[k]) * np.float64(data[k])
    flat = g.reshape(-1)
    for e in range(values.size):
        if values[e] != 0:
            penalty += np.float64(weights[e]) * abs(np.float64(values[e]))
            inner += np.float64(values[e]) * np.float64(flat[place[e]])
    return rr, ry, penalty, inner


@jit
def _objective(grid: Grid, r: Reals, values: Reals, weights: Reals) -> float:
    """Return ``½‖r‖² + Σ w|x|`` in float64."""
    rr = penalty = 0.0
    for line in range(grid.height):
        start = line * grid.pitch
        for k in range(start, start + grid.length):
            rr += np.float64(r[k]) * np.float64(r[k])
    for e in range(values.size):
        penalty += np.float64(weights[e]) * abs(np.float64(values[e]))
    return 0.5 * rr + penalty


@jit
def _start(right: Reals, x: Reals, w: Reals, norms: Reals) -> float:
    """Make correlations with the residual the negative gradient of the objective at fixed signs; return its energy."""
    energy = 0.0
    for e in range(x.size):
        right[e] -= w[e] if x[e] > 0 else -w[e]
        energy += np.float64(right[e]) * np.float64(right[e]) / np.float64(norms[e])
    return energy


@jit
def _advance(
    direction: Reals, right: Reals, search: Reals, product: Reals, norms: Reals, energy: float, change: Reals,
    shadow: Reals
) -> tuple[float, float]:  # fmt: skip
    """Take one step of conjugate gradients, scaled by ‖d_a‖²; return the new energy and the step's length."""
    kind = right.dtype.type
    curvature = 0.0
    for e in range(search.size):
        curvature -= np.float64(search[e]) * np.float64(product[e])
    if not curvature > 0.0 or not energy > 0.0:
        return energy, 0.0
    length = kind(energy / curvature)
    following = 0.0
    for e in range(search.size):
        direction[e] += length * search[e]
        right[e] += length * product[e]
        following += np.float64(right[e]) * np.float64(right[e]) / np.float64(norms[e])
    ratio = kind(following / energy)
    for e in range(search.size):
        search[e] = right[e] / norms[e] + ratio * search[e]
    for k in range(change.size):
        change[k] += length * shadow[k]
    return following, float(length)


@jit
def _clip(x: Reals, direction: Reals, length: float, trial: Reals, excess: Reals) -> None:
    """trial = x + length·direction, zero where the sign would change; excess = what that takes away."""
    scale = x.dtype.type(length)
    for e in range(x.size):
        value = x[e] + scale * direction[e]
        keeps = (value > 0) == (x[e] > 0) and value != 0
        trial[e] = value if keeps else x.dtype.type(0)
        excess[e] = x.dtype.type(0) if keeps else -value


class _Work:
    """One image on its way to its codes."""

    def __init__(
        self, grid: Grid, kernels: Reals, image: Reals, weights: Reals, start: Reals, nonnegative: bool, ring: bool
    ) -> None:
        """Set up: `image` ``(C, H, W)``, `weights` and `start` ``(atoms, h, w)``, all at scale one."""
        channels, height, width = image.shape
        self.grid, self.nonnegative, self.ring = grid, nonnegative, ring
        self.kernels = kernels.reshape(-1)
        self.norms = (kernels.astype(np.float64) ** 2).sum((1, 2)).astype(image.dtype)
        lines = np.zeros((grid.height + grid.lines + 1, grid.pitch), image.dtype)
        lines[: grid.height, :width] = image.transpose(1, 0, 2).reshape(height * channels, width)
        self.data, self.r = lines.reshape(-1), lines.copy().reshape(-1)
        self.w = weights.transpose(1, 0, 2)
        self.x = np.ascontiguousarray(start.transpose(1, 0, 2))
        self.used = (self.x != 0).any(2)
        self.g = np.zeros_like(self.x)
        self.row_ratio = np.zeros(self.x.shape[:2], image.dtype)
        rows = len(self.x)
        reach = -(-(grid.lines - 1) // grid.down)  # rows of a strip that keep its neighbors apart
        self.strip = max(_STRIP, reach)
        self.count = max(rows // self.strip, 1)
        self.count -= self.count % 2 if ring and self.count > 1 else 0
        self.depth = DMIN
        self.starts = np.zeros(rows + 1, np.int64)
        self.collect(math.inf, _alone)

    def collect(self, level: float, spread: Spread) -> None:
        """List the entries in use and those above `level`, row by row."""
        rows = len(self.x)
        none, no_values = np.empty(0, np.int64), np.empty(0, self.x.dtype)
        self.at, self.atom, self.place, self.values, self.weights = none, none, none, no_values, no_values

        def part(i: int, step: int, fill: bool) -> None:
            first, last = i * rows // step, (i + 1) * rows // step
            _collect(
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

        def work(color: int, i: int, step: int) -> None:
            sweep_strips(
                self.grid, self.r, self.kernels, self.norms, self.at, self.atom, self.values, self.weights, bounds,
                color + 2 * i, 2 * step, sweeps, self.nonnegative, self.order
            )  # fmt: skip

        for color in range(2):
            spread(lambda i, step: work(color, i, step))

    def subtract(self, image: Reals, values: Reals, spread: Spread) -> None:
        """Subtract D times the listed values from an image."""
        bounds = self.strips(False)

        def work(color: int, i: int, step: int) -> None:
            subtract_strips(
                self.grid, image, self.kernels, self.at, self.atom, values, bounds, color + 2 * i, 2 * step
            )  # fmt: skip

        for color in range(2):
            spread(lambda i, step: work(color, i, step))

    def correlate(self, image: Reals, out: Reals, spread: Spread) -> None:
        """out = the correlations of the listed entries with an image."""
        bounds = self.strips(False)
        spread(lambda i, step: correlate_strips(
            self.grid, image, self.kernels, self.at, self.atom, bounds, i, step, out
        ))  # fmt: skip

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
        search, energy = np.empty_like(x), _start(right, x, w, norms)
        search[:] = right / norms
        shadow, change = np.zeros_like(self.r), np.zeros_like(self.r)
        first, taken = energy, 0
        for taken in range(1, self.depth + 1):
            shadow[:] = 0
            self.subtract(shadow, search, spread)  # -D p
            self.correlate(shadow, product, spread)  # -DᵀD p
            following, length = _advance(direction, right, search, product, norms, energy, change, shadow)
            if length == 0:
                break
            energy = following
            if energy <= 1e-4 * first:
                break
        before = _objective(self.grid, self.r, x, w)
        length = 1.0
        trial, excess, r = np.empty_like(x), np.empty_like(x), np.empty_like(self.r)
        for _ in range(5):
            _clip(x, direction, length, trial, excess)
            r[:] = self.r + self.r.dtype.type(length) * change
            self.subtract(r, excess, spread)
            after = _objective(self.grid, r, trial, w)
            if after < before:
                self.values[:] = trial
                self.r = r
                break
            length *= 0.5
        self.depth = min(2 * self.depth, DMAX) if length == 1 else max(self.depth // 2, DMIN) if length < 0.5 else self.depth
        if TRACE: print('   cg',taken,'energy',energy/first,'length',length,'clipped',(excess!=0).sum(), before-after)

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
            gradient_rows(
                grid, self.r, self.kernels, self.w, self.nonnegative, i * rows // step, (i + 1) * rows // step, self.g, self.row_ratio
            )  # fmt: skip

        spread(lambda i, step: work(i, step))
        return float(self.row_ratio.max()) if self.row_ratio.size else 0.0

    def relative_gap(self, worst: float) -> float:
        """Return the duality gap over the objective, at the dual point θ = αr scaled into ``|d_iᵀθ| <= w_i``."""
        rr, ry, penalty, inner = _sums(
            self.grid, self.r, self.data, self.g, self.place, self.values, self.weights
        )  # fmt: skip
        alpha = max(ry / rr, 0.0) if rr > 0 else 0.0
        if alpha * worst > 1:
            alpha = 1 / worst
        gap = max(0.5 * (1 - alpha) ** 2 * rr + (penalty - alpha * inner), 0.0)
        objective = 0.5 * rr + penalty
        return gap / objective if objective > 0 else 0.0

    def run(self, tol: float, rounds: int, spread: Spread) -> tuple[int, float]:
        """Return the rounds taken and the last relative gap."""
        slack = _SLACK[self.x.itemsize]
        best, lowest, idle, done = math.inf, math.inf, 0, 0
        self.residual(spread)
        while True:
            worst = self.gradient(spread)
            gap = self.relative_gap(worst)
            objective = _objective(self.grid, self.r, self.values, self.weights)
            idle = idle + 1 if gap > 0.95 * best and objective > lowest * (1 - _NOISE[self.x.itemsize]) else 0
            best, lowest = min(best, gap), min(lowest, objective)
            if LOG is not None: LOG.append((time.process_time()-T0, gap, _objective(self.grid,self.r,self.values,self.weights)))
            if TRACE: print(done, worst, gap, len(self.values), (self.values!=0).sum(), time.perf_counter()-T0)
            if gap <= tol or done >= rounds or idle > _IDLE:
                return done, gap
            level = max(1 + slack, _FALL * worst)
            last = level <= 1 + slack
            self.collect(level, spread)
            self.sweep(_LAST_SWEEPS if last else _EARLY_SWEEPS, done % 2 == 1, spread)
            _scatter(self.x, self.used, self.starts, self.place, self.atom, self.values)
            if last:
                self.newton(spread)
                _scatter(self.x, self.used, self.starts, self.place, self.atom, self.values)
            if last:
                self.residual(spread)
            done += 1
TRACE=False
CG=20
DMIN,DMAX=8,64
LOG=None
import time
T0=0

def _alone(work: Callable[[int, int], None]) -> None:
    work(0, 1)


def _geometry(kernels: Reals, shape: tuple[int, ...], stride: tuple[int, int], ring: bool) -> Grid:
    """Return the sizes for kernels ``(atoms, C, kh, kw)`` on images ``(C, H, W)``."""
    _, channels, kh, kw = kernels.shape
    _, height, width = shape
    wide = -(-kw // GROUP) * GROUP
    bytes_ = kernels.itemsize
    # A margin for what groups read beyond a window; an odd number of cache lines spreads columns over the cache.
    whole = -(-(width + wide + GROUP) * bytes_ // 64)
    pitch = (whole + 1 - whole % 2) * 64 // bytes_
    beyond = 1 << 40
    return Grid(
        pitch, height * channels, width, kh * channels, wide, stride[0] * channels, stride[1],
        (height - kh) * channels if ring else beyond, width - kw if ring else beyond
    )  # fmt: skip


def solve_images(
    kernels: Reals,
    images: Reals,
    weights: Reals,
    start: Reals,
    stride: tuple[int, int] = (1, 1),
    ring: bool = False,
    nonnegative: bool = False,
    tol: float = 1e-6,
    max_rounds: int = 200,
    threads: int | None = None,
) -> tuple[Reals, NDArray[np.int64], Floats]:
    """Minimize ½‖y_i - Dx_i‖² + Σ w_i|x_i| for every image y_i, in the precision of `images`.

    Args:
        kernels: ``(atoms, C, kh, kw)``; finite.
        images: ``(n, C, H, W)``; finite.
        weights: ``(1 or n, ...)``, broadcasts against codes; positive, inf keeps a code at zero.
        start: Codes ``(n, atoms, h, w)`` to start from; values that the problem forbids count as zero.
        stride: Pixels between positions, per axis.
        ring: Whether kernels wrap around (boundary "circular").
        nonnegative: Restrict the codes to x >= 0.
        tol: An image is done when its duality gap is <= tol·objective.
        max_rounds: Most rounds per image.
        threads: Number of threads; None: one per processor.

    Returns:
        Codes ``(n, atoms, h, w)``, rounds ``(n,)`` and the last relative gap ``(n,)``.

    Source: relative gap as in G5 of docs/theory.md; coordinate descent on convolutions: Kavukcuoglu et al. 2010, by
    regions: Moreau, Oudre & Vayatis 2018 (this one: working sets, two colors instead of messages).
    """
    n, kind = len(images), images.dtype
    atoms, channels, kh, kw = kernels.shape
    grid = _geometry(kernels, images.shape[1:], stride, ring)
    lined = np.zeros((atoms, kh * channels, grid.wide), kind)
    lined[:, :, :kw] = kernels.transpose(0, 2, 1, 3).reshape(atoms, kh * channels, kw)
    codes, rounds, gaps = np.zeros(start.shape, kind), np.zeros(n, np.int64), np.zeros(n)

    def work(i: int, spread: Spread) -> None:
        top = float(np.abs(images[i]).max()) if images[i].size else 0.0
        # Solve at scale one and scale back: with a power of two neither rounds, and no square overflows.
        exponent = min(max(math.frexp(top)[1], -120), 120) if top > 0 else 0
        up, down = kind.type(2.0**exponent), kind.type(2.0**-exponent)
        w = np.broadcast_to(np.maximum(weights[i if len(weights) > 1 else 0] * down, kind.type(_SMALLEST)), start.shape[1:])
        x = start[i] * down
        x = np.where(np.isinf(w) | ((x < 0) & nonnegative), kind.type(0), x)
        image = _Work(grid, lined, images[i] * down, w, x, nonnegative, ring)
        rounds[i], gaps[i] = image.run(tol, max_rounds, spread)
        codes[i] = image.x.transpose(1, 0, 2) * up

    threads = (os.cpu_count() or 1) if threads is None else threads
    if threads <= 1:
        for i in range(n):
            work(i, _alone)
        return codes, rounds, gaps
    with ThreadPoolExecutor(threads) as pool:

        def spread(task: Callable[[int, int], None]) -> None:
            for _ in pool.map(lambda i: task(i, threads), range(threads)):
                pass

        try:
            if n >= threads:
                for _ in pool.map(lambda i: work(i, _alone), range(n)):
                    pass
            else:
                for i in range(n):
                    work(i, spread)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return codes, rounds, gaps
