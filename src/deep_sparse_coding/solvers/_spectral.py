"""Resolvents ``argmin_x ½‖b - A x‖² + ρ/2‖x - w‖²`` in a basis in which ``AAᵀ`` is diagonal, for any ρ at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary
from deep_sparse_coding.problems import Blocks
from deep_sparse_coding.problems.base import per_sample

# More entries than this are worked on in groups of samples, so that what is in use stays near the cache.
_GROUP_ENTRIES = 1 << 21
# Up to this many products an entry, one correlation with the kernels beats the inverse transforms of all code maps.
_DIRECT_PRODUCTS = 100


class Resolvent(ABC):
    """``x = w + Aᵀ(AAᵀ + ρI)⁻¹(b - A w)``, written with ``A = U B``, U orthonormal and ``BBᵀ`` diagonal.

    Nothing is factored anew when ρ changes, and every sample may have its own. Codes are one tensor ``(batch, ...)``
    on a grid that may be larger than the problem's; `lift` and `lower` go there and back.
    """

    @abstractmethod
    def lift(self, codes: Blocks) -> Tensor:
        """Return the codes on the grid; what lies beyond the problem's is zero."""

    @abstractmethod
    def lower(self, codes: Tensor) -> Blocks:
        """Return the problem's part of codes on the grid, as views."""

    @abstractmethod
    def beyond(self, codes: Tensor) -> Iterator[Tensor]:
        """Yield views that together are what lies beyond the problem's codes."""

    @abstractmethod
    def embed(self, data: Tensor, fill: float = 0.0) -> Tensor:
        """Return data on the grid of signals, with `fill` beyond the problem's."""

    @abstractmethod
    def synthesize(self, codes: Tensor) -> Tensor:
        """Return what codes on the grid make on the grid of signals."""

    @abstractmethod
    def analyze(self, data: Tensor) -> Tensor:
        """Return ``Aᵀr`` on the grid for data on the grid of signals."""

    @abstractmethod
    def rotate(self, data: Tensor) -> Tensor:
        """Return ``Uᵀb`` for data on the grid of signals."""

    @abstractmethod
    def unrotate(self, rotated: Tensor) -> Tensor:
        """Return ``U q`` on the grid of signals."""

    @abstractmethod
    def correct_(self, point: Tensor, rotated: Tensor, rho: Tensor) -> Tensor:
        """Turn w into ``x - w`` in place, and return ``q = (BBᵀ + ρI)⁻¹(Uᵀb - B w)``.

        Args:
            point: w, codes on the grid; overwritten.
            rotated: ``Uᵀb``.
            rho: ρ of every sample.
        """


@dataclass(frozen=True, eq=False)
class DenseResolvent(Resolvent):
    """Of a matrix, by its singular value decomposition.

    Attributes:
        basis: U, ``(d, rank)``.
        matrix: ``B = Uᵀ A``, ``(rank, n)``.
        values: The diagonal of ``BBᵀ``.
        widths: The number of entries of every block of codes.
    """

    basis: Tensor
    matrix: Tensor
    values: Tensor
    widths: tuple[int, ...]

    @staticmethod
    def of(matrix: Tensor, widths: tuple[int, ...]) -> DenseResolvent:
        """Return the resolvent of A, decomposed in float64."""
        wide = matrix.double()
        if wide.shape[0] <= wide.shape[1]:
            values, basis = torch.linalg.eigh(wide @ wide.T)
            rotated = basis.T @ wide
        else:
            basis, singular, right = torch.linalg.svd(wide, full_matrices=False)
            values, rotated = singular.square(), singular[:, None] * right
        values = values.clamp_min(0)
        basis, rotated, values = (part.to(matrix.dtype).contiguous() for part in (basis, rotated, values))
        return DenseResolvent(basis, rotated, values, widths)

    def lift(self, codes: Blocks) -> Tensor:
        """Return the blocks side by side."""
        return torch.cat([block.flatten(1) for block in codes], 1)

    def lower(self, codes: Tensor) -> Blocks:
        """Return the blocks."""
        return codes.split(self.widths, 1)

    def beyond(self, codes: Tensor) -> Iterator[Tensor]:
        """Yield nothing: there is nothing beyond."""
        yield from ()

    def embed(self, data: Tensor, fill: float = 0.0) -> Tensor:
        """Return the data."""
        return data

    def synthesize(self, codes: Tensor) -> Tensor:
        """Return ``A x``."""
        return self.unrotate(codes @ self.matrix.T)

    def analyze(self, data: Tensor) -> Tensor:
        """Return ``Aᵀr``."""
        return self.rotate(data) @ self.matrix

    def rotate(self, data: Tensor) -> Tensor:
        """Return ``Uᵀb``, ``(batch, rank)``."""
        return data @ self.basis

    def unrotate(self, rotated: Tensor) -> Tensor:
        """Return ``U q``, ``(batch, d)``."""
        return rotated @ self.basis.T

    def correct_(self, point: Tensor, rotated: Tensor, rho: Tensor) -> Tensor:
        """Turn w into ``Bᵀq`` and return q: two products with B."""
        inner = torch.addmm(rotated, point, self.matrix.T, alpha=-1).div_(self.values + rho[:, None])
        torch.mm(inner, self.matrix, out=point)
        return inner


