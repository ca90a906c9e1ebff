"""Explanations and anomalies drawn on the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .._drawing import INK, ORANGE, mosaic, new_figure, style
from ..checks import require_integer
from ..dictionaries import Cascade, ConvDictionary, Dictionary
from ..dictionaries.cascade import as_cascade
from ..errors import ShapeError, UnsupportedError
from .explain import Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_explanation(
    explanation: Explanation, model: Dictionary | Cascade, image: Tensor, *, limit: int = 6, title: str | None = None
) -> Figure:
    """Draw a region on the image around it, and beside it the atoms that make most of its energy.

    Each atom stands under its share, of the sign of its code; its outline is drawn on the image.

    Args:
        explanation: What `explain` returned, of a convolutional model.
        model: The model.
        image: What was coded, or the picture that it was made from, ``(channels, H, W)`` or ``(H, W)``.
        limit: How many atoms, at most.
        title: A title.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ShapeError: An image of another size than the explanation's.
        UnsupportedError: A dense model, whose atoms have no place.
    """
    limit = require_integer("limit", limit, minimum=1)
    cascade = as_cascade(model)
    if not all(isinstance(layer, ConvDictionary) for layer in cascade.layers) or cascade.layers[0].event_axes != 3:
        raise UnsupportedError("model is no dictionary of images; expected convolutions over two axes")
    picture = _picture(image, tuple(explanation.region.shape))
    atoms = cascade.effective(explanation.layer).double()
    count = min(limit, len(explanation))
    columns = -(-count // 2)
    with style():
        figure = new_figure(3.4 + 1.5 * columns, 3.5)
        grid = figure.add_gridspec(2, 2 + columns)
        axes = figure.add_subplot(grid[:, :2])
        _show(axes, picture)
        axes.contour(explanation.region.cpu().numpy(), levels=[0.5], colors=[ORANGE], linewidths=1.6)
        _look_at(axes, explanation.region, tuple(atoms.shape[2:]))
        axes.set_title(title or f"{len(explanation)} non-zeros reach the region")
        for rank in range(count):
            atom = int(explanation.atoms[rank])
            tile = atoms[atom] * float(explanation.codes[rank].sign())
            corner = _corner(cascade, explanation.layer, explanation.places[rank])
            _outline(axes, corner, tuple(tile.shape[1:]))
            axes.annotate(
                str(rank + 1), (corner[1], corner[0]), color="white", fontsize=7.5, ha="left", va="top",
                annotation_clip=True,
                bbox={"boxstyle": "square,pad=0.15", "facecolor": INK, "linewidth": 0},
            )  # fmt: skip
            small = figure.add_subplot(grid[rank // columns, 2 + rank % columns])
            small.imshow(mosaic(tile.movedim(0, -1).squeeze(-1)[None].cpu().numpy(), 1))
            small.set_axis_off()
            small.set_title(f"{rank + 1}: {100 * float(explanation.shares[rank]):.0f} %\natom {atom}", fontsize=8.5)
        return figure


def plot_anomaly(image: Tensor, scores: Tensor, *, title: str | None = None) -> Figure:
    """Draw an image beside its anomaly map, the largest score ringed in both.

    Args:
        image: ``(channels, H, W)`` or ``(H, W)``.
        scores: What `anomaly_map` returned for it, ``(H, W)`` or ``(1, H, W)``.
        title: A title.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ShapeError: Scores and image of different sizes.
    """
    values = scores.detach().cpu().double()
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    spatial = tuple(image.shape[-2:])
    if tuple(values.shape) != spatial:
        raise ShapeError(f"scores have shape {tuple(scores.shape)}; expected {spatial}, the size of the image")
    picture = _picture(image, spatial)
    row, column = divmod(int(values.argmax()), spatial[1])
    with style():
        figure = new_figure(7.4, 0.4 + 3.4 * spatial[0] / spatial[1])
        left, right = figure.subplots(1, 2)
        _show(left, picture)
        shown = right.imshow(values.numpy(), cmap="magma", vmin=0.0)
        right.set_axis_off()
        figure.colorbar(shown, ax=right, shrink=0.8)
        for axes, color in ((left, ORANGE), (right, "white")):
            radius = 0.06 * min(spatial)
            turn = np.linspace(0, 2 * np.pi, 60)
            axes.plot(column + radius * np.cos(turn), row + radius * np.sin(turn), color=color, lw=1.6)
            axes.set_xlim(-0.5, spatial[1] - 0.5)
            axes.set_ylim(spatial[0] - 0.5, -0.5)
        left.set_title(title or "the image")
        right.set_title(f"what is not explained, largest at ({row}, {column})")
        return figure


def _picture(image: Tensor, spatial: tuple[int, ...]) -> np.ndarray:
    flat = image.detach().cpu().double()
    flat = flat[None] if flat.ndim == 2 else flat
    if flat.ndim != 3 or len(flat) not in (1, 3) or tuple(flat.shape[1:]) != spatial:
        raise ShapeError(f"image has shape {tuple(image.shape)}; expected 1 or 3 channels of {spatial}")
    low, high = torch.quantile(flat.flatten(), torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
    return ((flat - low) / max(high - low, 1e-12)).clamp(0, 1).movedim(0, -1).numpy()


def _show(axes: Axes, picture: np.ndarray) -> None:
    if picture.shape[-1] == 1:
        axes.imshow(picture[..., 0], cmap="gray", vmin=0, vmax=1)
    else:
        axes.imshow(picture)
    axes.set_axis_off()


def _corner(cascade: Cascade, layer: int, place: Tensor) -> tuple[int, int]:
    """Return the row and column of the image where an effective atom begins."""
    row, column = place.tolist()
    for part in cascade.layers[:layer][::-1]:
        if not isinstance(part, ConvDictionary):
            raise TypeError("only convolutions have places")
        row, column = row * part.stride[0], column * part.stride[1]
        if part.boundary == "same":
            row, column = (n - (k - 1) // 2 for n, k in zip((row, column), part.kernel_size, strict=True))
    return row, column


def _look_at(axes: Axes, region: Tensor, size: tuple[int, ...]) -> None:
    """Show the image as far around the region as atoms that reach it go."""
    limits = []
    for axis, margin in enumerate(size):
        inside = region.cpu().any(1 - axis).nonzero().flatten()
        low, high = int(inside.min()) - margin, int(inside.max()) + margin
        limits.append((max(low, 0) - 0.5, min(high, region.shape[axis] - 1) + 0.5))
    axes.set_xlim(*limits[1])
    axes.set_ylim(limits[0][1], limits[0][0])


def _outline(axes: Axes, corner: tuple[int, int], size: tuple[int, ...]) -> None:
    top, left = corner[0] - 0.5, corner[1] - 0.5
    bottom, right = top + size[0], left + size[1]
    axes.plot(
        [left, right, right, left, left], [top, top, bottom, bottom, top], color="white", lw=1.1, ls=(0, (3, 2)),
        scalex=False, scaley=False,
    )  # fmt: skip
