"""Task-driven learning: labels reach the atoms, and the digits are told apart better than without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DictionaryError, DSCError, DtypeError, ParameterError, ShapeError
from deep_sparse_coding.learning import learn
from deep_sparse_coding.learning.supervised import SupervisedProgress, learn_supervised


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 1,000 digits to learn from and the rest to test on, unit vectors."""
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    signals, labels = torch.tensor(pixels, dtype=torch.float64), torch.tensor(classes)
    signals = signals / signals.norm(dim=1, keepdim=True)
    order = torch.randperm(len(signals), generator=torch.Generator().manual_seed(seed))
    return signals[order[:1000]], labels[order[:1000]], signals[order[1000:]], labels[order[1000:]]


def test_labels_improve_the_codes_of_digits() -> None:
    """Held-out accuracy over three splits: with labels reaching the atoms above that of atoms learned without."""
    gains = []
    for seed in range(3):
        train, labels, test, truth = digits(seed)
        model = learn(train, 20, lam=0.1, epochs=10, seed=seed).model
        assert isinstance(model, dsc.DenseDictionary)
        told = {"lam": 0.1, "seed": seed, "epochs": 8}
        shares = []
        for freeze in (True, False):
            result = learn_supervised(train, labels, model, freeze_atoms=freeze, **told)  # type: ignore[arg-type]
            shares.append(float((result.predict(test) == truth).double().mean()))
        gains.append(shares[1] - shares[0])
        assert shares[1] > 0.95
    assert min(gains) > 0.005
    assert sum(gains) / 3 > 0.015


def test_the_same_seed_gives_the_same_bits_and_the_start_is_left_alone() -> None:
    train, labels, _, _ = digits(0)
    start = dsc.DenseDictionary.random(64, 12, seed=0, dtype=torch.float64)
    before = start.weight.clone()
    seen: list[SupervisedProgress] = []
    one, two = (
        learn_supervised(train[:200], labels[:200], start, lam=0.1, seed=5, epochs=3, nonnegative=True, callback=call)
        for call in (seen.append, lambda p: None)
    )
    assert torch.equal(start.weight, before)
    assert torch.equal(one.model.weight, two.model.weight)
    assert torch.equal(one.weight, two.weight)
    assert [p.loss for p in seen] == list(one.loss)
    assert one.loss[-1] < one.loss[0]
    assert float(one.encode(train[:5]).min()) >= 0
    norms = one.model.column_norms()
    torch.testing.assert_close(norms, torch.ones_like(norms))
    stopped = learn_supervised(train[:200], labels[:200], start, lam=0.1, seed=5, epochs=3, callback=lambda p: True)
    assert len(stopped.loss) == 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"labels": torch.zeros(50)}, DtypeError, "labels is torch.float32; expected a tensor of int64"),
        ({"labels": torch.zeros(49, dtype=torch.int64)}, ShapeError, r"labels has shape \(49,\)"),
        ({"labels": torch.zeros(50, dtype=torch.int64)}, ParameterError, "labels run from 0 to 0"),
        ({"labels": torch.arange(50) - 1}, ParameterError, "labels run from -1"),
        ({"start": torch.ones(64, 5)}, DictionaryError, "start is a Tensor"),
        ({"signals": torch.rand(50, 63, dtype=torch.float64)}, ShapeError, "64"),
        ({"lam": 1e6}, ParameterError, "leaves every code zero"),
        ({"rate": 0.0}, ParameterError, "rate is 0"),
        ({"epochs": 0}, ParameterError, "epochs is 0"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], error: type[DSCError], words: str) -> None:
    given: dict[str, object] = {
        "signals": torch.rand(50, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        "labels": torch.arange(50) % 2,
        "start": dsc.DenseDictionary.random(64, 12, seed=0, dtype=torch.float64),
        "lam": 0.1,
        "seed": 0,
    } | change
    with pytest.raises(error, match=words):
        learn_supervised(given.pop("signals"), given.pop("labels"), given.pop("start"), **given)  # type: ignore[arg-type]
