"""Learning online: the planted atoms are found from batches, a learner that was saved goes on to the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DSCError, FileFormatError, ParameterError, ShapeError, UnsupportedError
from deep_sparse_coding.learning import learn
from deep_sparse_coding.learning.online import OnlineLearner


def planted_vectors(dtype: torch.dtype = torch.float64) -> tuple[dsc.DenseDictionary, Tensor]:
    planted = dsc.DenseDictionary.random(16, 24, seed=3, dtype=dtype)
    return planted, dsc.sample(planted, sparsity=2, batch=2000, noise=0.01, seed=1).signal


def planted_images(count: int = 24) -> tuple[dsc.ConvDictionary, Tensor]:
    planted = dsc.ConvDictionary.random(atoms=4, channels=2, size=5, seed=3, dtype=torch.float64)
    return planted, dsc.sample(planted, sparsity=10, size=(24, 24), batch=count, noise=0.01, seed=1).signal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learner_finds_planted_atoms_from_batches(dtype: torch.dtype) -> None:
    planted, data = planted_vectors(dtype)
    learner = OnlineLearner(24, lam=0.1, seed=0)
    for _ in range(4):
        for batch in data.split(100):
            learner.partial_fit(batch)
    assert learner.model.dtype == dtype
    assert learner.samples == 8000
    assert float((dsc.match(planted, learner.model).cosines > 0.95).double().mean()) >= 0.9
    early, late = learner.objectives[:10], learner.objectives[-10:]
    assert sum(late) < 0.8 * sum(early)
    norms = learner.model.column_norms()
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)


def test_a_learner_finds_planted_kernels() -> None:
    planted, data = planted_images()
    learner = OnlineLearner(4, size=5, lam=0.1, seed=0)
    for _ in range(2):
        for batch in data.split(2):
            learner.partial_fit(batch)
    assert int((dsc.match(planted, learner.model).cosines > 0.97).sum()) >= 3


def test_dead_atoms_come_to_life() -> None:
    """Atoms outside the data's space are never used, and replaced after ten batches."""
    planted = dsc.DenseDictionary(torch.eye(12, dtype=torch.float64)[:, :6])
    data = dsc.sample(planted, sparsity=2, batch=3000, seed=0).signal
    start = dsc.DenseDictionary(torch.eye(12, dtype=torch.float64)[:, [0, 1, 2, 8, 9, 10]])
    learner = OnlineLearner(6, lam=0.05, seed=0, start=start)
    for batch in data.split(20):
        learner.partial_fit(batch)
    used = dsc.solve(dsc.Lasso(learner.model, 0.05), data).codes
    assert isinstance(used, Tensor)
    assert int((used != 0).any(0).sum()) == 6
    assert sum(learner.objectives[-10:]) < 0.3 * sum(learner.objectives[:10])


def test_what_is_old_is_forgotten() -> None:
    """After the data have changed, the learner that forgets follows them, the other one lags behind."""
    data = [planted_vectors()[1][:600], dsc.sample(
        dsc.DenseDictionary.random(16, 24, seed=9, dtype=torch.float64), sparsity=2, batch=600, noise=0.01, seed=5
    ).signal]  # fmt: skip
    lasts = []
    for forgetting in (0.0, 6.0):
        learner = OnlineLearner(24, lam=0.1, seed=0, forgetting=forgetting)
        for part in data:
            for batch in part.split(50):
                learner.partial_fit(batch)
        lasts.append(sum(learner.objectives[-3:]))
    assert lasts[1] < 0.97 * lasts[0]


def test_a_saved_learner_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    _, data = planted_images(8)
    whole = OnlineLearner(4, size=5, lam=0.1, seed=0, nonzeros=12)
    half = OnlineLearner(4, size=5, lam=0.1, seed=0, nonzeros=12)
    for batch in data.split(1):
        whole.partial_fit(batch)
    for batch in data[:4].split(1):
        half.partial_fit(batch)
    half.save(tmp_path / "learner.safetensors")
    resumed = OnlineLearner.load(tmp_path / "learner.safetensors")
    assert torch.equal(resumed.model.weight, half.model.weight)
    for batch in data[4:].split(1):
        resumed.partial_fit(batch)
    assert torch.equal(resumed.model.weight, whole.model.weight)
    assert resumed.objectives == whole.objectives
    assert resumed.samples == 8
    with pytest.raises(FileFormatError, match="is not a file"):
        OnlineLearner.load(tmp_path / "none.safetensors")


