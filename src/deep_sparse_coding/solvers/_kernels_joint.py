"""Compiled CPU solver of convolutional joint problems: working sets and coordinate descent on all layers' residuals.

For every sample y with weights w it minimizes ``Σ_j (β_j/2)‖r_j‖² + Σ w_i|x_i|`` over the codes of all layers together,
``r_1 = y - D_1 x_1``, ``r_j = x_{j-1} - D_j x_j``, in rounds:

1. the correlations ``g_j = β_j D_jᵀ r_j - β_{j+1} r_{j+1}`` of all layers at all positions;
2. the duality gap; stop when it is small enough;
3. the working set: entries in use, and those whose |g_i|/w_i exceeds a threshold that falls with the largest of them,
   in all layers alike;
4. sweeps of coordinate descent over the working set. A code of layer j changes one window of ``r_j`` and one entry of
   ``r_{j+1}``, and nothing else is kept up to date;
5. conjugate gradients on the normal equations of all layers' supports together, at fixed signs: they see how layers
   pull at each other, which coordinates one by one do not where β is large;
6. once the threshold is down at one, 4 and 5 in turns until the working set is solved as well as is wanted: the maps of
   step 1 cost more than all the rest.

The work begins in float32 and goes on in float64 where the gap that is asked for is smaller than float32 resolves.
Threads take whole samples if there are enough, else rows of the maps: results are equal to the last bit for any number
of threads and any batch. No thread outlives the call.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_joint_image import Layer, Spread, Work, alone
from ._kernels_joint_windows import GROUP, Integers, Lines, Reals

forget_stale_kernels()

Floats = NDArray[np.float64]

_COARSE = 2e-5  # the relative gap down to which float32 is good enough
_FAINT = 1e-20  # curvatures below (or above its inverse) are not for float32
_SMALLEST = 2.0**-100  # weights below have no influence on codes of scale one


@dataclass(frozen=True, eq=False)
class Stage:
    """What all samples share of one layer.

    Attributes:
        kernels: ``(atoms, C, kh, kw)``; finite.
        weights: ``(1 or n, ...)``, broadcasts against codes; positive, inf keeps a code at zero.
        stride: Positions' distances, per axis.
        beta: β.
        ring: Whether kernels wrap around (boundary "circular").
    """

    kernels: Reals
    weights: Reals
    stride: tuple[int, int]
    beta: float
    ring: bool


def solve_joint(
    stages: Sequence[Stage],
    images: Reals,
    start: Sequence[Reals],
    nonnegative: bool,
    tol: float,
    max_rounds: int,
    threads: int | None = None,
) -> tuple[list[Floats], Integers, Floats]:
    """Minimize the joint objective for every image.

    Args:
        stages: The layers.
        images: ``(n, C, H, W)``; finite.
        start: Codes of every layer ``(n, atoms, h, w)`` to start from; values that the problem forbids count as zero.
        nonnegative: Restrict the codes to x >= 0.
        tol: A sample is done when its duality gap is <= tol·objective.
        max_rounds: Most rounds per sample.
        threads: Number of threads; None: one per processor.

    Returns:
        Codes of every layer, rounds ``(n,)`` and the last relative gap ``(n,)``.

    Source: joint DSC₁ and G5 of docs/theory.md; coordinate descent on convolutions: Kavukcuoglu et al. 2010.
    """
    batch = _Batch(stages, images, start, nonnegative)
    n = len(images)
    codes = [np.zeros(block.shape) for block in start]
    rounds, gaps = np.zeros(n, np.int64), np.zeros(n)

    def near(i: int, spread: Spread) -> bool:
        """Return whether sample i starts so near its end that float32 would only lose digits."""
        if tol >= _COARSE or not any(block[i].any() for block in start):
            return False
        own, _ = batch.work(i, np.float64, None)
        own.residual()
        _, objective, gap = own.measure(spread)
        return own.relative(objective, gap) <= _COARSE

    def work(i: int, spread: Spread) -> None:
        x = None
        for kind, aim in ((np.float32, max(tol, _COARSE)), (np.float64, tol)):
            if kind is np.float32 and (not batch.coarse or near(i, spread)):
                continue
            own, up = batch.work(i, kind, x)
            taken, gaps[i] = own.run(aim, max_rounds - int(rounds[i]), spread)
            rounds[i] += taken
            x = [batch.code(layer) for layer in own.layers]
            for block, values in zip(codes, x, strict=True):
                block[i] = values.transpose(2, 0, 1) * up
            if (gaps[i] <= tol and aim == tol) or rounds[i] >= max_rounds:
                break

    _share(work, n, threads)
    return codes, rounds, gaps


def assess_joint(
    stages: Sequence[Stage],
    images: Reals,
    codes: Sequence[Reals],
    nonnegative: bool,
    threads: int | None = None,
) -> tuple[Floats, Floats]:
    """Return the objectives and the duality gaps of codes, in float64, each ``(n,)``; arguments as in `solve_joint`.

    Codes must keep to the problem: zero where the weight is inf, and not negative if `nonnegative`.
    """
    batch = _Batch(stages, images, codes, nonnegative)
    objectives, gaps = np.zeros(len(images)), np.zeros(len(images))

    def work(i: int, spread: Spread) -> None:
        own, up = batch.work(i, np.float64, None)
        own.residual()
        _, objective, gap = own.measure(spread)
        with np.errstate(over="ignore"):  # the caller has a word for squares that leave float64
            objectives[i], gaps[i] = objective * up * up, gap * up * up

    _share(work, len(images), threads)
    return objectives, gaps


class _Batch:
    """The samples of one call."""

    def __init__(self, stages: Sequence[Stage], images: Reals, start: Sequence[Reals], nonnegative: bool) -> None:
        self.stages, self.images, self.start, self.nonnegative = stages, images, start, nonnegative
        self.kernels = []
        self.coarse = True
        betas = [stage.beta for stage in stages]
        for stage, upper in zip(stages, [*betas[1:], 0.0], strict=True):
            atoms, channels, kh, kw = stage.kernels.shape
            kernels = stage.kernels.transpose(0, 2, 3, 1).reshape(atoms, kh, kw * channels).astype(np.float64)
            self.kernels.append(kernels)
            norms = (kernels**2).sum((1, 2))
            for numbers in (norms, stage.beta * norms, stage.beta * norms + upper):
                self.coarse = self.coarse and bool((numbers > _FAINT).all() and (numbers < 1 / _FAINT).all())

    def work(self, i: int, kind: Any, x: list[Reals] | None) -> tuple[Work, np.float64]:
        """Return sample i at scale one, in a precision, at codes x or at its start; and the number to scale it back."""
        image = self.images[i]
        top = float(np.abs(image).max()) if image.size else 0.0
        # Solve at scale one and scale back: with a power of two neither rounds, and no square overflows.
        exponent = min(max(math.frexp(top)[1], -1000), 1000) if top > 0 else 0
        up, down = np.float64(2.0**exponent), np.float64(2.0**-exponent)
        layers = []
        betas = [stage.beta for stage in self.stages]
        shapes = [block.shape[1:] for block in self.start]
        sizes = _geometry(self.stages, image.shape, shapes, np.dtype(kind).itemsize)
        for j, (stage, upper) in enumerate(zip(self.stages, [*betas[1:], 0.0], strict=True)):
            codes = self.start[j][i].transpose(1, 2, 0)
            w = np.maximum(stage.weights[i if len(stage.weights) > 1 else 0] * down, _SMALLEST)
            w = np.broadcast_to(w, shapes[j]).transpose(1, 2, 0)
            if x is None:
                codes = codes * down
                if codes.any():
                    codes = np.where(np.isinf(w) | ((codes < 0) & self.nonnegative), 0.0, codes)
            else:
                codes = x[j]
            data = (image * down).transpose(1, 2, 0).reshape(image.shape[1], -1).astype(kind) if j == 0 else None
            kernels = self.kernels[j].astype(kind)
            layers.append(
                Layer(sizes[j], kernels, _core(w, kind), codes.astype(kind), data, stage.beta, upper, stage.ring)
            )
        return Work(layers, self.nonnegative), up

    @staticmethod
    def code(layer: Layer) -> Reals:
        """Return the codes of a layer, ``(h, width, atoms)``."""
        lines = layer.lines
        rows = layer.x.reshape(lines.rows, lines.codes)[:, : lines.width * lines.atoms]
        return rows.reshape(lines.rows, lines.width, lines.atoms)


def _share(work: Callable[[int, Spread], None], n: int, threads: int | None) -> None:
    """Call ``work(i, spread)`` for n samples: threads take whole samples if there are enough, else parts of each."""
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
    """Return weights ``(h, width, atoms)`` in a precision, with one row or column for those that only repeat."""
    core = w[: 1 if w.strides[0] == 0 else None, : 1 if w.strides[1] == 0 else None]
    return np.ascontiguousarray(core, kind)


def _pitch(entries: int, itemsize: int) -> int:
    """Return a line's length in memory: an odd number of cache lines spreads columns over the cache."""
    whole = -(-entries * itemsize // 64)
    return (whole + 1 - whole % 2) * 64 // itemsize


def _geometry(
    stages: Sequence[Stage], image: tuple[int, ...], codes: Sequence[tuple[int, ...]], itemsize: int
) -> list[Lines]:
    """Return the sizes of every layer for images ``(C, H, W)`` and codes ``(atoms, h, w)``."""
    layers = []
    pitches = [
        _pitch(width * channels + -(-stage.kernels.shape[3] * channels // GROUP) * GROUP, itemsize)
        for stage, (channels, _, width) in zip(stages, [image, *codes[:-1]], strict=True)
    ]
    pitches.append(_pitch(codes[-1][0] * codes[-1][2], itemsize))
    beyond = 1 << 40
    for j, (stage, shape) in enumerate(zip(stages, [image, *codes[:-1]], strict=True)):
        channels, height, width = shape
        atoms, _, kh, kw = stage.kernels.shape
        _, rows, columns = codes[j]
        piece = kw * channels
        layers.append(
            Lines(
                pitches[j],
                height,
                width * channels,
                kh,
                piece,
                -(-piece // GROUP) * GROUP,
                stage.stride[0],
                stage.stride[1] * channels,
                height - kh if stage.ring else beyond,
                (width - kw) * channels if stage.ring else beyond,
                rows,
                columns,
                atoms,
                pitches[j + 1],
            )
        )
    return layers
