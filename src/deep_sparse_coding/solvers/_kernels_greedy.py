"""Compiled orthogonal matching pursuit for dense dictionaries: correlations from the Gram matrix, a growing factor.

For every signal neither the residual nor the orthonormal directions q_t of the chosen atoms are formed, only
``u_t = Dᵀq_t = (G_k - Σ_a u_a[k] u_a)/ρ_t``: then ``Dᵀr`` falls by ``z_t u_t`` with ``z_t = d_kᵀr/ρ_t``, ``‖r‖²`` by
``z_t²``, and ``u_a[k]`` are the entries of the Cholesky factor, solved with once at the end. Where ``‖r‖²`` cancels
(below 1e-6 of ‖y‖²) the residual is formed after all.

Source: Pati, Rezaiifar & Krishnaprasad 1993; Rubinstein, Zibulevsky & Elad 2008 (the Gram matrix in its place).
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._kernels_support import Floats, jit, row_length, subtract_rows

_CHUNK = 256  # signals a thread takes at once
_SPAN = 1e-12  # a squared pivot below this share of ‖d_j‖²: the atom lies in the span of those chosen
_CANCELS = 1e-6  # below this share of ‖y‖² the running ‖r‖² is not trusted
_REFINE = 1e-4  # where a squared pivot falls below this share of ‖d_j‖², the coefficients are refined once
_ROUNDING = 1e-14  # correlations below this share of ‖d_j‖‖y‖ choose no atom


@jit
def _largest(score: Floats, bits: Any) -> int:
    """Index of the largest entry of non-negative numbers: doubles are ordered like their bit patterns."""
    top = np.int64(0)
    for j in range(bits.size):
        top = max(top, bits[j])
    for j in range(bits.size):
        if bits[j] == top:
            return j
    return 0


@jit
def _residual(DT: Floats, y: Floats, chosen: Any, gamma: Floats, count: int, r: Floats) -> float:
    """‖y - D_I γ‖², formed."""
    for k in range(y.size):
        r[k] = y[k]
    subtract_rows(DT, chosen, gamma, count, r)
    total = 0.0
    for k in range(r.size):
        total += r[k] * r[k]
    return total


@jit
def _solve(L: Floats, diag: Floats, z: Floats, count: int, gamma: Floats) -> None:
    """Solve Lᵀ gamma = z."""
    for a in range(count - 1, -1, -1):
        s = z[a]
        for b in range(a + 1, count):
            s -= L[b, a] * gamma[b]
        gamma[a] = s * diag[a]


@jit
def _correct(
    DT: Floats, L: Floats, diag: Floats, chosen: Any, r: Floats, count: int, w: Floats, step: Floats, gamma: Floats
) -> None:
    """Refine once, gamma += (D_IᵀD_I)⁻¹ D_Iᵀr: what an ill-conditioned factor lost comes back."""
    for a in range(count):
        s = 0.0
        for k in range(r.size):
            s += DT[chosen[a], k] * r[k]
        for b in range(a):
            s -= L[a, b] * w[b]
        w[a] = s * diag[a]
    _solve(L, diag, w, count, step)
    for a in range(count):
        gamma[a] += step[a]


@jit
def _pursue_chunk(
    DT: Floats,
    gram: Floats,
    Y: Floats,
    corr: Floats,
    inverse: Floats,
    limits: Floats,
    sparsity: int,
    lo: int,
    hi: int,
    codes: Floats,
    counts: Any,
) -> None:
    m, d = DT.shape
    L, U = np.empty((sparsity, row_length(sparsity))), np.empty((sparsity, row_length(m)))
    diag, z, gamma, w = np.empty(sparsity), np.empty(sparsity), np.empty(sparsity), np.empty(sparsity)
    step = np.empty(sparsity)
    chosen, dropped, order = np.empty(sparsity, np.uint32), np.empty(m, np.uint32), np.empty(sparsity, np.uint32)
    alpha, score, u, r = np.empty(m), np.empty(m), np.empty(m), np.empty(d)
    bits = score.view(np.int64)
    for k in range(sparsity):
        order[k] = k
    for i in range(lo, hi):
        energy = 0.0
        for k in range(d):
            energy += Y[i, k] * Y[i, k]
        limit = limits[i] * limits[i]
        floor = _ROUNDING * math.sqrt(energy)
        error, count, out, worst = energy, 0, 0, 1.0
        for j in range(m):
            alpha[j] = corr[i, j]
            score[j] = abs(alpha[j]) * inverse[j]
        while count < sparsity and error > limit:
            for k in range(count):
                score[chosen[k]] = 0.0
            for k in range(out):
                score[dropped[k]] = 0.0
            best = _largest(score, bits)
            if not score[best] > floor:
                break
            pivot = gram[best, best]
            for a in range(count):
                w[a] = U[a, best]
                pivot -= w[a] * w[a]
            if not pivot > _SPAN * gram[best, best]:
                dropped[out] = best
                out += 1
                continue
            worst = min(worst, pivot / gram[best, best])
            for a in range(count):
                L[count, a] = w[a]
            scale = 1.0 / math.sqrt(pivot)
            fall = alpha[best] * scale
            diag[count], z[count], chosen[count] = scale, fall, best
            error -= fall * fall
            count += 1
            if count < sparsity:
                row = U[count - 1]
                for j in range(m):
                    u[j] = gram[best, j]
                subtract_rows(U, order, w, count - 1, u)
                for j in range(m):
                    v = u[j] * scale
                    row[j] = v
                    alpha[j] -= fall * v
                    score[j] = abs(alpha[j]) * inverse[j]
            if limit > 0.0 and error < _CANCELS * energy:
                _solve(L, diag, z, count, gamma)
                error = _residual(DT, Y[i], chosen, gamma, count, r)
            elif limit == 0.0:
                error = max(error, 1e-300)  # equality is for the correlations to tell
        _solve(L, diag, z, count, gamma)
        if worst < _REFINE:
            _residual(DT, Y[i], chosen, gamma, count, r)
            _correct(DT, L, diag, chosen, r, count, w, step, gamma)
        counts[i] = count
        for k in range(count):
            codes[i, chosen[k]] = gamma[k]


def _plain(a: Floats) -> Floats:
    return np.require(a, np.float64, ("C_CONTIGUOUS", "WRITEABLE"))


def pursue_batch(
    D: Floats, gram: Floats, Y: Floats, corr: Floats, limits: Floats, sparsity: int, threads: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Choose atoms one by one, the largest ``|d_jᵀr|/‖d_j‖`` first, each followed by least squares on all chosen.

    Args:
        D: Dictionary ``(d, m)``; finite.
        gram: DᵀD ``(m, m)``.
        Y: Signals ``(n, d)``; finite.
        corr: YD ``(n, m)``.
        limits: A signal is done when ``‖y - Dx‖`` is at most this, ``(n,)``; 0 for never.
        sparsity: The most atoms.
        threads: Number of threads.

    Returns:
        Codes ``(n, m)`` and the number of atoms ``(n,)``.
    """
    n, m = Y.shape[0], D.shape[1]
    DT = _plain(D.T)
    gram, Y, corr, limits = _plain(gram), _plain(Y), _plain(corr), _plain(limits)
    inverse = 1.0 / np.sqrt(np.diag(gram).clip(np.finfo(np.float64).tiny))
    inverse[np.diag(gram) == 0.0] = 0.0
    codes, counts = np.zeros((n, m)), np.zeros(n, np.int64)

    def work(lo: int) -> None:
        hi = min(lo + _CHUNK, n)
        _pursue_chunk(DT, gram, Y, corr, inverse, limits, int(sparsity), lo, hi, codes, counts)

    chunks = range(0, n, _CHUNK)
    if min(threads, len(chunks)) <= 1:
        for lo in chunks:
            work(lo)
        return codes, counts
    with ThreadPoolExecutor(min(threads, len(chunks))) as pool:
        try:
            for _ in pool.map(work, chunks):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return codes, counts
