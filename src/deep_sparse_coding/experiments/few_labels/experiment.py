"""``few-labels-digits`` and ``few-labels-cifar10``: test accuracy against labels per class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ...errors import ParameterError
from ..data import draw_cifar10
from ..experiment import Experiment, Measure, Part, Run
from ..figures import SERIES, line_with_range, new_figure, save_figure, style
from ..store import Record
from .data import Samples, cifar10, digits, read_both
from .features import CodeConfig, code_features, learn_codes, principal_components, sklearn_features
from .linear import fit_linear
from .network import predict_cnn, train_cnn

ONE, TWO, DEEPEST = "codes of layer 1", "codes of both layers", "codes of layer 2"
SETTINGS = ("pixels", "PCA", "scikit-learn dictionary", ONE, DEEPEST, TWO, "small CNN")
_CODES = {ONE: (0,), DEEPEST: (1,), TWO: (0, 1)}
_CIFAR = "CIFAR-10: Parquet files as Hugging Face stores them, or one of the original archives"


@dataclass(frozen=True)
class FewLabelsConfig:
    """What is compared, and on how many labels.

    Attributes:
        labels: Labels per class, rising.
        pool: Images per class that features are learned from, without labels, and that labels are drawn from.
        tests: Test images; of the digits at most so many of those that are left.
        sigma: Width of the window of contrast normalization, for CIFAR-10.
        drawn: Use a drawn stand-in for CIFAR-10; for a look at the whole in seconds.
        cnn_epochs: Passes of the network over its labelled images.
        cnn_steps: Steps it takes at least.
        codes: How codes are learned and pooled.
    """

    labels: tuple[int, ...] = (10, 20, 50, 100)
    pool: int = 100
    tests: int = 2000
    sigma: float = 4.0
    drawn: bool = False
    cnn_epochs: int = 15
    cnn_steps: int = 300
    codes: CodeConfig = field(default_factory=CodeConfig)


def run_digits(config: FewLabelsConfig, run: Run) -> Mapping[str, Any]:
    """Return the accuracies on the digits of every setting and seed."""
    return _run(config, run, lambda seed: digits(config.pool, seed, config.tests))


def run_cifar10(config: FewLabelsConfig, run: Run) -> Mapping[str, Any]:
    """Return the accuracies on CIFAR-10 of every setting and seed.

    Raises:
        ParameterError: No data.
    """
    if config.drawn:
        place = draw_cifar10(run.folder / "drawn", train=20 * config.pool, test=config.tests)
    elif run.data is None:
        raise ParameterError(f"no data was given; expected --data with the folder of {_CIFAR}")
    else:
        place = run.data
    train, test = read_both(place)
    return _run(config, run, lambda seed: cifar10(train, test, config.pool, config.tests, config.sigma, seed))


def _run(config: FewLabelsConfig, run: Run, samples: Callable[[int], Samples]) -> Mapping[str, Any]:
    if not config.labels or max(config.labels) > config.pool or list(config.labels) != sorted(set(config.labels)):
        raise ParameterError(f"labels are {config.labels}; expected rising numbers up to the pool's {config.pool}")
    # Three settings read the same codes: those of the seed at work are kept.
    kept: dict[int, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}

    def measure(part: Part) -> Mapping[str, Any]:
        data = samples(part.seed)
        if part.setting == SETTINGS[-1]:
            return _curve(config, data, lambda labels: _network(config, data, labels, part))
        if part.setting in _CODES and part.seed not in kept:
            kept.clear()
            kept[part.seed] = _both_codes(config, data, part)
        if part.setting in _CODES:
            train, test = (torch.cat([block[j] for j in _CODES[part.setting]], 1) for block in kept[part.seed])
        else:
            train, test = _features(config, data, part)

        def classify(chosen: Tensor) -> Tensor:
            part.say(f"{part.setting}, seed {part.seed}: {len(chosen)} labels")
            return fit_linear(train[chosen], data.labels[chosen], data.classes).predict(test)

        return {**_curve(config, data, classify), "features": train.shape[1]}

    return {"runs": run.each(SETTINGS, measure)}


def _curve(config: FewLabelsConfig, data: Samples, classify: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Return test accuracies in percent, one per number of labels."""
    accuracies = [
        100 * float((classify(data.labelled(count)) == data.test_labels).double().mean()) for count in config.labels
    ]
    measures = {"accuracy_least": accuracies[0], "accuracy_most": accuracies[-1]}
    return {"labels": list(config.labels), "accuracy": accuracies, "tests": len(data.test_labels), "measures": measures}


