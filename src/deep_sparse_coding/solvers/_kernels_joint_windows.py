"""Compiled passes over images of several channels: windows of one kernel, and tiles of positions times all kernels.

The parts that `_kernels_joint_image.py` puts together. An image of C channels is stored with its channels innermost:
row y is a line of width·C entries, and the window of a kernel is kh pieces of kw·C entries, one below the other. The
codes of a layer are the image of the layer above it, and are stored in the same way. A kernel's pieces are filled up
with zeros to whole groups of eight entries; what they touch beyond a window is read and written back unchanged, and the
margin of an image keeps that inside its memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from ._kernels_jit import image_jit

forget_stale_kernels()

Reals = NDArray[Any]  # float32 or float64: every pass is compiled for the precision it is called in
Integers = NDArray[np.int64]

GROUP = 8  # entries of a kernel's line that are multiplied together
LANES = 16  # kernels that a tile correlates together
_CHAINS = 4  # groups summed up side by side, so that one need not wait for the other
# Positions of a tile: as many sums as registers hold.
TILE = 12 if "+avx512f" in llvm.get_host_cpu_features().flatten().split(",") else 4


class Lines(NamedTuple):
    """Sizes of an image's lines and of the kernels on it.

    Attributes:
        pitch: Entries from one line to the next.
        height: Lines of the image, margin not counted.
        length: Entries of a line, margin not counted.
        tall: Lines of a kernel.
        piece: Entries of a kernel's line.
        wide: The same, filled up to whole groups.
        down: Lines from a position to the one below it.
        right: Entries from a position to the one right of it.
        last_line: First lines of windows beyond this one wrap around.
        last_column: First entries of windows beyond this one wrap around.
        rows: Rows of the code grid.
        width: Positions of such a row.
        atoms: Kernels: the codes at one position.
        codes: Entries from one row of codes to the next.
    """

    pitch: int
    height: int
    length: int
    tall: int
    piece: int
    wide: int
    down: int
    right: int
    last_line: int
    last_column: int
    rows: int
    width: int
    atoms: int
    codes: int


jit: Any = image_jit

_intrinsic: Any = intrinsic
_FUSE = ("contract",)
_I32 = ir.IntType(32)


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any, lanes: int) -> Any:
    """Return the address of an array's entry as one of a vector."""
    vector = ir.VectorType(context.get_value_type(kind.dtype), lanes)
    data = make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    """Return a vector that repeats a number."""
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _each_group(builder: Any, lines: Any, wide: Any, work: Any) -> None:
    """Call ``work(line, column, chain)`` for all groups of a kernel: _CHAINS at a time, then one by one."""
    count = wide.type
    with cgutils.for_range(builder, lines) as line:
        block = ir.Constant(count, GROUP * _CHAINS)
        blocks = builder.udiv(wide, block)
        with cgutils.for_range(builder, blocks) as each:
            first = builder.mul(each.index, block)
            for chain in range(_CHAINS):
                work(line.index, builder.add(first, ir.Constant(count, GROUP * chain)), chain)
        done = builder.mul(blocks, block)
        rest = builder.udiv(builder.sub(wide, done), ir.Constant(count, GROUP))
        with cgutils.for_range(builder, rest) as each:
            work(line.index, builder.add(done, builder.mul(each.index, ir.Constant(count, GROUP))), 0)


@_intrinsic
def _dot(typing: Any, r: Any, at: Any, kernels: Any, k: Any, lines: Any, wide: Any, pitch: Any) -> Any:
    """Return the correlation of the window that starts at r[at] with the kernel that starts at kernels[k]."""
    count = types.int64
    signature = r.dtype(r, count, kernels, count, count, count, count)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        r, at, kernels, k, lines, wide, pitch = args
        kind = signature.args[0]
        zero = ir.Constant(ir.VectorType(context.get_value_type(kind.dtype), GROUP), [0.0] * GROUP)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(_CHAINS)]
        size = kind.dtype.bitwidth // 8

        def work(line: Any, column: Any, chain: int) -> None:
            window = builder.add(builder.add(at, builder.mul(line, pitch)), column)
            kernel = builder.add(builder.add(k, builder.mul(line, wide)), column)
            left = builder.load(_address(context, builder, kind, r, window, GROUP), align=size)
            right = builder.load(_address(context, builder, signature.args[2], kernels, kernel, GROUP), align=size)
            product = builder.fmul(left, right, flags=_FUSE)
            builder.store(builder.fadd(builder.load(totals[chain]), product, flags=_FUSE), totals[chain])

        _each_group(builder, lines, wide, work)
        parts = [builder.load(total) for total in totals]
        while len(parts) > 1:
            parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        whole, half = parts[0], GROUP
        while half > 1:
            half //= 2
            index = ir.VectorType(_I32, half)
            ends = [
                builder.shuffle_vector(whole, whole, ir.Constant(index, list(range(low, low + half))))
                for low in (0, half)
            ]
            whole = builder.fadd(ends[0], ends[1])
        return builder.extract_element(whole, _I32(0))

    return signature, build


