"""The compiled product of a matrix with vectors that hold many zeros: a zero's column is never read."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from deep_sparse_coding.kernel_cache import forget_stale_kernels

forget_stale_kernels()

Reals = NDArray[Any]  # float32 or float64: every pass is compiled for the precision it is called in
Integers = NDArray[np.int64]

jit: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})

ROWS = 32  # signals whose entries are listed together, so that a panel of the matrix serves them all
PANEL = 256  # outputs in a panel


@jit
def nonzeros(x: Reals) -> int:
    """Return how many entries of ``(rows, inputs)`` are not zero."""
    count = 0
    for r in range(x.shape[0]):
        row = x[r]
        for i in range(x.shape[1]):
            count += row[i] != 0
    return count


@jit
def multiply(x: Reals, columns: Reals, bias: Reals, y: Reals, first: int, last: int) -> None:
    """Write ``y_r = W x_r + b`` for the rows from `first` to before `last`, reading columns of W where x is not zero.

    Args:
        x: ``(rows, inputs)``.
        columns: Wᵀ, ``(inputs, outputs)``, contiguous.
        bias: ``(outputs,)``.
        y: Out: ``(rows, outputs)``, contiguous.
        first: First row.
        last: One after the last row.
    """
    inputs, outputs = columns.shape
    place = np.empty((ROWS, inputs), np.int64)
    value = np.empty((ROWS, inputs), x.dtype)
    counts = np.empty(ROWS, np.int64)
    zero = x.dtype.type(0)
    for start in range(first, last, ROWS):
        rows = min(ROWS, last - start)
        for r in range(rows):
            count = 0
            for i in range(inputs):  # without a branch, which zeros at random places would mislead
                place[r, count] = i
                value[r, count] = x[start + r, i]
                count += x[start + r, i] != zero
            counts[r] = count
        for left in range(0, outputs, PANEL):
            right = min(left + PANEL, outputs)
            for r in range(rows):
                out = y[start + r, left:right]
                out[:] = bias[left:right]
                whole = counts[r] // 4 * 4
                for e in range(0, whole, 4):
                    a, b = columns[place[r, e], left:right], columns[place[r, e + 1], left:right]
                    c, d = columns[place[r, e + 2], left:right], columns[place[r, e + 3], left:right]
                    p, q, s, t = value[r, e], value[r, e + 1], value[r, e + 2], value[r, e + 3]
                    for j in range(right - left):
                        out[j] += (p * a[j] + q * b[j]) + (s * c[j] + t * d[j])
                for e in range(whole, counts[r]):
                    a, p = columns[place[r, e], left:right], value[r, e]
                    for j in range(right - left):
                        out[j] += p * a[j]
