"""How trusted solvers have failed, one test for each way: here it must not happen."""

from __future__ import annotations

import math
import multiprocessing
import threading
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import deep_sparse_coding as dsc
from references import lasso_objective, scaled_dual, sklearn_lasso
from strategies import normal, rng, wide_range
from test_reliability.cases import (
    CASES,
    CONV,
    CONVEX,
    DENSE,
    IMAGES,
    LAYERED,
    MODEL,
    PURSUITS,
    SIGNAL,
    WITH_GAP,
    Case,
    blocks,
    each,
    only,
)

Lambda = dsc.Lasso | dsc.JointLasso | dsc.LayeredLasso
zeros_are_fine = pytest.mark.filterwarnings("ignore:lam is at or above lam_max")


def _first_lam(problem: dsc.Problem) -> float:
    assert isinstance(problem, Lambda)
    return problem.lam if isinstance(problem, dsc.Lasso) else problem.lam[0]  # type: ignore[return-value, index]


def _with_lam(problem: dsc.Problem, lam: float) -> dsc.Problem:
    """Return the problem with another lam of the first layer; the others keep their ratio to it."""
    assert isinstance(problem, Lambda)
    if isinstance(problem, dsc.Lasso):
        return replace(problem, lam=lam)
    return replace(problem, lam=tuple(lam * value / problem.lam[0] for value in problem.lam))  # type: ignore[union-attr, index]


# ---------------------------------------------------------------------- 1. "solved" with an objective that is NaN


@each(CASES)
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_nothing_is_called_solved_whose_objective_is_not_a_number(case: Case, bad: float) -> None:
    signal = case.signal.clone()
    signal[1].view(-1)[2] = bad
    solution = case.solve(signal=signal)
    assert solution.status[1] is dsc.Status.NONFINITE_INPUT
    assert not bool(solution.converged[1])
    assert all(bool(torch.isnan(block[1]).all()) for block in blocks(solution.codes))
    assert math.isnan(float(solution.certificate.objective[1]))
    assert not float(solution.certificate.relative_gap[1]) <= 1e300
    others = [i for i in range(len(signal)) if i != 1]
    alone = case.solve()
    for got, want in zip(blocks(solution.codes), blocks(alone.codes), strict=True):
        assert torch.allclose(got[others], want[others], atol=1e-6)
    assert all(solution.status[i] is alone.status[i] for i in others)


@each(CASES)
@pytest.mark.parametrize("scale", [5e-324, 1e-160, 1e160])
def test_nothing_is_called_solved_whose_square_leaves_the_numbers(case: Case, scale: float) -> None:
    signal = case.signal.clone()
    signal[1] = (signal[1] * scale).clamp_min(scale)
    solution = case.solve(signal=signal)
    assert solution.status[1] is dsc.Status.DIVERGED
    assert "scale the signal towards 1" in solution.message(1)
    assert float(solution.certificate.gap[1]) == math.inf
    assert float(dsc.certify(case.problem, signal, solution.codes).gap[1]) == math.inf
    alone = case.solve()
    for got, want in zip(blocks(solution.codes), blocks(alone.codes), strict=True):
        assert bool(torch.isfinite(got).all())
        assert torch.allclose(got[0], want[0], atol=1e-6)
    assert solution.status[0] is alone.status[0]


# ---------------------------------------------------------------------- 2. a gap that is negative, or off by a factor


@each(WITH_GAP)
def test_gaps_bound_the_distance_to_the_optimum_at_every_stage(case: Case) -> None:
    best = case.solve(tol=1e-11, max_steps=50_000).certificate.objective
    for steps in (0, 1, 3, 30):
        certificate = case.solve(tol=0.0, max_steps=steps).certificate
        for layer in certificate.layers or (certificate,):
            known = torch.isfinite(layer.objective)
            assert bool((layer.gap[known] >= 0).all())
            assert torch.allclose(layer.objective[known] - layer.gap[known], layer.dual[known], rtol=1e-12, atol=1e-12)
        if not certificate.layers:  # the problem of an upper layer depends on the codes below
            known = torch.isfinite(certificate.objective)
            assert bool((certificate.dual[known] <= best[known] * (1 + 1e-11)).all())
            assert bool((certificate.objective[known] >= best[known] * (1 - 1e-6)).all())


