"""Fourier codes of positions: by them an attention head finds the token that lies one shift away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ParameterError


@dataclass(frozen=True)
class PositionCode:
    """The code ``φ(p)`` of the positions of a grid: cosine and sine of every frequency, axis after axis.

    ``⟨φ(p), φ(q)⟩ = Σ_f cos(2πf(p - q)/period)``, summed over the axes, is largest for ``p = q``; a rotation per
    frequency takes ``φ(p)`` to ``φ(p + Δ)``.

    Attributes:
        size: The grid.
        periods: The period per axis; at least positions + largest shift, so that nothing wraps, or the positions
            themselves on a ring.
        frequencies: The frequencies per axis, whole numbers from 1 to half the period.

    Source: statement N8 of docs/theory.md.
    """

    size: tuple[int, ...]
    periods: tuple[int, ...]
    frequencies: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """n, the number of positions."""
        return math.prod(self.size)

    @property
    def width(self) -> int:
        """Entries of a code."""
        return 2 * sum(len(chosen) for chosen in self.frequencies)

    @property
    def peak(self) -> float:
        """``⟨φ(p), φ(p)⟩``, the number of frequencies of all axes."""
        return float(sum(len(chosen) for chosen in self.frequencies))

    @property
    def gap(self) -> float:
        """How far ``⟨φ(p), φ(q)⟩`` stays below the peak for every ``q ≠ p``, the least over the axes."""
        gaps = [
            len(chosen) - max(_correlation(chosen, period, d) for d in range(1, period))
            for chosen, period in zip(self.frequencies, self.periods, strict=True)
            if period > 1
        ]
        return min(gaps, default=self.peak) * (1 - 1e-12)

    def codes(self, device: torch.device | None = None) -> Tensor:
        """Return ``φ`` of all positions, float64, ``(tokens, width)``, the last axis of the grid running fastest."""
        parts = []
        for axis, (n, period, chosen) in enumerate(zip(self.size, self.periods, self.frequencies, strict=True)):
            place = torch.arange(n, dtype=torch.float64, device=device)
            waves = torch.tensor(chosen, dtype=torch.float64, device=device)
            angle = 2 * math.pi * torch.remainder(place[:, None] * waves, period) / period
            pairs = torch.stack([angle.cos(), angle.sin()], -1).flatten(1)
            shape = [1] * len(self.size)
            shape[axis] = n
            parts.append(pairs.reshape(*shape, -1).expand(*self.size, -1))
        return torch.cat(parts, -1).reshape(self.tokens, self.width)

    def rotation(self, shift: Sequence[int], device: torch.device | None = None) -> Tensor:
        """Return ``R_Δ``, float64, ``(width, width)``, with ``R_Δ φ(p) = φ(p + Δ)``."""
        blocks = []
        for step, period, chosen in zip(shift, self.periods, self.frequencies, strict=True):
            for wave in chosen:
                angle = 2 * math.pi * ((wave * step) % period) / period
                c, s = math.cos(angle), math.sin(angle)
                blocks.append(torch.tensor([[c, -s], [s, c]], dtype=torch.float64, device=device))
        return torch.block_diag(*blocks)


def position_code(
    size: Sequence[int],
    reach: Sequence[int],
    *,
    circular: bool = False,
    frequencies: int | None = None,
    period: Sequence[int] | None = None,
    width: int = 0,
) -> PositionCode:
    """Return a position code with as many frequencies as asked for, those of a large gap.

    Args:
        size: The grid.
        reach: The largest shift per axis.
        circular: Whether shifts wrap around: the period is then the number of positions.
        frequencies: F, per axis; None for as many as fit into `width`.
        period: One per axis; None for the smallest odd one that will do (odd ones have the larger gap).
        width: The entries that are there anyway, when `frequencies` is None.

    Raises:
        ParameterError: A period in which positions wrap onto each other, or no frequencies.

    Source: statement N8 of docs/theory.md.
    """
    axes = len(size)
    if period is None:
        periods = tuple(n if circular else n + far + (n + far + 1) % 2 for n, far in zip(size, reach, strict=True))
    else:
        periods = tuple(period)
    least = tuple(n if circular else n + far for n, far in zip(size, reach, strict=True))
    if len(periods) != axes or any(given < needed for given, needed in zip(periods, least, strict=True)):
        raise ParameterError(
            f"period is {periods}; expected at least {least}, positions + largest shift per axis: in a shorter one "
            "a head would take a position past the border for one at the other end"
        )
    if circular and periods != least:
        raise ParameterError(
            f"period is {periods}; expected {least}, the number of positions: the boundary is circular"
        )
    if frequencies is None:
        frequencies = max(1, width // (2 * axes))
    elif frequencies < 1:
        raise ParameterError(f"frequencies is {frequencies}; expected a whole number of at least 1")
    return PositionCode(tuple(size), periods, tuple(_choose(p, frequencies) for p in periods))


def _correlation(chosen: Sequence[int], period: int, distance: int) -> float:
    return sum(math.cos(2 * math.pi * ((wave * distance) % period) / period) for wave in chosen)


def _choose(period: int, count: int) -> tuple[int, ...]:
    """Return `count` frequencies, one after the other that which leaves the smallest correlation; at most half."""
    half = max(1, period // 2)
    if count >= half:
        return tuple(range(1, half + 1))
    grid = torch.arange(1, half + 1, dtype=torch.float64)
    # Distances d and period - d correlate alike.
    table = torch.cos(2 * math.pi * torch.remainder(grid[:, None] * grid, period) / period)
    chosen = [0]
    reached = table[0].clone()
    while len(chosen) < count:
        worst = (table + reached).amax(1)
        worst[chosen] = math.inf
        chosen.append(int(worst.argmin()))
        reached += table[chosen[-1]]
    return tuple(sorted(wave + 1 for wave in chosen))
