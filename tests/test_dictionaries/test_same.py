"""Boundary "same": atoms centered on multiples of the stride and cut off at the border, or "valid" under a mask."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.dictionaries.stripes import covering_bound
from deep_sparse_coding.errors import ParameterError, ShapeError, UnsupportedError
from operators import SAME_OPERATORS, Operator, explicit_matrix
from references import brute_babel, brute_stripe_sparsity, normalized_gram
from strategies import SEEDS, code_size, draw_codes, draw_conv, draw_signal, normal, randint, rng

each_same = pytest.mark.parametrize("operator", SAME_OPERATORS, ids=[entry.name for entry in SAME_OPERATORS])
LARGEST = {1: 7, 2: 4, 3: 2}


def build(operator: Operator) -> dsc.ConvDictionary:
    """Return the operator's dictionary."""
    dictionary = operator.build()
    assert isinstance(dictionary, dsc.ConvDictionary)
    return dictionary


def by_index(dictionary: dsc.ConvDictionary, size: tuple[int, ...]) -> Tensor:
    """Return D as a matrix, every entry of every atom put in its place or dropped: without the library, or "valid"."""
    kernels = dictionary.kernels.detach().double().numpy()
    kernel, stride = kernels.shape[2:], dictionary.stride
    lengths = [n * q for n, q in zip(size, stride, strict=True)]
    columns = []
    for atom, position in itertools.product(range(len(kernels)), itertools.product(*(range(n) for n in size))):
        signal = np.zeros((kernels.shape[1], *lengths))
        for tap in itertools.product(*(range(k) for k in kernel)):
            # Odd: the middle entry on p·q; even: the left one of the middle two.
            place = [p * q + t - (k - 1) // 2 for p, q, t, k in zip(position, stride, tap, kernel, strict=True)]
            if all(0 <= x < n for x, n in zip(place, lengths, strict=True)):
                signal[(slice(None), *place)] += kernels[(atom, slice(None), *tap)]
        columns.append(signal.ravel())
    return torch.from_numpy(np.stack(columns, axis=1))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kernel_and_stride_by_index(axes: int, channels: int) -> None:
    """Kernels up to `LARGEST`, odd and even, strides 1 to k + 1, grids down to one position: kernels larger than it."""
    g = rng(axes)
    for k in range(1, LARGEST[axes] + 1):
        for q in range(1, k + 2):
            for n in (1, 2, 4) if axes < 3 else (1, 3):
                kernels = normal(2, channels, *(k,) * axes, generator=g)
                if k == channels == 1:
                    kernels = kernels[:1]
                dictionary = dsc.ConvDictionary(kernels, stride=q, boundary="same")
                size = (n,) * axes
                matrix = by_index(dictionary, size)
                shape = dictionary.signal_shape(size)
                assert shape == (channels, *(n * q,) * axes)
                assert dictionary.exact_code_shape(shape[1:]) == (dictionary.atoms, *size)
                codes = normal(2, dictionary.atoms, *size, generator=g)
                signal = normal(2, *shape, generator=g)
                made, seen = dictionary.synthesize(codes), dictionary.analyze(signal)
                torch.testing.assert_close(made, (codes.flatten(1) @ matrix.T).reshape(2, *shape), rtol=0, atol=1e-12)
                torch.testing.assert_close(seen, (signal.flatten(1) @ matrix).reshape(codes.shape), rtol=0, atol=1e-12)
                norms = dictionary.squared_norms(size=size)
                torch.testing.assert_close(norms.flatten(), matrix.square().sum(0), rtol=0, atol=1e-12)


@each_same
def test_the_rows_kept_of_valid_are_those_by_index(operator: Operator) -> None:
    torch.testing.assert_close(
        explicit_matrix(operator.build(), operator.size), by_index(build(operator), operator.size)
    )


def test_stride_1_and_odd_kernels_are_what_torch_calls_same() -> None:
    dictionary = dsc.ConvDictionary.random(atoms=4, channels=2, size=5, seed=0, dtype=torch.float64)
    dictionary = dictionary.with_boundary("same")
    signal = normal(3, 2, 9, 7, generator=rng(0))
    codes = F.conv2d(signal, dictionary.kernels, padding=2)
    torch.testing.assert_close(dictionary.analyze(signal), codes)
    torch.testing.assert_close(dictionary.analyze(signal), F.conv2d(signal, dictionary.kernels, padding="same"))
    torch.testing.assert_close(dictionary.synthesize(codes), F.conv_transpose2d(codes, dictionary.kernels, padding=2))


def test_even_kernels_lie_to_the_right_of_their_position_where_torch_pads_1_and_2() -> None:
    kernels = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(1, 1, 4)
    dictionary = dsc.ConvDictionary(kernels, boundary="same")
    unit = torch.zeros(1, 6, dtype=torch.float64)
    unit[0, 2] = 1.0
    assert dictionary.synthesize(unit).flatten().tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 0.0]
    signal = normal(1, 1, 6, generator=rng(0))
    torch.testing.assert_close(dictionary.analyze(signal), F.conv1d(F.pad(signal, (1, 2)), kernels))


