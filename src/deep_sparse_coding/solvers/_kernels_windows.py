"""Compiled passes over windows of an image: coordinate descent, subtraction and correlation of listed entries.

The parts that `_kernels_image.py` puts together. An image of C channels is stored as lines ``(H + kh, C, pitch)``: row
y of channel c is line ``y·C + c``, so that the window of a kernel of kh rows is kh·C lines below each other, whatever C
is. Kernels are stored as such lines too, padded with zeros to whole groups of eight entries; what they touch beyond a
window is read and written back unchanged, and the margin of an image keeps that inside its memory. A mask is an image
of ones and zeros, or empty; residuals are zero where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_correlate import Integers, Reals, jit

forget_stale_kernels()

GROUP = 8  # entries of a kernel line that are multiplied together
_UNROLLED = 4  # lines of a window at a time, a power of two
_FUSE = ("contract",)


class Grid(NamedTuple):
    """Sizes of an image's lines, of the kernels and of the code grid.

    Attributes:
        pitch: Entries from one line to the next.
        origin: Where the first line begins: what wraps around may be read from before a line.
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
    origin: int
    height: int
    length: int
    lines: int
    wide: int
    down: int
    right: int
    last_line: int
    last_column: int


_intrinsic: Any = intrinsic


def _vector(context: Any, builder: Any, kind: Any) -> tuple[Any, Any, int]:
    """Return the LLVM types of a number and of eight of them, and a number's size in bytes."""
    real = context.get_value_type(kind)
    return real, ir.VectorType(real, GROUP), kind.bitwidth // 8


def _each_group(
    context: Any, builder: Any, args: Any, kinds: Any, images: tuple[int, ...], visit: Callable[..., None]
) -> None:
    """Call ``visit(number, kernel, *addresses)`` for every group of a kernel and of windows at the same place.

    Lines are taken _UNROLLED at a time, and `number` says which of these it is. Addresses are those of vectors.

    Args:
        context: Of the compiler.
        builder: Of the compiler.
        args: r, at, kernels, k, lines, wide, pitch, low, high and what follows: entries of the kernel's lines before
            `low` and from `high` on count as zero, unless `low` is None.
        kinds: Their types.
        images: Which of `args` are images.
        visit: What to build.
    """
    at, kernels, k, lines, wide, pitch, low, high = args[1:9]
    _, vector, size = _vector(context, builder, kinds[0].dtype)
    base = [make_array(kinds[i])(context, builder, args[i]).data for i in images]
    taps = make_array(kinds[2])(context, builder, kernels).data
    whole = wide.type
    groups = builder.sdiv(wide, ir.Constant(whole, GROUP))
    many = builder.sdiv(lines, ir.Constant(whole, _UNROLLED))
    done = builder.mul(many, ir.Constant(whole, _UNROLLED))

    def line_at(line: Any, move: Any, number: int, inside: Any) -> None:
        window = builder.add(builder.add(at, move), builder.mul(line, pitch))
        place = builder.gep(taps, [builder.add(builder.add(k, move), builder.mul(line, wide))])
        kernel = builder.load(builder.bitcast(place, vector.as_pointer()), align=size)
        if inside is not None:
            kernel = builder.select(inside, kernel, ir.Constant(vector, [0.0] * GROUP))
        visit(number, kernel, *(builder.bitcast(builder.gep(b, [window]), vector.as_pointer()) for b in base))

    with cgutils.for_range(builder, groups) as group:
        move = builder.mul(group.index, ir.Constant(whole, GROUP))
        inside = None
        if low is not None:
            columns = ir.VectorType(whole, GROUP)
            here = builder.add(_repeat(builder, move, columns), ir.Constant(columns, list(range(GROUP))))
            after = builder.icmp_signed(">=", here, _repeat(builder, low, columns))
            inside = builder.and_(after, builder.icmp_signed("<", here, _repeat(builder, high, columns)))
        with cgutils.for_range(builder, many) as block:
            first = builder.mul(block.index, ir.Constant(whole, _UNROLLED))
            for number in range(_UNROLLED):
                line_at(builder.add(first, ir.Constant(whole, number)), move, number, inside)
        with cgutils.for_range_slice(builder, done, lines, ir.Constant(whole, 1)) as (line, _):
            line_at(line, move, 0, inside)


def _repeat(builder: Any, number: Any, vector: Any) -> Any:
    """Return a vector of one number."""
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), GROUP), [0] * GROUP))


