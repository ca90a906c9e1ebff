"""Dual points of the standard form: how far a residual must be scaled to be feasible, and the gap it gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import StandardForm, flat_sum, inner, penalty, squared_norm
from .operators import Blocks

_LARGEST_SCALING = 10.0


@dataclass(frozen=True, eq=False)
class DualPoint:
    """A feasible point of the dual ``max ½‖b‖² - ½‖b - θ‖²  s.t. |a_iᵀθ| ≤ w_i``, and what it proves about codes x.

    Attributes:
        residual: ``r = b - A x``.
        correlation: ``Aᵀ r``.
        theta: ``θ = α r`` (with unpenalized atoms: of r's part orthogonal to them).
        theta_correlation: ``Aᵀ θ``.
        gap: ``P(x) - D(θ) = ½‖r - θ‖² + Σ (w_i|x_i| - x_i a_iᵀθ)`` per sample, every term at or above zero.
    """

    residual: Blocks
    correlation: Blocks
    theta: Blocks
    theta_correlation: Blocks
    gap: Tensor


def dual_point(form: StandardForm, codes: Blocks, slack: float = 0.0) -> DualPoint:
    """Return ``θ = α r`` with ``α = ⟨b, r⟩/‖r‖²`` clipped to the feasible interval, and the gap.

    Nothing of the size of ``½‖b‖²`` cancels in the gap (statement G5 of docs/theory.md).

    Args:
        form: The problem, in the precision in which to compute.
        codes: x, in the same precision.
        slack: Relative rounding of a correlation, ``n·eps``: the scaling then leaves room for it.

    Source: G5 of docs/theory.md; dual scaling as in Ndiaye, Fercoq, Gramfort & Salmon 2017.
    """
    residual = form.residual(codes)
    correlation = form.operator.analyze(residual)
    ray, ray_correlation = _penalized_part(form, residual, correlation)
    norm2 = squared_norm(ray)
    alpha = torch.where(norm2 > 0, inner(form.data, ray) / norm2.clamp_min(torch.finfo(norm2.dtype).tiny), 0.0)
    low, high = _feasible_interval(form, ray_correlation, slack * norm2.sqrt() if slack else None)
    if ray is not residual:
        # Orthogonality to unpenalized atoms holds up to rounding of r: scaling up what is only rounding would lose it.
        alpha = alpha.clamp(-_LARGEST_SCALING, _LARGEST_SCALING)
    alpha = torch.minimum(torch.maximum(alpha, low), high)
    theta = tuple(_per_sample(alpha, r) * r for r in ray)
    theta_correlation = tuple(_per_sample(alpha, c) * c for c in ray_correlation)
    difference = tuple(r - t for r, t in zip(residual, theta, strict=True))
    gap = 0.5 * squared_norm(difference) + _complementarity(form, codes, theta_correlation)
    return DualPoint(residual, correlation, theta, theta_correlation, gap)


def largest_ratio(form: StandardForm) -> Tensor:
    """Return ``max_i |a_iᵀ b| / w_i`` over the penalized entries, per sample: the lam_max of a form with lam = 1."""
    form = form.cast(torch.float64)
    data, correlation = _penalized_part(form, form.data, form.operator.analyze(form.data))
    del data
    ratios = []
    for c, w in zip(correlation, form.weights, strict=True):
        size = c.clamp_min(0) if form.nonnegative else c.abs()
        ratios.append(torch.where((w > 0) & torch.isfinite(w), size / w, 0.0).flatten(1))
    joined = torch.cat(ratios, 1)
    return joined.amax(1) if joined.shape[1] else joined.sum(1)


def _complementarity(form: StandardForm, codes: Blocks, theta_correlation: Blocks) -> Tensor:
    """Return ``Σ (w_i|x_i| - x_i a_iᵀθ)``, each term rounded up to zero: feasibility makes it non-negative."""
    terms = []
    for w, x, c in zip(form.weights, codes, theta_correlation, strict=True):
        terms.append(torch.where((x == 0) | (w == 0), 0.0, (w * x.abs() - x * c).clamp_min(0)))
    violated = penalty(form, codes)  # inf where x ≥ 0 is violated or a forbidden atom is used
    return flat_sum(tuple(terms)) + torch.where(torch.isfinite(violated), 0.0, violated)


def _feasible_interval(form: StandardForm, correlation: Blocks, slack: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the interval of α with ``|α a_iᵀr| ≤ w_i`` for all i (non-negative codes: ``α a_iᵀr ≤ w_i``)."""
    batch = form.batch
    high = correlation[0].new_full((batch,), float("inf"))
    low = -high
    norms = form.operator.squared_norms() if slack is not None else (None,) * len(correlation)
    for w, c, norm2 in zip(form.weights, correlation, norms, strict=True):
        room = 0.0 if slack is None or norm2 is None else _per_sample(slack, c) * norm2.sqrt()
        # 0/0 leaves α free, as does a weight of 0: those atoms were projected out.
        limit = torch.where(w == 0, float("inf"), w / (c.abs() + room)).nan_to_num(
            nan=float("inf"), posinf=float("inf")
        )
        limit = limit.expand_as(c)
        if form.nonnegative:
            upper = torch.where(c + room > 0, limit, float("inf")).flatten(1)
            lower = torch.where(c - room < 0, -limit, -float("inf")).flatten(1)
        else:
            upper, lower = limit.flatten(1), -limit.flatten(1)
        if upper.shape[1]:
            high = torch.minimum(high, upper.amin(1))
            low = torch.maximum(low, lower.amax(1))
    return low, high


def _penalized_part(form: StandardForm, residual: Blocks, correlation: Blocks) -> tuple[Blocks, Blocks]:
    """Return the part of r orthogonal to the unpenalized atoms, and its correlations; r itself if there are none.

    A weight of zero asks for ``a_iᵀθ = 0`` exactly, which scaling alone cannot reach. Only dense forms hold zeros.
    """
    free = form.weights[0] == 0
    if not bool(free.any()):
        return residual, correlation
    matrix = form.operator.matrix()
    if matrix is None:
        raise NotImplementedError("unpenalized atoms are projected out for dense dictionaries with a shared mask only")
    signal = residual[0].clone()
    patterns, which = torch.unique(free.expand(form.batch, *form.code_shapes[0]), dim=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        if bool(pattern.any()):
            u, s, _ = torch.linalg.svd(matrix[:, pattern], full_matrices=False)
            basis = u[:, s > s.max() * max(matrix.shape) * torch.finfo(s.dtype).eps]
            rows = which == index
            signal[rows] -= (signal[rows] @ basis) @ basis.T
    projected = signal @ matrix
    projected = torch.where(free, 0.0, projected)
    return (signal,), (projected,)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
