"""Checkpoints of learning: one safetensors file with a JSON description, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deep_sparse_coding.errors import FileFormatError, ParameterError
from deep_sparse_coding.files import write_whole

from .engine import Engine, Part
from .statistics import SparseCodes, Statistics

_KEY = "deep_sparse_coding.learning"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Saved:
    """What a checkpoint holds: tensors by name, and what JSON can say."""

    tensors: dict[str, Tensor]
    words: dict[str, Any]


def write_checkpoint(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], words: Mapping[str, Any]) -> None:
    """Write a checkpoint under a temporary name, then rename it into place.

    Raises:
        FileFormatError: The folder does not exist or cannot be written.
    """
    from safetensors.torch import save as to_bytes

    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    described = json.dumps({"version": _VERSION, **words})
    write_whole(Path(path), to_bytes(whole, metadata={_KEY: described}))


def read_checkpoint(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> Saved | None:
    """Return what a checkpoint holds, or None if there is no such file.

    Args:
        path: The file.
        settings: What JSON can say of the settings of the run that wants to go on; the file's must be the same.

    Raises:
        FileFormatError: Not a checkpoint, damaged, or of another version.
        ParameterError: It belongs to a run with other settings or data; the message names them.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            words = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        version, known = words["version"], words["settings"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FileFormatError(
            f"{path} is no complete checkpoint of dsc.learn ({error}); give another path, or remove the file"
        ) from error
    if version != _VERSION:
        raise FileFormatError(f"{path} has version {version!r}; expected {_VERSION}: remove it and learn anew")
    wanted = json.loads(json.dumps(dict(settings)))
    if known != wanted:
        names = [name for name in wanted if known.get(name) != wanted[name]] or sorted(set(known) - set(wanted))
        shown = ", ".join(f"{name} {known.get(name)!r} there and {wanted.get(name)!r} here" for name in names[:3])
        raise ParameterError(
            f"checkpoint {path} belongs to another run: {shown}; expected the same settings and data: give another "
            "path, or remove the file"
        )
    return Saved(tensors, words)


def pack_engine(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return all that an engine knows, as tensors and words."""
    vector, caution = engine.coder.state()
    tensors = {"rows": engine.rows, "weight": engine.dictionary.weight.detach(), "idle": engine.idle}
    if vector is not None:
        tensors["vector"] = vector
    if engine.total is not None:
        total = engine.total
        tensors |= {"gram": total.gram, "cross": total.cross, "nonzeros": total.nonzeros}
        sums = [total.energy, total.penalty, total.entries, total.samples]
        tensors["sums"] = torch.tensor(sums, dtype=torch.float64)
    return tensors, {"caution": caution, "visits": engine.visits}


def unpack_engine(engine: Engine, saved: Saved) -> None:
    """Bring an engine to the state that `pack_engine` saw."""
    tensors = saved.tensors
    engine.rows = tensors["rows"]
    device = engine.dictionary.device
    engine.dictionary = engine.dictionary.with_weight(tensors["weight"].to(device))
    engine.idle, engine.visits = tensors["idle"], int(saved.words["visits"])
    vector = tensors.get("vector")
    engine.coder.restore(None if vector is None else vector.to(device), float(saved.words["caution"]))
    if "gram" in tensors:
        energy, penalty, entries, samples = tensors["sums"].tolist()
        sums = (tensors["gram"], tensors["cross"], energy, penalty, tensors["nonzeros"])
        engine.total = Statistics(*sums, entries, samples)


def pack_parts(parts: list[Part], deep: bool) -> dict[str, Tensor]:
    """Return the codes of all parts, what filled their holes, and for deeper layers their signals."""
    tensors: dict[str, Tensor] = {}
    for k, part in enumerate(parts):
        if deep and isinstance(part.source, SparseCodes):
            tensors |= _pack_codes(f"part{k}.source", part.source)
        if part.codes is not None:
            tensors |= _pack_codes(f"part{k}.codes", part.codes)
        if part.filled is not None:
            tensors[f"part{k}.filled"] = part.filled
    return tensors


def unpack_parts(parts: list[Part], saved: Saved, deep: bool) -> list[Part]:
    """Return parts in the state that `pack_parts` saw; statistics are computed again from the codes, to the same bits.

    Args:
        parts: The parts as they begin: signals and masks of the first layer.
        saved: The checkpoint.
        deep: Whether the layer at work is not the first.
    """
    restored = []
    for k, part in enumerate(parts):
        codes = _unpack_codes(f"part{k}.codes", saved)
        if deep:
            source = _unpack_codes(f"part{k}.source", saved)
            assert source is not None, "a deeper layer has the codes below for a signal"
            restored.append(Part(source, codes))
        else:
            restored.append(Part(part.source, codes, mask=part.mask, filled=saved.tensors.get(f"part{k}.filled")))
    return restored


def _pack_codes(name: str, codes: SparseCodes) -> dict[str, Tensor]:
    shape = torch.tensor(codes.shape, dtype=torch.int64)
    return {f"{name}.index": codes.index, f"{name}.values": codes.values, f"{name}.shape": shape}


def _unpack_codes(name: str, saved: Saved) -> SparseCodes | None:
    tensors = saved.tensors
    if f"{name}.index" not in tensors:
        return None
    shape = tuple(tensors[f"{name}.shape"].tolist())
    return SparseCodes(tensors[f"{name}.index"], tensors[f"{name}.values"], shape)
