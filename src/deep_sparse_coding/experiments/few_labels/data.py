"""Images with a label each, split into a pool that labels are drawn from and a test set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...dictionaries.random import generator
from ...errors import ParameterError, missing_extra
from ...learning import contrast_normalize
from ..data import LabelledImages, read_cifar10


@dataclass(frozen=True, eq=False)
class Samples:
    """A pool of images, as many of every class, and test images.

    Attributes:
        raw: The pool's pixels, 0 to 1, ``(n, channels, H, W)``, float32.
        prepared: The same, as codes are learned from them.
        labels: ``(n,)``.
        test_raw: The test images' pixels.
        test_prepared: The same, prepared.
        test_labels: ``(m,)``.
        classes: How many classes.
    """

    raw: Tensor
    prepared: Tensor
    labels: Tensor
    test_raw: Tensor
    test_prepared: Tensor
    test_labels: Tensor
    classes: int

    def labelled(self, per_class: int) -> Tensor:
        """Return the first so many images of every class, as indices; a larger number takes in a smaller one's.

        Raises:
            ParameterError: There are not so many of a class.
        """
        chosen = [(self.labels == k).nonzero().flatten()[:per_class] for k in range(self.classes)]
        fewest = min(map(len, chosen))
        if fewest < per_class:
            raise ParameterError(f"labels is {per_class} and a class has {fewest} images; expected at most {fewest}")
        return torch.cat(chosen)


def digits(per_class: int, seed: int, tests: int = 10_000) -> Samples:
    """Return the 8×8 digits of scikit-learn: a pool of so many of every class, the rest as test images.

    Args:
        per_class: Images of every class in the pool.
        seed: Which these are, and their order.
        tests: Test images, at most.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        ParameterError: A class has no image left to test on.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra("scikit-learn", "sklearn", "its digits") from None
    bunch: Any = load_digits()
    images = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32) / 16)[:, None]
    labels = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    pool, rest = _split(labels, per_class, 10, seed)
    if min(int((labels[rest] == k).sum()) for k in range(10)) < 1:
        raise ParameterError(f"labels is {per_class} and a class has no image left to test on; expected fewer")
    rest = rest[:tests]
    return Samples(images[pool], images[pool], labels[pool], images[rest], images[rest], labels[rest], 10)


def cifar10(
    train: LabelledImages, test: LabelledImages, per_class: int, tests: int, sigma: float, seed: int
) -> Samples:
    """Return a pool of CIFAR-10's training images and the first test images; prepared by contrast normalization.

    Args:
        train: The training split.
        test: The test split.
        per_class: Images of every class in the pool.
        tests: Test images.
        sigma: Width of the window of `contrast_normalize`.
        seed: Which images the pool has, and their order.
    """
    pool, _ = _split(train.labels, per_class, len(train.classes), seed)
    raw, test_raw = train.images[pool].float() / 255, test.images[:tests].float() / 255
    return Samples(
        raw,
        contrast_normalize(raw, sigma),
        train.labels[pool],
        test_raw,
        contrast_normalize(test_raw, sigma),
        test.labels[:tests],
        len(train.classes),
    )


def read_both(path: Path) -> tuple[LabelledImages, LabelledImages]:
    """Return the training and the test split of CIFAR-10, from any of its layouts; stand-ins of fewer images too."""
    return read_cifar10(path, "train", complete=False), read_cifar10(path, "test", complete=False)


def _split(labels: Tensor, per_class: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return so many indices of every class, in a drawn order, and the rest."""
    order = torch.randperm(len(labels), generator=generator(seed))
    drawn = labels[order]
    pool = torch.cat([order[(drawn == k).nonzero().flatten()[:per_class]] for k in range(classes)])
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[pool] = False
    return pool, rest.nonzero().flatten()
