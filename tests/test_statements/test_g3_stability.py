"""G3: no codes that explain the signal are farther from the truth; attained by the simplex; refused at equality."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.guarantees.stability import stability
from strategies import SEEDS, draw_conv, equiangular, gram_dictionary, normal, randint, rng, simplex
from test_statements.oracles_guarantees import weakest_support
from test_statements.test_g1_uniqueness import perturbed_basis, two_groups

F64 = torch.float64


def distance(guarantee: dsc.Guarantee, layer: int = 1, norm: str = "2") -> float:
    return guarantee.bounds[f"layer {layer}: ‖x̂ - x‖_{norm}"]


def test_no_pair_of_codes_is_farther_apart_on_any_support() -> None:
    # The worst distance over all pairs of codes is E over the least singular value of s + κ columns.
    proved = could = 0
    for seed in range(700):
        dictionary = perturbed_basis(seed, largest=8)
        matrix = dictionary.matrix.detach().numpy()
        for s, kappa in ((1, 1), (1, 2), (2, 2)):
            guarantee = stability(dictionary, s, rivals=kappa, noise=0.3, epsilon=0.2)
            weakest = weakest_support(matrix, s + kappa)
            could += weakest > 1e-9
            if guarantee.proved:
                proved += 1
                assert weakest > 0
                assert distance(guarantee) >= 0.7 / math.sqrt(weakest) * (1 - 1e-12)
    assert 900 < proved <= could


@pytest.mark.parametrize("kappa", [1, 2, 3, 5])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_the_simplex_attains_the_bound(kappa: int, share: float) -> None:
    dictionary = simplex(2 * kappa, share / (2 * kappa - 1))
    truth, found = torch.zeros(2, 2 * kappa, dtype=F64)
    truth[:kappa], found[kappa:] = 1.0, -1.0
    noise = float((dictionary.synthesize(truth) - dictionary.synthesize(found)).norm())
    guarantee = stability(dictionary, kappa, noise=noise)
    ratio = distance(guarantee) / float((truth - found).norm())
    assert guarantee.proved
    assert 1 - 1e-9 <= ratio <= 1 + 1e-6
    # The same distance, its cause split between noise, the truth's tolerance and the found one's.
    split = stability(dictionary, kappa, noise=0.5 * noise, epsilon=0.2 * noise, hat_epsilon=0.3 * noise)
    assert distance(split) == pytest.approx(distance(guarantee), rel=1e-9)
    twice = stability(dictionary, kappa, epsilon=0.5 * noise)  # the paper's 2ε
    assert distance(twice) == pytest.approx(distance(guarantee), rel=1e-9)


@pytest.mark.parametrize("kappa", [2, 3, 5])
def test_refused_at_equality(kappa: int) -> None:
    guarantee = stability(simplex(2 * kappa, 1 / (2 * kappa - 1)), kappa, noise=0.1)
    assert not guarantee
    assert not guarantee.bounds
    assert "missing layer 1: μ_1" in str(guarantee)
    assert stability(simplex(2 * kappa, 1 / (2 * kappa - 1)), kappa, rivals=kappa - 1, noise=0.1)


@pytest.mark.parametrize("kappa", [1, 2, 4])
def test_non_negative_codes_attain_their_own_bound(kappa: int) -> None:
    c = 0.9 / kappa
    dictionary = two_groups(kappa, c)
    truth, found = torch.zeros(2, 2 * kappa, dtype=F64)
    truth[:kappa], found[kappa:] = 1.0, 1.0
    noise = float((dictionary.synthesize(truth) - dictionary.synthesize(found)).norm())
    guarantee = stability(dictionary, kappa, noise=noise, nonnegative=True)
    assert distance(guarantee) / math.sqrt(2 * kappa) == pytest.approx(1.0, rel=1e-6)
    if kappa > 1:
        alike = equiangular(2 * kappa, c)
        assert stability(alike, kappa, noise=noise, nonnegative=True)
        assert not stability(alike, kappa, noise=noise)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_non_negative_codes_on_drawn_dictionaries(seed: int) -> None:
    g = rng(seed)
    dictionary = perturbed_basis(seed, largest=7)
    s = randint(1, 2, g)
    guarantee = stability(dictionary, s, noise=1.0, nonnegative=True)
    if not guarantee.proved:
        return
    matrix = dictionary.matrix.detach()
    for _ in range(60):
        order = torch.randperm(matrix.shape[1], generator=g)
        delta = torch.zeros(matrix.shape[1], dtype=F64)
        delta[order[:s]] = normal(s, generator=g).abs()
        rest = order[s : 2 * s]
        delta[rest] = -normal(len(rest), generator=g).abs()
        assert float(delta.norm()) <= distance(guarantee) * float((matrix @ delta).norm()) * (1 + 1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_stripes_of_convolutions(seed: int) -> None:
    g = rng(seed)
    dictionary = draw_conv(seed, axes=1 + seed % 2, boundary="valid")
    guarantee = stability(dictionary, 1, noise=1.0)
    if not guarantee.proved:
        return
    size = tuple(3 * lag + 3 for lag in dictionary.lags)
    for _ in range(10):
        pair = []
        for _ in range(2):
            codes = torch.zeros(1, *dictionary.code_shape(dictionary.signal_shape(size)[1:]), dtype=F64)
            for index in torch.randperm(codes.numel(), generator=g)[:30].tolist():
                codes.view(-1)[index] = float(normal(1, generator=g))
                if int(dsc.stripe_sparsity(dictionary, codes)) > 1:
                    codes.view(-1)[index] = 0.0
            pair.append(codes)
        delta = pair[0] - pair[1]
        image = float(dictionary.synthesize(delta).norm())
        assert float(delta.norm()) <= distance(guarantee) * image * (1 + 1e-12)


def tight_cascade(kappa: int = 2) -> tuple[dsc.Cascade, float]:
    """Return a simplex under atoms of two entries each: the error of layer 1 passes into layer 2 whole."""
    c = 0.9 / (2 * kappa - 1)
    first = simplex(2 * kappa, c)
    half = torch.full((2 * kappa, 2), math.sqrt(1 / kappa), dtype=F64)
    half[:kappa, 1] = half[kappa:, 0] = 0.0
    return dsc.Cascade([first, dsc.DenseDictionary(half)]), c


@pytest.mark.parametrize("kappa", [2, 3])
def test_cascades_attain_the_bound_in_both_layers(kappa: int) -> None:
    model, _ = tight_cascade(kappa)
    truth, found = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([0.0, -1.0], dtype=F64)
    middle = [model.synthesize(x, to=1) for x in (truth, found)]
    noise = float((model.synthesize(truth) - model.synthesize(found)).norm())
    guarantee = stability(model, sparsity=(kappa, 1), noise=noise, epsilon=(0.0, 0.0))
    assert distance(guarantee, 1) / float((middle[0] - middle[1]).norm()) == pytest.approx(1.0, rel=1e-6)
    assert distance(guarantee, 2) / float((truth - found).norm()) == pytest.approx(1.0, rel=1e-6)


def test_a_layer_that_fails_ends_the_chain() -> None:
    good, bad = simplex(6, 0.1), simplex(6, 0.2)
    square = dsc.DenseDictionary(torch.eye(6, dtype=F64))
    guarantee = stability(dsc.Cascade([dsc.DenseDictionary(good.matrix.T @ good.matrix, normalize=True), square]), 1)
    assert guarantee.proved
    lower = dsc.DenseDictionary(torch.cat([bad.matrix, torch.zeros(1, 6, dtype=F64)]))
    guarantee = stability(dsc.Cascade([lower, square]), (3, 1), noise=0.1)
    assert not guarantee.proved
    assert [c.layer for c in guarantee.decisive] == [1]
    assert not guarantee.bounds


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_drawn_cascades(seed: int) -> None:
    g = rng(seed)
    first = dsc.DenseDictionary.random(60, 12, seed=seed, dtype=F64)
    second = torch.zeros(12, 6, dtype=F64)
    for column in range(6):
        second[2 * column : 2 * column + 2, column] = normal(2, generator=g)
    model = dsc.Cascade([first, dsc.DenseDictionary(second, normalize=True)])
    deepest = torch.zeros(2, 6, dtype=F64)
    for row in deepest:
        row[randint(0, 5, g)] = float(normal(1, generator=g))
    middle = model.layers[1].synthesize(deepest)
    middle = middle + 0.05 * normal(2, 12, generator=g) * (middle != 0)
    signals = first.synthesize(middle) + 0.02 * normal(2, 60, generator=g)
    tolerance = [(signals - first.synthesize(middle)).norm(dim=1), (middle - second_of(model, deepest)).norm(dim=1)]
    guarantee = stability(
        model,
        (2, 1),
        noise=float((signals[0] - signals[1]).norm()),
        epsilon=tuple(float(t[0]) for t in tolerance),
        hat_epsilon=tuple(float(t[1]) for t in tolerance),
    )
    if guarantee.proved:
        assert float((middle[0] - middle[1]).norm()) <= distance(guarantee, 1)
        assert float((deepest[0] - deepest[1]).norm()) <= distance(guarantee, 2)


def second_of(model: dsc.Cascade, deepest: torch.Tensor) -> torch.Tensor:
    return model.layers[1].synthesize(deepest)


def test_norms_of_the_atoms_count() -> None:
    dictionary = simplex(4, 0.3)
    scaled = dsc.DenseDictionary(dictionary.matrix * torch.tensor([0.1, 1.0, 2.0, 5.0], dtype=F64))
    plain, other = (distance(stability(d, 2, noise=1.0)) for d in (dictionary, scaled))
    assert other == pytest.approx(10 * plain)
    delta = torch.tensor([10.0, 0.0, 0.0, 0.0], dtype=F64)
    assert float(delta.norm() / scaled.synthesize(delta).norm()) <= other


def test_what_is_wrong_is_said() -> None:
    dictionary = gram_dictionary(torch.eye(4, dtype=F64))
    with pytest.raises(ParameterError, match=r"kind is 'l_1'; expected one of 'l0', 'l1', 'lagrangian'; did you mean"):
        stability(dictionary, 1, kind="l_1")
    with pytest.raises(ParameterError, match="lam is given, but kind='l0' does not use it; expected None"):
        stability(dictionary, 1, lam=0.1)
    with pytest.raises(ParameterError, match="noise is -1"):
        stability(dictionary, 1, noise=-1)
    with pytest.raises(ParameterError, match="neither sparsity nor supports"):
        stability(dictionary)
    with pytest.raises(ParameterError, match="epsilon has 2 entries"):
        stability(dictionary, 1, epsilon=(0.0, 0.0))


def test_numpy_and_printing() -> None:
    guarantee = stability(gram_dictionary(torch.eye(4, dtype=F64)), np.int64(1), noise=np.float64(0.125))
    text = str(guarantee)
    assert text.startswith("proved: codes with at most 1 non-zero are stable")
    assert "layer 1: ‖x̂ - x‖_2: 0.125001" in text  # rounded up
