"""From approximate codes to the exact minimizer: a linear solve on a guessed support, then a proof that it is right."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deep_sparse_coding.problems import Blocks, Codes, StandardForm

from .columns import Columns
from .conditioning import factorize
from .sphere import EPS, Rounding, norm

_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class Polished:
    """Exact minimizers, where they are proved to be that.

    Attributes:
        codes: The minimizers, float64 whatever the problem's precision (float32 could not hold them); the codes that
            were given where nothing is proved.
        exact: True per sample where ``‖codes - x*‖ ≤ error`` is proved, ``(*batch,)``.
        error: The rounding error that is left, ``(*batch,)``; inf where nothing is proved.
    """

    codes: Codes
    exact: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False)
class Flat:
    """A form whose blocks of codes are joined into one axis: ``(batch, entries)``.

    Attributes:
        form: The form in float64.
        rounding: Its rounding errors.
        columns: Its columns.
        weights: w.
        norms: ``‖a_i‖``.
    """

    form: StandardForm
    rounding: Rounding
    columns: Columns
    weights: Tensor
    norms: Tensor

    @classmethod
    def of(cls, form: StandardForm, rounding: Rounding) -> Flat:
        """Return the joined view of a form."""
        shapes = [(form.batch, *shape) for shape in form.code_shapes]
        weights = join(tuple(w.expand(shape) for w, shape in zip(form.weights, shapes, strict=True)))
        norms = join(tuple(n.expand(shape) for n, shape in zip(rounding.norms, shapes, strict=True)))
        return cls(form, rounding, Columns.of(form), weights, norms)

    @property
    def gram_terms(self) -> int:
        """The most products in an entry of a Gram matrix."""
        return round(self.rounding.analysis / EPS)

    def split(self, joined: Tensor) -> Blocks:
        """Return joined codes block by block."""
        sizes = [math.prod(shape) for shape in self.form.code_shapes]
        parts = joined.split(sizes, dim=1)
        return tuple(p.reshape(-1, *shape) for p, shape in zip(parts, self.form.code_shapes, strict=True))

    def data(self, sample: int) -> np.ndarray:
        """Return one sample's data as a vector."""
        return vector(self.form.data, sample)


@dataclass(frozen=True, eq=False)
class Candidate:
    """Codes p on a support T that solve the optimality conditions there, and whether they are proved to be x*.

    Attributes:
        codes: p, ``(batch, entries)``.
        support: T.
        exact: Proved, per sample.
        error: ``‖p - x*‖ ≤ error`` where proved.
        residual_error: ``‖(b - A p) - θ*‖ ≤ residual_error`` where proved, the residual computed.
        sigma: A lower bound of ``σ_min(A_T)``; 0 where no solve succeeded.
        signs: σ on T; at violators the sign of ``a_iᵀ(b - A p)``.
        violators: Entries off T where ``|a_iᵀ(b - A p)| > w_i``.
    """

    codes: Tensor
    support: Tensor
    exact: Tensor
    error: Tensor
    residual_error: Tensor
    sigma: Tensor
    signs: Tensor
    violators: Tensor

    def replace(self, other: Candidate, where: Tensor) -> Candidate:
        """Return this candidate with another one's answers for the samples `where`."""
        rows = where[:, None]
        return Candidate(
            torch.where(rows, other.codes, self.codes),
            torch.where(rows, other.support, self.support),
            torch.where(where, other.exact, self.exact),
            torch.where(where, other.error, self.error),
            torch.where(where, other.residual_error, self.residual_error),
            torch.where(where, other.sigma, self.sigma),
            torch.where(rows, other.signs, self.signs),
            torch.where(rows, other.violators, self.violators),
        )


def polish(flat: Flat, support: Tensor, signs: Tensor, zeros: Tensor, todo: Tensor) -> Candidate:
    """Solve ``A_Tᵀ(b - A_T p) = w_T σ`` for the supports T and signs σ and prove, where possible, that p is x*.

    If ``σ_i p_i ≥ 0`` on T, ``|a_iᵀ(b - A p)| < w_i`` at all other entries that are not certain zeros, and A_T is
    injective, p is the only minimizer. Entries whose sign comes out wrong are dropped and the rest solved again. All
    inequalities hold after rounding.

    Args:
        flat: The problem.
        support: T, ``(batch, entries)``.
        signs: σ there.
        zeros: Entries that are zero in every minimizer.
        todo: For which samples to try.

    Source: "Polish" in G5 of docs/theory.md; for the strict conditions Fuchs 2004.
    """
    batch, entries = support.shape
    codes = flat.weights.new_zeros(batch, entries)
    final = torch.zeros_like(support)
    sigma, trace = codes.new_zeros(batch), codes.new_zeros(batch)
    for sample in todo.nonzero().flatten().tolist():
        found = _solve(flat, sample, support[sample].cpu().numpy(), signs[sample].cpu().numpy())
        if found is not None:
            index, values, low, total = found
            where = torch.from_numpy(index).to(codes.device)
            codes[sample, where] = torch.from_numpy(values).to(codes.device)
            final[sample, where] = True
            sigma[sample], trace[sample] = low, total
    exact, error, moved, correlation = _verify(flat, codes, final, torch.where(final, signs, 0.0), zeros, sigma, trace)
    exact &= (sigma > 0) & todo
    value = correlation if flat.form.nonnegative else correlation.abs()
    violators = ~final & ~zeros & (value > flat.weights)
    signs = torch.where(violators, correlation.sign(), signs)
    error, moved = (torch.where(exact, bound, math.inf) for bound in (error, moved))
    return Candidate(codes, final, exact, error, moved, sigma, signs, violators)


