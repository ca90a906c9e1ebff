"""The estimators where scikit-learn uses them: pipelines, searches, pandas, pickles, processes."""

from __future__ import annotations

import pickle
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_digits
from sklearn.exceptions import FitFailedWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer

import deep_sparse_coding as dsc
from deep_sparse_coding.estimators import DeepSparseCoder, DictionaryLearner, SparseCoder

X, Y = load_digits(return_X_y=True)
X = X[:300] / 16
Y = Y[:300]
ALL = [SparseCoder(n_components=80), DictionaryLearner(20, epochs=2), DeepSparseCoder((20, 10), epochs=2, layer="all")]


def scaled(X: np.ndarray) -> np.ndarray:
    return X - X.mean(axis=1, keepdims=True)


def test_a_search_over_lam_in_a_pipeline_with_a_classifier() -> None:
    pipeline = make_pipeline(
        FunctionTransformer(scaled), DictionaryLearner(40, epochs=3), LogisticRegression(C=10, max_iter=2000)
    )
    search = GridSearchCV(pipeline, {"dictionarylearner__lam": [0.02, 0.1, 2.0]}, cv=3).fit(X, Y)
    scores = search.cv_results_["mean_test_score"]
    # Small lam are good; large ones leave little.
    assert scores[:2].min() > 0.9
    assert scores[2] < scores[:2].min() - 0.01
    assert search.best_params_["dictionarylearner__lam"] < 1
    assert search.best_estimator_[1].lam == search.best_params_["dictionarylearner__lam"]


def test_a_lam_that_is_too_large_ends_its_own_fits_and_no_others() -> None:
    search = GridSearchCV(
        make_pipeline(DictionaryLearner(10, epochs=1), LogisticRegression(max_iter=500)),
        {"dictionarylearner__lam": [0.1, 1e4]},
        cv=2,
    )
    with (
        pytest.warns(FitFailedWarning, match="leaves every code zero"),
        pytest.warns(UserWarning, match="are non-finite"),
    ):
        search.fit(X, Y)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [False, True]


def test_searches_work_in_processes_and_agree_with_one() -> None:
    pipeline = make_pipeline(SparseCoder(n_components=80), LogisticRegression(max_iter=1000))
    grid = {"sparsecoder__lam": [0.05, 0.5]}
    one, two = (GridSearchCV(pipeline, grid, cv=2, n_jobs=jobs).fit(X, Y) for jobs in (1, 2))
    np.testing.assert_array_equal(one.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])


@pytest.mark.parametrize("estimator", ALL, ids=lambda estimator: type(estimator).__name__)
def test_joblib_in_processes_and_in_threads(estimator: Any) -> None:
    fitted = clone(estimator).fit(X)
    parts = np.array_split(X, 4)
    expected = fitted.transform(X)
    for backend in ("loky", "threading"):
        codes = joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(fitted.transform)(part) for part in parts)
        np.testing.assert_allclose(np.vstack(codes), expected, atol=1e-9)


@pytest.mark.parametrize("estimator", ALL, ids=lambda estimator: type(estimator).__name__)
def test_pandas_in_and_out(estimator: Any) -> None:
    frame = pd.DataFrame(X, columns=[f"pixel{i}" for i in range(64)], index=np.arange(300) + 5)
    fitted = clone(estimator).set_output(transform="pandas").fit(frame)
    out = fitted.transform(frame)
    assert isinstance(out, pd.DataFrame)
    assert out.index.equals(frame.index)
    prefix = type(estimator).__name__.lower()
    assert list(out.columns) == list(fitted.get_feature_names_out()) == [f"{prefix}{i}" for i in range(out.shape[1])]
    assert list(fitted.feature_names_in_) == list(frame.columns)
    assert len(fitted.components_) == out.shape[1]
    np.testing.assert_array_equal(out.to_numpy(), clone(estimator).fit_transform(X))
    np.testing.assert_allclose(fitted.inverse_transform(out), fitted.inverse_transform(out.to_numpy()))
    with pytest.raises(ValueError, match="scipy sparse matrix"):
        fitted.set_params(sparse_output=True).transform(frame)


@pytest.mark.parametrize("estimator", ALL, ids=lambda estimator: type(estimator).__name__)
def test_pickled_and_cloned(estimator: Any, tmp_path: Any) -> None:
    fitted = clone(estimator).fit(X)
    joblib.dump(fitted, tmp_path / "coder.joblib")
    for other in (pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "coder.joblib")):
        np.testing.assert_array_equal(other.transform(X), fitted.transform(X))
        np.testing.assert_array_equal(other.dual_gap_, fitted.dual_gap_)
    assert "components_" not in vars(clone(fitted))
    assert clone(fitted).get_params() == fitted.get_params()


def test_a_pickled_online_learner_goes_on_to_the_same_components() -> None:
    learner = DictionaryLearner(20).partial_fit(X[:100]).partial_fit(X[100:200])
    other = pickle.loads(pickle.dumps(learner))
    one, two = (each.partial_fit(X[200:]) for each in (learner, other))
    np.testing.assert_array_equal(one.components_, two.components_)


def test_a_dictionary_as_a_setting_can_be_cloned_and_printed() -> None:
    coder = SparseCoder(dsc.DenseDictionary.random(64, 80, seed=0))
    twin = clone(coder)
    assert twin.dictionary is not coder.dictionary
    np.testing.assert_array_equal(coder.fit_transform(X), twin.fit_transform(X))
    assert "DenseDictionary" in repr(coder)
    array = SparseCoder(np.eye(64), lam=0.3)
    np.testing.assert_array_equal(clone(array).fit_transform(X), array.fit_transform(X))


def test_sparse_codes_beside_other_features() -> None:
    coder = SparseCoder(n_components=80, lam=0.3, sparse_output=True)
    union = make_union(coder, SparseCoder("random", n_components=20, lam=0.3, sparse_output=True))
    both = union.fit_transform(X)
    assert both.shape == (300, 100)
    columns = make_column_transformer((coder, slice(0, 32)), (coder, slice(32, 64)), sparse_threshold=1.0)
    assert columns.fit_transform(X).shape == (300, 160)
    sparse_scores, dense_scores = (
        cross_val_score(make_pipeline(clone(coder).set_params(sparse_output=flag), LogisticRegression()), X, Y, cv=2)
        for flag in (True, False)
    )
    np.testing.assert_allclose(sparse_scores, dense_scores, atol=0.02)
