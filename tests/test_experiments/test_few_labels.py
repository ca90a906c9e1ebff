"""Few labels: the classifier against leaving one out in fact, features against their formulas, and the smoke runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.experiments.execute import prepare
from deep_sparse_coding.experiments.few_labels import FEW_LABELS
from deep_sparse_coding.experiments.few_labels.data import Samples, digits
from deep_sparse_coding.experiments.few_labels.experiment import SETTINGS, FewLabelsConfig
from deep_sparse_coding.experiments.few_labels.features import (
    CodeConfig,
    code_features,
    learn_codes,
    pool,
    principal_components,
)
from deep_sparse_coding.experiments.few_labels.linear import fit_linear
from deep_sparse_coding.experiments.few_labels.network import predict_cnn, small_cnn, train_cnn

F64 = torch.float64
SEEDS = st.integers(0, 2**31 - 1)
BY_NAME = {experiment.name: experiment for experiment in FEW_LABELS}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def ridge(features: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights and bias from the normal equations."""
    mean = features.mean(0)
    centered = features - mean
    gram = centered.T @ centered + penalty * torch.eye(features.shape[1], dtype=F64)
    weight = torch.linalg.solve(gram, centered.T @ (targets - targets.mean(0)))
    return weight, targets.mean(0) - mean @ weight


@pytest.mark.parametrize("shape", [(12, 30), (30, 5)])
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_classifier_is_ridge_and_its_error_that_of_leaving_one_out(shape: tuple[int, int], seed: int) -> None:
    features = 3 * normal(*shape, seed=seed) + 1
    labels = torch.randint(3, (shape[0],), generator=torch.Generator().manual_seed(seed))
    targets = 2 * F.one_hot(labels, 3).to(F64) - 1
    penalties = (1e-3, 1e-1, 10.0)
    found = fit_linear(features, labels, 3, penalties)
    scaled = (features - features.mean(0)) / found.scale
    assert float(scaled.square().sum(1).mean()) == pytest.approx(1)
    errors = {}
    for penalty in penalties:
        left_out = []
        for i in range(len(features)):
            rest = torch.arange(len(features)) != i
            weight, bias = ridge(scaled[rest], targets[rest], penalty)
            left_out.append(targets[i] - scaled[i] @ weight - bias)
        errors[penalty] = float(torch.stack(left_out).square().mean())
    assert found.penalty == min(errors, key=lambda penalty: errors[penalty])
    assert found.error == pytest.approx(errors[found.penalty], rel=1e-6)
    weight, bias = ridge(scaled, targets, found.penalty)
    assert torch.allclose(found.weight, weight, rtol=1e-6, atol=1e-9)
    assert torch.equal(found.predict(features), (scaled @ weight + bias).argmax(1))


def test_features_that_say_nothing_give_the_commonest_class() -> None:
    labels = torch.tensor([0, 1, 1, 1])
    assert fit_linear(torch.ones(4, 3, dtype=F64), labels, 2).predict(torch.ones(2, 3, dtype=F64)).tolist() == [1, 1]
    with pytest.raises(dsc.ShapeError, match="expected"):
        fit_linear(torch.ones(4, 3, dtype=F64), labels[:3], 2)
    with pytest.raises(dsc.ParameterError, match="penalties is empty"):
        fit_linear(torch.ones(4, 3, dtype=F64), labels, 2, ())


def test_codes_are_pooled_over_quadrants_by_sign() -> None:
    codes = torch.zeros(1, 1, 4, 4, dtype=F64)
    codes[0, 0, 0, 0], codes[0, 0, 3, 3], codes[0, 0, 0, 3] = 4.0, -1.0, 16.0
    assert pool(codes, 2).tolist() == [[1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]]


