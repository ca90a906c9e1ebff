"""The weight of every layer at every step, from whatever the user gave: numbers, schedules, sizes, or a target."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from ...checks import require_number
from ...errors import ParameterError
from ..watching.hooks import describe
from ..watching.selection import match_settings
from .schedule import Schedule
from .target import Multiplier, TargetSparsity


@dataclass(frozen=True)
class BySize:
    """Weights by size: ``ω_j = weight · n̄/n_j``, n_j the entries of a sample in layer j, n̄ their mean over layers.

    So layers count alike whatever their size, and the weight keeps the order of magnitude that a plain number has.
    ``per_entry=True`` with ``weight · n̄`` is the same.

    Args:
        weight: A number or a schedule.
    """

    weight: float | Schedule

    def __post_init__(self) -> None:
        _require_rule("weight", self.weight)


Rule: TypeAlias = float | Schedule | Callable[[int], float]
Weight: TypeAlias = Rule | Mapping[str, float | Schedule] | BySize | TargetSparsity

_VERSION = 1


class Weighting(ABC):
    """ω of every layer, step by step."""

    counts_zeros = False

    def __init__(self, names: Iterable[str], complete: bool) -> None:
        self.steps = 0
        self.names: tuple[str, ...] | None = None
        if complete:
            self.learn(tuple(names))

    def learn(self, names: tuple[str, ...]) -> None:
        """Take in the names of all layers, unless they are known."""
        if names != self.names:
            self.settle(names)
            self.names = names

    @abstractmethod
    def settle(self, names: tuple[str, ...]) -> None:
        """Take in the names of all layers, which are new."""

    @abstractmethod
    def current(self, units: Mapping[str, float]) -> dict[str, float]:
        """Return ω by name, from what a sample of ones is worth in each layer."""

    def advance(self, zeros: Mapping[str, tuple[Tensor, int]]) -> list[str]:
        """Count a step, with the number of zeros and of entries of every layer; return what to warn of."""
        self.steps += 1
        return []

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs: plain numbers and texts."""
        return {"version": _VERSION, "steps": self.steps, "multipliers": {}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ParameterError: It is none of this kind of weight.
        """
        if not isinstance(state, Mapping) or state.get("version") != _VERSION:
            raise ParameterError(
                f"the state is {type(state).__name__} with version "
                f"{state.get('version') if isinstance(state, Mapping) else None!r}; expected what "
                f"ActivationPenalty.state_dict() of version {_VERSION} returned"
            )
        steps, multipliers = state.get("steps"), state.get("multipliers")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0 or not isinstance(multipliers, Mapping):
            raise ParameterError(f"the state has {steps!r} steps; expected a whole number of at least 0")
        self._restore_multipliers(multipliers)
        self.steps = steps

    def _restore_multipliers(self, states: Mapping[str, Any]) -> None:
        if states:
            raise ParameterError(
                "the state is that of a TargetSparsity, and this penalty's weight is none; expected the same weight as "
                "when it was saved"
            )


class Scheduled(Weighting):
    """One rule for all layers, or one for each."""

    def __init__(self, rules: Rule | Mapping[str, Rule], names: Iterable[str], complete: bool) -> None:
        self._given = rules
        self._rules: dict[str, Rule] = {}
        super().__init__(names, complete)

    def settle(self, names: tuple[str, ...]) -> None:  # noqa: D102
        given = self._given
        self._rules = (
            match_settings(given, names, "weight") if isinstance(given, Mapping) else dict.fromkeys(names, given)
        )

    def current(self, units: Mapping[str, float]) -> dict[str, float]:  # noqa: D102
        return {name: _at(rule, self.steps) for name, rule in self._rules.items()}


class Sized(Weighting):
    """One rule, shared out by size."""

    def __init__(self, rule: BySize, names: Iterable[str], complete: bool) -> None:
        self._rule = rule.weight
        super().__init__(names, complete)

    def settle(self, names: tuple[str, ...]) -> None:  # noqa: D102
        return

    def current(self, units: Mapping[str, float]) -> dict[str, float]:  # noqa: D102
        mean = sum(units.values()) / max(len(units), 1)
        weight = _at(self._rule, self.steps)
        return {name: weight * mean / unit if unit else 0.0 for name, unit in units.items()}


class Held(Weighting):
    """Weights that hold a target."""

    counts_zeros = True

    def __init__(self, settings: TargetSparsity, names: Iterable[str], complete: bool) -> None:
        self._settings = settings
        self._single = not settings.per_layer and not isinstance(settings.target, Mapping)
        self.multipliers: dict[str, Multiplier] = {}
        self._waiting: Mapping[str, Any] = {}
        super().__init__(names, complete)

    def settle(self, names: tuple[str, ...]) -> None:  # noqa: D102
        target = self._settings.target
        if isinstance(target, Mapping):
            targets = match_settings(target, names, "target")
        else:
            targets = dict.fromkeys([""] if self._single else names, target)
        # Names that a later forward pass brings get a multiplier of their own; those that run keep theirs.
        self.multipliers = {
            key: self.multipliers.get(key, Multiplier(self._settings, value)) for key, value in targets.items()
        }
        if self._waiting:
            self._restore_multipliers(self._waiting)

    def current(self, units: Mapping[str, float]) -> dict[str, float]:  # noqa: D102
        if self._single:
            # One multiplier of the mean over all entries: every entry of every layer weighs the same.
            weight = self.multipliers[""].weight / (sum(units.values()) or 1.0)
            return dict.fromkeys(units, weight)
        return {name: self.multipliers[name].weight / (unit or 1.0) for name, unit in units.items()}

    def advance(self, zeros: Mapping[str, tuple[Tensor, int]]) -> list[str]:  # noqa: D102
        names = [name for name in self.names or () if name in zeros]
        if not names:
            self.steps += 1
            return []
        device = zeros[names[0]][0].device
        counts = torch.stack([zeros[name][0].to(device) for name in names])
        sizes = torch.tensor([zeros[name][1] for name in names])
        both = torch.stack([counts, sizes.to(device)])
        if self._settings.synchronize and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(both)
        found = dict(zip(names, zip(*both.tolist(), strict=True), strict=True))  # the one wait for the device
        if self._single:
            found = {"": tuple(map(sum, zip(*found.values(), strict=True)))}
        for key, (none, entries) in found.items():
            if entries:
                self.multipliers[key].update(none / entries)
        self.steps += 1
        return [
            f"{'the network' if self._single else describe([key])} {complaint}"
            for key in found
            if (complaint := self.multipliers[key].complaint()) is not None
        ]

    def state(self) -> dict[str, Any]:  # noqa: D102
        states = {key: item.state() for key, item in self.multipliers.items()}
        return {**super().state(), "multipliers": states or dict(self._waiting)}

    def _restore_multipliers(self, states: Mapping[str, Any]) -> None:
        if not self.multipliers:
            self._waiting = states  # the names come with the first forward pass
            return
        if set(states) != set(self.multipliers):
            raise ParameterError(
                f"the state has multipliers for {describe(states)}, and this penalty has them for "
                f"{describe(self.multipliers)}; expected the same targets and the same kind of weight"
            )
        self._waiting = {}
        for key, item in self.multipliers.items():
            item.restore(states[key])


def weighting(weight: object, names: Iterable[str], complete: bool) -> Weighting:
    """Return the weights of layers.

    Args:
        weight: What the user gave.
        names: Of the layers.
        complete: Whether these are all; functional targets find theirs in the first forward pass.

    Raises:
        NameMatchError: A key matches no layer.
        ParameterError: A weight is out of range, or a layer has none.
    """
    if isinstance(weight, TargetSparsity):
        return Held(weight, names, complete)
    if isinstance(weight, BySize):
        return Sized(weight, names, complete)
    if isinstance(weight, Mapping):
        return Scheduled({str(k): _require_rule(f"weight[{k!r}]", v) for k, v in weight.items()}, names, complete)
    return Scheduled(_require_rule("weight", weight), names, complete)


def _at(rule: Rule, step: int) -> float:
    if isinstance(rule, Schedule):
        return require_number(f"the weight of {rule} at step {step}", rule.at(step), minimum=0)
    if isinstance(rule, float | int):
        return rule
    return require_number(f"the weight at step {step}", rule(step), minimum=0)


def _require_rule(name: str, value: Any) -> Rule:
    expected = (
        "expected a finite number of at least 0, a schedule such as WarmUp(1e-4, steps=500), BySize(1e-4), "
        "TargetSparsity(0.9), or a mapping from module names to numbers or schedules"
    )
    if isinstance(value, Schedule):
        return value
    if callable(value) and not isinstance(value, type):
        return cast("Callable[[int], float]", value)
    if isinstance(value, bool | str):
        raise ParameterError(f"{name} is {value!r}; {expected}")
    try:
        number = float(cast(Any, value))  # numbers of NumPy and tensors of one entry too
    except (TypeError, ValueError, RuntimeError):
        raise ParameterError(f"{name} is {value!r}; {expected}") from None
    if not 0 <= number < math.inf:
        raise ParameterError(f"{name} is {number}; {expected}")
    return number
