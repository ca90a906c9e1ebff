"""What the figures of all experiments share: the caption that names the preset, colors, lines with their spread."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._drawing import BLUE, GREEN, INK, MUTED, ORANGE, new_figure, style
from ..files import write_whole
from .store import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct also to the color-blind, and in gray: dark blue, orange, teal, gray, then lighter kin.
SERIES = (BLUE, ORANGE, GREEN, MUTED, "#8a4f7d", INK)

__all__ = ["BLUE", "GREEN", "INK", "MUTED", "ORANGE", "SERIES", "line_with_range", "new_figure", "save_figure", "style"]


def save_figure(figure: Figure, path: Path, record: Record) -> Path:
    """Write a figure as a PNG on white, with the record's caption below: experiment, preset, seeds, date.

    Args:
        figure: A figure of `new_figure`, laid out without overlaps.
        path: Where; a file that is there is replaced.
        record: What it shows.

    Returns:
        The path.

    Raises:
        FileFormatError: The folder cannot be written.
    """
    buffer = io.BytesIO()
    with style():
        figure.supxlabel(record.caption, x=0.008, ha="left", fontsize=7, color=MUTED)
        # No software in the metadata: the same figure gives the same bytes.
        figure.savefig(buffer, format="png", dpi=180, facecolor="white", metadata={"Software": None})
    write_whole(path, buffer.getvalue())
    return path


def line_with_range(
    axes: Axes,
    across: Sequence[float],
    rows: Sequence[Sequence[float]],
    color: str,
    label: str,
    *,
    dashed: bool = False,
    width: float = 1.8,
) -> None:
    """Draw the median of several curves as a line, and their range as a band.

    Args:
        axes: Where.
        across: The places along the axis.
        rows: One curve per seed, each as long as `across`.
        color: The color.
        label: The name in the legend.
        dashed: A dashed line, above the others.
        width: Its width in points.
    """
    values = np.asarray(rows, dtype=float)
    look = {"ls": (0, (4, 2)), "zorder": 3} if dashed else {}
    axes.plot(across, np.median(values, 0), color=color, label=label, lw=width, **look)
    if len(values) > 1:
        axes.fill_between(across, values.min(0), values.max(0), color=color, alpha=0.18, linewidth=0)
