"""Atoms held apart, sparse atoms, holes in images, images of several sizes, all layers together."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DSCError, DtypeError, ParameterError, ShapeError, UnsupportedError
from deep_sparse_coding.learning import LearningResult, learn
from deep_sparse_coding.learning.decohere import coherence_of, decohere
from deep_sparse_coding.learning.updates import from_rows, lag_table, to_rows
from strategies import SEEDS, draw_conv


def vectors() -> Tensor:
    planted = dsc.DenseDictionary.random(16, 24, seed=3, dtype=torch.float64)
    return dsc.sample(planted, sparsity=3, batch=600, noise=0.02, seed=1).signal


def images(count: int = 6, size: tuple[int, int] = (20, 20), channels: int = 1) -> Tensor:
    planted = dsc.ConvDictionary.random(atoms=5, channels=channels, size=5, seed=3, dtype=torch.float64)
    return dsc.sample(planted, sparsity=12, size=(size[0] - 4, size[1] - 4), batch=count, noise=0.02, seed=1).signal


def falls(values: tuple[float, ...]) -> bool:
    return all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(values))


def dense_of(result: LearningResult) -> dsc.DenseDictionary:
    assert isinstance(result.model, dsc.DenseDictionary)
    return result.model


# ---------------------------------------------------------------------- coherence


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_atoms_are_moved_apart_at_all_lags(seed: int) -> None:
    conv = draw_conv(seed, axes=2)
    wide = dsc.ConvDictionary.random(
        atoms=2, channels=conv.channels + 2, size=3, stride=conv.stride, seed=seed, dtype=torch.float64
    )
    rows = to_rows(wide)
    limit = max(0.6 * coherence_of(wide, rows), 0.35)
    found = decohere(wide, rows, lag_table(wide), limit, nonnegative=False, nonzeros=0, steps=2000)
    assert from_rows(wide, found).mutual_coherence() <= limit + 1e-9
    torch.testing.assert_close(torch.linalg.vector_norm(found, dim=(1, 2)), torch.ones(2, dtype=torch.float64))


def test_atoms_that_are_apart_stay() -> None:
    dictionary = dsc.DenseDictionary.random(16, 8, seed=0, dtype=torch.float64)
    rows = to_rows(dictionary)
    limit = dictionary.mutual_coherence() + 1e-3
    assert torch.equal(
        decohere(dictionary, rows, lag_table(dictionary), limit, nonnegative=False, nonzeros=0, steps=9), rows
    )


@pytest.mark.parametrize("method", ["batch", "online"])
def test_coherence_is_traded_for_error(method: str) -> None:
    """The lower the limit the larger the objective, and the more non-zeros are certain to be unique."""
    data = vectors()
    coherences, objectives, proved = [], [], []
    for limit in (None, 0.5, 0.3):
        result = learn(data, 24, lam=0.1, epochs=6, seed=0, coherence=limit, method=method)
        coherences.append(dense_of(result).mutual_coherence())
        objectives.append(float(result.solve(data, tol=1e-4).certificate.objective.sum()))
        proved.append(dsc.prove.uniqueness(dense_of(result), sparsity=2).proved)
    assert coherences[0] > 0.5
    assert coherences[1] <= 0.5
    assert coherences[2] <= 0.3
    assert objectives[0] < 1.01 * objectives[1] < 1.01 * objectives[2] < 1.6 * objectives[0]
    assert objectives[2] > 1.02 * objectives[0]
    assert proved == [False, False, True]


def test_coherence_of_kernels_counts_shifts() -> None:
    result = learn(images(), 4, size=5, lam=0.2, epochs=4, seed=0, coherence=0.4)
    assert isinstance(result.model, dsc.ConvDictionary)
    assert result.model.mutual_coherence() <= 0.4


# ---------------------------------------------------------------------- sparse atoms


def test_sparse_atoms_of_a_second_layer() -> None:
    result = learn(images(), (5, 4), size=(5, 3), lam=0.2, epochs=4, seed=0, nonzeros=(None, 6))
    assert isinstance(result.model, dsc.Cascade)
    first, second = result.model.layers
    assert int((second.weight != 0).flatten(1).sum(1).max()) <= 6
    assert int((first.weight != 0).flatten(1).sum(1).min()) > 6
    assert all(falls(values) for values in result.history.objective)


@pytest.mark.parametrize("nonnegative_atoms", [False, True])
def test_sparse_dense_atoms_still_fall(nonnegative_atoms: bool) -> None:
    result = learn(vectors(), 20, lam=0.1, epochs=5, seed=0, nonzeros=4, nonnegative_atoms=nonnegative_atoms)
    weight = dense_of(result).weight
    assert int((weight != 0).sum(0).max()) <= 4
    assert not nonnegative_atoms or float(weight.min()) >= 0
    assert falls(result.history.objective[0])
    torch.testing.assert_close(weight.norm(dim=0), torch.ones(20, dtype=torch.float64))


# ---------------------------------------------------------------------- holes


def test_planted_atoms_are_found_through_holes() -> None:
    """A third of the entries is missing, and what stands there is not looked at."""
    planted = dsc.DenseDictionary.random(16, 20, seed=3, dtype=torch.float64)
    data = dsc.sample(planted, sparsity=2, batch=1500, noise=0.01, seed=1).signal
    seen = torch.rand(data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) > 0.33
    result = learn(torch.where(seen, data, float("nan")), 20, lam=0.05, epochs=12, seed=0, mask=seen)
    assert falls(result.history.objective[0])
    assert float((dsc.match(planted, dense_of(result)).cosines > 0.9).double().mean()) >= 0.75


@pytest.mark.parametrize("seed", [1, 2])
def test_kernels_learned_through_holes_are_nearly_those_of_whole_images(seed: int) -> None:
    data = images(8)
    seen = torch.rand(data.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) > 0.2
    told = {"size": 5, "lam": 0.1, "epochs": 8, "seed": seed}
    through = learn(torch.where(seen, data, float("nan")), 5, mask=seen, **told)  # type: ignore[arg-type]
    blind, whole = (learn(x, 5, **told) for x in (torch.where(seen, data, 0.0), data))  # type: ignore[arg-type]
    assert falls(through.history.objective[0])
    ends = [float(one.solve(data, tol=1e-3).certificate.objective.sum()) for one in (whole, through, blind)]
    assert ends[1] < 1.02 * ends[0]
    assert ends[2] > 1.3 * ends[0]


def test_the_objective_counts_what_was_observed() -> None:
    data = images(4)
    seen = torch.rand(data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) > 0.3
    result = learn(data, 4, size=5, lam=0.2, epochs=6, seed=0, mask=seen, batch=4, tol=1e-6, steps=200)
    assert isinstance(result.model, dsc.ConvDictionary)
    least = float(dsc.solve(dsc.Lasso(result.model, 0.2, mask=seen), data).certificate.objective.sum())
    assert least <= result.history.objective[0][-1] * (1 + 1e-6)
    assert result.history.objective[0][-1] <= 1.05 * least


# ---------------------------------------------------------------------- sizes, colors


@pytest.mark.parametrize("method", ["batch", "online"])
def test_images_of_several_sizes(method: str) -> None:
    mixed = [*images(3, (20, 20), 3), *images(3, (26, 18), 3)]
    result = learn(mixed, 4, size=5, lam=0.2, epochs=4, seed=0, method=method, mask=[torch.ones_like(x) for x in mixed])
    assert isinstance(result.model, dsc.ConvDictionary)
    assert result.model.channels == 3
    if method == "batch":
        assert falls(result.history.objective[0])
    plain = learn(mixed, 4, size=5, lam=0.2, epochs=4, seed=0, method=method)
    assert result.history.objective[0][-1] == pytest.approx(plain.history.objective[0][-1], rel=0.02)
    assert isinstance(result.encode(mixed[0][None]), Tensor)


def test_three_layers_of_strides() -> None:
    result = learn(images(4, (29, 29)), (4, 4, 3), size=(5, 3, 3), stride=(2, 1, 1), lam=0.15, epochs=2, seed=0)
    assert isinstance(result.model, dsc.Cascade)
    assert len(result.model.layers) == 3
    assert all(falls(values) for values in result.history.objective)


# ---------------------------------------------------------------------- all layers together


@pytest.mark.parametrize("masked", [False, True])
def test_joint_refinement_lowers_the_joint_objective(masked: bool) -> None:
    data = images(4)
    seen = torch.rand(data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) > 0.2
    mask = seen if masked else None
    result = learn(data, (5, 4), size=(5, 3), lam=0.1, epochs=3, seed=0, joint=3, beta=(1.0, 2.0), mask=mask)
    assert isinstance(result.model, dsc.Cascade)
    values = result.history.joint
    assert len(values) == 4
    assert falls(values)
    assert values[-1] < 0.98 * values[0]
    problem = dsc.JointLasso(result.model, 0.1, (1.0, 2.0), mask=mask)
    least = float(dsc.solve(problem, data, tol=1e-3).certificate.objective.sum())
    assert least <= values[-1] * (1 + 1e-3)
    assert "all layers: 3 epochs" in str(result)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"coherence": 0.0}, ParameterError, "coherence is 0"),
        ({"coherence": 1.5}, ParameterError, "coherence is 1.5"),
        ({"images": vectors(), "size": None, "atoms": 64, "coherence": 0.1}, ParameterError, "0.2182 .the Welch bound"),
        ({"nonzeros": 0}, ParameterError, "nonzeros is 0"),
        ({"nonzeros": (2, 2)}, ParameterError, "nonzeros has 2 entries.*1 layers"),
        ({"mask": torch.ones(3, 3)}, ShapeError, "mask has shape .3, 3.; expected one that broadcasts"),
        ({"mask": torch.full((6, 1, 20, 20), 0.5)}, ParameterError, "neither 0 nor 1"),
        ({"mask": torch.zeros(6, 1, 20, 20)}, ParameterError, "6 samples of which nothing was observed"),
        ({"mask": [torch.ones(1, 20, 20)] * 6}, DtypeError, "mask is a list; expected as images, a Tensor"),
        ({"mask": "holes"}, DtypeError, "mask is a str"),
        ({"mask": torch.ones(6, 1, 20, 20), "heldout": 0.2}, UnsupportedError, "heldout as a share.*mask"),
        ({"heldout": 1.0}, ParameterError, "heldout is 1.0 of 6 images"),
        ({"heldout": torch.ones(2, 3, 20, 20)}, ParameterError, "expected 1 channels"),
        ({"joint": 2}, ParameterError, "joint is for cascades"),
        ({"patience": 0}, ParameterError, "patience is 0"),
        ({"method": "minibatch"}, ParameterError, "method is 'minibatch'; expected 'online', 'batch'"),
        ({"tol": 0.0}, ParameterError, "tol is 0"),
        ({"forgetting": -1.0}, ParameterError, "forgetting is -1"),
        ({"images": [images(1)[0], images(1)[0][:, :4]]}, ShapeError, "smaller than the kernels"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, object], error: type[DSCError], words: str) -> None:
    given: dict[str, object] = {"images": images(), "atoms": 3, "size": 5, "lam": 0.2, "epochs": 2, "seed": 0} | change
    with pytest.raises(error, match=words):
        learn(given.pop("images"), given.pop("atoms"), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_integers_are_scaled_and_that_is_said(dtype: torch.dtype) -> None:
    top = torch.iinfo(dtype).max
    whole = (images() - images().min()).mul(top / 20).clamp(0, top).to(dtype)
    with pytest.warns(dsc.DSCWarning, match=f"divided by {top}"):
        one = learn(whole, 3, size=5, lam=0.02, epochs=2, seed=0)
    two = learn(whole.double().div(top).float(), 3, size=5, lam=0.02, epochs=2, seed=0)
    assert isinstance(one.model, dsc.ConvDictionary)
    assert isinstance(two.model, dsc.ConvDictionary)
    assert torch.equal(one.model.weight, two.model.weight)