def _build_dot(context: Any, builder: Any, kinds: Any, args: Any) -> Any:
    """Build the correlation of a window with a kernel; arguments as in `_each_group`."""
    _, vector, size = _vector(context, builder, kinds[0].dtype)
    zero = ir.Constant(vector, [0.0] * GROUP)
    totals = [cgutils.alloca_once_value(builder, zero) for _ in range(_UNROLLED)]  # sums that need not wait

    def visit(number: int, kernel: Any, window: Any) -> None:
        product = builder.fmul(builder.load(window, align=size), kernel, flags=_FUSE)
        builder.store(builder.fadd(builder.load(totals[number]), product, flags=_FUSE), totals[number])

    _each_group(context, builder, args, kinds, (0,), visit)
    sums = [builder.load(total) for total in totals]
    while len(sums) > 1:
        sums = [builder.fadd(sums[i], sums[i + 1]) for i in range(0, len(sums), 2)]
    whole, half = sums[0], GROUP
    while half > 1:
        half //= 2
        index = ir.VectorType(ir.IntType(32), half)
        parts = [
            builder.shuffle_vector(whole, whole, ir.Constant(index, list(range(low, low + half)))) for low in (0, half)
        ]
        whole = builder.fadd(parts[0], parts[1])
    return builder.extract_element(whole, ir.Constant(ir.IntType(32), 0))


def _build_subtract(context: Any, builder: Any, kinds: Any, args: Any, mask: int | None) -> Any:
    """Build the subtraction of ``args[9]`` times a kernel from a window, where the mask ``args[mask]`` is one."""
    _, vector, size = _vector(context, builder, kinds[0].dtype)
    scales = _repeat(builder, args[9], vector)

    def visit(_: int, kernel: Any, window: Any, seen: Any = None) -> None:
        if seen is not None:
            kernel = builder.fmul(kernel, builder.load(seen, align=size))
        product = builder.fmul(scales, kernel, flags=_FUSE)
        old = builder.load(window, align=size)
        builder.store(builder.fsub(old, product, flags=_FUSE), window, align=size)

    _each_group(context, builder, args, kinds, (0,) if mask is None else (0, mask), visit)
    return context.get_dummy_value()


# Written as vectors by hand: compilers see eight separate sums in the loop below each other and multiply one by one.
@_intrinsic
def _dot(typing: Any, r: Any, at: Any, kernels: Any, k: Any, lines: Any, wide: Any, pitch: Any) -> Any:
    """Return the correlation of the window that starts at r[at] with the kernel that starts at kernels[k]."""
    count = types.int64
    signature = r.dtype(r, count, kernels, count, count, count, count)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _build_dot(context, builder, signature.args, (*args, None, None))

    return signature, build


@_intrinsic
def _dot_part(typing: Any, r: Any, at: Any, kernels: Any, k: Any, lines: Any, wide: Any, pitch: Any, low: Any,
              high: Any) -> Any:  # fmt: skip
    """Do what `_dot` does with the columns from `low` up to `high` of the kernel."""
    count = types.int64
    signature = r.dtype(r, count, kernels, count, count, count, count, count, count)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _build_dot(context, builder, signature.args, args)

    return signature, build


@_intrinsic
def _subtract(typing: Any, r: Any, at: Any, kernels: Any, k: Any, lines: Any, wide: Any, pitch: Any, scale: Any) -> Any:
    """Subtract `scale` times a kernel from the window that starts at r[at]."""
    count = types.int64
    signature = types.void(r, count, kernels, count, count, count, count, r.dtype)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _build_subtract(context, builder, signature.args, (*args[:7], None, None, args[7]), None)

    return signature, build


@_intrinsic
def _subtract_seen(typing: Any, r: Any, at: Any, kernels: Any, k: Any, lines: Any, wide: Any, pitch: Any, scale: Any,
                   mask: Any) -> Any:  # fmt: skip
    """Do what `_subtract` does, where the mask is one."""
    count = types.int64
    signature = types.void(r, count, kernels, count, count, count, count, r.dtype, mask)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = (*signature.args[:7], None, None, *signature.args[7:])
        return _build_subtract(context, builder, kinds, (*args[:7], None, None, *args[7:]), 10)

    return signature, build


@_intrinsic
def _subtract_part(typing: Any, r: Any, at: Any, kernels: Any, k: Any, lines: Any, wide: Any, pitch: Any, low: Any,
                   high: Any, scale: Any) -> Any:  # fmt: skip
    """Do what `_subtract` does with the columns from `low` up to `high` of the kernel."""
    count = types.int64
    signature = types.void(r, count, kernels, count, count, count, count, count, count, r.dtype)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _build_subtract(context, builder, signature.args, args, None)

    return signature, build


@_intrinsic
def _subtract_part_seen(typing: Any, r: Any, at: Any, kernels: Any, k: Any, lines: Any, wide: Any, pitch: Any,
                        low: Any, high: Any, scale: Any, mask: Any) -> Any:  # fmt: skip
    """Do what `_subtract_part` does, where the mask is one."""
    count = types.int64
    signature = types.void(r, count, kernels, count, count, count, count, count, count, r.dtype, mask)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _build_subtract(context, builder, signature.args, args, 10)

    return signature, build


