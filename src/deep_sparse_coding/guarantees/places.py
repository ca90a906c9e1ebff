"""Where the minimizer is, from a sphere: uniqueness and intervals on the atoms that may be active."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .conditioning import factorize
from .polish import Flat, vector
from .sphere import EPS, Sphere, norm


@dataclass(frozen=True, eq=False)
class Places:
    """What the sphere proves about x*, per sample or per entry of the joined codes.

    Attributes:
        unique: Whether there is exactly one minimizer.
        sigma: A lower bound of ``σ_min(A_E)``; 0 if none is proved.
        distance: ``‖x - x*‖ ≤ distance``; inf where not unique.
        center: x̄; 0 where not unique.
        reach: ``|x*_i - x̄_i| ≤ reach``; inf on E where not unique, 0 off E.
        reasons: Why uniqueness is not proved, sample by sample.
    """

    unique: Tensor
    sigma: Tensor
    distance: Tensor
    center: Tensor
    reach: Tensor
    reasons: tuple[str, ...]


def locate(flat: Flat, codes: Tensor, found: Sphere, zeros: Tensor, todo: Tensor) -> Places:
    """Prove uniqueness and places: ``A_E`` injective ⇒ ``‖x* - x̄‖ ≤ R/σ_min``, ``|x*_i - x̄_i| ≤ R‖p_i‖``.

    ``x̄ = A_E^†(b - c) = x_E + A_E^†(b - c - A x_E)``, so that nothing large cancels.

    Args:
        flat: The problem.
        codes: x, ``(batch, entries)``.
        found: The sphere that x proves.
        zeros: Its certain zeros, ``(batch, entries)``; E is the rest.
        todo: For which samples.

    Source: "Uniqueness" and "Where it is" in G5 of docs/theory.md.
    """
    form, rounding = flat.form, flat.rounding
    batch = len(codes)
    inside = torch.where(zeros, 0.0, codes)
    blocks = flat.split(inside)
    rest = tuple(b - c - a for b, c, a in zip(form.data, found.center, form.operator.synthesize(blocks), strict=True))
    lost = rounding.residual(form, blocks) + rounding.synthesis * norm(found.center)
    outside = torch.where(zeros, codes, 0.0).norm(dim=1)
    unique = torch.zeros(batch, dtype=torch.bool, device=codes.device)
    sigma, distance = codes.new_zeros(batch), codes.new_full((batch,), math.inf)
    center, reach = torch.zeros_like(codes), codes.new_zeros(codes.shape).masked_fill(~zeros, math.inf)
    reasons = [""] * batch
    for sample in todo.nonzero().flatten().tolist():
        radius = float(found.radius[sample])
        if not math.isfinite(radius):
            reasons[sample] = "codes or signal are not finite, too small to be resolved, or violate a constraint"
            continue
        index = (~zeros[sample]).nonzero().flatten()
        at = index.cpu().numpy()
        answer = _one(flat, sample, at, vector(rest, sample), float(lost[sample]), radius)
        if isinstance(answer, str):
            reasons[sample] = answer
            continue
        step, error, rows, low = answer
        unique[sample], sigma[sample] = True, low
        center[sample, index] = inside[sample, index] + torch.from_numpy(step).to(codes.device)
        reach[sample, index] = torch.from_numpy(radius * rows + error).to(codes.device)
        moved = math.hypot(float(np.linalg.norm(step)), float(outside[sample]))
        spread = radius / low if len(at) else 0.0
        distance[sample] = (moved + error + spread) * (1 + (len(at) + 16) * EPS)
    return Places(unique, sigma, distance, center, reach, tuple(reasons))


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
