"""Measures of sparsity of a tensor, computed in float32 or float64 whatever the tensor's number type."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import DtypeError, ParameterError, ShapeError


def measured(x: Tensor) -> Tensor:
    """Return `x`, in float32 if it has half precision or whole numbers, without gradient.

    Raises:
        DtypeError: `x` is no dense real tensor.
    """
    if not isinstance(x, Tensor):
        raise DtypeError(f"x is a {type(x).__name__}; expected a torch.Tensor: use torch.as_tensor(x)")
    if x.layout != torch.strided or x.is_complex():
        raise DtypeError(f"x has layout {x.layout} and dtype {x.dtype}; expected a dense real tensor")
    x = x.detach()
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def require_tolerance(tol: float) -> float:
    """Return `tol` as a float.

    Raises:
        ParameterError: It is negative, NaN or infinite.
    """
    if isinstance(tol, bool) or not isinstance(tol, int | float) or not 0 <= tol < math.inf:
        raise ParameterError(f"tol is {tol!r}; expected a finite number of at least 0")
    return float(tol)


def zero_fraction(x: Tensor, tol: float = 0.0) -> Tensor:
    """Return the fraction of entries that are zero, ``#{i : |x_i| ≤ tol} / n``.

    Args:
        x: Any shape.
        tol: What counts as zero; 0 is right after a ReLU.

    Returns:
        A scalar in [0, 1]; NaN for a tensor without entries. NaN entries are not zeros.

    Raises:
        DtypeError: `x` is no dense real tensor.
        ParameterError: `tol` is negative or not finite.

    Source: section "Sparsity in training" of docs/theory.md.
    """
    tol = require_tolerance(tol)
    x = measured(x)
    return (x.abs() <= tol).mean(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def hoyer(x: Tensor, start_axis: int | None = None) -> Tensor:
    """Return Hoyer's sparsity ``(√n - ‖x‖_1/‖x‖_2) / (√n - 1)`` of every sample.

    It is 1 for a single non-zero entry, 0 for entries of equal size, and does not change when `x` is scaled.

    Args:
        x: Any shape ``(batch, ...)``.
        start_axis: All axes from this one on make one vector of n entries. ``None``: the first axis is the batch, but a
            tensor with a single axis is one vector.

    Returns:
        Shape ``x.shape[:start_axis]``, entries in [0, 1]; NaN where it is undefined: x = 0, n = 1 or n = 0. Leave these
        out of means with ``torch.nanmean``.

    Raises:
        DtypeError: `x` is no dense real tensor.
        ShapeError: `start_axis` is not an axis of `x`.

    Source: P. O. Hoyer, Non-negative matrix factorization with sparseness constraints, JMLR 2004, section 3.1.
    """
    x = measured(x)
    start = min(x.ndim - 1, 1) if start_axis is None else start_axis
    if x.ndim == 0:
        x, start = x.reshape(1), 0
    if not 0 <= start < x.ndim:
        raise ShapeError(f"start_axis is {start_axis} and x has shape {tuple(x.shape)}; expected 0 to {x.ndim - 1}")
    size = math.prod(x.shape[start:])
    a = x.abs().reshape(*x.shape[:start], size)
    if size <= 1:
        return a.new_full(a.shape[:-1], math.nan)
    # The norms' ratio does not depend on the scale; dividing by the maximum keeps squares from over- and underflowing.
    a = a / a.amax(dim=-1, keepdim=True)
    ratio = a.sum(-1) / a.square().sum(-1).sqrt()
    root = math.sqrt(size)
    return ((root - ratio) / (root - 1)).clamp(0, 1)  # rounding may leave the interval by an ulp


def l1_per_entry(x: Tensor) -> Tensor:
    """Return the mean absolute entry ``‖x‖_1 / n``.

    Args:
        x: Any shape.

    Returns:
        A scalar; NaN for a tensor without entries.

    Raises:
        DtypeError: `x` is no dense real tensor.

    Source: section "Sparsity in training" of docs/theory.md.
    """
    return measured(x).abs().mean()


def dead_channels(x: Tensor, channel_axis: int = 1, tol: float = 0.0) -> Tensor:
    """Return which channels are zero, ``|x_i| ≤ tol``, at all entries of the tensor.

    Args:
        x: At least two axes, such as ``(batch, channels, H, W)``.
        channel_axis: The axis of channels; -1 for tokens ``(batch, tokens, features)``.
        tol: What counts as zero.

    Returns:
        Booleans, one per channel.

    Raises:
        DtypeError: `x` is no dense real tensor.
        ParameterError: `tol` is negative or not finite.
        ShapeError: `channel_axis` is not an axis of `x`.

    Source: section "Sparsity in training" of docs/theory.md.
    """
    tol = require_tolerance(tol)
    x = measured(x)
    if not -x.ndim <= channel_axis < x.ndim:
        raise ShapeError(
            f"channel_axis is {channel_axis} and x has shape {tuple(x.shape)}; expected an axis of x: "
            f"{-x.ndim} to {x.ndim - 1}"
        )
    return (x.abs() <= tol).movedim(channel_axis, 0).flatten(1).all(1) if x.ndim > 1 else x.abs() <= tol
