"""Compiled: how far codes with few entries are from their signals, and work in chunks of signals."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_jit import entry, jit, uncollected
from ._kernels_support import Floats, dot, subtract_rows

forget_stale_kernels()

CHUNK = 256  # signals a thread takes at once


@jit
def residual_energy(DT: Floats, y: Floats, chosen: Any, gamma: Floats, count: int, r: Floats) -> float:
    """‖y - D_I γ‖², formed."""
    r[:] = y
    subtract_rows(DT, chosen, gamma, count, r)
    return dot(r, r)


@entry
def _measure_chunk(DT: Floats, Y: Floats, codes: Floats, lo: int, hi: int, energy: Floats, counts: Any) -> None:
    # One place more than atoms: every entry is written, and stays if it is not zero. A branch would be guessed wrong.
    room = DT.shape[0] + 1
    places, values, r = np.empty(room, np.uint32), np.empty(room), np.empty(DT.shape[1])
    for i in range(lo, hi):
        count, row = 0, codes[i]
        for j in range(row.size):
            places[count], values[count] = j, row[j]
            count += row[j] != 0.0
        counts[i] = count
        energy[i] = residual_energy(DT, Y[i], places, values, count, r)


def measure_codes(D: Floats, Y: Floats, codes: Floats, threads: int) -> tuple[Floats, NDArray[np.int64]]:
    """Return ``‖y - Dx‖²`` from the few entries of x that are not zero, and their number, both ``(n,)``.

    Args:
        D: Dictionary ``(d, m)``.
        Y: Signals ``(n, d)``.
        codes: ``(n, m)``.
        threads: Number of threads.
    """
    DT = np.ascontiguousarray(D.T)
    Y, codes = (np.require(a, np.float64, ("C_CONTIGUOUS", "WRITEABLE")) for a in (Y, codes))
    energy, counts = np.empty(len(Y)), np.empty(len(Y), np.int64)

    def work(lo: int) -> None:
        _measure_chunk(DT, Y, codes, lo, min(lo + CHUNK, len(Y)), energy, counts)

    with uncollected(_measure_chunk):
        in_chunks(work, len(Y), threads)
    return energy, counts


def in_chunks(work: Callable[[int], None], count: int, threads: int) -> None:
    """Call `work` with the start of every chunk."""
    chunks = range(0, count, CHUNK)
    if min(threads, len(chunks)) <= 1:
        for lo in chunks:
            work(lo)
        return
    with ThreadPoolExecutor(min(threads, len(chunks))) as pool:
        try:
            for _ in pool.map(work, chunks):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
