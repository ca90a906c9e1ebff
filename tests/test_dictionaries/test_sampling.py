"""Samples: supports, amplitudes, exact layers, noise, determinism, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError, ShapeError
from references import brute_place_sparsity, brute_stripe_sparsity
from strategies import SEEDS, code_size, draw_cascade, draw_dictionary

PLENTY = 10**6


def _draw(seed: int, **settings: object) -> tuple[dsc.Cascade, dsc.Sample]:
    model = draw_cascade(seed)
    size = code_size(model.layers[-1], seed)
    sparsity = (*(PLENTY,) * (len(model) - 1), 2)
    return model, dsc.sample(model, sparsity=sparsity, size=size, batch=3, seed=seed, **settings)  # type: ignore[arg-type]


@given(seed=SEEDS)
@settings(max_examples=40)
def test_codes_make_each_other_exactly(seed: int) -> None:
    model, drawn = _draw(seed)
    for j, layer in enumerate(model.layers[1:], start=1):
        assert torch.equal(drawn.codes[j - 1], layer.synthesize(drawn.codes[j]))
    assert torch.equal(drawn.clean, model.layers[0].synthesize(drawn.codes[0]))
    assert torch.equal(drawn.signal, drawn.clean)
    assert drawn.noise_norms.tolist() == [0.0, 0.0, 0.0]


@given(seed=SEEDS)
@settings(max_examples=40)
def test_supports_amplitudes_and_counts(seed: int) -> None:
    model, drawn = _draw(seed, amplitude=3.0)
    deepest = drawn.codes[-1].flatten(1)
    assert (deepest != 0).sum(1).tolist() == [2, 2, 2]
    sizes = deepest[deepest != 0].abs()
    assert bool(((sizes >= 1.5) & (sizes <= 3.0)).all())
    assert drawn.amplitudes == tuple(float(x.abs().max()) for x in drawn.codes)
    for layer, x, count in zip(model.layers, drawn.codes, drawn.stripe_sparsity, strict=True):
        if isinstance(layer, dsc.ConvDictionary):
            assert count == max(brute_stripe_sparsity(layer, one) for one in x)
        else:
            assert count == int((x != 0).sum(1).max())
    assert len(drawn.place_sparsity) == len(model) - 1
    for layer, x, count in zip(model.layers[1:], drawn.codes, drawn.place_sparsity, strict=False):
        if isinstance(layer, dsc.ConvDictionary):
            assert count == max(brute_place_sparsity(layer, one) for one in x)


def test_amplitudes_fill_their_range_and_signs_are_both_drawn() -> None:
    dictionary = dsc.DenseDictionary.random(20, 40, seed=0, dtype=torch.float64)
    values = dsc.sample(dictionary, sparsity=20, batch=50, seed=0).codes[0]
    values = values[values != 0]
    assert 0.5 <= values.abs().min() < 0.51
    assert 0.99 < values.abs().max() <= 1.0
    assert 0.4 < (values > 0).double().mean() < 0.6
    positive = dsc.sample(dictionary, sparsity=20, batch=50, nonnegative=True, seed=0).codes[0]
    assert bool((positive >= 0).all())


@given(seed=SEEDS)
@settings(max_examples=20)
def test_noise_is_what_its_norm_says(seed: int) -> None:
    dictionary = draw_dictionary(seed)
    size = code_size(dictionary, seed)
    drawn = dsc.sample(dictionary, sparsity=1, size=size, batch=2, noise=0.1, seed=seed)
    torch.testing.assert_close((drawn.signal - drawn.clean).flatten(1).norm(dim=1), drawn.noise_norms)
    assert bool((drawn.noise_norms > 0).all())
    assert drawn.noise_norms.dtype == torch.float64
    assert len(drawn.codes) == 1
    assert drawn.place_sparsity == ()


def test_noise_has_the_standard_deviation_that_was_asked_for() -> None:
    dictionary = dsc.DenseDictionary.random(100, 100, seed=0, dtype=torch.float64)
    drawn = dsc.sample(dictionary, sparsity=3, batch=100, noise=0.2, seed=0)
    assert (drawn.signal - drawn.clean).std() == pytest.approx(0.2, rel=0.02)


def test_the_same_seed_gives_the_same_bits_and_the_global_generator_rests() -> None:
    model = draw_cascade(5)
    size = code_size(model.layers[-1], 5)
    arguments = {"sparsity": (*(PLENTY,) * (len(model) - 1), 2), "size": size, "batch": 2, "noise": 0.1}
    before = torch.get_rng_state()
    first, again, other = (dsc.sample(model, **arguments, seed=s) for s in (1, 1, 2))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.signal, again.signal)
    assert not torch.equal(first.signal, other.signal)
    torch.manual_seed(99)
    assert torch.equal(dsc.sample(model, **arguments, seed=1).signal, first.signal)  # type: ignore[arg-type]


def test_samples_are_frozen_and_in_the_model_s_dtype() -> None:
    drawn = dsc.sample(dsc.DenseDictionary.random(5, 8, seed=0), sparsity=2, seed=0)
    assert drawn.signal.dtype == drawn.codes[0].dtype == torch.float32
    assert drawn.signal.shape == (1, 5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        drawn.signal = torch.zeros(1)  # type: ignore[misc]


@pytest.mark.parametrize("conv", [False, True])
def test_empty_batch_and_empty_codes(conv: bool) -> None:
    model = draw_cascade(2, conv=conv)
    size = code_size(model.layers[-1], 2)
    empty = dsc.sample(model, sparsity=1, size=size, batch=0, seed=0)
    assert len(empty.signal) == 0
    assert empty.stripe_sparsity == (0,) * len(model)
    silent = dsc.sample(model, sparsity=0, size=size, batch=2, seed=0)
    assert not silent.signal.any()
    assert silent.amplitudes == (0.0,) * len(model)


def test_the_call_of_the_first_page() -> None:
    first = dsc.ConvDictionary.random(atoms=8, channels=3, size=7, stride=2, seed=0)
    model = dsc.Cascade([first, dsc.ConvDictionary.random(atoms=16, channels=8, size=5, nonzeros=4, seed=1)])
    drawn = dsc.sample(model, sparsity=(40, 6), size=(13, 13), batch=8, noise=0.01, amplitude=1.0, seed=0)
    assert drawn.signal.shape == (8, *model.layers[0].signal_shape(model.layers[1].signal_shape((13, 13))[1:]))
    assert int((drawn.codes[0] != 0).flatten(1).sum(1).max()) <= 24


# ---------------------------------------------------------------------- refusals

DENSE = dsc.DenseDictionary.random(5, 8, seed=0)
CONV = dsc.ConvDictionary.random(atoms=2, channels=1, size=3, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 9}, "sparsity of the deepest layer is 9; expected at most its 8 places"),
        ({"sparsity": -1}, "sparsity is -1; expected a whole number of at least 0"),
        ({"sparsity": 1.5}, "sparsity is 1.5; expected a whole number"),
        ({"sparsity": (1, 2)}, "sparsity has 2 entries; expected one for each of the 1 layers"),
        ({"sparsity": 1, "noise": -0.1}, "noise is -0.1; expected a finite number at least 0"),
        ({"sparsity": 1, "noise": float("nan")}, "noise is nan"),
        ({"sparsity": 1, "amplitude": 0}, "amplitude is 0.0; expected a finite number above 0"),
        ({"sparsity": 1, "amplitude": float("inf")}, "amplitude is inf"),
        ({"sparsity": 1, "amplitude": 1e39}, r"amplitude is 1e\+39; expected one that torch.float32 can hold"),
        ({"sparsity": 1, "amplitude": 1e-60}, "amplitude is 1e-60; expected one that torch.float32 can hold"),
        ({"sparsity": 1, "batch": -1}, "batch is -1; expected a whole number of at least 0"),
        ({"sparsity": 1, "seed": -1}, "seed is -1"),
        ({"sparsity": 1, "seed": 1 << 64}, "seed is 18446744073709551616; expected a number below 2⁶⁴"),
        ({"sparsity": 1, "seed": None}, "seed is None; expected a number"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        dsc.sample(DENSE, **{"seed": 0, **settings})  # type: ignore[arg-type]


def test_one_number_is_the_size_of_all_axes() -> None:
    one, both = (dsc.sample(CONV, sparsity=2, size=size, seed=0) for size in (4, (4, 4)))
    assert torch.equal(one.signal, both.signal)
    with pytest.raises(ShapeError, match=r"size is \(4,\); expected none: a dense dictionary"):
        dsc.sample(DENSE, sparsity=1, size=4, seed=0)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"size is \(3,\); expected none: a dense dictionary"):
        dsc.sample(DENSE, sparsity=1, size=(3,), seed=0)
    with pytest.raises(ParameterError, match=r"size has 0 entries, \(\); expected one, or one for each of 2 axes"):
        dsc.sample(CONV, sparsity=1, seed=0)
    with pytest.raises(ParameterError, match="size is 0"):
        dsc.sample(CONV, sparsity=1, size=(0, 3), seed=0)
    ring = dsc.ConvDictionary(CONV.kernels, boundary="circular")
    with pytest.raises(ShapeError, match="smaller than the kernel, 3"):
        dsc.sample(ring, sparsity=1, size=(2, 4), seed=0)


def test_layers_denser_than_allowed_say_how_many_there_were() -> None:
    model = draw_cascade(4, conv=False, depth=2)
    with pytest.raises(
        ParameterError, match=r"the code of layer 1 came out with \d+ non-zeros, more than sparsity = 1"
    ):
        dsc.sample(model, sparsity=(1, 2), seed=0)


def test_a_large_seed_is_taken_as_it_is() -> None:
    one, two = (dsc.sample(DENSE, sparsity=3, seed=2**63 + i).signal for i in (0, 1))
    assert not torch.equal(one, two)


def test_what_is_no_model() -> None:
    with pytest.raises(dsc.errors.DictionaryError, match="model is a Linear; expected a dictionary or a Cascade"):
        dsc.sample(torch.nn.Linear(2, 2), sparsity=1, seed=0)  # type: ignore[arg-type]
