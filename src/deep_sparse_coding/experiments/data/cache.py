"""Decoded data in one file, written whole or not at all, and read again while its sources stay as they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import FileFormatError
from ...files import write_whole

_KEY = "deep_sparse_coding.data"
_VERSION = 1


def cached(
    cache: str | Path | None,
    name: str,
    sources: Sequence[Path],
    settings: Mapping[str, Any],
    make: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Return tensors from a cache file if it was made from these sources with these settings; else make and keep them.

    Args:
        cache: The file, or an existing folder in which it is ``name.safetensors``; None: nothing is kept.
        name: Of the file in a folder.
        sources: Files that the tensors are made from; name, size and time of change tell whether they are the same.
        settings: What else the tensors depend on.
        make: Makes them.

    Returns:
        The tensors.

    Raises:
        FileFormatError: The file is there and is no cache, or it cannot be written.
    """
    if cache is None:
        return make()
    from safetensors.torch import save

    path = Path(cache)
    if path.is_dir():
        path = path / f"{name}.safetensors"
    description = json.dumps(
        {"version": _VERSION, "name": name, "settings": dict(settings), "sources": _marks(sources)}
    )
    tensors = _read(path, description) if path.exists() else None
    if tensors is None:
        tensors = make()
        write_whole(path, save({key: value.contiguous() for key, value in tensors.items()}, {_KEY: description}))
    return tensors


def _read(path: Path, description: str) -> dict[str, Tensor] | None:
    """Return the tensors, or None if they were made from something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get(_KEY)
            if found == description:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        # Never replaced: the name may be that of another file, given by mistake.
        raise FileFormatError(
            f"{path} is no cache of decoded data, or a damaged one ({error}): delete it, or name another file"
        ) from error
    if found is None:
        raise FileFormatError(f"{path} is a safetensors file but no cache of decoded data: name another file")
    return None


def _marks(sources: Sequence[Path]) -> list[list[Any]]:
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sources]
