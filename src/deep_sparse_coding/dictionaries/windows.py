"""Windows of a convolution: a box of code positions, and the part of the signal that its atoms touch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from .convolutional import ConvDictionary


@dataclass(frozen=True, eq=False)
class Window:
    """A box of code positions and what lies under its atoms.

    Attributes:
        codes: The code positions per axis; on a ring a box may lie across its end.
        signal: The entries of the signal per axis that its atoms touch, in the atoms' order; on a ring they start
            again at 0, entries beyond the border of a "same" convolution are -1.
    """

    codes: tuple[Tensor, ...]
    signal: tuple[Tensor, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """The positions per axis of the box."""
        return tuple(len(places) for places in self.codes)

    def cut_codes(self, whole: Tensor) -> Tensor:
        """Return a copy of the box of a code map, or of weights that broadcast against one."""
        for axis, places in enumerate(self.codes, start=whole.ndim - len(self.codes)):
            if whole.shape[axis] > 1:
                whole = whole.index_select(axis, places.to(whole.device))
        return whole

    def put_codes(self, whole: Tensor, part: Tensor) -> None:
        """Write a box of codes into a code map."""
        whole[(..., *torch.meshgrid(*(places.to(whole.device) for places in self.codes), indexing="ij"))] = part

    @property
    def cut(self) -> bool:
        """Whether atoms of the box stick out of the signal."""
        return any(bool((places < 0).any()) for places in self.signal)

    def inside(self) -> Tensor:
        """Return which entries under the box lie in the signal, one boolean per entry."""
        whole = torch.ones((), dtype=torch.bool)
        for places in self.signal:
            whole = whole[..., None] & (places >= 0)
        return whole

    def take(self, signal: Tensor) -> Tensor:
        """Return the signal under the box, ``(..., *box)``; 0 where it has none."""
        axes = len(self.signal)
        for axis, places in enumerate(self.signal, start=signal.ndim - axes):
            if signal.shape[axis] > 1 or len(places) == 1:  # a mask that broadcasts along an axis stays so
                signal = signal.index_select(axis, places.clamp_min(0).to(signal.device))
        return signal * self.inside().to(signal) if self.cut else signal

    def add(self, signal: Tensor, part: Tensor) -> None:
        """Add a part ``(..., *box)`` to the signal in place; what lies beyond the border is dropped."""
        kept = []
        for axis, places in enumerate(self.signal, start=part.ndim - len(self.signal)):
            inside = places >= 0
            if not bool(inside.all()):
                part = part.index_select(axis, inside.nonzero().flatten().to(part.device))
            places = places[inside].to(part.device)
            n = signal.shape[axis]
            if len(places) > n:  # the box reaches around the ring: entries meet themselves
                shape = [*part.shape[:axis], n, *part.shape[axis + 1 :]]
                part = part.new_zeros(shape).index_add_(axis, places, part)
                places = torch.arange(n, device=part.device)
            kept.append(places)
        signal[(..., *torch.meshgrid(*kept, indexing="ij"))] += part


@dataclass(frozen=True, eq=False)
class Windows:
    """All windows of a convolution for one size of code map and signal.

    On the window of a box the dictionary acts as the same kernels with boundary "valid" (of which a "same" convolution
    keeps what is `Window.inside`), as long as the box does not reach around a ring.

    Attributes:
        dictionary: D.
        valid: The same kernels with boundary "valid".
        grid: The spatial size of the code map.
        size: The spatial size of the signal.
    """

    dictionary: ConvDictionary
    valid: ConvDictionary
    grid: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def of(cls, dictionary: ConvDictionary, grid: tuple[int, ...], size: tuple[int, ...]) -> Windows:
        """Return the windows of a dictionary for one size of code map and signal."""
        return cls(dictionary, dictionary.with_boundary("valid"), grid, size)

    def cast(self, dtype: torch.dtype) -> Windows:
        """Return the same in another precision."""
        return replace(self, dictionary=self.dictionary.cast(dtype), valid=self.valid.cast(dtype))

    def largest(self) -> tuple[int, ...]:
        """Return the most positions per axis of a box that does not reach around a ring."""
        if self.dictionary.boundary != "circular":
            return self.grid
        axes = zip(self.size, self.dictionary.stride, self.dictionary.kernel_size, strict=True)
        return tuple((n - k) // q + 1 for n, q, k in axes)

    def at(self, boxes: Sequence[tuple[int, int]]) -> Window:
        """Return the window of a box of code positions.

        Args:
            boxes: First position and one past the last, per axis; on a ring counted on beyond its end.
        """
        codes, signal = [], []
        before = (padding[0] for padding in self.dictionary.padding)
        kernels = zip(self.dictionary.stride, self.dictionary.kernel_size, before, strict=True)
        parts = zip(boxes, self.grid, self.size, kernels, strict=True)
        for (first, last), positions, n, (q, k, shift) in parts:
            reach = torch.arange(first * q - shift, (last - 1) * q + k - shift)
            if self.dictionary.boundary == "circular":
                reach = reach % n
            elif self.dictionary.boundary == "same":
                reach = torch.where((reach >= 0) & (reach < n), reach, -1)
            codes.append(torch.arange(first, last) % positions)
            signal.append(reach)
        return Window(tuple(codes), tuple(signal))

    def tiling(self, tile: tuple[int, ...], overlap: tuple[int, ...], shift: tuple[bool, ...]) -> Iterator[Window]:
        """Yield windows of boxes that cover the code map.

        Args:
            tile: Positions per axis, with the overlap at most `largest`.
            overlap: Positions per axis by which a box reaches into its neighbors, on each side.
            shift: Whether the boxes are laid half a tile off along an axis.
        """
        ring = self.dictionary.boundary == "circular"
        ranges = []
        for n, t, o, off in zip(self.grid, tile, overlap, shift, strict=True):
            first = t // 2 if off and t < n else 0
            starts = range(first, first + n, t) if ring else [0, *range(first or t, n, t)]
            ends = [*starts[1:], first + n if ring else n]
            if ring and t < n:
                ranges.append([(a - o, b + o) for a, b in zip(starts, ends, strict=True)])
            else:
                ranges.append([(max(a - o, 0), min(b + o, n)) for a, b in zip(starts, ends, strict=True)])
        for boxes in product(*ranges):
            yield self.at(boxes)
