"""Families of atoms: Gaussian, sparse, cosine, and of low coherence. Tensors only; seeded, float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..checks import require_integer
from ..errors import ParameterError


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator; the global one is never read."""
    seed = require_integer("seed", seed, minimum=0)
    if seed >= 1 << 64:
        raise ParameterError(f"seed is {seed}; expected a number below 2⁶⁴")
    return torch.Generator().manual_seed(seed)


def kernel_size(size: int | Sequence[int]) -> tuple[int, ...]:
    """Return a kernel's size per axis: one number stands for a square kernel on images.

    Raises:
        ParameterError: Not one to three axes, or a size below 1.
    """
    sizes = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sizes) not in (1, 2, 3):
        raise ParameterError(f"size has {len(sizes)} entries, {sizes}; expected one, two or three spatial axes")
    return tuple(require_integer("size", k, minimum=1) for k in sizes)


def kernel_shape(atoms: int, channels: int, size: int | Sequence[int]) -> tuple[int, ...]:
    """Return ``(atoms, channels, k, ...)``, checked.

    Raises:
        ParameterError: A number below 1.
    """
    return (
        require_integer("atoms", atoms, minimum=1),
        require_integer("channels", channels, minimum=1),
        *kernel_size(size),
    )


def to_kind(atoms: Tensor, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
    """Return atoms in the dtype (default: torch's) and on the device that a constructor was asked for."""
    return atoms.to(dtype=dtype or torch.get_default_dtype(), device=device)


def gaussian_atoms(shape: tuple[int, ...], axes: tuple[int, ...], seed: int) -> Tensor:
    """Return Gaussian entries, scaled to unit norm over `axes`."""
    atoms = torch.randn(shape, generator=generator(seed), dtype=torch.float64)
    return atoms / torch.linalg.vector_norm(atoms, dim=axes, keepdim=True)


def sparse_atoms(shape: tuple[int, ...], nonzeros: int, seed: int) -> Tensor:
    """Return kernels with `nonzeros` entries of size ½ to 1 and random sign at random places, scaled to unit norm."""
    entries = math.prod(shape[1:])
    nonzeros = require_integer("nonzeros", nonzeros, minimum=1)
    if nonzeros > entries:
        raise ParameterError(f"nonzeros is {nonzeros}; expected at most the {entries} entries of a kernel")
    rng = generator(seed)
    atoms = torch.zeros(shape[0], entries, dtype=torch.float64)
    for atom in atoms:
        places = torch.randperm(entries, generator=rng)[:nonzeros]
        signs = torch.randint(0, 2, (nonzeros,), generator=rng) * 2.0 - 1.0
        atom[places] = signs * (0.5 + 0.5 * torch.rand(nonzeros, generator=rng, dtype=torch.float64))
    return (atoms / torch.linalg.vector_norm(atoms, dim=1, keepdim=True)).reshape(shape)


def cosine_atoms(d: int, atoms: int) -> Tensor:
    """Return the overcomplete cosine matrix ``cos(π l (n + ½) / atoms)``, ``(d, atoms)``, columns of unit norm."""
    if atoms < d:
        raise ParameterError(
            f"atoms is {atoms}; expected at least d = {d}: a cosine dictionary is no smaller than a basis"
        )
    n = torch.arange(d, dtype=torch.float64)[:, None]
    frequency = torch.arange(atoms, dtype=torch.float64)[None, :]
    matrix = torch.cos(math.pi * frequency * (n + 0.5) / atoms)
    if atoms > d:
        matrix[:, 1:] -= matrix[:, 1:].mean(0)
    return matrix / torch.linalg.vector_norm(matrix, dim=0)


def low_coherence_frame(d: int, atoms: int, seed: int, rounds: int = 150) -> Tensor:
    """Return ``(d, atoms)`` of low coherence: shrink the Gram matrix, project to rank d, repeat (Tropp et al. 2005)."""
    frame = gaussian_atoms((d, atoms), (0,), seed)
    if atoms <= d:
        return torch.linalg.qr(frame).Q
    welch = math.sqrt((atoms - d) / (d * (atoms - 1)))
    best, best_coherence = frame, math.inf
    for _ in range(rounds):
        gram = frame.T @ frame
        coherence = (gram - torch.eye(atoms, dtype=gram.dtype)).abs().max().item()
        if coherence < best_coherence:
            best, best_coherence = frame, coherence
        bound = max(welch, 0.9 * coherence)
        shrunk = gram.clamp(-bound, bound).fill_diagonal_(1.0)
        values, vectors = torch.linalg.eigh(shrunk)
        frame = (vectors[:, -d:] * values[-d:].clamp_min(0).sqrt()).T
        frame = frame / torch.linalg.vector_norm(frame, dim=0)
    return best


def lag_correlations(kernels: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return ``⟨d_i, d_l shifted⟩`` at all lags that are multiples of the stride, own entries at lag 0 set to 0."""
    gram = cross_correlations(kernels, kernels, stride)
    own = torch.zeros_like(gram, dtype=torch.bool)
    own[:, :, gram.shape[2] // 2] = torch.eye(len(kernels), dtype=torch.bool)
    return gram.masked_fill(own, 0.0)


def cross_correlations(first: Tensor, second: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return ``⟨first_i, second_l shifted⟩`` at all lags that are multiples of the stride, ``(i, l, lags)``.

    One matrix product of unfolded kernels: for kernels this small, and backward too, far cheaper than a convolution.
    """
    return (_windows(first, stride) @ second.flatten(1).T).mT


def _windows(kernels: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return what every shift of a kernel's support sees of each kernel, ``(kernels, lags, entries)``."""
    axes = len(stride)
    padding: list[int] = []
    for k, q in zip(reversed(kernels.shape[2:]), reversed(stride), strict=True):
        padding += [(k - 1) // q * q] * 2
    windows = F.pad(kernels, padding)
    for axis, (k, q) in enumerate(zip(kernels.shape[2:], stride, strict=True), start=2):
        windows = windows.unfold(axis, k, q)
    return windows.movedim(1, 1 + axes).flatten(1, axes).flatten(2)


def low_coherence_kernels(shape: tuple[int, ...], stride: tuple[int, ...], seed: int, rounds: int = 300) -> Tensor:
    """Return kernels of small correlation at all lags, by descent on a smooth maximum that sharpens as it goes."""
    axes = tuple(range(1, len(shape)))
    kernels = gaussian_atoms(shape, axes, seed)
    # Callers may have switched gradients off; these are this function's own.
    with torch.inference_mode(False), torch.enable_grad():
        return _descend(kernels, stride, rounds)


def _descend(kernels: Tensor, stride: tuple[int, ...], rounds: int) -> Tensor:
    axes = tuple(range(1, kernels.ndim))
    free = kernels.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.05)
    best, best_coherence = kernels, lag_correlations(kernels, stride).abs().max().item()
    for step in range(rounds):
        unit = free / torch.linalg.vector_norm(free, dim=axes, keepdim=True)
        gram = lag_correlations(unit, stride)
        coherence = gram.detach().abs().max().item()
        if coherence < best_coherence:
            best, best_coherence = unit.detach().clone(), coherence
        sharpness = 10.0 * 30.0 ** (step / rounds) / max(coherence, 1e-3) ** 2
        loss = torch.logsumexp(sharpness * gram.square().flatten(), 0) / sharpness
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return best


def spread_sparse_kernels(
    shape: tuple[int, ...], stride: tuple[int, ...], nonzeros: int, seed: int, candidates: int = 64
) -> Tensor:
    """Return sparse kernels, each chosen among random candidates as the one least like those before it and itself."""
    drawn = sparse_atoms((shape[0] * candidates, *shape[1:]), nonzeros, seed)
    chosen = drawn[:0]
    for group in drawn.reshape(shape[0], candidates, *shape[1:]):
        windows = _windows(group, stride)
        own = (windows @ group.flatten(1)[..., None])[..., 0].abs()
        own[:, own.shape[1] // 2] = 0.0
        scores = own.amax(1)
        if len(chosen):
            scores = torch.maximum(scores, (windows @ chosen.flatten(1).T).abs().amax((1, 2)))
        chosen = torch.cat([chosen, group[scores.argmin()][None]])
    return chosen
