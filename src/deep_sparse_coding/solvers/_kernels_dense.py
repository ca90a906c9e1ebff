"""Compiled CPU solver of many small dense Lasso problems that share one dictionary.

For every signal y with weights w_j = lam·weights_j it minimizes ½‖y - Dx‖² + Σ w_j|x_j| in rounds:

1. the gradient g = Dᵀ(y - Dx) of all atoms, from the correlation Dᵀy and the Gram rows of the support;
2. the duality gap; stop when it is small enough;
3. a working set grows by the atoms whose |g_j|/w_j exceeds a threshold that falls with the largest of them;
4. on the *compact* Gram matrix of that set: a few sweeps of coordinate descent find the signs, then a Cholesky
   factorization solves the normal equations of the support, walking to the first sign change and dropping that atom.

Both parts of step 4 never increase the objective. The factorization survives between rounds and is extended by columns.
Threads take chunks of signals and run without the interpreter's lock; no thread pool outlives the call, so that a
process may fork afterwards. Every signal is solved by the same instructions whatever the batch: results are equal to
the last bit for any batch size and thread count.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba  # noqa: TID253  (this module is itself imported on first use)
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CHUNK = 64  # signals a thread takes at once
_BLOCK = 16  # signals whose correlations are computed together, so that D streams through the cache once for all
_PIVOT = 1e-13  # a squared pivot below this share of ‖d_j‖² is rounding: the atom lies in the span of the others
_SLACK = 1e-13  # relative excess of |g_j| over w_j that counts as rounding
_GROW = 0.6  # atoms above this share of the largest |g_j|/w_j enter the working set
_SWEEPS = 3
_PASSES = 2
_SIGN_BIT = 0x7FFFFFFFFFFFFFFF

_jit: Any = numba.njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}, boundscheck=False
)


def _odd_lines(size: int) -> int:
    """Smallest row length >= size that is an odd number of 64-byte lines: columns then spread over all cache sets."""
    lines = (size + 7) // 8
    return 8 * (lines + 1 - lines % 2)


_odd = _jit(_odd_lines)


@_jit
def _correlate(D: Floats, Y: Floats, lo: int, hi: int, out: Floats) -> None:
    """out[i] = Dᵀ Y[lo + i]; eight rows of D stay in the cache while all signals of the block use them."""
    d, m = D.shape
    out[: hi - lo] = 0.0
    whole = d - d % 8
    for k in range(0, whole, 8):
        for i in range(lo, hi):
            row = out[i - lo]
            y0, y1, y2, y3 = Y[i, k], Y[i, k + 1], Y[i, k + 2], Y[i, k + 3]
            y4, y5, y6, y7 = Y[i, k + 4], Y[i, k + 5], Y[i, k + 6], Y[i, k + 7]
            for j in range(m):
                row[j] += (y0 * D[k, j] + y1 * D[k + 1, j] + y2 * D[k + 2, j] + y3 * D[k + 3, j]) + (
                    y4 * D[k + 4, j] + y5 * D[k + 5, j] + y6 * D[k + 6, j] + y7 * D[k + 7, j]
                )
    for k in range(whole, d):
        for i in range(lo, hi):
            row = out[i - lo]
            y0 = Y[i, k]
            for j in range(m):
                row[j] += y0 * D[k, j]


@_jit
def _subtract_rows(
    M: Floats, rows: NDArray[np.uint32], coef: Floats, count: int, out: Floats, lo: int, hi: int
) -> None:
    """out[lo:hi] -= Σ_k coef[k]·M[rows[k], lo:hi], four rows at a time to save loads and stores of `out`."""
    whole = count - count % 4
    for k in range(0, whole, 4):
        a, b, c, e = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        x0, x1, x2, x3 = coef[k], coef[k + 1], coef[k + 2], coef[k + 3]
        for j in range(lo, hi):
            out[j] -= (x0 * M[a, j] + x1 * M[b, j]) + (x2 * M[c, j] + x3 * M[e, j])
    for k in range(whole, count):
        a = rows[k]
        x0 = coef[k]
        for j in range(lo, hi):
            out[j] -= x0 * M[a, j]


@_jit
def _factor(G: Floats, U: Floats, inv: Floats, A: NDArray[np.uint32], n: int, rows: int, cols: int) -> int:
    """Upper factor UᵀU = G[A, A], given that rows < `rows` hold for columns < `cols`.

    Returns n, or the first index whose pivot vanishes; its squared pivot is then U[p, p] and U[:p, p] is valid.
    """
    for i in range(n):
        ai = A[i]
        lo = i if i >= rows else cols
        for j in range(lo, n):
            U[i, j] = G[ai, A[j]]
        whole = i - i % 4
        for k in range(0, whole, 4):
            u0, u1, u2, u3 = U[k, i], U[k + 1, i], U[k + 2, i], U[k + 3, i]
            for j in range(lo, n):
                U[i, j] -= (u0 * U[k, j] + u1 * U[k + 1, j]) + (u2 * U[k + 2, j] + u3 * U[k + 3, j])
        for k in range(whole, i):
            u0 = U[k, i]
            for j in range(lo, n):
                U[i, j] -= u0 * U[k, j]
        if i >= rows:
            if not U[i, i] > _PIVOT * G[ai, ai]:
                return i
            inv[i] = 1.0 / math.sqrt(U[i, i])
        scale = inv[i]
        for j in range(lo, n):
            U[i, j] *= scale
    return n


@_jit
def _back(U: Floats, inv: Floats, v: Floats, n: int) -> None:
    """Solve U v = v in place."""
    for k in range(n - 1, -1, -1):
        s = v[k]
        for j in range(k + 1, n):
            s -= U[k, j] * v[j]
        v[k] = s * inv[k]


@_jit
def _remove(U: Floats, A: NDArray[np.uint32], n: int, rows: int, p: int) -> None:
    """Take entry p out of the ordered support and out of the rows of the factor above it."""
    for k in range(p, n - 1):
        A[k] = A[k + 1]
    for i in range(min(rows, p)):
        for k in range(p, n - 1):
            U[i, k] = U[i, k + 1]


@_jit
def _move(G, A, n, step, v, x, g, size):
    """x[A] += step·v and g -= step·G[:, A]v on the working set."""
    for k in range(n):
        v[k] *= step
        x[A[k]] += v[k]
    _subtract_rows(G, A, v, n, g, 0, size)


@_jit
def _newton(G, U, inv, A, n, rows, cols, x, g, w, size, nonnegative, v):
    """Minimize over the support A with its signs kept; an atom that reaches zero leaves A, and the rest goes on.

    The step Δ solves G_AA Δ = g_A - w_A·sign(x_A), a correction, so that rounding of earlier solves is repaired.
    Where G_AA is singular at entry p there is a direction v, Dv = 0, along which only the penalty changes: walk
    down along it until an atom leaves. Returns (size of A, rows, columns of the factor that are valid).
    """
    for _ in range(2 * size + 2):
        if n == 0:
            return 0, 0, 0
        p = _factor(G, U, inv, A, n, rows, cols)
        rows, cols = p, n
        singular = p < n
        if singular:
            for k in range(p):
                v[k] = -U[k, p]
            _back(U, inv, v, p)
            v[p] = 1.0
            count = p + 1
            slope = 0.0
            for k in range(count):
                a = A[k]
                slope += v[k] * (g[a] - w[a] * (1.0 if x[a] > 0 or nonnegative else -1.0))
            if slope < 0:
                slope = -slope
                for k in range(count):
                    v[k] = -v[k]
            curvature = max(U[p, p], 0.0)
            limit = slope / curvature if curvature > 0 else np.inf
        else:
            count = n
            for k in range(n):
                a = A[k]
                v[k] = g[a] - w[a] * (1.0 if x[a] > 0 or nonnegative else -1.0)
            for k in range(n):
                v[k] *= inv[k]
                s = v[k]
                for j in range(k + 1, n):
                    v[j] -= s * U[k, j]
            _back(U, inv, v, n)
            limit = 1.0
        leaving = -1
        step = limit
        for k in range(count):
            a = A[k]
            # An unpenalized atom may change its sign freely.
            if (w[a] > 0.0 or nonnegative) and x[a] * v[k] < 0.0:
                t = -x[a] / v[k]
                if t < step:
                    step = t
                    leaving = k
        if leaving < 0 and not singular:
            _move(G, A, n, 1.0, v, x, g, size)
            return n, rows, cols
        if leaving >= 0:
            _move(G, A, count, step, v, x, g, size)
            x[A[leaving]] = 0.0
        else:
            # Nothing leaves along the null direction: entry p keeps its value and is left out of this solve.
            if step < np.inf:
                _move(G, A, count, step, v, x, g, size)
            leaving = p
        _remove(U, A, n, rows, leaving)
        n -= 1
        rows = min(rows, leaving)
        cols = n
    return n, rows, cols


@_jit
def _sweep(G, x, g, w, size, nonnegative):
    """One sweep of cyclic coordinate descent on the working set."""
    for k in range(size):
        q = G[k, k]
        if q > 0.0:
            old = x[k]
            z = old * q + g[k]
            if z > w[k]:
                new = (z - w[k]) / q
            elif z < -w[k] and not nonnegative:
                new = (z + w[k]) / q
            else:
                new = 0.0
            delta = new - old
            if delta != 0.0:
                x[k] = new
                for j in range(size):
                    g[j] -= delta * G[k, j]


@_jit
def _solve_chunk(
    D,
    DT,
    gram,
    Y,
    lam,
    weights,
    nonnegative,
    tol,
    max_rounds,
    start,
    codes,
    rounds_out,
    gap_out,
    lo,
    hi,
    sweeps,
    passes,
    grow_share,
    skip,
):
    d, m = D.shape
    lazy = gram.shape[0] == 0
    warm = start.shape[0] > 0
    cap = min(m, 96)
    G = np.empty((cap, _odd(cap)))
    U = np.empty((cap, _odd(cap)))
    corr = np.empty((_BLOCK, m))
    scaled = np.empty((_BLOCK, d))
    g = np.empty(m)
    ratio = np.empty(m)
    bits = ratio.view(np.int64)
    inverse = np.empty(m)
    r = np.empty(d)
    x, gw, w, v, inv, sup_x = np.empty(m), np.empty(m), np.empty(m), np.empty(m), np.empty(m), np.empty(m)
    W = np.empty(m, np.uint32)
    A = np.empty(m, np.uint32)
    sup = np.empty(m, np.uint32)
    inside = np.zeros(m, np.bool_)
    in_support = np.zeros(m, np.bool_)
    norms = np.empty(m)
    for j in range(m):
        s = 0.0
        for k in range(d):
            s += DT[j, k] * DT[j, k]
        norms[j] = math.sqrt(s)
        inverse[j] = 1.0 / weights[j] if weights[j] > 0.0 else 0.0

    for block in range(lo, hi, _BLOCK):
        end = min(block + _BLOCK, hi)
        for i in range(block, end):
            top = 0.0
            for k in range(d):
                top = max(top, abs(Y[i, k]))
            # A power of two: the problem is solved at scale one and the codes are scaled back without rounding.
            exponent = math.frexp(top)[1] if top > 0.0 else 0
            for k in range(d):
                scaled[i - block, k] = math.ldexp(Y[i, k], -exponent)
        _correlate(D, scaled, 0, end - block, corr)
        for i in range(block, end):
            y = scaled[i - block]
            c = corr[i - block]
            top = 0.0
            for k in range(d):
                top = max(top, abs(Y[i, k]))
            exponent = math.frexp(top)[1] if top > 0.0 else 0
            lam_i = math.ldexp(lam[i], -exponent)
            if lam_i < 1e-200:
                lam_i = 0.0
            energy = 0.0
            for k in range(d):
                energy += y[k] * y[k]
            size = 0
            free = False
            # Working set at the start: unpenalized atoms and the atoms of the start.
            fresh = 0
            for j in range(m):
                unpenalized = weights[j] == 0.0 or (lam_i == 0.0 and weights[j] < np.inf)
                free = free or unpenalized
                value = 0.0
                if warm:
                    value = math.ldexp(start[i, j], -exponent)
                    if (nonnegative and value < 0.0) or weights[j] == np.inf or (lam_i == np.inf and not unpenalized):
                        value = 0.0
                if unpenalized or value != 0.0:
                    W[fresh] = j
                    x[fresh] = value
                    fresh += 1
            n = 0
            rows = 0
            cols = 0
            best = np.inf
            idle = 0
            done = 0
            rel = 0.0
            while True:
                # Gradient of all atoms from the support.
                count = 0
                known = fresh if done == 0 else size
                for k in range(known):
                    if x[k] != 0.0:
                        sup[count] = W[k]
                        sup_x[count] = x[k]
                        count += 1
                for k in range(d):
                    r[k] = y[k]
                if lazy:
                    _subtract_rows(DT, sup, sup_x, count, r, 0, d)
                    for j in range(m):
                        g[j] = 0.0
                    for k in range(d):
                        s = r[k]
                        for j in range(m):
                            g[j] += s * D[k, j]
                else:
                    for j in range(m):
                        g[j] = c[j]
                    _subtract_rows(gram, sup, sup_x, count, g, 0, m)
                # Largest |g_j|/w_j; non-negative doubles are ordered like their bit patterns, which vectorizes.
                il = 1.0 / lam_i if lam_i > 0.0 else 0.0
                if nonnegative:
                    for j in range(m):
                        ratio[j] = max(g[j], 0.0) * (inverse[j] * il)
                else:
                    for j in range(m):
                        ratio[j] = abs(g[j]) * (inverse[j] * il)
                largest = np.int64(0)
                for j in range(m):
                    largest = max(largest, bits[j])
                worst = 0.0
                if largest > 0:
                    bits[0], largest = largest, bits[0]
                    worst = ratio[0]
                    bits[0] = largest
                # Certificate.
                check = worst < skip or done == 0 or done >= max_rounds or free
                if check:
                    if not lazy:
                        _subtract_rows(DT, sup, sup_x, count, r, 0, d)
                    rr = 0.0
                    ry = 0.0
                    for k in range(d):
                        rr += r[k] * r[k]
                        ry += r[k] * y[k]
                    if free:
                        excess = 0.0
                        for j in range(m):
                            if inverse[j] > 0.0 or weights[j] == 0.0:
                                wj = 0.0 if weights[j] == 0.0 else lam_i * weights[j]
                                e = (g[j] if nonnegative else abs(g[j])) - wj
                                excess = max(excess, e / norms[j])
                        for k in range(count):
                            j = sup[k]
                            wj = 0.0 if weights[j] == 0.0 else lam_i * weights[j]
                            excess = max(excess, abs(g[j] - (wj if sup_x[k] > 0.0 else -wj)) / norms[j])
                        rel = excess / math.sqrt(energy) if energy > 0.0 else 0.0
                    else:
                        penalty = 0.0
                        inner = 0.0
                        for k in range(count):
                            j = sup[k]
                            penalty += lam_i * weights[j] * abs(sup_x[k])
                            inner += sup_x[k] * g[j]
                        alpha = max(ry / rr, 0.0) if rr > 0.0 else 0.0
                        if alpha * worst > 1.0:
                            alpha = 1.0 / worst
                        gap = 0.5 * (1.0 - alpha) ** 2 * rr + (penalty - alpha * inner)
                        rel = max(gap, 0.0) / max(0.5 * rr + penalty, 0.5e-12 * energy) if energy > 0.0 else 0.0
                        if energy == 0.0 and count > 0:
                            rel = np.inf
                    if rel <= tol or done >= max_rounds or (worst <= 1.0 + _SLACK and count == 0 and not free):
                        break
                    if rel > 0.9 * best:
                        idle += 1
                        if idle > 8:
                            break
                    else:
                        idle = 0
                        best = rel
                # Grow the working set.
                if done > 0:
                    fresh = size
                    level = max(1.0 + _SLACK, grow_share * worst)
                    for j in range(m):
                        if ratio[j] > level and not inside[j]:
                            W[fresh] = j
                            x[fresh] = 0.0
                            fresh += 1
                else:
                    for k in range(fresh):
                        inside[W[k]] = True
                    level = max(1.0 + _SLACK, grow_share * worst)
                    for j in range(m):
                        if ratio[j] > level and not inside[j]:
                            W[fresh] = j
                            x[fresh] = 0.0
                            fresh += 1
                if fresh > cap:
                    cap = min(m, max(2 * cap, fresh))
                    bigger = np.empty((cap, _odd(cap)))
                    bigger[:size, :size] = G[:size, :size]
                    G = bigger
                    bigger = np.empty((cap, _odd(cap)))
                    bigger[:n, :n] = U[:n, :n]
                    U = bigger
                for b in range(size, fresh):
                    jb = W[b]
                    inside[jb] = True
                    w[b] = 0.0 if weights[jb] == 0.0 else lam_i * weights[jb]
                    for a in range(b + 1):
                        ja = W[a]
                        if lazy:
                            s = 0.0
                            for k in range(d):
                                s += DT[ja, k] * DT[jb, k]
                        else:
                            s = gram[jb, ja]
                        G[a, b] = s
                        G[b, a] = s
                size = fresh
                for k in range(size):
                    gw[k] = g[W[k]]
                for _ in range(passes):
                    for _ in range(sweeps):
                        _sweep(G, x, gw, w, size, nonnegative)
                    # Keep the order of the support, so that the factor stays valid up to the first change.
                    kept = 0
                    for k in range(n):
                        in_support[A[k]] = True
                    for k in range(n):
                        a = A[k]
                        if x[a] != 0.0 or (w[a] == 0.0 and not nonnegative):
                            if kept != k:
                                for e in range(min(rows, k)):
                                    U[e, kept] = U[e, k]
                            A[kept] = a
                            kept += 1
                        else:
                            rows = min(rows, kept)
                            cols -= 1
                            in_support[a] = False
                    n = kept
                    for k in range(size):
                        if not in_support[k] and (x[k] != 0.0 or (w[k] == 0.0 and not nonnegative)):
                            A[n] = k
                            n += 1
                        in_support[k] = False
                    n, rows, cols = _newton(G, U, inv, A, n, rows, cols, x, gw, w, size, nonnegative, v)
                    violated = False
                    for k in range(size):
                        if x[k] == 0.0 and (gw[k] if nonnegative else abs(gw[k])) > w[k] * (1.0 + 1e-9):
                            violated = True
                            break
                    if not violated:
                        break
                done += 1
            for k in range(fresh if done == 0 else size):
                codes[i, W[k]] = math.ldexp(x[k], exponent)
                inside[W[k]] = False
            rounds_out[i] = done
            gap_out[i] = rel


def solve_batch(
    D: Floats,
    gram: Floats,
    Y: Floats,
    lam: Floats,
    weights: Floats,
    nonnegative: bool = False,
    tol: float = 1e-6,
    max_rounds: int = 200,
    start: Floats | None = None,
    threads: int | None = None,
    sweeps=_SWEEPS,
    passes=_PASSES,
    grow=_GROW,
    skip=1.5,
) -> tuple[Floats, NDArray[np.int64], Floats]:
    n, m = Y.shape[0], D.shape[1]
    DT = np.ascontiguousarray(D.T)
    codes = np.zeros((n, m))
    rounds = np.zeros(n, np.int64)
    gap = np.zeros(n)
    if start is None:
        start = np.empty((0, m))

    def work(lo):
        _solve_chunk(
            D,
            DT,
            gram,
            Y,
            lam,
            weights,
            nonnegative,
            tol,
            max_rounds,
            start,
            codes,
            rounds,
            gap,
            lo,
            min(lo + _CHUNK, n),
            sweeps,
            passes,
            grow,
            skip,
        )

    los = range(0, n, _CHUNK)
    threads = threads or 2
    if len(los) <= 1 or threads == 1:
        for lo in los:
            work(lo)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, los))
    return codes, rounds, gap
