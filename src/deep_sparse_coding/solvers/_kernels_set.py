"""Compiled work on the working set: its compact Gram matrix, which grows and is cut down, and sweeps over it.

The parts that `_kernels_dense.py` puts together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_jit import jit
from ._kernels_support import Floats, Indices, dot, dot_under, row_length

forget_stale_kernels()


@jit
def larger(M: Floats, used: int, cap: int) -> Floats:
    """A copy of the leading block of M in a matrix that has room for `cap` rows."""
    out = np.empty((cap, row_length(cap)))
    for i in range(used):
        for j in range(used):
            out[i, j] = M[i, j]
    return out


@jit
def compact(
    G: Floats,
    iq: Floats,
    x: Floats,
    g: Floats,
    W: Indices,
    size: int,
    A: Indices,
    n: int,
    seen: Any,
    inside: Any,
    place: Indices,
    fresh: Indices,
) -> int:
    """Drop the atoms from the working set that are zero and not in the ordered support A; its new size.

    The factor stays as it is: the order of A does not change, only where it points. `place` and `fresh` are room.
    """
    for k in range(n):
        seen[A[k]] = True
    kept = np.int64(0)
    for a in range(size):
        if seen[a] or x[a] != 0.0:
            seen[a] = False
            place[kept], fresh[a] = a, kept
            kept += 1
        else:
            inside[W[a]] = False
    for a in range(kept):
        old = place[a]
        W[a], x[a], g[a], iq[a] = W[old], x[old], g[old], iq[old]
        for b in range(kept):
            G[a, b] = G[old, place[b]]
    for k in range(n):
        A[k] = fresh[A[k]]
    return int(kept)


@jit
def extend(G: Floats, iq: Floats, W: Indices, size: int, fresh: int, gram: Floats, DT: Floats, square: Floats) -> None:
    """Rows and columns size..fresh of the compact Gram matrix, from the full one or from the atoms themselves."""
    for b in range(size, fresh):
        jb = W[b]
        if gram.shape[0] > 0:
            for a in range(b + 1):
                s = gram[jb, W[a]]
                G[a, b] = s
                G[b, a] = s
        else:
            for a in range(b + 1):
                s = dot_under(DT[W[a]], DT[jb], square) if square.size > 0 else dot(DT[W[a]], DT[jb])
                G[a, b] = s
                G[b, a] = s
        iq[b] = 1.0 / G[b, b] if G[b, b] > 0.0 else 0.0


@jit
def sweep(G: Floats, iq: Floats, x: Floats, g: Floats, w: Floats, size: int, nonnegative: bool) -> bool:
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
