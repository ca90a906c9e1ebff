"""Basis pursuit: the smallest ℓ1 norm among the codes that explain the signal up to ε, for one layer and for many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, per_layer
from deep_sparse_coding.dictionaries import Cascade, Dictionary
from deep_sparse_coding.errors import ParameterError

from .base import Codes, StandardForm, flat_sum, inner, penalty, per_sample, squared_norm, unresolved
from .cascaded import LayeredProblem, check_cascade
from .certificate import Certificate
from .dual import largest_ratio
from .lasso import Lasso
from .operators import Blocks
from .single import SingleProblem, check_epsilon, residual_limits
from .support import on_support
from .weights import check_dictionary, check_mask, check_weights, check_weights_by_layer

# The relative gap is measured against the objective, but not below this share of ‖y‖²/‖Dᵀy‖_∞, the natural size of it.
_OBJECTIVE_FLOOR = 1e-6
# Samples whose dual point can still be better by more than this are worth the conjugate gradients.
_GOOD = 1e-9
_REFINEMENTS = 100
_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True, eq=False)
class BasisPursuit(SingleProblem):
    """``min Σ w_i|x_i|  s.t.  ‖M(y - D x)‖ ≤ ε``, with ``x ≥ 0`` if asked.

    Codes count as feasible where ``‖M(y - D x)‖ ≤ max(ε, η‖M y‖)`` in float64, with η = 1e-8 for float64 and 1e-6 for
    float32: any ε above that resolution is met strictly, and ``epsilon=0`` stands for equality up to rounding. The dual
    value of a certificate bounds the minimum for ε itself from below.

    Attributes:
        dictionary: D, dense or convolutional.
        epsilon: A number at or above 0, or a tensor of the batch's shape (one per sample); inf is allowed.
        weights: Optional w, positive, ``(atoms,)`` or the code's shape; inf forbids an atom.
        nonnegative: Hold the codes at or above zero.
        mask: Optional, broadcasts against the signal: True or 1 where it was observed.

    Raises:
        DSCError: A setting out of range; on use, shapes that do not fit.

    Source: Chen, Donoho & Saunders 1998; DSC₁^ε for one layer, Li, Feng & Zhou 2024, Definition 4; G6 of
        docs/theory.md.
    """

    dictionary: Dictionary
    epsilon: float | Tensor
    weights: Tensor | None = None
    nonnegative: bool = False
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_dictionary("dictionary", self.dictionary)
        object.__setattr__(self, "epsilon", check_epsilon("epsilon", self.epsilon))
        weights = check_weights("weights", self.weights)
        if weights is not None and bool((weights == 0).any()):
            raise ParameterError("weights of basis pursuit hold zeros; expected positive numbers: use small ones")
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "nonnegative", check_flag("nonnegative", self.nonnegative))
        object.__setattr__(self, "mask", check_mask(self.mask, self.dictionary))

    def form(self, signal: Tensor) -> StandardForm:
        """Return the Lasso with ``lam = 1`` on the same data, its operator, data and weights in float64."""
        return Lasso(self.dictionary, 1.0, self.weights, self.nonnegative, self.mask).exact_form(signal)

    def limits(self, signal: Tensor) -> Tensor:
        """Return the residual norm up to which codes count as feasible, ``max(ε, η‖M y‖)``, ``(samples,)``, float64."""
        return residual_limits(self.epsilon, self.epsilon_max(signal), signal)

    def certificate(self, codes: Codes, signal: Tensor) -> Certificate:
        """Return the certificate of checked codes, float64, in the batch's shape."""
        batch = self.batch_shape(signal)
        flat = assess_pursuit(self.form(signal), self.limits(signal), self.pack(codes, signal))
        return flat.reshape(batch)


@dataclass(frozen=True, eq=False)
class LayeredBasisPursuit(LayeredProblem):
    """``x_j = argmin ‖z‖₁  s.t.  ‖x_{j-1} - D_j z‖ ≤ ε_j`` for ``j = 1, ..., J`` in turn, ``x_0 = y``.

    Attributes:
        model: The cascade.
        epsilon: One setting per layer, each as in `BasisPursuit`; or one for all.
        weights: Optional, one tensor (or None) per layer.
        nonnegative: Hold all codes at or above zero.
        mask: Optional, on the signal.

    Source: DSC₁^ε, Li, Feng & Zhou 2024, Definition 4.
    """

    model: Cascade
    epsilon: Sequence[float | Tensor] | float
    weights: Sequence[Tensor | None] | None = None
    nonnegative: bool = False
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_cascade(self.model)
        depth = len(self.model)
        values = per_layer("epsilon", self.epsilon, depth)
        object.__setattr__(
            self, "epsilon", tuple(check_epsilon(f"epsilon[{j}]", value) for j, value in enumerate(values))
        )
        object.__setattr__(self, "weights", check_weights_by_layer(self.weights, depth))
        object.__setattr__(self, "nonnegative", check_flag("nonnegative", self.nonnegative))
        object.__setattr__(self, "mask", check_mask(self.mask, self.model.layers[0]))
        _ = self.stages  # their own checks

    @property
    def stages(self) -> tuple[BasisPursuit, ...]:
        """The basis pursuit of every layer; the mask belongs to the first."""
        epsilon = per_layer("epsilon", self.epsilon, len(self.model))
        weights = per_layer("weights", self.weights, len(self.model))
        return tuple(
            BasisPursuit(layer, epsilon[j], weights[j], self.nonnegative, self.mask if j == 0 else None)  # type: ignore[arg-type]
            for j, layer in enumerate(self.model.layers)
        )


