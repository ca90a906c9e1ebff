"""Figures: atoms, code maps, convergence, error beside its bound, sparsity. One style, no global state.

Every function returns a `matplotlib.figure.Figure` that belongs to no window: save it with ``figure.savefig(path)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ._drawing import BLUE, FAINT, GREEN, INK, MUTED, ORANGE, mosaic, new_figure, style
from .checks import require_float_tensor, require_integer
from .dictionaries import Dictionary
from .errors import ParameterError, ShapeError
from .solvers import Solution
from .sparsity import SparsityReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SERIES = (BLUE, ORANGE, GREEN, MUTED)


# ---------------------------------------------------------------------- atoms


def plot_atoms(
    atoms: Dictionary | Tensor,
    *,
    shape: tuple[int, int] | None = None,
    columns: int | None = None,
    limit: int | None = None,
    title: str | None = None,
) -> Figure:
    """Draw atoms as a grid of tiles, each on its own symmetric gray scale: mid-gray is zero.

    Args:
        atoms: A dictionary, or atoms as signals ``(atoms, channels, k, k)``, ``(atoms, k, k)`` or ``(atoms, d)``, such
            as ``model.effective()``; 1 channel is drawn in gray, 3 in color.
        shape: Height and width of an atom that is a vector; None: a square.
        columns: Tiles per row; None chooses.
        limit: Draw the first so many atoms; None for all.
        title: A title.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ShapeError: Atoms that are no images.
    """
    tiles = _tiles(atoms, shape)
    if limit is not None:
        tiles = tiles[: require_integer("limit", limit, minimum=1)]
    count = len(tiles)
    columns = math.ceil(math.sqrt(2 * count)) if columns is None else require_integer("columns", columns, minimum=1)
    with style():
        image = mosaic(tiles, min(columns, count))
        width = 7.0
        figure = new_figure(width, width * image.shape[0] / image.shape[1] + (0.3 if title else 0.0))
        axes = figure.add_subplot()
        axes.imshow(image)
        axes.set_axis_off()
        if title:
            axes.set_title(title)
        return figure


def _tiles(atoms: Dictionary | Tensor, shape: tuple[int, int] | None) -> np.ndarray:
    if isinstance(atoms, Dictionary):
        weight = atoms.weight.detach()
        tensor = weight.T if atoms.event_axes == 1 else weight
    else:
        tensor = require_float_tensor("atoms", atoms).detach()
    values = tensor.cpu().double()
    if values.ndim == 2:
        d = values.shape[1]
        side = math.isqrt(d)
        h, w = shape or (side, side)
        if h * w != d:
            raise ShapeError(f"atoms are vectors of {d} entries; expected shape=(height, width) with that product")
        values = values.reshape(-1, h, w)
    if values.ndim == 4 and values.shape[1] in (1, 3):
        values = values[:, 0] if values.shape[1] == 1 else values.movedim(1, 3)
    elif values.ndim != 3 or 0 in values.shape:
        raise ShapeError(
            f"atoms have shape {tuple(tensor.shape)}; expected images (atoms, 1 or 3, k, k), (atoms, k, k) or "
            "(atoms, d): draw deeper layers by their effective atoms, model.effective(layer)"
        )
    return values.numpy()


# ---------------------------------------------------------------------- codes


def plot_codes(
    codes: Tensor,
    image: Tensor | None = None,
    *,
    stride: int = 1,
    size: int = 1,
    maps: int = 6,
    atoms: Tensor | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the most active code maps: where each atom fires, over the image; orange positive, blue negative.

    Args:
        codes: One sample's code, ``(atoms, h, w)``.
        image: What was coded, ``(H, W)`` or ``(1, H, W)``, drawn faintly below; None for none.
        stride: Pixels of the image between neighboring codes (for deeper layers the product of all strides).
        size: Pixels that an atom spans, so that a dot stands at the atom's center.
        maps: How many maps, those of largest ``‖·‖_1``.
        atoms: The atoms as images ``(atoms, 1, k, k)``, drawn beside their maps; None for none.
        title: A title.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ShapeError: Codes or an image of other axes.
    """
    codes = require_float_tensor("codes", codes).detach().cpu()
    if codes.ndim != 3 or 0 in codes.shape:
        raise ShapeError(f"codes have shape {tuple(codes.shape)}; expected one sample's maps (atoms, h, w)")
    h, w = codes.shape[1:]
    extent = ((h - 1) * stride + size, (w - 1) * stride + size)
    picture = None if image is None else np.asarray(image.detach().cpu().double().squeeze(), dtype=float)
    if picture is not None and (picture.ndim != 2 or abs(picture.shape[0] - extent[0]) > stride * size):
        raise ShapeError(
            f"image has shape {tuple(image.shape) if image is not None else ()}; expected about {extent}, what maps of "
            f"{h} by {w} with stride {stride} and atoms of size {size} cover"
        )
    active = codes.abs().flatten(1).sum(1).argsort(descending=True)[: require_integer("maps", maps, minimum=1)]
    tiles = None if atoms is None else _tiles(atoms, None)
    largest = float(codes[active].abs().max()) or 1.0
    columns = min(3, len(active))
    rows = -(-len(active) // columns)
    with style():
        figure = new_figure(7.2, 2.55 * rows * 3 / columns + (0.3 if title else 0.0))
        for place, index in enumerate(active.tolist(), start=1):
            axes = figure.add_subplot(rows, columns, place)
            _code_map(axes, codes[index], picture, stride, (size - 1) / 2, extent, largest)
            if tiles is not None:
                _inset(axes, tiles[index])
        if title:
            figure.suptitle(title, x=0.01, ha="left")
        return figure


def _code_map(
    axes: Axes,
    code: Tensor,
    picture: np.ndarray | None,
    stride: int,
    offset: float,
    extent: tuple[int, int],
    largest: float,
) -> None:
    """Draw one map: a dot per non-zero, its area in proportion to the entry."""
    if picture is not None:
        low, high = np.percentile(picture, [1, 99])
        faint = 0.72 + 0.28 * np.clip((picture - low) / max(high - low, 1e-12), 0, 1)
        axes.imshow(np.repeat(faint[..., None], 3, 2), interpolation="bilinear")
    rows, columns = (code != 0).nonzero(as_tuple=True)
    values = code[rows, columns].numpy()
    axes.scatter(
        columns.numpy() * stride + offset,
        rows.numpy() * stride + offset,
        s=2 + 26 * np.abs(values) / largest,
        c=np.where(values > 0, ORANGE, BLUE),
        linewidths=0,
        alpha=0.9,
    )
    axes.set_xlim(-0.5, extent[1] - 0.5)
    axes.set_ylim(extent[0] - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _inset(axes: Axes, tile: np.ndarray) -> None:
    """Draw an atom into the upper left corner of its map."""
    small = axes.inset_axes((0.03, 0.75, 0.22, 0.22))
    small.imshow(mosaic(tile[None], 1))
    small.set_xticks([])
    small.set_yticks([])
    small.grid(False)
    for spine in small.spines.values():
        spine.set(visible=True, edgecolor="#ffffff", linewidth=1.6)


# ---------------------------------------------------------------------- lines


def plot_convergence(solution: Solution) -> Figure:
    """Draw the relative duality gap against steps and seconds, one line per sample (for layered problems: per layer).

    Args:
        solution: What `solve` returned.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ParameterError: The solution has no history (an empty batch).
    """
    histories = [h for h in solution.history if len(h.steps) and h.relative_gap.numel()]
    if not histories:
        raise ParameterError("solution has no history; expected one of at least one sample")
    with style():
        figure = new_figure(8.4, 3.1)
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, label in ((left, "steps"), (right, "seconds")):
            for number, history in enumerate(histories):
                x = history.steps if label == "steps" else history.seconds
                gaps = np.maximum(history.relative_gap.numpy(), 1e-17)
                color = _SERIES[number % len(_SERIES)]
                axes.plot(x, gaps, color=color, lw=0.9, alpha=0.45)
                axes.plot(x, gaps.max(1), color=color)
                axes.plot(x[-1:], gaps.max(1)[-1:], "o", color=color, ms=5)
                if len(histories) > 1 and axes is left:
                    axes.annotate(f" layer {number + 1}", (x[-1], gaps.max(1)[-1]), color=color, va="bottom")
            axes.set_yscale("log")
            axes.set_xlim(left=0)
            axes.set_xlabel(label)
            if solution.tol > 0:
                axes.axhline(solution.tol, color=MUTED, lw=1, ls=(0, (4, 3)))
        if solution.tol > 0:
            left.annotate(
                f"asked for: {solution.tol:.0e}",
                (0.02, solution.tol),
                xycoords=("axes fraction", "data"),
                xytext=(0, 4),
                textcoords="offset points",
                color=MUTED,
                va="bottom",
            )
        left.set_title("Relative duality gap")
        return figure


def plot_bound(
    depths: Sequence[float],
    errors: Sequence[float] | Tensor,
    bounds: Sequence[float],
    *,
    layers: Sequence[int] | None = None,
) -> Figure:
    """Draw true errors of a network beside the bound that is proved for them, depth by depth.

    Args:
        depths: Linear layers into the network, one per estimate.
        errors: ``‖codes - truth‖_∞`` at each depth, or ``(signals, depths)``: then dots for all, and a line
            for the largest.
        bounds: The proved bound at each depth.
        layers: To which sparse coding layer each estimate belongs; the borders between them are marked.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ShapeError: Lengths that differ.
    """
    measured = torch.as_tensor(errors, dtype=torch.float64)
    measured = measured.reshape(1, -1) if measured.ndim == 1 else measured
    count = len(depths)
    if count == 0 or measured.shape[-1] != count or len(bounds) != count or len(layers or depths) != count:
        raise ShapeError(
            f"depths, errors and bounds have {count}, {measured.shape[-1]} and {len(bounds)} entries"
            f"{'' if layers is None else f', layers {len(layers)}'}; expected the same number, at least 1"
        )
    with style():
        figure = new_figure(8.4, 3.6)
        draw_bound(figure.add_subplot(), depths, measured, bounds, layers)
        return figure


def draw_bound(
    axes: Axes, depths: Sequence[float], errors: Tensor, bounds: Sequence[float], layers: Sequence[int] | None
) -> None:
    """Draw what `plot_bound` describes into given axes, errors ``(signals, depths)``; call it within `style`."""
    x, bound = np.asarray(depths, dtype=float), np.asarray(bounds, dtype=float)
    # Zero has no place on a logarithmic scale: nothing is drawn there.
    dots = np.where(errors.numpy() > 0, errors.numpy(), np.nan)
    largest = np.where(errors.numpy().max(0) > 0, errors.numpy().max(0), np.nan)
    axes.set_yscale("log")
    marks = list(layers) if layers is not None else [1] * len(x)
    for layer in dict.fromkeys(marks):
        part = np.array([mark == layer for mark in marks])
        axes.plot(x[part], bound[part], color=ORANGE, marker="o", ms=3.5)
        axes.plot(np.tile(x[part], (len(dots), 1)).T, dots[:, part].T, ".", color=BLUE, ms=2.5, alpha=0.35)
        axes.plot(x[part], largest[part], color=BLUE, marker="o", ms=3.5)
        middle = np.flatnonzero(part)[0]
        if layers is not None:
            axes.annotate(
                f"layer {layer}",
                (x[middle], 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                color=MUTED,
                va="bottom",
            )
            if middle:
                axes.axvline(float(x[middle] + x[middle - 1]) / 2, color=MUTED, lw=1, ls=(0, (4, 3)))
    # The curves fall, so there is room above them on the right and below them on the left.
    first = np.flatnonzero([mark == marks[0] for mark in marks])
    high, low = first[len(first) // 3], first[2 * len(first) // 3]
    above = {"xytext": (7, 2), "textcoords": "offset points", "va": "bottom"}
    axes.annotate("proved bound", (x[high], bound[high]), color=ORANGE, **above)
    if np.isfinite(largest[low]):
        below = {"xytext": (-7, -3), "textcoords": "offset points", "va": "top", "ha": "right"}
        axes.annotate("largest error", (x[low], largest[low]), color=BLUE, **below)
    span = max(x[-1] - x[0], 1.0)
    axes.set_xlim(x[0] - 0.04 * span, x[-1] + 0.04 * span)
    axes.set_xticks([value for value in axes.get_xticks() if x[0] <= value <= x[-1] and value == int(value)])
    axes.set_xlabel("linear layers into the network")
    axes.set_ylabel("largest error of a code")


def plot_sparsity(reports: Mapping[str, SparsityReport | Sequence[SparsityReport]]) -> Figure:
    """Draw the fraction of zeros per layer for networks of the same layers: small dots per run, large ones their mean.

    Args:
        reports: By name, one report (of a `Probe` or an `ActivationPenalty`) or one per seed.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ParameterError: No report, or reports of different layers.
    """
    runs = {name: [r] if isinstance(r, SparsityReport) else list(r) for name, r in reports.items()}
    every = [report for group in runs.values() for report in group]
    names = [[row.name for row in report] for report in every]
    if not every or any(not group for group in runs.values()) or any(other != names[0] for other in names):
        raise ParameterError(
            f"reports are of the layers {names}; expected at least one report per name, all of the same layers"
        )
    with style():
        figure = new_figure(8.4, 1.1 + 0.5 * len(names[0]))
        axes = figure.add_subplot()
        middle = _draw_layers(axes, runs, len(names[0]))
        order = sorted(middle, key=lambda name: middle[name])
        for place, name in enumerate(order):
            side = "center" if len(order) > 2 else ("right", "left")[place] if len(order) == 2 else "center"
            color = _SERIES[list(runs).index(name) % len(_SERIES)]
            axes.annotate(
                name, (middle[name], -0.42), color=color, ha=side, va="bottom", annotation_clip=False, fontweight="bold"
            )
        axes.set_yticks(range(len(names[0])), [name or "(model)" for name in names[0]])
        axes.set_ylim(len(names[0]) - 0.5, -0.75)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("entries that are exactly zero, %")
        return figure


def _draw_layers(axes: Axes, runs: Mapping[str, Sequence[SparsityReport]], layers: int) -> dict[str, float]:
    """Draw a line and dots per layer; return by name where its mean stands in the first layer."""
    first = {}
    for row in range(layers):
        means = []
        for number, (name, group) in enumerate(runs.items()):
            values = [100 * report.layers[row].zero_fraction for report in group]
            color = _SERIES[number % len(_SERIES)]
            means.append(float(np.mean(values)))
            axes.plot(values, [row] * len(values), "o", color=color, ms=4, alpha=0.45, mew=0, zorder=3)
            axes.plot(means[-1:], [row], "o", color=color, ms=9, mew=0, zorder=4)
            first.setdefault(name, means[-1])
        axes.plot([min(means), max(means)], [row, row], color=FAINT, lw=3, zorder=1)
    return first
