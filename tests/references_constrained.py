"""Independent oracles for constrained problems: a linear program, and every support of a tiny dictionary."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor


def basis_pursuit_lp(
    matrix: Tensor, signal: Tensor, weights: Tensor | None = None, *, nonnegative: bool = False
) -> float:
    """Return ``min Σ w_i|x_i|  s.t.  A x = y`` by SciPy's HiGHS, x split into its positive and negative part."""
    from scipy.optimize import linprog

    a, y = matrix.double().numpy(), signal.double().flatten().numpy()
    w = np.ones(a.shape[1]) if weights is None else weights.double().numpy()
    scale = max(float(np.linalg.norm(y)), 1e-300)
    columns, cost = (a, w) if nonnegative else (np.concatenate([a, -a], 1), np.concatenate([w, w]))
    answer = linprog(cost, A_eq=columns, b_eq=y / scale, method="highs")
    assert answer.status == 0, answer.message
    return scale * float(answer.fun)


def least_squares(columns: np.ndarray, y: np.ndarray, nonnegative: bool) -> tuple[np.ndarray, float]:
    """Return the best coefficients and ``‖y - C c‖``."""
    from scipy.optimize import nnls

    if not columns.shape[1]:
        return np.zeros(0), float(np.linalg.norm(y))
    coefficients = nnls(columns, y)[0] if nonnegative else np.linalg.lstsq(columns, y, rcond=None)[0]
    return coefficients, float(np.linalg.norm(y - columns @ coefficients))


def best_residual(matrix: Tensor, signal: Tensor, sparsity: int, *, nonnegative: bool = False) -> float:
    """Return ``min ‖y - A x‖  s.t.  ‖x‖₀ ≤ s`` over all supports."""
    a, y = matrix.double().numpy(), signal.double().flatten().numpy()
    supports = itertools.combinations(range(a.shape[1]), min(sparsity, a.shape[1]))
    return min(least_squares(a[:, list(s)], y, nonnegative)[1] for s in supports)


def fewest_atoms(matrix: Tensor, signal: Tensor, epsilon: float) -> int | None:
    """Return the least ``‖x‖₀`` with ``‖y - A x‖ ≤ ε`` over all supports, or None if there is none."""
    for size in range(matrix.shape[1] + 1):
        if best_residual(matrix, signal, size) <= epsilon:
            return size
    return None


def greedy_support(matrix: Tensor, signal: Tensor, sparsity: int) -> Tensor:
    """Return what orthogonal matching pursuit gives, by least squares from scratch after every selection."""
    a, y = matrix.double().numpy(), signal.double().flatten().numpy()
    chosen: list[int] = []
    coefficients = np.zeros(0)
    lengths = np.linalg.norm(a, axis=0)
    for _ in range(sparsity):
        residual = y - a[:, chosen] @ coefficients
        score = np.abs(a.T @ residual) / lengths
        score[chosen] = -1.0
        chosen.append(int(score.argmax()))
        coefficients = np.linalg.lstsq(a[:, chosen], y, rcond=None)[0]
    x = np.zeros(a.shape[1])
    x[chosen] = coefficients
    return torch.from_numpy(x)
