"""The figure of a report on sparsity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..._drawing import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, new_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .report import SparsityReport


def plot_report(report: SparsityReport, title: str | None = None) -> Figure:
    """Draw zero fraction, Hoyer's sparsity and dead channels, one line per layer.

    Args:
        report: What to draw.
        title: A title.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    names = [row.name or "(model)" for row in report]
    dead = [math.nan if row.dead_channels is None else 100 * row.dead_channels / (row.channels or 1) for row in report]
    with style():
        figure = new_figure(8.4, 1.0 + 0.24 * max(len(names), 2) + (0.3 if title else 0.0))
        left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
        _draw(left, [100 * row.zero_fraction for row in report], BLUE, 100, "zero entries, %")
        if not math.isnan(report.zero_fraction):
            share = 100 * report.zero_fraction
            left.axvline(share, color=MUTED, lw=1, ls=(0, (4, 3)))
            side = {"ha": "right", "xytext": (-4, 3)} if share > 50 else {"ha": "left", "xytext": (4, 3)}
            left.annotate(
                f"all layers {share:.1f} %", (share, -0.75), color=MUTED, textcoords="offset points", va="bottom",
                annotation_clip=False, **side,
            )  # fmt: skip
        _draw(middle, [row.hoyer for row in report], GREEN, 1, "Hoyer's sparsity")
        _draw(right, dead, ORANGE, 100, "dead channels, %")
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.4, -0.75)
        if title:
            figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=10)
        return figure


def _draw(axes: Axes, values: list[float], color: str, top: float, label: str) -> None:
    rows = range(len(values))
    axes.hlines(rows, 0, values, color=FAINT, lw=3, zorder=1)
    axes.plot(values, rows, "o", color=color, ms=6, mew=0, zorder=3, clip_on=False)
    axes.set_xlim(0, top)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
