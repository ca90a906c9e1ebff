"""All ways to the same minimum agree, and every certificate agrees with one that is computed here in NumPy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from operators import Operator, each_operator, explicit_matrix
from references import joint_matrix, lasso_objective, scaled_dual, scipy_lasso, sklearn_joint, sklearn_lasso
from references_penalties import scipy_box_lasso, sklearn_elastic_net
from strategies import SEEDS, draw_conv, draw_dense, draw_signal, normal, randint, rng
from test_reliability.cases import F64, blocks, only

zeros_are_fine = pytest.mark.filterwarnings("ignore:lam is at(, | or )above")
TOL = 1e-7


def _check(
    solution: dsc.Solution, index: int, matrix: Tensor, data: Tensor, weights: Tensor, want: float, **how: Any
) -> None:
    """Assert that one sample's certificate is what it should be, for its problem as one Lasso with minimum `want`."""
    certificate = solution.certificate
    codes = torch.cat([block[index].flatten() for block in blocks(solution.codes)])
    mask = how.get("mask")
    m = torch.ones(len(matrix), **F64) if mask is None else mask.double().flatten()
    value = lasso_objective(m[:, None] * matrix, m * data.flatten(), codes, weights)
    objective, dual, gap = (float(part[index]) for part in (certificate.objective, certificate.dual, certificate.gap))
    assert objective == pytest.approx(value, rel=1e-9)
    # Sound whichever dual point was taken, and never worse than the scaled residual.
    slack = 1e-11 * max(value, 1e-3 * float((m * data.flatten()).square().sum()))
    assert dual <= want + slack
    scaled = scaled_dual(matrix, data, codes, weights, **how)
    assert dual >= scaled - 1e-9 * abs(scaled) - slack
    assert gap == pytest.approx(objective - dual, rel=1e-9, abs=slack)
    relative = float(certificate.relative_gap[index])
    if relative > 1e-3:  # there is no second point there
        assert dual == pytest.approx(scaled, rel=1e-9, abs=slack)
    energy = 0.5 * float((m * data.flatten()).square().sum())
    scale = max(objective, 1e-6 * energy)  # zero where nothing was observed
    assert relative == pytest.approx(gap / scale if scale else 0.0, rel=1e-9)
    assert bool(solution.converged[index]) == (relative <= solution.tol)
    if bool(solution.converged[index]):
        assert value <= want * (1 + solution.tol) + slack


@zeros_are_fine
@given(seed=SEEDS)
@settings(max_examples=25)
def test_every_dense_solver_finds_the_minimum_of_scikit_learn(seed: int) -> None:
    g = rng(seed)
    dictionary, nonnegative = draw_dense(seed), bool(randint(0, 1, g))
    signal = draw_signal(dictionary, seed, batch=(2,))
    share = 0.02 + 0.9 * float(torch.rand((), generator=g))
    # One weight per sample and atom; a mask per sample half of the time.
    weights = torch.rand(dictionary.atoms, generator=g, **F64) + 0.3
    mask = torch.rand(signal.shape, generator=g, **F64) < 0.75 if randint(0, 1, g) else None
    lam = share * float(dsc.Lasso(dictionary, 1.0, weights=weights, mask=mask).lam_max(signal).max())
    problem = dsc.Lasso(dictionary, lam, weights=weights, nonnegative=nonnegative, mask=mask)
    matrix, how = dictionary.matrix.detach(), {"nonnegative": nonnegative}
    masks = [None, None] if mask is None else list(mask)
    want = []
    for y, m in zip(signal, masks, strict=True):
        best = sklearn_lasso(matrix, y, lam * weights, mask=m, **how)
        kept = torch.ones_like(y) if m is None else m.double()
        want.append(lasso_objective(kept[:, None] * matrix, kept * y, best, lam * weights))
    for solver in (dsc.ISTA(), dsc.FISTA(), dsc.CoordinateDescent(), dsc.Homotopy(), dsc.ADMM(), None):
        if isinstance(solver, dsc.Homotopy) and mask is not None:
            continue
        for limit in (5, 3000):
            solution = dsc.solve(problem, signal, solver, tol=TOL, max_steps=limit, on_failure="ignore")
            for i in range(2):
                _check(solution, i, matrix, signal[i], lam * weights, want[i], mask=masks[i], **how)
        if solver is None or solver.name in ("CoordinateDescent", "Homotopy"):
            assert bool(solution.converged.all())


