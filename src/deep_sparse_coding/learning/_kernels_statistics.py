"""Compiled sums over pairs of non-zeros: what a dictionary update needs to know of sparse code maps.

Imported on first use only: numba takes a while to load. All grids have three axes; those that are missing have size 1.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deep_sparse_coding.kernel_cache import forget_stale_kernels

forget_stale_kernels()


@njit(cache=True)
def correlate_codes(
    atom: NDArray[np.int64],
    place: NDArray[np.int64],
    values: NDArray[np.float64],
    first: NDArray[np.int64],
    grid: tuple[int, int, int],
    lags: tuple[int, int, int],
    circular: bool,
    out: NDArray[np.float64],
) -> None:
    """Add ``Σ_p x_i[p] x_l[p + s]`` to ``out[i, l, s + L]`` for all lags up to L.

    Args:
        atom: i of every non-zero; they are sorted by sample and place.
        place: Sample and position as one number.
        values: x.
        first: Where the non-zeros of a place begin, ``(places + 1,)``.
        grid: Positions per axis.
        lags: L per axis.
        circular: Whether the grid is a ring along every axis.
        out: ``(atoms, atoms, 2L + 1, 2L + 1, 2L + 1)``.
    """
    h0, h1, h2 = grid
    l0, l1, l2 = lags
    for t in range(len(values)):
        i, value = atom[t], values[t]
        rest, p2 = divmod(place[t], h2)
        rest, p1 = divmod(rest, h1)
        sample, p0 = divmod(rest, h0)
        for s0 in range(-l0, l0 + 1):
            q0 = p0 + s0
            if circular:
                q0 %= h0
            elif q0 < 0 or q0 >= h0:
                continue
            for s1 in range(-l1, l1 + 1):
                q1 = p1 + s1
                if circular:
                    q1 %= h1
                elif q1 < 0 or q1 >= h1:
                    continue
                row = ((sample * h0 + q0) * h1 + q1) * h2
                if circular:
                    for s2 in range(-l2, l2 + 1):
                        q = row + (p2 + s2) % h2
                        for u in range(first[q], first[q + 1]):
                            out[i, atom[u], s0 + l0, s1 + l1, s2 + l2] += value * values[u]
                else:
                    low, high = max(p2 - l2, 0), min(p2 + l2, h2 - 1)
                    shift = l2 - p2 - row
                    for u in range(first[row + low], first[row + high + 1]):
                        out[i, atom[u], s0 + l0, s1 + l1, place[u] + shift] += value * values[u]


@njit(cache=True)
def correlate_signal(
    atom: NDArray[np.int64],
    place: NDArray[np.int64],
    values: NDArray[np.float64],
    signal: NDArray[np.floating],
    grid: tuple[int, int, int],
    stride: tuple[int, int, int],
    out: NDArray[np.float64],
) -> None:
    """Add ``Σ_p x_i[p] y[q p + u]`` to ``out[i, u]``, where positions wrap around the signal.

    Args:
        atom: i of every non-zero.
        place: Sample and position as one number.
        values: x.
        signal: ``(samples, n, n, n, channels)``.
        grid: Positions of the code per axis.
        stride: q per axis.
        out: ``(atoms, k, k, k, channels)``.
    """
    h0, h1, h2 = grid
    n0, n1, n2, channels = signal.shape[1], signal.shape[2], signal.shape[3], signal.shape[4]
    k0, k1, k2 = out.shape[1], out.shape[2], out.shape[3]
    for t in range(len(values)):
        i, value = atom[t], values[t]
        rest, p2 = divmod(place[t], h2)
        rest, p1 = divmod(rest, h1)
        sample, p0 = divmod(rest, h0)
        for u0 in range(k0):
            y0 = (p0 * stride[0] + u0) % n0
            for u1 in range(k1):
                y1 = (p1 * stride[1] + u1) % n1
                for u2 in range(k2):
                    y2 = (p2 * stride[2] + u2) % n2
                    for c in range(channels):
                        out[i, u0, u1, u2, c] += value * signal[sample, y0, y1, y2, c]


@njit(cache=True)
def multiply_codes(
    index: NDArray[np.int64],
    values: NDArray[np.float64],
    signal: NDArray[np.floating],
    gram: NDArray[np.float64],
    cross: NDArray[np.float64],
) -> None:
    """Add ``Σ x xᵀ`` to `gram` and ``Σ x yᵀ`` to `cross`.

    Args:
        index: ``sample·atoms + atom`` of every non-zero, rising.
        values: x.
        signal: ``(samples, d)``.
        gram: ``(atoms, atoms)``.
        cross: ``(atoms, d)``.
    """
    atoms, d = cross.shape
    begin = 0
    while begin < len(index):
        sample = index[begin] // atoms
        end = begin
        while end < len(index) and index[end] // atoms == sample:
            end += 1
        for t in range(begin, end):
            i, value = index[t] - sample * atoms, values[t]
            for u in range(begin, end):
                gram[i, index[u] - sample * atoms] += value * values[u]
            for k in range(d):
                cross[i, k] += value * signal[sample, k]
        begin = end
