"""Thresholds and bounds of steps taken layer after layer, or by all layers in turn: N1 to N3, atom by atom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import per_layer, require_integer
from deep_sparse_coding.errors import ParameterError, near_misses

from .hypotheses import LayerHypotheses
from .recursion import LayerRecursion

STRATEGIES = {"layerwise": "N2", "interleaved": "N3"}


@dataclass(frozen=True, eq=False)
class LayerConvergence:
    """The bounds of one layer, step by step.

    Attributes:
        hypotheses: What is assumed of the layer's codes.
        rate: ρ, atom by atom.
        babel_rate: ``μ_1(s) + μ_1(s-1)`` or its one-sided form.
        noise: ν per atom in the last step, ``(atoms,)``.
        slack: The rounding slack h per atom, ``(atoms,)``.
        thresholds: θ of every step, ``(steps, atoms)``.
        bounds: e before the first and after every step, ``(steps + 1, atoms)``.
    """

    hypotheses: LayerHypotheses
    rate: float
    babel_rate: float
    noise: Tensor
    slack: Tensor
    thresholds: Tensor
    bounds: Tensor


def step_order(strategy: str, steps: Sequence[int]) -> tuple[int, ...]:
    """Return which layer (from 0) takes each step: layer after layer, or all of them in turn.

    Raises:
        ParameterError: An unknown strategy, or "interleaved" with other numbers of steps per layer.
    """
    if strategy not in STRATEGIES:
        raise ParameterError(
            f"strategy is {strategy!r}; expected 'layerwise' or 'interleaved'{near_misses(str(strategy), STRATEGIES)}"
        )
    if strategy == "layerwise":
        return tuple(j for j, count in enumerate(steps) for _ in range(count))
    if len(set(steps)) > 1:
        raise ParameterError(
            f"steps is {tuple(steps)}; expected one number for all layers: with strategy='interleaved' they step "
            "together"
        )
    return tuple(range(len(steps))) * steps[0]


def run(
    recursions: Sequence[LayerRecursion],
    order: Sequence[int],
    rates: Sequence[tuple[float, float]] | None = None,
    *,
    carried: bool = True,
) -> tuple[LayerConvergence, ...]:
    """Return thresholds and bounds of every layer for steps taken in any order.

    A step of layer j sees the errors that layer j - 1 has at that moment:
    ``ν_j = top_p(|w_i| E_{j-1}) + ‖w_i‖ε_j``, then ``θ_j`` and ``E_j`` by the layer's own recursion.

    Args:
        recursions: One per layer.
        order: The layer (from 0) of every step, as `step_order` gives it.
        rates: ``(rate, babel_rate)`` per layer, if they are known already.
        carried: Whether a layer computes ``Wᵀz`` once and carries it (only where its input stands still).

    Source: N2 and N3 of docs/theory.md: N0 needs only the current e and ν, so induct over the steps.
    """
    layers = [_Running(recursion, carried) for recursion in recursions]
    for j in order:
        layers[j].step(layers[j - 1] if j else None)
    found = []
    for j, layer in enumerate(layers):
        layer.listen(layers[j - 1] if j and not layer.thresholds else None)
        found.append(layer.finish(None if rates is None else rates[j]))
    return tuple(found)


class _Running:
    """One layer on its way: its errors so far, and the noise that it hears from below."""

    def __init__(self, recursion: LayerRecursion, carried: bool) -> None:
        self.recursion, self.carried = recursion, carried
        self.bounds, self.thresholds = [recursion.start], list[Tensor]()
        self.noise = self.slack = torch.zeros_like(recursion.own)
        self.heard: Tensor | None = None
        self.first = True

    def listen(self, below: _Running | None) -> None:
        """Take the noise from the errors that the layer below has now; the first is the largest."""
        errors = below.bounds[-1] if below is not None else None
        if not self.first and (below is None or errors is self.heard):
            return
        self.noise, self.heard = self.recursion.noise(errors), errors
        if self.first:
            amplitude = below.recursion.hypotheses.amplitude if below is not None else None
            self.slack = self.recursion.slack(self.noise, amplitude, carried=self.carried)
        self.first = False

    def step(self, below: _Running | None) -> None:
        """Take one step."""
        self.listen(below)
        errors = self.bounds[-1]
        self.thresholds.append(self.recursion.thresholds(errors, self.noise, self.slack))
        self.bounds.append(self.recursion.advance(errors, self.noise, self.slack))

    def finish(self, rates: tuple[float, float] | None) -> LayerConvergence:
        """Return thresholds and bounds."""
        recursion = self.recursion
        rate, babel_rate = (recursion.rate(), recursion.babel_rate()) if rates is None else rates
        taken = torch.stack(self.thresholds) if self.thresholds else recursion.own.new_zeros(0, len(recursion.own))
        bounds = torch.stack(self.bounds)
        return LayerConvergence(recursion.hypotheses, rate, babel_rate, self.noise, self.slack, taken, bounds)


def floors(recursions: Sequence[LayerRecursion], *, carried: bool = True) -> tuple[Tensor, ...]:
    """Return, layer by layer, the errors that no number of steps improves on; the same for both strategies."""
    found: list[Tensor] = []
    amplitude = None
    for recursion in recursions:
        noise = recursion.noise(found[-1] if found else None)
        found.append(recursion.floor(noise, recursion.slack(noise, amplitude, carried=carried)))
        amplitude = recursion.hypotheses.amplitude
    return tuple(found)


def check_steps(steps: object, layers: int, *, minimum: int = 0) -> tuple[int, ...]:
    """Return one number of steps, at least `minimum`, per layer.

    Raises:
        ParameterError: No whole number, too small a one, or too few or too many of them.
    """
    wanted = tuple(steps) if isinstance(steps, Sequence) and not isinstance(steps, str) else steps
    return tuple(require_integer("steps", k, minimum=minimum) for k in per_layer("steps", wanted, layers))
