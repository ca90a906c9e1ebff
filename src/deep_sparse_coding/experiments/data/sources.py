"""What every reader shares: Parquet tables, pictures as arrays, and errors that name the file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...checks import per_axis
from ...errors import FileFormatError, missing_extra

Progress = Callable[[float], None]


def no_progress(share: float) -> None:
    """Show nothing."""


def require_path(path: str | Path, what: str) -> Path:
    """Return `path` if it exists.

    Raises:
        FileFormatError: There is no such file or folder.
    """
    path = Path(path)
    if not path.exists():
        raise FileFormatError(f"{path} does not exist; expected {what}")
    return path


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Return ``split.parquet``, ``split-0.parquet``, ... of a folder, in the order of their names."""
    return sorted(path for path in folder.glob("*.parquet") if path.stem.split("-")[0] == split)


def parquet_rows(
    paths: Sequence[Path], columns: Sequence[Sequence[str]], progress: Progress
) -> Iterator[tuple[Path, int, tuple[Any, ...]]]:
    """Yield file, row and values of the columns, each known by one of several names.

    Raises:
        FileFormatError: A file is damaged, or has none of the names of a column.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise missing_extra("pyarrow", "vision", "reading Parquet files") from None
    files = []
    for path in paths:
        try:
            files.append(pq.ParquetFile(path))
        except (pa.ArrowException, OSError) as error:
            raise damaged(path, error, "a Parquet file") from error
    total, done = sum(file.metadata.num_rows for file in files), 0
    for path, file in zip(paths, files, strict=True):
        known = file.schema_arrow.names
        chosen = [next((name for name in names if name in known), None) for names in columns]
        if None in chosen:
            lacking = " or ".join(repr(name) for name in columns[chosen.index(None)])
            raise FileFormatError(f"{path} has columns {', '.join(map(repr, known))}; expected {lacking} among them")
        row = 0
        try:
            for batch in file.iter_batches(256, columns=chosen):
                for values in zip(*(batch.column(name).to_pylist() for name in chosen), strict=True):
                    yield path, row, values
                    row += 1
                    done += 1
                progress(done / total)
        except (pa.ArrowException, OSError) as error:
            raise damaged(path, error, "a complete Parquet file") from error


def decode(content: object, where: str, *, mode: str) -> np.ndarray:
    """Return a picture as a uint8 array ``(H, W, 3)`` of mode "RGB", or ``(H, W)`` of mode "L".

    Args:
        content: The bytes of the file, or the dictionary of bytes and path that Hugging Face stores.
        where: The file, for the error.
        mode: "RGB" or "L"; pictures of palette indices stay indices under "L".

    Raises:
        FileFormatError: No picture, or a damaged one.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "vision", "reading pictures") from None
    if isinstance(content, dict):
        content = content.get("bytes")
    if not isinstance(content, bytes):
        raise FileFormatError(f"{where} holds a {type(content).__name__}; expected the bytes of a picture")
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            chosen = picture if picture.mode == mode or (mode == "L" and picture.mode == "P") else picture.convert(mode)
            return np.array(chosen, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise damaged(where, error, "a picture") from error


def image_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return height and width: one number stands for a square, None for the size of the files."""
    if size is None:
        return None
    height, width = per_axis("size", size, 2)
    return height, width


def damaged(where: Path | str, error: Exception | str, what: str) -> FileFormatError:
    """Return the error for a file that cannot be read."""
    return FileFormatError(f"{where} cannot be read ({error}); expected {what}: copy or download it again")


def require_count(path: Path, found: int, expected: int, what: str, *, complete: bool) -> None:
    """Raise unless the number of samples is the published one.

    Raises:
        FileFormatError: It is another, and `complete` is set; or it is none.
    """
    if not found:
        raise FileFormatError(f"{path} holds no {what}; expected {expected if complete else 'at least one'}")
    if complete and found != expected:
        raise FileFormatError(
            f"{path} holds {found} {what}; expected {expected}: copy or download what is missing, or pass "
            "complete=False to read a part"
        )


def listed(items: Iterable[str], limit: int = 3) -> str:
    """Return the first few of a list in words, and how many more there are."""
    every = list(items)
    rest = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + rest
