"""Inputs that break solvers: settings out of range, odd numbers, odd tensors, and odd processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from strategies import normal, rng
from test_reliability.cases import CASES, CONV, CONVEX, DENSE, F64, IMAGES, MODEL, SIGNAL, WITH_GAP, Case, blocks, each

# ---------------------------------------------------------------------- settings and bad values

NOT_A_NUMBER = (math.nan, -1.0, -math.inf, "0.1", b"1", None, True, {}, object(), 1j, torch.tensor(math.nan), [])
NOT_A_WHOLE_NUMBER = (*NOT_A_NUMBER, math.inf, 2.5, (1, 2, 3), np.array([1.0, 2.0]))
NOT_A_FLAG = (0, 1, math.nan, "yes", None, [], torch.tensor([True, False]), np.array([1.0, 2.0]), object())
NOT_WEIGHTS = (
    0.5,
    "x",
    [1.0] * 12,
    np.ones(12),
    torch.tensor(1.0, **F64),
    torch.ones(11, **F64),
    torch.full((12,), -1.0, **F64),
    torch.full((12,), math.nan, **F64),
    torch.ones(12, dtype=torch.float16),
    torch.ones(12, dtype=torch.int64),
    torch.ones(12, dtype=torch.complex128),
    torch.ones(12, **F64).to_sparse(),
)
NOT_A_MASK = (
    "x",
    0.5,
    [True] * 8,
    np.ones(8, dtype=bool),
    torch.ones(7, dtype=torch.bool),
    torch.full((8,), math.nan, **F64),
    torch.full((8,), -1.0, **F64),
    torch.full((8,), math.inf, **F64),
    torch.ones(8, dtype=torch.complex128),
    torch.ones(8, **F64).to_sparse(),
    torch.ones(8, device="meta", **F64),
)
NOT_A_DICTIONARY = (None, torch.eye(8, **F64), np.eye(8), [DENSE], "D", DENSE.matrix, torch.nn.Linear(8, 8))
NOT_A_SOLVER = ("FISTA", 1, dsc.FISTA, object(), [dsc.FISTA()], torch.ones(2))
NOT_A_CALLBACK = (1, "x", [], torch.ones(2), True, {})
NOT_CODES = (
    0.0,
    "x",
    [[0.0] * 12] * 3,
    np.zeros((3, 12)),
    torch.zeros(3, 11, **F64),
    torch.zeros(12, **F64),
    torch.zeros(3, 12),
    torch.zeros(3, 12, dtype=torch.float16),
    torch.zeros(3, 12, dtype=torch.int64),
    torch.zeros(3, 12, **F64).to_sparse(),
    torch.zeros(3, 12, device="meta", **F64),
    (torch.zeros(3, 12, **F64),),
)
NOT_A_SIGNAL = (
    None,
    [[0.0] * 8],
    np.zeros((3, 8)),
    torch.zeros(3, 7, **F64),
    torch.zeros((), **F64),
    torch.zeros(3, 8),
    torch.zeros(3, 8, dtype=torch.bfloat16),
    torch.zeros(3, 8, dtype=torch.bool),
    torch.zeros(3, 8, **F64).to_sparse(),
    torch.zeros(3, 8, device="meta", **F64),
)

Call = Callable[[Any], object]


def _solve(problem: dsc.Problem, signal: Tensor = SIGNAL, **settings: Any) -> dsc.Solution:
    return dsc.solve(problem, signal, **{"on_failure": "ignore", **settings})


def _made(kind: Callable[..., dsc.Problem], keyword: str, **others: Any) -> Call:
    return lambda value: _solve(kind(**{**others, keyword: value}))


def _called(function: Callable[..., object], keyword: str, **others: Any) -> Call:
    return lambda value: function(**{**others, keyword: value})


def _rows() -> list[tuple[str, Call, tuple[Any, ...]]]:
    """Return every keyword with a call that takes it, and the values it must refuse."""
    rows: list[tuple[str, Call, tuple[Any, ...]]] = []
    lasso = dsc.Lasso(DENSE, 0.2)
    solved = {
        "lasso": lasso,
        "layered": dsc.LayeredLasso(MODEL, 0.1),
        "pursuit": dsc.BasisPursuit(DENSE, 0.4),
        "few": dsc.SparseApproximation(DENSE, 2),
    }
    for name, problem in solved.items():
        call = {"problem": problem, "signal": SIGNAL, "on_failure": "ignore"}
        rows += [
            (f"solve-{name}-signal", _called(dsc.solve, "signal", **call), NOT_A_SIGNAL),
            (f"solve-{name}-solver", _called(dsc.solve, "solver", **call), NOT_A_SOLVER),
            (f"solve-{name}-tol", _called(dsc.solve, "tol", **call), (*NOT_A_NUMBER, math.inf)),
            (f"solve-{name}-max_steps", _called(dsc.solve, "max_steps", **call), NOT_A_WHOLE_NUMBER),
            (f"solve-{name}-start", _called(dsc.solve, "start", **call), NOT_CODES),
            (f"solve-{name}-callback", _called(dsc.solve, "callback", **call), NOT_A_CALLBACK),
            (f"solve-{name}-differentiable", _called(dsc.solve, "differentiable", **call), NOT_A_FLAG),
            (
                f"solve-{name}-on_failure",
                _called(dsc.solve, "on_failure", problem=problem, signal=SIGNAL),
                ("shout", None, 1, np.array([1.0, 2.0]), ["warn"]),
            ),
            (f"certify-{name}-codes", _called(dsc.certify, "codes", problem=problem, signal=SIGNAL), NOT_CODES),
        ]
    rows += [
        ("solve-problem", _called(dsc.solve, "problem", signal=SIGNAL), (None, DENSE, "lasso", dsc.Lasso)),
        (
            "certify-problem",
            _called(dsc.certify, "problem", signal=SIGNAL, codes=torch.zeros(3, 12, **F64)),
            (None, DENSE, "lasso", dsc.Lasso),
        ),
        (
            "certify-signal",
            _called(dsc.certify, "signal", problem=lasso, codes=torch.zeros(3, 12, **F64)),
            NOT_A_SIGNAL,
        ),
    ]
    single: dict[str, tuple[Callable[..., dsc.Problem], dict[str, Any]]] = {
        "Lasso": (dsc.Lasso, {"dictionary": DENSE, "lam": 0.2}),
        "BasisPursuit": (dsc.BasisPursuit, {"dictionary": DENSE, "epsilon": 0.4}),
        "SparseApproximation": (dsc.SparseApproximation, {"dictionary": DENSE, "sparsity": 2}),
    }
    deep: dict[str, tuple[Callable[..., dsc.Problem], dict[str, Any]]] = {
        "JointLasso": (dsc.JointLasso, {"model": MODEL, "lam": 0.2}),
        "LayeredLasso": (dsc.LayeredLasso, {"model": MODEL, "lam": 0.2}),
        "LayeredBasisPursuit": (dsc.LayeredBasisPursuit, {"model": MODEL, "epsilon": 0.4}),
        "LayeredSparseApproximation": (dsc.LayeredSparseApproximation, {"model": MODEL, "sparsity": 2}),
    }
    for name, (kind, others) in {**single, **deep}.items():
        rows += [
            (f"{name}-mask", _made(kind, "mask", **others), NOT_A_MASK),
            (f"{name}-nonnegative", _made(kind, "nonnegative", **others), NOT_A_FLAG),
        ]
        for keyword in ("lam", "epsilon"):
            if keyword in others:
                rows.append((f"{name}-{keyword}", _made(kind, keyword, **others), NOT_A_NUMBER))
        if "sparsity" in others:
            bad = tuple(value for value in NOT_A_WHOLE_NUMBER if value is not None)
            rows.append((f"{name}-sparsity", _made(kind, "sparsity", **others), (*bad, 0, 13)))
        else:
            by_layer = tuple((value, None) for value in NOT_WEIGHTS)
            weights = NOT_WEIGHTS if name in single else (*NOT_WEIGHTS[:4], (None,), *by_layer)
            rows.append((f"{name}-weights", _made(kind, "weights", **others), weights))
    rows += [
        *((f"{n}-dictionary", _made(k, "dictionary", **o), NOT_A_DICTIONARY) for n, (k, o) in single.items()),
        *((f"{n}-model", _made(k, "model", **o), (DENSE, *NOT_A_DICTIONARY)) for n, (k, o) in deep.items()),
        (
            "JointLasso-beta",
            _made(dsc.JointLasso, "beta", model=MODEL, lam=0.2),
            (*NOT_A_NUMBER, 0, math.inf, (1.0,), (1.0, -1.0), (1.0, 2.0, 3.0)),
        ),
        (
            "BasisPursuit-zero-weights",
            _made(dsc.BasisPursuit, "weights", **single["BasisPursuit"][1]),
            (torch.zeros(12, **F64),),
        ),
    ]
    path = {"problem": lasso, "signal": SIGNAL, "lams": 3}
    rows += [
        ("path-problem", _called(dsc.solve_path, "problem", **path), (None, DENSE, solved["pursuit"], solved["few"])),
        ("path-signal", _called(dsc.solve_path, "signal", **path), NOT_A_SIGNAL),
        (
            "path-lams",
            _called(dsc.solve_path, "lams", **path),
            (1, 0, -3, True, 2.5, None, "3", (), (0.1, 0.2), (0.2, 0.2), (0.2, 0.0), (0.2, math.nan), (math.inf, 1.0)),
        ),
        ("path-ratio", _called(dsc.solve_path, "ratio", **path), (*NOT_A_NUMBER, 0.0, 1.0, 2.0, math.inf)),
        ("path-solver", _called(dsc.solve_path, "solver", **path), NOT_A_SOLVER),
        ("path-tol", _called(dsc.solve_path, "tol", **path), (*NOT_A_NUMBER, math.inf)),
        ("path-max_steps", _called(dsc.solve_path, "max_steps", **path), NOT_A_WHOLE_NUMBER),
        ("path-on_failure", _called(dsc.solve_path, "on_failure", **path), ("raise", None, 1, np.array([1.0, 2.0]))),
    ]
    chosen = {"dictionary": DENSE, "signal": SIGNAL, "density": 0.2}
    numbers = tuple(value for value in NOT_A_NUMBER if value is not None)
    rows += [
        ("choose-dictionary", _called(dsc.choose_lam, "dictionary", **chosen), NOT_A_DICTIONARY),
        (
            "choose-signal",
            _called(dsc.choose_lam, "signal", **chosen),
            (*NOT_A_SIGNAL, SIGNAL[:0], 0 * SIGNAL, SIGNAL / 0),
        ),
        ("choose-density", _called(dsc.choose_lam, "density", **chosen), (*NOT_A_NUMBER, 0.0, 1.5)),
        (
            "choose-noise",
            _called(dsc.choose_lam, "noise", dictionary=DENSE, signal=SIGNAL),
            (*numbers, 0.0, math.inf, 1e9),
        ),
        ("choose-both", _called(dsc.choose_lam, "noise", **chosen), (0.1,)),
        ("choose-accuracy", _called(dsc.choose_lam, "accuracy", **chosen), (*NOT_A_NUMBER, 0.0, math.inf)),
        ("choose-max_solves", _called(dsc.choose_lam, "max_solves", **chosen), (*NOT_A_WHOLE_NUMBER, 0)),
        ("choose-tol", _called(dsc.choose_lam, "tol", **chosen), (*NOT_A_NUMBER, math.inf)),
        ("choose-max_steps", _called(dsc.choose_lam, "max_steps", **chosen), NOT_A_WHOLE_NUMBER),
        ("choose-weights", _called(dsc.choose_lam, "weights", **chosen), NOT_WEIGHTS),
        ("choose-mask", _called(dsc.choose_lam, "mask", **chosen), NOT_A_MASK),
        ("choose-nonnegative", _called(dsc.choose_lam, "nonnegative", **chosen), NOT_A_FLAG),
    ]
    drawn = {"model": MODEL, "sparsity": 2, "seed": 0}
    rows += [
        ("sample-model", _called(dsc.sample, "model", **drawn), tuple(v for v in NOT_A_DICTIONARY if v is not DENSE)),
        ("sample-batch", _called(dsc.sample, "batch", **drawn), NOT_A_WHOLE_NUMBER),
        ("sample-noise", _called(dsc.sample, "noise", **drawn), (*NOT_A_NUMBER, math.inf)),
        ("sample-amplitude", _called(dsc.sample, "amplitude", **drawn), (*NOT_A_NUMBER, math.inf)),
        ("sample-seed", _called(dsc.sample, "seed", **drawn), (None, "x", 2.5, math.nan)),
        ("sample-sparsity", _called(dsc.sample, "sparsity", **drawn), (*NOT_A_WHOLE_NUMBER[:4], (1,), 99)),
    ]
    learned = {"images": IMAGES, "atoms": 3, "size": 3, "lam": 0.2, "epochs": 1, "seed": 0}
    rows += [
        ("learn-lam", _called(dsc.learn, "lam", **learned), (*NOT_A_NUMBER, 0.0, math.inf)),
        ("learn-atoms", _called(dsc.learn, "atoms", **learned), (0, -1, 2.5, math.nan, None, "3", True)),
        ("learn-epochs", _called(dsc.learn, "epochs", **learned), (-1, 2.5, math.nan, None, "3", True)),
        ("learn-steps", _called(dsc.learn, "steps", **learned), (-1, 2.5, math.nan, "3", True)),
        ("learn-batch", _called(dsc.learn, "batch", **learned), (0, -1, 2.5, math.nan, "3", True)),
        ("learn-size", _called(dsc.learn, "size", **learned), (0, -1, 2.5, math.nan, "3", True, 99)),
        ("learn-images", _called(dsc.learn, "images", **learned), (None, 1.0, "x", IMAGES[0, 0, 0, 0], IMAGES.half())),
    ]
    compiled = {"model": DENSE, "sparsity": 1, "target_error": 0.5}
    rows += [
        (
            "to_cnn-model",
            _called(dsc.to_cnn, "model", **compiled),
            tuple(v for v in NOT_A_DICTIONARY if v is not DENSE),
        ),
        ("to_cnn-sparsity", _called(dsc.to_cnn, "sparsity", **compiled), (*NOT_A_WHOLE_NUMBER[:4], 0, 2.5)),
        ("to_cnn-amplitude", _called(dsc.to_cnn, "amplitude", **compiled), (math.nan, -1.0, "1", None, 0.0, math.inf)),
        ("to_cnn-noise", _called(dsc.to_cnn, "noise", **compiled), (*NOT_A_NUMBER, math.inf)),
        ("to_cnn-target_error", _called(dsc.to_cnn, "target_error", **compiled), (*numbers, 0.0)),
        ("to_cnn-strategy", _called(dsc.to_cnn, "strategy", **compiled), ("x", None, 1)),
        ("to_cnn-activation", _called(dsc.to_cnn, "activation", **compiled), ("x", None, 1)),
    ]
    return rows


ROWS = _rows()


@pytest.mark.parametrize(("call", "values"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_every_bad_value_of_every_keyword_is_refused_in_words(call: Call, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(dsc.DSCError) as caught:
            call(value)
        assert len(str(caught.value)) > 20, f"{value!r}"


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
        assert bool((solution.codes == 0).all())
        assert float(solution.certificate.gap) == 0.0
    for share in (1e-12, 1e-6, 1e-3):
        solution = case.solve(dsc.Lasso(problem.dictionary, top * (1 - share)), signal, tol=0.0, max_steps=500)
        energy = 0.5 * float(signal.square().sum())
        # Zero codes are share²·½‖θ‖² away from the dual point that they prove, and so is everything better.
        assert 0 <= float(solution.certificate.gap) <= 1.1 * share**2 * energy + 1e-14 * energy
    assert int((solution.codes != 0).sum()) >= 1


@each(CONVEX[:2])
@pytest.mark.parametrize("lam", [0.0, 5e-324, 1e-300])
def test_lam_zero_and_next_to_it_is_least_squares(case: Case, lam: float) -> None:
    tall = dsc.DenseDictionary(normal(8, 5, generator=rng(2)), normalize=True)
    solution = case.solve(dsc.Lasso(tall, lam), SIGNAL, tol=1e-10)
    want = torch.linalg.lstsq(tall.matrix.detach(), SIGNAL.T).solution.T
    # No gap can be proved at a penalty this small where least squares leave a residual; the codes are right anyway.
    assert bool(solution.converged.all()) or lam > 0
    assert torch.allclose(solution.codes, want, atol=1e-4)


@pytest.mark.parametrize("tol", [0.0, 1e-300])
@each(tuple(case for case in WITH_GAP if case.name != "pursuit-conv"))
def test_a_tolerance_that_rounding_forbids_ends_and_is_not_called_converged(case: Case, tol: float) -> None:
    solution = case.solve(tol=tol, max_steps=5000)
    for i, status in enumerate(solution.status):
        gap = float(solution.certificate.relative_gap[i])
        assert gap < 1e-12
        assert (status is dsc.Status.CONVERGED) == (gap <= tol)
        assert status in (dsc.Status.CONVERGED, dsc.Status.STALLED)


@each(CONVEX[:4])
@pytest.mark.parametrize("small", [5e-324, 1e-310, 1e-200])
def test_single_subnormal_entries_disturb_nothing(case: Case, small: float) -> None:
    signal = case.signal.clone()
    signal[0].view(-1)[1] = small
    rounded = signal.clone()
    rounded[0].view(-1)[1] = 0.0
    assert torch.allclose(case.solve(signal=signal).codes, case.solve(signal=rounded).codes, atol=1e-12)
    start = torch.full_like(case.solve().codes, small)
    assert bool(case.solve(start=start).converged.all())


def test_one_sample_in_a_batch_with_lam_of_zero_or_inf() -> None:
    tall = dsc.DenseDictionary(normal(8, 5, generator=rng(2)), normalize=True)
    lam = torch.tensor([0.3, 0.0, math.inf], **F64)
    for solver in (dsc.FISTA(), None):
        with pytest.warns(dsc.DSCWarning, match="lam is at or above lam_max for 1 of 3 samples"):
            solution = dsc.solve(dsc.Lasso(tall, lam), SIGNAL, solver, tol=1e-9)
        assert bool(solution.converged.all())
        for i, value in enumerate(lam.tolist()[:2]):
            alone = dsc.solve(dsc.Lasso(tall, value), SIGNAL[i], solver, tol=1e-9)
            assert torch.allclose(solution.codes[i], alone.codes, atol=1e-4)
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
        "flipped": signal.flip(0).flip(0),
        "requires gradient": signal.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(signal.clone()),
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
    expanded = case.signal[:1].expand(3, *case.signal.shape[1:])
    want = case.solve()
    for block, expected in zip(blocks(case.solve(signal=expanded).codes), blocks(want.codes), strict=True):
        assert torch.allclose(block, expected[:1].expand_as(block), atol=1e-9)
    empty = case.solve(signal=case.signal[:0])
    assert empty.status == ()
    for block, expected in zip(blocks(empty.codes), blocks(want.codes), strict=True):
        assert block.shape == (0, *expected.shape[1:])
    assert case.problem.objective(empty.codes, case.signal[:0]).shape == (0,)


def test_kernels_in_any_memory_format_and_no_channels() -> None:
    kernels = CONV.kernels.detach().clone()
    want = dsc.solve(dsc.Lasso(CONV, 0.2), IMAGES, dsc.ConvCoordinateDescent(), tol=1e-9).codes
    for other in (
        kernels.contiguous(memory_format=torch.channels_last),
        kernels.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        for solver in (dsc.FISTA(), dsc.ConvCoordinateDescent()):
            codes = dsc.solve(dsc.Lasso(dsc.ConvDictionary(other), 0.2), IMAGES, solver, tol=1e-9).codes
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


@each(CASES)
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
