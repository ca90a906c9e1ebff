"""Compiled orthogonal matching pursuit for dense dictionaries: correlations from the Gram matrix, a growing factor.

Atoms have norm one here. For every signal neither the residual nor the orthonormal directions q_t of the chosen atoms
are formed, only ``u_t = Dᵀq_t = (G_k - Σ_a u_a[k] u_a)/ρ_t``: then ``Dᵀr`` falls by ``z_t u_t`` with
``z_t = d_kᵀr/ρ_t``, and ``‖r‖²`` by ``z_t²``.

Atoms are chosen in float32. Where that could choose another atom than float64 would (two scores closer than its
rounding, nearly dependent atoms, a residual that cancels, a limit that is nearly met), the signal is done again in
float64. Coefficients, and every residual that decides about a small limit, are computed in float64 from the atoms
chosen.

Source: Pati, Rezaiifar & Krishnaprasad 1993; Rubinstein, Zibulevsky & Elad 2008 (the Gram matrix in its place);
forward selection: Rebollo-Neira & Lowe 2002.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_codes import CHUNK, in_chunks, residual_energy
from ._kernels_jit import entry, jit, uncollected
from ._kernels_support import Floats, Singles, correlate, dot, row_length, subtract_rows

forget_stale_kernels()

_BLOCK = 16  # signals whose correlations are computed together
_SPAN = 1e-12  # a squared pivot below this: the atom lies in the span of those chosen
_CANCELS = 1e-6  # below this share of ‖y‖² the running ‖r‖² is not trusted
_REFINE = 1e-4  # where a squared pivot falls below this, the coefficients are refined once
_ROUNDING = 1e-14  # correlations below this share of ‖y‖ choose no atom
# What float32 is trusted with: correlations and ‖r‖² known to `_SINGLE_ERROR` over the smallest squared pivot,
# measured an order of magnitude above what occurs; pivots, top correlations (‖y‖ = 1) and limits of some size.
_SINGLE_ERROR = 1e-5
_SINGLE_PIVOT, _SINGLE_TOP, _SINGLE_LIMIT = 0.02, 2e-3, 1e-3


@jit
def _top(bits: Any) -> Any:
    """The largest of non-negative numbers as a bit pattern: floats are ordered like theirs, and integers vectorize."""
    top = bits[0]
    for j in range(bits.size):
        top = max(top, bits[j])
    return top


@jit
def _first(bits: Any, value: Any, numbers: Any) -> int:
    """The first place of this value."""
    place = numbers[numbers.size - 1]
    for j in range(bits.size):
        place = min(place, numbers[j] if bits[j] == value else place)
    return place


@jit
def _extend(gram: Floats, DT: Floats, y: Floats, chosen: Any, L: Floats, z: Floats, first: int, count: int) -> float:
    """Rows first..count of the Cholesky factor of the chosen atoms, and of z = L⁻¹D_Iᵀy; the smallest squared pivot.

    The diagonal of L holds reciprocals.
    """
    worst = 1.0
    for i in range(first, count):
        row = L[i]
        total, pivot = dot(DT[chosen[i]], y), gram[chosen[i], chosen[i]]
        for a in range(i):
            s = gram[chosen[i], chosen[a]]
            for b in range(a):
                s -= row[b] * L[a, b]
            s *= L[a, a]
            row[a] = s
            pivot -= s * s
            total -= s * z[a]
        pivot = max(pivot, _SPAN)
        worst = min(worst, pivot)
        row[i] = 1.0 / math.sqrt(pivot)
        z[i] = total * row[i]
    return float(worst)


@jit
def _solve(L: Floats, z: Floats, count: int, gamma: Floats) -> None:
    """Solve Lᵀ gamma = z."""
    for a in range(count):
        gamma[a] = z[a]
    for a in range(count - 1, -1, -1):
        gamma[a] *= L[a, a]
        for b in range(a):
            gamma[b] -= L[a, b] * gamma[a]


@jit
def _correct(DT: Floats, L: Floats, chosen: Any, r: Floats, count: int, w: Floats, step: Floats, gamma: Floats) -> None:
    """Refine once, gamma += (D_IᵀD_I)⁻¹ D_Iᵀr: what an ill-conditioned factor lost comes back."""
    for a in range(count):
        s = dot(DT[chosen[a]], r)
        for b in range(a):
            s -= L[a, b] * w[b]
        w[a] = s * L[a, a]
    _solve(L, w, count, step)
    for a in range(count):
        gamma[a] += step[a]


@jit
def _advance(
    gram: Any,
    best: int,
    U: Any,
    order: Any,
    w: Any,
    count: int,
    scale: Any,
    fall: Any,
    alpha: Any,
    norms: Any,
    floor: Any,
    score: Any,
    forward: bool,
) -> None:
    """Row count - 1 of U for the atom `best`, and what it takes from alpha and the squared norms of all atoms.

    The score of an atom is ``|d_jᵀr|``, or with `forward` the root of the fall of ‖r‖² by least squares.
    """
    u = U[count - 1][: alpha.size]  # in this form the compiler knows that entries are neighbors
    row, odd = gram[best], (count - 1) % 4
    if odd == 0:
        for j in range(u.size):
            u[j] = row[j]
    elif odd == 1:
        for j in range(u.size):
            u[j] = row[j] - w[0] * U[0, j]
    elif odd == 2:
        for j in range(u.size):
            u[j] = row[j] - (w[0] * U[0, j] + w[1] * U[1, j])
    else:
        for j in range(u.size):
            u[j] = row[j] - (w[0] * U[0, j] + w[1] * U[1, j] + w[2] * U[2, j])
    subtract_rows(U, order[odd:], w[odd:], count - 1 - odd, u)
    if forward:
        for j in range(u.size):
            v = u[j] * scale
            u[j] = v
            alpha[j] -= fall * v
            norms[j] = max(norms[j] - v * v, floor)
        for j in range(u.size):
            score[j] = abs(alpha[j]) / math.sqrt(norms[j])
    else:
        for j in range(u.size):
            v = u[j] * scale
            u[j] = v
            alpha[j] -= fall * v
            score[j] = abs(alpha[j])


@jit
def _choose(
    gram: Singles,
    alpha: Singles,
    limit: float,
    sparsity: int,
    forward: bool,
    U: Singles,
    w: Singles,
    score: Singles,
    bits: Any,
    norms: Singles,
    numbers: Any,
    edge: Singles,
    edge_bits: Any,
    order: Any,
    chosen: Any,
) -> int:
    """Choose atoms in float32 from alpha = Dᵀy, ‖y‖ = 1; their number, or -1 if float64 might choose others."""
    one, floor = np.float32(1), np.float32(1e-6)
    error, count, worst = 1.0, 0, 1.0
    if forward:  # else they are one and stay so
        norms[:] = one
    for j in range(alpha.size):
        score[j] = abs(alpha[j])
    while count < sparsity and (limit == 0.0 or error > limit):
        for k in range(count):
            norms[chosen[k]], score[chosen[k]] = one, 0
        best = _first(bits, _top(bits), numbers)
        top, margin = score[best], np.float32(_SINGLE_ERROR / worst)
        if top < _SINGLE_TOP:
            return -1
        edge[0] = top - margin / norms[best]
        if forward:
            for j in range(score.size):
                score[j] += margin / norms[j]
        score[best] = 0
        if _top(bits) >= edge_bits[0]:
            return -1
        pivot = one
        for a in range(count):
            w[a] = U[a, best]
            pivot -= w[a] * w[a]
        worst = min(worst, float(pivot))
        if worst < _SINGLE_PIVOT:
            return -1
        scale = one / math.sqrt(pivot)
        fall = alpha[best] * scale
        chosen[count] = best
        error -= float(fall) * float(fall)
        count += 1
        if limit > 0.0 and abs(error - limit) < margin:
            return -1
        if count < sparsity:
            _advance(gram, best, U, order, w, count, scale, fall, alpha, norms, floor, score, forward)
    return count


@jit
def _choose_exactly(
    gram: Floats,
    DT: Floats,
    y: Floats,
    alpha: Floats,
    limit: float,
    sparsity: int,
    forward: bool,
    U: Floats,
    w: Floats,
    score: Floats,
    bits: Any,
    norms: Floats,
    numbers: Any,
    order: Any,
    chosen: Any,
    dropped: Any,
    L: Floats,
    z: Floats,
    gamma: Floats,
    r: Floats,
) -> int:
    """Choose atoms in float64 from alpha = Dᵀy, ‖y‖ = 1; their number."""
    error, count, out, known = 1.0, 0, 0, 0
    norms[:] = 1.0
    for j in range(alpha.size):
        score[j] = abs(alpha[j])
    while count < sparsity and error > limit:
        for k in range(count):
            norms[chosen[k]], score[chosen[k]] = 1.0, 0.0
        for k in range(out):
            score[dropped[k]] = 0.0
        best = _first(bits, _top(bits), numbers)
        if not score[best] > _ROUNDING:
            break
        if not abs(alpha[best]) > _ROUNDING:
            dropped[out] = best
            out += 1
            continue
        pivot = gram[best, best]
        for a in range(count):
            w[a] = U[a, best]
            pivot -= w[a] * w[a]
        if not pivot > _SPAN:
            dropped[out] = best
            out += 1
            continue
        scale = 1.0 / math.sqrt(pivot)
        fall = alpha[best] * scale
        chosen[count] = best
        error -= fall * fall
        count += 1
        if count < sparsity:
            _advance(gram, best, U, order, w, count, scale, fall, alpha, norms, _SPAN, score, forward)
        if limit > 0.0 and error < _CANCELS:
            _extend(gram, DT, y, chosen, L, z, known, count)
            known = count
            _solve(L, z, count, gamma)
            error = residual_energy(DT, y, chosen, gamma, count, r)
        elif limit == 0.0:
            error = max(error, 1e-300)  # equality is for the correlations to tell
    return count


@entry
def _pursue_chunk(
    D: Singles,
    DT: Floats,
    single: Singles,
    gram: Floats,
    inverse: Floats,
    Y: Floats,
    limits: Floats,
    sparsity: int,
    forward: bool,
    lo: int,
    hi: int,
    codes: Floats,
    counts: Any,
) -> None:
    m, d = DT.shape
    L, z = np.empty((sparsity, row_length(sparsity))), np.empty(sparsity)
    gamma, step, w = np.empty(sparsity), np.empty(sparsity), np.empty(sparsity)
    chosen, order = np.empty(sparsity, np.uint32), np.empty(sparsity, np.uint32)
    ys, r, y32 = np.empty((_BLOCK, d)), np.empty(d), np.empty((_BLOCK, d), np.float32)
    U32, w32 = np.empty((sparsity, single.shape[1]), np.float32), np.empty(sparsity, np.float32)
    alpha32, norms32 = np.empty((_BLOCK, m), np.float32), np.ones(m, np.float32)
    score32 = np.empty(m, np.float32)
    bits32 = score32.view(np.int32)
    # Only signals that float32 does not decide need these.
    U, dropped = np.empty((0, 0)), np.empty(m, np.uint32)
    alpha, score, norms = np.empty(m), np.empty(m), np.empty(m)
    bits = score.view(np.int64)
    numbers, edge = np.arange(m).astype(np.int32), np.empty(1, np.float32)
    edge_bits, scales = edge.view(np.int32), np.empty(_BLOCK)
    for k in range(sparsity):
        order[k] = k
    for i in range(lo, hi):
        slot = (i - lo) % _BLOCK
        if slot == 0:
            end = min(i + _BLOCK, hi)
            for e in range(i, end):
                scales[e - i] = math.sqrt(dot(Y[e], Y[e]))
                down = 1.0 / scales[e - i] if scales[e - i] > 0.0 else 0.0
                for k in range(d):
                    ys[e - i, k] = Y[e, k] * down
                    y32[e - i, k] = ys[e - i, k]
            correlate(D, y32, end - i, alpha32)
        scale, y = scales[slot], ys[slot]
        if scale == 0.0:
            continue
        limit = (limits[i] / scale) ** 2
        count = -1
        if limit == 0.0 or limit > _SINGLE_LIMIT:
            count = _choose(
                single, alpha32[slot], limit, sparsity, forward, U32, w32, score32, bits32, norms32, numbers, edge,
                edge_bits, order, chosen,
            )  # fmt: skip
        if count < 0:
            if U.shape[0] == 0:
                U = np.empty((sparsity, row_length(m)))
            for j in range(m):
                alpha[j] = dot(DT[j], y)
            count = _choose_exactly(
                gram, DT, y, alpha, limit, sparsity, forward, U, w, score, bits, norms, numbers, order, chosen,
                dropped, L, z, gamma, r,
            )  # fmt: skip
        worst = _extend(gram, DT, y, chosen, L, z, 0, count)
        _solve(L, z, count, gamma)
        if worst < _REFINE:
            residual_energy(DT, y, chosen, gamma, count, r)
            _correct(DT, L, chosen, r, count, w, step, gamma)
        counts[i] = count
        for k in range(count):
            codes[i, chosen[k]] = gamma[k] * scale * inverse[chosen[k]]


def pursue_batch(
    D: Floats, Y: Floats, limits: Floats, sparsity: int, threads: int, forward: bool = False
) -> tuple[Floats, NDArray[np.int64]]:
    """Choose atoms one by one, the largest ``|d_jᵀr|/‖d_j‖`` first, each followed by least squares on all chosen.

    Args:
        D: Dictionary ``(d, m)``; finite.
        Y: Signals ``(n, d)``; finite, and their squares as well.
        limits: A signal is done when ``‖y - Dx‖`` is at most this, ``(n,)``; 0 for never.
        sparsity: The most atoms.
        threads: Number of threads.
        forward: Choose the atom that lowers the residual most once least squares has followed.

    Returns:
        Codes ``(n, m)`` and the number of atoms ``(n,)``.
    """
    n, m = Y.shape[0], D.shape[1]
    lengths = np.sqrt((D * D).sum(0))
    inverse = np.divide(1.0, lengths, out=np.zeros(m), where=lengths > 0)
    D = D * inverse
    gram = D.T @ D
    single = np.zeros((m, 2 * row_length.py_func((m + 1) // 2)), np.float32)  # rows of an odd number of cache lines
    single[:, :m] = gram
    D32, DT = np.ascontiguousarray(D, np.float32), np.ascontiguousarray(D.T)
    Y, limits = (np.require(a, np.float64, ("C_CONTIGUOUS", "WRITEABLE")) for a in (Y, limits))
    codes, counts = np.zeros((n, m)), np.zeros(n, np.int64)

    def work(lo: int) -> None:
        hi = min(lo + CHUNK, n)
        _pursue_chunk(D32, DT, single, gram, inverse, Y, limits, int(sparsity), bool(forward), lo, hi, codes, counts)

    with uncollected(_pursue_chunk):
        in_chunks(work, n, threads)
    return codes, counts
