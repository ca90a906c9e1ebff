"""Compiled CPU solver of dense Lasso problems that share one dictionary: many small ones, or a few with many atoms.

For every signal y with mask M and weights w_j = lam·weights_j it minimizes ½‖y - M D x‖² + Σ w_j|x_j| in rounds:

1. the gradient of all atoms outside the working set, in float32, with a bound of its error: from the correlation Dᵀy
   and the Gram rows of the support, or, without a Gram matrix, as the product of all atoms with the residual;
2. where it may be small enough, the duality gap in float64: the residual itself and its products with the working set
   and with those few atoms that the error bound does not exclude; stop when it is small enough;
3. a working set grows by the atoms whose |g_j|/w_j exceeds a threshold that falls with the largest of them;
4. on the *compact* Gram matrix of that set, sweeps of coordinate descent find the signs; once the threshold is down
   at one, a Cholesky factor solves the normal equations of the support and walks to the first sign change, where an
   atom is dropped.

Neither half of step 4 increases the objective. The factor survives between rounds: new atoms are new columns, a dropped
atom is rotated out. Along a path of falling lams the working set, the codes, the gradient and the factor stay as the
lam before left them. Threads take chunks of signals and run without the interpreter's lock; no thread outlives the
call, so that a process may fork afterwards. Every signal is solved by the same instructions whatever stands beside it:
results are equal to the last bit for any batch and any number of threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_gap import GROUPS, SLACK, exact_ratios, largest_inside, ratios, relative_gap, violation
from ._kernels_jit import entry, uncollected
from ._kernels_set import compact, extend, larger, sweep
from ._kernels_support import (
    Floats,
    Singles,
    copy,
    correlate,
    dot,
    exponent,
    fetch,
    masked_norms,
    newton,
    normalized,
    residual,
    row_length,
    squared_mask,
    subtract_rows,
    unit_atoms,
    update_support,
)

forget_stale_kernels()

CHUNK = 64  # signals a thread takes at once
_BLOCK = 16  # signals whose correlations are computed together, so that D streams through the cache once for all
_PART = 2048  # atoms a thread prepares at once
_COLUMNS_EACH = 256  # atoms for each signal from which columns are copied only as they come into use
_START_SIZE = 96  # working-set size that the workspace holds before it has to grow
_GROW = 0.8  # atoms above this share of the largest |g_j|/w_j enter the working set
_GROW_MANY = 0.65  # the same for more atoms than _MANY: rounds, which look at all atoms, are dear there
_MANY = 512
_EARLY_SWEEPS = 6  # sweeps of a round that only collects atoms; the last rounds sweep until the signs rest
_LAST_SWEEPS = 20
_PASSES = 4  # turns of sweeps and Cholesky steps in one round
_ROUNDING = 2.0**-24  # of float32
_STEEPEST = 1e13  # weights below ‖d_j‖ over this, for signals of size one, drown in rounding: they count as this much
_STALE = 1.5  # a working set this many times as large as the support is cut down to it before the next lam
_IDLE = 8  # certificates in a row without progress that end the work on a signal


@entry
def _solve_chunk(
    D32: Singles,
    D: Floats,
    DT: Floats,
    ready: Any,
    gram32: Singles,
    gram: Floats,
    Y: Floats,
    masks: Floats,
    lams: Floats,
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
    ratio: Singles,
    tops: Singles,
    bits: Any,
    top_bits: Any,
    room: Any,
) -> None:
    """Solve signals lo..hi. Compact quantities (x, gw, w, iq, G) are ordered by the working set W; A points into it."""
    d, m = D32.shape
    lazy, masked = gram.shape[0] == 0, masks.shape[0] > 0
    corr, single, scaled, g_row, r_row, places, flags, exponents = room
    # Floats that inner loops use are allocated here: only then does the compiler know that they do not overlap.
    cap, padded = min(m, _START_SIZE), ratio.size
    G = np.empty((cap, row_length(cap)))
    U = np.empty((cap, row_length(cap)))
    approx, scale, coef = np.empty(padded, np.float32), np.empty(padded, np.float32), np.empty(m, np.float32)
    for j in range(m, padded):
        approx[j], scale[j] = 0, 0
    r, g, full_w, sup_x = np.empty(d), np.empty(m), np.empty(m), np.empty(m)
    slope, floor, own = np.empty(m), np.empty(m), norms
    x, gw, w, iq, v, inv = np.empty(m), np.empty(m), np.empty(m), np.empty(m), np.empty(m), np.empty(m)
    W, A, sup = places[0], places[1], places[2]
    inside, seen = flags[0], flags[1]
    # With a mask r is M times the residual M(y - Dx), so that its products with the atoms of D are the gradient.
    mask, square, plain = Y[0], np.empty(d if masked else 0), np.empty(d if masked else 0)
    steepest = top_mask = 1.0
    row, any_free = weights[0], False
    for i in range(lo, hi):
        slot = (i - lo) % _BLOCK
        if slot == 0:
            end = min(i + _BLOCK, hi)
            for e in range(i, end):
                exponents[e - i] = exponent(Y[e])
                down = math.ldexp(1.0, -exponents[e - i])
                for k in range(d):
                    scaled[e - i, k] = Y[e, k] * down
            if not lazy:
                for e in range(end - i):
                    copy(scaled[e], d, single[e])
                correlate(D32, single, end - i, corr)
        if i == lo or weights.shape[0] > 1:
            row = weights[i if weights.shape[0] > 1 else 0]
            steepest, any_free = 0.0, False
            for j in range(m):
                slope[j] = norms[j] / row[j] if row[j] > 0.0 else 0.0
                floor[j] = max(norms[j] * (1.0 / _STEEPEST), 1e-300) if row[j] > 0.0 else 0.0
                steepest = max(steepest, slope[j])
                any_free = any_free or row[j] == 0.0
        if masked:
            mask = masks[i]
            top_mask = squared_mask(mask, square)
        y = scaled[slot]
        up, down = math.ldexp(1.0, exponents[slot]), math.ldexp(1.0, -exponents[slot])
        energy = dot(y, y)
        # Not a plain 0: callees would be compiled once more for the literal.
        size = fresh = n = valid = count = np.int64(0)
        error, known = 0.0, False
        for step in range(lams.shape[0]):
            lam = lams[step, i] * down
            if 0.0 < lam < 1e-200:  # beyond any influence on codes of scale one, and 1/lam would overflow
                lam = 1e-200
            if step > 0 and size > _STALE * count:
                size = fresh = compact(G, iq, x, gw, W, size, A, n, seen, inside, places[3], places[4])
            over_lam = 1.0 / lam if lam > 0.0 else 0.0
            free = any_free or lam == 0.0
            for j in range(m):
                scale[j] = min(slope[j] * over_lam, _STEEPEST)
            if 0.0 < lam < np.inf:
                for j in range(m):
                    full_w[j] = max(row[j] * lam, floor[j])
            else:
                for j in range(m):
                    full_w[j] = 0.0 if row[j] == 0.0 or (lam == 0.0 and row[j] < np.inf) else np.inf
            top_scale = min(steepest * over_lam, _STEEPEST)
            # The working set starts with the unpenalized atoms and those of the given codes.
            given = step == 0 and start.shape[0] > 0
            for j in range(m if free or given else 0):
                value = 0.0
                if given and full_w[j] < np.inf and not (nonnegative and start[i, j] < 0.0):
                    value = start[i, j] * down
                if (full_w[j] == 0.0 and not inside[j]) or value != 0.0:
                    W[fresh], x[fresh] = j, value
                    fresh += 1
            for k in range(size):
                scale[W[k]], w[k] = 0.0, full_w[W[k]]
            if masked and free:
                own = np.empty(m)
                masked_norms(DT, square, own)
            done = idle = 0
            grew, started, last, exact = True, False, False, known
            best, rel = np.inf, 0.0
            while True:
                if fresh > cap:
                    cap = min(m, max(2 * cap, fresh))
                    G, U = larger(G, size, cap), larger(U, n, cap)
                if fresh > size:
                    for k in range(size, fresh):
                        fetch(D, DT, ready, np.int64(W[k]))
                    extend(G, iq, W, size, fresh, gram, DT, square)
                for k in range(size, fresh):
                    inside[W[k]], scale[W[k]], w[k] = True, 0.0, full_w[W[k]]
                    gw[k] = approx[W[k]] * norms[W[k]]
                if last and not exact:
                    residual(DT, y, mask, masked, sup, sup_x, count, r, plain)
                if last or exact:
                    for k in range(size if exact else 0, fresh):
                        gw[k] = dot(DT[W[k]], r)
                size = fresh
                if started:
                    known = False
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
                if not known:
                    # Outside the working set: the gradient of the normalized atoms in float32, with an error bound.
                    count, load = np.int64(0), 0.0
                    for k in range(size):
                        if x[k] != 0.0:
                            sup[count], sup_x[count] = W[k], x[k]
                            coef[count] = x[k] * norms[W[k]]
                            load += abs(x[k]) * norms[W[k]]
                            count += 1
                    if lazy:
                        residual(DT, y, mask, masked, sup, sup_x, count, r, plain)
                        copy(r, d, r_row[0])
                        correlate(D32, r_row, np.int64(1), g_row)
                        copy(g_row[0], m, approx)
                    else:
                        copy(corr[slot], m, approx)
                        subtract_rows(gram32, sup, coef, count, approx[:m])
                    error = _ROUNDING * (d + count + 8) * (math.sqrt(energy) + load * top_mask) * top_mask
                worst = ratios(approx, scale, nonnegative, ratio, tops, bits, top_bits)
                # The gap is at least the share (1 - 1/worst)² of the objective: there is often no need to compute it.
                hopeless = worst > 1.0 and (1.0 - 1.0 / worst) ** 2 > max(tol, 1e-8)
                vague = not error * top_scale < 0.05
                unknown = done == 0 and size > 0 and not known  # the gradient of the start's atoms
                certified = free or vague or unknown or not hopeless or not grew or done >= max_rounds
                exact = certified or known
                if certified:
                    residual(DT, y, mask, masked, sup, sup_x, count, r, plain)
                    for k in range(size):
                        gw[k] = dot(DT[W[k]], r)
                        g[W[k]] = gw[k]
                    worst = largest_inside(gw, w, size, nonnegative)
                    norm2, ry = (dot(plain, plain), dot(plain, y)) if masked else (dot(r, r), dot(r, y))
                    # Ratios below rr/ry do not bound the dual point, those below the largest known do not matter.
                    bar = max(worst, norm2 / ry if ry > 0.0 else 0.0)
                    found = exact_ratios(
                        D, DT, ready, r, full_w, scale, error, top_scale, bar, free, inside, nonnegative, g, ratio, tops
                    )
                    worst = max(worst, found)
                    if free:
                        rel = violation(g, full_w, own, sup, sup_x, count, nonnegative, energy)
                    else:
                        rel = relative_gap(norm2, ry, g, full_w, sup, sup_x, count, worst, energy)
                    # Rounds that only collect atoms may leave the gap as it is.
                    idle = idle + 1 if rel > 0.9 * best and last and not (free and grew) else 0
                    best = min(best, rel)
                    zero_is_best = count == 0 and worst <= 1.0 + SLACK and not free
                    if rel <= tol or zero_is_best or done >= max_rounds or idle > _IDLE:
                        break
                level = max(1.0 + SLACK, (_GROW if m <= _MANY else _GROW_MANY) * worst)
                for b in range(tops.size):
                    if tops[b] > level:
                        for j in range(b, m, GROUPS):
                            if ratio[j] > level and not inside[j]:
                                W[fresh], x[fresh] = j, 0.0
                                fresh += 1
                grew = fresh > size
                last = free or level <= 1.0 + SLACK or not grew
            known = True
            for k in range(fresh):
                codes[step, i, W[k]] = x[k] * up
            rounds_out[step, i] = done
            gap_out[step, i] = rel
        for k in range(fresh):
            inside[W[k]] = False


def plain(a: Floats) -> Floats:
    """The one kind of array that the kernel is compiled for: contiguous, writeable, float64."""
    return np.require(a, np.float64, ("C_CONTIGUOUS", "WRITEABLE"))


def prepare(D: Floats, threads: int | None) -> tuple[Floats, Floats, Singles]:
    """Return the norms of the atoms, one over them (0 for atoms of zero), and the atoms over their norms in float32."""
    m = D.shape[1]
    norms, unit, D32 = np.empty(m), np.empty(m), np.empty(D.shape, np.float32)
    with uncollected(unit_atoms):
        run_chunks(lambda lo: unit_atoms(D, lo, min(lo + _PART, m), norms, unit, D32), m, threads, _PART)
    return norms, unit, D32


def _room(d: int, m: int, block: int) -> tuple[Any, ...]:
    """Return further arrays for work on a chunk. Made here, since compiling this in a kernel takes seconds."""
    return (
        *(np.empty((block, m), np.float32), np.empty((block, d), np.float32), np.empty((_BLOCK, d))),
        *(np.empty((1, m), np.float32), np.empty((1, d), np.float32)),
        *(np.empty((5, m), np.uint32), np.zeros((2, m), np.bool_), np.empty(_BLOCK, np.int64)),
    )


def run_chunks(work: Callable[[int], None], count: int, threads: int | None, size: int = CHUNK) -> None:
    """Call `work` with the first signal of every chunk, on several threads (None: one per processor)."""
    chunks = range(0, count, size)
    threads = min((os.cpu_count() or 1) if threads is None else threads, len(chunks))
    if threads <= 1:
        for lo in chunks:
            work(lo)
        return
    with ThreadPoolExecutor(threads) as pool:
        try:
            for _ in pool.map(work, chunks):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


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
    masks: Floats | None = None,
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Minimize ½‖y_i - M_i D x_i‖² + lam_i Σ_j weights_ij|x_ij| for every signal y_i.

    Args:
        D: Dictionary ``(d, m)``; finite.
        gram: DᵀD ``(m, m)``, or None to compute the entries that are needed (many atoms, few signals).
        Y: Signals ``(n, d)``; finite; already under their masks.
        lam: Penalty ``(n,)``, >= 0 or inf; or a path ``(steps, n)`` that falls, each step started from the one before.
        weights: Factors per atom ``(m,)``, or per signal and atom ``(n, m)``; 0 leaves an atom unpenalized (whatever
            lam), inf keeps its code at zero.
        nonnegative: Restrict the codes to x >= 0.
        tol: A signal is done when its duality gap is <= tol·objective (the objective is taken as at least 1e-12·½‖y‖²).
            With an unpenalized atom: when the largest KKT violation is <= tol·‖d_j‖‖y‖.
        max_rounds: Most working-set rounds per signal and step of the path.
        start: Codes ``(n, m)`` to start from; values that the problem forbids count as zero.
        threads: Number of threads; None: one per processor.
        masks: Factors >= 0 on the entries of each signal ``(n, d)``; only with ``gram=None``.

    Returns:
        Codes ``(n, m)``, rounds ``(n,)``, and the last relative gap (or violation) ``(n,)``, for a path each with a
        leading axis of steps. A signal converged where the gap is <= tol; otherwise it ran into ``max_rounds`` or into
        the accuracy of float64.

    Source: relative gap as in G5 of docs/theory.md; working sets and the walk to the first sign change: active-set
    method of Osborne, Presnell and Turlach (2000).
    """
    n, (d, m) = Y.shape[0], D.shape
    D, Y, lams, weights = plain(D), plain(Y), plain(np.atleast_2d(lam)), plain(np.atleast_2d(weights))
    gram = plain(np.empty((0, 0)) if gram is None else gram)
    start = plain(np.empty((0, m)) if start is None else start)
    masks = plain(np.empty((0, d)) if masks is None else masks)
    norms, unit, D32 = prepare(D, threads)
    gram32 = np.empty(gram.shape, np.float32)
    with uncollected(normalized):
        normalized(gram, unit, unit, gram32)
    # Few signals use few of many atoms: columns are copied as they come into use. One chunk, so one thread, fills them.
    penalized = bool(lams.size) and bool(weights.size) and lams.min() > 0.0 and weights.min() > 0.0
    few = not gram.size and n <= CHUNK and n * _COLUMNS_EACH <= m and penalized and not masks.size
    DT = np.empty((m, d)) if few else np.ascontiguousarray(D.T)
    ready = np.zeros(m if few else 0, np.bool_)
    steps = len(lams)
    codes, rounds, gap = np.zeros((steps, n, m)), np.zeros((steps, n), np.int64), np.zeros((steps, n))

    rooms: list[tuple[Any, ...]] = []  # for the next chunks; as many as there are threads

    def work(lo: int) -> None:
        hi = min(lo + CHUNK, n)
        room = rooms.pop() if rooms else _room(d, m, _BLOCK if gram.size else 1)
        ratio, tops = np.zeros(-(-m // GROUPS) * GROUPS, np.float32), np.zeros(GROUPS, np.float32)
        _solve_chunk(
            D32, D, DT, ready, gram32, gram, Y, masks, lams, weights, norms, start, bool(nonnegative), float(tol),
            int(max_rounds), lo, hi, codes, rounds, gap, ratio, tops, ratio.view(np.int32), tops.view(np.int32), room
        )  # fmt: skip
        rooms.append(room)

    with uncollected(_solve_chunk):
        run_chunks(work, n, threads)
    return (codes, rounds, gap) if np.ndim(lam) == 2 else (codes[0], rounds[0], gap[0])
