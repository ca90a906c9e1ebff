"""Small drawn data sets in the layouts of the real ones, for tests and for trying things out in seconds."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...checks import per_axis, require_integer
from ...errors import FileFormatError, ParameterError, missing_extra
from ...files import write_whole
from .dut_omron import IMAGE_FOLDER, MASK_FOLDER
from .shapes import draw_object, draw_road, draw_salient

CIFAR10_LAYOUTS = ("parquet", "python", "binary", "python-archive", "binary-archive")


def draw_cifar10(
    folder: str | Path, *, train: int = 500, test: int = 200, seed: int = 0, layout: str = "parquet"
) -> Path:
    """Write a drawn stand-in for CIFAR-10, read with ``read_cifar10(folder, complete=False)``.

    Each class is a shape in shades of one color, at any place and of any size, on a noisy ground.

    Args:
        folder: Where to; it is made if missing.
        train: Images to train on, the same number of every class up to one.
        test: Images to test on.
        seed: Of all that is drawn.
        layout: "parquet", "python" (the folder cifar-10-batches-py), "binary" (cifar-10-batches-bin), or an archive of
            one: "python-archive", "binary-archive".

    Returns:
        The folder.

    Raises:
        ParameterError: An unknown layout, fewer than 5 images to train on, or none to test on.
        FileFormatError: The folder cannot be written.
    """
    if layout not in CIFAR10_LAYOUTS:
        raise ParameterError(f"layout is {layout!r}; expected one of {', '.join(CIFAR10_LAYOUTS)}")
    train, test = require_integer("train", train, minimum=5), require_integer("test", test, minimum=1)
    folder = _folder(folder)
    splits = {}
    for number, (split, count) in enumerate((("train", train), ("test", test))):
        rng = np.random.default_rng((require_integer("seed", seed, minimum=0), number))
        labels = rng.permutation(np.arange(count) % 10)
        splits[split] = np.stack([draw_object(int(label), rng) for label in labels]), labels
    if layout == "parquet":
        for split, (images, labels) in splits.items():
            pictures = [_encode(image, "PNG") for image in images]
            columns = {"image": [_picture(item, f"{k}.png") for k, item in enumerate(pictures)], "label": list(labels)}
            _write_parquet(folder / f"{split}.parquet", columns)
        return folder
    python = layout.startswith("python")
    inner = "cifar-10-batches-py" if python else "cifar-10-batches-bin"
    files = _batches(splits, python=python)
    if layout in ("python", "binary"):
        for name, content in files.items():
            write_whole(_folder(folder / inner) / name, content)
        return folder
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    write_whole(folder / f"cifar-10-{'python' if python else 'binary'}.tar.gz", packed.getvalue())
    return folder


def draw_camvid(
    folder: str | Path,
    *,
    train: int = 32,
    val: int = 8,
    test: int = 16,
    size: int | Sequence[int] = (48, 64),
    seed: int = 0,
) -> Path:
    """Write a drawn stand-in for CamVid, read with ``read_camvid(folder, split, complete=False)``.

    Roads between houses under a sky, with trees, signs, cars, people and cyclists, all 11 classes and some void.

    Args:
        folder: Where to; it is made if missing.
        train: Images of each split.
        val: The same.
        test: The same.
        size: Height and width of the images.
        seed: Of all that is drawn.

    Returns:
        The folder.

    Raises:
        ParameterError: A split without images, or images below 24 pixels.
        FileFormatError: The folder cannot be written.
    """
    height, width = per_axis("size", size, 2, minimum=24)
    folder = _folder(folder)
    for number, (split, count) in enumerate((("train", train), ("val", val), ("test", test))):
        rng = np.random.default_rng((require_integer("seed", seed, minimum=0), number))
        columns: dict[str, list[object]] = {"image": [], "mask": [], "name": []}
        for k in range(require_integer(split, count, minimum=1)):
            image, mask = draw_road(height, width, rng)
            columns["image"].append(_picture(_encode(image, "JPEG"), f"drawn_{k:04}.jpg"))
            columns["mask"].append(_picture(_encode(mask, "PNG"), f"drawn_{k:04}.png"))
            columns["name"].append(f"drawn_{k:04}.png")
        _write_parquet(folder / f"{split}.parquet", columns)
    return folder


def draw_dut_omron(folder: str | Path, *, count: int = 48, size: int | Sequence[int] = (48, 64), seed: int = 0) -> Path:
    """Write a drawn stand-in for DUT-OMRON, read with ``read_dut_omron(folder, size, complete=False)``.

    One bright shape on a textured ground; the images differ in size by up to a quarter, and stand upright or lie.

    Args:
        folder: Where to; it is made if missing.
        count: Number of images.
        size: Height and width about which the sizes vary.
        seed: Of all that is drawn.

    Returns:
        The folder.

    Raises:
        ParameterError: No images, or images below 24 pixels.
        FileFormatError: The folder cannot be written.
    """
    height, width = per_axis("size", size, 2, minimum=24)
    folder = _folder(folder)
    rng = np.random.default_rng(require_integer("seed", seed, minimum=0))
    pictures, drawn = _folder(folder / IMAGE_FOLDER), _folder(folder / MASK_FOLDER)
    for k in range(require_integer("count", count, minimum=1)):
        sides = [max(int(side * rng.uniform(0.75, 1.25)), 16) for side in (height, width)]
        tall, wide = sides if rng.random() < 0.7 else sides[::-1]
        image, mask = draw_salient(tall, wide, rng)
        write_whole(pictures / f"drawn_{k:04}.jpg", _encode(image, "JPEG"))
        write_whole(drawn / f"drawn_{k:04}.png", _encode(mask * np.uint8(255), "PNG"))
    return folder


def _batches(splits: dict[str, tuple[np.ndarray, np.ndarray]], *, python: bool) -> dict[str, bytes]:
    files = {}
    for split, (images, labels) in splits.items():
        parts = 5 if split == "train" else 1
        for k, chosen in enumerate(np.array_split(np.arange(len(images)), parts), start=1):
            name = f"data_batch_{k}" if split == "train" else "test_batch"
            pixels = images[chosen].transpose(0, 3, 1, 2).reshape(len(chosen), -1)
            if python:
                batch = {b"data": pixels, b"labels": labels[chosen].tolist()}
                files[name] = pickle.dumps(batch, protocol=2)
            else:
                records = np.concatenate([labels[chosen, None].astype(np.uint8), pixels], 1)
                files[f"{name}.bin"] = records.tobytes()
    return files


def _folder(folder: str | Path) -> Path:
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileFormatError(
            f"cannot make the folder {folder} ({error}); expected a place that can be written"
        ) from error
    return folder


def _encode(pixels: np.ndarray, kind: str) -> bytes:
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "vision", "drawing pictures") from None
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return target.getvalue()


def _picture(content: bytes, path: str) -> dict[str, object]:
    return {"bytes": content, "path": path}


def _write_parquet(path: Path, columns: dict[str, list[object]]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "vision", "writing Parquet files") from None
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target)
    write_whole(path, target.getvalue())
