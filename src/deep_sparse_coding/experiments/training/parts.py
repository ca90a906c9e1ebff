"""One part of an experiment: a network trained with one penalty from one seed, then measured once on the test split."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ParameterError
from ..data import SegmentedImages
from ..experiment import Part, Run
from ..models import build
from .evaluate import evaluate, predict_masks
from .loop import train
from .samples import Images
from .settings import FORMS, LAYERS, SCHEDULES, PenaltySettings, TrainSettings


@dataclass(frozen=True, eq=False)
class Splits:
    """What a part trains on, chooses by, and is measured on."""

    train: Images
    validation: Images
    test: Images


def folder_of(run: Run, what: str) -> Path:
    """Return where the data of a run lie.

    Raises:
        ParameterError: None were given; `what` says which are expected.
    """
    if run.data is None:
        raise ParameterError(f"this preset trains on data, and none was given; expected --data FOLDER with {what}")
    return run.data


@dataclass(frozen=True)
class Choice:
    """What is compared: a network and how it is made sparse.

    Attributes:
        model: One of `models.MODELS`.
        activation: One of `models.ACTIVATIONS`.
        penalty: In words, see `penalty_of`.
    """

    model: str
    activation: str
    penalty: str


def choices(models: tuple[str, ...], activations: tuple[str, ...], penalties: tuple[str, ...]) -> Mapping[str, Choice]:
    """Return every combination by its name, in which only that stands of which there are several.

    Raises:
        ParameterError: One of them is empty, or has an entry twice.
    """
    for name, values in (("models", models), ("activations", activations), ("penalties", penalties)):
        if not values or len(set(values)) < len(values):
            raise ParameterError(f"{name} is {values!r}; expected at least one, each once")
    found = {}
    for model in models:
        for activation in activations:
            for penalty in penalties:
                words = [model] * (len(models) > 1) + [activation] * (len(activations) > 1) + [penalty]
                found[" ".join(words)] = Choice(model, activation, penalty)
    return found


def penalty_of(words: str) -> PenaltySettings:
    """Return a penalty from words, such as "none", "0.05", "0.05 late", "0.2 decay", "0.1 group sum", "target=0.8".

    First "none", ω, or a target; then, in any order, layers, form and schedule by their names in `PenaltySettings`, and
    "sum" for ω times the sum over a layer's entries instead of their mean.

    Raises:
        ParameterError: A word is unknown, or stands for what another has said.
    """
    first, *rest = words.split() or [""]
    settings: dict[str, Any] = {}
    if first != "none":
        number = first.removeprefix("target=")
        key = "weight" if number == first else "target"
        try:
            settings = {"kind": "fixed" if key == "weight" else "target", key: float(number)}
        except ValueError:
            raise ParameterError(
                f"penalty is {words!r}; expected 'none', a weight or 'target=0.8' first, then words such as 'late', "
                "'decay', 'group' or 'sum'"
            ) from None
    known = {
        **{word: ("layers", word) for word in LAYERS},
        **{word: ("form", word) for word in FORMS},
        **{word: ("schedule", word) for word in SCHEDULES},
        "sum": ("per_entry", False),
    }
    for word in rest:
        if word not in known or known[word][0] in settings:
            raise ParameterError(
                f"penalty is {words!r}, and {word!r} is unknown or comes second; expected some of {', '.join(known)}, "
                "one for each of layers, form and schedule"
            )
        key, value = known[word]
        settings[key] = value
    return PenaltySettings(**settings)


def once(read: Callable[[], Splits]) -> Callable[[], Splits]:
    """Return what reads the data when it is first asked for, so that a run whose parts are there reads none."""
    return cache(read)


def train_part(
    part: Part,
    choice: Choice,
    splits: Splits,
    task: str,
    settings: TrainSettings,
    *,
    width: float,
    batch_norm: bool = True,
    masks: int = 0,
) -> dict[str, Any]:
    """Train and measure one part, and return what `Run.part` keeps.

    Args:
        part: The part.
        choice: The network and its penalty.
        splits: The data; the test split is looked at once, at the end.
        task: "classification" or "segmentation".
        settings: How the network is trained.
        width: Factor on its number of features.
        batch_norm: Whether batch norm follows each convolution.
        masks: Keep the predicted masks of so many test images.

    Returns:
        "measures": validation and test measures and zeros in percent, losses as they are; "history": one mapping per
        epoch; "sparsity": the report on the test split; "masks" and "truth" as `pack` gives them.

    Raises:
        DSCError: As `train` does.
    """
    size = max(splits.train.size)
    model = build(
        choice.model,
        len(splits.train.classes),
        activation=choice.activation,
        width=width,
        image_size=size,
        batch_norm=batch_norm,
        seed=part.seed,
    )
    result = train(
        model,
        splits.train,
        task,
        settings,
        part.folder,
        penalty=penalty_of(choice.penalty),
        validation=splits.validation,
        seed=part.seed,
        advance=part.advance,
    )
    test = evaluate(model, splits.test, task, result.scaling)
    last = result.last
    measures = {
        **{f"validation_{name}": _shown(name, value) for name, value in last.get("validation", {}).items()},
        **{f"test_{name}": _shown(name, value) for name, value in test.numbers().items()},
        "train_loss": last["loss"],
        "penalty": last["penalty"],
    }
    made = {"measures": measures, "history": list(result.history), "sparsity": test.sparsity.to_dict()}
    if masks and isinstance(splits.test, SegmentedImages):
        few = splits.test.subset(torch.linspace(0, len(splits.test) - 1, masks).long())
        made |= {"masks": pack(predict_masks(model, few, result.scaling)), "truth": pack(few.masks)}
    return made


def pack(masks: Tensor) -> dict[str, Any]:
    """Return masks ``(n, H, W)``, uint8, as what JSON holds: their shape, and their entries compressed, in base 64."""
    content = zlib.compress(masks.contiguous().numpy().tobytes(), 9)
    return {"shape": list(masks.shape), "zlib": base64.b64encode(content).decode()}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """Return the masks that `pack` made."""
    content = zlib.decompress(base64.b64decode(packed["zlib"]))
    return np.frombuffer(content, dtype=np.uint8).reshape(packed["shape"])


def _shown(name: str, value: float) -> float:
    return 100 * value if name in ("accuracy", "zeros", "pixel_accuracy", "mean_iou") else value


def chosen_by_validation(
    runs: list[dict[str, Any]], every: Mapping[str, Choice], measure: str
) -> dict[str, dict[str, str]]:
    """Return for each network the penalty, "none" left out, with the best mean of a validation measure over seeds.

    What was chosen so is what test numbers speak of; the choice never looks at them.
    """
    found: dict[str, dict[str, str]] = {}
    for setting, choice in every.items():
        if choice.penalty == "none":
            continue
        values = [run["measures"][measure] for run in runs if run["setting"] == setting]
        mean = sum(values) / len(values)
        key = f"{choice.model} {choice.activation}"
        if key not in found or mean > float(found[key]["mean"]):
            found[key] = {"setting": setting, "mean": repr(mean)}
    return found
