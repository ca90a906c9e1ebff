"""Dual points of the standard form: how far a residual must be scaled to be feasible, and the gap it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import DenseDictionary
from deep_sparse_coding.errors import UnsupportedError

from .base import StandardForm, inner, per_sample, squared_norm
from .operators import Blocks, SingleOperator
from .support import on_support

_LARGEST_SCALING = 10.0
_ROUNDING = 1e-12
# Correlations, in float64, that lam_max looks at together: 2 MB.
_AT_ONCE = 2**18
# Samples up to which atoms in use are gathered, where there are this many times as many atoms as in use.
_FEW, _SPARSE = 64, 8
# Conjugate gradient steps of a correction; each costs as much as a step of a proximal method.
_REFINEMENTS = 30


@dataclass(frozen=True, eq=False)
class DualPoint:
    """A feasible point of the dual ``max ½‖b‖² - ½‖b - θ‖² - Ω*(Aᵀθ)``, and what it proves about codes x.

    For a weighted ℓ1 norm Ω* is 0 where ``|a_iᵀθ| ≤ w_i`` for all i, and infinite elsewhere.

    Attributes:
        residual: ``r = b - A x``.
        theta: ``θ = α r`` (with unpenalized atoms: of r's part orthogonal to them).
        gap: ``P(x) - D(θ) = ½‖r - θ‖² + [Ω(x) + Ω*(Aᵀθ) - ⟨x, Aᵀθ⟩]`` per sample, the bracket a sum over entries or
            groups; every term is at or above zero.
    """

    residual: Blocks
    theta: Blocks
    gap: Tensor


def dual_point(form: StandardForm, codes: Blocks, *, widen: bool = False) -> DualPoint:
    """Return ``θ = α r`` with the best α, and the gap; where Ω* is 0 or inf it is ``⟨b, r⟩/‖r‖²``, clipped to feasible.

    Nothing of the size of ``½‖b‖²`` cancels in the gap (statement G5 of docs/theory.md).

    Args:
        form: The problem, in the precision in which to compute.
        codes: x, in the same precision.
        widen: Whether θ is feasible even where correlations were rounded down.

    Source: G5 of docs/theory.md; dual scaling as in Ndiaye, Fercoq, Gramfort & Salmon 2017.
    """
    # Codes that are all zero, as at most starts, leave the data as they are.
    residual = _residual(form, codes) if any(bool(block.any()) for block in codes) else form.data
    return _along(form, codes, residual, residual, widen)


def _residual(form: StandardForm, codes: Blocks) -> Blocks:
    """Return ``b - A x``, from the atoms in use alone where a few samples use few of the many of one matrix."""
    operator = form.operator
    if not (isinstance(operator, SingleOperator) and isinstance(operator.dictionary, DenseDictionary)):
        return form.residual(codes)
    if form.batch > _FEW:
        return form.residual(codes)
    used = (codes[0] != 0).any(0).nonzero().flatten()
    if _SPARSE * len(used) > codes[0].shape[1]:
        return form.residual(codes)
    made = codes[0][:, used] @ operator.dictionary.matrix[:, used].T
    return (form.data[0] - (made if operator.mask is None else operator.mask * made),)


def support_point(form: StandardForm, codes: Blocks, residual: Blocks) -> DualPoint:
    """Return ``θ = α r'`` for the residual corrected such that ``A_Sᵀr' = ∇Ω(x)_S`` on the entries S that move.

    At the solution ``r' = r``; near it the gap falls with the square of the distance of r' from the dual solution on
    S, while that of the scaled residual is spoiled by the largest single correlation. Feasible after rounding of
    the correlations.

    Args:
        form: The problem, float64.
        codes: x, float64.
        residual: ``r = b - A x``.

    Source: "Corrected" in G5 of docs/theory.md.
    """
    return _along(form, codes, residual, support_ray(form, codes, residual), True)


def support_ray(form: StandardForm, codes: Blocks, residual: Blocks) -> Blocks:
    """Return r', the residual corrected such that ``A_Sᵀr' = ∇Ω(x)_S`` up to rounding (see `support_point`)."""
    movable = form.penalty.movable(codes)
    slope = form.penalty.slope(form.weights, codes)
    support, target = [], []
    for moves, part, w in zip(movable, slope, form.weights, strict=True):
        used = moves & torch.isfinite(part) & torch.isfinite(w)
        support.append(used)
        target.append(torch.where(used, part, 0.0))
    correlation = form.operator.analyze(residual)
    return on_support(form, tuple(support), tuple(target), residual, correlation, _REFINEMENTS)


def _along(form: StandardForm, codes: Blocks, residual: Blocks, ray: Blocks, widen: bool) -> DualPoint:
    """Return the dual point along a ray; `widen` keeps it feasible where correlations were rounded down."""
    penalty, weights = form.penalty, form.weights
    unpenalized = penalty.unpenalized(weights, codes)
    ray, correlation = _orthogonal_part(form, ray, unpenalized)
    norm2 = squared_norm(ray)
    best = torch.where(norm2 > 0, inner(form.data, ray) / norm2.clamp_min(torch.finfo(norm2.dtype).tiny), 0.0)
    reach = correlation
    if widen:
        slack = (form.operator.terms()[1] + 2) * torch.finfo(norm2.dtype).eps * norm2.sqrt()
        norms = form.operator.squared_norms()
        reach = tuple(_widened(w, c, slack, n) for w, c, n in zip(weights, correlation, norms, strict=True))
    low, high = _feasible_interval(form, reach)
    if unpenalized is not None:
        # Orthogonality to unpenalized atoms holds up to rounding of r: scaling up what is only rounding would lose it.
        low, high = low.clamp_min(-_LARGEST_SCALING), high.clamp_max(_LARGEST_SCALING)
    alpha = penalty.scaling(weights, correlation, best, norm2, low, high)
    theta = tuple(per_sample(alpha, r) * r for r in ray)
    difference = tuple(r - t for r, t in zip(residual, theta, strict=True))
    gap = 0.5 * squared_norm(difference) + penalty.slack(weights, codes, correlation, alpha)
    return DualPoint(residual, theta, gap)


def _widened(weights: Tensor, correlation: Tensor, slack: Tensor, squares: Tensor) -> Tensor:
    """Return correlations moved away from zero by their rounding errors; unpenalized entries as they are."""
    room = per_sample(slack, correlation) * squares.clamp_min(0).sqrt()
    room = torch.where(weights == 0, 0.0, torch.where(correlation < 0, -room, room))
    return correlation + room


def largest_ratio(form: StandardForm) -> Tensor:
    """Return the smallest factor of the weights with which penalized codes are zero: lam_max of a form with lam = 1.

    For a weighted ℓ1 norm this is ``max_i |a_iᵀ b| / w_i``.
    """
    form = form.cast(torch.float64)
    size = max(1, _AT_ONCE // max(1, sum(math.prod(shape) for shape in form.code_shapes)))
    if form.batch <= size:
        return _largest_ratio(form)
    # In groups whose correlations stay in the cache.
    groups = torch.arange(form.batch, device=form.data[0].device).split(size)
    return torch.cat([_largest_ratio(form.select(rows)) for rows in groups])


def _largest_ratio(form: StandardForm) -> Tensor:
    ones = form.data[0].new_ones(())
    everywhere = tuple(ones.expand(form.batch, *shape) for shape in form.code_shapes)
    _, correlation = _orthogonal_part(form, form.data, form.penalty.unpenalized(form.weights, everywhere))
    return form.penalty.largest_ratio(form.weights, correlation)


def _feasible_interval(form: StandardForm, correlation: Blocks) -> tuple[Tensor, Tensor]:
    """Return the interval of α on which αv is a feasible dual point, for the correlations ``Aᵀv``."""
    return form.penalty.interval(form.weights, correlation)


def _orthogonal_part(
    form: StandardForm, vector: Blocks, unpenalized: tuple[Blocks, Blocks] | None
) -> tuple[Blocks, Blocks]:
    """Return the part of a vector orthogonal to the unpenalized atoms in use, and its correlations.

    A weight of zero asks for ``a_iᵀθ = 0`` exactly, which scaling alone cannot reach. Only dense forms hold zeros.
    """
    if unpenalized is None:
        return vector, form.operator.analyze(vector)
    (exposed, *_), (free, *_) = unpenalized
    signal = torch.cat([block.flatten(1) for block in vector], 1)
    shared = form.operator.matrix()
    patterns, which = torch.unique(free, dim=0, return_inverse=True)
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
    size = squared_norm((signal,)).sqrt()
    pieces = signal.split([block[0].numel() for block in vector], 1)
    ray = tuple(piece.reshape(block.shape) for piece, block in zip(pieces, vector, strict=True))
    (correlation,) = form.operator.analyze(ray)
    # What is left at unpenalized atoms not in use is rounding if it is this small, and then it binds nothing.
    room = _ROUNDING * per_sample(size, correlation) * form.operator.squared_norms()[0].sqrt()
    small = exposed & (correlation.abs() <= room)
    return ray, (torch.where(free | small, 0.0, correlation),)
