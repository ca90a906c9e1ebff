"""The paper's experiments on CIFAR-10: accuracy, training loss, penalty, sparsity per layer, and the trade-off.

The two strategies that are compared, beside training without a penalty: ω on every activation, and ω on the later half
of them alone ("late"), where the features are that the last layer reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ParameterError
from .data import LabelledImages, draw_cifar10, hold_out, read_cifar10
from .experiment import Experiment, Measure, Part, Run
from .store import Record
from .training.matched import matched_differences
from .training.parts import Splits, choices, chosen_by_validation, folder_of, once, penalty_of, train_part
from .training.pictures import ACCURACY, LOSS, PENALTY, ZEROS, draw_curves, draw_layers, draw_tradeoff
from .training.settings import TrainSettings

_DATA = "CIFAR-10: Parquet files as Hugging Face stores them, or one of the original archives"
# The held-out images are the same for every seed, and so are not drawn from it.
_HELD_OUT_SEED = 0


@dataclass(frozen=True)
class ClassificationConfig:
    """How networks are compared on CIFAR-10.

    Attributes:
        models: Networks, by name.
        activations: Their activations, by name.
        penalties: What is compared, in words: "none", "0.05", "0.05 late", "target=0.8"; "none" first.
        width: Factor on the number of features.
        samples: Training images, drawn from the seed with equal shares of the classes; 0: all that are left.
        held_out: Images taken from the training split for validation.
        drawn: Train on a drawn stand-in instead of data; for a look at the whole in seconds.
        train: How networks are trained.
    """

    models: tuple[str, ...] = ("vgg11",)
    activations: tuple[str, ...] = ("relu",)
    penalties: tuple[str, ...] = ("none", "0.05", "0.05 late")
    width: float = 1.0
    samples: int = 0
    held_out: int = 5000
    drawn: bool = False
    train: TrainSettings = field(default_factory=TrainSettings)


def run_classification(config: ClassificationConfig, run: Run) -> Mapping[str, Any]:
    """Train every network with every penalty and seed.

    Returns:
        "runs"; "chosen", the penalty that validation prefers; "matched", see `matched_differences`.

    Raises:
        DSCError: No data or other than CIFAR-10, or a setting out of range.
    """
    every = choices(config.models, config.activations, config.penalties)
    for choice in every.values():
        penalty_of(choice.penalty)  # says what is wrong before any work
    read = once(lambda: _read(config, run))

    def make(part: Part) -> Mapping[str, Any]:
        splits = read()
        if config.samples:
            drawn = _draw(splits.train, config.samples, part.seed)
            splits = replace(splits, train=drawn)
        choice = every[part.setting]
        return train_part(part, choice, splits, "classification", config.train, width=config.width)

    parts = run.each(every, make)
    return {
        "runs": parts,
        "chosen": chosen_by_validation(parts, every, "validation_accuracy"),
        "matched": matched_differences(parts, every, "test_accuracy"),
    }


def _read(config: ClassificationConfig, run: Run) -> Splits:
    folder = draw_cifar10(run.folder / "drawn", train=400, test=200) if config.drawn else folder_of(run, _DATA)
    whole = not config.drawn
    run.say(f"reading {folder}")
    every = read_cifar10(folder, "train", complete=whole)
    train, validation = hold_out(every, config.held_out, _HELD_OUT_SEED)
    return Splits(train, validation, read_cifar10(folder, "test", complete=whole))


def _draw(images: Any, count: int, seed: int) -> LabelledImages:
    if count > len(images):
        raise ParameterError(f"samples is {count}; expected at most {len(images)}, or 0 for all")
    return images if count == len(images) else hold_out(images, count, seed)[1]


def _settings(config: ClassificationConfig) -> tuple[str, ...]:
    return tuple(choices(config.models, config.activations, config.penalties))


_MEASURES = (
    Measure("test_accuracy", "test accuracy, %", better="higher"),
    Measure("validation_accuracy", "validation accuracy, %", better="higher"),
    Measure("test_zeros", "zeros, test, %", digits=1, better="higher"),
    Measure("test_hoyer", "Hoyer's sparsity, test", digits=3, better="higher"),
    Measure("train_loss", "training loss", digits=4),
    Measure("penalty", "penalty", digits=4),
)
_SMOKE = ClassificationConfig(
    penalties=("none", "0.05", "0.05 late"),
    width=0.125,
    held_out=80,
    drawn=True,
    train=TrainSettings(epochs=2, batch=40, lr=0.05, augmentation="crop-flip", threads=1, accelerator="cpu"),
)
_CPU = ClassificationConfig(
    penalties=("none", "0.05", "0.05 late"),
    width=0.25,
    held_out=5000,
    train=TrainSettings(epochs=20, batch=128, augmentation="crop-flip", threads=2, accelerator="cpu"),
)
_FULL = ClassificationConfig(
    penalties=("none", "0.01", "0.05", "0.05 late"),
    train=TrainSettings(epochs=200, batch=128, augmentation="crop-flip", precision="bf16-mixed", log_every=2),
)
_WEIGHTS = ("none", "0.01 late", "0.05", "0.2", "target=0.8")
_FEW = replace(_CPU, penalties=_WEIGHTS, samples=5000, train=replace(_CPU.train, augmentation="none", log_every=5))

Draw = Callable[[Record, Path], list[Path]]


def _experiment(
    name: str,
    title: str,
    source: str,
    draw: Draw,
    *,
    smoke: ClassificationConfig = _SMOKE,
    cpu: ClassificationConfig = _CPU,
    full: ClassificationConfig = _FULL,
    shows: Mapping[str, str] | None = None,
) -> Experiment:
    return Experiment(
        name,
        title,
        source,
        {"smoke": smoke, "cpu": cpu, "full": full},
        run_classification,
        draw,
        _MEASURES,
        _settings,
        shows=shows or {},
        needs_data=_DATA,
    )


def _draw_accuracy(record: Record, folder: Path) -> list[Path]:
    return [
        draw_curves(record, folder, "accuracy", [("validation accuracy, %", ACCURACY)]),
        draw_curves(record, folder, "training-loss", [("training loss", LOSS)]),
        draw_tradeoff(record, folder, "test_accuracy", "test accuracy, %"),
    ]


def _draw_loss(record: Record, folder: Path) -> list[Path]:
    return [draw_curves(record, folder, "training-loss", [("training loss", LOSS)])]


def _draw_penalty(record: Record, folder: Path) -> list[Path]:
    panels = [("training loss", LOSS), ("penalty Σ ω ‖x‖₁", PENALTY), ("zeros, validation, %", ZEROS)]
    return [draw_curves(record, folder, "loss-and-penalty", panels)]


def _draw_layers(record: Record, folder: Path) -> list[Path]:
    return [draw_layers(record, folder)]


def _draw_tradeoff(record: Record, folder: Path) -> list[Path]:
    return [draw_tradeoff(record, folder, "test_accuracy", "test accuracy, %"), draw_layers(record, folder)]


CLASSIFICATION: tuple[Experiment, ...] = (
    _experiment(
        "cifar10-accuracy",
        "accuracy and training loss over the epochs, by network and strategy",
        "Figures 1 and 2",
        _draw_accuracy,
        cpu=replace(_CPU, models=("vgg11", "resnet18"), samples=10000),
        full=replace(_FULL, models=("vgg11", "vgg16", "resnet18", "resnet34")),
        shows={
            "Figure 1": "accuracy on CIFAR-10 over the epochs",
            "Figure 2": "training loss on CIFAR-10 over the epochs",
            "Table: accuracy by model and strategy": "test accuracy without a penalty, and with both strategies",
        },
    ),
    _experiment(
        "cifar10-vgg11",
        "training loss of VGG11 over the first 50 epochs",
        "Figure 3",
        _draw_loss,
        cpu=replace(_CPU, samples=10000, train=replace(_CPU.train, epochs=50)),
        full=replace(_FULL, train=replace(_FULL.train, epochs=50)),
    ),
    _experiment(
        "cifar10-loss-and-penalty",
        "loss and penalty during training",
        "Figure 4",
        _draw_penalty,
        cpu=replace(_CPU, penalties=("none", "0.01", "0.05", "0.2"), samples=10000),
    ),
    _experiment(
        "cifar10-layers",
        "sparsity layer by layer",
        "Figure 7",
        _draw_layers,
        cpu=replace(_CPU, penalties=("none", "0.05", "0.05 late", "0.05 sum"), samples=10000),
    ),
    _experiment(
        "cifar10-activations",
        "accuracy and zeros by activation",
        "Table: accuracy by activation",
        _draw_accuracy,
        smoke=replace(_SMOKE, activations=("relu", "gelu"), penalties=("none", "0.05")),
        cpu=replace(
            _CPU, activations=("relu", "leaky_relu", "elu", "gelu", "silu"), penalties=("none", "0.05"), samples=10000
        ),
        full=replace(
            _FULL, activations=("relu", "leaky_relu", "prelu", "elu", "gelu", "silu"), penalties=("none", "0.05")
        ),
    ),
    _experiment(
        "cifar10-tradeoff",
        "accuracy against sparsity over weights and targets, 5,000 training images",
        "Our question: sparser and better?",
        _draw_tradeoff,
        cpu=_FEW,
        full=replace(_FULL, penalties=("none", "0.01", "0.05", "0.2", "target=0.8", "target=0.9")),
    ),
    _experiment(
        "cifar10-tradeoff-few",
        "accuracy against sparsity with 1,000 training images",
        "Our question: sparser and better?",
        _draw_tradeoff,
        cpu=replace(_FEW, samples=1000, train=replace(_FEW.train, epochs=60)),
        full=replace(_FULL, samples=1000, penalties=_WEIGHTS, train=replace(_FULL.train, epochs=400)),
    ),
    _experiment(
        "cifar10-tradeoff-noise",
        "accuracy against sparsity with a fifth of the training labels wrong",
        "Our question: sparser and better?",
        _draw_tradeoff,
        smoke=replace(_SMOKE, train=replace(_SMOKE.train, label_noise=0.2)),
        cpu=replace(_FEW, train=replace(_FEW.train, label_noise=0.2)),
        full=replace(_FULL, penalties=_WEIGHTS, train=replace(_FULL.train, label_noise=0.2)),
    ),
)
