"""The activation that keeps the k largest entries and zeroes the rest."""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn

from ...errors import DtypeError, ParameterError, ShapeError
from .forms import Over, require_top, top_mask
from .values import Call, three_axes


class TopKActivation(nn.Module):
    """Keeps the k largest absolute entries and zeroes the rest; the gradient goes to those that stay.

    Put it behind or in place of a ReLU: ``nn.Sequential(nn.Linear(64, 512), nn.ReLU(), TopKActivation(16))``. Among
    equal entries the count is still exact. `TopK` is the penalty that leads there.

    Args:
        k: How many entries stay: a whole number, or a share of them as a float in (0, 1).
        over: Among which: all entries of a ``"sample"``, the channels at a ``"position"`` (tokens), or the positions of
            a ``"channel"``.
        batch_axis: The axis of samples.
        channel_axis: The axis of channels; -1 for tokens ``(batch, tokens, features)``.

    Raises:
        ParameterError: `k` is no count of at least 1 and no share, or `over` is another word.

    Source: Makhzani & Frey, k-sparse autoencoders, ICLR 2014.
    """

    def __init__(self, k: int | float, over: Over = "sample", *, batch_axis: int = 0, channel_axis: int = 1) -> None:
        super().__init__()
        if over not in get_args(Over):
            raise ParameterError(f"over is {over!r}; expected {' or '.join(map(repr, get_args(Over)))}")
        self.k = require_top("k", k)
        self.over: Over = over
        self._call = Call("the input of TopKActivation", batch_axis, channel_axis)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with all but the k largest entries set to zero, in its number type.

        Raises:
            DtypeError: `x` is not dense and real.
            ShapeError: There are fewer than k entries, or no such axis.
        """
        if not x.is_floating_point():
            raise DtypeError(f"x has dtype {x.dtype}; expected floating-point numbers")
        if x.ndim == 0 or not -x.ndim <= self._call.batch_axis < x.ndim:
            raise ShapeError(f"x has the shape {tuple(x.shape)}; expected a batch axis {self._call.batch_axis}")
        mask = top_mask(three_axes(x, self._call), self.k, self.over)
        if x.ndim == 1:
            return x * mask.reshape(x.shape)
        batch, channel = self._call.batch_axis % x.ndim, self._call.channel_axis % x.ndim
        others = [size for axis, size in enumerate(x.shape) if axis not in (batch, channel)]
        mask = mask.reshape(*mask.shape[:2], *others).movedim((0, 1), (batch, channel))
        # where, not a product: an infinite entry that goes must not leave NaN.
        return x.where(mask, 0)

    def extra_repr(self) -> str:
        """Return the settings, for printing."""
        return f"k={self.k}, over={self.over!r}, channel_axis={self._call.channel_axis}"
