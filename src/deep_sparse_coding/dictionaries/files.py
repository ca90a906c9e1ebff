"""Dictionaries as files: safetensors with a JSON description in the header, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from ..errors import DSCError, FileFormatError
from ..files import write_whole
from .base import Dictionary
from .cascade import Cascade, as_cascade
from .coherence import require_sound_atoms
from .convolutional import ConvDictionary
from .dense import DenseDictionary

# One entry of metadata holds the whole description: safetensors writes several in no fixed order.
_KEY = "deep_sparse_coding.dictionary"
_VERSION = 1


def save(model: Dictionary | Cascade, path: str | os.PathLike[str]) -> Path:
    """Write a dictionary or a cascade to `path`: to a temporary name first, then renamed into place.

    Args:
        model: What to write.
        path: Where; a file that is there is replaced, its folder must exist. A symbolic link is replaced too, and what
            it points to is left alone.

    Returns:
        The path.

    Raises:
        DictionaryError: An atom is zero or not finite, so that the file could not be loaded again.
        FileFormatError: The folder does not exist or cannot be written.

    Source: the safetensors format, https://github.com/huggingface/safetensors.
    """
    from safetensors.torch import save as to_bytes

    path = Path(path)
    cascade = as_cascade(model)
    for layer in cascade.layers:
        require_sound_atoms(layer)
    layers = [_describe(layer) for layer in cascade.layers]
    description = {"version": _VERSION, "cascade": isinstance(model, Cascade), "layers": layers}
    # Clones: a dictionary that stands in two layers is written twice.
    tensors = {
        f"layer{j}": layer.weight.detach().cpu().contiguous().clone() for j, layer in enumerate(cascade.layers, start=1)
    }
    write_whole(path, to_bytes(tensors, metadata={_KEY: json.dumps(description)}))
    return path


def load(path: str | os.PathLike[str]) -> Dictionary | Cascade:
    """Read what `save` wrote. Never unpickles: the file holds numbers and a JSON description, nothing that runs.

    Args:
        path: The file.

    Returns:
        The dictionary or cascade, on the CPU.

    Raises:
        FileFormatError: No such file, not a safetensors file, damaged, not one of ours, or of a later version.

    Source: the safetensors format, https://github.com/huggingface/safetensors.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file; expected one that dsc.save wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} is no complete safetensors file ({error}); save it again") from error
    if _KEY not in metadata:
        raise FileFormatError(
            f"{path} is a safetensors file with metadata {sorted(metadata)}; expected {_KEY!r}, which dsc.save writes: "
            "load it with safetensors and build a dictionary of its tensors"
        )
    try:
        description = json.loads(metadata[_KEY])
        version = description["version"]
        if type(version) is not int or version < 1:
            raise FileFormatError(f"{path} has version {version!r}; expected a whole number from 1 to {_VERSION}")
        if version > _VERSION:
            raise FileFormatError(
                f"{path} has version {version}; this library reads up to {_VERSION}: update deep_sparse_coding"
            )
        entries = list(description["layers"])
        if sorted(tensors) != sorted(f"layer{j}" for j in range(1, len(entries) + 1)):
            raise FileFormatError(f"{path} holds tensors {sorted(tensors)} for {len(entries)} layer(s); save it again")
        layers = [_build(entry, tensors[f"layer{j}"]) for j, entry in enumerate(entries, start=1)]
        whole = description["cascade"]
        if type(whole) is not bool:
            raise FileFormatError(f"{path} has cascade {whole!r}; expected true or false: save it again")
        if not whole and len(layers) != 1:
            raise FileFormatError(f"{path} describes one dictionary and holds {len(layers)}; save it again")
        return Cascade(layers) if whole else layers[0]
    except FileFormatError:
        raise
    except (DSCError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise FileFormatError(
            f"{path} has a description that does not fit its tensors ({error}); save it again"
        ) from error


def _describe(layer: Dictionary) -> dict[str, Any]:
    if isinstance(layer, ConvDictionary):
        return {"kind": "conv", "stride": list(layer.stride), "boundary": layer.boundary}
    return {"kind": "dense"}


def _build(entry: dict[str, Any], weight: torch.Tensor) -> Dictionary:
    kind = entry["kind"]
    if kind == "conv":
        stride = entry["stride"]
        if not isinstance(stride, list) or not all(type(q) is int for q in stride):
            raise FileFormatError(f"the file describes a stride of {stride!r}; expected a list of whole numbers")
        return ConvDictionary(weight, stride=stride, boundary=entry["boundary"])
    if kind == "dense":
        return DenseDictionary(weight)
    raise FileFormatError(f"the file describes a dictionary of kind {kind!r}; expected 'dense' or 'conv'")
