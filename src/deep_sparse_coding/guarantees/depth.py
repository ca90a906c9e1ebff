"""How many steps a bound needs: the cheapest numbers per layer, or of rounds for all layers together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .recursion import MOST_STEPS, STANDSTILL, LayerRecursion
from .schedule import run, step_order


def fewest_steps(
    recursions: Sequence[LayerRecursion], target: float, costs: Sequence[float] | None = None, *, carried: bool = True
) -> tuple[int, ...] | None:
    """Return the cheapest numbers of steps, layer after layer, whose bound reaches `target`; None if none do.

    Args:
        recursions: One per layer.
        target: What the deepest layer's bound must not exceed.
        costs: What a step of each layer costs; None for the same.
        carried: As in `run`.

    Source: N2 of docs/theory.md: the earlier layers are asked for what the later ones need.
    """
    costs = (1.0,) * len(recursions) if costs is None else costs
    found = _Search(recursions, costs, target, carried).cheapest(0, None)
    return None if found is None else found[1]


def fewest_rounds(recursions: Sequence[LayerRecursion], target: float, *, carried: bool = False) -> int | None:
    """Return the fewest steps of all layers in turn whose bound reaches `target`; None if none do.

    Args:
        recursions: One per layer.
        target: What the deepest layer's bound must not exceed.
        carried: As in `run`.

    Source: N3 of docs/theory.md.
    """
    rates = [(math.nan, math.nan)] * len(recursions)
    count = 16
    while True:
        layers = run(recursions, step_order("interleaved", (count,) * len(recursions)), rates, carried=carried)
        worst = layers[-1].bounds[1:].amax(1)
        reached = (worst <= math.nextafter(target, -math.inf)).nonzero()
        if len(reached):
            return int(reached[0]) + 1
        still = all(bool((layer.bounds[-1] >= layer.bounds[-2] * (1 - STANDSTILL)).all()) for layer in layers)
        if still or count >= MOST_STEPS:
            return None
        count = min(2 * count, MOST_STEPS)


@dataclass(frozen=True, eq=False)
class _Search:
    """The cheapest numbers of steps: what a layer asks of those below it decides theirs."""

    recursions: Sequence[LayerRecursion]
    costs: Sequence[float]
    target: float
    carried: bool

    def cheapest(self, j: int, below: Tensor | None) -> tuple[float, tuple[int, ...]] | None:
        """Return cost and steps for layer j (from 0) and those above it, or None if no depth reaches the target."""
        recursion = self.recursions[j]
        noise = recursion.noise(below)
        amplitude = self.recursions[j - 1].hypotheses.amplitude if j else None
        slack = recursion.slack(noise, amplitude, carried=self.carried)
        errors, history = recursion.start, []
        last = j == len(self.recursions) - 1
        for step in range(1, MOST_STEPS + 1):
            after = recursion.advance(errors, noise, slack)
            history.append(after)
            if last and float(after.max()) <= math.nextafter(self.target, -math.inf):
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
