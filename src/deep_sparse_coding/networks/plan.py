"""How deep, with which thresholds, and to which error: the plan of a network, before it has weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import require_number
from ..dictionaries import Dictionary
from ..errors import ParameterError
from .convergence import MOST_STEPS, STANDSTILL, LayerConvergence, LayerRecursion, layer_recursion, run
from .hypotheses import LayerHypotheses
from .layout import LayerLayout, Stage


@dataclass(frozen=True)
class StepBound:
    """The bound after one step: at `depth` linear layers into the network, after `step` steps of `layer`."""

    depth: int
    layer: int
    step: int
    bound: float


@dataclass(frozen=True, eq=False)
class PlanLayer:
    """What the network does for one sparse coding layer.

    Attributes:
        layout: Its channels, kernel, stride.
        convergence: Its bounds and thresholds, step by step and atom by atom.
    """

    layout: LayerLayout
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
        return tuple(_outwards(float(row.max())) for row in self.convergence.bounds[1:])

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
        """ν, the largest over the atoms: what noise and the error of the layer below do to ``Wᵀz``."""
        return _outwards(float(self.convergence.noise.max()))

    @property
    def slack(self) -> float:
        """h, the largest over the atoms: what rounding does to a step."""
        return _outwards(float(self.convergence.slack.max()))

    @property
    def width(self) -> int:
        """Channels (dense: entries) between its steps."""
        return self.layout.state_width if self.steps > 1 else self.layout.code_width


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan of a network that computes sparse codes, and what it rests on.

    Attributes:
        layers: One entry per sparse coding layer.
        stages: The linear layers of the network in order.
        hypotheses: What is assumed of the signal, in words; the bounds hold for every signal that meets it.
        dtype: The number type whose rounding the bounds include.
    """

    layers: tuple[PlanLayer, ...]
    stages: tuple[Stage, ...]
    hypotheses: tuple[str, ...]
    dtype: torch.dtype

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
            StepBound(depth, stage.layer, stage.step, self.layers[stage.layer - 1].bounds[stage.step - 1])
            for depth, stage in enumerate(self.stages, start=1)
            if stage.activated
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
        grids = [tuple(int(n) for n in size)]
        for layer in self.layers:
            grids.append(layer.layout.grid(grids[-1]))
        return sum(
            stage.taps * math.prod(grids[stage.layer - 1 if stage.on_signal else stage.layer]) for stage in self.stages
        )

    @property
    def multiply_adds_per_entry(self) -> float:
        """Multiply-adds per position of a large signal (dense: for a signal)."""
        return sum(stage.taps * _density([layer.layout for layer in self.layers], stage) for stage in self.stages)

    def __str__(self) -> str:
        header = ("layer", "atoms", "kernel", "stride", "non-zeros", "ρ", "ν", "e_0", "steps", "bound", "width")
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
                    _upwards_text(layer.noise),
                    f"{layer.start:g}",
                    str(layer.steps),
                    _upwards_text(layer.error_bound),
                    str(layer.width),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        per = "position of the signal" if self.layers[0].layout.kernel else "signal"
        word = str(self.dtype).removeprefix("torch.")
        return "\n".join(
            [
                f"Plan: {self.depth} linear layers of width up to {self.width}, {self.parameters} parameters, "
                f"{self.multiply_adds_per_entry:.4g} multiply-adds per {per}",
                *table,
                f"‖codes - truth‖_∞ ≤ {_upwards_text(self.error_bound)} in {word} for every signal with:",
                *(f"  - {sentence}" for sentence in self.hypotheses),
            ]
        )


def make_plan(
    dictionaries: Sequence[Dictionary],
    assumed: Sequence[LayerHypotheses],
    *,
    target_error: float | None,
    steps: Sequence[int] | None,
) -> Plan:
    """Return the plan for the given numbers of steps, or the cheapest one that reaches `target_error`.

    Raises:
        ParameterError: A layer whose bound does not shrink (ρ ≥ 1), or a target below what noise and rounding leave.
    """
    layouts = [LayerLayout.of(d, signed=not h.nonnegative) for d, h in zip(dictionaries, assumed, strict=True)]
    recursions = [layer_recursion(d, h) for d, h in zip(dictionaries, assumed, strict=True)]
    rates = [(recursion.rate(), recursion.babel_rate()) for recursion in recursions]
    for dictionary, recursion, (rate, _) in zip(dictionaries, recursions, rates, strict=True):
        if rate >= 1:
            raise ParameterError(_no_contraction(dictionary, recursion, rate))
    if steps is None:
        target = require_number("target_error", target_error, minimum=0, strict=True)
        steps = _choose_steps(recursions, layouts, target, [rate for rate, _ in rates])
    layers = run(recursions, steps, rates)
    stages: list[Stage] = []
    inputs = layouts[0].channels
    for j, (layout, count) in enumerate(zip(layouts, steps, strict=True), start=1):
        stages += layout.stages(j, count, inputs)
        inputs = layout.code_width
    stages += layouts[-1].merge(len(layouts), steps[-1])
    told = [sentence for d, h in zip(dictionaries, assumed, strict=True) for sentence in h.sentences(d)]
    word = str(dictionaries[0].dtype).removeprefix("torch.")
    told.append(f"the network runs in {word} or better, sums of products in any order (no TF32, no Winograd or FFT)")
    return Plan(
        layers=tuple(PlanLayer(layout, layer) for layout, layer in zip(layouts, layers, strict=True)),
        stages=tuple(stages),
        hypotheses=tuple(told),
        dtype=dictionaries[0].dtype,
    )


# ---------------------------------------------------------------------- how many steps


