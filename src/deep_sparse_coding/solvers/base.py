"""What a solver is: a start, a step, and the codes it stands for. The loop belongs to `solve`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

from torch import Tensor

from deep_sparse_coding.problems import Blocks, Certificate, StandardForm, assess_form
from deep_sparse_coding.problems.penalties import soft_threshold as soft_threshold


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

    #: Whether every step makes new codes, writes into none that it made before, and only reads those of the start.
    makes_new_codes: bool = False

    #: Whether the first step finds codes of zero where these are best: a start of zeros then needs no check of its own.
    finds_zero: bool = False

    #: Maps as large as the codes, in the working precision, that a step holds at once beside its codes.
    step_maps: int = 6

    @property
    def name(self) -> str:
        """The name that solutions print."""
        return type(self).__name__

    def workspace(self, form: StandardForm) -> tuple[int, int]:
        """Return the bytes that a step needs: shared by all samples, and for each of them."""
        codes = sum(math.prod(shape) for shape in form.code_shapes)
        return 0, self.step_maps * codes * form.data[0].element_size()

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

    def assess(self, form: StandardForm, codes: Blocks, tol: float) -> Certificate:
        """Return the certificate of flat codes, from the codes alone: what `assess_form` returns, or the same faster.

        Args:
            form: The problem, in float64.
            codes: One block per layer, in the precision in which they would be returned.
            tol: The relative gap that is small enough.
        """
        return assess_form(form, codes, tol)


def select_blocks(blocks: Blocks, keep: Tensor) -> Blocks:
    """Return the samples `keep` of every block."""
    return tuple(block[keep] for block in blocks)


def all_zero(blocks: Blocks) -> bool:
    """Return whether codes are zero everywhere; of samples that share their memory one is looked at."""
    return not any(bool((block[:1] if block.stride(0) == 0 else block).any()) for block in blocks)


@dataclass(frozen=True, eq=False)
class CodesState(State):
    """A state that is its codes and nothing more."""

    def select(self, keep: Tensor) -> CodesState:
        """Return the state of the samples `keep`."""
        return replace(self, codes=select_blocks(self.codes, keep))