def test_neither_objective_nor_gap_is_divided_by_the_number_of_entries() -> None:
    codes = dsc.solve(dsc.Lasso(DENSE, 0.2), SIGNAL, dsc.FISTA(), tol=1e-3).codes
    certificate = dsc.certify(dsc.Lasso(DENSE, 0.2), SIGNAL, codes)
    matrix = DENSE.matrix.detach()
    for i, y in enumerate(SIGNAL):
        r = y - matrix @ codes[i]
        value = 0.5 * float(r @ r) + 0.2 * float(codes[i].abs().sum())
        assert float(certificate.objective[i]) == pytest.approx(value, rel=1e-13)
        # The best multiple of the residual is one dual point; another that is better may have been found.
        gap = value - scaled_dual(matrix, y, codes[i], 0.2)
        best = lasso_objective(matrix, y, sklearn_lasso(matrix, y, 0.2), 0.2)
        assert value - best - 1e-12 <= float(certificate.gap[i]) <= gap * (1 + 1e-6)
        assert float(dsc.certify(dsc.Lasso(DENSE, 0.2), y, 0 * codes[i]).gap) == pytest.approx(
            0.5 * float(y @ y) - scaled_dual(matrix, y, 0 * codes[i], 0.2), rel=1e-12
        )


# ---------------------------------------------------------------------- 3. `gap < tol` that is never true at zero


@each(WITH_GAP)
def test_an_optimum_of_zeros_takes_no_step_at_tolerance_zero(case: Case) -> None:
    solution = case.solve(signal=torch.zeros_like(case.signal), tol=0.0)
    assert set(solution.status) == {dsc.Status.CONVERGED}
    assert int(solution.steps.max()) == 0
    assert float(solution.certificate.gap.max()) == 0.0


@zeros_are_fine
@each(CONVEX)
def test_lam_at_lam_max_takes_no_step_at_tolerance_zero(case: Case) -> None:
    problem = case.problem
    above = _with_lam(problem, float(problem.lam_max(case.signal)[0]) * (1 + 1e-12))
    solution = case.solve(above, case.signal[:1], tol=0.0)
    assert set(solution.status) == {dsc.Status.CONVERGED}
    assert int(solution.steps.max()) == 0


@each(WITH_GAP)
def test_a_start_at_the_optimum_takes_no_step(case: Case) -> None:
    first = case.solve()
    assert bool(first.converged.all())
    again = case.solve(start=first.codes)
    assert int(again.steps.max()) == 0
    for got, want in zip(blocks(again.codes), blocks(first.codes), strict=True):
        assert torch.equal(got, want)


# ---------------------------------------------------------------------- 4. the scaled problem solved, the original not


