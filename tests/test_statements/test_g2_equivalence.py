"""G2: what is proved is what linear programs find; the sharp condition beats the sum; equality is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DSCWarning, ParameterError, ShapeError, UnsupportedError
from deep_sparse_coding.guarantees import equivalence
from references import explicit_matrix
from strategies import duplicate_matrix, gram_dictionary, normal, orthonormal, randint, rng, simplex, spike_hadamard
from test_statements.oracles_guarantees import null_space_constant

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64


def frame(seed: int, unequal: bool = False) -> dsc.DenseDictionary:
    """Return more atoms than rows at low to high coherence, of equal or unequal norms."""
    g = rng(seed)
    d, extra = randint(4, 7, g), randint(1, 2, g)
    spread = 10 ** (-2.5 * float(torch.rand((), generator=g, dtype=F64)))
    tail = torch.full((d, extra), d**-0.5, dtype=F64) * torch.randint(0, 2, (d, extra), generator=g).mul(2).sub(1)
    matrix = torch.cat([torch.eye(d, dtype=F64), tail], 1)
    matrix = matrix + spread * normal(*matrix.shape, generator=g)
    matrix = matrix / torch.linalg.vector_norm(matrix, dim=0)
    if unequal:
        matrix = matrix * (0.7 + 0.6 * torch.rand(matrix.shape[1], generator=g, dtype=F64))
    return dsc.DenseDictionary(matrix)


def worst_constant(dictionary: dsc.DenseDictionary, s: int) -> float:
    matrix = dictionary.matrix.detach().double().numpy()
    supports = itertools.combinations(range(matrix.shape[1]), s)
    return max(null_space_constant(matrix, support) for support in supports)


@pytest.mark.parametrize("unequal", [False, True])
def test_what_is_proved_is_what_linear_programs_find(unequal: bool) -> None:
    proved = refused = 0
    for seed in range(60):
        dictionary = frame(seed, unequal)
        for s in (1, 2):
            if equivalence(dictionary, s).proved:
                proved += 1
                assert worst_constant(dictionary, s) < 1
            else:
                refused += 1
    assert proved > 20
    assert refused > 20


@settings(max_examples=40)
@given(seed=SEEDS)
def test_one_support(seed: int) -> None:
    dictionary = frame(seed, unequal=seed % 2 == 0)
    matrix = dictionary.matrix.detach().numpy()
    for size in (1, 2, 3):
        chosen = torch.randperm(dictionary.atoms, generator=rng(seed + size))[:size]
        code = torch.zeros(dictionary.atoms, dtype=F64)
        code[chosen] = normal(size, generator=rng(seed))
        guarantee = equivalence(dictionary, supports=code)
        assert equivalence(dictionary, supports=code != 0).proved == guarantee.proved
        if guarantee.proved:
            assert null_space_constant(matrix, chosen.tolist()) < 1
        # Tropp's condition is that of every sign pattern at once: never below the null space's own number.
        recovery = guarantee.conditions[-1].value
        assert recovery >= null_space_constant(matrix, chosen.tolist()) - 1e-9


def test_the_exact_recovery_number_is_the_pseudoinverse() -> None:
    dictionary = spike_hadamard(8)
    mask = torch.zeros(16, dtype=torch.bool)
    mask[[0, 3, 9]] = True
    matrix = dictionary.matrix.detach().numpy()
    expected = np.abs(np.linalg.pinv(matrix[:, mask.numpy()]) @ matrix[:, ~mask.numpy()]).sum(0).max()
    condition = equivalence(dictionary, supports=mask).conditions[-1]
    assert condition.value == pytest.approx(expected, rel=1e-12)
    assert 0 < condition.slack < 1e-12


@pytest.mark.parametrize("s", [1, 2, 3, 5])
def test_a_simplex_is_proved_up_to_equality_and_refused_there(s: int) -> None:
    limit = 1 / (2 * s - 1)
    below = simplex(2 * s, limit * (1 - 1e-6))
    assert equivalence(below, s).proved
    if s > 1:
        at_equality = simplex(2 * s, limit)
        assert not equivalence(at_equality, s).proved
        assert null_space_constant(at_equality.matrix.detach().numpy(), range(s)) >= 1 - 1e-6  # and rightly so
        assert equivalence(at_equality, s - 1).proved


def test_two_close_atoms_in_a_good_frame_are_proved_by_the_sharp_condition_alone() -> None:
    gram = torch.eye(8, dtype=F64)
    gram[0, 1] = gram[1, 0] = 0.8
    guarantee = equivalence(gram_dictionary(gram), 2)
    assert guarantee.proved
    sharp, summed, coherence = guarantee.conditions
    assert (sharp.name, summed.name) == ("μ_1(3)", "μ_1(1) + μ_1(2)")
    assert sharp.holds
    assert not summed.holds
    assert not coherence.holds
    assert "tried layer 1: μ_1(1) + μ_1(2) = 1.6 ≥ 1" in str(guarantee)


def test_a_duplicate_atom_is_never_proved() -> None:
    with pytest.warns(DSCWarning):
        dictionary = dsc.DenseDictionary(duplicate_matrix(8, 10, 0))
    assert not equivalence(dictionary, 1).proved
    for atom in (0, 9):
        mask = torch.zeros(10, dtype=torch.bool)
        mask[atom] = True
        assert not equivalence(dictionary, supports=mask).proved
    both = torch.zeros(10, dtype=torch.bool)
    both[[0, 9]] = True
    assert not equivalence(dictionary, supports=both).proved


def test_a_short_atom_that_others_replace_is_refused() -> None:
    # In ℓ1 a short atom is dear: three unit atoms replace it at a third of its price, whatever the coherence.
    matrix = torch.cat([torch.eye(3, dtype=F64), torch.full((3, 1), 0.1, dtype=F64)], 1)
    assert equivalence(dsc.DenseDictionary(matrix, normalize=True), 1).proved
    short = dsc.DenseDictionary(matrix)
    assert not equivalence(short, 1).proved
    assert null_space_constant(matrix.numpy(), [3]) > 1
    assert equivalence(short, supports=torch.tensor([1.0, 0, 0, 0], dtype=F64)).proved


def test_float32_atoms_count_as_unit_up_to_their_rounding() -> None:
    dictionary = dsc.DenseDictionary(spike_hadamard(16).matrix.detach().float())
    guarantee = equivalence(dictionary, 2)
    assert guarantee.proved
    assert guarantee.conditions[0].value == pytest.approx(0.75, abs=1e-6)


@settings(max_examples=30)
@given(seed=SEEDS)
def test_convolution_of_one_non_zero_per_stripe(seed: int) -> None:
    g = rng(seed)
    kernels = 0.2 * normal(2, 1, 3, generator=g)
    kernels[0, 0, 0] += 1
    kernels[1, 0, 1] += 1
    dictionary = dsc.ConvDictionary(kernels, stride=1 + seed % 2, normalize=True)
    guarantee = equivalence(dictionary, 1)
    assert [c.name for c in guarantee.conditions] == ["μ_1(0) + μ_1(1)", "1·μ"]
    if guarantee.proved:
        matrix = explicit_matrix(dictionary, (7,)).numpy()
        step = 2 * dictionary.lags[0] + 1
        supports = ([a * 7 + p for p in range(0, 7, step)] for a in range(2))
        assert max(null_space_constant(matrix, support) for support in supports) < 1


def test_every_layer_must_hold() -> None:
    cascade = dsc.Cascade([spike_hadamard(8), orthonormal(16, 0)])
    guarantee = equivalence(cascade, (2, 5))
    assert not guarantee.proved
    assert {c.layer for c in guarantee.decisive} == {1}
    assert equivalence(cascade, (1, 5)).proved
    first, second = torch.zeros(16, dtype=F64), torch.ones(16, dtype=F64)
    first[[0, 9]] = 1.0
    guarantee = equivalence(cascade, supports=(first, second))
    assert guarantee.proved
    assert "given supports, 2 non-zeros in layer 1, 16 in layer 2" in guarantee.statement


def test_bad_input_is_refused_in_words() -> None:
    dictionary = orthonormal(4, 0)
    with pytest.raises(ParameterError, match="neither sparsity nor supports is given"):
        equivalence(dictionary)
    with pytest.raises(ShapeError, match=r"supports\[0\] is \(3,\); expected a tensor of shape \(4,\)"):
        equivalence(dictionary, supports=torch.ones(3))
    with pytest.raises(ParameterError, match="is empty"):
        equivalence(dictionary, supports=torch.zeros(4))
    with pytest.raises(ParameterError, match="is 1 but its support has 4 atoms"):
        equivalence(dictionary, 1, supports=torch.ones(4))
    conv = dsc.ConvDictionary.random(atoms=2, channels=1, size=3, seed=0)
    with pytest.raises(UnsupportedError, match="one support are offered for dense"):
        equivalence(conv, supports=torch.ones(2))
