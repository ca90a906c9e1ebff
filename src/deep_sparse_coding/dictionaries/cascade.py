"""A cascade of dictionaries: the code of one layer is the signal of the next."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..checks import require_integer
from ..errors import DictionaryError, ParameterError
from .base import Dictionary
from .convolutional import ConvDictionary
from .dense import DenseDictionary


class Cascade(nn.Module):
    """Dictionaries ``D_1, ..., D_J`` with ``y = D_1 x_1, x_1 = D_2 x_2, ...``.

    Args:
        layers: The dictionaries, the one next to the signal first. All dense or all convolutional; the signal of layer
            j + 1 is the code of layer j, so its channels are layer j's atoms.

    Raises:
        DictionaryError: No layer, layers of different kinds, dtypes or devices, or channels that do not fit.

    Source: Li, Feng & Zhou 2024, Definition 1; Papyan, Romano & Elad 2017.
    """

    def __init__(self, layers: Sequence[Dictionary]) -> None:
        super().__init__()
        if not isinstance(layers, Iterable):
            raise DictionaryError(
                f"layers is a {type(layers).__name__}; expected a list of dictionaries: a single one goes in brackets"
            )
        layers = list(layers)
        if not layers:
            raise DictionaryError("layers is empty; expected at least one dictionary")
        for j, layer in enumerate(layers, start=1):
            if not isinstance(layer, Dictionary):
                raise DictionaryError(f"layer {j} is a {type(layer).__name__}; expected a dictionary")
        for j, (lower, upper) in enumerate(itertools.pairwise(layers), start=1):
            _require_fit(j, lower, upper)
        self._layers = nn.ModuleList(layers)

    @property
    def layers(self) -> tuple[Dictionary, ...]:
        """The dictionaries, the one next to the signal first."""
        return tuple(cast(Dictionary, layer) for layer in self._layers)

    @property
    def dtype(self) -> torch.dtype:
        """The number type of all layers."""
        return self.layers[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the atoms of all layers live."""
        return self.layers[0].device

    def __len__(self) -> int:
        return len(self._layers)

    def synthesize(self, deepest: Tensor, to: int = 0) -> Tensor:
        """Return ``D_{to+1} ··· D_J x``: the signal (``to=0``), or the code of layer `to`, that deepest codes make.

        Args:
            deepest: Codes of layer J, ``(*batch, atoms, ...)``.
            to: Which layer's code to stop at; 0 for the signal.

        Raises:
            ParameterError: No such layer.
            ShapeError: The codes do not fit.
        """
        to = require_integer("to", to, minimum=0)
        if to >= len(self):
            raise ParameterError(f"to is {to}; expected 0 (the signal) to {len(self) - 1}")
        for layer in reversed(self.layers[to:]):
            deepest = layer.synthesize(deepest)
        return deepest

    def forward(self, deepest: Tensor) -> Tensor:
        """Return the signal ``D_1 ··· D_J x`` of deepest codes."""
        return self.synthesize(deepest)

    def effective(self, layer: int | None = None) -> Tensor:
        """Return the atoms of ``D_1 ··· D_j`` as signals: what one non-zero of layer j looks like.

        Args:
            layer: j, counted from 1; the deepest if None.

        At the border, boundary "same" may cut such an atom off, or a part of it that a layer between them made.

        Returns:
            ``(atoms, d)`` for dense layers, ``(atoms, channels, K, ...)`` for convolutional ones, where K grows from
            layer to layer, ``K_j = (k_j - 1)·stride + K_{j-1}`` in the signal's entries. Norms are as they come.

        Raises:
            ParameterError: No such layer.

        Source: "Skipping layers" in G1 of docs/theory.md.
        """
        depth = len(self) if layer is None else require_integer("layer", layer, minimum=1)
        if depth > len(self):
            raise ParameterError(f"layer is {layer}; expected 1 to {len(self)}, the number of layers")
        with torch.no_grad():
            top = self.layers[depth - 1]
            atoms = top.matrix.T if isinstance(top, DenseDictionary) else top.weight
            for below in reversed(self.layers[: depth - 1]):
                # One atom alone neither wraps nor is cut, whatever the boundary of the grid that it will stand on.
                whole = below.with_boundary("valid") if isinstance(below, ConvDictionary) else below
                atoms = whole.synthesize(atoms)
        return atoms.clone()

    def cast(self, dtype: torch.dtype) -> Cascade:
        """Return this cascade with atoms of another number type, without gradients."""
        return Cascade([layer.cast(dtype) for layer in self.layers])

    def __repr__(self) -> str:
        return f"Cascade([{', '.join(repr(layer) for layer in self.layers)}])"

    def __str__(self) -> str:
        header = ("layer", "atoms", "kernel", "stride", "boundary", "coherence", "norm")
        rows: list[tuple[str, ...]] = [header]
        for j, layer in enumerate(self.layers, start=1):
            conv = isinstance(layer, ConvDictionary)
            size = "×".join(str(k) for k in (layer.channels, *(layer.kernel_size if conv else ())))
            stride = "×".join(str(q) for q in layer.stride) if conv else "–"
            rows.append(
                (
                    str(j),
                    str(layer.atoms),
                    size,
                    stride,
                    layer.boundary if conv else "–",
                    *_numbers(layer),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([f"Cascade of {len(self)} layer(s), {str(self.dtype).removeprefix('torch.')}", *lines])


def as_cascade(model: Dictionary | Cascade) -> Cascade:
    """Return `model` itself if it is a cascade, else the cascade with the one layer `model`."""
    if isinstance(model, Cascade):
        return model
    if isinstance(model, Dictionary):
        return Cascade([model])
    raise DictionaryError(f"model is a {type(model).__name__}; expected a dictionary or a Cascade")


def _numbers(layer: Dictionary) -> tuple[str, str]:
    """Return coherence and norm as printed; a layer whose atoms went bad can still be looked at."""
    try:
        coherence = "–" if layer.boundary == "same" else f"{layer.mutual_coherence():.3f}"
        norm = layer.operator_norm()
    except DictionaryError:
        return "none", "none"
    return coherence, f"{'=' if norm.exact else '≤'} {norm:.3f}"


def _require_fit(j: int, lower: Dictionary, upper: Dictionary) -> None:
    if type(lower) is not type(upper) or lower.event_axes != upper.event_axes:
        raise DictionaryError(
            f"layer {j} is {lower!r} and layer {j + 1} is {upper!r}; expected all dense, or all convolutional over the "
            "same number of axes"
        )
    if upper.channels != lower.atoms:
        raise DictionaryError(
            f"layer {j + 1} takes codes of {upper.channels} channels and layer {j} has {lower.atoms} atoms; expected "
            f"the same: build layer {j + 1} with channels={lower.atoms} (dense: {lower.atoms} rows)"
        )
    if upper.dtype != lower.dtype or upper.device != lower.device:
        raise DictionaryError(
            f"layer {j} is {lower.dtype} on {lower.device} and layer {j + 1} {upper.dtype} on {upper.device}; "
            "expected the same: use .to(...) on one of them"
        )
