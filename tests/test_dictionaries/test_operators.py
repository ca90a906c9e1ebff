"""Every operator of the registry against its explicit matrix: both directions, norms, Gram rows, layouts, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from operators import Operator, each_operator, explicit_matrix
from references import normalized_gram
from strategies import SEEDS, alias_free_size, draw_codes, draw_conv, draw_dictionary, draw_signal, normal, rng


def _pair(
    operator: Operator, batch: tuple[int, ...] = (), seed: int = 0
) -> tuple[dsc.Dictionary, torch.Tensor, torch.Tensor]:
    dictionary = operator.build()
    g = rng(seed)
    signal = normal(*batch, *dictionary.signal_shape(operator.size), generator=g)
    codes = normal(*batch, *dictionary.code_shape(signal.shape[len(batch) + 1 :]), generator=g)
    return dictionary, codes, signal


@each_operator(same=True)
def test_synthesize_and_analyze_are_the_explicit_matrix(operator: Operator) -> None:
    dictionary, codes, signal = _pair(operator, (2, 3))
    matrix = explicit_matrix(dictionary, operator.size)
    made = dictionary.synthesize(codes)
    assert made.shape == signal.shape
    torch.testing.assert_close(made.flatten(2), codes.flatten(2) @ matrix.T, rtol=1e-12, atol=1e-12)
    seen = dictionary.analyze(signal)
    assert seen.shape == codes.shape
    torch.testing.assert_close(seen.flatten(2), signal.flatten(2) @ matrix, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dictionary(codes), made, rtol=0, atol=0)


@given(seed=SEEDS)
@settings(max_examples=60)
def test_adjoint_to_rounding(seed: int) -> None:
    dictionary = draw_dictionary(seed)
    codes, signal = draw_codes(dictionary, seed, batch=(2,)), draw_signal(dictionary, seed, batch=(2,))
    left = (dictionary.synthesize(codes) * signal).flatten(1).sum(1)
    right = (codes * dictionary.analyze(signal)).flatten(1).sum(1)
    scale = codes.flatten(1).norm(dim=1) * signal.flatten(1).norm(dim=1) * float(dictionary.operator_norm())
    assert bool(((left - right).abs() <= 1e-13 * scale).all())


@each_operator(same=True)
def test_shapes_invert_each_other(operator: Operator) -> None:
    dictionary = operator.build()
    shape = dictionary.signal_shape(operator.size)
    assert dictionary.code_shape(shape[1:]) == (dictionary.atoms, *operator.size)
    assert shape[0] == dictionary.channels
    assert len(shape) == dictionary.event_axes


@each_operator(same=True)
def test_column_norms_without_and_with_a_mask(operator: Operator) -> None:
    dictionary, codes, signal = _pair(operator, (2,))
    matrix = explicit_matrix(dictionary, operator.size)
    squares = dictionary.squared_norms(size=operator.size).expand_as(codes[0])
    torch.testing.assert_close(squares.flatten(), matrix.square().sum(0))
    torch.testing.assert_close(dictionary.column_norms(), dictionary.squared_norms().flatten().sqrt())
    mask = (torch.rand(signal.shape, generator=rng(1), dtype=torch.float64) < 0.6).double() * 1.5
    expected = mask.flatten(1).square() @ matrix.square()
    torch.testing.assert_close(dictionary.squared_norms(mask).flatten(1), expected)


@each_operator(kind=dsc.ConvDictionary, same=True)
def test_one_mask_for_all_channels(operator: Operator) -> None:
    dictionary, _, signal = _pair(operator, (2,))
    mask = (torch.rand(2, 1, *signal.shape[2:], generator=rng(2), dtype=torch.float64) < 0.5).double()
    torch.testing.assert_close(dictionary.squared_norms(mask), dictionary.squared_norms(mask.expand_as(signal)))


@each_operator(same=True)
def test_gram_rows_hold_the_entries_of_the_explicit_gram_matrix(operator: Operator) -> None:
    dictionary = operator.build()
    if dictionary.boundary == "same":
        with pytest.raises(dsc.UnsupportedError, match="'same' cuts atoms at the border"):
            dictionary.gram_rows()
        return
    if isinstance(dictionary, dsc.ConvDictionary):
        assert not dictionary.aliases(operator.size)
    matrix = explicit_matrix(dictionary, operator.size)
    weights = dictionary.with_weight(normal(*dictionary.weight.shape, generator=rng(5)))
    cross = explicit_matrix(weights, operator.size).T @ matrix
    rows = dictionary.gram_rows(analysis=weights.weight)
    assert rows.dtype == torch.float64
    # Every entry of WᵀD is an entry of the rows or 0, and it stands at the lag between the two positions.
    grid = operator.size
    lags = dictionary.lags if isinstance(dictionary, dsc.ConvDictionary) else ()
    table = rows.reshape(dictionary.atoms, dictionary.atoms, *(2 * lag + 1 for lag in lags))
    blocks = cross.reshape(dictionary.atoms, math.prod(grid), dictionary.atoms, math.prod(grid))
    ring = dictionary.boundary == "circular"
    places = (
        list(torch.cartesian_prod(*(torch.arange(n) for n in grid)).reshape(-1, len(grid)))
        if grid
        else [torch.tensor([])]
    )
    for a, first in enumerate(places):
        for b, second in enumerate(places):
            shift = [int(v) for v in (second - first).tolist()]
            if ring:
                shift = [(v + n // 2) % n - n // 2 for v, n in zip(shift, grid, strict=True)]
            near = all(abs(v) <= lag for v, lag in zip(shift, lags, strict=True))
            index = tuple(v + lag for v, lag in zip(shift, lags, strict=True))
            expected = table[(slice(None), slice(None), *index)] if near else torch.zeros_like(blocks[:, a, :, b])
            torch.testing.assert_close(blocks[:, a, :, b], expected, rtol=1e-12, atol=1e-12)


@given(seed=SEEDS)
@settings(max_examples=40)
def test_gram_rows_come_in_slices(seed: int) -> None:
    dictionary = draw_dictionary(seed)
    whole = dictionary.gram_rows()
    half = dictionary.atoms // 2
    parts = torch.cat([dictionary.gram_rows(slice(0, half)), dictionary.gram_rows(slice(half, None))])
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-13)


@given(seed=SEEDS)
@settings(max_examples=30)
def test_aliases_is_exactly_where_gram_rows_stop_being_the_gram_matrix(seed: int) -> None:
    dictionary = draw_conv(seed, boundary="circular")
    size = alias_free_size(dictionary)
    assert not dictionary.aliases(size)
    wanted = dictionary.babel(10**6)
    exact = float(abs(normalized_gram(explicit_matrix(dictionary, size))).sum(1).max())
    assert exact == pytest.approx(wanted, abs=1e-12)
    smaller = tuple(n - 1 for n in size)
    if any(n * q < k for n, q, k in zip(smaller, dictionary.stride, dictionary.kernel_size, strict=True)):
        return
    assert dictionary.aliases(smaller) == any(dictionary.lags)


def test_a_small_ring_can_be_more_coherent_than_the_babel_function_says() -> None:
    kernels = torch.tensor([[[1.0, 1.0, 1.0]]], dtype=torch.float64)
    dictionary = dsc.ConvDictionary(kernels, boundary="circular", normalize=True)
    assert dictionary.aliases((4,))
    assert not dictionary.aliases((5,))
    gram = normalized_gram(explicit_matrix(dictionary, (4,)))
    assert abs(gram).max() > 0.66
    assert dictionary.mutual_coherence() == pytest.approx(2 / 3)
    tiny = normalized_gram(explicit_matrix(dictionary, (3,)))
    assert abs(tiny).max() == pytest.approx(1.0)


# ---------------------------------------------------------------------- layouts, batches, gradients


@each_operator(same=True)
def test_empty_batch(operator: Operator) -> None:
    dictionary, codes, signal = _pair(operator, (0,))
    assert dictionary.synthesize(codes).shape == signal.shape
    assert dictionary.analyze(signal).shape == codes.shape
    assert dictionary.analyze(signal[None].expand(3, *signal.shape)).shape == (3, *codes.shape)


@each_operator(same=True)
def test_non_contiguous_expanded_and_unbatched_inputs(operator: Operator) -> None:
    dictionary, codes, signal = _pair(operator, (2, 3))
    made, seen = dictionary.synthesize(codes), dictionary.analyze(signal)
    assert not codes.transpose(0, 1).is_contiguous()
    torch.testing.assert_close(dictionary.synthesize(codes.transpose(0, 1)), made.transpose(0, 1))
    torch.testing.assert_close(dictionary.analyze(signal.transpose(0, 1)), seen.transpose(0, 1))
    backwards = codes.transpose(-1, 0).contiguous().transpose(-1, 0)
    torch.testing.assert_close(dictionary.synthesize(backwards), made)
    one = codes[:1, :1]
    torch.testing.assert_close(dictionary.synthesize(one.expand(2, 3, *one.shape[2:]))[1, 2], made[0, 0])
    torch.testing.assert_close(dictionary.synthesize(codes[1, 2]), made[1, 2])
    torch.testing.assert_close(dictionary.analyze(signal[1, 2]), seen[1, 2])


def test_channels_last_inputs() -> None:
    dictionary = dsc.ConvDictionary.random(atoms=4, channels=3, size=3, stride=2, seed=0, dtype=torch.float64)
    signal = normal(2, 3, 9, 7, generator=rng(0))
    seen = dictionary.analyze(signal)
    torch.testing.assert_close(dictionary.analyze(signal.to(memory_format=torch.channels_last)), seen)
    last = seen.to(memory_format=torch.channels_last)
    torch.testing.assert_close(dictionary.synthesize(last), dictionary.synthesize(seen))


@each_operator(same=True)
def test_gradients_flow_through_both(operator: Operator) -> None:
    dictionary, codes, signal = _pair(operator, (2,))
    assert torch.autograd.gradcheck(dictionary.synthesize, codes.requires_grad_(), fast_mode=True)
    assert torch.autograd.gradcheck(dictionary.analyze, signal.requires_grad_(), fast_mode=True)


@each_operator(same=True)
def test_atoms_are_frozen_until_asked_and_then_differentiable(operator: Operator) -> None:
    dictionary, codes, _ = _pair(operator)
    assert not dictionary.weight.requires_grad
    assert not dictionary.synthesize(codes).requires_grad
    dictionary.requires_grad_(True)
    dictionary.synthesize(codes).square().sum().backward()
    assert dictionary.weight.grad is not None
    assert bool(dictionary.weight.grad.abs().sum() > 0)
    assert not dictionary.cast(torch.float64).weight.requires_grad


@each_operator(same=True)
def test_float32_agrees_with_float64(operator: Operator) -> None:
    dictionary, codes, signal = _pair(operator)
    single = dictionary.cast(torch.float32)
    assert single.synthesize(codes.float()).dtype == torch.float32
    torch.testing.assert_close(
        single.synthesize(codes.float()).double(), dictionary.synthesize(codes), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        single.analyze(signal.float()).double(), dictionary.analyze(signal), rtol=1e-5, atol=1e-5
    )


@each_operator(same=True)
def test_numbers_of_terms_are_what_an_entry_adds_up(operator: Operator) -> None:
    dictionary = operator.build()
    ones = dictionary.with_weight(torch.ones_like(dictionary.weight))
    matrix = explicit_matrix(ones, operator.size)
    assert int(matrix.sum(0).max()) <= dictionary.analysis_terms
    if "kernel-larger-than-signal" not in operator.name:
        assert int(matrix.sum(0).max()) == dictionary.analysis_terms
    assert int(matrix.sum(1).max()) <= dictionary.synthesis_terms
    if all(n >= 5 for n in operator.size):
        assert int(matrix.sum(1).max()) == dictionary.synthesis_terms
