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

import numba  # noqa: TID253  (this module is itself imported on first use)
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.uint32]  # unsigned, so that compiled code does not look for negative indices

_CHUNK = 64  # signals a thread takes at once
_BLOCK = 16  # signals whose correlations are computed together, so that D streams through the cache once for all
_START_SIZE = 96  # working-set size that the workspace holds before it has to grow
_PIVOT = 1e-13  # a squared pivot below this share of ‖d_j‖² is rounding: the atom lies in the span of the others
_SLACK = 1e-13  # relative excess of |g_j| over w_j that counts as rounding
_GROW = 0.7  # atoms above this share of the largest |g_j|/w_j enter the working set
_EARLY_SWEEPS = 6  # sweeps of a round that only collects atoms; the last rounds sweep until the signs rest
_LAST_SWEEPS = 20
_PASSES = 4  # turns of sweeps and Cholesky steps in one round
_CHECK = 1.5  # above this |g_j|/w_j the gap is not worth computing
# Indices of inner loops that do not start at zero are unsigned: for signed ones the compiler would keep the test for
# negative (wrapped) indices, and that turns plain loads into gathers.
_ONE = np.uint64(1)
_IDLE = 8  # certificates in a row without progress that end the work on a signal

_jit: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


@_jit
def _row_length(size: int) -> int:
    """Smallest row length >= size that is an odd number of 64-byte lines: columns then spread over all cache sets."""
    lines = (size + 7) // 8
    return 8 * (lines + 1 - lines % 2)


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
def _subtract_rows(M: Floats, rows: Indices, coef: Floats, count: int, out: Floats) -> None:
    """Subtract from `out` Σ_k coef[k]·M[rows[k], : out.size], four rows at a time to save loads and stores of `out`."""
    whole = count - count % 4
    for k in range(0, whole, 4):
        a, b, c, e = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        x0, x1, x2, x3 = coef[k], coef[k + 1], coef[k + 2], coef[k + 3]
        for j in range(out.size):
            out[j] -= (x0 * M[a, j] + x1 * M[b, j]) + (x2 * M[c, j] + x3 * M[e, j])
    for k in range(whole, count):
        a = rows[k]
        x0 = coef[k]
        for j in range(out.size):
            out[j] -= x0 * M[a, j]


@_jit
def _factor(G: Floats, U: Floats, inv: Floats, A: Indices, n: int, valid: int) -> int:
    """Upper factor UᵀU = G[A, A], given that its leading `valid` rows and columns are known.

    Returns n, or the first index whose pivot vanishes; its squared pivot is then U[p, p] and U[:p, p] is valid.
    """
    for i in range(n):
        ai = A[i]
        lo = i if i >= valid else valid
        for j in range(np.uint64(lo), np.uint64(n)):
            U[i, j] = G[ai, A[j]]
        whole = i - i % 4
        for k in range(0, whole, 4):
            u0, u1, u2, u3 = U[k, i], U[k + 1, i], U[k + 2, i], U[k + 3, i]
            for j in range(np.uint64(lo), np.uint64(n)):
                U[i, j] -= (u0 * U[k, j] + u1 * U[k + 1, j]) + (u2 * U[k + 2, j] + u3 * U[k + 3, j])
        for k in range(whole, i):
            u0 = U[k, i]
            for j in range(np.uint64(lo), np.uint64(n)):
                U[i, j] -= u0 * U[k, j]
        if i >= valid:
            if not U[i, i] > _PIVOT * G[ai, ai]:
                return i
            inv[i] = 1.0 / math.sqrt(U[i, i])
        scale = inv[i]
        for j in range(np.uint64(lo), np.uint64(n)):
            U[i, j] *= scale
    return n


@_jit
def _back(U: Floats, inv: Floats, v: Floats, n: int) -> None:
    """Solve U v = v in place."""
    for k in range(n - 1, -1, -1):
        s = v[k]
        for j in range(np.uint64(k + 1), np.uint64(n)):
            s -= U[k, j] * v[j]
        v[k] = s * inv[k]


@_jit
def _remove(U: Floats, inv: Floats, A: Indices, n: int, valid: int, p: int) -> int:
    """Take entry p out of the ordered support; Givens rotations make the factor of its first `valid` triangular again.

    Returns the size of the valid factor.
    """
    for k in range(p, n - 1):
        A[k] = A[k + 1]
    if p >= valid:
        return valid
    for i in range(p + 1):
        for k in range(np.uint64(p), np.uint64(valid - 1)):
            U[i, k] = U[i, k + _ONE]
    for i in range(p, valid - 1):
        # Row i + 1 still starts at its old diagonal, one column to the left of the new one.
        a = U[i, i]
        b = U[i + 1, i + 1]
        scale = 1.0 / math.sqrt(a * a + b * b)
        c = a * scale
        s = b * scale
        inv[i] = scale
        U[i, i] = a * c + b * s
        for k in range(np.uint64(i + 1), np.uint64(valid - 1)):
            upper = U[i, k]
            lower = U[i + 1, k + _ONE]
            U[i, k] = c * upper + s * lower
            U[i + 1, k] = c * lower - s * upper
    return valid - 1


