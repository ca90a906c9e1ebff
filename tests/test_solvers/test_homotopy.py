"""Homotopy: the path itself against LARS, its end against coordinate descent, ties, copies, and exponential length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from references import kkt_violation, lasso_objective, sklearn_lasso
from strategies import draw_dense, draw_signal, duplicate_matrix, nearly_parallel, normal, rank_deficient, rng

SEEDS = st.integers(0, 2**31 - 1)
HOMOTOPY = dsc.Homotopy()
zeros_are_fine = pytest.mark.filterwarnings("ignore:lam is at or above lam_max")
copies_are_meant = pytest.mark.filterwarnings("ignore:.* of atoms are the same up to scale and sign")
KIND = {"dtype": torch.float64}


def walk(
    matrix: Tensor, signal: Tensor, lowest: float, *, weights: Tensor | None = None, nonnegative: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the levels in units of lam and the codes at all breakpoints of one signal, down to `lowest`."""
    problem = dsc.Lasso(dsc.DenseDictionary(matrix), lowest, weights=weights, nonnegative=nonnegative)
    form = problem.form(signal)
    state = HOMOTOPY.init(form, form.zeros(), 0.0)
    levels, codes = [float(state.level)], [state.values[0]]
    while not bool(state.done):
        state = HOMOTOPY.step(form, state)
        levels.append(float(state.level))
        codes.append(state.values[0])
    return lowest * np.array(levels), torch.stack(codes).numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nonnegative", [False, True])
def test_every_breakpoint_is_that_of_lars(seed: int, nonnegative: bool) -> None:
    from sklearn.linear_model import lars_path

    matrix = normal(12, 20, generator=rng(seed))
    matrix = matrix / matrix.norm(dim=0)
    signal = normal(12, generator=rng(seed + 100))
    lowest = 1e-2 * float((matrix.T @ signal).abs().max())
    levels, codes = walk(matrix, signal, lowest, nonnegative=nonnegative)
    alphas, _, path = lars_path(
        matrix.numpy(), signal.numpy(), method="lasso", alpha_min=lowest / 12, positive=nonnegative
    )
    assert len(levels) == len(alphas) > 6
    np.testing.assert_allclose(levels, 12 * alphas, rtol=1e-9)
    # The last point is the end that was asked for, and scikit-learn's interpolation there is not always optimal.
    np.testing.assert_allclose(codes[:-1], path.T[:-1], atol=1e-9)
    assert kkt_violation(matrix, signal, torch.from_numpy(codes[-1]), lowest, nonnegative=nonnegative) < 1e-12


def test_atoms_leave_the_path_and_come_back() -> None:
    # Else nothing of the above is about drops.
    drops = 0
    for seed in range(4):
        matrix = normal(12, 20, generator=rng(seed))
        _, codes = walk(matrix, normal(12, generator=rng(seed + 100)), 1e-2)
        used = codes != 0
        drops += int((used[:-1] & ~used[1:]).sum())
    assert drops >= 3


@given(seed=SEEDS, nonnegative=st.booleans(), weighted=st.booleans())
@settings(max_examples=15, deadline=None)
def test_every_breakpoint_is_optimal(seed: int, nonnegative: bool, weighted: bool) -> None:
    generator = rng(seed)
    matrix = normal(6, 9, generator=generator)
    signal = normal(6, generator=generator)
    weights = torch.rand(9, generator=generator, dtype=torch.float64) + 0.2
    weights = weights if weighted else torch.ones_like(weights)
    weights[4] = torch.inf
    levels, codes = walk(matrix, signal, 1e-3, weights=weights, nonnegative=nonnegative)
    assert (np.diff(levels) <= 0).all()
    assert (codes[:, 4] == 0).all()
    for level, x in zip(levels, torch.from_numpy(codes), strict=True):
        violation = kkt_violation(matrix, signal, x, level * weights, nonnegative=nonnegative)
        assert violation <= 1e-9 * float(signal.norm() * matrix.norm())


