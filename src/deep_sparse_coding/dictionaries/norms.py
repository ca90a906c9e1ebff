"""Operator norms: a number that says whether it is exact or a proved upper bound, and how it was found."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import require_finite_atoms

# Frequencies times side³ are at most about this, within 6 and 16 points per lag and axis: the price of a tighter bound.
_SYMBOL_WORK = 1 << 26
_COARSEST, _FINEST = 6, 16
# Symbols are held for that many entries at a time: 64 MB of complex128.
_CHUNK_ENTRIES = 1 << 22


class OperatorNorm(float):
    """The largest singular value of a dictionary, or a proved upper bound of it.

    Attributes:
        exact: True if the value is the norm up to rounding, False if it is an upper bound.
        method: How it was found, in words.
    """

    exact: bool
    method: str

    def __new__(cls, value: float, *, exact: bool, method: str) -> OperatorNorm:
        """Return the number with the words that belong to it."""
        norm = super().__new__(cls, value)
        norm.exact = exact
        norm.method = method
        return norm

    def __getnewargs_ex__(self) -> tuple[tuple[float], dict[str, object]]:
        return (float(self),), {"exact": self.exact, "method": self.method}

    def __repr__(self) -> str:
        return f"{'=' if self.exact else '≤'} {float(self):.6g} ({self.method})"


def matrix_norm(matrix: Tensor) -> OperatorNorm:
    """Return the largest singular value of a matrix, by SVD in float64.

    Raises:
        DictionaryError: An entry is not finite.
    """
    require_finite_atoms("the dictionary", matrix)
    value = torch.linalg.svdvals(matrix.detach().double())[0].item()
    return OperatorNorm(value, exact=True, method="SVD")


def convolution_norm(
    kernels: Tensor, stride: tuple[int, ...], size: tuple[int, ...] | None, circular: bool
) -> OperatorNorm:
    """Return the norm of a strided transposed convolution, or an upper bound of it.

    With a circular boundary and the `size` of the code known, D is block-diagonal in the Fourier domain and the norm is
    the largest norm of a block (the polyphase symbol S). Else: without padding D is a restriction of the circular
    operator on any larger grid, so ``‖D‖² ≤ M = max_ω λ_max(S(ω)*S(ω))``, and N equispaced points per axis bound M:
    at the maximizer, with its eigenvector v, ``p(ω) = v*S(ω)*S(ω)v`` is along each axis a trigonometric polynomial of
    degree L with values in ``[0, M]``, so ``p - M/2`` has sup norm M/2 and falls from its maximum no faster than
    ``(M/2)·cos(Lt)`` (M. Riesz; Ehlich & Zeller 1964). The nearest point is at ``t ≤ π/N``, hence
    ``M ≤ max over the grid / cos²(πL/2N)`` per axis. So one number holds for every size, and for every operator that
    is a restriction of such a one (boundary "same").

    Args:
        kernels: ``(atoms, channels, k, ...)``.
        stride: One per axis.
        size: Spatial size of the code, or None.
        circular: Whether the boundary wraps.

    Raises:
        DictionaryError: An entry is not finite.
    """
    require_finite_atoms("the dictionary", kernels)
    if size is not None and circular:
        largest = _largest_symbol_eigenvalue(kernels, stride, size)
        return OperatorNorm(math.sqrt(largest), exact=True, method=f"Fourier blocks of a circular {size} grid")
    lags = tuple((k - 1) // q for k, q in zip(kernels.shape[2:], stride, strict=True))
    side = min(kernels.shape[0], kernels.shape[1] * math.prod(stride))
    wanted = int((_SYMBOL_WORK / side**3) ** (1 / len(stride)))
    grid = tuple(max(_COARSEST * lag, min(_FINEST * lag, wanted)) if lag else 1 for lag in lags)
    factor = math.prod(math.cos(math.pi * lag / (2 * n)) ** -2 for lag, n in zip(lags, grid, strict=True))
    value = math.sqrt(_largest_symbol_eigenvalue(kernels, stride, grid) * factor) * (1 + 1e-12)
    return OperatorNorm(value, exact=False, method="Fourier blocks with the Ehlich-Zeller factor, for every size")


def _largest_symbol_eigenvalue(kernels: Tensor, stride: tuple[int, ...], grid: tuple[int, ...]) -> float:
    """Return the largest eigenvalue of ``S(ω)*S(ω)`` over the DFT frequencies of a code grid."""
    kernels = kernels.detach().double()
    atoms, channels = kernels.shape[:2]
    # Polyphase parts: an axis of length k becomes (taps, phase).
    parts = kernels
    for axis in reversed(range(2, kernels.ndim)):
        q = stride[axis - 2]
        padding = [0, 0] * (parts.ndim - 1 - axis) + [0, -parts.shape[axis] % q]
        parts = torch.nn.functional.pad(parts, padding).unflatten(axis, (-1, q))
    # Now (atoms, channels, n1, q1, n2, q2, ...): taps first, then channels with phases, then atoms.
    tap_axes = tuple(2 + 2 * i for i in range(len(grid)))
    phase_axes = tuple(3 + 2 * i for i in range(len(grid)))
    taps = tuple(parts.shape[axis] for axis in tap_axes)
    rows = channels * math.prod(stride)
    parts = parts.permute(*tap_axes, 1, *phase_axes, 0).reshape(math.prod(taps), rows * atoms)
    offsets = torch.cartesian_prod(*(torch.arange(t, dtype=torch.float64) for t in taps)).reshape(-1, len(grid))
    # S(-ω) is the conjugate of S(ω): half of the last axis says it all.
    halved = (*grid[:-1], grid[-1] // 2 + 1)
    turns = [torch.arange(h, dtype=torch.float64) * (-2 * math.pi / n) for h, n in zip(halved, grid, strict=True)]
    frequencies = torch.cartesian_prod(*turns).reshape(-1, len(grid))
    largest = 0.0
    for chunk in frequencies.split(max(1, _CHUNK_ENTRIES // (rows * atoms))):
        angles = (chunk @ offsets.T).to(kernels.device)
        symbol = torch.complex(angles.cos() @ parts, angles.sin() @ parts).reshape(-1, rows, atoms)
        gram = symbol @ symbol.mH if rows <= atoms else symbol.mH @ symbol
        largest = max(largest, _largest_eigenvalue(gram, largest))
    return largest


def _largest_eigenvalue(gram: Tensor, known: float) -> float:
    """Return the larger of `known` and the largest eigenvalue of a batch of positive semidefinite matrices."""
    if gram.shape[-1] == 1:
        return max(known, gram.real.max().item())
    # ‖M²‖_F^{1/2} ≥ λ_max(M): matrices whose bound lies below an eigenvalue found elsewhere are not decomposed.
    bound = torch.linalg.matrix_norm(gram @ gram).sqrt() * (1 + 1e-12)
    for chunk in bound.argsort(descending=True).split(16):
        if bound[chunk[0]] <= known:
            break
        known = max(known, torch.linalg.eigvalsh(gram[chunk]).max().item())
    return known
