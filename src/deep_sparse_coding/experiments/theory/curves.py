"""Error and bound of a compiled network, step by step: how they are measured, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import Cascade, CompiledCNN, CompiledTransformer, Dictionary, codes_by_depth
from ..experiment import Measure
from ..figures import BLUE, INK, ORANGE
from .adversary import SignalClass, drive, errors_by_depth

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def measure_curves(
    net: CompiledCNN | CompiledTransformer,
    model: Dictionary | Cascade,
    deepest: Tensor,
    allowed: SignalClass,
    *,
    searched: int,
    marks: int,
    rounds: int,
) -> dict[str, Any]:
    """Return the curves of a network and what its part ends with.

    Args:
        net: The network.
        model: Its dictionaries.
        deepest: Deepest codes of random signals, of which those that belong to the class are measured.
        allowed: The class that the network's plan was made for.
        searched: How many of the signals the search for large errors starts from.
        marks: How many steps' errors it drives up, evenly spread, the last included.
        rounds: Moves of the search per such step.

    Returns:
        ``"depths"``, ``"layers"``, ``"bounds"``, ``"random"`` and ``"driven"`` (the largest errors), by step; and the
        measures.
    """

    def trace(signal: Tensor) -> Sequence[tuple[int, Tensor]]:
        found = codes_by_depth(net, signal) if isinstance(net, CompiledCNN) else net.codes_by_depth(signal)
        return [(estimate.layer, estimate.codes) for estimate in found]

    kept = deepest[allowed.holds(model, deepest)]
    random = errors_by_depth(model, trace, kept).amax(0)
    every = len(net.plan.bound_by_depth)
    chosen = sorted({round((i + 1) * every / marks) - 1 for i in range(marks)} - {-1})
    driven = torch.maximum(random, drive(model, trace, kept[:searched], allowed, chosen, rounds))
    bounds = torch.tensor([mark.bound for mark in net.plan.bound_by_depth], dtype=torch.float64)
    return {
        "depths": [mark.depth for mark in net.plan.bound_by_depth],
        "layers": [mark.layer for mark in net.plan.bound_by_depth],
        "bounds": bounds.tolist(),
        "random": random.tolist(),
        "driven": driven.tolist(),
        "measures": {
            "signals": len(kept),
            "violations": int((driven > bounds).sum()),
            "depth": net.plan.bound_by_depth[-1].depth,
            "bound": net.error_bound,
            "random": float(random[-1]),
            "driven": float(driven[-1]),
            "tightness_end": 100 * float(driven[-1] / bounds[-1]),
        },
    }


# What is told of every curve; see the "measures" of `measure_curves`.
CURVE_MEASURES = (
    Measure("signals", "random signals", 0),
    Measure("bound", "bound at the end", 1, "lower", scientific=True),
    Measure("random", "worst random error", 1, "lower", scientific=True),
    Measure("driven", "worst error found", 1, "lower", scientific=True),
    Measure("tightness_end", "worst / bound, %", 1, "higher"),
    Measure("violations", "bounds violated", 0, "lower"),
)

# What is equal stays visible: a wide line, a thin one on it, dashes on top.
CURVES = (
    ("driven", ORANGE, "worst signal found", 3.4),
    ("random", BLUE, "worst random signal", 1.4),
    ("bounds", INK, "proved bound", 1.4),
)


def draw_curves(axes: Axes, parts: Sequence[dict[str, Any]], *, layers: Sequence[int] = (1,)) -> None:
    """Draw bound and errors against depth, one line per sparse coding layer.

    Every seed has dictionaries, rates and depths of its own: the first is drawn in full, the others faintly.

    Args:
        axes: Where; its vertical axis becomes logarithmic.
        parts: One per seed.
        layers: The sparse coding layers to draw.
    """
    axes.set_yscale("log")
    for number, part in enumerate(parts):
        for layer in layers:
            across = [depth for depth, j in zip(part["depths"], part["layers"], strict=True) if j == layer]
            for key, color, label, width in CURVES:
                axes.plot(
                    across,
                    _of_layer(part, key, layer),
                    color=color,
                    lw=width if number == 0 else 0.5 * width,
                    alpha=1.0 if number == 0 else 0.35,
                    ls=(0, (4, 2)) if key == "bounds" else "-",
                    zorder=3 if number == 0 else 2,
                    label=label if number == 0 and layer == layers[0] else "_",
                )


def _of_layer(part: dict[str, Any], key: str, layer: int) -> list[float]:
    # Zero has no place on a logarithmic axis.
    values = zip(part[key], part["layers"], strict=True)
    return [value if value > 0 else math.nan for value, number in values if number == layer]
