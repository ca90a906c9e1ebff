"""The photographs that the shipped dictionaries are learned from: all lie in scikit-image or scikit-learn."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..errors import missing_extra

# Weights of red, green and blue in grey, ITU-R 601.
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Photograph:
    """Where a photograph lies and what may be done with it.

    Attributes:
        name: As the package that ships it calls it.
        package: "scikit-image" or "scikit-learn".
        author: Who made it.
        license: As the package states it.
        shrink: Blocks of so many pixels a side are averaged: JPEG files show the borders of their 8×8 blocks otherwise.
        color: Whether it has three channels.
    """

    name: str
    package: str
    author: str
    license: str
    shrink: int = 1
    color: bool = True


PHOTOGRAPHS = (
    Photograph("china.jpg", "scikit-learn", "danielbuechele", "CC BY 2.0", shrink=2),
    Photograph("flower.jpg", "scikit-learn", "vultilion", "CC BY 2.0", shrink=2),
    Photograph("camera", "scikit-image", "Lav Varshney", "CC0 1.0", color=False),
    Photograph("chelsea", "scikit-image", "Stefan van der Walt", "CC0 1.0"),
    Photograph("coffee", "scikit-image", "Rachel Michetti", "CC0 1.0"),
    Photograph("rocket", "scikit-image", "SpaceX", "public domain", shrink=2),
    Photograph("brick", "scikit-image", "CC0Textures", "CC0 1.0", color=False),
    Photograph("grass", "scikit-image", "Linolafett (DeviantArt)", "CC0 1.0", color=False),
    Photograph("gravel", "scikit-image", "CC0Textures", "CC0 1.0", color=False),
)
# Nothing is learned from this one.
HELD_OUT = Photograph("astronaut", "scikit-image", "NASA", "public domain")


def read_photograph(photograph: Photograph, *, color: bool = False) -> Tensor:
    """Return a photograph, ``(1, H, W)`` or ``(3, H, W)``, float64, 0 black to 1 white.

    Args:
        photograph: Which.
        color: Three channels; of a grey one all three are the same.

    Raises:
        MissingExtraError: The package that ships it is not installed.
    """
    pixels = torch.from_numpy(np.array(_pixels(photograph), dtype=np.float64) / 255)
    if color:
        image = pixels.movedim(-1, 0) if photograph.color else pixels.expand(3, *pixels.shape)
    else:
        image = (pixels @ torch.tensor(_GREY, dtype=torch.float64) if photograph.color else pixels)[None]
    if photograph.shrink > 1:
        image = F.avg_pool2d(image[None], photograph.shrink)[0]
    return image.contiguous()


def pixel_digest(photograph: Photograph) -> str:
    """Return the SHA-256 of the pixels as the package gives them, to tell whether they are the ones learned from.

    Raises:
        MissingExtraError: The package that ships it is not installed.
    """
    return hashlib.sha256(np.ascontiguousarray(_pixels(photograph)).tobytes()).hexdigest()


def _pixels(photograph: Photograph) -> np.ndarray[Any, Any]:
    """Return the pixels as 8-bit numbers, ``(H, W)`` or ``(H, W, 3)``."""
    if photograph.package == "scikit-learn":
        try:
            from sklearn.datasets import load_sample_image
        except ImportError:
            raise missing_extra("scikit-learn", "sklearn", "learning the shipped dictionaries") from None
        return load_sample_image(photograph.name)
    try:
        from skimage import data
    except ImportError:
        raise missing_extra("scikit-image", "test", "learning the shipped dictionaries") from None
    return getattr(data, photograph.name)()
