"""N6, N9: a kernel of K is ⌈(K-1)/2⌉ kernels of 3, exactly, at borders too, whatever the padding and the stride."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import deep_sparse_coding as dsc
from deep_sparse_coding.networks import codes_by_depth, to_cnn
from deep_sparse_coding.networks.cnn.kernels import LinearMap
from deep_sparse_coding.networks.cnn.splitting import split
from strategies import normal, randint, rng
from test_networks.test_plan import counted

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64
CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def apply(linear: LinearMap, values: Tensor) -> Tensor:
    flat = [n for pair in reversed(linear.padding) for n in pair]
    values = functional.pad(values, flat, mode="circular" if linear.wrap else "constant")
    return CONV[len(linear.kernel)](values, linear.weight, linear.bias, stride=linear.stride)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_pieces_are_the_whole(seed: int) -> None:
    g = rng(seed)
    axes = randint(1, 3, g)
    largest = {1: 9, 2: 6, 3: 4}[axes]
    kernel = tuple(randint(1, largest, g) for _ in range(axes))
    weight = normal(3, 2, *kernel, generator=g)
    weight *= torch.rand(weight.shape, generator=g, dtype=F64) < (1.0, 0.3)[seed % 2]
    kind = randint(0, 3, g)
    if kind == 0:  # stays as large as it is
        padding = tuple(((k - 1) // 2, k - 1 - (k - 1) // 2) for k in kernel)
    elif kind == 1:  # full
        padding = tuple((k - 1, k - 1) for k in kernel)
    elif kind == 2:
        padding = tuple((0, 0) for _ in kernel)
    else:
        padding = tuple((randint(0, k, g), randint(0, k, g)) for k in kernel)
    stride = tuple(randint(1, 3, g) for _ in kernel) if kind > 1 else (1,) * axes
    linear = LinearMap("whole", "step", 1, 1, weight, normal(3, generator=g), True, stride, padding, seed % 3 == 0)
    size = (3, 5)[seed % 2]
    pieces = split(linear, size)
    assert len(pieces) == max(1, max(-(-(k - 1) // (size - 1)) for k in kernel))
    assert all(k <= size for piece in pieces for k in piece.kernel)
    values = normal(2, 2, *(largest + randint(0, 3, g) for _ in kernel), generator=g)
    expected = apply(linear, values)
    for piece in pieces:
        values = apply(piece, values)
    assert values.shape == expected.shape
    assert torch.allclose(values, expected, atol=1e-12)
    assert [piece.activated for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_widths_are_those_of_the_statement() -> None:
    line = LinearMap("w", "step", 1, 1, torch.ones(5, 4, 9, dtype=F64), None, True, (1,), ((4, 4),))
    pieces = split(line, 3)
    assert [piece.weight.shape[0] for piece in pieces] == [2 * 4 + 5] * 3 + [5]
    plane = LinearMap("w", "step", 1, 1, torch.ones(5, 4, 7, 7, dtype=F64), None, True, (1, 1), ((3, 3),) * 2)
    pieces = split(plane, 3)
    # On rings: 8 copies around the center, then 16.
    assert [piece.weight.shape[0] for piece in pieces] == [8 * 4 + 5, 16 * 4 + 5, 5]
    assert all(piece.weight.shape[0] <= 49 * 4 + 5 for piece in pieces)


def test_copies_move_one_way_only() -> None:
    """Zeros at the border: a path that leaves the grid and comes back would lose what it carries."""
    linear = LinearMap("w", "step", 1, 1, normal(1, 1, 7, 7, generator=rng(0)), None, True, (1, 1), ((3, 3),) * 2)
    # Every piece keeps the grid, so that all of its padding is in play.
    assert all(piece.padding == ((1, 1), (1, 1)) for piece in split(linear, 3))
    for values in (torch.ones(1, 1, 2, 2, dtype=F64), normal(1, 1, 1, 5, generator=rng(1))):
        moved = values
        for piece in split(linear, 3):
            moved = apply(piece, moved)
        assert torch.allclose(moved, apply(linear, values), atol=1e-12)


@pytest.mark.parametrize("boundary", ["valid", "circular"])
@pytest.mark.parametrize("strategy", ["layerwise", "interleaved"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_the_network_is_the_same(boundary: str, strategy: str, activation: str) -> None:
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.low_coherence(
                atoms=4, channels=2, size=7, stride=2, boundary=boundary, seed=0, dtype=F64
            ),
            dsc.ConvDictionary.random(
                atoms=3, channels=4, size=(4, 3), nonzeros=3, boundary=boundary, seed=1, dtype=F64
            ),
        ]
    )
    size = model.layers[1].signal_shape((6, 5))[1:]
    size = model.layers[0].signal_shape(size)[1:]
    signal = normal(2, 2, *size, generator=rng(0))
    common = {"sparsity": 1, "steps": 2, "strategy": strategy, "activation": activation}
    whole = to_cnn(model, **common)  # type: ignore[arg-type]
    net = to_cnn(model, max_kernel=3, **common)  # type: ignore[arg-type]
    assert net.error_bound == whole.error_bound
    scale = 1 + float(whole(signal).abs().max())
    assert net(signal).shape == whole(signal).shape
    assert float((net(signal) - whole(signal)).abs().max()) <= 1e-11 * scale
    for ours, theirs in zip(codes_by_depth(net, signal), codes_by_depth(whole, signal), strict=True):
        assert (ours.layer, ours.step) == (theirs.layer, theirs.step)
        assert torch.allclose(ours.codes, theirs.codes, atol=1e-11 * scale)
    convolutions = [module for module in net if isinstance(module, nn.Conv2d)]
    assert max(k for module in convolutions for k in module.kernel_size) == 3
    plan = net.plan
    assert (plan.depth, plan.parameters, plan.width, plan.multiply_adds(size)) == counted(net, signal)
    assert plan.depth > whole.plan.depth


def test_through_the_signal_and_in_three_dimensions() -> None:
    narrow = dsc.ConvDictionary.random(atoms=8, channels=20, size=5, seed=0, dtype=F64)
    solid = dsc.ConvDictionary.random(atoms=2, channels=1, size=(4, 3, 2), stride=(1, 2, 1), seed=0, dtype=F64)
    for dictionary in (narrow, solid):
        size = dictionary.signal_shape((4, 5, 6)[: dictionary.axes])
        signal = normal(1, *size, generator=rng(0))
        whole, net = (to_cnn(dictionary, sparsity=1, steps=3, max_kernel=k) for k in (None, 3))
        assert torch.allclose(net(signal), whole(signal), atol=1e-11)
    assert to_cnn(narrow, sparsity=1, steps=3).plan.layers[0].layout.through_signal


def test_the_bound_holds_in_single_precision() -> None:
    model = dsc.ConvDictionary.low_coherence(atoms=8, channels=1, size=8, stride=4, seed=0)
    sample = dsc.sample(model, sparsity=6, size=(6, 6), batch=4, seed=0)
    net = to_cnn(model, sparsity=sample.stripe_sparsity, amplitude=sample.amplitudes, max_kernel=3, target_error=1e-2)
    assert float((net(sample.signal) - sample.codes[0]).abs().max()) <= net.error_bound <= 1e-2


def test_dense_networks_have_nothing_to_split() -> None:
    dictionary = dsc.DenseDictionary.random(60, 10, seed=0)
    assert to_cnn(dictionary, sparsity=1, steps=3, max_kernel=3).plan.depth == 4
    assert math.isfinite(to_cnn(dictionary, sparsity=1, steps=3, max_kernel=3).error_bound)
