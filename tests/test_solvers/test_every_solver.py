"""Every solver on every problem and operator: optimality and gap, recomputed by independent references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from operators import Operator, each_operator
from references import (
    explicit_matrix,
    kkt_violation,
    lasso_objective,
    nonnegative_least_squares,
    orthonormal_lasso,
    sklearn_joint,
    sklearn_lasso,
)
from strategies import draw_dense, draw_signal, normal, orthonormal, rng

SEEDS = st.integers(0, 2**31 - 1)
SOLVERS = [dsc.FISTA(), dsc.FISTA(restart=False), dsc.CoordinateDescent(), dsc.ISTA(), dsc.Homotopy()]
IDS = ["FISTA", "FISTA-plain", "CoordinateDescent", "ISTA", "Homotopy"]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=IDS)
# Without restarts or momentum tight tolerances take tens of thousands of steps.
each_fast_solver = pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[2]], ids=[IDS[0], IDS[2]])
# Draws may put lam above lam_max; that is then part of what is tested.
zeros_are_fine = pytest.mark.filterwarnings("ignore:lam is at or above lam_max")


@zeros_are_fine
@each_operator()
@pytest.mark.parametrize("nonnegative", [False, True])
def test_fista_on_every_operator(operator: Operator, nonnegative: bool) -> None:
    dictionary = operator.build()
    generator = rng(7)
    signal = normal(2, *dictionary.signal_shape(operator.size), generator=generator)
    mask = torch.rand(signal.shape, generator=generator, dtype=torch.float64) < 0.8
    matrix = explicit_matrix(dictionary, operator.size)
    lam = 0.2 * float(dictionary.analyze(signal).abs().max())
    problem = dsc.Lasso(dictionary, lam, nonnegative=nonnegative, mask=mask)
    solution = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-9, max_steps=50_000)
    for i in range(2):
        m = mask[i].double().flatten()
        best = sklearn_lasso(matrix, signal[i], lam, nonnegative=nonnegative, mask=m)
        want = lasso_objective(m[:, None] * matrix, m * signal[i].flatten(), best, lam)
        assert float(solution.certificate.objective[i]) == pytest.approx(want, rel=1e-8)
        codes = solution.codes[i]
        violation = kkt_violation(matrix, signal[i], codes, lam, nonnegative=nonnegative, mask=m)
        assert violation < 1e-3 * lam


@zeros_are_fine
@each_solver
@given(seed=SEEDS, nonnegative=st.booleans(), weighted=st.booleans(), share=st.floats(0.02, 0.9))
@settings(max_examples=25)
def test_dense_lasso(solver: dsc.Solver, seed: int, nonnegative: bool, weighted: bool, share: float) -> None:
    dictionary = draw_dense(seed)
    generator = rng(seed)
    signal = draw_signal(dictionary, seed, batch=(2,))
    weights = torch.rand(dictionary.atoms, generator=generator, dtype=torch.float64) + 0.2
    weights = weights if weighted else torch.ones_like(weights)
    lam = share * float(dsc.Lasso(dictionary, 1.0, weights=weights).lam_max(signal).min())
    problem = dsc.Lasso(dictionary, lam, weights=weights, nonnegative=nonnegative)
    # Ill-conditioned draws make plain proximal gradient slow; what is claimed about them must be true all the same.
    solution = dsc.solve(problem, signal, solver, tol=1e-8, max_steps=4000, on_failure="ignore")
    matrix = dictionary.matrix.detach()
    for i in range(2):
        best = sklearn_lasso(matrix, signal[i], lam * weights, nonnegative=nonnegative)
        want = lasso_objective(matrix, signal[i], best, lam * weights)
        got = lasso_objective(matrix, signal[i], solution.codes[i], lam * weights)
        assert got == pytest.approx(float(solution.certificate.objective[i]), rel=1e-12)
        assert got - want <= float(solution.certificate.gap[i]) + 1e-12 * got
        if solver.name == "CoordinateDescent":
            assert bool(solution.converged[i])
        if bool(solution.converged[i]):
            assert float(solution.certificate.relative_gap[i]) <= 1e-8
            assert got <= want * (1 + 1e-8) + 1e-300


@each_solver
@pytest.mark.parametrize("nonnegative", [False, True])
def test_orthonormal_atoms_have_a_closed_form(solver: dsc.Solver, nonnegative: bool) -> None:
    dictionary = orthonormal(9, 4)
    signal = normal(5, 9, generator=rng(2))
    solution = dsc.solve(dsc.Lasso(dictionary, 0.3, nonnegative=nonnegative), signal, solver, tol=1e-12)
    for y, x in zip(signal, solution.unwrap(), strict=True):
        want = orthonormal_lasso(dictionary.matrix.detach(), y, 0.3, nonnegative=nonnegative)
        assert float((x - want).abs().max()) < 1e-6


@each_fast_solver
@pytest.mark.parametrize("nonnegative", [False, True])
def test_joint_problem_is_the_stacked_lasso(solver: dsc.Solver, nonnegative: bool) -> None:
    model = dsc.Cascade(
        [
            dsc.DenseDictionary.random(10, 14, seed=0, dtype=torch.float64),
            dsc.DenseDictionary.random(14, 18, seed=1, dtype=torch.float64),
        ]
    )
    signal = 2 * normal(3, 10, generator=rng(1))
    problem = dsc.JointLasso(model, (0.05, 0.02), beta=(1.0, 3.0), nonnegative=nonnegative)
    solution = dsc.solve(problem, signal, solver, tol=1e-9, max_steps=50_000)
    for i in range(3):
        codes, want = sklearn_joint(model, signal[i], (), (0.05, 0.02), (1.0, 3.0), nonnegative=nonnegative)
        assert float(solution.certificate.objective[i]) == pytest.approx(want, rel=1e-8)
        assert float((solution.codes[0][i] - codes[0]).abs().max()) < 1e-3
    assert float(solution.codes[1].abs().max()) > 0, "the second layer must be in use for this to be a test"


def test_ista_solves_joint_and_layered_problems_to_what_it_can() -> None:
    model = dsc.Cascade(
        [
            dsc.DenseDictionary.random(10, 14, seed=0, dtype=torch.float64),
            dsc.DenseDictionary.random(14, 18, seed=1, dtype=torch.float64),
        ]
    )
    signal = 2 * normal(3, 10, generator=rng(1))
    for problem in (dsc.JointLasso(model, (0.5, 0.2), beta=(1.0, 3.0)), dsc.LayeredLasso(model, (0.5, 0.2))):
        solution = dsc.solve(problem, signal, dsc.ISTA(), tol=1e-5)
        best = dsc.solve(problem, signal, dsc.CoordinateDescent(), tol=1e-10)
        assert solution.solver == "ISTA"
        assert bool(solution.converged.all())
        if isinstance(problem, dsc.JointLasso):
            excess = solution.certificate.objective - best.certificate.objective
            assert bool((excess <= solution.certificate.gap).all())


@pytest.mark.parametrize("boundary", ["valid", "circular"])
def test_joint_convolutional_problem_is_the_stacked_lasso(boundary: str) -> None:
    kind = {"dtype": torch.float64, "boundary": boundary}
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=3, channels=1, size=(3,), seed=0, **kind),
            dsc.ConvDictionary.random(atoms=4, channels=3, size=(2,), seed=1, **kind),
        ]
    )
    size = (7,)
    signal = 3 * normal(
        1, 1, *model.layers[0].signal_shape(model.layers[1].signal_shape(size)[1:])[1:], generator=rng(5)
    )
    problem = dsc.JointLasso(model, (0.05, 0.02), beta=(1.0, 0.5))
    solution = dsc.solve(problem, signal, tol=1e-9, max_steps=50_000)
    _, want = sklearn_joint(model, signal[0], size, (0.05, 0.02), (1.0, 0.5))
    assert solution.solver == "JointCoordinateDescent"
    assert float(solution.certificate.objective[0]) == pytest.approx(want, rel=1e-8)
    assert float(solution.codes[1].abs().max()) > 0


@each_fast_solver
def test_layered_problem_is_one_lasso_after_the_other(solver: dsc.Solver) -> None:
    model = dsc.Cascade(
        [
            dsc.DenseDictionary.random(10, 14, seed=0, dtype=torch.float64),
            dsc.DenseDictionary.random(14, 18, seed=1, dtype=torch.float64),
        ]
    )
    signal = 2 * normal(3, 10, generator=rng(1))
    solution = dsc.solve(dsc.LayeredLasso(model, (0.05, 0.02)), signal, solver, tol=1e-10, max_steps=50_000)
    first, second = solution.unwrap()
    assert len(solution.certificate.layers) == len(solution.history) == 2
    for i in range(3):
        for layer, codes, below, lam in (
            (model.layers[0], first[i], signal[i], 0.05),
            (model.layers[1], second[i], first[i], 0.02),
        ):
            matrix = layer.weight.detach()
            best = lasso_objective(matrix, below, sklearn_lasso(matrix, below, lam), lam)
            assert lasso_objective(matrix, below, codes, lam) == pytest.approx(best, rel=1e-9)


@each_fast_solver
def test_without_penalty_it_is_nonnegative_least_squares(solver: dsc.Solver) -> None:
    dictionary = dsc.DenseDictionary.random(9, 6, seed=5, dtype=torch.float64)
    signal = normal(3, 9, generator=rng(3))
    solution = dsc.solve(dsc.Lasso(dictionary, 0.0, nonnegative=True), signal, solver, tol=1e-10, on_failure="ignore")
    for y, x in zip(signal, solution.codes, strict=True):
        assert float((x - nonnegative_least_squares(dictionary.matrix.detach(), y)).abs().max()) < 1e-4


def test_convolution_of_stride_one_equals_the_dense_matrix() -> None:
    conv = dsc.ConvDictionary.random(atoms=4, channels=2, size=(3,), seed=2, dtype=torch.float64)
    dense = dsc.DenseDictionary(explicit_matrix(conv, (6,)))
    signal = normal(4, *conv.signal_shape((6,)), generator=rng(0))
    first = dsc.solve(dsc.Lasso(conv, 0.3), signal, tol=1e-10)
    second = dsc.solve(dsc.Lasso(dense, 0.3), signal.flatten(1), tol=1e-10)
    assert (first.solver, second.solver) == ("ConvCoordinateDescent", "CoordinateDescent")
    assert torch.allclose(first.certificate.objective, second.certificate.objective, rtol=1e-9)
    assert float((first.codes.flatten(1) - second.codes).abs().max()) < 1e-4
