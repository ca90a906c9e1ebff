"""One known support of a dense dictionary: its Babel sums, and how the other atoms look from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deep_sparse_coding.checks import per_layer
from deep_sparse_coding.dictionaries import Cascade, DenseDictionary, Dictionary
from deep_sparse_coding.errors import ParameterError, ShapeError, UnsupportedError

from .babel import check_counts
from .conditioning import factorize

_EPS = torch.finfo(torch.float64).eps


def check_supports(model: Cascade, supports: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return one mask ``(atoms,)`` per layer of a dense model.

    Raises:
        ParameterError: An empty support, or not one per layer.
        ShapeError: A support that does not fit its layer.
        UnsupportedError: A convolutional model.
    """
    if isinstance(supports, Tensor):
        supports = (supports,)
    given = per_layer("supports", tuple(supports), len(model))
    masks = []
    for j, (layer, support) in enumerate(zip(model.layers, given, strict=True)):
        if not isinstance(layer, DenseDictionary):
            raise UnsupportedError(
                "supports are given for a convolutional model; conditions for one support are offered for dense "
                "dictionaries only: pass sparsity (stripe_sparsity of the codes), or solve and use posterior"
            )
        if not isinstance(support, Tensor) or tuple(support.shape) != (layer.atoms,):
            got = tuple(support.shape) if isinstance(support, Tensor) else type(support).__name__
            raise ShapeError(f"supports[{j}] is {got}; expected a tensor of shape ({layer.atoms},): one code or mask")
        mask = (support.detach() != 0).to(layer.device)
        if not bool(mask.any()):
            raise ParameterError(f"supports[{j}] is empty; expected at least one atom in every layer")
        masks.append(mask)
    return tuple(masks)


def check_sparsity(
    model: Cascade, sparsity: int | Sequence[int] | None, masks: tuple[Tensor, ...] | None
) -> tuple[int, ...]:
    """Return the number of non-zeros per layer: that of the supports, if they are given.

    Raises:
        ParameterError: Neither is given, or a count is below 1, not one per layer, or below that of its support.
    """
    own = None if masks is None else tuple(int(mask.sum()) for mask in masks)
    if sparsity is None:
        if own is None:
            raise ParameterError("neither sparsity nor supports is given; expected one of them")
        return own
    counts = check_counts("sparsity", sparsity, len(model))
    for j, (s, size) in enumerate(zip(counts, own or counts, strict=True)):
        if s < size:
            raise ParameterError(f"sparsity[{j}] is {s} but its support has {size} atoms; expected at least {size}")
    return counts if own is None else own


def support_sums(layer: Dictionary, mask: Tensor) -> tuple[float, float]:
    """Return ``a(S) = max_{i∈S} Σ_{l∈S,l≠i}|G_il|`` and ``b(S) = max_{i∉S} Σ_{l∈S}|G_il|`` of normalized atoms."""
    matrix = layer.weight.detach().double()
    norms = layer.column_norms()
    gram = (matrix.T @ matrix / (norms[:, None] * norms[None, :])).abs().fill_diagonal_(0.0)
    sums = gram[:, mask].sum(1)
    return float(sums[mask].max()), float(sums[~mask].max()) if int(mask.sum()) < layer.atoms else 0.0


@dataclass(frozen=True, eq=False)
class Seen:
    """``D_S^† d_i`` for all atoms off a support S, computed, with bounds of the errors.

    Attributes:
        values: One column per atom off S, ``(size, others)``.
        errors: Per column a bound on the ℓ2 norm of its error; inf if D_S is not proved injective.
    """

    values: np.ndarray
    errors: np.ndarray


def seen_from(layer: Dictionary, mask: Tensor) -> Seen:
    """Return ``D_S^† d_i`` for ``i ∉ S``.

    The computed X errs by ``G_S^{-1}D_S^T(D_S X - D_{S^c})``, of norm at most that of the last factors over σ_min².

    Args:
        layer: A dense dictionary.
        mask: S, ``(atoms,)``.
    """
    matrix = layer.weight.detach().double()
    inside, outside = matrix[:, mask].cpu().numpy(), matrix[:, ~mask].cpu().numpy()
    d, size = inside.shape
    others = outside.shape[1]
    factor = factorize(inside, d)
    if factor.squared <= 0:
        return Seen(np.zeros((size, others)), np.full(others, math.inf))
    solved = factor.solve(inside.T @ outside)
    solved = solved + factor.solve(inside.T @ (outside - inside @ solved))
    rest = outside - inside @ solved
    defect = inside.T @ rest
    # Rounding of the residual, then of its correlations, by column.
    trace = float((inside**2).sum())
    absolute = abs(inside) @ abs(solved) + abs(outside)
    rounding = math.sqrt(trace) * _EPS * ((size + 2) * (absolute**2).sum(0) ** 0.5 + (d + 2) * (rest**2).sum(0) ** 0.5)
    return Seen(solved, ((defect**2).sum(0) ** 0.5 + rounding) / factor.squared)
