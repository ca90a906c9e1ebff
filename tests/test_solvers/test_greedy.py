"""The ℓ0 problem: matching pursuit against plain least squares, enumeration against brute force, honest statuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess
from references import explicit_matrix
from references_constrained import best_residual, fewest_atoms, greedy_support
from strategies import code_size, draw_conv, draw_dense, duplicate_matrix, nearly_parallel, normal, rank_deficient, rng

DENSE = dsc.DenseDictionary.random(12, 20, seed=0, dtype=torch.float64)
TINY = dsc.DenseDictionary.random(6, 9, seed=1, dtype=torch.float64)
CONV = dsc.ConvDictionary.random(atoms=3, channels=1, size=3, seed=0, dtype=torch.float64)
CASCADE = dsc.Cascade([DENSE, dsc.DenseDictionary.random(20, 26, seed=2, dtype=torch.float64)])
SIGNAL = normal(6, 12, generator=rng(0))


def residual_norms(dictionary: dsc.Dictionary, signal: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return (signal.double() - dictionary.cast(torch.float64).synthesize(codes.double())).flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither sparsity nor epsilon is given; expected at least one"),
        ({"sparsity": 0}, "sparsity is 0; expected a whole number of at least 1"),
        ({"sparsity": -2}, "sparsity is -2; expected a whole number of at least 1"),
        ({"sparsity": 2.5}, "sparsity is 2.5; expected a whole number of at least 1"),
        ({"sparsity": math.nan}, "sparsity is nan; expected a finite number"),
        ({"sparsity": 21}, "sparsity is 21 and a code has 20 entries; expected at most 20"),
        ({"epsilon": -1.0}, "epsilon is -1.0; expected a number at least 0"),
        ({"epsilon": math.nan}, "epsilon is nan; expected a number at least 0"),
        ({"epsilon": torch.tensor([1.0, math.nan])}, r"epsilon has 1 entries that are negative or NaN.*\(1,\): nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(dsc.ParameterError, match=message):
        dsc.SparseApproximation(DENSE, **settings)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(dsc.ParameterError, match="layer 1 of the cascade: neither sparsity nor epsilon is given"):
        dsc.LayeredSparseApproximation(CASCADE)
    with pytest.raises(dsc.ParameterError, match="layer 2 of the cascade: sparsity is 27 and a code has 26 entries"):
        dsc.LayeredSparseApproximation(CASCADE, (3, 27))
    with pytest.raises(dsc.ParameterError, match="sparsity has 3 entries; expected one for each of the 2 layers"):
        dsc.LayeredSparseApproximation(CASCADE, (3, 2, 1))
    with pytest.raises(dsc.DictionaryError, match="dictionary is a Parameter; expected a dictionary"):
        dsc.SparseApproximation(DENSE.matrix, 3)  # type: ignore[arg-type]
    image = torch.ones(1, 5, 5, dtype=torch.float64)
    with pytest.raises(dsc.ParameterError, match="sparsity is 28 and a code has 27 entries"):
        dsc.solve(dsc.SparseApproximation(CONV, 28), image)
    with pytest.raises(dsc.ShapeError, match=r"epsilon has shape \(3,\); expected a number, or one per sample: \(6,\)"):
        dsc.solve(dsc.SparseApproximation(DENSE, epsilon=torch.ones(3)), SIGNAL)
    problem = dsc.SparseApproximation(DENSE, 3)
    with pytest.raises(dsc.UnsupportedError, match=r"FISTA takes convex problems.*use dsc.OMP\(\)"):
        dsc.solve(problem, SIGNAL, dsc.FISTA())
    with pytest.raises(dsc.UnsupportedError, match=r"OMP takes dsc.SparseApproximation \(ℓ0\); use dsc.FISTA\(\)"):
        dsc.solve(dsc.Lasso(DENSE, 0.1), SIGNAL, dsc.OMP())
    with pytest.raises(dsc.UnsupportedError, match=r"OMP takes dsc.SparseApproximation"):
        dsc.solve(dsc.BasisPursuit(DENSE, 0.1), SIGNAL, dsc.OMP())
    with pytest.raises(dsc.UnsupportedError, match="OMP takes no start"):
        dsc.solve(problem, SIGNAL, start=torch.zeros(6, 20, dtype=torch.float64))
    with pytest.raises(dsc.UnsupportedError, match=r"look at 1351 supports, 1000 are allowed; use dsc.OMP\(\)"):
        dsc.solve(problem, SIGNAL, dsc.Exhaustive(max_supports=1000))
    with pytest.raises(dsc.ParameterError, match="max_supports is 0"):
        dsc.Exhaustive(max_supports=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_omp_is_least_squares_after_every_choice(seed: int) -> None:
    generator = rng(seed)
    dictionary = draw_dense(seed) if seed % 3 else draw_conv(seed)
    size = code_size(dictionary, seed, largest=3)
    matrix = explicit_matrix(dictionary, size)
    signal = normal(3, *dictionary.signal_shape(size), generator=generator)
    rank = int(torch.linalg.matrix_rank(matrix))
    sparsity = int(torch.randint(1, min(rank, 6) + 1, (), generator=generator))
    solution = dsc.solve(dsc.SparseApproximation(dictionary, sparsity), signal)
    for i in range(3):
        want = greedy_support(matrix, signal[i], sparsity)
        assert torch.allclose(solution.codes[i].flatten(), want, atol=1e-8 * float(want.abs().max()))
    assert bool(solution.converged.all())
    assert torch.allclose(
        solution.certificate.objective, 0.5 * residual_norms(dictionary, signal, solution.codes) ** 2, rtol=1e-9
    )


@pytest.mark.parametrize("sparsity", [1, 4, 10])
def test_omp_agrees_with_scikit_learn(sparsity: int) -> None:
    from sklearn.linear_model import OrthogonalMatchingPursuit

    signal = normal(300, 12, generator=rng(1))
    model = OrthogonalMatchingPursuit(n_nonzero_coefs=sparsity, fit_intercept=False)
    want = torch.from_numpy(model.fit(DENSE.matrix.numpy(), signal.numpy().T).coef_)
    solution = dsc.solve(dsc.SparseApproximation(DENSE, sparsity), signal)
    assert torch.allclose(solution.codes, want, atol=1e-10)
    assert int(solution.steps.min()) == int(solution.steps.max()) == sparsity


def test_omp_stops_at_epsilon_like_scikit_learn() -> None:
    from sklearn.linear_model import OrthogonalMatchingPursuit

    epsilon = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 0.01], dtype=torch.float64)
    solution = dsc.solve(dsc.SparseApproximation(DENSE, epsilon=epsilon), SIGNAL)
    assert bool((residual_norms(DENSE, SIGNAL, solution.codes) <= epsilon).all())
    for i in range(6):
        model = OrthogonalMatchingPursuit(tol=float(epsilon[i]) ** 2, fit_intercept=False)
        want = model.fit(DENSE.matrix.numpy(), SIGNAL[i].numpy()).coef_
        assert np.allclose(solution.codes[i].numpy(), want, atol=1e-8)
        assert float(solution.certificate.objective[i]) == np.count_nonzero(want)


@pytest.mark.parametrize("share", [1e-4, 1e-6, 1e-7])
def test_small_epsilons_are_met_though_the_running_norm_cancels(share: float) -> None:
    codes = torch.zeros(50, 20, dtype=torch.float64)
    codes[:, :3] = normal(50, 3, generator=rng(2)) + 3
    signal = DENSE.synthesize(codes) + share * 0.2 * normal(50, 12, generator=rng(3))
    epsilon = share * signal.norm(dim=1)
    solution = dsc.solve(dsc.SparseApproximation(DENSE, epsilon=epsilon), signal)
    assert bool((residual_norms(DENSE, signal, solution.codes) <= epsilon).all())


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_enumeration_is_brute_force_and_no_worse_than_greed(seed: int) -> None:
    generator = rng(seed)
    signal = normal(2, 6, generator=generator)
    nonnegative = bool(seed % 2)
    sparsity = int(torch.randint(1, 4, (), generator=generator))
    problem = dsc.SparseApproximation(TINY, sparsity, nonnegative=nonnegative)
    exact = dsc.solve(problem, signal, dsc.Exhaustive())
    greedy = dsc.solve(problem, signal)
    for i in range(2):
        want = best_residual(TINY.matrix.detach(), signal[i], sparsity, nonnegative=nonnegative)
        assert float(exact.certificate.objective[i]) == pytest.approx(0.5 * want**2, rel=1e-8)
    assert bool((exact.certificate.gap == 0).all())
    assert exact.message(0) == f"proved optimal with {int(exact.steps[0])} steps"
    assert bool((greedy.certificate.objective >= exact.certificate.objective * (1 - 1e-12)).all())
    assert bool((greedy.certificate.dual <= exact.certificate.objective).all())
    epsilon = 0.5 * float(signal.norm(dim=1).min())
    fewest = dsc.solve(dsc.SparseApproximation(TINY, epsilon=epsilon), signal, dsc.Exhaustive())
    for i in range(2):
        assert float(fewest.certificate.objective[i]) == fewest_atoms(TINY.matrix.detach(), signal[i], epsilon)
    assert bool((residual_norms(TINY, signal, fewest.codes) <= epsilon).all())


def test_enumeration_of_convolutions() -> None:
    signal = normal(2, 1, 4, 4, generator=rng(4))
    exact = dsc.solve(dsc.SparseApproximation(CONV, 2), signal, dsc.Exhaustive())
    matrix = explicit_matrix(CONV, (2, 2))
    for i in range(2):
        assert float(exact.certificate.objective[i]) == pytest.approx(0.5 * best_residual(matrix, signal[i], 2) ** 2)


def test_what_the_statuses_say() -> None:
    both = dsc.SparseApproximation(DENSE, 2, 1.0)
    with pytest.warns(dsc.DSCWarning, match="greedy selection did not come within epsilon with the 2 atoms"):
        solution = dsc.solve(both, SIGNAL)
    for i, status in enumerate(solution.status):
        met = float(residual_norms(DENSE, SIGNAL[i : i + 1], solution.codes[i : i + 1])) <= 1.0
        assert status == (dsc.Status.CONVERGED if met else dsc.Status.STALLED)
        assert bool(torch.isfinite(solution.certificate.objective[i])) == met
    exact = dsc.solve(both, SIGNAL, dsc.Exhaustive(), on_failure="ignore")
    assert set(exact.status) <= {dsc.Status.CONVERGED, dsc.Status.INFEASIBLE}
    plain = dsc.solve(dsc.SparseApproximation(DENSE, 3), SIGNAL)
    assert "that no better codes exist is not proved" in plain.message(0)
    assert "no gap (ℓ0)" in str(plain)
    assert torch.equal(plain.certificate.dual, torch.zeros(6, dtype=torch.float64))
    with pytest.warns(dsc.DSCWarning, match="ran out of steps: 2 atoms were chosen; raise max_steps"):
        short = dsc.solve(dsc.SparseApproximation(DENSE, 3), SIGNAL, max_steps=2)
    assert set(short.status) == {dsc.Status.MAX_STEPS}
    tall = dsc.DenseDictionary.random(12, 5, seed=1, dtype=torch.float64)
    far = dsc.solve(dsc.SparseApproximation(tall, epsilon=0.1), SIGNAL, on_failure="ignore")
    assert set(far.status) == {dsc.Status.INFEASIBLE}
    assert bool(torch.isnan(far.codes).all())
    one = dsc.solve(dsc.SparseApproximation(DENSE, epsilon=1e-6), DENSE.matrix.detach().T[:3].contiguous())
    assert bool((one.certificate.gap == 0).all())  # one atom, and zeros do not do: optimal


def test_certificates_of_codes_from_anywhere() -> None:
    problem = dsc.SparseApproximation(DENSE, 3, nonnegative=True)
    codes = torch.zeros(6, 20, dtype=torch.float64)
    assert torch.allclose(assess(problem, SIGNAL, codes).objective, 0.5 * SIGNAL.square().sum(1))
    codes[0, :4] = 1.0
    codes[1, 0] = -1.0
    assert torch.isinf(problem.objective(codes, SIGNAL)).tolist() == [True, True, False, False, False, False]
    assert torch.equal(dsc.certify(problem, SIGNAL, codes).objective, problem.objective(codes, SIGNAL))
    assert torch.allclose(problem.lam_max(SIGNAL), SIGNAL.norm(dim=1))


def test_more_atoms_than_the_rank_are_clipped_with_one_warning() -> None:
    low = rank_deficient(8, 12, 4, seed=0)
    signal = normal(5, 8, generator=rng(5))
    with pytest.warns(
        dsc.DSCWarning, match="sparsity is 9 and no more than 4 atoms are independent.*4 are used"
    ) as seen:
        solution = dsc.solve(dsc.SparseApproximation(low, 9), signal)
    assert len(seen) == 1
    assert int((solution.codes != 0).sum(1).max()) <= 4
    best = torch.linalg.lstsq(low.matrix.detach(), signal.T, driver="gelsd").solution.T
    assert torch.allclose(
        residual_norms(low, signal, solution.codes), residual_norms(low, signal, best.contiguous()), rtol=1e-8
    )


def test_duplicates_and_nearly_parallel_atoms() -> None:
    with pytest.warns(dsc.DSCWarning, match="the same up to scale and sign"):
        doubled = dsc.DenseDictionary(duplicate_matrix(6, 9, 0, scale=2.0))
    for dictionary in (doubled, nearly_parallel(6, 8, 0)):
        signal = normal(20, 6, generator=rng(6))
        solution = dsc.solve(dsc.SparseApproximation(dictionary, 4), signal)
        assert bool(torch.isfinite(solution.codes).all())
        assert int((solution.codes != 0).sum(1).max()) <= 4
        support = solution.codes != 0
        residual = signal - dictionary.synthesize(solution.codes)
        # Least squares: the residual is orthogonal to what was chosen.
        assert float((dictionary.analyze(residual) * support).abs().max()) < 1e-6


def test_masks_and_non_negative_codes() -> None:
    mask = torch.rand(6, 12, generator=rng(7)) > 0.3
    together = dsc.solve(dsc.SparseApproximation(DENSE, 3, mask=mask), SIGNAL)
    for i in range(6):
        alone = dsc.solve(dsc.SparseApproximation(DENSE, 3, mask=mask[i]), SIGNAL[i])
        want = greedy_support(mask[i][:, None] * DENSE.matrix.detach(), mask[i] * SIGNAL[i], 3)
        assert torch.allclose(together.codes[i], want, atol=1e-8)
        assert torch.allclose(alone.codes, want, atol=1e-8)
    positive = dsc.solve(dsc.SparseApproximation(DENSE, 4, nonnegative=True), SIGNAL)
    assert float(positive.codes.min()) >= 0.0
    assert int((positive.codes > 0).sum(1).max()) <= 4
    residual = SIGNAL - DENSE.synthesize(positive.codes)
    assert float((DENSE.analyze(residual) * (positive.codes > 0)).abs().max()) < 1e-8
    truth = torch.zeros(1, 20, dtype=torch.float64)
    truth[0, [3, 8]] = torch.tensor([1.0, 2.0], dtype=torch.float64)
    found = dsc.solve(dsc.SparseApproximation(DENSE, 2, nonnegative=True), DENSE.synthesize(truth), dsc.Exhaustive())
    assert torch.allclose(found.codes, truth, atol=1e-10)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("solver", [dsc.OMP(), dsc.Exhaustive()], ids=["OMP", "Exhaustive"])
def test_a_sample_that_is_not_finite_spoils_no_other(solver: dsc.OMP | dsc.Exhaustive, bad: float) -> None:
    signal = SIGNAL.clone()
    signal[2, 5] = bad
    problem = dsc.SparseApproximation(DENSE, 2)
    with pytest.warns(dsc.DSCWarning, match="1 of 6 samples did not converge; sample 2: the signal or its lam is NaN"):
        solution = dsc.solve(problem, signal, solver)
    assert solution.status[2] is dsc.Status.NONFINITE_INPUT
    assert bool(torch.isnan(solution.codes[2]).all())
    others = [0, 1, 3, 4, 5]
    assert torch.equal(solution.codes[others], dsc.solve(problem, SIGNAL, solver).codes[others])


@pytest.mark.parametrize("solver", [dsc.OMP(), dsc.Exhaustive()], ids=["OMP", "Exhaustive"])
def test_empty_batches_batch_axes_zeros_and_scales(solver: dsc.OMP | dsc.Exhaustive) -> None:
    problem = dsc.SparseApproximation(DENSE, 2)
    assert dsc.solve(problem, SIGNAL[:0], solver).codes.shape == (0, 20)
    shaped = dsc.solve(problem, SIGNAL.reshape(2, 3, 12), solver)
    flat = dsc.solve(problem, SIGNAL, solver)
    assert torch.equal(shaped.codes.reshape(6, 20), flat.codes)
    assert dsc.solve(problem, SIGNAL[0], solver).codes.shape == (20,)
    zeros = dsc.solve(problem, torch.zeros_like(SIGNAL), solver)
    assert int(zeros.steps.max()) == 0
    assert bool((zeros.codes == 0).all())
    assert bool(zeros.converged.all())
    for scale in (1e-30, 1e-8, 1e8, 1e30):
        scaled = dsc.solve(problem, SIGNAL * scale, solver)
        assert torch.allclose(scaled.codes / scale, flat.codes, rtol=1e-9)


def test_an_epsilon_above_the_signal_warns_and_float32_meets_its_epsilon() -> None:
    with pytest.warns(dsc.DSCWarning, match="epsilon is at or above the norm of the signal for 6 of 6 samples"):
        solution = dsc.solve(dsc.SparseApproximation(DENSE, epsilon=100.0), SIGNAL)
    assert bool((solution.certificate.gap == 0).all())
    single = DENSE.cast(torch.float32)
    for epsilon in (1e-6, 1e-3, 0.5):
        met = dsc.solve(dsc.SparseApproximation(single, epsilon=epsilon), SIGNAL.float())
        norms = residual_norms(single, SIGNAL.float(), met.codes)
        assert bool((norms <= torch.maximum(torch.tensor(epsilon).double(), 1e-6 * SIGNAL.norm(dim=1))).all())


def test_layers_are_solved_one_after_the_other() -> None:
    problem = dsc.LayeredSparseApproximation(CASCADE, sparsity=(4, 3), epsilon=(None, None))
    solution = dsc.solve(problem, SIGNAL)
    first = dsc.solve(problem.stages[0], SIGNAL).codes
    second = dsc.solve(problem.stages[1], first).codes
    assert torch.equal(solution.codes[0], first)
    assert torch.equal(solution.codes[1], second)
    assert bool(solution.converged.all())
    assert len(solution.certificate.layers) == 2
    with pytest.warns(dsc.DSCWarning, match="epsilon is at or above the norm of the signal for 6 of 6 samples"):
        dsc.solve(dsc.LayeredSparseApproximation(CASCADE, epsilon=100.0), SIGNAL)
    mixed = dsc.LayeredSparseApproximation(CASCADE, sparsity=(4, None), epsilon=(None, 0.01))
    got = dsc.solve(mixed, SIGNAL)
    assert bool((residual_norms(CASCADE.layers[1], got.codes[0], got.codes[1]) <= 0.01).all())
    seen: list[dsc.Progress] = []
    dsc.solve(problem, SIGNAL, callback=seen.append)
    assert [progress.layer for progress in seen] == [1, 2]


def test_any_number_of_threads_gives_the_same_bits() -> None:
    signal = normal(1000, 12, generator=rng(8))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = dsc.solve(dsc.SparseApproximation(DENSE, 5), signal).codes
        torch.set_num_threads(2)
        two = dsc.solve(dsc.SparseApproximation(DENSE, 5), signal).codes
    finally:
        torch.set_num_threads(before)
    assert torch.allclose(one, two, rtol=0, atol=1e-13)
