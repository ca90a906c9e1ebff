"""Figures of trainings: curves over the epochs, accuracy against sparsity, sparsity layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..figures import MUTED, SERIES, line_with_range, new_figure, save_figure, style
from ..store import Record
from .parts import unpack

Value = Callable[[dict[str, Any]], float | None]


def epoch_value(*keys: str, factor: float = 1.0) -> Value:
    """Return what reads a number from the line of an epoch; None where it was not measured."""

    def read(line: dict[str, Any]) -> float | None:
        found: Any = line
        for key in keys:
            if key not in found:
                return None
            found = found[key]
        return factor * float(found)

    return read


LOSS = epoch_value("loss")
PENALTY = epoch_value("penalty")
ACCURACY = epoch_value("validation", "accuracy", factor=100)
IOU = epoch_value("validation", "mean_iou", factor=100)
ZEROS = epoch_value("validation", "zeros", factor=100)


def draw_curves(
    record: Record,
    folder: Path,
    name: str,
    panels: Sequence[tuple[str, Value]],
    *,
    settings: Sequence[str] | None = None,
) -> Path:
    """Draw curves over the epochs, a panel each: median and range over seeds, one color per setting.

    Args:
        record: The record; its runs have a history.
        folder: Where to.
        name: The file's name, without ending.
        panels: Axis label, and what reads the number.
        settings: Which settings; None: all.
    """
    shown = record.settings if settings is None else tuple(settings)
    with style():
        from matplotlib.ticker import MaxNLocator

        figure = new_figure(3.6 * len(panels) + 0.6, 3.2)
        for number, (label, read) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), number)
            for index, setting in enumerate(shown):
                rows = [run["history"] for run in record.runs if run["setting"] == setting]
                lines = [[(line["epoch"], read(line)) for line in history] for history in rows]
                known = [[(epoch, value) for epoch, value in line if value is not None] for line in lines]
                across = [epoch for epoch, _ in known[0]]
                values = [[value for _, value in line] for line in known]
                color, dashed = SERIES[index % len(SERIES)], index >= len(SERIES)
                line_with_range(axes, across, values, color, setting, dashed=dashed)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel(label)
            if number == 1:
                axes.legend(frameon=False, fontsize=8)
        return save_figure(figure, folder / f"{name}.png", record)


def draw_tradeoff(record: Record, folder: Path, measure: str, label: str) -> Path:
    """Draw a measure against the share of zeros: a point per setting with the spread over seeds, baseline marked."""
    with style():
        figure = new_figure(6.4, 4.0)
        axes = figure.add_subplot()
        for index, setting in enumerate(record.settings):
            x = np.array(list(record.values(setting, "test_zeros").values()))
            y = np.array(list(record.values(setting, measure).values()))
            color = SERIES[index % len(SERIES)]
            axes.scatter(x, y, s=9, color=color, alpha=0.35, linewidths=0)
            spread = y.std(ddof=1) if len(y) > 1 else 0.0
            axes.errorbar(x.mean(), y.mean(), yerr=spread, fmt="s" if index == 0 else "o", ms=5, color=color, capsize=2)
            axes.annotate(
                setting, (x.mean(), y.mean()), xytext=(6, 4), textcoords="offset points", fontsize=7.5, color=color
            )
        base = record.values(record.settings[0], measure)
        axes.axhline(float(np.mean(list(base.values()))), color=MUTED, lw=0.8, ls=(0, (4, 3)))
        axes.margins(x=0.15)
        axes.set_xlabel("zeros among the activations, test split, %")
        axes.set_ylabel(label)
        return save_figure(figure, folder / "tradeoff.png", record)


def draw_layers(record: Record, folder: Path) -> Path:
    """Draw the share of zeros of every activation, in the order of the network, median and range over seeds."""
    with style():
        figure = new_figure(7.0, 3.4)
        axes = figure.add_subplot()
        longest = 0
        for index, setting in enumerate(record.settings):
            rows = [
                [100 * layer["zero_fraction"] for layer in run["sparsity"]["layers"]]
                for run in record.runs
                if run["setting"] == setting
            ]
            longest = max(longest, len(rows[0]))
            line_with_range(
                axes,
                list(range(1, len(rows[0]) + 1)),
                rows,
                SERIES[index % len(SERIES)],
                setting,
                dashed=index >= len(SERIES),
            )
        axes.set_xticks(range(1, longest + 1, max(longest // 12, 1)))
        axes.set_xlabel("activation, from the image to the scores")
        axes.set_ylabel("zeros, test split, %")
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        return save_figure(figure, folder / "zeros-per-layer.png", record)


def draw_masks(record: Record, folder: Path, classes: int) -> Path:
    """Draw the masks of some test images: the truth, then what each setting predicts, of the first seed."""
    first = [run for run in record.runs if run["seed"] == record.seeds[0]]
    rows = [("truth", unpack(first[0]["truth"])), *((run["setting"], unpack(run["masks"])) for run in first)]
    count, height, width = rows[0][1].shape
    with style():
        figure = new_figure(1.9 * count + 0.4, (1.9 * height / width + 0.1) * len(rows) + 0.4)
        # Gray for two classes; else a color each, void in white.
        colors = "gray" if classes == 2 else "tab20"
        for r, (label, masks) in enumerate(rows):
            for c in range(count):
                axes = figure.add_subplot(len(rows), count, r * count + c + 1)
                shown = np.ma.masked_where(masks[c] >= classes, masks[c])
                axes.imshow(shown, cmap=colors, vmin=0, vmax=1 if classes == 2 else 19)
                axes.set_xticks([])
                axes.set_yticks([])
                axes.grid(False)
                if c == 0:
                    axes.set_ylabel(label, fontsize=8)
        return save_figure(figure, folder / "masks.png", record)
