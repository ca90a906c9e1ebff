"""The one registry of operators that adjointness, norms, Gram matrices, solvers and networks are tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import deep_sparse_coding as dsc
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


def each_operator(*, kind: type[dsc.Dictionary] | None = None) -> pytest.MarkDecorator:
    """Return the decorator that runs a test with `operator` being every one (of a kind) in the registry."""
    chosen = [entry for entry in OPERATORS if kind is None or isinstance(entry.build(), kind)]
    return pytest.mark.parametrize("operator", chosen, ids=[entry.name for entry in chosen])