# ---------------------------------------------------------------------- padding, masks, norms


@given(seed=SEEDS)
@settings(max_examples=60)
def test_same_is_valid_on_the_padded_signal_under_a_mask(seed: int) -> None:
    same = draw_conv(seed, axes=1 + seed % 3, boundary="same")
    valid = same.with_boundary("valid")
    assert valid.padding == ((0, 0),) * same.axes
    codes, signal = draw_codes(same, seed, batch=(2,)), draw_signal(same, seed, batch=(2,))
    pads = [n for pair in reversed(same.padding) for n in pair]
    padded, mask = F.pad(signal, pads), F.pad(torch.ones_like(signal[:1]), pads)
    assert padded.shape[1:] == valid.signal_shape(tuple(codes.shape[2:]))
    torch.testing.assert_close(mask * valid.synthesize(codes), F.pad(same.synthesize(codes), pads))
    torch.testing.assert_close(valid.analyze(mask * padded), same.analyze(signal))
    torch.testing.assert_close(valid.squared_norms(mask)[0], same.squared_norms(size=tuple(codes.shape[2:])))
    if all(after >= 0 for _, after in same.padding):
        cropped = F.pad(mask * valid.synthesize(codes), [-n for n in pads])
        torch.testing.assert_close(cropped, same.synthesize(codes))


def test_padding_in_numbers() -> None:
    kernels = normal(2, 1, 5, 4, generator=rng(0))
    assert dsc.ConvDictionary(kernels, boundary="same").padding == ((2, 2), (1, 2))
    assert dsc.ConvDictionary(kernels, stride=2, boundary="same").padding == ((2, 1), (1, 1))
    # Entries after the last atom, under none: 4 of the 5 that a position of stride 5 has after its own.
    assert dsc.ConvDictionary(kernels, stride=5, boundary="same").padding == ((2, -2), (1, -2))
    assert dsc.ConvDictionary(kernels, boundary="circular").padding == ((0, 0), (0, 0))


@given(seed=SEEDS)
@settings(max_examples=40)
def test_adjoint_norms_and_bound(seed: int) -> None:
    dictionary = draw_conv(seed, axes=1 + seed % 3, boundary="same")
    codes, signal = draw_codes(dictionary, seed, batch=(2,)), draw_signal(dictionary, seed, batch=(2,))
    bound = dictionary.operator_norm()
    assert not bound.exact
    left = (dictionary.synthesize(codes) * signal).flatten(1).sum(1)
    right = (codes * dictionary.analyze(signal)).flatten(1).sum(1)
    scale = codes.flatten(1).norm(dim=1) * signal.flatten(1).norm(dim=1) * float(bound)
    assert bool(((left - right).abs() <= 1e-13 * scale).all())
    size = code_size(dictionary, seed)
    matrix = explicit_matrix(dictionary, size)
    assert float(torch.linalg.matrix_norm(matrix, 2)) <= bound * (1 + 1e-12)
    whole = dictionary.squared_norms().expand(dictionary.atoms, *size)
    assert bool((dictionary.squared_norms(size=size) <= whole * (1 + 1e-12)).all())
    torch.testing.assert_close(dictionary.column_norms(), dictionary.kernels.flatten(1).norm(dim=1))


