"""Compiled passes over the working set of a convolutional problem: lists of (position, kernel) entries, row by row.

The parts that `_kernels_image.py` puts together. Entries are ordered by row, kernel and column; `place` counts through
all of them, ``(row·atoms + kernel)·width + column``, and ``starts[row]`` says where a row begins in the list.
"""

from __future__ import annotations

import numpy as np

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_correlate import VECTOR, Integers, Reals, above, jit, trailing_zeros
from ._kernels_windows import Grid

forget_stale_kernels()


@jit
def find(codes: Reals, starts: Integers, fill: bool, place: Integers, values: Reals) -> None:
    """Count codes ``(atoms, h, width)`` that are not zero into starts[row + 1], or list them from starts[row] on."""
    atoms, rows, width = codes.shape
    flat = codes.reshape(-1)
    lanes = VECTOR // codes.itemsize
    zero = codes.dtype.type(0)
    whole = width // lanes * lanes
    for y in range(rows):
        e = starts[y]
        count = 0
        for a in range(atoms):
            line = (a * rows + y) * width
            for x in range(0, width, lanes):
                if x < whole and above(flat, line + x, zero, False) == 0:
                    continue
                for k in range(x, min(x + lanes, width)):
                    if flat[line + k] != zero:
                        if fill:
                            place[e + count] = (y * atoms + a) * width + k
                            values[e + count] = flat[line + k]
                        count += 1
        if not fill:
            starts[y + 1] = count


@jit
def collect(
    grid: Grid, width: int, g: Reals, w: Reals, norms: Reals, row_ratio: Reals, level: float, nonnegative: bool,
    first: int, last: int, old_starts: Integers, old_place: Integers, old_values: Reals, fill: bool, starts: Integers,
    at: Integers, kernel: Integers, place: Integers, values: Reals, weights: Reals, squares: Reals
) -> None:  # fmt: skip
    """Merge the entries of rows first..last that are in use with those above `level`: count them, or list them.

    Args:
        grid: Sizes.
        width: Positions of a row.
        g: Correlations ``(h, atoms, span)``; a row is read only where its ratio is above `level`.
        w: Weights ``(1 or h, atoms, 1 or width)``.
        norms: ``‖d_i‖²``, ``(1 or h, atoms, 1 or more than width)``.
        row_ratio: ``(h, atoms)``.
        level: At least 1.
        nonnegative: Whether only positive correlations count.
        first: First row.
        last: One after the last row.
        old_starts: Where rows begin in the old list.
        old_place: The old list's places.
        old_values: The old list's codes; zeros are left out.
        fill: Whether to list from starts[row] on, or to count into starts[row + 1].
        starts: Where rows begin in the new list.
        at: Out: where an entry's window starts in the image; see `sweep_strips`.
        kernel: Out: where its kernel starts.
        place: Out.
        values: Out: codes.
        weights: Out: its weight.
        squares: Out: its squared norm.
    """
    atoms, across = g.shape[1], g.shape[2]
    tall, broad = int(w.shape[0] > 1), int(w.shape[2] > 1)
    high, long = int(norms.shape[0] > 1), int(norms.shape[2] > 1)
    lanes = VECTOR // g.itemsize
    flat = g.reshape(-1)
    bar = g.dtype.type(level)
    zero = g.dtype.type(0)
    columns = np.empty(width, np.int64)
    for y in range(first, last):
        e = starts[y]
        count = 0
        line = y * grid.down
        old, end = old_starts[y], old_starts[y + 1]
        for a in range(atoms):
            base = (y * atoms + a) * width
            found = 0
            if row_ratio[y, a] > bar:
                from_here = (y * atoms + a) * across
                if broad:
                    for k in range(width):
                        size = flat[from_here + k] if nonnegative else abs(flat[from_here + k])
                        if size > bar * w[y * tall, a, k]:
                            columns[found] = k
                            found += 1
                else:
                    limit = bar * w[y * tall, a, 0]
                    for x in range(0, width, lanes):
                        bits = above(flat, from_here + x, limit, nonnegative)
                        while bits:
                            columns[found] = x + trailing_zeros(bits)
                            found += 1
                            bits &= bits - 1
            # Merge what was found with what is in use.
            t = 0
            while True:
                while old < end and old_values[old] == zero:
                    old += 1
                k = columns[t] if t < found else width
                value = zero
                if old < end and old_place[old] <= base + k and old_place[old] < base + width:
                    t += int(old_place[old] == base + k)
                    k, value = old_place[old] - base, old_values[old]
                    old += 1
                elif k < width:
                    t += 1
                else:
                    break
                if fill:
                    i, column = e + count, k * grid.right
                    inside = line <= grid.last_line and column <= grid.last_column
                    at[i] = grid.origin + line * grid.pitch + column if inside else -1 - (line * grid.length + column)
                    kernel[i] = a * grid.lines * grid.wide
                    place[i] = base + k
                    values[i] = value
                    weights[i] = w[y * tall, a, k * broad]
                    squares[i] = norms[y * high, a, k * long]
                count += 1
        if not fill:
            starts[y + 1] = count