def refine(flat: Flat, support: Tensor, signs: Tensor, zeros: Tensor, todo: Tensor, rounds: int) -> Candidate:
    """Return the candidate of `polish`, its support corrected a few times by the entries that violate optimality.

    Args:
        flat: The problem.
        support: A first guess of T.
        signs: σ there.
        zeros: Certain zeros, never added.
        todo: For which samples.
        rounds: How often T is corrected.
    """
    best = polish(flat, support, signs, zeros, todo)
    for _ in range(rounds):
        again = todo & ~best.exact & (best.sigma > 0) & best.violators.any(1)
        if not bool(again.any()):
            break
        next_try = polish(flat, best.support | best.violators, best.signs, zeros, again)
        best = best.replace(next_try, again)
    return best


def _solve(
    flat: Flat, sample: int, support: np.ndarray, signs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, float] | None:
    """Return support, values, a lower bound of σ_min and the trace of the Gram matrix; None without independence."""
    index = np.nonzero(support)[0]
    weights = flat.weights[sample].cpu().numpy()
    data = flat.data(sample)
    for _ in range(_ROUNDS):
        if len(index) > flat.columns.rows or not flat.columns.fit(len(index)):
            return None
        columns = flat.columns.take(sample, index)
        factor = factorize(columns, flat.gram_terms)
        if factor.squared <= 0:
            return None
        target = np.where(weights[index] > 0, weights[index], 0.0) * signs[index]
        values = np.zeros(len(index))
        for _ in range(3):
            values = values + factor.solve(columns.T @ (data - columns @ values) - target)
        bound = (weights[index] > 0) | flat.form.nonnegative
        wrong = bound & (signs[index] * values <= 0)
        if not wrong.any():
            return index, values, factor.sigma, factor.trace
        index = index[~wrong]
    return None


def _verify(
    flat: Flat, codes: Tensor, support: Tensor, signs: Tensor, zeros: Tensor, sigma: Tensor, trace: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return whether codes are x*, how far rounding leaves them from it, their residual, and ``Aᵀ(b - A p)``."""
    form, rounding = flat.form, flat.rounding
    blocks = flat.split(codes)
    residual = form.residual(blocks)
    lost = rounding.residual(form, blocks)
    size = norm(residual)
    correlation = join(form.operator.analyze(residual))
    target = torch.where(support & (flat.weights > 0), flat.weights, 0.0) * signs
    defect = torch.where(support, correlation - target, 0.0).norm(dim=1)
    defect = defect + trace.sqrt() * rounding.analysis * size + 4 * EPS * target.norm(dim=1)
    # p - p̂ = G⁻¹ A_Tᵀ(...): the defect counts 1/σ², an error of the residual 1/σ.
    defect = torch.where(support.any(1), defect, 0.0)
    error = torch.where(support.any(1), (defect / sigma + lost) / sigma, 0.0) * (1 + 16 * EPS)
    bound = support & ((flat.weights > 0) | form.nonnegative)
    right = ~bound | (signs * codes >= error[:, None])
    shift = torch.where(support.any(1), defect / sigma, 0.0) + 2 * lost
    moved = shift + rounding.analysis * size
    value = correlation if form.nonnegative else correlation.abs()
    reach = flat.norms * moved[:, None] * (1 + 16 * EPS)
    strict = support | zeros | (value + reach + EPS * value.abs() < flat.weights)
    return (right & strict).all(1) & torch.isfinite(error), error, shift * (1 + 16 * EPS), correlation


def join(blocks: Blocks) -> Tensor:
    """Return blocks as one tensor ``(batch, entries)``."""
    return torch.cat([block.flatten(1) for block in blocks], 1)


def vector(blocks: Blocks, sample: int) -> np.ndarray:
    """Return one sample of all blocks as a NumPy vector."""
    return torch.cat([block[sample].flatten() for block in blocks]).cpu().numpy()
