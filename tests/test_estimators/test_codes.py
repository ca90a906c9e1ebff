"""What the estimators return: the codes of scikit-learn, of `dsc.solve`, of a plain oracle; signals back; scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn import decomposition, linear_model
from sklearn.datasets import load_digits

import deep_sparse_coding as dsc
from deep_sparse_coding.estimators import DeepSparseCoder, DictionaryLearner, SparseCoder

seeds = st.integers(0, 2**31 - 1)


def drawn(seed: int, samples: int = 40, features: int = 8, components: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Return data and components of unit norm, in rows."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(components, features))
    return rng.normal(size=(samples, features)), rows / np.linalg.norm(rows, axis=1, keepdims=True)


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_codes_are_those_of_scikit_learn_at_its_alpha(seed: int) -> None:
    X, rows = drawn(seed)
    lam = 0.3
    theirs = decomposition.SparseCoder(
        rows, transform_algorithm="lasso_lars", transform_alpha=lam, transform_max_iter=10_000
    ).transform(X)
    ours = SparseCoder(rows, lam=lam, tol=1e-12).fit(X).transform(X)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    # Two lam apart by five per cent have codes apart by far more than that.
    assert np.abs(SparseCoder(rows, lam=1.05 * lam).fit_transform(X) - theirs).max() > 1e-3


def test_codes_are_those_of_coordinate_descent_and_of_the_lasso_of_scikit_learn() -> None:
    X, rows = drawn(3)
    for positive in (False, True):
        ours = SparseCoder(rows, lam=0.2, tol=1e-12, nonnegative=positive).fit_transform(X)
        coder = decomposition.SparseCoder(
            rows, transform_algorithm="lasso_cd", transform_alpha=0.2, positive_code=positive, transform_max_iter=10_000
        )
        # Its coordinate descent stops at a tolerance of 1e-4 that cannot be set.
        np.testing.assert_allclose(ours, coder.transform(X), atol=1e-4)
        lasso = linear_model.Lasso(
            0.2 / X.shape[1], fit_intercept=False, tol=1e-12, max_iter=100_000, positive=positive
        )
        np.testing.assert_allclose(ours, lasso.fit(rows.T, X.T).coef_, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_codes_are_those_of_solve_and_their_gaps_too(seed: int) -> None:
    X, rows = drawn(seed)
    dictionary = dsc.DenseDictionary(torch.from_numpy(rows.T.copy()))
    solution = dsc.solve(dsc.Lasso(dictionary, 0.1), torch.from_numpy(X), tol=1e-8)
    for given_as in (rows, dictionary, rows.tolist()):
        coder = SparseCoder(given_as, lam=0.1, tol=1e-8)
        np.testing.assert_allclose(coder.fit_transform(X), solution.codes.numpy(), atol=1e-12)  # type: ignore[union-attr]
        np.testing.assert_allclose(coder.dual_gap_, solution.certificate.gap.numpy(), atol=1e-12)
        np.testing.assert_allclose(coder.objective_, solution.certificate.objective.numpy(), rtol=1e-12)
        assert coder.converged_ is True
        assert coder.n_iter_ == int(solution.steps.max()) > 0
        np.testing.assert_array_equal(coder.components_, rows)


def test_score_is_minus_the_mean_objective() -> None:
    X, rows = drawn(0)
    coder = SparseCoder(rows, lam=0.1, tol=1e-10).fit(X)
    codes = coder.transform(X)
    objective = 0.5 * np.square(X - codes @ rows).sum(1) + 0.1 * np.abs(codes).sum(1)
    assert coder.score(X) == pytest.approx(-objective.mean(), rel=1e-12)
    np.testing.assert_allclose(coder.inverse_transform(codes), codes @ rows, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_output_equals_dense_and_is_written_in_pieces(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    X, rows = drawn(5, samples=50)
    X = X.astype(dtype)
    dense = SparseCoder(rows, lam=0.5).fit(X).transform(X)
    monkeypatch.setattr("deep_sparse_coding.estimators.encoding._DENSE_ENTRIES", 7 * len(rows))  # 8 pieces
    coder = SparseCoder(rows, lam=0.5, sparse_output=True).fit(X)
    codes = coder.transform(X)
    assert isinstance(codes, sparse.csr_array)
    assert codes.dtype == dtype
    assert 0 < codes.nnz < codes.shape[0] * codes.shape[1] / 2
    np.testing.assert_allclose(codes.toarray(), dense, atol=1e-6 if dtype == np.float32 else 1e-12)
    assert coder.dual_gap_.shape == coder.objective_.shape == (50,)
    back = coder.inverse_transform(codes)
    assert isinstance(back, np.ndarray)
    np.testing.assert_allclose(back, coder.inverse_transform(dense), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "count"), [("dct", 12), ("random", 12), ("random", 3), (None, 12), (None, 3), (None, None)]
)
def test_dictionaries_that_are_made(kind: str | None, count: int | None) -> None:
    X, _ = drawn(1)
    coder = SparseCoder(kind, n_components=count, random_state=4).fit(X)
    expected = 8 if count is None else count
    assert coder.components_.shape == (expected, 8)
    assert coder.n_components_ == expected
    np.testing.assert_allclose(np.linalg.norm(coder.components_, axis=1), 1, atol=1e-12)
    made = (
        dsc.DenseDictionary.random(8, expected, seed=4, dtype=torch.float64)
        if kind == "random" or expected < 8
        else dsc.DenseDictionary.dct(8, expected, dtype=torch.float64)
    )
    np.testing.assert_array_equal(coder.components_, made.matrix.numpy().T)


def test_an_array_in_float32_and_one_of_integers_keep_their_types_as_scikit_learn_does() -> None:
    X, rows = drawn(2)
    coder = SparseCoder(rows).fit(X)
    assert coder.transform(X.astype(np.float32)).dtype == np.float32
    assert coder.transform((10 * X).astype(np.int64)).dtype == np.float64
    np.testing.assert_allclose(coder.transform(X.astype(np.float32)), coder.transform(X), atol=1e-2)


@pytest.mark.filterwarnings("error")
def test_arrays_that_are_read_only_or_run_backwards() -> None:
    X, rows = drawn(2)
    coder = SparseCoder(rows).fit(X)
    codes = coder.transform(X)
    X.setflags(write=False)
    np.testing.assert_array_equal(coder.transform(X), codes)
    np.testing.assert_allclose(coder.transform(X[::-1]), codes[::-1], atol=1e-12)
    np.testing.assert_allclose(coder.transform(np.asfortranarray(X)), codes, atol=1e-12)


def test_the_dictionary_that_was_given_is_not_held() -> None:
    X, rows = drawn(2)
    dictionary = dsc.DenseDictionary(torch.from_numpy(rows.T.copy()))
    by_module, by_array = SparseCoder(dictionary).fit(X), SparseCoder(rows).fit(X)
    codes = by_module.transform(X)
    with torch.no_grad():
        dictionary.matrix.mul_(2)
    rows *= 2
    np.testing.assert_array_equal(by_module.transform(X), codes)
    np.testing.assert_array_equal(by_array.transform(X), codes)


def test_transform_changes_nothing_that_is_fitted() -> None:
    X, rows = drawn(2)
    coder = SparseCoder(rows).fit(X)
    before = dict(vars(coder))
    coder.transform(X[:3])
    coder.score(X[3:7])
    assert before.keys() == vars(coder).keys()
    assert all(vars(coder)[name] is value for name, value in before.items())


def test_a_learned_dictionary_is_that_of_learn_and_beats_where_it_began() -> None:
    X = load_digits().data[:300] / 16
    learner = DictionaryLearner(20, lam=0.1, epochs=4, random_state=7).fit(X)
    result = dsc.learn(torch.from_numpy(X), 20, lam=0.1, epochs=4, seed=7)
    np.testing.assert_array_equal(learner.components_, result.model.weight.numpy().T)  # type: ignore[union-attr]
    np.testing.assert_array_equal(learner.error_, result.history.objective[0])
    assert learner.n_iter_ == 4
    assert np.all(np.diff(learner.error_) < 0)
    assert learner.converged_
    assert learner.dual_gap_.max() <= 1e-4 * learner.objective_.max()
    # The final codes are solved for under the final components, so they can only be better.
    assert learner.error_[-1] * (1 + 1e-6) >= learner.objective_.sum() >= 0.9 * learner.error_[-1]
    assert learner.score(X) > SparseCoder("random", n_components=20, lam=0.1).fit(X).score(X)
    assert learner.score(X) == pytest.approx(-learner.objective_.mean(), rel=1e-9)


def test_learned_as_well_as_scikit_learn_does() -> None:
    X = load_digits().data[:300] / 16
    theirs = decomposition.DictionaryLearning(
        20, alpha=0.1, max_iter=20, fit_algorithm="cd", transform_algorithm="lasso_cd", random_state=0
    ).fit(X)
    score = SparseCoder(theirs.components_, lam=0.1).fit(X).score(X)
    assert DictionaryLearner(20, lam=0.1, epochs=20).fit(X).score(X) >= 1.02 * score


def test_partial_fit_learns_and_goes_on_from_fit() -> None:
    X = load_digits().data[:600] / 16
    learner = DictionaryLearner(20, lam=0.1)
    learner.partial_fit(X[:100])
    first = learner.score(X)
    for start in range(100, 600, 100):
        learner.partial_fit(X[start : start + 100])
    assert learner.n_iter_ == len(learner.error_) == 6
    assert learner.score(X) > first
    assert "dual_gap_" not in vars(learner)
    learner.fit(X)
    fitted = learner.components_
    assert learner.dual_gap_.shape == (600,)
    learner.partial_fit(X[:100])
    assert learner.n_iter_ == 1
    assert "converged_" not in vars(learner)
    # It began from the fitted components, in their order, and moved a little.
    cosines = (learner.components_ * fitted).sum(1)
    assert np.median(cosines) > 0.9
    assert not np.array_equal(learner.components_, fitted)
    # float32 goes on in the type in which learning began.
    assert learner.partial_fit(X[:100].astype(np.float32)).components_.dtype == np.float64


@pytest.mark.parametrize("joint", [False, True])
def test_layers_of_a_cascade_as_features(joint: bool) -> None:
    X = load_digits().data[:200] / 16
    coders = {
        layer: DeepSparseCoder((20, 10), lam=(0.1, 0.05), joint=joint, layer=layer, epochs=3, tol=1e-9).fit(X)
        for layer in (1, 2, "deepest", "all")
    }
    model = coders["all"].model_
    problem = (dsc.JointLasso if joint else dsc.LayeredLasso)(model, (0.1, 0.05))
    solution = dsc.solve(problem, torch.from_numpy(X), tol=1e-9)
    first, second = (codes.numpy() for codes in solution.codes)
    features = {layer: coder.transform(X) for layer, coder in coders.items()}
    np.testing.assert_allclose(features[1], first, atol=1e-6)
    np.testing.assert_allclose(features[2], second, atol=1e-6)
    np.testing.assert_array_equal(features["deepest"], features[2])
    np.testing.assert_allclose(features["all"], np.hstack([first, second]), atol=1e-6)
    lower, upper = (layer.matrix.numpy() for layer in model.layers)
    np.testing.assert_allclose(coders["all"].components_, np.vstack([lower.T, (lower @ upper).T]), atol=1e-12)
    np.testing.assert_allclose(coders["all"].inverse_transform(features["all"]), first @ lower.T, atol=1e-6)
    np.testing.assert_allclose(coders[1].inverse_transform(features[1]), first @ lower.T, atol=1e-6)
    np.testing.assert_allclose(coders[2].inverse_transform(features[2]), second @ (lower @ upper).T, atol=1e-6)
    assert coders["all"].score(X) == pytest.approx(-float(solution.certificate.objective.mean()), rel=1e-6)
    assert coders["all"].n_components_ == (20, 10)
    assert coders["all"].layers_ == (1, 2)
    assert coders["deepest"].layers_ == (2,)
    assert len(coders[1].joint_error_) == (4 if joint else 0)
    assert coders[1].n_iter_ == 6 + 3 * joint
    assert all(np.all(np.diff(errors) < 0) for errors in coders[1].error_)
    assert list(coders["all"].get_feature_names_out()[[0, 29]]) == ["deepsparsecoder0", "deepsparsecoder29"]


def test_settings_of_learning_reach_it() -> None:
    X = load_digits().data[:200] / 16
    learner = DictionaryLearner(20, nonnegative=True, nonnegative_components=True, epochs=3).fit(X)
    assert learner.components_.min() == 0
    assert learner.transform(X).min() == 0
    low = DictionaryLearner(20, coherence=0.5, epochs=3).fit(X)
    assert low.model_.mutual_coherence() <= 0.5 + 1e-6
    assert learner.model_.mutual_coherence() > 0.5
    stopped = DictionaryLearner(20, epochs=50, patience=1, batch_size=100).fit(X)
    assert stopped.n_iter_ < 50
    online = DictionaryLearner(20, method="online", epochs=3, batch_size=20).fit(X)
    batch = DictionaryLearner(20, epochs=3, batch_size=20).fit(X)
    assert not np.array_equal(online.components_, batch.components_)
    assert not np.array_equal(batch.components_, DictionaryLearner(20, epochs=3, batch_size=200).fit(X).components_)
    deep = DeepSparseCoder(10, epochs=2, nonnegative=True).fit(X)
    assert deep.n_components_ == (10,)
    assert deep.transform(X).min() == 0


def test_random_states() -> None:
    X = load_digits().data[:100] / 16
    assert np.array_equal(*(DictionaryLearner(5, epochs=1).fit(X).components_ for _ in range(2)))
    states = (3, 4, np.random.RandomState(3), None, None)
    learned = [SparseCoder("random", n_components=5, random_state=state).fit(X).components_ for state in states]
    assert not any(np.array_equal(learned[i], learned[j]) for i in range(5) for j in range(i))
    again = SparseCoder("random", n_components=5, random_state=np.random.RandomState(3)).fit(X).components_
    assert np.array_equal(learned[2], again)
    np.random.seed(0)  # noqa: NPY002 - it must not be read
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    SparseCoder("random", random_state=None).fit(X)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[arg-type]  # noqa: NPY002
