"""Compiled passes over images: correlations of a residual with kernels, and coordinate descent on its windows.

The parts that `_kernels_image.py` puts together. An image of C channels is stored as lines ``(H + kh, C, pitch)``: row
y of channel c is line ``y·C + c``, so that the window of a kernel of kh rows is kh·C lines below each other, whatever C
is. Kernels are stored as such lines too, padded with zeros to whole groups of eight entries; what they touch beyond a
window is read and written back unchanged, and the margin of an image keeps that inside its memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

Reals = NDArray[Any]  # float32 or float64: every pass is compiled for the precision it is called in
Integers = NDArray[np.int64]

GROUP = 8  # entries of a kernel line that are multiplied together


# No inf and NaN promises: weights may be inf. Sums may be reordered: that is what makes them vectors.
class Grid(NamedTuple):
    """Sizes of an image's lines, of the kernels and of the code grid.

    Attributes:
        pitch: Entries from one line to the next.
        height: Lines of the image, margin not counted.
        length: Entries of a line, margin not counted.
        lines: Lines of a kernel.
        wide: Entries of a kernel's line, filled up to whole groups.
        down: Lines from a position to the one below it.
        right: Entries from a position to the one right of it.
        last_line: First lines of windows beyond this one wrap around.
        last_column: First columns beyond this one wrap around.
    """

    pitch: int
    height: int
    length: int
    lines: int
    wide: int
    down: int
    right: int
    last_line: int
    last_column: int


jit: Any = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


@jit
def gradient_rows(
    grid: Grid, r: Reals, kernels: Reals, w: Reals, nonnegative: bool, first: int, last: int, g: Reals, row_ratio: Reals
) -> None:
    """Correlate rows first..last of the code grid, ``g[y, a, x] = ⟨d_a, window(y, x)⟩``, and find their largest ratios.

    Args:
        grid: Sizes.
        r: The image's lines, flat; on rings with a margin that repeats what wraps around.
        kernels: ``(atoms, lines, wide)``, flat.
        w: Weights ``(1 or h, atoms, 1 or width)``; positive or inf.
        nonnegative: Whether only positive correlations violate.
        first: First row.
        last: One after the last row.
        g: Out, ``(h, atoms, width)``.
        row_ratio: Out, ``(h, atoms)``: the largest ``|g|/w`` of a row (non-negative codes: ``g/w``).
    """
    pitch, lines, wide, step = grid.pitch, grid.lines, grid.wide, grid.right
    drop = grid.down * pitch
    tall = int(w.shape[0] > 1)
    atoms, width = g.shape[1], g.shape[2]
    zero = r.dtype.type(0)
    one = r.dtype.type(1)
    top, low = np.empty(width, r.dtype), np.empty(width, r.dtype)
    for y in range(first, last):
        for a in range(0, atoms, 2):
            b = min(a + 1, atoms - 1)
            top[:] = zero
            low[:] = zero
            for line in range(lines):
                for group in range(0, wide, 8):
                    p = np.uint64(y * drop + line * pitch + group)
                    i = (a * lines + line) * wide + group
                    j = (b * lines + line) * wide + group
                    a0, a1, a2, a3 = kernels[i], kernels[i + 1], kernels[i + 2], kernels[i + 3]
                    a4, a5, a6, a7 = kernels[i + 4], kernels[i + 5], kernels[i + 6], kernels[i + 7]
                    b0, b1, b2, b3 = kernels[j], kernels[j + 1], kernels[j + 2], kernels[j + 3]
                    b4, b5, b6, b7 = kernels[j + 4], kernels[j + 5], kernels[j + 6], kernels[j + 7]
                    if step == 1:
                        v = r[p : p + np.uint64(width + 7)]
                        for x in range(width):
                            r0, r1, r2, r3 = v[x], v[x + 1], v[x + 2], v[x + 3]
                            r4, r5, r6, r7 = v[x + 4], v[x + 5], v[x + 6], v[x + 7]
                            top[x] += ((r0 * a0 + r1 * a1) + (r2 * a2 + r3 * a3)) + (
                                (r4 * a4 + r5 * a5) + (r6 * a6 + r7 * a7)
                            )
                            low[x] += ((r0 * b0 + r1 * b1) + (r2 * b2 + r3 * b3)) + (
                                (r4 * b4 + r5 * b5) + (r6 * b6 + r7 * b7)
                            )
                    else:
                        for x in range(width):
                            r0, r1, r2, r3 = r[p], r[p + np.uint64(1)], r[p + np.uint64(2)], r[p + np.uint64(3)]
                            r4, r5 = r[p + np.uint64(4)], r[p + np.uint64(5)]
                            r6, r7 = r[p + np.uint64(6)], r[p + np.uint64(7)]
                            top[x] += ((r0 * a0 + r1 * a1) + (r2 * a2 + r3 * a3)) + (
                                (r4 * a4 + r5 * a5) + (r6 * a6 + r7 * a7)
                            )
                            low[x] += ((r0 * b0 + r1 * b1) + (r2 * b2 + r3 * b3)) + (
                                (r4 * b4 + r5 * b5) + (r6 * b6 + r7 * b7)
                            )
                            p += np.uint64(step)
            for k in range(2):
                c = a + k
                if c >= atoms:
                    break
                source = top if k == 0 else low
                largest = zero
                if w.shape[2] == 1:
                    for x in range(width):
                        value = source[x]
                        g[y, c, x] = value
                        size = abs(value) if not nonnegative else value
                        largest = size if size > largest else largest
                    weight = w[y * tall, c, 0]
                    largest = largest * (one / weight) if weight > zero else zero
                else:
                    for x in range(width):
                        value = source[x]
                        g[y, c, x] = value
                        size = (abs(value) if not nonnegative else value) / w[y * tall, c, x]
                        largest = size if size > largest else largest
                row_ratio[y, c] = largest


_intrinsic: Any = intrinsic


def _vector(context: Any, builder: Any, kind: Any) -> tuple[Any, Any, int]:
    """Return the LLVM types of a number and of eight of them, and a number's size in bytes."""
    real = context.get_value_type(kind)
    return real, ir.VectorType(real, GROUP), kind.bitwidth // 8


