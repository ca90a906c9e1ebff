"""Measures of segmentation: of maps of what stands out, and of classes, as functions and as torchmetrics classes."""

from typing import TYPE_CHECKING, Any

from .overlap import class_iou as class_iou
from .overlap import confusion_matrix as confusion_matrix
from .overlap import mean_iou as mean_iou
from .overlap import pixel_accuracy as pixel_accuracy
from .saliency import SaliencyMeasures as SaliencyMeasures
from .saliency import adaptive_e as adaptive_e
from .saliency import adaptive_f as adaptive_f
from .saliency import e_curve as e_curve
from .saliency import f_curve as f_curve
from .saliency import mean_absolute_error as mean_absolute_error
from .saliency import s_measure as s_measure
from .saliency import saliency_measures as saliency_measures
from .saliency import weighted_f as weighted_f

if TYPE_CHECKING:
    from .classes import EMeasure as EMeasure
    from .classes import FMeasure as FMeasure
    from .classes import MeanIoU as MeanIoU
    from .classes import SaliencyMAE as SaliencyMAE
    from .classes import SMeasure as SMeasure
    from .classes import WeightedFMeasure as WeightedFMeasure

_CLASSES = ("EMeasure", "FMeasure", "MeanIoU", "SMeasure", "SaliencyMAE", "WeightedFMeasure")


def __getattr__(name: str) -> Any:
    """Import the torchmetrics classes when one is first asked for."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import classes

    return getattr(classes, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_CLASSES])