def test_principal_components_keep_what_varies_most() -> None:
    images = normal(50, 1, 3, 3, seed=0) * torch.linspace(1, 5, 9, dtype=F64).reshape(3, 3)
    project = principal_components(images, 9)
    flat = images.flatten(1) - images.flatten(1).mean(0)
    assert torch.allclose(project(images) @ project(images).T, flat @ flat.T)
    spread = project(images).var(0)
    assert bool((spread.diff() < 0).all())
    assert torch.allclose(principal_components(images, 2)(images), project(images)[:, :2])
    few = images[:5]  # fewer images than pixels
    found = principal_components(few, 4)(few)
    flat = few.flatten(1) - few.flatten(1).mean(0)
    assert torch.allclose(found @ found.T, flat @ flat.T)


def test_the_digits_are_split_evenly_and_apart() -> None:
    data = digits(20, seed=3)
    assert torch.bincount(data.labels).tolist() == [20] * 10
    assert len(data.test_labels) == 1797 - 200
    few, more = data.labelled(5), data.labelled(10)
    assert torch.bincount(data.labels[few]).tolist() == [5] * 10
    assert set(few.tolist()) < set(more.tolist())
    assert not torch.equal(data.raw, digits(20, seed=4).raw)
    assert torch.equal(data.raw, digits(20, seed=3).raw)
    with pytest.raises(dsc.ParameterError, match="labels is 21 and a class has 20 images"):
        data.labelled(21)
    with pytest.raises(dsc.ParameterError, match="no image left to test on"):
        digits(1000, seed=0)


def test_codes_of_digits_tell_them_apart_and_are_the_solvers() -> None:
    data: Samples = digits(20, seed=0)
    config = CodeConfig((8, 12), epochs=2, learned_from=60)
    learned = learn_codes(data.prepared, config, seed=0)
    shares: list[float] = []
    first, second = code_features(learned, data.prepared, config, shares.append)
    assert first.shape == (200, 2 * 8 * 4)
    assert second.shape == (200, 2 * 12 * 4)
    assert shares[-1] == 1.0
    assert isinstance(learned.model, dsc.Cascade)
    code = dsc.solve(dsc.Lasso(learned.model.layers[0], config.lam[0]), data.prepared[:5], tol=1e-5).codes
    assert isinstance(code, Tensor)
    assert torch.allclose(first[:5], pool(code.double(), 2), atol=0.05)
    found = fit_linear(first, data.labels, 10)
    assert float((found.predict(first) == data.labels).double().mean()) > 0.9


def test_the_network_learns_and_comes_from_its_seed() -> None:
    data = digits(10, seed=0)
    before = torch.get_rng_state()
    nets = [
        train_cnn(data.raw, data.labels, 10, 0, epochs=1, least_steps=40, advance=lambda share: None) for _ in range(2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    assert float((predict_cnn(nets[0], data.raw) == data.labels).double().mean()) > 0.9
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert small_cnn(3, 32, 10, 0)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_the_smoke_run_compares_all_and_draws(name: str, tmp_path: Path) -> None:
    job = prepare(BY_NAME[name], "smoke", out=tmp_path / "run")
    record = job.execute()
    assert record.settings == SETTINGS == job.settings
    for part in record.runs:
        assert part["labels"] == [5, 20]
        assert part["accuracy"][0] > 15  # of ten classes
        assert part["measures"] == {"accuracy_least": part["accuracy"][0], "accuracy_most": part["accuracy"][1]}
    assert [path.read_bytes()[:4] for path in job.draw(record)] == [b"\x89PNG"]


def test_errors_say_what_is_expected(tmp_path: Path) -> None:
    cifar = prepare(BY_NAME["few-labels-cifar10"], "cpu", out=tmp_path / "cifar")
    with pytest.raises(dsc.ParameterError, match="no data was given; expected --data"):
        cifar.execute()
    wrong = prepare(BY_NAME["few-labels-digits"], "cpu", config=FewLabelsConfig((10, 200)), out=tmp_path / "digits")
    with pytest.raises(dsc.ParameterError, match="expected rising numbers up to the pool's 100"):
        wrong.execute()
