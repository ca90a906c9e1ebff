"""Compiled CPU solver of convolutional Lasso problems: working sets and coordinate descent on the residual image.

For every image y with weights w, and a mask M of ones and zeros, it minimizes ½‖M(y - Dx)‖² + Σ w_i|x_i| in rounds:

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
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_correlate import Integers, Reals
from ._kernels_image import Entries, Spread, Work, alone
from ._kernels_lists import find, scatter
from ._kernels_windows import GROUP, Grid

forget_stale_kernels()

Floats = NDArray[np.float64]

_COARSE = 1e-4  # the relative gap down to which float32 is good enough
_FAINT = 1e-20  # kernels whose squared norm is below (or above its inverse) are not for float32
_SMALLEST = 2.0**-100  # weights below have no influence on codes of scale one


class Picture(NamedTuple):
    """A convolutional Lasso problem ``min ½‖M_i(y_i - Dx_i)‖² + Σ w|x_i|`` for every image y_i, and codes for it.

    Attributes:
        kernels: ``(atoms, C, kh, kw)``; finite.
        images: ``(n, C, H, W)``; finite; there may be entries that no code reaches.
        weights: ``(1 or n, ...)``, broadcasts against codes; positive, inf keeps a code at zero.
        codes: ``(n, atoms, h, w)``, to start from or to assess.
        stride: Pixels between positions, per axis.
        ring: Whether kernels wrap around (boundary "circular").
        nonnegative: Whether codes are held at x >= 0.
        mask: M, ones where images were observed, zeros elsewhere, ``(1 or n, C, H, W)``; None: observed everywhere.
    """

    kernels: Reals
    images: Reals
    weights: Reals
    codes: Reals
    stride: tuple[int, int] = (1, 1)
    ring: bool = False
    nonnegative: bool = False
    mask: Reals | None = None


def solve_images(
    picture: Picture, tol: float = 1e-6, max_rounds: int = 200, threads: int | None = None
) -> tuple[Reals, Integers, Floats]:
    """Minimize for every image; values of the codes to start from that the problem forbids count as zero.

    Args:
        picture: The problem.
        tol: An image is done when its duality gap is <= tol·objective.
        max_rounds: Most rounds per image.
        threads: Number of threads; None: one per processor.

    Returns:
        Codes ``(n, atoms, h, w)``, in float64 unless the start and all work were in float32; rounds ``(n,)``; and the
        last relative gap ``(n,)``.

    Source: relative gap as in G5 of docs/theory.md; coordinate descent on convolutions: Kavukcuoglu et al. 2010, by
    regions: Moreau, Oudre & Vayatis 2018 (this one: working sets, two colors instead of messages).
    """
    batch = _Batch(picture)
    n = len(picture.images)
    norms = (batch.kernels**2).sum((1, 2))
    coarse = bool((norms > _FAINT).all() and (norms < 1 / _FAINT).all())
    kind = picture.codes.dtype if coarse and tol >= _COARSE else np.float64
    codes, rounds, gaps = np.zeros(picture.codes.shape, kind), np.zeros(n, np.int64), np.zeros(n)

    def work(i: int, spread: Spread) -> None:
        up, entries = batch.scale(i)[0], batch.entries(i)
        rough = coarse
        if coarse and tol < _COARSE and len(entries.place):
            # So near its end float32 would only lose digits.
            rough = batch.work(i, np.float64, entries).distance(spread) > _COARSE
        for kind, aim in ((np.float32, max(tol, _COARSE)), (np.float64, tol)):
            if kind is np.float32 and not rough:
                continue
            own = batch.work(i, kind, entries)
            taken, gaps[i] = own.run(aim, max_rounds - int(rounds[i]), spread)
            rounds[i] += taken
            entries = Entries(own.starts, own.place, own.values)
            if (gaps[i] <= tol and aim == tol) or rounds[i] >= max_rounds:
                break
        scatter(codes[i], *entries, up)

    _share(work, n, threads)
    return codes, rounds, gaps


def assess_images(picture: Picture, threads: int | None = None) -> tuple[Floats, Floats]:
    """Return the objectives and the duality gaps of codes, in float64, each ``(n,)``.

    Codes must keep to the problem: zero where the weight is inf, and not negative if `nonnegative`.
    """
    batch = _Batch(picture)
    n = len(picture.images)
    objectives, gaps = np.zeros(n), np.zeros(n)

    def work(i: int, spread: Spread) -> None:
        with np.errstate(over="ignore"):  # the caller has a word for squares that leave float64
            square = batch.scale(i)[0] ** 2
        objective, gap = batch.work(i, np.float64, batch.entries(i)).certificate(spread)
        objectives[i], gaps[i] = objective * square, gap * square

    _share(work, n, threads)
    return objectives, gaps


class _Batch:
    """The images of one call."""

    def __init__(self, picture: Picture) -> None:
        atoms, channels, kh, kw = picture.kernels.shape
        self.picture = picture
        self.kernels = picture.kernels.transpose(0, 2, 1, 3).reshape(atoms, kh * channels, kw).astype(np.float64)

    def scale(self, i: int) -> tuple[np.float64, np.float64]:
        """Return the number that scales the answer for image i back from scale one, and its inverse."""
        image = self.picture.images[i]
        top = max(float(image.max()), -float(image.min()))
        # Solve at scale one and scale back: with a power of two neither rounds, and no square overflows.
        exponent = min(max(math.frexp(top)[1], -1000), 1000) if top > 0 else 0
        return np.float64(2.0**exponent), np.float64(2.0**-exponent)

    def entries(self, i: int) -> Entries:
        """Return the codes of image i that are not zero, in float64, at scale one."""
        codes = np.ascontiguousarray(self.picture.codes[i])
        starts = np.zeros(codes.shape[1] + 1, np.int64)
        place, values = np.empty(0, np.int64), np.empty(0, codes.dtype)
        find(codes, starts, False, place, values)
        np.cumsum(starts, out=starts)
        place, values = np.empty(starts[-1], np.int64), np.empty(starts[-1], codes.dtype)
        find(codes, starts, True, place, values)
        return Entries(starts, place, values * self.scale(i)[1])

    def work(self, i: int, kind: Any, entries: Entries) -> Work:
        """Return image i at scale one, in a precision, at codes."""
        kernels, images, weights, codes, stride, ring, nonnegative, mask = self.picture
        _, down = self.scale(i)
        w = np.maximum(weights[i if len(weights) > 1 else 0] * down, _SMALLEST)
        w = np.broadcast_to(w, codes.shape[1:]).transpose(1, 0, 2)
        shape, w = w.shape, _core(w, kind)
        values = entries.values.astype(kind)
        if len(values):
            row, atom, column = np.unravel_index(entries.place, shape)
            forbidden = np.isinf(np.broadcast_to(w, shape)[row, atom, column])
            values[forbidden | ((values < 0) & nonnegative)] = 0
        return Work(
            _geometry(kernels.shape, images.shape[1:], stride, ring, np.dtype(kind).itemsize),
            self.kernels.astype(kind),
            (images[i] * down).astype(kind),
            None if mask is None else mask[i if len(mask) > 1 else 0].astype(kind),
            w,
            shape,
            Entries(entries.starts, entries.place, values),
            nonnegative,
            ring,
        )


def _share(work: Callable[[int, Spread], None], n: int, threads: int | None) -> None:
    """Call ``work(i, spread)`` for n images: threads take whole images if there are enough, else parts of each."""
    threads = (os.cpu_count() or 1) if threads is None else threads
    if threads <= 1:
        for i in range(n):
            work(i, alone)
        return
    whole = n >= threads
    with ThreadPoolExecutor(threads if whole else threads - 1) as pool:

        def spread(task: Callable[[int, int], None]) -> None:
            others = [pool.submit(task, i, threads) for i in range(1, threads)]
            task(0, threads)  # one share is this thread's own: waking another takes longer
            for other in others:
                other.result()

        try:
            if whole:
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
    whole = -(-(width + 2 * wide + GROUP) * itemsize // 64)
    pitch = (whole + 1 - whole % 2) * 64 // itemsize
    beyond = 1 << 40
    return Grid(
        pitch, wide, height * channels, width, kh * channels, wide, stride[0] * channels, stride[1],
        (height - kh) * channels if ring else beyond, width - kw if ring else beyond
    )  # fmt: skip
