"""Compiled measures of how far codes are from the best: ratios |g_j|/w_j, the duality gap, KKT violations.

The parts of `_kernels_dense.py` that look at gradients.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_jit import jit
from ._kernels_support import Floats, Indices, dot, fetch

forget_stale_kernels()

GROUPS = 64  # of atoms j, j + 64, …; the largest ratio of each is known, so that a search passes over the others
SLACK = 1e-13  # relative excess of |g_j| over w_j that counts as rounding
_ZERO = np.float32(0)
_ABOVE = np.float32(1 + 2.0**-20)  # a ratio that a comparison in float32 still tells from one


@jit
def ratios(g: Any, scale: Any, nonnegative: bool, ratio: Any, tops: Any, bits: Any, top_bits: Any) -> float:
    """ratio_j = |g_j|·scale_j (non-negative codes: of the positive part); tops: the largest of each group.

    Non-negative floats are ordered like their bit patterns, and the maximum of integers is what vectorizes: `bits` and
    `top_bits` are `ratio` and `tops` as int32. (Made outside, since compiling a view takes seconds.)
    """
    if nonnegative:
        for j in range(g.size):
            ratio[j] = max(g[j], _ZERO) * scale[j]
    else:
        for j in range(g.size):
            ratio[j] = abs(g[j]) * scale[j]
    # Of a constant number of groups the loop would be unrolled, and numbers gathered from afar.
    groups = np.uint64(top_bits.size)
    for b in range(groups):
        top_bits[b] = bits[b]
    for first in range(groups, np.uint64(bits.size), groups):
        for b in range(groups):
            top_bits[b] = max(top_bits[b], bits[first + b])
    largest = _ZERO
    for b in range(groups):
        largest = max(largest, tops[b])
    return float(largest)


@jit
def exact_ratios(
    D: Floats,
    DT: Floats,
    ready: Any,
    r: Floats,
    w: Floats,
    scale: Any,
    error: float,
    steepest: float,
    bar: float,
    every: bool,
    inside: Any,
    nonnegative: bool,
    g: Floats,
    ratio: Any,
    tops: Any,
) -> float:
    """Recompute d_jᵀr in float64 for each atom outside the working set whose |g_j|/w_j is not proved to be <= bar.

    The ratios are wrong by at most error·scale_j, and `steepest` is the largest scale. Returns the largest ratio found;
    `ratio` is corrected to the side of one on which the exact value lies.
    """
    worst = 0.0
    for b in range(tops.size):
        if not every and tops[b] + error * steepest <= bar:
            continue
        top = _ZERO
        for j in range(b, inside.size, GROUPS):
            if not inside[j] and (every or not ratio[j] + error * scale[j] <= bar):
                fetch(D, DT, ready, j)
                g[j] = dot(DT[j], r)
                size = max(g[j], 0.0) if nonnegative else abs(g[j])
                value = size / w[j] if w[j] > 0.0 else 0.0
                worst = max(worst, value)
                ratio[j] = max(min(value, 1e30), _ABOVE) if value > 1.0 + SLACK else min(value, 1.0)
            top = max(top, ratio[j])
        tops[b] = top
    return worst


@jit
def relative_gap(
    rr: float, ry: float, g: Floats, w: Floats, sup: Indices, sup_x: Floats, count: int, worst: float, energy: float
) -> float:
    """Duality gap over objective, given rr = ‖r‖² and ry = ⟨r, y⟩, at the dual point θ = αr scaled into |d_jᵀθ| <= w_j.

    ½‖r - θ‖² + Σ(w_j|x_j| - x_j d_jᵀθ) has non-negative terms only, and nothing of the size of ½‖y‖² cancels.
    """
    penalty = 0.0
    inner = 0.0
    for k in range(count):
        penalty += w[sup[k]] * abs(sup_x[k])
        inner += sup_x[k] * g[sup[k]]
    alpha = max(ry / rr, 0.0) if rr > 0.0 else 0.0
    if alpha * worst > 1.0:
        alpha = 1.0 / worst
    gap = max(0.5 * (1.0 - alpha) ** 2 * rr + (penalty - alpha * inner), 0.0)
    scale = max(0.5 * rr + penalty, 0.5e-12 * energy)
    return gap / scale if scale > 0.0 else 0.0


@jit
def largest_inside(g: Floats, w: Floats, size: int, nonnegative: bool) -> float:
    """Largest |g_j|/w_j of the working set (non-negative codes: of the positive part)."""
    worst = 0.0
    for k in range(size):
        value = g[k] if nonnegative else abs(g[k])
        if w[k] > 0.0 and value > worst * w[k]:
            worst = value / w[k]
    return worst


@jit
def violation(
    g: Floats, w: Floats, norms: Floats, sup: Indices, sup_x: Floats, count: int, nonnegative: bool, energy: float
) -> float:
    """Largest KKT violation, as a share of ‖d_j‖‖y‖ (a cosine, whatever the units)."""
    excess = 0.0
    for j in range(g.size):
        if norms[j] > 0.0 and w[j] < np.inf:
            excess = max(excess, ((g[j] if nonnegative else abs(g[j])) - w[j]) / norms[j])
    for k in range(count):
        j = sup[k]
        if norms[j] > 0.0:
            excess = max(excess, abs(g[j] - (w[j] if sup_x[k] > 0.0 else -w[j])) / norms[j])
    return float(excess / math.sqrt(energy)) if energy > 0.0 else float(excess)
