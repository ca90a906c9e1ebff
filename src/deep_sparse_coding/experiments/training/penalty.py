"""The penalty of a training: which layers, which weight at which step, and the state that a resume needs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from ...sparsity import ActivationPenalty
from ...sparsity.penalties.schedule import Constant, Cosine, Decay, LateStart, Schedule, WarmUp
from ...sparsity.penalties.target import TargetSparsity
from ..models import activation_names
from .settings import PenaltySettings


def penalized_layers(model: nn.Module, layers: str) -> tuple[str, ...]:
    """Return the names of the activations that "all", "early", "late" or "last" stands for."""
    names = activation_names(model)
    half = math.ceil(len(names) / 2)
    return {"all": names, "early": names[:half], "late": names[half:] or names[-1:], "last": names[-1:]}[layers]


def schedule_of(settings: PenaltySettings, steps: int) -> Schedule:
    """Return ω as a function of the step, among `steps` in all."""
    weight, part = settings.weight, max(round(settings.share * steps), 1)
    if settings.schedule == "warm-up":
        return WarmUp(weight, part)
    if settings.schedule == "late-start":
        return LateStart(weight, part)
    if settings.schedule == "cosine":
        return Cosine(weight, part)
    if settings.schedule == "decay":
        return Decay(weight, max(part - part // 2, 1), start=part // 2)
    return Constant(weight)


class Penalty(ABC):
    """What a training adds to its loss, as a context manager around its steps."""

    names: tuple[str, ...] = ()

    @abstractmethod
    def term(self, step: int) -> Tensor | None:
        """Return what is added to the loss of one step, counted from 0; None: nothing."""

    @abstractmethod
    def weight(self, step: int) -> float:
        """Return ω, the mean over layers where each has its own."""

    def stepped(self) -> None:  # noqa: B027 - most have nothing to do
        """Hear that the optimizer has taken a step."""

    def discard(self) -> None:  # noqa: B027
        """Forget forward passes that are no part of a step."""

    def state(self) -> dict[str, Any]:
        """Return what a resume needs, in types that a checkpoint can hold."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on from what `state` returned."""

    def __enter__(self) -> Self:
        return self

    def __exit__(  # noqa: B027
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the hooks off."""


class NoPenalty(Penalty):
    """Nothing is added."""

    def term(self, step: int) -> None:
        """Return None."""

    def weight(self, step: int) -> float:
        """Return 0."""
        return 0.0


class LayersPenalty(Penalty):
    """``Σ_j ω_j form(x_j)`` over the chosen layers, ω by a schedule or held by a target."""

    def __init__(self, model: nn.Module, settings: PenaltySettings, steps: int) -> None:
        target = settings.kind == "target"
        self._penalty = ActivationPenalty(
            model,
            targets=list(penalized_layers(model, settings.layers)),
            weight=TargetSparsity(settings.target) if target else schedule_of(settings, steps),
            form=settings.form,
            per_entry=settings.per_entry,
            measure=False,
            check_finite=False,
        )
        self.names = self._penalty.names

    def term(self, step: int) -> Tensor:
        """Return the penalty of the step's forward passes."""
        return self._penalty.value()

    def weight(self, step: int) -> float:
        """Return ω after the last step, the mean over layers."""
        weights = self._penalty.weights.values()
        return sum(weights) / len(weights)

    def discard(self) -> None:
        """Forget forward passes that are no part of a step."""
        self._penalty.discard()

    def state(self) -> dict[str, Any]:
        """Return the steps and, with a target, the weights."""
        return self._penalty.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._penalty.load_state_dict(state)

    def __enter__(self) -> Self:
        self._penalty.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._penalty.__exit__(kind, error, trace)


def make_penalty(model: nn.Module, settings: PenaltySettings, steps: int) -> Penalty:
    """Return the penalty of a training of so many steps."""
    if settings.kind == "none":
        return NoPenalty()
    return LayersPenalty(model, settings, steps)