@jit
def scatter(codes: Reals, starts: Integers, place: Integers, values: Reals, scale: float) -> None:
    """Write the listed codes, times `scale`, into codes ``(atoms, h, width)`` that are zero."""
    atoms, rows, width = codes.shape
    for y in range(rows):
        for e in range(starts[y], starts[y + 1]):
            rest = place[e] - y * atoms * width
            codes[rest // width, y, rest % width] = values[e] * scale


@jit
def keep_used(
    starts: Integers, at: Integers, kernel: Integers, place: Integers, values: Reals, weights: Reals, squares: Reals
) -> int:
    """Take the entries at zero off the list, in place; return how many are left."""
    count = 0
    for y in range(starts.size - 1):
        first, last = starts[y], starts[y + 1]
        starts[y] = count
        for e in range(first, last):
            if values[e] != 0:
                at[count], kernel[count], place[count] = at[e], kernel[e], place[e]
                values[count], weights[count], squares[count] = values[e], weights[e], squares[e]
                count += 1
    starts[starts.size - 1] = count
    return count


@jit
def sums(grid: Grid, r: Reals, data: Reals, values: Reals, weights: Reals) -> tuple[float, float, float]:
    """Return ``‖r‖², ⟨r, y⟩, Σ w|x|``, each in float64."""
    rr = ry = penalty = 0.0
    for line in range(grid.height):
        start = grid.origin + line * grid.pitch
        for k in range(start, start + grid.length):
            rr += np.float64(r[k]) * np.float64(r[k])
            ry += np.float64(r[k]) * np.float64(data[k])
    for e in range(values.size):
        if values[e] != 0:
            penalty += np.float64(weights[e]) * abs(np.float64(values[e]))
    return rr, ry, penalty


@jit
def complementarity(correlations: Reals, values: Reals, weights: Reals, alpha: float) -> float:
    """Return ``Σ (w|x| - α x Dᵀr)`` in float64, no term below zero: feasibility makes it so, but for rounding."""
    total = 0.0
    for e in range(values.size):
        if values[e] != 0:
            x = np.float64(values[e])
            total += max(np.float64(weights[e]) * abs(x) - alpha * x * np.float64(correlations[e]), 0.0)
    return total


@jit
def objective_value(grid: Grid, r: Reals, values: Reals, weights: Reals) -> float:
    """Return ``½‖r‖² + Σ w|x|`` in float64."""
    rr = penalty = 0.0
    for line in range(grid.height):
        start = grid.origin + line * grid.pitch
        for k in range(start, start + grid.length):
            rr += np.float64(r[k]) * np.float64(r[k])
    for e in range(values.size):
        penalty += np.float64(weights[e]) * abs(np.float64(values[e]))
    return 0.5 * rr + penalty


@jit
def first_gradient(right: Reals, x: Reals, w: Reals, squares: Reals) -> float:
    """Make correlations with the residual the negative gradient of the objective at fixed signs; return its energy."""
    energy = 0.0
    for e in range(x.size):
        right[e] -= w[e] if x[e] > 0 else -w[e]
        energy += np.float64(right[e]) * np.float64(right[e]) / np.float64(squares[e])
    return energy


@jit
def advance(
    direction: Reals, right: Reals, search: Reals, product: Reals, squares: Reals, energy: float, change: Reals,
    shadow: Reals
) -> tuple[float, float]:  # fmt: skip
    """Take one step of conjugate gradients, scaled by ‖d_i‖²; return the new energy and the step's length."""
    kind = right.dtype.type
    curvature = 0.0
    for e in range(search.size):
        curvature -= np.float64(search[e]) * np.float64(product[e])
    if not curvature > 0.0 or not energy > 0.0:
        return energy, 0.0
    length = kind(energy / curvature)
    following = 0.0
    for e in range(search.size):
        direction[e] += length * search[e]
        right[e] += length * product[e]
        following += np.float64(right[e]) * np.float64(right[e]) / np.float64(squares[e])
    ratio = kind(following / energy)
    for e in range(search.size):
        search[e] = right[e] / squares[e] + ratio * search[e]
    for k in range(change.size):
        change[k] += length * shadow[k]
    return following, float(length)


@jit
def clip_signs(x: Reals, direction: Reals, length: float, trial: Reals, excess: Reals) -> None:
    """Set trial = x + length·direction, zero where the sign would change; excess = what that takes away."""
    scale = x.dtype.type(length)
    for e in range(x.size):
        value = x[e] + scale * direction[e]
        keeps = (value > 0) == (x[e] > 0) and value != 0
        trial[e] = value if keeps else x.dtype.type(0)
        excess[e] = x.dtype.type(0) if keeps else -value
