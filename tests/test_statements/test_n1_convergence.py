"""N1: the bound holds after every step, supports are contained, nothing overshoots, and the rate is attained."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.networks import codes_by_depth, convergence_plan, to_cnn

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64


def simplex(atoms: int) -> dsc.DenseDictionary:
    """Return `atoms` unit vectors with inner products ``-1/(atoms - 1)``."""
    centered = torch.eye(atoms, dtype=F64) - 1 / atoms
    return dsc.DenseDictionary(centered, normalize=True)


def equiangular(atoms: int, c: float) -> dsc.DenseDictionary:
    return dsc.DenseDictionary(torch.linalg.cholesky((1 - c) * torch.eye(atoms, dtype=F64) + c).T)


def check(net: object, signal: Tensor, truth: Tensor, slack: float = 0.0) -> list[float]:
    """Check error, support and overshoot after every step; return actual over bound."""
    ratios = []
    for mark, estimate in zip(net.plan.bound_by_depth, codes_by_depth(net, signal), strict=True):  # type: ignore[attr-defined]
        error = float((estimate.codes - truth).abs().max())
        assert error <= mark.bound
        assert not estimate.codes[truth == 0].any()
        assert bool((estimate.codes * truth.sign() <= truth.abs() + slack).all())
        assert bool((estimate.codes * truth.sign() >= 0).all())
        ratios.append(error / mark.bound)
    return ratios


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_random_frames(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    dictionary = dsc.DenseDictionary.random(200, 40, seed=seed, dtype=F64)
    sparsity = 1
    noise = 0.02 * (seed % 3)
    plan = convergence_plan(dictionary, sparsity=2, steps=1)[0]
    if plan.rate < 1:
        sparsity = 2
    sample = dsc.sample(dictionary, sparsity=sparsity, batch=16, amplitude=1.0, seed=seed)
    wave = torch.randn(sample.signal.shape, generator=rng, dtype=F64)
    signal = sample.signal + noise * wave / wave.norm(dim=-1, keepdim=True)
    net = to_cnn(dictionary, sparsity=sparsity, noise=noise * (1 + 1e-12), steps=12)
    check(net, signal, sample.codes[0], slack=1e-14)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_random_convolutions(seed: int) -> None:
    boundary = ("valid", "circular")[seed % 2]
    dictionary = dsc.ConvDictionary.random(
        atoms=3, channels=4, size=(16,), stride=4, boundary=boundary, seed=seed, dtype=F64
    )
    sample = dsc.sample(dictionary, sparsity=2, size=(12,), batch=8, seed=seed)
    sparsity = sample.stripe_sparsity[0]
    if convergence_plan(dictionary, sparsity=sparsity, steps=0)[0].rate >= 1:
        with pytest.raises(ParameterError, match="layer 1: the error bound does not shrink"):
            to_cnn(dictionary, sparsity=sparsity, steps=3)
        return
    net = to_cnn(dictionary, sparsity=sparsity, amplitude=sample.amplitudes, steps=12)
    check(net, sample.signal, sample.codes[0], slack=1e-14)


@pytest.mark.parametrize(("atoms", "sparsity"), [(8, 2), (8, 3), (8, 4), (30, 10)])
def test_simplex_attains_the_rate_at_every_step(atoms: int, sparsity: int) -> None:
    dictionary = simplex(atoms)
    truth = torch.zeros(1, atoms, dtype=F64)
    truth[0, :sparsity] = 1.0
    rate = (2 * sparsity - 1) / (atoms - 1)
    if rate >= 1:
        with pytest.raises(ParameterError, match=r"ρ = 1\.000 at 4 non-zeros in all"):
            to_cnn(dictionary, sparsity=sparsity, steps=3)
        return
    net = to_cnn(dictionary, sparsity=sparsity, steps=10)
    assert math.isclose(net.plan.layers[0].rate, rate, rel_tol=1e-9)
    for step, bound in enumerate(net.plan.bounds, start=1):
        assert math.isclose(bound, rate**step, rel_tol=1e-6)
    assert min(check(net, dictionary.synthesize(truth), truth)) >= 0.999


def test_noise_against_one_atom_attains_the_floor() -> None:
    dictionary = simplex(8)
    truth = torch.zeros(1, 8, dtype=F64)
    truth[0, 0] = 1.0
    signal = dictionary.synthesize(truth) - 0.05 * dictionary.matrix[:, 0]
    net = to_cnn(dictionary, sparsity=1, noise=0.05, steps=40)
    assert min(check(net, signal, truth)) >= 0.999
    assert math.isclose(net.error_bound, 2 * 0.05 / (1 - 1 / 7), rel_tol=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_worst_row_is_attained_in_the_first_step(seed: int) -> None:
    dictionary = dsc.DenseDictionary.random(120, 16, seed=seed, dtype=F64)
    gram = dictionary.gram_rows()[..., 0].abs()
    gram.fill_diagonal_(-1.0)
    top = gram.topk(2, dim=1)
    i = int((2 * top.values[:, 0] + top.values[:, 1]).argmax())
    truth = torch.zeros(1, 16, dtype=F64)
    truth[0, i] = 1.0
    other = int(top.indices[i, 0])
    truth[0, other] = -torch.sign(dictionary.gram_rows()[i, other, 0])
    net = to_cnn(dictionary, sparsity=2, steps=6)
    ratios = check(net, dictionary.synthesize(truth), truth)
    assert ratios[0] >= 0.999


@pytest.mark.parametrize("c", [0.21, 0.3, 0.33])
def test_nonnegative_codes_need_half_of_the_rate(c: float) -> None:
    # ρ = 5c ≥ 1 > 3c = ρ_+: only the one-sided bound shrinks.
    dictionary = equiangular(7, c)
    with pytest.raises(ParameterError, match=r"sparsity of at most .* nonnegative=True"):
        to_cnn(dictionary, sparsity=3, steps=30)
    truth = torch.zeros(3, 7, dtype=F64)
    truth[0, :3] = 1.0
    truth[1, 2:5] = torch.tensor([1.0, 0.2, 0.6], dtype=F64)
    truth[2, 6] = 1.0
    net = to_cnn(dictionary, sparsity=3, steps=30, nonnegative=True)
    assert math.isclose(net.plan.layers[0].rate, 3 * c, rel_tol=1e-9)
    check(net, dictionary.synthesize(truth), truth, slack=1e-14)
    assert net.plan.width == 3 * 7


def test_nonnegative_refused_where_the_one_sided_rate_is_one() -> None:
    with pytest.raises(ParameterError, match=r"layer 1: the error bound does not shrink, ρ = 1\.000"):
        to_cnn(equiangular(7, 1 / 3), sparsity=3, steps=30, nonnegative=True)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_bounds_per_atom_are_never_worse_than_uniform_ones(seed: int) -> None:
    dictionary = dsc.DenseDictionary.random(60, 20, seed=seed, dtype=F64)
    (layer,) = convergence_plan(dictionary, sparsity=3, noise=0.01, steps=15)
    gram = dictionary.gram_rows()[..., 0].abs().fill_diagonal_(0.0).sort(dim=1, descending=True).values
    rate = float((gram[:, :3].sum(1) + gram[:, :2].sum(1)).max())
    assert rate <= (dictionary.babel(3) + dictionary.babel(2)) * (1 + 1e-12)
    assert math.isclose(layer.babel_rate, rate, rel_tol=1e-9)
    assert layer.rate <= layer.babel_rate * (1 + 1e-12)
    uniform = 1.0
    for bounds in layer.bounds[1:]:
        uniform = min(1.0, rate * uniform + 0.02)
        assert float(bounds.max()) <= uniform * (1 + 1e-9) + 1e-12


def test_uneven_dictionaries_contract_although_the_babel_rate_does_not() -> None:
    # One atom leans on two others that lean on it alone: its row sums to 3c > 1, yet errors fall like (√6 c)^k.
    c = 0.38
    d = torch.tensor([[1.0, 0.0, c], [0.0, 1.0, c], [0.0, 0.0, math.sqrt(1 - 2 * c * c)]], dtype=F64)
    dictionary = dsc.DenseDictionary(d)
    (layer,) = convergence_plan(dictionary, sparsity=2, steps=40)
    assert layer.babel_rate > 1
    assert math.isclose(layer.rate, math.sqrt(6) * c, rel_tol=1e-3)
    net = to_cnn(dictionary, sparsity=2, steps=40)
    truth = torch.tensor([[0.0, -1.0, 1.0], [1.0, 1.0, 0.0], [-1.0, 0.0, 1.0], [1.0, 0.0, 1.0]], dtype=F64)
    check(net, dictionary.synthesize(truth), truth, slack=1e-14)
    assert net.error_bound < 0.2


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_single_precision_meets_its_bound_where_thresholds_are_met_with_equality(seed: int) -> None:
    # Equiangular atoms, turned at random so that nothing is exact: atoms outside sit on the threshold.
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=rng, dtype=F64)).Q
    shapes = (equiangular(8, 0.09), 4), (simplex(8), 3)
    for exact, sparsity in shapes:
        dictionary = dsc.DenseDictionary((turn @ exact.matrix).float(), normalize=True)
        truth = torch.zeros(1, 8)
        truth[0, torch.randperm(8, generator=rng)[:sparsity]] = 1.0
        net = to_cnn(dictionary, sparsity=sparsity, steps=60)
        check(net, dictionary.synthesize(truth), truth)
        assert net.error_bound < 1e-4


def test_rounding_slack_is_needed() -> None:
    # Without it some atoms outside the support exceed a threshold that they meet with equality.
    leaks = 0
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        turn = torch.linalg.qr(torch.randn(8, 8, generator=rng, dtype=F64)).Q
        dictionary = dsc.DenseDictionary((turn @ equiangular(8, 0.09).matrix).float(), normalize=True)
        truth = torch.zeros(8)
        truth[:4] = 1.0
        argument = dictionary.analyze(dictionary.synthesize(truth))
        gram = dictionary.gram_rows()[..., 0].float().fill_diagonal_(0.0)
        leaks += bool((argument > gram[:, :4].sum(1))[4:].any())
    assert leaks > 0
