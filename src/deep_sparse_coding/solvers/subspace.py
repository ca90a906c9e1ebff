"""Subspace pursuit and CoSaMP: a support of fixed size that is widened by correlation and pruned by least squares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_integer
from deep_sparse_coding.problems import Blocks, StandardForm
from deep_sparse_coding.problems.base import squared_norm

from .pursuit import Pursuit, by_size, column_norms, fit_support, largest_entries, unit_gram

# A residual has fallen when it is below this share of the one before, and is zero below this share of ‖b‖.
_FALL, _ZERO = 1 - 1e-9, 1e-14


@dataclass(frozen=True)
class SubspacePursuit(Pursuit):
    """Subspace pursuit: s atoms in use; s more that correlate with the residual join, least squares prunes to s again.

    ``T = S ∪ {s largest |Aᵀr|}``, ``S' = {s largest of argmin_{supp x ⊆ T} ‖b - A x‖}``, then least squares on S'; the
    rounds end when the residual no longer falls, and the better support is kept. Atoms count as if they had norm one.
    For every dictionary and boundary, with masks per sample, on any device; non-negative codes take positive
    correlations, and coefficients that turn negative leave the support. With ε, the size of the support is searched
    for. All in float64.

    `steps` of a solution counts atoms.

    Attributes:
        rounds: The most rounds for one size of the support.

    Source: Dai & Milenkovic 2009, Algorithm 1.
    """

    rounds: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounds", require_integer("rounds", self.rounds, minimum=1))

    def pursue(self, form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
        """Return codes and the number of their non-zeros."""
        return by_size(form, sparsity, limits, lambda here, sizes: _rounds(here, sizes, 1, True, self.rounds))


@dataclass(frozen=True)
class CoSaMP(Pursuit):
    """Compressive sampling matching pursuit: like `SubspacePursuit`, but 2s atoms join, and pruned codes are kept.

    ``T = S ∪ {2s largest |Aᵀr|}``, then the s largest coefficients of least squares on T as they are, without a second
    least squares; that comes once, after the last round, and lowers the residual. The rounds end when the residual no
    longer falls, and the better codes are kept.

    `steps` of a solution counts atoms.

    Attributes:
        rounds: The most rounds for one size of the support.

    Source: Needell & Tropp 2009, Algorithm 1.
    """

    rounds: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounds", require_integer("rounds", self.rounds, minimum=1))

    def pursue(self, form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
        """Return codes and the number of their non-zeros."""
        return by_size(form, sparsity, limits, lambda here, sizes: _rounds(here, sizes, 2, False, self.rounds))


def _rounds(form: StandardForm, sizes: Tensor, widen: int, refit: bool, rounds: int) -> Tensor:
    """Return codes with at most `sizes` non-zeros.

    Args:
        form: The problem.
        sizes: The most non-zeros of every sample.
        widen: How many times that number of atoms joins the support.
        refit: Whether every pruned support is followed by least squares.
        rounds: The most rounds.
    """
    norms, inverse = column_norms(form)
    gram = unit_gram(form)
    (codes,), residual = form.zeros(), form.data[0]
    first = norm = squared_norm(form.data).sqrt()
    rows = (norm > 0).nonzero().flatten()
    for step in range(rounds):
        if not len(rows):
            break
        here, size = form.select(rows), sizes[rows]
        (score,) = here.operator.analyze((residual[rows],))
        score = (score.clamp_min(0) if form.nonnegative else score.abs()) * _of(inverse, rows)
        # The first round of subspace pursuit has nothing to join: s atoms, not twice as many.
        wide = (codes[rows] != 0) | largest_entries(score, size if step == 0 else widen * size)
        x = _pruned(here, fit_support(here, wide, gram), size, _of(norms, rows))
        if refit:
            x = fit_support(here, x != 0, gram)
        (r,) = here.residual((x,))
        new = squared_norm((r,)).sqrt()
        better = new < _FALL * norm[rows]
        taken = rows[better]
        norm = norm.index_copy(0, taken, new[better])
        codes, residual = codes.index_copy(0, taken, x[better]), residual.index_copy(0, taken, r[better])
        rows = taken[norm[taken] > _ZERO * first[taken]]
    return codes if refit else refined(form, codes, gram)


def refined(form: StandardForm, codes: Tensor, gram: Tensor | None) -> Tensor:
    """Return least squares on the support of codes, for the samples whose residual does not rise by it."""
    fit = fit_support(form, codes != 0, gram)
    old, new = (squared_norm(form.residual((x,))) for x in (codes, fit))
    return torch.where((new <= old).reshape(-1, *(1,) * (codes.ndim - 1)), fit, codes)


def _pruned(form: StandardForm, codes: Tensor, sizes: Tensor, norms: Tensor) -> Tensor:
    return torch.where(largest_entries(codes.abs() * norms, sizes), codes, 0.0)


def _of(values: Tensor, rows: Tensor) -> Tensor:
    """Return the samples `rows` of what may be shared by all."""
    return values if len(values) == 1 else values[rows]
