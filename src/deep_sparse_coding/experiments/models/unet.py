"""U-Net: scores for every pixel, from features at several sizes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...checks import require_integer
from ...errors import ParameterError
from .activations import Make
from .parts import convolution

UNET_WIDTHS = (64, 128, 256, 512, 1024)


def _double(channels: int, width: int, make: Make, *, batch_norm: bool) -> nn.Sequential:
    return nn.Sequential(
        *convolution(channels, width, batch_norm=batch_norm),
        make(),
        *convolution(width, width, batch_norm=batch_norm),
        make(),
    )


class UNet(nn.Module):
    """U-Net with convolutions that keep the size, so that the scores have the size of the image.

    Images whose sides are no multiples of ``2^(len(widths) - 1)`` are padded with zeros, and the scores cut to size.

    Args:
        classes: Scores per pixel.
        make: Makes an activation.
        widths: Features at each size, from the full image down.
        channels: Of the images.
        batch_norm: Whether batch norm follows each 3×3 convolution.

    Raises:
        ParameterError: Fewer than two widths.

    Source: O. Ronneberger, P. Fischer and T. Brox, U-Net, MICCAI 2015, Figure 1; batch norm and padding as is usual.
    """

    def __init__(
        self, classes: int, make: Make, *, widths: Sequence[int] = UNET_WIDTHS, channels: int, batch_norm: bool
    ) -> None:
        super().__init__()
        widths = tuple(require_integer("each of widths", width, minimum=1) for width in widths)
        if len(widths) < 2:
            raise ParameterError(f"widths has {len(widths)} entries; expected at least two sizes")
        sizes = list(itertools.pairwise(widths))
        self.multiple = 2 ** len(sizes)
        self.stem = _double(channels, widths[0], make, batch_norm=batch_norm)
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(_double(fine, coarse, make, batch_norm=batch_norm) for fine, coarse in sizes)
        self.up = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in reversed(sizes))
        self.merge = nn.ModuleList(_double(2 * fine, fine, make, batch_norm=batch_norm) for fine, _ in reversed(sizes))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores ``(batch, classes, height, width)`` of images ``(batch, channels, height, width)``."""
        height, width = images.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        values = self.stem(F.pad(images, (0, right, 0, below)) if below or right else images)
        skipped = []
        for block in self.down:
            skipped.append(values)
            values = block(self.pool(values))
        for up, merge in zip(self.up, self.merge, strict=True):
            values = merge(torch.cat([skipped.pop(), up(values)], 1))
        return self.head(values)[..., :height, :width]
