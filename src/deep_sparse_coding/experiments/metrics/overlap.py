"""Confusion of classes and intersection over union, pixel by pixel, with a class that does not count."""

from __future__ import annotations

import torch
from torch import Tensor

from ...checks import require_integer
from ...errors import DtypeError, ParameterError, ShapeError


def confusion_matrix(predictions: Tensor, targets: Tensor, classes: int, *, ignore: int | None = None) -> Tensor:
    """Return how often each class was taken for each: int64 ``(classes, classes)``, row: the truth.

    Args:
        predictions: Whole numbers 0 to ``classes - 1``, of any shape.
        targets: The truth in the same shape; entries equal to `ignore` do not count.
        classes: Number of classes.
        ignore: As `SegmentedImages.ignore`.

    Raises:
        ShapeError: The shapes differ.
        DtypeError: Scores or floats in place of whole numbers.
        ParameterError: Entries out of range.
    """
    classes = require_integer("classes", classes, minimum=1)
    if predictions.shape != targets.shape:
        raise ShapeError(
            f"predictions has shape {tuple(predictions.shape)} and targets {tuple(targets.shape)}; expected the same: "
            "use scores.argmax(1) for scores"
        )
    for name, value in (("predictions", predictions), ("targets", targets)):
        if value.dtype.is_floating_point or value.dtype.is_complex:
            raise DtypeError(f"{name} has dtype {value.dtype}; expected whole numbers: use scores.argmax(1) for scores")
    targets = targets.long()
    if ignore is not None:
        counted = targets != ignore
        predictions, targets = predictions[counted], targets[counted]
    predictions = predictions.long()
    for name, value in (("predictions", predictions), ("targets", targets)):
        if value.numel() and not 0 <= int(value.min()) <= int(value.max()) < classes:
            raise ParameterError(
                f"{name} runs from {int(value.min())} to {int(value.max())}; expected 0 to {classes - 1}"
                + ("" if ignore is None else f", or {ignore} (ignored) in targets")
            )
    pairs = (targets * classes + predictions).flatten()
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_iou(confusion: Tensor) -> Tensor:
    """Return ``|P ∩ G| / |P ∪ G|`` of every class in float64, NaN for one that is neither predicted nor true."""
    both = confusion.diagonal().double()
    return both / (confusion.sum(0) + confusion.sum(1) - confusion.diagonal()).double()


def mean_iou(confusion: Tensor) -> float:
    """Return the mean intersection over union of the classes that are predicted or true; NaN if there are none.

    Source: M. Everingham et al., The Pascal visual object classes challenge: a retrospective, IJCV 2015, section 3.1.
    """
    return float(class_iou(confusion).nanmean())


def pixel_accuracy(confusion: Tensor) -> float:
    """Return the share of pixels of the right class; NaN if there are none."""
    return float(confusion.diagonal().sum().double() / confusion.sum().double())
