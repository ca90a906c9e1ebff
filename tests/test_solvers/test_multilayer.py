"""ML-ISTA and ML-FISTA: one layer is ISTA and FISTA, the bound is valid, and how near the fixed point is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.problems.multilayer import MultiLayerLasso
from deep_sparse_coding.solvers.multilayer import MLFISTA, MLISTA, MultiLayerSolver, solve_multilayer
from strategies import SEEDS, draw_cascade, draw_codes, normal, orthonormal, rng

each_solver = pytest.mark.parametrize("solver", [MLISTA(), MLFISTA()], ids=["MLISTA", "MLFISTA"])


def run(problem: MultiLayerLasso, signal: Tensor, solver: object = None, **options: Any) -> dsc.Solution:
    return solve_multilayer(problem, problem.check_signal(signal), solver, **{"tol": 1e-9, "max_steps": 3000} | options)


def codes_of(solution: dsc.Solution) -> Tensor:
    assert isinstance(solution.codes, Tensor)
    return solution.codes


def dense_cascade(*sizes: int) -> dsc.Cascade:
    pairs = itertools.pairwise(sizes)
    return dsc.Cascade([dsc.DenseDictionary.random(d, n, seed=d, dtype=torch.float64) for d, n in pairs])


def value(model: dsc.Cascade, signal: Tensor, codes: Tensor, lam: tuple[float, ...]) -> float:
    """Return the objective of one sample, from the definition."""
    total, below = 0.0, codes.double()
    for layer, weight in zip(reversed(model.layers), reversed(lam), strict=True):
        total += weight * float(below.abs().sum())
        below = layer.synthesize(below)
    return total + 0.5 * float((signal - below).square().sum())


def minimum(model: dsc.Cascade, signal: Tensor, lam: tuple[float, ...]) -> float:
    """Return the least value for one signal: ADMM on all products of matrices at once, in NumPy, run to the end."""
    matrices = [layer.weight.detach().numpy() for layer in model.layers]
    products = [np.eye(matrices[-1].shape[1])]
    for matrix in reversed(matrices[1:]):
        products.insert(0, matrix @ products[0])
    whole, stacked = matrices[0] @ products[0], np.concatenate(products)
    weights = np.concatenate([np.full(len(p), w) for p, w in zip(products, lam, strict=True)])
    y = signal.numpy()
    inverse = np.linalg.inv(whole.T @ whole + stacked.T @ stacked)
    z, u, x = np.zeros(len(stacked)), np.zeros(len(stacked)), np.zeros(stacked.shape[1])
    for _ in range(3000):
        x = inverse @ (whole.T @ y + stacked.T @ (z - u))
        point = stacked @ x + u
        z = np.sign(point) * np.maximum(np.abs(point) - weights, 0)
        u = point - z
    return value(model, signal, torch.from_numpy(x), lam)


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_one_layer_is_ista_and_fista_step_by_step(steps: int) -> None:
    model, signal = dense_cascade(6, 9), normal(3, 6, generator=rng(0))
    form = dsc.Lasso(model.layers[0], 0.2).form(signal)
    pairs: list[Any] = [(dsc.ISTA(), MLISTA()), (dsc.FISTA(restart=False), MLFISTA())]
    for single, multi in pairs:
        state = single.init(form, form.zeros(), 0.0)
        for _ in range(steps):
            state = single.step(form, state)
        # The codes with the smallest gap come back: those of the last step, as long as gaps fall.
        solution = run(MultiLayerLasso(model, 0.2), signal, multi, tol=0.0, max_steps=steps)
        assert torch.allclose(codes_of(solution), state.codes[0], atol=1e-12)


@each_solver
def test_one_layer_converges_and_the_certificate_is_that_of_the_lasso(solver: MultiLayerSolver) -> None:
    model, signal = dense_cascade(6, 9), normal(3, 6, generator=rng(0))
    solution = run(MultiLayerLasso(model, 0.2), signal, solver, tol=1e-8, max_steps=5000)
    assert bool(solution.converged.all())
    best = dsc.solve(dsc.Lasso(model.layers[0], 0.2), signal, dsc.CoordinateDescent(), tol=1e-12)
    assert torch.allclose(solution.certificate.objective, best.certificate.objective, rtol=1e-8)
    other = dsc.solve(dsc.Lasso(model.layers[0], 0.2), signal, start=solution.codes, tol=1.0).certificate
    assert torch.allclose(solution.certificate.gap, other.gap, rtol=1e-3, atol=1e-15)


@each_solver
@given(seed=SEEDS)
@settings(max_examples=5, deadline=None)
def test_the_bound_is_valid_and_the_gap_never_ends_above_its_start(solver: MultiLayerSolver, seed: int) -> None:
    model = draw_cascade(seed, conv=False)
    lam = (0.05, 0.03, 0.02)[: len(model)]
    signal = model.synthesize(draw_codes(model.layers[-1], seed, batch=(2,), density=0.4))
    problem = MultiLayerLasso(model, lam)
    solution = run(problem, signal, solver, max_steps=200)
    best = torch.tensor([minimum(model, y, lam) for y in signal], dtype=torch.float64)
    objective = solution.certificate.objective
    pairs = zip(signal, codes_of(solution), strict=True)
    assert objective.tolist() == pytest.approx([value(model, y, x, lam) for y, x in pairs])
    slack = 1e-6 * (1 + best)
    assert bool((objective >= best - slack).all())
    assert bool((solution.certificate.dual <= best + slack).all())
    random = problem.certificate(draw_codes(model.layers[-1], seed + 1, batch=(2,)), signal)
    assert bool((random.dual <= best + slack).all())
    first = problem.certificate(torch.zeros_like(codes_of(solution)), signal)
    assert bool((solution.certificate.gap <= first.gap).all())


def test_the_fixed_point_is_near_the_minimizer_and_nearer_for_small_steps() -> None:
    model, lam = dense_cascade(8, 10, 12), (0.2, 0.02)
    signal = normal(4, 8, generator=rng(3))
    best = np.array([minimum(model, y, lam) for y in signal])
    excess = []
    for relaxation in (1.0, 0.1):
        solution = run(MultiLayerLasso(model, lam), signal, MLFISTA(relaxation), max_steps=3000, tol=1e-6)
        excess.append((solution.history[0].objective[-1].numpy() - best) / best)
        assert not solution.converged.any()
        gap = solution.certificate.relative_gap.numpy()
        assert (gap > 1e-4).all()
        assert (gap < 2.5 * excess[-1].max()).all()
    assert 1e-3 < excess[0].min() < excess[0].max() < 0.05
    assert (excess[1] < 0.2 * excess[0]).all()


@each_solver
def test_orthonormal_layers_without_lower_penalties_have_a_closed_form(solver: MultiLayerSolver) -> None:
    model = dsc.Cascade([orthonormal(7, 1), orthonormal(7, 2)])
    signal = normal(2, 7, generator=rng(0))
    solution = run(MultiLayerLasso(model, (0.0, 0.3)), signal, solver)
    point = model.layers[1].analyze(model.layers[0].analyze(signal))
    assert bool(solution.converged.all())
    assert torch.allclose(codes_of(solution), dsc.soft_threshold(point, 0.3), atol=1e-9)


@each_solver
def test_without_lower_penalties_it_is_the_lasso_of_the_product(solver: MultiLayerSolver) -> None:
    model, signal = dense_cascade(6, 8, 10), normal(2, 6, generator=rng(1))
    product = dsc.DenseDictionary(model.layers[0].weight.detach() @ model.layers[1].weight.detach())
    solution = run(MultiLayerLasso(model, (0.0, 0.2)), signal, solver, tol=1e-7, max_steps=5000)
    best = dsc.solve(dsc.Lasso(product, 0.2), signal, dsc.CoordinateDescent(), tol=1e-11)
    assert bool(solution.converged.all())
    assert torch.allclose(solution.certificate.objective, best.certificate.objective, rtol=1e-7)


def test_the_joint_problem_approaches_it() -> None:
    model, lam = dense_cascade(6, 8, 10), (0.02, 0.05)
    signal = normal(1, 6, generator=rng(1))
    best = minimum(model, signal[0], lam)
    values = []
    for beta in (1.0, 100.0, 10_000.0):
        joint = dsc.solve(dsc.JointLasso(model, lam, beta=(1.0, beta)), signal, dsc.CoordinateDescent(), tol=1e-9)
        values.append(value(model, signal[0], joint.codes[1][0], lam) - best)
    assert values[0] > values[1] > values[2] >= -1e-9
    assert values[2] < 1e-3 * best


@each_solver
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolutions_with_stride(solver: MultiLayerSolver, dtype: torch.dtype) -> None:
    layers = [
        dsc.ConvDictionary.random(atoms=4, channels=1, size=3, stride=2, seed=0, dtype=dtype),
        dsc.ConvDictionary.random(atoms=5, channels=4, size=2, seed=1, dtype=dtype),
    ]
    model = dsc.Cascade(layers)
    signal = model.synthesize(draw_codes_of(model, (2, 3, 5, 3, 4)).to(dtype))
    solution = run(MultiLayerLasso(model, (0.01, 0.05)), signal, solver, max_steps=200)
    assert codes_of(solution).shape == (2, 3, 5, 3, 4)
    assert codes_of(solution).dtype == dtype
    first = solution.history[0].objective[0].reshape(2, 3)
    assert bool((solution.certificate.objective < 0.8 * first).all())


def draw_codes_of(model: dsc.Cascade, shape: tuple[int, ...]) -> Tensor:
    codes = normal(*shape, generator=rng(2))
    return codes * (torch.rand(shape, generator=rng(3)) < 0.2)


def test_a_bad_sample_spoils_no_other_and_a_start_is_taken() -> None:
    model, signal = dense_cascade(6, 9), normal(3, 6, generator=rng(0))
    problem = MultiLayerLasso(model, 0.2)
    best = run(problem, signal, tol=1e-9, max_steps=5000)
    assert best.solver == "MLFISTA"
    spoiled = signal.clone()
    spoiled[1, 2] = torch.nan
    solution = run(problem, spoiled, tol=1e-9, max_steps=5000)
    assert solution.status[1] == dsc.Status.NONFINITE_INPUT
    assert torch.isnan(codes_of(solution)[1]).all()
    assert torch.equal(codes_of(solution)[[0, 2]], codes_of(best)[[0, 2]])
    again = run(problem, signal, tol=1e-8, start=codes_of(best))
    assert bool((again.steps == 0).all())


def test_a_callback_stops_and_limits_are_kept() -> None:
    model, signal = dense_cascade(6, 8, 10), normal(2, 6, generator=rng(1))
    problem = MultiLayerLasso(model, 0.05)
    solution = run(problem, signal, callback=lambda progress: progress.step >= 20)
    assert solution.stopped
    assert solution.steps.tolist() == [20, 20]
    assert run(problem, signal, max_steps=7).steps.tolist() == [7, 7]


def test_lam_per_sample_and_lam_max() -> None:
    model, signal = dense_cascade(6, 8, 10), normal(2, 6, generator=rng(1))
    problem = MultiLayerLasso(model, (0.01, torch.tensor([0.05, 0.2], dtype=torch.float64)))
    both = run(problem, signal, max_steps=300)
    one = run(MultiLayerLasso(model, (0.01, 0.2)), signal[1:], max_steps=300)
    assert torch.allclose(both.certificate.objective[1:], one.certificate.objective, rtol=1e-6)
    largest = problem.lam_max(signal)
    zero = run(MultiLayerLasso(model, (0.01, float(largest.max()) * (1 + 1e-9))), signal)
    assert int(zero.steps.max()) == 0
    assert not codes_of(zero).any()


def test_bad_settings() -> None:
    model = dense_cascade(6, 8, 10)
    with pytest.raises(dsc.ParameterError, match=r"lam\[1\] is infinite; expected finite numbers"):
        MultiLayerLasso(model, (0.1, float("inf")))
    with pytest.raises(dsc.ParameterError, match=r"expected dsc\.MLISTA\(\) or dsc\.MLFISTA\(\)"):
        run(MultiLayerLasso(model, 0.1), normal(1, 6, generator=rng(0)), dsc.FISTA())
    for solver in (MLISTA, MLFISTA):
        with pytest.raises(dsc.ParameterError, match=r"relaxation is 1\.5; expected a finite number"):
            solver(relaxation=1.5)
    with pytest.raises(dsc.ShapeError, match="codes have shape"):
        MultiLayerLasso(model, 0.1).objective(torch.zeros(1, 8, dtype=torch.float64), normal(1, 6, generator=rng(0)))
