"""A small convolutional network, trained on the same few labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...dictionaries.random import generator
from ..training.surroundings import seeded

_BATCH = 64


def small_cnn(channels: int, size: int, classes: int, seed: int, width: int = 32) -> nn.Sequential:
    """Return two blocks of convolution, ReLU and pooling, and a linear layer.

    Args:
        channels: Of the images.
        size: Height and width of the images.
        classes: How many.
        seed: Of the weights.
        width: Features of the first block; the second has twice as many.
    """
    with seeded(seed, torch.device("cpu")):
        return nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (size // 4) ** 2, classes),
        )


def train_cnn(
    images: Tensor,
    labels: Tensor,
    classes: int,
    seed: int,
    *,
    epochs: int,
    least_steps: int,
    advance: Callable[[float], None],
) -> nn.Sequential:
    """Return a network trained with AdamW under a rate that falls as a cosine; batches of 64.

    Args:
        images: ``(n, channels, H, W)``, standardized.
        labels: ``(n,)``.
        classes: How many.
        seed: Of weights and order.
        epochs: Passes over the images.
        least_steps: Steps that are taken at least, however few images there are.
        advance: Takes the share that is done.
    """
    net = small_cnn(images.shape[1], images.shape[-1], classes, seed)
    rng = generator(seed)
    batch = min(_BATCH, len(images))
    steps = max(least_steps, epochs * len(images) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=5e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(images), generator=rng)
        chosen, order = order[:batch], order[batch:]
        loss = F.cross_entropy(net(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            advance(step / steps)
    return net.eval()


def predict_cnn(net: nn.Sequential, images: Tensor) -> Tensor:
    """Return the class of every image, ``(n,)``."""
    with torch.no_grad():
        return torch.cat([net(part).argmax(1) for part in images.split(500)])