@each(CONVEX[:2])
@pytest.mark.parametrize("decades", [4.0, 12.0])
def test_certificates_are_in_the_units_of_the_user(case: Case, decades: float) -> None:
    dictionary = wide_range(8, 10, 0, decades=decades)
    signal = normal(2, 8, generator=rng(3))
    lam = 0.05 * float(dsc.Lasso(dictionary, 1.0).lam_max(signal).min())
    solution = case.solve(dsc.Lasso(dictionary, lam), signal, tol=1e-6)
    matrix = dictionary.matrix.detach()
    for i in range(2):
        value = lasso_objective(matrix, signal[i], solution.codes[i], lam)
        assert float(solution.certificate.objective[i]) == pytest.approx(value, rel=1e-12)
        best = lasso_objective(matrix, signal[i], sklearn_lasso(matrix, signal[i], lam), lam)
        assert float(solution.certificate.dual[i]) <= best * (1 + 1e-12)
        assert bool(solution.converged[i]) == (float(solution.certificate.relative_gap[i]) <= 1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@each(CASES)
def test_the_scale_of_the_data_is_no_matter(case: Case, scale: float) -> None:
    plain, scaled = case.solve(), case.solve(case.build(scale), case.signal * scale)
    assert scaled.status == plain.status
    want = plain.certificate.objective * scale**case.degree
    assert torch.allclose(scaled.certificate.objective, want, rtol=10 * case.tol, atol=0.0)
    assert torch.allclose(scaled.certificate.gap / scale**case.degree, plain.certificate.gap, atol=10 * case.tol * 100)


# ---------------------------------------------------------------------- 5. NaN in the start reported as solved


@each(WITH_GAP)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_start_that_is_not_finite_is_refused(case: Case, bad: float) -> None:
    codes = case.solve(max_steps=0).codes
    start = tuple(torch.zeros_like(block) for block in blocks(codes))
    start[-1].view(-1)[0] = bad
    with pytest.raises(dsc.ParameterError, match=r"start has 1 entries that are not finite; expected finite codes: "):
        case.solve(start=start if isinstance(codes, tuple) else start[0])


@pytest.mark.parametrize("bad", [math.nan, -1.0])
@pytest.mark.parametrize("kind", [dsc.JointLasso, dsc.LayeredLasso])
def test_lam_and_weights_of_every_layer_are_validated(kind: type, bad: float) -> None:
    weights = torch.ones(14, dtype=torch.float64)
    weights[5] = bad
    with pytest.raises(dsc.ParameterError, match=r"weights\[1\] has 1 entries that are negative or NaN.*at \(5,\)"):
        kind(MODEL, 0.1, weights=(None, weights))
    with pytest.raises(dsc.ParameterError, match=r"lam\[1\] is .*; expected a number at least 0"):
        kind(MODEL, (0.1, bad))


@each(CASES)
def test_atoms_that_became_nan_are_refused_by_every_solver(case: Case) -> None:
    problem = case.problem
    if isinstance(problem, dsc.JointLasso | dsc.LayeredLasso):
        upper = problem.model.layers[1]
        poisoned = dsc.Cascade([problem.model.layers[0], upper.with_weight(upper.weight.detach().clone())])
        poisoned.layers[1].weight.data.view(-1)[0] = math.nan
        problem, where = type(problem)(poisoned, 0.1), "layer 2 of the cascade"
    else:
        assert isinstance(problem, dsc.Lasso | dsc.BasisPursuit | dsc.SparseApproximation)
        dictionary = problem.dictionary.with_weight(problem.dictionary.weight.detach().clone())
        dictionary.weight.data.view(-1)[0] = math.inf
        problem, where = replace(problem, dictionary=dictionary), "the dictionary"
    with pytest.raises(dsc.DictionaryError, match=f"{where} has 1 entries that are not finite.*expected finite atoms"):
        case.solve(problem)


# ---------------------------------------------------------------------- 6. float32 stopped early and nobody knew


@each(CONVEX[:4])
def test_float32_says_when_it_can_do_no_more(case: Case) -> None:
    problem = case.problem
    assert isinstance(problem, dsc.Lasso)
    single = dsc.Lasso(problem.dictionary.cast(torch.float32), 0.2)
    signal = case.signal.float()
    solution = case.solve(single, signal, tol=1e-5)
    assert bool(solution.converged.all())
    assert only(solution).dtype == torch.float32
    assert solution.certificate.gap.dtype == torch.float64
    exact = dsc.Lasso(single.dictionary.cast(torch.float64), 0.2)
    again = dsc.certify(exact, signal.double(), only(solution).double())
    # The same, unless the second dual point, which `certify` also tries at gaps of that size, is the better one.
    assert bool((again.gap <= solution.certificate.gap * (1 + 1e-9)).all())
    assert torch.allclose(again.objective, solution.certificate.objective, rtol=1e-12)
    with pytest.warns(dsc.DSCWarning, match=r"stalled: .* float32 resolves no more: use \.double\(\) on dictionary"):
        stalled = dsc.solve(single, signal, case.solver, tol=1e-18)
    assert set(stalled.status) == {dsc.Status.STALLED}


# ---------------------------------------------------------------------- 7. the second process hung


def _solve_all(names: list[str]) -> list[Tensor]:
    return [case.solve().certificate.objective for case in CASES if case.name in names]


def _report_objectives(names: list[str], queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    queue.put([value.tolist() for value in _solve_all(names)])


def test_a_forked_process_solves_after_its_parent_did() -> None:
    names = [case.name for case in CASES]
    want = _solve_all(names)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads behind
        process = context.Process(target=_report_objectives, args=(names, queue))
        process.start()
    got = queue.get(timeout=60)
    process.join(timeout=30)
    assert process.exitcode == 0
    for objective, values in zip(want, got, strict=True):
        assert torch.allclose(objective, torch.tensor(values, dtype=torch.float64), rtol=1e-12)


@each(CASES)
def test_threads_may_share_problem_and_solver(case: Case) -> None:
    want, problem = case.solve(), case.problem
    found: list[dsc.Solution] = []
    threads = [threading.Thread(target=lambda: found.append(case.solve(problem))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(found) == 2
    for solution in found:
        assert all(torch.equal(a, b) for a, b in zip(blocks(solution.codes), blocks(want.codes), strict=True))


# ---------------------------------------------------------------------- 8. coefficients that controlled nothing


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop])
def test_doubling_the_weight_of_a_penalty_adds_zeros_under_optimizers_that_rescale(optimizer: type) -> None:
    def train(weight: float) -> float:
        generator = rng(0)
        net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)).double()
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
        x = normal(96, 6, generator=generator)
        steps = optimizer(net.parameters(), lr=5e-3)
        with dsc.ActivationPenalty(net, [nn.ReLU], weight) as penalty:
            for _ in range(250):
                steps.zero_grad()
                (F.cross_entropy(net(x), x[:, :3].argmax(1)) + penalty.value()).backward()
                steps.step()
            penalty.reset()
            with torch.no_grad():
                net(x)
        return penalty.report()["1"].zero_fraction

    none, some, twice = train(0.0), train(1e-2), train(2e-2)
    assert none + 0.02 < some
    assert some + 0.02 < twice


