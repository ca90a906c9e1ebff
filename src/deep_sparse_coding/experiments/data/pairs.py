"""Images with masks on their way from files to tensors: decoded, compared, resized, packed."""

from __future__ import annotations

import json

import numpy as np
import torch
from torch import Tensor

from ...errors import FileFormatError
from .sources import decode

Size = tuple[int, int] | None  # height, width


def decode_pair(
    picture: object, drawn: object, where: str, mask_where: str, size: Size
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image ``(H, W, 3)`` and its mask ``(H, W)``, resized: bilinear, and by the nearest pixel.

    Raises:
        FileFormatError: One of them is damaged, or their sizes differ.
    """
    image, mask = decode(picture, where, mode="RGB"), decode(drawn, mask_where, mode="L")
    if mask.shape != image.shape[:2]:
        raise FileFormatError(
            f"{where} has {image.shape[0]}×{image.shape[1]} pixels and {mask_where} {mask.shape[0]}×{mask.shape[1]}; "
            "expected the same size"
        )
    if size is None or mask.shape == size:
        return image, mask
    from PIL import Image

    width_first = size[1], size[0]
    return (
        np.array(Image.fromarray(image).resize(width_first, Image.Resampling.BILINEAR)),
        np.array(Image.fromarray(mask).resize(width_first, Image.Resampling.NEAREST)),
    )


class Packed:
    """Collects images, masks and names, and gives them as tensors that a cache can hold."""

    def __init__(self) -> None:
        self._images: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []
        self._names: list[str] = []

    def add(self, image: np.ndarray, mask: np.ndarray, name: str, where: str) -> None:
        """Take one more sample.

        Raises:
            FileFormatError: Its size is not that of the first.
        """
        if self._masks and mask.shape != self._masks[0].shape:
            first = self._masks[0].shape
            raise FileFormatError(
                f"{where} has {mask.shape[0]}×{mask.shape[1]} pixels and the first image {first[0]}×{first[1]}; "
                "expected one size: pass size=(height, width) to resize all"
            )
        self._images.append(image.transpose(2, 0, 1))
        self._masks.append(mask)
        self._names.append(name)

    def tensors(self, where: str) -> dict[str, Tensor]:
        """Return images, masks, and the names as bytes.

        Raises:
            FileFormatError: Nothing was added.
        """
        if not self._images:
            raise FileFormatError(f"{where} holds no images; expected at least one")
        names = json.dumps(self._names).encode()
        return {
            "images": torch.from_numpy(np.ascontiguousarray(np.stack(self._images))),
            "masks": torch.from_numpy(np.stack(self._masks)),
            "names": torch.frombuffer(bytearray(names), dtype=torch.uint8),
        }


def unpack(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return images, masks and names of what `Packed.tensors` returned."""
    return tensors["images"], tensors["masks"], tuple(json.loads(tensors["names"].numpy().tobytes()))
