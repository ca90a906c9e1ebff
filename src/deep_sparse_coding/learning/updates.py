"""The dictionary update: block coordinate descent over the atoms, each held at unit norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary, Dictionary

from .statistics import Statistics, three

# Above so many channels a matrix product is faster than the compiled loops.
_LOOP_CHANNELS = 8


@dataclass(frozen=True)
class AtomRules:
    """What atoms are held to beside unit norm.

    Attributes:
        nonnegative: At or above zero.
        nonzeros: At most so many entries that are not zero; 0 for no limit.
        coherence: No two (at any lag) with a larger cosine; 1 for no limit.
    """

    nonnegative: bool = False
    nonzeros: int = 0
    coherence: float = 1.0


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


@dataclass(frozen=True, eq=False)
class Lags:
    """How far apart entries of kernels are, in code positions.

    Attributes:
        table: For entries u, v of a kernel the place of lag ``s = (u - v)/q`` in a row of lags, ``(K, K)``; where the
            stride does not divide ``u - v``, one past the last lag.
        sizes: Of kernels, per axis; like the next two with missing axes first.
        stride: q.
        lags: L.
    """

    table: Tensor
    sizes: tuple[int, int, int]
    stride: tuple[int, int, int]
    lags: tuple[int, int, int]


def lag_table(dictionary: Dictionary) -> Lags:
    """Return how far apart the entries of a dictionary's atoms are."""
    if not isinstance(dictionary, ConvDictionary):
        return Lags(torch.zeros(1, 1, dtype=torch.int64), (1, 1, 1), (1, 1, 1), (0, 0, 0))
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
    return Lags(torch.where(fits, flat, count), three(sizes, 1), three(stride, 1), three(lags, 0))


def update_atoms(
    rows: Tensor,
    statistics: Statistics,
    table: Lags,
    *,
    sweeps: int,
    inner: int = 3,
    nonnegative: bool = False,
    nonzeros: int = 0,
) -> Tensor:
    """Return atoms of unit norm whose objective is no larger, after sweeps of majorization over one atom at a time.

    For atom i alone the objective is a quadratic with the matrix ``T_ii``. With ``L ≥ ‖T_ii‖`` it lies below
    ``(L/2)‖d - (d_i - g_i/L)‖²`` plus a constant, which is least on the sphere at ``d_i - g_i/L`` scaled to unit norm
    (for non-negative atoms: its positive part, for sparse ones: its largest entries, scaled). So no step can raise the
    objective from atoms that keep to the same rules, though spheres are not convex.

    Args:
        rows: ``(atoms, K, channels)``, unit norm, float64.
        statistics: Of all the data.
        table: As `lag_table` gives it.
        sweeps: Passes over all atoms.
        inner: Steps on an atom per visit.
        nonnegative: Hold the atoms at or above zero.
        nonzeros: Non-zeros of an atom; 0 for no limit.

    Source: Mairal, Bach, Ponce & Sapiro 2009, Algorithm 2 (block coordinate descent), with kernels for columns.
    """
    rows = rows.clone()
    used = statistics.nonzeros > 0
    _, size, channels = rows.shape
    if size == 1 or channels <= _LOOP_CHANNELS:
        from ._kernels_update import sweep_dense, sweep_kernels

        arrays = (statistics.gram.contiguous().numpy(), statistics.cross.contiguous().numpy())
        flags = (bool(nonnegative), int(nonzeros))
        geometry = (table.sizes, table.stride, table.lags)
        for _ in range(sweeps):
            if size == 1:
                sweep_dense(rows[:, 0].numpy(), arrays[0][:, :, 0], arrays[1][:, 0], used.numpy(), flags)
            else:
                sweep_kernels(rows.numpy(), *arrays, table.table.numpy(), used.numpy(), inner, *geometry, flags)
        return rows
    padded = torch.nn.functional.pad(statistics.gram, (0, 1))
    for _ in range(sweeps):
        for i in range(len(rows)):
            if not bool(used[i]):
                continue
            blocks = padded[i][:, table.table]
            own = blocks[i]
            gradient = _apply(blocks, rows) - statistics.cross[i]
            bound = _norm_bound(own)
            if not bound > 0:
                continue
            for _ in range(inner):
                moved = _project(rows[i] - gradient / bound, rows[i], nonnegative, nonzeros)
                gradient = gradient + own @ (moved - rows[i])
                rows[i] = moved
    return rows


