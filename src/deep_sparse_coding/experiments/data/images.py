"""Images in memory with a label each, or with a class for every pixel; and a part held out for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

from ...checks import require_integer
from ...dictionaries.random import generator
from ...errors import DtypeError, ParameterError, ShapeError


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with one class each.

    Args:
        images: uint8, ``(n, 3, H, W)``.
        labels: int64, ``(n,)``, 0 to ``len(classes) - 1``.
        classes: The names of the classes.

    Raises:
        DtypeError: Images that are not uint8, or labels that are not int64.
        ShapeError: Images of another shape, or another number of labels.
        ParameterError: No samples, no classes, or labels out of range.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_dtype("labels", self.labels, torch.int64)
        if self.labels.shape != (len(self.images),):
            raise ShapeError(
                f"labels has shape {tuple(self.labels.shape)} for {len(self.images)} images; expected "
                f"({len(self.images)},)"
            )
        _check_classes(self.classes)
        wrong = ((self.labels < 0) | (self.labels >= len(self.classes))).nonzero().flatten()
        if len(wrong):
            raise ParameterError(
                f"{len(wrong)} labels are out of range, the first is {int(self.labels[wrong[0]])} at sample "
                f"{int(wrong[0])}; expected 0 to {len(self.classes) - 1} for {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return int(self.images.shape[-2]), int(self.images.shape[-1])

    def subset(self, indices: Tensor | Sequence[int]) -> LabelledImages:
        """Return the samples at `indices`, in their order.

        Raises:
            ParameterError: No indices, or one that is out of range.
        """
        chosen = _as_indices(indices, len(self))
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


@dataclass(frozen=True, eq=False)
class SegmentedImages:
    """Images with a class for every pixel.

    Args:
        images: uint8, ``(n, 3, H, W)``.
        masks: uint8, ``(n, H, W)``, entries 0 to ``len(classes) - 1``, or `ignore`.
        classes: The names of the classes.
        ignore: The entry of pixels that count in no loss and no measure; None if there is none.
        names: A name for each sample, as its file had it.

    Raises:
        DtypeError: Images or masks that are not uint8.
        ShapeError: Images of another shape, masks of another size, or another number of names.
        ParameterError: No samples, no classes, entries out of range, or `ignore` that is one of the classes.
    """

    images: Tensor
    masks: Tensor
    classes: tuple[str, ...]
    ignore: int | None
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_dtype("masks", self.masks, torch.uint8)
        expected = (len(self.images), *self.images.shape[2:])
        if self.masks.shape != expected:
            raise ShapeError(
                f"masks has shape {tuple(self.masks.shape)} and images {tuple(self.images.shape)}; "
                f"expected masks of shape {expected}, one entry for every pixel"
            )
        _check_classes(self.classes)
        if len(self.names) != len(self.images):
            raise ShapeError(f"there are {len(self.names)} names for {len(self.images)} images; expected one for each")
        if self.ignore is not None and not len(self.classes) <= require_integer("ignore", self.ignore, minimum=0) < 256:
            raise ParameterError(
                f"ignore is {self.ignore}; expected None or {len(self.classes)} to 255, a number that is not a class"
            )
        # Counted in one pass: a mask of booleans would be as large as the masks.
        counts = torch.bincount(self.masks.flatten(), minlength=256)
        allowed = {*range(len(self.classes)), self.ignore}
        wrong = [entry for entry in counts.nonzero().flatten().tolist() if entry not in allowed]
        if wrong:
            first = int((self.masks == wrong[0]).flatten(1).any(1).nonzero()[0])
            raise ParameterError(
                f"masks has entries {wrong}, the first in sample {first} ({self.names[first]!r}); expected 0 to "
                f"{len(self.classes) - 1}" + (f" or {self.ignore} (ignored)" if self.ignore is not None else "")
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return int(self.images.shape[-2]), int(self.images.shape[-1])

    def subset(self, indices: Tensor | Sequence[int]) -> SegmentedImages:
        """Return the samples at `indices`, in their order.

        Raises:
            ParameterError: No indices, or one that is out of range.
        """
        chosen = _as_indices(indices, len(self))
        names = tuple(self.names[i] for i in chosen.tolist())
        return replace(self, images=self.images[chosen], masks=self.masks[chosen], names=names)


@overload
def hold_out(data: LabelledImages, count: int, seed: int) -> tuple[LabelledImages, LabelledImages]: ...
@overload
def hold_out(data: SegmentedImages, count: int, seed: int) -> tuple[SegmentedImages, SegmentedImages]: ...
def hold_out(
    data: LabelledImages | SegmentedImages, count: int, seed: int
) -> tuple[LabelledImages, LabelledImages] | tuple[SegmentedImages, SegmentedImages]:
    """Return what is left to train on, and `count` samples for validation, drawn from a seed.

    Of labelled images every class gives its share: the same fraction of its samples, up to rounding.

    Args:
        data: The samples.
        count: How many to hold out; at least one must be left.
        seed: Of the draw.

    Returns:
        ``(train, validation)``, both in the order of `data`.

    Raises:
        ParameterError: `count` is below 1, or not below the number of samples.
    """
    count = require_integer("count", count, minimum=1)
    if count >= len(data):
        raise ParameterError(f"count is {count} of {len(data)} samples; expected at most {len(data) - 1}")
    order = torch.randperm(len(data), generator=generator(seed))
    if isinstance(data, LabelledImages):
        groups = [order[data.labels[order] == label] for label in range(len(data.classes))]
        shares = _shares([len(group) for group in groups], count)
        held = torch.cat([group[:share] for group, share in zip(groups, shares, strict=True)])
    else:
        held = order[:count]
    chosen = torch.zeros(len(data), dtype=torch.bool)
    chosen[held] = True
    train, validation = (~chosen).nonzero().flatten(), chosen.nonzero().flatten()
    if isinstance(data, LabelledImages):
        return data.subset(train), data.subset(validation)
    return data.subset(train), data.subset(validation)


def _shares(sizes: list[int], count: int) -> list[int]:
    """Split `count` in proportion to `sizes`: rounded down, then the largest remainders get one more."""
    total = sum(sizes)
    shares = [size * count // total for size in sizes]
    remainders = [size * count % total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda k: -remainders[k])
    for k in by_remainder[: count - sum(shares)]:
        shares[k] += 1
    return shares


def _check_dtype(name: str, value: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.dtype != dtype:
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise DtypeError(f"{name} has dtype {found}; expected a tensor of {dtype}: use {name}.to({dtype})")


def _check_images(images: Tensor) -> None:
    _check_dtype("images", images, torch.uint8)
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ShapeError(f"images has shape {tuple(images.shape)}; expected (n, 3, height, width)")
    if not len(images):
        raise ParameterError("images holds no samples; expected at least one")


def _check_classes(classes: tuple[str, ...]) -> None:
    if not classes or len(set(classes)) != len(classes):
        raise ParameterError(f"classes is {classes!r}; expected at least one name, all different")


def _as_indices(indices: Tensor | Sequence[int], count: int) -> Tensor:
    chosen = torch.as_tensor(indices)
    if chosen.ndim != 1 or not len(chosen):
        raise ParameterError(f"indices has shape {tuple(chosen.shape)}; expected a list of at least one")
    if chosen.dtype.is_floating_point or chosen.dtype.is_complex or chosen.dtype == torch.bool:
        raise ParameterError(f"indices has dtype {chosen.dtype}; expected whole numbers: use mask.nonzero().flatten()")
    chosen = chosen.long()
    low, high = int(chosen.min()), int(chosen.max())
    if low < 0 or high >= count:
        raise ParameterError(f"indices run from {low} to {high}; expected 0 to {count - 1}")
    return chosen