@dataclass(frozen=True, eq=False)
class ConvResolvent(Resolvent):
    """Of a convolution on a ring, frequency by frequency; of another one on a ring that is large enough to hold it.

    With stride q the signal's entries of one residue modulo q are a channel of their own, and the convolution has
    stride 1. At every frequency A is then a matrix, (channels · residues) × atoms; with one row its ``AAᵀ`` is a number
    (Sherman & Morrison), with several U holds its eigenvectors. On a larger ring ("valid" and "same") atoms beyond the
    problem's must not be used: the penalty sees to that.

    Attributes:
        dictionary: The kernels on the ring of `grid` positions.
        size: The problem's grid of codes.
        grid: The ring's.
        before: Where the problem's signal begins on the ring's, per axis.
        cuts: Whether atoms reach entries of the ring that are not the problem's; a mask must then hide these.
        spectrum: ``B``, ``(rank, atoms, *frequencies)``, complex.
        values: The diagonal of ``BBᵀ``, ``(rank, *frequencies)``.
        basis: U, ``(rows, rank, *frequencies)``; None for one row.
    """

    dictionary: ConvDictionary
    size: tuple[int, ...]
    grid: tuple[int, ...]
    before: tuple[int, ...]
    cuts: bool
    spectrum: Tensor
    values: Tensor
    basis: Tensor | None

    @staticmethod
    def of(dictionary: ConvDictionary, size: tuple[int, ...]) -> ConvResolvent:
        """Return the resolvent of kernels on a grid of codes of the spatial `size`; spectra are made in float64."""
        grid = ring_size(dictionary, size)
        ring = dictionary.with_weight(dictionary.kernels.detach())
        ring.boundary = "circular"
        before = tuple(max(start, 0) for start, _ in dictionary.padding)
        whole = tuple(n * q for n, q in zip(grid, dictionary.stride, strict=True))
        real = dictionary.dtype
        rows = dictionary.channels * math.prod(dictionary.stride)
        # Eigenvectors are found in float64; a single row needs none.
        kernels = _pad(dictionary.kernels.detach().to(real if rows == 1 else torch.float64), whole)
        spectrum = torch.fft.rfftn(_split_residues(kernels, dictionary.stride), dim=_last(dictionary.axes))
        spectrum = spectrum.transpose(0, 1)
        if rows == 1:
            values, basis = spectrum.abs().square().sum(1), None
        else:
            columns = spectrum.movedim((0, 1), (-2, -1))
            if rows <= dictionary.atoms:
                values, basis = torch.linalg.eigh(columns @ columns.mH)
                columns = basis.mH @ columns
            else:
                basis, singular, right = torch.linalg.svd(columns, full_matrices=False)
                values, columns = singular.square(), singular[..., None] * right
            values, spectrum = values.movedim(-1, 0).clamp_min(0), columns.movedim((-2, -1), (0, 1))
            basis = basis.movedim((-2, -1), (0, 1))
        complex_type = torch.complex64 if real == torch.float32 else torch.complex128
        return ConvResolvent(
            ring,
            size,
            grid,
            before,
            any(max(pair) > 0 for pair in dictionary.padding),
            spectrum.to(complex_type).contiguous(),
            values.to(real).contiguous(),
            None if basis is None else basis.to(complex_type).contiguous(),
        )

    def lift(self, codes: Blocks) -> Tensor:
        """Return the codes, zero on the positions that the ring has more."""
        return _pad(codes[0], self.grid)

    def lower(self, codes: Tensor) -> Blocks:
        """Return the problem's positions."""
        return (codes[(..., *(slice(n) for n in self.size))],)

    def beyond(self, codes: Tensor) -> Iterator[Tensor]:
        """Yield, axis by axis, the positions that the ring has more."""
        for axis, (n, m) in enumerate(zip(self.size, self.grid, strict=True), start=codes.ndim - len(self.grid)):
            if n < m:
                yield codes.narrow(axis, n, m - n)

    def embed(self, data: Tensor, fill: float = 0.0) -> Tensor:
        """Return the data in their place on the ring, with `fill` around them."""
        lengths = (n * q for n, q in zip(self.grid, self.dictionary.stride, strict=True))
        around = [(b, n - b - size) for b, n, size in zip(self.before, lengths, data.shape[2:], strict=True)]
        return F.pad(data, [n for pair in reversed(around) for n in pair], value=fill)

    def synthesize(self, codes: Tensor) -> Tensor:
        """Return what the ring makes."""
        return self.dictionary.synthesize(codes)

    def analyze(self, data: Tensor) -> Tensor:
        """Return the correlations at all positions of the ring."""
        return self.dictionary.analyze(data)

    def rotate(self, data: Tensor) -> Tensor:
        """Return the spectra of the residues, in the basis U, ``(batch, rank, *frequencies)``."""
        spectra = torch.fft.rfftn(_split_residues(data, self.dictionary.stride), dim=_last(len(self.grid)))
        return spectra if self.basis is None else (self.basis.conj() * spectra[:, :, None]).sum(1)

    def unrotate(self, rotated: Tensor) -> Tensor:
        """Return the signal of spectra in the basis U."""
        spectra = rotated if self.basis is None else (self.basis * rotated[:, None]).sum(2)
        return _join_residues(self._inverse(spectra), self.dictionary.stride, self.dictionary.channels)

    def correct_(self, point: Tensor, rotated: Tensor, rho: Tensor) -> Tensor:
        """Turn w into ``Bᵀq`` and return q: a transform of every code map, and back by transforms or correlations."""
        inner = rotated.clone()
        for rows in _groups(point):
            spectra = torch.fft.rfftn(point[rows], dim=_last(len(self.grid)))
            # Only the last row may use up the spectra.
            for i, row in enumerate(self.spectrum[:-1]):
                inner[rows, i] -= (spectra * row).sum(1)
            inner[rows, -1] -= spectra.mul_(self.spectrum[-1]).sum(1)
            inner[rows] /= self.values + per_sample(rho[rows], inner)
            if self._direct:
                point[rows] = self.dictionary.analyze(self.unrotate(inner[rows]))
                continue
            torch.mul(self.spectrum[-1].conj(), inner[rows, -1:], out=spectra)
            for i, row in enumerate(self.spectrum[:-1]):
                spectra.addcmul_(row.conj(), inner[rows, i : i + 1])
            point[rows] = self._inverse(spectra)
        return inner

    @property
    def _direct(self) -> bool:
        kernels = self.dictionary.kernels
        few = kernels[0].numel() <= _DIRECT_PRODUCTS
        return few and kernels.dtype == torch.float32 and kernels.device.type == "cpu" and self.dictionary.axes < 3

    def _inverse(self, spectra: Tensor) -> Tensor:
        return torch.fft.irfftn(spectra, s=self.grid, dim=_last(len(self.grid)))


