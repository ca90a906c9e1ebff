"""Compiled CPU solver of many small dense Lasso problems that share one dictionary.

For every signal y with weights w_j = lam·weights_j it minimizes ½‖y - Dx‖² + Σ w_j|x_j| in rounds:

1. the gradient of all atoms outside the working set, in float32: from the correlation Dᵀy and the Gram rows of the
   support, with a bound of its error;
2. where it may be small enough, the duality gap in float64: the residual itself and its products with the working set
   and with those few atoms that the error bound does not exclude; stop when it is small enough;
3. a working set grows by the atoms whose |g_j|/w_j exceeds a threshold that falls with the largest of them;
4. on the *compact* Gram matrix of that set, sweeps of coordinate descent find the signs; once the threshold is down
   at one, a Cholesky factor solves the normal equations of the support and walks to the first sign change, where an
   atom is dropped.

Neither half of step 4 increases the objective. The factor survives between rounds: new atoms are new columns, a dropped
atom is rotated out. Threads take chunks of signals and run without the interpreter's lock; no thread outlives the call,
so that a process may fork afterwards. Every signal is solved by the same instructions whatever stands beside it:
results are equal to the last bit for any batch and any number of threads.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._kernels_support import (
    Floats,
    Indices,
    Singles,
    correlate,
    dot,
    extend,
    jit,
    larger,
    largest_inside,
    newton,
    normalized,
    residual,
    row_length,
    subtract_rows,
    sweep,
    update_support,
    violation,
)

_CHUNK = 64  # signals a thread takes at once
_BLOCK = 16  # signals whose correlations are computed together, so that D streams through the cache once for all
_START_SIZE = 96  # working-set size that the workspace holds before it has to grow
_SLACK = 1e-13  # relative excess of |g_j| over w_j that counts as rounding
_GROW = 0.8  # atoms above this share of the largest |g_j|/w_j enter the working set
_GROW_MANY = 0.65  # the same for more atoms than _MANY: rounds, which look at all atoms, are dear there
_MANY = 512
_EARLY_SWEEPS = 6  # sweeps of a round that only collects atoms; the last rounds sweep until the signs rest
_LAST_SWEEPS = 20
_PASSES = 4  # turns of sweeps and Cholesky steps in one round
_GROUPS = 64  # of atoms j, j + 64, …; the largest ratio of each is known, so that a search passes over the others
_ROUNDING = 2.0**-24  # of float32
_ZERO = np.float32(0)
_ABOVE = np.float32(1 + 2.0**-20)  # a ratio that a comparison in float32 still tells from one
_IDLE = 8  # certificates in a row without progress that end the work on a signal


@jit
def _ratios(g: Any, scale: Any, nonnegative: bool, ratio: Any, tops: Any) -> float:
    """ratio_j = |g_j|·scale_j (non-negative codes: of the positive part); tops: the largest of each group."""
    if nonnegative:
        for j in range(g.size):
            ratio[j] = max(g[j], _ZERO) * scale[j]
    else:
        for j in range(g.size):
            ratio[j] = abs(g[j]) * scale[j]
    # Non-negative floats are ordered like their bit patterns; the maximum of integers is what vectorizes.
    bits, top_bits = ratio.view(np.int32), tops.view(np.int32)
    top_bits[:] = bits[:_GROUPS]
    for first in range(_GROUPS, bits.size, _GROUPS):
        for b in range(_GROUPS):
            top_bits[b] = max(top_bits[b], bits[first + b])
    largest = _ZERO
    for b in range(_GROUPS):
        largest = max(largest, tops[b])
    return float(largest)


@jit
def _exact(
    DT: Floats,
    r: Floats,
    inverse: Floats,
    over_lam: float,
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
        for j in range(b, inside.size, _GROUPS):
            if not inside[j] and (every or not ratio[j] + error * scale[j] <= bar):
                g[j] = dot(DT[j], r)
                value = (max(g[j], 0.0) if nonnegative else abs(g[j])) * (inverse[j] * over_lam)
                worst = max(worst, value)
                ratio[j] = max(min(value, 1e30), _ABOVE) if value > 1.0 + _SLACK else min(value, 1.0)
            top = max(top, ratio[j])
        tops[b] = top
    return worst


@jit
def _relative_gap(
    y: Floats, r: Floats, g: Floats, w: Floats, sup: Indices, sup_x: Floats, count: int, worst: float, energy: float
) -> float:
    """Duality gap over objective, at the dual point θ = αr scaled into |d_jᵀθ| <= w_j.

    ½‖r - θ‖² + Σ(w_j|x_j| - x_j d_jᵀθ) has non-negative terms only, and nothing of the size of ½‖y‖² cancels.
    """
    rr = 0.0
    ry = 0.0
    for k in range(r.size):
        rr += r[k] * r[k]
        ry += r[k] * y[k]
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
def _solve_chunk(
    D32: Singles,
    DT: Floats,
    gram32: Singles,
    gram: Floats,
    Y: Floats,
    lam: Floats,
    weights: Floats,
    norms: Floats,
    start: Floats,
    nonnegative: bool,
    tol: float,
    max_rounds: int,
    lo: int,
    hi: int,
    codes: Floats,
    rounds_out: Any,
    gap_out: Floats,
) -> None:
    """Solve signals lo..hi. Compact quantities (x, gw, w, iq, G) are ordered by the working set W; A points into it."""
    d, m = D32.shape
    lazy = gram.shape[0] == 0
    cap = min(m, _START_SIZE)
    G = np.empty((cap, row_length(cap)))
    U = np.empty((cap, row_length(cap)))
    corr, single = np.empty((_BLOCK, m), np.float32), np.empty((_BLOCK, d), np.float32)
    scaled, exponents = np.empty((_BLOCK, d)), np.empty(_BLOCK, np.int64)
    padded = (m + _GROUPS - 1) // _GROUPS * _GROUPS
    g_row, r_row = np.zeros((1, padded), np.float32), np.empty((1, d), np.float32)
    approx, coef = g_row[0], np.empty(m, np.float32)
    ratio, scale, tops = np.zeros(padded, np.float32), np.zeros(padded, np.float32), np.zeros(_GROUPS, np.float32)
    r, g, inverse, full_w, sup_x = np.empty(d), np.empty(m), np.empty(m), np.empty(m), np.empty(m)
    x, gw, w, iq, v, inv = np.empty(m), np.empty(m), np.empty(m), np.empty(m), np.empty(m), np.empty(m)
    W, A, sup = np.empty(m, np.uint32), np.empty(m, np.uint32), np.empty(m, np.uint32)
    inside, seen = np.zeros(m, np.bool_), np.zeros(m, np.bool_)
    steepest = 0.0
    for j in range(m):
        inverse[j] = 1.0 / weights[j] if weights[j] > 0.0 else 0.0
        steepest = max(steepest, inverse[j] * norms[j])
    for i in range(lo, hi):
        slot = (i - lo) % _BLOCK
        if slot == 0:
            end = min(i + _BLOCK, hi)
            for e in range(i, end):
                top = 0.0
                for k in range(d):
                    top = max(top, abs(Y[e, k]))
                # Solve at scale one and scale back: with a power of two neither rounds, and no square overflows.
                exponents[e - i] = min(max(math.frexp(top)[1], -1000), 1000) if top > 0.0 else 0
                down = math.ldexp(1.0, -exponents[e - i])
                for k in range(d):
                    scaled[e - i, k] = Y[e, k] * down
                    single[e - i, k] = scaled[e - i, k]
            if not lazy:
                correlate(D32, single, end - i, corr)
        y, c = scaled[slot], corr[slot]
        up, down = math.ldexp(1.0, exponents[slot]), math.ldexp(1.0, -exponents[slot])
        lam_i = lam[i] * down
        if lam_i < 1e-200:  # beyond any influence on codes of scale one, and 1/lam would overflow
            lam_i = 0.0
        over_lam = 1.0 / lam_i if lam_i > 0.0 else 0.0
        energy = dot(y, y)
        # The working set starts with the unpenalized atoms and those of the given codes.
        free = False
        size = fresh = 0
        for j in range(m):
            wj = weights[j]
            full_w[j] = wj * lam_i if (wj < np.inf and lam_i < np.inf) else (0.0 if wj == 0.0 else np.inf)
            free = free or full_w[j] == 0.0
            scale[j] = min(inverse[j] * norms[j] * over_lam, 1e30)
        for j in range(m if free or start.shape[0] > 0 else 0):
            value = 0.0
            if start.shape[0] > 0 and full_w[j] < np.inf and not (nonnegative and start[i, j] < 0.0):
                value = start[i, j] * down
            if full_w[j] == 0.0 or value != 0.0:
                W[fresh], x[fresh] = j, value
                fresh += 1
        n = valid = idle = done = 0
        grew, started, last, certified = True, False, False, False
        count = 0
        best, rel = np.inf, 0.0
        while True:
            if fresh > cap:
                cap = min(m, max(2 * cap, fresh))
                G, U = larger(G, size, cap), larger(U, n, cap)
            if fresh > size:
                extend(G, iq, W, size, fresh, gram, DT)
            for k in range(size, fresh):
                inside[W[k]], scale[W[k]], w[k] = True, 0.0, full_w[W[k]]
                gw[k] = approx[W[k]] * norms[W[k]]
            if last and not certified:
                residual(DT, y, sup, sup_x, count, r)
            if last or certified:
                for k in range(size if certified else 0, fresh):
                    gw[k] = dot(DT[W[k]], r)
            size = fresh
            if started:
                for _ in range(_PASSES if last else 1):
                    for _ in range(_LAST_SWEEPS if last else _EARLY_SWEEPS):
                        if not sweep(G, iq, x, gw, w, size, nonnegative):
                            break
                    if not last:
                        break
                    n, valid = update_support(U, inv, A, n, valid, x, w, size, nonnegative, seen)
                    n, valid = newton(G, U, inv, A, n, valid, x, gw, w, size, nonnegative, v)
                    violated = False
                    for k in range(size):
                        outside = x[k] == 0.0 and (gw[k] if nonnegative else abs(gw[k])) > w[k] * (1 + 1e-9)
                        violated = violated or outside
                    if not violated:
                        break
                done += 1
            started = True
            # Outside the working set: the gradient of the normalized atoms in float32, with a bound of its error.
            count, load = 0, math.sqrt(energy)
            for k in range(size):
                if x[k] != 0.0:
                    sup[count], sup_x[count] = W[k], x[k]
                    coef[count] = x[k] * norms[W[k]]
                    load += abs(x[k]) * norms[W[k]]
                    count += 1
            if lazy:
                residual(DT, y, sup, sup_x, count, r)
                r_row[0] = r
                correlate(D32, r_row, 1, g_row)
            else:
                approx[:m] = c
                subtract_rows(gram32, sup, coef, count, approx[:m])
            error = _ROUNDING * (d + count + 8) * load
            worst = _ratios(approx, scale, nonnegative, ratio, tops)
            # The gap is at least the share (1 - 1/worst)² of the objective: there is often no need to compute it.
            hopeless = worst > 1.0 and (1.0 - 1.0 / worst) ** 2 > max(tol, 1e-8)
            top_scale = steepest * over_lam
            vague = not error * top_scale < 0.05
            unknown = done == 0 and size > 0  # the gradient of the start's atoms
            certified = free or vague or unknown or not hopeless or not grew or done >= max_rounds
            if certified:
                residual(DT, y, sup, sup_x, count, r)
                for k in range(size):
                    gw[k] = dot(DT[W[k]], r)
                    g[W[k]] = gw[k]
                worst = largest_inside(gw, w, size, nonnegative)
                ry = dot(r, y)
                # Ratios below rr/ry do not bound the dual point, those below the largest known one do not matter.
                bar = max(worst, dot(r, r) / ry if ry > 0.0 else 0.0)
                found = _exact(
                    DT, r, inverse, over_lam, scale, error, top_scale, bar, free, inside, nonnegative, g, ratio, tops
                )
                worst = max(worst, found)
                if free:
                    rel = violation(g, full_w, norms, sup, sup_x, count, nonnegative, energy)
                else:
                    rel = _relative_gap(y, r, g, full_w, sup, sup_x, count, worst, energy)
                # Rounds that only collect atoms may leave the gap as it is.
                idle = idle + 1 if rel > 0.9 * best and last and not (free and grew) else 0
                best = min(best, rel)
                zero_is_best = count == 0 and worst <= 1.0 + _SLACK and not free
                if rel <= tol or zero_is_best or done >= max_rounds or idle > _IDLE:
                    break
            level = max(1.0 + _SLACK, (_GROW if m <= _MANY else _GROW_MANY) * worst)
            for b in range(tops.size):
                if tops[b] > level:
                    for j in range(b, m, _GROUPS):
                        if ratio[j] > level and not inside[j]:
                            W[fresh], x[fresh] = j, 0.0
                            fresh += 1
            grew = fresh > size
            last = free or level <= 1.0 + _SLACK or not grew
        for k in range(fresh):
            codes[i, W[k]] = x[k] * up
            inside[W[k]] = False
        rounds_out[i] = done
        gap_out[i] = rel


def _plain(a: Floats) -> Floats:
    """The one kind of array that the kernel is compiled for: contiguous, writeable, float64."""
    return np.require(a, np.float64, ("C_CONTIGUOUS", "WRITEABLE"))


def solve_batch(
    D: Floats,
    gram: Floats | None,
    Y: Floats,
    lam: Floats,
    weights: Floats,
    nonnegative: bool = False,
    tol: float = 1e-6,
    max_rounds: int = 200,
    start: Floats | None = None,
    threads: int | None = None,
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Minimize ½‖y_i - Dx_i‖² + lam_i Σ_j weights_j|x_ij| for every signal y_i.

    Args:
        D: Dictionary ``(d, m)``; finite.
        gram: DᵀD ``(m, m)``, or None to compute the entries that are needed (many atoms, few signals).
        Y: Signals ``(n, d)``; finite.
        lam: Penalty ``(n,)``, >= 0 or inf.
        weights: Per-atom factors ``(m,)``; 0 leaves an atom unpenalized (whatever lam), inf keeps its code at zero.
        nonnegative: Restrict the codes to x >= 0.
        tol: A signal is done when its duality gap is <= tol·objective (the objective is taken as at least 1e-12·½‖y‖²).
            With an unpenalized atom: when the largest KKT violation is <= tol·‖d_j‖‖y‖.
        max_rounds: Most working-set rounds per signal.
        start: Codes ``(n, m)`` to start from; values that the problem forbids count as zero.
        threads: Number of threads; None: one per processor.

    Returns:
        Codes ``(n, m)``, rounds ``(n,)``, and the last relative gap (or violation) ``(n,)``. A signal converged where
        it is <= tol; otherwise it ran into ``max_rounds`` or into the accuracy of float64.

    Source: relative gap as in G5 of docs/theory.md; working sets and the walk to the first sign change: active-set
    method of Osborne, Presnell and Turlach (2000).
    """
    n, m = Y.shape[0], D.shape[1]
    D, Y, lam, weights = _plain(D), _plain(Y), _plain(lam), _plain(weights)
    gram = _plain(np.empty((0, 0)) if gram is None else gram)
    start = _plain(np.empty((0, m)) if start is None else start)
    DT = np.ascontiguousarray(D.T)
    norms = np.linalg.norm(D, axis=0)
    unit = np.divide(1.0, norms, out=np.zeros(m), where=norms > 0)
    D32, gram32 = np.empty(D.shape, np.float32), np.empty(gram.shape, np.float32)
    normalized(D, np.ones(len(D)), unit, D32)
    normalized(gram, unit, unit, gram32)
    codes, rounds, gap = np.zeros((n, m)), np.zeros(n, np.int64), np.zeros(n)

    def work(lo: int) -> None:
        hi = min(lo + _CHUNK, n)
        _solve_chunk(
            D32, DT, gram32, gram, Y, lam, weights, norms, start, bool(nonnegative), float(tol), int(max_rounds),
            lo, hi, codes, rounds, gap
        )  # fmt: skip

    chunks = range(0, n, _CHUNK)
    threads = min((os.cpu_count() or 1) if threads is None else threads, len(chunks))
    if threads <= 1:
        for lo in chunks:
            work(lo)
        return codes, rounds, gap
    with ThreadPoolExecutor(threads) as pool:
        try:
            for _ in pool.map(work, chunks):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return codes, rounds, gap
