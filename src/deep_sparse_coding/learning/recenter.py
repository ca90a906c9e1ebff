"""Kernels that hold what they found off center are moved, codes with them: a minimum that descent does not leave."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary

from .statistics import SparseCodes, correlate_with_signal

# A window has to hold this much more than the kernel's own for the kernel to be moved there.
_GAIN = 1.002


def proposed_moves(
    dictionary: ConvDictionary, rows: Tensor, own: Tensor, signals: Iterable[tuple[Tensor, SparseCodes]]
) -> tuple[Tensor, Tensor]:
    """Return for every atom by how many code positions to move it, and the atoms after the move.

    What an atom would be if its kernel were larger is seen in ``Σ_p x_i[p] r_i[q p + u]``, u beyond the kernel too,
    where ``r_i`` is the residual without atom i. If another window of the kernel's size holds more of it, the atom
    belongs there.

    Args:
        dictionary: Whose kernels they are.
        rows: Its atoms ``(atoms, K, channels)``, float64.
        own: ``Σ_p x_i[p]²`` per atom.
        signals: Signal and codes of every part.

    Returns:
        Moves ``(atoms, axes)``, int64, and unit atoms ``(atoms, K, channels)``, those that do not move unchanged.
    """
    reach = tuple(max(1, k // 2 // q) for k, q in zip(dictionary.kernel_size, dictionary.stride, strict=True))
    margin = tuple(n * q for n, q in zip(reach, dictionary.stride, strict=True))
    wide = tuple(k + 2 * m for k, m in zip(dictionary.kernel_size, margin, strict=True))
    atoms, channels = dictionary.atoms, dictionary.channels
    seen = torch.zeros(atoms, math.prod(wide), channels, dtype=torch.float64)
    for signal, codes in signals:
        residual = signal - dictionary.synthesize(codes.dense())
        padded = _pad(residual, margin, dictionary.boundary == "circular")
        seen += correlate_with_signal(padded, codes, wide, dictionary.stride)
    maps = seen.mT.reshape(atoms, channels, *wide)
    padding = [m for m in reversed(margin) for _ in range(2)]
    centers = F.pad(rows.mT.reshape(atoms, channels, *dictionary.kernel_size), padding)
    maps = maps + own.reshape(-1, *(1,) * (maps.ndim - 1)) * centers

    windows = maps
    for axis, (k, q) in enumerate(zip(dictionary.kernel_size, dictionary.stride, strict=True), start=2):
        windows = windows.unfold(axis, k, q)
    offsets = tuple(2 * n + 1 for n in reach)
    windows = windows.movedim(1, 1 + len(offsets)).reshape(atoms, math.prod(offsets), channels, -1)
    energies = windows.square().sum((2, 3))
    middle = energies.shape[1] // 2
    best = energies.argmax(1)
    moved = energies.gather(1, best[:, None])[:, 0] > _GAIN * energies[:, middle]
    best = torch.where(moved, best, middle)
    steps = torch.stack(torch.unravel_index(best, offsets), 1) - torch.tensor(reach)
    chosen = windows[torch.arange(atoms), best].mT
    norms = torch.linalg.vector_norm(chosen, dim=(1, 2), keepdim=True)
    fresh = torch.where(moved[:, None, None] & (norms > 0), chosen / norms.clamp_min(1e-300), rows)
    return steps, fresh


def move_codes(codes: Tensor, steps: Tensor, circular: bool) -> Tensor:
    """Return codes ``(samples, atoms, ...)`` with atom i ``steps[i]`` positions further on, zeros moved in."""
    moved = codes.clone()
    axes = tuple(range(1, codes.ndim - 1))
    for i in steps.any(1).nonzero().flatten().tolist():
        by = steps[i].tolist()
        rolled = torch.roll(codes[:, i], by, axes)
        if not circular:
            for axis, step in zip(axes, by, strict=True):
                if step:
                    rolled.narrow(axis, 0 if step > 0 else rolled.shape[axis] + step, abs(step)).zero_()
        moved[:, i] = rolled
    return moved


def _pad(signal: Tensor, margin: tuple[int, ...], circular: bool) -> Tensor:
    if not circular:
        return F.pad(signal, [m for m in reversed(margin) for _ in range(2)])
    for axis, m in enumerate(margin, start=2):
        n = signal.shape[axis]
        signal = signal.index_select(axis, torch.arange(-m, n + m, device=signal.device) % n)
    return signal
