"""Settings × bad values: every keyword of every call refuses them in words, with an error of this library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from test_reliability.cases import CONV, CONV_MODEL, DENSE, F64, IMAGES, MODEL, SIGNAL

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
NOT_A_BOX = (
    0.5,
    "ab",
    (0.0,),
    (0.0, 1.0, 2.0),
    (0.1, 1.0),
    (-1.0, -0.1),
    (math.nan, 1.0),
    (-1.0, math.nan),
    (math.inf, 1.0),
    (-1.0, -math.inf),
    (None, 1.0),
    ("-1", 1.0),
    (True, 1.0),
    torch.tensor([-1.0, 1.0], **F64),
    (torch.full((12,), math.nan, **F64), 1.0),
    (-1.0, torch.full((12,), -1.0, **F64)),
    (-1.0, torch.ones(11, **F64)),
    (-1.0, torch.ones(12, dtype=torch.float16)),
    (-1.0, torch.ones(12, dtype=torch.int64)),
    (-1.0, torch.ones(12, **F64).to_sparse()),
)
_REST = list(range(1, 12))
NOT_GROUPS = (
    "atoms",
    "channels",
    b"channels",
    0,
    [],
    [[]],
    [0, 1],
    [[0], _REST[1:]],
    [[0, 0], _REST],
    [[0], [0, *_REST]],
    [[0, 12], _REST],
    [[-1], [0, *_REST]],
    [[0.5], _REST],
    [[math.nan], _REST],
    [["0"], _REST],
    [[True], [0, *_REST[1:]], [0]],
    [[0], _REST, []],
    torch.arange(12),
)
NOT_MEMORY = (
    "",
    "x",
    "GB",
    "1 PB",
    "-1 GB",
    "1e3",
    "1 GB 2",
    0,
    -1,
    0.0,
    math.nan,
    math.inf,
    True,
    [],
    {},
    1j,
    b"1 GB",
)
NOT_POSITIVE = (*(value for value in NOT_A_NUMBER if value is not None), 0, 0.0, math.inf)
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
    return rows + _later_rows()


def _later_rows() -> list[tuple[str, Call, tuple[Any, ...]]]:
    """Return the same for what goes beyond the plain Lasso, and for the settings of solvers."""
    lasso, chain = {"dictionary": DENSE, "lam": 0.2}, {"model": MODEL, "lam": 0.2}
    rows: list[tuple[str, Call, tuple[Any, ...]]] = [
        ("Lasso-box", _made(dsc.Lasso, "box", **lasso), NOT_A_BOX),
        ("Lasso-ridge", _made(dsc.Lasso, "ridge", **lasso), (*NOT_A_NUMBER, math.inf, torch.ones(12, **F64))),
        ("Lasso-groups", _made(dsc.Lasso, "groups", **lasso), NOT_GROUPS),
        ("Lasso-groups-box", _made(dsc.Lasso, "groups", box=(-1.0, 1.0), **lasso), ([[0], _REST],)),
        (
            "Lasso-groups-weights",
            _made(dsc.Lasso, "groups", weights=torch.arange(1, 13).to(**F64), **lasso),
            ([[0, 1], _REST[1:]],),
        ),
        ("MultiLayerLasso-model", _made(dsc.MultiLayerLasso, "model", **chain), (DENSE, *NOT_A_DICTIONARY)),
        (
            "MultiLayerLasso-lam",
            _made(dsc.MultiLayerLasso, "lam", **chain),
            (*NOT_A_NUMBER, math.inf, (0.1,), (0.1, -1.0), (0.1, math.nan), (0.1, 0.1, 0.1)),
        ),
    ]
    problems: dict[str, tuple[dsc.Problem, Tensor]] = {
        "lasso": (dsc.Lasso(DENSE, 0.2), SIGNAL),
        "box": (dsc.Lasso(DENSE, 0.2, box=(-1.0, 1.0)), SIGNAL),
        "images": (dsc.Lasso(CONV, 0.2), IMAGES),
        "joint": (dsc.JointLasso(CONV_MODEL, 0.2), IMAGES),
        "multilayer": (dsc.MultiLayerLasso(MODEL, 0.2), SIGNAL),
        "few": (dsc.SparseApproximation(DENSE, 2), SIGNAL),
    }
    for name, (problem, signal) in problems.items():
        call = {"problem": problem, "signal": signal, "on_failure": "ignore"}
        rows += [
            (f"later-{name}-max_memory", _called(dsc.solve, "max_memory", **call), NOT_MEMORY),
            (f"later-{name}-tol", _called(dsc.solve, "tol", **call), (*NOT_A_NUMBER, math.inf)),
            (f"later-{name}-max_steps", _called(dsc.solve, "max_steps", **call), NOT_A_WHOLE_NUMBER),
            (
                f"later-{name}-start",
                _called(dsc.solve, "start", **call),
                ((), NOT_CODES[0], NOT_CODES[1], NOT_CODES[6]),
            ),
            (f"later-{name}-solver", _called(dsc.solve, "solver", **call), NOT_A_SOLVER),
        ]
    misplaced: tuple[tuple[str, tuple[Any, ...]], ...] = (
        ("lasso", (dsc.OMP(), dsc.MLISTA(), dsc.ConvCoordinateDescent(), dsc.JointCoordinateDescent(), dsc.IHT())),
        ("box", (dsc.CoordinateDescent(), dsc.Homotopy(), dsc.ConvCoordinateDescent())),
        ("images", (dsc.CoordinateDescent(), dsc.Homotopy(), dsc.JointCoordinateDescent(), dsc.CoSaMP())),
        ("joint", (dsc.CoordinateDescent(), dsc.Homotopy(), dsc.ConvCoordinateDescent(), dsc.ADMM(), dsc.MLFISTA())),
        ("multilayer", (dsc.FISTA(), dsc.ADMM(), dsc.JointCoordinateDescent(), dsc.OMP())),
        ("few", (dsc.FISTA(), dsc.ADMM(), dsc.MLISTA())),
    )
    for name, solvers in misplaced:
        problem, signal = problems[name]
        rows.append((f"misplaced-{name}", _called(dsc.solve, "solver", problem=problem, signal=signal), solvers))
    rounds = (*NOT_A_WHOLE_NUMBER, 0)
    for kind in (
        dsc.CoordinateDescent,
        dsc.ConvCoordinateDescent,
        dsc.JointCoordinateDescent,
        dsc.SubspacePursuit,
        dsc.CoSaMP,
        dsc.IHT,
    ):
        rows.append((f"{kind.__name__}-rounds", _called(kind, "rounds"), rounds))
    rows += [
        ("ADMM-rho", _called(dsc.ADMM, "rho"), NOT_POSITIVE),
        ("ADMM-relaxation", _called(dsc.ADMM, "relaxation"), (*NOT_POSITIVE, 2, 2.0, 1e300)),
        ("ADMM-adapt", _called(dsc.ADMM, "adapt"), NOT_A_FLAG),
        ("OMP-forward", _called(dsc.OMP, "forward"), NOT_A_FLAG),
        ("IHT-step", _called(dsc.IHT, "step"), ("fast", "Fixed", None, 1, [], math.nan)),
        ("IHT-tol", _called(dsc.IHT, "tol"), (*NOT_A_NUMBER, math.inf)),
        ("IHT-polish", _called(dsc.IHT, "polish"), NOT_A_FLAG),
        ("MLISTA-relaxation", _called(dsc.MLISTA, "relaxation"), (*NOT_POSITIVE, 1.1)),
        ("MLFISTA-relaxation", _called(dsc.MLFISTA, "relaxation"), (*NOT_POSITIVE, 1.1)),
    ]
    return rows


ROWS = _rows()


@pytest.mark.parametrize(("call", "values"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_every_bad_value_of_every_keyword_is_refused_in_words(call: Call, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(dsc.DSCError) as caught:
            call(value)
        assert len(str(caught.value)) > 20, f"{value!r}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"box": (0.1, 1.0)}, r"box\[0\] is 0\.1; expected a number.* at most 0"),
        ({"box": (-1.0, math.nan)}, r"box\[1\] is nan; expected a number at least 0"),
        ({"box": (-1.0, 1.0, 2.0)}, r"box has 3 entries; expected a pair \(lower, upper\)"),
        (
            {"box": (-torch.ones(12, **F64), torch.full((12,), -2.0, **F64))},
            r"box\[1\] has 12 entries that are negative",
        ),
        ({"ridge": -1.0}, r"ridge is -1\.0; expected a finite number at least 0"),
        ({"ridge": math.inf}, r"ridge is inf; expected a finite number at least 0"),
        (
            {"groups": [[0, 1], [1, *range(2, 12)]]},
            "groups name atoms more than once: 1; expected every atom in exactly",
        ),
        ({"groups": [[0, 1]]}, r"groups leave out atoms: 2, 3, 4, 5, 6, \.\.\.; expected every atom in exactly one"),
        ({"groups": "channels"}, "groups='channels' .* a dense dictionary has no places"),
    ],
)
def test_what_is_said_of_bad_bounds_ridges_and_groups(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(dsc.ParameterError, match=message):
        dsc.Lasso(DENSE, 0.2, **settings)