@jit
def _wrapped_dot(grid: Grid, r: Reals, kernels: Reals, at: int, k: int) -> Any:
    """Return what `_dot` does for a window that leaves the ring: ``at = -1 - (line · length + column)``."""
    lines, wide, pitch = grid.lines, grid.wide, grid.pitch
    line, left = (-1 - at) // grid.length, (-1 - at) % grid.length
    inside, k2 = grid.length - left, k
    total = r.dtype.type(0)
    count = min(lines, grid.height - line)
    while count > 0:  # the lines up to the end of the ring, and those from its beginning
        start = grid.origin + line * pitch + left
        total += _dot_part(r, start, kernels, k2, count, wide, pitch, 0, inside)
        if inside < wide:
            total += _dot_part(r, start - grid.length, kernels, k2, count, wide, pitch, inside, wide)
        k2 += count * wide
        line, count = 0, (k - k2) // wide + lines
    return total


@jit
def _wrapped_subtract(grid: Grid, r: Reals, mask: Reals, kernels: Reals, at: int, k: int, scale: Any) -> None:
    """Do what `_subtract` and `_subtract_seen` do for a window that leaves the ring."""
    lines, wide, pitch = grid.lines, grid.wide, grid.pitch
    line, left = (-1 - at) // grid.length, (-1 - at) % grid.length
    inside, k2 = grid.length - left, k
    count = min(lines, grid.height - line)
    while count > 0:
        for low, high, back in ((0, min(inside, wide), 0), (inside, wide, grid.length)):
            start = grid.origin + line * pitch + left - back
            if low < high and mask.size:
                _subtract_part_seen(r, start, kernels, k2, count, wide, pitch, low, high, scale, mask)
            elif low < high:
                _subtract_part(r, start, kernels, k2, count, wide, pitch, low, high, scale)
        k2 += count * wide
        line, count = 0, (k - k2) // wide + lines


@jit
def sweep_strips(
    grid: Grid, r: Reals, mask: Reals, kernels: Reals, at: Integers, kernel: Integers, x: Reals, w: Reals,
    squares: Reals, bounds: Integers, first: int, step: int, sweeps: int, nonnegative: bool, order: Integers
) -> None:  # fmt: skip
    """Sweep over every strip: the first time over all its entries, then over those in use and those that just moved.

    Args:
        grid: Sizes.
        r: The residual's lines, flat.
        mask: The mask's lines, flat, or empty.
        kernels: ``(atoms, lines, wide)``, flat.
        at: Where an entry's window starts in r; negative for windows that wrap around (see `_wrapped_dot`).
        kernel: Where an entry's kernel starts.
        x: An entry's code.
        w: An entry's weight.
        squares: An entry's ``‖d_i‖²``.
        bounds: Strip i holds the entries bounds[i] to bounds[i + 1].
        first: First strip.
        step: From a strip to the next.
        sweeps: The most sweeps.
        nonnegative: Whether codes stay at or above zero.
        order: Workspace, as long as the list.
    """
    zero = r.dtype.type(0)
    lines, wide, pitch, seen = grid.lines, grid.wide, grid.pitch, mask.size > 0
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
                start, k, old = at[e], kernel[e], x[e]
                if start >= 0:
                    u = _dot(r, start, kernels, k, lines, wide, pitch)
                else:
                    u = _wrapped_dot(grid, r, kernels, start, k)
                u += old * squares[e]
                size = (u if nonnegative else abs(u)) - w[e]
                new = size / squares[e] if size > zero else zero
                new = -new if u < zero else new
                if new != old:
                    if start < 0:
                        _wrapped_subtract(grid, r, mask, kernels, start, k, new - old)
                    elif seen:
                        _subtract_seen(r, start, kernels, k, lines, wide, pitch, new - old, mask)
                    else:
                        _subtract(r, start, kernels, k, lines, wide, pitch, new - old)
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
    grid: Grid, r: Reals, mask: Reals, kernels: Reals, at: Integers, kernel: Integers, x: Reals, bounds: Integers,
    first: int, step: int
) -> None:  # fmt: skip
    """Subtract the codes of every strip from the image r; arguments as in `sweep_strips`."""
    lines, wide, pitch, seen = grid.lines, grid.wide, grid.pitch, mask.size > 0
    for i in range(first, bounds.size - 1, step):
        for e in range(bounds[i], bounds[i + 1]):
            if x[e] == 0:
                continue
            if at[e] < 0:
                _wrapped_subtract(grid, r, mask, kernels, at[e], kernel[e], x[e])
            elif seen:
                _subtract_seen(r, at[e], kernels, kernel[e], lines, wide, pitch, x[e], mask)
            else:
                _subtract(r, at[e], kernels, kernel[e], lines, wide, pitch, x[e])


@jit
def correlate_strips(
    grid: Grid, r: Reals, kernels: Reals, at: Integers, kernel: Integers, bounds: Integers, first: int, step: int,
    out: Reals
) -> None:  # fmt: skip
    """Correlate the image r with the entries of every strip; arguments as in `sweep_strips`."""
    lines, wide, pitch = grid.lines, grid.wide, grid.pitch
    for i in range(first, bounds.size - 1, step):
        for e in range(bounds[i], bounds[i + 1]):
            if at[e] >= 0:
                out[e] = _dot(r, at[e], kernels, kernel[e], lines, wide, pitch)
            else:
                out[e] = _wrapped_dot(grid, r, kernels, at[e], kernel[e])
