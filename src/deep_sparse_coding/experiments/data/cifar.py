"""CIFAR-10 from any of the layouts it is handed out in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ...checks import check_flag
from ...errors import FileFormatError, ParameterError
from .archives import read_binary, read_python
from .cache import cached
from .images import LabelledImages
from .sources import Progress, decode, no_progress, parquet_files, parquet_rows, require_count, require_path

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_COUNTS = {"train": 50_000, "test": 10_000}
# SHA-256 of the sorted SHA-256 digests of the records of the binary version: label, then 3072 pixels by color.
_DIGESTS = {
    "train": "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260",
    "test": "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f",
}
_EXPECTED = (
    "the Parquet files (train*.parquet, test*.parquet), the folder cifar-10-batches-py or cifar-10-batches-bin, or the "
    "archive cifar-10-python.tar.gz or cifar-10-binary.tar.gz"
)
Records = tuple[np.ndarray, np.ndarray]


def read_cifar10(
    path: str | Path,
    split: str = "train",
    *,
    complete: bool = True,
    verify: bool = False,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> LabelledImages:
    """Read CIFAR-10: 32×32 color images of ten classes.

    The images come in the order of the digests of their pixels, a shuffled one, so that every layout gives the same
    tensors.

    Args:
        path: A folder with Parquet files as Hugging Face lays them out (columns `image` or `img`, and `label`), the
            folder or archive of the original Python version or of the binary version, or a folder that holds one.
        split: "train" or "test".
        complete: Expect 50,000 images for training and 10,000 for testing, the same number of every class.
        verify: Compare the checksum of all pixels and labels with that of the original.
        cache: A file for the decoded images, or a folder for it; it is made if missing, and made again when the files
            at `path` change. Without it the pictures of Parquet files are decoded each time.
        progress: Called with the share that is done, 0 to 1.

    Returns:
        The images.

    Raises:
        FileFormatError: No known layout at `path`, damaged or missing files, other counts, or another checksum.
        MissingExtraError: Parquet files without pyarrow or Pillow.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    if split not in _COUNTS:
        raise ParameterError(f"split is {split!r}; expected 'train' or 'test'")
    complete, verify = check_flag("complete", complete), check_flag("verify", verify)
    path = require_path(path, f"CIFAR-10: a folder with {_EXPECTED}")
    progress = progress or no_progress
    files, read = _find(path, split)

    def make() -> dict[str, torch.Tensor]:
        images, labels = _ordered(*read(progress))
        return {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels)}

    tensors = cached(cache, f"cifar10-{split}", files, {"split": split}, make)
    images, labels = tensors["images"], tensors["labels"]
    require_count(path, len(images), _COUNTS[split], f"images of the split {split!r}", complete=complete)
    wrong = ((labels < 0) | (labels >= len(CIFAR10_CLASSES))).nonzero()
    if len(wrong):
        raise FileFormatError(
            f"{path} has {len(wrong)} labels out of range, the first is {int(labels[wrong[0]])}; expected 0 to 9"
        )
    if complete:
        _check_classes(path, labels, split)
    if verify:
        _check_digest(path, images, labels, split)
    progress(1.0)
    return LabelledImages(images, labels, CIFAR10_CLASSES)


def content_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the SHA-256 of the sorted SHA-256 digests of the samples, which no order changes.

    Args:
        images: uint8, ``(n, 3, H, W)``.
        labels: ``(n,)``, 0 to 255.
    """
    return hashlib.sha256(b"".join(sorted(_digests(images, labels)))).hexdigest()


def _digests(images: np.ndarray, labels: np.ndarray) -> list[bytes]:
    return [
        hashlib.sha256(bytes([label]) + image.tobytes()).digest()
        for image, label in zip(images, labels.astype(np.uint8).tolist(), strict=True)
    ]


def _ordered(images: np.ndarray, labels: np.ndarray) -> Records:
    digests = _digests(images, labels)
    order = sorted(range(len(digests)), key=digests.__getitem__)
    return images[order], labels[order].astype(np.int64)


def _find(path: Path, split: str) -> tuple[list[Path], Callable[[Progress], Records]]:
    """Return the files of a split and what reads them."""
    if path.is_file():
        if path.suffix == ".parquet":
            return [path], partial(_read_parquet, [path])
        if "binary" in path.name or path.suffix == ".bin":
            return [path], partial(read_binary, path, split)
        return [path], partial(read_python, path, split)
    for folder in (path, path / "plain_text", path / "data"):
        files = parquet_files(folder, split)
        if files:
            return files, partial(_read_parquet, files)
    for folder in (path, path / "cifar-10-batches-py"):
        if (folder / ("data_batch_1" if split == "train" else "test_batch")).is_file():
            return sorted(folder.glob("*_batch*")), partial(read_python, folder, split)
    for folder in (path, path / "cifar-10-batches-bin"):
        if (folder / ("data_batch_1.bin" if split == "train" else "test_batch.bin")).is_file():
            return sorted(folder.glob("*_batch*.bin")), partial(read_binary, folder, split)
    for name, read in (("cifar-10-python.tar.gz", read_python), ("cifar-10-binary.tar.gz", read_binary)):
        archive = path / name
        if archive.is_file():
            return [archive], partial(read, archive, split)
    raise FileFormatError(f"{path} has no CIFAR-10 of the split {split!r}; expected {_EXPECTED}")


def _read_parquet(files: list[Path], progress: Progress) -> Records:
    images, labels = [], []
    for file, row, (picture, label) in parquet_rows(files, (("image", "img"), ("label",)), progress):
        where = f"{file} (row {row})"
        pixels = decode(picture, where, mode="RGB")
        if pixels.shape != (32, 32, 3):
            raise FileFormatError(f"{where} has a picture of {pixels.shape[0]}×{pixels.shape[1]}; expected 32×32")
        if not isinstance(label, int) or not 0 <= label < len(CIFAR10_CLASSES):
            raise FileFormatError(f"{where} has the label {label!r}; expected a whole number from 0 to 9")
        images.append(pixels.transpose(2, 0, 1))
        labels.append(label)
    if not images:
        raise FileFormatError(f"{files[0]} holds no rows; expected images of CIFAR-10")
    return np.ascontiguousarray(np.stack(images)), np.array(labels)


def _check_classes(path: Path, labels: torch.Tensor, split: str) -> None:
    counts = torch.bincount(labels, minlength=len(CIFAR10_CLASSES)).tolist()
    expected = _COUNTS[split] // len(CIFAR10_CLASSES)
    for name, count in zip(CIFAR10_CLASSES, counts, strict=True):
        if count != expected:
            raise FileFormatError(
                f"{path} has {count} images of class {name!r} in the split {split!r}; expected {expected}: the labels "
                "are not those of CIFAR-10, copy or download them again"
            )


def _check_digest(path: Path, images: torch.Tensor, labels: torch.Tensor, split: str) -> None:
    found = content_digest(images.numpy(), labels.numpy())
    if found != _DIGESTS[split]:
        raise FileFormatError(
            f"{path} has pixels or labels that differ from CIFAR-10's split {split!r} (checksum {found[:16]}..., "
            f"expected {_DIGESTS[split][:16]}...): copy or download it again, or pass verify=False"
        )
