"""Compiled linear algebra on the active set: Gram rows, a Cholesky factor that grows and shrinks, sweeps.

The parts that `_kernels_dense.py` puts together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_jit import entry, jit

forget_stale_kernels()

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Indices = NDArray[np.uint32]  # unsigned, so that compiled code does not look for negative indices

_PIVOT = 1e-13  # a squared pivot below this share of ‖d_j‖² is rounding: the atom lies in the span of the others
# Indices of inner loops that do not start at zero are unsigned: for signed ones the compiler would keep the test for
# negative (wrapped) indices, and that turns plain loads into gathers.
_ONE = np.uint64(1)
_COLUMNS = 512  # columns of D that are correlated at once


@jit
def row_length(size: int) -> int:
    """Smallest row length >= size that is an odd number of 64-byte lines: columns then spread over all cache sets."""
    lines = (size + 7) // 8
    return 8 * (lines + 1 - lines % 2)


@jit
def copy(source: Any, count: int, out: Any) -> None:
    """Copy the first entries: assigning a slice takes a second to compile, for the words of errors that cannot be."""
    for k in range(count):
        out[k] = source[k]


@jit
def dot(a: Any, b: Any) -> float:
    """⟨a, b⟩."""
    s = 0.0
    for k in range(a.size):
        s += a[k] * b[k]
    return s


@jit
def correlate(D: Any, Y: Any, count: int, out: Any) -> None:
    """out[i] = Dᵀ Y[i]; eight pieces of rows of D stay in the fastest cache while all signals of the block use them."""
    d, m = D.shape
    for i in range(count):
        for j in range(m):
            out[i, j] = 0
    whole = d - d % 8
    for lo in range(0, m, _COLUMNS):
        first, end = np.uint64(lo), np.uint64(min(lo + _COLUMNS, m))
        for k in range(0, whole, 8):
            for i in range(count):
                row = out[i]
                y0, y1, y2, y3 = Y[i, k], Y[i, k + 1], Y[i, k + 2], Y[i, k + 3]
                y4, y5, y6, y7 = Y[i, k + 4], Y[i, k + 5], Y[i, k + 6], Y[i, k + 7]
                for j in range(first, end):
                    row[j] += (y0 * D[k, j] + y1 * D[k + 1, j] + y2 * D[k + 2, j] + y3 * D[k + 3, j]) + (
                        y4 * D[k + 4, j] + y5 * D[k + 5, j] + y6 * D[k + 6, j] + y7 * D[k + 7, j]
                    )
        for k in range(whole, d):
            for i in range(count):
                row = out[i]
                y0 = Y[i, k]
                for j in range(first, end):
                    row[j] += y0 * D[k, j]


@jit
def subtract_rows(M: Any, rows: Indices, coef: Any, count: int, out: Any) -> None:
    """Subtract from `out` Σ_k coef[k]·M[rows[k], : out.size], several rows at a time to save loads and stores of it."""
    eights = count - count % 8
    for k in range(0, eights, 8):
        a, b, c, e = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        p, q, s, t = rows[k + 4], rows[k + 5], rows[k + 6], rows[k + 7]
        x0, x1, x2, x3 = coef[k], coef[k + 1], coef[k + 2], coef[k + 3]
        x4, x5, x6, x7 = coef[k + 4], coef[k + 5], coef[k + 6], coef[k + 7]
        for j in range(out.size):
            out[j] -= ((x0 * M[a, j] + x1 * M[b, j]) + (x2 * M[c, j] + x3 * M[e, j])) + (
                (x4 * M[p, j] + x5 * M[q, j]) + (x6 * M[s, j] + x7 * M[t, j])
            )
    whole = count - count % 4
    for k in range(eights, whole, 4):
        a, b, c, e = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        x0, x1, x2, x3 = coef[k], coef[k + 1], coef[k + 2], coef[k + 3]
        for j in range(out.size):
            out[j] -= (x0 * M[a, j] + x1 * M[b, j]) + (x2 * M[c, j] + x3 * M[e, j])
    for k in range(whole, count):
        a = rows[k]
        x0 = coef[k]
        for j in range(out.size):
            out[j] -= x0 * M[a, j]


@jit
def residual(
    DT: Floats,
    y: Floats,
    mask: Floats,
    masked: bool,
    rows: Indices,
    coef: Floats,
    count: int,
    r: Floats,
    plain: Floats,
) -> None:
    """Write y - Σ_k coef[k]·DT[rows[k]] into r; under a mask y - M Σ_k … into `plain`, and M times it into r."""
    for k in range(y.size):
        r[k] = 0.0 if masked else y[k]
    subtract_rows(DT, rows, coef, count, r)
    if masked:
        for k in range(y.size):
            plain[k] = y[k] + mask[k] * r[k]
            r[k] = mask[k] * plain[k]


@jit
def fetch(D: Floats, DT: Floats, ready: Any, j: int) -> None:
    """Fill row j of DT from D unless it is; where `ready` is empty all rows are."""
    if ready.size > 0 and not ready[j]:
        for k in range(D.shape[0]):
            DT[j, k] = D[k, j]
        ready[j] = True


@entry
def unit_atoms(D: Floats, lo: int, hi: int, norms: Floats, unit: Floats, out: Singles) -> None:
    """Norms of the atoms lo..hi, one over them (0 for atoms of zero), and the atoms over their norms in float32.

    A cache full of columns at a time.
    """
    d = D.shape[0]
    for start in range(lo, hi, _COLUMNS):
        first, end = np.uint64(start), np.uint64(min(start + _COLUMNS, hi))
        for j in range(first, end):
            norms[j] = 0.0
        for k in range(d):
            for j in range(first, end):
                norms[j] += D[k, j] * D[k, j]
        for j in range(first, end):
            norms[j] = math.sqrt(norms[j])
            unit[j] = 1.0 / norms[j] if norms[j] > 0.0 else 0.0
        for k in range(d):
            for j in range(first, end):
                out[k, j] = D[k, j] * unit[j]


@entry
def normalized(M: Floats, left: Floats, right: Floats, out: Singles) -> None:
    """out[i, j] = left[i]·M[i, j]·right[j], in float32."""
    for i in range(M.shape[0]):
        for j in range(M.shape[1]):
            out[i, j] = left[i] * M[i, j] * right[j]


@jit
def exponent(values: Floats) -> int:
    """The power of two just above the largest size of a value, and 0 for values that are zero or not finite.

    Work at scale one and scale back: with a power of two neither rounds, and no square overflows.
    """
    top = 0.0
    for k in range(values.size):
        top = max(top, abs(values[k]))
    if not 0.0 < top < np.inf:
        return 0
    power = np.int64(math.frexp(top)[1])
    return int(min(max(power, -1000), 1000))


@jit
def dot_under(a: Floats, b: Floats, square: Floats) -> float:
    """⟨M a, M b⟩ for the squares of a mask."""
    s = 0.0
    for k in range(square.size):
        s += a[k] * b[k] * square[k]
    return s


@jit
def masked_norms(DT: Floats, square: Floats, out: Floats) -> None:
    """‖M d_j‖ of every atom."""
    for j in range(out.size):
        out[j] = math.sqrt(dot_under(DT[j], DT[j], square))


@jit
def squared_mask(mask: Floats, square: Floats) -> float:
    """Write the squares of a mask; its largest entry."""
    top = 0.0
    for k in range(mask.size):
        square[k] = mask[k] * mask[k]
        top = max(top, mask[k])
    return top


@jit
def update_support(
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
def factor(G: Floats, U: Floats, inv: Floats, A: Indices, n: int, valid: int) -> int:
    """Upper factor UᵀU = G[A, A], given that its leading `valid` rows and columns are known.

    Returns n, or the first index whose pivot vanishes; its squared pivot is then U[p, p] and U[:p, p] is valid.
    """
    if valid == n:
        return n
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


@jit
def back(U: Floats, inv: Floats, v: Floats, n: int) -> None:
    """Solve U v = v in place."""
    for k in range(n - 1, -1, -1):
        s = v[k]
        for j in range(np.uint64(k + 1), np.uint64(n)):
            s -= U[k, j] * v[j]
        v[k] = s * inv[k]


@jit
def remove(U: Floats, inv: Floats, A: Indices, n: int, valid: int, p: int) -> int:
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


@jit
def move(G: Floats, A: Indices, n: int, step: float, v: Floats, x: Floats, g: Floats, size: int) -> None:
    """x[A] += step·v and g -= step·G[:, A]v on the working set."""
    for k in range(n):
        v[k] *= step
        x[A[k]] += v[k]
    subtract_rows(G, A, v, n, g[:size])


@jit
def newton(
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
        p = factor(G, U, inv, A, n, valid)
        valid = p
        singular = p < n
        if singular:
            for k in range(p):
                v[k] = -U[k, p]
        else:
            for k in range(n):
                a = A[k]
                v[k] = g[a] - w[a] * (1.0 if x[a] > 0 or nonnegative else -1.0)
            for k in range(n):
                v[k] *= inv[k]
                s = v[k]
                for j in range(np.uint64(k + 1), np.uint64(n)):
                    v[j] -= s * U[k, j]
        back(U, inv, v, p)
        count, limit = p, 1.0
        if singular:
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
        if step < np.inf:
            move(G, A, count, step, v, x, g, size)
        if leaving >= 0:
            x[A[leaving]] = 0.0
        elif singular:
            # Nothing leaves along the null direction: entry p keeps its value and is left out of this solve.
            leaving = p
        else:
            return n, valid
        valid = remove(U, inv, A, n, valid, leaving)
        n -= 1
    return n, valid
