"""Compiled passes over the patches of an image: adding them up, and groups of similar ones.

Every patch that is denoised depends on its own group alone, and patches are added in the order of their places: the
outcome is the same to the last bit for any number of threads and any cut of the work.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deep_sparse_coding.kernel_cache import forget_stale_kernels
from deep_sparse_coding.solvers._kernels_jit import entry, jit
from deep_sparse_coding.solvers._kernels_support import Floats

forget_stale_kernels()


@entry
def add_patches(patches: Floats, weights: Floats, first: int, total: Floats, weight: Floats, side: int) -> None:
    """Add the patches of neighbouring places to an image, row after row.

    Args:
        patches: ``(n, side²)``: of the places ``first``, ``first + 1``, ...
        weights: ``(n,)``: how much each counts.
        first: The number of the first place; a row of an image of width W has W - side + 1 places.
        total: ``(H, W)``: gains weight times patch.
        weight: ``(H, W)``: gains the weights.
        side: Of a patch.
    """
    width = total.shape[1] - side + 1
    for p in range(patches.shape[0]):
        r, c = (first + p) // width, (first + p) % width
        for a in range(side):
            for b in range(side):
                total[r + a, c + b] += weights[p] * patches[p, a * side + b]
                weight[r + a, c + b] += weights[p]


@jit
def _find_similar(guide: Floats, row: int, col: int, side: int, radius: int, places: Any) -> int:
    """Fill `places` with the places of the patches of the window most like the one at (row, col); their number."""
    low_r, high_r = max(0, row - radius), min(guide.shape[0] - side, row + radius)
    low_c, high_c = max(0, col - radius), min(guide.shape[1] - side, col + radius)
    wide = high_c - low_c + 1
    distance = np.empty((high_r - low_r + 1) * wide)
    for i in range(low_r, high_r + 1):
        for j in range(low_c, high_c + 1):
            total = 0.0
            for a in range(side):
                for b in range(side):
                    gap = guide[row + a, col + b] - guide[i + a, j + b]
                    total += gap * gap
            distance[(i - low_r) * wide + j - low_c] = total
    distance[(row - low_r) * wide + col - low_c] = -1.0  # always in its own group, however many are equal to it
    order = np.argsort(distance)
    count = min(places.shape[0], order.size)
    for q in range(count):
        places[q, 0], places[q, 1] = low_r + order[q] // wide, low_c + order[q] % wide
    return int(count)


@jit
def _cut(plane: Floats, places: Any, count: int, side: int, out: Floats, middle: Floats) -> None:
    """The patches at the places without their mean, which goes to `middle`; a column each."""
    for a in range(side):
        for b in range(side):
            k, total = a * side + b, 0.0
            for q in range(count):
                out[k, q] = plane[places[q, 0] + a, places[q, 1] + b]
                total += out[k, q]
            middle[k] = total / count
            for q in range(count):
                out[k, q] -= middle[k]


@jit
def _factor(P: Floats, count: int, variance: float, L: Floats) -> None:
    """The Cholesky factor of ``PPᵀ/count + variance I``; its diagonal holds reciprocals."""
    for i in range(L.shape[0]):
        for j in range(i + 1):
            total = 0.0
            for q in range(count):
                total += P[i, q] * P[j, q]
            total /= count
            for a in range(j):
                total -= L[i, a] * L[j, a]
            if i == j:
                # Rounding can take away what is left only where the variance is next to nothing.
                L[i, i] = 1.0 / math.sqrt(max(total + variance, 0.5 * variance))
            else:
                L[i, j] = total * L[j, j]


@jit
def _solve(L: Floats, Z: Floats, count: int) -> None:
    """Replace the columns of Z by ``(L Lᵀ)⁻¹`` of them."""
    d = L.shape[0]
    for i in range(d):
        for j in range(i):
            for q in range(count):
                Z[i, q] -= L[i, j] * Z[j, q]
        for q in range(count):
            Z[i, q] *= L[i, i]
    for i in range(d - 1, -1, -1):
        for q in range(count):
            Z[i, q] *= L[i, i]
        for j in range(i):
            for q in range(count):
                Z[j, q] -= L[i, j] * Z[i, q]


@entry
def refine_groups(
    guide: Floats, pilot: Floats, noisy: Floats, corners: Any, lo: int, hi: int, side: int, radius: int,
    variance: float, places: Any, counts: Any, found: Floats,
) -> None:  # fmt: skip
    """Denoise groups of similar patches by the Wiener filter of their second moments in the pilot.

    Per group, ``x̂ = ȳ + C (C + σ²I)⁻¹ (y - ȳ)`` with C the covariance of the group in the pilot.

    Args:
        guide: ``(H, W)``: what patches are compared in.
        pilot: ``(channels, H, W)``: an estimate of the image.
        noisy: ``(channels, H, W)``: what was observed.
        corners: ``(n, 2)``: the patch that each group is gathered around.
        lo: The first group to work on.
        hi: One past the last.
        side: Of a patch.
        radius: How far a group reaches, in pixels.
        variance: σ².
        places: ``(n, members, 2)``: gains the places of each group.
        counts: ``(n,)``: gains how many members it has.
        found: ``(n, channels, members, side²)``: gains the patches.
    """
    d, members = side * side, places.shape[1]
    middle, L = np.empty(d), np.zeros((d, d))
    P, Z = np.empty((d, members)), np.empty((d, members))
    for g in range(lo, hi):
        m = _find_similar(guide, corners[g, 0], corners[g, 1], side, radius, places[g])
        counts[g] = m
        for k in range(noisy.shape[0]):
            _cut(pilot[k], places[g], m, side, P, middle)
            _factor(P, m, variance, L)
            _cut(noisy[k], places[g], m, side, Z, middle)
            for a in range(d):
                for q in range(m):
                    found[g, k, q, a] = Z[a, q] + middle[a]
            _solve(L, Z, m)  # C (C + σ²I)⁻¹ z = z - σ² (C + σ²I)⁻¹ z
            for a in range(d):
                for q in range(m):
                    found[g, k, q, a] -= variance * Z[a, q]


@entry
def add_groups(places: Any, counts: Any, found: Floats, total: Floats, weight: Floats, side: int) -> None:
    """Add the patches of groups to the image: `total` gains them, `weight` how many cover a pixel."""
    for g in range(counts.size):
        for q in range(counts[g]):
            r, c = places[g, q, 0], places[g, q, 1]
            for a in range(side):
                for b in range(side):
                    weight[r + a, c + b] += 1.0
                    for k in range(total.shape[0]):
                        total[k, r + a, c + b] += found[g, k, q, a * side + b]
