"""What a dictionary update needs to know of the data: sums over samples, additive, so that parts can be replaced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary, Dictionary


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """Codes kept as their non-zeros, sorted by sample, position and atom.

    Attributes:
        index: Places in the flattened tensor ``(samples, ..., atoms)``, atoms last, int64.
        values: The non-zeros.
        shape: ``(samples, atoms, ...)``.
    """

    index: Tensor
    values: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, codes: Tensor) -> Self:
        """Return the non-zeros of codes ``(samples, atoms, ...)``."""
        flat = codes.movedim(1, -1).flatten()
        index = flat.nonzero().flatten()
        return cls(index, flat[index], tuple(codes.shape))

    def dense(self) -> Tensor:
        """Return the codes ``(samples, atoms, ...)``."""
        samples, atoms, *grid = self.shape
        whole = self.values.new_zeros(samples, *grid, atoms)
        whole.view(-1)[self.index] = self.values
        return whole.movedim(-1, 1).contiguous()


@dataclass(frozen=True, eq=False)
class Statistics:
    """The quadratic that the data are to a dictionary, ``½Σ‖y - D x‖² + lam Σ‖x‖₁`` with the codes held fixed.

    Atoms are laid out as ``(atoms, K, channels)`` with the K entries of a kernel in a row (dense: K = 1).

    Attributes:
        gram: ``A[i, l, s] = Σ_p x_i[p] x_l[p + s]``, ``(atoms, atoms, lags)``, float64.
        cross: ``B[i, u, c] = Σ_p x_i[p] y_c[q p + u]``, ``(atoms, K, channels)``, float64.
        energy: ``½Σ‖y‖²``.
        penalty: ``lam Σ‖x‖₁``.
        nonzeros: How often each atom is used, ``(atoms,)``, float64.
        entries: The number of code entries.
        samples: The number of samples.

    Source: Mairal, Bach, Ponce & Sapiro 2009, whose two sums these are, at all lags.
    """

    gram: Tensor
    cross: Tensor
    energy: float
    penalty: float
    nonzeros: Tensor
    entries: float
    samples: float

    def __add__(self, other: Statistics) -> Statistics:
        return self._combine(other, 1)

    def __sub__(self, other: Statistics) -> Statistics:
        return self._combine(other, -1)

    def _combine(self, other: Statistics, sign: int) -> Statistics:
        return Statistics(
            self.gram + sign * other.gram,
            self.cross + sign * other.cross,
            self.energy + sign * other.energy,
            self.penalty + sign * other.penalty,
            self.nonzeros + sign * other.nonzeros,
            self.entries + sign * other.entries,
            self.samples + sign * other.samples,
        )

    def scaled(self, factor: float) -> Statistics:
        """Return the statistics with every sample counted `factor` times: what is old counts less."""
        return Statistics(
            factor * self.gram,
            factor * self.cross,
            factor * self.energy,
            factor * self.penalty,
            factor * self.nonzeros,
            factor * self.entries,
            factor * self.samples,
        )

    def without(self, atoms: list[int]) -> Statistics:
        """Return the statistics as if no code had used these atoms, which are about to be replaced."""
        gram, cross, nonzeros = self.gram.clone(), self.cross.clone(), self.nonzeros.clone()
        gram[atoms], gram[:, atoms], cross[atoms], nonzeros[atoms] = 0.0, 0.0, 0.0, 0.0
        return Statistics(gram, cross, self.energy, self.penalty, nonzeros, self.entries, self.samples)


def gather(dictionary: Dictionary, signal: Tensor, codes: SparseCodes, lam: float) -> Statistics:
    """Return the statistics of a batch of signals and their codes.

    Args:
        dictionary: Which kernel size, stride and boundary; its atoms do not matter.
        signal: ``(samples, channels, ...)``.
        codes: Of the same samples.
        lam: The weight of the ℓ1 norm.
    """
    atoms, count = dictionary.atoms, codes.values.numel()
    nonzeros = torch.bincount((codes.index % atoms).cpu(), minlength=atoms).double()
    if isinstance(dictionary, ConvDictionary):
        gram = _correlate_with_codes(dictionary, codes)
        cross = correlate_with_signal(signal, codes, dictionary.kernel_size, dictionary.stride)
    else:
        gram, cross = _multiply_codes(codes, signal)
    energy = 0.5 * float(signal.double().square().sum())
    penalty = lam * float(codes.values.double().abs().sum()) if count else 0.0
    return Statistics(gram, cross, energy, penalty, nonzeros, math.prod(codes.shape), len(signal))


def _multiply_codes(codes: SparseCodes, signal: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``Σ x xᵀ`` and ``Σ x yᵀ``, ``(atoms, atoms, 1)`` and ``(atoms, 1, d)``, float64 on the CPU."""
    from ._kernels_statistics import multiply_codes

    atoms = codes.shape[1]
    gram = torch.zeros(atoms, atoms, dtype=torch.float64)
    cross = torch.zeros(atoms, signal.shape[1], dtype=torch.float64)
    values = codes.values.detach().double().cpu().numpy()
    multiply_codes(
        codes.index.cpu().numpy(), values, signal.detach().cpu().contiguous().numpy(), gram.numpy(), cross.numpy()
    )
    return gram[..., None], cross[:, None, :]


def correlate_with_signal(signal: Tensor, codes: SparseCodes, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Return ``Σ_p x_i[p] y_c[q p + u]`` for all u of a window, ``(atoms, K, channels)``, float64 on the CPU.

    Args:
        signal: y, ``(samples, channels, ...)``; positions wrap around it.
        codes: x.
        size: The window.
        stride: q.
    """
    from ._kernels_statistics import correlate_signal

    samples, atoms, *grid = codes.shape
    index = codes.index.cpu()
    missing = 3 - len(grid)
    lifted = signal.detach().movedim(1, -1)
    lifted = lifted.reshape(samples, *(1,) * missing, *lifted.shape[1:]).contiguous().cpu()
    out = torch.zeros(atoms, *three(size, 1), signal.shape[1], dtype=torch.float64)
    values = codes.values.detach().double().cpu().numpy()
    correlate_signal(
        (index % atoms).numpy(),
        (index // atoms).numpy(),
        values,
        lifted.numpy(),
        three(grid, 1),
        three(stride, 1),
        out.numpy(),
    )
    return out.reshape(atoms, -1, signal.shape[1])


def _correlate_with_codes(dictionary: ConvDictionary, codes: SparseCodes) -> Tensor:
    """Return ``Σ_p x_i[p] x_l[p + s]`` at all lags, ``(atoms, atoms, lags)``, float64 on the CPU."""
    from ._kernels_statistics import correlate_codes

    samples, atoms, *grid = codes.shape
    index = codes.index.cpu()
    counts = torch.bincount(index // atoms, minlength=samples * math.prod(grid))
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    lags = three(dictionary.lags, 0)
    gram = torch.zeros(atoms, atoms, *(2 * lag + 1 for lag in lags), dtype=torch.float64)
    correlate_codes(
        (index % atoms).numpy(),
        (index // atoms).numpy(),
        codes.values.detach().double().cpu().numpy(),
        first.numpy(),
        three(grid, 1),
        lags,
        dictionary.boundary == "circular",
        gram.numpy(),
    )
    return gram.flatten(2)


def three(sizes: Sequence[int], fill: int) -> tuple[int, int, int]:
    """Return sizes of one to three axes as three, missing ones first."""
    last = (fill, fill, *sizes)
    return last[-3], last[-2], last[-1]
