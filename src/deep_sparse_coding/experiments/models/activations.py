"""The activations that the experiments compare, each a module of its own at every place."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...errors import ParameterError, near_misses

Make = Callable[[], nn.Module]

# The class of activations of the paper, with the settings that PyTorch gives them. None works in place: what a hook
# sees is what the next layer reads.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
}


def activation_maker(name: str) -> Make:
    """Return what makes a new module of the activation `name` at each call.

    Raises:
        ParameterError: An unknown name; the message lists the known ones.
    """
    if name not in ACTIVATIONS:
        raise ParameterError(
            f"activation is {name!r}; expected one of {', '.join(ACTIVATIONS)}{near_misses(str(name), ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def activation_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the activations of a model, in the order in which `build` made them."""
    kinds = set(ACTIVATIONS.values())
    return tuple(name for name, module in model.named_modules() if type(module) in kinds)
