"""The one assessor: objective, dual value and duality gap of any codes, in float64, from the codes alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.errors import ParameterError

from .base import Codes, ConvexProblem, Problem, StandardForm, form_objective, squared_norm, unresolved
from .cascaded import LayeredProblem
from .dual import dual_point, support_point
from .operators import Blocks

# The relative gap is measured against the objective, but not below this share of ½‖b‖²: an objective that is zero but
# for rounding (an exact fit without penalty) resolves no relative gap of its own.
_OBJECTIVE_FLOOR = 1e-6
# What `solve` asks for if it is told nothing else.
DEFAULT_TOL = 1e-6
# Relative gaps up to this size are worth a second dual point: larger ones are those of codes whose support is not yet
# that of the solution.
_NEAR = 1e-3


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is proved about codes, per sample, float64.

    Attributes:
        objective: ``P(x)``.
        dual: ``D(θ) ≤ P*`` at a feasible dual point.
        gap: ``P(x) - D(θ) ≥ P(x) - P*``, computed term by term so that nothing cancels.
        relative_gap: ``gap / max(P(x), 1e-6·½‖b‖²)``; 0 where the gap is 0; for a layered problem the largest over the
            layers.
        layers: For a layered problem the certificate of every layer, else empty.
    """

    objective: Tensor
    dual: Tensor
    gap: Tensor
    relative_gap: Tensor
    layers: tuple[Certificate, ...] = ()

    def reshape(self, batch: tuple[int, ...]) -> Certificate:
        """Return the certificate with its samples in another shape."""
        parts = (self.objective, self.dual, self.gap, self.relative_gap)
        objective, dual, gap, relative = (part.reshape(batch) for part in parts)
        return Certificate(objective, dual, gap, relative, tuple(layer.reshape(batch) for layer in self.layers))

    def __str__(self) -> str:
        if not self.gap.numel():
            return "certificate of an empty batch"
        return (
            f"{self.gap.numel()} sample(s) · objective ≤ {self.objective.max():.6g} · gap ≤ {self.gap.max():.3g} · "
            f"relative gap ≤ {self.relative_gap.max():.3g}"
        )


class CertifiedProblem(Problem, ABC):
    """A problem that computes its own certificate, since it is no weighted Lasso."""

    @abstractmethod
    def certificate(self, codes: Codes, signal: Tensor) -> Certificate:
        """Return the certificate of checked codes, float64, in the batch's shape."""

    def objective(self, codes: Codes, signal: Tensor) -> Tensor:
        """Return the objective per sample, in float64; inf where a constraint is violated."""
        signal = self.check_signal(signal)
        self.pack(codes, signal)
        with torch.no_grad():
            return self.certificate(codes, signal).objective


def assess_form(form: StandardForm, codes: Blocks, tol: float = DEFAULT_TOL) -> Certificate:
    """Return the certificate of flat codes, computed in float64 whatever their precision.

    The dual point is the scaled residual. Samples whose relative gap it leaves above `tol`, but near it, get a second
    one, the residual corrected on the support, and the better of the two.

    The gap is inf, which proves nothing, where the squares of the data leave the range of float64.

    Args:
        form: The problem.
        codes: x, one block per layer.
        tol: The relative gap that is small enough; inf asks for the scaled residual alone.

    Source: G5 of docs/theory.md.
    """
    form = form.cast(torch.float64)
    codes = tuple(block.double() for block in codes)
    point = dual_point(form, codes)
    certificate = certify_gap(form.data, form_objective(form, codes, point.residual), point.gap)
    relative = certificate.relative_gap
    near = (relative > tol) & (relative <= _NEAR)
    if not bool(near.any()):
        return certificate
    rows = near.nonzero().flatten()
    everyone = len(rows) == form.batch
    some = form if everyone else form.select(rows)
    x, r = (blocks if everyone else tuple(b[rows] for b in blocks) for blocks in (codes, point.residual))
    second = support_point(some, x, r).gap
    # fmin: a correction that failed, with NaN, changes nothing.
    gap = point.gap.index_copy(0, rows, torch.fmin(point.gap[rows], second))
    return certify_gap(form.data, certificate.objective, gap)


def certify_gap(data: Blocks, objective: Tensor, gap: Tensor) -> Certificate:
    """Return the certificate of an objective and its gap, float64, for the data b that scale them."""
    energy = squared_norm(data)
    nothing = unresolved(data, energy)
    gap = torch.where(nothing, math.inf, gap)
    scale = torch.maximum(objective, _OBJECTIVE_FLOOR * 0.5 * energy)
    relative = torch.where((gap == 0) & torch.isfinite(objective), 0.0, gap / scale)
    relative = torch.where(nothing, math.inf, relative)
    return Certificate(objective, torch.where(nothing, -math.inf, objective - gap), gap, relative)


def assess(problem: Problem, signal: Tensor, codes: Codes, tol: float = DEFAULT_TOL) -> Certificate:
    """Return the certificate of codes from anywhere, in the signal's batch shape.

    Args:
        problem: Any problem of this library.
        signal: ``(*batch, ...)``.
        codes: As the problem's solutions have them: a tensor, or a tuple with one per layer.
        tol: The relative gap that is small enough: no second dual point is tried where the first proves it. Convex
            problems only.

    Raises:
        DSCError: Shapes, dtypes or devices that do not fit.
    """
    if not isinstance(problem, Problem):
        raise ParameterError(f"problem is a {type(problem).__name__}; expected dsc.Lasso, dsc.BasisPursuit or the like")
    signal = problem.check_signal(signal)
    batch = problem.batch_shape(signal)
    blocks = problem.pack(codes, signal)
    with torch.no_grad():
        if isinstance(problem, ConvexProblem):
            return assess_form(problem.exact_form(signal), blocks, tol).reshape(batch)
        if isinstance(problem, LayeredProblem):
            return combine([assess(stage, z, x, tol) for stage, x, z in problem.by_layer(codes, signal)])
        if isinstance(problem, CertifiedProblem):
            return problem.certificate(codes, signal)
    raise TypeError(f"no certificate for a {type(problem).__name__}")


def combine(layers: list[Certificate]) -> Certificate:
    """Return the certificate of a layered problem: sums over the layers, and the largest of their relative gaps."""
    return Certificate(
        torch.stack([layer.objective for layer in layers]).sum(0),
        torch.stack([layer.dual for layer in layers]).sum(0),
        torch.stack([layer.gap for layer in layers]).sum(0),
        torch.stack([layer.relative_gap for layer in layers]).amax(0),
        tuple(layers),
    )