@zeros_are_fine
@given(seed=SEEDS, nonnegative=st.booleans(), share=st.floats(0.01, 0.9))
@settings(max_examples=25, deadline=None)
def test_the_end_of_the_path_is_the_lasso(seed: int, nonnegative: bool, share: float) -> None:
    dictionary = draw_dense(seed)
    signal = draw_signal(dictionary, seed, batch=(2,))
    lam = share * dsc.Lasso(dictionary, 1.0).lam_max(signal)[:, None]  # one lam per sample
    solution = dsc.solve(
        dsc.Lasso(dictionary, lam, nonnegative=nonnegative), signal, HOMOTOPY, tol=1e-8, on_failure="ignore"
    )
    matrix = dictionary.matrix.detach()
    for i in range(2):
        best = sklearn_lasso(matrix, signal[i], float(lam[i]), nonnegative=nonnegative)
        want = lasso_objective(matrix, signal[i], best, float(lam[i]))
        got = lasso_objective(matrix, signal[i], solution.codes[i], float(lam[i]))
        assert got - want <= float(solution.certificate.gap[i]) + 1e-12 * got
        if bool(solution.converged[i]):
            assert got <= want * (1 + 1e-8) + 1e-300


@pytest.mark.parametrize("nonnegative", [False, True])
def test_it_agrees_with_coordinate_descent_to_rounding(nonnegative: bool) -> None:
    dictionary = dsc.DenseDictionary.random(32, 64, seed=0, **KIND)
    signal = normal(20, 32, generator=rng(1))
    mask = torch.rand(32, generator=rng(2)) < 0.8
    problem = dsc.Lasso(dictionary, 0.1, nonnegative=nonnegative, mask=mask)
    path = dsc.solve(problem, signal, HOMOTOPY, tol=1e-11)
    descent = dsc.solve(problem, signal, dsc.CoordinateDescent(), tol=1e-11)
    assert path.solver == "Homotopy"
    assert float((path.codes - descent.codes).abs().max()) < 1e-7
    single = dsc.Lasso(dsc.DenseDictionary(dictionary.matrix.detach().float()), 0.1, nonnegative=nonnegative)
    rounded = dsc.solve(single, signal.float(), HOMOTOPY, tol=1e-4)
    assert rounded.codes.dtype == torch.float32
    assert bool(rounded.converged.all())


def test_joint_and_layered_problems() -> None:
    layers = [dsc.DenseDictionary.random(10, 14, seed=0, **KIND), dsc.DenseDictionary.random(14, 18, seed=1, **KIND)]
    model = dsc.Cascade(layers)
    signal = 2 * normal(3, 10, generator=rng(1))
    for problem in (dsc.JointLasso(model, (0.05, 0.02), beta=(1.0, 3.0)), dsc.LayeredLasso(model, (0.05, 0.02))):
        path = dsc.solve(problem, signal, HOMOTOPY, tol=1e-10)
        descent = dsc.solve(problem, signal, dsc.CoordinateDescent(), tol=1e-10)
        assert torch.allclose(path.certificate.objective, descent.certificate.objective, rtol=1e-8)
        assert float(path.codes[1].abs().max()) > 0


EYE = torch.eye(6, **KIND)


@pytest.mark.parametrize(
    ("matrix", "lam"),
    [
        (EYE, 0.3),  # all atoms join at once
        (torch.cat([EYE, EYE, -EYE], 1), 0.3),  # and have copies
        (duplicate_matrix(6, 9, 0), 0.05),
        (nearly_parallel(6, 9, 0).matrix.detach(), 0.05),
        (rank_deficient(6, 12, 3, 0).matrix.detach(), 0.01),
        (torch.tensor([[1.0, -1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0, -1.0]], **KIND), 0.1),  # ties among integers
    ],
    ids=["orthonormal", "copies", "duplicates", "nearly-parallel", "rank-deficient", "integers"],
)
@zeros_are_fine
@copies_are_meant
@pytest.mark.parametrize("nonnegative", [False, True])
def test_ties_and_dependent_atoms(matrix: Tensor, lam: float, nonnegative: bool) -> None:
    integers = torch.randint(-2, 3, (30, len(matrix)), generator=rng(3)).double()
    signal = torch.cat([torch.ones(1, len(matrix), **KIND), integers[integers.abs().sum(1) > 0]])
    problem = dsc.Lasso(dsc.DenseDictionary(matrix), lam, nonnegative=nonnegative)
    solution = dsc.solve(problem, signal, HOMOTOPY, tol=1e-9, on_failure="ignore")
    for y, x in zip(signal, solution.unwrap(), strict=True):
        want = lasso_objective(matrix, y, sklearn_lasso(matrix, y, lam, nonnegative=nonnegative), lam)
        # From above only: with nearly parallel atoms the reference ends a little above the optimum.
        assert lasso_objective(matrix, y, x, lam) <= want * (1 + 1e-8)


