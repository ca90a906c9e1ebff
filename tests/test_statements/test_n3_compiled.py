"""N3 compiled: all layers step together in one plain network; it is the recursion at every depth, border and stride."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.networks import CompiledCNN, codes_by_depth, convergence_plan, to_cnn
from strategies import normal, rng
from test_statements.test_n2_layerwise import shrunk_pairs, two_layers

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64


def recursion(model: dsc.Cascade, net: CompiledCNN, signal: Tensor) -> dict[tuple[int, int], Tensor]:
    """Return the codes after every step of every layer (from 1), as N3 defines them."""
    layers = net.plan.layers
    found: dict[tuple[int, int], Tensor] = {}
    for step in range(1, layers[0].steps + 1):
        below = signal
        for j, (dictionary, layer) in enumerate(zip(model.layers, layers, strict=True), start=1):
            weights = dictionary if layer.analysis is None else dictionary.with_weight(layer.analysis)
            v = weights.analyze(below)
            codes = found.get((j, step - 1), torch.zeros_like(v))
            theta = layer.thresholds[step - 1].reshape(-1, *(1,) * (dictionary.event_axes - 1))
            u = codes + v - weights.analyze(dictionary.synthesize(codes))
            codes = (u - theta).clamp_min(0)
            if layer.layout.signed:
                codes = codes - (-u - theta).clamp_min(0)
            found[j, step] = below = codes
    return found


def agree(net: CompiledCNN, model: dsc.Cascade, signal: Tensor) -> None:
    expected = recursion(model, net, signal)
    scale = 1 + max(float(codes.abs().max()) for codes in expected.values())
    estimates = codes_by_depth(net, signal)
    assert {(e.layer, e.step) for e in estimates} == set(expected)
    assert [(m.depth, m.layer, m.step) for m in net.plan.bound_by_depth] == [
        (e.depth, e.layer, e.step) for e in estimates
    ]
    for estimate in estimates:
        codes = expected[estimate.layer, estimate.step]
        assert codes.shape == estimate.codes.shape
        assert float((codes - estimate.codes).abs().max()) <= 1e-11 * scale
    deepest = expected[len(model), net.plan.steps[-1]]
    assert net(signal).shape == deepest.shape
    assert float((net(signal) - deepest).abs().max()) <= 1e-11 * scale


# Per layer: kernel and stride; even and odd, strides of one, more than one, the kernel and more.
GRIDS = [
    [((5,), (1,)), ((3,), (1,))],
    [((5,), (2,)), ((3,), (2,))],
    [((4,), (1,)), ((2,), (3,))],
    [((3,), (2,)), ((3,), (2,)), ((2,), (2,))],
    [((3,), (1,)), ((4,), (3,)), ((2,), (1,))],
    [((3, 2), (1, 1)), ((2, 3), (1, 1))],
    [((3, 3), (2, 2)), ((2, 3), (2, 1))],
    [((2, 2), (1, 1)), ((1, 1), (1, 1))],
    [((2, 2, 2), (1, 2, 1)), ((2, 1, 2), (1, 1, 2))],
]


@pytest.mark.parametrize("boundary", ["valid", "circular"])
@pytest.mark.parametrize("shape", GRIDS)
def test_network_is_the_recursion_at_every_depth(
    shape: list[tuple[tuple[int, ...], tuple[int, ...]]], boundary: str
) -> None:
    layers, width = [], 2
    for j, (kernel, stride) in enumerate(shape):
        layers.append(
            dsc.ConvDictionary.random(
                atoms=4 - j, channels=width, size=kernel, stride=stride, boundary=boundary, seed=j, dtype=F64
            )
        )
        width = 4 - j
    model = dsc.Cascade(layers)
    axes = len(shape[0][0])
    for steps, nonnegative in ((3, False), (1, True), (2, tuple(j % 2 == 0 for j in range(len(layers))))):
        net = to_cnn(model, sparsity=1, steps=steps, nonnegative=nonnegative, strategy="interleaved")
        assert all(type(module).__module__.startswith("torch.nn.modules") for module in net)
        for grid in ((5, 5, 4)[:axes], (6, 7, 4)[:axes]):
            size = grid
            for dictionary in reversed(model.layers):
                size = dictionary.signal_shape(size)[1:]
            agree(net, model, normal(2, 2, *size, generator=rng(0)))


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_dense_cascades_are_the_recursion(seed: int) -> None:
    model = dsc.Cascade(
        [
            dsc.DenseDictionary.random(60, 20, seed=seed, dtype=F64),
            dsc.DenseDictionary.random(20, 8, seed=seed + 1, dtype=F64),
            dsc.DenseDictionary.random(8, 3, seed=seed + 2, dtype=F64),
        ]
    )
    depth = 1 + seed % 3
    net = to_cnn(
        model, sparsity=1, steps=4, nonnegative=(seed % 2 == 0, False, True), strategy="interleaved", layer=depth
    )
    assert all(isinstance(module, nn.Linear | nn.ReLU) for module in net)
    signal = normal(5, 2, 60, generator=rng(seed))
    agree(net, dsc.Cascade(model.layers[:depth]), signal)


def test_depth_is_steps_plus_layers_and_not_their_product(cascade: dsc.Cascade) -> None:
    model = dsc.Cascade([dsc.DenseDictionary.random(60, 20, seed=0), dsc.DenseDictionary.random(20, 4, seed=1)])
    net = to_cnn(model, sparsity=1, steps=6, strategy="interleaved")
    assert net.plan.depth == 6 + 2 - 1 + 1  # and one that makes signed codes of pairs
    assert to_cnn(model, sparsity=1, steps=6).plan.depth == 2 * 6 + 1
    assert to_cnn(cascade, sparsity=1, steps=6, strategy="interleaved").plan.depth == 2 + 6 + 2 - 1 + 1


@pytest.fixture(scope="module")
def cascade() -> dsc.Cascade:
    return two_layers()


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_true_error_of_every_layer_is_below_its_bound_at_every_depth(cascade: dsc.Cascade, seed: int) -> None:
    sample = dsc.sample(cascade, sparsity=(1000, 3), size=(6, 5), batch=2, amplitude=2.0, seed=seed)
    noise = 0.01 * (seed % 3)
    wave = normal(*sample.signal.shape, generator=rng(seed))
    signal = sample.signal + noise * wave / wave.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    settings_ = {
        "sparsity": sample.stripe_sparsity,
        "amplitude": sample.amplitudes,
        "place_sparsity": sample.place_sparsity,
        "noise": noise * (1 + 1e-12),
    }
    if max(layer.rate for layer in convergence_plan(cascade, steps=0, **settings_)) >= 1:  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="does not shrink"):
            to_cnn(cascade, steps=3, strategy="interleaved", **settings_)  # type: ignore[arg-type]
        return
    net = to_cnn(cascade, steps=12, strategy="interleaved", **settings_)  # type: ignore[arg-type]
    check(net, signal, sample.codes)


def check(net: CompiledCNN, signal: Tensor, codes: tuple[Tensor, ...]) -> list[float]:
    """Check errors and supports at every depth; return actual over bound of the deepest layer."""
    ratios = []
    for mark, estimate in zip(net.plan.bound_by_depth, codes_by_depth(net, signal), strict=True):
        truth = codes[mark.layer - 1]
        error = float((estimate.codes - truth).abs().max())
        assert error <= mark.bound
        assert not estimate.codes[truth == 0].any()
        if mark.layer == len(net.plan.layers):
            ratios.append(error / mark.bound)
    assert float((net(signal) - codes[len(net.plan.layers) - 1]).abs().max()) <= net.error_bound
    return ratios


def test_the_bound_is_attained_and_is_that_of_the_statement() -> None:
    model, codes = shrunk_pairs()
    given_ = {"sparsity": (1, 1), "amplitude": (1 / math.sqrt(3), 1.0), "place_sparsity": 3}
    net = to_cnn(model, steps=15, strategy="interleaved", **given_)  # type: ignore[arg-type]
    assert max(check(net, model.synthesize(codes[1]), codes)) >= 0.999
    plan = convergence_plan(model, steps=15, strategy="interleaved", **given_)  # type: ignore[arg-type]
    for ours, theirs in zip(net.plan.layers, plan, strict=True):
        assert torch.allclose(ours.convergence.bounds, theirs.bounds, rtol=1e-9)
        assert torch.allclose(ours.thresholds, theirs.thresholds, rtol=1e-9)


def test_the_target_is_reached_in_the_fewest_rounds() -> None:
    model, codes = shrunk_pairs()
    given_ = {"sparsity": 1, "amplitude": (1 / math.sqrt(3), 1.0), "place_sparsity": 3, "strategy": "interleaved"}
    for target in (0.2, 1e-2, 1e-6):
        net = to_cnn(model, target_error=target, **given_)  # type: ignore[arg-type]
        assert net.error_bound <= target
        check(net, model.synthesize(codes[1]), codes)
        fewer = net.plan.steps[0] - 1
        assert to_cnn(model, steps=fewer, **given_).error_bound > target  # type: ignore[arg-type]


def test_single_precision() -> None:
    model = two_layers(torch.float32)
    sample = dsc.sample(model, sparsity=(1000, 12), size=(9, 9), seed=14)
    net = to_cnn(
        model,
        sparsity=sample.stripe_sparsity,
        amplitude=sample.amplitudes,
        place_sparsity=sample.place_sparsity,
        steps=40,
        strategy="interleaved",
    )
    check(net, sample.signal, sample.codes)
    assert net.error_bound < 1e-2


def test_one_layer_is_the_same_with_both_strategies() -> None:
    dictionary = dsc.DenseDictionary.random(300, 20, seed=0, dtype=F64)
    one, other = (to_cnn(dictionary, sparsity=2, strategy=name) for name in ("layerwise", "interleaved"))
    signal = normal(3, 300, generator=rng(0))
    assert torch.equal(one(signal), other(signal))
    assert one.error_bound == other.error_bound


def test_refusals() -> None:
    model, _ = shrunk_pairs()
    with pytest.raises(ParameterError, match=r"steps is \(3, 4\); expected one number for all layers"):
        to_cnn(model, sparsity=1, steps=(3, 4), strategy="interleaved")
    with pytest.raises(ParameterError, match=r"target_error is 0\.05, and the bound of layer 2 stays above"):
        to_cnn(model, sparsity=1, noise=0.05, place_sparsity=3, target_error=0.05, strategy="interleaved")
    with pytest.raises(ParameterError, match="layer 1: the error bound does not shrink, ρ = "):
        to_cnn(dsc.DenseDictionary.random(8, 16, seed=0), sparsity=4, steps=3, strategy="interleaved")
    with pytest.raises(ParameterError, match="'layerwise' or 'interleaved'; did you mean 'interleaved'"):
        to_cnn(model, sparsity=1, strategy="interleavd")
