"""Settings and data that cannot be used, and what is said about codes that did not converge or are all zero."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning, NotFittedError

import deep_sparse_coding as dsc
from deep_sparse_coding.estimators import DeepSparseCoder, DictionaryLearner, SparseCoder

X = np.random.default_rng(0).normal(size=(60, 6))
ROWS = np.eye(6)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (SparseCoder(lam=-1), "lam is -1.0; expected a finite number at least 0"),
        (SparseCoder(lam="0.1"), "lam is '0.1'; expected a number"),
        (SparseCoder(lam=np.nan), "lam is nan"),
        (SparseCoder(tol=-1), "tol is -1"),
        (SparseCoder(max_steps=0), "max_steps is 0"),
        (SparseCoder(nonnegative=2), "nonnegative is 2; expected True or False"),
        (SparseCoder(sparse_output="csr"), "sparse_output is 'csr'; expected True or False"),
        (SparseCoder("cosine"), "dictionary is 'cosine'; expected 'dct', 'random', an array"),
        (SparseCoder("dct", n_components=3), "n_components is 3 and X has 6 features; .* use 'random' for fewer"),
        (SparseCoder(n_components=0), "n_components is 0"),
        (SparseCoder("random", random_state="x"), "random_state is 'x'"),
        (SparseCoder(ROWS[:5, :5]), "components of 5 features and X has 6; .* one component per row"),
        (SparseCoder(ROWS, n_components=7), "n_components is 7 and the dictionary has 6"),
        (SparseCoder(np.zeros((6, 6))), "zero; expected atoms that are not"),
        (SparseCoder([[np.nan] * 6]), "NaN"),
        (
            SparseCoder(dsc.ConvDictionary.random(atoms=2, channels=1, size=3, seed=0)),
            "ConvDictionary; expected a dense",
        ),
        (DictionaryLearner(lam=0), "lam is 0.0; expected a finite number above 0"),
        (DictionaryLearner(lam=1e3), "leaves every code zero: .* expected a smaller lam, such as"),
        (DictionaryLearner(n_components=0), "n_components is 0"),
        (DictionaryLearner(epochs=0), "epochs is 0"),
        (DictionaryLearner(batch_size=0), "batch_size is 0"),
        (DictionaryLearner(method="lars"), "method is 'lars'; expected 'online', 'batch'"),
        (DictionaryLearner(patience=0), "patience is 0"),
        (DictionaryLearner(tol=-1), "tol is -1"),
        (DeepSparseCoder(()), "atoms is empty"),
        (DeepSparseCoder((8, 0)), r"n_components\[1\] is 0"),
        (DeepSparseCoder((8, 4), lam=(0.1, 0.1, 0.1)), "lam has 3 entries"),
        (DeepSparseCoder((8, 4), layer=3), "layer is 3; expected 'deepest', 'all', or a number from 1 to 2"),
        (DeepSparseCoder((8, 4), layer="first"), "layer is 'first'; expected 'deepest'"),
        (DeepSparseCoder((8, 4), joint="yes"), "joint is 'yes'; expected True or False"),
        (DeepSparseCoder((8, 4), joint=True, joint_epochs=-1), "joint_epochs is -1"),
        (DeepSparseCoder((8, 4), joint=True, beta=0.0, epochs=1), "beta"),
    ],
    ids=lambda value: None if not isinstance(value, str) else value[:25],
)
def test_settings_out_of_range_are_named_in_fit(estimator: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        estimator.fit(X)
    with pytest.raises(NotFittedError):
        estimator.transform(X)


@pytest.mark.parametrize("estimator", [DictionaryLearner(), DeepSparseCoder((4, 3))])
def test_data_that_hold_nothing_to_learn_from(estimator: Any) -> None:
    with pytest.raises(ValueError, match="all vectors are the same"):
        estimator.fit(np.ones((10, 3)))
    with pytest.raises(ValueError, match="1 sample"):
        estimator.fit(np.ones((1, 3)))


def test_fewer_samples_than_components_are_warned_of() -> None:
    with pytest.warns(dsc.DSCWarning, match="60 samples and atoms is 61"):
        DictionaryLearner(61, epochs=1).fit(X)


def test_codes_of_another_width() -> None:
    with pytest.raises(dsc.ShapeError, match="X has 5 features; expected the 6 that transform returns"):
        SparseCoder().fit(X).inverse_transform(X[:, :5])


def test_fit_takes_nothing_more() -> None:
    with pytest.raises(TypeError, match=r"SparseCoder\.fit takes no"):
        SparseCoder().fit_transform(X, sample_weight=np.ones(60))


def test_codes_that_did_not_converge_are_warned_of_with_the_remedy() -> None:
    D = dsc.DenseDictionary.random(6, 40, seed=0, dtype=torch.float64)
    coder = SparseCoder(D, lam=1e-3, tol=1e-15, max_steps=1)
    with pytest.warns(ConvergenceWarning, match=r"of 60 samples did not converge; sample \d+: .*loosen tol"):
        coder.fit(X)
    assert coder.converged_ is False
    coder.set_params(tol=1e-13, max_steps=10_000)
    with pytest.warns(ConvergenceWarning, match="stalled at relative gap .* pass X as float64 or loosen tol") as caught:
        coder.transform(X.astype(np.float32))
    assert caught[0].filename == __file__


def test_a_sample_that_did_not_converge_is_named_though_it_is_in_a_later_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deep_sparse_coding.estimators.encoding._DENSE_ENTRIES", 10 * 6)
    hard = np.zeros((40, 6))
    hard[27] = 1e200  # its square is beyond the numbers
    coder = SparseCoder(ROWS, sparse_output=True).fit(X)
    with pytest.warns(ConvergenceWarning, match="1 of 40 samples did not converge; sample 27: left the range"):
        codes = coder.transform(hard)
    assert codes.shape == (40, 6)
    assert codes[:27].nnz == 0


def test_a_lam_that_leaves_nothing_is_warned_of_with_the_largest_that_does() -> None:
    coder = SparseCoder(ROWS, lam=10.0)
    largest = np.abs(X).max()
    with pytest.warns(dsc.DSCWarning, match=f"all features of all 60 samples zero; .* {largest:.4g}"):
        coder.fit(X)
    assert coder.converged_
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Some samples without codes are nothing to speak of; nor are samples that are zero.
        SparseCoder(ROWS, lam=0.9 * largest).fit(X)
        SparseCoder(ROWS, lam=10.0).fit(0 * X)


def test_a_failed_fit_leaves_what_was_learned_before() -> None:
    learner = DictionaryLearner(5, epochs=1).fit(X)
    components = learner.components_
    with pytest.raises(ValueError, match="lam"):
        learner.set_params(lam=1e3).fit(X)
    assert learner.components_ is components


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "deep_sparse_coding.estimators")
    with pytest.raises(dsc.MissingExtraError, match=r"pip install 'deep_sparse_coding\[sklearn\]'"):
        importlib.import_module("deep_sparse_coding.estimators")
