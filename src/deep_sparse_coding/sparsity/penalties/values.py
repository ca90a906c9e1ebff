"""The value of a penalty on one activation, in at least float32, with a gradient that shares the activation itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ...errors import HookError, ShapeError

Statistics = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Call:
    """How to read one output.

    Attributes:
        name: Of the module, for messages.
        batch_axis: The axis of samples.
        channel_axis: The axis of channels.
        keep: Keep what the backward pass needs apart from the activation, which something later overwrites.
    """

    name: str
    batch_axis: int = 0
    channel_axis: int = 1
    keep: bool = False


class _Valued(Protocol):
    def value(self, x: Tensor, *parameters: Tensor) -> Tensor: ...

    def parameters(self) -> tuple[Tensor, ...]: ...


def absolute_sum(x: Tensor, call: Call, statistics: Statistics | None) -> Tensor:
    """Return ``Σ_i |x_i|`` in at least float32, and hand the absolute values to `statistics`."""
    return _AbsoluteSum.apply(x, call.name, call.keep, statistics)


def form_value(x: Tensor, form: _Valued, call: Call, statistics: Statistics | None) -> Tensor:
    """Return ``form.value`` of `x`, brought to three axes, in at least float32, and hand |x| to `statistics`."""
    if statistics is not None:
        with torch.autocast(x.device.type, enabled=False):
            statistics(_widened(x.detach().abs()))
    return _FormValue.apply(x, form, call, *form.parameters())


def three_axes(x: Tensor, call: Call) -> Tensor:
    """Return the view ``(batch, channels, positions)`` of an output.

    Raises:
        ShapeError: It has no such channel axis.
    """
    ndim = x.ndim
    if ndim == 1:
        return x.reshape(-1, 1, 1)
    batch, channel = call.batch_axis % ndim, call.channel_axis
    if not -ndim <= channel < ndim or channel % ndim == batch:
        raise ShapeError(
            f"'{call.name}' has the shape {tuple(x.shape)}, and channel_axis is {channel} with batch_axis {batch}; "
            "expected another axis of it: set channel_axis, such as -1"
        )
    moved = x.movedim((batch, channel % ndim), (0, 1))
    return moved.unsqueeze(2) if ndim == 2 else moved.flatten(2)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _saved(ctx: Any) -> tuple[Tensor, ...]:
    """Return the saved tensors.

    Raises:
        HookError: One was overwritten in place since.
    """
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise HookError(
            f"the output of {ctx.name!r} was overwritten in place after the module ran, as by "
            "torch.nn.ReLU(inplace=True) or `x += y` behind it, so that the penalty has no gradient; penalize the "
            "module that overwrites it, set inplace=False there, or set save_signs=True"
        ) from error


class _AbsoluteSum(torch.autograd.Function):
    """``Σ_i |x_i|`` in at least float32, with the subgradient sign(x), 0 at 0.

    Saves `x` itself, which the network mostly holds anyway, where ``x.float().abs().sum()`` would save a copy.
    """

    @staticmethod
    def forward(x: Tensor, name: str, save_signs: bool, statistics: Statistics | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            absolute = _widened(x.detach().abs())
            return absolute.sum() if statistics is None else statistics(absolute)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str, bool, object], output: Tensor) -> None:
        x, name, save_signs, _ = inputs
        ctx.name, ctx.dtype = name, x.dtype
        ctx.save_for_backward(x.detach().sign().to(torch.int8) if save_signs and ctx.needs_input_grad[0] else x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (saved,) = _saved(ctx)
        # ±gradient or 0: rounding the float32 gradient to the activation's number type is the only rounding.
        gradient = gradients[0].to(ctx.dtype)
        signs = saved.detach().sign().to(ctx.dtype)
        product = signs * gradient if torch.is_grad_enabled() else signs.mul_(gradient)
        return product, None, None, None


class _FormValue(torch.autograd.Function):
    """The value of any form; the backward pass computes it again from `x`, so that nothing but `x` is held."""

    @staticmethod
    def forward(x: Tensor, form: _Valued, call: Call, *parameters: Tensor) -> Tensor:
        return _evaluate(form, call, x.detach(), tuple(item.detach() for item in parameters))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.form, ctx.call, *parameters = inputs
        ctx.name = ctx.call.name
        ctx.save_for_backward(x.detach().clone() if ctx.call.keep and ctx.needs_input_grad[0] else x, *parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = _saved(ctx)
        twice = torch.is_grad_enabled()
        if twice and ctx.call.keep:
            raise HookError(
                f"the penalty of {ctx.name!r} keeps a copy of its activation, which has no second derivative; set "
                "save_signs=False"
            )
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]]
        with torch.enable_grad():
            leaves = [
                item if twice else item.detach().requires_grad_(need) for item, need in zip(saved, needed, strict=True)
            ]
            value = _evaluate(ctx.form, ctx.call, leaves[0], tuple(leaves[1:]))
            wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
            found = iter(torch.autograd.grad(value, wanted, gradients[0], create_graph=twice, allow_unused=True))
        parts = [next(found) if need else None for need in needed]
        return parts[0], None, None, *parts[1:]


def _evaluate(form: _Valued, call: Call, x: Tensor, parameters: tuple[Tensor, ...]) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return form.value(three_axes(_widened(x), call), *(_widened(item) for item in parameters))
