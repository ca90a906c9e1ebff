"""Builders of dictionaries, cascades, codes and signals: each is a function of a seed (and sizes), float64.

`draw_...` picks the sizes too, from the seed; the named builders make the structured and the adversarial ones.
"""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc

SEEDS = st.integers(0, 2**31 - 1)
DENSE_FAMILIES = ("gaussian", "low_coherence", "dct", "orthonormal", "tall", "nonnegative", "clustered")


def rng(seed: int) -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(seed)


def randint(low: int, high: int, generator: torch.Generator) -> int:
    """Return a whole number from low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Return standard normal float64 entries."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------- random dictionaries


def draw_dense(seed: int, family: str | None = None, max_d: int = 12) -> dsc.DenseDictionary:
    """Return a dense dictionary of one of `DENSE_FAMILIES` (drawn if None)."""
    g = rng(seed)
    family = DENSE_FAMILIES[randint(0, len(DENSE_FAMILIES) - 1, g)] if family is None else family
    d = randint(3, max_d, g)
    atoms = randint(d, 2 * d + 2, g)
    if family == "low_coherence":
        return dsc.DenseDictionary.low_coherence(d, atoms, seed=seed, dtype=torch.float64)
    if family == "dct":
        return dsc.DenseDictionary.dct(d, atoms, dtype=torch.float64)
    if family == "orthonormal":
        return orthonormal(d, seed)
    if family == "tall":
        return dsc.DenseDictionary(normal(2 * d, randint(1, d, g), generator=g), normalize=True)
    if family == "nonnegative":
        return dsc.DenseDictionary(normal(d, atoms, generator=g).abs() + 1e-3, normalize=True)
    if family == "clustered":
        matrix = normal(d, 1, generator=g) + 0.3 * normal(d, atoms, generator=g)
        return dsc.DenseDictionary(matrix, normalize=True)
    return dsc.DenseDictionary(normal(d, atoms, generator=g), normalize=True)


def draw_conv(
    seed: int, *, axes: int | None = None, boundary: str | None = None, channels: int | None = None
) -> dsc.ConvDictionary:
    """Return a convolutional dictionary: 1 to 3 axes, any stride up to k + 1, even, odd and rectangular kernels."""
    g = rng(seed)
    axes = randint(1, 2, g) if axes is None else axes
    largest = {1: 6, 2: 4, 3: 3}[axes]
    size = tuple(randint(1, largest, g) for _ in range(axes))
    stride = tuple(randint(1, k + 1, g) for k in size)
    atoms, drawn = randint(1, 4, g), randint(1, 3, g)
    channels = drawn if channels is None else channels
    if channels * math.prod(size) == 1:
        atoms = 1  # one entry per kernel leaves nothing but ±1: more atoms would be duplicates
    kernels = normal(atoms, channels, *size, generator=g)
    boundary = ("valid", "circular")[randint(0, 1, g)] if boundary is None else boundary
    return dsc.ConvDictionary(kernels, stride=stride, boundary=boundary, normalize=True)


def draw_dictionary(seed: int) -> dsc.Dictionary:
    """Return a dense or a convolutional dictionary."""
    return draw_dense(seed) if seed % 2 else draw_conv(seed)


def draw_cascade(seed: int, *, conv: bool | None = None, depth: int | None = None) -> dsc.Cascade:
    """Return a cascade of two or three layers, dense or convolutional (1-d or 2-d), sparse atoms above layer 1."""
    g = rng(seed)
    depth = randint(2, 3, g) if depth is None else depth
    conv = bool(randint(0, 1, g)) if conv is None else conv
    width = randint(2, 3, g) if conv else randint(4, 8, g)
    layers: list[dsc.Dictionary] = []
    axes = randint(1, 2, g)
    for j in range(depth):
        wider = width + randint(1, 2, g)
        if conv:
            size = tuple(randint(2, 3, g) for _ in range(axes))
            nonzeros = None if j == 0 else randint(2, 3, g)
            layer: dsc.Dictionary = dsc.ConvDictionary.random(
                atoms=wider,
                channels=width,
                size=size,
                stride=randint(1, 2, g),
                nonzeros=nonzeros,
                seed=seed + j,
                dtype=torch.float64,
            )
        else:
            matrix = normal(width, wider, generator=g)
            layer = dsc.DenseDictionary(matrix, normalize=True)
        layers.append(layer)
        width = wider
    return dsc.Cascade(layers)


def code_size(dictionary: dsc.Dictionary, seed: int, largest: int = 4) -> tuple[int, ...]:
    """Return a spatial code size: () if dense; on a ring at least what keeps a kernel from wrapping onto itself."""
    if not isinstance(dictionary, dsc.ConvDictionary):
        return ()
    g = rng(seed)
    pairs = zip(dictionary.kernel_size, dictionary.stride, strict=True)
    least = [-(-k // q) if dictionary.boundary == "circular" else 1 for k, q in pairs]
    return tuple(randint(low, max(low, largest), g) for low in least)


def alias_free_size(dictionary: dsc.ConvDictionary, extra: int = 0) -> tuple[int, ...]:
    """Return the smallest code size on whose ring no two lags add up, plus `extra` positions per axis."""
    pairs = zip(dictionary.lags, dictionary.kernel_size, dictionary.stride, strict=True)
    return tuple(max(2 * lag + 1, -(-k // q)) + extra for lag, k, q in pairs)


def draw_codes(dictionary: dsc.Dictionary, seed: int, *, batch: tuple[int, ...] = (), density: float = 1.0) -> Tensor:
    """Return Gaussian codes, each entry kept with probability `density`."""
    g = rng(seed)
    size = code_size(dictionary, seed)
    event = dictionary.code_shape(dictionary.signal_shape(size)[1:])
    codes = normal(*batch, *event, generator=g)
    kept = torch.rand(codes.shape, generator=g, dtype=torch.float64) < density
    return (codes * kept).to(dictionary.dtype)


def draw_signal(dictionary: dsc.Dictionary, seed: int, *, batch: tuple[int, ...] = ()) -> Tensor:
    """Return a Gaussian signal of a size that fits."""
    shape = dictionary.signal_shape(code_size(dictionary, seed))
    return normal(*batch, *shape, generator=rng(seed)).to(dictionary.dtype)


# ---------------------------------------------------------------------- structured and adversarial dictionaries


def gram_dictionary(gram: Tensor) -> dsc.DenseDictionary:
    """Return atoms with this positive semidefinite Gram matrix (unit diagonal), in as few rows as it has rank."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-10
    return dsc.DenseDictionary((vectors[:, kept] * values[kept].sqrt()).T.contiguous())


