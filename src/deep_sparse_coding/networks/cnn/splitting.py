"""A convolution as several small ones, exactly: copies of the input move one way beside a growing sum (N6, N9)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from .kernels import LinearMap

_Offset = tuple[int, ...]


def split(linear: LinearMap, size: int) -> list[LinearMap]:
    """Return layers with kernels of at most `size` (odd) that together are `linear`; itself if it is small enough.

    A kernel of K becomes ``⌈(K - 1)/(size - 1)⌉`` layers without activation between them. Every layer moves copies of
    the input one step on, along each axis always the same way, and adds what has arrived to a sum that it hands on:
    what leaves the grid is not needed again, and zeros that come in at a border are those the convolution itself reads.
    In two dimensions the copies of layer i lie on a ring; only those that a weight asks for are made.

    Args:
        linear: The layer.
        size: The largest kernel.

    Source: statements N6 and N9 of docs/theory.md.
    """
    if all(k <= size for k in linear.kernel):
        return [linear]
    kernels = _kernels(linear.kernel, size)
    maps: list[LinearMap] = []
    centers = [tuple((k - 1) // 2 for k in kernel) for kernel in kernels]
    whole = tuple(sum(at) for at in zip(*centers, strict=True))
    rest = tuple(k - 1 - c for k, c in zip(linear.kernel, whole, strict=True))
    padding = [tuple((c, k - 1 - c) for k, c in zip(*pair, strict=True)) for pair in zip(kernels, centers, strict=True)]
    if linear.wrap or linear.padding != tuple(zip(whole, rest, strict=True)):
        # Not a grid that stays as it is: what it is padded with is put there at once.
        padding = [linear.padding] + [((0, 0),) * len(whole)] * (len(kernels) - 1)
    weight = linear.weight
    outputs = weight.shape[0]
    # Which inputs every offset (seen from the center) takes.
    used: dict[_Offset, Tensor] = {}
    for place in product(*(range(k) for k in linear.kernel)):
        columns = weight[(slice(None), slice(None), *place)].any(0)
        if bool(columns.any()):
            used[tuple(p - c for p, c in zip(place, whole, strict=True))] = columns
    copies = {(0,) * len(whole): torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)}
    total = 0
    done: set[_Offset] = set()
    for i, kernel in enumerate(kernels):
        last = i == len(kernels) - 1
        low = tuple(-sum(at) for at in zip(*centers[: i + 1], strict=True))
        high = tuple(
            sum(k[axis] - 1 - c[axis] for k, c in zip(kernels[: i + 1], centers[: i + 1], strict=True))
            for axis in range(len(kernel))
        )
        following: dict[_Offset, Tensor] = {}
        arriving = []
        for offset, columns in used.items():
            clipped = _clip(offset, low, high)
            if clipped == offset:
                if offset not in done:
                    arriving.append(offset)
                continue
            following[clipped] = following.get(clipped, torch.zeros_like(columns)) | columns
        done.update(arriving)
        first = _starts(copies, total)  # the sum so far comes first
        inputs = sum(int(mask.sum()) for mask in copies.values())
        now = outputs if arriving or total else 0
        width = now + sum(int(mask.sum()) for mask in following.values())
        made = weight.new_zeros(width, inputs + total, *kernel)
        middle = centers[i]
        if total:
            index = torch.arange(outputs, device=weight.device)
            made[(index, index, *middle)] = 1.0
        before_low = tuple(a + c for a, c in zip(low, middle, strict=True))
        before_high = tuple(b - (k - 1 - c) for b, k, c in zip(high, kernel, middle, strict=True))
        for offset in arriving:
            parent = _clip(offset, before_low, before_high)
            tap = tuple(o - p + c for o, p, c in zip(offset, parent, middle, strict=True))
            place = tuple(o + c for o, c in zip(offset, whole, strict=True))
            mask = copies[parent]
            columns = slice(first[parent], first[parent] + int(mask.sum()))
            made[(slice(0, outputs), columns, *tap)] += weight[(slice(None), slice(None), *place)][:, mask]
        rows = _starts(following, now)
        for offset, mask in following.items():
            parent = _clip(offset, before_low, before_high)
            tap = tuple(o - p + c for o, p, c in zip(offset, parent, middle, strict=True))
            position = torch.cumsum(copies[parent], 0) - 1 + first[parent]
            index = torch.arange(int(mask.sum()), device=weight.device)
            made[(rows[offset] + index, position[mask], *tap)] = 1.0
        maps.append(
            replace(
                linear,
                name=linear.name if last else f"{linear.name}_shift{i + 1}",
                kind=linear.kind if last else "shift",
                weight=made,
                bias=linear.bias if last else None,
                activated=linear.activated and last,
                stride=linear.stride if last else (1,) * len(kernel),
                padding=padding[i],
                wrap=linear.wrap and i == 0,
                readings=linear.readings if last else (),
                carried=linear.carried if last else None,
                scales=linear.scales if last else None,
            )
        )
        copies, total = following, now
    return maps


def _kernels(kernel: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    """Return the kernel of every layer: per axis of `size`, then what is left, then 1."""
    count = max(-(-(k - 1) // (size - 1)) for k in kernel)
    found = []
    for i in range(count):
        found.append(tuple(max(1, min(size, k - i * (size - 1))) for k in kernel))
    return found


def _clip(offset: _Offset, low: _Offset, high: _Offset) -> _Offset:
    return tuple(min(max(o, a), b) for o, a, b in zip(offset, low, high, strict=True))


def _starts(masks: dict[_Offset, Tensor], first: int) -> dict[_Offset, int]:
    found = {}
    for offset, mask in masks.items():
        found[offset] = first
        first += int(mask.sum())
    return found
