"""What users get from `to_transformer`: standard blocks, the codes of `to_cnn`, a plan with its price, refusals."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DeviceError, DtypeError, ParameterError, ShapeError, UnsupportedError
from deep_sparse_coding.networks.cnn.build import to_cnn
from deep_sparse_coding.networks.transformers.build import CompiledTransformer, to_transformer

F64 = torch.float64
STANDARD = (
    nn.MultiheadAttention,
    nn.Linear,
    nn.ReLU,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.CircularPad1d,
    nn.CircularPad2d,
    nn.CircularPad3d,
)
GRIDS = [
    ((5,), (1,), 1),
    ((4,), (2,), 2),
    ((3,), (4,), 2),
    ((3, 3), (1, 1), 1),
    ((2, 4), (1, 1), 2),
    ((4, 3), (2, 1), 1),
    ((2, 2, 2), (1, 2, 1), 1),
]


def size_of(model: dsc.Cascade, grid: tuple[int, ...]) -> tuple[int, ...]:
    for dictionary in reversed(model.layers):
        grid = dictionary.signal_shape(grid)[1:]
    return grid


def recursion(net: CompiledTransformer, model: dsc.Cascade, signal: Tensor) -> list[Tensor]:
    """Return the codes after every block, with synthesis and analysis as the dictionaries define them."""
    found, taken = [], [0] * len(net.plan.layers)
    codes: list[Tensor | None] = [None] * len(net.plan.layers)
    for j in net.plan.order:
        dictionary, layer = model.layers[j], net.plan.layers[j]
        below = signal if j == 0 else codes[j - 1]
        assert below is not None
        u = dictionary.analyze(below)
        now = codes[j]
        if now is not None:
            u = u + now - dictionary.analyze(dictionary.synthesize(now))
        theta = layer.thresholds[taken[j]].reshape(-1, *(1,) * (dictionary.event_axes - 1))
        after = (u - theta).clamp_min(0)
        codes[j] = after if layer.hypotheses.nonnegative else after - (-u - theta).clamp_min(0)
        taken[j] += 1
        found.append(codes[j])
    return found


@pytest.fixture(scope="module")
def model() -> dsc.Cascade:
    return dsc.Cascade(
        [
            dsc.ConvDictionary.low_coherence(atoms=8, channels=1, size=8, stride=4, seed=0),
            dsc.ConvDictionary.low_coherence(atoms=6, channels=8, size=3, stride=2, nonzeros=3, seed=0),
        ]
    )


@pytest.fixture(scope="module")
def net(model: dsc.Cascade) -> CompiledTransformer:
    return to_transformer(model, size=size_of(model, (3, 2)), sparsity=(3, 1), target_error=1e-2)


@pytest.mark.parametrize("strategy", ["layerwise", "interleaved"])
@pytest.mark.parametrize("boundary", ["valid", "circular"])
@pytest.mark.parametrize(("kernel", "stride", "deeper"), GRIDS)
def test_blocks_are_the_recursion(
    kernel: tuple[int, ...], stride: tuple[int, ...], deeper: int, boundary: str, strategy: str
) -> None:
    # For any signal, also one that no bound speaks of.
    axes = len(kernel)
    ring = {"boundary": boundary, "dtype": F64}
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=3, channels=2, size=kernel, stride=stride, seed=1, **ring),
            dsc.ConvDictionary.random(atoms=2, channels=3, size=(2,) * axes, stride=deeper, seed=2, **ring),
            dsc.ConvDictionary.random(atoms=4, channels=2, size=(2,) * axes, seed=3, **ring),
        ]
    )
    grid = (9, 5, 3)[:axes] if boundary == "circular" else (3, 2, 2)[:axes]
    size = size_of(model, grid)
    net = to_transformer(
        model, size=size, sparsity=1, steps=2, strategy=strategy, tolerance=1e-10, nonnegative=(False, True, False)
    )
    signal = torch.randn(2, 2, *size, dtype=F64, generator=torch.Generator().manual_seed(0))
    expected = recursion(net, model, signal)
    for codes, estimate in zip(expected, net.codes_by_depth(signal), strict=True):
        assert codes.shape == estimate.codes.shape
        assert float((codes - estimate.codes).abs().max()) <= 1e-7
    assert float((net(signal) - expected[-1]).abs().max()) <= 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("strategy", ["layerwise", "interleaved"])
def test_codes_are_those_of_the_cnn_up_to_softmax(strategy: str, dtype: torch.dtype) -> None:
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.low_coherence(atoms=8, channels=1, size=8, stride=4, seed=0, dtype=dtype),
            dsc.ConvDictionary.low_coherence(atoms=6, channels=8, size=3, nonzeros=3, seed=0, dtype=dtype),
        ]
    )
    size = size_of(model, (3, 4))
    sample = dsc.sample(model, sparsity=(10, 1), size=(3, 4), batch=3, seed=0)
    cnn = to_cnn(model, sparsity=(3, 1), steps=(8, 8))
    tolerance = 1e-9 if dtype == F64 else 1e-6
    net = to_transformer(model, size=size, sparsity=(3, 1), steps=8, strategy=strategy, tolerance=tolerance)
    if strategy == "layerwise":
        assert float((net(sample.signal) - cnn(sample.signal)).abs().max()) <= 1000 * tolerance
    else:
        assert float((net(sample.signal) - sample.codes[-1]).abs().max()) <= net.error_bound
    for depth in (1, 2):
        part = to_transformer(model, size=size, sparsity=(3, 1), steps=8, layer=depth, strategy=strategy)
        assert part(sample.signal).shape == sample.codes[depth - 1].shape
        assert len(part.plan.layers) == depth


@pytest.mark.parametrize("strategy", ["layerwise", "interleaved"])
def test_a_vector_is_one_token_and_attention_exact(strategy: str) -> None:
    model = dsc.Cascade(
        [dsc.DenseDictionary.random(9, 7, seed=0, dtype=F64), dsc.DenseDictionary.random(7, 5, seed=1, dtype=F64)]
    )
    net = to_transformer(model, sparsity=1, steps=3, strategy=strategy, nonnegative=(False, True))
    assert (net.plan.tokens, net.plan.heads) == (1, 1)
    assert [layer.softmax_error for layer in net.plan.layers] == [0.0, 0.0]
    signal = torch.randn(4, 9, dtype=F64, generator=torch.Generator().manual_seed(0))
    expected = recursion(net, model, signal)
    for codes, estimate in zip(expected, net.codes_by_depth(signal), strict=True):
        assert codes.shape == estimate.codes.shape
        assert float((codes - estimate.codes).abs().max()) <= 1e-12
    codes = net(signal)
    assert torch.equal(net(signal.reshape(2, 2, 9)), codes.reshape(2, 2, 5))
    assert torch.allclose(net(signal[0]), codes[0], atol=1e-14)
    assert not any("stripe" in sentence or "size" in sentence for sentence in net.plan.hypotheses)
    assert "stripe" not in str(net.plan)
    with pytest.raises(ShapeError, match=r"signal has shape \(4, 8\); expected \(\*batch, 9\)"):
        net(signal[:, :8])


def test_entries_past_the_last_atom_are_left_unread_as_the_cnn_does(model: dsc.Cascade) -> None:
    net = to_transformer(model, size=(34, 29), sparsity=(3, 1), target_error=1e-2)
    assert (net.plan.layers[0].grid, net.plan.layers[1].grid) == ((7, 6), (3, 2))
    sample = dsc.sample(model, sparsity=(10, 1), size=(3, 2), batch=2, seed=4)
    signal = torch.nn.functional.pad(sample.signal, (0, 5, 0, 2))
    assert float((net(signal) - sample.codes[-1]).abs().max()) <= net.error_bound
    cnn = to_cnn(model, sparsity=(3, 1), target_error=1e-2)
    assert cnn(signal).shape == net(signal).shape == (2, 6, 3, 2)


def test_it_is_made_of_standard_layers_in_the_dtype_of_the_model(net: CompiledTransformer) -> None:
    leaves = [m for m in net.modules() if type(m).__module__.startswith("torch.nn.modules")]
    # nn.MultiheadAttention keeps its last linear layer under a name of its own.
    inside = {type(m) for m in nn.MultiheadAttention(2, 1).children()}
    assert {type(m) for m in leaves} <= {*STANDARD, *inside, nn.Sequential, nn.ModuleList}
    assert sum(isinstance(m, nn.MultiheadAttention) for m in leaves) == net.plan.depth == len(net.blocks)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_batches_single_signals_and_none(model: dsc.Cascade, net: CompiledTransformer) -> None:
    sample = dsc.sample(model, sparsity=(10, 1), size=(3, 2), batch=3, seed=0)
    codes = net(sample.signal)
    assert codes.shape == (3, 6, 3, 2)
    assert float((codes - sample.codes[-1]).abs().max()) <= net.error_bound <= 1e-2
    assert torch.allclose(net(sample.signal[0]), codes[0], atol=1e-6)
    assert net.codes_by_depth(sample.signal[0])[-1].codes.shape == codes[0].shape
    assert net(sample.signal[:0]).shape == (0, 6, 3, 2)
    with torch.inference_mode():
        assert torch.allclose(copy.deepcopy(net).eval()(sample.signal), codes, atol=1e-5)


def test_double_half_copy_pickle(model: dsc.Cascade, net: CompiledTransformer) -> None:
    sample = dsc.sample(model, sparsity=(10, 1), size=(3, 2), seed=1)
    codes = net(sample.signal)
    precise = copy.deepcopy(net).double()
    assert float((precise(sample.signal.double()) - sample.codes[-1]).abs().max()) <= precise.error_bound
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(sample.signal), codes)
    assert again.error_bound == net.error_bound == net.plan.error_bound
    assert copy.deepcopy(net).half().error_bound == math.inf


def test_nothing_is_drawn_and_the_same_weights_come_again(model: dsc.Cascade, net: CompiledTransformer) -> None:
    before = torch.random.get_rng_state()
    again = to_transformer(model, size=net.plan.size, sparsity=(3, 1), target_error=1e-2)
    assert torch.equal(before, torch.random.get_rng_state())
    for name, weight in net.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


def test_the_plan_tells_the_price(net: CompiledTransformer) -> None:
    plan = net.plan
    assert plan.parameters == sum(p.numel() for p in net.parameters())
    assert plan.token_width == plan.heads * plan.head_width == net.positions.shape[-1]
    assert plan.tokens == net.positions.shape[1] == 7 * 5
    assert plan.depth == sum(plan.steps) == len(plan.bound_by_depth)
    assert plan.bound_by_depth[-1].bound == plan.error_bound == plan.bounds[-1]
    assert plan.heads >= len(plan.layers[1].kernels.shifts) >= 9
    lifted = sum(4 * plan.token_width**2 + 2 * 36 * plan.token_width for _ in plan.order)
    hidden = sum(2 * plan.token_width * 4 * plan.layers[j].atoms for j in plan.order)
    assert plan.multiply_adds == 35 * (lifted + hidden + 64 * plan.token_width)
    text = str(plan)
    assert f"{plan.depth} transformer blocks of up to {plan.heads} heads of width {plan.head_width}" in text
    assert f"temperature {plan.temperature:.4g}" in text
    assert "‖codes - truth‖_∞ ≤" in text
    assert "signals have the spatial size 32×24" in text


def test_a_sharper_tolerance_costs_the_logarithm_in_temperature(model: dsc.Cascade, net: CompiledTransformer) -> None:
    asked = (1e-2, 1e-4, 1e-6)
    nets = [to_transformer(model, size=net.plan.size, sparsity=(3, 1), steps=2, tolerance=t) for t in asked]
    first, second, third = (n.plan.temperature for n in nets)
    assert math.isclose(second - first, third - second, rel_tol=1e-2)
    assert all(max(layer.softmax_error for layer in n.plan.layers) <= t for n, t in zip(nets, asked, strict=True))
    wide = to_transformer(model, size=net.plan.size, sparsity=(3, 1), steps=2, tolerance=1e-2, frequencies=6)
    assert wide.plan.positions.gap > net.plan.positions.gap
    assert wide.plan.temperature < first


def test_attention_maps_show_one_shift_per_head(net: CompiledTransformer) -> None:
    shifts = net.plan.layers[0].kernels.shifts
    for head, shift in enumerate(shifts):
        maps = net.attention_maps(block=1, head=head)
        assert maps.shape == (35, 7, 5)
        for token, image in enumerate(maps):
            place = (token // 5 + shift[0], token % 5 + shift[1])
            inside = 0 <= place[0] < 7 and 0 <= place[1] < 5
            assert float(image.sum()) == pytest.approx(1.0 if inside else 0.0, abs=1e-4)
            assert not inside or float(image[place]) > 0.999
    with pytest.raises(ParameterError, match=r"head is 9; expected 0 to 8, one per shift"):
        net.attention_maps(block=0, head=9)
    with pytest.raises(ParameterError, match=r"block is 99; expected 0 to"):
        net.attention_maps(block=99)


def test_it_can_be_exported(model: dsc.Cascade, net: CompiledTransformer) -> None:
    sample = dsc.sample(model, sparsity=(10, 1), size=(3, 2), batch=2, seed=2)
    program = torch.export.export(copy.deepcopy(net).eval(), (sample.signal,))
    assert torch.allclose(program.module()(sample.signal), net(sample.signal), atol=1e-5)


def test_what_cannot_be_compiled_is_refused(model: dsc.Cascade, net: CompiledTransformer) -> None:
    size = net.plan.size
    with pytest.raises(ParameterError, match=r"size is 8; expected None: the model is dense"):
        to_transformer(dsc.DenseDictionary.random(8, 4, seed=0), size=8, sparsity=1)
    with pytest.raises(ParameterError, match=r"size is None; expected the signals' spatial size"):
        to_transformer(model, sparsity=1)
    first, second = model.layers
    assert isinstance(first, dsc.ConvDictionary)
    assert isinstance(second, dsc.ConvDictionary)
    with pytest.raises(UnsupportedError, match=r"with boundary 'same' atoms .* \.with_boundary\('valid'\)"):
        to_transformer(first.with_boundary("same"), size=size, sparsity=1)
    with pytest.raises(UnsupportedError, match=r"boundaries 'circular' and 'valid'; expected one for all"):
        to_transformer(dsc.Cascade([first.with_boundary("circular"), second]), size=size, sparsity=1)
    with pytest.raises(
        ParameterError, match=r"circular grid \(2, 2\), on which lags add up; expected at least \(3, 3\)"
    ):
        to_transformer(first.with_boundary("circular"), size=8, sparsity=1)
    with pytest.raises(ParameterError, match=r"period is \(7, 9\); expected at least \(9, 7\)"):
        to_transformer(model, size=size, sparsity=(3, 1), period=(7, 9))
    with pytest.raises(ShapeError, match="H = 33 is made by no code grid"):
        to_transformer(first.with_boundary("circular"), size=33, sparsity=3)
    with pytest.raises(ShapeError, match="H = 7"):
        to_transformer(model, size=7, sparsity=(3, 1))
    with pytest.raises(ParameterError, match=r"layer 1: the error bound does not shrink, ρ = .*low_coherence"):
        to_transformer(model, size=size, sparsity=(40, 1))
    with pytest.raises(ParameterError, match=r"target_error is 1e-09, and the bound stays above"):
        to_transformer(model, size=size, sparsity=(3, 1), target_error=1e-9)
    with pytest.raises(ParameterError, match=r"expected one of them: steps fixes the depth"):
        to_transformer(model, size=size, sparsity=(3, 1), target_error=1e-2, steps=3)
    with pytest.raises(ParameterError, match=r"steps is \(3, 4\); expected one number for all layers"):
        to_transformer(model, size=size, sparsity=(3, 1), steps=(3, 4), strategy="interleaved")
    with pytest.raises(ParameterError, match="did you mean 'layerwise'"):
        to_transformer(model, size=size, sparsity=(3, 1), strategy="layer-wise")
    with pytest.raises(ParameterError, match="layer is 3; expected 1 to 2"):
        to_transformer(model, size=size, sparsity=(3, 1), layer=3)
    with pytest.raises(ParameterError, match="frequencies is 0"):
        to_transformer(model, size=size, sparsity=(3, 1), frequencies=0)
    with pytest.raises(ParameterError, match=r"tolerance is 0"):
        to_transformer(model, size=size, sparsity=(3, 1), tolerance=0.0)


def test_float32_cannot_tell_thousands_of_positions_apart_by_one_frequency() -> None:
    dictionary = dsc.ConvDictionary.low_coherence(atoms=2, channels=1, size=8, stride=4, seed=0)
    with pytest.raises(ParameterError, match=r"float32 rounds logits .* more frequencies=, or the model in float64"):
        to_transformer(dictionary, size=(8, 16004), sparsity=1, frequencies=1)


def test_signals_of_another_kind_are_refused(net: CompiledTransformer) -> None:
    with pytest.raises(ShapeError, match=r"signal has shape \(2, 1, 20, 24\); expected \(batch, 1, 32, 24\)"):
        net(torch.zeros(2, 1, 20, 24))
    with pytest.raises(ShapeError, match="compile again for another"):
        net(torch.zeros(32, 24))
    with pytest.raises(DtypeError, match=r"signal has dtype torch\.float64"):
        net(torch.zeros(1, 1, 32, 24, dtype=F64))
    with pytest.raises(DeviceError):
        net(torch.zeros(1, 1, 32, 24, device="meta"))
