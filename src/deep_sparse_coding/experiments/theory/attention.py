"""``theory-attention``: where the heads of a compiled transformer look, soft and sharp, inside and at the border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ... import ConvDictionary, to_transformer
from ..experiment import Experiment, Measure, Part, Run
from ..figures import INK, MUTED, ORANGE, new_figure, save_figure, style
from ..store import Record

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

SETTINGS = ("soft", "sharp")
_SIZE, _STRIDE = 6, 3


@dataclass(frozen=True)
class AttentionConfig:
    """The grid and what softmax may move.

    Attributes:
        grid: Tokens per axis.
        soft: What softmax may move an argument of a threshold by, in the soft network.
        sharp: The same in the sharp network.
    """

    grid: int = 9
    soft: float = 1.0
    sharp: float = 1e-6


def run_attention(config: AttentionConfig, run: Run) -> Mapping[str, Any]:
    """Return the maps of every head for two tokens, and how much of the weight lies where it should."""
    return {"runs": run.each(SETTINGS, lambda part: _measure(config, part)), "grid": config.grid}


def _measure(config: AttentionConfig, part: Part) -> Mapping[str, Any]:
    model = ConvDictionary.low_coherence(
        atoms=6, channels=1, size=_SIZE, stride=_STRIDE, seed=part.seed, dtype=torch.float64
    )
    tolerance = config.soft if part.setting == "soft" else config.sharp
    net = to_transformer(model, size=(config.grid - 1) * _STRIDE + _SIZE, sparsity=2, steps=1, tolerance=tolerance)
    shifts = net.plan.layers[0].kernels.shifts
    maps = [net.attention_maps(0, head) for head in range(len(shifts))]
    inside, outside = _weights(maps, shifts)
    middle, corner = config.grid // 2, 0
    return {
        "shifts": [list(shift) for shift in shifts],
        "middle": [_rounded(each[middle * config.grid + middle]) for each in maps],
        "corner": [_rounded(each[corner]) for each in maps],
        "measures": {
            "temperature": net.plan.temperature,
            "heads": len(shifts),
            "inside": 100 * inside,
            "outside": 100 * outside,
            "softmax_error": net.plan.layers[0].softmax_error,
        },
    }


def _weights(maps: list[torch.Tensor], shifts: tuple[tuple[int, ...], ...]) -> tuple[float, float]:
    """Return the least weight on the token looked for, and the most on any token where the shift leads outside."""
    inside, outside = 1.0, 0.0
    for weights, (down, right) in zip(maps, shifts, strict=True):
        h, w = weights.shape[-2:]
        for token, map_ in enumerate(weights):
            row, column = token // w + down, token % w + right
            if 0 <= row < h and 0 <= column < w:
                inside = min(inside, float(map_[row, column]))
            else:
                outside = max(outside, float(map_.sum()))
    return inside, outside


def _rounded(weights: torch.Tensor) -> list[list[float]]:
    return [[round(value, 5) for value in row] for row in weights.tolist()]


def draw_attention(record: Record, folder: Path) -> list[Path]:
    """Draw the heads' maps on a compass of their shifts: soft and sharp for the middle token, sharp for a corner."""
    part = {run["setting"]: run for run in record.runs if run["seed"] == record.seeds[0]}
    blocks = (
        ("soft", "middle", "The token in the middle"),
        ("sharp", "middle", "The same, sharper"),
        ("sharp", "corner", "A token in the corner"),
    )
    with style():
        figure = new_figure(10.0, 4.3)
        for sub, (setting, token, title) in zip(
            figure.subfigures(1, 3, squeeze=False, width_ratios=(1, 1, 1.2))[0], blocks, strict=True
        ):
            temperature = part[setting]["measures"]["temperature"]
            _draw_block(sub, part[setting], token, record.results["grid"], bar=token == "corner")
            sub.suptitle(f"{title}: temperature {temperature:.0f}", fontsize=10, color=INK)
        return [save_figure(figure, folder / "theory_attention.png", record)]


def _draw_block(sub: SubFigure, part: Mapping[str, Any], token: str, grid: int, *, bar: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    shades = LinearSegmentedColormap.from_list("weights", ["#f4f6f8", "#7fb0cf", "#1c4f72"])
    # Small weights are to be seen: shades go with the cube root.
    norm = PowerNorm(1 / 3, vmin=0, vmax=1)
    rows = sorted({shift[0] for shift in part["shifts"]})
    columns = sorted({shift[1] for shift in part["shifts"]})
    panels = sub.subplots(len(rows), len(columns), squeeze=False)
    place = grid // 2 if token == "middle" else 0
    for shift, weights in zip(part["shifts"], part[token], strict=True):
        axes = panels[rows.index(shift[0])][columns.index(shift[1])]
        axes.imshow(np.asarray(weights), cmap=shades, norm=norm)
        axes.plot([place], [place], "s", mfc="none", mec=ORANGE, mew=1.4, ms=6.5)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():
            spine.set_visible(True)
        lost = 1 - float(np.sum(weights))
        axes.set_title(
            f"shift {_signed(shift[0])}, {_signed(shift[1])}", fontsize=7.5, color=MUTED, pad=2, loc="center"
        )
        if lost > 0.5:
            axes.annotate("null slot", (0.5, 0.42), xycoords="axes fraction", color=MUTED, fontsize=8, ha="center")
    if bar:
        drawn = sub.colorbar(panels[0][0].images[0], ax=panels, shrink=0.5, pad=0.03, ticks=(0, 0.01, 0.1, 0.5, 1))
        drawn.set_label("weight of a token")
        drawn.ax.set_yticklabels(["0", "0.01", "0.1", "0.5", "1"])
        drawn.outline.set_visible(False)


def _signed(number: int) -> str:
    return "0" if number == 0 else f"{number:+d}".replace("-", "−")


ATTENTION = Experiment(
    name="theory-attention",
    title="where the heads of the compiled transformer look",
    source="N8 of docs/theory.md, heads",
    presets=MappingProxyType({"smoke": AttentionConfig(grid=5), "cpu": AttentionConfig()}),
    run=run_attention,
    draw=draw_attention,
    measures=(
        Measure("temperature", "temperature", 1),
        Measure("heads", "heads", 0),
        Measure("inside", "least weight on the token looked for, %", 3, "higher"),
        Measure("outside", "most weight on tokens when the shift leads outside, %", 3, "lower"),
        Measure("softmax_error", "what softmax moves, at most", 1, "lower", scientific=True),
    ),
    settings=lambda config: SETTINGS,
)
