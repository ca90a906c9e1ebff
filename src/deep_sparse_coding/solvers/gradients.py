"""Gradients of codes by implicit differentiation on their support, whatever solver found them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from deep_sparse_coding.errors import DSCWarning, UnsupportedError
from deep_sparse_coding.problems import Blocks, Codes, ConvexProblem, LayeredLasso, Problem
from deep_sparse_coding.problems.base import per_sample
from deep_sparse_coding.problems.operators import Operator
from deep_sparse_coding.problems.penalties import Curvature

# The most float64 entries that the supports' columns of one chunk of samples may take.
_CHUNK = 1 << 22
# A pivot this far below its column's squared norm is rounding: the columns are linearly dependent.
_DEPENDENT = 64 * torch.finfo(torch.float64).eps
_SMALLEST_EIGENVALUE = 1e-12
# Conjugate gradients aim at the first relative residual; above the second a warning says so.
_AIM, _ACCEPTED = 1e-12, 1e-7
_MOST_ITERATIONS = 5000


def attach_gradients(problem: Problem, signal: Tensor, codes: Codes) -> Codes:
    """Return the codes with a graph to the signal, the atoms, lam and weights, as far as those require gradients.

    On the support S of a minimizer x with signs σ the optimality conditions are ``A_Sᵀ(b - A x) - w_S σ = 0``. Their
    differential gives ``dx_S = (A_SᵀA_S)⁻¹ d[A_Sᵀ(b - A x̄) - w_S σ]`` with x̄ held fixed, and ``dx = 0`` off S. The
    bracket is built with autograd; the backward pass solves one linear system per sample, and autograd does the rest.
    Entries at a bound do not move and are left out of S. For groups S holds the groups in use, ``w_S x_S/‖x_S‖`` takes
    the place of ``w_S σ``, and its derivative ``(w_g/‖x_g‖)(I - x̂x̂ᵀ)`` is added to ``A_SᵀA_S``.

    Exact for exact minimizers away from kinks (no zero entry with ``|a_iᵀr| = w_i``, none at a bound that does not
    press against it); at kinks one of the one-sided derivatives in some directions. Where the atoms of the support are
    linearly dependent, x itself is not unique, and the system's solution of least norm is taken, with a warning.
    Weights that are 0 or inf are settings and get no gradient, nor do mask, beta, bounds and ridge. Samples whose codes
    are not finite pass no gradients.

    Args:
        problem: What was solved.
        signal: ``(*batch, ...)``, with its graph.
        codes: The solution, without one.

    Source: differentiation on the active set, Mairal, Bach & Ponce 2012, proposition 1.
    """
    require_differentiable(problem)
    if isinstance(problem, LayeredLasso):
        below, layers = signal, []
        for stage, block in zip(problem.stages, codes, strict=True):
            # A stage's signal is the layer below with its graph: the chain rule runs through all of them.
            below = cast(Tensor, _attach(stage, below, block))
            layers.append(below)
        return tuple(layers)
    return _attach(cast(ConvexProblem, problem), signal, codes)


def require_differentiable(problem: object) -> None:
    """Raise unless the codes of a problem can be differentiated.

    Raises:
        UnsupportedError: It is no penalized convex problem.
    """
    if not isinstance(problem, ConvexProblem | LayeredLasso):
        raise UnsupportedError(
            f"differentiable=True does not take a {type(problem).__name__}; expected a dsc.Lasso, LayeredLasso or "
            "JointLasso: for a given residual dsc.choose_lam(..., noise=...) finds the lam"
        )


def _attach(problem: ConvexProblem, signal: Tensor, codes: Codes) -> Codes:
    form = problem.form(signal, differentiable=True)
    blocks = problem.pack(codes, signal)
    finite = torch.ones(form.batch, dtype=torch.bool, device=signal.device)
    for block in blocks:
        finite &= torch.isfinite(block).flatten(1).all(1)
    # A sample that is not finite is zeroed at the source: zero times its NaN would spoil the gradients of the others.
    fixed = tuple(torch.where(per_sample(finite, block), block, 0.0) for block in blocks)
    data = tuple(torch.where(per_sample(finite, block), block, 0.0) for block in form.data)
    support = form.penalty.movable(fixed)
    residual = replace(form, data=data).residual(fixed)
    slope = tuple(
        torch.where(s, c - push, 0.0)
        for s, c, push in zip(
            support, form.operator.analyze(residual), form.penalty.slope(form.weights, fixed), strict=True
        )
    )
    if not any(block.requires_grad for block in slope):
        return codes
    with torch.no_grad():
        exact = form.cast(torch.float64)
        curvature = exact.penalty.curvature(exact.weights, tuple(block.double() for block in fixed))
        system = _System(exact.operator, blocks, support, curvature)
    attached = cast(Blocks, _Implicit.apply(system, *slope))
    return problem.unpack(attached, problem.batch_shape(signal))


class _Implicit(torch.autograd.Function):
    """The identity on the codes, whose backward pass solves ``(A_SᵀA_S + H) u = v``."""

    @staticmethod
    def forward(ctx: Any, system: _System, *slope: Tensor) -> Blocks:
        """Return the codes; the slope is zero up to the solver's tolerance and matters through its graph only."""
        del slope
        ctx.system = system
        return tuple(block.clone() for block in system.codes)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return what reaches the slope.

        Raises:
            UnsupportedError: A graph of the gradients is asked for; the slope alone would make a wrong one.
        """
        if torch.is_grad_enabled():
            raise UnsupportedError(
                "codes of differentiable=True are differentiated once; expected a backward pass without "
                "create_graph=True: take gradients of gradients by finite differences"
            )
        return (None, *ctx.system.solve(upstream))


@dataclass(frozen=True, eq=False)
class _System:
    """The normal equations of every sample's support, in float64 whatever the precision of the codes.

    Attributes:
        operator: A, without graph.
        codes: Flat codes.
        support: Where they move.
        curvature: H, the penalty's Hessian there, or None for zero.
    """

    operator: Operator
    codes: Blocks
    support: Blocks
    curvature: Curvature | None

    def solve(self, upstream: Blocks) -> Blocks:
        """Return u with ``(A_SᵀA_S + H) u = v`` on the support and 0 elsewhere."""
        right = tuple(torch.where(s, v.double(), 0.0) for s, v in zip(self.support, upstream, strict=True))
        if not any(bool(block.any()) for block in right):
            return tuple(torch.zeros_like(v) for v in upstream)
        matrix = self.operator.matrix()
        if matrix is None:
            found = self._iterate(right)
        else:
            flat = torch.cat([block.flatten(1) for block in right], 1)
            support = torch.cat([block.flatten(1) for block in self.support], 1)
            hessian = None if self.curvature is None else _Hessian.of(self.curvature)
            solved = solve_supports(matrix, support, flat, hessian)
            pieces = solved.split([s[0].numel() for s in self.support], 1)
            found = tuple(piece.reshape(block.shape) for piece, block in zip(pieces, right, strict=True))
        return tuple(u.to(v.dtype) for u, v in zip(found, upstream, strict=True))

    def _iterate(self, right: Blocks) -> Blocks:
        """Return the solution by conjugate gradients, scaled by the column norms."""
        norms = self.operator.squared_norms()
        if self.curvature is not None:
            norms = tuple(norm + scale for norm, scale in zip(norms, self.curvature.scale, strict=True))
        norms = tuple(torch.where(norm > 0, norm, 1.0) for norm in norms)

        def apply(blocks: Blocks) -> Blocks:
            images = self.operator.analyze(self.operator.synthesize(blocks))
            if self.curvature is not None:
                images = tuple(a + b for a, b in zip(images, self.curvature.apply(blocks), strict=True))
            return tuple(torch.where(s, image, 0.0) for s, image in zip(self.support, images, strict=True))

        batch = len(right[0])
        sizes = [int(s.flatten(1).sum(1).max()) for s in self.support]
        limit = min(20 * sum(sizes) + 100, _MOST_ITERATIONS)
        scale = _dot(right, right).sqrt()
        aim = _AIM * scale
        u = tuple(torch.zeros_like(block) for block in right)
        r = right
        z = tuple(a / n for a, n in zip(r, norms, strict=True))
        p, rho = z, _dot(r, z)
        active = scale > 0
        for _ in range(limit):
            q = apply(p)
            curvature = _dot(p, q)
            active = active & (curvature > 0)
            if not bool(active.any()):
                break
            alpha = torch.where(active, rho / torch.where(active, curvature, 1.0), 0.0)
            u = _plus(u, alpha, p)
            r = _plus(r, -alpha, q)
            active = active & (_dot(r, r).sqrt() > aim)
            z = tuple(a / n for a, n in zip(r, norms, strict=True))
            above = _dot(r, z)
            beta = torch.where(active, above / torch.where(active, rho, 1.0), 0.0)
            p, rho = _plus(z, beta, p), above
        # What the recurrence calls its residual falls on when the true one has long stopped.
        left = tuple(a - b for a, b in zip(right, apply(u), strict=True))
        reached = _dot(left, left).sqrt() / torch.where(scale > 0, scale, 1.0)
        bad = ~(reached <= _ACCEPTED)
        if bool(bad.any()):
            warnings.warn(
                f"the gradients of {int(bad.sum())} of {batch} samples are inexact: conjugate gradients on the support "
                f"stopped at a relative residual of {float(reached.max()):.1e}, {_AIM:.0e} was aimed at; the atoms in "
                "use are (nearly) linearly dependent: raise lam for a sparser code",
                DSCWarning,
                stacklevel=2,
            )
        return u


@dataclass(frozen=True, eq=False)
class _Hessian:
    """A group penalty's Hessian, ``scale·(I - x̂x̂ᵀ)`` in every group, entries of all blocks in one axis.

    Attributes:
        scale: ``(samples, columns)``.
        unit: x̂, ``(samples, columns)``.
        group: The group of every column, ``(columns,)``.
    """

    scale: Tensor
    unit: Tensor
    group: Tensor

    @classmethod
    def of(cls, curvature: Curvature) -> _Hessian:
        """Return the joined view of a dense form's curvature."""
        groups, offset = [], 0
        for index, count in zip(curvature.index, curvature.counts, strict=True):
            groups.append(index + offset)
            offset += count
        return cls(torch.cat(curvature.scale, 1), torch.cat(curvature.unit, 1), torch.cat(groups))

    def select(self, rows: Tensor) -> _Hessian:
        """Return the Hessian of some samples."""
        return replace(self, scale=self.scale[rows], unit=self.unit[rows])

    def at(self, places: Tensor, valid: Tensor) -> Tensor:
        """Return the matrices of some columns per sample, ``(samples, places, places)``, 0 where not valid."""
        scale, group = self.scale.gather(1, places) * valid, self.group[places]
        unit = self.unit.gather(1, places) * valid
        same = (group[:, :, None] == group[:, None, :]).to(scale.dtype)
        outer = (scale * unit)[:, :, None] * unit[:, None, :]
        return torch.diag_embed(scale) - same * outer


