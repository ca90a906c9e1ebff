"""The calls of the guide run as written, and say what they say for the dictionaries that users have."""

from __future__ import annotations

import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DSCError, UnsupportedError


@pytest.fixture(scope="module")
def model() -> dsc.Cascade:
    first = dsc.ConvDictionary.random(atoms=32, channels=3, size=7, stride=2, seed=0)
    return dsc.Cascade([first, dsc.ConvDictionary.random(atoms=64, channels=32, size=5, nonzeros=4, seed=1)])


def test_before_a_signal_is_seen(model: dsc.Cascade) -> None:
    answers = [
        dsc.prove.stability(model, sparsity=(3, 2), noise=0.01, epsilon=(0.0, 0.0)),
        dsc.prove.stability(model, sparsity=(3, 2), noise=0.01, epsilon=(0.0, 0.0), kind="l1"),
        dsc.prove.stability(model, sparsity=(3, 2), noise=0.01, epsilon=(0.0, 0.0), kind="lagrangian"),
        dsc.prove.recovery(model, sparsity=(3, 2)),
        dsc.prove.convergence(model, sparsity=(3, 2), amplitude=1.0, noise=0.0, steps=(20, 20)),
    ]
    for answer in answers:
        assert not answer.proved  # random kernels of this size overlap too much: the worst case is empty
        assert answer.decisive
        assert all(not condition.holds for condition in answer.decisive)
        assert str(answer).startswith("not proved: ")
        assert "missing layer" in str(answer)
        assert "docs/theory.md" in answer.source


def test_after_solving(model: dsc.Cascade) -> None:
    signal = torch.randn(2, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    solution = dsc.solve(dsc.LayeredLasso(model, lam=(2.0, 0.5)), signal, tol=1e-5)
    layers = dsc.prove.robustness(solution, radius=0.01)
    assert isinstance(layers, tuple)
    assert [layer.note for layer in layers] == ["layer 1", "layer 2, for every input that layer 1 can give"]
    assert float(layers[0].asked.max()) == pytest.approx(0.01)
    assert bool((layers[1].asked >= layers[0].moves).all())


def test_atoms_that_a_border_cuts_off_have_no_guarantee_from_lags() -> None:
    dictionary = dsc.ConvDictionary.random(atoms=3, channels=1, size=(3,), seed=0, boundary="same")
    with pytest.raises(UnsupportedError):
        dsc.prove.stability(dictionary, 1, noise=0.1)
    for kind in ("l1", "lagrangian"):
        with pytest.raises(DSCError):
            dsc.prove.stability(dictionary, 1, noise=0.1, kind=kind)
    with pytest.raises(DSCError):
        dsc.prove.recovery(dictionary, 1, size=16)
    with pytest.raises(DSCError):
        dsc.prove.convergence(dictionary, 1, steps=3)
    signal = torch.randn(16, generator=torch.Generator().manual_seed(0))[None]
    with pytest.raises(DSCError):
        dsc.prove.against_truth(dictionary, signal, torch.zeros(3, 16), 1)
    solution = dsc.solve(dsc.Lasso(dictionary.double(), 0.5), signal.double())
    assert bool((dsc.prove.robustness(solution).radius > 0).all())  # type: ignore[union-attr]
