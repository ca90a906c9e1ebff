"""N10: codes from anywhere are at most so far from the truth; attained by the simplex; refused for dependent atoms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError, ShapeError
from deep_sparse_coding.guarantees.runtime import against_truth
from strategies import SEEDS, draw_conv, equiangular, normal, randint, rng, simplex
from test_statements.test_g1_uniqueness import perturbed_basis

F64 = torch.float64


@settings(max_examples=120, deadline=None)
@given(seed=SEEDS)
def test_no_truth_is_farther(seed: int) -> None:
    g = rng(seed)
    dictionary = perturbed_basis(seed, largest=9)
    atoms = dictionary.atoms
    s = randint(1, 3, g)
    truth, codes = torch.zeros(2, 6, atoms, dtype=F64)
    for row in truth:
        row[torch.randperm(atoms, generator=g)[:s]] = normal(min(s, atoms), generator=g)
    for row, other in zip(codes, truth, strict=True):
        row[:] = other
        row[torch.randperm(atoms, generator=g)[: randint(0, 2, g)]] = 10.0 ** -randint(0, 4, g)
    size = 0.1 * randint(0, 1, g)
    noise = normal(6, dictionary.channels, generator=g)
    noise = size * noise / noise.norm(dim=1, keepdim=True)
    signal = dictionary.synthesize(truth) + noise
    weights = None if seed % 2 else dictionary.matrix + 0.05 * normal(*dictionary.matrix.shape, generator=g)
    bound = against_truth(dictionary, signal, codes, s, noise=size * (1 + 1e-12), analysis=weights)
    assert bool(((codes - truth).abs().amax(1) <= bound.largest).all())
    assert bool(((codes - truth).norm(dim=1) <= bound.distance).all())


@pytest.mark.parametrize("c", [0.05, 0.3])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_worst_row_attains_the_bound(c: float, m: int) -> None:
    dictionary = equiangular(6, c)
    truth = torch.zeros(6, dtype=F64)
    truth[0] = 1.0
    truth[1:m] = -1.0  # against the sign of G: all errors hide each other
    codes = torch.zeros(6, dtype=F64)
    signal = dictionary.synthesize(truth)
    bound = against_truth(dictionary, signal, codes, m, contained=True)
    seen = float(dictionary.analyze(signal)[0].abs())
    assert seen == pytest.approx(1 - (m - 1) * c)
    # The other rows see more for m > 2, so the bound as a whole is attained for pairs and single errors.
    ratio = float(bound.largest)
    assert ratio >= 1
    if m < 3:
        assert ratio == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("s", [1, 2, 4])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_the_simplex_attains_both_bounds(s: int, share: float) -> None:
    c = share / (2 * s - 1)
    dictionary = simplex(2 * s, c)
    truth, codes = torch.zeros(2, 2 * s, dtype=F64)
    truth[:s], codes[s:] = 1.0, -1.0
    signal = dictionary.synthesize(truth)
    bound = against_truth(dictionary, signal, codes, s)
    assert int(bound.counts) == 2 * s
    assert float(bound.largest) == pytest.approx(1.0, rel=1e-9)
    assert float(bound.distance) == pytest.approx(math.sqrt(2 * s), rel=1e-9)
    # The same when noise explains part of the residual: the truth may be as far as that.
    rest = dictionary.synthesize(truth - codes)
    noisy = against_truth(dictionary, signal - 0.5 * rest, codes, s, noise=0.5 * float(rest.norm()))
    assert float(noisy.distance) == pytest.approx(math.sqrt(2 * s), rel=1e-9)


def test_noise_at_its_bound_along_one_atom() -> None:
    dictionary = equiangular(5, 0.2)
    signal = torch.zeros(5, dtype=F64)
    codes = torch.zeros(5, dtype=F64)
    codes[0] = 0.1
    # z = 0 = D x* + n with x* = 0 would have n = 0; x* = 0.1·2 e_1 and n = -0.2 d_1 is as far as noise 0.2 allows.
    bound = against_truth(dictionary, signal, codes, 1, noise=0.2, contained=True)
    assert float(bound.largest) == pytest.approx(0.3)
    assert float(bound.distance) == pytest.approx(0.3)


def test_refused_at_equality_and_for_too_many_non_zeros() -> None:
    dictionary = simplex(4, 1 / 3)
    codes = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=F64)
    bound = against_truth(dictionary, dictionary.synthesize(codes), codes, 2)
    assert bound.largest.isinf().tolist() == [True, False]
    assert bound.distance.isinf().tolist() == [True, False]
    assert "in 1/2" in str(bound)
    assert "nothing is proved about the truth" in str(
        against_truth(dictionary, codes[0] @ dictionary.matrix.T, codes[0], 2)
    )


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_convolutions_count_stripes(seed: int) -> None:
    g = rng(seed)
    dictionary = draw_conv(seed, axes=1 + seed % 2, boundary="valid")
    size = tuple(2 * lag + 3 for lag in dictionary.lags)
    shape = dictionary.code_shape(dictionary.signal_shape(size)[1:])
    truth = normal(*shape, generator=g) * (torch.rand(shape, generator=g, dtype=F64) < 0.05)
    codes = truth + 0.1 * normal(*shape, generator=g) * (truth != 0)
    s = max(1, int(dsc.stripe_sparsity(dictionary, truth)))
    bound = against_truth(dictionary, dictionary.synthesize(truth), codes, s, contained=True)
    assert float((codes - truth).abs().max()) <= float(bound.largest)
    assert float((codes - truth).norm()) <= float(bound.distance)


def test_far_below_what_was_planned() -> None:
    dictionary = dsc.DenseDictionary.random(200, 40, seed=0, dtype=F64)
    sample = dsc.sample(dictionary, sparsity=2, batch=16, seed=0)
    net = dsc.to_cnn(dictionary, sparsity=2, steps=8)
    codes = net(sample.signal)
    bound = against_truth(dictionary, sample.signal, codes, 2, contained=True)
    error = (codes - sample.codes[0]).abs().amax(1)
    assert bool((error <= bound.largest).all())
    assert float(bound.largest.max()) < 0.85 * net.error_bound
    assert float((error / bound.largest).max()) > 0.5


def test_what_is_wrong_is_said() -> None:
    dictionary = simplex(4, 0.1)
    zeros = torch.zeros(4, dtype=F64)
    with pytest.raises(ParameterError, match="sparsity is 0"):
        against_truth(dictionary, dictionary.synthesize(zeros), zeros, 0)
    with pytest.raises(ShapeError, match="analysis has shape"):
        against_truth(dictionary, dictionary.synthesize(zeros), zeros, 1, analysis=torch.ones(2, 2))
