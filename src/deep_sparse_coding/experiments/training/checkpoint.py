"""Checkpoints and logs: written whole or not at all, refused where they belong to something else, repaired."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..._version import __version__
from ...errors import FileFormatError, ParameterError
from ...files import write_whole
from ..data import LabelledImages, SegmentedImages
from ..store import differences, flatten
from .samples import targets_of
from .settings import PenaltySettings, TrainSettings

_FORMAT = 1
CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
_SHOWN = 5


def identity(
    model: nn.Module,
    data: LabelledImages | SegmentedImages,
    task: str,
    settings: TrainSettings,
    penalty: PenaltySettings,
    seed: int,
    world: int,
) -> dict[str, Any]:
    """Return all that a run's weights depend on, flat: two runs with the same go to the same weights."""
    weights = {
        f"model.{name}": f"{'x'.join(map(str, value.shape)) or 'number'} {value.dtype}"
        for name, value in model.state_dict().items()
    }
    return {
        "task": task,
        "seed": seed,
        "processes": world,
        "data": _digest(data),
        **{f"train.{key}": value for key, value in flatten(settings).items() if key != "tensorboard"},
        **{f"penalty.{key}": value for key, value in flatten(penalty).items()},
        "model": type(model).__name__,
        **weights,
        "version": __version__,
        "torch": str(torch.__version__),
    }


def _digest(data: LabelledImages | SegmentedImages) -> str:
    digest = hashlib.sha256(json.dumps([list(data.images.shape), list(data.classes)]).encode())
    for tensor in (data.images, targets_of(data)):
        digest.update(tensor.contiguous().numpy().data)
    return f"{len(data)} samples, {digest.hexdigest()[:16]}"


def save_checkpoint(folder: Path, belongs: Mapping[str, Any], state: Mapping[str, Any]) -> int:
    """Write a checkpoint in the place of the last one, and return its size in bytes.

    Raises:
        FileFormatError: The disk is full, or the folder cannot be written; the last checkpoint stays as it was.
    """
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "identity": dict(belongs), **state}, buffer)
    write_whole(folder / CHECKPOINT, buffer.getvalue())
    return buffer.tell()


def load_checkpoint(folder: Path, belongs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the last checkpoint of a folder, on the CPU; None if there is none. Nothing in it is run.

    Raises:
        FileFormatError: It is damaged, not one of ours, or of another version.
        ParameterError: It belongs to another model, other settings or other data; the message names what differs.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch.load raise whatever its bytes happen to ask for
        raise FileFormatError(
            f"{path} is no checkpoint that can be read ({str(error).splitlines()[0] if str(error) else error!r}); "
            "delete it to begin anew"
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise FileFormatError(
            f"{path} has format {found!r}; expected {_FORMAT}, a checkpoint that this version wrote: delete it to "
            "begin anew"
        )
    unlike = differences(content["identity"], belongs)
    if unlike:
        told = [f"{name}: there {old!r}, now {new!r}" for name, (old, new) in unlike.items()]
        more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        raise ParameterError(
            f"{path} belongs to another training ({'; '.join(told[:_SHOWN])}{more}); use the model, data and settings "
            "that are there, or another folder"
        )
    return content


def repair_log(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """Return the lines of the first so many epochs, and drop what a killed run left behind them.

    Raises:
        FileFormatError: A line of one of these epochs is missing or damaged.
    """
    path = folder / LOG
    content = path.read_bytes() if path.exists() else b""
    lines: list[dict[str, Any]] = []
    for text in content.split(b"\n"):
        if len(lines) == epochs:
            break
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or line.get("epoch") != len(lines) + 1:
            break
        lines.append(line)
    if len(lines) < epochs:
        raise FileFormatError(
            f"{path} holds {len(lines)} whole lines, and the checkpoint beside it {epochs} epochs; expected a line for "
            "each: delete both to begin anew"
        )
    whole = b"".join(_encoded(line) for line in lines)
    if whole != content:
        write_whole(path, whole)
    return lines


def append_line(folder: Path, line: Mapping[str, Any]) -> None:
    """Write one line behind the log, through to the disk.

    Raises:
        FileFormatError: The disk is full, or the folder cannot be written.
    """
    path = folder / LOG
    try:
        with open(path, "ab") as file:
            file.write(_encoded(line))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise FileFormatError(f"cannot write {path} ({error}); expected a folder with room to write") from error


def _encoded(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, allow_nan=False).encode() + b"\n"
