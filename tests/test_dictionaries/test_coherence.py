"""Coherence and Babel functions against brute force on explicit matrices, and where their values are known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.dictionaries import coherence
from operators import Operator, each_operator
from references import brute_babel, brute_one_sided_babel, exhaustive_babel, explicit_matrix
from strategies import (
    SEEDS,
    alias_free_size,
    disjoint_kernels,
    draw_conv,
    draw_dense,
    equiangular,
    nearly_parallel,
    orthonormal,
    rank_deficient,
    simplex,
    smooth_kernel,
    spike_hadamard,
    wide_range,
)


def _large_enough(dictionary: dsc.Dictionary) -> tuple[int, ...]:
    # 4L + 1 positions hold an atom with all its neighbors, whatever the boundary.
    if not isinstance(dictionary, dsc.ConvDictionary):
        return ()
    return tuple(n + 2 * lag for n, lag in zip(alias_free_size(dictionary), dictionary.lags, strict=True))


@each_operator(same=False)
def test_babel_and_coherence_are_those_of_the_explicit_matrix(operator: Operator) -> None:
    dictionary = operator.build()
    matrix = explicit_matrix(dictionary, _large_enough(dictionary))
    assert dictionary.mutual_coherence() == pytest.approx(brute_babel(matrix, 1), abs=1e-12)
    for s in (0, 1, 2, 3, 7, 1000):
        assert dictionary.babel(s) == pytest.approx(brute_babel(matrix, s), abs=1e-11)


@given(seed=SEEDS)
@settings(max_examples=60)
def test_babel_of_random_dictionaries(seed: int) -> None:
    dictionary = draw_dense(seed) if seed % 2 else draw_conv(seed, axes=1)
    matrix = explicit_matrix(dictionary, _large_enough(dictionary))
    for s in (1, 2, 4):
        assert dictionary.babel(s) == pytest.approx(brute_babel(matrix, s), abs=1e-11)
        negative, positive = s - 1, s
        expected = brute_one_sided_babel(matrix, negative, positive)
        assert coherence.one_sided_babel(dictionary, negative, positive) == pytest.approx(expected, abs=1e-11)


@given(seed=SEEDS)
@settings(max_examples=15)
def test_the_reference_is_itself_a_maximum_over_all_sets(seed: int) -> None:
    matrix = draw_dense(seed, max_d=4).matrix.detach()
    for s in (1, 2, 3):
        assert brute_babel(matrix, s) == pytest.approx(exhaustive_babel(matrix, s), abs=1e-12)


@given(seed=SEEDS)
@settings(max_examples=40)
def test_babel_is_monotone_subadditive_and_below_s_times_coherence(seed: int) -> None:
    dictionary = draw_dense(seed) if seed % 2 else draw_conv(seed)
    values = [dictionary.babel(s) for s in range(7)]
    assert values[0] == 0.0
    for s in range(1, 7):
        assert values[s] >= values[s - 1] - 1e-12
        assert values[s] <= s * values[1] + 1e-12
        for t in range(1, 7 - s):
            assert values[s + t] <= values[s] + values[t] + 1e-12


@given(seed=SEEDS)
@settings(max_examples=20)
def test_babel_does_not_see_scale_sign_or_order(seed: int) -> None:
    dictionary = draw_dense(seed)
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(dictionary.atoms, generator=g)
    factors = (torch.rand(dictionary.atoms, generator=g, dtype=torch.float64) + 0.1) * (-1.0) ** torch.arange(
        dictionary.atoms
    )
    changed = dsc.DenseDictionary(dictionary.matrix[:, order] * factors)
    assert changed.babel(3) == pytest.approx(dictionary.babel(3), abs=1e-12)


@pytest.mark.parametrize("c", [0.05, 0.2, 0.25])
def test_simplex_frames(c: float) -> None:
    dictionary = simplex(5, c)
    assert dictionary.mutual_coherence() == pytest.approx(c, abs=1e-12)
    assert dictionary.babel(3) == pytest.approx(3 * c, abs=1e-12)
    # All correlations are negative: the positive part counts for nothing.
    assert coherence.one_sided_babel(dictionary, 2, 3) == pytest.approx(2 * c, abs=1e-12)
    assert coherence.one_sided_babel(dictionary, 0, 4) == pytest.approx(0.0, abs=1e-12)


def test_at_equality_the_simplex_adds_up_to_zero() -> None:
    dictionary = simplex(5, 0.25)
    assert dictionary.channels == 4
    assert dictionary.synthesize(torch.ones(5, dtype=torch.float64)).abs().max() < 1e-12


def test_other_known_values() -> None:
    assert equiangular(6, 0.3).babel(4) == pytest.approx(1.2, abs=1e-12)
    assert coherence.one_sided_babel(equiangular(6, 0.3), 3, 2) == pytest.approx(0.6, abs=1e-12)
    assert spike_hadamard(8).babel(5) == pytest.approx(5 / 8**0.5, abs=1e-12)
    assert orthonormal(6, 0).babel(5) == pytest.approx(0.0, abs=1e-12)
    assert disjoint_kernels().babel(50) == 0.0
    assert smooth_kernel(5).mutual_coherence() == pytest.approx(0.8)
    assert smooth_kernel(5).babel(100) == pytest.approx(2 * (0.8 + 0.6 + 0.4 + 0.2))
    assert dsc.DenseDictionary(torch.ones(3, 1)).babel(4) == 0.0


def test_nearly_parallel_atoms_are_not_called_duplicates() -> None:
    dictionary = nearly_parallel(6, 5, seed=0, angle=1.5e-6)  # cosine 1 - 1.1e-12, and no warning
    assert 1 - 2e-12 < dictionary.mutual_coherence() < 1


def test_rank_deficient_and_badly_scaled_atoms() -> None:
    assert rank_deficient(6, 8, 2, seed=0).babel(7) > 1
    scaled = wide_range(6, 9, seed=0)
    flat = dsc.DenseDictionary(scaled.matrix, normalize=True)
    assert scaled.babel(3) == pytest.approx(flat.babel(3), abs=1e-12)


def test_blocks_of_rows_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = draw_conv(3, axes=2)
    whole = coherence.babel(dictionary, 3)
    monkeypatch.setattr(coherence, "_BLOCK_ENTRIES", 1)
    assert len(list(coherence.off_diagonal_rows(dictionary))) == dictionary.atoms
    assert coherence.babel(dictionary, 3) == pytest.approx(whole, abs=1e-13)


def test_float32_atoms_are_judged_in_float64() -> None:
    dictionary = dsc.DenseDictionary.random(20, 40, seed=0)
    exact = brute_babel(dictionary.matrix.detach().double(), 4)
    assert dictionary.babel(4) == pytest.approx(exact, abs=1e-13)


@pytest.mark.parametrize("s", [-1, 1.5, float("nan"), "3", None, True])
def test_babel_refuses_what_is_no_count(s: object) -> None:
    with pytest.raises(dsc.errors.ParameterError, match=r"s is .*; expected a"):
        dsc.DenseDictionary.random(4, 6, seed=0).babel(s)  # type: ignore[arg-type]


def test_top_sum() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0]])
    assert coherence.top_sum(values, 0).tolist() == [0.0, 0.0]
    assert coherence.top_sum(values, 2).tolist() == [5.0, 10.0]
    assert coherence.top_sum(values, 9).tolist() == [6.0, 10.0]