@zeros_are_fine
@each_operator(kind=dsc.ConvDictionary)
def test_convolutions_are_the_lasso_of_their_matrix(operator: Operator) -> None:
    dictionary, g = operator.build(), rng(11)
    signal = normal(2, *dictionary.signal_shape(operator.size), generator=g)
    mask = torch.rand(signal.shape, generator=g, **F64) < 0.8
    matrix = explicit_matrix(dictionary, operator.size)
    for given_mask, nonnegative in ((None, False), (mask, True)):
        lam = 0.15 * float(dsc.Lasso(dictionary, 1.0, mask=given_mask).lam_max(signal).min())
        problem = dsc.Lasso(dictionary, lam, mask=given_mask, nonnegative=nonnegative)
        want, how = [], [{"nonnegative": nonnegative, "mask": None if given_mask is None else m} for m in mask]
        for y, h in zip(signal, how, strict=True):
            kept = torch.ones(y.numel(), **F64) if h["mask"] is None else h["mask"].double().flatten()
            best = sklearn_lasso(matrix, y, lam, **h)
            want.append(lasso_objective(kept[:, None] * matrix, kept * y.flatten(), best, lam))
        dense = dsc.DenseDictionary(matrix) if given_mask is None and (matrix != 0).any(0).all() else None
        solvers: list[Any] = [dsc.FISTA(), dsc.ADMM(), None]
        if len(operator.size) < 3:
            solvers.append(dsc.ConvCoordinateDescent())
        for solver in solvers:
            solution = dsc.solve(problem, signal, solver, tol=TOL, max_steps=5000, on_failure="ignore")
            for i in range(2):
                _check(solution, i, matrix, signal[i], torch.full((matrix.shape[1],), lam, **F64), want[i], **how[i])
            assert isinstance(solver, dsc.ADMM) or bool(solution.converged.all())
        if dense is not None:
            flat = dsc.solve(dsc.Lasso(dense, lam), signal.flatten(1), tol=TOL)
            assert torch.allclose(flat.certificate.objective, torch.tensor(want, **F64), rtol=2 * TOL)


@zeros_are_fine
@given(seed=SEEDS)
@settings(max_examples=8)
def test_joint_problems_are_the_lasso_of_their_stack(seed: int) -> None:
    g = rng(seed)
    boundary, nonnegative = ("valid", "circular")[randint(0, 1, g)], bool(randint(0, 1, g))
    kind = {"dtype": torch.float64, "boundary": boundary}
    sizes, strides = (randint(2, 3, g), randint(1, 2, g)), (1, randint(1, 2, g))
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=3, channels=1, size=(sizes[0],), stride=strides[0], seed=seed, **kind),
            dsc.ConvDictionary.random(atoms=4, channels=3, size=(sizes[1],), stride=strides[1], seed=seed + 1, **kind),
        ]
    )
    deepest = (6,)
    middle = model.layers[1].signal_shape(deepest)[1:]
    signal = 3 * normal(2, *model.layers[0].signal_shape(middle), generator=g)
    beta = (1.0, 10.0 ** randint(-1, 2, g))
    lam = (0.2, 0.1)
    problem = dsc.JointLasso(model, lam, beta=beta, nonnegative=nonnegative)
    matrix, widths = joint_matrix(model, deepest, beta)
    weights = torch.cat([torch.full((n,), value, **F64) for n, value in zip(widths, lam, strict=True)])
    data = torch.zeros(2, len(matrix), **F64)
    data[:, : signal[0].numel()] = signal.flatten(1)
    # Coordinate descent may run out of passes where beta is large; the finite method does not.
    want = [
        min(
            sklearn_joint(model, signal[i], deepest, lam, beta, nonnegative=nonnegative)[1],
            lasso_objective(matrix, data[i], scipy_lasso(matrix, data[i], weights, nonnegative=nonnegative), weights),
        )
        for i in range(2)
    ]
    for solver in (dsc.FISTA(), dsc.JointCoordinateDescent(), None):
        solution = dsc.solve(problem, signal, solver, tol=TOL, max_steps=20_000, on_failure="ignore")
        for i in range(2):
            _check(solution, i, matrix, data[i], weights, want[i], nonnegative=nonnegative)
        assert isinstance(solver, dsc.FISTA) or bool(solution.converged.all())
    # The same stack, as one dense dictionary.
    stacked = dsc.Lasso(dsc.DenseDictionary(matrix), 1.0, weights=weights, nonnegative=nonnegative)
    dense = dsc.solve(stacked, data, tol=TOL)
    assert torch.allclose(dense.certificate.objective, torch.tensor(want, **F64), rtol=2 * TOL)