@_jit
def _move(G: Floats, A: Indices, n: int, step: float, v: Floats, x: Floats, g: Floats, size: int) -> None:
    """x[A] += step·v and g -= step·G[:, A]v on the working set."""
    for k in range(n):
        v[k] *= step
        x[A[k]] += v[k]
    _subtract_rows(G, A, v, n, g[:size])


@_jit
def _newton(
    G: Floats,
    U: Floats,
    inv: Floats,
    A: Indices,
    n: int,
    valid: int,
    x: Floats,
    g: Floats,
    w: Floats,
    size: int,
    nonnegative: bool,
    v: Floats,
) -> tuple[int, int]:
    """Minimize over the support A with its signs kept; an atom that reaches zero leaves A, and the rest goes on.

    The step Δ solves G_AA Δ = g_A - w_A·sign(x_A), a correction, so that rounding of earlier solves is repaired.
    Where G_AA is singular at entry p there is a direction v, Dv = 0, along which only the penalty changes: walk
    down along it until an atom leaves. Returns the size of A and of the part of the factor that is valid.
    """
    for _ in range(2 * size + 2):
        if n == 0:
            return 0, 0
        p = _factor(G, U, inv, A, n, valid)
        valid = p
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
                for j in range(np.uint64(k + 1), np.uint64(n)):
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
            return n, valid
        if leaving >= 0:
            _move(G, A, count, step, v, x, g, size)
            x[A[leaving]] = 0.0
        else:
            # Nothing leaves along the null direction: entry p keeps its value and is left out of this solve.
            if step < np.inf:
                _move(G, A, count, step, v, x, g, size)
            leaving = p
        valid = _remove(U, inv, A, n, valid, leaving)
        n -= 1
    return n, valid


@_jit
def _sweep(G: Floats, iq: Floats, x: Floats, g: Floats, w: Floats, size: int, nonnegative: bool) -> bool:
    """One sweep of cyclic coordinate descent on the working set; tells whether a sign changed."""
    changed = False
    following = g[0]
    for k in range(size):
        # The next gradient is carried in a register: waiting for it to pass through memory would double the time.
        gk = following
        after = min(k + 1, size - 1)
        following = g[after]
        old = x[k]
        wk = w[k]
        if old == 0.0 and abs(gk) <= wk:
            continue
        z = old * G[k, k] + gk
        if z > wk:
            new = (z - wk) * iq[k]
        elif z < -wk and not nonnegative:
            new = (z + wk) * iq[k]
        else:
            new = 0.0
        delta = new - old
        if delta != 0.0:
            x[k] = new
            changed = changed or new * old <= 0.0
            following -= delta * G[k, after]
            for j in range(size):
                g[j] -= delta * G[k, j]
    return changed


@_jit
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
            valid = _remove(U, inv, A, n, valid, k)
            n -= 1
    for k in range(size):
        if not seen[k] and (x[k] != 0.0 or (w[k] == 0.0 and not nonnegative)):
            A[n] = k
            n += 1
        seen[k] = False
    return n, valid


@_jit
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


@_jit
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


@_jit
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


@_jit
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


@_jit
def _larger(M: Floats, used: int, cap: int) -> Floats:
    """A copy of the leading block of M in a matrix that has room for `cap` rows."""
    out = np.empty((cap, _row_length(cap)))
    for i in range(used):
        for j in range(used):
            out[i, j] = M[i, j]
    return out


@_jit
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
    G = np.empty((cap, _row_length(cap)))
    U = np.empty((cap, _row_length(cap)))
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
            _correlate(D, scaled, 0, end - i, corr)
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
                _subtract_rows(DT, sup, sup_x, count, r)
                _correlate(D, r_row, 0, 1, g_row)
            else:
                for j in range(m):
                    g[j] = c[j]
                _subtract_rows(gram, sup, sup_x, count, g)
            worst = _ratios(g, inverse, 1.0 / lam_i if lam_i > 0.0 else 0.0, nonnegative, ratio)
            if free or worst < _CHECK or done == 0 or done >= max_rounds:
                if free:
                    rel = _violation(g, full_w, norms, sup, sup_x, count, nonnegative, energy)
                else:
                    if not lazy:
                        _subtract_rows(DT, sup, sup_x, count, r)
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
                    if not _sweep(G, iq, x, gw, w, size, nonnegative):
                        break
                if not last:
                    break
                n, valid = _support(U, inv, A, n, valid, x, w, size, nonnegative, seen)
                n, valid = _newton(G, U, inv, A, n, valid, x, gw, w, size, nonnegative, v)
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
