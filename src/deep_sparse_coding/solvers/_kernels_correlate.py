"""Compiled correlations of an image with many kernels at many positions: blocks of kernels and positions in registers.

An image is a flat array, a position a place in it, and a kernel a list of taps: how far from the position, and by what
number the entry there is multiplied. So one loop serves all numbers of channels; strides along a line are served by an
image whose columns are dealt out (`phases`), so that neighbors in a vector are neighbors in memory.
"""

from __future__ import annotations

from typing import Any

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

jit: Any = image_jit
_intrinsic: Any = intrinsic

_WIDE = llvm.get_host_cpu_features().get("avx512f", False)
VECTOR = 64 if _WIDE else 32  # bytes of a vector
ABREAST = 4 if _WIDE else 2  # vectors of positions in a block: with the kernels they fill the registers
KERNELS = 4  # kernels in a block
SPAN = VECTOR * ABREAST  # bytes of a block of positions
_FUSE = ("contract",)


def lanes(kind: Any) -> int:
    """Return how many numbers of a dtype make a vector."""
    return VECTOR // np.dtype(kind).itemsize


def span(width: int, kind: Any) -> int:
    """Return the least number of positions that holds `width` of them in whole blocks."""
    block = SPAN // np.dtype(kind).itemsize
    return -(-width // block) * block


def taps(kernels: Reals, pitch: int, step: int, plane: int) -> tuple[Integers, Reals]:
    """Return the offsets of all taps and the kernels in blocks, ``(groups, taps, KERNELS)``, the last filled with 0.

    Args:
        kernels: ``(atoms, lines, kw)``.
        pitch: Entries from one line of the image to the next.
        step: Columns from a position to the next.
        plane: Entries from one phase of the image to the next (`phases`).
    """
    atoms, lines, kw = kernels.shape
    columns = np.arange(kw)
    offsets = np.arange(lines)[:, None] * pitch + (columns % step) * plane + columns // step
    blocks = np.zeros((-(-atoms // KERNELS) * KERNELS, lines * kw), kernels.dtype)
    blocks[:atoms] = kernels.reshape(atoms, -1)
    blocks = blocks.reshape(-1, KERNELS, lines * kw).transpose(0, 2, 1)
    return offsets.reshape(-1).astype(np.int64), np.ascontiguousarray(blocks).reshape(-1)


def phases(lines: Reals, origin: int, step: int) -> Reals:
    """Return image lines ``(n, pitch)``, flat, from column `origin` on, their columns dealt out.

    Phase p, from entry ``p·n·pitch`` on, holds columns p, p + step, ... of every line. Nothing is copied for one phase.
    """
    if step == 1:
        return lines.reshape(-1)[origin:]
    dealt = np.zeros((step, *lines.shape), lines.dtype)
    for phase in range(step):
        part = lines[:, origin + phase :: step]
        dealt[phase, :, : part.shape[1]] = part
    return dealt.reshape(-1)


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Return the address of an entry of a flat array."""
    return builder.gep(make_array(kind)(context, builder, array).data, [index])


@_intrinsic
def _block(typing: Any, image: Any, at: Any, offsets: Any, count: Any, kernels: Any, k: Any, out: Any, to: Any,
           pitch: Any) -> Any:  # fmt: skip
    """Correlate KERNELS kernels from kernels[k] on with SPAN bytes of positions from image[at] on.

    Line j of the result begins at ``out[to + j·pitch]``.
    """
    whole = types.int64
    signature = types.void(image, whole, offsets, whole, kernels, whole, out, whole, whole)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        image, at, offsets, count, kernels, k, out, to, pitch = args
        kinds = signature.args
        real, size = context.get_value_type(kinds[0].dtype), kinds[0].dtype.bitwidth // 8
        wide = VECTOR // size
        vector = ir.VectorType(real, wide)
        int64, int32 = ir.IntType(64), ir.IntType(32)
        zeros = ir.Constant(ir.VectorType(int32, wide), [0] * wide)
        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * wide)) for _ in range(KERNELS * ABREAST)]
        with cgutils.for_range(builder, count) as tap:
            offset = builder.load(_address(context, builder, kinds[2], offsets, tap.index))
            base = _address(context, builder, kinds[0], image, builder.add(at, offset))
            windows = []
            for v in range(ABREAST):
                address = builder.gep(base, [ir.Constant(int64, v * wide)])
                windows.append(builder.load(builder.bitcast(address, vector.as_pointer()), align=size))
            first = builder.add(k, builder.mul(tap.index, ir.Constant(int64, KERNELS)))
            for j in range(KERNELS):
                number = builder.load(
                    _address(context, builder, kinds[4], kernels, builder.add(first, ir.Constant(int64, j)))
                )
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), number, ir.Constant(int32, 0))
                numbers = builder.shuffle_vector(one, one, zeros)
                for v, window in enumerate(windows):
                    place = sums[j * ABREAST + v]
                    product = builder.fmul(numbers, window, flags=_FUSE)
                    builder.store(builder.fadd(builder.load(place), product, flags=_FUSE), place)
        for j in range(KERNELS):
            line = builder.add(to, builder.mul(pitch, ir.Constant(int64, j)))
            for v in range(ABREAST):
                address = _address(context, builder, kinds[6], out, builder.add(line, ir.Constant(int64, v * wide)))
                builder.store(
                    builder.load(sums[j * ABREAST + v]), builder.bitcast(address, vector.as_pointer()), align=size
                )
        return context.get_dummy_value()

    return signature, build


def _magnitude(builder: Any, value: Any, nonnegative: Any) -> Any:
    """Return |v| of a vector, or v itself where only positive values count."""
    negative = builder.fcmp_ordered("<", value, ir.Constant(value.type, [0.0] * value.type.count))
    flip = builder.select(negative, builder.fneg(value), value)
    return builder.select(nonnegative, value, flip)


@_intrinsic
def _largest(typing: Any, values: Any, first: Any, count: Any, nonnegative: Any) -> Any:
    """Return the largest magnitude of values[first] to values[first + count]: whole vectors; at least 0."""
    whole = types.int64
    signature = values.dtype(values, whole, whole, types.boolean)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, first, count, nonnegative = args
        kind = signature.args[0]
        real, size = context.get_value_type(kind.dtype), kind.dtype.bitwidth // 8
        wide = VECTOR // size
        vector = ir.VectorType(real, wide)
        int64, int32 = ir.IntType(64), ir.IntType(32)
        only = builder.trunc(nonnegative, ir.IntType(1))
        most = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * wide))
        with cgutils.for_range(builder, builder.sdiv(count, ir.Constant(int64, wide))) as group:
            index = builder.add(first, builder.mul(group.index, ir.Constant(int64, wide)))
            address = builder.bitcast(_address(context, builder, kind, values, index), vector.as_pointer())
            value = _magnitude(builder, builder.load(address, align=size), only)
            old = builder.load(most)
            builder.store(builder.select(builder.fcmp_ordered(">", value, old), value, old), most)
        left, half = builder.load(most), wide
        while half > 1:
            half //= 2
            index = ir.VectorType(int32, half)
            low, high = (
                builder.shuffle_vector(left, left, ir.Constant(index, list(range(start, start + half))))
                for start in (0, half)
            )
            left = builder.select(builder.fcmp_ordered(">", low, high), low, high)
        return builder.extract_element(left, ir.Constant(int32, 0))

    return signature, build


@_intrinsic
def above(typing: Any, values: Any, first: Any, bar: Any, nonnegative: Any) -> Any:
    """Return a number whose bit j says whether the magnitude of values[first + j] exceeds `bar`, for one vector."""
    signature = types.int64(values, types.int64, values.dtype, types.boolean)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values, first, bar, nonnegative = args
        kind = signature.args[0]
        real, size = context.get_value_type(kind.dtype), kind.dtype.bitwidth // 8
        wide = VECTOR // size
        vector = ir.VectorType(real, wide)
        int32 = ir.IntType(32)
        address = builder.bitcast(_address(context, builder, kind, values, first), vector.as_pointer())
        value = _magnitude(builder, builder.load(address, align=size), builder.trunc(nonnegative, ir.IntType(1)))
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), bar, ir.Constant(int32, 0))
        bars = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(int32, wide), [0] * wide))
        bits = builder.bitcast(builder.fcmp_ordered(">", value, bars), ir.IntType(wide))
        return builder.zext(bits, ir.IntType(64))

    return signature, build


@_intrinsic
def trailing_zeros(typing: Any, bits: Any) -> Any:
    """Return the place of the lowest bit of a number that is not zero."""
    signature = types.int64(types.int64)

    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return signature, build


@jit
def correlate_rows(
    image: Reals, drop: int, offsets: Integers, blocks: Reals, width: int, w: Reals, bar: float, nonnegative: bool,
    first: int, last: int, g: Reals, row_ratio: Reals, buffer: Reals
) -> None:  # fmt: skip
    """Correlate rows first..last of the code grid with all kernels; find the rows' largest ratios.

    Args:
        image: The image, flat, with a margin at its end.
        drop: Entries from a row of positions to the next.
        offsets: See `taps`.
        blocks: See `taps`.
        width: Positions of a row.
        w: Weights ``(1 or h, atoms, 1 or width)``; positive or inf.
        bar: Rows whose largest ratio is not above this are not written to g.
        nonnegative: Whether only positive correlations violate.
        first: First row.
        last: One after the last row.
        g: Out, ``(h, atoms, span)``: ``g[y, a, x] = ⟨d_a, window(y, x)⟩``, zero beyond `width`.
        row_ratio: Out, ``(h, atoms)``: the largest ``|g|/w`` of a row (non-negative codes: ``g/w``).
        buffer: Workspace, ``(KERNELS·span,)``.
    """
    count, atoms = offsets.size, row_ratio.shape[1]
    across = buffer.size // KERNELS
    step = SPAN // image.itemsize
    tall = int(w.shape[0] > 1)
    zero = image.dtype.type(0)
    for y in range(first, last):
        for a in range(0, atoms, KERNELS):
            for x in range(0, across, step):
                _block(image, y * drop + x, offsets, count, blocks, a * count, buffer, x, across)
            for c in range(a, min(a + KERNELS, atoms)):
                line = buffer[(c - a) * across : (c - a + 1) * across]
                line[width:] = zero
                if w.shape[2] == 1:
                    weight = w[y * tall, c, 0]
                    largest = _largest(buffer, (c - a) * across, across, nonnegative) / weight
                else:
                    largest = zero
                    for x in range(width):
                        size = (line[x] if nonnegative else abs(line[x])) / w[y * tall, c, x]
                        largest = size if size > largest else largest
                row_ratio[y, c] = largest
                if largest > bar:
                    g[y, c] = line
