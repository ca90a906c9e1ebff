"""Inputs that break solvers: odd numbers, odd tensors, and odd processes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from strategies import normal, rng
from test_reliability.cases import (
    CASES,
    CONV,
    CONVEX,
    DENSE,
    F64,
    IMAGES,
    MODEL,
    SIGNAL,
    WITH_GAP,
    Case,
    blocks,
    each,
    only,
)

# ---------------------------------------------------------------------- numbers


@each(CONVEX[:4])
def test_lam_just_below_at_and_just_above_lam_max(case: Case) -> None:
    problem = case.problem
    assert isinstance(problem, dsc.Lasso)
    signal = case.signal[:1]
    top = float(problem.lam_max(signal))
    for lam in (top * (1 + 1e-12), top * 1e12, 1e300, math.inf):
        with pytest.warns(dsc.DSCWarning, match=r"lam is at or above lam_max for 1 of 1 samples.*largest lam_max here"):
            solution = dsc.solve(dsc.Lasso(problem.dictionary, lam), signal, case.solver, tol=0.0)
        assert bool((only(solution) == 0).all())
        assert float(solution.certificate.gap) == 0.0
    for share in (1e-12, 1e-6, 1e-3):
        solution = case.solve(dsc.Lasso(problem.dictionary, top * (1 - share)), signal, tol=0.0, max_steps=500)
        energy = 0.5 * float(signal.square().sum())
        # Zero codes are share²·½‖θ‖² away from the dual point that they prove, and so is everything better.
        assert 0 <= float(solution.certificate.gap) <= 1.1 * share**2 * energy + 1e-14 * energy
    assert int((only(solution) != 0).sum()) >= 1


@pytest.mark.parametrize("lam", [0.0, 5e-324, 1e-300])
def test_lam_zero_and_next_to_it_is_least_squares(lam: float) -> None:
    tall = dsc.DenseDictionary(normal(8, 5, generator=rng(2)), normalize=True)
    solution = dsc.solve(dsc.Lasso(tall, lam), SIGNAL, dsc.FISTA(), tol=1e-10, on_failure="ignore")
    want = torch.linalg.lstsq(tall.matrix.detach(), SIGNAL.T).solution.T
    # No gap can be proved at a penalty this small where least squares leave a residual; the codes are right anyway.
    assert bool(solution.converged.all()) == (lam == 0)
    assert torch.allclose(only(solution), want, atol=1e-4)


def test_lam_zero_by_coordinate_descent_is_least_squares() -> None:
    tall = dsc.DenseDictionary(normal(8, 5, generator=rng(2)), normalize=True)
    solution = dsc.solve(dsc.Lasso(tall, 0.0), SIGNAL, dsc.CoordinateDescent(), tol=1e-10)
    assert torch.allclose(only(solution), torch.linalg.lstsq(tall.matrix.detach(), SIGNAL.T).solution.T, atol=1e-4)


@pytest.mark.parametrize("tol", [0.0, 1e-300])
@each(tuple(case for case in WITH_GAP if not case.name.startswith(("pursuit-conv", "joint-FISTA", "joint-conv"))))
def test_a_tolerance_that_rounding_forbids_ends_and_is_not_called_converged(case: Case, tol: float) -> None:
    solution = case.solve(tol=tol, max_steps=5000)
    for i, status in enumerate(solution.status):
        gap = float(solution.certificate.relative_gap[i])
        assert gap < 1e-12
        assert (status is dsc.Status.CONVERGED) == (gap <= tol)
        assert status in (dsc.Status.CONVERGED, dsc.Status.STALLED)


@each(CONVEX[:4])
@pytest.mark.parametrize("small", [5e-324, 1e-200])
def test_single_subnormal_entries_disturb_nothing(case: Case, small: float) -> None:
    signal = case.signal.clone()
    signal[0].view(-1)[1] = small
    rounded = signal.clone()
    rounded[0].view(-1)[1] = 0.0
    assert torch.allclose(only(case.solve(signal=signal)), only(case.solve(signal=rounded)), atol=1e-12)
    start = torch.full_like(only(case.solve()), small)
    assert case.solve(start=start, max_steps=3).certificate.gap.isfinite().all()


def test_one_sample_in_a_batch_with_lam_of_zero_or_inf() -> None:
    tall = dsc.DenseDictionary(normal(8, 5, generator=rng(2)), normalize=True)
    lam = torch.tensor([0.3, 0.0, math.inf], **F64)
    for solver in (dsc.FISTA(), None):
        with pytest.warns(dsc.DSCWarning, match="lam is at or above lam_max for 1 of 3 samples"):
            solution = dsc.solve(dsc.Lasso(tall, lam), SIGNAL, solver, tol=1e-9)
        assert bool(solution.converged.all())
        for i, value in enumerate(lam.tolist()[:2]):
            alone = dsc.solve(dsc.Lasso(tall, value), SIGNAL[i], solver, tol=1e-9)
            assert torch.allclose(only(solution)[i], only(alone), atol=1e-4)
        assert bool((solution.codes[2] == 0).all())


# ---------------------------------------------------------------------- tensors


class _Mine(Tensor):
    """A subclass, as other libraries make them."""


def _layouts(signal: Tensor, folder: Any) -> dict[str, Tensor]:
    """Return tensors that hold the same numbers in other ways."""
    stored = np.memmap(folder / "signal", dtype=np.float64, mode="w+", shape=tuple(signal.shape))
    stored[:] = signal.numpy()
    stored.flush()
    read_only = np.memmap(folder / "signal", dtype=np.float64, mode="r", shape=tuple(signal.shape))
    padded = torch.full((*signal.shape[:-1], 2 * signal.shape[-1]), math.nan, **F64)
    padded[..., ::2] = signal
    found = {
        "every other entry": padded[..., ::2],
        "transposed": signal.transpose(0, -1).contiguous().transpose(0, -1),
        "requires gradient": signal.clone().requires_grad_(),
        "subclass": signal.clone().as_subclass(_Mine),
        "read-only memory map": torch.from_numpy(read_only),
        "inference": _inference(signal),
    }
    if signal.ndim == 4:
        found["channels last"] = signal.contiguous(memory_format=torch.channels_last)
    return found


def _inference(signal: Tensor) -> Tensor:
    with torch.inference_mode():
        return signal.clone()


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@each(CASES)
def test_the_way_a_signal_lies_in_memory_changes_nothing(case: Case, tmp_path: Any) -> None:
    want = case.solve()
    for name, signal in _layouts(case.signal, tmp_path).items():
        solution = case.solve(signal=signal)
        for got, expected in zip(blocks(solution.codes), blocks(want.codes), strict=True):
            assert torch.allclose(got, expected, atol=1e-9), name
            assert not got.requires_grad, name
        assert torch.allclose(solution.certificate.objective, want.certificate.objective, rtol=1e-9), name


@each(CASES)
def test_expanded_and_empty_batches(case: Case) -> None:
    want = case.solve()
    masked = case.name.startswith("masks")
    if not masked:  # one mask for each sample of the batch
        expanded = case.signal[:1].expand(3, *case.signal.shape[1:])
        for block, expected in zip(blocks(case.solve(signal=expanded).codes), blocks(want.codes), strict=True):
            assert torch.allclose(block, expected[:1].expand_as(block), atol=1e-9)
        alone = case.solve(signal=case.signal[0])
        assert alone.certificate.gap.shape == ()
        for block, expected in zip(blocks(alone.codes), blocks(want.codes), strict=True):
            assert torch.allclose(block, expected[0], atol=1e-9)
        for block, expected in zip(blocks(case.solve(signal=case.signal[:1]).codes), blocks(want.codes), strict=True):
            assert torch.allclose(block, expected[:1], atol=1e-9)
    problem = case.problem
    if masked:
        assert isinstance(problem, dsc.Lasso)
        assert problem.mask is not None
        problem = replace(problem, mask=problem.mask[:0])
    empty = case.solve(problem, case.signal[:0])
    assert empty.status == ()
    for block, expected in zip(blocks(empty.codes), blocks(want.codes), strict=True):
        assert block.shape == (0, *expected.shape[1:])
    assert problem.objective(empty.codes, case.signal[:0]).shape == (0,)


def test_kernels_in_any_memory_format_and_no_channels() -> None:
    kernels = CONV.kernels.detach().clone()
    want = only(dsc.solve(dsc.Lasso(CONV, 0.2), IMAGES, dsc.ConvCoordinateDescent(), tol=1e-12))
    for other in (
        kernels.contiguous(memory_format=torch.channels_last),
        kernels.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        for solver in (dsc.FISTA(), dsc.ConvCoordinateDescent()):
            codes = only(dsc.solve(dsc.Lasso(dsc.ConvDictionary(other), 0.2), IMAGES, solver, tol=1e-12))
            assert torch.allclose(codes, want, atol=1e-4)
    with pytest.raises(dsc.ShapeError, match=r"signal has shape \(2, 0, 6, 7\); expected \(\*batch, 1, any, any\)"):
        dsc.solve(dsc.Lasso(CONV, 0.2), torch.zeros(2, 0, 6, 7, **F64))
    with pytest.raises(dsc.DSCError, match=r"kernels.*\(3, 0, 3, 3\)"):
        dsc.ConvDictionary(torch.zeros(3, 0, 3, 3, **F64))
    with pytest.raises(dsc.DSCError, match=r"\(0, 4\)"):
        dsc.DenseDictionary(torch.zeros(0, 4, **F64))


# ---------------------------------------------------------------------- processes


@each(CASES)
def test_an_interrupt_in_a_callback_leaves_everything_usable(case: Case) -> None:
    want, problem, signal = case.solve(), case.problem, case.signal.clone()

    def interrupt(progress: dsc.Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.solve(problem, signal, callback=interrupt)
    assert torch.equal(signal, case.signal)
    assert torch.is_grad_enabled()
    again = case.solve(problem, signal)
    for got, expected in zip(blocks(again.codes), blocks(want.codes), strict=True):
        assert torch.equal(got, expected)


@each(tuple(case for case in CASES if case.name not in ("pursuit-FISTA", "joint-FISTA", "layered-FISTA")))
def test_deterministic_algorithms_may_be_demanded(case: Case) -> None:
    want = case.solve()
    torch.use_deterministic_algorithms(True)
    try:
        solution = case.solve()
    finally:
        torch.use_deterministic_algorithms(False)
    for got, expected in zip(blocks(solution.codes), blocks(want.codes), strict=True):
        assert torch.equal(got, expected)


@each(tuple(case for case in CASES if not case.name.endswith(("FISTA", "pursuit-conv"))))
def test_one_and_two_threads_of_torch_give_the_same_codes(case: Case) -> None:
    want, before = case.solve(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        solution = case.solve()
    finally:
        torch.set_num_threads(before)
    for got, expected in zip(blocks(solution.codes), blocks(want.codes), strict=True):
        assert torch.allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("backend", ["multiprocessing", "threading"])
def test_two_workers_of_joblib(backend: str) -> None:
    joblib = pytest.importorskip("joblib")
    problems = (dsc.Lasso(DENSE, 0.2), dsc.BasisPursuit(DENSE, 0.4), dsc.LayeredLasso(MODEL, 0.1))
    want = [dsc.solve(problem, SIGNAL) for problem in problems]
    calls = (joblib.delayed(dsc.solve)(problem, SIGNAL) for problem in problems)
    found = joblib.Parallel(n_jobs=2, backend=backend)(calls)
    for got, expected in zip(found, want, strict=True):
        assert got.status == expected.status
        for a, b in zip(blocks(got.codes), blocks(expected.codes), strict=True):
            assert torch.allclose(a, b, atol=1e-9)