@dataclass(frozen=True, eq=False)
class _Search:
    """The cheapest numbers of steps: what a layer asks of those below it decides theirs."""

    recursions: Sequence[LayerRecursion]
    costs: Sequence[float]
    target: float

    def cheapest(self, j: int, below: Tensor | None) -> tuple[float, tuple[int, ...]] | None:
        """Return cost and steps for layer j (from 0) and those above it, or None if no depth reaches the target."""
        recursion = self.recursions[j]
        noise = recursion.noise(below)
        slack = recursion.slack(noise, self.recursions[j - 1].hypotheses.amplitude if j else None)
        errors, history = recursion.start, []
        last = j == len(self.recursions) - 1
        for step in range(1, MOST_STEPS + 1):
            after = recursion.advance(errors, noise, slack)
            history.append(after)
            if last and _outwards(float(after.max())) <= self.target:
                return step * self.costs[j], (step,)
            if bool((after >= errors * (1 - STANDSTILL)).all()):
                break
            errors = after
        if last:
            return None
        ideal = self.cheapest(j + 1, history[-1])
        if ideal is None:
            return None
        # More steps here never cost the layers above more: the first number that is enough is found by bisection.
        low, high = 1, len(history)
        while low < high:
            middle = (low + high) // 2
            if self.cheapest(j + 1, history[middle - 1]) is None:
                low = middle + 1
            else:
                high = middle
        best = (len(history) * self.costs[j] + ideal[0], (len(history), *ideal[1]))
        for step in range(low, len(history)):
            if step * self.costs[j] + ideal[0] >= best[0]:
                break
            rest = self.cheapest(j + 1, history[step - 1])
            if rest is not None and step * self.costs[j] + rest[0] < best[0]:
                best = (step * self.costs[j] + rest[0], (step, *rest[1]))
        return best


def _choose_steps(
    recursions: Sequence[LayerRecursion], layouts: Sequence[LayerLayout], target: float, rates: Sequence[float]
) -> tuple[int, ...]:
    costs = []
    for j, layout in enumerate(layouts, start=1):
        # What one more step adds: the stages of three steps less those of two.
        more, fewer = layout.stages(j, 3, layout.channels), layout.stages(j, 2, layout.channels)
        costs.append(
            sum(stage.taps * _density(layouts, stage) for stage in more)
            - sum(stage.taps * _density(layouts, stage) for stage in fewer)
        )
    found = _Search(recursions, costs, target).cheapest(0, None)
    if found is None:
        raise ParameterError(_under_the_floor(recursions, target, rates))
    return found[1]


def _density(layouts: Sequence[LayerLayout], stage: Stage) -> float:
    """Positions of a stage's output per position of the signal."""
    finer = layouts[: stage.layer - 1 if stage.on_signal else stage.layer]
    return 1 / math.prod(math.prod(layout.stride) for layout in finer)


# ---------------------------------------------------------------------- words


def _no_contraction(dictionary: Dictionary, recursion: LayerRecursion, rate: float) -> str:
    assumed = recursion.hypotheses
    per = "per stripe" if dictionary.event_axes > 1 else "in all"
    allowed = 0
    for s in range(assumed.sparsity - 1, 0, -1):
        if replace(recursion, hypotheses=replace(assumed, sparsity=s)).rate() < 1:
            allowed = s
            break
    lower = f"sparsity of at most {allowed} for this layer" if allowed else "no sparsity would do for these atoms"
    one_sided = "" if assumed.nonnegative else ", nonnegative=True if the codes are"
    return (
        f"layer {assumed.layer}: the error bound does not shrink, ρ = {rate:.3f} at {assumed.sparsity} non-zeros {per} "
        f"(mutual coherence {dictionary.mutual_coherence():.3f}); expected ρ < 1: {lower}, less coherent atoms "
        f"(low_coherence(...)){one_sided}"
    )


def _under_the_floor(recursions: Sequence[LayerRecursion], target: float, rates: Sequence[float]) -> str:
    errors, amplitude, told, rounded = None, None, [], False
    floor = math.inf
    for recursion, rate in zip(recursions, rates, strict=True):
        noise = recursion.noise(errors)
        slack = recursion.slack(noise, amplitude)
        errors, amplitude = recursion.floor(noise, slack), recursion.hypotheses.amplitude
        floor = float(errors.max())
        rounded = rounded or float(slack.max()) > 0.1 * float(noise.max())
        told.append(
            f"layer {recursion.hypotheses.layer}: ρ = {rate:.3f}, ν = {float(noise.max()):.3g}, "
            f"rounding {float(slack.max()):.3g}, floor {floor:.3g}"
        )
    deepest = recursions[-1].hypotheses.layer
    word = str(recursions[-1].dtype).removeprefix("torch.")
    wider = ", or the model in float64" if word == "float32" and rounded else ""
    return (
        f"target_error is {target:g}, and the bound of layer {deepest} stays above {floor:.3g} at any depth up to "
        f"{MOST_STEPS} steps per layer ({'; '.join(told)}); expected a target above that: raise target_error, or lower "
        f"the floor with less noise=, epsilon=, sparsity= or place_sparsity= or less coherent atoms{wider}"
    )


def _outwards(value: float) -> float:
    return math.nextafter(value, math.inf) if value else 0.0


def _upwards_text(value: float) -> str:
    """Return three digits of a number, rounded up so that what is printed still bounds it."""
    text = f"{value:.3g}"
    if float(text) < value:
        unit = 10.0 ** (math.floor(math.log10(value)) - 2)
        text = f"{float(text) + unit:.3g}"
    return text
