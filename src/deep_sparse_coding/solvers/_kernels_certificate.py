"""Compiled certificate of dense codes: objective and duality gap at the scaled residual, from the codes alone.

Per signal the residual takes the atoms in use only. Correlations with all atoms are computed in float32 with a bound of
their error, and those that may decide how far the residual must be scaled once more in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_dense import CHUNK, plain, prepare, run_chunks
from ._kernels_gap import GROUPS, exact_ratios, ratios
from ._kernels_jit import entry, uncollected
from ._kernels_support import Floats, Singles, copy, correlate, dot, exponent, residual

forget_stale_kernels()

_BLOCK = 16  # signals whose correlations are computed together
_ROUNDING = 2.0**-24  # of float32


@entry
def _assess_chunk(
    D32: Singles,
    DT: Floats,
    Y: Floats,
    X: Floats,
    masks: Floats,
    lams: Floats,
    weights: Floats,
    norms: Floats,
    nonnegative: bool,
    objective: Floats,
    gap: Floats,
    ratio: Singles,
    tops: Singles,
    bits: Any,
    top_bits: Any,
    room: Any,
) -> None:
    """Assess the signals of a chunk; NaN stands for a gap that is left to the plain assessor."""
    m, d = DT.shape
    n, masked = Y.shape[0], masks.shape[0] > 0
    single, corr, R, squares, columns, coef, lines, scales, used, flags, counts, exponents = room
    g, w, scale, approx, inside, ready = columns[0], columns[1], scales[0], scales[1], flags[0], flags[0][:0]
    mask, bare, never = lines[0], lines[1], n < 0
    before, steepest = np.nan, np.inf
    for first in range(0, n, _BLOCK):
        end = min(first + _BLOCK, n)
        for i in range(first, end):
            sup, sup_x, row, count = used[i - first], coef[i - first], X[i], np.int64(0)
            for j in range(m):
                sup[count], sup_x[count] = j, row[j]
                count += row[j] != 0.0
                if count == m:
                    break
            counts[i - first] = count
            r, y = R[i - first], Y[i]
            if masked:
                copy(masks[i], d, mask)
            residual(DT, y, mask, masked, sup, sup_x, count, r, bare)
            squares[i - first, 0] = dot(bare, bare) if masked else dot(r, r)
            squares[i - first, 1] = dot(bare, y) if masked else dot(r, y)
            exponents[i - first] = exponent(r)
            down = math.ldexp(1.0, -exponents[i - first])
            for k in range(d):
                single[i - first, k] = r[k] * down
        correlate(D32, single, end - first, corr)
        for i in range(first, end):
            r, up, lam = R[i - first], math.ldexp(1.0, exponents[i - first]), lams[i]
            if lam != before or weights.shape[0] > 1:
                before, steepest, row = lam, 0.0, weights[i if weights.shape[0] > 1 else 0]
                for j in range(m):
                    w[j] = row[j] * lam
                    steep = norms[j] / w[j]
                    scale[j] = steep
                    steepest = max(steepest, steep)
            sup, sup_x, count = used[i - first], coef[i - first], counts[i - first]
            penalty = worst = 0.0
            for k in range(count):
                j = sup[k]
                inside[j] = True
                g[j] = dot(DT[j], r)
                size = max(g[j], 0.0) if nonnegative else abs(g[j])
                worst = max(worst, size / w[j])
                penalty += w[j] * abs(sup_x[k])
            rr, ry = squares[i - first, 0], squares[i - first, 1]
            objective[i] = 0.5 * rr + penalty
            gap[i] = np.nan
            # Written so that NaN fails as well.
            if rr < np.inf and ry >= 0.0 and 1e-30 < up < 1e30 and steepest < 1e30 and objective[i] < np.inf:
                best = ry / rr if rr > 0.0 else 0.0
                whole = np.float32(up)
                for j in range(m):
                    approx[j] = corr[i - first, j] * whole
                for k in range(count):
                    approx[sup[k]] = 0
                largest = ratios(approx, scale, nonnegative, ratio, tops, bits, top_bits)
                error = _ROUNDING * (d + 16) * math.sqrt(dot(r, r))
                # Ratios below 1/best do not bound the dual point, those below the largest known do not matter.
                bar = max(worst, 1.0 / best if best > 0.0 else 0.0, largest - 2.0 * error * steepest)
                found = exact_ratios(
                    DT, DT, ready, r, w, scale, error, steepest, bar, never, inside, nonnegative, g, ratio, tops
                )  # fmt: skip
                worst = max(worst, found)
                alpha = min(best, 1.0 / worst) if worst > 0.0 else best
                total = 0.5 * (1.0 - alpha) ** 2 * rr
                for k in range(count):
                    j = sup[k]
                    total += max(w[j] * abs(sup_x[k]) - sup_x[k] * alpha * g[j], 0.0)
                gap[i] = total
            for k in range(count):
                inside[sup[k]] = False


def _room(d: int, m: int) -> tuple[Any, ...]:
    """Return the arrays that work on a chunk needs. Made here, since compiling this in a kernel takes seconds."""
    padded = -(-m // GROUPS) * GROUPS
    return (
        *(np.empty((_BLOCK, d), np.float32), np.empty((_BLOCK, m), np.float32)),
        *(np.empty((_BLOCK, d)), np.empty((_BLOCK, 2)), np.empty((2, m)), np.empty((_BLOCK, m)), np.empty((2, d))),
        *(np.zeros((2, padded), np.float32), np.empty((_BLOCK, m), np.uint32), np.zeros((1, m), np.bool_)),
        *(np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)),
    )


def assess_batch(
    D: Floats,
    Y: Floats,
    X: Any,
    lam: Floats,
    weights: Floats,
    nonnegative: bool = False,
    threads: int | None = None,
    masks: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Return the objective ½‖y - M D x‖² + lam Σ_j weights_j|x_j| and the duality gap of every signal.

    Args:
        D: Dictionary ``(d, m)``; finite.
        Y: Signals ``(n, d)``; finite; already under their masks.
        X: Codes ``(n, m)``, float64 or float32. Codes that are negative or forbidden where they may not be are the
            caller's to find.
        lam: Penalty ``(n,)``, > 0.
        weights: Factors per atom ``(1, m)`` or ``(n, m)``, > 0 or inf.
        nonnegative: Whether x >= 0 is asked for.
        threads: Number of threads; None: one per processor.
        masks: Factors on the entries of each signal ``(n, d)``, or None.

    Returns:
        Objective and gap ``(n,)``. The gap is NaN where the plain assessor must be asked: numbers out of range, or
        codes whose residual has a negative product with the signal.

    Source: G5 of docs/theory.md.
    """
    n, (d, m) = len(Y), D.shape
    D = plain(D)
    X = np.require(X, None, ("C_CONTIGUOUS", "WRITEABLE"))
    DT = np.ascontiguousarray(D.T)
    norms, _, D32 = prepare(D, threads)
    objective, gap = np.empty(n), np.empty(n)
    Y, lam, weights = plain(Y), plain(lam), plain(weights)
    exact, none = X.dtype == np.float64, np.empty((0, d))
    masks = none if masks is None else plain(masks)

    def work(lo: int) -> None:
        part = slice(lo, min(lo + CHUNK, n))
        ratio, tops = np.zeros(-(-m // GROUPS) * GROUPS, np.float32), np.zeros(GROUPS, np.float32)
        _assess_chunk(
            D32, DT, Y[part], X[part] if exact else X[part].astype(np.float64), masks[part], lam[part],
            weights[part] if len(weights) > 1 else weights, norms, bool(nonnegative), objective[part], gap[part],
            ratio, tops, ratio.view(np.int32), tops.view(np.int32), _room(d, m)
        )  # fmt: skip

    with uncollected(_assess_chunk):
        run_chunks(work, n, threads)
    return objective, gap
