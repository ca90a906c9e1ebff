"""What plans of all compiled networks share: a layer's bounds, step by step, and how many layers are compiled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checks import require_integer
from ..dictionaries import Cascade
from ..errors import ParameterError
from ..guarantees.hypotheses import LayerHypotheses
from ..guarantees.schedule import LayerConvergence


@dataclass(frozen=True)
class StepBound:
    """The bound after one step: at `depth` linear layers or blocks into the network, after `step` steps of `layer`."""

    depth: int
    layer: int
    step: int
    bound: float


@dataclass(frozen=True, eq=False)
class Estimate:
    """Codes part of the way: after `step` steps of `layer`, `depth` linear layers or blocks into the network."""

    depth: int
    layer: int
    step: int
    codes: Tensor


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What every kind of network knows of one sparse coding layer.

    Attributes:
        convergence: Its bounds and thresholds, step by step and atom by atom.
    """

    convergence: LayerConvergence

    @property
    def hypotheses(self) -> LayerHypotheses:
        """What is assumed of the layer's codes."""
        return self.convergence.hypotheses

    @property
    def steps(self) -> int:
        """K, the number of steps."""
        return len(self.convergence.thresholds)

    @property
    def rate(self) -> float:
        """ρ: noise apart, the bound falls like ``ρ^k``."""
        return self.convergence.rate

    @property
    def start(self) -> float:
        """``e_0``, the bound before the first step."""
        return self.hypotheses.amplitude

    @property
    def bounds(self) -> tuple[float, ...]:
        """The bound of ``‖x_j^k - x_j‖_∞`` after each step."""
        return tuple(outwards(float(row.max())) for row in self.convergence.bounds[1:])

    @property
    def error_bound(self) -> float:
        """The bound after the last step."""
        return self.bounds[-1]

    @property
    def thresholds(self) -> Tensor:
        """θ of every step and atom, float64, ``(steps, atoms)``."""
        return self.convergence.thresholds

    @property
    def noise(self) -> float:
        """ν of the last step, the largest over the atoms: what noise and the error of the layer below do to ``Wᵀz``."""
        return outwards(float(self.convergence.noise.max()))

    @property
    def slack(self) -> float:
        """h, the largest over the atoms: what rounding does to a step."""
        return outwards(float(self.convergence.slack.max()))


def outwards(value: float) -> float:
    """Return the next larger number; 0 stays."""
    return math.nextafter(value, math.inf) if value else 0.0


def bound_in_use(net: nn.Module, bound: float, dtype: torch.dtype) -> float:
    """Return the bound, or inf if a weight has a narrower number type than the one whose rounding it counts."""
    planned = torch.finfo(dtype).eps
    narrower = any(torch.finfo(weight.dtype).eps > planned for weight in net.parameters())
    return math.inf if narrower else bound


def in_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, cells to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def asked_layers(cascade: Cascade, layer: int | None, steps: object, target_error: float | None) -> int:
    """Return how many layers are compiled: up to `layer`, or all.

    Raises:
        ParameterError: No such layer, or a number of steps together with a target.
    """
    if steps is not None and target_error is not None:
        raise ParameterError(
            f"steps is {steps} and target_error is {target_error}; expected one of them: steps fixes the depth, "
            "target_error lets it be chosen"
        )
    depth = len(cascade) if layer is None else require_integer("layer", layer, minimum=1)
    if depth > len(cascade):
        raise ParameterError(f"layer is {layer}; expected 1 to {len(cascade)}, the number of layers")
    return depth
