"""Operator norms: a number that says whether it is exact or a proved upper bound, and how it was found."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The symbol is examined at frequencies whose number times side³ is about this: the price of a tighter bound.
_SYMBOL_WORK = 1 << 27
_LARGEST_GRID = 256


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
    """Return the largest singular value of a matrix, by SVD in float64."""
    value = torch.linalg.svdvals(matrix.detach().double())[0].item()
    return OperatorNorm(value, exact=True, method="SVD")


def convolution_norm(
    kernels: Tensor, stride: tuple[int, ...], size: tuple[int, ...] | None, circular: bool
) -> OperatorNorm:
    """Return the norm of a strided transposed convolution, or an upper bound of it.

    With a circular boundary and the `size` of the code known, D is block-diagonal in the Fourier domain and the norm is
    the largest norm of a block (the polyphase symbol). Else: without padding D is a restriction of the circular
    operator on any larger grid, and ``v*S(ω)*S(ω)v`` is a trigonometric polynomial in ω of degree ``L`` per axis, whose
    maximum over all ω is at most its maximum over N equispaced points times ``1/cos(πL/N)`` per axis (Ehlich & Zeller
    1964). So one number holds for every size.

    Args:
        kernels: ``(atoms, channels, k, ...)``.
        stride: One per axis.
        size: Spatial size of the code, or None.
        circular: Whether the boundary wraps.
    """
    axes = len(stride)
    lags = tuple((k - 1) // q for k, q in zip(kernels.shape[2:], stride, strict=True))
    side = min(kernels.shape[0], kernels.shape[1] * math.prod(stride))
    if size is not None and circular:
        largest = _largest_symbol_eigenvalue(kernels, stride, size)
        return OperatorNorm(math.sqrt(largest), exact=True, method=f"Fourier blocks of a circular {size} grid")
    wanted = int((_SYMBOL_WORK / side**3) ** (1 / axes))
    grid = tuple(max(4 * lag + 2, min(_LARGEST_GRID, wanted)) if lag else 1 for lag in lags)
    factor = math.prod(1 / math.cos(math.pi * lag / n) for lag, n in zip(lags, grid, strict=True))
    value = math.sqrt(_largest_symbol_eigenvalue(kernels, stride, grid) * factor) * (1 + 1e-12)
    return OperatorNorm(value, exact=False, method="Fourier blocks with the Ehlich-Zeller factor, for every size")


def _largest_symbol_eigenvalue(kernels: Tensor, stride: tuple[int, ...], grid: tuple[int, ...]) -> float:
    """Return the largest eigenvalue of ``S(ω)*S(ω)`` over the DFT frequencies of a code grid."""
    kernels = kernels.detach().double()
    atoms, channels = kernels.shape[:2]
    axes = tuple(range(2, kernels.ndim))
    # Polyphase parts: axis of length k becomes (taps, phase); taps wrap onto the grid where they exceed it.
    parts = kernels
    for axis, (q, n) in zip(reversed(axes), zip(reversed(stride), reversed(grid), strict=True), strict=True):
        taps = -(-parts.shape[axis] // q)
        wraps = -(-taps // n)
        length = wraps * n * q
        padding = [0, 0] * (parts.ndim - 1 - axis) + [0, length - parts.shape[axis]]
        parts = torch.nn.functional.pad(parts, padding).unflatten(axis, (wraps, n, q)).sum(axis)
    # Now (atoms, channels, n1, q1, n2, q2, ...): transform over the n axes, gather channels and phases.
    tap_axes = tuple(2 + 2 * i for i in range(len(axes)))
    phase_axes = tuple(3 + 2 * i for i in range(len(axes)))
    symbol = torch.fft.rfftn(parts, dim=tap_axes) if parts.numel() else parts.to(torch.complex128)
    symbol = symbol.permute(*tap_axes, 1, *phase_axes, 0).reshape(-1, channels * math.prod(stride), atoms)
    if symbol.shape[1] <= symbol.shape[2]:
        gram = symbol @ symbol.mH
    else:
        gram = symbol.mH @ symbol
    if gram.shape[-1] == 1:
        return gram.real.max().item()
    # Frequencies whose bound lies below an eigenvalue found elsewhere are never decomposed: few are left.
    bound = _power_trace_bound(gram)
    largest = 0.0
    for chunk in bound.argsort(descending=True).split(16):
        if bound[chunk[0]] <= largest:
            break
        largest = max(largest, torch.linalg.eigvalsh(gram[chunk]).max().item())
    return largest


def _power_trace_bound(gram: Tensor, squarings: int = 6) -> Tensor:
    """Return ``tr(M^p)^{1/p} ≥ λ_max(M)``, p = 2^squarings, for a batch of positive semidefinite matrices."""
    scale = gram.diagonal(dim1=-2, dim2=-1).real.sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
    power, log_scale = gram / scale[:, None, None], scale.log()
    for exponent in range(1, squarings + 1):
        power = power @ power
        trace = power.diagonal(dim1=-2, dim2=-1).real.sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
        power, log_scale = power / trace[:, None, None], log_scale + trace.log() / 2**exponent
    return log_scale.exp() * (1 + 1e-12)
