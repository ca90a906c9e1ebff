"""Compiled CPU solver of convolutional Lasso problems: working sets and coordinate descent on the residual image.

For every image y with weights w it minimizes ½‖y - Dx‖² + Σ w_i|x_i| in rounds:

1. the correlations g = Dᵀ(y - Dx) at all positions;
2. the duality gap; stop when it is small enough;
3. the working set: entries in use, and those whose |g_i|/w_i exceeds a threshold that falls with the largest of them;
4. sweeps of coordinate descent over the working set. The residual is an image; an update reads and writes the window
   of one kernel in it, and nothing else is kept up to date;
5. once the threshold is down at one, conjugate gradients on the normal equations of the support, at fixed signs.

The work begins in float32 and goes on in float64 where the gap that is asked for is smaller than float32 resolves.

The rows of the code grid are cut into strips of two colors. Strips of one color share no pixel of the residual, so
threads take them in any order with the same result to the last bit; several images are shared out whole. Strips move
by half their height from round to round, so that no border stays one. No thread outlives the call.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._kernels_image import Spread, Work, alone
from ._kernels_windows import GROUP, Grid, Integers, Reals

Floats = NDArray[np.float64]

_COARSE = 1e-4  # the relative gap down to which float32 is good enough
_FAINT = 1e-20  # kernels whose squared norm is below (or above its inverse) are not for float32
_SMALLEST = 2.0**-100  # weights below have no influence on codes of scale one


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
) -> tuple[Floats, Integers, Floats]:
    """Minimize ½‖y_i - Dx_i‖² + Σ w_i|x_i| for every image y_i.

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
    batch = _Batch(kernels, images, weights, start, stride, ring, nonnegative)
    n = len(images)
    codes, rounds, gaps = np.zeros(start.shape), np.zeros(n, np.int64), np.zeros(n)
    norms = (batch.kernels**2).sum((1, 2))
    coarse = bool((norms > _FAINT).all() and (norms < 1 / _FAINT).all())

    def near(i: int, spread: Spread) -> bool:
        """Return whether image i starts so near its end that float32 would only lose digits."""
        if tol >= _COARSE or not start[i].any():
            return False
        own, _ = batch.work(i, np.float64, None)
        own.residual(spread)
        return own.measure(spread)[2] <= _COARSE

    def work(i: int, spread: Spread) -> None:
        x = None
        for kind, aim in ((np.float32, max(tol, _COARSE)), (np.float64, tol)):
            if kind is np.float32 and (not coarse or near(i, spread)):
                continue
            own, up = batch.work(i, kind, x)
            taken, gaps[i] = own.run(aim, max_rounds - int(rounds[i]), spread)
            rounds[i] += taken
            x = own.x.transpose(1, 0, 2)
            codes[i] = x * up
            if (gaps[i] <= tol and aim == tol) or rounds[i] >= max_rounds:
                break

    _share(work, n, threads)
    return codes, rounds, gaps


def assess_images(
    kernels: Reals,
    images: Reals,
    weights: Reals,
    codes: Reals,
    stride: tuple[int, int] = (1, 1),
    ring: bool = False,
    nonnegative: bool = False,
    threads: int | None = None,
) -> tuple[Floats, Floats]:
    """Return the objectives and the duality gaps of codes, in float64, each ``(n,)``; arguments as in `solve_images`.

    Codes must keep to the problem: zero where the weight is inf, and not negative if `nonnegative`.
    """
    batch = _Batch(kernels, images, weights, codes, stride, ring, nonnegative)
    objectives, gaps = np.zeros(len(images)), np.zeros(len(images))

    def work(i: int, spread: Spread) -> None:
        own, up = batch.work(i, np.float64, None)
        own.residual(spread)
        objective, gap = own.gap(own.gradient(spread))
        objectives[i], gaps[i] = objective * up * up, gap * up * up

    _share(work, len(images), threads)
    return objectives, gaps


class _Batch:
    """The images of one call."""

    def __init__(
        self,
        kernels: Reals,
        images: Reals,
        weights: Reals,
        start: Reals,
        stride: tuple[int, int],
        ring: bool,
        nonnegative: bool,
    ) -> None:
        atoms, channels, kh, kw = kernels.shape
        self.shape = kernels.shape
        self.kernels = kernels.transpose(0, 2, 1, 3).reshape(atoms, kh * channels, kw).astype(np.float64)
        self.images, self.weights, self.start = images, weights, start
        self.stride, self.ring, self.nonnegative = stride, ring, nonnegative

    def work(self, i: int, kind: Any, x: Reals | None) -> tuple[Work, np.float64]:
        """Return image i at scale one, in a precision, at codes x or at its start; and the number to scale it back."""
        image = self.images[i]
        top = float(np.abs(image).max())
        # Solve at scale one and scale back: with a power of two neither rounds, and no square overflows.
        exponent = min(max(math.frexp(top)[1], -1000), 1000) if top > 0 else 0
        up, down = np.float64(2.0**exponent), np.float64(2.0**-exponent)
        w = np.maximum(self.weights[i if len(self.weights) > 1 else 0] * down, _SMALLEST)
        w = np.broadcast_to(w, self.start.shape[1:])
        codes = self.start[i] * down if x is None else x
        if x is None and codes.any():
            codes = np.where(np.isinf(w) | ((codes < 0) & self.nonnegative), 0.0, codes)
        grid = _geometry(self.shape, image.shape, self.stride, self.ring, np.dtype(kind).itemsize)
        w = _core(w.transpose(1, 0, 2), kind)
        image = (image * down).astype(kind)
        return Work(grid, self.kernels.astype(kind), image, w, codes.astype(kind), self.nonnegative, self.ring), up


def _share(work: Callable[[int, Spread], None], n: int, threads: int | None) -> None:
    """Call ``work(i, spread)`` for n images: threads take whole images if there are enough, else parts of each."""
    threads = (os.cpu_count() or 1) if threads is None else threads
    if threads <= 1:
        for i in range(n):
            work(i, alone)
        return
    with ThreadPoolExecutor(threads) as pool:

        def spread(task: Callable[[int, int], None]) -> None:
            for _ in pool.map(lambda i: task(i, threads), range(threads)):
                pass

        try:
            if n >= threads:
                for _ in pool.map(lambda i: work(i, alone), range(n)):
                    pass
            else:
                for i in range(n):
                    work(i, spread)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _core(w: Floats, kind: Any) -> Reals:
    """Return weights ``(h, atoms, width)`` in a precision, with one row or column for those that only repeat."""
    core = w[: 1 if w.strides[0] == 0 else None, :, : 1 if w.strides[2] == 0 else None]
    return np.ascontiguousarray(core, kind)


def _geometry(
    kernels: tuple[int, ...], shape: tuple[int, ...], stride: tuple[int, int], ring: bool, itemsize: int
) -> Grid:
    """Return the sizes for kernels ``(atoms, C, kh, kw)`` on images ``(C, H, W)``."""
    _, channels, kh, kw = kernels
    _, height, width = shape
    wide = -(-kw // GROUP) * GROUP
    # A margin for what groups read beyond a window; an odd number of cache lines spreads columns over the cache.
    whole = -(-(width + wide + GROUP) * itemsize // 64)
    pitch = (whole + 1 - whole % 2) * 64 // itemsize
    beyond = 1 << 40
    return Grid(
        pitch, height * channels, width, kh * channels, wide, stride[0] * channels, stride[1],
        (height - kh) * channels if ring else beyond, width - kw if ring else beyond
    )  # fmt: skip
