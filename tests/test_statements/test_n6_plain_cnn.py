"""N6: the network is the recursion, written with standard layers, to rounding; whatever the grid and its border."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deep_sparse_coding as dsc
from deep_sparse_coding.networks import CompiledCNN, Plan, codes_by_depth, to_cnn

F64 = torch.float64
STANDARD = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Linear,
    nn.ReLU,
    nn.CircularPad1d,
    nn.CircularPad2d,
    nn.CircularPad3d,
)
# atoms, channels, kernel, stride: even and odd, stride of one, larger than one, the kernel and more.
GRIDS = [
    ((5,), (1,)),
    ((4,), (1,)),
    ((5,), (2,)),
    ((6,), (4,)),
    ((3,), (3,)),
    ((2,), (4,)),
    ((3, 3), (1, 1)),
    ((2, 4), (1, 1)),
    ((4, 3), (2, 1)),
    ((3, 3), (2, 2)),
    ((2, 2), (3, 3)),
    ((1, 1), (1, 1)),
    ((2, 3, 2), (1, 1, 1)),
    ((2, 3, 2), (1, 2, 3)),
]


def recursion(model: dsc.Cascade, plan: Plan, signal: Tensor) -> list[Tensor]:
    """Return the codes after every step, with synthesis and analysis as the dictionaries define them."""
    found = []
    for dictionary, layer in zip(model.layers, plan.layers, strict=False):
        v = dictionary.analyze(signal)
        codes = torch.zeros_like(v)
        for theta in layer.thresholds:
            theta = theta.reshape(-1, *(1,) * (dictionary.event_axes - 1))
            u = codes + v - dictionary.analyze(dictionary.synthesize(codes))
            codes = (u - theta).clamp_min(0)
            if not layer.hypotheses.nonnegative:
                codes = codes - (-u - theta).clamp_min(0)
            found.append(codes)
        signal = codes
    return found


def agree(net: CompiledCNN, model: dsc.Cascade, signal: Tensor) -> None:
    assert all(type(module) in STANDARD for module in net)
    expected = recursion(model, net.plan, signal)
    scale = 1 + max(float(codes.abs().max()) for codes in expected)
    for codes, estimate in zip(expected, codes_by_depth(net, signal), strict=True):
        assert codes.shape == estimate.codes.shape
        assert float((codes - estimate.codes).abs().max()) <= 1e-12 * scale
    assert float((net(signal) - expected[-1]).abs().max()) <= 1e-12 * scale


@pytest.mark.parametrize("boundary", ["valid", "circular"])
@pytest.mark.parametrize(("kernel", "stride"), GRIDS)
@pytest.mark.parametrize("nonnegative", [False, True, (True, False)])
def test_network_is_the_recursion(
    kernel: tuple[int, ...], stride: tuple[int, ...], boundary: str, nonnegative: bool | tuple[bool, bool]
) -> None:
    axes = len(kernel)
    first = dsc.ConvDictionary.random(
        atoms=4, channels=2, size=kernel, stride=stride, boundary=boundary, seed=1, dtype=F64
    )
    second = dsc.ConvDictionary.random(atoms=3, channels=4, size=(2,) * axes, boundary=boundary, seed=2, dtype=F64)
    model = dsc.Cascade([first, second])
    net = to_cnn(model, sparsity=1, steps=(3, 2), nonnegative=nonnegative)
    for grid in ((7, 6, 5)[:axes], (5, 7, 6)[:axes]):
        size = grid
        for dictionary in reversed(model.layers):
            size = dictionary.signal_shape(size)[1:]
        signal = torch.randn(2, 2, *size, dtype=F64, generator=torch.Generator().manual_seed(0))
        agree(net, model, signal)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_dense_network_is_the_recursion(seed: int) -> None:
    model = dsc.Cascade(
        [
            dsc.DenseDictionary.random(60, 20, seed=seed, dtype=F64),
            dsc.DenseDictionary.random(20, 8, seed=seed + 1, dtype=F64),
        ]
    )
    net = to_cnn(model, sparsity=1, steps=(4, 3), nonnegative=(seed % 2 == 0, seed % 3 == 0))
    signal = torch.randn(5, 2, 60, dtype=F64, generator=torch.Generator().manual_seed(seed))
    agree(net, model, signal)


def test_smallest_grids_where_circular_lags_wrap_onto_each_other() -> None:
    for kernel, stride in (((5,), 1), ((5,), 2), ((4, 4), 1), ((4, 4), 2)):
        dictionary = dsc.ConvDictionary.random(
            atoms=3, channels=2, size=kernel, stride=stride, boundary="circular", seed=0, dtype=F64
        )
        net = to_cnn(dictionary, sparsity=1, steps=3)
        smallest = -(-kernel[0] // stride) * stride
        signal = torch.randn(1, 2, *(smallest,) * len(kernel), dtype=F64, generator=torch.Generator().manual_seed(0))
        agree(net, dsc.Cascade([dictionary]), signal)


def test_a_step_takes_the_cheaper_of_its_two_forms() -> None:
    wide = dsc.ConvDictionary.random(atoms=2, channels=40, size=3, seed=0, dtype=F64)
    narrow = dsc.ConvDictionary.random(atoms=8, channels=20, size=5, seed=0, dtype=F64)
    strided = dsc.ConvDictionary.random(atoms=8, channels=20, size=5, stride=2, seed=0, dtype=F64)
    forms = [to_cnn(d, sparsity=1, steps=2).plan.layers[0].layout.through_signal for d in (wide, narrow, strided)]
    assert forms == [False, True, False]
    state, lags = 4 * 8, 9 * 9
    net = to_cnn(narrow, sparsity=1, steps=3)
    middle = 20 + 2 * 8
    assert net.plan.stages[1].taps + net.plan.stages[2].taps == 2 * state * middle * 25 < state * state * lags
