"""The loop: statuses and their messages, warm starts, callbacks, and samples that must not spoil each other."""

from __future__ import annotations

import dataclasses
import math
import pickle
import threading

import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess
from strategies import duplicate_matrix, nearly_parallel, normal, rng, wide_range

DENSE = dsc.DenseDictionary.random(12, 20, seed=0, dtype=torch.float64)
CONV = dsc.ConvDictionary.random(atoms=4, channels=1, size=3, seed=0, dtype=torch.float64)
SIGNAL = normal(6, 12, generator=rng(0))
PROBLEM = dsc.Lasso(DENSE, 0.2)
each_solver = pytest.mark.parametrize("solver", [dsc.FISTA(), dsc.CoordinateDescent()], ids=["FISTA", "CD"])


@each_solver
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_spoils_no_other(solver: dsc.Solver, bad: float) -> None:
    signal = SIGNAL.clone()
    signal[2, 5] = bad
    with pytest.warns(dsc.DSCWarning, match="1 of 6 samples did not converge; sample 2: the signal or its lam is NaN"):
        solution = dsc.solve(PROBLEM, signal, solver, tol=1e-9)
    assert [s.name for s in solution.status].count("CONVERGED") == 5
    assert solution.status[2] is dsc.Status.NONFINITE_INPUT
    assert bool(torch.isnan(solution.codes[2]).all())
    alone = dsc.solve(PROBLEM, SIGNAL, solver, tol=1e-9)
    others = [0, 1, 3, 4, 5]
    assert float((solution.codes[others] - alone.codes[others]).abs().max()) < 1e-9
    assert "1 NONFINITE_INPUT" in str(solution)
    with pytest.raises(dsc.NotConvergedError, match="sample 2: the signal or its lam is NaN"):
        solution.unwrap()


@each_solver
def test_an_empty_batch_has_an_empty_answer(solver: dsc.Solver) -> None:
    solution = dsc.solve(PROBLEM, SIGNAL[:0], solver)
    assert solution.codes.shape == (0, 20)
    assert solution.status == ()
    assert solution.unwrap().shape == (0, 20)
    assert "0/0 converged" in str(solution)
    images = dsc.solve(dsc.Lasso(CONV, 0.1), torch.zeros(0, 1, 8, 8, dtype=torch.float64))
    assert images.codes.shape == (0, 4, 6, 6)


@each_solver
def test_zero_signals_and_optimal_starts_take_no_step(solver: dsc.Solver) -> None:
    zero = dsc.solve(PROBLEM, torch.zeros_like(SIGNAL), solver, tol=0.0)
    assert int(zero.steps.max()) == 0
    assert bool((zero.codes == 0).all())
    first = dsc.solve(PROBLEM, SIGNAL, solver, tol=1e-8)
    again = dsc.solve(PROBLEM, SIGNAL, solver, tol=1e-8, start=first.codes)
    assert int(again.steps.max()) == 0
    assert torch.equal(again.codes, first.codes)


def test_zero_steps_are_allowed_and_honest() -> None:
    with pytest.warns(dsc.DSCWarning, match="ran out of steps.*raise max_steps, start from these codes"):
        solution = dsc.solve(PROBLEM, SIGNAL, dsc.FISTA(), max_steps=0)
    assert set(solution.status) == {dsc.Status.MAX_STEPS}


def test_running_out_of_steps_is_said_raised_or_ignored() -> None:
    settings = {"tol": 1e-12, "max_steps": 7}
    with pytest.warns(dsc.DSCWarning, match="6 of 6 samples did not converge; sample 0: ran out of steps"):
        solution = dsc.solve(PROBLEM, SIGNAL, dsc.FISTA(), **settings)
    assert not bool(solution.converged.any())
    assert int(solution.steps.max()) == 7
    with pytest.raises(dsc.NotConvergedError, match="ran out of steps"):
        dsc.solve(PROBLEM, SIGNAL, dsc.FISTA(), on_failure="raise", **settings)
    quiet = dsc.solve(PROBLEM, SIGNAL, dsc.FISTA(), on_failure="ignore", **settings)
    assert torch.equal(quiet.codes, solution.codes)


def test_float32_that_can_do_no_more_is_stalled_and_says_so() -> None:
    problem = dsc.Lasso(DENSE.cast(torch.float32), 0.2)
    with pytest.warns(dsc.DSCWarning, match=r"stalled: relative gap .* float32 resolves no more: use .double\(\)"):
        solution = dsc.solve(problem, SIGNAL.float(), dsc.FISTA(), tol=0.0)
    assert set(solution.status) == {dsc.Status.STALLED}
    assert float(solution.certificate.relative_gap.max()) < 1e-4


