"""Matching: permuted, flipped, scaled and shifted atoms are found again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DictionaryError
from strategies import SEEDS, draw_conv, draw_dense, normal, rng


@given(seed=SEEDS)
@settings(max_examples=40)
def test_permuted_and_flipped_atoms_are_found(seed: int) -> None:
    dictionary = draw_dense(seed) if seed % 2 else draw_conv(seed, axes=2)
    axis = 1 if isinstance(dictionary, dsc.DenseDictionary) else 0
    g = rng(seed)
    order = torch.randperm(dictionary.atoms, generator=g)
    signs = torch.randint(0, 2, (dictionary.atoms,), generator=g) * 2.0 - 1.0
    shape = [1] * dictionary.weight.ndim
    shape[axis] = -1
    other = dictionary.with_weight(dictionary.weight.index_select(axis, order) * (2.5 * signs).double().reshape(shape))
    found = dsc.match(dictionary, other)
    torch.testing.assert_close(found.cosines, torch.ones_like(found.cosines))
    # Atom order[l] of the first stands at place l of the second.
    assert torch.equal(order[found.permutation], torch.arange(dictionary.atoms))
    assert torch.equal(found.signs, signs[found.permutation].double())
    assert str(found).startswith(f"{dictionary.atoms} of {dictionary.atoms} atoms found")


@pytest.mark.parametrize(("stride", "shift", "hit"), [(1, 1, True), (1, 2, True), (2, 2, True), (2, 1, False)])
def test_kernels_that_are_shifted_by_multiples_of_the_stride(stride: int, shift: int, hit: bool) -> None:
    kernels = torch.zeros(3, 1, 6, 6, dtype=torch.float64)
    kernels[:, :, :4, :4] = normal(3, 1, 4, 4, generator=rng(0))
    moved = torch.roll(kernels, (shift, shift), (2, 3))
    found = dsc.match(dsc.ConvDictionary(kernels, stride=stride), dsc.ConvDictionary(-moved, stride=stride))
    assert bool((found.cosines > 1 - 1e-12).all()) == hit
    if hit:
        assert found.permutation.tolist() == [0, 1, 2]
        assert found.signs.tolist() == [-1.0, -1.0, -1.0]


def test_the_assignment_is_best_as_a_whole_not_greedy() -> None:
    first = dsc.DenseDictionary(torch.eye(2, dtype=torch.float64))
    a, b = torch.tensor([0.9, 0.435890]), torch.tensor([0.85, -0.526783])
    second = dsc.DenseDictionary(torch.stack([a, b], 1).double(), normalize=True)
    # Greedy would give the first atom its favorite, a, and the second what is left; the sums are 1.427 and 1.286.
    found = dsc.match(first, second)
    assert found.permutation.tolist() == [0, 1]
    assert found.signs.tolist() == [1.0, -1.0]
    assert dsc.match(first, second).cosines.sum() == pytest.approx(0.9 + 0.526783, abs=1e-5)


def test_orthogonal_atoms_have_cosine_0_and_still_a_sign() -> None:
    first = dsc.DenseDictionary(torch.eye(4, dtype=torch.float64)[:, :2])
    second = dsc.DenseDictionary(torch.eye(4, dtype=torch.float64)[:, 2:])
    found = dsc.match(first, second)
    assert found.cosines.tolist() == [0.0, 0.0]
    assert found.signs.tolist() == [1.0, 1.0]
    assert str(found).startswith("0 of 2 atoms found")


def test_what_cannot_be_matched() -> None:
    dense, conv = (
        dsc.DenseDictionary.random(4, 6, seed=0),
        dsc.ConvDictionary.random(atoms=6, channels=1, size=2, seed=0),
    )
    with pytest.raises(
        DictionaryError, match=r"cannot match DenseDictionary.* with ConvDictionary.*; expected the same kind"
    ):
        dsc.match(dense, conv)
    with pytest.raises(DictionaryError, match="expected the same kind and shape"):
        dsc.match(dense, dsc.DenseDictionary.random(4, 7, seed=0))
    model = dsc.Cascade([dense])
    with pytest.raises(DictionaryError, match=r"cannot match a Cascade; .* of a cascade take \.layers\[j\]"):
        dsc.match(model, model)  # type: ignore[arg-type]
