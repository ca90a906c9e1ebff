"""Random and structured families: unit norms, seeds, sparsity, and coherence that is in fact low."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.dictionaries import random as families
from strategies import SEEDS, normal, rng


def _builds(seed: int) -> list[dsc.Dictionary]:
    conv = {"atoms": 3, "channels": 2, "size": (3, 2), "stride": (1, 2), "seed": seed, "dtype": torch.float64}
    return [
        dsc.DenseDictionary.random(5, 9, seed=seed, dtype=torch.float64),
        dsc.DenseDictionary.low_coherence(5, 9, seed=seed, dtype=torch.float64),
        dsc.ConvDictionary.random(**conv),  # type: ignore[arg-type]
        dsc.ConvDictionary.random(**conv, nonzeros=3),  # type: ignore[arg-type]
        dsc.ConvDictionary.low_coherence(**conv, nonzeros=3),  # type: ignore[arg-type]
    ]


@given(seed=SEEDS)
@settings(max_examples=8)
def test_unit_norms_seeds_and_the_global_generator(seed: int) -> None:
    state = torch.get_rng_state()
    for first, again, other in zip(_builds(seed), _builds(seed), _builds(seed + 1), strict=True):
        torch.testing.assert_close(first.column_norms(), torch.ones(first.atoms, dtype=torch.float64))
        assert torch.equal(first.weight, again.weight)
        assert not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), state)


def test_dtype_and_default() -> None:
    assert dsc.DenseDictionary.random(3, 4, seed=0).dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert dsc.DenseDictionary.random(3, 4, seed=0).dtype == torch.float64
        assert dsc.DenseDictionary.dct(3, 4, dtype=torch.float32).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_cosine_atoms() -> None:
    square = dsc.DenseDictionary.dct(8, 8, dtype=torch.float64).matrix
    torch.testing.assert_close(square.T @ square, torch.eye(8, dtype=torch.float64))
    wide = dsc.DenseDictionary.dct(8, 16, dtype=torch.float64)
    assert wide.matrix[:, 1:].sum(0).abs().max() < 1e-12
    assert wide.matrix[:, 0].std() < 1e-12


def test_nonzeros_are_counted() -> None:
    kernels = dsc.ConvDictionary.random(atoms=20, channels=3, size=4, nonzeros=5, seed=0).kernels
    assert (kernels != 0).flatten(1).sum(1).tolist() == [5] * 20


@pytest.mark.parametrize(("d", "atoms"), [(8, 12), (10, 30)])
def test_low_coherence_frames_are_near_the_welch_bound(d: int, atoms: int) -> None:
    welch = math.sqrt((atoms - d) / (d * (atoms - 1)))
    low = dsc.DenseDictionary.low_coherence(d, atoms, seed=0, dtype=torch.float64).mutual_coherence()
    plain = dsc.DenseDictionary.random(d, atoms, seed=0, dtype=torch.float64).mutual_coherence()
    assert welch <= low < min(1.6 * welch, 0.75 * plain)
    assert dsc.DenseDictionary.low_coherence(8, 5, seed=0, dtype=torch.float64).mutual_coherence() < 1e-12


def test_low_coherence_kernels() -> None:
    settings_ = {"atoms": 8, "channels": 1, "size": 16, "stride": 8, "seed": 0, "dtype": torch.float64}
    start = time.process_time()
    low = dsc.ConvDictionary.low_coherence(**settings_)  # type: ignore[arg-type]
    assert time.process_time() - start < 5.0
    assert low.mutual_coherence() < 0.01
    assert dsc.ConvDictionary.random(**settings_).mutual_coherence() > 0.1  # type: ignore[arg-type]


def test_low_coherence_of_sparse_kernels() -> None:
    settings_ = {"atoms": 6, "channels": 8, "size": 3, "nonzeros": 4, "seed": 0}
    low = dsc.ConvDictionary.low_coherence(**settings_)  # type: ignore[arg-type]
    assert (low.kernels != 0).flatten(1).sum(1).tolist() == [4] * 6
    assert low.mutual_coherence() < 0.85 * dsc.ConvDictionary.random(**settings_).mutual_coherence()  # type: ignore[arg-type]


def test_kernels_are_made_where_gradients_are_off() -> None:
    build = {"atoms": 2, "channels": 1, "size": 4, "stride": 2, "seed": 0}
    plain = dsc.ConvDictionary.low_coherence(**build)  # type: ignore[arg-type]
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            assert torch.equal(dsc.ConvDictionary.low_coherence(**build).kernels, plain.kernels)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "stride"), [((3, 2, 5), (1,)), ((2, 1, 3, 4), (2, 1)), ((2, 2, 2, 2, 3), (1, 1, 2))])
def test_lag_correlations_are_the_gram_rows(shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
    kernels = normal(*shape, generator=rng(0))
    dictionary = dsc.ConvDictionary(kernels, stride=stride)
    expected = dictionary.gram_rows()
    middle = expected.shape[-1] // 2
    expected[range(shape[0]), range(shape[0]), middle] = 0.0
    torch.testing.assert_close(families.lag_correlations(kernels, stride), expected)
    other = normal(*shape, generator=rng(1))
    torch.testing.assert_close(
        families.cross_correlations(other, kernels, stride), dictionary.gram_rows(analysis=other)
    )


def test_deterministic_algorithms_are_enough() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        kernels = dsc.ConvDictionary.low_coherence(atoms=2, channels=1, size=4, stride=2, seed=0)
        drawn = dsc.sample(kernels, sparsity=3, size=(4, 4), batch=2, noise=0.1, seed=0)
        assert drawn.codes[0].shape == kernels.analyze(drawn.signal).shape
        assert kernels.operator_norm() > 0
    finally:
        torch.use_deterministic_algorithms(False)