def objective(rows: Tensor, statistics: Statistics, table: Lags) -> float:
    """Return ``½Σ‖y - D x‖² + lam Σ‖x‖₁`` over the data that the statistics are of."""
    used = statistics.nonzeros > 0
    value = statistics.energy + statistics.penalty
    if rows.shape[1] == 1:
        flat = rows[:, 0]
        inner = 0.5 * (statistics.gram[:, :, 0] * (flat @ flat.T)).sum() - (statistics.cross[:, 0] * flat).sum()
        return value + float(inner)
    for i, product in apply_gram(rows, statistics.gram, table, used):
        value += float((rows[i] * (0.5 * product - statistics.cross[i])).sum())
    return value


def apply_gram(rows: Tensor, gram: Tensor, table: Lags, used: Tensor) -> list[tuple[int, Tensor]]:
    """Return ``(i, Σ_l T_il d_l)`` for every atom i that is used, each ``(K, channels)``.

    Args:
        rows: ``(atoms, K, channels)``.
        gram: ``(atoms, atoms, lags)``.
        table: As `lag_table` gives it.
        used: Which atoms.
    """
    _, size, channels = rows.shape
    if size == 1:
        products = (gram[:, :, 0] @ rows[:, 0])[:, None]
        return [(i, products[i]) for i in used.nonzero().flatten().tolist()]
    found = []
    if channels <= _LOOP_CHANNELS:
        from ._kernels_update import apply_row

        geometry, atoms = (table.sizes, table.stride, table.lags), rows.contiguous().numpy()
        for i in used.nonzero().flatten().tolist():
            out = torch.zeros(size, channels, dtype=torch.float64)
            apply_row(gram[i].contiguous().numpy(), atoms, -1, *geometry, out.numpy())
            found.append((i, out))
        return found
    padded = torch.nn.functional.pad(gram, (0, 1))
    return [(i, _apply(padded[i][:, table.table], rows)) for i in used.nonzero().flatten().tolist()]


def _apply(blocks: Tensor, rows: Tensor) -> Tensor:
    """Return ``Σ_l T_il d_l``, ``(K, channels)``."""
    atoms, size, _ = blocks.shape
    return blocks.transpose(0, 1).reshape(size, atoms * size) @ rows.reshape(atoms * size, -1)


def _norm_bound(matrix: Tensor) -> float:
    """Return an upper bound of the norm of a symmetric matrix: the least of two that are cheap."""
    row_sum = float(matrix.abs().sum(1).amax())
    return min(row_sum, float(torch.linalg.matrix_norm(matrix @ matrix)) ** 0.5)


def _project(atom: Tensor, fallback: Tensor, nonnegative: bool, nonzeros: int = 0) -> Tensor:
    atom = atom.clamp_min(0) if nonnegative else atom
    if 0 < nonzeros < atom.numel():
        flat = atom.flatten()
        kept = flat.abs().argsort(descending=True, stable=True)[:nonzeros]
        atom = torch.zeros_like(flat).index_copy(0, kept, flat[kept]).reshape(atom.shape)
    norm = torch.linalg.vector_norm(atom)
    return atom / norm if float(norm) > 0 else fallback


def project_atoms(rows: Tensor, fallback: Tensor, nonnegative: bool, nonzeros: int = 0) -> Tensor:
    """Return every atom scaled to unit norm after its rules (see `update_atoms`), or its fallback if it is zero."""
    pairs = zip(rows, fallback, strict=True)
    return torch.stack([_project(row, other, nonnegative, nonzeros) for row, other in pairs])
