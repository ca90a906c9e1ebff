"""Codes that are zero in every minimizer, proved from any codes by gap-safe spheres, after rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.errors import ParameterError, UnsupportedError

from .base import Codes, ConvexProblem, Problem, StandardForm, flat_sum, penalty, per_sample, squared_norm
from .cascaded import LayeredProblem
from .dual import DualPoint, dual_point, support_point
from .operators import Blocks

_EPS = torch.finfo(torch.float64).eps
# Squares below this may have lost what they stand for to underflow.
_SMALLEST_SQUARE = 1e-250


@dataclass(frozen=True, eq=False)
class Screening:
    """How many codes are proved to be zero in every minimizer.

    Attributes:
        zero: The number of them per sample, ``(*batch,)``; for a layered problem over all layers, each as the problem
            that it is on the computed codes below.
        entries: The number of codes of a sample.
    """

    zero: Tensor
    entries: int

    @property
    def fraction(self) -> float:
        """The share of all codes that is proved zero; 1 if there are none."""
        total = self.entries * self.zero.numel()
        return float(self.zero.sum()) / total if total else 1.0

    def __str__(self) -> str:
        return f"{int(self.zero.sum())} of {self.entries * self.zero.numel()} codes proved zero"


def screen(problem: Problem, signal: Tensor, codes: Codes) -> Screening:
    """Return how many codes are proved zero in every minimizer, by what any codes prove.

    Args:
        problem: A Lasso with or without a ridge, a joint problem, or a layered Lasso.
        signal: ``(*batch, ...)``.
        codes: As the problem's solutions have them; the nearer to a minimizer, the more is proved.

    Raises:
        UnsupportedError: A problem of another kind, with bounds or with groups.
        DSCError: Shapes, dtypes or devices that do not fit.

    Source: "Certain zeros" in G5 of docs/theory.md.
    """
    if not isinstance(problem, Problem):
        raise ParameterError(f"problem is a {type(problem).__name__}; expected dsc.Lasso, dsc.JointLasso or the like")
    signal = problem.check_signal(signal)
    batch = problem.batch_shape(signal)
    blocks = problem.pack(codes, signal)
    with torch.no_grad():
        if isinstance(problem, ConvexProblem):
            form = problem.exact_form(signal)
            zeros = proved_zero(form, tuple(block.double() for block in blocks))
            count = torch.stack([block.flatten(1).sum(1) for block in zeros]).sum(0)
            return Screening(count.reshape(batch), sum(math.prod(shape) for shape in form.code_shapes))
        if isinstance(problem, LayeredProblem):
            layers = [screen(stage, z, x) for stage, x, z in problem.by_layer(codes, signal)]
            total = torch.stack([layer.zero for layer in layers]).sum(0)
            return Screening(total, sum(layer.entries for layer in layers))
    raise UnsupportedError(
        f"zeros are not proved for a {type(problem).__name__}; expected dsc.Lasso, dsc.JointLasso or dsc.LayeredLasso"
    )


def proved_zero(form: StandardForm, codes: Blocks) -> Blocks:
    """Return which codes are zero in every minimizer, as booleans in the shape of the codes.

    With ``c = (r + θ)/2`` and ``R² = ¼‖r-θ‖² + Σ(w_i|x_i| - x_i a_iᵀθ)`` the dual solution is within R of c; code i is
    zero if ``|a_iᵀc| + ‖a_i‖R < w_i`` (non-negative: without the bars), rounding added to the left. Both dual points,
    scaled and corrected, are tried.

    Args:
        form: The problem, float64.
        codes: x, float64. Where they are not finite, or weights of 0 are in use, nothing is proved.

    Raises:
        UnsupportedError: Bounds or groups.

    Source: G5 and "Rounding" of docs/theory.md; gap-safe spheres, Ndiaye, Fercoq, Gramfort & Salmon 2017.
    """
    if form.beyond:
        raise UnsupportedError(
            f"zeros are not proved for problems with {form.beyond}; expected a weighted ℓ1 norm, with or without "
            "a ridge"
        )
    loss = _Loss.of(form, codes)
    scaled = dual_point(form, codes, widen=True)
    first = _zeros(form, codes, scaled, loss)
    second = _zeros(form, codes, support_point(form, codes, scaled.residual), loss)
    finite = torch.stack([torch.isfinite(block).flatten(1).all(1) for block in (*scaled.residual, *codes)]).all(0)
    return tuple((one | two) & per_sample(finite, one) for one, two in zip(first, second, strict=True))


@dataclass(frozen=True, eq=False)
class _Loss:
    """What float64 loses in ``A x`` and ``Aᵀ r``.

    Attributes:
        norms: ``‖a_i‖`` rounded up, block by block.
        residual: A bound on the error of ``b - A x`` per sample; inf where nothing can be said.
        analysis: The factor of ``‖a_i‖‖r‖`` in the error of ``a_iᵀr``.
        grow: What sums over all entries may be too small by.
    """

    norms: Blocks
    residual: Tensor
    analysis: float
    grow: float

    @classmethod
    def of(cls, form: StandardForm, codes: Blocks) -> _Loss:
        """Return the bounds for some codes; a mask, √β and the scaling of θ cost a few units more."""
        synthesis, analysis = (count + 6 for count in form.operator.terms())
        norms = tuple(n.clamp_min(0).sqrt() * (1 + (analysis + 2) * _EPS) for n in form.operator.squared_norms())
        sizes = form.operator.entrywise_abs().synthesize(tuple(block.abs() for block in codes))
        energy = squared_norm(form.data)
        lost = synthesis * _EPS * (energy.sqrt() + squared_norm(sizes).sqrt())
        known = torch.isfinite(penalty(form, codes)) & ((energy > _SMALLEST_SQUARE) | _silent(form, codes))
        if any(bool((w == 0).any()) for w in form.weights):
            known = torch.zeros_like(known)
        entries = sum(math.prod(block.shape[1:]) for block in (*codes, *form.data))
        return cls(norms, torch.where(known, lost, math.inf), analysis * _EPS, 1 + (entries + 8) * _EPS)


def _zeros(form: StandardForm, codes: Blocks, point: DualPoint, loss: _Loss) -> Blocks:
    """Return the zeros that one dual point proves."""
    pairs = list(zip(point.residual, point.theta, strict=True))
    difference = squared_norm(tuple(r - t for r, t in pairs)).sqrt()
    size = squared_norm(point.theta).sqrt()
    dual = form.operator.analyze(point.theta)
    terms = []
    for w, x, c, n in zip(form.weights, codes, dual, loss.norms, strict=True):
        term = (w * x.abs() - x * c).clamp_min(0) + x.abs() * (2 * _EPS * w + n * per_sample(loss.analysis * size, x))
        terms.append(torch.where(x != 0, term, 0.0))
    # The true residual lies within `extra` of the computed one.
    extra = loss.residual
    whole = flat_sum(tuple(terms)) + extra * (difference + extra)
    center = tuple(0.5 * (r + t) for r, t in pairs)
    length = squared_norm(center).sqrt()
    squares = 0.25 * difference.square() + whole
    radius = squares.sqrt() * loss.grow + 0.5 * extra + _EPS * length
    resolved = torch.isfinite(radius) & ((squares > _SMALLEST_SQUARE) | _silent(form, codes))
    reach = torch.where(resolved, radius, math.inf) + loss.analysis * length
    found = []
    for w, c, n in zip(form.weights, form.operator.analyze(center), loss.norms, strict=True):
        value = c if form.nonnegative else c.abs()
        room = n * per_sample(reach, c) * (1 + 4 * _EPS)
        # An atom of norm 0 with an infinite reach makes NaN, which proves nothing.
        found.append((value + room + _EPS * value.abs() < w) & torch.isfinite(per_sample(reach, c)) | (w == math.inf))
    return tuple(found)


def _silent(form: StandardForm, codes: Blocks) -> Tensor:
    """Return for which samples data and codes are all zero: nothing underflows there."""
    return torch.stack([(block == 0).flatten(1).all(1) for block in (*form.data, *codes)]).all(0)
