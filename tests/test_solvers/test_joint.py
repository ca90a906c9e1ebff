"""The compiled solver of convolutional joint problems against explicit matrices and FISTA, and on hostile inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess
from deep_sparse_coding.solvers._kernels_joint import Stage, assess_joint, solve_joint
from deep_sparse_coding.solvers.joint import JointCoordinateDescent, assess_chain
from references import joint_matrix, kkt_violation, lasso_objective
from strategies import draw_cascade, normal, randint, rng

SEEDS = st.integers(0, 2**31 - 1)
SOLVER = JointCoordinateDescent()
BETAS = (1e-2, 0.3, 1.0, 10.0, 1e2)
zeros_are_fine = pytest.mark.filterwarnings("ignore:lam is at or above lam_max")


def cascade(seed: int, boundaries: Sequence[str] = ("valid", "valid"), stride: int = 1, axes: int = 2) -> dsc.Cascade:
    """Two layers of more kernels than one tile's lanes hold, and of a number that fills no tile."""
    generator, layers, channels = rng(seed), [], 2
    for atoms, size, boundary in zip((5, 18), (3, 4), boundaries, strict=True):
        kernels = normal(atoms, channels, *(size,) * axes, generator=generator)
        layers.append(dsc.ConvDictionary(kernels, stride=stride, boundary=boundary, normalize=True))
        channels, stride = atoms, 1
    return dsc.Cascade(layers)


def signals(model: dsc.Cascade, size: tuple[int, ...], seed: int, count: int = 2) -> Tensor:
    for layer in reversed(model.layers[1:]):
        size = layer.signal_shape(size)[1:]
    return normal(count, *model.layers[0].signal_shape(size), generator=rng(seed))


