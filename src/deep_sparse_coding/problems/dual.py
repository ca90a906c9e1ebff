"""Dual points of the standard form: how far a residual must be scaled to be feasible, and the gap it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.errors import UnsupportedError

from .base import StandardForm, flat_sum, inner, penalty, squared_norm
from .operators import Blocks

_LARGEST_SCALING = 10.0
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class DualPoint:
    """A feasible point of the dual ``max ½‖b‖² - ½‖b - θ‖²  s.t. |a_iᵀθ| ≤ w_i``, and what it proves about codes x.

    Attributes:
        residual: ``r = b - A x``.
        theta: ``θ = α r`` (with unpenalized atoms: of r's part orthogonal to them).
        theta_correlation: ``Aᵀ θ``.
        gap: ``P(x) - D(θ) = ½‖r - θ‖² + Σ (w_i|x_i| - x_i a_iᵀθ)`` per sample, every term at or above zero.
    """

    residual: Blocks
    theta: Blocks
    theta_correlation: Blocks
    gap: Tensor


def dual_point(form: StandardForm, codes: Blocks) -> DualPoint:
    """Return ``θ = α r`` with ``α = ⟨b, r⟩/‖r‖²`` clipped to the feasible interval, and the gap.

    Nothing of the size of ``½‖b‖²`` cancels in the gap (statement G5 of docs/theory.md).

    Args:
        form: The problem, in the precision in which to compute.
        codes: x, in the same precision.

    Source: G5 of docs/theory.md; dual scaling as in Ndiaye, Fercoq, Gramfort & Salmon 2017.
    """
    residual = form.residual(codes)
    free = _unpenalized(form, codes)
    ray, ray_correlation = _orthogonal_part(form, residual, free)
    norm2 = squared_norm(ray)
    alpha = torch.where(norm2 > 0, inner(form.data, ray) / norm2.clamp_min(torch.finfo(norm2.dtype).tiny), 0.0)
    low, high = _feasible_interval(form, ray_correlation, free)
    if free is not None:
        # Orthogonality to unpenalized atoms holds up to rounding of r: scaling up what is only rounding would lose it.
        alpha = alpha.clamp(-_LARGEST_SCALING, _LARGEST_SCALING)
    alpha = torch.minimum(torch.maximum(alpha, low), high)
    theta = tuple(_per_sample(alpha, r) * r for r in ray)
    theta_correlation = tuple(_per_sample(alpha, c) * c for c in ray_correlation)
    difference = tuple(r - t for r, t in zip(residual, theta, strict=True))
    gap = 0.5 * squared_norm(difference) + _complementarity(form, codes, theta_correlation)
    return DualPoint(residual, theta, theta_correlation, gap)


def largest_ratio(form: StandardForm) -> Tensor:
    """Return ``max_i |a_iᵀ b| / w_i`` over the penalized entries, per sample: the lam_max of a form with lam = 1."""
    form = form.cast(torch.float64)
    everywhere = tuple(torch.full_like(x, 1.0) for x in form.zeros())
    _, correlation = _orthogonal_part(form, form.data, _unpenalized(form, everywhere))
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


def _feasible_interval(form: StandardForm, correlation: Blocks, free: Blocks | None) -> tuple[Tensor, Tensor]:
    """Return the interval of α with ``|α a_iᵀr| ≤ w_i`` for all i (non-negative codes: ``α a_iᵀr ≤ w_i``)."""
    batch = form.batch
    high = correlation[0].new_full((batch,), math.inf)
    low = -high
    for j, (w, c) in enumerate(zip(form.weights, correlation, strict=True)):
        limit = w / c.abs()
        # 0/0 binds nothing, and neither do atoms that were projected out.
        limit = limit.nan_to_num(nan=math.inf, posinf=math.inf).expand_as(c)
        limit = limit if free is None else torch.where(free[j], math.inf, limit)
        if form.nonnegative:
            upper = torch.where(c > 0, limit, math.inf).flatten(1)
            lower = torch.where(c < 0, -limit, -math.inf).flatten(1)
        else:
            upper, lower = limit.flatten(1), -limit.flatten(1)
        if upper.shape[1]:
            high = torch.minimum(high, upper.amin(1))
            low = torch.maximum(low, lower.amax(1))
    return low, high


def _unpenalized(form: StandardForm, codes: Blocks) -> Blocks | None:
    """Return the entries whose weight of 0 asks for ``a_iᵀθ = 0``; None if there are none.

    Non-negative codes ask for it only where they are in use; elsewhere ``a_iᵀθ ≤ 0`` is enough.
    """
    if not any(bool((w == 0).any()) for w in form.weights):
        return None
    pairs = zip(form.weights, codes, strict=True)
    return tuple((w == 0) & ((x > 0) if form.nonnegative else torch.ones_like(x, dtype=torch.bool)) for w, x in pairs)


def _orthogonal_part(form: StandardForm, vector: Blocks, free: Blocks | None) -> tuple[Blocks, Blocks]:
    """Return the part of a vector orthogonal to the unpenalized atoms in use, and its correlations.

    A weight of zero asks for ``a_iᵀθ = 0`` exactly, which scaling alone cannot reach. Only dense forms hold zeros.
    """
    if free is None:
        return vector, form.operator.analyze(vector)
    signal = vector[0].clone()
    shared = form.operator.matrix()
    patterns, which = torch.unique(free[0], dim=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        rows = (which == index).nonzero().flatten()
        # With a mask per sample every sample has a matrix of its own.
        for group in [rows] if shared is not None else rows.split(1):
            matrix = shared if shared is not None else form.operator.select(group).matrix()
            if matrix is None:
                raise UnsupportedError("weights of 0 (unpenalized atoms) are certified for dense dictionaries only")
            if bool(pattern.any()):
                u, s, _ = torch.linalg.svd(matrix[:, pattern], full_matrices=False)
                basis = u[:, s > s.max() * max(matrix.shape) * torch.finfo(s.dtype).eps]
                signal[group] = signal[group] - (signal[group] @ basis) @ basis.T
    (correlation,) = form.operator.analyze((signal,))
    # What is left at unpenalized atoms not in use is rounding if it is this small, and then it binds nothing.
    room = _ROUNDING * squared_norm((signal,)).sqrt()[:, None] * form.operator.squared_norms()[0].sqrt()
    small = (form.weights[0] == 0) & (correlation.abs() <= room)
    return (signal,), (torch.where(free[0] | small, 0.0, correlation),)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