@given(seed=SEEDS)
@settings(max_examples=15)
def test_the_bound_of_the_norm_is_nearly_reached_on_a_large_grid(seed: int) -> None:
    dictionary = draw_conv(seed, axes=1, boundary="same")
    true = float(torch.linalg.matrix_norm(explicit_matrix(dictionary, (40,)), 2))
    assert true <= dictionary.operator_norm() <= 1.15 * true
    assert dictionary.operator_norm((40,)) == dictionary.with_boundary("valid").operator_norm()


def test_the_norms_in_the_middle_are_those_of_the_kernels_and_fall_towards_the_border() -> None:
    dictionary = dsc.ConvDictionary(torch.ones(1, 1, 5, 5, dtype=torch.float64), normalize=True, boundary="same")
    norms = dictionary.squared_norms(size=(7, 7))[0]
    assert float(norms[3, 3]) == pytest.approx(1.0)
    assert float(norms[0, 3]) == pytest.approx(3 / 5)
    assert float(norms[0, 0]) == pytest.approx(9 / 25)
    assert float(norms[6, 1]) == pytest.approx(3 / 5 * 4 / 5)


# ---------------------------------------------------------------------- sizes


def test_signals_are_multiples_of_the_stride() -> None:
    dictionary = dsc.ConvDictionary(normal(2, 1, 5, 5, generator=rng(0)), stride=(3, 1), boundary="same")
    assert dictionary.code_shape((8, 1)) == (2, 2, 1)
    assert dictionary.exact_code_shape((3, 1)) == (2, 1, 1)
    assert dictionary.signal_shape((2, 4)) == (1, 6, 4)
    assert not dictionary.aliases((1, 1))
    with pytest.raises(ShapeError, match=r"H = 2 is smaller than the stride, 3; expected at least 3: pad"):
        dictionary.code_shape((2, 1))
    with pytest.raises(ShapeError, match=r"H = 8 .*boundary 'same'.*0 plus a multiple of 3: crop to 6 or pad to 9"):
        dictionary.exact_code_shape((8, 4))
    with pytest.raises(ShapeError, match=r"H = 8 is made by no code grid of stride 3"):
        dictionary.analyze(torch.zeros(1, 8, 4, dtype=torch.float64))
    with pytest.raises(ParameterError, match="size is 0"):
        dictionary.synthesize(torch.zeros(2, 0, 4, dtype=torch.float64))


# ---------------------------------------------------------------------- what lags cannot say


def test_atoms_at_the_border_are_more_alike_than_lags_say() -> None:
    dictionary = dsc.ConvDictionary.random(atoms=3, channels=2, size=(9,), seed=1, dtype=torch.float64)
    matrix = explicit_matrix(dictionary.with_boundary("same"), (20,))
    inside = brute_babel(explicit_matrix(dictionary, (20,)), 1)
    assert dictionary.mutual_coherence() == pytest.approx(inside)
    assert brute_babel(matrix, 1) > inside + 0.05
    # On a grid of one position every atom is left with one entry: with one channel all are the same up to scale.
    grey = dsc.ConvDictionary(dictionary.kernels[:, :1], boundary="same")
    assert np.abs(normalized_gram(explicit_matrix(grey, (1,)))).max() == pytest.approx(1.0)


