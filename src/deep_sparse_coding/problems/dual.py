"""Dual points of the standard form: how far a residual must be scaled to be feasible, and the gap it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.errors import UnsupportedError

from .base import StandardForm, inner, per_sample, squared_norm, sum_rows, used_entries
from .operators import Blocks

_LARGEST_SCALING = 10.0
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class DualPoint:
    """A feasible point of the dual ``max ½‖b‖² - ½‖b - θ‖²  s.t. |a_iᵀθ| ≤ w_i``, and what it proves about codes x.

    Attributes:
        residual: ``r = b - A x``.
        theta: ``θ = α r`` (with unpenalized atoms: of r's part orthogonal to them).
        gap: ``P(x) - D(θ) = ½‖r - θ‖² + Σ (w_i|x_i| - x_i a_iᵀθ)`` per sample, every term at or above zero.
    """

    residual: Blocks
    theta: Blocks
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
    low, high = _feasible_interval(form, ray_correlation)
    if free is not None:
        # Orthogonality to unpenalized atoms holds up to rounding of r: scaling up what is only rounding would lose it.
        alpha = alpha.clamp(-_LARGEST_SCALING, _LARGEST_SCALING)
    alpha = torch.minimum(torch.maximum(alpha, low), high)
    theta = tuple(per_sample(alpha, r) * r for r in ray)
    difference = tuple(r - t for r, t in zip(residual, theta, strict=True))
    gap = 0.5 * squared_norm(difference) + _complementarity(form, codes, ray_correlation, alpha)
    return DualPoint(residual, theta, gap)


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


def _complementarity(form: StandardForm, codes: Blocks, correlation: Blocks, alpha: Tensor) -> Tensor:
    """Return ``Σ (w_i|x_i| - x_i α a_iᵀv)``, each term rounded up to zero: feasibility makes it non-negative.

    It is inf where ``x ≥ 0`` is violated or a forbidden atom is in use.
    """
    total = codes[0].new_zeros(form.batch)
    for w, x, c in zip(form.weights, codes, correlation, strict=True):
        index, weight, value = used_entries(w, x)
        term = (weight * value.abs() - value * alpha[index[0]] * c[index]).clamp_min(0)
        term = torch.where(weight == 0, 0.0, term)
        if form.nonnegative:
            term = torch.where(value < 0, math.inf, term)
        total = total + sum_rows(form.batch, index[0], term)
    return total


def _feasible_interval(form: StandardForm, correlation: Blocks) -> tuple[Tensor, Tensor]:
    """Return the interval of α with ``|α a_iᵀv| ≤ w_i`` for all i (non-negative codes: ``α a_iᵀv ≤ w_i``)."""
    high = correlation[0].new_full((form.batch,), math.inf)
    low = -high
    for w, c in zip(form.weights, correlation, strict=True):
        if not c[:1].numel():
            continue
        # Entries that share a weight are bound by the largest and the smallest of them.
        shared = tuple(axis for axis in range(1, c.ndim) if w.shape[axis] == 1)
        top, bottom = (c.amax(shared, keepdim=True), c.amin(shared, keepdim=True)) if shared else (c, c)
        # A quotient 0/0 stands for an entry that binds nothing.
        upper = torch.where(top > 0, w / top, math.inf).flatten(1).amin(1)
        lower = torch.where(bottom < 0, w / bottom, -math.inf).flatten(1).amax(1)
        if not form.nonnegative:
            upper = torch.minimum(upper, -lower)
            lower = -upper
        high, low = torch.minimum(high, upper), torch.maximum(low, lower)
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
