"""Photographs as tensors: reading and writing image files, and folders of them."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .errors import DSCWarning, FileFormatError, ParameterError, ShapeError, missing_extra

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")


def read_image(
    path: str | os.PathLike[str], *, channels: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the picture in a file, 0 black to 1 white.

    Whole numbers are divided by the largest of their type (255 for 8 bit). Colour becomes grey by the weights of
    ITU-R 601 and grey becomes colour by repetition where `channels` asks for it; transparency is left out.

    Args:
        path: The file, of any kind that Pillow reads.
        channels: 1 (grey), 3 (colour), or None for what the file has.
        dtype: float32 or float64.

    Returns:
        ``(channels, H, W)``.

    Raises:
        FileFormatError: No such file, or no picture, or a damaged one.
        MissingExtraError: Pillow is not installed.
        ParameterError: `channels` is none of these.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "plot", "reading images") from None
    import numpy as np

    if channels not in (None, 1, 3):
        raise ParameterError(f"channels is {channels!r}; expected 1 (grey), 3 (colour) or None (as in the file)")
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file; expected a picture such as PNG or JPEG")
    try:
        with Image.open(path) as file:
            file.load()
            picture = file
            if picture.mode in ("I;16", "I;16B", "I;16L", "I", "F"):  # one channel of more than 8 bits
                values = np.asarray(picture).astype(np.float64)
                top = 1.0 if picture.mode == "F" else 65535.0
                gray = torch.from_numpy(values / top).to(dtype)[None]
                return gray.expand(3, -1, -1).contiguous() if channels == 3 else gray
            has_color = picture.mode not in ("L", "LA", "1")
            mode = "RGB" if (channels == 3 or (channels is None and has_color)) else "L"
            values = np.array(picture.convert(mode))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileFormatError(f"{path} cannot be read as a picture ({error}); expected PNG, JPEG or alike") from error
    tensor = torch.from_numpy(values).to(dtype) / 255
    return tensor[None] if tensor.ndim == 2 else tensor.movedim(-1, 0).contiguous()


def find_images(places: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the image files that files and folders name, in the order of their names.

    Args:
        places: Files, which are taken as they are, and folders, of which all files with the ending of a picture are.

    Raises:
        FileFormatError: A place does not exist, or a folder holds no picture.
    """
    entries = [places] if isinstance(places, str | os.PathLike) else list(places)
    found: list[Path] = []
    for entry in map(Path, entries):
        if entry.is_dir():
            inside = sorted(file for file in entry.iterdir() if file.is_file() and file.suffix.lower() in SUFFIXES)
            if not inside:
                raise FileFormatError(f"{entry} holds no picture; expected files that end in {', '.join(SUFFIXES)}")
            found += inside
        elif entry.exists():
            found.append(entry)
        else:
            raise FileFormatError(f"{entry} does not exist; expected a picture or a folder of pictures")
    if not found:
        raise FileFormatError("no picture was named; expected files or folders")
    return found


def read_images(
    places: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    channels: int | None = None,
    dtype: torch.dtype = torch.float32,
    skip_unreadable: bool = False,
) -> list[Tensor]:
    """Return all pictures of files and folders, in the order of `find_images`; a list, since sizes may differ.

    Args:
        places: See `find_images`.
        channels: See `read_image`.
        dtype: float32 or float64.
        skip_unreadable: Leave out what cannot be read, with a warning that names it, instead of raising.

    Raises:
        FileFormatError: A file cannot be read (all that cannot are named), or none can.
    """
    pictures: list[Tensor] = []
    broken: list[Path] = []
    files = find_images(places)
    for path in files:
        try:
            pictures.append(read_image(path, channels=channels, dtype=dtype))
        except FileFormatError:
            broken.append(path)
    rest = len(broken) - 8
    named = ", ".join(map(str, broken[:8])) + (f" and {rest} more" if rest > 0 else "")
    if broken and not (skip_unreadable and pictures):
        raise FileFormatError(
            f"{len(broken)} of {len(files)} files cannot be read as pictures: {named}; repair or remove them, or have "
            "those left out that cannot be read: skip_unreadable=True (--skip-unreadable)"
        )
    if broken:
        warnings.warn(f"left out {len(broken)} of {len(files)} files: {named}", DSCWarning, stacklevel=2)
    return pictures


def image_bytes(picture: Tensor) -> bytes:
    """Return a picture as PNG: entries below 0 are black, above 1 white, 8 bit.

    Args:
        picture: ``(1, H, W)``, ``(3, H, W)`` or ``(H, W)``.

    Raises:
        MissingExtraError: Pillow is not installed.
        ShapeError: Another shape.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "plot", "writing images") from None
    flat = picture.detach().cpu()
    if flat.ndim == 3 and flat.shape[0] == 1:
        flat = flat[0]
    if flat.ndim == 3 and flat.shape[0] == 3:
        flat = flat.movedim(0, -1)
    elif flat.ndim != 2:
        raise ShapeError(f"picture has shape {tuple(picture.shape)}; expected (1, H, W), (3, H, W) or (H, W)")
    values = (flat.clamp(0, 1) * 255).round().to(torch.uint8).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format="PNG")
    return stream.getvalue()
