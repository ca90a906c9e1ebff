"""DUT-OMRON: photographs with a mask of what stands out, in the folders of its authors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...checks import check_flag
from ...errors import FileFormatError
from .cache import cached
from .images import SegmentedImages
from .pairs import Packed, Size, decode_pair, unpack
from .sources import Progress, damaged, image_size, listed, no_progress, require_count, require_path

SALIENT_CLASSES = ("background", "salient")
IMAGE_FOLDER, MASK_FOLDER = "DUT-OMRON-image", "pixelwiseGT-new-PNG"
_COUNT = 5_168


def read_dut_omron(
    path: str | Path,
    size: int | Sequence[int],
    *,
    complete: bool = True,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> SegmentedImages:
    """Read DUT-OMRON. It has no official split: `hold_out` makes one.

    Args:
        path: The folder that holds `DUT-OMRON-image` (JPEG) and `pixelwiseGT-new-PNG` (PNG); either may stand in a
            folder of the same name, as some programs unpack the archives.
        size: Height and width that all images are resized to (one number: a square). Images are resized linearly,
            masks take the nearest pixel.
        complete: Expect 5,168 images.
        cache: A file for the decoded images, or a folder for it, as `read_cifar10` keeps it.
        progress: Called with the share that is done, 0 to 1.

    Returns:
        The images with masks of 0 and 1 (1 where the file is above 128), in the order of their names.

    Raises:
        FileFormatError: A folder is missing, an image has no mask or a mask no image, a file is damaged, an image and
            its mask have different sizes, or the number of images is another.
        MissingExtraError: Pillow is not installed.

    Source: C. Yang et al., Saliency detection via graph-based manifold ranking, CVPR 2013.
    """
    complete, wanted = check_flag("complete", complete), image_size(size)
    path = require_path(path, f"DUT-OMRON: a folder with {IMAGE_FOLDER} and {MASK_FOLDER}")
    pictures = _files(path, IMAGE_FOLDER, (".jpg", ".jpeg"))
    drawn = _files(path, MASK_FOLDER, (".png",))
    for lacking, what, where in (
        (pictures.keys() - drawn.keys(), "images have no mask", MASK_FOLDER),
        (drawn.keys() - pictures.keys(), "masks have no image", IMAGE_FOLDER),
    ):
        if lacking:
            raise FileFormatError(
                f"{path}: {len(lacking)} {what} of the same name in {where}: {listed(sorted(lacking))}; expected one "
                "for each: copy what is missing, or remove what is left over"
            )
    require_count(path, len(pictures), _COUNT, "images", complete=complete)
    pairs = [(pictures[name], drawn[name]) for name in sorted(pictures)]
    shown = progress or no_progress
    tensors = cached(
        cache,
        "dut-omron",
        [file for pair in pairs for file in pair],
        {"size": wanted and list(wanted)},
        lambda: _read(pairs, wanted, shown),
    )
    shown(1.0)
    images, masks, names = unpack(tensors)
    return SegmentedImages(images, masks, SALIENT_CLASSES, None, names)


def _files(path: Path, folder: str, endings: tuple[str, ...]) -> dict[str, Path]:
    found = next((place for place in (path / folder / folder, path / folder) if place.is_dir()), None)
    if found is None:
        raise FileFormatError(f"{path} has no folder {folder}; expected {IMAGE_FOLDER} and {MASK_FOLDER} in it")
    # Names that start with a dot are notes that some systems leave beside the files.
    files = {file.stem: file for file in found.iterdir() if file.suffix.lower() in endings and file.name[0] != "."}
    if not files:
        raise FileFormatError(f"{found} has no files that end in {' or '.join(endings)}; expected one for each sample")
    return files


def _read(pairs: Sequence[tuple[Path, Path]], size: Size, progress: Progress) -> dict[str, torch.Tensor]:
    packed = Packed()
    for done, (picture, drawn) in enumerate(pairs):
        image, mask = decode_pair(_bytes(picture), _bytes(drawn), str(picture), str(drawn), size)
        packed.add(image, (mask > 128).astype("uint8"), picture.stem, str(picture))
        progress((done + 1) / len(pairs))
    return packed.tensors(str(pairs[0][0].parent))


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise damaged(path, error, "a picture") from error
