"""The measures as torchmetrics classes: for batches one after the other, over processes, in Lightning's logs.

Import this module by name, ``from deep_sparse_coding.sparsity.metrics import ZeroFraction``: it needs torchmetrics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ParameterError, ShapeError, missing_extra
from .measuring.measures import dead_channels, hoyer, measured, require_tolerance

try:
    from torchmetrics import Metric
except ImportError:
    raise missing_extra("torchmetrics", "train", "deep_sparse_coding.sparsity.metrics") from None


class ZeroFraction(Metric):
    """The fraction of entries that are zero over all updates, ``#{i : |x_i| ≤ tol} / n``.

    Args:
        tol: What counts as zero.
        **kwargs: Of ``torchmetrics.Metric``.

    Raises:
        ParameterError: `tol` is negative or not finite.

    Source: `zero_fraction`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    zeros: Tensor
    entries: Tensor

    def __init__(self, tol: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tol = require_tolerance(tol)
        _add_counts(self, "zeros", "entries")

    def update(self, x: Tensor) -> None:
        """Take in activations of any shape."""
        x = measured(x)
        self.zeros += (x.abs() <= self.tol).sum()
        self.entries += x.numel()

    def compute(self) -> Tensor:
        """Return a scalar in [0, 1]; NaN without entries."""
        return self.zeros / self.entries


class HoyerSparsity(Metric):
    """The mean over samples of Hoyer's sparsity, without those where it is undefined (x = 0).

    Sums are in float64.

    Args:
        start_axis: All axes from this one on make one vector, see `hoyer`.
        **kwargs: Of ``torchmetrics.Metric``.

    Source: `hoyer`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self, start_axis: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start_axis = start_axis
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        _add_counts(self, "samples")

    def update(self, x: Tensor) -> None:
        """Take in activations ``(batch, ...)``."""
        values = hoyer(x, self.start_axis)
        self.total += values.nansum(dtype=torch.float64)
        self.samples += values.isfinite().sum()

    def compute(self) -> Tensor:
        """Return a scalar in [0, 1]; NaN where no sample was defined."""
        return self.total / self.samples


class L1PerEntry(Metric):
    """The mean absolute entry over all updates, ``‖x‖_1 / n``. Sums are in float64.

    Args:
        **kwargs: Of ``torchmetrics.Metric``.

    Source: `l1_per_entry`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    entries: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        _add_counts(self, "entries")

    def update(self, x: Tensor) -> None:
        """Take in activations of any shape."""
        x = measured(x)
        self.total += x.abs().sum(dtype=torch.float64)
        self.entries += x.numel()

    def compute(self) -> Tensor:
        """Return a scalar; NaN without entries."""
        return self.total / self.entries


class DeadChannels(Metric):
    """The number of channels that were zero at all entries of all updates.

    Args:
        channels: How many channels there are. Processes that saw no batch need it to agree with those that did.
        channel_axis: The axis of channels; -1 for tokens ``(batch, tokens, features)``.
        tol: What counts as zero.
        **kwargs: Of ``torchmetrics.Metric``.

    Raises:
        ParameterError: `channels` is no whole number of at least 1, or `tol` is negative or not finite.

    Source: `dead_channels`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    active: Tensor

    def __init__(self, channels: int, channel_axis: int = 1, tol: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ParameterError(f"channels is {channels!r}; expected the number of channels, at least 1")
        self.channels = channels
        self.channel_axis = channel_axis
        self.tol = require_tolerance(tol)
        self.add_state("active", torch.zeros(channels, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, x: Tensor) -> None:
        """Take in activations with at least two axes.

        Raises:
            ShapeError: They have another number of channels, or no such axis.
        """
        dead = dead_channels(x, self.channel_axis, self.tol)
        if dead.shape != (self.channels,):
            raise ShapeError(
                f"x has shape {tuple(x.shape)} with {dead.numel()} channels at axis {self.channel_axis}; expected "
                f"{self.channels}: set channels or channel_axis"
            )
        self.active += ~dead  # in how many updates a channel was active

    def compute(self) -> Tensor:
        """Return a whole number from 0 to `channels`."""
        return (self.active == 0).sum()


def _add_counts(metric: Metric, *names: str) -> None:
    for name in names:
        metric.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