def test_a_data_loader_is_gone_through_once_per_epoch() -> None:
    planted, data = planted_vectors()
    loader = DataLoader(TensorDataset(data, torch.zeros(len(data))), batch_size=100)
    result = learn(loader, 24, lam=0.1, epochs=4, seed=0, heldout=data[:50])
    assert isinstance(result.model, dsc.DenseDictionary)
    assert result.method == "online"
    assert len(result.history.objective[0]) == 4
    assert result.history.heldout[0][-1] < result.history.heldout[0][0]
    assert float((dsc.match(planted, result.model).cosines > 0.95).double().mean()) >= 0.9


def test_a_cascade_is_learned_from_a_stream() -> None:
    _, data = planted_images(6)
    loader = DataLoader(TensorDataset(data), batch_size=2)
    result = learn(loader, (4, 3), size=(5, 3), lam=(0.1, 0.1), epochs=(2, 1), seed=0)
    assert isinstance(result.model, dsc.Cascade)
    assert [layer.atoms for layer in result.model.layers] == [4, 3]
    again = learn(loader, (4, 3), size=(5, 3), lam=(0.1, 0.1), epochs=(2, 1), seed=0)
    assert isinstance(again.model, dsc.Cascade)
    assert torch.equal(result.model.layers[1].weight, again.model.layers[1].weight)


def test_a_generator_is_enough_for_one_epoch_and_missed_in_the_second() -> None:
    _, data = planted_vectors()

    def batches() -> Iterator[Tensor]:
        yield from data.split(200)

    assert learn(batches(), 24, lam=0.1, epochs=1, seed=0).history.objective[0]
    with pytest.raises(ParameterError, match=r"gave no batch in this epoch.*epochs=1"):
        learn(batches(), 24, lam=0.1, epochs=2, seed=0)


def test_online_in_memory_is_near_batch() -> None:
    _, data = planted_vectors()
    results = [learn(data, 24, lam=0.1, epochs=5, seed=0, method=m, heldout=0.1) for m in ("online", "batch")]
    ends = [result.history.heldout[0][-1] for result in results]
    assert [result.method for result in results] == ["online", "batch"]
    assert ends[0] == pytest.approx(ends[1], rel=0.1)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"method": "batch"}, UnsupportedError, "method: needs all data in memory"),
        ({"checkpoint": "x"}, UnsupportedError, "checkpoint: needs all data.*OnlineLearner.save"),
        ({"heldout": 0.1}, UnsupportedError, "heldout as a share needs all data"),
        ({"images": iter([])}, ShapeError, "iterable without batches"),
        ({"images": iter([torch.ones(4, 16), torch.ones(4, 15)])}, ParameterError, "nothing to learn from"),
    ],
)
def test_streams_refuse(settings: dict[str, object], error: type[DSCError], words: str) -> None:
    _, data = planted_vectors()
    images = settings.pop("images", iter(data.split(100)))
    with pytest.raises(error, match=words):
        learn(images, 24, lam=0.1, epochs=1, seed=0, **settings)  # type: ignore[arg-type]


def test_a_learner_refuses() -> None:
    _, data = planted_vectors()
    learner = OnlineLearner(24, lam=0.1, seed=0)
    with pytest.raises(ParameterError, match="has seen no batch"):
        _ = learner.model
    with pytest.raises(ParameterError, match="leaves every code zero"):
        OnlineLearner(24, lam=1e6, seed=0).partial_fit(data)
    learner.partial_fit(data[:100])
    with pytest.raises(ShapeError, match="expected 16 channels"):
        learner.partial_fit(data[:100, :9])
    with pytest.raises(ParameterError, match="not finite in 1 of 1 samples"):
        learner.partial_fit(torch.full((1, 16), float("nan"), dtype=torch.float64))
    before = learner.model.weight.clone()
    learner.partial_fit(torch.zeros(8, 16, dtype=torch.float64))  # a batch of zeros teaches nothing and does no harm
    assert bool(torch.isfinite(learner.model.weight).all())
    assert float((learner.model.weight - before).norm()) < 0.5
    with pytest.raises(ParameterError, match="atoms is 0"):
        OnlineLearner(0, lam=0.1, seed=0)
    with pytest.warns(dsc.DSCWarning, match="5 samples and atoms is 24"):
        OnlineLearner(24, lam=0.1, seed=0).partial_fit(data[:5])
    with pytest.raises(ShapeError, match="smaller than the kernels"):
        OnlineLearner(3, size=9, lam=0.1, seed=0).partial_fit(torch.rand(1, 1, 8, 20))