def _features(config: FewLabelsConfig, data: Samples, part: Part) -> tuple[Tensor, Tensor]:
    """Return the features of the pool and of the test images."""
    if part.setting == "pixels":
        return data.raw.flatten(1).double(), data.test_raw.flatten(1).double()
    if part.setting == "PCA":
        project = principal_components(data.raw, config.codes.components)
        return project(data.raw), project(data.test_raw)
    every = torch.cat([data.prepared, data.test_prepared])
    features = sklearn_features(data.prepared, every, config.codes, part.seed, part.advance)
    return features[: len(data.raw)], features[len(data.raw) :]


def _both_codes(config: FewLabelsConfig, data: Samples, part: Part) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    learned = learn_codes(data.prepared, config.codes, part.seed)
    part.say(str(learned.history))
    every = torch.cat([data.prepared, data.test_prepared])
    layers = code_features(learned, every, config.codes, part.advance)
    return tuple(x[: len(data.raw)] for x in layers), tuple(x[len(data.raw) :] for x in layers)


def _network(config: FewLabelsConfig, data: Samples, chosen: Tensor, part: Part) -> Tensor:
    axes = (0, 2, 3)
    mean, scale = data.raw.mean(axes, keepdim=True), data.raw.std(axes, keepdim=True)
    net = train_cnn(
        (data.raw[chosen] - mean) / scale,
        data.labels[chosen],
        data.classes,
        part.seed,
        epochs=config.cnn_epochs,
        least_steps=config.cnn_steps,
        advance=part.advance,
    )
    return predict_cnn(net, (data.test_raw - mean) / scale)


def draw_few_labels(record: Record, folder: Path) -> list[Path]:
    """Draw accuracy against labels per class, one line per setting, the range over the seeds as a band."""
    with style():
        figure = new_figure(7.6, 4.6)
        axes = figure.add_subplot()
        for place, setting in enumerate(record.settings):
            parts = [part for part in record.runs if part["setting"] == setting]
            rows = [part["accuracy"] for part in parts]
            color = SERIES[place % len(SERIES)]
            line_with_range(axes, parts[0]["labels"], rows, color, setting, dashed=place >= len(SERIES))
        axes.set_xscale("log")
        axes.set_xticks(record.runs[0]["labels"], [str(count) for count in record.runs[0]["labels"]])
        axes.set_xlabel("labels per class")
        axes.set_ylabel("test accuracy, %")
        axes.legend(frameon=False, loc="lower right")
        return [save_figure(figure, folder / f"{record.name.replace('-', '_')}.png", record)]


_MEASURES = (
    Measure("accuracy_least", "test accuracy at the fewest labels, %", 1, "higher"),
    Measure("accuracy_most", "test accuracy at the most labels, %", 1, "higher"),
)
_SEEDS = MappingProxyType({"smoke": (0,), "cpu": (0, 1, 2, 3, 4)})

DIGITS = Experiment(
    name="few-labels-digits",
    title="accuracy against labels per class: codes, PCA, pixels, a small network",
    source="docs/few-labels.md",
    presets=MappingProxyType(
        {
            "smoke": FewLabelsConfig(
                (5, 20),
                20,
                tests=100,
                cnn_steps=60,
                codes=CodeConfig((8, 16), epochs=2, learned_from=60, encoder="threshold"),
            ),
            "cpu": FewLabelsConfig(),
        }
    ),
    run=run_digits,
    draw=draw_few_labels,
    measures=_MEASURES,
    settings=lambda config: SETTINGS,
    seeds=_SEEDS,
)

CIFAR10 = Experiment(
    name="few-labels-cifar10",
    title="accuracy against labels per class: codes, PCA, pixels, a small network",
    source="docs/few-labels.md",
    presets=MappingProxyType(
        {
            "smoke": FewLabelsConfig(
                (5, 20),
                20,
                tests=60,
                drawn=True,
                cnn_steps=40,
                codes=CodeConfig((6, 8), (6, 4), (2, 2), (1.5, 0.5), 2, 20, 2, 0.1, "threshold", 20),
            ),
            "cpu": FewLabelsConfig(
                (10, 30, 100, 300, 1000),
                1000,
                tests=1000,
                cnn_epochs=8,
                codes=CodeConfig(
                    (32, 64), (6, 4), (2, 2), (1.0, 0.5), 4, 400, tol=0.05, encoder="threshold", components=100
                ),
            ),
        }
    ),
    run=run_cifar10,
    draw=draw_few_labels,
    measures=_MEASURES,
    settings=lambda config: SETTINGS,
    seeds=MappingProxyType({"smoke": (0,), "cpu": (0, 1, 2)}),
    needs_data=_CIFAR,
)  # fmt: skip

FEW_LABELS = (DIGITS, CIFAR10)
