"""The measures as torchmetrics classes: updated batch by batch, summed over processes. Imported on first use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...checks import require_integer
from ...errors import ParameterError, missing_extra
from .overlap import class_iou, confusion_matrix, mean_iou
from .saliency import (
    LEVELS,
    adaptive_e,
    adaptive_f,
    e_curve,
    f_curve,
    mean_absolute_error,
    s_measure,
    weighted_f,
)

try:
    from torchmetrics import Metric
except ImportError:
    raise missing_extra("torchmetrics", "train", "deep_sparse_coding.experiments.metrics.classes") from None

_REDUCTIONS = ("max", "mean", "adaptive")


class SaliencyMAE(Metric):
    """Mean absolute error of maps ``(n, H, W)`` in [0, 1] against masks of 0 and 1.

    Args:
        normalize: Stretch each map to [0, 1] first.
        settings: Of `torchmetrics.Metric`.

    Source: as `mean_absolute_error`.
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, *, normalize: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.normalize = normalize
        _add_sums(self)

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Take one more batch."""
        _add(self, mean_absolute_error(predictions, masks, normalize=self.normalize))

    def compute(self) -> Tensor:
        """Return the mean over all images."""
        return self.total / self.count


class FMeasure(Metric):
    """F of maps ``(n, H, W)`` in [0, 1] against masks of 0 and 1.

    Args:
        kind: "max" or "mean" over the thresholds, of the mean over images; "adaptive": at twice the mean of each map.
        beta2: Weight of the precision.
        normalize: Stretch each map to [0, 1] first.
        settings: Of `torchmetrics.Metric`.

    Raises:
        ParameterError: Another kind.

    Source: as `f_curve` and `adaptive_f`.
    """

    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, kind: str = "max", *, beta2: float = 0.3, normalize: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.kind, self.beta2, self.normalize = _require_kind(kind), beta2, normalize
        _add_sums(self, 1 if kind == "adaptive" else LEVELS)

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Take one more batch."""
        measure = adaptive_f if self.kind == "adaptive" else f_curve
        _add(self, measure(predictions, masks, beta2=self.beta2, normalize=self.normalize))

    def compute(self) -> Tensor:
        """Return the largest or the mean entry of the mean curve."""
        return _reduce(self.total / self.count, self.kind)


class WeightedFMeasure(Metric):
    """Weighted F of maps ``(n, H, W)`` in [0, 1] against masks of 0 and 1.

    Args:
        beta2: Weight of the precision.
        normalize: Stretch each map to [0, 1] first.
        settings: Of `torchmetrics.Metric`.

    Source: as `weighted_f`.
    """

    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, *, beta2: float = 1.0, normalize: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.beta2, self.normalize = beta2, normalize
        _add_sums(self)

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Take one more batch."""
        _add(self, weighted_f(predictions, masks, beta2=self.beta2, normalize=self.normalize))

    def compute(self) -> Tensor:
        """Return the mean over all images."""
        return self.total / self.count


class EMeasure(Metric):
    """Enhanced alignment of maps ``(n, H, W)`` in [0, 1] with masks of 0 and 1.

    Args:
        kind: "max" or "mean" over the thresholds, of the mean over images; "adaptive": at twice the mean of each map.
        normalize: Stretch each map to [0, 1] first.
        settings: Of `torchmetrics.Metric`.

    Raises:
        ParameterError: Another kind.

    Source: as `e_curve` and `adaptive_e`.
    """

    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, kind: str = "max", *, normalize: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.kind, self.normalize = _require_kind(kind), normalize
        _add_sums(self, 1 if kind == "adaptive" else LEVELS)

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Take one more batch."""
        measure = adaptive_e if self.kind == "adaptive" else e_curve
        _add(self, measure(predictions, masks, normalize=self.normalize))

    def compute(self) -> Tensor:
        """Return the largest or the mean entry of the mean curve."""
        return _reduce(self.total / self.count, self.kind)


class SMeasure(Metric):
    """Structure measure of maps ``(n, H, W)`` in [0, 1] against masks of 0 and 1.

    Args:
        alpha: Weight of the objects against the regions.
        normalize: Stretch each map to [0, 1] first.
        settings: Of `torchmetrics.Metric`.

    Source: as `s_measure`.
    """

    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, *, alpha: float = 0.5, normalize: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.alpha, self.normalize = alpha, normalize
        _add_sums(self)

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Take one more batch."""
        _add(self, s_measure(predictions, masks, alpha=self.alpha, normalize=self.normalize))

    def compute(self) -> Tensor:
        """Return the mean over all images."""
        return self.total / self.count


class MeanIoU(Metric):
    """Mean intersection over union of the classes that are predicted or true, over all pixels of all images.

    Args:
        classes: Number of classes.
        ignore: The entry of targets that does not count; None if there is none.
        settings: Of `torchmetrics.Metric`.

    Source: as `mean_iou`.
    """

    higher_is_better = True
    full_state_update = False
    confusion: Tensor

    def __init__(self, classes: int, *, ignore: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.classes, self.ignore = require_integer("classes", classes, minimum=1), ignore
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take one more batch: classes of the same shape, or scores ``(n, classes, *)`` for targets ``(n, *)``."""
        if predictions.ndim == targets.ndim + 1:
            predictions = predictions.argmax(1)
        self.confusion += confusion_matrix(predictions, targets, self.classes, ignore=self.ignore)

    def compute(self) -> Tensor:
        """Return the mean over classes, NaN before any pixel was counted."""
        return torch.tensor(mean_iou(self.confusion), dtype=torch.float64, device=self.confusion.device)

    def per_class(self) -> Tensor:
        """Return the intersection over union of each class, NaN for one that is neither predicted nor true.

        Counts are those of this process.
        """
        return class_iou(self.confusion)


def _require_kind(kind: str) -> str:
    if kind not in _REDUCTIONS:
        raise ParameterError(f"kind is {kind!r}; expected one of {', '.join(_REDUCTIONS)}")
    return kind


def _add_sums(metric: Metric, entries: int = 1) -> None:
    # In float64: a sum over thousands of images is to be exact to far below what is compared.
    metric.add_state("total", torch.zeros(entries, dtype=torch.float64).squeeze(), dist_reduce_fx="sum")
    metric.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")


def _add(metric: SaliencyMAE | FMeasure | WeightedFMeasure | EMeasure | SMeasure, values: Any) -> None:
    metric.total += torch.from_numpy(values).sum(0).to(metric.total.device)
    metric.count += len(values)


def _reduce(curve: Tensor, kind: str) -> Tensor:
    return curve.max() if kind == "max" else curve.mean()
