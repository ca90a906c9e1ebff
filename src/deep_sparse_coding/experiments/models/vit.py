"""A small vision transformer on patches of 4×4 pixels."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...errors import ParameterError
from .activations import Make
from .parts import Embedding, scaled

_DEPTH, _HEADS, _WIDTH, _EXPANSION, _PATCH = 12, 3, 192, 4, 4


class Attention(nn.Module):
    """Self-attention of several heads.

    Args:
        width: Entries per token.
        heads: They share the width.

    Source: A. Vaswani et al., Attention is all you need, NeurIPS 2017, section 3.2.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)
        self.outputs = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what the tokens ``(batch, tokens, width)`` gather from each other."""
        split = self.inputs(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind(0)
        gathered = F.scaled_dot_product_attention(queries, keys, values)
        return self.outputs(gathered.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention, then a network of two layers for each token; layer norm before each.

    Args:
        width: Entries per token.
        heads: Of the attention.
        make: Makes the activation between the two layers.

    Source: A. Dosovitskiy et al., An image is worth 16×16 words, ICLR 2021, equations 2 and 3.
    """

    def __init__(self, width: int, heads: int, make: Make) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, _EXPANSION * width)
        self.act = make()
        self.linear2 = nn.Linear(_EXPANSION * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens after attention and after their own layers."""
        tokens = tokens + self.attention(self.norm1(tokens))
        return tokens + self.linear2(self.act(self.linear1(self.norm2(tokens))))


class ViT(nn.Module):
    """ViT-Tiny: 12 blocks, 3 heads, width 192, patches of 4×4 pixels, a class token.

    Args:
        classes: Outputs.
        make: Makes an activation.
        width: Factor on the width, which stays a multiple of the 3 heads.
        channels: Of the images.
        image_size: Side of the images, a multiple of 4; other sizes have other positions.

    Raises:
        ParameterError: `image_size` is no multiple of 4.

    Source: A. Dosovitskiy et al., An image is worth 16×16 words, ICLR 2021; H. Touvron et al., Training data-efficient
        image transformers, ICML 2021, Table 1 (the size).
    """

    def __init__(self, classes: int, make: Make, *, width: float, channels: int, image_size: int) -> None:
        super().__init__()
        if image_size < _PATCH or image_size % _PATCH:
            raise ParameterError(f"image_size is {image_size}; vit-tiny cuts patches of 4: expected a multiple of 4")
        (features,) = scaled((_WIDTH,), width, multiple=_HEADS)
        self.image_size = image_size
        self.patches = nn.Conv2d(channels, features, _PATCH, stride=_PATCH)
        self.embedding = Embedding((image_size // _PATCH) ** 2, features)
        self.blocks = nn.Sequential(*(TransformerBlock(features, _HEADS, make) for _ in range(_DEPTH)))
        self.norm = nn.LayerNorm(features)
        self.classifier = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores ``(batch, classes)`` of images ``(batch, channels, image_size, image_size)``.

        Raises:
            ParameterError: Images of another size.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ParameterError(
                f"the images are {images.shape[-2]}×{images.shape[-1]}; this network has positions for "
                f"{self.image_size}×{self.image_size}: build it with that image_size"
            )
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return self.classifier(self.norm(self.blocks(self.embedding(patches)))[:, 0])
