"""What several networks are made of: convolutions with or without batch norm, and their initial weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import init

from ...checks import require_number
from ...dictionaries.random import generator
from ...errors import UnsupportedError


def convolution(
    channels: int, width: int, *, kernel: int = 3, stride: int = 1, batch_norm: bool = True
) -> tuple[nn.Conv2d, nn.Module]:
    """Return a convolution that keeps the size (at stride 1) and what normalizes it: batch norm, or nothing.

    A bias before batch norm would be subtracted with the mean, so there is none.
    """
    conv = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=not batch_norm)
    return conv, nn.BatchNorm2d(width) if batch_norm else nn.Identity()


def scaled(widths: tuple[int, ...], width: float, *, multiple: int = 1) -> tuple[int, ...]:
    """Return `widths` times `width`, rounded to multiples of `multiple`, at least one multiple.

    Raises:
        ParameterError: `width` is not above 0.
    """
    width = require_number("width", width, minimum=0, strict=True)
    return tuple(max(round(number * width / multiple), 1) * multiple for number in widths)


def initialize(model: nn.Module, seed: int) -> None:
    """Give every parameter and buffer its first value, in the order of the modules, from a generator of its own.

    Convolutions: Kaiming normal by fan-out, biases 0. Transposed convolutions and linear layers: uniform within
    ``±1/√fan_in``. Normalization: 1 and 0. `nn.PReLU`: 0.25. Modules that hold parameters directly have a method
    `initialize(generator)`.

    Source: K. He et al., Delving deep into rectifiers, ICCV 2015.
    """
    source = generator(seed)
    for module in model.modules():
        _initialize_module(module, source)


def _initialize_module(module: nn.Module, source: torch.Generator) -> None:
    if isinstance(module, nn.Conv2d):
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=source)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Linear | nn.ConvTranspose2d):
        inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        bound = 1 / math.sqrt(inputs)
        init.uniform_(module.weight, -bound, bound, generator=source)
        if module.bias is not None:
            init.uniform_(module.bias, -bound, bound, generator=source)
    elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        module.reset_parameters()
    elif isinstance(module, nn.PReLU):
        init.constant_(module.weight, 0.25)
    elif isinstance(module, Embedding):
        module.initialize(source)
    elif any(True for _ in module.parameters(recurse=False)):
        raise UnsupportedError(
            f"{type(module).__name__} has parameters of its own, for which no initial values are known; add them here"
        )


class Embedding(nn.Module):
    """A class token before the patches, and a learned position for each.

    Args:
        patches: Number of patches.
        width: Entries per token.
    """

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, patches + 1, width))

    def initialize(self, source: torch.Generator) -> None:
        """Draw both from a normal distribution of deviation 0.02, cut at two deviations."""
        for parameter in (self.token, self.positions):
            init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04, generator=source)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the tokens ``(batch, patches + 1, width)`` of patches ``(batch, patches, width)``."""
        token = self.token.expand(len(patches), -1, -1)
        return torch.cat([token, patches], 1) + self.positions
