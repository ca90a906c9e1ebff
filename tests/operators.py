"""The one registry of operators that adjointness, norms, Gram matrices, solvers and networks are tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
import references
from strategies import normal, rng


@dataclass(frozen=True)
class Operator:
    """A named dictionary in float64 and the spatial size of the codes that it is tried on.

    Attributes:
        name: What pytest prints.
        build: Makes the dictionary.
        size: Spatial size of the code, () for dense ones; on rings large enough that no lags add up.
    """

    name: str
    build: Callable[[], dsc.Dictionary]
    size: tuple[int, ...] = ()


def _conv(
    name: str,
    shape: tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    boundary: str = "valid",
    size: tuple[int, ...] = (),
) -> Operator:
    def build() -> dsc.Dictionary:
        kernels = normal(*shape, generator=rng(len(name) + sum(shape)))
        return dsc.ConvDictionary(kernels, stride=stride, boundary=boundary, normalize=True)

    return Operator(name, build, size)


def _dense(name: str, d: int, atoms: int) -> Operator:
    return Operator(name, lambda: dsc.DenseDictionary(normal(d, atoms, generator=rng(d)), normalize=True))


OPERATORS: tuple[Operator, ...] = (
    _dense("dense-wide", 6, 11),
    _dense("dense-tall", 9, 4),
    _dense("dense-one-atom", 5, 1),
    Operator("dense-dct", lambda: dsc.DenseDictionary.dct(8, 8, dtype=torch.float64)),
    Operator("dense-unnormalized", lambda: dsc.DenseDictionary(3.0 * normal(5, 7, generator=rng(3)))),
    _conv("conv1d", (3, 1, 4), size=(6,)),
    _conv("conv1d-channels", (2, 3, 3), size=(5,)),
    _conv("conv1d-stride-2", (3, 2, 5), 2, size=(5,)),
    _conv("conv1d-stride-is-k", (3, 1, 3), 3, size=(4,)),
    _conv("conv1d-stride-above-k", (3, 2, 2), 4, size=(4,)),
    _conv("conv1d-one-tap", (4, 3, 1), size=(5,)),
    _conv("conv1d-kernel-larger-than-grid", (2, 2, 6), size=(2,)),
    _conv("conv1d-circular", (3, 2, 4), 1, "circular", (8,)),
    _conv("conv1d-circular-stride-2", (2, 2, 5), 2, "circular", (6,)),
    _conv("conv1d-circular-stride-above-k", (2, 2, 2), 3, "circular", (3,)),
    _conv("conv2d", (3, 1, 3, 3), size=(4, 3)),
    _conv("conv2d-channels-even", (2, 3, 4, 4), size=(3, 3)),
    _conv("conv2d-rectangular", (3, 2, 2, 5), (1, 2), size=(4, 3)),
    _conv("conv2d-stride-mixed", (2, 2, 3, 2), (2, 3), size=(3, 2)),
    _conv("conv2d-stride-2", (5, 1, 4, 4), 2, size=(3, 4)),
    _conv("conv2d-circular", (2, 2, 3, 3), 1, "circular", (5, 6)),
    _conv("conv2d-circular-mixed", (3, 1, 4, 3), (2, 1), "circular", (3, 5)),
    _conv("conv3d", (2, 2, 2, 3, 2), (1, 2, 1), size=(2, 2, 3)),
    _conv("conv3d-circular", (2, 1, 2, 2, 3), (1, 1, 2), "circular", (3, 3, 3)),
)

# Atoms at the border of these are cut off.
SAME_OPERATORS: tuple[Operator, ...] = (
    _conv("conv1d-same", (3, 1, 5), 1, "same", (9,)),
    _conv("conv1d-same-even-channels", (2, 3, 4), 1, "same", (8,)),
    _conv("conv1d-same-stride-2", (3, 2, 5), 2, "same", (5,)),
    _conv("conv1d-same-stride-is-k", (3, 1, 4), 4, "same", (3,)),
    _conv("conv1d-same-stride-above-k", (3, 2, 2), 3, "same", (3,)),
    _conv("conv1d-same-one-tap", (3, 3, 1), 1, "same", (5,)),
    _conv("conv1d-same-kernel-larger-than-signal", (2, 3, 7), 2, "same", (2,)),
    _conv("conv2d-same", (3, 1, 3, 3), 1, "same", (5, 4)),
    _conv("conv2d-same-even-channels", (2, 3, 4, 2), 1, "same", (5, 3)),
    _conv("conv2d-same-stride-mixed", (3, 2, 2, 5), (1, 2), "same", (4, 4)),
    _conv("conv2d-same-even-stride-2", (5, 1, 4, 4), 2, "same", (3, 4)),
    _conv("conv3d-same", (2, 2, 2, 3, 2), (1, 2, 1), "same", (2, 3, 3)),
)


def explicit_matrix(dictionary: dsc.Dictionary, size: tuple[int, ...] = ()) -> Tensor:
    """Return D as a matrix, ``(signal entries, code entries)``; of "same" by its definition, the rows of "valid" kept.

    Entry ``e`` of the signal is entry ``e + ⌊(k - 1)/2⌋`` of the "valid" one per axis, or 0 where that is too short.
    """
    if not isinstance(dictionary, dsc.ConvDictionary) or dictionary.boundary != "same":
        return references.explicit_matrix(dictionary, size)
    whole = dictionary.with_boundary("valid")
    matrix = references.explicit_matrix(whole, size).reshape(*whole.signal_shape(size), -1)
    axes = zip(size, dictionary.stride, dictionary.kernel_size, strict=True)
    for axis, (n, q, k) in enumerate(axes, start=1):
        first = (k - 1) // 2
        kept = matrix.narrow(axis, first, min(n * q, matrix.shape[axis] - first))
        rest = list(kept.shape)
        rest[axis] = n * q - kept.shape[axis]
        matrix = torch.cat([kept, kept.new_zeros(rest)], axis)
    return matrix.flatten(0, -2)


def each_operator(*, kind: type[dsc.Dictionary] | None = None, same: bool = True) -> pytest.MarkDecorator:
    """Return the decorator that runs a test with `operator` being every one (of a kind) in the registry.

    Args:
        kind: Only dictionaries of this class.
        same: With those of boundary "same".
    """
    entries = OPERATORS + (SAME_OPERATORS if same else ())
    chosen = [entry for entry in entries if kind is None or isinstance(entry.build(), kind)]
    return pytest.mark.parametrize("operator", chosen, ids=[entry.name for entry in chosen])
