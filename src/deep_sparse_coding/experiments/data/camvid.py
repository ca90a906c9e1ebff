"""CamVid: road scenes with a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...checks import check_flag
from ...errors import FileFormatError, ParameterError
from .cache import cached
from .images import SegmentedImages
from .pairs import Packed, Size, decode_pair, unpack
from .sources import Progress, image_size, no_progress, parquet_files, parquet_rows, require_count, require_path

CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "cyclist",
)
CAMVID_IGNORE = 11
MOVING_CLASSES = ("rest", "moving")
_MOVING = ("car", "pedestrian", "cyclist")
_COUNTS = {"train": 367, "val": 101, "test": 233}


def read_camvid(
    path: str | Path,
    split: str = "train",
    *,
    size: int | Sequence[int] | None = None,
    task: str = "classes",
    complete: bool = True,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> SegmentedImages:
    """Read CamVid in the selection of 480×360 pixels with 11 classes and void.

    Args:
        path: A folder with Parquet files whose names start with the split: columns `image` (a picture), `mask` (a
            picture of class numbers, 11 for void) and `name`.
        split: "train", "val" or "test".
        size: Height and width to resize to (one number: a square); None keeps 360×480. Images are resized linearly,
            masks take the nearest pixel.
        task: "classes": the 11 classes, void ignored. "moving": car, pedestrian and cyclist (1) against the rest (0),
            to which void belongs, so that no pixel is ignored.
        complete: Expect 367, 101 or 233 images.
        cache: A file for the decoded images, or a folder for it, as `read_cifar10` keeps it.
        progress: Called with the share that is done, 0 to 1.

    Returns:
        The images with their masks, in the order of the files.

    Raises:
        FileFormatError: Missing or damaged files, an image and a mask of different sizes, another number of images, or
            entries that are no class.
        MissingExtraError: pyarrow or Pillow is not installed.

    Source: G. Brostow, J. Fauqueur and R. Cipolla, Semantic object classes in video, 2009, in the selection of V.
        Badrinarayanan, A. Kendall and R. Cipolla, SegNet, 2017.
    """
    if split not in _COUNTS:
        raise ParameterError(f"split is {split!r}; expected 'train', 'val' or 'test'")
    if task not in ("classes", "moving"):
        raise ParameterError(f"task is {task!r}; expected 'classes' or 'moving'")
    complete, wanted = check_flag("complete", complete), image_size(size)
    expected = f"a folder with {split}.parquet or {split}-*.parquet (columns image, mask, name)"
    path = require_path(path, f"CamVid: {expected}")
    files = [path] if path.is_file() else parquet_files(path, split)
    if not files:
        raise FileFormatError(f"{path} has no CamVid of the split {split!r}; expected {expected}")
    shown = progress or no_progress
    tensors = cached(
        cache,
        f"camvid-{split}",
        files,
        {"split": split, "size": wanted and list(wanted)},
        lambda: _read(files, wanted, shown),
    )
    require_count(path, len(tensors["images"]), _COUNTS[split], f"images of the split {split!r}", complete=complete)
    shown(1.0)
    images, masks, names = unpack(tensors)
    if task == "classes":
        return SegmentedImages(images, masks, CAMVID_CLASSES, CAMVID_IGNORE, names)
    moving = torch.zeros_like(masks)
    for name in _MOVING:
        moving += masks == CAMVID_CLASSES.index(name)
    return SegmentedImages(images, moving, MOVING_CLASSES, None, names)


def _read(files: list[Path], size: Size, progress: Progress) -> dict[str, torch.Tensor]:
    packed = Packed()
    for file, row, (picture, drawn, name) in parquet_rows(files, (("image",), ("mask",), ("name",)), progress):
        where = f"{file} (row {row}, {name})"
        image, mask = decode_pair(picture, drawn, where, f"{where}, its mask", size)
        largest = int(mask.max())
        if largest > CAMVID_IGNORE:
            raise FileFormatError(
                f"{where} has the class {largest} in its mask; expected 0 to {CAMVID_IGNORE - 1}, or {CAMVID_IGNORE} "
                "for void"
            )
        packed.add(image, mask, str(name), where)
    return packed.tensors(str(files[0]))
