"""What a bound on computed codes takes for granted about signals, per layer, checked and in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from deep_sparse_coding.checks import per_layer, require_integer, require_number
from deep_sparse_coding.dictionaries import Cascade, ConvDictionary, Dictionary, as_cascade
from deep_sparse_coding.dictionaries.stripes import covering_bound
from deep_sparse_coding.errors import ParameterError


@dataclass(frozen=True)
class LayerHypotheses:
    """What is assumed of ``x_j`` and of ``x_{j-1} - D_j x_j``.

    Attributes:
        layer: j, counted from 1.
        sparsity: The most non-zeros of ``x_j`` in a stripe (dense: in all).
        amplitude: Bound of ``‖x_j‖_∞``.
        residual: Bound of ``‖x_{j-1} - D_j x_j‖_2``, for convolutions under any one atom; for j = 1 with the noise.
        place_sparsity: The most non-zeros of ``x_{j-1}`` under one atom of layer j; None for j = 1.
        nonnegative: Whether ``x_j ≥ 0``.
    """

    layer: int
    sparsity: int
    amplitude: float
    residual: float
    place_sparsity: int | None
    nonnegative: bool

    def sentences(self, dictionary: Dictionary) -> list[str]:
        """Return the hypotheses in words, one sentence each."""
        j = self.layer
        conv = isinstance(dictionary, ConvDictionary)
        below = "the signal" if j == 1 else f"x_{j - 1}"
        where = " under every atom" if conv else ""
        exact = self.residual == 0
        told = [
            f"{below} = D_{j} x_{j}, up to rounding"
            if exact
            else f"‖{below} - D_{j} x_{j}‖_2 ≤ {self.residual:.6g}{where}",
            f"{f'every stripe of x_{j}' if conv else f'x_{j}'} has at most {_non_zeros(self.sparsity)}",
            f"‖x_{j}‖_∞ ≤ {self.amplitude:.6g}",
        ]
        if self.nonnegative:
            told.append(f"x_{j} ≥ 0")
        if self.place_sparsity is not None and conv:
            told.append(f"at most {_non_zeros(self.place_sparsity)} of x_{j - 1} under one atom of layer {j}")
        if isinstance(dictionary, ConvDictionary) and dictionary.boundary == "circular":
            sizes = " × ".join(str(2 * k - 1) for k in dictionary.kernel_size)
            told.append(f"{below} has at least {sizes} positions, so that nothing wraps twice")
        return told


def layer_hypotheses(
    model: Dictionary | Cascade,
    *,
    sparsity: int | Sequence[int],
    amplitude: float | Sequence[float] = 1.0,
    noise: float = 0.0,
    epsilon: float | Sequence[float] = 0.0,
    place_sparsity: int | Sequence[int] | None = None,
    nonnegative: bool | Sequence[bool] = False,
) -> tuple[LayerHypotheses, ...]:
    """Return the hypotheses of every layer of a model, after checks.

    Args:
        model: A dictionary or a cascade, atoms of unit norm.
        sparsity: Non-zeros per stripe (dense: in all), for all layers or one per layer.
        amplitude: Bound of ``‖x_j‖_∞``, for all layers or one per layer.
        noise: Bound of the ℓ2 norm of the signal's noise (convolutional: under any one atom is enough).
        epsilon: Bound of ``‖x_{j-1} - D_j x_j‖_2``, for all layers or one per layer.
        place_sparsity: Non-zeros of ``x_{j-1}`` under one atom of layer j, one per layer but the deepest; None for the
            bound by covering with stripes, which is also taken where it is smaller.
        nonnegative: Whether codes are non-negative, for all layers or one per layer.

    Raises:
        ParameterError: A number out of range, too few or too many, or atoms that are not of unit norm.
    """
    cascade = as_cascade(model)
    count = len(cascade)
    for j, layer in enumerate(cascade.layers, start=1):
        _require_unit_norm(j, layer)
    stripes = [require_integer("sparsity", s, minimum=1) for s in _spread("sparsity", sparsity, count)]
    amplitudes = [
        require_number("amplitude", a, minimum=0, strict=True) for a in _spread("amplitude", amplitude, count)
    ]
    residuals = [require_number("epsilon", e, minimum=0) for e in _spread("epsilon", epsilon, count)]
    residuals[0] += require_number("noise", noise, minimum=0)
    one_sided = [_require_flag("nonnegative", flag) for flag in _spread("nonnegative", nonnegative, count)]
    places = place_counts(cascade, stripes, place_sparsity)
    return tuple(
        LayerHypotheses(j + 1, stripes[j], amplitudes[j], residuals[j], places[j], one_sided[j]) for j in range(count)
    )


def place_counts(
    cascade: Cascade, stripes: Sequence[int], place_sparsity: int | Sequence[int] | None
) -> tuple[int | None, ...]:
    """Return ``p_{j-1}`` for every layer j, None for the first: what is given, or the covering bound if it is smaller.

    Raises:
        ParameterError: A count below 1, or not one for each layer but the deepest.

    Source: section 0 of docs/theory.md.
    """
    count = len(cascade)
    places: list[int | None] = [None]
    if count == 1 and place_sparsity not in (None, (), []):
        raise ParameterError(
            f"place_sparsity is {place_sparsity}; expected None: it counts non-zeros under atoms of a second layer, "
            "and the model has one"
        )
    if place_sparsity is None:
        given: list[int | None] = [None] * (count - 1)
    else:
        given = [
            require_integer("place_sparsity", p, minimum=1)
            for p in _spread("place_sparsity", place_sparsity, count - 1)
        ]
    for j, known in enumerate(given, start=1):
        covered = covering_bound(cascade.layers[j - 1], cascade.layers[j], stripes[j - 1])
        places.append(covered if known is None else min(known, covered))
    return tuple(places)


def _non_zeros(count: int) -> str:
    return f"{count} non-zero{'' if count == 1 else 's'}"


def _spread(name: str, value: object, layers: int) -> tuple[object, ...]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = tuple(value)
    if name == "place_sparsity" and isinstance(value, tuple) and len(value) != layers:
        raise ParameterError(
            f"place_sparsity has {len(value)} entries; expected {layers}: one for each layer but the deepest"
        )
    return per_layer(name, value, layers)


def _require_flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ParameterError(f"{name} is {value!r}; expected True or False, or one of them per layer")
    return value


def _require_unit_norm(j: int, layer: Dictionary) -> None:
    norms = layer.column_norms()
    off = cast(torch.Tensor, (norms - 1).abs())
    if float(off.max()) > 64 * torch.finfo(layer.dtype).eps:
        worst = int(off.argmax())
        raise ParameterError(
            f"atom {worst} of layer {j} has norm {float(norms[worst]):.12g}; expected atoms of unit norm up to the "
            f"rounding of {layer.dtype}: build the dictionary with normalize=True, after any conversion"
        )
