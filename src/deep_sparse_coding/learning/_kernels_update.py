"""Compiled sweeps of the dictionary update: one atom after the other, for atoms of few channels.

Imported on first use only: numba takes a while to load.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from deep_sparse_coding.kernel_cache import forget_stale_kernels

forget_stale_kernels()

Floats = NDArray[np.float64]
Three = tuple[int, int, int]


@njit(cache=True, fastmath=False)
def project(atom: Floats, fallback: Floats, nonnegative: bool, nonzeros: int) -> None:
    """Make `atom` ``(K, C)`` the unit atom nearest to it: positive part, largest entries, scaled; else the fallback."""
    size, channels = atom.shape
    if nonnegative:
        for u in range(size):
            for c in range(channels):
                atom[u, c] = max(atom[u, c], 0.0)
    if 0 < nonzeros < size * channels:
        flat = np.empty(size * channels)
        for u in range(size):
            for c in range(channels):
                flat[u * channels + c] = abs(atom[u, c])
        level = np.sort(flat)[size * channels - nonzeros]
        ties = nonzeros
        for k in range(flat.size):
            if flat[k] > level:
                ties -= 1
        for u in range(size):
            for c in range(channels):
                value = abs(atom[u, c])
                if value < level or (value == level and ties <= 0):
                    atom[u, c] = 0.0
                elif value == level:
                    ties -= 1
    energy = 0.0
    for u in range(size):
        for c in range(channels):
            energy += atom[u, c] ** 2
    if energy > 0.0:
        scale = 1.0 / math.sqrt(energy)
        for u in range(size):
            for c in range(channels):
                atom[u, c] *= scale
    else:
        atom[:] = fallback


@njit(cache=True, fastmath={"reassoc", "contract"})
def sweep_dense(rows: Floats, gram: Floats, cross: Floats, used: NDArray[np.bool_], flags: tuple[bool, int]) -> None:
    """One pass over the columns of a matrix: each moves to its minimizer on the sphere, the others held.

    Args:
        rows: Atoms ``(atoms, d)``, changed.
        gram: ``Σ x xᵀ``, ``(atoms, atoms)``.
        cross: ``Σ x yᵀ``, ``(atoms, d)``.
        used: Whether an atom is to be moved.
        flags: Whether atoms are held at or above zero, and their non-zeros (0: all).
    """
    atoms, d = rows.shape
    moved = np.empty((1, d))
    out = moved[0]
    for i in range(atoms):
        if not used[i]:
            continue
        for k in range(d):
            out[k] = cross[i, k]
        for j in range(atoms):
            value = gram[i, j]
            if value != 0.0 and j != i:
                for k in range(d):
                    out[k] -= value * rows[j, k]
        project(moved, rows[i : i + 1], flags[0], flags[1])
        for k in range(d):
            rows[i, k] = out[k]


@njit(cache=True, fastmath={"reassoc", "contract"})
def apply_row(gram: Floats, rows: Floats, skip: int, sizes: Three, stride: Three, lags: Three, out: Floats) -> None:
    """Add ``Σ_l Σ_s gram[l, s] d_l[u - q s]`` to ``out[u]``, without the atom `skip`.

    Args:
        gram: ``(atoms, lags)`` of one atom with all.
        rows: Atoms ``(atoms, K, C)``.
        skip: An atom that is left out, or -1.
        sizes: Of kernels, per axis (missing axes first, of size 1).
        stride: q per axis.
        lags: L per axis.
        out: ``(K, C)``, changed.
    """
    atoms, _, channels = rows.shape
    k0, k1, k2 = sizes
    q0, q1, q2 = stride
    l0, l1, l2 = lags
    flat_out = out.reshape(k0 * k1 * k2 * channels)
    for j in range(atoms):
        if j == skip:
            continue
        line, atom = gram[j], rows[j].reshape(k0 * k1 * k2 * channels)
        t = -1
        for s0 in range(-l0, l0 + 1):
            b0 = s0 * q0
            for s1 in range(-l1, l1 + 1):
                b1 = s1 * q1
                for s2 in range(-l2, l2 + 1):
                    t += 1
                    value = line[t]
                    if value == 0.0:
                        continue
                    b2 = s2 * q2
                    low, high = max(b2, 0), min(k2, k2 + b2)
                    width = (high - low) * channels
                    for u0 in range(max(b0, 0), min(k0, k0 + b0)):
                        for u1 in range(max(b1, 0), min(k1, k1 + b1)):
                            into = ((u0 * k1 + u1) * k2 + low) * channels
                            source = (((u0 - b0) * k1 + u1 - b1) * k2 + low - b2) * channels
                            for c in range(width):
                                flat_out[into + c] += value * atom[source + c]


@njit(cache=True, fastmath={"reassoc", "contract"})
def sweep_kernels(
    rows: Floats,
    gram: Floats,
    cross: Floats,
    table: NDArray[np.int64],
    used: NDArray[np.bool_],
    inner: int,
    sizes: Three,
    stride: Three,
    lags: Three,
    flags: tuple[bool, int],
) -> None:
    """One pass over kernels: some steps of majorization on each, the others held.

    Args:
        rows: Atoms ``(atoms, K, C)``, changed.
        gram: ``(atoms, atoms, lags)``.
        cross: ``(atoms, K, C)``.
        table: The place of lag ``(u - v)/q`` in a row of lags, one past the last for none, ``(K, K)``.
        used: Whether an atom is to be moved.
        inner: Steps on an atom.
        sizes: As in `apply_row`.
        stride: As in `apply_row`.
        lags: As in `apply_row`.
        flags: As in `sweep_dense`.
    """
    atoms, size, channels = rows.shape
    count = gram.shape[2]
    own = np.empty((size, size))
    rest, moved = np.empty((size, channels)), np.empty((size, channels))
    for i in range(atoms):
        if not used[i]:
            continue
        rest[:] = -cross[i]
        apply_row(gram[i], rows, i, sizes, stride, lags, rest)
        for u in range(size):
            for v in range(size):
                own[u, v] = gram[i, i, table[u, v]] if table[u, v] < count else 0.0
        bound, square = 0.0, 0.0
        product = own @ own
        for u in range(size):
            total = 0.0
            for v in range(size):
                total += abs(own[u, v])
                square += product[u, v] ** 2
            bound = max(bound, total)
        bound = min(bound, square**0.25)
        if not bound > 0.0:
            continue
        for _ in range(inner):
            for u in range(size):
                for c in range(channels):
                    value = rest[u, c]
                    for v in range(size):
                        value += own[u, v] * rows[i, v, c]
                    moved[u, c] = rows[i, u, c] - value / bound
            project(moved, rows[i], flags[0], flags[1])
            rows[i] = moved
