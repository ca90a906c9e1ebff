"""Dictionaries as modules: state, dtype, copies, pickles, and numbers that follow the atoms when these change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from operators import Operator, each_operator
from references import brute_babel, explicit_matrix
from strategies import SEEDS, draw_cascade, draw_codes, draw_dense, draw_dictionary, normal, rng


@given(seed=SEEDS)
@settings(max_examples=15)
def test_copies_and_pickles_are_equal_and_apart(seed: int) -> None:
    dictionary = draw_dictionary(seed)
    coherence, norm = dictionary.mutual_coherence(), dictionary.operator_norm()
    for other in (copy.deepcopy(dictionary), pickle.loads(pickle.dumps(dictionary))):
        assert repr(other) == repr(dictionary)
        assert torch.equal(other.weight, dictionary.weight)
        assert other.mutual_coherence() == coherence
        assert float(other.operator_norm()) == float(norm)
        codes = draw_codes(dictionary, seed)
        assert torch.equal(other.synthesize(codes), dictionary.synthesize(codes))
        other.weight.mul_(2.0)
        assert float(other.operator_norm()) == pytest.approx(2 * norm)
        assert float(dictionary.operator_norm()) == float(norm)


@pytest.mark.parametrize("conv", [False, True])
def test_cascades_are_copied_pickled_and_restored(conv: bool) -> None:
    model = draw_cascade(3, conv=conv)
    str(model)  # fills what is cached
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert str(other) == str(model)
        assert other.layers[0].weight.data_ptr() != model.layers[0].weight.data_ptr()
    blank = copy.deepcopy(model)
    for layer in blank.layers:
        layer.weight.fill_(1.0)
    blank.load_state_dict(model.state_dict())
    assert str(blank) == str(model)


@each_operator(same=True)
def test_state_dict_round_trip_and_dtype(operator: Operator) -> None:
    dictionary = operator.build()
    assert len(dictionary.state_dict()) == 1
    other = dictionary.with_weight(torch.ones_like(dictionary.weight))
    other.load_state_dict(dictionary.state_dict())
    assert torch.equal(other.weight, dictionary.weight)
    assert other.operator_norm() == dictionary.operator_norm()
    if dictionary.boundary != "same":
        assert other.mutual_coherence() == dictionary.mutual_coherence()
    single = copy.deepcopy(dictionary).float()
    assert single.dtype == torch.float32
    assert torch.equal(single.double().weight, dictionary.weight.float().double())
    assert single.to(torch.float64) is single


@each_operator(same=True)
def test_cast_keeps_everything_but_the_dtype(operator: Operator) -> None:
    dictionary = operator.build()
    assert dictionary.cast(torch.float64) is dictionary
    single = dictionary.cast(torch.float32)
    assert dictionary.cast(torch.float32) is single
    assert single.dtype == torch.float32
    assert repr(single) == repr(dictionary)
    dictionary.weight.mul_(2.0)
    assert torch.equal(dictionary.cast(torch.float32).weight, dictionary.weight.float())


# ---------------------------------------------------------------------- numbers follow the atoms

REPLACEMENT = normal(5, 8, generator=rng(99))


def _optimizer_step(dictionary: dsc.DenseDictionary) -> None:
    dictionary.requires_grad_(True)
    optimizer = torch.optim.SGD(dictionary.parameters(), lr=1.0)
    dictionary.weight.grad = dictionary.weight.detach() - REPLACEMENT
    optimizer.step()


def _assign_data_twice(dictionary: dsc.DenseDictionary) -> None:
    # The memory of the first is free again when the second is made: an address proves nothing.
    dictionary.weight.data = torch.ones_like(REPLACEMENT)
    dictionary.weight.data = REPLACEMENT.clone()


def _to_float_and_back(dictionary: dsc.DenseDictionary) -> None:
    dictionary.float()
    dictionary.mutual_coherence()
    dictionary.double()
    dictionary.weight.copy_(REPLACEMENT)


CHANGES: dict[str, Callable[[dsc.DenseDictionary], object]] = {
    "copy_": lambda d: d.weight.copy_(REPLACEMENT),
    "index": lambda d: d.weight.__setitem__(slice(None), REPLACEMENT),
    "data =": lambda d: setattr(d.weight, "data", REPLACEMENT.clone()),
    "data = twice": _assign_data_twice,
    "data.copy_": lambda d: d.weight.data.copy_(REPLACEMENT),
    "detach().copy_": lambda d: d.weight.detach().copy_(REPLACEMENT),
    "numpy": lambda d: d.weight.detach().numpy().__setitem__(slice(None), REPLACEMENT.numpy()),
    "load_state_dict": lambda d: d.load_state_dict({"matrix": REPLACEMENT}),
    "load_state_dict assign": lambda d: d.load_state_dict({"matrix": REPLACEMENT}, assign=True),
    "new parameter": lambda d: setattr(d, "matrix", torch.nn.Parameter(REPLACEMENT.clone())),
    "optimizer": _optimizer_step,
    "float and back": _to_float_and_back,
}


@pytest.mark.parametrize("change", CHANGES)
def test_coherence_norm_and_casts_are_found_anew(change: str) -> None:
    dictionary = dsc.DenseDictionary(normal(5, 8, generator=rng(0)))
    for _ in range(2):
        fill = (
            dictionary.mutual_coherence(),
            dictionary.babel(3),
            dictionary.operator_norm(),
            dictionary.cast(torch.float32),
        )
        assert len(fill) == 4
    CHANGES[change](dictionary)
    torch.testing.assert_close(dictionary.weight.detach(), REPLACEMENT)
    assert dictionary.mutual_coherence() == pytest.approx(brute_babel(REPLACEMENT, 1), abs=1e-12)
    assert dictionary.babel(3) == pytest.approx(brute_babel(REPLACEMENT, 3), abs=1e-12)
    assert float(dictionary.operator_norm()) == pytest.approx(float(torch.linalg.matrix_norm(REPLACEMENT, 2)))
    torch.testing.assert_close(dictionary.cast(torch.float32).weight.detach(), REPLACEMENT.float())


def test_a_change_in_one_entry_of_a_kernel_is_seen() -> None:
    dictionary = dsc.ConvDictionary.random(
        atoms=3, channels=2, size=3, boundary="circular", seed=0, dtype=torch.float64
    )
    before = dictionary.operator_norm((5, 5)), dictionary.mutual_coherence()
    dictionary.weight.data[2, 1, 0, 0] += 1e-3
    matrix = explicit_matrix(dictionary, (5, 5))
    assert float(dictionary.operator_norm((5, 5))) == pytest.approx(
        float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-12
    )
    assert dictionary.mutual_coherence() == pytest.approx(brute_babel(matrix, 1), abs=1e-12)
    assert (float(dictionary.operator_norm((5, 5))), dictionary.mutual_coherence()) != before


def test_numbers_are_computed_once_while_the_atoms_rest() -> None:
    dictionary = draw_dense(0)
    calls = []
    for _ in range(3):
        assert dictionary.cached("key", lambda: calls.append(None) or 7) == 7
    assert len(calls) == 1
    dictionary.weight.data.mul_(2)
    dictionary.cached("key", lambda: calls.append(None))
    assert len(calls) == 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: dsc.DenseDictionary.random(4, 6, seed=0),
        lambda: dsc.ConvDictionary.random(atoms=6, channels=1, size=2, seed=0),
    ],
)
def test_atoms_that_went_bad_are_named_not_averaged_away(build: Callable[[], dsc.Dictionary]) -> None:
    dictionary = build()
    assert dictionary.mutual_coherence() < dictionary.operator_norm()
    with torch.no_grad():
        dictionary.weight.view(-1)[0] = float("nan")
    for question in (dictionary.mutual_coherence, lambda: dictionary.babel(3), dictionary.operator_norm):
        with pytest.raises(dsc.errors.DictionaryError, match="the dictionary has 1 entries that are not finite"):
            question()
    with torch.no_grad():
        dictionary.weight.zero_()
    with pytest.raises(dsc.errors.DictionaryError, match="atom 0 of 6 is zero"):
        dictionary.mutual_coherence()
