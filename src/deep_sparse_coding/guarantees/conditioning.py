"""A proved lower bound on the smallest singular value of a few columns, with the factorization that proves it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_EPS = float(np.finfo(np.float64).eps)
# Up to this many columns the Gram matrix is a full array, and its inverse is written out for bounds entry by entry.
_SMALL = 1500
# Largest band (in entries) and largest work (multiply-adds) of a banded factorization.
_BAND_ENTRIES, _BAND_WORK = 6e7, 3e11
# Largest work of the sparse Gram matrix.
_GRAM_WORK = 5e9


@dataclass(frozen=True, eq=False)
class Factorization:
    """What is proved about the Gram matrix ``G = BᵀB`` of columns B.

    Attributes:
        squared: ``σ_min(B)² ≥ squared``, proved in floating point; 0 if nothing is.
        trace: ``Σ‖b_i‖²``, rounded up.
        reason: Why nothing is proved, or an empty string.
        solve: Approximate ``G⁻¹ v``; its answers must be checked by their residual.
        small: G as a full array, if it is small.
        entry_error: A bound on the norm of the rounding error of G.
    """

    squared: float
    trace: float
    reason: str
    solve: Callable[[np.ndarray], np.ndarray]
    small: np.ndarray | None = None
    entry_error: float = 0.0

    @property
    def sigma(self) -> float:
        """The lower bound on σ_min, rounded down."""
        return math.sqrt(max(self.squared, 0.0)) * (1 - 2 * _EPS)

    def row_norms(self) -> np.ndarray | None:
        """Return upper bounds of ``‖p_i‖ = √[(G⁻¹)_ii]``, rows of the pseudoinverse; None if G is not small.

        An approximate inverse X errs by ``G⁻¹(I - GX)``, of norm at most ``‖I - GX‖_F/σ_min²``.
        """
        if self.small is None or self.squared <= 0:
            return None
        k = len(self.small)
        inverse = self.solve(np.eye(k))
        size = np.linalg.norm(inverse)
        defect = np.linalg.norm(np.eye(k) - self.small @ inverse)
        rounding = (k + 2) * _EPS * (np.linalg.norm(self.small) * size + 1.0) + self.entry_error * size
        # No entry exceeds that of the whole inverse, 1/σ_min².
        bound = np.minimum(np.diag(inverse) + (defect + rounding) / self.squared, 1 / self.squared)
        return np.sqrt(bound.clip(0)) * (1 + 4 * _EPS)


def factorize(columns: Any, terms: int) -> Factorization:
    """Return the factorization of ``G = BᵀB`` and a proved lower bound on ``σ_min(B)²``.

    A Cholesky factorization of ``G - τI`` that runs to its end proves ``σ_min² ≥ τ - h``,
    ``h = (t + 2)·eps·trace + n·eps·trace``: t the most entries in a row of the factor, n the products per Gram entry.
    Full arrays up to a limit; beyond, a banded factorization in reverse Cuthill–McKee order; else Gershgorin's circles.

    Args:
        columns: B, an array or a ``scipy.sparse`` matrix in CSC format, ``(rows, k)``, float64.
        terms: n, the most products in one Gram entry, the rounding of B's own entries included.

    Source: Rump 2006, and G5 of docs/theory.md.
    """
    rows, k = columns.shape
    if k > rows:
        return _failure(f"{k} atoms remain in a signal of {rows} entries: no k > n columns are independent")
    if k == 0:
        return Factorization(math.inf, 0.0, "", lambda v: v, np.zeros((0, 0)))
    if isinstance(columns, np.ndarray):
        gram: Any = columns.T @ columns
    else:
        counts = np.diff(columns.tocsr().indptr).astype(np.float64)
        if float((counts**2).sum()) > _GRAM_WORK:
            return _failure(f"the Gram matrix of {k} atoms takes too many operations")
        gram = (columns.T @ columns).tocsc()
    diagonal = np.asarray(gram.diagonal())
    trace = float(diagonal.sum()) * (1 + (terms + k) * _EPS)
    entry_error = terms * _EPS * trace
    if not math.isfinite(trace):
        return _failure("an atom is not finite")
    if k <= _SMALL or isinstance(gram, np.ndarray):
        full = gram if isinstance(gram, np.ndarray) else gram.toarray()
        return _full(full, trace, entry_error)
    return _banded(gram, diagonal, trace, entry_error)


def largest_square(columns: Any, terms: int) -> float:
    """Return a proved upper bound of ``‖B‖²``: a Cholesky factorization of ``τI - G``, else the largest row sum of |G|.

    Args:
        columns: B, an array or a ``scipy.sparse`` matrix in CSC format, ``(rows, k)``, float64.
        terms: As in `factorize`.

    Source: Rump 2006.
    """
    from scipy import linalg

    gram: Any = columns.T @ columns
    k = gram.shape[0]
    trace = float(gram.diagonal().sum()) * (1 + (terms + k) * _EPS)
    slack = (k + 2 + terms) * _EPS * trace
    bound = min(float(abs(gram).sum(axis=1).max()) * (1 + k * _EPS) + slack, trace)
    if k > _SMALL:
        return bound
    full = gram if isinstance(gram, np.ndarray) else gram.toarray()
    top = float(linalg.eigvalsh(full, subset_by_index=(k - 1, k - 1), check_finite=False)[0])
    tau = top * (1 + 1e-12) + 2 * slack
    try:
        linalg.cholesky(tau * np.eye(k) - full, lower=True, overwrite_a=True, check_finite=False)
    except linalg.LinAlgError:
        return bound
    # The shifted matrix has a trace of at most k·τ.
    return min(bound, (tau + slack + (k + 2) * _EPS * k * tau) * (1 + 4 * _EPS))


def _failure(reason: str) -> Factorization:
    return Factorization(0.0, 0.0, reason, lambda v: np.zeros_like(v))


def _dependent(k: int) -> str:
    return f"the {k} atoms that remain are not proved linearly independent (smallest singular value near 0)"


def _full(gram: np.ndarray, trace: float, entry_error: float) -> Factorization:
    from scipy import linalg

    k = len(gram)
    try:
        factor = linalg.cho_factor(gram, lower=True, check_finite=False)
    except linalg.LinAlgError:
        return _failure(_dependent(k))

    def solve(v: np.ndarray) -> np.ndarray:
        return linalg.cho_solve(factor, v, check_finite=False)

    def succeeds(tau: float) -> bool:
        shifted = gram - tau * np.eye(k)
        try:
            linalg.cholesky(shifted, lower=True, overwrite_a=True, check_finite=False)
        except linalg.LinAlgError:
            return False
        return True

    smallest = float(linalg.eigvalsh(gram, subset_by_index=(0, 0), check_finite=False)[0])
    slack = (k + 2) * _EPS * trace + entry_error
    squared = _search(succeeds, smallest, slack)
    reason = "" if squared > 0 else _dependent(k)
    return Factorization(squared, trace, reason, solve, gram, entry_error)


def _search(succeeds: Callable[[float], bool], smallest: float, slack: float) -> float:
    """Return the largest proved ``τ - h`` for a few τ at and below an estimate of the smallest eigenvalue."""
    for share in (1 - 1e-6, 0.9, 0.5, 0.1):
        # Rump's Cholesky needs room of its own rounding error below the eigenvalue to run to its end.
        tau = share * smallest - 2 * slack
        if tau - slack <= 0:
            break
        if succeeds(tau):
            return (tau - slack) * (1 - 4 * _EPS)
    return 0.0


def _banded(gram: Any, diagonal: np.ndarray, trace: float, entry_error: float) -> Factorization:
    from scipy import linalg
    from scipy.sparse import csgraph

    k = len(diagonal)
    order = csgraph.reverse_cuthill_mckee(gram, symmetric_mode=True)
    entries = gram[order][:, order].tocoo()
    below = entries.row >= entries.col
    row, column, value = entries.row[below], entries.col[below], entries.data[below]
    band = int((row - column).max()) + 1
    if k * band > _BAND_ENTRIES or k * band**2 > _BAND_WORK:
        return _gershgorin(gram, diagonal, trace, entry_error)
    stored = np.zeros((band, k), order="F")
    stored[row - column, column] = value
    try:
        factor = linalg.cholesky_banded(stored, lower=True, check_finite=False)
    except linalg.LinAlgError:
        return _failure(_dependent(k))

    def solve(v: np.ndarray) -> np.ndarray:
        answer = np.empty_like(v)
        answer[order] = linalg.cho_solve_banded((factor, True), v[order], check_finite=False)
        return answer

    def succeeds(tau: float) -> bool:
        shifted = stored.copy(order="F")
        shifted[0] -= tau
        try:
            linalg.cholesky_banded(shifted, lower=True, overwrite_ab=True, check_finite=False)
        except linalg.LinAlgError:
            return False
        return True

    slack = (band + 2) * _EPS * trace + entry_error
    squared = _search(succeeds, _inverse_iteration(solve, gram, k), slack)
    return Factorization(squared, trace, "" if squared > 0 else _dependent(k), solve, None, entry_error)


def _inverse_iteration(solve: Callable[[np.ndarray], np.ndarray], gram: Any, k: int, steps: int = 12) -> float:
    """Return an estimate of the smallest eigenvalue, from above."""
    v = torch.randn(k, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    for _ in range(steps):
        v = solve(v / np.linalg.norm(v))
    v /= np.linalg.norm(v)
    return float(v @ (gram @ v))


def _gershgorin(gram: Any, diagonal: np.ndarray, trace: float, entry_error: float) -> Factorization:
    others = np.asarray(abs(gram).sum(axis=1)).ravel() - diagonal
    squared = float((diagonal - others).min()) - entry_error - 4 * _EPS * trace
    k = len(diagonal)
    if squared <= 0:
        return _failure(f"the {k} atoms that remain overlap too much for a factorization within bounds")
    return Factorization(
        squared, trace, "", lambda v: v / diagonal.reshape(-1, *(1,) * (v.ndim - 1)), None, entry_error
    )
