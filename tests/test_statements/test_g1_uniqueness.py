"""G1: what is proved is true of every support; the bound is nearly attained; at equality it is refused."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DictionaryError, DSCWarning, ParameterError
from deep_sparse_coding.guarantees import Guarantee, uniqueness
from references import explicit_matrix
from strategies import (
    duplicate_matrix,
    equiangular,
    gram_dictionary,
    normal,
    orthonormal,
    randint,
    rng,
    simplex,
    spike_hadamard,
)
from test_statements.oracles_guarantees import has_two_nonnegative_codes, weakest_support

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64


def perturbed_basis(seed: int, largest: int = 9) -> dsc.DenseDictionary:
    """Return a few more atoms than rows, or fewer, at small to large coherence, of any norms."""
    g = rng(seed)
    d, extra = randint(4, largest, g), randint(-2, 2, g)
    spread = 10 ** (-2 * float(torch.rand((), generator=g, dtype=F64)))
    basis = torch.eye(d, dtype=F64)[:, : d + min(extra, 0)]
    basis = torch.cat([basis, normal(d, max(extra, 0), generator=g)], 1)
    matrix = basis + spread * normal(*basis.shape, generator=g)
    return dsc.DenseDictionary(matrix * (0.5 + torch.rand(matrix.shape[1], generator=g, dtype=F64)))


def unit(dictionary: dsc.DenseDictionary) -> np.ndarray:
    matrix = dictionary.matrix.detach().double().numpy()
    return matrix / np.linalg.norm(matrix, axis=0)


def two_groups(kappa: int, c: float) -> dsc.DenseDictionary:
    across = torch.full((kappa, kappa), c, dtype=F64)
    eye = torch.eye(kappa, dtype=F64)
    return gram_dictionary(torch.cat([torch.cat([eye, across], 1), torch.cat([across, eye], 1)]))


def test_what_is_proved_holds_for_every_support() -> None:
    proved = 0
    for seed in range(1500):
        dictionary = perturbed_basis(seed)
        for kappa in (1, 2, 3):
            guarantee = uniqueness(dictionary, kappa)
            if guarantee.proved:
                proved += 1
                # Gershgorin: the proof is quantitative.
                margin = 1 - dictionary.babel(2 * kappa - 1)
                assert weakest_support(unit(dictionary), 2 * kappa) >= margin - 1e-12 > 0
    assert proved > 1500


@settings(max_examples=40)
@given(seed=SEEDS)
def test_rivals_of_a_solution_at_hand_are_excluded(seed: int) -> None:
    dictionary = perturbed_basis(seed)
    for s, kappa in itertools.product((1, 2, 3), repeat=2):
        if uniqueness(dictionary, s, rivals=kappa).proved:
            assert weakest_support(unit(dictionary), s + kappa) > 0


@settings(max_examples=25)
@given(seed=SEEDS)
def test_non_negative_codes_have_no_non_negative_rival(seed: int) -> None:
    dictionary = perturbed_basis(seed, largest=5)
    for s, kappa in ((1, 1), (2, 2), (1, 2)):
        guarantee = uniqueness(dictionary, s, nonnegative=True, rivals=kappa)
        assert guarantee.proved or not uniqueness(dictionary, s, rivals=kappa).proved
        if guarantee.proved:
            assert not has_two_nonnegative_codes(unit(dictionary), s, kappa)


@pytest.mark.parametrize("kappa", [1, 2, 3, 5, 8])
def test_a_simplex_is_proved_up_to_equality_and_refused_there(kappa: int) -> None:
    limit = 1 / (2 * kappa - 1)
    guarantee = uniqueness(simplex(2 * kappa, limit * (1 - 1e-6)), kappa)
    assert guarantee.proved
    assert guarantee.decisive[0].margin == pytest.approx(1e-6, rel=1e-3)
    assert guarantee.bounds["largest κ proved for layer 1 alone"] >= kappa
    if kappa == 1:
        return  # two antipodal atoms: one row, and a warning
    at_equality = simplex(2 * kappa, limit)
    ones = torch.ones(2 * kappa, dtype=F64)
    assert float(at_equality.synthesize(ones).norm()) < 1e-7  # two codes of one signal: κ atoms, and minus the others
    assert not uniqueness(at_equality, kappa).proved
    assert uniqueness(at_equality, kappa - 1).proved


def test_an_instance_within_rounding_of_equality_says_so() -> None:
    guarantee = uniqueness(simplex(4, (1 - 1e-16) / 3), 2)
    assert not guarantee.proved
    assert "by more than its rounding error" in str(guarantee) or "≥ 1, too large by" in str(guarantee)


@pytest.mark.parametrize("kappa", [1, 2, 3, 6])
def test_two_groups_of_non_negative_codes(kappa: int) -> None:
    below = two_groups(kappa, (1 - 1e-6) / kappa)
    assert uniqueness(below, kappa, nonnegative=True).proved
    if kappa > 1:
        alike = equiangular(2 * kappa, (1 - 1e-6) / kappa)
        assert uniqueness(alike, kappa, nonnegative=True).proved
        assert not uniqueness(alike, kappa).proved  # signed codes: twice the sum
        at_equality = two_groups(kappa, 1 / kappa)
        halves = torch.cat([torch.ones(kappa), -torch.ones(kappa)]).double()
        assert float(at_equality.synthesize(halves).norm()) < 1e-7
        assert not uniqueness(at_equality, kappa, nonnegative=True).proved


def test_spike_hadamard_matches_the_coherence_form() -> None:
    dictionary = spike_hadamard(16)  # μ = ¼: κ < ½(1 + 4) = 2.5
    assert uniqueness(dictionary, 2).proved
    guarantee = uniqueness(dictionary, 3)
    assert not guarantee
    assert [c.name for c in guarantee.conditions] == ["μ_1(5)", "5·μ"]
    assert "not proved" in str(guarantee)
    assert "missing layer 1: μ_1(5) = 1.25 ≥ 1, too large by 0.25" in str(guarantee)
    assert "false" not in str(guarantee).lower()


def test_a_duplicate_atom_is_never_proved() -> None:
    for seed in range(50):
        with pytest.warns(DSCWarning, match="same up to scale"):
            dictionary = dsc.DenseDictionary(duplicate_matrix(8, 10, seed, scale=-2.0 if seed % 2 else 0.5))
        assert not uniqueness(dictionary, 1)
        assert not uniqueness(dictionary, 1, nonnegative=True) or seed % 2  # opposite atoms are told apart by sign


@settings(max_examples=25)
@given(seed=SEEDS)
def test_stripes_of_a_convolution(seed: int) -> None:
    g = rng(seed)
    boundary = "circular" if seed % 2 else "valid"
    kernels = torch.zeros(1 + seed % 2, 1, 3, dtype=F64)
    kernels[:, 0, :] = 0.15 * normal(len(kernels), 3, generator=g)
    kernels[0, 0, 0] += 1.0
    kernels[-1, 0, 2] += 1.0 if len(kernels) > 1 else 0.0
    dictionary = dsc.ConvDictionary(kernels, stride=1 + seed % 3, boundary=boundary, normalize=True)
    guarantee = uniqueness(dictionary, 1)
    if guarantee.proved:
        positions = -(-5 // dictionary.stride[0]) + 2
        matrix = explicit_matrix(dictionary, (positions,)).numpy()
        # All codes with at most two non-zeros per stripe: full columns at positions that are no neighbors.
        step = 2 * dictionary.lags[0] + 1
        assert weakest_support(matrix, 2) > 0
        spaced = [a * positions + p for a in range(dictionary.atoms) for p in range(0, positions - step + 1, step)]
        assert np.linalg.matrix_rank(matrix[:, spaced[: matrix.shape[0]]]) == len(spaced[: matrix.shape[0]])
    needs_size = any("circular boundary" in text for text in guarantee.hypotheses)
    assert needs_size == (boundary == "circular")


def test_a_layer_without_the_property_is_skipped_where_the_product_has_it() -> None:
    lower = torch.eye(4, dtype=F64)[:, [0, 0, 1, 2, 3]]
    with pytest.warns(DSCWarning, match="same up to scale"):
        first = dsc.DenseDictionary(lower)
    second = dsc.DenseDictionary(torch.eye(5, dtype=F64)[:, [1, 2, 3]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guarantee = uniqueness(dsc.Cascade([first, second]), (1, 1))
    assert guarantee.proved
    assert [c.name for c in guarantee.decisive] == ["D_1D_2: μ_1(1)"]
    assert "also" in str(guarantee) or "tried" in str(guarantee)
    third = dsc.Cascade([first, dsc.DenseDictionary(torch.eye(5, dtype=F64)[:, [0, 1]])])
    assert not uniqueness(third, 1).proved  # the product repeats a column


def test_a_product_with_a_zero_column_is_not_used() -> None:
    with pytest.warns(DSCWarning):
        first = dsc.DenseDictionary(torch.eye(3, dtype=F64)[:, [0, 0, 1]])
    second = dsc.DenseDictionary(torch.tensor([[1.0, 0], [-1.0, 0], [0, 1.0]], dtype=F64), normalize=True)
    guarantee = uniqueness(dsc.Cascade([first, second]), 1)
    assert not guarantee.proved
    assert "a product without zero columns is not available" in str(guarantee)


def test_convolutional_layers_are_skipped_with_wider_stripes() -> None:
    first = torch.zeros(2, 1, 2, dtype=F64)
    first[0, 0] = torch.tensor([1.0, 0.0])
    first[1, 0] = torch.tensor([1.0, 0.0])
    with pytest.warns(DSCWarning):
        lower = dsc.ConvDictionary(first, stride=2)
    second = torch.zeros(1, 2, 2, dtype=F64)
    second[0, 0, 0] = 1.0
    cascade = dsc.Cascade([lower, dsc.ConvDictionary(second)])
    guarantee = uniqueness(cascade, (1, 1))
    assert guarantee.proved
    # The product's kernel is (2 - 1)·2 + 2 = 4 long at stride 2: a stripe of 3 positions, as in layer 2 itself.
    assert guarantee.decisive[0].name == "D_1D_2: μ_1(1)"


def test_every_layer_counts() -> None:
    good, bad = orthonormal(6, 0), spike_hadamard(4)
    cascade = dsc.Cascade([dsc.DenseDictionary(normal(4, 8, generator=rng(1)), normalize=True), orthonormal(8, 1)])
    assert uniqueness(good, 3).proved
    assert not uniqueness(bad, 2).proved
    guarantee = uniqueness(cascade, (2, 2))
    assert not guarantee.proved
    assert {c.layer for c in guarantee.decisive} == {1}


def test_bad_input_is_refused_in_words() -> None:
    dictionary = orthonormal(4, 0)
    with pytest.raises(ParameterError, match=r"sparsity is 0; expected a whole number of at least 1"):
        uniqueness(dictionary, 0)
    with pytest.raises(ParameterError, match="expected one for each of the 1 layers"):
        uniqueness(dictionary, (1, 2))
    with pytest.raises(DictionaryError, match="expected a dictionary or a Cascade"):
        uniqueness(torch.eye(3), 1)  # type: ignore[arg-type]
    assert isinstance(uniqueness(dictionary, 1), Guarantee)
