"""What users get from `to_cnn`: a plain sequential module that says what it promises, and refuses what it cannot."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DictionaryError, ParameterError
from deep_sparse_coding.networks import CompiledCNN, codes_by_depth, to_cnn


@pytest.fixture(scope="module")
def model() -> dsc.Cascade:
    return dsc.Cascade(
        [
            dsc.ConvDictionary.low_coherence(atoms=8, channels=1, size=8, stride=4, seed=0),
            dsc.ConvDictionary.low_coherence(atoms=6, channels=8, size=3, stride=2, nonzeros=3, seed=0),
        ]
    )


@pytest.fixture(scope="module")
def net(model: dsc.Cascade) -> CompiledCNN:
    return to_cnn(model, sparsity=(3, 1), target_error=1e-2)


def test_it_is_a_sequence_of_standard_layers_in_the_dtype_of_the_model(net: CompiledCNN) -> None:
    assert isinstance(net, nn.Sequential)
    assert all(type(module).__module__.startswith("torch.nn.modules") for module in net)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert all(name.startswith(("layer1_step", "layer2_step", "merge")) for name, _ in net.named_children())


def test_codes_of_every_size_and_without_a_batch(model: dsc.Cascade, net: CompiledCNN) -> None:
    for grid in ((1, 1), (2, 5), (9, 4)):
        sample = dsc.sample(model, sparsity=(10, 1), size=grid, batch=3, seed=0)
        codes = net(sample.signal)
        assert codes.shape == (3, 6, *grid)
        assert float((codes - sample.codes[-1]).abs().max()) <= net.error_bound <= 1e-2
        assert torch.allclose(net(sample.signal[0]), codes[0], atol=1e-6)
    assert net(torch.zeros(0, 1, 16, 16)).shape == (0, 6, 1, 1)


def test_double_copy_pickle_slice(model: dsc.Cascade, net: CompiledCNN) -> None:
    sample = dsc.sample(model, sparsity=(10, 1), size=(4, 4), seed=1)
    codes = net(sample.signal)
    precise = copy.deepcopy(net).double()(sample.signal.double())
    assert precise.dtype == torch.float64
    assert float((precise - sample.codes[-1]).abs().max()) <= net.error_bound
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(sample.signal), codes)
    assert again.error_bound == net.error_bound
    part = net[:2]
    assert type(part) is nn.Sequential
    assert torch.equal(part(sample.signal), net[1](net[0](sample.signal)))
    assert torch.equal(net[2:](part(sample.signal)), codes)


def test_an_earlier_layer(model: dsc.Cascade) -> None:
    net = to_cnn(model, sparsity=(3, 1), target_error=1e-3, layer=1)
    sample = dsc.sample(model, sparsity=(10, 1), size=(4, 4), seed=1)
    assert len(net.plan.layers) == 1
    assert float((net(sample.signal) - sample.codes[0]).abs().max()) <= net.error_bound <= 1e-3
    # What layer 2 would need does not matter to it.
    assert to_cnn(model, sparsity=(3, 40), target_error=1e-3, layer=1).plan.steps == net.plan.steps


def test_codes_by_depth_end_in_the_codes(model: dsc.Cascade, net: CompiledCNN) -> None:
    sample = dsc.sample(model, sparsity=(10, 1), size=(4, 4), seed=1)
    estimates = codes_by_depth(net, sample.signal)
    marks = net.plan.bound_by_depth
    assert [(e.depth, e.layer, e.step) for e in estimates] == [(m.depth, m.layer, m.step) for m in marks]
    assert torch.equal(estimates[-1].codes, net(sample.signal))
    assert marks[-1].depth == net.plan.depth - 1
    assert marks[-1].bound == net.error_bound
    for mark, estimate in zip(marks, estimates, strict=True):
        assert float((estimate.codes - sample.codes[mark.layer - 1]).abs().max()) <= mark.bound


def test_no_bound_in_a_number_type_that_the_plan_does_not_count(model: dsc.Cascade) -> None:
    layer = model.layers[0]
    net = to_cnn(layer, sparsity=1, steps=1)
    assert net.error_bound == net.plan.error_bound < math.inf
    assert copy.deepcopy(net).double().error_bound == net.plan.error_bound
    assert copy.deepcopy(net).half().error_bound == math.inf
    converted = layer.cast(torch.float64)
    exact = dsc.ConvDictionary(converted.weight, stride=4, normalize=True)
    assert to_cnn(exact, sparsity=1, steps=1).float().error_bound == math.inf
    with pytest.raises(ParameterError, match=r"has norm (0\.99999|1\.00000).*rounding of torch.float64: .* conversion"):
        to_cnn(converted, sparsity=1, steps=1)


def test_codes_by_depth_takes_whole_networks_only(net: CompiledCNN) -> None:
    with pytest.raises(ParameterError, match=r"net is a Sequential; expected a network that dsc\.to_cnn made"):
        codes_by_depth(net[:2], torch.zeros(1))  # type: ignore[arg-type]


def test_nonnegative_network_has_no_pairs(model: dsc.Cascade) -> None:
    net = to_cnn(model, sparsity=(3, 1), steps=(3, 1), nonnegative=(False, True))
    assert "merge" not in dict(net.named_children())
    assert bool((net(torch.randn(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))) >= 0).all())
    narrower = to_cnn(model, sparsity=(3, 1), steps=(3, 3), nonnegative=True)
    assert narrower.plan.parameters < to_cnn(model, sparsity=(3, 1), steps=(3, 3)).plan.parameters


def test_gradients_reach_the_signal(net: CompiledCNN) -> None:
    signal = torch.randn(1, 1, 24, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    net(10 * signal).sum().backward()
    assert signal.grad is not None
    assert bool(signal.grad.any())


def test_learnable_dictionaries_compile_too(model: dsc.Cascade) -> None:
    learnable = copy.deepcopy(model).requires_grad_(True)
    compiled = to_cnn(learnable, sparsity=(3, 1), target_error=1e-2)
    assert not any(parameter.requires_grad for parameter in compiled.parameters())


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"steps": 3, "target_error": 0.1}, ParameterError, "steps is 3 and target_error is 0.1; expected one of them"),
        ({"strategy": "interleaved", "steps": (3, 1)}, ParameterError, "expected one number for all layers"),
        ({"strategy": "layerwize"}, ParameterError, "did you mean 'layerwise'"),
        ({"activation": "rely"}, ParameterError, "expected one of celu, .*; did you mean 'relu'"),
        ({"weights": "atom"}, ParameterError, "expected one of 'atoms', .* did you mean 'atoms'"),
        ({"max_kernel": 4}, ParameterError, "max_kernel is 4; expected an odd number"),
        ({"max_kernel": 1}, ParameterError, "max_kernel is 1; expected a whole number of at least 3"),
        ({"sparsity": (3, 1, 1)}, ParameterError, "sparsity has 3 entries; expected one for each of the 2 layers"),
        ({"sparsity": 0}, ParameterError, "sparsity is 0.*at least 1"),
        ({"sparsity": 1.5}, ParameterError, "sparsity is 1.5; expected a whole number"),
        ({"amplitude": 0.0}, ParameterError, "amplitude is 0.*above 0"),
        ({"amplitude": float("nan")}, ParameterError, "amplitude is nan"),
        ({"noise": -0.1}, ParameterError, "noise is -0.1; expected a finite number at least 0"),
        ({"noise": float("inf")}, ParameterError, "noise is inf"),
        ({"epsilon": (0.0, -1.0)}, ParameterError, "epsilon is -1.0"),
        ({"target_error": 0.0}, ParameterError, "target_error is 0.0; expected a finite number above 0"),
        ({"target_error": 1e-9}, ParameterError, "stays above .* or the model in float64"),
        ({"steps": (3, 0)}, ParameterError, "steps is 0"),
        ({"steps": (3, 3, 3)}, ParameterError, "steps has 3 entries"),
        ({"layer": 3}, ParameterError, "layer is 3; expected 1 to 2"),
        ({"layer": 0}, ParameterError, "layer is 0"),
        ({"place_sparsity": (3, 3)}, ParameterError, "expected 1: one for each layer but the deepest"),
        ({"place_sparsity": 0}, ParameterError, "place_sparsity is 0"),
        ({"nonnegative": 1}, ParameterError, "nonnegative is 1; expected True or False"),
    ],
)
def test_refusals(model: dsc.Cascade, settings: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        to_cnn(model, **{"sparsity": (3, 1), **settings})  # type: ignore[arg-type]


def test_refuses_atoms_that_are_not_of_unit_norm() -> None:
    doubled = dsc.ConvDictionary(2 * dsc.ConvDictionary.random(atoms=2, channels=1, size=3, seed=0).kernels)
    with pytest.raises(ParameterError, match=r"atom . of layer 1 has norm 2.* normalize=True"):
        to_cnn(doubled, sparsity=1)


def test_refuses_what_is_no_model() -> None:
    with pytest.raises(DictionaryError, match="model is a Linear"):
        to_cnn(nn.Linear(3, 3), sparsity=1)  # type: ignore[arg-type]


def test_refuses_places_without_a_second_layer(model: dsc.Cascade) -> None:
    with pytest.raises(ParameterError, match="place_sparsity is 4; expected None"):
        to_cnn(model.layers[0], sparsity=1, place_sparsity=4)


def test_compiling_leaves_the_global_generator_alone() -> None:
    model = dsc.ConvDictionary.low_coherence(atoms=4, channels=1, size=(8,), stride=4, seed=0)
    state = torch.random.get_rng_state()
    dsc.to_cnn(model, sparsity=1)
    dsc.to_cnn(dsc.DenseDictionary.dct(8, 8), sparsity=2)
    assert torch.equal(torch.random.get_rng_state(), state)
