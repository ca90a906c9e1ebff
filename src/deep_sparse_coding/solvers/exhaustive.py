"""The ℓ0 solution itself, for tiny problems: every support."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_integer
from deep_sparse_coding.errors import UnsupportedError
from deep_sparse_coding.problems import Blocks, StandardForm
from deep_sparse_coding.problems.base import squared_norm

from .pursuit import Pursuit

_SUPPORTS_AT_ONCE = 4096


@dataclass(frozen=True)
class Exhaustive(Pursuit):
    """Every support of at most s atoms, least squares on each: the ℓ0 solution itself, for tiny problems.

    Attributes:
        max_supports: Refuse above this many supports.
    """

    max_supports: int = 1_000_000
    exact = True

    def __post_init__(self) -> None:
        require_integer("max_supports", self.max_supports, minimum=1)

    def pursue(self, form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
        """Return the best codes; with limits, those with the fewest atoms, and the least residual among them.

        Raises:
            UnsupportedError: Masks per sample, or too many supports.
        """
        if any(len(part) != 1 for part in form.operator.squared_norms()[:1]) and form.operator.matrix() is None:
            raise UnsupportedError("Exhaustive takes a mask that all samples share; use dsc.OMP()")
        entries = math.prod(form.code_shapes[0])
        total = sum(math.comb(entries, k) for k in range(sparsity + 1))
        if total > self.max_supports:
            raise UnsupportedError(
                f"Exhaustive would look at {total} supports, {self.max_supports} are allowed; use dsc.OMP(), a smaller "
                "sparsity, or raise max_supports"
            )
        matrix = form.operator.matrix()
        if matrix is None:
            units = torch.eye(entries, dtype=torch.float64, device=form.data[0].device)
            one = form.operator.select(torch.zeros(1, dtype=torch.long)) if form.batch else form.operator
            matrix = one.synthesize((units.reshape(entries, *form.code_shapes[0]),))[0].flatten(1).T
        data = form.data[0].flatten(1)
        best = squared_norm(form.data)
        codes = data.new_zeros(form.batch, entries)
        size = torch.zeros(form.batch, dtype=torch.int64)
        for k in range(1, sparsity + 1):
            # With limits, samples that are met keep the fewer atoms.
            open_ = torch.ones_like(best, dtype=torch.bool) if limits is None else best.sqrt() > limits
            for supports in _supports(entries, k):
                error, coefficients = _fit_supports(matrix, data, supports.to(data.device), form.nonnegative)
                least, which = error.min(0)
                rows = (open_ & (least < best * (1 - 1e-12))).nonzero().flatten()
                best[rows], size[rows.cpu()] = least[rows], k
                codes[rows] = 0.0
                codes[rows[:, None], supports.to(data.device)[which[rows]]] = coefficients[which[rows], rows]
        return (codes.reshape(form.batch, *form.code_shapes[0]),), size


def _supports(entries: int, size: int) -> Iterator[Tensor]:
    everything = itertools.combinations(range(entries), size)
    while chunk := list(itertools.islice(everything, _SUPPORTS_AT_ONCE)):
        yield torch.tensor(chunk)


def _fit_supports(matrix: Tensor, data: Tensor, supports: Tensor, nonnegative: bool) -> tuple[Tensor, Tensor]:
    """Return ``‖y - A_S c‖²`` ``(supports, samples)`` and c ``(supports, samples, size)``; inf for dependent columns.

    Dependent columns are left out: an independent support of the same span is among the others.
    """
    columns = matrix.T[supports].transpose(1, 2)
    size = supports.shape[1]
    if size > matrix.shape[0]:
        bad = data.new_full((len(supports), len(data)), math.inf)
        return bad, data.new_zeros(len(supports), len(data), size)
    q, r = torch.linalg.qr(columns)
    diagonal = r.diagonal(dim1=1, dim2=2).abs()
    lengths = torch.linalg.vector_norm(columns, dim=1)
    dependent = (diagonal <= 1e-10 * lengths.amax(1, keepdim=True)).any(1)
    r = torch.where(dependent[:, None, None], torch.eye(size).to(r), r)
    inside = q.transpose(1, 2) @ data.T
    coefficients = torch.linalg.solve_triangular(r, inside, upper=True).transpose(1, 2)
    error = (data[None] - coefficients @ columns.transpose(1, 2)).square().sum(2)
    bad = dependent[:, None] | ((coefficients < 0).any(2) if nonnegative else False)
    return torch.where(bad, math.inf, error), coefficients
