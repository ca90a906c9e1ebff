"""The dictionary update: block coordinate descent over the atoms, each held at unit norm."""

from __future__ import annotations

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary, Dictionary

from .statistics import Statistics


def to_rows(dictionary: Dictionary) -> Tensor:
    """Return the atoms as ``(atoms, K, channels)``, float64 on the CPU (dense: K = 1)."""
    weight = dictionary.weight.detach().double().cpu()
    if isinstance(dictionary, ConvDictionary):
        return weight.flatten(2).mT.contiguous()
    return weight.T[:, None, :].contiguous()


def from_rows(dictionary: Dictionary, rows: Tensor) -> Dictionary:
    """Return a dictionary of the same kind with the atoms ``(atoms, K, channels)``."""
    conv = isinstance(dictionary, ConvDictionary)
    weight = rows.mT.reshape(dictionary.weight.shape) if conv else rows[:, 0, :].T
    return dictionary.with_weight(weight.contiguous().to(dtype=dictionary.dtype, device=dictionary.device))


def lag_table(dictionary: Dictionary) -> Tensor:
    """Return for entries u, v of a kernel the place of lag ``s = (u - v)/q`` in a row of lags, ``(K, K)``.

    Where the stride does not divide ``u - v`` the place is one past the last lag: a zero is to be put there.
    """
    if not isinstance(dictionary, ConvDictionary):
        return torch.zeros(1, 1, dtype=torch.int64)
    sizes, stride, lags = dictionary.kernel_size, dictionary.stride, dictionary.lags
    entries = torch.cartesian_prod(*(torch.arange(k) for k in sizes)).reshape(-1, len(sizes))
    apart = entries[:, None, :] - entries[None, :, :]
    fits = torch.ones(apart.shape[:2], dtype=torch.bool)
    flat = torch.zeros(apart.shape[:2], dtype=torch.int64)
    count = 1
    for axis, (q, lag) in enumerate(zip(stride, lags, strict=True)):
        fits &= apart[..., axis] % q == 0
        flat = flat * (2 * lag + 1) + torch.div(apart[..., axis], q, rounding_mode="floor") + lag
        count *= 2 * lag + 1
    return torch.where(fits, flat, count)


def update_atoms(
    rows: Tensor, statistics: Statistics, table: Tensor, *, sweeps: int, inner: int = 3, nonnegative: bool = False
) -> Tensor:
    """Return atoms of unit norm whose objective is no larger, after sweeps of majorization over one atom at a time.

    For atom i alone the objective is a quadratic with the matrix ``T_ii``. With ``L ≥ ‖T_ii‖`` it lies below
    ``(L/2)‖d - (d_i - g_i/L)‖²`` plus a constant, which is least on the sphere at ``d_i - g_i/L`` scaled to unit norm
    (for non-negative atoms: its positive part, scaled). So no step can raise the objective, though spheres are not
    convex.

    Args:
        rows: ``(atoms, K, channels)``, unit norm, float64.
        statistics: Of all the data.
        table: As `lag_table` gives it.
        sweeps: Passes over all atoms.
        inner: Steps on an atom per visit.
        nonnegative: Hold the atoms at or above zero.

    Source: Mairal, Bach, Ponce & Sapiro 2009, Algorithm 2 (block coordinate descent), with kernels for columns.
    """
    rows = rows.clone()
    padded = torch.nn.functional.pad(statistics.gram, (0, 1))
    for _ in range(sweeps):
        for i in range(len(rows)):
            if not int(statistics.nonzeros[i]):
                continue
            blocks = padded[i][:, table]
            own = blocks[i]
            gradient = _apply(blocks, rows) - statistics.cross[i]
            bound = _norm_bound(own)
            for _ in range(inner):
                moved = _project(rows[i] - gradient / bound, rows[i], nonnegative)
                gradient = gradient + own @ (moved - rows[i])
                rows[i] = moved
    return rows


def objective(rows: Tensor, statistics: Statistics, table: Tensor) -> float:
    """Return ``½Σ‖y - D x‖² + lam Σ‖x‖₁`` over the data that the statistics are of."""
    padded = torch.nn.functional.pad(statistics.gram, (0, 1))
    value = statistics.energy + statistics.penalty
    for i in range(len(rows)):
        if int(statistics.nonzeros[i]):
            value += float((rows[i] * (0.5 * _apply(padded[i][:, table], rows) - statistics.cross[i])).sum())
    return value


def _apply(blocks: Tensor, rows: Tensor) -> Tensor:
    """Return ``Σ_l T_il d_l``, ``(K, channels)``."""
    atoms, size, _ = blocks.shape
    return blocks.transpose(0, 1).reshape(size, atoms * size) @ rows.reshape(atoms * size, -1)


def _norm_bound(matrix: Tensor) -> float:
    """Return an upper bound of the norm of a symmetric matrix: the least of two that are cheap."""
    row_sum = float(matrix.abs().sum(1).amax())
    return min(row_sum, float(torch.linalg.matrix_norm(matrix @ matrix)) ** 0.5)


def _project(atom: Tensor, fallback: Tensor, nonnegative: bool) -> Tensor:
    atom = atom.clamp_min(0) if nonnegative else atom
    norm = torch.linalg.vector_norm(atom)
    return atom / norm if float(norm) > 0 else fallback


def project_atoms(rows: Tensor, fallback: Tensor, nonnegative: bool) -> Tensor:
    """Return every atom scaled to unit norm (its positive part if `nonnegative`), or its fallback if that is zero."""
    return torch.stack([_project(row, other, nonnegative) for row, other in zip(rows, fallback, strict=True)])