def ring_size(dictionary: ConvDictionary, size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the grid of the smallest ring that holds the convolution, rounded up to a size with quick transforms."""
    if dictionary.boundary == "circular":
        return size
    lengths = dictionary.signal_shape(size)[1:]
    axes = zip(size, dictionary.stride, dictionary.kernel_size, dictionary.padding, lengths, strict=True)
    return tuple(_quick_length(max(n - 1 + -(-k // q), -(-(before + d) // q))) for n, q, k, (before, _), d in axes)


def _quick_length(least: int) -> int:
    """Return the smallest ``2ᵃ3ᵇ5ᶜ`` of at least `least`."""
    best = 1 << max(least - 1, 0).bit_length()
    five = 1
    while five < best:
        odd = five
        while odd < best:
            quotient = -(-least // odd)
            best = min(best, odd << max(quotient - 1, 0).bit_length())
            odd *= 3
        five *= 5
    return best


def _groups(codes: Tensor) -> Iterator[slice]:
    """Yield the samples in groups; all at once where the device has room for them anyway."""
    size = len(codes) if codes.device.type != "cpu" else _GROUP_ENTRIES // max(1, codes[:1].numel())
    size = max(1, size)
    for first in range(0, len(codes), size):
        yield slice(first, first + size)


def _last(axes: int) -> tuple[int, ...]:
    return tuple(range(-axes, 0))


def _pad(tensor: Tensor, size: tuple[int, ...], fill: float = 0.0) -> Tensor:
    """Return the tensor with its last axes grown to `size`."""
    missing = [n - have for n, have in zip(size, tensor.shape[-len(size) :], strict=True)]
    if not any(missing):
        return tensor
    return F.pad(tensor, [entry for n in reversed(missing) for entry in (0, n)], value=fill)


def _split_residues(signal: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return ``(batch, channels · Πq, ...)``: a channel for every residue of positions modulo the stride."""
    if math.prod(stride) == 1:
        return signal
    axes = len(stride)
    for axis, q in enumerate(stride):
        signal = signal.unflatten(2 + 2 * axis, (-1, q))
    order = (0, 1, *(3 + 2 * a for a in range(axes)), *(2 + 2 * a for a in range(axes)))
    return signal.permute(order).flatten(1, 1 + axes)


def _join_residues(split: Tensor, stride: tuple[int, ...], channels: int) -> Tensor:
    """Return the signal whose residues `_split_residues` took apart."""
    if math.prod(stride) == 1:
        return split
    axes = len(stride)
    split = split.unflatten(1, (channels, *stride))
    order = [0, 1]
    for axis in range(axes):
        order += [2 + axes + axis, 2 + axis]
    split = split.permute(order)
    for axis in range(axes):
        split = split.flatten(2 + axis, 3 + axis)
    return split
