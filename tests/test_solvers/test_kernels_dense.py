"""The compiled dense Lasso solver against independent references, closed forms and hostile inputs."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso, LassoLars

from deep_sparse_coding.solvers._kernels_dense import solve_batch

seeds = st.integers(0, 2**31 - 1)


def problem(seed: int, d: int = 12, m: int = 30, n: int = 7) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    D = rng.standard_normal((d, m))
    D /= np.linalg.norm(D, axis=0)
    return D, rng.standard_normal((n, d))


def share_of_max(D: Any, Y: Any, share: float) -> Any:
    return share * np.abs(Y @ D).max(1)


def run(D: Any, Y: Any, lam: Any, weights: Any = None, **options: Any) -> tuple[Any, Any, Any]:
    weights = np.ones(D.shape[1]) if weights is None else weights
    return solve_batch(D, D.T @ D, Y, np.broadcast_to(np.asarray(lam, float), (len(Y),)), weights, **options)


def objective(D: Any, Y: Any, X: Any, W: Any) -> Any:
    penalty = np.where(X == 0, 0.0, np.abs(X) * np.where(np.isinf(W), 0.0, W))
    return 0.5 * ((Y - X @ D.T) ** 2).sum(1) + penalty.sum(1)


def relative_gap(D: Any, Y: Any, X: Any, W: Any, nonnegative: bool = False) -> Any:
    """P(x) - D(θ) over P(x) from the primal and dual objectives themselves, all weights positive."""
    R = Y - X @ D.T
    correlation = R @ D if nonnegative else np.abs(R @ D)
    worst = np.maximum((correlation / W).max(1), 1e-300)
    alpha = np.minimum((Y * R).sum(1) / np.maximum((R * R).sum(1), 1e-300), 1 / worst)
    theta = alpha[:, None] * R
    primal = objective(D, Y, X, W)
    dual = 0.5 * (Y**2).sum(1) - 0.5 * ((Y - theta) ** 2).sum(1)
    return (primal - dual) / primal


def kkt(D: Any, Y: Any, X: Any, W: Any, nonnegative: bool = False) -> float:
    """Largest violation of the optimality conditions, as a share of ‖d_j‖‖y‖."""
    G = (Y - X @ D.T) @ D
    at_zero = np.maximum((G if nonnegative else np.abs(G)) - W, 0.0)
    with np.errstate(invalid="ignore"):
        elsewhere = np.abs(G - W * np.sign(X))
    scale = np.linalg.norm(D, axis=0) * np.maximum(np.linalg.norm(Y, axis=1, keepdims=True), 1e-300)
    return float((np.where(X == 0, at_zero, elsewhere) / scale).max())


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_equals_scikit_learn(seed: int) -> None:
    D, Y = problem(seed)
    for nonnegative in (False, True):
        lam = share_of_max(D, Y, 0.1)
        X, _, gap = run(D, Y, lam, nonnegative=nonnegative, tol=1e-12)
        assert gap.max() <= 1e-12
        for i, y in enumerate(Y):
            options: dict[str, Any] = {"alpha": lam[i] / len(y), "fit_intercept": False, "positive": nonnegative}
            lasso = Lasso(tol=1e-14, max_iter=100_000, **options).fit(D, y).coef_
            lars = LassoLars(max_iter=10_000, **options).fit(D, y).coef_
            W = np.full((1, D.shape[1]), lam[i])
            lowest = objective(D, y[None], X[i : i + 1], W)
            reached = [objective(D, y[None], other[None], W) for other in (lasso, lars)]
            assert lowest <= min(reached) * (1 + 1e-10)
            if reached[0] <= lowest * (1 + 1e-12):  # on some drawn problems scikit-learn's descent does not converge
                np.testing.assert_allclose(X[i], lasso, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_gap_is_true_and_optimality_conditions_hold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d, m = int(rng.integers(1, 40)), int(rng.integers(1, 60))
    D, Y = problem(seed, d, m, 5)
    D *= 10.0 ** rng.uniform(-2, 2, m)
    weights = rng.uniform(0.2, 3.0, m) * np.linalg.norm(D, axis=0)
    nonnegative = bool(rng.integers(2))
    lam = rng.uniform(0.01, 1.1) * np.abs((Y @ D) / weights).max(1)
    W = lam[:, None] * weights
    for tol in (1e-3, 1e-10):
        X, _, gap = run(D, Y, lam, weights, nonnegative=nonnegative, tol=tol)
        assert gap.max() <= tol
        np.testing.assert_allclose(gap, relative_gap(D, Y, X, W, nonnegative), rtol=1e-6, atol=1e-13)
    assert not nonnegative or X.min() >= 0
    assert kkt(D, Y, X, W, nonnegative) < 1e-4


@pytest.mark.parametrize("nonnegative", [False, True])
def test_orthonormal_is_soft_thresholding(nonnegative: bool) -> None:
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((20, 20)))[0]
    Y = rng.standard_normal((9, 20))
    lam = rng.uniform(0.1, 1.0, 9)
    C = Y @ Q
    size = np.maximum((C if nonnegative else np.abs(C)) - lam[:, None], 0)
    X, _, _ = run(Q, Y, lam, nonnegative=nonnegative, tol=1e-14)
    np.testing.assert_allclose(X, np.sign(C) * size, atol=1e-13)


def hostile(name: str) -> Any:
    rng = np.random.default_rng(3)
    B = problem(3, 10, 8)[0]
    nearly = B + 1e-6 * rng.standard_normal(B.shape)
    return {
        "duplicates": np.hstack([B, B, B[:, ::-1]]),
        "negatives": np.hstack([B, -B]),
        "nearly parallel": np.hstack([B, nearly / np.linalg.norm(nearly, axis=0)]),
        "rank three": rng.standard_normal((10, 3)) @ rng.standard_normal((3, 25)),
        "one atom": B[:, :1],
        "zero atom": np.hstack([np.zeros((10, 1)), B]),
        "tall": rng.standard_normal((10, 4)),
        "Hadamard": np.array([[(-1.0) ** bin(i & j).count("1") for j in range(16)] for i in range(10)]),
        "twelve decades": problem(3, 10, 25)[0] * 10.0 ** np.linspace(-6, 6, 25),
        "all parallel": np.tile(B[:, :1], (1, 30)),
        "powers": np.vander(np.linspace(0.5, 1.0, 10), 25, increasing=True),
    }[name]


NAMES = ["duplicates", "negatives", "nearly parallel", "rank three", "one atom", "zero atom", "tall", "Hadamard"]
NAMES += ["twelve decades", "all parallel", "powers"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.05, 1e-4])
def test_hostile_dictionaries(name: str, nonnegative: bool, share: float) -> None:
    D = hostile(name)
    Y = np.random.default_rng(5).standard_normal((6, D.shape[0]))
    lam = share_of_max(D, Y, share)
    X, _, gap = run(D, Y, lam, nonnegative=nonnegative, tol=1e-8)
    assert np.isfinite(X).all()
    assert gap.max() <= 1e-8
    assert relative_gap(D, Y, X, np.tile(lam[:, None], D.shape[1]), nonnegative).max() <= 1.01e-8
    without_gram = solve_batch(D, None, Y, lam, np.ones(D.shape[1]), nonnegative, 1e-8)
    assert without_gram[2].max() <= 1e-8


def test_atoms_parallel_to_twelve_digits() -> None:
    D, Y = problem(1, 12, 6)
    other = D * np.sqrt(1 - 2e-12) + 0.0
    orthogonal = np.linalg.qr(D)[0][:, -1:]
    other += np.sqrt(2e-12) * (orthogonal - (orthogonal.T @ D) * D)
    X, _, gap = run(np.hstack([D, other]), Y, share_of_max(D, Y, 0.02), tol=1e-9)
    assert np.isfinite(X).all()
    assert gap.max() <= 1e-9


@pytest.mark.parametrize("scale", [2.0**-1000, 1e-30, 1e-8, 1e8, 1e30, 2.0**1000])
def test_scale_is_followed(scale: float) -> None:
    D, Y = problem(2)
    lam = share_of_max(D, Y, 0.1)
    X = run(D, Y, lam)[0]
    scaled, _, gap = run(D, Y * scale, lam * scale)
    assert gap.max() <= 1e-6
    np.testing.assert_allclose(scaled / scale, X, rtol=1e-10, atol=1e-12)


def test_zero_signal_and_large_lam_take_no_round() -> None:
    D, Y = problem(4)
    Y[2] = 0
    top = np.maximum(share_of_max(D, Y, 1.0), 1e-3)
    for factor in (1.0, 1 + 1e-12, 7.0, np.inf):
        X, rounds, gap = run(D, Y, top * factor, tol=0.0)
        assert not X.any()
        assert not rounds.any()
        assert gap.max() <= 1e-12
    X, rounds, _ = run(D, Y, top * (1 - 1e-6), tol=1e-15)
    assert (X[[0, 1, 3]] != 0).any(1).all()
    start = np.ones((len(Y), D.shape[1]))
    assert not run(D, Y, top, start=start)[0][2].any()


def test_batch_and_threads_do_not_change_a_bit() -> None:
    D, Y = problem(6, 20, 45, 150)
    lam = share_of_max(D, Y, 0.03)
    whole = run(D, Y, lam, threads=1)
    for threads in (2, 3):
        for a, b in zip(whole, run(D, Y, lam, threads=threads), strict=True):
            np.testing.assert_array_equal(a, b)
    order = np.random.default_rng(0).permutation(len(Y))
    np.testing.assert_array_equal(run(D, Y[order], lam[order])[0], whole[0][order])
    for i in (0, 17, 149):
        np.testing.assert_array_equal(run(D, Y[i : i + 1], lam[i])[0], whole[0][i : i + 1])


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_warm_start(seed: int) -> None:
    D, Y = problem(seed)
    lam = share_of_max(D, Y, 0.1)
    X, rounds, gap = run(D, Y, lam, tol=1e-9)
    again, no_rounds, _ = run(D, Y, lam, tol=1e-9, start=X)
    assert rounds.min() > 0
    assert not no_rounds.any()
    np.testing.assert_allclose(again, X, rtol=1e-15)
    rng = np.random.default_rng(seed)
    for start in (X + 0.1 * rng.standard_normal(X.shape), np.ones_like(X), -X):
        for nonnegative in (False, True):
            Z, _, gap = run(D, Y, lam, tol=1e-9, start=start, nonnegative=nonnegative)
            assert gap.max() <= 1e-9
            assert not nonnegative or Z.min() >= 0


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_unpenalized_and_forbidden_atoms(seed: int) -> None:
    D, Y = problem(seed, 20, 30)
    weights = np.ones(30)
    weights[:5] = 0
    weights[20:] = np.inf
    lam = share_of_max(D, Y, 0.1)
    for nonnegative in (False, True):
        X, _, violation = run(D, Y, lam, weights, tol=1e-10, nonnegative=nonnegative)
        assert violation.max() <= 1e-10
        assert not X[:, 20:].any()
        W = lam[:, None] * np.where(np.isinf(weights), 1e300, weights)
        assert kkt(D, Y, X, W, nonnegative) < 2e-10
    X = run(D, Y, np.inf, weights, tol=1e-10)[0]
    np.testing.assert_allclose(X[:, :5], np.linalg.lstsq(D[:, :5], Y.T, rcond=None)[0].T, atol=1e-9)
    assert not X[:, 5:].any()


@pytest.mark.parametrize(("d", "m"), [(20, 8), (8, 20)])
def test_lam_zero_is_least_squares(d: int, m: int) -> None:
    D, Y = problem(9, d, m)
    X, _, violation = run(D, Y, 0.0, tol=1e-10)
    assert violation.max() <= 1e-10
    best = Y - Y @ np.linalg.pinv(D).T @ D.T
    np.testing.assert_allclose(Y - X @ D.T, best, atol=1e-8)


def test_working_set_outgrows_the_first_workspace() -> None:
    D, Y = problem(11, 150, 400, 3)
    lam = share_of_max(D, Y, 0.002)
    X = run(D, Y, lam, tol=1e-8)[0]
    assert (X != 0).sum(1).min() > 100
    assert relative_gap(D, Y, X, np.tile(lam[:, None], 400)).max() <= 1.01e-8
    lazy = solve_batch(D, None, Y, lam, np.ones(400), tol=1e-8)[0]
    np.testing.assert_allclose(lazy, X, atol=1e-4)


@pytest.mark.parametrize("share", [0.02, 0.005, 0.0005])
def test_long_growth_is_no_standstill(share: float) -> None:
    """With a small lam the gap stays near one for many rounds, until the working set holds the whole support."""
    D, Y = problem(11, 150, 400, 3)
    lam = share_of_max(D, Y, share)
    for gram in (D.T @ D, None):
        X, _, gap = solve_batch(D, gram, Y, lam, np.ones(400), tol=1e-8)
        assert gap.max() <= 1e-8
        assert relative_gap(D, Y, X, np.tile(lam[:, None], 400)).max() <= 1.01e-8
    weights = np.ones(400)
    weights[:3] = 0
    assert run(D, Y, lam, weights, tol=1e-8)[2].max() <= 1e-8


@pytest.mark.parametrize("scale", [1e-60, 1e-30, 1e30, 1e60])
def test_norms_of_atoms_beyond_single_precision(scale: float) -> None:
    D, Y = problem(15)
    lam = share_of_max(D, Y, 0.1)
    X = run(D, Y, lam)[0]
    spread = np.where(np.arange(30) % 2 == 0, scale, 1.0)
    scaled, _, gap = run(D * spread, Y, lam, spread)
    assert gap.max() <= 1e-6
    np.testing.assert_allclose(scaled * spread, X, rtol=1e-9, atol=1e-12)


def test_ratios_closer_to_one_than_single_precision() -> None:
    """Atoms just above and just below lam are told apart, though float32 calls them equal."""
    Q = np.linalg.qr(np.random.default_rng(16).standard_normal((40, 40)))[0]
    coefficients = np.concatenate([[2.0], 1 + 1e-10 * np.arange(1, 20), 1 - 1e-10 * np.arange(1, 21)])
    X, _, _ = run(Q, (Q @ coefficients)[None], 1.0, tol=0.0)
    np.testing.assert_allclose(X[0], np.maximum(coefficients - 1, 0), atol=1e-14)


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_masks_are_those_of_the_masked_matrices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    D, Y = problem(seed, 14, 30, 6)
    masks = rng.choice([0.0, 0.5, 1.0, 3.0], (6, 14))
    masks[0] = 0
    weights = rng.uniform(0.5, 2.0, (6, 30))
    nonnegative = bool(rng.integers(2))
    lam = 0.05 * np.maximum(np.abs((masks**2 * Y) @ D).max(1), 1e-3)
    options: dict[str, Any] = {"nonnegative": nonnegative, "tol": 1e-10}
    X, _, gap = solve_batch(D, None, masks * Y, lam, weights, masks=masks, **options)
    assert gap.max() <= 1e-10
    assert not X[0].any()
    for i in range(1, 6):
        here, y, W = masks[i][:, None] * D, (masks[i] * Y[i])[None], lam[i] * weights[i : i + 1]
        assert relative_gap(here, y, X[i : i + 1], W, nonnegative).max() <= 1.01e-10
        alone = solve_batch(D, None, y, lam[i : i + 1], weights[i], masks=masks[i : i + 1], **options)
        np.testing.assert_array_equal(alone[0][0], X[i])
        plain = run(here, y, lam[i], weights[i], **options)
        np.testing.assert_allclose(objective(here, y, plain[0], W), objective(here, y, X[i : i + 1], W), rtol=1e-9)


def test_masks_with_unpenalized_atoms_are_least_squares() -> None:
    D, Y = problem(21, 20, 30)
    masks = (np.random.default_rng(0).random(Y.shape) < 0.7).astype(float)
    weights = np.ones(30)
    weights[:5] = 0
    X, _, violation = solve_batch(D, None, masks * Y, np.full(7, np.inf), weights, masks=masks, tol=1e-10)
    assert violation.max() <= 1e-10
    assert not X[:, 5:].any()
    for i in range(7):
        want = np.linalg.lstsq(masks[i][:, None] * D[:, :5], masks[i] * Y[i], rcond=None)[0]
        np.testing.assert_allclose(X[i, :5], want, atol=1e-9)


def test_weights_per_signal_and_atom() -> None:
    rng = np.random.default_rng(4)
    D, Y = problem(4, n=150)
    weights = rng.uniform(0.2, 3.0, (150, 30))
    weights[3, :4], weights[4, 7:] = 0.0, np.inf
    lam = share_of_max(D, Y, 0.1)
    for gram in (D.T @ D, None):
        X, _, gap = solve_batch(D, gram, Y, lam, weights, tol=1e-10, threads=2)
        assert gap.max() <= 1e-10
        assert not X[4, 7:].any()
        assert (X[3, :4] != 0).all()
        for i in (0, 3, 4, 149):
            alone = solve_batch(D, gram, Y[i : i + 1], lam[i : i + 1], weights[i], tol=1e-10)[0]
            np.testing.assert_array_equal(alone[0], X[i])


@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_a_path_is_its_single_solutions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    D, Y = problem(seed, n=70)
    shares = np.sort(rng.uniform(0.01, 1.2, 8))[::-1]
    lams = shares[:, None] * np.abs(Y @ D).max(1)
    masks = rng.integers(0, 2, Y.shape).astype(float)
    for gram, mask in ((D.T @ D, None), (None, None), (None, masks)):
        data = Y if mask is None else Y * mask
        X, rounds, gap = solve_batch(D, gram, data, lams, np.ones(30), tol=1e-9, masks=mask)
        assert X.shape == (8, 70, 30)
        assert rounds.shape == gap.shape == (8, 70)
        assert gap.max() <= 1e-9
        again = solve_batch(D, gram, data, lams, np.ones(30), tol=1e-9, masks=mask, threads=2)
        np.testing.assert_array_equal(again[0], X)
        if mask is not None:
            continue
        for lam, codes in zip(lams, X, strict=True):
            W = np.tile(lam[:, None], 30)
            assert relative_gap(D, Y, codes, W).max() <= 1.01e-9
            assert not codes[lam >= np.abs(Y @ D).max(1)].any()


def test_a_path_takes_no_rounds_where_nothing_changes() -> None:
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((9, 9)))[0]
    Y = Q[:, :1].T * 2.0
    _, rounds, _ = solve_batch(Q, None, Y, np.array([[3.0], [2.5], [2.0], [1.0], [0.5]]), np.ones(9))
    assert rounds[:, 0].tolist() == [0, 0, 0, 1, 1]
    _, rounds, _ = solve_batch(Q, Q.T @ Q, Y, np.array([[1.0], [1.0], [1.0]]), np.ones(9))
    assert rounds[:, 0].tolist() == [1, 0, 0]


def test_unreachable_tolerance_ends_and_says_so() -> None:
    D, Y = problem(12)
    _, rounds, gap = run(D, Y, share_of_max(D, Y, 0.05), tol=0.0, max_rounds=1000)
    assert rounds.max() < 60
    assert gap.max() < 1e-13
    _, rounds, gap = run(D, Y, share_of_max(D, Y, 0.05), tol=1e-9, max_rounds=1)
    assert rounds.max() == 1
    assert gap.max() > 1e-9


def test_empty_batch_and_read_only_input() -> None:
    D, Y = problem(13)
    assert run(D, Y[:0], 0.1)[0].shape == (0, 30)
    for a in (D, Y):
        a.flags.writeable = False
    assert run(np.asfortranarray(D), Y[::2], 0.1)[2].max() <= 1e-6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_solves_in_a_forked_process() -> None:
    D, Y = problem(14, n=300)
    expected = run(D, Y, 0.1, threads=2)[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(run(D, Y, 0.1, threads=2)[0], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
