"""N0 with η = 0: one step from any errors within e ends within e', with nothing off the support."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deep_sparse_coding.dictionaries import DenseDictionary
from deep_sparse_coding.guarantees.hypotheses import layer_hypotheses
from deep_sparse_coding.guarantees.recursion import LayerRecursion, layer_recursion

SEEDS = st.integers(0, 2**31 - 1)


def recursion_of(dictionary: DenseDictionary, sparsity: int, **settings: object) -> LayerRecursion:
    (assumed,) = layer_hypotheses(dictionary, sparsity=sparsity, **settings)  # type: ignore[arg-type]
    return layer_recursion(dictionary, assumed)


def step(
    dictionary: DenseDictionary, codes: Tensor, signal: Tensor, theta: Tensor, nonnegative: bool = False
) -> Tensor:
    u = codes + dictionary.analyze(signal - dictionary.synthesize(codes))
    return (u - theta).clamp_min(0) - (0 if nonnegative else (-u - theta).clamp_min(0))


def signs(count: int, rng: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count,), generator=rng) * 2.0 - 1.0


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_errors_after_a_step_are_within_the_bound(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    atoms, sparsity = 12, 1 + seed % 5
    dictionary = DenseDictionary.random(8, atoms, seed=seed, dtype=torch.float64)
    recursion = recursion_of(dictionary, sparsity, amplitude=3.0, noise=0.2)
    noise = recursion.noise(None)
    slack = recursion.slack(noise, None)
    # One bound per atom, so that the per-atom form is exercised; errors and noise on their bounds.
    errors = 0.1 + 2.9 * torch.rand(atoms, generator=rng, dtype=torch.float64)
    support = torch.randperm(atoms, generator=rng)[:sparsity]
    truth = torch.zeros(atoms, dtype=torch.float64)
    truth[support] = 3 * (2 * torch.rand(sparsity, generator=rng, dtype=torch.float64) - 1)
    start = truth.clone()
    start[support] += errors[support] * signs(sparsity, rng)
    wave = torch.randn(8, generator=rng, dtype=torch.float64)
    signal = dictionary.synthesize(truth) + 0.2 * wave / wave.norm()
    theta = recursion.thresholds(errors, noise, slack)
    after = step(dictionary, start, signal, theta)
    outside = torch.ones(atoms, dtype=torch.bool)
    outside[support] = False
    assert not after[outside].any()
    reached = theta + recursion.below(errors) + noise + slack
    assert bool(((after - truth).abs() <= reached).all())


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_bound_is_attained_by_aligned_errors_and_noise(seed: int) -> None:
    sparsity = 1 + seed % 4
    dictionary = DenseDictionary.random(9, 14, seed=seed, dtype=torch.float64)
    recursion = recursion_of(dictionary, sparsity, amplitude=10.0, noise=0.1)
    noise = recursion.noise(None)
    slack = recursion.slack(noise, None)
    errors = torch.full((14,), 0.2, dtype=torch.float64)
    gram = dictionary.gram_rows()[..., 0]
    i = int((recursion.above(errors) + recursion.below(errors)).argmax())
    others = gram[i].abs().index_fill(0, torch.tensor(i), -1.0).topk(sparsity - 1).indices
    truth = torch.zeros(14, dtype=torch.float64)
    truth[i] = 10.0
    start = truth.clone()
    # Errors that all lower the argument of atom i, and noise against it.
    truth[others] = 1.0
    start[others] = 1.0 + 0.2 * gram[i, others].sign()
    signal = dictionary.synthesize(truth) - 0.1 * dictionary.matrix[:, i]
    theta = recursion.thresholds(errors, noise, slack)
    after = step(dictionary, start, signal, theta)
    bound = float(recursion.advance(errors, noise, slack)[i])
    actual = float((after - truth)[i].abs())
    assert actual <= bound
    assert actual >= 0.999999 * bound


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_one_sided_errors_stay_one_sided(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    atoms, sparsity = 12, 1 + seed % 5
    dictionary = DenseDictionary.random(8, atoms, seed=seed, dtype=torch.float64)
    recursion = recursion_of(dictionary, sparsity, amplitude=2.0, noise=0.1, nonnegative=True)
    noise = recursion.noise(None)
    slack = recursion.slack(noise, None)
    errors = 2 * torch.rand(atoms, generator=rng, dtype=torch.float64)
    support = torch.randperm(atoms, generator=rng)[:sparsity]
    truth = torch.zeros(atoms, dtype=torch.float64)
    truth[support] = errors[support] + (2 - errors[support]) * torch.rand(sparsity, generator=rng, dtype=torch.float64)
    start = truth.clone()
    start[support] -= errors[support]
    wave = torch.randn(8, generator=rng, dtype=torch.float64)
    signal = dictionary.synthesize(truth) + 0.1 * wave / wave.norm()
    theta = recursion.thresholds(errors, noise, slack)
    after = step(dictionary, start, signal, theta, nonnegative=True)
    assert bool((after <= truth + 1e-15).all())
    assert bool((truth - after <= recursion.advance(errors, noise, slack)).all())


@pytest.mark.parametrize("c", [0.05, 0.2])
def test_one_sided_bound_is_attained_where_only_the_threshold_hurts(c: float) -> None:
    matrix = torch.linalg.cholesky((1 - c) * torch.eye(5, dtype=torch.float64) + c).T
    dictionary = DenseDictionary(matrix)
    recursion = recursion_of(dictionary, 3, nonnegative=True)
    noise = recursion.noise(None)
    slack = recursion.slack(noise, None)
    errors = torch.ones(5, dtype=torch.float64)
    truth = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    start = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    after = step(dictionary, start, dictionary.synthesize(truth), recursion.thresholds(errors, noise, slack), True)
    bound = float(recursion.advance(errors, noise, slack)[0])
    assert math.isclose(bound, 3 * c, rel_tol=1e-9)
    assert bound * 0.999999 <= float(1 - after[0]) <= bound


def test_the_symmetric_threshold_without_the_s_th_atom_would_leak() -> None:
    # Equiangular atoms, errors at e on all of a support of s: an atom outside sees top_s, not top_{s-1}.
    c, s = 0.1, 3
    matrix = torch.linalg.cholesky((1 - c) * torch.eye(6, dtype=torch.float64) + c).T
    dictionary = DenseDictionary(matrix)
    recursion = recursion_of(dictionary, s)
    nothing = torch.zeros(6, dtype=torch.float64)
    truth = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    signal = dictionary.synthesize(truth)
    theta = recursion.thresholds(torch.ones(6, dtype=torch.float64), nothing, nothing)
    assert not step(dictionary, nothing, signal, theta)[3:].any()
    assert step(dictionary, nothing, signal, theta * 0.999999)[3:].all()
