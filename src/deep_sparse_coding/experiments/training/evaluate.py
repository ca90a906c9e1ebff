"""Loss, accuracy or overlap, and sparsity of a network on a split, in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...checks import require_integer
from ...errors import ParameterError, ShapeError
from ...sparsity import SparsityReport
from ...sparsity.measuring.survey import measure_sparsity
from ..data import LabelledImages, SegmentedImages
from ..metrics import confusion_matrix, mean_iou, pixel_accuracy, saliency_measures
from ..models import activation_names
from .samples import Images, Scaling, targets_of
from .settings import require_word

TASKS = ("classification", "segmentation")
# What no pixel of a mask is, so that a loss over masks without void still has something to ignore.
_NOTHING = -100


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network reaches on a split.

    Attributes:
        samples: How many images.
        loss: The mean cross-entropy.
        measures: By name. "accuracy" for classification; "pixel_accuracy" and "mean_iou" for segmentation, and with two
            classes "mae", "max_f", "weighted_f", "max_e", "mean_e" and "s" too. Shares, not percent.
        sparsity: The report on the activations.
    """

    samples: int
    loss: float
    measures: Mapping[str, float]
    sparsity: SparsityReport

    def numbers(self) -> dict[str, float]:
        """Return loss, measures, the share of zeros and the mean of Hoyer's sparsity over layers as one mapping."""
        known = [layer.hoyer for layer in self.sparsity if not math.isnan(layer.hoyer)]
        hoyer = sum(known) / len(known) if known else 0.0
        return {"loss": self.loss, **self.measures, "zeros": self.sparsity.zero_fraction, "hoyer": hoyer}


class _Batches:
    """The images of a split in order, with their targets; it has a length and can be gone through again."""

    def __init__(self, data: Images, batch: int) -> None:
        self._data, self._batch = data, batch

    def __len__(self) -> int:
        return -(-len(self._data) // self._batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        goals = targets_of(self._data)
        for start in range(0, len(self._data), self._batch):
            chosen = slice(start, start + self._batch)
            yield self._data.images[chosen], goals[chosen]


def evaluate(
    model: nn.Module, data: Images, task: str, scaling: Scaling, *, batch: int = 256, detailed: bool = True
) -> Evaluation:
    """Return what a network reaches on a split, in evaluation mode, without gradient and in float32.

    Args:
        model: The network, with activations of `models.ACTIVATIONS`.
        data: The split.
        task: "classification" or "segmentation".
        scaling: Of the images, as in training: ``Scaling.of(train.images)``.
        batch: Images per forward pass.
        detailed: Also the measures of maps with two classes, which take longer than the forward pass.

    Raises:
        HookError: An activation did not run.
        ParameterError: The data does not fit the task, or the network puts out scores that are not finite.
        ShapeError: The network puts out another number of scores than there are classes.
    """
    require_task(task, data)
    batch = require_integer("batch", batch, minimum=1)
    classes, ignore = len(data.classes), ignored(data)
    total = torch.zeros((), dtype=torch.float64)
    counted = 0
    # Void pixels have no truth to compare a map with.
    wants_maps = detailed and task == "segmentation" and classes == 2 and ignore == _NOTHING
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    maps: list[Tensor] = []

    def forward(network: nn.Module, given: Any) -> None:
        nonlocal total, confusion, counted
        images, goals = given
        scores = network(scaling(images)).float()
        require_scores(scores, goals, classes)
        goals = goals.long()
        total = total + F.cross_entropy(scores, goals, ignore_index=ignore, reduction="sum").double().cpu()
        counted += int((goals != ignore).sum())
        confusion = confusion + confusion_matrix(
            scores.argmax(1).cpu(), goals.cpu(), classes, ignore=None if ignore == _NOTHING else ignore
        )
        if wants_maps:
            maps.append(scores.softmax(1)[:, 1].cpu())

    names = list(activation_names(model))
    report = measure_sparsity(model, _Batches(data, batch), names, forward=forward)
    loss = float(total) / max(counted, 1)
    if task == "classification":
        measures = {"accuracy": float(confusion.diag().sum()) / counted}
    else:
        measures = {"pixel_accuracy": pixel_accuracy(confusion), "mean_iou": mean_iou(confusion)}
        if wants_maps:
            found = saliency_measures(torch.cat(maps), targets_of(data), normalize=False)
            measures |= {name: float(value) for name, value in vars(found).items()}
    return Evaluation(len(data), loss, measures, report)


def predict_masks(model: nn.Module, data: SegmentedImages, scaling: Scaling, *, batch: int = 64) -> Tensor:
    """Return the class of every pixel: uint8 ``(n, H, W)``."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            parts = [model(scaling(part.to(device))).argmax(1).byte().cpu() for part in data.images.split(batch)]
    finally:
        model.train(training)
    return torch.cat(parts)


def ignored(data: Images) -> int:
    """Return the target that counts in no loss."""
    return data.ignore if isinstance(data, SegmentedImages) and data.ignore is not None else _NOTHING


def require_task(task: str, data: Images) -> None:
    """Raise unless the data fits the task.

    Raises:
        ParameterError: It does not, or the task is unknown.
    """
    require_word("task", task, TASKS)
    kind = LabelledImages if task == "classification" else SegmentedImages
    if not isinstance(data, kind):
        raise ParameterError(f"data is a {type(data).__name__} with task {task!r}; expected {kind.__name__}")


def require_scores(scores: Tensor, goals: Tensor, classes: int) -> None:
    """Raise unless there is one score per class for every target.

    Raises:
        ShapeError: The network puts out another shape.
    """
    expected = (len(goals), classes, *goals.shape[1:])
    if tuple(scores.shape) != expected:
        raise ShapeError(
            f"the network put out the shape {tuple(scores.shape)}; expected {expected}, a score for each of {classes} "
            "classes: build it with that number"
        )
