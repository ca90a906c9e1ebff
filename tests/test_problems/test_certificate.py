"""Certificates: sound for any codes, exact at the optimum, in the user's units."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess, dual_point
from references import lasso_objective, sklearn_lasso
from strategies import draw_codes, draw_dense, draw_signal, normal, orthonormal, rng

SEEDS = st.integers(0, 2**31 - 1)


@given(seed=SEEDS, nonnegative=st.booleans(), share=st.floats(0.02, 1.5))
def test_the_dual_value_never_exceeds_the_optimum(seed: int, nonnegative: bool, share: float) -> None:
    dictionary = draw_dense(seed)
    signal = draw_signal(dictionary, seed)
    lam = share * float(dictionary.analyze(signal).abs().max()) + 1e-9
    problem = dsc.Lasso(dictionary, lam, nonnegative=nonnegative)
    optimum = sklearn_lasso(dictionary.matrix.detach(), signal, lam, nonnegative=nonnegative)
    best = lasso_objective(dictionary.matrix.detach(), signal, optimum, lam)
    scale = 0.5 * float(signal.square().sum())
    far = draw_codes(dictionary, seed + 1)
    far = far.abs() if nonnegative else far
    for codes in (far, torch.zeros_like(far), optimum + 1e-4 * far, optimum):
        certificate = assess(problem, signal, codes)
        assert float(certificate.dual) <= best + 1e-12 * scale
        assert float(certificate.gap) >= float(certificate.objective) - best - 1e-12 * scale
        assert float(certificate.gap) >= 0.0
    assert float(assess(problem, signal, optimum).gap) <= 1e-6 * scale


@given(seed=SEEDS)
def test_the_dual_point_is_feasible_and_the_gap_is_primal_minus_dual(seed: int) -> None:
    dictionary = draw_dense(seed)
    signal = draw_signal(dictionary, seed, batch=(3,))
    weights = torch.rand(dictionary.atoms, generator=rng(seed), dtype=torch.float64) + 0.05
    problem = dsc.Lasso(dictionary, 0.4, weights=weights)
    codes = draw_codes(dictionary, seed, batch=(3,), density=0.5)
    point = dual_point(problem.form(signal), (codes,))
    theta = point.theta[0]
    assert bool((dictionary.analyze(theta).abs() <= 0.4 * weights * (1 + 1e-12)).all())
    dual = 0.5 * signal.square().sum(1) - 0.5 * (signal - theta).square().sum(1)
    scale = problem.objective(codes, signal) + signal.square().sum(1)
    assert bool(((problem.objective(codes, signal) - dual - point.gap).abs() <= 1e-12 * scale).all())


def test_unpenalized_atoms_are_projected_out() -> None:
    dictionary = dsc.DenseDictionary.random(8, 12, seed=3, dtype=torch.float64)
    weights = torch.ones(12, dtype=torch.float64)
    weights[:3] = 0.0
    signal = normal(4, 8, generator=rng(0))
    problem = dsc.Lasso(dictionary, 0.2, weights=weights)
    solution = dsc.solve(problem, signal, tol=1e-10)
    point = dual_point(problem.form(signal), (solution.codes,))
    assert float((point.theta[0] @ dictionary.matrix[:, :3]).abs().max()) < 1e-12
    plain = dsc.solve(dsc.Lasso(dictionary, 0.0), signal, tol=1e-6)
    assert float((dictionary.synthesize(plain.codes) - signal).abs().max()) < 1e-3


def test_a_violated_constraint_makes_the_gap_infinite() -> None:
    dictionary = orthonormal(4, 0)
    signal = normal(4, generator=rng(0))
    codes = torch.tensor([0.5, -0.5, 0.0, 0.0], dtype=torch.float64)
    certificate = assess(dsc.Lasso(dictionary, 0.1, nonnegative=True), signal, codes)
    assert math.isinf(float(certificate.objective))
    assert math.isinf(float(certificate.gap))
    assert not bool(certificate.relative_gap <= 1e9)


@given(seed=SEEDS, power=st.integers(-30, 30))
def test_scaling_signal_and_lam_scales_the_certificate(seed: int, power: int) -> None:
    dictionary = draw_dense(seed)
    signal, codes = draw_signal(dictionary, seed), draw_codes(dictionary, seed)
    c = 2.0**power
    one = assess(dsc.Lasso(dictionary, 0.3), signal, codes)
    scaled = assess(dsc.Lasso(dictionary, 0.3 * c), c * signal, c * codes)
    assert float(scaled.objective) == pytest.approx(c * c * float(one.objective), rel=1e-12)
    assert float(scaled.relative_gap) == pytest.approx(float(one.relative_gap), rel=1e-9)


def test_float32_codes_are_judged_in_float64() -> None:
    dictionary = dsc.DenseDictionary.random(16, 32, seed=0)
    signal = torch.randn(2, 16, generator=rng(0))
    solution = dsc.solve(dsc.Lasso(dictionary, 0.2), signal, tol=1e-5)
    assert solution.certificate.gap.dtype == torch.float64
    exact = assess(dsc.Lasso(dictionary.cast(torch.float64), 0.2), signal.double(), solution.codes.double())
    # lam = 0.2 itself is rounded to float32 in the first problem.
    assert torch.allclose(exact.objective, solution.certificate.objective, rtol=1e-6)


def test_free_atoms_of_non_negative_codes_bind_only_where_they_are_used() -> None:
    # At the optimum x = (0, 1.9): the free first atom points away from the residual and is not in use.
    matrix = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.2, 0.3]], dtype=torch.float64)
    dictionary = dsc.DenseDictionary(matrix, normalize=True)
    signal = torch.tensor([-1.0, 2.0, 0.1], dtype=torch.float64)
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64)
    problem = dsc.Lasso(dictionary, 0.1, weights=weights, nonnegative=True)
    solution = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-10)
    assert float(solution.codes[0]) == 0.0
    assert bool(solution.converged)


def test_masks_per_sample_with_free_atoms_are_certified() -> None:
    dictionary = dsc.DenseDictionary.random(8, 6, seed=3, dtype=torch.float64)
    weights = torch.ones(6, dtype=torch.float64)
    weights[:2] = 0.0
    signal = normal(3, 8, generator=rng(0))
    mask = torch.rand(3, 8, generator=rng(1), dtype=torch.float64) < 0.8
    solution = dsc.solve(dsc.Lasso(dictionary, 0.1, weights=weights, mask=mask), signal, dsc.FISTA(), tol=1e-9)
    assert bool(solution.converged.all())


def test_lam_is_not_rounded_to_the_precision_of_the_codes() -> None:
    dictionary = dsc.DenseDictionary.random(16, 32, seed=0)
    signal = torch.randn(2, 16, generator=rng(0))
    codes = torch.randn(2, 32, generator=rng(1))
    want = dsc.Lasso(dictionary.cast(torch.float64), 0.1).objective(codes.double(), signal.double())
    assert torch.equal(dsc.Lasso(dictionary, 0.1).objective(codes, signal), want)
