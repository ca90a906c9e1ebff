"""Dictionaries to begin from: of the shape that is to be learned, scaled to unit atoms."""

from __future__ import annotations

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import Cascade, Dictionary
from deep_sparse_coding.errors import DictionaryError

from .initial import template
from .inputs import LayerSettings


def check_start(
    start: object, layers: tuple[LayerSettings, ...], signal: Tensor, boundary: str
) -> tuple[Dictionary, ...]:
    """Return copies of the layers to begin from, atoms scaled to unit norm; nothing if there is no start."""
    if start is None:
        return ()
    if isinstance(start, Cascade):
        given = start.layers
    elif isinstance(start, Dictionary):
        given = (start,)
    else:
        raise DictionaryError(f"start is a {type(start).__name__}; expected a dictionary or a Cascade")
    kinds = []
    channels = signal.shape[1]
    for layer in layers:
        kinds.append(template(layer.atoms, channels, layer.size, layer.stride, boundary, signal.dtype, signal.device))
        channels = layer.atoms
    if [repr(kind) for kind in kinds] != [repr(layer) for layer in given]:
        raise DictionaryError(
            f"start is {list(given)!r}; expected {kinds!r}, the layers to be learned: give atoms=, size=, stride= and "
            "boundary= of the start"
        )
    copies = []
    for layer in given:
        norms = layer.column_norms()
        if not bool((torch.isfinite(norms) & (norms > 0)).all()):
            raise DictionaryError("start has atoms that are zero or not finite; expected atoms that can be scaled")
        axis = 0 if layer.event_axes > 1 else 1
        shape = [-1 if a == axis else 1 for a in range(layer.weight.ndim)]
        scaled = layer.weight.detach().double() / norms.reshape(shape)
        copies.append(layer.with_weight(scaled.to(dtype=signal.dtype, device=signal.device)))
    return tuple(copies)
