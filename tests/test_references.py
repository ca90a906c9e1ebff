"""The oracles judge each other: scikit-learn, SciPy and closed forms agree, and the builders make what they say."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from references import (
    joint_matrix,
    kkt_violation,
    lasso_objective,
    nonnegative_least_squares,
    orthonormal_lasso,
    scipy_lasso,
    sklearn_joint,
    sklearn_lasso,
)
from strategies import (
    SEEDS,
    alias_free_size,
    code_size,
    draw_cascade,
    draw_conv,
    draw_dense,
    draw_dictionary,
    draw_signal,
    nearly_parallel,
    normal,
    orthonormal,
    rank_deficient,
    rng,
    spike_hadamard,
    wide_range,
)


@given(seed=SEEDS)
@settings(max_examples=25)
def test_two_solvers_and_the_optimality_conditions_agree(seed: int) -> None:
    dictionary = draw_dense(seed, max_d=6)
    g = rng(seed)
    matrix, signal = dictionary.matrix.detach(), normal(dictionary.channels, generator=g)
    weights = 0.05 + 0.3 * torch.rand(dictionary.atoms, generator=g, dtype=torch.float64)
    weights[-1] = math.inf
    mask = (torch.rand(dictionary.channels, generator=g, dtype=torch.float64) < 0.8).double()
    for nonnegative in (False, True):
        settings_ = {"nonnegative": nonnegative, "mask": mask}
        first = sklearn_lasso(matrix, signal, weights, **settings_)  # type: ignore[arg-type]
        second = scipy_lasso(matrix, signal, weights, **settings_)  # type: ignore[arg-type]
        assert first[-1] == second[-1] == 0
        assert kkt_violation(matrix, signal, first, weights, **settings_) < 1e-5  # type: ignore[arg-type]
        assert kkt_violation(matrix, signal, second, weights, **settings_) < 1e-9  # type: ignore[arg-type]
        masked, data = matrix * mask[:, None], signal * mask
        values = [lasso_objective(masked, data, x, weights) for x in (first, second)]
        assert values[0] == pytest.approx(values[1], rel=1e-7, abs=1e-9)


@given(seed=SEEDS)
@settings(max_examples=15)
def test_closed_forms(seed: int) -> None:
    dictionary = orthonormal(5, seed)
    matrix, signal = dictionary.matrix.detach(), normal(5, generator=rng(seed))
    for nonnegative in (False, True):
        exact = orthonormal_lasso(matrix, signal, 0.3, nonnegative=nonnegative)
        torch.testing.assert_close(
            sklearn_lasso(matrix, signal, 0.3, nonnegative=nonnegative), exact, rtol=1e-6, atol=1e-9
        )
        assert kkt_violation(matrix, signal, exact, 0.3, nonnegative=nonnegative) < 1e-12
    free = scipy_lasso(matrix, signal, 0.0, nonnegative=True)
    torch.testing.assert_close(free, nonnegative_least_squares(matrix, signal), rtol=1e-5, atol=1e-6)


def test_the_optimality_conditions_see_what_is_wrong() -> None:
    dictionary = orthonormal(5, 0)
    matrix, signal = dictionary.matrix.detach(), normal(5, generator=rng(0))
    exact = orthonormal_lasso(matrix, signal, 0.3)
    assert kkt_violation(matrix, signal, exact + 1e-3, 0.3) > 5e-4
    assert kkt_violation(matrix, signal, torch.zeros_like(exact), 0.3) > 0.1
    assert kkt_violation(matrix, signal, -exact.abs(), 0.3, nonnegative=True) >= float(exact.abs().max())


@given(seed=SEEDS)
@settings(max_examples=10)
def test_the_joint_reference(seed: int) -> None:
    model = draw_cascade(seed, depth=2)
    size = code_size(model.layers[-1], seed, largest=2)
    signal_shape = model.layers[0].signal_shape(model.layers[1].signal_shape(size)[1:])
    signal = normal(*signal_shape, generator=rng(seed))
    lam, beta = (0.2, 0.1), (1.0, 2.0)
    codes, value = sklearn_joint(model, signal, size, lam, beta)
    first, second = codes
    matrix, widths = joint_matrix(model, size, beta)
    assert [len(first), len(second)] == widths
    below = model.layers[1].synthesize(
        second.reshape(model.layers[1].code_shape(model.layers[1].signal_shape(size)[1:]))
    )
    made = model.layers[0].synthesize(first.reshape(below.shape))
    parts = 0.5 * (signal - made).square().sum() + (first - below.flatten()).square().sum()
    assert value == pytest.approx(float(parts + 0.2 * first.abs().sum() + 0.1 * second.abs().sum()), rel=1e-10)
    weights = torch.cat([torch.full((n,), w, dtype=torch.float64) for n, w in zip(widths, lam, strict=True)])
    data = torch.cat([signal.flatten(), torch.zeros(len(matrix) - signal.numel(), dtype=torch.float64)])
    assert kkt_violation(matrix, data, torch.cat(codes), weights) < 1e-5


@given(seed=SEEDS)
@settings(max_examples=40)
def test_builders(seed: int) -> None:
    dictionary = draw_dictionary(seed)
    assert dictionary.dtype == torch.float64
    torch.testing.assert_close(dictionary.column_norms(), torch.ones(dictionary.atoms, dtype=torch.float64))
    size = code_size(dictionary, seed)
    assert draw_signal(dictionary, seed).shape == dictionary.signal_shape(size)
    assert torch.equal(draw_dictionary(seed).weight, dictionary.weight)
    ring = draw_conv(seed, boundary="circular")
    assert not ring.aliases(alias_free_size(ring))


def test_structured_builders() -> None:
    assert torch.linalg.matrix_rank(rank_deficient(6, 9, 3, 0).matrix) == 3
    assert float(wide_range(4, 5, 0).column_norms().max() / wide_range(4, 5, 0).column_norms().min()) == pytest.approx(
        1e12
    )
    cosine = nearly_parallel(6, 4, 0, angle=1e-3).mutual_coherence()
    assert 1 - cosine == pytest.approx(5e-7, rel=1e-3)
    assert spike_hadamard(4).matrix.shape == (4, 8)