def _each_group(context: Any, builder: Any, args: Any, kinds: Any) -> Any:
    """Loop over the groups of a window and of its kernel; yield the two addresses, as addresses of vectors."""
    r, at, kernels, k, lines, wide, pitch = args
    _, vector, _ = _vector(context, builder, kinds[0].dtype)
    base = [make_array(kinds[i])(context, builder, value).data for i, value in ((0, r), (2, kernels))]
    with cgutils.for_range(builder, lines) as line:
        starts = [
            builder.add(at, builder.mul(line.index, pitch)),
            builder.add(k, builder.mul(line.index, wide)),
        ]
        groups = builder.sdiv(wide, ir.Constant(wide.type, GROUP))
        with cgutils.for_range(builder, groups) as group:
            move = builder.mul(group.index, ir.Constant(wide.type, GROUP))
            places = [
                builder.bitcast(builder.gep(b, [builder.add(s, move)]), vector.as_pointer())
                for b, s in zip(base, starts, strict=True)
            ]
            yield places


_FUSE = ("contract",)


# Written as vectors by hand: compilers see eight separate sums in the loop below each other and multiply one by one.
@_intrinsic
def _dot(typing: Any, r: Any, at: Any, kernels: Any, k: Any, lines: Any, wide: Any, pitch: Any) -> Any:
    """Return the correlation of the window that starts at r[at] with the kernel that starts at kernels[k]."""
    count = types.int64
    signature = r.dtype(r, count, kernels, count, count, count, count)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, vector, size = _vector(context, builder, signature.args[0].dtype)
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * GROUP))
        for window, kernel in _each_group(context, builder, args, signature.args):
            product = builder.fmul(builder.load(window, align=size), builder.load(kernel, align=size), flags=_FUSE)
            builder.store(builder.fadd(builder.load(total), product, flags=_FUSE), total)
        whole, half = builder.load(total), GROUP
        while half > 1:
            half //= 2
            index = ir.VectorType(ir.IntType(32), half)
            parts = [
                builder.shuffle_vector(whole, whole, ir.Constant(index, list(range(low, low + half))))
                for low in (0, half)
            ]
            whole = builder.fadd(parts[0], parts[1])
        return builder.extract_element(whole, ir.Constant(ir.IntType(32), 0))

    return signature, build


@_intrinsic
def _subtract(typing: Any, r: Any, at: Any, kernels: Any, k: Any, lines: Any, wide: Any, pitch: Any, scale: Any) -> Any:
    """Subtract `scale` times a kernel from the window that starts at r[at]."""
    count = types.int64
    signature = types.void(r, count, kernels, count, count, count, count, r.dtype)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, vector, size = _vector(context, builder, signature.args[0].dtype)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), args[7], ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), GROUP), [0] * GROUP)
        scales = builder.shuffle_vector(one, one, zeros)
        for window, kernel in _each_group(context, builder, args[:7], signature.args):
            product = builder.fmul(scales, builder.load(kernel, align=size), flags=_FUSE)
            old = builder.load(window, align=size)
            builder.store(builder.fsub(old, product, flags=_FUSE), window, align=size)
        return context.get_dummy_value()

    return signature, build


@jit
def _wrapped_dot(grid: Grid, r: Reals, at: int, kernels: Reals, k: int) -> Any:
    """Return what `_dot` does for a window that leaves the ring: ``at = -1 - (line · length + column)``."""
    lines, wide, pitch = grid.lines, grid.wide, grid.pitch
    first, left = (-1 - at) // grid.length, (-1 - at) % grid.length
    below = min(lines, grid.height - first)
    if left <= grid.last_column:
        total = _dot(r, first * pitch + left, kernels, k, below, wide, pitch)
        return total + _dot(r, left, kernels, k + below * wide, lines - below, wide, pitch)
    total = r.dtype.type(0)
    inside = min(grid.length - left, wide)
    for line in range(lines):
        row = (first + line if line < below else line - below) * pitch
        q = k + line * wide
        for c in range(inside):
            total += r[row + left + c] * kernels[q + c]
        for c in range(inside, wide):
            total += r[row + c - inside] * kernels[q + c]
    return total


