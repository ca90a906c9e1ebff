"""N7: other activations; how far they are from ReLU is in the bound, which still falls like ρ^k; some are exact."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.networks import CompiledCNN, codes_by_depth, to_cnn
from deep_sparse_coding.networks.cnn.activations import leaky, resolve_activation
from strategies import equiangular, normal, rng, simplex

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64
INEXACT = ("elu", "celu", "gelu", "silu", "mish", "softplus")
EXACT = ("leaky_relu", "prelu", "relu6", "hardtanh")


def sign_relu(u: Tensor) -> Tensor:
    return torch.where(u > 0, u, u / (1 - u))


def check(net: CompiledCNN, signal: Tensor, codes: tuple[Tensor, ...]) -> list[float]:
    """Check errors on and off the support at every depth; return actual over bound of the deepest layer."""
    ratios = []
    for mark, estimate in zip(net.plan.bound_by_depth, codes_by_depth(net, signal), strict=True):
        truth, layer = codes[mark.layer - 1], net.plan.layers[mark.layer - 1]
        error = (estimate.codes - truth).abs()
        assert float(error.max()) <= mark.bound
        off = error[truth == 0]
        assert float(off.max()) <= layer.leaks[mark.step]
        if mark.layer == len(net.plan.layers):
            ratios.append(float(error.max()) / mark.bound)
    assert float((net(signal) - codes[len(net.plan.layers) - 1]).abs().max()) <= net.error_bound
    return ratios


@pytest.mark.parametrize("name", [*INEXACT, *EXACT])
def test_distances(name: str) -> None:
    found = resolve_activation(name, None, F64)
    module = found.make().double()
    u = torch.cat([torch.linspace(-40, 40, 800_001, dtype=F64), torch.tensor([-1e6, -1e3, 1e3, 1e6], dtype=F64)])
    with torch.no_grad():
        apart = module(u) - u.clamp_min(0)
    if name in INEXACT:
        assert 0.9999 * found.distance <= float(apart.abs().max()) <= found.distance
        assert found.one_sided
        assert float(apart.min()) >= -1e-9 or float(apart.max()) <= 1e-9
    elif found.form == "mirrored":
        made = found.as_relu(torch.cat([module(u), module(-u)]), None, 0)
        assert torch.allclose(made, u.clamp_min(0), rtol=1e-12)
    else:
        shift = 1.0 if found.form == "centered" else 0.0
        inside = u[u <= found.limit]
        assert torch.allclose(module(inside - shift) + shift, inside.clamp_min(0), atol=1e-9)
        beyond = torch.tensor([1.01 * found.limit], dtype=F64)
        assert float(module(beyond - shift) + shift) < float(beyond)


@pytest.mark.parametrize("strategy", ["layerwise", "interleaved"])
@pytest.mark.parametrize("name", [*INEXACT, *EXACT, "custom"])
@settings(max_examples=3, deadline=None)
@given(seed=SEEDS)
def test_true_error_is_below_the_bound(name: str, strategy: str, seed: int) -> None:
    g = rng(seed)
    dtype = (F64, torch.float32)[seed % 2]
    matrix = torch.zeros(12, 6, dtype=F64)
    for column, pair in enumerate(torch.randperm(12, generator=g).reshape(6, 2)):
        matrix[pair, column] = normal(2, generator=g).abs() + 0.1
    model = dsc.Cascade(
        [
            dsc.DenseDictionary.random(300, 12, seed=seed, dtype=dtype),
            dsc.DenseDictionary(matrix.to(dtype), normalize=True),
        ]
    )
    nonnegative = seed % 3 == 0
    sample = dsc.sample(model, sparsity=(2, 1), batch=6, seed=seed, nonnegative=nonnegative)
    wave = normal(*sample.signal.shape, generator=g)
    signal = sample.signal + (0.01 * wave / wave.norm(dim=1, keepdim=True)).to(dtype)
    activation = sign_relu if name == "custom" else name
    net = to_cnn(
        model,
        sparsity=(2, 1),
        amplitude=tuple(max(1e-3, float(x.abs().max())) for x in sample.codes),
        noise=0.0101,
        steps=9,
        strategy=strategy,
        nonnegative=nonnegative,
        activation=activation,
        distance=1.0 if name == "custom" else None,
    )
    check(net, signal, sample.codes)
    if name in EXACT and dtype == F64:
        plain = to_cnn(
            model,
            sparsity=(2, 1),
            amplitude=tuple(max(1e-3, float(x.abs().max())) for x in sample.codes),
            noise=0.0101,
            steps=9,
            strategy=strategy,
        )
        assert net.error_bound <= plain.error_bound * (1 + 1e-9) or nonnegative


@pytest.mark.parametrize("name", ["gelu", "softplus", "elu", "leaky_relu", "hardtanh"])
@pytest.mark.parametrize(("boundary", "strategy"), [("valid", "interleaved"), ("circular", "layerwise")])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_convolutions_borders_and_strides(name: str, boundary: str, strategy: str, dtype: torch.dtype) -> None:
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.low_coherence(
                atoms=8, channels=1, size=8, stride=4, boundary=boundary, seed=0, dtype=dtype
            ),
            dsc.ConvDictionary.low_coherence(
                atoms=6, channels=8, size=3, stride=2, nonzeros=3, boundary=boundary, seed=0, dtype=dtype
            ),
        ]
    )
    for seed in range(2):
        sample = dsc.sample(model, sparsity=(10, 1), size=(4, 5), batch=2, seed=seed)
        net = to_cnn(
            model,
            sparsity=sample.stripe_sparsity,
            amplitude=sample.amplitudes,
            place_sparsity=sample.place_sparsity,
            steps=8,
            strategy=strategy,
            activation=name,
        )
        check(net, sample.signal, sample.codes)


@pytest.mark.parametrize("name", EXACT)
def test_exact_activations_are_relu_at_every_depth_and_at_borders(name: str) -> None:
    model = dsc.ConvDictionary.random(atoms=4, channels=2, size=(4, 3), stride=(2, 1), seed=0, dtype=F64)
    signal = 0.1 * normal(2, 2, 14, 9, generator=rng(0))
    for nonnegative in (False, True):
        common = {"sparsity": 1, "steps": 4, "amplitude": 9.0}
        plain = to_cnn(model, nonnegative=nonnegative, **common)  # type: ignore[arg-type]
        net = to_cnn(model, nonnegative=nonnegative, activation=name, **common)  # type: ignore[arg-type]
        if nonnegative:
            continue  # other thresholds: the one-sided form is ReLU's alone
        for ours, theirs in zip(codes_by_depth(net, signal), codes_by_depth(plain, signal), strict=True):
            assert torch.allclose(ours.codes, theirs.codes, atol=1e-10)


@pytest.mark.parametrize("name", INEXACT)
def test_the_rate_is_kept_by_growing_scales(name: str) -> None:
    dictionary = equiangular(12, 0.1)
    steps = 24
    net = to_cnn(dictionary, sparsity=3, steps=steps, activation=name)
    plain = to_cnn(dictionary, sparsity=3, steps=steps)
    (layer,) = net.plan.layers
    assert layer.rate == pytest.approx(0.5)
    # O(ρ^k): a constant factor, the same at every depth.
    factors = [ours / theirs for ours, theirs in zip(net.plan.bounds, plain.plan.bounds, strict=True)]
    assert max(factors) <= 2
    assert factors[-1] <= factors[-2] * 1.01
    assert list(layer.scales) == sorted(layer.scales)
    codes = torch.zeros(1, 12, dtype=F64)
    codes[0, :3] = torch.tensor([1.0, -1.0, -1.0])
    signal = dictionary.synthesize(codes)
    ratios = check(net, signal, (codes,))
    # With one scale for all steps the error would stay above c/t.
    assert float((net(signal) - codes).abs().max()) < 1e-5
    assert min(ratios) >= 0.3


def test_the_bound_is_nearly_attained() -> None:
    """A function that is off by c everywhere, against us on the support and for us nowhere else."""
    c = 0.1
    dictionary = simplex(6, 0.1)
    codes = torch.zeros(1, 6, dtype=F64)
    codes[0, :3] = 1.0
    signal = dictionary.synthesize(codes)

    def low(u: Tensor) -> Tensor:
        return (u - c).clamp_min(0)

    net = to_cnn(dictionary, sparsity=3, steps=12, activation=low, distance=c, nonnegative=True)
    ratios = check(net, signal, (codes,))
    assert min(ratios) >= 0.975
    plain = to_cnn(dictionary, sparsity=3, steps=12)
    assert net.error_bound > plain.error_bound


def test_target_is_reached() -> None:
    dictionary = equiangular(12, 0.1)
    for name in (*INEXACT, *EXACT):
        net = to_cnn(dictionary, sparsity=2, target_error=1e-3, activation=name)
        assert net.error_bound <= 1e-3
        assert to_cnn(dictionary, sparsity=2, steps=net.plan.steps[0] - 1, activation=name).error_bound > 1e-3


def test_modules_with_settings_of_their_own() -> None:
    dictionary = dsc.DenseDictionary.random(200, 10, seed=0, dtype=F64)
    signal = dictionary.matrix.detach()[:, 0]
    truth = torch.eye(10, dtype=F64)[0]
    for module in (
        nn.LeakyReLU(0.3),
        nn.PReLU(init=0.1, dtype=F64),
        nn.ELU(0.5),
        nn.CELU(2.0),
        nn.Softplus(beta=3.0),
        nn.Hardtanh(0.0, 4.0),
        nn.Hardtanh(-1.0, 3.0),
        nn.GELU(),
        nn.ReLU(),
    ):
        net = to_cnn(dictionary, sparsity=1, steps=6, activation=module)
        assert any(type(part) is type(module) for part in net)
        assert float((net(signal) - truth).abs().max()) <= net.error_bound < 0.1
        again = pickle.loads(pickle.dumps(net))
        assert torch.equal(again(signal), net(signal))
    assert copy.deepcopy(to_cnn(dictionary, sparsity=1, steps=2, activation=sign_relu, distance=1.0))(signal).shape == (
        10,
    )


def test_counts_include_what_the_activation_has() -> None:
    dictionary = dsc.DenseDictionary.random(60, 10, seed=0)
    for name in ("prelu", "leaky_relu", "hardtanh", "gelu"):
        net = to_cnn(dictionary, sparsity=1, steps=4, activation=name)
        assert net.plan.parameters == sum(p.numel() for p in net.parameters())
        taps = sum(m.weight.numel() for m in net if isinstance(m, nn.Linear))
        assert net.plan.multiply_adds() == taps
        assert name in str(net.plan)


@pytest.mark.parametrize(
    ("activation", "distance", "match"),
    [
        ("geluu", None, "activation is 'geluu'; expected one of .*; did you mean 'gelu'"),
        ("gelu", 0.1, r"distance is 0\.1 and activation is 'gelu', whose distance to ReLU is known"),
        (torch.tanh, None, "of which nothing is known; expected its distance to ReLU too"),
        (sign_relu, 0.5, r"distance is 0\.5, and at u = .* activation is .* away from ReLU"),
        (torch.tanh, 3.0, "away from ReLU"),
        (nn.LeakyReLU(1.0), None, r"slope of the activation is 1; expected 0 ≤ slope < 1"),
        (nn.LeakyReLU(-0.1), None, "slope of the activation is -0.1; expected"),
        (nn.Hardtanh(-2.0, 2.0), None, r"Hardtanh\(-2, 2\); expected one from -1"),
        (nn.GELU("tanh"), None, "of which nothing is known"),
        (3, None, "activation is a int; expected a name, a module, or a function"),
    ],
)
def test_refusals(activation: object, distance: float | None, match: str) -> None:
    dictionary = dsc.DenseDictionary.random(60, 10, seed=0)
    with pytest.raises(ParameterError, match=match):
        to_cnn(dictionary, sparsity=1, activation=activation, distance=distance)  # type: ignore[arg-type]


def test_a_target_below_the_floor_is_refused() -> None:
    dictionary = equiangular(12, 0.1)
    with pytest.raises(ParameterError, match="stays above"):
        to_cnn(dictionary, sparsity=2, noise=0.01, target_error=0.01, activation="gelu")
    with pytest.raises(ParameterError, match="does not shrink"):
        to_cnn(dictionary, sparsity=8, steps=3, activation="gelu")


def test_slopes() -> None:
    assert leaky(0.0).slope == 0
    assert math.isclose(leaky(0.1, learnable=True, dtype=torch.float32).slope, 0.1, rel_tol=1e-7)