@each(CONVEX + LAYERED)
def test_doubling_lam_lowers_the_l1_norm_and_the_density(case: Case) -> None:
    problem = case.problem
    once = case.solve().codes
    more = case.solve(_with_lam(problem, 4 * _first_lam(problem))).codes
    assert float(sum(b.abs().sum() for b in blocks(more))) < 0.9 * float(sum(b.abs().sum() for b in blocks(once)))
    assert sum(int((b != 0).sum()) for b in blocks(more)) < sum(int((b != 0).sum()) for b in blocks(once))


@each(PURSUITS)
def test_a_larger_epsilon_lowers_the_l1_norm(case: Case) -> None:
    values = [case.solve(case.build(c)).certificate.objective for c in (1.0, 1.5, 2.0)]
    assert bool((values[1] < 0.99 * values[0]).all())
    assert bool((values[2] < 0.99 * values[1]).all())


def test_every_weight_of_an_atom_is_heard() -> None:
    plain = only(dsc.solve(dsc.Lasso(CONV, 0.2), IMAGES, tol=1e-9))
    for atom in range(3):
        weights = torch.ones(3, dtype=torch.float64)
        weights[atom] = 3.0
        codes = only(dsc.solve(dsc.Lasso(CONV, 0.2, weights=weights), IMAGES, tol=1e-9))
        assert float(codes[0, atom].abs().sum()) < 0.7 * float(plain[0, atom].abs().sum())