@jit
def _wrapped_subtract(grid: Grid, r: Reals, at: int, kernels: Reals, k: int, scale: Any) -> None:
    """Do what `_subtract` does for a window that leaves the ring."""
    lines, wide, pitch = grid.lines, grid.wide, grid.pitch
    first, left = (-1 - at) // grid.length, (-1 - at) % grid.length
    below = min(lines, grid.height - first)
    if left <= grid.last_column:
        _subtract(r, first * pitch + left, kernels, k, below, wide, pitch, scale)
        _subtract(r, left, kernels, k + below * wide, lines - below, wide, pitch, scale)
        return
    inside = min(grid.length - left, wide)
    for line in range(lines):
        row = (first + line if line < below else line - below) * pitch
        q = k + line * wide
        for c in range(inside):
            r[row + left + c] -= scale * kernels[q + c]
        for c in range(inside, wide):
            r[row + c - inside] -= scale * kernels[q + c]


@jit
def sweep_strips(
    grid: Grid, r: Reals, kernels: Reals, norms: Reals, at: Integers, atom: Integers, x: Reals, w: Reals,
    bounds: Integers, first: int, step: int, sweeps: int, nonnegative: bool, order: Integers
) -> None:  # fmt: skip
    """Sweep over every strip: the first time over all its entries, then over those in use and those that just moved.

    Args:
        grid: Sizes.
        r: The residual's lines, flat.
        kernels: ``(atoms, lines, wide)``, flat.
        norms: ``‖d_a‖²``.
        at: Where an entry's window starts in r; negative for windows that wrap around (see `_wrapped_dot`).
        atom: An entry's kernel.
        x: An entry's code.
        w: An entry's weight.
        bounds: Strip i holds the entries bounds[i] to bounds[i + 1].
        first: First strip.
        step: From a strip to the next.
        sweeps: The most sweeps.
        nonnegative: Whether codes stay at or above zero.
        order: Workspace, as long as the list.
    """
    zero = r.dtype.type(0)
    lines, wide, pitch = grid.lines, grid.wide, grid.pitch
    for i in range(first, bounds.size - 1, step):
        lo, hi = bounds[i], bounds[i + 1]
        count = hi - lo
        for k in range(lo, hi):
            order[k] = k
        for _ in range(sweeps):
            kept = 0
            moved = False
            for t in range(lo, lo + count):
                e = order[t]
                start, k = at[e], atom[e] * lines * wide
                norm = norms[atom[e]]
                old = x[e]
                if start >= 0:
                    u = _dot(r, start, kernels, k, lines, wide, pitch)
                else:
                    u = _wrapped_dot(grid, r, start, kernels, k)
                u += old * norm
                if u > w[e]:
                    new = (u - w[e]) / norm
                elif u < -w[e] and not nonnegative:
                    new = (u + w[e]) / norm
                else:
                    new = zero
                if new != old:
                    if start >= 0:
                        _subtract(r, start, kernels, k, lines, wide, pitch, new - old)
                    else:
                        _wrapped_subtract(grid, r, start, kernels, k, new - old)
                    x[e] = new
                    moved = True
                if new != zero or old != zero:
                    order[lo + kept] = e
                    kept += 1
            count = kept
            if not moved:
                break


@jit
def subtract_strips(
    grid: Grid,
    r: Reals,
    kernels: Reals,
    at: Integers,
    atom: Integers,
    x: Reals,
    bounds: Integers,
    first: int,
    step: int,
) -> None:
    """Subtract the codes of every strip from the image r; arguments as in `sweep_strips`."""
    lines, wide = grid.lines, grid.wide
    for i in range(first, bounds.size - 1, step):
        for e in range(bounds[i], bounds[i + 1]):
            if x[e] != 0:
                k = atom[e] * lines * wide
                if at[e] >= 0:
                    _subtract(r, at[e], kernels, k, lines, wide, grid.pitch, x[e])
                else:
                    _wrapped_subtract(grid, r, at[e], kernels, k, x[e])


@jit
def correlate_strips(
    grid: Grid,
    r: Reals,
    kernels: Reals,
    at: Integers,
    atom: Integers,
    bounds: Integers,
    first: int,
    step: int,
    out: Reals,
) -> None:
    """Correlate the image r with the entries of every strip; arguments as in `sweep_strips`."""
    lines, wide = grid.lines, grid.wide
    for i in range(first, bounds.size - 1, step):
        for e in range(bounds[i], bounds[i + 1]):
            k = atom[e] * lines * wide
            if at[e] >= 0:
                out[e] = _dot(r, at[e], kernels, k, lines, wide, grid.pitch)
            else:
                out[e] = _wrapped_dot(grid, r, at[e], kernels, k)
