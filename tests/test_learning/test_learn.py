"""Learning: planted atoms are found, the objective falls, the same seed gives the same bits, bad input is refused."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DictionaryError, DSCError, DtypeError, ParameterError, ShapeError
from deep_sparse_coding.learning import LearningProgress, LearningResult, contrast_normalize, learn

SEEDS = st.integers(0, 2**31 - 1)


def images(seed: int = 0, shape: tuple[int, ...] = (6, 1, 20, 20), dtype: torch.dtype = torch.float64) -> Tensor:
    """Signals that sparse kernels make, with noise: something to learn."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (noise.cumsum(-1) - noise.cumsum(-1).mean((-1, -2), keepdim=True)).to(dtype) / math.sqrt(shape[-1])


def layers_of(result: LearningResult) -> tuple[dsc.Dictionary, ...]:
    return result.model.layers if isinstance(result.model, dsc.Cascade) else (result.model,)


def assert_sound(result: LearningResult) -> None:
    """Unit atoms, and an objective that falls from epoch to epoch in every layer."""
    for layer in layers_of(result):
        norms = layer.column_norms()
        torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)
    for values in result.history.objective:
        assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(values))


# ---------------------------------------------------------------------- planted dictionaries


def test_planted_dense_atoms_are_found() -> None:
    planted = dsc.DenseDictionary.random(20, 40, seed=3, dtype=torch.float64)
    data = dsc.sample(planted, sparsity=3, batch=1500, noise=0.01, seed=1).signal
    result = learn(data, 40, lam=0.1, epochs=12, seed=0)
    assert isinstance(result.model, dsc.DenseDictionary)
    assert_sound(result)
    assert float((dsc.match(planted, result.model).cosines > 0.95).double().mean()) >= 0.9


@pytest.mark.parametrize(
    ("channels", "size", "stride", "boundary", "seed"),
    [(1, 7, 1, "valid", 0), (2, 5, 1, "circular", 0), (1, 8, 2, "valid", 1)],
)
def test_planted_kernels_are_found(channels: int, size: int, stride: int, boundary: str, seed: int) -> None:
    planted = dsc.ConvDictionary.random(
        atoms=8, channels=channels, size=size, stride=stride, boundary=boundary, seed=3, dtype=torch.float64
    )
    data = dsc.sample(planted, sparsity=12, size=(34, 34), batch=12, noise=0.01, seed=1).signal
    result = learn(data, 8, size=size, stride=stride, boundary=boundary, lam=0.1, epochs=12, seed=seed)
    assert isinstance(result.model, dsc.ConvDictionary)
    assert_sound(result)
    assert int((dsc.match(planted, result.model).cosines > 0.99).sum()) >= 7


def test_planted_kernels_on_one_axis_are_found() -> None:
    planted = dsc.ConvDictionary.random(atoms=4, channels=1, size=(9,), seed=3, dtype=torch.float64)
    data = dsc.sample(planted, sparsity=10, size=(200,), batch=24, noise=0.01, seed=1).signal
    result = learn(data, 4, size=(9,), lam=0.1, epochs=12, seed=0)
    assert isinstance(result.model, dsc.ConvDictionary)
    assert_sound(result)
    assert int((dsc.match(planted, result.model).cosines > 0.99).sum()) >= 3


def test_planted_nonnegative_model_is_found_with_both_constraints() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(24, 16, generator=generator, dtype=torch.float64)
    planted = dsc.DenseDictionary(matrix * (matrix > 0.6), normalize=True)
    data = dsc.sample(planted, sparsity=2, batch=800, nonnegative=True, noise=0.005, seed=1).signal
    result = learn(data, 16, lam=0.05, epochs=15, seed=0, nonnegative=True, nonnegative_atoms=True)
    assert isinstance(result.model, dsc.DenseDictionary)
    assert_sound(result)
    assert float(result.model.weight.min()) >= 0
    codes = result.encode(data[:5])
    assert isinstance(codes, Tensor)
    assert float(codes.min()) >= 0
    assert float((dsc.match(planted, result.model).cosines > 0.95).double().mean()) >= 0.9


# ---------------------------------------------------------------------- objective, layers, codes


