"""Proved lower bounds of σ_min: never above the true one, near it, and refused for dependent columns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse

import deep_sparse_coding as dsc
from deep_sparse_coding.guarantees import conditioning
from deep_sparse_coding.guarantees.columns import Columns
from deep_sparse_coding.guarantees.conditioning import factorize
from references import explicit_matrix, joint_matrix
from strategies import normal, randint, rng

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64


def columns_of(seed: int) -> np.ndarray:
    """Return columns whose smallest singular value runs from 1 to below rounding."""
    g = rng(seed)
    rows = randint(3, 30, g)
    k = randint(1, rows, g)
    u, _, v = np.linalg.svd(normal(rows, k, generator=g).numpy(), full_matrices=False)
    values = 10.0 ** (-9 * torch.rand(k, generator=g, dtype=F64).numpy() * (randint(0, 1, g)))
    return (u * values) @ v


@settings(max_examples=200)
@given(seed=SEEDS)
def test_the_bound_is_below_the_singular_value_and_near_it(seed: int) -> None:
    matrix = columns_of(seed)
    factor = factorize(matrix, len(matrix))
    smallest = np.linalg.svd(matrix, compute_uv=False)[-1]
    assert factor.sigma <= smallest * (1 + 1e-9) + 1e-16
    if smallest**2 > 1e-11:
        assert factor.sigma >= 0.9 * smallest
    assert (factor.squared > 0) == (factor.reason == "")


@example(seed=128)  # rows of very different norms
@settings(max_examples=60)
@given(seed=SEEDS)
def test_rows_of_the_pseudoinverse_are_bounded_from_above(seed: int) -> None:
    matrix = columns_of(seed)
    factor = factorize(matrix, len(matrix))
    norms = factor.row_norms()
    if norms is None:
        assert factor.squared == 0
        return
    true = np.linalg.norm(np.linalg.pinv(matrix, rcond=1e-14), axis=1)
    assert (norms >= true * (1 - 1e-6)).all()
    if np.linalg.cond(matrix) < 100:
        # The squares err by a share of the largest one, not of their own.
        assert (norms**2 <= true**2 + 1e-9 * true.max() ** 2).all()


@pytest.mark.parametrize("seed", range(6))
def test_dependent_columns_are_refused(seed: int) -> None:
    matrix = normal(12, 5, generator=rng(seed)).numpy()
    doubled = np.concatenate([matrix, (3.0 if seed % 2 else -1.0) * matrix[:, :1]], 1)
    factor = factorize(doubled, 12)
    assert factor.squared == 0
    assert "not proved linearly independent" in factor.reason
    wide = factorize(normal(4, 6, generator=rng(seed)).numpy(), 4)
    assert wide.squared == 0
    assert "no k > n columns are independent" in wide.reason


def test_no_columns_are_independent() -> None:
    factor = factorize(np.zeros((4, 0)), 4)
    assert factor.squared == math.inf


@pytest.mark.parametrize("seed", range(8))
def test_banded_factorization_agrees_with_the_full_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = dsc.ConvDictionary.random(atoms=3, channels=1, size=(3, 3), seed=seed, dtype=F64)
    form = dsc.Lasso(dictionary, 0.1).exact_form(normal(1, 12, 12, generator=rng(seed)))
    index = torch.randperm(300, generator=rng(seed))[:40].sort().values.numpy()
    matrix = Columns.of(form).take(0, index)
    assert isinstance(matrix, sparse.csc_array)
    full = factorize(matrix, 9)
    monkeypatch.setattr(conditioning, "_SMALL", 0)
    banded = factorize(matrix, 9)
    smallest = np.linalg.svd(matrix.toarray(), compute_uv=False)[-1]
    assert banded.small is None
    assert 0.3 * smallest <= banded.sigma <= smallest * (1 + 1e-12)
    assert full.sigma >= banded.sigma * (1 - 1e-5)
    v = normal(40, generator=rng(seed)).numpy()
    assert np.allclose(banded.solve(v), full.solve(v), rtol=1e-8)
    monkeypatch.setattr(conditioning, "_BAND_WORK", 0)
    circles = factorize(matrix, 9)
    assert circles.sigma <= smallest
    assert circles.squared > 0 or "overlap too much" in circles.reason


def test_gershgorin_where_nothing_overlaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "_SMALL", 0)
    monkeypatch.setattr(conditioning, "_BAND_WORK", 0)
    factor = factorize(sparse.csc_array(np.eye(6)), 4)
    assert 1 - 1e-12 <= factor.squared <= 1


@settings(max_examples=40)
@given(seed=SEEDS)
def test_columns_of_convolutions(seed: int) -> None:
    g = rng(seed)
    axes = 1 + seed % 2
    dictionary = dsc.ConvDictionary(
        normal(2, randint(1, 2, g), *(3, 2)[:axes], generator=g),
        stride=tuple((1 + seed % 3, 1 + seed % 2)[:axes]),
        boundary=("valid", "circular")[seed % 5 % 2],
    )
    size = (4, 3)[:axes]
    shape = dictionary.signal_shape(size)
    signal = normal(2, *shape, generator=g)
    mask = torch.rand(2, *shape, generator=g, dtype=F64) if seed % 3 == 0 else None
    columns = Columns.of(dsc.Lasso(dictionary, 0.1, mask=mask).exact_form(signal))
    matrix = explicit_matrix(dictionary, size).numpy()
    index = torch.randperm(matrix.shape[1], generator=g)[:5].numpy()
    for sample in range(2):
        masked = matrix if mask is None else mask[sample].flatten().numpy()[:, None] * matrix
        assert np.allclose(columns.take(sample, index).toarray(), masked[:, index], atol=1e-15)
    assert columns.rows == len(matrix)


@settings(max_examples=30)
@given(seed=SEEDS)
def test_columns_of_joint_problems(seed: int) -> None:
    g = rng(seed)
    boundary = ("valid", "circular")[seed % 2]
    cascade = dsc.Cascade(
        [
            dsc.ConvDictionary(normal(3, 1, 3, generator=g), stride=1 + seed % 2, boundary=boundary),
            dsc.ConvDictionary(normal(2, 3, 2, generator=g), stride=1 + seed % 3, boundary=boundary),
        ]
    )
    beta = (1.5, 0.3)
    matrix, _ = joint_matrix(cascade, (4,), beta)
    shape = cascade.synthesize(torch.zeros(2, 4, dtype=F64)).shape
    form = dsc.JointLasso(cascade, 0.1, beta=beta).exact_form(normal(*shape, generator=g))
    columns = Columns.of(form)
    index = torch.randperm(matrix.shape[1], generator=g)[:7].numpy()
    assert np.allclose(columns.take(0, index).toarray(), matrix.numpy()[:, index], atol=1e-15)
