"""How deep, with which thresholds, and to which error: the plan of a network, before it has weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import ParameterError
from ...guarantees.guarantee import rounded_up
from ..plan import LayerPlan, StepBound, in_columns
from .activations import Activation
from .layout import LayerLayout, Stage


@dataclass(frozen=True, eq=False)
class PlanLayer(LayerPlan):
    """What the network does for one sparse coding layer.

    Attributes:
        layout: Its channels, kernel, stride.
        weights: Which analysis weights W it has: "atoms", "pseudo-inverse" or "program".
        analysis: W in float64, shaped like the dictionary's weight; None for the atoms.
        scales: t of every step's activation; nothing for ReLU.
        carry: t with which v is handed on.
        leaks: η before the first and after every step: the bound of codes that should be zero; nothing for ReLU, which
            leaves them at zero.
        largest: A bound of all arguments of activations, for other activations than ReLU.
    """

    layout: LayerLayout
    weights: str = "atoms"
    analysis: Tensor | None = field(default=None, repr=False)
    scales: tuple[float, ...] = ()
    carry: float = 1.0
    leaks: tuple[float, ...] = ()
    largest: float = math.inf

    @property
    def width(self) -> int:
        """Channels (dense: entries) between its steps, where it works alone and with ReLU."""
        return self.layout.state_width if self.steps > 1 else self.layout.code_width


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan of a network that computes sparse codes, and what it rests on.

    Attributes:
        layers: One entry per sparse coding layer.
        stages: The linear layers of the network in order.
        hypotheses: What is assumed of the signal, in words; the bounds hold for every signal that meets it.
        dtype: The number type whose rounding the bounds include.
        strategy: "layerwise" or "interleaved".
        activation: What follows the linear layers, and what is known of it.
    """

    layers: tuple[PlanLayer, ...]
    stages: tuple[Stage, ...]
    hypotheses: tuple[str, ...]
    dtype: torch.dtype
    strategy: str
    activation: Activation

    @property
    def error_bound(self) -> float:
        """The bound of ``‖codes - truth‖_∞`` for the deepest layer."""
        return self.layers[-1].error_bound

    @property
    def bounds(self) -> tuple[float, ...]:
        """The bound of the deepest layer after each of its steps."""
        return self.layers[-1].bounds

    @property
    def bound_by_depth(self) -> list[StepBound]:
        """The bound after every step of every layer, with the number of linear layers up to there."""
        return [
            StepBound(depth, at.layer, at.step, self.layers[at.layer - 1].bounds[at.step - 1])
            for depth, stage in enumerate(self.stages, start=1)
            for at in stage.readings
        ]

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps per layer."""
        return tuple(layer.steps for layer in self.layers)

    @property
    def depth(self) -> int:
        """The number of convolutions or linear layers."""
        return len(self.stages)

    @property
    def width(self) -> int:
        """The most channels (dense: entries) of any of them."""
        return max(stage.outputs for stage in self.stages)

    @property
    def parameters(self) -> int:
        """The number of weights and biases."""
        return sum(stage.parameters for stage in self.stages)

    def multiply_adds(self, size: int | Sequence[int] = ()) -> int:
        """Return the multiply-adds for one signal.

        Args:
            size: The signal's spatial size, one number for all axes or one per axis; nothing for dense layers.

        Raises:
            ParameterError: Another number of axes.
        """
        axes = len(self.layers[0].layout.kernel)
        size = tuple(size) if isinstance(size, Sequence) else (size,) * max(axes, 1)
        if len(size) != axes:
            raise ParameterError(f"size is {size}; expected {axes} number(s), the spatial size of a signal")
        grid, found = tuple(int(n) for n in size), 0
        for stage in self.stages:
            grid = stage.grid(grid)
            found += stage.taps * math.prod(grid)
        return found

    @property
    def multiply_adds_per_entry(self) -> float:
        """Multiply-adds per position of a large signal (dense: for a signal)."""
        finer, found = 1, 0.0
        for stage in self.stages:
            finer *= math.prod(stage.stride)
            found += stage.taps / finer
        return found

    def __str__(self) -> str:
        header = ("layer", "atoms", "kernel", "stride", "non-zeros", "ρ", "ν", "e_0", "weights", "steps", "bound")
        rows: list[tuple[str, ...]] = [header]
        for layer in self.layers:
            layout, assumed = layer.layout, layer.hypotheses
            rows.append(
                (
                    str(assumed.layer),
                    str(layout.atoms),
                    "×".join(str(k) for k in layout.kernel) or "–",
                    "×".join(str(q) for q in layout.stride) or "–",
                    f"{assumed.sparsity}{' per stripe' if layout.kernel else ''}",
                    f"{layer.rate:.3f}",
                    f"{rounded_up(layer.noise, 3):.3g}",
                    f"{layer.start:g}",
                    layer.weights,
                    str(layer.steps),
                    f"{rounded_up(layer.error_bound, 3):.3g}",
                )
            )
        per = "position of the signal" if self.layers[0].layout.kernel else "signal"
        word = str(self.dtype).removeprefix("torch.")
        return "\n".join(
            [
                f"Plan: {self.strategy}, {self.activation.name}, {self.depth} linear layers of width up to "
                f"{self.width}, {self.parameters} parameters, "
                f"{self.multiply_adds_per_entry:.4g} multiply-adds per {per}",
                *in_columns(rows),
                f"‖codes - truth‖_∞ ≤ {rounded_up(self.error_bound, 3):.3g} in {word} for every signal with:",
                *(f"  - {sentence}" for sentence in self.hypotheses),
            ]
        )
