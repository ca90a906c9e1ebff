"""Batches from images in memory: order, augmentation and label noise from seeds, the same after every resume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...errors import ParameterError
from ..data import LabelledImages, SegmentedImages

Images = LabelledImages | SegmentedImages

# What a seed is for, so that no two uses of one seed draw the same numbers.
ORDER, AUGMENTATION, NOISE, DROPOUT = range(4)


def derived(seed: int, purpose: int, epoch: int = 0) -> int:
    """Return a seed for one purpose in one epoch."""
    return int(np.random.SeedSequence([seed, purpose, epoch]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def derived_generator(seed: int, purpose: int, epoch: int = 0) -> torch.Generator:
    """Return a CPU generator for one purpose in one epoch."""
    return torch.Generator().manual_seed(derived(seed, purpose, epoch))


@dataclass(frozen=True)
class Scaling:
    """``(x / 255 - mean) / deviation`` for every channel, as measured on the training images."""

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]

    @staticmethod
    def of(images: Tensor) -> Scaling:
        """Measure uint8 images ``(n, 3, H, W)``: exact sums of whole numbers."""
        counts = [torch.bincount(images[:, c].flatten(), minlength=256).double() for c in range(3)]
        values = torch.arange(256, dtype=torch.float64) / 255
        means = [float((count * values).sum() / count.sum()) for count in counts]
        variances = [
            float((count * (values - mean).square()).sum() / count.sum())
            for count, mean in zip(counts, means, strict=True)
        ]
        deviations = [max(variance**0.5, 1e-3) for variance in variances]  # images of one color
        return Scaling((means[0], means[1], means[2]), (deviations[0], deviations[1], deviations[2]))

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 images of uint8 ones, channels last in memory, which convolutions are faster on."""
        mean = torch.tensor(self.mean, device=images.device).view(3, 1, 1)
        deviation = torch.tensor(self.deviation, device=images.device).view(3, 1, 1)
        scaled = images.float().div_(255).sub_(mean).div_(deviation)
        return scaled.contiguous(memory_format=torch.channels_last)


def targets_of(data: Images) -> Tensor:
    """Return labels ``(n,)`` or masks ``(n, H, W)``."""
    return data.labels if isinstance(data, LabelledImages) else data.masks


def noisy_labels(labels: Tensor, classes: int, share: float, seed: int) -> Tensor:
    """Return labels of which the given share, rounded, is replaced by another class, each as likely.

    Raises:
        ParameterError: There is one class only.
    """
    count = round(share * len(labels))
    if not count:
        return labels
    if classes < 2:
        raise ParameterError(f"label_noise is {share} with {classes} class; expected at least two classes")
    rng = derived_generator(seed, NOISE)
    chosen = torch.randperm(len(labels), generator=rng)[:count]
    shift = torch.randint(1, classes, (count,), generator=rng)
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + shift) % classes
    return noisy


def batches(
    images: Tensor, targets: Tensor, *, batch: int, seed: int, epoch: int, augmentation: str, rank: int, world: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one process's share of every batch of an epoch: uint8 images and their targets.

    All processes draw the same numbers and take every `world`-th sample, so one process and several see the same
    batches with the same augmentation.
    """
    order = torch.randperm(len(images), generator=derived_generator(seed, ORDER, epoch))
    rng = derived_generator(seed, AUGMENTATION, epoch)
    for chosen in order.split(batch):
        if len(chosen) < batch:
            return
        moves = _moves(len(chosen), images.shape[-2:], augmentation, rng)
        mine = chosen[rank::world].to(images.device)
        part, goal = images[mine], targets[mine]
        if moves is not None:
            shift, flip = (move[rank::world].to(images.device) for move in moves)
            part = _moved(part, shift, flip)
            goal = _moved(goal.unsqueeze(1), shift, flip).squeeze(1) if goal.ndim == 3 else goal
        yield part, goal


def _moves(count: int, size: torch.Size, augmentation: str, rng: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """Draw shifts in pixels ``(count, 2)`` and flips ``(count,)``."""
    if augmentation == "none":
        return None
    flip = torch.rand(count, generator=rng) < 0.5
    reach = [side // 8 if augmentation == "crop-flip" else 0 for side in size]
    shift = torch.stack([torch.randint(-most, most + 1, (count,), generator=rng) for most in reach], 1)
    return shift, flip


def _moved(x: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Return images ``(n, c, H, W)`` moved and flipped; what comes in from outside is mirrored at the border."""
    height, width = x.shape[-2:]
    rows = _reflected(torch.arange(height, device=x.device) + shift[:, :1], height)
    columns = torch.arange(width, device=x.device).expand(len(x), -1)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    columns = _reflected(columns + shift[:, 1:], width)
    number = torch.arange(len(x), device=x.device).view(-1, 1, 1)
    # Indexed axes come first, the channels last.
    return x.movedim(1, -1)[number, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _reflected(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