@_intrinsic
def _subtract(typing: Any, r: Any, at: Any, kernels: Any, k: Any, lines: Any, wide: Any, pitch: Any, scale: Any) -> Any:
    """Subtract `scale` times a kernel from the window that starts at r[at]."""
    count = types.int64
    signature = types.void(r, count, kernels, count, count, count, count, r.dtype)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        r, at, kernels, k, lines, wide, pitch, scale = args
        kind = signature.args[0]
        size = kind.dtype.bitwidth // 8
        scales = _splat(builder, scale, GROUP)

        def work(line: Any, column: Any, chain: int) -> None:
            window = builder.add(builder.add(at, builder.mul(line, pitch)), column)
            kernel = builder.add(builder.add(k, builder.mul(line, wide)), column)
            place = _address(context, builder, kind, r, window, GROUP)
            right = builder.load(_address(context, builder, signature.args[2], kernels, kernel, GROUP), align=size)
            product = builder.fmul(scales, right, flags=_FUSE)
            builder.store(builder.fsub(builder.load(place, align=size), product, flags=_FUSE), place, align=size)

        _each_group(builder, lines, wide, work)
        return context.get_dummy_value()

    return signature, build


def _tile(positions: int) -> Any:
    """Return the pass that correlates `positions` windows, `step` entries apart, with LANES kernels."""

    @_intrinsic
    def tile(typing: Any, r: Any, at: Any, step: Any, pack: Any, k: Any, lines: Any, piece: Any, pitch: Any, out: Any,
             o: Any, row: Any) -> Any:  # fmt: skip
        """Set out[o + i·row + l] to the correlation of window i with kernel l of the LANES side by side in pack."""
        n = types.int64
        signature = types.void(r, n, n, pack, n, n, n, n, out, n, n)

        def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            r, at, step, pack, k, lines, piece, pitch, out, o, row = args
            kind = signature.args[0]
            real, size = context.get_value_type(kind.dtype), kind.dtype.bitwidth // 8
            zero = ir.Constant(ir.VectorType(real, LANES), [0.0] * LANES)
            totals = [cgutils.alloca_once_value(builder, zero) for _ in range(positions)]
            data = make_array(kind)(context, builder, r).data
            with cgutils.for_range(builder, lines) as line:
                start = builder.add(at, builder.mul(line.index, pitch))
                begin = builder.mul(line.index, piece)
                with cgutils.for_range(builder, piece) as column:
                    tap = builder.mul(builder.add(begin, column.index), ir.Constant(n_type, LANES))
                    place = _address(context, builder, signature.args[3], pack, builder.add(k, tap), LANES)
                    kernel = builder.load(place, align=size)
                    here = builder.add(start, column.index)
                    for i in range(positions):
                        value = _splat(builder, builder.load(builder.gep(data, [here])), LANES)
                        product = builder.fmul(value, kernel, flags=_FUSE)
                        builder.store(builder.fadd(builder.load(totals[i]), product, flags=_FUSE), totals[i])
                        here = builder.add(here, step)
            for i in range(positions):
                place = builder.add(o, builder.mul(row, ir.Constant(n_type, i)))
                where = _address(context, builder, signature.args[8], out, place, LANES)
                builder.store(builder.load(totals[i]), where, align=size)
            return context.get_dummy_value()

        return signature, build

    n_type = ir.IntType(64)
    return tile


_tile_many, _tile_one = _tile(TILE), _tile(1)


