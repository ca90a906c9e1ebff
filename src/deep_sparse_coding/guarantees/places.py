"""Where the minimizer is, from a sphere: uniqueness and intervals on the atoms that may be active."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deep_sparse_coding.problems import Blocks

from .conditioning import factorize
from .polish import Flat, vector
from .sphere import EPS, norm


@dataclass(frozen=True, eq=False)
class Places:
    """What the sphere proves about x*, per sample or per entry of the joined codes.

    Attributes:
        unique: Whether there is exactly one minimizer.
        sigma: A lower bound of ``σ_min(A_E)``; 0 if none is proved.
        distance: ``‖x - x*‖ ≤ distance``; inf where not unique.
        center: x̄; 0 where not unique.
        reach: ``|x*_i - x̄_i| ≤ reach``; inf on E where not unique, 0 off E.
        rows: Upper bounds of ``‖p_i‖``; inf on E where not unique, 0 off E.
        error: The rounding error in x̄, in ℓ2.
        reasons: Why uniqueness is not proved, sample by sample.
    """

    unique: Tensor
    sigma: Tensor
    distance: Tensor
    center: Tensor
    reach: Tensor
    rows: Tensor
    error: Tensor
    reasons: tuple[str, ...]


def locate(flat: Flat, codes: Tensor, center: Blocks, radius: Tensor, zeros: Tensor, todo: Tensor) -> Places:
    """Prove uniqueness and places: ``A_E`` injective ⇒ ``‖x* - x̄‖ ≤ R/σ_min``, ``|x*_i - x̄_i| ≤ R‖p_i‖``.

    ``x̄ = A_E^†(b - c) = x_E + A_E^†(b - c - A x_E)``, so that nothing large cancels.

    Args:
        flat: The problem.
        codes: x, ``(batch, entries)``.
        center: c, of a sphere that holds the dual solution.
        radius: R, per sample.
        zeros: Certain zeros, ``(batch, entries)``; E is the rest.
        todo: For which samples.

    Source: "Uniqueness" and "Where it is" in G5 of docs/theory.md.
    """
    form, rounding = flat.form, flat.rounding
    batch = len(codes)
    inside = torch.where(zeros, 0.0, codes)
    blocks = flat.split(inside)
    rest = tuple(b - c - a for b, c, a in zip(form.data, center, form.operator.synthesize(blocks), strict=True))
    lost = rounding.residual(form, blocks) + rounding.synthesis * norm(center)
    outside = torch.where(zeros, codes, 0.0).norm(dim=1)
    unique = torch.zeros(batch, dtype=torch.bool, device=codes.device)
    sigma, distance = codes.new_zeros(batch), codes.new_full((batch,), math.inf)
    middle, reach = torch.zeros_like(codes), codes.new_zeros(codes.shape).masked_fill(~zeros, math.inf)
    lengths, errors = reach.clone(), codes.new_zeros(batch)
    reasons = [""] * batch
    for sample in todo.nonzero().flatten().tolist():
        size = float(radius[sample])
        if not math.isfinite(size):
            reasons[sample] = "codes or signal are not finite, too small to be resolved, or violate a constraint"
            continue
        index = (~zeros[sample]).nonzero().flatten()
        at = index.cpu().numpy()
        answer = _one(flat, sample, at, vector(rest, sample), float(lost[sample]), size)
        if isinstance(answer, str):
            reasons[sample] = answer
            continue
        step, error, rows, low = answer
        unique[sample], sigma[sample] = True, low
        middle[sample, index] = inside[sample, index] + torch.from_numpy(step).to(codes.device)
        reach[sample, index] = torch.from_numpy(size * rows + error).to(codes.device)
        lengths[sample, index], errors[sample] = torch.from_numpy(rows).to(codes.device), error
        moved = math.hypot(float(np.linalg.norm(step)), float(outside[sample]))
        spread = size / low if len(at) else 0.0
        distance[sample] = (moved + error + spread) * (1 + (len(at) + 16) * EPS)
    return Places(unique, sigma, distance, middle, reach, lengths, errors, tuple(reasons))


@dataclass(frozen=True, eq=False)
class Intervals:
    """Where every entry of the minimizer is, ``(batch, entries)``.

    Attributes:
        zeros: ``x*_i = 0`` in every minimizer.
        support: ``x*_i ≠ 0``.
        signs: The sign of x*_i on the support, else 0; int8.
        lower: ``x*_i ≥ lower``.
        upper: ``x*_i ≤ upper``.
    """

    zeros: Tensor
    support: Tensor
    signs: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def of(
        cls, zeros: Tensor, middle: Tensor, reach: Tensor, signed: Tensor, correlation: Tensor, nonnegative: bool
    ) -> Intervals:
        """Return the intervals ``x̄ ± reach``, cut by the signs that are excluded.

        Args:
            zeros: Certain zeros.
            middle: x̄.
            reach: How far the minimizer is from it; inf where nothing is known.
            signed: Entries whose sign is that of the correlation wherever they are not zero.
            correlation: ``Aᵀ c``.
            nonnegative: Whether codes are at or above zero.
        """
        reach = torch.where(zeros, 0.0, reach + 4 * EPS * (middle.abs() + reach))
        lower, upper = middle - reach, middle + reach
        if nonnegative:
            lower = lower.clamp_min(0.0)
        else:
            lower = torch.where(signed & (correlation > 0), lower.clamp_min(0.0), lower)
            upper = torch.where(signed & (correlation < 0), upper.clamp_max(0.0), upper)
        support = (lower > 0) | (upper < 0)
        signs = torch.where(support, torch.where(lower > 0, 1, -1), 0).to(torch.int8)
        return cls(zeros, support, signs, lower, upper)


def _one(
    flat: Flat, sample: int, index: np.ndarray, rest: np.ndarray, lost: float, radius: float
) -> tuple[np.ndarray, float, np.ndarray, float] | str:
    """Return ``A_E^† v``, a bound on its error, bounds of ‖p_i‖ and of σ_min; or why A_E is not proved injective."""
    k, rows = len(index), flat.columns.rows
    if k > rows:
        return (
            f"{k} of {flat.norms.shape[1]} atoms may be active (sphere of radius {radius:.2g}), more than {rows} rows"
        )
    if not flat.columns.fit(k):
        return f"{k} atoms may be active (sphere of radius {radius:.2g}), too many to be written out"
    columns = flat.columns.take(sample, index)
    factor = factorize(columns, flat.gram_terms)
    if factor.squared <= 0:
        return factor.reason
    if k == 0:
        return np.zeros(0), 0.0, np.zeros(0), math.inf
    low = factor.sigma
    step = np.zeros(k)
    for _ in range(3):
        step = step + factor.solve(columns.T @ (rest - columns @ step))
    left = rest - columns @ step
    analysis, synthesis = flat.rounding.analysis, flat.rounding.synthesis
    defect = np.linalg.norm(columns.T @ left) + math.sqrt(factor.trace) * analysis * np.linalg.norm(left)
    summed = lost + synthesis * (np.linalg.norm(rest) + np.linalg.norm(abs(columns) @ abs(step)))
    error = float((defect / low + summed) / low)
    crude = float((np.linalg.norm(rest) + lost) / low)
    if not error <= crude:  # no solve that converges: ‖A_E^† v‖ ≤ ‖v‖/σ_min still holds
        step, error = np.zeros(k), crude
    norms = factor.row_norms()
    return step, error * (1 + 16 * EPS), np.full(k, 1 / low) if norms is None else norms, low
