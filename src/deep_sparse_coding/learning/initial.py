"""Where atoms begin: pieces of the data that differ from each other, and the pieces that are explained worst."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary, DenseDictionary, Dictionary

from .updates import from_rows

_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
# Candidates per atom, and the random part of an initial atom that keeps two equal pieces apart.
_CANDIDATES = 20
_JITTER = 0.02
# Kernels from this size on begin under a window, which centers what they hold.
_TAPERED_FROM = 5


def template(
    atoms: int,
    channels: int,
    size: tuple[int, ...] | None,
    stride: tuple[int, ...],
    boundary: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Dictionary:
    """Return a dictionary of the kind to be learned; its atoms are placeholders."""
    if size is None:
        return DenseDictionary.random(channels, atoms, seed=0, dtype=dtype, device=device)
    return ConvDictionary.random(
        atoms=atoms, channels=channels, size=size, stride=stride, boundary=boundary, seed=0, dtype=dtype, device=device
    )


def initial_dictionary(
    kind: Dictionary, signals: Sequence[Tensor], rng: torch.Generator, nonnegative: bool
) -> Dictionary | None:
    """Return a dictionary whose atoms are pieces of the signals, or None where they hold nothing but zeros.

    Pieces are drawn with probability proportional to their energy, then among these candidates one after the other with
    probability ``1 - max cos²`` to those chosen before, so that few atoms begin alike.

    Source: Arthur & Vassilvitskii 2007 (the seeding of k-means++), with the angle for a distance.
    """
    wanted = -(-_CANDIDATES * kind.atoms // len(signals))
    found = [piece for signal in signals for piece in _draw_pieces(kind, signal, wanted, rng)]
    if not found:
        return None
    pieces = torch.stack(found)
    if nonnegative:
        pieces = pieces.clamp_min(0)
    pieces = pieces * _taper(kind)
    norms = torch.linalg.vector_norm(pieces, dim=(1, 2))
    pieces = pieces[norms > 0] / norms[norms > 0][:, None, None]
    if not len(pieces):
        return None
    flat = pieces.flatten(1)
    chosen: list[int] = []
    apart = torch.ones(len(flat), dtype=torch.float64)
    for _ in range(kind.atoms):
        # The floor lets pieces be drawn again once all that differ are used up; the jitter then tells them apart.
        index = int(torch.multinomial(apart.clamp_min(1e-9), 1, generator=rng))
        chosen.append(index)
        apart = torch.minimum(apart, 1 - (flat @ flat[index]).square())
    noise = torch.randn(pieces[chosen].shape, generator=rng, dtype=torch.float64)
    noise = noise * _JITTER / torch.linalg.vector_norm(noise, dim=(1, 2), keepdim=True)
    rows = pieces[chosen] + (noise.abs() if nonnegative else noise)
    return from_rows(kind, rows / torch.linalg.vector_norm(rows, dim=(1, 2), keepdim=True))


def worst_pieces(kind: Dictionary, residual: Tensor, count: int, nonnegative: bool) -> list[tuple[float, Tensor]]:
    """Return up to `count` pieces of a residual ``(samples, channels, ...)`` of most energy, at most one per sample.

    Returns:
        Pairs of energy and a piece of unit norm, ``(K, channels)``.
    """
    energies = _energies(kind, residual).flatten(1)
    best, where = energies.max(1)
    order = best.argsort(descending=True, stable=True)[:count]
    pieces = []
    for sample in order.tolist():
        piece = _piece(kind, residual, sample, int(where[sample])) * _taper(kind)
        piece = piece.clamp_min(0) if nonnegative else piece
        norm = float(torch.linalg.vector_norm(piece))
        if norm > 0:
            pieces.append((float(best[sample]), piece / norm))
    return pieces


def _draw_pieces(kind: Dictionary, signal: Tensor, count: int, rng: torch.Generator) -> list[Tensor]:
    energies = _energies(kind, signal)
    flat = energies.flatten()
    if not float(flat.sum()) > 0:
        return []
    places = torch.multinomial(flat / flat.sum(), count, replacement=True, generator=rng)
    per_sample = energies[0].numel()
    return [_piece(kind, signal, *divmod(place, per_sample)) for place in places.tolist()]


def _energies(kind: Dictionary, signal: Tensor) -> Tensor:
    """Return the energy under an atom at every position, ``(samples, positions...)``, float64 on the CPU."""
    squares = signal.detach().double().square().cpu()
    if not isinstance(kind, ConvDictionary):
        return squares.sum(1, keepdim=True)
    return _POOL[kind.axes](squares.sum(1, keepdim=True), kind.kernel_size, kind.stride)[:, 0].clamp_min(0)


def _piece(kind: Dictionary, signal: Tensor, sample: int, place: int) -> Tensor:
    """Return what lies under an atom at a position, ``(K, channels)``, float64 on the CPU."""
    piece = signal[sample].detach()
    if not isinstance(kind, ConvDictionary):
        return piece[None].double().cpu()
    axes = list(zip(signal.shape[2:], kind.kernel_size, kind.stride, strict=True))
    for axis, (n, k, q) in reversed(list(enumerate(axes, start=1))):
        place, position = divmod(place, (n - k) // q + 1)
        piece = piece.narrow(axis, position * q, k)
    return piece.flatten(1).T.double().cpu()


def _taper(kind: Dictionary) -> Tensor:
    """Return a window that falls towards the border of a kernel, ``(K, 1)``; ones for dense and small kernels."""
    if not isinstance(kind, ConvDictionary):
        return torch.ones(1, 1, dtype=torch.float64)
    window = torch.ones(1, dtype=torch.float64)
    for k in kind.kernel_size:
        line = torch.ones(k, dtype=torch.float64)
        if k >= _TAPERED_FROM:
            line = torch.sin(torch.pi * (torch.arange(k, dtype=torch.float64) + 1) / (k + 1))
        window = (window[:, None] * line).flatten()
    return window[:, None]
