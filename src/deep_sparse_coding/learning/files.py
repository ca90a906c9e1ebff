"""Images from files, as learning takes them: grey or colour, 0 to 1, of any size, contrast normalized."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag
from deep_sparse_coding.errors import DSCWarning, FileFormatError, ParameterError, missing_extra

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")


def read_images(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    color: bool = False,
    skip_unreadable: bool = False,
) -> list[Tensor]:
    """Return images from files and from folders, in order of their names, as ``(channels, H, W)`` in [0, 1], float32.

    Numbers of 8 and of 16 bits are divided by the largest of their type.

    Args:
        paths: Files, or folders whose image files are taken (not those of folders inside them).
        color: Three channels, else grey (one channel, weighed as eyes do).
        skip_unreadable: Leave out files that cannot be read, with a warning that names them.

    Returns:
        A list, since images may have several sizes.

    Raises:
        FileFormatError: No such file, nothing to read, or a file that cannot be read; the message names them.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "vision", "reading images") from None
    color, skip_unreadable = check_flag("color", color), check_flag("skip_unreadable", skip_unreadable)
    files = _list_files(paths)
    images: list[Tensor] = []
    broken: list[str] = []
    for file in files:
        try:
            with Image.open(file) as opened:
                opened.load()
                image = _to_tensor(opened, color)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            broken.append(f"{file} ({error})")
            continue
        images.append(image)
    if broken and not skip_unreadable:
        raise FileFormatError(
            f"{len(broken)} of {len(files)} files cannot be read as images: {_some(broken)}; expected image files: "
            "remove them, or have them left out by skip_unreadable=True (--skip-unreadable)"
        )
    if not images:
        raise FileFormatError(f"none of {len(files)} files can be read as an image: {_some(broken)}")
    if broken:
        warnings.warn(f"left out {len(broken)} of {len(files)} files: {_some(broken)}", DSCWarning, stacklevel=2)
    return images


def _list_files(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    given = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    if not given:
        raise ParameterError("paths is empty; expected files or folders")
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
            if not found:
                raise FileFormatError(f"{path} holds no image files; expected some ending in {', '.join(_SUFFIXES)}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileFormatError(f"{path} is neither a file nor a folder; expected images, or a folder of images")
    return files


def _to_tensor(opened: object, color: bool) -> Tensor:
    """Return an image ``(channels, H, W)`` in [0, 1], float32."""
    from PIL import Image

    assert isinstance(opened, Image.Image)
    mode = opened.mode
    if mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        array = np.asarray(opened, dtype=np.float64)
        scale = 1.0 if mode == "F" else 65535.0
        grey = torch.from_numpy(array / scale).float()[None]
        return grey.expand(3, -1, -1).contiguous() if color else grey
    array = np.asarray(opened.convert("RGB" if color else "L"), dtype=np.float32) / 255
    tensor = torch.from_numpy(array)
    return (tensor.movedim(2, 0) if color else tensor[None]).contiguous()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", and {len(names) - 5} more" if len(names) > 5 else "")
