"""``theory-depth``: true error and proved bound against depth, for both strategies of compilation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from ... import Cascade, ConvDictionary, DenseDictionary, Dictionary, sample, to_cnn
from ..experiment import Experiment, Measure, Part, Run
from ..figures import MUTED, new_figure, save_figure, style
from ..store import Record
from .adversary import SignalClass
from .curves import CURVE_MEASURES, draw_curves, measure_curves

SETTINGS = ("one layer", "layerwise", "interleaved")
_TITLES = {
    "one layer": "One dense layer, equal angles",
    "layerwise": "Two layers, one after the other",
    "interleaved": "Two layers in step",
}


@dataclass(frozen=True)
class DepthConfig:
    """How many signals are measured, and how far the networks go.

    Attributes:
        signals: Random signals per network.
        searched: Signals that the search for large errors starts from.
        marks: Steps whose errors the search drives up.
        rounds: Moves of the search per step.
        target_error: The bound that the networks reach.
    """

    signals: int = 500
    searched: int = 16
    marks: int = 4
    rounds: int = 3
    target_error: float = 1e-4


def run_depth(config: DepthConfig, run: Run) -> Mapping[str, Any]:
    """Return the curves of every setting and seed."""
    return {"runs": run.each(SETTINGS, lambda part: _measure(config, part))}


def _measure(config: DepthConfig, part: Part) -> Mapping[str, Any]:
    double, seed = torch.float64, part.seed
    model: Dictionary | Cascade
    if part.setting == "one layer":
        # Inner products of -1/24: every error of every other entry pulls the same way.
        atoms, s = 24, 10
        gram = torch.eye(atoms, dtype=double) * (1 + 1 / atoms) - 1 / atoms
        turn = torch.linalg.qr(_normal(atoms, seed))[0]
        model = DenseDictionary(turn @ torch.linalg.cholesky(gram).T, normalize=True)
        allowed = SignalClass((s,), (), 1.0)
        drawn = sample(model, sparsity=s, batch=config.signals, seed=seed)
        place, strategy = None, "layerwise"
    else:
        first = ConvDictionary.low_coherence(atoms=8, channels=1, size=8, stride=4, seed=seed, dtype=double)
        second = ConvDictionary.low_coherence(
            atoms=8, channels=8, size=3, stride=2, nonzeros=3, seed=seed, dtype=double
        )
        model = Cascade([first, second])
        allowed = SignalClass((8, 2), (6,), 1.0)
        drawn = sample(model, sparsity=(10_000, 3), size=(4, 4), batch=config.signals, seed=seed)
        place, strategy = allowed.place, part.setting
    net = to_cnn(
        model,
        sparsity=allowed.sparsity,
        place_sparsity=place,
        target_error=config.target_error,
        strategy=strategy,
    )
    part.advance(0.1)
    return measure_curves(
        net,
        model,
        drawn.codes[-1],
        allowed,
        searched=config.searched,
        marks=config.marks,
        rounds=config.rounds,
    )


def _normal(size: int, seed: int) -> torch.Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_depth(record: Record, folder: Path) -> list[Path]:
    """Draw a panel per setting."""
    with style():
        figure = new_figure(10.0, 3.9)
        panels = figure.subplots(1, 3, sharey=True)
        for axes, setting in zip(panels, SETTINGS, strict=True):
            parts = [part for part in record.runs if part["setting"] == setting]
            layers = sorted(set(parts[0]["layers"]))
            draw_curves(axes, parts, layers=layers)
            axes.set_title(_TITLES[setting])
            axes.set_xlabel("linear layers of the network")
            axes.set_xlim(left=0)
            axes.locator_params(axis="x", integer=True)
            for layer in layers if len(layers) > 1 else ():
                last = max(place for place, number in enumerate(parts[0]["layers"]) if number == layer)
                axes.annotate(
                    f"layer {layer}",
                    (parts[0]["depths"][last], parts[0]["driven"][last]),
                    xytext=(-8, -2),
                    textcoords="offset points",
                    color=MUTED,
                    fontsize=8.5,
                    ha="right",
                )
        panels[0].set_ylabel("largest error of a layer's codes,  ‖x − x*‖∞")
        panels[0].legend(frameon=False, loc="lower left")
        return [save_figure(figure, folder / "theory_depth.png", record)]


DEPTH = Experiment(
    name="theory-depth",
    title="true error and proved bound against depth, both strategies",
    source="N1 to N3 of docs/theory.md",
    presets=MappingProxyType(
        {
            "smoke": DepthConfig(signals=32, searched=4, marks=1, rounds=1, target_error=0.1),
            "cpu": DepthConfig(),
        }
    ),
    run=run_depth,
    draw=draw_depth,
    measures=(Measure("depth", "linear layers", 0), *CURVE_MEASURES),
    settings=lambda config: SETTINGS,
)