@jit
def gradient_rows(
    lines: Lines, r: Reals, pack: Reals, beta: Any, upper: Any, above: Reals, w: Reals, nonnegative: bool, first: int,
    last: int, g: Reals, ratio: Reals, buffer: Reals
) -> None:  # fmt: skip
    """Compute rows first..last of ``g = β Dᵀr - β' r'`` and their largest ratios to the weights.

    Args:
        lines: Sizes of the image r.
        r: The residual below, flat; on rings with a margin that repeats what wraps around.
        pack: Kernels ``(blocks, kh·kw·C, LANES)``, flat: LANES kernels side by side.
        beta: β.
        upper: β', 0 if there is no layer above.
        above: The residual r' above, flat (anything if there is none).
        w: Weights ``(1 or h, 1 or width, atoms)``; positive or inf.
        nonnegative: Whether only positive correlations violate.
        first: First row.
        last: One after the last row.
        g: Out, as the codes.
        ratio: Out, ``(h,)``: the largest ``|g|/w`` of a row (non-negative codes: ``g/w``).
        buffer: Workspace ``(TILE, blocks·LANES)``.
    """
    atoms, width, pitch = lines.atoms, lines.width, lines.codes
    tops = np.empty(atoms, r.dtype)
    row = buffer.shape[1]
    flat = buffer.reshape(-1)
    size = lines.tall * lines.piece * LANES
    tall, broad = int(w.shape[0] > 1), int(w.shape[1] > 1)
    zero = r.dtype.type(0)
    kind = r.dtype.type
    for y in range(first, last):
        tops[:] = zero
        line = y * lines.down * lines.pitch
        x = 0
        while x < width:
            # The last tile repeats positions of the one before it.
            count = TILE if width >= TILE else 1
            begin = min(x, width - count)
            for block in range(row // LANES):
                at = line + begin * lines.right
                k = block * size
                if count == TILE:
                    _tile_many(
                        r, at, lines.right, pack, k, lines.tall, lines.piece, lines.pitch, flat, block * LANES, row
                    )
                else:
                    _tile_one(
                        r, at, lines.right, pack, k, lines.tall, lines.piece, lines.pitch, flat, block * LANES, row
                    )
            for i in range(count):
                place = y * pitch + (begin + i) * atoms
                source, goal = buffer[i, :atoms], g[place : place + atoms]
                weights = w[y * tall, (begin + i) * broad]
                if upper != zero:
                    level = above[place : place + atoms]
                    for a in range(atoms):
                        goal[a] = kind(beta * source[a] - upper * level[a])
                else:
                    for a in range(atoms):
                        goal[a] = kind(beta * source[a])
                if nonnegative:
                    for a in range(atoms):
                        share = goal[a] / weights[a]
                        tops[a] = share if share > tops[a] else tops[a]
                else:
                    for a in range(atoms):
                        share = abs(goal[a]) / weights[a]
                        tops[a] = share if share > tops[a] else tops[a]
            x = begin + count
        largest = zero
        for a in range(atoms):
            largest = tops[a] if tops[a] > largest else largest
        ratio[y] = largest


@jit
def _wrapped_dot(lines: Lines, r: Reals, at: int, kernels: Reals, k: int) -> Any:
    """Return what `_dot` does for a window that leaves the ring: ``at = -1 - (line · length + column)``."""
    tall, wide, pitch = lines.tall, lines.wide, lines.pitch
    first, left = (-1 - at) // lines.length, (-1 - at) % lines.length
    below = min(tall, lines.height - first)
    if left <= lines.last_column:
        total = _dot(r, first * pitch + left, kernels, k, below, wide, pitch)
        return total + _dot(r, left, kernels, k + below * wide, tall - below, wide, pitch)
    total = r.dtype.type(0)
    inside = min(lines.length - left, lines.piece)
    for line in range(tall):
        row = (first + line if line < below else line - below) * pitch
        q = k + line * wide
        for c in range(inside):
            total += r[row + left + c] * kernels[q + c]
        for c in range(inside, lines.piece):
            total += r[row + c - inside] * kernels[q + c]
    return total


@jit
def _wrapped_subtract(lines: Lines, r: Reals, at: int, kernels: Reals, k: int, scale: Any) -> None:
    """Do what `_subtract` does for a window that leaves the ring."""
    tall, wide, pitch = lines.tall, lines.wide, lines.pitch
    first, left = (-1 - at) // lines.length, (-1 - at) % lines.length
    below = min(tall, lines.height - first)
    if left <= lines.last_column:
        _subtract(r, first * pitch + left, kernels, k, below, wide, pitch, scale)
        _subtract(r, left, kernels, k + below * wide, tall - below, wide, pitch, scale)
        return
    inside = min(lines.length - left, lines.piece)
    for line in range(tall):
        row = (first + line if line < below else line - below) * pitch
        q = k + line * wide
        for c in range(inside):
            r[row + left + c] -= scale * kernels[q + c]
        for c in range(inside, lines.piece):
            r[row + c - inside] -= scale * kernels[q + c]


@jit
def window_dot(lines: Lines, r: Reals, at: int, kernels: Reals, atom: int) -> Any:
    """Return the correlation of a kernel with its window."""
    k = atom * lines.tall * lines.wide
    if at >= 0:
        return _dot(r, at, kernels, k, lines.tall, lines.wide, lines.pitch)
    return _wrapped_dot(lines, r, at, kernels, k)


@jit
def window_subtract(lines: Lines, r: Reals, at: int, kernels: Reals, atom: int, scale: Any) -> None:
    """Subtract `scale` times a kernel from its window."""
    k = atom * lines.tall * lines.wide
    if at >= 0:
        _subtract(r, at, kernels, k, lines.tall, lines.wide, lines.pitch, scale)
    else:
        _wrapped_subtract(lines, r, at, kernels, k, scale)