@each_same
def test_coherence_and_what_is_proved_from_it_are_refused(operator: Operator) -> None:
    dictionary = build(operator)
    calls = [
        dictionary.mutual_coherence,
        dictionary.gram_rows,
        lambda: dictionary.babel(2),
        lambda: dsc.prove.uniqueness(dictionary, 1),
        lambda: dsc.prove.uniqueness(dictionary, 1, nonnegative=True),
        lambda: dsc.prove.equivalence(dictionary, 1),
    ]
    for call in calls:
        with pytest.raises(UnsupportedError, match=r"'same' cuts atoms at the border.*with_boundary\('valid'\)"):
            call()


def test_a_cascade_with_one_layer_of_cut_atoms_is_refused_too() -> None:
    lower = dsc.ConvDictionary.random(atoms=3, channels=1, size=(3,), seed=0)
    upper = dsc.ConvDictionary.random(atoms=4, channels=3, size=(3,), nonzeros=2, seed=1).with_boundary("same")
    for model in (
        dsc.Cascade([lower, upper]),
        dsc.Cascade([lower.with_boundary("same"), upper.with_boundary("valid")]),
    ):
        for prove in (dsc.prove.uniqueness, dsc.prove.equivalence):
            with pytest.raises(UnsupportedError, match="'same' cuts atoms at the border"):
                prove(model, 1)


def test_no_network_is_compiled_from_cut_atoms() -> None:
    dictionary = dsc.ConvDictionary.random(atoms=3, channels=4, size=(3,), seed=0, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match=r"cannot compile .*with boundary 'same' atoms that the border cuts off"):
        dsc.to_cnn(dictionary.with_boundary("same"), sparsity=1, target_error=1e-2)


# ---------------------------------------------------------------------- stripes, samples, cascades, files, matching


@given(seed=SEEDS)
@settings(max_examples=50)
def test_stripes_and_places_by_brute_force(seed: int) -> None:
    dictionary = draw_conv(seed, axes=1 + seed % 3, boundary="same")
    codes = draw_codes(dictionary, seed, batch=(2,), density=0.3)
    assert dsc.stripe_sparsity(dictionary, codes).tolist() == [brute_stripe_sparsity(dictionary, one) for one in codes]
    below = draw_signal(dictionary, seed, batch=(2,))
    below = below * (torch.rand(below.shape, generator=rng(seed), dtype=torch.float64) < 0.4)
    under = by_index(dictionary.with_weight(torch.ones_like(dictionary.weight)), tuple(codes.shape[2:])) != 0
    expected = ((below != 0).flatten(1).double() @ under.double()).amax(1).long()
    assert torch.equal(dsc.place_sparsity(dictionary, below), expected)


@given(seed=SEEDS)
@settings(max_examples=60)
def test_the_covering_bound_holds_where_one_or_both_layers_cut(seed: int) -> None:
    g = rng(seed)
    axes, kinds = 1 + seed % 2, (("same", "same"), ("same", "valid"), ("valid", "same"), ("circular", "same"))
    first, second = kinds[seed % 4]
    below = draw_conv(seed, axes=axes, boundary=first)
    above = draw_conv(seed + 1, axes=axes, boundary=second, channels=below.atoms)
    shape = above.signal_shape(tuple(randint(1, 4, g) for _ in range(axes)))
    if first == "circular" and any(
        n * q < k for n, q, k in zip(shape[1:], below.stride, below.kernel_size, strict=True)
    ):
        return
    codes = normal(*shape, generator=g) * (torch.rand(shape, generator=g, dtype=torch.float64) < 0.4)
    stripes = int(dsc.stripe_sparsity(below, codes))
    assert int(dsc.place_sparsity(above, codes)) <= covering_bound(below, above, stripes)


def mixed_cascade(boundaries: tuple[str, str], stride: int = 2) -> dsc.Cascade:
    """Return two layers over images."""
    lower = dsc.ConvDictionary.random(atoms=4, channels=2, size=(5, 4), stride=stride, seed=0, dtype=torch.float64)
    upper = dsc.ConvDictionary.random(atoms=5, channels=4, size=3, nonzeros=2, seed=1, dtype=torch.float64)
    return dsc.Cascade([lower.with_boundary(boundaries[0]), upper.with_boundary(boundaries[1])])