def solve_supports(matrix: Tensor, support: Tensor, right: Tensor, hessian: _Hessian | None = None) -> Tensor:
    """Return u with ``(A_SᵀA_S + H) u_S = v_S`` for every row's own support S, and 0 elsewhere.

    Args:
        matrix: A, ``(rows, columns)``, float64.
        support: ``(samples, columns)``, True on S.
        right: v, ``(samples, columns)``, 0 off S.
        hessian: H, or None for zero.
    """
    found = torch.zeros_like(right)
    counts = support.sum(1)
    order = torch.argsort(counts)
    dependent, start = 0, int((counts == 0).sum())
    while start < len(order):
        # Samples of like support sizes go together, so that little is padded.
        stop = start + 1
        while stop < len(order):
            size = int(counts[order[min(2 * stop - start, len(order)) - 1]])
            if (min(2 * stop - start, len(order)) - start) * size * (len(matrix) + 2 * size) > _CHUNK:
                break
            stop = min(2 * stop - start, len(order))
        rows = order[start:stop]
        here = None if hessian is None else hessian.select(rows)
        found[rows], failed = _solve_chunk(matrix, support[rows], right[rows], here)
        dependent += failed
        start = stop
    if dependent:
        warnings.warn(
            f"the atoms in use are linearly dependent for {dependent} of {len(right)} samples, whose codes are not "
            "unique; their gradients are those of least norm: raise lam, or remove duplicate atoms",
            DSCWarning,
            stacklevel=2,
        )
    return found