@given(seed=SEEDS)
@settings(max_examples=5, deadline=None)
def test_objective_falls_for_every_kind(seed: int) -> None:
    data = images(seed)
    boundary = ("valid", "circular")[seed % 2]
    lam = 0.2 * float(data.abs().max())
    assert_sound(learn(data, 5, size=4, stride=2, boundary=boundary, lam=lam, epochs=4, seed=seed, batch=2, steps=5))
    assert_sound(learn(data[:, 0].flatten(0, 1), 8, lam=lam, epochs=4, seed=seed, batch=40, steps=5))


def test_history_states_the_objective_of_the_codes_it_ended_with() -> None:
    """With one part and many steps the last value is nearly the least over codes for the final atoms."""
    data = images()
    result = learn(data, 4, size=5, lam=0.5, epochs=6, seed=0, batch=6, steps=300)
    least = float(result.solve(data, tol=1e-6).certificate.objective.sum())
    recorded = result.history.objective[0][-1]
    assert least <= recorded * (1 + 1e-6)
    assert recorded <= least * 1.01


def test_two_layers_learn_the_codes_of_the_first() -> None:
    data = images(shape=(6, 2, 24, 24), dtype=torch.float32)
    seen: list[LearningProgress] = []
    result = learn(data, (6, 5), size=(5, 3), lam=(0.3, 0.2), epochs=(3, 2), seed=0, stride=1, callback=seen.append)
    assert isinstance(result.model, dsc.Cascade)
    assert_sound(result)
    assert result.model.dtype == torch.float32
    assert [tuple(layer.weight.shape) for layer in result.model.layers] == [(6, 2, 5, 5), (5, 6, 3, 3)]
    assert [(p.layer, p.epoch, p.layers, p.epochs) for p in seen] == [
        (1, 1, 2, 3), (1, 2, 2, 3), (1, 3, 2, 3), (2, 1, 2, 2), (2, 2, 2, 2),
    ]  # fmt: skip
    assert [p.objective for p in seen] == [value for values in result.history.objective for value in values]
    assert all(0 < p.density < 1 for p in seen)
    assert "layer 2: 2 epochs" in str(result)
    solution = result.solve(data[:2], tol=1e-3)
    assert bool(solution.converged.all())
    assert isinstance(solution.codes, tuple)
    assert solution.codes[1].shape == (2, 5, 18, 18)
    assert isinstance(solution.problem, dsc.LayeredLasso)


def test_dense_layers_learn_too() -> None:
    result = learn(images()[:, 0].flatten(0, 1), (24, 12), lam=(0.1, 0.05), epochs=3, seed=0)
    assert isinstance(result.model, dsc.Cascade)
    assert_sound(result)
    assert [layer.atoms for layer in result.model.layers] == [24, 12]


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator() -> None:
    data = images(dtype=torch.float32)
    state = torch.get_rng_state()
    first, again, other = (learn(data, (4, 3), size=(5, 3), lam=0.3, epochs=2, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), state)
    for one, two, three in zip(layers_of(first), layers_of(again), layers_of(other), strict=True):
        assert torch.equal(one.weight, two.weight)
        assert not torch.equal(one.weight, three.weight)
    assert first.history.objective == again.history.objective


def test_dead_atoms_are_replaced_by_what_is_missing() -> None:
    """A start whose atoms lie outside the data's space is used by no code; learning has to notice."""
    planted = dsc.DenseDictionary(torch.eye(12, dtype=torch.float64)[:, :6])
    data = dsc.sample(planted, sparsity=2, batch=100, seed=0).signal
    start = dsc.DenseDictionary(torch.eye(12, dtype=torch.float64)[:, [0, 1, 2, 8, 9, 10]])
    result = learn(data, 6, lam=0.05, epochs=8, seed=0, start=start)
    assert_sound(result)
    assert result.history.replaced[0][0] == 3
    assert result.dead_atoms == ((),)
    assert float(dsc.match(planted, layers_of(result)[0]).cosines.min()) > 0.99
    alone = learn(data, 6, lam=0.05, epochs=1, seed=0, start=start)
    assert alone.dead_atoms == ((3, 4, 5),)


def test_a_start_is_continued() -> None:
    data = images()
    first = learn(data, (4, 3), size=(5, 3), lam=0.3, epochs=4, seed=0)
    assert isinstance(first.model, dsc.Cascade)
    more = learn(data, (4, 3), size=(5, 3), lam=0.3, epochs=2, seed=0, start=first.model)
    assert more.history.objective[0][-1] <= first.history.objective[0][-1] * (1 + 1e-3)
    assert more.history.objective[0][0] < first.history.objective[0][0]