@each_solver
def test_float32_is_finished_in_float64_where_it_can_do_no_more(solver: dsc.Solver) -> None:
    solution = dsc.solve(dsc.Lasso(DENSE.cast(torch.float32), 0.2), SIGNAL.float(), solver, tol=1e-6)
    assert bool(solution.converged.all())
    assert solution.codes.dtype == torch.float32


@pytest.mark.parametrize("tol", [0.0, 1e-300])
@each_solver
def test_a_tolerance_beyond_rounding_ends_too(solver: dsc.Solver, tol: float) -> None:
    solution = dsc.solve(PROBLEM, SIGNAL, solver, tol=tol, on_failure="ignore")
    assert set(solution.status) <= {dsc.Status.STALLED, dsc.Status.CONVERGED}
    assert float(solution.certificate.relative_gap.max()) < 1e-12


@each_solver
@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_scales_of_signal_and_lam(solver: dsc.Solver, scale: float) -> None:
    plain = dsc.solve(PROBLEM, SIGNAL, solver, tol=1e-9)
    scaled = dsc.solve(dsc.Lasso(DENSE, 0.2 * scale), SIGNAL * scale, solver, tol=1e-9)
    assert bool(scaled.converged.all())
    assert float((scaled.codes / scale - plain.codes).abs().max()) < 1e-3


@each_solver
def test_hard_dictionaries(solver: dsc.Solver) -> None:
    with pytest.warns(dsc.DSCWarning, match="the same up to scale and sign"):
        doubled = dsc.DenseDictionary(duplicate_matrix(6, 9, 0))
    for dictionary in (doubled, nearly_parallel(6, 8, 0), wide_range(8, 10, 0, decades=4)):
        signal = normal(3, dictionary.channels, generator=rng(1))
        lam = 0.1 * float(dsc.Lasso(dictionary, 1.0).lam_max(signal).min())
        solution = dsc.solve(dsc.Lasso(dictionary, lam), signal, solver, tol=1e-6, on_failure="ignore")
        assert bool(torch.isfinite(solution.codes).all())
        for i, status in enumerate(solution.status):
            proved = float(solution.certificate.relative_gap[i]) <= 1e-6
            assert (status == dsc.Status.CONVERGED) == proved
        if solver.name == "CoordinateDescent":
            assert bool(solution.converged.all())


@each_solver
def test_order_sign_and_copies_of_samples_and_atoms_change_nothing(solver: dsc.Solver) -> None:
    base = dsc.solve(PROBLEM, SIGNAL, solver, tol=1e-10).certificate.objective
    turn = torch.randperm(6, generator=rng(1))
    swap = torch.randperm(20, generator=rng(2))
    permuted = dsc.Lasso(DENSE.with_weight(DENSE.matrix[:, swap].contiguous()), 0.2)
    with pytest.warns(dsc.DSCWarning, match="pair"):
        copied = dsc.DenseDictionary(torch.cat([DENSE.matrix, -DENSE.matrix[:, :2]], 1).detach())
    for problem, signal, want in (
        (PROBLEM, SIGNAL[turn], base[turn]),
        (PROBLEM, -SIGNAL, base),
        (permuted, SIGNAL, base),
        (dsc.Lasso(copied, 0.2), SIGNAL, base),
    ):
        got = dsc.solve(problem, signal, solver, tol=1e-10, max_steps=50_000).certificate.objective
        assert torch.allclose(got, want, rtol=1e-9)


@each_solver
def test_the_certificate_is_that_of_the_returned_codes(solver: dsc.Solver) -> None:
    solution = dsc.solve(PROBLEM, SIGNAL, solver, tol=1e-6)
    again = assess(PROBLEM, SIGNAL, solution.codes)
    for name in ("objective", "dual", "gap", "relative_gap"):
        # Checks see the samples that have not ended yet, and rounding depends on how many there are.
        torch.testing.assert_close(getattr(solution.certificate, name), getattr(again, name), rtol=1e-9, atol=1e-12)


@each_solver
def test_batch_axes_layouts_and_gradients_of_the_input(solver: dsc.Solver) -> None:
    want = dsc.solve(PROBLEM, SIGNAL, solver, tol=1e-9).codes
    shaped = dsc.solve(PROBLEM, SIGNAL.reshape(2, 3, 12), solver, tol=1e-9)
    assert shaped.codes.shape == (2, 3, 20)
    assert shaped.converged.shape == shaped.steps.shape == shaped.certificate.gap.shape == (2, 3)
    assert torch.allclose(shaped.codes.reshape(6, 20), want, atol=1e-9)
    single = dsc.solve(PROBLEM, SIGNAL[0], solver, tol=1e-9)
    assert single.codes.shape == (20,)
    assert single.converged.shape == ()
    transposed = SIGNAL.T.contiguous().T
    assert not transposed.is_contiguous()
    assert torch.allclose(dsc.solve(PROBLEM, transposed, solver, tol=1e-9).codes, want, atol=1e-9)
    expanded = dsc.solve(PROBLEM, SIGNAL[0].expand(3, 12), solver, tol=1e-9)
    assert torch.allclose(expanded.codes, want[:1].expand(3, 20), atol=1e-9)
    with_gradients = SIGNAL.clone().requires_grad_()
    codes = dsc.solve(PROBLEM, with_gradients, solver, tol=1e-9).codes
    assert not codes.requires_grad
    assert torch.allclose(codes, want, atol=1e-12)


