"""The solvers beyond the plain Lasso at the edges: of lam, of dictionaries, of kernels and of what may be given."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from operators import explicit_matrix
from references import kkt_violation, lasso_objective, scipy_lasso, sklearn_lasso
from strategies import duplicate_matrix, nearly_parallel, normal, rank_deficient, rng, wide_range
from test_reliability.cases import (
    CASES,
    CONV,
    CONV_MODEL,
    DENSE,
    F64,
    IMAGES,
    SIGNAL,
    WIDER,
    Case,
    blocks,
    each,
    only,
)

LASSO = tuple(case for case in WIDER if not case.name.startswith("joint"))
DENSE_SOLVERS = (dsc.FISTA(), dsc.CoordinateDescent(), dsc.Homotopy(), dsc.ADMM())
each_dense_solver = pytest.mark.parametrize("solver", DENSE_SOLVERS, ids=[s.name for s in DENSE_SOLVERS])
CONV_SOLVERS = (dsc.FISTA(), dsc.ConvCoordinateDescent(), dsc.ADMM())
each_conv_solver = pytest.mark.parametrize("solver", CONV_SOLVERS, ids=[s.name for s in CONV_SOLVERS])
GREEDY_SOLVERS = (dsc.OMP(), dsc.OMP(forward=True), dsc.SubspacePursuit(), dsc.CoSaMP(), dsc.IHT(rounds=200))
zeros_are_fine = pytest.mark.filterwarnings("ignore:lam is at or above lam_max")
each_greedy_solver = pytest.mark.parametrize(
    "solver", GREEDY_SOLVERS, ids=["OMP", "forward", "SubspacePursuit", "CoSaMP", "IHT"]
)

# ---------------------------------------------------------------------- numbers


@zeros_are_fine
@each(LASSO)
def test_lam_just_above_and_just_below_lam_max(case: Case) -> None:
    problem, signal = case.problem, case.signal
    assert isinstance(problem, dsc.Lasso)
    top = problem.lam_max(signal)
    largest, which = float(top.max()), int(top.argmax())
    for lam in (largest * (1 + 1e-12), 1e300, math.inf):
        with pytest.warns(dsc.DSCWarning, match=r"lam is at or above lam_max for . of . samples.*largest lam_max here"):
            solution = dsc.solve(replace(problem, lam=lam), signal, case.solver, tol=0.0)
        assert bool((only(solution) == 0).all())
        assert int(solution.steps.max()) == 0
        assert float(solution.certificate.gap.max()) == 0.0
    below = case.solve(replace(problem, lam=largest * (1 - 1e-3)), signal, tol=1e-9)
    assert int((only(below)[which] != 0).sum()) >= 1


def test_lam_within_tol_of_lam_max_is_not_said_to_be_above_it() -> None:
    signal = SIGNAL[:1]
    top = float(dsc.Lasso(DENSE, 1.0).lam_max(signal))
    with pytest.warns(dsc.DSCWarning, match="lam is at, above or within tol of lam_max for 1 of 1 samples"):
        solution = dsc.solve(dsc.Lasso(DENSE, top * (1 - 1e-9)), signal)
    assert bool((only(solution) == 0).all())
    for lam in (top, top * (1 + 1e-12)):
        with pytest.warns(dsc.DSCWarning, match="lam is at or above lam_max for 1 of 1 samples"):
            dsc.solve(dsc.Lasso(DENSE, lam), signal)


@pytest.mark.parametrize("solver", [dsc.ADMM(), dsc.FISTA(), None], ids=["ADMM", "FISTA", "chosen"])
def test_lam_zero_with_a_box_or_a_ridge(solver: Any) -> None:
    ridge = dsc.solve(dsc.Lasso(DENSE, 0.0, ridge=0.5), SIGNAL, solver, tol=1e-9, on_failure="ignore")
    matrix = DENSE.matrix.detach()
    want = torch.linalg.solve(matrix.T @ matrix + 0.5 * torch.eye(12, **F64), matrix.T @ SIGNAL.T).T
    assert torch.allclose(only(ridge), want, atol=1e-3)
    boxed = dsc.solve(dsc.Lasso(DENSE, 0.0, box=(-0.1, 0.2)), SIGNAL, solver, tol=1e-9, on_failure="ignore")
    assert float(only(boxed).max()) <= 0.2
    assert float(only(boxed).min()) >= -0.1
    slope = (SIGNAL - only(boxed) @ matrix.T) @ matrix
    inside = (only(boxed) < 0.2) & (only(boxed) > -0.1)
    assert float(slope[inside].abs().max()) < 1e-3


@each(WIDER)
def test_subnormal_and_distant_starts_disturb_nothing(case: Case) -> None:
    want = case.solve()
    for value in (5e-324, 1e-200, 10.0):
        start = tuple(torch.full_like(block, value) for block in blocks(want.codes))
        solution = case.solve(start=start if isinstance(want.codes, tuple) else start[0])
        assert bool(solution.converged.all())
        room = want.certificate.gap + solution.certificate.gap
        assert bool(((solution.certificate.objective - want.certificate.objective).abs() <= room + 1e-12).all())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@each_greedy_solver
def test_the_scale_of_the_data_is_no_matter_to_greedy_solvers(solver: Any, scale: float) -> None:
    given: tuple[dict[str, Any], ...] = ({"sparsity": 3}, {"epsilon": 0.4})
    for settings in given[:1] if solver.name == "IHT" else given:  # its search for a number of atoms takes long
        plain = dsc.solve(dsc.SparseApproximation(DENSE, **settings), SIGNAL, solver, on_failure="ignore")
        scaled = {key: value * (scale if key == "epsilon" else 1) for key, value in settings.items()}
        other = dsc.solve(dsc.SparseApproximation(DENSE, **scaled), SIGNAL * scale, solver, on_failure="ignore")
        assert other.status == plain.status
        assert torch.equal(only(other) != 0, only(plain) != 0)


# ---------------------------------------------------------------------- dictionaries


def _odd_dictionaries() -> dict[str, Tensor]:
    """Return matrices with 8 rows."""
    negative = duplicate_matrix(8, 10, 1, -1.0)
    return {
        "one atom": normal(8, 1, generator=rng(0)),
        "more rows than columns": normal(8, 3, generator=rng(1)),
        "duplicate": duplicate_matrix(8, 10, 0),
        "an atom and its negative": negative,
        "both": torch.cat([negative, negative[:, :1]], 1),
        "nearly parallel": nearly_parallel(8, 10, 2, 1e-6).matrix.detach(),
        "rank deficient": rank_deficient(8, 12, 3, 3).matrix.detach(),
        "norms over six decades": wide_range(8, 10, 4, decades=6.0).matrix.detach(),
    }


ODD = _odd_dictionaries()
each_odd = pytest.mark.parametrize("matrix", ODD.values(), ids=ODD.keys())
copies_are_fine = pytest.mark.filterwarnings("ignore:.*the same up to scale and sign")


@copies_are_fine
@each_odd
@each_dense_solver
@pytest.mark.parametrize("nonnegative", [False, True])
def test_odd_dictionaries(solver: Any, matrix: Tensor, nonnegative: bool) -> None:
    dictionary = dsc.DenseDictionary(matrix)
    lam = 0.1 * float(dsc.Lasso(dictionary, 1.0, nonnegative=nonnegative).lam_max(SIGNAL[:2]).min())
    problem = dsc.Lasso(dictionary, lam, nonnegative=nonnegative)
    solution = dsc.solve(problem, SIGNAL[:2], solver, tol=1e-7, max_steps=3000, on_failure="ignore")
    if isinstance(solver, dsc.CoordinateDescent | dsc.Homotopy):
        assert bool(solution.converged.all())
    for i in range(2):
        best = sklearn_lasso(matrix, SIGNAL[i], lam, nonnegative=nonnegative)
        want = lasso_objective(matrix, SIGNAL[i], best, lam)
        got = lasso_objective(matrix, SIGNAL[i], only(solution)[i], lam)
        assert got == pytest.approx(float(solution.certificate.objective[i]), rel=1e-12)
        assert float(solution.certificate.dual[i]) <= want * (1 + 1e-11)
        assert bool(solution.converged[i]) == (float(solution.certificate.relative_gap[i]) <= 1e-7)


@copies_are_fine
@each_odd
@each_greedy_solver
def test_odd_dictionaries_of_greedy_solvers(solver: Any, matrix: Tensor) -> None:
    dictionary = dsc.DenseDictionary(matrix)
    rank = int(torch.linalg.matrix_rank(matrix))
    solution = dsc.solve(dsc.SparseApproximation(dictionary, min(2, rank)), SIGNAL, solver)
    codes = only(solution)
    assert bool((codes != 0).sum(1).le(min(2, rank)).all())
    energy = 0.5 * (SIGNAL - codes @ matrix.T).square().sum(1)
    assert torch.allclose(energy, solution.certificate.objective, rtol=1e-10)
    assert bool((energy <= 0.5 * SIGNAL.square().sum(1)).all())
    # Least squares on the support: the residual is orthogonal to what is in use.
    slope = ((SIGNAL - codes @ matrix.T) @ matrix) / torch.linalg.vector_norm(matrix, dim=0)
    assert float(slope[codes != 0].abs().max()) < 1e-4
    if rank < dictionary.atoms:
        with pytest.warns(dsc.DSCWarning, match=f"no more than {rank} atoms are independent"):
            dsc.solve(dsc.SparseApproximation(dictionary, rank + 1), SIGNAL, solver, on_failure="ignore")


@zeros_are_fine
@each_dense_solver
def test_atoms_that_a_mask_leaves_nothing_of(solver: Any) -> None:
    matrix = DENSE.matrix.detach().clone()
    matrix[:2, 5] = 1.0
    matrix[2:, 5] = 0.0
    dictionary = dsc.DenseDictionary(matrix)
    mask = torch.ones(8, dtype=torch.bool)
    mask[:2] = False
    for given in (mask, torch.stack([mask, ~mask, torch.zeros(8, dtype=torch.bool)])):
        problem = dsc.Lasso(dictionary, 0.2, mask=given)
        if isinstance(solver, dsc.Homotopy) and given.ndim > 1:
            continue
        solution = dsc.solve(problem, SIGNAL, solver, tol=1e-7)
        assert bool(torch.isfinite(only(solution)).all())
        for i in range(3):
            m = given.expand(3, 8)[i]
            if bool(m.any()):
                want = lasso_objective(
                    m.double()[:, None] * matrix, m * SIGNAL[i], sklearn_lasso(matrix, SIGNAL[i], 0.2, mask=m), 0.2
                )
                assert float(solution.certificate.objective[i]) == pytest.approx(want, rel=1e-6)
            else:
                assert bool((only(solution)[i] == 0).all())


def _exponential_path(n: int) -> tuple[Tensor, Tensor]:
    """Return a dictionary and a signal whose path has (3ⁿ + 1)/2 segments.

    Source: Mairal & Yu 2012, Theorem 1: ``X̃ = [[X, 2αy], [0, αε]]``, ``ỹ = (y, ε)``, from ``X = y = 1``.
    """
    x, y = torch.ones(1, 1, **F64), torch.ones(1, **F64)
    for _ in range(n - 1):
        # Below the smallest kink of the path so far.
        kinks = _smallest_kink(x, y)
        alpha = kinks / (2 * float(y @ y) + 1.0)
        column = torch.cat([2 * alpha * y, torch.tensor([alpha], **F64)])
        x = torch.cat([torch.cat([x, torch.zeros(1, x.shape[1], **F64)], 0), column[:, None]], 1)
        y = torch.cat([y, torch.ones(1, **F64)])
    return x, y


def _smallest_kink(x: Tensor, y: Tensor) -> float:
    """Return a lam well below which the support and signs of the Lasso no longer change."""
    full = torch.linalg.lstsq(x, y[:, None]).solution[:, 0].sign()
    lam = float((x.T @ y).abs().max())
    while lam > 1e-12:
        if torch.equal(scipy_lasso(x, y, lam).sign(), full):
            return lam / 2
        lam /= 2
    return lam


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_path_with_exponentially_many_kinks(n: int) -> None:
    matrix, signal = _exponential_path(n)
    dictionary = dsc.DenseDictionary(matrix)
    lam = 1e-3 * _smallest_kink(matrix, signal)
    solution = dsc.solve(dsc.Lasso(dictionary, lam), signal, dsc.Homotopy(), tol=1e-8, on_failure="ignore")
    assert lasso_objective(matrix, signal, only(solution), lam) == pytest.approx(
        float(solution.certificate.objective), rel=1e-12
    )
    assert bool(solution.converged) == (float(solution.certificate.relative_gap) <= 1e-8)
    best = lasso_objective(matrix, signal, scipy_lasso(matrix, signal, lam), lam)
    assert float(solution.certificate.dual) <= best * (1 + 1e-9)
    assert bool(solution.converged)
    short = dsc.solve(dsc.Lasso(dictionary, lam), signal, dsc.Homotopy(), max_steps=1, on_failure="ignore")
    assert short.status == (dsc.Status.MAX_STEPS,)


# ---------------------------------------------------------------------- kernels

KERNELS: dict[str, tuple[tuple[int, ...], int, str, tuple[int, ...]]] = {
    "kernel as large as the image": ((3, 1, 5, 4), 1, "valid", (1, 1)),
    "kernel larger than the image": ((2, 2, 7), 2, "same", (2,)),
    "even kernels": ((3, 1, 4, 2), 1, "same", (4, 5)),
    "stride above the kernel": ((3, 2, 2), 4, "valid", (4,)),
    "stride above the kernel, same": ((3, 1, 2, 2), 3, "same", (3, 2)),
    "stride above the kernel, circular": ((2, 2, 2), 3, "circular", (3,)),
    "one tap": ((4, 3, 1), 1, "valid", (5,)),
    "one position, circular": ((3, 1, 3), 3, "circular", (1,)),
    "one atom": ((1, 1, 3, 3), 1, "same", (4, 4)),
}


@each_conv_solver
@pytest.mark.parametrize(("shape", "stride", "boundary", "size"), KERNELS.values(), ids=KERNELS.keys())
def test_odd_kernels(solver: Any, shape: tuple[int, ...], stride: int, boundary: str, size: tuple[int, ...]) -> None:
    dictionary = dsc.ConvDictionary(normal(*shape, generator=rng(5)), stride=stride, boundary=boundary, normalize=True)
    signal = normal(2, *dictionary.signal_shape(size), generator=rng(6))
    matrix = explicit_matrix(dictionary, size)
    lam = 0.15 * float(dsc.Lasso(dictionary, 1.0).lam_max(signal).min())
    solution = dsc.solve(dsc.Lasso(dictionary, lam), signal, solver, tol=1e-8, max_steps=20_000)
    for i in range(2):
        best = lasso_objective(matrix, signal[i], sklearn_lasso(matrix, signal[i], lam), lam)
        assert float(solution.certificate.objective[i]) == pytest.approx(best, rel=1e-7)
        assert kkt_violation(matrix, signal[i], only(solution)[i], lam) < 1e-2 * lam


@zeros_are_fine
@each_conv_solver
def test_places_that_a_mask_hides_altogether(solver: Any) -> None:
    mask = torch.ones(2, 1, 6, 7, dtype=torch.bool)
    mask[0, :, 1:5, 2:6] = False
    mask[1] = False
    solution = dsc.solve(dsc.Lasso(CONV, 0.3, mask=mask), IMAGES, solver, tol=1e-7)
    matrix = explicit_matrix(CONV, (4, 5))
    best = sklearn_lasso(matrix, IMAGES[0], 0.3, mask=mask[0])
    want = lasso_objective(mask[0].double().flatten()[:, None] * matrix, mask[0] * IMAGES[0], best, 0.3)
    assert float(solution.certificate.objective[0]) == pytest.approx(want, rel=1e-6)
    assert bool((only(solution)[1] == 0).all())
    assert float(solution.certificate.gap[1]) == 0.0


# ---------------------------------------------------------------------- tensors


def _as_tensors(signal: Tensor) -> tuple[object, ...]:
    return (
        signal.half(),
        signal.bfloat16(),
        signal.to(torch.complex128),
        signal.long(),
        signal.to_sparse(),
        signal > 0,
        signal.numpy(),
        signal.tolist(),
        signal.to("meta"),
        signal[..., :0],
        signal.float(),
    )


@each(CASES)
def test_tensors_of_another_kind_are_refused_before_any_work(case: Case) -> None:
    def fail(progress: dsc.Progress) -> None:
        raise AssertionError("work has begun")

    for bad in _as_tensors(case.signal):
        with pytest.raises(dsc.DSCError) as caught:
            case.solve(signal=bad, callback=fail)  # type: ignore[arg-type]
        assert "expected" in str(caught.value)


def test_one_not_finite_weight_of_one_sample_spoils_no_other() -> None:
    for problem, signal, solver in (
        (dsc.Lasso(DENSE, torch.tensor([0.2, math.inf, 0.2], **F64)), SIGNAL, dsc.ADMM()),
        (dsc.Lasso(DENSE, torch.tensor([0.2, math.inf, 0.2], **F64), mask=torch.ones(3, 8)), SIGNAL, None),
        (dsc.Lasso(CONV, torch.tensor([0.2, math.inf], **F64)), IMAGES, dsc.ADMM()),
        (dsc.JointLasso(CONV_MODEL, (torch.tensor([0.2, math.inf], **F64), 0.1)), IMAGES, None),
    ):
        with pytest.warns(dsc.DSCWarning, match="lam is at or above lam_max for 1 of"):
            solution = dsc.solve(problem, signal, solver, tol=1e-6)
        assert bool(solution.converged.all())
        assert bool((blocks(solution.codes)[0][1] == 0).all())
        assert bool((blocks(solution.codes)[0][0] != 0).any())
