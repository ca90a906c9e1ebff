"""The original archives of CIFAR-10: pickled batches read without running what they hold, and plain records."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import FileFormatError
from .sources import Progress, damaged

_PIXELS = 3 * 32 * 32
_LARGEST = 1 << 26  # bytes in one batch; the real ones have 31 million


def read_python(path: Path, split: str, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Read the batches of the Python version, from the folder or the archive.

    Returns:
        Images uint8 ``(n, 3, 32, 32)`` and labels int64 ``(n,)``, in the order of the files.

    Raises:
        FileFormatError: A batch is missing, damaged, or holds more than arrays, numbers and text.
    """
    images, labels = [], []
    for where, content in _batches(path, split, "", progress):
        batch = _load(where, content)
        try:
            data, numbers = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(where, f"no data and labels: {error}", "a batch of CIFAR-10") from error
        if data.dtype != np.uint8 or data.shape != (len(numbers), _PIXELS) or numbers.ndim != 1:
            raise FileFormatError(
                f"{where} has data of shape {data.shape} and type {data.dtype} for {numbers.size} labels; expected "
                f"uint8 (n, {_PIXELS}) and n labels: this is no batch of CIFAR-10"
            )
        if numbers.dtype.kind not in "iu":
            raise FileFormatError(f"{where} has labels of type {numbers.dtype}; expected whole numbers")
        images.append(data.reshape(-1, 3, 32, 32))
        labels.append(numbers.astype(np.int64))
    return np.concatenate(images), np.concatenate(labels)


def read_binary(path: Path, split: str, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Read the records of the binary version, from the folder, the archive or one file: a label, then the pixels.

    Returns:
        Images uint8 ``(n, 3, 32, 32)`` and labels int64 ``(n,)``, in the order of the files.

    Raises:
        FileFormatError: A file is missing, damaged, or cut off.
    """
    images, labels = [], []
    for where, content in _batches(path, split, ".bin", progress):
        if not content or len(content) % (_PIXELS + 1):
            raise FileFormatError(
                f"{where} has {len(content)} bytes; expected a multiple of {_PIXELS + 1}, one record per image: copy "
                "or download it again"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, _PIXELS + 1)
        images.append(records[:, 1:].reshape(-1, 3, 32, 32))
        labels.append(records[:, 0].astype(np.int64))
    return np.concatenate(images), np.concatenate(labels)


def _batches(path: Path, split: str, ending: str, progress: Progress) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a split, each as its place in words and its content."""
    names = [f"data_batch_{number}{ending}" for number in range(1, 6)] if split == "train" else [f"test_batch{ending}"]
    if path.is_dir():
        for done, name in enumerate(names):
            try:
                content = (path / name).read_bytes()
            except OSError as error:
                raise damaged(path / name, error, f"one of {len(names)} files of the split {split!r}") from error
            yield str(path / name), content
            progress((done + 1) / len(names))
        return
    if path.suffix == ".bin":
        yield str(path), path.read_bytes()
        return
    found = set()
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                if name in names and name not in found and member.isfile():
                    file = archive.extractfile(member)
                    if file is None or member.size > _LARGEST:
                        raise damaged(path, f"{member.name} has {member.size} bytes", "a batch of CIFAR-10")
                    found.add(name)
                    yield f"{path} ({member.name})", file.read()
                    progress(len(found) / len(names))
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise damaged(path, error, "the archive of CIFAR-10") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise FileFormatError(
            f"{path} lacks {', '.join(missing)}; expected {', '.join(names)} of the split {split!r} in it: copy or "
            "download it again"
        )


def _load(where: str, content: bytes) -> dict[Any, Any]:
    if len(content) > _LARGEST:
        raise damaged(where, f"{len(content)} bytes", "a batch of CIFAR-10")
    try:
        batch = _Unpickler(io.BytesIO(content)).load()
    except FileFormatError as error:
        raise FileFormatError(f"{where} is not safe to read: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise damaged(where, error, "a batch of CIFAR-10") from error
    if not isinstance(batch, dict):
        raise damaged(where, f"it holds a {type(batch).__name__}", "a batch of CIFAR-10")
    return {key.encode() if isinstance(key, str) else key: value for key, value in batch.items()}


def _empty_array(kind: object, shape: tuple[int, ...], code: object) -> np.ndarray:
    # NumPy pickles every array as an empty one that is filled afterwards; another shape would only take memory.
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise FileFormatError(f"it makes an array of shape {shape!r}; expected arrays that their bytes fill")
    return np.ndarray.__new__(np.ndarray, (0,), np.uint8)


def _byte_type(code: object, *flags: object) -> np.dtype:
    if code not in ("u1", b"u1"):
        raise FileFormatError(f"it makes an array of type {code!r}; expected bytes ('u1')")
    return np.dtype("u1", False, True)  # type: ignore[call-overload]  # a copy: filling in the state changes it


def _as_latin1(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise FileFormatError(f"it encodes text as {encoding!r}; expected latin1, as pickles of bytes do")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Reads numbers, text, lists, dictionaries and arrays of bytes; refuses to look up anything else."""

    _KNOWN = {  # noqa: RUF012 - constant
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy._core.multiarray", "_reconstruct"): _empty_array,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _byte_type,
        ("_codecs", "encode"): _as_latin1,
    }

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        """Return one of five known things that arrays of bytes are made of.

        Raises:
            FileFormatError: The pickle asks for anything else.
        """
        try:
            return self._KNOWN[module, name]
        except KeyError:
            raise FileFormatError(f"it asks for {module}.{name}, which batches of CIFAR-10 never do") from None