def test_scaled_data_and_lam_give_the_same_atoms() -> None:
    data, scale = images(), 2.0**-20
    one, two = (learn(c * data, 4, size=5, lam=0.4 * c, epochs=3, seed=0) for c in (1.0, scale))
    torch.testing.assert_close(layers_of(one)[0].weight, layers_of(two)[0].weight, atol=1e-9, rtol=0)
    assert two.history.objective[0][-1] == pytest.approx(scale**2 * one.history.objective[0][-1])


def test_a_list_of_images_is_the_tensor() -> None:
    data = images()
    one, two = (learn(given, 3, size=5, lam=0.4, epochs=2, seed=0) for given in (data, list(data)))
    assert torch.equal(layers_of(one)[0].weight, layers_of(two)[0].weight)


def test_more_atoms_than_different_pieces() -> None:
    data = torch.ones(3, 4, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)[:, None]
    with pytest.warns(dsc.DSCWarning, match="3 samples and atoms is 5"):
        result = learn(data, 5, lam=0.1, epochs=3, seed=0)
    assert_sound(result)


def test_blank_images_among_others_do_no_harm() -> None:
    data = torch.cat([images(), torch.zeros(2, 1, 20, 20, dtype=torch.float64)])
    assert_sound(learn(data, 3, size=5, lam=0.4, epochs=2, seed=0, batch=1))


