"""The sphere that holds the dual solution, for any codes, with every rounding error counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.errors import UnsupportedError
from deep_sparse_coding.problems import Blocks, StandardForm
from deep_sparse_coding.problems.base import flat_sum, inner, penalty, per_sample, squared_norm
from deep_sparse_coding.problems.dual import support_ray
from deep_sparse_coding.problems.operators import Operator

from .conditioning import factorize

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class Rounding:
    """What float64 loses in ``A x`` and ``Aᵀ r``.

    Attributes:
        absolute: ``|A|``.
        norms: ``‖a_i‖`` rounded up, block by block, broadcasting against the codes.
        synthesis: The factor ``m·eps`` of ``‖|A||x|‖`` in the error of ``A x``.
        analysis: The factor ``n·eps`` of ``‖a_i‖‖r‖`` in the error of ``a_iᵀr``.
    """

    absolute: Operator
    norms: Blocks
    synthesis: float
    analysis: float

    @classmethod
    def of(cls, form: StandardForm) -> Rounding:
        """Return the numbers of a form in float64; a mask, √β and the scaling of θ cost a few units more."""
        synthesis, analysis = (count + 6 for count in form.operator.terms())
        grow = 1 + (analysis + 2) * EPS
        norms = tuple(block.clamp_min(0).sqrt() * grow for block in form.operator.squared_norms())
        return cls(form.operator.entrywise_abs(), norms, synthesis * EPS, analysis * EPS)

    def residual(self, form: StandardForm, codes: Blocks) -> Tensor:
        """Return ε_r, a bound on the error of ``b - A x``, per sample."""
        sizes = self.absolute.synthesize(tuple(block.abs() for block in codes))
        return self.synthesis * (norm(form.data) + norm(sizes))


@dataclass(frozen=True, eq=False)
class Sphere:
    """``‖θ* - c‖ ≤ R`` for the dual solution ``θ* = b - A x*``, which all minimizers share.

    Attributes:
        residual: ``r = b - A x``.
        residual_error: ε_r.
        center: ``c = (r + θ)/2``.
        correlation: ``Aᵀ c``.
        radius: R, rounded up; inf where codes violate a constraint or are not finite.
        gap: g, rounded up: ``P(x) - P* ≤ g``.
        distance: ``½‖r - θ‖`` rounded up, from c to r.
        zeros: Codes that are zero in every minimizer, block by block.
        signed: Codes whose sign is that of the correlation with c wherever they are not zero in a minimizer.
    """

    residual: Blocks
    residual_error: Tensor
    center: Blocks
    correlation: Blocks
    radius: Tensor
    gap: Tensor
    distance: Tensor
    zeros: Blocks
    signed: Blocks


def sphere(form: StandardForm, codes: Blocks, rounding: Rounding) -> Sphere:
    """Return the sphere that codes x prove, and the zeros that it proves.

    ``R² = ¼‖r-θ‖² + Σ(w_i|x_i| - x_i a_iᵀθ)`` about ``c = (r + θ)/2``, θ the scaled residual, or the scaled residual
    corrected on the support where its R is smaller, feasible after rounding; i is certainly zero if
    ``|a_iᵀc| + ‖a_i‖R + n·eps‖a_i‖‖c‖ < w_i`` (non-negative: without the bars).

    Args:
        form: The problem in float64.
        codes: x in float64.
        rounding: Of that form.

    Raises:
        UnsupportedError: Box constraints or groups.

    Source: G5 and "Rounding" of docs/theory.md; gap-safe spheres, Ndiaye, Fercoq, Gramfort & Salmon 2017.
    """
    if form.beyond:
        raise UnsupportedError(
            f"nothing beyond the gap is proved for problems with {form.beyond}; expected a weighted ℓ1 norm, with or "
            "without a ridge: dsc.certify(problem, signal, codes) gives the certificate"
        )
    residual = form.residual(codes)
    residual_error = rounding.residual(form, codes)
    ray, free, defect = _ray(form, codes, residual, rounding)
    ball = _ball(form, codes, residual, residual_error, ray, free, defect, rounding)
    if not any(bool(block.any()) for block in free):
        # Near the solution the residual corrected on the support proves far more than the scaled residual.
        corrected = support_ray(form, codes, residual)
        other = _ball(form, codes, residual, residual_error, corrected, free, defect, rounding)
        ball = ball.better(other)
    size = norm(ball.center)
    center_correlation = form.operator.analyze(ball.center)
    zeros, signed = [], []
    for w, c, n in zip(form.weights, center_correlation, rounding.norms, strict=True):
        reach = n * per_sample(ball.radius + rounding.analysis * size, c) * (1 + 4 * EPS)
        value = c if form.nonnegative else c.abs()
        proved = torch.isfinite(per_sample(ball.radius, c)) & (value + reach + EPS * value.abs() < w)
        zeros.append(proved | (w == math.inf))
        signed.append((reach < w).expand_as(c))
    return Sphere(
        residual,
        residual_error,
        ball.center,
        center_correlation,
        ball.radius,
        ball.gap,
        ball.distance,
        tuple(zeros),
        tuple(signed),
    )


@dataclass(frozen=True, eq=False)
class _Ball:
    """A ball that holds the dual solution: center, radius, gap and the distance from center to residual."""

    center: Blocks
    radius: Tensor
    gap: Tensor
    distance: Tensor

    def better(self, other: _Ball) -> _Ball:
        """Return, sample by sample, the ball with the smaller radius."""
        take = other.radius < self.radius  # False for NaN
        return _Ball(
            tuple(torch.where(per_sample(take, c), o, c) for c, o in zip(self.center, other.center, strict=True)),
            torch.where(take, other.radius, self.radius),
            torch.where(take, other.gap, self.gap),
            torch.where(take, other.distance, self.distance),
        )


def _ball(
    form: StandardForm,
    codes: Blocks,
    residual: Blocks,
    residual_error: Tensor,
    ray: Blocks,
    free: Blocks,
    defect: Tensor,
    rounding: Rounding,
) -> _Ball:
    """Return the ball of ``θ = α·ray``, α the best that is feasible after rounding."""
    correlation = form.operator.analyze(ray)
    size = norm(ray)
    alpha = torch.where(size > 0, inner(form.data, ray) / size.square().clamp_min(1e-300), 0.0)
    low, high = _feasible(form, correlation, free, rounding, rounding.analysis * size + defect)
    alpha = torch.minimum(torch.maximum(alpha, low), high)
    theta = tuple(per_sample(alpha, block) * block for block in ray)
    shift = torch.where(alpha == 0, 0.0, alpha.abs() * defect)
    theta_size = norm(theta)

    difference = norm(tuple(r - t for r, t in zip(residual, theta, strict=True)))
    terms, loss = [], []
    for w, x, c, n, u in zip(form.weights, codes, correlation, rounding.norms, free, strict=True):
        used = (x != 0) & ~u
        term = (w * x.abs() - x * per_sample(alpha, c) * c).clamp_min(0)
        terms.append(torch.where(used, term, 0.0))
        error = x.abs() * (2 * EPS * w + n * per_sample(rounding.analysis * theta_size + shift, x))
        loss.append(torch.where(used, error, 0.0))
    count = sum(math.prod(shape) for shape in form.code_shapes) + sum(math.prod(b.shape[1:]) for b in form.data)
    grow = 1 + (count + 8) * EPS
    extra = residual_error + shift
    # The signal's true residual and the exactly feasible θ lie within `extra` of the computed ones.
    slack = flat_sum(tuple(loss)) + extra * (difference + extra)
    whole = flat_sum(tuple(terms)) + slack
    gap = (0.5 * difference.square() + whole) * grow
    gap = torch.where(torch.isfinite(penalty(form, codes)), gap, math.inf)
    center = tuple(0.5 * (r + t) for r, t in zip(residual, theta, strict=True))
    size = norm(center)
    radius = (0.25 * difference.square() + whole).sqrt() * grow + 0.5 * extra + EPS * size
    resolved = torch.isfinite(gap) & torch.isfinite(radius) & _squares_resolved(form.data, residual)
    radius = torch.where(resolved, radius, math.inf)
    gap = torch.where(torch.isfinite(radius), gap, math.inf)
    return _Ball(center, radius, gap, 0.5 * difference * grow + 0.5 * residual_error)


def _ray(form: StandardForm, codes: Blocks, residual: Blocks, rounding: Rounding) -> tuple[Blocks, Blocks, Tensor]:
    """Return the direction of θ, the unpenalized entries that it is orthogonal to, and by how much it may fail to be.

    For weights of zero ``a_iᵀθ = 0`` must hold: θ is the residual's projection, and an exact one lies within
    ``‖A_Uᵀθ‖/σ_min(A_U)`` of the computed one. Non-negative codes need it only where they are not zero.
    """
    free = tuple(
        (w == 0) & ((x > 0) if form.nonnegative else torch.ones_like(x, dtype=torch.bool))
        for w, x in zip(form.weights, codes, strict=True)
    )
    batch = form.batch
    defect = residual[0].new_zeros(batch)
    if not any(bool(block.any()) for block in free):
        return residual, free, defect
    signal = torch.cat([block.flatten(1) for block in residual], 1)
    shared = form.operator.matrix()
    patterns, which = torch.unique(free[0], dim=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        rows = (which == index).nonzero().flatten()
        if not bool(pattern.any()):
            continue
        groups = [rows] if shared is not None else list(rows.split(1))
        for group in groups:
            matrix = shared if shared is not None else form.operator.select(group).matrix()
            if matrix is None:
                defect[group] = math.inf  # only dense forms hold weights of zero
                continue
            signal[group], defect[group] = _project(signal[group], matrix[:, pattern], rounding)
    pieces = signal.split([block[0].numel() for block in residual], 1)
    return tuple(piece.reshape(block.shape) for piece, block in zip(pieces, residual, strict=True)), free, defect


def _project(signal: Tensor, atoms: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """Return signals minus their part in the span of `atoms`, and how far they may be from orthogonal to it."""
    basis = torch.linalg.qr(atoms).Q
    for _ in range(2):
        signal = signal - (signal @ basis) @ basis.T
    sigma = factorize(atoms.cpu().numpy(), round(rounding.analysis / EPS)).sigma
    if sigma == 0:
        return signal, signal.new_full((len(signal),), math.inf)
    size = torch.linalg.matrix_norm(atoms)
    left = torch.linalg.vector_norm(signal @ atoms, dim=1)
    left = left + rounding.analysis * size * torch.linalg.vector_norm(signal, dim=1)
    return signal, left / sigma * (1 + 8 * EPS)


def _feasible(
    form: StandardForm, correlation: Blocks, free: Blocks, rounding: Rounding, reach: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the interval of α with ``|α|(|a_iᵀv| + reach·‖a_i‖) ≤ w_i`` (non-negative codes: one-sided)."""
    high = torch.full_like(reach, math.inf)
    low = -high
    for w, c, n, u in zip(form.weights, correlation, rounding.norms, free, strict=True):
        room = n * per_sample(reach, c)
        limit = torch.where(u | (w == math.inf), math.inf, w / (c.abs() + room))
        limit = limit.nan_to_num(nan=math.inf, posinf=math.inf).expand_as(c)  # 0/0: an empty atom binds nothing
        if form.nonnegative:
            upper = torch.where(c + room > 0, limit, math.inf).flatten(1)
            lower = torch.where(c - room < 0, -limit, -math.inf).flatten(1)
        else:
            upper, lower = limit.flatten(1), -limit.flatten(1)
        if upper.shape[1]:
            high, low = torch.minimum(high, upper.amin(1)), torch.maximum(low, lower.amax(1))
    return low, high


def _squares_resolved(*vectors: Blocks) -> Tensor:
    """Return, per sample, whether squares of the vectors are far from underflow (or the vectors are zero)."""
    fine = torch.ones(len(vectors[0][0]), dtype=torch.bool, device=vectors[0][0].device)
    for blocks in vectors:
        nonzero = flat_sum(tuple((block != 0).double() for block in blocks)) > 0
        fine &= ~nonzero | (squared_norm(blocks) > 1e-250)
    return fine


def norm(blocks: Blocks) -> Tensor:
    """Return the ℓ2 norm over all blocks, per sample."""
    return squared_norm(blocks).sqrt()
