"""Compiled passes over the working set of one layer of a joint problem: lists of (position, kernel) entries.

The parts that `_kernels_joint_image.py` puts together. A code of layer j is seen twice: by the residual below over the
window of its kernel, and by the residual above, ``x_j - D_{j+1} x_{j+1}``, at its own entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_joint_windows import Integers, Lines, Reals, jit, window_dot, window_subtract

forget_stale_kernels()


@jit
def count_entries(
    lines: Lines, x: Reals, g: Reals, w: Reals, ratio: Reals, used: Any, level: float, nonnegative: bool,
    starts: Integers
) -> None:  # fmt: skip
    """Set starts[y + 1] to the number of entries of row y that are in use or above `level`."""
    atoms = lines.atoms
    bar = x.dtype.type(level)
    tall, broad = int(w.shape[0] > 1), int(w.shape[1] > 1)
    for y in range(lines.rows):
        count = 0
        if used[y] or ratio[y] > bar:
            for k in range(lines.width):
                begin = y * lines.codes + k * atoms
                here, slope, weights = x[begin : begin + atoms], g[begin : begin + atoms], w[y * tall, k * broad]
                if nonnegative:
                    for a in range(atoms):
                        count += int((here[a] != 0) | (slope[a] > bar * weights[a]))
                else:
                    for a in range(atoms):
                        count += int((here[a] != 0) | (abs(slope[a]) > bar * weights[a]))
        starts[y + 1] = count


@jit
def list_entries(
    lines: Lines, x: Reals, g: Reals, w: Reals, level: float, nonnegative: bool, starts: Integers, at: Integers,
    atom: Integers, place: Integers, values: Reals, weights: Reals
) -> None:  # fmt: skip
    """List what `count_entries` has counted; `starts` holds where every row begins in the list."""
    atoms = lines.atoms
    bar = x.dtype.type(level)
    tall, broad = int(w.shape[0] > 1), int(w.shape[1] > 1)
    for y in range(lines.rows):
        e = starts[y]
        if e == starts[y + 1]:
            continue
        line = y * lines.down
        for k in range(lines.width):
            begin = y * lines.codes + k * atoms
            column = k * lines.right
            if line <= lines.last_line and column <= lines.last_column:
                start = line * lines.pitch + column
            else:
                start = -1 - (line * lines.length + column)
            for a in range(atoms):
                weight = w[y * tall, k * broad, a]
                size = g[begin + a] if nonnegative else abs(g[begin + a])
                if x[begin + a] != 0 or size > bar * weight:
                    at[e], atom[e], place[e] = start, a, begin + a
                    values[e], weights[e] = x[begin + a], weight
                    e += 1


@jit
def scatter(lines: Lines, x: Reals, used: Any, starts: Integers, place: Integers, values: Reals) -> None:
    """Write the listed codes back to the code grid."""
    for y in range(lines.rows):
        used[y] = False
        for e in range(starts[y], starts[y + 1]):
            x[place[e]] = values[e]
            used[y] = used[y] or values[e] != 0


@jit
def sweep(
    lines: Lines, r: Reals, above: Reals, kernels: Reals, curvature: Reals, beta: Any, upper: Any, at: Integers,
    atom: Integers, place: Integers, x: Reals, w: Reals, order: Integers, count: int, nonnegative: bool
) -> int:  # fmt: skip
    """Minimize over one code after the other, and keep both residuals up to date.

    Args:
        lines: Sizes.
        r: The residual below, flat.
        above: The residual above, flat (anything if there is none).
        kernels: ``(atoms, kh, wide)``, flat.
        curvature: ``β‖d_a‖² + β'``.
        beta: β.
        upper: β', 0 if there is no layer above.
        at: Where an entry's window starts in r; negative for windows that wrap around.
        atom: An entry's kernel.
        place: An entry's place in codes and in the residual above.
        x: An entry's code.
        w: An entry's weight.
        order: The entries to visit; out: those that are in use or just left it.
        count: How many.
        nonnegative: Whether codes stay at or above zero.

    Returns:
        The new count, negative (or 0) if nothing moved.
    """
    zero = r.dtype.type(0)
    kept = 0
    moved = False
    for t in range(count):
        e = order[t]
        scale, old = curvature[atom[e]], x[e]
        u = beta * window_dot(lines, r, at[e], kernels, atom[e]) + old * scale
        if upper != zero:
            u -= upper * above[place[e]]
        if u > w[e]:
            new = (u - w[e]) / scale
        elif u < -w[e] and not nonnegative:
            new = (u + w[e]) / scale
        else:
            new = zero
        if new != old:
            window_subtract(lines, r, at[e], kernels, atom[e], new - old)
            if upper != zero:
                above[place[e]] += new - old
            x[e] = new
            moved = True
        if new != zero or old != zero:
            order[kept] = e
            kept += 1
    return kept if moved else -kept


@jit
def subtract(
    lines: Lines, r: Reals, above: Reals, kernels: Reals, upper: Any, at: Integers, atom: Integers, place: Integers,
    x: Reals
) -> None:  # fmt: skip
    """Subtract D x from the residual below and add x to the one above."""
    for e in range(x.size):
        if x[e] != 0:
            window_subtract(lines, r, at[e], kernels, atom[e], x[e])
    if upper != 0:
        for e in range(x.size):
            above[place[e]] += x[e]


@jit
def correlate(
    lines: Lines, r: Reals, above: Reals, kernels: Reals, beta: Any, upper: Any, at: Integers, atom: Integers,
    place: Integers, out: Reals
) -> None:  # fmt: skip
    """Set out to ``β Dᵀr - β' r'`` at the listed entries."""
    for e in range(out.size):
        out[e] = beta * window_dot(lines, r, at[e], kernels, atom[e])
    if upper != 0:
        for e in range(out.size):
            out[e] -= upper * above[place[e]]


@jit
def square(lines: Lines, r: Reals) -> float:
    """Return ``‖r‖²`` in float64."""
    total = 0.0
    for line in range(lines.height):
        row = r[line * lines.pitch : line * lines.pitch + lines.length]
        for k in range(row.size):
            total += np.float64(row[k]) * np.float64(row[k])
    return total


@jit
def weighted(values: Reals, weights: Reals) -> float:
    """Return ``Σ w|x|`` in float64."""
    total = 0.0
    for e in range(values.size):
        if values[e] != 0:
            total += np.float64(weights[e]) * abs(np.float64(values[e]))
    return total


@jit
def inner(first: Reals, second: Reals) -> float:
    """Return the inner product in float64."""
    total = 0.0
    for e in range(first.size):
        total += np.float64(first[e]) * np.float64(second[e])
    return total


@jit
def picked(values: Reals, place: Integers, g: Reals) -> float:
    """Return ``⟨x, g⟩`` in float64, from the listed codes and the whole g."""
    total = 0.0
    for e in range(values.size):
        total += np.float64(values[e]) * np.float64(g[place[e]])
    return total


@jit
def largest(out: Reals, weights: Reals, nonnegative: bool) -> float:
    """Return the largest ratio of listed correlations to their weights."""
    top = 0.0
    for e in range(out.size):
        size = np.float64(out[e] if nonnegative else abs(out[e])) / np.float64(weights[e])
        top = size if size > top else top
    return top


@jit
def slopes(right: Reals, x: Reals, w: Reals, curvature: Reals, atom: Integers, search: Reals) -> float:
    """Make ``Aᵀr`` the negative gradient at fixed signs, and the first search direction; return its energy."""
    energy = 0.0
    for e in range(x.size):
        right[e] -= w[e] if x[e] > 0 else -w[e]
        search[e] = right[e] / curvature[atom[e]]
        energy += np.float64(right[e]) * np.float64(search[e])
    return energy


@jit
def advance(
    direction: Reals, right: Reals, search: Reals, product: Reals, curvature: Reals, atom: Integers, length: Any
) -> float:  # fmt: skip
    """Take a step of conjugate gradients, scaled by the curvature; return the energy of what is left."""
    energy = 0.0
    for e in range(search.size):
        direction[e] += length * search[e]
        right[e] += length * product[e]
        energy += np.float64(right[e]) * np.float64(right[e]) / np.float64(curvature[atom[e]])
    return energy


@jit
def turn(search: Reals, right: Reals, curvature: Reals, atom: Integers, share: Any) -> None:
    """Set the next search direction."""
    for e in range(search.size):
        search[e] = right[e] / curvature[atom[e]] + share * search[e]


@jit
def clip_signs(x: Reals, direction: Reals, length: float, trial: Reals, excess: Reals) -> None:
    """Set trial = x + length·direction, zero where the sign would change; excess = what that takes away."""
    scale = x.dtype.type(length)
    for e in range(x.size):
        value = x[e] + scale * direction[e]
        keeps = (value > 0) == (x[e] > 0) and value != 0
        trial[e] = value if keeps else x.dtype.type(0)
        excess[e] = x.dtype.type(0) if keeps else -value
