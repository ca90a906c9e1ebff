"""How many non-zeros lie near each other: stripes of a layer, and the places that atoms of the next layer cover."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..errors import DictionaryError
from .base import Dictionary
from .convolutional import ConvDictionary

_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def stripe_sparsity(dictionary: Dictionary, codes: Tensor) -> Tensor:
    """Return ``‖x‖_{0,∞}`` per sample: the most non-zeros in a stripe, all codes within L positions of one.

    For dense dictionaries it is the number of non-zeros.

    Args:
        dictionary: The dictionary of the codes.
        codes: ``(*batch, atoms, ...)``.

    Returns:
        ``(*batch,)``, int64.

    Raises:
        DictionaryError: Not a dictionary; of a cascade give one layer.
        DSCError: Codes that do not fit.

    Source: Papyan, Sulam & Elad 2017; section 0 of docs/theory.md.
    """
    codes = _require_layer(dictionary).check_codes(codes)
    if not isinstance(dictionary, ConvDictionary):
        return (codes != 0).sum(-1)
    window = tuple(2 * lag + 1 for lag in dictionary.lags)
    reach = tuple((lag, lag) for lag in dictionary.lags)
    return _largest_window(codes, dictionary, window, (1,) * dictionary.axes, reach)


def place_sparsity(dictionary: Dictionary, codes_below: Tensor) -> Tensor:
    """Return ``p_{j-1}`` per sample: the most non-zeros of ``x_{j-1}`` under one atom of layer j.

    Args:
        dictionary: The dictionary of layer j.
        codes_below: Its signal, the codes of layer j - 1, ``(*batch, channels, ...)``.

    Returns:
        ``(*batch,)``, int64.

    Raises:
        DictionaryError: Not a dictionary; of a cascade give one layer.
        DSCError: Codes that do not fit.

    Source: section 0 and statement N2 of docs/theory.md.
    """
    codes_below = _require_layer(dictionary).check_signal(codes_below)
    if not isinstance(dictionary, ConvDictionary):
        return (codes_below != 0).sum(-1)
    return _largest_window(codes_below, dictionary, dictionary.kernel_size, dictionary.stride, dictionary.padding)


def covering_bound(below: Dictionary, dictionary: Dictionary, stripes: int) -> int:
    """Return the bound of ``p_{j-1}`` by stripes of layer j - 1: cover a place of layer j with stripes.

    ``p_{j-1} ≤ Π ⌈k_j/(2L_{j-1}+1)⌉ · ‖x_{j-1}‖_{0,∞}`` (dense: the count itself). Where places wrap around a grid
    whose stripes do not, a place falls into two pieces per axis, which take one stripe more.

    Args:
        below: The dictionary of layer j - 1.
        dictionary: The dictionary of layer j.
        stripes: ``‖x_{j-1}‖_{0,∞}``.

    Source: section 0 of docs/theory.md.
    """
    if not isinstance(dictionary, ConvDictionary) or not isinstance(below, ConvDictionary):
        return stripes
    torn = dictionary.boundary == "circular" and below.boundary != "circular"
    covers = math.prod(
        -(-k // (2 * lag + 1)) + (torn and k > 1) for k, lag in zip(dictionary.kernel_size, below.lags, strict=True)
    )
    return min(covers * stripes, dictionary.analysis_terms)


def _require_layer(dictionary: object) -> Dictionary:
    if not isinstance(dictionary, Dictionary):
        raise DictionaryError(
            f"dictionary is a {type(dictionary).__name__}; expected a dictionary: of a cascade take .layers[j]"
        )
    return dictionary


def _largest_window(
    codes: Tensor,
    dictionary: ConvDictionary,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    reach: tuple[tuple[int, int], ...],
) -> Tensor:
    """Return the largest count of non-zeros, over all channels, in windows that reach over the border by `reach`.

    Before and after, per axis; where the second is negative the last entries lie in no window.
    """
    axes = dictionary.axes
    batch = codes.shape[: codes.ndim - axes - 1]
    counts = (codes != 0).sum(-axes - 1, dtype=torch.float64).reshape(math.prod(batch), 1, *codes.shape[-axes:])
    for axis, (n, w, (low, high)) in enumerate(zip(counts.shape[2:], window, reach, strict=True), start=2):
        if dictionary.boundary == "circular":
            # A window that is longer than the ring holds every position once.
            span = torch.arange(-low, n - low + w - 1, device=codes.device) % n
            counts = (
                counts.index_select(axis, span)
                if w <= n
                else counts.sum(axis, keepdim=True).repeat_interleave(w, axis) / w
            )
        elif low or high:
            counts = F.pad(counts, [0, 0] * (counts.ndim - 1 - axis) + [low, high])
    sums = _POOL[axes](counts, window, stride) * math.prod(window)
    return sums.flatten(1).amax(1).round().long().reshape(batch)
