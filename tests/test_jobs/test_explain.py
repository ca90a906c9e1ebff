"""Which atoms explain a region: shares against contributions written out, and defects that nothing explains."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.jobs.anomaly import anomaly_map
from deep_sparse_coding.jobs.explain import explain, region_mask
from deep_sparse_coding.jobs.explain_figures import plot_anomaly, plot_explanation

F64 = torch.float64
SEEDS = st.integers(0, 2**31 - 1)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def sparse(*shape: int, seed: int, share: float = 0.1) -> Tensor:
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1), dtype=F64) < share
    return torch.where(kept, normal(*shape, seed=seed), 0.0)


def model_of(kind: str, seed: int) -> tuple[dsc.Dictionary | dsc.Cascade, Tensor]:
    if kind == "dense":
        return dsc.DenseDictionary.random(12, 30, seed=seed, dtype=F64), sparse(30, seed=seed, share=0.3)
    first = dsc.ConvDictionary.random(atoms=4, channels=3, size=5, stride=2, seed=seed, dtype=F64)
    if kind == "cascade":
        second = dsc.ConvDictionary.random(atoms=6, channels=4, size=3, seed=seed, dtype=F64)
        return dsc.Cascade([first, second]), sparse(6, 5, 4, seed=seed)
    boundary = "valid" if kind == "conv" else kind
    return first.with_boundary(boundary), sparse(4, 7, 6, seed=seed)


def contributions(model: dsc.Dictionary | dsc.Cascade, code: Tensor) -> list[tuple[tuple[int, ...], Tensor]]:
    """The image of every non-zero by itself, the slow way."""
    every = []
    for place in map(tuple, (code != 0).nonzero().tolist()):
        alone = torch.zeros_like(code)
        alone[place] = code[place]
        every.append((place, model.synthesize(alone)))
    return every


@pytest.mark.parametrize("kind", ["dense", "conv", "circular", "same", "cascade"])
@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_shares_are_those_of_contributions_written_out_and_add_up_to_one(kind: str, seed: int) -> None:
    model, code = model_of(kind, seed)
    estimate = model.synthesize(code)
    spatial = tuple(estimate.shape) if kind == "dense" else tuple(estimate.shape[1:])
    inside = torch.rand(spatial, generator=torch.Generator().manual_seed(seed)) < 0.2
    inside.flatten()[0] = True
    found = explain(code, model, inside)
    held = estimate[..., inside]
    expected = {}
    for place, image in contributions(model, code):
        part = image[..., inside]
        if float(part.abs().max()) > 0:
            expected[place] = (float((part * held).sum() / held.square().sum()), float(part.mean()))
    got = {
        (int(atom), *place): (share, value)
        for atom, place, share, value in zip(
            found.atoms, found.places.tolist(), found.shares.tolist(), found.values.tolist(), strict=True
        )
    }
    assert got.keys() == expected.keys()
    for place, numbers in expected.items():
        assert got[place] == pytest.approx(numbers, rel=1e-9, abs=1e-12)
    if expected:
        assert float(found.shares.sum()) == pytest.approx(1, abs=1e-9)
        assert float(found.by_atom().sum()) == pytest.approx(1, abs=1e-9)
        assert float(found.values.sum()) == pytest.approx(found.reconstruction, abs=1e-9)
        assert found.energy == pytest.approx(float(held.square().sum()))
    assert bool((found.shares.diff() <= 1e-12).all())
    assert len(found.by_atom()) == found.count


def test_a_pixel_a_box_and_the_whole_are_regions() -> None:
    model, code = model_of("conv", 3)
    image = model.synthesize(code)
    pixel, box = explain(code, model, (4, -1)), explain(code, model, (slice(2, 5), slice(0, 3)))
    assert pixel.region.nonzero().tolist() == [[4, image.shape[2] - 1]]
    assert pixel.reconstruction == pytest.approx(float(image[:, 4, -1].mean()))
    assert box.energy == pytest.approx(float(image[:, 2:5, :3].square().sum()))
    assert len(explain(code, model)) == int((code != 0).sum())
    assert region_mask(3, (5,)).nonzero().tolist() == [[3]]


def test_a_solution_brings_its_signal_and_a_cascade_its_layers() -> None:
    cascade, deepest = model_of("cascade", 5)
    assert isinstance(cascade, dsc.Cascade)
    signal = torch.stack([cascade.synthesize(deepest), cascade.synthesize(0.5 * deepest)])
    solution = dsc.solve(dsc.LayeredLasso(cascade, (0.05, 0.05)), signal, tol=1e-6)
    for layer, code in enumerate(solution.codes, start=1):
        found = explain(solution, cascade, (6, 7), layer=layer, sample=1)
        estimate = dsc.Cascade(cascade.layers[:layer]).synthesize(code)[1]
        left, whole = (x[:, 6, 7].square().sum() for x in (signal[1] - estimate, signal[1]))
        assert found.layer == layer
        assert found.residual == pytest.approx(float(left / whole), rel=1e-9)
        assert float(found.shares.sum()) == pytest.approx(1)
    assert explain(solution, cascade, (6, 7), sample=1).layer == 2
    assert "layer 2: " in str(explain(solution, cascade, sample=0))
    assert "more" in str(explain(solution, cascade, sample=0, layer=1))


def test_where_nothing_reaches_there_is_nothing_to_share() -> None:
    model, code = model_of("conv", 0)
    none = explain(torch.zeros_like(code), model, (0, 0), signal=torch.zeros_like(model.synthesize(code)))
    assert len(none) == 0
    assert none.energy == 0
    assert none.residual is None
    assert float(none.by_atom().abs().sum()) == 0


def test_errors_say_what_is_expected() -> None:
    model, code = model_of("conv", 0)
    cascade, deepest = model_of("cascade", 0)
    with pytest.raises(dsc.ParameterError, match="region has 1 axes; expected 2"):
        explain(code, model, 3)
    with pytest.raises(dsc.ParameterError, match="index 99; expected -17 to 16"):
        explain(code, model, (99, 0))
    with pytest.raises(dsc.ParameterError, match="is empty"):
        explain(code, model, (slice(3, 3), 0))
    with pytest.raises(dsc.DtypeError, match="mask of True and False"):
        explain(code, model, torch.ones(17, 15))
    with pytest.raises(dsc.ShapeError, match=r"region has shape \(3, 3\)"):
        explain(code, model, torch.ones(3, 3, dtype=torch.bool))
    with pytest.raises(dsc.ParameterError, match="2 samples and sample is None"):
        explain(torch.stack([code, code]), model)
    with pytest.raises(dsc.ParameterError, match="sample is 2 and codes has 2 samples"):
        explain(torch.stack([code, code]), model, sample=2)
    with pytest.raises(dsc.ParameterError, match="layer is 3; expected 1 to 2"):
        explain(deepest, cascade, layer=3)
    with pytest.raises(dsc.ShapeError, match="one tensor per layer"):
        explain(deepest, cascade, layer=1)
    with pytest.raises(dsc.ShapeError, match="a tuple of 2"):
        explain((deepest,), cascade)
    with pytest.raises(dsc.ParameterError, match="not finite"):
        explain(torch.full_like(code, torch.nan), model)
    with pytest.raises(dsc.ShapeError, match="what the codes make"):
        explain(code, model, signal=torch.zeros(3, 5, 5, dtype=F64))


# ---------------------------------------------------------------------- anomalies


@pytest.mark.parametrize("kind", ["surprise", "energy"])
@settings(max_examples=5, deadline=None)
@given(seed=SEEDS)
def test_a_planted_defect_is_the_maximum(kind: str, seed: int) -> None:
    model = dsc.ConvDictionary.random(atoms=1, channels=1, size=7, stride=2, boundary="circular", seed=seed, dtype=F64)
    image = model.synthesize(sparse(1, 20, 20, seed=seed, share=0.5))
    row, column = torch.randint(2, 32, (2,), generator=torch.Generator().manual_seed(seed)).tolist()
    noise = normal(6, 6, seed=seed + 7)
    image[0, row : row + 6, column : column + 6] = 2 * float(image.std()) * noise
    solution = dsc.solve(dsc.Lasso(model, 0.01), image[None], tol=1e-4)
    found = anomaly_map(solution, model, sigma=2.0, kind=kind)
    assert found.shape == (1, 40, 40)
    assert float(found.min()) >= 0
    top, left = divmod(int(found.argmax()), 40)
    assert row - 1 <= top <= row + 6
    assert column - 1 <= left <= column + 6


def test_the_map_is_what_its_formula_says() -> None:
    model, code = model_of("conv", 4)
    image = model.synthesize(code) + 0.1 * normal(3, 17, 15, seed=1)
    from scipy.ndimage import gaussian_filter

    estimate = model.synthesize(code)
    energies = [x.square().sum(0).numpy() for x in (image - estimate, estimate)]
    left, explained = (gaussian_filter(x, 1.5, mode="reflect") for x in energies)
    explained = explained + explained.mean()
    expected = -torch.log(torch.from_numpy(explained / (explained + left)))
    assert torch.allclose(anomaly_map(code, model, image, sigma=1.5, kind="surprise"), expected, rtol=1e-9)
    assert torch.allclose(anomaly_map(code, model, image, sigma=1.5), torch.from_numpy(left), rtol=1e-9)
    assert float(anomaly_map(code, model, estimate).abs().max()) == 0


def test_a_cascade_is_judged_by_its_deepest_codes() -> None:
    cascade, deepest = model_of("cascade", 2)
    image = cascade.synthesize(deepest)
    assert float(anomaly_map((torch.zeros(4, 7, 6, dtype=F64), deepest), cascade, image).abs().max()) < 1e-20
    assert bool(torch.isfinite(anomaly_map(torch.zeros_like(deepest), cascade, image, kind="surprise")).all())


def test_errors_of_the_map_say_what_is_expected() -> None:
    model, code = model_of("conv", 0)
    dense, vector = model_of("dense", 0)
    image = model.synthesize(code)
    with pytest.raises(dsc.ParameterError, match="kind is 'noise'; expected 'energy' or 'surprise'"):
        anomaly_map(code, model, image, kind="noise")
    with pytest.raises(dsc.ParameterError, match="signal is None"):
        anomaly_map(code, model)
    with pytest.raises(dsc.ShapeError, match="model is dense"):
        anomaly_map(vector, dense, dense.synthesize(vector))
    with pytest.raises(dsc.ShapeError, match="what codes make"):
        anomaly_map(code, model, torch.zeros(3, 9, 9, dtype=F64))


# ---------------------------------------------------------------------- figures


def test_figures_show_image_atoms_and_maximum() -> None:
    model = dsc.ConvDictionary.random(atoms=4, channels=1, size=5, seed=0, dtype=F64)
    code = sparse(4, 16, 16, seed=0)
    image = model.synthesize(code)
    found = explain(code, model, (slice(8, 11), slice(8, 11)), signal=image)
    figure = plot_explanation(found, model, image, limit=4)
    assert len(figure.axes) == 1 + min(4, len(found))
    assert f"{100 * float(found.shares[0]):.0f} %" in figure.axes[1].get_title("left")
    scores = anomaly_map(code, model, image + (torch.arange(20) == 9).double())
    assert len(plot_anomaly(image, scores).axes) >= 2
    with pytest.raises(dsc.ShapeError, match="image has shape"):
        plot_explanation(found, model, torch.zeros(1, 5, 5))
    with pytest.raises(dsc.ShapeError, match="scores have shape"):
        plot_anomaly(image, scores[:5])
