"""Counting non-zeros: stripes and places against loops over positions, and the covering bound."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.dictionaries.stripes import covering_bound
from references import brute_place_sparsity, brute_stripe_sparsity
from strategies import SEEDS, draw_codes, draw_conv, draw_dense, draw_signal, normal, randint, rng


@given(seed=SEEDS)
@settings(max_examples=60)
def test_stripes_by_brute_force(seed: int) -> None:
    dictionary = draw_conv(seed)
    codes = draw_codes(dictionary, seed, batch=(2, 2), density=0.3)
    counts = dsc.stripe_sparsity(dictionary, codes)
    assert counts.dtype == torch.int64
    assert counts.shape == (2, 2)
    for i in range(2):
        for j in range(2):
            assert int(counts[i, j]) == brute_stripe_sparsity(dictionary, codes[i, j])


@given(seed=SEEDS)
@settings(max_examples=60)
def test_places_by_brute_force(seed: int) -> None:
    dictionary = draw_conv(seed)
    below = draw_signal(dictionary, seed, batch=(3,))
    below = below * (torch.rand(below.shape, generator=rng(seed), dtype=torch.float64) < 0.3)
    counts = dsc.place_sparsity(dictionary, below)
    assert counts.tolist() == [brute_place_sparsity(dictionary, one) for one in below]


@given(seed=SEEDS)
@settings(max_examples=20)
def test_dense_codes_are_one_stripe_and_one_place(seed: int) -> None:
    dictionary = draw_dense(seed)
    codes = draw_codes(dictionary, seed, batch=(3,), density=0.4)
    assert dsc.stripe_sparsity(dictionary, codes).tolist() == (codes != 0).sum(1).tolist()
    below = draw_signal(dictionary, seed)
    assert int(dsc.place_sparsity(dictionary, below)) == dictionary.channels


@given(seed=SEEDS)
@settings(max_examples=120)
def test_the_covering_bound_holds_for_every_pair_of_boundaries(seed: int) -> None:
    g = rng(seed)
    below = draw_conv(seed, axes=1 + seed % 2)
    above = draw_conv(seed + 1, axes=1 + seed % 2, channels=below.atoms)
    positions = [randint(1, 3, g) for _ in range(above.axes)]
    for axis, (k, q) in enumerate(zip(above.kernel_size, above.stride, strict=True)):
        positions[axis] = max(positions[axis], -(-k // q))
    shape = above.signal_shape(tuple(positions))
    if below.boundary == "circular" and any(
        n * q < k for n, q, k in zip(shape[1:], below.stride, below.kernel_size, strict=True)
    ):
        return
    codes = normal(*shape, generator=g) * (torch.rand(shape, generator=g, dtype=torch.float64) < 0.4)
    stripes = int(dsc.stripe_sparsity(below, codes))
    assert int(dsc.place_sparsity(above, codes)) <= covering_bound(below, above, stripes)


def test_the_covering_bound_is_reached() -> None:
    below = dsc.ConvDictionary(torch.ones(1, 1, 2, dtype=torch.float64))  # stripes of 3 positions
    above = dsc.ConvDictionary(torch.ones(1, 1, 4, dtype=torch.float64))  # places of 4
    codes = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    assert int(dsc.stripe_sparsity(below, codes)) == 1
    assert int(dsc.place_sparsity(above, codes)) == 2 == covering_bound(below, above, 1)
    assert covering_bound(below, above, 100) == 4  # a place has no more entries than that


def test_a_place_that_wraps_around_an_open_grid_needs_one_stripe_more() -> None:
    below = dsc.ConvDictionary(torch.ones(1, 1, 2, dtype=torch.float64))
    above = dsc.ConvDictionary(torch.ones(1, 1, 2, dtype=torch.float64), boundary="circular")
    codes = torch.zeros(1, 9, dtype=torch.float64)
    codes[0, 0] = codes[0, -1] = 1.0
    assert int(dsc.stripe_sparsity(below, codes)) == 1
    assert int(dsc.place_sparsity(above, codes)) == 2 <= covering_bound(below, above, 1)


def test_dense_covering_is_the_count_itself() -> None:
    below, above = dsc.DenseDictionary.random(4, 6, seed=0), dsc.DenseDictionary.random(6, 8, seed=1)
    assert covering_bound(below, above, 3) == 3


def test_empty_batch_and_bad_codes() -> None:
    dictionary = draw_conv(3, axes=2, boundary="valid")
    empty = draw_codes(dictionary, 0, batch=(0,))
    assert dsc.stripe_sparsity(dictionary, empty).shape == (0,)
    assert dsc.place_sparsity(dictionary, draw_signal(dictionary, 0, batch=(0,))).shape == (0,)
    with pytest.raises(dsc.errors.ShapeError, match=r"codes has shape \(3, 3\); expected \(\*batch, "):
        dsc.stripe_sparsity(dictionary, torch.zeros(3, 3, dtype=torch.float64))


def test_a_cascade_is_asked_layer_by_layer() -> None:
    model = dsc.Cascade([dsc.DenseDictionary.random(4, 3, seed=0)])
    for count in (dsc.stripe_sparsity, dsc.place_sparsity):
        with pytest.raises(dsc.errors.DictionaryError, match=r"is a Cascade; expected a dictionary: .*\.layers\[j\]"):
            count(model, torch.zeros(4))  # type: ignore[arg-type]


def test_negative_zero_and_nan_entries() -> None:
    dictionary = dsc.DenseDictionary.random(4, 3, seed=0, dtype=torch.float64)
    codes = torch.tensor([-0.0, float("nan"), 1e-320], dtype=torch.float64)
    assert int(dsc.stripe_sparsity(dictionary, codes)) == 2
