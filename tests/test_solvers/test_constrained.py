"""Basis pursuit solved: against linear programs and Lassos, infeasible samples, precision, batches."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess
from references import explicit_matrix, sklearn_lasso
from references_constrained import basis_pursuit_lp
from strategies import code_size, draw_codes, draw_conv, draw_dense, duplicate_matrix, nearly_parallel, normal, rng

DENSE = dsc.DenseDictionary.random(12, 20, seed=0, dtype=torch.float64)
TALL = dsc.DenseDictionary.random(12, 5, seed=1, dtype=torch.float64)
CONV = dsc.ConvDictionary.random(atoms=2, channels=1, size=3, seed=0, dtype=torch.float64)
CASCADE = dsc.Cascade([DENSE, dsc.DenseDictionary.random(20, 26, seed=2, dtype=torch.float64)])
SIGNAL = normal(6, 12, generator=rng(0))
each_solver = pytest.mark.parametrize("solver", [dsc.FISTA(), dsc.CoordinateDescent()], ids=["FISTA", "CD"])


def residual_norms(dictionary: dsc.Dictionary, signal: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return (signal.double() - dictionary.cast(torch.float64).synthesize(codes.double())).flatten(1).norm(dim=1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_epsilon_zero_is_the_linear_program(seed: int) -> None:
    dictionary = draw_dense(seed)
    signal = dictionary.synthesize(draw_codes(dictionary, seed, batch=(3,), density=0.5))
    solution = dsc.solve(dsc.BasisPursuit(dictionary, 0.0), signal, tol=1e-6, on_failure="ignore")
    for i in range(3):
        minimum = basis_pursuit_lp(dictionary.matrix.detach(), signal[i])
        assert solution.status[i] is dsc.Status.CONVERGED, solution.message(i)
        assert float(solution.certificate.objective[i]) == pytest.approx(minimum, rel=3e-6, abs=1e-12)
    assert bool((residual_norms(dictionary, signal, solution.codes) <= 1e-8 * signal.norm(dim=1)).all())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_it_finds_the_lam_whose_lasso_has_that_residual(seed: int) -> None:
    generator = rng(seed)
    dictionary = draw_dense(seed) if seed % 2 else draw_conv(seed)
    size = code_size(dictionary, seed, largest=3)
    matrix = explicit_matrix(dictionary, size)
    signal = normal(*dictionary.signal_shape(size), generator=generator)
    nonnegative = bool(torch.rand((), generator=generator) < 0.3)
    correlation = matrix.T @ signal.flatten()
    top = float(correlation.max() if nonnegative else correlation.abs().max())
    if top <= 0:
        return
    lam = top * float(torch.rand((), generator=generator) * 0.6 + 0.2)
    codes = sklearn_lasso(matrix, signal.flatten(), lam, nonnegative=nonnegative)
    epsilon = float((signal.flatten() - matrix @ codes).norm())
    problem = dsc.BasisPursuit(dictionary, epsilon, nonnegative=nonnegative)
    solution = dsc.solve(problem, signal, tol=1e-7)
    assert float(solution.certificate.objective) == pytest.approx(float(codes.abs().sum()), rel=1e-6)
    assert float(residual_norms(dictionary, signal[None], solution.codes[None])) <= epsilon


@each_solver
@pytest.mark.parametrize("epsilon", [0.3, 1.5])
def test_every_inner_solver_agrees_and_every_answer_is_feasible(solver: dsc.Solver, epsilon: float) -> None:
    solution = dsc.solve(dsc.BasisPursuit(DENSE, epsilon), SIGNAL, solver, tol=1e-8, max_steps=200_000)
    assert bool(solution.converged.all())
    assert solution.solver == f"{solver.name} in a search for lam"
    norms = residual_norms(DENSE, SIGNAL, solution.codes)
    assert bool((norms <= epsilon).all())
    assert torch.allclose(norms, torch.full_like(norms, epsilon), rtol=1e-6)
    other = dsc.solve(dsc.BasisPursuit(DENSE, epsilon), SIGNAL, tol=1e-8)
    assert torch.allclose(solution.certificate.objective, other.certificate.objective, rtol=1e-7)
    assert bool((other.certificate.dual <= solution.certificate.objective * (1 + 1e-12)).all())


def test_epsilon_per_sample_weights_and_masks() -> None:
    epsilon = torch.tensor([0.2, 0.1, 1.0, 2.0, 2.5, 0.5], dtype=torch.float64)
    weights = torch.rand(20, generator=rng(3), dtype=torch.float64) + 0.5
    weights[4] = math.inf
    mask = torch.rand(6, 12, generator=rng(4)) > 0.3
    together = dsc.solve(dsc.BasisPursuit(DENSE, epsilon, weights, mask=mask), SIGNAL, tol=1e-7, max_steps=100_000)
    assert float(together.codes[:, 4].abs().max()) == 0.0
    for i in range(6):
        alone = dsc.BasisPursuit(DENSE, float(epsilon[i]), weights, mask=mask[i])
        single = dsc.solve(alone, SIGNAL[i], tol=1e-7)
        assert float(single.certificate.objective) == pytest.approx(float(together.certificate.objective[i]), rel=1e-6)
        masked = (mask[i] * (SIGNAL[i] - DENSE.synthesize(together.codes[i]))).norm()
        assert float(masked) <= max(float(epsilon[i]), 1e-8 * float((mask[i] * SIGNAL[i]).norm()))
    finite = weights.isfinite()
    equal = dsc.solve(dsc.BasisPursuit(DENSE, 0.0, weights, mask=mask[0]), SIGNAL[0], tol=1e-7)
    lowest = basis_pursuit_lp(DENSE.matrix.detach()[mask[0]][:, finite], SIGNAL[0][mask[0]], weights[finite])
    assert float(equal.certificate.objective) == pytest.approx(lowest, rel=3e-6)


def test_samples_out_of_reach_are_infeasible_and_spoil_no_other() -> None:
    inside = TALL.synthesize(normal(1, 5, generator=rng(5)))
    signal = torch.cat([SIGNAL[:2], inside, SIGNAL[2:]])
    with pytest.warns(dsc.DSCWarning, match="6 of 7 samples did not converge; sample 0: infeasible: no codes meet"):
        solution = dsc.solve(dsc.BasisPursuit(TALL, 0.1), signal)
    assert solution.status[2] is dsc.Status.CONVERGED
    assert [status.name for status in solution.status].count("INFEASIBLE") == 6
    assert bool(torch.isnan(solution.codes[0]).all())
    with pytest.raises(dsc.NotConvergedError, match="raise epsilon, allow more atoms, or drop nonnegative"):
        solution.unwrap()
    # The distance to the range is the limit, from both sides.
    basis = torch.linalg.qr(TALL.matrix.detach()).Q
    distance = float((SIGNAL[0] - basis @ (basis.T @ SIGNAL[0])).norm())
    for factor, want in ((1 - 1e-6, dsc.Status.INFEASIBLE), (1 + 1e-6, dsc.Status.CONVERGED)):
        problem = dsc.BasisPursuit(TALL, distance * factor)
        assert dsc.solve(problem, SIGNAL[0], tol=1e-6, on_failure="ignore").status == (want,)


def test_non_negative_codes_that_cannot_reach_are_infeasible() -> None:
    square = dsc.DenseDictionary(torch.eye(3, dtype=torch.float64))
    signal = torch.tensor([[1.0, -1.0, 2.0], [1.0, 0.5, 2.0], [-1.0, -1.0, -1.0]], dtype=torch.float64)
    solution = dsc.solve(dsc.BasisPursuit(square, 0.5, nonnegative=True), signal, on_failure="ignore")
    assert [s.name for s in solution.status] == ["INFEASIBLE", "CONVERGED", "INFEASIBLE"]
    enough = dsc.solve(dsc.BasisPursuit(square, 1.1, nonnegative=True), signal, on_failure="ignore")
    assert [s.name for s in enough.status] == ["CONVERGED", "CONVERGED", "INFEASIBLE"]


def test_convolutions_out_of_reach_are_infeasible() -> None:
    strided = dsc.ConvDictionary.random(atoms=2, channels=1, size=4, stride=2, seed=0, dtype=torch.float64)
    signal = normal(2, 1, 8, 8, generator=rng(6))
    far = dsc.solve(dsc.BasisPursuit(strided, 0.5), signal, on_failure="ignore")
    assert {s.name for s in far.status} == {"INFEASIBLE"}
    near = dsc.solve(dsc.BasisPursuit(CONV, 4.0), signal, tol=1e-5)
    assert bool(near.converged.all())
    assert near.codes.shape == (2, 2, 6, 6)


def test_an_epsilon_above_the_signal_takes_no_step_and_warns() -> None:
    with pytest.warns(dsc.DSCWarning, match="epsilon is at or above the norm of the signal for 6 of 6 samples"):
        solution = dsc.solve(dsc.BasisPursuit(DENSE, 100.0), SIGNAL, tol=0.0)
    assert int(solution.steps.max()) == 0
    assert bool((solution.codes == 0).all())
    with pytest.warns(dsc.DSCWarning, match=r"expected a smaller epsilon: the largest norm here is \d"):
        assert bool(dsc.solve(dsc.BasisPursuit(DENSE, math.inf), SIGNAL).converged.all())
    zero = dsc.solve(dsc.BasisPursuit(DENSE, 0.0), torch.zeros_like(SIGNAL))
    assert bool(zero.converged.all())
    assert int(zero.steps.max()) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_spoils_no_other(bad: float) -> None:
    signal = SIGNAL.clone()
    signal[2, 5] = bad
    with pytest.warns(dsc.DSCWarning, match="1 of 6 samples did not converge; sample 2: the signal or its lam is NaN"):
        solution = dsc.solve(dsc.BasisPursuit(DENSE, 0.5), signal, tol=1e-8)
    assert solution.status[2] is dsc.Status.NONFINITE_INPUT
    assert bool(torch.isnan(solution.codes[2]).all())
    alone = dsc.solve(dsc.BasisPursuit(DENSE, 0.5), SIGNAL, tol=1e-8)
    others = [0, 1, 3, 4, 5]
    want = alone.certificate.objective[others]
    assert torch.allclose(solution.certificate.objective[others], want, rtol=1e-7)


def test_an_empty_batch_and_batch_axes() -> None:
    assert dsc.solve(dsc.BasisPursuit(DENSE, 0.1), SIGNAL[:0]).codes.shape == (0, 20)
    shaped = dsc.solve(dsc.BasisPursuit(DENSE, 0.5), SIGNAL.reshape(2, 3, 12), tol=1e-8)
    flat = dsc.solve(dsc.BasisPursuit(DENSE, 0.5), SIGNAL, tol=1e-8)
    assert shaped.codes.shape == (2, 3, 20)
    assert torch.equal(shaped.codes.reshape(6, 20), flat.codes)
    single = dsc.solve(dsc.BasisPursuit(DENSE, 0.5), SIGNAL[0], tol=1e-8)
    assert single.codes.shape == (20,)
    assert single.converged.shape == ()


def test_a_start_at_the_optimum_takes_no_step() -> None:
    problem = dsc.BasisPursuit(DENSE, 0.5)
    first = dsc.solve(problem, SIGNAL, tol=1e-7)
    again = dsc.solve(problem, SIGNAL, tol=1e-7, start=first.codes)
    assert int(again.steps.max()) == 0
    assert torch.equal(again.codes, first.codes)
    certificate = assess(problem, SIGNAL, first.codes)
    assert torch.equal(certificate.gap, first.certificate.gap)
    assert torch.equal(dsc.certify(problem, SIGNAL, first.codes).gap, certificate.gap)


@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 0.5, 2.0])
def test_float32_codes_are_feasible_and_certified(epsilon: float) -> None:
    single = DENSE.cast(torch.float32)
    signal = SIGNAL.float()
    solution = dsc.solve(dsc.BasisPursuit(single, epsilon), signal, tol=1e-5)
    assert solution.codes.dtype == torch.float32
    limit = torch.maximum(torch.tensor(epsilon).double(), 1e-6 * signal.double().norm(dim=1))
    assert bool((residual_norms(single, signal, solution.codes) <= limit).all())


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_scales(scale: float) -> None:
    plain = dsc.solve(dsc.BasisPursuit(DENSE, 0.5), SIGNAL, tol=1e-7)
    scaled = dsc.solve(dsc.BasisPursuit(DENSE, 0.5 * scale), SIGNAL * scale, tol=1e-7)
    assert torch.allclose(scaled.certificate.objective / scale, plain.certificate.objective, rtol=1e-6)


def test_hard_dictionaries() -> None:
    with pytest.warns(dsc.DSCWarning, match="the same up to scale and sign"):
        doubled = dsc.DenseDictionary(duplicate_matrix(6, 9, 0))
    for dictionary in (doubled, nearly_parallel(6, 8, 0)):
        signal = normal(3, 6, generator=rng(1))
        solution = dsc.solve(dsc.BasisPursuit(dictionary, 0.3), signal, tol=1e-6)
        assert bool(solution.converged.all())


def test_steps_run_out_and_callbacks_stop() -> None:
    problem = dsc.BasisPursuit(DENSE, 0.5)
    with pytest.warns(dsc.DSCWarning, match="ran out of steps"):
        solution = dsc.solve(problem, SIGNAL, dsc.FISTA(), tol=1e-9, max_steps=20)
    assert set(solution.status) == {dsc.Status.MAX_STEPS}
    assert int(solution.steps.max()) <= 20
    seen: list[dsc.Progress] = []

    def stop(progress: dsc.Progress) -> bool:
        seen.append(progress)
        return len(seen) == 2

    with pytest.warns(dsc.DSCWarning, match="stopped by the callback"):
        stopped = dsc.solve(problem, SIGNAL, tol=1e-12, callback=stop)
    assert stopped.stopped
    assert len(seen) == 2
    assert seen[0].samples == 6
    with pytest.raises(dsc.UnsupportedError, match=r"takes dense dictionaries.*use dsc.FISTA\(\)"):
        dsc.solve(dsc.BasisPursuit(CONV, 0.1), torch.ones(1, 8, 8, dtype=torch.float64), dsc.CoordinateDescent())


def test_layers_are_solved_one_after_the_other() -> None:
    problem = dsc.LayeredBasisPursuit(CASCADE, epsilon=(0.5, 0.2))
    solution = dsc.solve(problem, SIGNAL, tol=1e-6)
    assert [codes.shape for codes in solution.codes] == [(6, 20), (6, 26)]
    assert bool((residual_norms(DENSE, SIGNAL, solution.codes[0]) <= 0.5).all())
    assert bool((residual_norms(CASCADE.layers[1], solution.codes[0], solution.codes[1]) <= 0.2).all())
    first = dsc.solve(problem.stages[0], SIGNAL, tol=1e-6)
    assert torch.equal(first.codes, solution.codes[0])
    assert len(solution.history) == 2
    out_of_reach = dsc.LayeredBasisPursuit(
        dsc.Cascade([TALL, dsc.DenseDictionary.random(5, 7, seed=0, dtype=torch.float64)]), 0.1
    )
    failed = dsc.solve(out_of_reach, SIGNAL, on_failure="ignore")
    assert set(failed.status) == {dsc.Status.INFEASIBLE}
