"""One name for each network of the experiments."""

from __future__ import annotations

import torch
from torch import nn

from ...checks import check_flag, require_integer
from ...errors import ParameterError, near_misses
from .activations import activation_maker
from .parts import initialize, scaled
from .resnet import RESNET_DEPTHS, ResNet
from .unet import UNET_WIDTHS, UNet
from .vgg import VGG, VGG_DEPTHS
from .vit import ViT

MODELS: tuple[str, ...] = (*VGG_DEPTHS, *RESNET_DEPTHS, "vit-tiny", "unet")


def build(
    name: str,
    classes: int,
    *,
    activation: str = "relu",
    width: float = 1.0,
    channels: int = 3,
    image_size: int = 32,
    batch_norm: bool = True,
    seed: int,
) -> nn.Module:
    """Return a network with its initial weights, on the CPU, in training mode.

    The weights depend on `seed` and the settings alone; the global generator is neither read nor changed. Every
    activation is a module of its own that runs once per forward pass.

    Args:
        name: One of `MODELS`.
        classes: Scores per image; of "unet" per pixel.
        activation: One of `ACTIVATIONS`.
        width: Factor on the number of features.
        channels: Of the images.
        image_size: Side of the images; "unet" takes any size, and this is not read.
        batch_norm: Whether batch norm follows each convolution; "vit-tiny" has layer norm.
        seed: Of the initial weights.

    Returns:
        A module that takes float images ``(batch, channels, height, width)``.

    Raises:
        ParameterError: An unknown name or activation, or a setting out of range.
    """
    if name not in MODELS:
        raise ParameterError(f"name is {name!r}; expected one of {', '.join(MODELS)}{near_misses(str(name), MODELS)}")
    make = activation_maker(activation)
    classes = require_integer("classes", classes, minimum=1)
    channels = require_integer("channels", channels, minimum=1)
    image_size = require_integer("image_size", image_size, minimum=1)
    batch_norm = check_flag("batch_norm", batch_norm)
    # Made without values first: the constructors of layers would draw from the global generator.
    with torch.device("meta"):
        if name in VGG_DEPTHS:
            model: nn.Module = VGG(
                VGG_DEPTHS[name],
                classes,
                make,
                width=width,
                channels=channels,
                image_size=image_size,
                batch_norm=batch_norm,
            )
        elif name in RESNET_DEPTHS:
            model = ResNet(
                RESNET_DEPTHS[name],
                classes,
                make,
                width=width,
                channels=channels,
                image_size=image_size,
                batch_norm=batch_norm,
            )
        elif name == "vit-tiny":
            if not batch_norm:
                raise ParameterError("batch_norm is False; vit-tiny has layer norm and no batch norm: leave it out")
            model = ViT(classes, make, width=width, channels=channels, image_size=image_size)
        else:
            model = UNet(classes, make, widths=scaled(UNET_WIDTHS, width), channels=channels, batch_norm=batch_norm)
    model.to_empty(device="cpu")
    initialize(model, seed)
    return model
