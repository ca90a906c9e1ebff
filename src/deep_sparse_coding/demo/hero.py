"""One picture of the main job: photograph, reconstruction, codes, atoms, error beside its bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._drawing import BLUE, INK, MUTED, ORANGE, mosaic, style
from ..plotting import draw_bound
from .results import Results, reach
from .words import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _DPI = 16.0, 100
_MARGIN, _GAP, _TOP = 0.25, 0.28, 0.92
# Two grids of 8 by 4 tiles above each other are about as wide as a picture is high.
_SIDE, _ATOMS, _APART = 2.78, 2.64, 0.14
_HEIGHT = _SIDE + _TOP + _MARGIN


def hero_png(results: Results) -> bytes:
    """Return the picture as a PNG, 1600 pixels wide, on white."""
    import io

    from matplotlib.figure import Figure

    photo, designed = results.photograph, results.designed
    side = _SIDE
    with style():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), facecolor="#ffffff")
        left = _MARGIN

        def panel(width: float, title: str, below: str) -> Axes:
            nonlocal left
            axes = figure.add_axes((left / _WIDTH, _MARGIN / _HEIGHT, width / _WIDTH, side / _HEIGHT))
            axes.set_axis_off()
            x = left / _WIDTH
            figure.text(x, 1 - 0.32 / _HEIGHT, title, fontsize=16, color=INK, va="center")
            figure.text(x, 1 - 0.65 / _HEIGHT, below, fontsize=12, color=MUTED, va="center")
            left += width + _GAP
            return axes

        region, pixels = photo.region.numpy(), photo.region.numel()
        gray = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "bicubic"}
        panel(side, "A photograph", f"{count(pixels)} pixels").imshow(region, **gray)
        nonzeros = int((photo.codes[0] != 0).sum())
        axes = panel(
            side,
            "its reconstruction",
            f"{photo.psnr(photo.reconstruction):.1f} dB from {count(nonzeros)} codes",
        )
        axes.imshow(photo.reconstruction.numpy(), **gray)

        width = _ATOMS
        axes = panel(width, "from learned atoms", "of two layers")
        axes.set_xlim(0, width)
        axes.set_ylim(0, side)
        first = photo.model.layers[0].weight.detach()[:, 0].double().numpy()
        second = photo.model.effective()[:, 0].double().numpy()
        half = (side - _APART) / 2
        for tiles, bottom in ((first, side - half), (second, 0.0)):
            grid = mosaic(tiles[:32], 8 if len(tiles) >= 32 else 4)
            height = min(half, width * grid.shape[0] / grid.shape[1])
            wide = height * grid.shape[1] / grid.shape[0]
            start = bottom + (half - height if bottom else 0.0)
            axes.imshow(grid, extent=(0, wide, start, start + height), interpolation="nearest", aspect="auto")
        axes.set_xlim(0, width)
        axes.set_ylim(0, side)

        stride, size = reach(photo.model, 2)
        code = photo.codes[1][0]
        axes = panel(side, "where they fire", f"layer 2: {count(int((code != 0).sum()))} non-zeros")
        _overlay(axes, region, code.numpy(), stride, (size - 1) / 2)

        rest = _WIDTH - left - _MARGIN
        axes = panel(rest, "a CNN within its bound", "a designed model, error by depth")
        axes.set_axis_on()
        bottom, inset = _MARGIN + 0.32, 0.46
        axes.set_position(
            (
                (_WIDTH - _MARGIN - rest + inset) / _WIDTH,
                bottom / _HEIGHT,
                (rest - inset) / _WIDTH,
                (side + _MARGIN - bottom - 0.12) / _HEIGHT,
            )
        )
        axes.tick_params(labelsize=11)
        draw_bound(axes, designed.depths, designed.errors, designed.bounds, designed.layers)
        for text in axes.texts:
            text.set_fontsize(11)
        axes.set_xlabel("")
        axes.set_ylabel("")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI, facecolor="#ffffff", metadata={"Software": None})
        return buffer.getvalue()


def _overlay(axes: Axes, picture: np.ndarray, code: np.ndarray, stride: int, offset: float) -> None:
    """Draw the non-zeros of all maps over the faint picture."""
    axes.imshow(np.repeat((0.72 + 0.28 * picture.clip(0, 1))[..., None], 3, 2), interpolation="bicubic")
    _, rows, columns = np.nonzero(code)
    values = code[np.nonzero(code)]
    sizes = 2 + 34 * np.abs(values) / max(np.abs(values).max(initial=0.0), 1e-12)
    colors = np.where(values > 0, ORANGE, BLUE)
    axes.scatter(columns * stride + offset, rows * stride + offset, s=sizes, c=colors, linewidths=0, alpha=0.85)
    axes.set_xlim(-0.5, picture.shape[1] - 0.5)
    axes.set_ylim(picture.shape[0] - 0.5, -0.5)
