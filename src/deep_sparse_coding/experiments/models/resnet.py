"""ResNet of basic blocks for small images: a 3×3 convolution in place of the large stem, and no first pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import ParameterError
from .activations import Make
from .parts import convolution, scaled

RESNET_DEPTHS: dict[str, tuple[int, ...]] = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, with an activation of its own after each sum.

    Args:
        channels: Of the input.
        width: Of the output.
        stride: Of the first convolution.
        make: Makes an activation.
        batch_norm: Whether batch norm follows each convolution.
        share: What ``F`` is multiplied by; below 1 it keeps the sums of many blocks without batch norm from growing.

    Source: K. He et al., Deep residual learning, CVPR 2016, Figure 5.
    """

    def __init__(
        self, channels: int, width: int, stride: int, make: Make, *, batch_norm: bool, share: float = 1.0
    ) -> None:
        super().__init__()
        self.share = share
        self.conv1, self.norm1 = convolution(channels, width, stride=stride, batch_norm=batch_norm)
        self.act1 = make()
        self.conv2, self.norm2 = convolution(width, width, batch_norm=batch_norm)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(*convolution(channels, width, kernel=1, stride=stride, batch_norm=batch_norm))
        self.act2 = make()

    def forward(self, values: Tensor) -> Tensor:
        """Return ``σ(share · F(x) + shortcut(x))``."""
        change = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(values)))))
        return self.act2(torch.add(self.shortcut(values), change, alpha=self.share))


class ResNet(nn.Module):
    """ResNet with the stem that is usual on CIFAR.

    Args:
        depths: Blocks in each of the four stages; all but the first stage halve the image.
        classes: Outputs.
        make: Makes an activation.
        width: Factor on the widths 64, 128, 256, 512.
        channels: Of the images.
        image_size: Side of the images.
        batch_norm: Whether batch norm follows each convolution.

    Raises:
        ParameterError: Images too small for three halvings.

    Source: K. He et al., Deep residual learning, CVPR 2016, Table 1 and section 4.2.
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
        if image_size < 8:
            raise ParameterError(f"image_size is {image_size}; ResNet halves it three times: expected at least 8")
        widths = scaled(_WIDTHS, width)
        self.conv, self.norm = convolution(channels, widths[0], batch_norm=batch_norm)
        self.act = make()
        # L sums of equal variance would grow to 2^L times the variance; with 1/√L it stays below e times.
        share = 1.0 if batch_norm else sum(depths) ** -0.5
        before, stages = widths[0], []
        for stage, (depth, features) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for block in range(depth):
                stride = 2 if stage and not block else 1
                blocks.append(BasicBlock(before, features, stride, make, batch_norm=batch_norm, share=share))
                before = features
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(before, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        values = self.stages(self.act(self.norm(self.conv(images))))
        return self.classifier(torch.mean(values, (2, 3)))
