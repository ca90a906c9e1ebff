"""What a solver is: a start, a step, and the codes it stands for. The loop belongs to `solve`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_float_tensor, require_number
from deep_sparse_coding.problems import Blocks, StandardForm


@dataclass(frozen=True, eq=False)
class State(ABC):
    """Where an iteration stands, for a flat batch.

    Attributes:
        codes: The current codes, one block per layer.
        steps: Steps taken so far.
    """

    codes: Blocks
    steps: int

    @abstractmethod
    def select(self, keep: Tensor) -> Self:
        """Return the state of the samples `keep` (indices); the others have ended."""


StateT = TypeVar("StateT", bound=State)


class Solver(ABC, Generic[StateT]):
    """A method for the standard form. Concrete solvers are frozen dataclasses that hold settings only."""

    #: Steps between the first checks of the gap; the loop then checks more and more rarely.
    check_every: int = 10

    @property
    def name(self) -> str:
        """The name that solutions print."""
        return type(self).__name__

    @abstractmethod
    def refuse(self, form: StandardForm) -> str | None:
        """Return why this solver cannot take the problem and which one can, or None if it can."""

    @abstractmethod
    def init(self, form: StandardForm, start: Blocks, tol: float) -> StateT:
        """Return the state before the first step.

        Args:
            form: The problem.
            start: Finite codes to start from.
            tol: The relative gap that is wanted; for methods that adapt to it.
        """

    @abstractmethod
    def step(self, form: StandardForm, state: StateT) -> StateT:
        """Return the state one step later."""


def select_blocks(blocks: Blocks, keep: Tensor) -> Blocks:
    """Return the samples `keep` of every block."""
    return tuple(block[keep] for block in blocks)


@dataclass(frozen=True, eq=False)
class CodesState(State):
    """A state that is its codes and nothing more."""

    def select(self, keep: Tensor) -> CodesState:
        """Return the state of the samples `keep`."""
        return replace(self, codes=select_blocks(self.codes, keep))


def soft_threshold(values: Tensor, threshold: Tensor | float, nonnegative: bool = False) -> Tensor:
    """Return ``S_θ(u) = sign(u)·max(|u| - θ, 0)``, or ``max(u - θ, 0)`` for non-negative codes.

    Args:
        values: u.
        threshold: θ ≥ 0, broadcasts against u; inf gives 0.
        nonnegative: The one-sided form.

    Raises:
        DtypeError: `values` are no tensor of float32 or float64.
        ParameterError: A threshold that is a number below 0.

    Source: the proximal operator of ``θ‖·‖_1``; section 0 of docs/theory.md.
    """
    require_float_tensor("values", values)
    if not isinstance(threshold, Tensor):
        require_number("threshold", threshold, minimum=0.0, finite=False)
    if nonnegative:
        return (values - threshold).clamp_min(0)
    threshold = torch.as_tensor(threshold, dtype=values.dtype, device=values.device)
    return values - values.clamp(-threshold, threshold)
