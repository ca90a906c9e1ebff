"""Processes and threads around the compiled solvers: forks after a solve, workers, interrupts, several threads."""

from __future__ import annotations

import os
import signal as signals
import threading
import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import deep_sparse_coding as dsc
from strategies import normal, rng
from test_reliability.cases import CASES, CONV, CONV_MODEL, DENSE, F64, FAMILY, IMAGES, WIDER, Case, blocks, each

# One for each kernel that compiles by itself.
KERNELS = tuple(
    case
    for case in CASES
    if case.name
    in (
        "lasso-CoordinateDescent",
        "lasso-conv-ConvCoordinateDescent",
        "masks-ConvCoordinateDescent",
        "same-ConvCoordinateDescent",
        "masks-CoordinateDescent",
        "joint-conv-JointCoordinateDescent",
        "lasso-conv-ADMM",
        "few-atoms",
        "few-atoms-forward",
        "few-atoms-SubspacePursuit",
        "few-atoms-IHT",
    )
)


def _equal(got: dsc.Solution, want: dsc.Solution) -> bool:
    same = all(torch.equal(a, b) for a, b in zip(blocks(got.codes), blocks(want.codes), strict=True))
    return same and got.status == want.status


class _Codes(Dataset[Tensor]):
    """Codes of every kernel's case, made where the item is asked for."""

    def __len__(self) -> int:
        return len(KERNELS)

    def __getitem__(self, index: int) -> Tensor:
        return torch.cat([block.flatten() for block in blocks(KERNELS[index].solve().codes)])


def test_forked_workers_of_a_data_loader_solve_after_their_parent_did() -> None:
    want = [torch.cat([block.flatten() for block in blocks(case.solve().codes)]) for case in KERNELS]
    loader = DataLoader(
        _Codes(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60, shuffle=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads behind
        found = list(loader)
    assert len(found) == len(want)
    for got, expected in zip(found, want, strict=True):
        assert torch.allclose(got, expected, atol=1e-12)


@pytest.mark.parametrize("backend", ["multiprocessing", "threading"])
def test_workers_of_joblib_run_every_kernel(backend: str) -> None:
    joblib = pytest.importorskip("joblib")
    problems: list[tuple[dsc.Problem, Tensor, Any]] = [
        (dsc.Lasso(CONV, 0.2), IMAGES, None),
        (dsc.JointLasso(CONV_MODEL, 0.1), IMAGES, None),
        (dsc.SparseApproximation(DENSE, 3), normal(5, 8, generator=rng(3)), dsc.OMP()),
    ]
    want = [dsc.solve(*arguments) for arguments in problems]
    found = joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(dsc.solve)(*a) for a in problems)
    for got, expected in zip(found, want, strict=True):
        assert got.status == expected.status
        for a, b in zip(blocks(got.codes), blocks(expected.codes), strict=True):
            assert torch.allclose(a, b, atol=1e-9)


@each(KERNELS)
def test_codes_are_the_same_to_the_last_bit_with_two_threads(case: Case) -> None:
    want, before = case.solve(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = case.solve()
    finally:
        torch.set_num_threads(before)
    if case.solver.name == "ADMM":  # torch's transforms may sum in another order
        assert all(
            torch.allclose(a, b, atol=1e-9) for a, b in zip(blocks(again.codes), blocks(want.codes), strict=True)
        )
    else:
        assert _equal(again, want)


@pytest.mark.parametrize("threads", [2, 3])
def test_many_samples_are_the_same_to_the_last_bit_with_more_threads(threads: int) -> None:
    dense, images = normal(40, 8, generator=rng(1)), normal(6, 1, 24, 20, generator=rng(2))
    joint, before = dsc.JointLasso(CONV_MODEL, (0.1, 0.05), beta=(1.0, 2.0)), torch.get_num_threads()
    asked: tuple[tuple[dsc.Problem, Tensor, Any], ...] = (
        (dsc.Lasso(DENSE, 0.2), dense, dsc.CoordinateDescent()),
        (dsc.Lasso(DENSE, 0.2, mask=torch.rand(40, 8, generator=rng(3)) < 0.8), dense, dsc.CoordinateDescent()),
        (dsc.Lasso(CONV, 0.2), images, dsc.ConvCoordinateDescent()),
        (dsc.Lasso(CONV.with_boundary("same"), 0.2), images[:1], dsc.ConvCoordinateDescent()),
        (joint, images[:2], dsc.JointCoordinateDescent()),
        (dsc.SparseApproximation(DENSE, 3), dense, dsc.OMP()),
        (dsc.SparseApproximation(DENSE, 3), dense, dsc.OMP(forward=True)),
    )
    want = [dsc.solve(*arguments, tol=1e-5) for arguments in asked]
    torch.set_num_threads(threads)
    try:
        found = [dsc.solve(*arguments, tol=1e-5) for arguments in asked]
    finally:
        torch.set_num_threads(before)
    for got, expected in zip(found, want, strict=True):
        assert _equal(got, expected), got.solver


def test_threads_with_different_problems_do_not_disturb_each_other() -> None:
    cases = KERNELS[:8]
    want = [case.solve() for case in cases]
    found: dict[int, dsc.Solution] = {}

    def work(index: int) -> None:
        for _ in range(2):
            found[index] = cases[index].solve()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(found) == len(cases)
    for index, expected in enumerate(want):
        assert _equal(found[index], expected), cases[index].name


@pytest.mark.parametrize("solver", [dsc.FISTA(), dsc.ADMM(), dsc.ConvCoordinateDescent()], ids=lambda s: s.name)
def test_an_interrupt_from_the_keyboard_ends_the_loop(solver: Any) -> None:
    problem, before = dsc.Lasso(CONV, 1e-3), threading.active_count()
    images = normal(8, 1, 40, 40, generator=rng(5))
    started = threading.Event()

    def interrupt() -> None:
        started.wait(30)
        os.kill(os.getpid(), signals.SIGINT)

    def report(progress: dsc.Progress) -> bool:
        started.set()
        time.sleep(0.05)  # the other thread has its turn
        return False

    thread = threading.Thread(target=interrupt)
    thread.start()

    def solve_for_ever() -> None:
        while True:
            dsc.solve(problem, images, solver, tol=0.0, callback=report, on_failure="ignore")

    with pytest.raises(KeyboardInterrupt):
        solve_for_ever()
    thread.join(30)
    assert threading.active_count() <= before + 2  # a pool of the kernels may stay, nothing is left running
    assert bool(dsc.solve(dsc.Lasso(CONV, 0.2), IMAGES, solver, tol=1e-4).converged.all())


@each(WIDER + FAMILY)
def test_a_callback_that_raises_or_stops(case: Case) -> None:
    want = case.solve()

    def fail(progress: dsc.Progress) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        case.solve(callback=fail)
    stopped = case.solve(callback=lambda progress: True)
    assert stopped.stopped
    for status, gap in zip(stopped.status, stopped.certificate.relative_gap.tolist(), strict=True):
        assert case in FAMILY or (status is dsc.Status.CONVERGED) == (gap <= case.tol)
    again = case.solve()
    assert _equal(again, want)


def test_gradients_stay_enabled_and_generators_untouched() -> None:
    state = torch.get_rng_state()
    for case in KERNELS:
        case.solve()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert torch.ones(1, **F64, requires_grad=True).mul(2).requires_grad
