"""``theory-transformer``: true error and proved bound of the compiled transformer, against blocks and temperature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from ... import ConvDictionary, sample, to_transformer
from ..experiment import Experiment, Measure, Part, Run
from ..figures import MUTED, SERIES, line_with_range, new_figure, save_figure, style
from ..store import Record
from .adversary import SignalClass
from .curves import CURVE_MEASURES, measure_curves


@dataclass(frozen=True)
class TransformerConfig:
    """What softmax may move, how many blocks, how many signals.

    Attributes:
        tolerances: What softmax may move an argument of a threshold by; each sets a temperature.
        shown: Those whose curves are drawn block by block.
        steps: Blocks.
        grid: Code positions per axis.
        signals: Random signals per network.
        searched: Signals that the search for large errors starts from.
        marks: Blocks whose errors the search drives up.
        rounds: Moves of the search per block.
    """

    tolerances: tuple[str, ...] = ("1e-1", "3e-2", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6", "1e-8")
    shown: tuple[str, ...] = ("1e-1", "1e-2", "1e-4", "1e-8")
    steps: int = 12
    grid: int = 6
    signals: int = 500
    searched: int = 16
    marks: int = 3
    rounds: int = 3


def run_transformer(config: TransformerConfig, run: Run) -> Mapping[str, Any]:
    """Return the curves of every tolerance and seed."""
    return {"runs": run.each(config.tolerances, lambda part: _measure(config, part)), "shown": list(config.shown)}


def _measure(config: TransformerConfig, part: Part) -> Mapping[str, Any]:
    model = ConvDictionary.low_coherence(atoms=6, channels=1, size=6, stride=3, seed=part.seed, dtype=torch.float64)
    allowed = SignalClass((5,), (), 1.0)
    drawn = sample(model, sparsity=8, size=(config.grid, config.grid), batch=config.signals, seed=part.seed)
    net = to_transformer(
        model,
        size=tuple(drawn.signal.shape[-2:]),
        sparsity=allowed.sparsity,
        steps=config.steps,
        tolerance=float(part.setting),
    )
    made = measure_curves(
        net,
        model,
        drawn.codes[-1],
        allowed,
        searched=config.searched,
        marks=config.marks,
        rounds=config.rounds,
    )
    return {**made, "measures": {"temperature": net.plan.temperature, **made["measures"]}}


def draw_transformer(record: Record, folder: Path) -> list[Path]:
    """Draw the curves against blocks, and the end of every curve against temperature."""
    with style():
        figure = new_figure(10.0, 4.1)
        left, right = figure.subplots(1, 2, sharey=True)
        for number, setting in enumerate(record.results["shown"]):
            parts = [part for part in record.runs if part["setting"] == setting]
            color = SERIES[number % len(SERIES)]
            temperature = np.mean([part["measures"]["temperature"] for part in parts])
            for key in ("bounds", "driven"):
                rows = [part[key] for part in parts]
                label = f"temperature {temperature:.0f}" if key == "driven" else "_"
                line_with_range(left, parts[0]["depths"], rows, color, label, dashed=key == "bounds")
        left.set_yscale("log")
        left.set_xlabel("transformer blocks")
        left.set_ylabel("largest error of the codes,  ‖x − x*‖∞")
        left.set_title("Dashed: proved bound.  Solid: worst signal found")
        left.legend(frameon=False)
        across = [float(np.mean(list(record.values(setting, "temperature").values()))) for setting in record.settings]
        blocks = record.runs[0]["measures"]["depth"]
        for key, color, label in (
            ("bound", SERIES[5], "proved bound"),
            ("driven", SERIES[1], "worst signal found"),
            ("random", SERIES[0], "worst random signal"),
        ):
            columns = [list(record.values(setting, key).values()) for setting in record.settings]
            rows = np.asarray(columns).T.tolist()
            line_with_range(right, across, rows, color, label, dashed=key == "bound")
            right.plot(across, np.median(rows, 0), "o", color=color, ms=3.5)
        right.set_xlabel("temperature: the factor on the logits of every head")
        right.set_title(f"After {blocks:.0f} blocks")
        right.legend(frameon=False)
        if len(across) > 3:
            for place, text in ((across[1], "softmax decides"), (across[-2], "depth decides")):
                look = {"xycoords": ("data", "axes fraction"), "color": MUTED, "fontsize": 8, "ha": "center"}
                right.annotate(text, (place, 0.03), **look)
        return [save_figure(figure, folder / "theory_transformer.png", record)]


TRANSFORMER = Experiment(
    name="theory-transformer",
    title="true error and proved bound of the transformer, by block and temperature",
    source="N8 of docs/theory.md",
    presets=MappingProxyType(
        {
            "smoke": TransformerConfig(
                tolerances=("1e-1", "1e-4"),
                shown=("1e-1", "1e-4"),
                steps=3,
                grid=4,
                signals=32,
                searched=4,
                marks=1,
                rounds=1,
            ),
            "cpu": TransformerConfig(),
        }
    ),
    run=run_transformer,
    draw=draw_transformer,
    measures=(Measure("temperature", "temperature", 1), *CURVE_MEASURES),
    settings=lambda config: config.tolerances,
)
