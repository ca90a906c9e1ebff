"""Compiled CPU solver of many small dense Lasso problems that share one dictionary.

For every signal y with weights w_j = lam·weights_j it minimizes ½‖y - Dx‖² + Σ w_j|x_j| in rounds:

1. the gradient g = Dᵀ(y - Dx) of all atoms, from the correlation Dᵀy and the Gram rows of the support;
2. the duality gap; stop when it is small enough;
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
    correlate,
    jit,
    newton,
    remove,
    row_length,
    subtract_rows,
    sweep,
)

_CHUNK = 64  # signals a thread takes at once
_BLOCK = 16  # signals whose correlations are computed together, so that D streams through the cache once for all
_START_SIZE = 96  # working-set size that the workspace holds before it has to grow
_SLACK = 1e-13  # relative excess of |g_j| over w_j that counts as rounding
_GROW = 0.7  # atoms above this share of the largest |g_j|/w_j enter the working set
_EARLY_SWEEPS = 6  # sweeps of a round that only collects atoms; the last rounds sweep until the signs rest
_LAST_SWEEPS = 20
_PASSES = 4  # turns of sweeps and Cholesky steps in one round
_CHECK = 1.5  # above this |g_j|/w_j the gap is not worth computing
_IDLE = 8  # certificates in a row without progress that end the work on a signal


@jit
def _support(
    U: Floats,
    inv: Floats,
    A: Indices,
    n: int,
    valid: int,
    x: Floats,
    w: Floats,
    size: int,
    nonnegative: bool,
    seen: Any,
) -> tuple[int, int]:
    """Bring the ordered support A up to date: zeros leave, new atoms are appended, so that the factor stays useful."""
    for k in range(n - 1, -1, -1):
        a = A[k]
        if x[a] != 0.0 or (w[a] == 0.0 and not nonnegative):
            seen[a] = True
        else:
            valid = remove(U, inv, A, n, valid, k)
            n -= 1
    for k in range(size):
        if not seen[k] and (x[k] != 0.0 or (w[k] == 0.0 and not nonnegative)):
            A[n] = k
            n += 1
        seen[k] = False
    return n, valid


@jit
def _ratios(g: Floats, inverse: Floats, scale: float, nonnegative: bool, ratio: Floats) -> float:
    """ratio_j = |g_j|/w_j (non-negative codes: of the positive part); returns the largest."""
    if nonnegative:
        for j in range(g.size):
            ratio[j] = max(g[j], 0.0) * (inverse[j] * scale)
    else:
        for j in range(g.size):
            ratio[j] = abs(g[j]) * (inverse[j] * scale)
    # Non-negative doubles are ordered like their bit patterns; the maximum of integers is what vectorizes.
    bits = ratio.view(np.int64)
    largest = np.int64(0)
    for j in range(g.size):
        largest = max(largest, bits[j])
    worst = 0.0
    if largest > 0:
        bits[0], largest = largest, bits[0]
        worst = float(ratio[0])
        bits[0] = largest
    return worst


@jit
def _violation(
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
def _extend(G: Floats, iq: Floats, W: Indices, size: int, fresh: int, gram: Floats, DT: Floats) -> None:
    """Rows and columns size..fresh of the compact Gram matrix, from the full one or from the atoms themselves."""
    for b in range(size, fresh):
        jb = W[b]
        for a in range(b + 1):
            ja = W[a]
            if gram.shape[0] == 0:
                s = 0.0
                for k in range(DT.shape[1]):
                    s += DT[ja, k] * DT[jb, k]
            else:
                s = gram[jb, ja]
            G[a, b] = s
            G[b, a] = s
        iq[b] = 1.0 / G[b, b] if G[b, b] > 0.0 else 0.0


@jit
def _larger(M: Floats, used: int, cap: int) -> Floats:
    """A copy of the leading block of M in a matrix that has room for `cap` rows."""
    out = np.empty((cap, row_length(cap)))
    for i in range(used):
        for j in range(used):
            out[i, j] = M[i, j]
    return out


@jit
def _solve_chunk(
    D: Floats,
    DT: Floats,
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
    d, m = D.shape
    lazy = gram.shape[0] == 0
    cap = min(m, _START_SIZE)
    G = np.empty((cap, row_length(cap)))
    U = np.empty((cap, row_length(cap)))
    corr, scaled, exponents = np.empty((_BLOCK, m)), np.empty((_BLOCK, d)), np.empty(_BLOCK, np.int64)
    g_row, r_row = np.empty((1, m)), np.empty((1, d))
    g, r = g_row[0], r_row[0]
    ratio, inverse, full_w = np.empty(m), np.empty(m), np.empty(m)
    x, gw, w, iq, v, inv, sup_x = (
        np.empty(m),
        np.empty(m),
        np.empty(m),
        np.empty(m),
        np.empty(m),
        np.empty(m),
        np.empty(m),
    )
    W, A, sup = np.empty(m, np.uint32), np.empty(m, np.uint32), np.empty(m, np.uint32)
    inside, seen = np.zeros(m, np.bool_), np.zeros(m, np.bool_)
    for j in range(m):
        inverse[j] = 1.0 / weights[j] if weights[j] > 0.0 else 0.0
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
            correlate(D, scaled, 0, end - i, corr)
        y, c = scaled[slot], corr[slot]
        up, down = math.ldexp(1.0, exponents[slot]), math.ldexp(1.0, -exponents[slot])
        lam_i = lam[i] * down
        if lam_i < 1e-200:  # beyond any influence on codes of scale one, and 1/lam would overflow
            lam_i = 0.0
        energy = 0.0
        for k in range(d):
            energy += y[k] * y[k]
        # The working set starts with the unpenalized atoms and those of the given codes.
        free = False
        fresh = 0
        for j in range(m):
            wj = weights[j]
            full_w[j] = wj * lam_i if (wj < np.inf and lam_i < np.inf) else (0.0 if wj == 0.0 else np.inf)
            free = free or full_w[j] == 0.0
            value = 0.0
            if start.shape[0] > 0 and full_w[j] < np.inf and not (nonnegative and start[i, j] < 0.0):
                value = start[i, j] * down
            if full_w[j] == 0.0 or value != 0.0:
                W[fresh], x[fresh], inside[j] = j, value, True
                fresh += 1
        size = n = valid = idle = done = 0
        best, rel = np.inf, 0.0
        while True:
            count = 0
            for k in range(fresh):
                if x[k] != 0.0:
                    sup[count], sup_x[count] = W[k], x[k]
                    count += 1
            for k in range(d):
                r[k] = y[k]
            if lazy:
                subtract_rows(DT, sup, sup_x, count, r)
                correlate(D, r_row, 0, 1, g_row)
            else:
                for j in range(m):
                    g[j] = c[j]
                subtract_rows(gram, sup, sup_x, count, g)
            worst = _ratios(g, inverse, 1.0 / lam_i if lam_i > 0.0 else 0.0, nonnegative, ratio)
            if free or worst < _CHECK or done == 0 or done >= max_rounds:
                if free:
                    rel = _violation(g, full_w, norms, sup, sup_x, count, nonnegative, energy)
                else:
                    if not lazy:
                        subtract_rows(DT, sup, sup_x, count, r)
                    rel = _relative_gap(y, r, g, full_w, sup, sup_x, count, worst, energy)
                idle = idle + 1 if rel > 0.9 * best else 0
                best = min(best, rel)
                zero_is_best = count == 0 and worst <= 1.0 + _SLACK and not free
                if rel <= tol or zero_is_best or done >= max_rounds or idle > _IDLE:
                    break
            level = max(1.0 + _SLACK, _GROW * worst)
            for j in range(m):
                if ratio[j] > level and not inside[j]:
                    W[fresh], x[fresh], inside[j] = j, 0.0, True
                    fresh += 1
            if fresh > cap:
                cap = min(m, max(2 * cap, fresh))
                G, U = _larger(G, size, cap), _larger(U, n, cap)
            last = free or level <= 1.0 + _SLACK or fresh == size
            _extend(G, iq, W, size, fresh, gram, DT)
            size = fresh
            for k in range(size):
                gw[k], w[k] = g[W[k]], full_w[W[k]]
            for _ in range(_PASSES if last else 1):
                for _ in range(_LAST_SWEEPS if last else _EARLY_SWEEPS):
                    if not sweep(G, iq, x, gw, w, size, nonnegative):
                        break
                if not last:
                    break
                n, valid = _support(U, inv, A, n, valid, x, w, size, nonnegative, seen)
                n, valid = newton(G, U, inv, A, n, valid, x, gw, w, size, nonnegative, v)
                violated = False
                for k in range(size):
                    violated = violated or (x[k] == 0.0 and (gw[k] if nonnegative else abs(gw[k])) > w[k] * (1 + 1e-9))
                if not violated:
                    break
            done += 1
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
    codes, rounds, gap = np.zeros((n, m)), np.zeros(n, np.int64), np.zeros(n)

    def work(lo: int) -> None:
        hi = min(lo + _CHUNK, n)
        _solve_chunk(
            D, DT, gram, Y, lam, weights, norms, start, bool(nonnegative), float(tol), int(max_rounds), lo, hi,
            codes, rounds, gap
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