@pytest.mark.parametrize(
    ("signal", "error", "message"),
    [
        (
            torch.zeros(3, 11, dtype=torch.float64),
            dsc.ShapeError,
            r"signal has shape \(3, 11\); expected \(\*batch, 12\)",
        ),
        (torch.zeros(3, 12), dsc.DtypeError, r"float32 and the dictionary has torch.float64; expected the same"),
        (torch.zeros(3, 12, dtype=torch.float16), dsc.DtypeError, r"float16 \(half precision.*use signal.float\(\)"),
        (torch.zeros(3, 12, dtype=torch.int64), dsc.DtypeError, r"int64; expected float32 or float64"),
        (torch.zeros(3, 12, dtype=torch.complex64), dsc.DtypeError, r"complex64; expected float32 or float64"),
        ([[0.0] * 12], dsc.DtypeError, r"signal is a list; expected a torch.Tensor: use torch.as_tensor"),
        (torch.zeros(3, 12, dtype=torch.float64).to_sparse(), dsc.DtypeError, r"use signal.to_dense\(\)"),
        (
            torch.zeros(3, 12, dtype=torch.float64, device="meta"),
            dsc.DeviceError,
            r"is on meta and the dictionary on cpu",
        ),
    ],
)
def test_signals_that_do_not_fit_are_refused(signal: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dsc.solve(PROBLEM, signal)  # type: ignore[arg-type]


def test_images_that_do_not_fit_are_refused() -> None:
    problem = dsc.Lasso(CONV, 0.1)
    kind = {"dtype": torch.float64}
    with pytest.raises(dsc.ShapeError, match=r"expected \(\*batch, 1, any, any\): the kernels have 1 channel"):
        dsc.solve(problem, torch.zeros(3, 8, 8, **kind))
    with pytest.raises(dsc.ShapeError, match="H = 2 is smaller than the kernel, 3"):
        dsc.solve(problem, torch.zeros(1, 2, 8, **kind))
    strided = dsc.ConvDictionary.random(atoms=4, channels=1, size=3, stride=2, seed=0, **kind)
    with pytest.raises(dsc.ShapeError, match=r"W = 8 is made by no code grid of stride 2.*crop to 7 or pad to 9"):
        dsc.solve(dsc.Lasso(strided, 0.1), torch.zeros(1, 7, 8, **kind))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tol": -1.0}, "tol is -1.0; expected a finite number at least 0"),
        ({"tol": math.nan}, "tol is nan; expected a finite number"),
        ({"tol": "small"}, "tol is 'small'; expected a number"),
        ({"max_steps": -1}, "max_steps is -1"),
        ({"max_steps": 2.5}, "max_steps is 2.5; expected a whole number"),
        ({"on_failure": "shout"}, "expected 'warn', 'raise' or 'ignore'"),
        ({"solver": "FISTA"}, "expected a solver such as dsc.FISTA"),
        ({"start": torch.full((6, 20), math.nan, dtype=torch.float64)}, "start has 120 entries that are not finite"),
        ({"start": torch.zeros(6, 19, dtype=torch.float64)}, r"shape \(6, 19\); expected \(6, 20\)"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises((dsc.ParameterError, dsc.ShapeError), match=message):
        dsc.solve(PROBLEM, SIGNAL, **settings)


def test_coordinate_descent_says_what_it_does_not_take() -> None:
    with pytest.raises(dsc.UnsupportedError, match=r"takes dense dictionaries.*use dsc.FISTA\(\)"):
        dsc.solve(dsc.Lasso(CONV, 0.1), torch.ones(1, 8, 8, dtype=torch.float64), dsc.CoordinateDescent())


def test_callbacks_see_progress_and_can_stop_or_raise() -> None:
    seen: list[dsc.Progress] = []

    def stop(progress: dsc.Progress) -> bool:
        seen.append(progress)
        return progress.step >= 10

    with pytest.warns(dsc.DSCWarning, match="stopped by the callback.*start=solution.codes"):
        dsc.solve(PROBLEM, SIGNAL, dsc.FISTA(), tol=1e-12, callback=stop)
    assert [p.step for p in seen] == [0, 10]
    assert seen[0].samples == 6
    assert seen[1].relative_gap < seen[0].relative_gap
    with pytest.warns(dsc.DSCWarning, match="stopped by the callback"):
        layered = dsc.solve(
            dsc.LayeredLasso(
                dsc.Cascade([DENSE, dsc.DenseDictionary.random(20, 24, seed=1, dtype=torch.float64)]), 0.1
            ),
            SIGNAL,
            dsc.FISTA(),
            tol=1e-12,
            callback=stop,
        )
    assert float(layered.codes[1].abs().max()) == 0.0

    def fail(progress: dsc.Progress) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        dsc.solve(PROBLEM, SIGNAL, dsc.FISTA(), callback=fail)


def test_history_follows_every_sample() -> None:
    solution = dsc.solve(PROBLEM, SIGNAL, dsc.FISTA(), tol=1e-8)
    (history,) = solution.history
    assert history.objective.shape == history.relative_gap.shape == (len(history.steps), 6)
    assert history.steps[0] == 0
    assert list(history.steps) == sorted(history.steps)
    assert list(history.seconds) == sorted(history.seconds)
    assert torch.allclose(history.relative_gap[-1], solution.certificate.relative_gap, rtol=1e-6)


@each_solver
def test_the_same_call_gives_the_same_bits_also_in_threads(solver: dsc.Solver) -> None:
    want = dsc.solve(PROBLEM, SIGNAL, solver, tol=1e-9).codes
    state = torch.random.get_rng_state()
    results: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: results.append(dsc.solve(PROBLEM, SIGNAL, solver, tol=1e-9).codes))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(torch.equal(result, want) for result in results)
    assert torch.equal(torch.random.get_rng_state(), state)


def _solve_in_worker(index: int) -> torch.Tensor:
    return dsc.solve(PROBLEM, SIGNAL[index], tol=1e-9).codes


class _Coded(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return _solve_in_worker(index)


def test_a_forked_worker_solves_after_its_parent_did() -> None:
    want = dsc.solve(PROBLEM, SIGNAL, tol=1e-9).codes
    loader = torch.utils.data.DataLoader(
        _Coded(), batch_size=3, num_workers=1, multiprocessing_context="fork", timeout=60
    )
    assert torch.allclose(torch.cat(list(loader)), want, atol=1e-12)


def test_solutions_print_their_story_and_are_frozen() -> None:
    solution = dsc.solve(PROBLEM, SIGNAL, tol=1e-6)
    text = str(solution)
    assert text.startswith("6/6 converged · CoordinateDescent · ")
    assert "gap ≤ " in text
    assert text.endswith("% zeros")
    assert solution.message(0).startswith("converged: relative gap")
    with pytest.raises(dataclasses.FrozenInstanceError):
        solution.tol = 1.0  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(solution))
    assert torch.equal(again.codes, solution.codes)
    assert str(again) == text


def test_a_joint_image_problem_uses_both_layers_in_float32() -> None:
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=6, channels=1, size=5, seed=0),
            dsc.ConvDictionary.random(atoms=8, channels=6, size=3, nonzeros=4, seed=1),
        ]
    )
    drawn = dsc.sample(model, sparsity=(40, 8), size=(10, 10), batch=2, amplitude=3.0, seed=0)
    solution = dsc.solve(dsc.JointLasso(model, (0.1, 0.05)), drawn.signal, tol=1e-4)
    assert bool(solution.converged.all())
    assert all(float(x.abs().max()) > 0 for x in solution.codes)