def simplex(atoms: int, c: float) -> dsc.DenseDictionary:
    """Return atoms with ``G_il = -c``, c ≤ 1/(atoms - 1): at equality a simplex, whose atoms add up to zero.

    The tight instance of the Babel conditions: ``μ_1(s) = s·c`` and all entries of G pull the same way.
    """
    return gram_dictionary((1 + c) * torch.eye(atoms, dtype=torch.float64) - c)


def equiangular(atoms: int, c: float) -> dsc.DenseDictionary:
    """Return linearly independent atoms with ``G_il = c``, 0 ≤ c < 1."""
    return gram_dictionary((1 - c) * torch.eye(atoms, dtype=torch.float64) + c)


def spike_hadamard(d: int = 8) -> dsc.DenseDictionary:
    """Return ``[I, H/√d]``, coherence ``1/√d``: Babel numbers that grow linearly up to s = d. d is a power of 2."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < d:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return dsc.DenseDictionary(torch.cat([torch.eye(d, dtype=torch.float64), h / math.sqrt(d)], 1))


def orthonormal(d: int, seed: int) -> dsc.DenseDictionary:
    """Return a random orthonormal basis: the Lasso is a soft threshold."""
    return dsc.DenseDictionary(torch.linalg.qr(normal(d, d, generator=rng(seed))).Q.contiguous())


def nearly_parallel(d: int, atoms: int, seed: int, angle: float = 1e-6) -> dsc.DenseDictionary:
    """Return atoms of which the first two are `angle` apart (cosine ``1 - angle²/2``)."""
    g = rng(seed)
    matrix = torch.linalg.qr(normal(d, d, generator=g)).Q[:, :2]
    pair = torch.stack([matrix[:, 0], math.cos(angle) * matrix[:, 0] + math.sin(angle) * matrix[:, 1]], 1)
    return dsc.DenseDictionary(torch.cat([pair, normal(d, atoms - 2, generator=g)], 1), normalize=True)


def duplicate_matrix(d: int, atoms: int, seed: int, scale: float = 1.0) -> Tensor:
    """Return a matrix whose last column is `scale` times its first: building a dictionary of it warns."""
    matrix = normal(d, atoms, generator=rng(seed))
    matrix = matrix / torch.linalg.vector_norm(matrix, dim=0)
    matrix[:, -1] = scale * matrix[:, 0]
    return matrix


def rank_deficient(d: int, atoms: int, rank: int, seed: int) -> dsc.DenseDictionary:
    """Return atoms that span `rank` dimensions only."""
    g = rng(seed)
    matrix = normal(d, rank, generator=g) @ normal(rank, atoms, generator=g)
    return dsc.DenseDictionary(matrix, normalize=True)


def wide_range(d: int, atoms: int, seed: int, decades: float = 12.0) -> dsc.DenseDictionary:
    """Return atoms whose norms run over `decades` powers of ten."""
    matrix = normal(d, atoms, generator=rng(seed))
    matrix = matrix / torch.linalg.vector_norm(matrix, dim=0)
    return dsc.DenseDictionary(matrix * torch.logspace(-decades / 2, decades / 2, atoms, dtype=torch.float64))


def disjoint_kernels(boundary: str = "valid") -> dsc.ConvDictionary:
    """Return two kernels that never overlap themselves or each other (stride = k, one entry each): an isometry."""
    kernels = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    kernels[0, 0, 0, 0] = kernels[1, 0, 1, 1] = 1.0
    return dsc.ConvDictionary(kernels, stride=2, boundary=boundary)


def smooth_kernel(size: int = 5) -> dsc.ConvDictionary:
    """Return one constant 1-d kernel: neighboring shifts are almost parallel, the norm is ``√size`` in the limit."""
    return dsc.ConvDictionary(torch.ones(1, 1, size, dtype=torch.float64), normalize=True)