def test_data_may_be_noncontiguous_and_require_grad() -> None:
    data = images()
    strided = data.transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    one, two = (learn(given, 3, size=5, lam=0.4, epochs=2, seed=0) for given in (data, strided))
    assert torch.equal(layers_of(one)[0].weight, layers_of(two)[0].weight)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"images": torch.zeros(2, 1, 9, 9, dtype=torch.complex64)}, DtypeError, "complex64"),
        ({"images": images().half()}, DtypeError, "float16.*half precision"),
        ({"images": images().numpy()}, DtypeError, "ndarray.*torch.as_tensor"),
        ({"images": torch.full((2, 1, 9, 9), 3.0)}, ParameterError, "every image is constant"),
        ({"images": torch.full((4, 9), 3.0), "size": None}, ParameterError, "all vectors are the same"),
        ({"images": images().index_fill(0, torch.tensor([2]), math.nan)}, ParameterError, "1 of 6 samples.*sample 2"),
        ({"images": images()[..., :4]}, ShapeError, "size 20×4, smaller than the kernels of layer 1, 5×5"),
        ({"images": images()[:, 0]}, ShapeError, r"expected 4 axes.*images\[:, None\]"),
        ({"images": images(), "size": (5,)}, ShapeError, "expected 3 axes"),
        ({"images": images(), "size": None}, ShapeError, r"expected \(n, d\) since size is None"),
        ({"images": images()[:0]}, ShapeError, "at least one sample"),
        ({"images": []}, ShapeError, "empty list"),
        ({"images": [torch.zeros(1, 9, 9), torch.zeros(2, 9, 9)]}, ShapeError, "same number of axes and of channels"),
        ({"images": [[1.0]]}, DtypeError, r"images\[0\] is a list"),
        ({"lam": 1e4}, ParameterError, "leaves every code zero.*smaller lam"),
        ({"lam": (0.4, 1e4), "atoms": (3, 3), "size": (5, 3)}, ParameterError, "lam of layer 2 is 10000"),
        ({"lam": 0.0}, ParameterError, "lam is 0"),
        ({"lam": math.nan}, ParameterError, "lam is nan"),
        ({"lam": (0.1, 0.1)}, ParameterError, "lam has 2 entries.*1 layers"),
        ({"atoms": 0}, ParameterError, "atoms is 0"),
        ({"atoms": ()}, ParameterError, "atoms is empty"),
        ({"atoms": (3, 3), "size": (5, 17)}, ShapeError, "code maps of layer 1 have size 16×16.*layer 2, 17×17"),
        ({"atoms": (3, 3), "size": (5, None)}, ParameterError, "kernel size for every layer"),
        ({"stride": 2}, ShapeError, "stride 2×2.*expected for example 19×19: crop"),
        ({"boundary": "same"}, dsc.UnsupportedError, "'same' is not offered"),
        ({"boundary": "wrap"}, ParameterError, "boundary is 'wrap'"),
        ({"epochs": 0}, ParameterError, "epochs is 0"),
        ({"batch": 0}, ParameterError, "batch is 0"),
        ({"steps": 0}, ParameterError, "steps is 0"),
        ({"seed": -1}, ParameterError, "seed is -1"),
        ({"nonnegative": (True, False)}, ParameterError, r"nonnegative is \(True, False\); expected True or False"),
        ({"nonnegative_atoms": "no"}, ParameterError, "nonnegative_atoms is 'no'; expected True or False"),
        ({"dtype": torch.float16}, DtypeError, "float16.*expected torch.float32"),
        ({"start": "model"}, DictionaryError, "start is a str"),
        ({"start": dsc.ConvDictionary.random(atoms=3, channels=1, size=4, seed=0)}, DictionaryError, "layers to be"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(change: dict[str, object], error: type[DSCError], words: str) -> None:
    given: dict[str, object] = {"images": images(), "atoms": 3, "size": 5, "lam": 0.4, "epochs": 2, "seed": 0}
    given |= change
    with pytest.raises(error, match=words):
        learn(given.pop("images"), given.pop("atoms"), **given)  # type: ignore[arg-type]


def test_images_without_channels_are_told_apart() -> None:
    with pytest.raises(ShapeError, match=r"images\[:, None\]"):
        learn(images()[0, 0], 3, size=5, lam=0.4, seed=0)


def test_encode_refuses_what_does_not_fit_and_reports_what_is_not_finite() -> None:
    data = images()
    result = learn(data, 3, size=5, lam=0.4, epochs=2, seed=0)
    with pytest.raises(ShapeError, match="channel"):
        result.encode(data.expand(-1, 2, -1, -1))
    with pytest.raises(ShapeError, match=r"2 shapes.*common size"):
        result.encode([torch.zeros(1, 9, 9), torch.zeros(1, 8, 9)])
    broken = data[:2].clone()
    broken[0] = math.nan
    with pytest.warns(dsc.DSCWarning, match="NaN"):
        solution = result.solve(broken)
    assert solution.status[0] == dsc.Status.NONFINITE_INPUT
    assert solution.status[1] == dsc.Status.CONVERGED


# ---------------------------------------------------------------------- contrast


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_contrast_normalization_takes_light_and_contrast_away(seed: int) -> None:
    data = images(seed, shape=(2, 3, 17, 23))
    plain = contrast_normalize(data, 2.0)
    assert plain.shape == data.shape
    torch.testing.assert_close(contrast_normalize(5.0 * data + 40.0, 2.0), plain, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(contrast_normalize(data.flip(-1), 2.0), plain.flip(-1), atol=1e-9, rtol=1e-9)
    assert 0.4 < float(plain.std()) < 1.3


def test_contrast_normalization_of_nothing_is_nothing() -> None:
    assert bool((contrast_normalize(torch.full((1, 1, 9, 9), 0.7, dtype=torch.float64)).abs() < 1e-12).all())
    assert contrast_normalize(torch.zeros(0, 1, 9, 9)).shape == (0, 1, 9, 9)
    tiny = torch.rand(1, 3, 2, generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(contrast_normalize(tiny, 9.0)).all())


@pytest.mark.parametrize(
    ("given_images", "given_settings", "error", "words"),
    [
        (torch.zeros(9, 9), {}, ShapeError, r"image\[None\]"),
        (torch.zeros(1, 9, 9, dtype=torch.uint8), {}, DtypeError, "uint8"),
        (torch.full((1, 9, 9), math.inf), {}, ParameterError, "not finite"),
        (torch.zeros(1, 9, 9), {"sigma": 0.0}, ParameterError, "sigma is 0"),
        (torch.zeros(1, 9, 9), {"floor": -1.0}, ParameterError, "floor is -1"),
    ],
)
def test_contrast_normalization_refuses(
    given_images: Tensor, given_settings: dict[str, float], error: type[DSCError], words: str
) -> None:
    with pytest.raises(error, match=words):
        contrast_normalize(given_images, **given_settings)