def test_a_gap_that_rests_while_the_objective_falls_is_no_stall() -> None:
    # An unpenalized atom among atoms of uneven length: the dual point lags behind for hundreds of steps.
    matrix = DENSE.matrix.detach()[:8, :12] * torch.logspace(0, 1.5, 12, dtype=torch.float64)
    weights = torch.ones(12, dtype=torch.float64)
    weights[0] = 0.0
    problem = dsc.Lasso(dsc.DenseDictionary(matrix), 0.2, weights=weights)
    solution = dsc.solve(problem, SIGNAL[:3, :8], dsc.FISTA(), tol=1e-8, max_steps=100_000)
    assert bool(solution.converged.all())


def test_settings_of_solvers_and_soft_threshold_are_checked() -> None:
    with pytest.raises(dsc.ParameterError, match="restart is 3; expected True or False"):
        dsc.FISTA(restart=3)  # type: ignore[arg-type]
    with pytest.raises(dsc.ParameterError, match="rounds is 0; expected a whole number of at least 1"):
        dsc.ConvCoordinateDescent(rounds=0)
    with pytest.raises(dsc.ParameterError, match=r"threshold is -0.1"):
        dsc.soft_threshold(SIGNAL, -0.1)
    with pytest.raises(dsc.DtypeError, match="values is a list"):
        dsc.soft_threshold([1.0], 0.1)  # type: ignore[arg-type]
