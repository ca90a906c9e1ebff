"""What a guarantee is: proved with its numbers, or not proved with the condition that failed; never "false"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Condition:
    """A strict inequality ``value < bound`` that a proof needs, decided with room for rounding.

    Attributes:
        name: The formula of the value.
        value: Its computed value.
        bound: What it must stay below.
        layer: The layer that it speaks of, counted from 1; None for the model as a whole.
        slack: A bound on the rounding error of `value`; an instance at equality is therefore never proved.
    """

    name: str
    value: float
    bound: float
    layer: int | None = None
    slack: float = 0.0

    @property
    def margin(self) -> float:
        """How far the value lies below its bound; negative by how much it fails."""
        return self.bound - self.value

    @property
    def holds(self) -> bool:
        """True if ``value + slack < bound``; a value that is not a number never holds."""
        return self.value + self.slack < self.bound

    def __str__(self) -> str:
        where = "" if self.layer is None else f"layer {self.layer}: "
        if self.holds:
            return f"{where}{self.name} = {self.value:.6g} < {self.bound:.6g}, margin {self.margin:.3g}"
        if math.isnan(self.value):
            return f"{where}{self.name} is not available"
        if self.value < self.bound:
            return (
                f"{where}{self.name} = {self.value:.6g} is not below {self.bound:.6g} by more than its rounding error "
                f"of {self.slack:.1e}"
            )
        return f"{where}{self.name} = {self.value:.6g} ≥ {self.bound:.6g}, too large by {-self.margin:.3g}"


@dataclass(frozen=True)
class Guarantee:
    """A statement of docs/theory.md about a model, with the evidence.

    `proved` False means only that these conditions do not prove the statement, not that it fails. In a boolean context
    a guarantee counts as `proved`.

    Attributes:
        proved: Whether the statement is proved.
        statement: What is (or would be) proved, in words.
        conditions: Every condition that was tried; `decisive` lists those that carry the proof or made it fail.
        decisive: A subset of `conditions`: those that together prove the statement, or those that failed.
        hypotheses: What is taken for granted, such as the least size of a signal on a circular grid.
        bounds: Numbers that follow, by name; printed rounded up.
        source: Theorem and paper.
    """

    proved: bool
    statement: str
    conditions: tuple[Condition, ...]
    source: str
    decisive: tuple[Condition, ...] = ()
    hypotheses: tuple[str, ...] = ()
    bounds: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.proved

    def __str__(self) -> str:
        lines = [f"{'proved' if self.proved else 'not proved'}: {self.statement}"]
        lines += [f"  because {c}" if self.proved else f"  missing {c}" for c in self.decisive]
        others = [c for c in self.conditions if c not in self.decisive]
        lines += [f"  {'also' if c.holds else 'tried'} {c}" for c in others]
        lines += [f"  given {text}" for text in self.hypotheses]
        lines += [f"  {name}: {rounded_up(value, 6):.6g}" for name, value in self.bounds.items()]
        return "\n".join([*lines, f"  source: {self.source}"])


def rounded_up(value: float, digits: int) -> float:
    """Return a number of so many decimal digits that is not below `value`, for bounds that are printed."""
    if value == 0 or not math.isfinite(value):
        return value
    shown = float(f"{value:.{digits - 1}e}")
    if shown < value:
        step = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)
        shown = float(f"{shown + step:.{digits - 1}e}")
    return shown