@copies_are_meant
def test_atoms_in_use_that_turn_dependent_end_the_path_and_are_not_called_converged() -> None:
    form = dsc.Lasso(dsc.DenseDictionary(torch.cat([EYE, EYE], 1)), 0.1).form(torch.ones(6, **KIND))
    state = HOMOTOPY.step(form, HOMOTOPY.init(form, form.zeros(), 0.0))
    forced = torch.zeros(1, 12, **KIND)
    forced[0, [0, 6]] = 1.0  # both copies, which no path would choose
    stuck = HOMOTOPY.step(form, type(state)(**{**vars(state), "signs": forced}))
    assert bool(stuck.done)
    assert float(stuck.level) == float(state.level) > 1
    assert torch.equal(stuck.values, state.values)


def test_few_steps_are_an_unfinished_path_with_a_true_certificate() -> None:
    dictionary = dsc.DenseDictionary.random(32, 64, seed=0, **KIND)
    signal = normal(2, 32, generator=rng(1))
    problem = dsc.Lasso(dictionary, 0.05)
    solution = dsc.solve(problem, signal, HOMOTOPY, max_steps=5, on_failure="ignore")
    assert set(solution.status) == {dsc.Status.MAX_STEPS}
    assert 1 <= int((solution.codes != 0).sum(1).max()) <= 5
    best = dsc.solve(problem, signal, tol=1e-12)
    assert bool((solution.certificate.objective - best.certificate.objective <= solution.certificate.gap).all())
    again = dsc.solve(problem, signal, HOMOTOPY, start=best.codes)
    assert int(again.steps.max()) == 0


def test_what_it_cannot_take_is_refused() -> None:
    signal = normal(2, 6, generator=rng(0))
    conv = dsc.ConvDictionary.random(atoms=2, channels=1, size=(3,), seed=0, **KIND)
    for problem, y, words in (
        (dsc.Lasso(conv, 0.1), signal[:, None], "Homotopy takes dense dictionaries.*use dsc.FISTA"),
        (dsc.Lasso(dsc.DenseDictionary(EYE), 0.1, mask=signal > 0), signal, "shared by all samples"),
        (dsc.Lasso(dsc.DenseDictionary(EYE), 0.0), signal, "every atom penalized.*hold zeros"),
    ):
        with pytest.raises(dsc.UnsupportedError, match=words):
            dsc.solve(problem, y, HOMOTOPY)


def longest_path(depth: int) -> tuple[Tensor, Tensor, float]:
    """Return atoms and a signal whose path has (3^depth - 1)/2 breakpoints, and its smallest breakpoint.

    Each round adds an entry to the signal and an atom so slightly correlated with it that the path so far is walked
    forward, backward with all signs turned, and forward again.
    """
    matrix, signal, last = torch.ones(1, 1, **KIND), torch.ones(1, **KIND), 1.0
    for _ in range(depth - 1):
        alpha = 0.9 * last / float(2 * signal.square().sum() + 1)
        bottom = torch.zeros(1, matrix.shape[1] + 1, **KIND)
        bottom[0, -1] = alpha
        matrix = torch.cat([torch.cat([matrix, 2 * alpha * signal[:, None]], 1), bottom])
        signal = torch.cat([signal, torch.ones(1, **KIND)])
        levels, _ = walk(matrix, signal, 1e-6 * last * alpha)
        last = float(levels[-2])
    return matrix, signal, last


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_a_path_may_be_exponentially_long(depth: int) -> None:
    matrix, signal, last = longest_path(depth)
    levels, _ = walk(matrix, signal, last / 2)
    assert len(levels) - 1 == (3**depth - 1) // 2  # the last level is the end that was asked for
    solution = dsc.solve(dsc.Lasso(dsc.DenseDictionary(matrix), last / 2), signal, HOMOTOPY, tol=1e-6)
    assert bool(solution.converged)
