"""The sphere of basis pursuit: where the residual of its minimizers is, whatever the multiplier. Statement G6."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deep_sparse_coding.problems import BasisPursuit, Blocks, Codes, StandardForm
from deep_sparse_coding.problems.base import flat_sum, inner, penalty, per_sample

from .analysis import Analysis, of_sphere
from .polish import join
from .sphere import EPS, Rounding, Sphere, norm


def analyze_pursuit(problem: BasisPursuit, signal: Tensor, codes: Codes) -> Analysis:
    """Return what codes prove about the minimizers of basis pursuit."""
    batch = problem.batch_shape(signal)
    form = problem.form(signal)
    blocks = tuple(block.double() for block in problem.pack(codes, signal))
    return of_sphere(problem, batch, form, join(blocks), pursuit_sphere(form, given_epsilon(problem, form), blocks))


def given_epsilon(problem: BasisPursuit, form: StandardForm) -> Tensor:
    """Return ε itself, one number per sample, float64."""
    if isinstance(problem.epsilon, Tensor):
        return problem.epsilon.detach().reshape(-1).to(form.data[0])
    return form.data[0].new_full((form.batch,), problem.epsilon)


def multipliers(form: StandardForm, found: Sphere, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """Return bounds of ``λ* = max_i |a_iᵀr*|/w_i``, the lam at which the Lasso has the same minimizers.

    Args:
        form: The problem as a Lasso with ``lam = 1``.
        found: Its sphere.
        rounding: Of that form.
    """
    low = high = torch.zeros_like(found.radius)
    size = norm(found.center)
    for w, c, n in zip(form.weights, found.correlation, rounding.norms, strict=True):
        reach = n * per_sample(found.radius + rounding.analysis * size, c) * (1 + 4 * EPS)
        value = c if form.nonnegative else c.abs()
        limited = torch.isfinite(w).expand_as(c)
        below, above = (value * (1 - EPS) - reach) / w, (value * (1 + EPS) + reach) / w
        low = torch.maximum(low, torch.where(limited, below, 0.0).flatten(1).amax(1))
        high = torch.maximum(high, torch.where(limited, above, 0.0).flatten(1).amax(1))
    return low, high


def pursuit_sphere(form: StandardForm, epsilon: Tensor, codes: Blocks) -> Sphere:
    """Return the sphere about ``r* = b - A x*``, the residual that all minimizers of norm ε share.

    A feasible x and any ν with ``|a_iᵀν| ≤ w_i`` give ``νᵀ(b - r*) = νᵀA x* ≤ Ω(x*) ≤ Ω(x)``, so that
    ``⟨u, r*⟩ ≥ τ``, ``u = ν/‖ν‖``; and ``‖r*‖ = ε``. This cap lies in the ball about ``τu`` of radius ``√(ε² - τ²)``.
    Here ``ε - τ = (ε - ‖r‖) + Σ(w_i|x_i| - x_i a_iᵀν)/‖ν‖``, in which nothing cancels.

    Args:
        form: The problem as a Lasso with ``lam = 1``, float64.
        epsilon: ε per sample.
        codes: x; moved a little where its residual exceeds ε by rounding or by the solver's tolerance.

    Source: G6 of docs/theory.md, "the sphere of the constrained problem".
    """
    rounding = Rounding.of(form)
    size = norm(form.data)
    given = penalty(form, codes)
    codes = _feasible(form, epsilon, codes, rounding)
    residual = form.residual(codes)
    lost = rounding.residual(form, codes)
    length = norm(residual)
    correlation = form.operator.analyze(residual)
    worst = torch.zeros_like(length)
    for w, c, n in zip(form.weights, correlation, rounding.norms, strict=True):
        bound = (c if form.nonnegative else c.abs()) + n * per_sample(rounding.analysis * length, c)
        ratio = torch.where(torch.isfinite(w), bound / w, 0.0).flatten(1) * (1 + 4 * EPS)
        worst = torch.maximum(worst, ratio.amax(1))
    # With ν = r/worst: Σ(w|x| - x aᵀν)/‖ν‖ = Σ(worst·w|x| - x aᵀr)/‖r‖.
    terms = []
    for w, x, c, n in zip(form.weights, codes, correlation, rounding.norms, strict=True):
        error = n * per_sample(rounding.analysis * length, c) + 4 * EPS * per_sample(worst, c) * w
        excess = (per_sample(worst, c) * w * x.abs() - x * c).clamp_min(0) + x.abs() * error
        terms.append(torch.where(x == 0, 0.0, excess))
    count = sum(math.prod(shape) for shape in form.code_shapes) + sum(math.prod(b.shape[1:]) for b in form.data)
    grow = 1 + (count + 8) * EPS
    short = ((epsilon - length).clamp_min(0) + lost + flat_sum(tuple(terms)) / length) * grow + 4 * EPS * epsilon
    tau = (epsilon - short).clamp_min(0)
    radius = torch.where(tau > 0, (short * (epsilon + tau)).sqrt(), epsilon) * grow
    share = torch.where(length > 0, tau / length, 0.0)
    center = tuple(per_sample(share, block) * block for block in residual)
    resolved = (length + lost <= epsilon) & torch.isfinite(given) & (length > 0) & torch.isfinite(radius)
    trivial = epsilon >= size * grow  # zero codes are feasible, and the only minimizer
    radius = torch.where(resolved & ~trivial & (epsilon < size / grow), radius + 8 * EPS * epsilon, math.inf)
    gap = (given - penalty(form, codes)).clamp_min(0) + short * length / worst
    gap = torch.where(torch.isfinite(radius), gap, math.inf)
    center_correlation = form.operator.analyze(center)
    nothing = tuple(torch.zeros_like(c, dtype=torch.bool) for c in center_correlation)
    found = Sphere(residual, lost, center, center_correlation, radius, gap, 0.5 * short, nothing, nothing)
    least, _ = multipliers(form, found, rounding)
    zeros, signed = [], []
    for w, c, n in zip(form.weights, center_correlation, rounding.norms, strict=True):
        reach = n * per_sample(radius + rounding.analysis * norm(center), c) * (1 + 4 * EPS)
        value = c if form.nonnegative else c.abs()
        proved = torch.isfinite(reach) & (value + reach + EPS * value.abs() < per_sample(least, c) * w)
        zeros.append(proved | (w == math.inf) | per_sample(trivial, c))
        signed.append((reach < c.abs()) & torch.isfinite(reach))
    radius = torch.where(trivial, 0.0, radius)
    gap = torch.where(trivial, given, gap)
    rows = [per_sample(trivial, block) for block in form.data]
    center = tuple(torch.where(row, b, c) for row, b, c in zip(rows, form.data, center, strict=True))
    return Sphere(residual, lost, center, center_correlation, radius, gap, 0.5 * short, tuple(zeros), tuple(signed))


def _feasible(form: StandardForm, epsilon: Tensor, codes: Blocks, rounding: Rounding) -> Blocks:
    """Return codes moved along the correlations of their support until the residual is below ε after rounding.

    ``‖r - t A δ‖² = ‖r‖² - 2t⟨A δ, r⟩ + t²‖A δ‖²``; the least t that reaches the goal, if any does.
    """
    for _ in range(2):
        residual = form.residual(codes)
        goal = epsilon * (1 - 8 * EPS) - 2 * rounding.residual(form, codes)
        excess = norm(residual).square() - goal.clamp_min(0).square()
        if not bool((excess > 0).any()):
            break
        step = tuple(torch.where(x != 0, c, 0.0) for x, c in zip(codes, form.operator.analyze(residual), strict=True))
        image = form.operator.synthesize(step)
        along, size = inner(image, residual), norm(image).square()
        root = along.square() - size * excess
        usable = (excess > 0) & (root > 0) & (goal > 0) & (size > 0)
        t = torch.where(usable, excess / (along + root.clamp_min(0).sqrt()), 0.0).nan_to_num(0.0)
        moved = tuple(x + per_sample(t, x) * d for x, d in zip(codes, step, strict=True))
        codes = tuple(m.clamp_min(0) for m in moved) if form.nonnegative else moved
    return codes