def sparse(problem: dsc.JointLasso, signal: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Random codes, a fifth of them in use."""
    g = rng(seed)
    draws = [(normal(*x.shape, generator=g), normal(*x.shape, generator=g)) for x in problem.form(signal).zeros()]
    codes = tuple(torch.where(chance.abs() < 0.25, value, 0.0) for value, chance in draws)
    return tuple(x.abs() for x in codes) if problem.nonnegative else codes


def objectives(solution: dsc.Solution) -> Tensor:
    return solution.certificate.objective


def agree(problem: dsc.JointLasso, signal: Tensor, tol: float = 1e-9) -> dsc.Solution:
    """Solve by both and compare: what FISTA reaches in bounded time is above the minimum by at most its own gap."""
    ours = dsc.solve(problem, signal, SOLVER, tol=tol)
    theirs = dsc.solve(problem, signal, dsc.FISTA(), tol=tol, max_steps=600, on_failure="ignore")
    assert ours.converged.all()
    excess = objectives(theirs) - objectives(ours)
    assert (excess >= -2 * tol * objectives(ours)).all()
    assert (excess <= theirs.certificate.gap + 2 * tol * objectives(ours)).all()
    return ours


# ---------------------------------------------------------------------- against others


@zeros_are_fine
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_drawn_cascades_equal_fista(seed: int) -> None:
    g = rng(seed)
    model = draw_cascade(seed, conv=True)
    axes = model.layers[0].event_axes - 1
    signal = signals(model, tuple(randint(1, 5, g) for _ in range(axes)), seed)
    beta = tuple(BETAS[randint(0, len(BETAS) - 1, g)] for _ in model.layers)
    top = float(dsc.JointLasso(model, 1.0, beta).lam_max(signal).max())
    lam = tuple(top * 10.0 ** -(0.3 + 1.5 * float(torch.rand((), generator=g))) for _ in model.layers)
    problem = dsc.JointLasso(model, lam, beta, nonnegative=bool(randint(0, 1, g)))
    agree(problem, signal)


@pytest.mark.parametrize("boundaries", [("valid", "valid"), ("circular", "circular"), ("valid", "circular")])
@pytest.mark.parametrize("beta", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("stride", [1, 2])
def test_optimality_by_the_explicit_matrix(boundaries: tuple[str, str], beta: float, stride: int) -> None:
    model = cascade(1, boundaries, stride)
    size = (5, 6)
    signal = signals(model, size, 2)
    lam = (0.2, 0.02 * beta)
    problem = dsc.JointLasso(model, lam, (1.0, beta))
    solution = dsc.solve(problem, signal, SOLVER, tol=1e-10)
    assert solution.converged.all()
    matrix, widths = joint_matrix(model, size, (1.0, beta))
    weights = torch.cat([torch.full((n,), value, dtype=torch.float64) for n, value in zip(widths, lam, strict=True)])
    for i in range(2):
        codes = torch.cat([x[i].flatten() for x in solution.codes])
        data = torch.cat([signal[i].flatten(), signal.new_zeros(len(matrix) - signal[i].numel())])
        assert kkt_violation(matrix, data, codes, weights) < 1e-4 * min(lam)
        want = lasso_objective(matrix, data, codes, weights)
        assert float(objectives(solution)[i]) == pytest.approx(want, rel=1e-12)
    assert all(0 < int((x != 0).sum()) < x.numel() for x in solution.codes)


@pytest.mark.parametrize(("axes", "nonnegative"), [(1, True), (2, False)])
def test_weights_per_atom_and_entry_and_lam_per_sample(axes: int, nonnegative: bool) -> None:
    model = cascade(3, axes=axes)
    signal = signals(model, (6, 5)[:axes], 4, 3)
    shapes = [tuple(x.shape[1:]) for x in dsc.JointLasso(model, 1.0).form(signal).zeros()]
    per_entry = torch.rand(shapes[1], generator=rng(5), dtype=torch.float64) + 0.1
    per_entry[torch.rand(shapes[1], generator=rng(6), dtype=torch.float64) < 0.2] = math.inf
    weights = (torch.linspace(0.5, 1.5, 5, dtype=torch.float64), per_entry)
    lam = (torch.tensor([0.05, 0.1, 0.3], dtype=torch.float64), 0.05)
    solution = agree(dsc.JointLasso(model, lam, (1.0, 2.0), weights, nonnegative), signal)
    assert not solution.codes[1][:, torch.isinf(per_entry)].any()
    assert all(x.any() for x in solution.codes)
    assert not nonnegative or all((x >= 0).all() for x in solution.codes)


@pytest.mark.parametrize(
    ("dtype", "tol"),
    [(torch.float32, 1e-2), (torch.float32, 1e-4), (torch.float32, 1e-5), (torch.float64, 1e-4), (torch.float64, 1e-7)],
)
def test_precisions_and_tolerances(dtype: torch.dtype, tol: float) -> None:
    model = cascade(7).cast(dtype)
    signal = signals(model, (6, 9), 8).to(dtype)
    solution = agree(dsc.JointLasso(model, (0.3, 0.1), (1.0, 3.0)), signal, tol)
    assert solution.codes[0].dtype == dtype


def test_one_layer_is_the_lasso() -> None:
    model = cascade(9)
    first = dsc.Cascade([model.layers[0]])
    signal = signals(first, (17, 9), 10)
    joint = dsc.solve(dsc.JointLasso(first, 0.3), signal, SOLVER, tol=1e-9)
    single = dsc.solve(dsc.Lasso(first.layers[0], 0.3), signal, dsc.FISTA(), tol=1e-9)
    torch.testing.assert_close(objectives(joint), objectives(single), rtol=2e-9, atol=0.0)


# ---------------------------------------------------------------------- the compiled certificate


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("beta", [1e-2, 1.0, 1e2])
def test_the_compiled_certificate_equals_the_assessor(nonnegative: bool, beta: float) -> None:
    for boundary in ("valid", "circular"):
        model = cascade(11, (boundary, boundary), 2)
        signal = signals(model, (14, 9), 12, 3)
        problem = dsc.JointLasso(model, (0.3, 0.1), (0.7, beta), nonnegative=nonnegative)
        for codes in (sparse(problem, signal, 13), problem.form(signal).zeros()):
            want = assess(problem, signal, codes)
            found = assess_chain(problem.form(signal), codes)
            assert found is not None
            torch.testing.assert_close(found[0], want.objective, rtol=1e-12, atol=0.0)
            torch.testing.assert_close(found[1], want.gap, rtol=1e-9, atol=0.0)


def test_the_assessment_sees_violations_and_takes_convolutional_chains_only() -> None:
    model = cascade(14)
    signal = signals(model, (5, 5), 15, 3)
    weights = torch.ones(18, dtype=torch.float64)
    weights[2] = math.inf
    problem = dsc.JointLasso(model, 0.1, weights=(None, weights), nonnegative=True)
    codes = problem.form(signal).zeros()
    codes[1][1, 2, 3, 3], codes[0][2, 0, 1, 1] = 1.0, -1.0
    found = assess_chain(problem.form(signal), codes)
    assert found is not None
    want = assess(problem, signal, codes)
    torch.testing.assert_close(found[0], want.objective)
    torch.testing.assert_close(found[1], want.gap)
    assert torch.isinf(found[0]).tolist() == [False, True, True]
    lasso = dsc.Lasso(model.layers[0], 0.1).form(signal)
    assert assess_chain(lasso, lasso.zeros()) is None


# ---------------------------------------------------------------------- the same bits


def stages(model: dsc.Cascade, lam: Sequence[float], beta: Sequence[float]) -> list[Stage]:
    return [
        Stage(layer.weight.detach().numpy(), np.full((1, 1, 1, 1), w), (1, 1), b, False)
        for layer, w, b in zip(model.layers, lam, beta, strict=True)
    ]


@pytest.mark.parametrize("count", [1, 4])
def test_threads_and_batches_change_no_bit(count: int) -> None:
    model = cascade(16)
    signal = signals(model, (9, 15), 17, count)
    layers = stages(model, (0.3, 0.1), (1.0, 2.0))
    start = [x.numpy() for x in dsc.JointLasso(model, 1.0).form(signal).zeros()]

    def run(rows: slice, threads: int) -> Any:
        here = [x[rows] for x in start]
        return solve_joint(layers, signal[rows].numpy(), here, False, 1e-7, 100, threads)

    alone = run(slice(None), 1)
    assert (alone[2] <= 1e-7).all()
    for threads in (2, 3):
        codes, rounds, gaps = run(slice(None), threads)
        np.testing.assert_array_equal(rounds, alone[1])
        np.testing.assert_array_equal(gaps, alone[2])
        for got, want in zip(codes, alone[0], strict=True):
            np.testing.assert_array_equal(got, want)
        one, more = (assess_joint(layers, signal.numpy(), alone[0], False, t) for t in (1, threads))
        np.testing.assert_array_equal(one, more)
    for i in range(count):
        codes = run(slice(i, i + 1), 2)[0]
        for got, want in zip(codes, alone[0], strict=True):
            np.testing.assert_array_equal(got[0], want[i])


def test_powers_of_two_change_no_bit() -> None:
    model = cascade(18)
    signal = signals(model, (12, 13), 19)
    want = dsc.solve(dsc.JointLasso(model, (0.3, 0.1)), signal, SOLVER)
    for scale in (2.0**-300, 2.0**300):
        problem = dsc.JointLasso(model, (0.3 * scale, 0.1 * scale))
        got = dsc.solve(problem, scale * signal, SOLVER)
        for a, b in zip(got.codes, want.codes, strict=True):
            assert torch.equal(a, scale * b)


# ---------------------------------------------------------------------- starts


def test_an_optimal_start_takes_no_step_and_a_near_one_few() -> None:
    model = cascade(20)
    signal = signals(model, (10, 11), 21)
    first = dsc.solve(dsc.JointLasso(model, (0.3, 0.1)), signal, SOLVER, tol=1e-7)
    again = dsc.solve(dsc.JointLasso(model, (0.3, 0.1)), signal, SOLVER, tol=1e-7, start=first.codes)
    assert (again.steps == 0).all()
    near = dsc.JointLasso(model, (0.29, 0.1))
    warm = dsc.solve(near, signal, SOLVER, tol=1e-7, start=first.codes)
    cold = dsc.solve(near, signal, SOLVER, tol=1e-7)
    assert warm.converged.all()
    assert (warm.steps < cold.steps).all()


def test_start_values_that_the_problem_forbids_count_as_zero() -> None:
    model = cascade(22)
    signal = signals(model, (8, 8), 23, 1)
    layers = stages(model, (0.3, 0.1), (1.0, 2.0))
    zeros = [x.numpy() for x in dsc.JointLasso(model, 1.0).form(signal).zeros()]
    below = [x - 0.5 for x in zeros]
    want = solve_joint(layers, signal.numpy(), zeros, True, 1e-9, 100, 1)[0]
    codes, _, gaps = solve_joint(layers, signal.numpy(), below, True, 1e-9, 100, 1)
    assert gaps[0] <= 1e-9
    for got, expected in zip(codes, want, strict=True):
        np.testing.assert_array_equal(got, expected)


# ---------------------------------------------------------------------- hostile inputs


def test_bad_samples_do_not_spoil_the_others() -> None:
    model = cascade(24)
    signal = signals(model, (9, 9), 25, 4)
    problem = dsc.JointLasso(model, (0.3, 0.1))
    alone = dsc.solve(problem, signal[1:2], SOLVER)
    signal[0, 0, 0, 0], signal[2], signal[3] = math.nan, 0.0, 1e-3
    with pytest.warns(dsc.DSCWarning):
        solution = dsc.solve(problem, signal, SOLVER)
    assert [status.name for status in solution.status] == ["NONFINITE_INPUT", "CONVERGED", "CONVERGED", "CONVERGED"]
    for mine, own in zip(solution.codes, alone.codes, strict=True):
        assert torch.equal(mine[1], own[0])
        assert not mine[2:].any()
        assert mine[0].isnan().all()


def test_atoms_of_very_different_norms() -> None:
    model = cascade(26)
    scaled = [
        layer.with_weight(layer.weight.detach() * 10.0 ** torch.linspace(-4, 4, layer.atoms)[:, None, None, None])
        for layer in model.layers
    ]
    signal = signals(model, (7, 7), 27)
    weights = tuple(10.0 ** torch.linspace(-4, 4, layer.atoms, dtype=torch.float64) for layer in scaled)
    problem = dsc.JointLasso(dsc.Cascade(scaled), (0.2, 0.05), weights=weights)
    assert dsc.solve(problem, signal, SOLVER, tol=1e-7).converged.all()


@zeros_are_fine
def test_an_empty_batch() -> None:
    model = cascade(28)
    signal = signals(model, (4, 4), 29)[:0]
    assert dsc.solve(dsc.JointLasso(model, 0.1), signal, SOLVER).codes[1].shape == (0, 18, 4, 4)


def test_refusals_name_another_solver() -> None:
    model = cascade(30)
    signal = signals(model, (4, 4), 31)
    mask = torch.ones_like(signal[0], dtype=torch.bool)
    cube = dsc.ConvDictionary(normal(2, 1, 2, 2, 2, generator=rng(1)), normalize=True)
    dense = dsc.Cascade([dsc.DenseDictionary.random(4, 6, seed=0, dtype=torch.float64)])
    same = dsc.ConvDictionary(normal(3, 2, 3, 3, generator=rng(3)), boundary="same", normalize=True)
    volume = normal(1, 1, 3, 3, 3, generator=rng(2))
    cases: list[tuple[dsc.Problem, Tensor, str]] = [
        (dsc.JointLasso(model, 0.1, mask=mask), signal, "takes no mask.*use dsc.FISTA"),
        (dsc.JointLasso(dsc.Cascade([cube]), 0.1), volume, "one or two spatial axes.*use dsc.FISTA"),
        (dsc.JointLasso(dense, 0.1), torch.ones(1, 4, dtype=torch.float64), "use dsc.CoordinateDescent"),
        (dsc.Lasso(model.layers[0], 0.1), signal, "dsc.ConvCoordinateDescent"),
        (dsc.JointLasso(dsc.Cascade([same]), 0.1), signal, "border cuts off.*use dsc.FISTA"),
    ]
    for problem, data, words in cases:
        with pytest.raises(dsc.UnsupportedError, match=words):
            dsc.solve(problem, data, SOLVER)
    with pytest.raises(dsc.ParameterError, match="rounds"):
        JointCoordinateDescent(rounds=0)
