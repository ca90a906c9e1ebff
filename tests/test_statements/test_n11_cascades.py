"""N11 for dense cascades: bounds from the weights of the joint network and of ML-LISTA hold, and are attained."""

from __future__ import annotations

import functools
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.networks.unfolded.base import Unfolded
from deep_sparse_coding.networks.unfolded.build import unfold
from strategies import SEEDS, orthonormal, rng

F64 = torch.float64
METHODS = ("joint", "ml-lista")


@functools.cache
def pairs(dtype: torch.dtype = F64, depth: int = 2) -> dsc.Cascade:
    """Return rotated unit vectors, then atoms that are pairs of them: no atom is like another."""
    layers, width = [dsc.DenseDictionary(orthonormal(24, 0).matrix.detach().to(dtype), normalize=True)], 24
    while len(layers) < depth:
        width //= 2
        two = torch.eye(width, dtype=dtype).repeat_interleave(2, 0)
        layers.append(dsc.DenseDictionary(two, normalize=True))
    return dsc.Cascade(layers)


@functools.cache
def mixed() -> dsc.Cascade:
    first = dsc.DenseDictionary.low_coherence(30, 36, seed=0, dtype=F64)
    g = rng(1)
    sparse = torch.zeros(36, 12, dtype=F64)
    for atom in sparse.T:
        atom[torch.randperm(36, generator=g)[:3]] = 1.0
    return dsc.Cascade([first, dsc.DenseDictionary(sparse, normalize=True)])


def network(method: str, model: dsc.Cascade, steps: int, lam: float = 0.02) -> Unfolded:
    if method == "joint":
        return unfold(dsc.JointLasso(model, lam, beta=(1.0, *[0.1] * (len(model) - 1))), steps)
    return unfold(dsc.MultiLayerLasso(model, lam), steps)


def draw(model: dsc.Cascade, seed: int, batch: int = 40) -> tuple[Tensor, tuple[Tensor, ...], dict[str, tuple]]:
    """Return signals with one deepest non-zero each, the codes, and what bounds them."""
    g = rng(seed)
    codes = torch.zeros(batch, model.layers[-1].atoms, dtype=F64)
    where = torch.randint(0, codes.shape[1], (batch,), generator=g)
    codes[torch.arange(batch), where] = 2.0 * torch.rand(batch, generator=g, dtype=F64) - 1
    every = [codes.to(model.dtype)]
    for layer in reversed(model.layers[1:]):
        every.insert(0, layer.synthesize(every[0]).detach())
    limits = {
        "sparsity": tuple(int((x != 0).sum(1).max()) for x in every),
        "amplitude": tuple(float(x.abs().max()) for x in every),
    }
    return model.layers[0].synthesize(every[0]).detach(), tuple(every), limits


def layers_of(codes: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the codes, the deepest first."""
    return codes[::-1] if isinstance(codes, tuple) else (codes,)


def check(net: Unfolded, model: dsc.Cascade, seed: int, noise: float = 0.0) -> dsc.Guarantee:
    """Assert that the bounds hold at every step for the deepest codes, and at the end for all that are returned."""
    signal, truth, limits = draw(model, seed)
    wave = torch.randn(signal.shape, generator=rng(seed), dtype=F64).to(signal)
    signal = signal + noise * wave / torch.linalg.vector_norm(wave, dim=1, keepdim=True)
    found = net.error_bound(limits["sparsity"], amplitude=limits["amplitude"], noise=noise * (1 + 1e-6))
    depth = len(model)
    for k, codes in enumerate(net.trace(signal), start=1):
        errors = [(x - t).detach().abs() for x, t in zip(layers_of(codes), truth[::-1], strict=False)]
        assert float(errors[0].max()) <= found.bounds[f"e_{k} = ‖x_{depth}^{k} - x_{depth}‖_∞"]
        if k == net.steps:
            for j, error in zip(range(depth, 0, -1), errors, strict=False):
                assert float(error.max()) <= found.bounds[f"‖x_{j} - truth‖_∞ after the last step"]
                off = error[truth[j - 1] == 0]
                assert float(off.max()) <= found.bounds[f"leak off the support of layer {j}"]
    return found


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_bounds_hold_for_any_weights(method: str, seed: int) -> None:
    model = (pairs(), pairs(depth=3), mixed(), pairs(torch.float32))[seed % 4]
    net = network(method, model, 3)
    g = rng(seed)
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.requires_grad):
            wave = torch.randn(parameter.shape, generator=g, dtype=F64).to(parameter)
            parameter += 0.1 * float(torch.rand((), generator=g)) * parameter.abs().mean() * wave
    check(net, model, seed, 0.05 * (seed % 2))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", METHODS)
def test_training_that_keeps_supports_is_proved(method: str, dtype: torch.dtype) -> None:
    model = pairs(dtype)
    signal, truth, limits = draw(model, 5, batch=200)
    net = network(method, model, 16 if method == "joint" else 4, lam=0.05)
    codes = truth if method == "joint" else truth[-1]
    supports, sizes = limits["sparsity"], (1.0, 1.0)
    net.fit(signal, codes, epochs=2, lr=1e-3, batch_size=50, supports_up_to=supports, amplitude=sizes)
    check(net, model, 6)
    found = net.error_bound(supports, amplitude=sizes)
    assert found.proved
    assert "no non-zero outside the true supports" in found.statement
    for x, t in zip(layers_of(net(signal)), truth[::-1], strict=False):
        assert not bool(x[t == 0].any())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("method", METHODS)
def test_the_bound_is_attained(method: str, dtype: torch.dtype) -> None:
    # One atom a layer: from zero all errors have one sign, and thresholds add to them.
    model = dsc.Cascade([dsc.DenseDictionary(torch.ones(1, 1, dtype=dtype)) for _ in range(2)])
    net = network(method, model, 4, lam=0.03)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith("analysis"):
                parameter.fill_(0.3)
            elif name.startswith("threshold"):
                parameter.fill_(0.03)
        if method == "joint":
            # In the first step the deeper layer hears zero codes, and nothing passes a threshold.
            net.thresholds()[1][0] = 0.0
    truth = torch.ones(1, 1, dtype=dtype)
    found = net.error_bound(1)
    for k, codes in enumerate(net.trace(truth), start=1):
        error = float((layers_of(codes)[0] - truth).detach().abs().max())
        bound = found.bounds[f"e_{k} = ‖x_2^{k} - x_2‖_∞"]
        assert 0.9999 * bound <= error <= bound


def test_crowded_cascades_are_not_proved() -> None:
    model = dsc.Cascade([dsc.DenseDictionary.random(6, 8, seed=0), dsc.DenseDictionary.random(8, 10, seed=1)])
    for method in METHODS:
        net = network(method, model, 2)
        assert not net.error_bound(2)
        net.keep_supports(2)
        found = net.error_bound(2)
        assert not found
        assert str(found).startswith(f"not proved: 2 learned steps ({method})")
        with pytest.raises(dsc.ParameterError, match="sparsity"):
            net.error_bound(cast(int, (1, 1, 1)))
