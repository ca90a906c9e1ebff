"""N4: a step per layer is safe for the joint problem, and ISTA and FISTA fall as fast as is proved."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import StandardForm, assess_form
from references import joint_matrix, lasso_objective, sklearn_lasso
from strategies import draw_cascade, normal, rng

SEEDS = st.integers(0, 2**31 - 1)


def scaled_norm(matrix: Tensor, widths: list[int], bounds: tuple[float, ...]) -> float:
    """Return the largest eigenvalue of ``diag(L)^{-1/2} AᵀA diag(L)^{-1/2}``; N4 says it is at most 1."""
    columns = torch.cat(
        [torch.full((n,), 1 / math.sqrt(b), dtype=torch.float64) for n, b in zip(widths, bounds, strict=True)]
    )
    return float(torch.linalg.matrix_norm(matrix * columns, ord=2)) ** 2


def joint_form(
    model: dsc.Cascade, beta: tuple[float, ...], size: tuple[int, ...]
) -> tuple[Tensor, list[int], tuple[float, ...]]:
    shape: tuple[int, ...] = (model.layers[-1].atoms, *size)
    for layer in reversed(model.layers):
        shape = layer.signal_shape(shape[1:])
    problem = dsc.JointLasso(model, 0.1, beta)
    bounds = problem.form(torch.zeros(shape, dtype=torch.float64)).operator.lipschitz()
    matrix, widths = joint_matrix(model, size, beta)
    return matrix, widths, bounds


@given(seed=SEEDS, low=st.floats(-3, 2), high=st.floats(-3, 2))
@settings(max_examples=40)
def test_the_steps_bound_the_operator(seed: int, low: float, high: float) -> None:
    model = draw_cascade(seed, depth=2)
    size = (4,) * (model.layers[-1].event_axes - 1)
    matrix, widths, bounds = joint_form(model, (10.0**low, 10.0**high), size)
    assert scaled_norm(matrix, widths, bounds) <= 1 + 1e-12


@pytest.mark.parametrize("beta", [(1e-3, 1e2), (1.0, 1.0), (1e2, 1e-3)])
def test_they_are_nearly_tight_for_nearly_parallel_atoms(beta: tuple[float, float]) -> None:
    # All atoms of a layer almost one vector, and the second layer's vector along what the first one amplifies most.
    first = torch.ones(5, 7, dtype=torch.float64) + 1e-5 * normal(5, 7, generator=rng(0))
    second = torch.ones(7, 6, dtype=torch.float64) + 1e-5 * normal(7, 6, generator=rng(1))
    model = dsc.Cascade([dsc.DenseDictionary(first, normalize=True), dsc.DenseDictionary(second, normalize=True)])
    matrix, widths, bounds = joint_form(model, beta, ())
    assert 0.9 <= scaled_norm(matrix, widths, bounds) <= 1 + 1e-12


def draw_joint(seed: int) -> tuple[StandardForm, float, float]:
    """Return a joint problem of two dense layers, its optimum, and ``‖x* - 0‖²_L``."""
    model = draw_cascade(seed, conv=False, depth=2)
    generator = rng(seed)
    signal = normal(model.layers[0].channels, generator=generator)
    beta = (1.0, float(10.0 ** (2 * torch.rand((), generator=generator, dtype=torch.float64) - 1)))
    lam = 0.1 * float(dsc.JointLasso(model, 1.0, beta).lam_max(signal))
    form = dsc.JointLasso(model, lam, beta).form(signal)
    matrix, widths = joint_matrix(model, (), beta)
    data = torch.cat([block.flatten() for block in form.data])
    best = sklearn_lasso(matrix, data, lam)
    distance = sum(
        bound * float(part.square().sum())
        for bound, part in zip(form.operator.lipschitz(), best.split(widths), strict=True)
    )
    return form, lasso_objective(matrix, data, best, lam), distance


@given(seed=SEEDS)
@settings(max_examples=15)
def test_fista_without_restart_meets_its_rate(seed: int) -> None:
    form, optimum, distance = draw_joint(seed)
    solver = dsc.FISTA(restart=False)
    state = solver.init(form, form.zeros(), 0.0)
    for k in range(1, 60):
        state = solver.step(form, state)
        excess = float(assess_form(form, state.codes).objective) - optimum
        assert excess <= 2 * distance / (k + 1) ** 2 + 1e-9 * optimum


@given(seed=SEEDS)
@settings(max_examples=15)
def test_ista_meets_its_rate_and_never_climbs(seed: int) -> None:
    form, optimum, distance = draw_joint(seed)
    solver = dsc.ISTA()
    state = solver.init(form, form.zeros(), 0.0)
    before = math.inf
    for k in range(1, 60):
        state = solver.step(form, state)
        objective = float(assess_form(form, state.codes).objective)
        assert objective - optimum <= distance / (2 * k) + 1e-9 * optimum
        assert objective <= before * (1 + 1e-12)
        before = objective


@pytest.mark.parametrize("k", [1, 5, 50])
def test_the_rate_of_ista_is_attained_up_to_a_factor_of_two(k: int) -> None:
    # An atom so short that the data hardly see it: lam alone moves its code, by lam/L a step.
    dictionary = dsc.DenseDictionary(torch.diag(torch.tensor([1.0, 1e-6], dtype=torch.float64)))
    form = dsc.Lasso(dictionary, 1 / (2 * k)).form(torch.zeros(2, dtype=torch.float64))
    start = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    (bound,) = form.operator.lipschitz()
    solver = dsc.ISTA()
    state = solver.init(form, (start,), 0.0)
    for _ in range(k):
        state = solver.step(form, state)
    excess = float(assess_form(form, state.codes).objective)
    assert 0.49 * bound / (2 * k) <= excess <= bound / (2 * k)
