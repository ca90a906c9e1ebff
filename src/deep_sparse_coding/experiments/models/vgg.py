"""VGG for small images: 3×3 convolutions and max pooling, then one linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import ParameterError
from .activations import Make
from .parts import convolution, scaled

# Convolutions before each of the five poolings, and their widths.
VGG_DEPTHS: dict[str, tuple[int, ...]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG with the classifier that is usual on CIFAR: the mean over what is left of the image, one linear layer.

    Args:
        depths: Convolutions before each pooling.
        classes: Outputs.
        make: Makes an activation.
        width: Factor on the widths 64, 128, 256, 512, 512.
        channels: Of the images.
        image_size: Side of the images; each pooling halves it.
        batch_norm: Whether batch norm follows each convolution.

    Raises:
        ParameterError: Images too small for the poolings.

    Source: K. Simonyan and A. Zisserman, Very deep convolutional networks, ICLR 2015, configurations A, B, D, E.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        classes: int,
        make: Make,
        *,
        width: float,
        channels: int,
        image_size: int,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        if image_size < 2 ** len(depths):
            raise ParameterError(
                f"image_size is {image_size}; VGG halves it {len(depths)} times: expected at least {2 ** len(depths)}"
            )
        layers: list[nn.Module] = []
        for depth, features in zip(depths, scaled(_WIDTHS, width), strict=True):
            for _ in range(depth):
                layers += [*convolution(channels, features, batch_norm=batch_norm), make()]
                channels = features
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        return self.classifier(torch.mean(self.features(images), (2, 3)))
