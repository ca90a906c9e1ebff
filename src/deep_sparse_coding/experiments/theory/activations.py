"""``theory-activations``: true error and proved bound against depth, for every activation of `to_cnn`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ... import ConvDictionary, sample, to_cnn
from ..experiment import Experiment, Measure, Part, Run
from ..figures import new_figure, save_figure, style
from ..store import Record
from .adversary import SignalClass
from .curves import CURVE_MEASURES, draw_curves, measure_curves

ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "prelu",
    "relu6",
    "hardtanh",
    "elu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "softplus",
)


@dataclass(frozen=True)
class ActivationsConfig:
    """Which activations, how many signals, how many steps.

    Attributes:
        activations: Their names.
        signals: Random signals per network.
        searched: Signals that the search for large errors starts from.
        marks: Steps whose errors the search drives up.
        rounds: Moves of the search per step.
        steps: Steps of every network.
    """

    activations: tuple[str, ...] = ACTIVATIONS
    signals: int = 500
    searched: int = 16
    marks: int = 3
    rounds: int = 3
    steps: int = 16


def run_activations(config: ActivationsConfig, run: Run) -> Mapping[str, Any]:
    """Return the curves of every activation and seed."""
    return {"runs": run.each(config.activations, lambda part: _measure(config, part))}


def _measure(config: ActivationsConfig, part: Part) -> Mapping[str, Any]:
    model = ConvDictionary.low_coherence(atoms=8, channels=1, size=8, stride=4, seed=part.seed, dtype=torch.float64)
    allowed = SignalClass((10,), (), 1.0)
    drawn = sample(model, sparsity=14, size=(5, 5), batch=config.signals, seed=part.seed)
    net = to_cnn(model, sparsity=allowed.sparsity, steps=config.steps, activation=part.setting)
    return measure_curves(
        net,
        model,
        drawn.codes[-1],
        allowed,
        searched=config.searched,
        marks=config.marks,
        rounds=config.rounds,
    )


def draw_activations(record: Record, folder: Path) -> list[Path]:
    """Draw a panel per activation, on the same axes."""
    names = record.settings
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    with style():
        figure = new_figure(10.0, 0.7 + 2.15 * rows)
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for number, axes in enumerate(panels.flat):
            if number >= len(names):
                axes.set_axis_off()
                continue
            draw_curves(axes, [part for part in record.runs if part["setting"] == names[number]])
            axes.set_title(names[number])
            if number + columns >= len(names):
                axes.tick_params(labelbottom=True)
                axes.set_xlabel("linear layers")
            if number % columns == 0:
                axes.set_ylabel("‖x − x*‖∞")
        handles, labels = panels.flat[0].get_legend_handles_labels()
        if len(names) < rows * columns:
            panels.flat[-1].legend(handles, labels, frameon=False, loc="center")
        else:
            panels.flat[0].legend(frameon=False)
        return [save_figure(figure, folder / "theory_activations.png", record)]


ACTIVATION_CURVES = Experiment(
    name="theory-activations",
    title="true error and proved bound against depth, every activation",
    source="N7 of docs/theory.md",
    presets=MappingProxyType(
        {
            "smoke": ActivationsConfig(
                activations=("relu", "gelu"), signals=32, searched=4, marks=1, rounds=1, steps=4
            ),
            "cpu": ActivationsConfig(),
        }
    ),
    run=run_activations,
    draw=draw_activations,
    measures=(Measure("depth", "linear layers", 0), *CURVE_MEASURES),
    settings=lambda config: config.activations,
)
