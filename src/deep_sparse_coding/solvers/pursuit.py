"""What a method for the ℓ0 problem is, and what several of them share: largest entries, least squares, sizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from deep_sparse_coding.problems import Blocks, StandardForm
from deep_sparse_coding.problems.base import per_sample, squared_norm

from .constrained import least_squares

#: Above this many columns the Gram matrix no longer pays (8 bytes an entry).
LARGEST_GRAM = 8192
# Rounds in which non-negative coefficients lose those that turned negative.
_CLIPS = 20
# A squared pivot of the Gram matrix of unit atoms below this: conjugate gradients do better.
_PIVOT = 1e-8
# Entries of Gram matrices that are factored at once.
_AT_ONCE = 1 << 23

#: Codes (one block, float64) with at most so many non-zeros, a number per sample.
Search = Callable[[StandardForm, Tensor], Tensor]


class Pursuit(ABC):
    """A method for the ℓ0 problem. Concrete ones are frozen dataclasses that hold settings only."""

    #: Whether the answer is proved optimal.
    exact: bool = False

    @property
    def name(self) -> str:
        """The name that solutions print."""
        return type(self).__name__

    @abstractmethod
    def pursue(self, form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
        """Return codes (float64) and the number of steps per sample, counted in atoms.

        Args:
            form: Operator and data of finite samples in float64; weights mean nothing.
            sparsity: The most non-zeros of a sample.
            limits: The residual norm at which a sample is done, or None for never.
        """


def by_size(form: StandardForm, sparsity: int, limits: Tensor | None, search: Search) -> tuple[Blocks, Tensor]:
    """Return what `pursue` does, for a method that is told the number of non-zeros.

    Without limits that number is the sparsity. With limits it doubles until a sample is met, and is then searched by
    halves: the method was allowed k atoms for the answer, and with k - 1 it did not come within the limit. All at a
    scale where no square overflows or vanishes.
    """
    largest = form.data[0].flatten(1).abs().amax(1) if form.data[0].numel() else form.data[0].new_zeros(form.batch)
    scale = torch.where(largest > 0, torch.exp2(torch.floor(torch.log2(largest))), 1.0)  # exact to divide by
    scaled = replace(form, data=(form.data[0] / per_sample(scale, form.data[0]),))
    if limits is None:
        codes = search(scaled, torch.full((form.batch,), sparsity, device=scale.device))
    else:
        codes = _least_size(scaled, sparsity, limits / scale, search)
    steps = (codes != 0).flatten(1).sum(1).cpu()
    return (codes * per_sample(scale, codes),), steps


def _least_size(form: StandardForm, sparsity: int, limits: Tensor, search: Search) -> Tensor:
    (best,) = form.zeros()
    norm = squared_norm(form.data).sqrt()
    below = torch.zeros(form.batch, dtype=torch.int64, device=norm.device)  # the largest size known to miss
    above = torch.where(norm <= limits, 0, sparsity + 1)  # the smallest known to meet, if any
    nearest = norm.clone()
    while True:
        size = torch.where(above > sparsity, (2 * below).clamp(1, sparsity), (below + above) // 2)
        rows = ((above - below > 1) & (size > below)).nonzero().flatten()
        if not len(rows):
            return best
        here = form.select(rows)
        codes = search(here, size[rows])
        norm = squared_norm(here.residual((codes,))).sqrt()
        met = norm <= limits[rows]
        # Before ε is met, the nearest codes so far are kept; after that, the fewest atoms.
        keep = (met | ((above[rows] > sparsity) & (norm < nearest[rows]))).nonzero().flatten()
        best[rows[keep]], nearest[rows[keep]] = codes[keep], norm[keep]
        above[rows] = torch.where(met, torch.minimum(size[rows], above[rows]), above[rows])
        below[rows] = torch.where(met, below[rows], size[rows])


def largest_entries(score: Tensor, sizes: Tensor) -> Tensor:
    """Return where the `sizes` largest positive scores of each sample are, True and False in the scores' shape.

    Among equal scores the one with the smaller index counts as larger.
    """
    flat = score.flatten(1)
    most = min(int(sizes.max()), flat.shape[1]) if len(sizes) else 0
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    if most:
        value, place = flat.topk(most, dim=1)
        rank = torch.arange(most, device=flat.device)
        wanted = sizes[:, None].clamp_max(most)
        last = value.gather(1, wanted - 1)
        chosen.scatter_(1, place, (rank < wanted) & (value > 0))
        ties = (flat == last) & (last > 0)
        rows = (ties.sum(1) > 1).nonzero().flatten()
        if len(rows):
            above, equal = flat[rows] > last[rows], ties[rows]
            room = wanted[rows] - above.sum(1, keepdim=True)
            chosen[rows] = above | (equal & (equal.cumsum(1) <= room))
    return chosen.reshape(score.shape)


def column_norms(form: StandardForm) -> tuple[Tensor, Tensor]:
    """Return ``‖a_i‖`` and its inverse (0 for columns of zeros), in shapes that broadcast against the codes."""
    norms = form.operator.squared_norms()[0].sqrt()
    return norms, torch.where(norms > 0, 1 / norms, 0.0)


def fit_support(form: StandardForm, support: Tensor, gram: Tensor | None = None) -> Tensor:
    """Return ``argmin ‖b - A x‖`` over x on a support.

    Held non-negative, coefficients that turn negative leave the support until none is.

    Args:
        form: The problem.
        support: True where x may differ from zero.
        gram: ``AᵀA`` of unit columns where the operator is a small matrix: small systems are then factored.
    """
    (codes,) = form.zeros()
    rows = torch.arange(form.batch, device=codes.device)
    for _ in range(_CLIPS):
        here = form.select(rows)
        fit = _fit(here, support[rows], gram)
        negative = (fit < 0) & form.nonnegative
        codes[rows] = torch.where(negative, 0.0, fit)
        support = support.index_put((rows,), support[rows] & ~negative)
        rows = rows[negative.flatten(1).any(1)]
        if not len(rows):
            break
    return codes


def _fit(form: StandardForm, support: Tensor, gram: Tensor | None) -> Tensor:
    (fit,), left = form.zeros(), torch.ones(form.batch, dtype=torch.bool, device=support.device)
    matrix = form.operator.matrix()
    size = int(support.flatten(1).sum(1).max()) if form.batch else 0
    if gram is not None and matrix is not None and 0 < size <= matrix.shape[0]:
        fit, left = _factored(form, support, gram, size)
    rows = left.nonzero().flatten()
    if len(rows):
        here, part = form.select(rows), support[rows].double()
        # From zeros: started at the answer, conjugate gradients would take rounding for a gradient.
        (some,) = least_squares(here, here.zeros(), here.data, part.new_zeros(len(rows)), (part,))
        fit = fit.index_copy(0, rows, some)
    return fit


def _factored(form: StandardForm, support: Tensor, gram: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return least squares by Cholesky factors, and for which samples the atoms are too dependent for that."""
    inverse = column_norms(form)[1]
    (right,) = form.operator.analyze(form.data)
    fit, left = torch.zeros_like(right), torch.zeros(form.batch, dtype=torch.bool, device=right.device)
    step = max(1, _AT_ONCE // size**2)
    for lo in range(0, form.batch, step):
        here = slice(lo, lo + step)
        # The support in order, padded by rows and columns of the identity.
        count = support[here].sum(1)
        row, column = support[here].nonzero(as_tuple=True)
        place = row.new_zeros(len(count), size)
        place[row, torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]] = column
        used = torch.arange(size, device=place.device) < count[:, None]
        system = gram[place[:, :, None], place[:, None, :]] * (used[:, :, None] & used[:, None, :])
        system.diagonal(dim1=1, dim2=2).copy_(torch.where(used, system.diagonal(dim1=1, dim2=2), 1.0))
        factor, info = torch.linalg.cholesky_ex(system)
        wanted = torch.where(used, (right[here] * inverse).gather(1, place), 0.0)
        good = (info == 0) & (factor.diagonal(dim1=1, dim2=2) ** 2 > _PIVOT).all(1)
        factor = torch.where(good[:, None, None], factor, torch.eye(size).to(factor))
        solved = torch.cholesky_solve(wanted[..., None], factor)[..., 0]
        fit[here] = torch.zeros_like(right[here]).scatter_add(1, place, torch.where(used, solved, 0.0)) * inverse
        left[here] = ~good
    return fit, left


def unit_gram(form: StandardForm) -> Tensor | None:
    """Return ``AᵀA`` of A with unit columns where A is a matrix that all samples share, with few columns; else None."""
    matrix = form.operator.matrix()
    if matrix is None or matrix.shape[1] > LARGEST_GRAM:
        return None
    norms = torch.linalg.vector_norm(matrix, dim=0)
    unit = matrix * torch.where(norms > 0, 1 / norms, 0.0)
    return unit.T @ unit
