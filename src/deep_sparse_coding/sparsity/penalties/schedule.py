"""Weights that change while training: functions of the number of steps done."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass

from ...checks import require_integer, require_number
from ...errors import ParameterError


class Schedule(ABC):
    """A weight ω ≥ 0 as a function of the number of steps done, 0 at first.

    A penalty counts a step at every `value` with gradient, or, with ``manual_steps=True``, at every call of its
    ``step()``: once per optimizer step, or once per epoch, which makes these functions of the epoch.
    """

    @abstractmethod
    def at(self, step: int) -> float:
        """Return ω after `step` steps."""

    @property
    def length(self) -> int | None:
        """After how many steps ω stays as it is; None: not known."""
        return None


@dataclass(frozen=True)
class Constant(Schedule):
    """The same weight at all steps."""

    weight: float

    def __post_init__(self) -> None:
        require_number("weight", self.weight, minimum=0)

    def at(self, step: int) -> float:  # noqa: D102
        return self.weight

    @property
    def length(self) -> int:  # noqa: D102
        return 0


@dataclass(frozen=True)
class WarmUp(Schedule):
    """From `start` to `weight` in a straight line over `steps`, then constant."""

    weight: float
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        require_number("weight", self.weight, minimum=0)
        require_number("start", self.start, minimum=0)
        require_integer("steps", self.steps, minimum=1)

    def at(self, step: int) -> float:  # noqa: D102
        return _between(self.start, self.weight, step / self.steps)

    @property
    def length(self) -> int:  # noqa: D102
        return self.steps


@dataclass(frozen=True)
class LateStart(Schedule):
    """Zero for the first `start` steps, then `weight`, reached in a straight line over `ramp` steps."""

    weight: float
    start: int
    ramp: int = 0

    def __post_init__(self) -> None:
        require_number("weight", self.weight, minimum=0)
        require_integer("start", self.start, minimum=0)
        require_integer("ramp", self.ramp, minimum=0)

    def at(self, step: int) -> float:  # noqa: D102
        if step < self.start:
            return 0.0
        return self.weight if self.ramp == 0 else _between(0.0, self.weight, (step - self.start) / self.ramp)

    @property
    def length(self) -> int:  # noqa: D102
        return self.start + self.ramp


@dataclass(frozen=True)
class Cosine(Schedule):
    """From `weight` to `final` along half a cosine over `steps`, then constant."""

    weight: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        require_number("weight", self.weight, minimum=0)
        require_number("final", self.final, minimum=0)
        require_integer("steps", self.steps, minimum=1)

    def at(self, step: int) -> float:  # noqa: D102
        share = min(max(step / self.steps, 0.0), 1.0)
        return _between(self.weight, self.final, (1 - math.cos(math.pi * share)) / 2)

    @property
    def length(self) -> int:  # noqa: D102
        return self.steps


@dataclass(frozen=True)
class Decay(Schedule):
    """`weight` for the first `start` steps, then to `final` in a straight line over `steps`, then constant."""

    weight: float
    steps: int
    start: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        require_number("weight", self.weight, minimum=0)
        require_number("final", self.final, minimum=0)
        require_integer("start", self.start, minimum=0)
        require_integer("steps", self.steps, minimum=1)

    def at(self, step: int) -> float:  # noqa: D102
        return _between(self.weight, self.final, (step - self.start) / self.steps)

    @property
    def length(self) -> int:  # noqa: D102
        return self.start + self.steps


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Straight lines between points ``{step: weight}``, constant before the first and after the last.

    Any combination of the others: ``Piecewise({0: 0, 100: 1e-3, 700: 1e-3, 900: 0})`` warms up, holds and decays.
    """

    points: Mapping[int, float]

    def __post_init__(self) -> None:
        if not isinstance(self.points, Mapping) or not self.points:
            raise ParameterError(f"points is {self.points!r}; expected a mapping of steps to weights, with one or more")
        for step, weight in self.points.items():
            require_integer("a step in points", step, minimum=0)
            require_number(f"points[{step!r}]", weight, minimum=0)

    def at(self, step: int) -> float:  # noqa: D102
        steps = sorted(self.points)
        position = bisect_right(steps, step)
        if position in (0, len(steps)):
            return float(self.points[steps[max(position - 1, 0)]])
        left, right = steps[position - 1], steps[position]
        return _between(self.points[left], self.points[right], (step - left) / (right - left))

    @property
    def length(self) -> int:  # noqa: D102
        return max(self.points)


def _between(first: float, last: float, share: float) -> float:
    # The ends exactly, without the rounding of first + (last - first).
    if share <= 0:
        return float(first)
    return float(last) if share >= 1 else first + (last - first) * share