@zeros_are_fine
@given(seed=SEEDS)
@settings(max_examples=10)
def test_boxes_and_ridges_against_scipy_and_scikit_learn(seed: int) -> None:
    g = rng(seed)
    dictionary = draw_dense(seed)
    matrix, signal = dictionary.matrix.detach(), 2 * draw_signal(dictionary, seed, batch=(2,))
    lam = 0.1 * float(dsc.Lasso(dictionary, 1.0).lam_max(signal).min())
    low, high = (0.3 * torch.rand(dictionary.atoms, generator=g, **F64) for _ in range(2))
    ridge = 10.0 ** randint(-2, 1, g)
    for y in signal:
        best = scipy_box_lasso(matrix, y, lam, -low, high)
        want = lasso_objective(matrix, y, best, lam)
        for solver in (dsc.FISTA(), dsc.ADMM(), None):
            problem = dsc.Lasso(dictionary, lam, box=(-low, high))
            solution = dsc.solve(problem, y, solver, tol=TOL, max_steps=5000, on_failure="ignore")
            value = lasso_objective(matrix, y, only(solution), lam)
            assert float(solution.certificate.objective) == pytest.approx(value, rel=1e-12)
            assert float(solution.certificate.dual) <= want * (1 + 1e-7)
            assert bool(((only(solution) >= -low) & (only(solution) <= high)).all())
            assert not bool(solution.converged) or value <= want * (1 + 2 * TOL)
        best = sklearn_elastic_net(matrix, y, lam, ridge)
        want = lasso_objective(matrix, y, best, lam) + 0.5 * ridge * float(best.square().sum())
        for solver in (dsc.FISTA(), dsc.ADMM(), dsc.CoordinateDescent(), dsc.Homotopy(), None):
            problem = dsc.Lasso(dictionary, lam, ridge=ridge)
            solution = dsc.solve(problem, y, solver, tol=TOL, max_steps=5000, on_failure="ignore")
            x = only(solution)
            value = lasso_objective(matrix, y, x, lam) + 0.5 * ridge * float(x.square().sum())
            assert float(solution.certificate.objective) == pytest.approx(value, rel=1e-12)
            assert float(solution.certificate.dual) <= want * (1 + 1e-10)
            assert not bool(solution.converged) or value <= want * (1 + 2 * TOL)


@zeros_are_fine
@given(seed=SEEDS)
@settings(max_examples=6)
def test_a_path_and_a_limit_on_memory_change_no_minimum(seed: int) -> None:
    dense = draw_dense(seed)
    conv = draw_conv(seed, axes=2)
    for dictionary in (dense, conv):
        signal = draw_signal(dictionary, seed, batch=(3,))
        path = dsc.solve_path(dsc.Lasso(dictionary, 1.0), signal, 4, ratio=0.1, tol=TOL)
        for lam, along in zip(path.lams, path, strict=True):
            events = (1,) * (signal.ndim - 1)
            alone = dsc.solve(dsc.Lasso(dictionary, lam.reshape(-1, *events)), signal, tol=TOL)
            assert torch.allclose(along.certificate.objective, alone.certificate.objective, rtol=2 * TOL)
            limited = dsc.solve(dsc.Lasso(dictionary, lam.reshape(-1, *events)), signal, tol=TOL, max_memory="1 MB")
            assert limited.status == alone.status
            assert torch.allclose(limited.certificate.objective, alone.certificate.objective, rtol=2 * TOL)
