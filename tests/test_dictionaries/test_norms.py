"""Operator norms: exact where they say so, else an upper bound that is never below and not far above."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.dictionaries import norms
from operators import Operator, each_operator, explicit_matrix
from strategies import SEEDS, code_size, disjoint_kernels, draw_conv, draw_dictionary, smooth_kernel, spike_hadamard


def _norm(dictionary: dsc.Dictionary, size: tuple[int, ...]) -> float:
    return float(torch.linalg.matrix_norm(explicit_matrix(dictionary, size), 2))


@each_operator(same=True)
def test_norms_of_the_registry(operator: Operator) -> None:
    dictionary = operator.build()
    true = _norm(dictionary, operator.size)
    anywhere = dictionary.operator_norm()
    assert true <= anywhere * (1 + 1e-12)
    here = dictionary.operator_norm(operator.size)
    assert here.exact == (dictionary.boundary in ("circular", "none"))
    if here.exact:
        assert float(here) == pytest.approx(true, rel=1e-11)
    assert float(here) <= float(anywhere) * (1 + 1e-12)


@given(seed=SEEDS)
@settings(max_examples=60)
def test_exact_on_every_ring(seed: int) -> None:
    dictionary = draw_conv(seed, boundary="circular")
    size = code_size(dictionary, seed)
    found = dictionary.operator_norm(size)
    assert found.exact
    assert float(found) == pytest.approx(_norm(dictionary, size), rel=1e-11)


@given(seed=SEEDS)
@settings(max_examples=60)
def test_an_upper_bound_for_every_size(seed: int) -> None:
    dictionary = draw_dictionary(seed)
    bound = dictionary.operator_norm()
    for largest in (1, 3, 5):
        assert _norm(dictionary, code_size(dictionary, seed, largest)) <= bound * (1 + 1e-12)


@given(seed=SEEDS)
@settings(max_examples=25)
def test_the_bound_is_within_15_percent_of_a_large_grid(seed: int) -> None:
    dictionary = draw_conv(seed, axes=1)
    bound = dictionary.operator_norm()
    assert not bound.exact
    true = max(_norm(dictionary, (n,)) for n in (20, 40))
    assert true <= bound <= 1.15 * true
    ring = dsc.ConvDictionary(dictionary.kernels, stride=dictionary.stride, boundary="circular")
    limit = float(ring.operator_norm((4096,)))
    assert limit * (1 - 1e-9) <= bound <= 1.02 * limit


@pytest.mark.parametrize(
    "sizes",
    [
        {"atoms": 3, "channels": 2, "size": 5},
        {"atoms": 4, "channels": 1, "size": (3, 2)},
        {"atoms": 2, "channels": 1, "size": (2, 3, 2)},
    ],
)
def test_the_bound_is_tight_on_images_and_volumes(sizes: dict[str, object]) -> None:
    dictionary = dsc.ConvDictionary.random(**sizes, seed=0, dtype=torch.float64)  # type: ignore[arg-type]
    ring = dsc.ConvDictionary(dictionary.kernels, boundary="circular")
    limit = float(ring.operator_norm((64,) * dictionary.axes if dictionary.axes < 3 else (24,) * 3))
    assert limit <= dictionary.operator_norm() <= 1.03 * limit


def test_known_norms() -> None:
    assert disjoint_kernels().operator_norm() == pytest.approx(1.0, rel=1e-11)
    assert smooth_kernel(5).operator_norm() == pytest.approx(5**0.5, rel=1e-2)
    assert smooth_kernel(5).operator_norm() >= 5**0.5
    identity = dsc.DenseDictionary(torch.eye(4))
    assert identity.operator_norm() == pytest.approx(1.0, rel=1e-14)
    assert spike_hadamard(8).operator_norm() == pytest.approx(2**0.5, rel=1e-12)


@pytest.mark.parametrize("points", [3, 5])
@pytest.mark.parametrize("lag", [1, 3, 4])
def test_the_factor_is_attained(monkeypatch: pytest.MonkeyPatch, points: int, lag: int) -> None:
    """``|1 - e^{iLω}|²`` is the extremal polynomial; its peaks lie midway between points, if their number is odd."""
    monkeypatch.setattr(norms, "_SYMBOL_WORK", 1)
    monkeypatch.setattr(norms, "_COARSEST", points)
    kernels = torch.zeros(1, 1, lag + 1, dtype=torch.float64)
    kernels[0, 0, 0], kernels[0, 0, -1] = 1.0, -1.0
    seen = float(norms.convolution_norm(kernels, (1,), (points * lag,), True))
    assert seen < 1.91
    assert float(norms.convolution_norm(kernels, (1,), None, False)) == pytest.approx(2.0, rel=1e-10)
    square = (kernels[0, 0, :, None] * kernels[0, 0, None, :])[None, None]
    assert float(norms.convolution_norm(square, (1, 1), None, False)) == pytest.approx(4.0, rel=1e-10)


@given(seed=SEEDS)
@settings(max_examples=60)
def test_a_coarse_grid_is_still_a_bound(seed: int) -> None:
    dictionary = draw_conv(seed)
    ring = (64,) * dictionary.axes
    true = float(norms.convolution_norm(dictionary.kernels, dictionary.stride, ring, True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "_SYMBOL_WORK", 1)
        patch.setattr(norms, "_COARSEST", 2)
        assert true <= norms.convolution_norm(dictionary.kernels, dictionary.stride, None, False)


def test_chunks_of_frequencies_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = draw_conv(4, axes=2)
    whole = float(norms.convolution_norm(dictionary.kernels, dictionary.stride, (7, 6), True))
    monkeypatch.setattr(norms, "_CHUNK_ENTRIES", 1)
    assert float(norms.convolution_norm(dictionary.kernels, dictionary.stride, (7, 6), True)) == pytest.approx(whole)


def test_the_number_says_what_it_is() -> None:
    exact = dsc.DenseDictionary.random(4, 6, seed=0).operator_norm()
    assert repr(exact).startswith("= ")
    assert "SVD" in repr(exact)
    bound = dsc.ConvDictionary.random(atoms=2, channels=1, size=3, seed=0).operator_norm()
    assert repr(bound).startswith("≤ ")
    assert "for every size" in str(bound)
    assert f"{bound:.1f}" == f"{float(bound):.1f}"
    for other in (pickle.loads(pickle.dumps(bound)), copy.deepcopy(bound)):
        assert float(other) == float(bound)
        assert (other.exact, other.method) == (False, bound.method)


def test_a_ring_smaller_than_the_kernel_has_no_norm() -> None:
    dictionary = dsc.ConvDictionary.random(atoms=2, channels=1, size=5, boundary="circular", seed=0)
    with pytest.raises(dsc.errors.ShapeError, match=r"4 positions of stride 1 .* smaller than the kernel, 5"):
        dictionary.operator_norm((4, 6))