@pytest.mark.parametrize(
    "boundaries", [("same", "same"), ("same", "valid"), ("valid", "same"), ("circular", "same"), ("same", "circular")]
)
def test_cascades_that_mix_boundaries(boundaries: tuple[str, str], tmp_path: Path) -> None:
    model = mixed_cascade(boundaries)
    drawn = dsc.sample(model, sparsity=(40, 3), size=(4, 3), batch=3, noise=0.1, seed=0)
    matrices = []
    size: tuple[int, ...] = (4, 3)
    for layer in reversed(model.layers):
        matrices.insert(0, explicit_matrix(layer, size))
        size = layer.signal_shape(size)[1:]
    assert drawn.signal.shape[2:] == size
    first, second = (codes.flatten(1) for codes in drawn.codes)
    torch.testing.assert_close(first, second @ matrices[1].T)
    torch.testing.assert_close(drawn.clean.flatten(1), first @ matrices[0].T)
    torch.testing.assert_close(model(drawn.codes[1]), drawn.clean)
    path = dsc.save(model, tmp_path / "model")
    loaded = dsc.load(path)
    assert isinstance(loaded, dsc.Cascade)
    assert [layer.boundary for layer in loaded.layers] == list(boundaries)
    torch.testing.assert_close(loaded(drawn.codes[1]), drawn.clean, rtol=0, atol=0)


def test_the_printed_form_has_no_coherence() -> None:
    text = str(mixed_cascade(("same", "valid")))
    lines = text.splitlines()
    assert lines[2].split()[-4:-1] == ["same", "–", "≤"]
    assert "valid" in lines[3]
    assert "–" not in lines[3]
    assert repr(mixed_cascade(("same", "valid")).layers[0]).endswith("stride=2×2, boundary='same')")


def test_effective_atoms_are_those_of_the_middle() -> None:
    model = mixed_cascade(("same", "same"))
    effective = model.effective()
    unit = torch.zeros(5, 5, 11, 11, dtype=torch.float64)
    unit[torch.arange(5), torch.arange(5), 5, 5] = 1.0
    signal = model(unit)
    first = [q * (5 - (k2 - 1) // 2) - (k1 - 1) // 2 for k2, k1, q in ((3, 5, 2), (3, 4, 2))]
    window = signal[:, :, first[0] : first[0] + 9, first[1] : first[1] + 8]
    torch.testing.assert_close(window, effective)
    assert float(signal.square().sum()) == pytest.approx(float(effective.square().sum()))


def test_matching_does_not_see_the_boundary() -> None:
    dictionary = dsc.ConvDictionary.random(atoms=5, channels=2, size=4, seed=0, dtype=torch.float64)
    order = torch.tensor([3, 1, 4, 0, 2])
    other = dictionary.with_weight(-2.0 * dictionary.kernels[order])
    for boundaries in (("same", "same"), ("valid", "same"), ("same", "circular")):
        found = dsc.match(dictionary.with_boundary(boundaries[0]), other.with_boundary(boundaries[1]))
        assert torch.equal(order[found.permutation], torch.arange(5))
        assert float(found.cosines.min()) == pytest.approx(1.0)
        assert found.signs.tolist() == [-1.0] * 5


def test_low_coherence_kernels_and_another_boundary() -> None:
    dictionary = dsc.ConvDictionary.low_coherence(atoms=2, channels=2, size=(3,), nonzeros=2, boundary="same", seed=0)
    assert dictionary.boundary == "same"
    other = dictionary.with_boundary("circular")
    assert (other.boundary, dictionary.boundary, other.stride) == ("circular", "same", dictionary.stride)
    assert other.kernels.data_ptr() == dictionary.kernels.data_ptr()
    assert math.isfinite(other.mutual_coherence())