def _solve_chunk(matrix: Tensor, support: Tensor, right: Tensor, hessian: _Hessian | None) -> tuple[Tensor, int]:
    """Return the solutions of some samples, and how many of them have dependent columns."""
    counts = support.sum(1)
    size = int(counts.max())
    places = torch.sort((~support).to(torch.uint8), dim=1, stable=True).indices[:, :size]
    valid = torch.arange(size, device=support.device) < counts[:, None]
    columns = matrix.T[places] * valid[..., None]
    gram = columns @ columns.mT + torch.diag_embed((~valid).to(matrix.dtype))
    if hessian is not None:
        gram = gram + hessian.at(places, valid)
    vector = right.gather(1, places) * valid
    factor, info = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal(dim1=1, dim2=2).square() / gram.diagonal(dim1=1, dim2=2)
    singular = (info != 0) | ~(pivots.amin(1) > size * _DEPENDENT)
    safe = torch.where(singular[:, None, None], torch.eye(size).to(factor), factor)
    solved = torch.cholesky_solve(vector[..., None], safe)[..., 0]
    if bool(singular.any()):
        inverse = torch.linalg.pinv(gram[singular], rtol=_SMALLEST_EIGENVALUE, hermitian=True)
        solved[singular] = (inverse @ vector[singular][..., None])[..., 0]
    found = torch.zeros_like(right)
    return found.scatter(1, places, solved * valid), int(singular.sum())


def _dot(first: Blocks, second: Blocks) -> Tensor:
    products = [(a * b).flatten(1).sum(1) for a, b in zip(first, second, strict=True)]
    return torch.stack(products).sum(0)


def _plus(first: Blocks, factor: Tensor, second: Blocks) -> Blocks:
    return tuple(a + per_sample(factor, b) * b for a, b in zip(first, second, strict=True))
