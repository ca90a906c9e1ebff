"""Other activations in place of ReLU: how far they are from it, and how a linear layer makes up for the difference."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import require_number
from ...errors import ParameterError, near_misses
from .kernels import LinearMap

# sup|σ - ReLU|, rounded up; of Softplus and ELU known exactly.
_GELU, _SILU, _MISH, _LN2 = 0.169972, 0.278465, 0.308844, math.log(2) * (1 + 1e-12)


class Pointwise(nn.Module):
    """Any function of one number as a module, applied entry by entry."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        """Return ``σ(values)``."""
        return self.function(values)


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation, and what a bound needs to know of it.

    Attributes:
        name: As in the names of the modules.
        make: Returns the module.
        distance: ``c = sup|σ - ReLU|``; 0 where ReLU is made from it exactly.
        one_sided: Whether ``σ - ReLU`` has one sign, so that a pair is within c, not 2c, of the soft threshold.
        form: "plain" (``σ(tu)/t``), "mirrored" (``(σ(u) + aσ(-u))/(1-a²)``), "clipped" (plain, for arguments up to
            `limit`) or "centered" (``σ(u-1) + 1``, up to `limit`).
        slope: a.
        limit: Where a bounded activation stops being ReLU.
        parameters: Numbers that its module has as parameters.

    Source: statement N7 of docs/theory.md.
    """

    name: str
    make: Callable[[], nn.Module]
    distance: float = 0.0
    one_sided: bool = True
    form: str = "plain"
    slope: float = 0.0
    limit: float = math.inf
    parameters: int = 0

    @property
    def is_relu(self) -> bool:
        """Whether nothing has to be made up for."""
        return self.form == "plain" and self.distance == 0

    @property
    def of_two(self) -> bool:
        """Whether ReLU's zeros are sums of two numbers that cancel up to rounding."""
        return self.form in ("mirrored", "centered")

    def threshold_distance(self, *, signed: bool) -> float:
        """Return how far a pair (non-negative codes: one) is from the soft threshold at t = 1."""
        return self.distance if self.one_sided or not signed else 2 * self.distance

    @property
    def growth(self) -> float:
        """What rounding errors are multiplied by where ReLU is made of two values."""
        return (1 + self.slope) / (1 - self.slope)

    def replace_relu(self, maps: Sequence[LinearMap]) -> list[LinearMap]:
        """Return the layers with weights that make up for this activation in place of ReLU.

        Source: statement N7 of docs/theory.md.
        """
        if self.is_relu:
            return list(maps)
        found: list[LinearMap] = []
        pending: LinearMap | None = None
        for linear in maps:
            weight, bias = linear.weight, linear.bias
            if pending is not None:
                weight = self._columns(weight, pending.scales)
            pending = None
            if linear.activated:
                pending = linear
                weight, bias = self._rows(weight, bias, linear.scales)
            found.append(replace(linear, weight=weight, bias=bias))
        return found

    def as_relu(self, values: Tensor, scales: Tensor | None, axis: int) -> Tensor:
        """Return what ReLU's would be, from the activation's values: the columns of the next layer in words."""
        if self.is_relu:
            return values
        if self.form == "mirrored":
            half = values.shape[axis] // 2
            other = values.narrow(axis, half, half)
            return (values.narrow(axis, 0, half) + self.slope * other) / (1 - self.slope**2)
        if self.form == "centered":
            values = values.narrow(axis, 0, values.shape[axis] - 1) + 1
        if scales is None:
            return values
        shape = [1] * values.ndim
        shape[axis] = -1
        return values / scales.to(values).reshape(shape)

    def _rows(self, weight: Tensor, bias: Tensor | None, scales: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if bias is None:
            bias = weight.new_zeros(len(weight))
        if self.form == "mirrored":
            return torch.cat([weight, -weight]), torch.cat([bias, -bias])
        if scales is not None:
            weight, bias = weight * scales.reshape(-1, *(1,) * (weight.ndim - 1)), bias * scales
        if self.form == "centered":
            # One more channel is 1 on the grid and, like all others, 0 in the padding around it.
            weight = torch.cat([weight, torch.zeros_like(weight[:1])])
            bias = torch.cat([bias - 1, bias.new_ones(1)])
        return weight, bias

    def _columns(self, weight: Tensor, scales: Tensor | None) -> Tensor:
        if self.form == "mirrored":
            return torch.cat([weight, self.slope * weight], 1) / (1 - self.slope**2)
        if scales is not None:
            weight = weight / scales.reshape(1, -1, *(1,) * (weight.ndim - 2))
        if self.form == "centered":
            weight = torch.cat([weight, weight.sum(1, keepdim=True)], 1)
        return weight


def leaky(slope: float, *, learnable: bool = False, dtype: torch.dtype = torch.float32) -> Activation:
    """Return leaky ReLU (`learnable`: as `nn.PReLU`) of a slope in ``[0, 1)``, from which ReLU is made exactly."""
    slope = require_number("the slope of the activation", slope, minimum=0)
    if slope >= 1:
        raise ParameterError(
            f"the slope of the activation is {slope:g}; expected 0 ≤ slope < 1: at 1 it is the identity, and ReLU "
            "cannot be made of it"
        )
    if learnable:
        # A slope that the number type cannot hold would not be the one that is made up for.
        slope = float(torch.tensor(slope, dtype=dtype))
        return Activation(
            "prelu", partial(nn.PReLU, init=slope, dtype=dtype), form="mirrored", slope=slope, parameters=1
        )
    return Activation("leaky_relu", partial(nn.LeakyReLU, slope), form="mirrored", slope=slope)


def _exponential(name: str, make: Callable[[float], nn.Module], alpha: float) -> Activation:
    alpha = require_number(f"alpha of {name}", alpha, minimum=0, strict=True)
    return Activation(name, partial(make, alpha), distance=alpha * (1 + 1e-12))


def _hardtanh(low: float, high: float) -> Activation:
    if low == 0 and high > 0:
        return Activation("hardtanh", partial(nn.Hardtanh, low, high), form="clipped", limit=high)
    if low == -1 and high >= 1:
        return Activation("hardtanh", partial(nn.Hardtanh, low, high), form="centered", limit=1 + high)
    raise ParameterError(
        f"activation is Hardtanh({low:g}, {high:g}); expected one from -1 to at least 1, or from 0 to anything above: "
        "scale the network's input instead"
    )


def _softplus(beta: float, threshold: float) -> Activation:
    beta = require_number("beta of softplus", beta, minimum=0, strict=True)
    return Activation("softplus", partial(nn.Softplus, beta, threshold), distance=_LN2 / beta)


def _named(dtype: torch.dtype) -> dict[str, Callable[[], Activation]]:
    return {
        "relu": lambda: Activation("relu", nn.ReLU),
        "leaky_relu": lambda: leaky(0.01),
        "prelu": lambda: leaky(0.25, learnable=True, dtype=dtype),
        "elu": lambda: _exponential("elu", nn.ELU, 1.0),
        "celu": lambda: _exponential("celu", nn.CELU, 1.0),
        "gelu": lambda: Activation("gelu", nn.GELU, distance=_GELU),
        "silu": lambda: Activation("silu", nn.SiLU, distance=_SILU),
        "mish": lambda: Activation("mish", nn.Mish, distance=_MISH),
        "softplus": lambda: _softplus(1.0, 20.0),
        "relu6": lambda: Activation("relu6", nn.ReLU6, form="clipped", limit=6.0),
        "hardtanh": lambda: _hardtanh(-1.0, 1.0),
    }


def _of_module(module: nn.Module, dtype: torch.dtype) -> Activation | None:
    """Return what is known of a module of PyTorch's with its own settings."""
    known: dict[type[nn.Module], Callable[[Any], Activation]] = {
        nn.LeakyReLU: lambda m: leaky(m.negative_slope),
        nn.ELU: lambda m: _exponential("elu", nn.ELU, m.alpha),
        nn.CELU: lambda m: _exponential("celu", nn.CELU, m.alpha),
        nn.Softplus: lambda m: _softplus(m.beta, m.threshold),
        nn.Hardtanh: lambda m: _hardtanh(m.min_val, m.max_val),
    }
    for kind, name in ((nn.ReLU, "relu"), (nn.SiLU, "silu"), (nn.Mish, "mish"), (nn.ReLU6, "relu6")):
        known[kind] = lambda _, name=name: _named(dtype)[name]()
    make = known.get(type(module))
    if make is not None:
        return make(module)
    if isinstance(module, nn.GELU) and module.approximate == "none":
        return _named(dtype)["gelu"]()
    if isinstance(module, nn.PReLU) and module.weight.numel() == 1:
        return leaky(float(module.weight.detach()), learnable=True, dtype=dtype)
    return None


def resolve_activation(
    activation: str | nn.Module | Callable[[Tensor], Tensor], distance: float | None, dtype: torch.dtype
) -> Activation:
    """Return what is known of an activation: a name, a module, or any function with its distance to ReLU.

    Raises:
        ParameterError: An unknown name; a function without `distance`, or one that is further away; a `distance` for an
            activation whose own is known.
    """
    found: Activation | None = None
    named = _named(dtype)
    if isinstance(activation, str):
        if activation not in named:
            raise ParameterError(
                f"activation is {activation!r}; expected one of {', '.join(sorted(named))}, or a module or function "
                f"with distance={near_misses(activation, named)}"
            )
        found = named[activation]()
    elif isinstance(activation, nn.Module):
        found = _of_module(activation, dtype)
    elif not callable(activation):
        raise ParameterError(
            f"activation is a {type(activation).__name__}; expected a name, a module, or a function of a tensor"
        )
    if found is not None:
        if distance is not None:
            raise ParameterError(
                f"distance is {distance:g} and activation is {found.name!r}, whose distance to ReLU is known; expected "
                "distance=None"
            )
        return found
    if distance is None:
        raise ParameterError(
            f"activation is {activation!r}, of which nothing is known; expected its distance to ReLU too: distance=, "
            "the largest |σ(u) - max(u, 0)|"
        )
    c = require_number("distance", distance, minimum=0)
    function: Any = activation
    grid = torch.cat([torch.linspace(-30, 30, 60_001, dtype=dtype), 10 ** torch.linspace(1, 6, 51, dtype=dtype)])
    grid = torch.cat([grid, -grid])
    with torch.no_grad():
        apart = (function(grid) - grid.clamp_min(0)).abs() - 16 * torch.finfo(dtype).eps * grid.abs()
    if not bool((apart <= c).all()):
        worst = int(apart.nan_to_num(nan=math.inf).argmax())
        raise ParameterError(
            f"distance is {c:g}, and at u = {float(grid[worst]):g} activation is {float(apart[worst]):g} away from "
            "ReLU; expected the largest distance over all u"
        )
    name = "custom"
    if isinstance(activation, nn.Module):
        return Activation(name, partial(copy.deepcopy, activation), distance=c, one_sided=False)
    return Activation(name, partial(Pointwise, function), distance=c, one_sided=False)
