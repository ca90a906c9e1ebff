"""What stays true of the minimizer when the data move: G7, with R + ϵ in the place of R throughout."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .analysis import Analysis
from .conditioning import factorize
from .places import Intervals, Places, locate
from .polish import Flat, join
from .sphere import EPS, norm

# So many atoms off the support, the nearest to it, are looked at one by one for the exact radius.
_ATOMS = 4096
_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Widened:
    """What holds for the minimizer x*(b') of all data with ``‖b' - b‖ ≤ ϵ``, per sample or per entry.

    Attributes:
        intervals: Zeros, support, signs and places.
        unique: Whether x*(b') is unique for all of them.
        distance: ``‖x - x*(b')‖_2 ≤ distance``, x the given codes.
        moves: ``‖x*(b') - x*(b)‖_2 ≤ moves``.
        sigma: A lower bound of ``σ_min(A_E)``.
        radius: The largest ϵ (data units) up to which support and signs are proved to stay; 0 if not even at b.
        reasons: Why uniqueness is not proved, sample by sample.
        zeros: The complement of E, the entries that may be non-zero.
    """

    intervals: Intervals
    unique: Tensor
    distance: Tensor
    moves: Tensor
    sigma: Tensor
    radius: Tensor
    reasons: tuple[str, ...]
    zeros: Tensor


def widen(analysis: Analysis, epsilon: Tensor) -> Widened:
    """Return what is proved for all data within ϵ.

    The dual solution is a projection of the data, so that both it and ``A x*`` move by at most ϵ: the sphere's center
    stays, its radius becomes ``R + ϵ``. Where the minimizer p is known exactly, support S and signs stay for

        ``ϵ < min( min_{i∈S} |p_i|/‖p_i-th row of A_S^†‖,  min_{i∉S} (w_i - |a_iᵀθ*|)/‖P_S^⊥ a_i‖ )``,

    and this is exact: at the minimum some b' changes one of them.

    Args:
        analysis: What is proved at b.
        epsilon: ϵ in units of the data, ``(samples,)``.

    Source: G7 of docs/theory.md.
    """
    flat, form = analysis.flat, analysis.flat.form
    center, base = analysis.sharpest()
    correlation = join(form.operator.analyze(center))
    value = correlation if form.nonnegative else correlation.abs()
    room = flat.weights - value - EPS * value.abs() - flat.norms * (flat.rounding.analysis * norm(center))[:, None]
    # A zero stays one while room exceeds ‖a_i‖(R + ϵ).
    slack = (room / flat.norms).nan_to_num(nan=math.inf, posinf=math.inf) * (1 - 8 * EPS) - base[:, None]
    zeros = analysis.certain_zeros()
    every = torch.isfinite(base)
    here = locate(flat, analysis.codes, center, base, zeros, every)
    radius = _radius(analysis, here, slack, room, base, zeros)

    known = analysis.exact & (epsilon < radius)
    wide = torch.where(known[:, None], zeros, zeros & (slack > epsilon[:, None]))
    size = (base + epsilon) * (1 + EPS)
    there = locate(flat, analysis.codes, center, size, wide, every)
    signed = (flat.norms * size[:, None] * (1 + 4 * EPS) < flat.weights) & every[:, None]
    intervals = Intervals.of(wide, there.center, there.reach, signed, correlation, form.nonnegative)
    some = (~wide).any(1)
    moves = torch.where(some, epsilon / there.sigma * (1 + 8 * EPS), 0.0)
    moves = torch.where(there.unique & (epsilon > 0), moves, torch.where(there.unique, 0.0, math.inf))
    return Widened(intervals, there.unique, there.distance, moves, there.sigma, radius, there.reasons, wide)


def _radius(analysis: Analysis, here: Places, slack: Tensor, room: Tensor, base: Tensor, zeros: Tensor) -> Tensor:
    """Return the largest ϵ up to which support and signs are proved to stay, per sample."""
    sure = (here.center.abs() - here.error[:, None]) / here.rows - base[:, None]
    active = (
        torch.where(zeros, math.inf, sure.nan_to_num(nan=-math.inf, posinf=math.inf)).amin(1)
        if sure.shape[1]
        else base * math.inf
    )
    quiet = torch.where(zeros, slack, math.inf)
    radius = torch.minimum(active, quiet.amin(1)) if sure.shape[1] else active
    for sample in (analysis.exact & (quiet.amin(1) < active)).nonzero().flatten().tolist():
        limit = float(active[sample])
        free = (room - analysis.flat.norms * base[:, None])[sample]
        radius[sample] = _exact_radius(analysis.flat, sample, zeros[sample], quiet[sample], free, limit)
    usable = here.unique & torch.isfinite(base)
    return torch.where(usable, radius.clamp_min(0) * (1 - 8 * EPS), 0.0)


def _exact_radius(flat: Flat, sample: int, zeros: Tensor, quiet: Tensor, free: Tensor, limit: float) -> float:
    """Return ``min(limit, min_i free_i/‖P_S^⊥ a_i‖)``; ``‖P_S^⊥ a_i‖ ≤ ‖a_i - A_S z‖`` for any z, so no z can be wrong.

    Atoms are taken in the order of the cruder bound ``free_i/‖a_i‖``, until it exceeds the smallest value found.
    """
    support = (~zeros).nonzero().flatten().cpu().numpy()
    order = quiet.argsort()[: int(zeros.sum())]
    best, done = limit, 0
    columns = flat.columns.take(sample, support) if len(support) else None
    factor = factorize(columns, flat.gram_terms) if len(support) else None
    while done < len(order) and float(quiet[order[done]]) < best:
        if done >= _ATOMS or (factor is not None and factor.squared <= 0):
            return min(best, float(quiet[order[done]]))
        index = order[done : done + _BLOCK]
        others = flat.columns.take(sample, index.cpu().numpy())
        others = others if isinstance(others, np.ndarray) else others.toarray()
        size = np.linalg.norm(others, axis=0)
        if columns is not None and factor is not None:
            guess = factor.solve(columns.T @ others)
            rest = others - columns @ guess
            rounding = flat.rounding.synthesis * (size + np.linalg.norm(abs(columns) @ abs(guess), axis=0))
            size = np.minimum(size, np.linalg.norm(rest, axis=0) + rounding)
        lengths = size * (1 + (others.shape[0] + 8) * EPS)
        own = free[index].cpu().numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(own > 0, own / lengths, 0.0)
        best = min(best, float(np.nanmin(np.where(np.isnan(found), np.inf, found))))
        done += _BLOCK
    return best
