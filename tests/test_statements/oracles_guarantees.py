"""Oracles for G1, G2 and G5: enumeration of supports, linear programs, coordinate descent. Slow and plain."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def weakest_support(matrix: np.ndarray, size: int) -> float:
    """Return the smallest ``σ_min²`` over all supports of `size` columns (all columns, if there are fewer)."""
    size = min(size, matrix.shape[1])
    chosen = np.array(list(itertools.combinations(range(matrix.shape[1]), size)))
    gram = matrix.T @ matrix
    return float(np.linalg.eigvalsh(gram[chosen[:, :, None], chosen[:, None, :]])[:, 0].min())


def has_two_nonnegative_codes(matrix: np.ndarray, first: int, second: int) -> bool:
    """Return whether one signal has two non-negative codes with at most `first` and `second` non-zeros.

    By linear programs over all disjoint pairs of supports (what the codes share can be taken off both).
    """
    from scipy.optimize import linprog

    atoms = range(matrix.shape[1])
    for p in itertools.combinations(atoms, first):
        for n in itertools.combinations([i for i in atoms if i not in p], min(second, len(atoms) - first)):
            both = np.concatenate([matrix[:, p], -matrix[:, n]], 1)
            total = np.ones((1, both.shape[1]))
            equal = np.concatenate([both, total])
            if linprog(-total[0], A_eq=equal, b_eq=np.r_[np.zeros(len(both)), 1.0], method="highs").status == 0:
                return True
    return False


def null_space_constant(matrix: np.ndarray, support: Sequence[int]) -> float:
    """Return ``max ‖h_S‖_1`` over null vectors with ``‖h_{S^c}‖_1 ≤ 1``: below 1 iff ℓ1 finds every code on S.

    One linear program per sign pattern on S, in ``h_S, h⁺, h⁻``. Returns inf where D_S is dependent.
    """
    from scipy.optimize import linprog

    inside = matrix[:, list(support)]
    outside = np.delete(matrix, list(support), 1)
    k, rest = inside.shape[1], outside.shape[1]
    if np.linalg.matrix_rank(inside) < k:
        return np.inf
    equal = np.concatenate([inside, outside, -outside], 1)
    worst = 0.0
    for tail in itertools.product((-1.0, 1.0), repeat=k - 1):
        cost = -np.r_[1.0, tail, np.zeros(2 * rest)]
        answer = linprog(
            cost,
            A_ub=np.r_[np.zeros(k), np.ones(2 * rest)][None],
            b_ub=[1.0],
            A_eq=equal,
            b_eq=np.zeros(len(matrix)),
            bounds=[(None, None)] * k + [(0, None)] * (2 * rest),
            method="highs",
        )
        worst = max(worst, -answer.fun)
    return worst


@dataclass(frozen=True)
class Exact:
    """A Lasso minimizer solved to the last digit, where that was possible.

    Attributes:
        codes: x*.
        residual: ``y - D x*``, which all minimizers share.
        resolved: Whether the optimality conditions hold with room: strict off the support, non-zero on it.
        unique: Whether, besides, the support's atoms are independent.
    """

    codes: np.ndarray
    residual: np.ndarray
    resolved: bool
    unique: bool


def exact_lasso(matrix: np.ndarray, signal: np.ndarray, weights: np.ndarray, nonnegative: bool = False) -> Exact:
    """Return the minimizer of ``½‖y - Dx‖² + Σ w_i|x_i|``: coordinate descent, then the solve on its support.

    The solve is refined with residuals in extended precision. Weights may be 0 or inf.
    """
    codes = _descend(matrix, signal, weights, nonnegative)
    support = np.nonzero(np.abs(codes) > 1e-9)[0]
    scale = max(1.0, float(np.abs(signal).max()))
    wide = np.longdouble
    atoms, sign = matrix[:, support], np.sign(codes[support])
    target = np.where(weights[support] > 0, weights[support], 0.0) * sign
    values = np.zeros(len(support), wide)
    independent = len(support) == 0 or np.linalg.svd(atoms, compute_uv=False)[-1] > 1e-6
    if len(support) <= len(matrix) and independent:
        for _ in range(4):
            left = signal.astype(wide) - atoms.astype(wide) @ values
            defect = atoms.T.astype(wide) @ left - target.astype(wide)
            values = values + np.linalg.lstsq(atoms.T @ atoms, defect.astype(float), rcond=None)[0]
    else:
        values = codes[support].astype(wide)
    polished = np.zeros(len(codes))
    polished[support] = values.astype(float)
    residual = (signal.astype(wide) - atoms.astype(wide) @ values).astype(float)
    correlation = matrix.T @ residual
    off = np.setdiff1d(np.arange(len(codes)), support)
    size = correlation[off] if nonnegative else np.abs(correlation[off])
    strict = bool((size < weights[off] - 1e-7 * scale).all())
    right = bool(((sign * polished[support] > 1e-7) | ((weights[support] == 0) & (not nonnegative))).all())
    at = np.abs(correlation[support] - target)
    met = not at.size or float(at.max()) < 1e-11 * scale
    return Exact(polished, residual, bool(strict and right and met and independent), bool(independent))


def _descend(matrix: np.ndarray, signal: np.ndarray, weights: np.ndarray, nonnegative: bool) -> np.ndarray:
    gram, target = (matrix.T @ matrix).tolist(), matrix.T @ signal
    m = len(target)
    codes, correlation = [0.0] * m, target.tolist()
    limits = weights.tolist()
    for _ in range(20000):
        moved = 0.0
        for i in range(m):
            row, norm = gram[i], gram[i][i]
            if norm == 0 or limits[i] == np.inf:
                continue
            u = norm * codes[i] + correlation[i]
            if nonnegative:
                new = max(u - limits[i], 0.0) / norm
            else:
                new = max(u - limits[i], 0.0) / norm if u > 0 else min(u + limits[i], 0.0) / norm
            step = new - codes[i]
            if step:
                codes[i] = new
                for other in range(m):
                    correlation[other] -= step * row[other]
                moved = max(moved, abs(step))
        if moved < 1e-13:
            break
    return np.array(codes)