def assess_pursuit(form: StandardForm, limits: Tensor, codes: Blocks) -> Certificate:
    """Return the certificate of flat codes for ``min Σ w_i|x_i|  s.t.  ‖b - A x‖ ≤ limits``, in float64.

    Any ν with ``|a_iᵀν| ≤ w_i`` proves ``minimum ≥ νᵀb - ε‖ν‖``. Two are tried and the better is taken: the residual,
    scaled, and the residual corrected so that ``a_iᵀν = w_i sign(x_i)`` on the support, which
    rounding of the codes (float32) does not spoil. The gap is added up from terms that are not negative,
    ``Σ(w_i|x_i| - x_i a_iᵀν) + (ε‖ν‖ - νᵀr)``.

    Args:
        form: The problem as a Lasso with ``lam = 1``, float64.
        limits: The largest residual norm that counts as feasible, ``(samples,)``.
        codes: x.

    Source: G6 of docs/theory.md.
    """
    codes = tuple(block.double() for block in codes)
    residual = form.residual(codes)
    norm = squared_norm(residual).sqrt()
    value = penalty(form, codes)
    correlation = form.operator.analyze(residual)
    gap = _pursuit_gap(form, limits, codes, residual, residual, correlation)
    floor = _OBJECTIVE_FLOOR * squared_norm(form.data) / largest_ratio(form)
    scale = torch.maximum(value, torch.where(torch.isfinite(floor), floor, 0.0))
    later = ((gap > _GOOD * scale) & torch.isfinite(value)).nonzero().flatten()
    if len(later):
        some = form.select(later)
        x, r, c = (tuple(block[later] for block in blocks) for blocks in (codes, residual, correlation))
        better = _on_support(some, x, r, c)
        trial = _pursuit_gap(some, limits[later], x, r, better, some.operator.analyze(better))
        gap[later] = torch.fmin(gap[later], trial)
    nothing = unresolved(form.data, squared_norm(form.data))
    feasible = (norm <= limits) & ~nothing
    objective = torch.where(feasible | torch.isnan(norm), value, math.inf)
    known = torch.isfinite(objective)
    dual = torch.where(torch.isinf(value), -math.inf, value - gap)
    gap = torch.where(known, gap.clamp_min(0), torch.where(torch.isnan(objective), math.nan, math.inf))
    relative = torch.where((gap == 0) & known, 0.0, gap / torch.where(known, scale, 1.0))
    return Certificate(objective, torch.where(known, objective - gap, dual), gap, relative)


def _pursuit_gap(
    form: StandardForm, limits: Tensor, codes: Blocks, residual: Blocks, ray: Blocks, correlation: Blocks
) -> Tensor:
    """Return ``Σ w_i|x_i| - νᵀb + ε‖ν‖`` for ν along `ray`, scaled to be feasible; 0 is taken for ν where it is better.

    The clamp of every term costs at most rounding where x is feasible; for other x the second part may be negative.
    """
    worst, length = ray[0].new_zeros(form.batch), squared_norm(ray).sqrt()
    # Room for the rounding of the correlations: scaled up, what is only rounding would prove any number.
    slack = form.operator.terms()[1] * _EPS * length
    for w, c, squares in zip(form.weights, correlation, form.operator.squared_norms(), strict=True):
        size = (c.clamp_min(0) if form.nonnegative else c.abs()) + per_sample(slack, c) * squares.sqrt()
        ratio = torch.where(torch.isfinite(w), size / w, 0.0).flatten(1)
        worst = torch.maximum(worst, ratio.amax(1)) if ratio.shape[1] else worst
    usable = worst > 0
    alpha = torch.where(usable, 1 / worst, 0.0)
    terms = []
    for w, x, c in zip(form.weights, codes, correlation, strict=True):
        nu = per_sample(alpha, c) * c
        terms.append(torch.where(x == 0, 0.0, (w * x.abs() - x * nu).clamp_min(0)))
    finite = limits.clamp_max(torch.finfo(torch.float64).max)
    rest = alpha * (finite * length - inner(ray, residual))
    return torch.minimum(flat_sum(tuple(terms)) + rest, penalty(form, codes))


def _on_support(form: StandardForm, codes: Blocks, residual: Blocks, correlation: Blocks) -> Blocks:
    """Return ``r - A_S δ`` whose correlations on the support are ``λ w_S sign(x_S)``: that over λ is the ν wanted.

    λ is the mean of ``sign(x_i)a_iᵀr/w_i`` over the support.
    """
    signs = tuple(
        torch.where(torch.isfinite(w), w, 0.0) * torch.sign(x) for w, x in zip(form.weights, codes, strict=True)
    )
    length = squared_norm(signs)
    lam = torch.where(length > 0, inner(signs, correlation) / length.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    target = tuple(per_sample(lam, g) * g for g in signs)
    return on_support(form, tuple(x != 0 for x in codes), target, residual, correlation, _REFINEMENTS)


def with_lam(form: StandardForm, lam: Tensor) -> StandardForm:
    """Return the form with its weights times one number per sample."""
    return replace(form, weights=tuple(per_sample(lam, w) * w for w in form.weights))
