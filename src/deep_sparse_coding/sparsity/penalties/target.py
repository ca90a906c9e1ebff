"""Weights that hold a target sparsity: dual ascent on the constraint that enough entries are zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...checks import check_flag, require_integer, require_number
from ...errors import ParameterError


@dataclass(frozen=True)
class TargetSparsity:
    """The weight that holds the fraction of zeros at a target, found while training by dual ascent.

    Training minimizes the loss subject to ``fraction of zeros ≥ target``. The weight is the multiplier of that
    constraint: it grows while there are too few zeros, falls while there are too many, and fades to (nearly) zero where
    the network alone has more. Zeros are counted in the very forward passes that are trained on, and the penalty's
    `tol` says what is one.

    ``log ω`` moves by `rate` times the excess of non-zeros, ``log((1 - zeros)/(1 - aim))``, as it is foreseen `horizon`
    steps ahead from the trend; the aim goes from the first zeros seen to the target over `ramp` steps or so. Both keep
    the weight from running ahead of the network, since units that an overshoot has killed seldom come back. With the
    defaults it settles within some hundreds of steps.

    Args:
        target: The fraction of zeros in (0, 1): over all entries of all layers, or of every layer with `per_layer`; or
            one per layer as a mapping from names or globs.
        per_layer: Hold every layer at the target with a weight of its own. A mapping does so too.
        rate: How fast the weight follows.
        smoothing: Over how many steps zeros are averaged.
        horizon: How many steps ahead the trend is continued; larger is calmer.
        ramp: In how many steps the aim comes closer to the target by a factor e.
        initial: The first weight: of the mean ``|x|`` over all entries, or of that of a layer.
        bounds: The weight stays within them, in the same unit.
        synchronize: Under `torch.distributed`, count the zeros of all processes, so that all have the same weight;
            every process then must call `value` equally often.

    Source: section "Sparsity in training" of docs/theory.md.
    """

    target: float | Mapping[str, float]
    per_layer: bool = False
    rate: float = 0.1
    smoothing: int = 5
    horizon: int = 40
    ramp: int = 100
    initial: float = 1e-2
    bounds: tuple[float, float] = (1e-6, 1e4)
    synchronize: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.target, Mapping):
            for key, value in self.target.items():
                _require_target(f"target[{key!r}]", value)
        else:
            _require_target("target", self.target)
        check_flag("per_layer", self.per_layer)
        check_flag("synchronize", self.synchronize)
        require_number("rate", self.rate, minimum=0, strict=True)
        require_integer("smoothing", self.smoothing, minimum=1)
        require_integer("horizon", self.horizon, minimum=0)
        require_integer("ramp", self.ramp, minimum=1)
        if not isinstance(self.bounds, tuple | list) or len(self.bounds) != 2:
            raise ParameterError(f"bounds is {self.bounds!r}; expected the smallest and the largest weight")
        low = require_number("bounds[0]", self.bounds[0], minimum=0, strict=True)
        high = require_number("bounds[1]", self.bounds[1], minimum=low, strict=True)
        require_number("initial", self.initial, minimum=low, maximum=high)


@dataclass
class Multiplier:
    """The weight of one constraint, and what it has seen.

    Attributes:
        settings: How it moves.
        target: The fraction of zeros to hold.
        log_weight: log ω.
        zeros: The fraction of zeros, averaged over `smoothing` steps; NaN before the first.
        slow: The same, averaged over more steps: how far apart they are tells the trend.
        log_aim: The logarithm of the fraction of non-zeros that is aimed at now.
        steps: How many steps it has seen.
        stuck: For how many of them, up to now, ω was at a bound and the target was missed.
    """

    settings: TargetSparsity
    target: float
    log_weight: float = math.nan
    zeros: float = math.nan
    slow: float = math.nan
    log_aim: float = math.nan
    steps: int = 0
    stuck: int = 0

    def __post_init__(self) -> None:
        self.log_weight = math.log(self.settings.initial)

    @property
    def weight(self) -> float:
        """ω now."""
        return math.exp(self.log_weight)

    def update(self, zeros: float) -> None:
        """Take in the fraction of zeros of one step."""
        settings = self.settings
        goal, least = math.log1p(-self.target), 1e-3 * (1 - self.target)
        if self.steps == 0:
            self.zeros = self.slow = zeros
            self.log_aim = math.log(max(1 - zeros, least))
        self.steps += 1
        lag = 3 * settings.smoothing
        # Early averages are plain means, so that the first step does not count for many.
        self.zeros += max(1 / settings.smoothing, 1 / (self.steps + 1)) * (zeros - self.zeros)
        self.slow += max(1 / lag, 1 / (self.steps + 1)) * (zeros - self.slow)
        # Under a steady trend the two averages are apart by its slope times the difference of their delays.
        slope = (self.zeros - self.slow) / (lag - settings.smoothing)
        foreseen = min(max(1 - self.zeros - settings.horizon * slope, least), 1.0)
        self.log_aim += (goal - self.log_aim) / settings.ramp
        # Up slower than down: too large a weight kills units for good, too small a one costs some steps.
        change = settings.rate * min(max(math.log(foreseen) - self.log_aim, -1.0), 0.3)
        low, high = (math.log(bound) for bound in settings.bounds)
        self.log_weight = min(max(self.log_weight + change, low), high)
        missed = abs(self.zeros - self.target) > _MISSED
        self.stuck = self.stuck + 1 if missed and self.log_weight in (low, high) else 0

    def complaint(self) -> str | None:
        """Return what to tell the user, once: the weight has been at a bound for long, and the target is missed."""
        if self.stuck != _LONG:
            return None
        if self.zeros < self.target:
            return (
                f"has {self.zeros:.1%} zeros with the weight at its upper bound {self.settings.bounds[1]:g}, and "
                f"{self.target:.1%} is the target: activations without exact zeros (GELU, sigmoid, softmax) need tol "
                "above 0, or a ReLU; else raise bounds"
            )
        return (
            f"has {self.zeros:.1%} zeros with the weight at its lower bound {self.settings.bounds[0]:g}, and "
            f"{self.target:.1%} is the target: the network alone is sparser, or its units died; raise the target, or "
            "lower the learning rate"
        )

    def state(self) -> dict[str, float]:
        """Return what `restore` needs, as plain numbers."""
        return {name: getattr(self, name) for name in _STATE}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ParameterError: A number is missing, or is none.
        """
        for name in _STATE:
            if isinstance(state.get(name), bool) or not isinstance(state.get(name), int | float):
                raise ParameterError(
                    f"the state has {name} = {state.get(name)!r}; expected a number: give what state_dict() returned"
                )
        for name in _STATE:
            setattr(self, name, state[name])


_STATE = ("log_weight", "zeros", "slow", "log_aim", "steps", "stuck")
_MISSED = 0.01  # the promise: within a point
_LONG = 500  # steps at a bound before it is said


def _require_target(name: str, value: Any) -> None:
    number = require_number(name, value, minimum=0, maximum=1, strict=True)
    if number == 1:
        raise ParameterError(f"{name} is 1; expected a fraction of zeros below 1, such as 0.9")
