"""What a penalty sums up between two calls of `value`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .values import Call


@dataclass
class Sums:
    """What one activation put in since the last `value`: forward passes with gradient, and without."""

    with_gradient: Tensor | None = None
    without_gradient: Tensor | None = None
    units: float = 0.0
    calls: int = 0
    zeros: Tensor | None = None
    entries: int = 0

    @property
    def unit(self) -> float:
        """What a sample of ones is worth, on average over calls."""
        return self.units / max(self.calls, 1)

    def add(self, part: Tensor, unit: float, with_gradient: bool) -> None:
        """Add one call."""
        self.units += unit
        self.calls += 1
        if with_gradient:
            self.with_gradient = part if self.with_gradient is None else self.with_gradient + part
        else:
            self.without_gradient = part if self.without_gradient is None else self.without_gradient + part

    def count(self, x: Tensor, tol: float) -> None:
        """Count the zeros of one call."""
        x = x.detach()
        zeros = x.numel() - x.count_nonzero() if tol == 0 else (x.abs() <= tol).sum()
        self.zeros = zeros if self.zeros is None else self.zeros + zeros
        self.entries += x.numel()


def sample_sizes(x: Tensor, call: Call) -> tuple[int, int]:
    """Return how many channels a sample has, and how many positions in each."""
    size = x.numel() // max(x.shape[call.batch_axis], 1)
    if x.ndim == 1 or not -x.ndim <= call.channel_axis < x.ndim:
        return 1, size
    channels = x.shape[call.channel_axis]
    return channels, size // max(channels, 1)


def counted(sums: Sums | None, with_gradient: bool) -> Tensor | None:
    """Return what counts now: with gradients on, only what has them; with gradients off, all."""
    if sums is None:
        return None
    if with_gradient or sums.without_gradient is None:
        return sums.with_gradient
    return sums.without_gradient if sums.with_gradient is None else sums.with_gradient + sums.without_gradient


def widest(parts: list[Tensor]) -> torch.dtype:
    """Return float64 if a part has it, else float32."""
    return torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32
