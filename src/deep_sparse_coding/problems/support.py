"""Residuals corrected on the support of the codes: rounding and unfinished codes spoil their dual point less."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import StandardForm, per_sample, squared_norm
from .operators import Blocks

_EPS = torch.finfo(torch.float64).eps
# Supports of up to this many entries are solved by Cholesky, where A is a matrix; others by conjugate gradients.
_LARGEST_SUPPORT = 512
# Numbers of float64 in the columns that are gathered at once: 32 MB.
_SLICE = 2**22


def on_support(
    form: StandardForm, support: Blocks, target: Blocks, residual: Blocks, correlation: Blocks, steps: int
) -> Blocks:
    """Return ``r - A_S δ`` with ``A_SᵀA_S δ = A_Sᵀr - t_S``: what comes out has correlations ``t`` on S.

    By Cholesky where A is one matrix for all samples and the supports are small, else by conjugate gradients, matrix
    free. Where the columns on S depend on each other the result is only near that; what is proved with it must not
    rest on it.

    Args:
        form: The problem, float64.
        support: S as booleans, in the shape of codes.
        target: t, zero off S.
        residual: r.
        correlation: ``Aᵀr``.
        steps: The most conjugate gradient steps.
    """
    wanted = tuple(torch.where(s, c - t, 0.0) for s, c, t in zip(support, correlation, target, strict=True))
    matrix = form.operator.matrix()
    if matrix is not None:
        joined = torch.cat([block.flatten(1) for block in support], 1)
        # More columns than rows depend on each other.
        joined &= joined.sum(1, keepdim=True) <= matrix.shape[0]
        largest = int(joined.sum(1).max()) if joined.numel() else 0
        if largest <= _LARGEST_SUPPORT:
            return _by_cholesky(matrix, joined, largest, wanted, residual)
    return _by_gradients(form, support, wanted, residual, squared_norm(correlation), steps)


def _by_cholesky(matrix: Tensor, support: Tensor, largest: int, wanted: Blocks, residual: Blocks) -> Blocks:
    """Return the corrected residuals by the normal equations of every sample's support, refined once."""
    if not largest:
        return residual
    goal = torch.cat([block.flatten(1) for block in wanted], 1)
    data = torch.cat([block.flatten(1) for block in residual], 1)
    corrected = torch.empty_like(data)
    # Columns are read one by one: a copy in which they are contiguous pays if that is most of the matrix.
    rows = matrix.T.contiguous() if len(data) * largest >= matrix.shape[1] else matrix.T
    size = max(1, _SLICE // (largest * matrix.shape[0]))
    for part in torch.arange(len(data), device=data.device).split(size):
        used, index = support[part].to(torch.int8).topk(largest, dim=1)
        used = used.bool()
        columns = torch.where(used[:, :, None], rows[index], 0.0)
        gram = columns @ columns.mT
        # Places without an entry get a 1 of their own on the diagonal.
        gram.diagonal(dim1=1, dim2=2).add_((~used).to(gram))
        factor, failed = torch.linalg.cholesky_ex(gram)
        factor[failed > 0] = torch.eye(largest).to(factor)
        ray, missing = data[part], torch.where(used, goal[part].gather(1, index), 0.0)
        target = (columns @ ray[:, :, None])[:, :, 0] - missing
        for _ in range(2):
            delta = torch.cholesky_solve(missing[:, :, None], factor)
            ray = ray - (delta.mT @ columns)[:, 0]
            missing = (columns @ ray[:, :, None])[:, :, 0] - target
        corrected[part] = torch.where((failed > 0)[:, None], data[part], ray)
    pieces = corrected.split([math.prod(block.shape[1:]) for block in residual], 1)
    return tuple(piece.reshape(block.shape) for piece, block in zip(pieces, residual, strict=True))


def _by_gradients(
    form: StandardForm, support: Blocks, rest: Blocks, residual: Blocks, scale: Tensor, steps: int
) -> Blocks:
    """Return the corrected residuals by conjugate gradients, all samples at once."""
    step, old = rest, squared_norm(rest)
    ray, goal = residual, (16 * _EPS) ** 2 * scale
    largest, going = torch.zeros_like(old), torch.ones_like(old, dtype=torch.bool)
    for _ in range(steps):
        going = going & (old > goal)
        if not bool(going.any()):
            break
        image = form.operator.synthesize(step)
        curvature, size = squared_norm(image), squared_norm(step)
        largest = torch.maximum(largest, torch.where(size > 0, curvature / size, 0.0))
        # A direction that A takes to zero: the columns on S depend on each other, and steps would know no bound.
        going = going & (curvature > _EPS * largest * size)
        move = torch.where(going, old / curvature, 0.0)
        ray = tuple(r - per_sample(move, a) * a for r, a in zip(ray, image, strict=True))
        back = form.operator.analyze(image)
        rest = tuple(g - per_sample(move, b) * (s * b) for g, b, s in zip(rest, back, support, strict=True))
        new = squared_norm(rest)
        turn = torch.where(going, new / old, 0.0)
        step = tuple(g + per_sample(turn, d) * d for g, d in zip(rest, step, strict=True))
        old = new
    return ray
