"""Compiled passes over the working set of a convolutional problem: lists of (position, kernel) entries, row by row.

The parts that `_kernels_image.py` puts together.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._kernels_windows import Grid, Integers, Reals, jit


@jit
def collect(
    grid: Grid, x: Reals, g: Reals, w: Reals, row_ratio: Reals, used: Any, level: float, nonnegative: bool, first: int,
    last: int, fill: bool, starts: Integers, at: Integers, atom: Integers, place: Integers, values: Reals,
    weights: Reals
) -> None:  # fmt: skip
    """Count the entries of rows first..last that are in use or above `level`, or list them from starts[row] on."""
    atoms, width = x.shape[1], x.shape[2]
    bar = x.dtype.type(level)
    tall, broad = int(w.shape[0] > 1), int(w.shape[2] > 1)
    for y in range(first, last):
        count = 0
        line = y * grid.down
        for a in range(atoms):
            if not used[y, a] and not row_ratio[y, a] > bar:
                continue
            for k in range(width):
                value = x[y, a, k]
                size = g[y, a, k] if nonnegative else abs(g[y, a, k])
                if value != 0 or size > bar * w[y * tall, a, k * broad]:
                    if fill:
                        e = starts[y] + count
                        column = k * grid.right
                        if line <= grid.last_line and column <= grid.last_column:
                            at[e] = line * grid.pitch + column
                        else:
                            at[e] = -1 - (line * grid.length + column)
                        atom[e] = a
                        place[e] = (y * atoms + a) * width + k
                        values[e] = value
                        weights[e] = w[y * tall, a, k * broad]
                    count += 1
        if not fill:
            starts[y + 1] = count


@jit
def scatter(x: Reals, used: Any, starts: Integers, place: Integers, atom: Integers, values: Reals) -> None:
    """Write the listed codes back to the code grid."""
    flat = x.reshape(-1)
    for y in range(x.shape[0]):
        used[y] = False
        for e in range(starts[y], starts[y + 1]):
            flat[place[e]] = values[e]
            if values[e] != 0:
                used[y, atom[e]] = True


@jit
def sums(
    grid: Grid, r: Reals, data: Reals, g: Reals, place: Integers, values: Reals, weights: Reals
) -> tuple[float, float, float, float]:
    """Return ``‖r‖², ⟨r, y⟩, Σ w|x|, ⟨x, g⟩``, each in float64."""
    rr = ry = penalty = inner = 0.0
    for line in range(grid.height):
        start = line * grid.pitch
        for k in range(start, start + grid.length):
            rr += np.float64(r[k]) * np.float64(r[k])
            ry += np.float64(r[k]) * np.float64(data[k])
    flat = g.reshape(-1)
    for e in range(values.size):
        if values[e] != 0:
            penalty += np.float64(weights[e]) * abs(np.float64(values[e]))
            inner += np.float64(values[e]) * np.float64(flat[place[e]])
    return rr, ry, penalty, inner


@jit
def objective_value(grid: Grid, r: Reals, values: Reals, weights: Reals) -> float:
    """Return ``½‖r‖² + Σ w|x|`` in float64."""
    rr = penalty = 0.0
    for line in range(grid.height):
        start = line * grid.pitch
        for k in range(start, start + grid.length):
            rr += np.float64(r[k]) * np.float64(r[k])
    for e in range(values.size):
        penalty += np.float64(weights[e]) * abs(np.float64(values[e]))
    return 0.5 * rr + penalty


@jit
def first_gradient(right: Reals, x: Reals, w: Reals, norms: Reals) -> float:
    """Make correlations with the residual the negative gradient of the objective at fixed signs; return its energy."""
    energy = 0.0
    for e in range(x.size):
        right[e] -= w[e] if x[e] > 0 else -w[e]
        energy += np.float64(right[e]) * np.float64(right[e]) / np.float64(norms[e])
    return energy


@jit
def advance(
    direction: Reals, right: Reals, search: Reals, product: Reals, norms: Reals, energy: float, change: Reals,
    shadow: Reals
) -> tuple[float, float]:  # fmt: skip
    """Take one step of conjugate gradients, scaled by ‖d_a‖²; return the new energy and the step's length."""
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
        following += np.float64(right[e]) * np.float64(right[e]) / np.float64(norms[e])
    ratio = kind(following / energy)
    for e in range(search.size):
        search[e] = right[e] / norms[e] + ratio * search[e]
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
