"""Signals with known codes: what a cascade makes of random sparse codes, with or without noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import per_layer, require_integer, require_number
from ..errors import ParameterError
from .base import Dictionary
from .cascade import Cascade, as_cascade
from .random import generator
from .stripes import place_sparsity, stripe_sparsity


@dataclass(frozen=True)
class Sample:
    """Signals and the codes that made them.

    Attributes:
        signal: ``y = D_1 x_1 + noise``, ``(batch, ...)``.
        clean: ``D_1 x_1``.
        codes: One tensor per layer, ``x_{j-1} = D_j x_j`` exactly.
        noise_norms: ``‖y - D_1 x_1‖`` per sample.
        stripe_sparsity: ``‖x_j‖_{0,∞}``, the largest over the batch, one number per layer.
        place_sparsity: The most non-zeros of ``x_j`` under one atom of layer j + 1, one per layer but the deepest.
        amplitudes: ``‖x_j‖_∞``, the largest over the batch, one number per layer.
    """

    signal: Tensor
    clean: Tensor
    codes: tuple[Tensor, ...]
    noise_norms: Tensor
    stripe_sparsity: tuple[int, ...]
    place_sparsity: tuple[int, ...]
    amplitudes: tuple[float, ...]


def sample(
    model: Dictionary | Cascade,
    *,
    sparsity: int | Sequence[int],
    size: int | Sequence[int] = (),
    batch: int = 1,
    noise: float = 0.0,
    amplitude: float = 1.0,
    nonnegative: bool = False,
    seed: int,
) -> Sample:
    """Draw sparse codes for the deepest layer and synthesize every layer below them.

    Args:
        model: A dictionary or a cascade.
        sparsity: The most non-zeros of each layer's code, over the whole map. The deepest layer gets exactly that many;
            the layers above the signal get what ``x_{j-1} = D_j x_j`` gives, which must not be more.
        size: Spatial size of the deepest code map, one number for all axes or one per axis; nothing for dense layers.
        batch: Number of samples.
        noise: Standard deviation of the Gaussian noise on each entry of the signal.
        amplitude: The deepest codes' entries lie in ``[amplitude/2, amplitude]`` in absolute value.
        nonnegative: Draw positive entries only.
        seed: Seed of the generator.

    Returns:
        A `Sample` in the model's dtype and on its device.

    Raises:
        DictionaryError: Not a dictionary or a cascade.
        ParameterError: More non-zeros than places, or a layer whose code came out denser than `sparsity` allows.
        ShapeError: A size for dense layers, or one too small for a circular boundary.

    Source: the generating model of ML-CSC, section 1 of docs/theory.md; Papyan, Romano & Elad 2017.
    """
    cascade = as_cascade(model)
    limits = [
        require_integer("sparsity", s, minimum=0) for s in per_layer("sparsity", _as_tuple(sparsity), len(cascade))
    ]
    batch = require_integer("batch", batch, minimum=0)
    noise = require_number("noise", noise, minimum=0)
    amplitude = require_number("amplitude", amplitude, minimum=0, strict=True)
    rng = generator(seed)
    deepest = cascade.layers[-1]
    axes = deepest.event_axes - 1
    grid = tuple(size) if isinstance(size, Sequence) else (size,) * max(axes, 1)
    event = deepest.code_shape(deepest.signal_shape(grid)[1:])
    places = math.prod(event)
    if limits[-1] > places:
        raise ParameterError(f"sparsity of the deepest layer is {limits[-1]}; expected at most its {places} places")
    limits_of_dtype = torch.finfo(deepest.dtype)
    if not 2 * limits_of_dtype.tiny <= amplitude <= limits_of_dtype.max / 2:
        raise ParameterError(f"amplitude is {amplitude}; expected one that {deepest.dtype} can hold")
    codes = torch.zeros(batch, places, dtype=torch.float64)
    for row in codes:
        chosen = torch.randperm(places, generator=rng)[: limits[-1]]
        signs = torch.randint(0, 2, (limits[-1],), generator=rng) * 2.0 - 1.0
        sizes = amplitude * (0.5 + 0.5 * torch.rand(limits[-1], generator=rng, dtype=torch.float64))
        row[chosen] = sizes if nonnegative else signs * sizes
    levels = [codes.reshape(batch, *event).to(dtype=deepest.dtype, device=deepest.device)]
    with torch.no_grad():
        for layer in reversed(cascade.layers):
            levels.insert(0, layer.synthesize(levels[0]))
        clean, *xs = levels
        _require_sparse(xs, limits)
        added = noise * torch.randn(clean.shape, generator=rng, dtype=torch.float64)
        signal = clean + added.to(dtype=clean.dtype, device=clean.device)
    pairs = list(zip(cascade.layers, xs, strict=True))
    return Sample(
        signal=signal,
        clean=clean,
        codes=tuple(xs),
        noise_norms=torch.linalg.vector_norm((signal - clean).double().flatten(1), dim=1),
        stripe_sparsity=tuple(_largest(stripe_sparsity(layer, x)) for layer, x in pairs),
        place_sparsity=tuple(
            _largest(place_sparsity(layer, x)) for layer, x in zip(cascade.layers[1:], xs, strict=False)
        ),
        amplitudes=tuple(float(x.abs().max()) if x.numel() else 0.0 for x in xs),
    )


def _as_tuple(value: int | Sequence[int]) -> int | tuple[int, ...]:
    return tuple(value) if isinstance(value, Sequence) else value


def _largest(counts: Tensor) -> int:
    return int(counts.max()) if counts.numel() else 0


def _require_sparse(codes: list[Tensor], limits: list[int]) -> None:
    for j, (x, limit) in enumerate(zip(codes, limits, strict=True), start=1):
        count = _largest((x != 0).flatten(1).sum(1))
        if count > limit:
            raise ParameterError(
                f"the code of layer {j} came out with {count} non-zeros, more than sparsity = {limit}: "
                f"allow {count}, ask for fewer in the deepest layer, or use sparser atoms above layer {j} (nonzeros=)"
            )
