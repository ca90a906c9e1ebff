"""Regularization paths: one problem for many lams, from the first that leaves all codes zero downwards."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from deep_sparse_coding.checks import per_layer, require_float_tensor, require_integer, require_number
from deep_sparse_coding.dictionaries import Dictionary
from deep_sparse_coding.errors import DSCWarning, ParameterError, UnsupportedError
from deep_sparse_coding.problems import Blocks, Codes, ConvexProblem, JointLasso, Lasso, LayeredLasso, Problem

from .base import Solver
from .choice import choose_solver
from .coordinate import CoordinateDescent
from .solution import History, Solution, Status
from .solve import solve_quietly

_Scalable = Lasso | JointLasso | LayeredLasso


@dataclass(frozen=True, eq=False)
class Path:
    """Solutions along a falling grid of lams. A sequence of `Solution`; printed as a table.

    Attributes:
        lams: lam (of the first layer, where there are several), ``(count, *batch)``, float64.
        solutions: One `Solution` per lam, codes included: they take ``count`` times the memory of one.
        density: The share of code entries that are not zero, over all layers, ``(count, *batch)``.
        residual_norm: ``‖M(y - D x)‖`` (of the first layer), ``(count, *batch)``, float64.
    """

    lams: Tensor
    solutions: tuple[Solution, ...] = field(repr=False)
    density: Tensor = field(repr=False)
    residual_norm: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.solutions)

    def __iter__(self) -> Iterator[Solution]:
        return iter(self.solutions)

    def __getitem__(self, index: int) -> Solution:
        return self.solutions[index]

    def __str__(self) -> str:
        samples = self.lams[0].numel()
        table = [("lam", "objective", "density", "residual", "steps", "gap")]
        for lam, density, norm, solution in zip(
            self.lams, self.density, self.residual_norm, self.solutions, strict=True
        ):
            certificate = solution.certificate
            table.append(
                (
                    f"{_mean(lam):.4g}",
                    f"{_mean(certificate.objective):.5g}",
                    f"{100 * _mean(density):.2f} %",
                    f"{_mean(norm):.4g}",
                    str(int(solution.steps.max())) if samples else "0",
                    f"{_largest(certificate.relative_gap):.1e}",
                )
            )
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        about = f"means over {samples} samples, steps and gap the largest" if samples != 1 else "1 sample"
        done = sum(bool(solution.converged.all()) for solution in self.solutions)
        head = f"Path of {len(self)} lams ({done} converged) · {self.solutions[0].solver} · {about}"
        return "\n".join([head, *lines])


def solve_path(
    problem: Problem,
    signal: Tensor,
    lams: int | Sequence[float] | Tensor = 20,
    *,
    ratio: float = 0.01,
    solver: Solver[Any] | None = None,
    tol: float = 1e-6,
    max_steps: int = 10_000,
    on_failure: str = "warn",
) -> Path:
    """Solve a problem for falling lams, each started from the codes of the one before.

    A count asks for a grid that falls geometrically from 1 to `ratio`, shared by all samples as fractions of each
    sample's own lam_max: the first codes are all zero. (For a sample that is zero or not finite 1 stands in.) A
    sequence is taken as it is, the same lam for all samples. The problem's own lam is replaced; where there are several
    layers, lam stands for the first layer's, and the others keep their ratio to it.

    Args:
        problem: A `Lasso`, `JointLasso` or `LayeredLasso` whose lams are numbers. Atoms are told apart by ``weights=``.
        signal: As for `solve`.
        lams: How many, at least 2; or positive numbers that fall strictly, one at least.
        ratio: The last lam of a grid over the first, above 0 and below 1. Not used with a sequence.
        solver: As for `solve`.
        tol: The relative gap of every solution.
        max_steps: The most steps of every solution.
        on_failure: "warn" (once for the whole path) or "ignore" when samples do not converge.

    Returns:
        A `Path`.

    Raises:
        ParameterError: A count, sequence or ratio out of range.
        UnsupportedError: Another kind of problem, or lams that are tensors, 0 or infinite.

    Source: warm starts as in Friedman, Hastie & Tibshirani 2010; lam_max from the optimality conditions of zero codes.
    """
    pattern = _lam_pattern(problem)
    assert isinstance(problem, _Scalable), "the pattern has been taken"
    if not isinstance(on_failure, str) or on_failure not in ("warn", "ignore"):
        raise ParameterError(f"on_failure is {on_failure!r}; expected 'warn' or 'ignore' for a path")
    tol, max_steps = require_number("tol", tol, minimum=0.0), require_integer("max_steps", max_steps, minimum=0)
    signal = problem.check_signal(signal)
    batch = problem.batch_shape(signal)
    with torch.no_grad():
        grid = _make_grid(problem, signal, lams, ratio)
        solutions: list[Solution] = []
        ahead: _Ahead | None = None
        for index, lam in enumerate(grid):
            here = _with_lam(problem, pattern, lam, signal.ndim - len(batch))
            solution = None if ahead is None else ahead.certify(here, signal, index, tol)
            if solution is None:
                start = _finite(solutions[-1].codes) if solutions else None
                solution = solve_quietly(here, signal, solver, tol=tol, max_steps=max_steps, start=start)
            solutions.append(solution)
            if index == 0 and len(grid) > 1:  # by now everything has been checked
                one = _with_lam(problem, pattern, torch.ones(()), 0)
                ahead = _solve_ahead(one, signal, grid, solver, tol, max_steps)
        if on_failure == "warn":
            _warn_of_failures(solutions, grid)
        density = torch.stack([nonzero_share(solution.codes, len(batch)) for solution in solutions])
        norms = torch.stack([residual_norms(problem, signal, solution.codes) for solution in solutions])
    return Path(grid, tuple(solutions), density, norms)


@dataclass(frozen=True, eq=False)
class _Ahead:
    """What one call of the compiled solver found for all lams.

    Attributes:
        codes: One block ``(count, samples, ...)`` per layer.
        rounds: ``(count, samples)``.
        seconds: What one lam took in the mean.
    """

    codes: Blocks
    rounds: Tensor
    seconds: float

    def certify(self, problem: Problem, signal: Tensor, index: int, tol: float) -> Solution | None:
        """Return the codes of one lam as a solution if its certificate says that all samples converged, else None."""
        shape = problem.batch_shape(signal)
        assert isinstance(problem, ConvexProblem), "the codes come from one"
        blocks = tuple(block[index] for block in self.codes)
        codes = problem.unpack(blocks, shape)
        certificate = CoordinateDescent().assess(problem.exact_form(signal), blocks, tol).reshape(shape)
        if not bool((certificate.relative_gap <= tol).all()):
            return None
        rounds = self.rounds[index]
        objective, gap = certificate.objective.reshape(1, -1), certificate.relative_gap.reshape(1, -1)
        return Solution(
            codes,
            (Status.CONVERGED,) * len(rounds),
            rounds.reshape(shape),
            certificate,
            (History((int(rounds.max()) if len(rounds) else 0,), (self.seconds,), objective, gap),),
            CoordinateDescent().name,
            tol,
            problem,
            signal.detach(),
        )


def _solve_ahead(
    problem: Problem, signal: Tensor, grid: Tensor, solver: Solver[Any] | None, tol: float, max_steps: int
) -> _Ahead | None:
    """Return codes for all lams from one call of the compiled solver; None where it is not the one to use.

    Args:
        problem: The problem with lam = 1.
        signal: Checked.
        grid: The lams, ``(count, *batch)``.
        solver: As for `solve_path`.
        tol: The relative gap.
        max_steps: The most steps of every solution.
    """
    if not isinstance(problem, ConvexProblem) or not isinstance(solver, CoordinateDescent | None):
        return None
    form = problem.form(signal.nan_to_num(0.0, 0.0, 0.0))
    chosen = choose_solver(form) if solver is None else solver
    if not isinstance(chosen, CoordinateDescent) or chosen.refuse(form) is not None or max_steps < chosen.rounds:
        return None
    began = time.perf_counter()
    codes, rounds = chosen.solve_multiples(form, grid.reshape(len(grid), form.batch), tol)
    return _Ahead(codes, rounds, (time.perf_counter() - began) / len(grid))


def nonzero_share(codes: Codes, batch_axes: int) -> Tensor:
    """Return the share of entries that are not zero, over all layers, per sample, float64; NaN where codes are."""
    blocks = codes if isinstance(codes, tuple) else (codes,)
    flat = torch.cat([block.flatten(batch_axes) for block in blocks], -1)
    share = (flat != 0).double().mean(-1)
    return torch.where(torch.isfinite(flat).all(-1), share, math.nan)


def residual_norms(problem: _Scalable, signal: Tensor, codes: Codes) -> Tensor:
    """Return ``‖M(y - D_1 x_1)‖`` per sample, ``(*batch,)``, in float64."""
    first: Dictionary = problem.dictionary if isinstance(problem, Lasso) else problem.model.layers[0]
    lowest = codes[0] if isinstance(codes, tuple) else codes
    residual = signal.detach().double() - first.cast(torch.float64).synthesize(lowest.detach().double())
    if problem.mask is not None:
        residual = problem.mask.double() * residual
    return torch.linalg.vector_norm(residual.flatten(len(problem.batch_shape(signal))), dim=-1)


def _lam_pattern(problem: object) -> tuple[float, ...]:
    """Return every layer's lam over that of the first.

    Raises:
        UnsupportedError: The problem has no lams that scale.
    """
    if not isinstance(problem, _Scalable):
        raise UnsupportedError(
            f"solve_path does not take a {type(problem).__name__}; expected a dsc.Lasso, JointLasso or LayeredLasso, "
            "whose lam it varies"
        )
    lams = (problem.lam,) if isinstance(problem, Lasso) else per_layer("lam", problem.lam, len(problem.model))
    for lam in lams:
        if isinstance(lam, Tensor):
            raise UnsupportedError(
                f"solve_path varies lam and the problem holds a tensor of shape {tuple(lam.shape)}; expected a number: "
                "pass weights= to tell atoms apart; a grid is made for every sample by itself"
            )
    numbers = [float(lam) for lam in lams]  # type: ignore[arg-type]
    if isinstance(problem, Lasso):
        return (1.0,)
    if not all(0 < lam < math.inf for lam in numbers):
        raise UnsupportedError(
            f"solve_path scales the lams of all layers together and they are {tuple(numbers)}; expected positive, "
            "finite numbers: their ratios are what counts"
        )
    return tuple(lam / numbers[0] for lam in numbers)


def _make_grid(problem: _Scalable, signal: Tensor, lams: object, ratio: float) -> Tensor:
    """Return the lams, ``(count, *batch)``, float64."""
    batch = problem.batch_shape(signal)
    if isinstance(lams, bool | str | bytes) or not isinstance(lams, int | Sequence | Tensor):
        raise ParameterError(f"lams is {lams!r}; expected a whole number of at least 2, or a falling sequence of lams")
    if isinstance(lams, int):
        count = require_integer("lams", lams, minimum=2)
        ratio = require_number("ratio", ratio, minimum=0.0, strict=True)
        if ratio >= 1:
            raise ParameterError(f"ratio is {ratio}; expected a number below 1: the last lam over the first")
        largest = problem.lam_max(signal).double()
        largest = torch.where(torch.isfinite(largest) & (largest > 0), largest, 1.0)
        shares = torch.logspace(0, math.log10(ratio), count, dtype=torch.float64, device=signal.device)
        return shares.reshape(-1, *(1,) * len(batch)) * largest
    values = require_float_tensor("lams", lams).tolist() if isinstance(lams, Tensor) else list(lams)
    if isinstance(lams, Tensor) and lams.ndim != 1:
        raise ParameterError(f"lams has shape {tuple(lams.shape)}; expected one axis: the same lam for all samples")
    numbers = [require_number(f"lams[{i}]", v, minimum=0.0, strict=True) for i, v in enumerate(values)]
    if not numbers:
        raise ParameterError("lams is empty; expected at least one number, or how many are wanted")
    rising = [i for i in range(1, len(numbers)) if numbers[i] >= numbers[i - 1]]
    if rising:
        i = rising[0]
        raise ParameterError(
            f"lams[{i}] is {numbers[i]:g} after {numbers[i - 1]:g}; expected numbers that fall strictly: use "
            "sorted(set(lams), reverse=True)"
        )
    grid = torch.tensor(numbers, dtype=torch.float64, device=signal.device)
    return grid.reshape(-1, *(1,) * len(batch)).expand(-1, *batch).contiguous()


def _with_lam(problem: _Scalable, pattern: tuple[float, ...], lam: Tensor, event_axes: int) -> Problem:
    """Return the problem for one lam per sample (a number where all are the same)."""
    values = lam.flatten()
    same = len(values) == 0 or bool((values == values[0]).all())
    base = (float(values[0]) if len(values) else 1.0) if same else lam.reshape(*lam.shape, *(1,) * event_axes)
    if isinstance(problem, Lasso):
        return replace(problem, lam=base)
    return replace(problem, lam=tuple(base * share for share in pattern))


def _finite(codes: Codes | None) -> Codes | None:
    """Return codes to start from: those of samples that are not finite are zeros."""
    if codes is None:
        return None
    if isinstance(codes, tuple):
        return tuple(block.nan_to_num(0.0, 0.0, 0.0) for block in codes)
    return codes.nan_to_num(0.0, 0.0, 0.0)


def _warn_of_failures(solutions: Sequence[Solution], grid: Tensor) -> None:
    failed = [k for k, solution in enumerate(solutions) if not bool(solution.converged.all())]
    if failed:
        k = failed[0]
        sample = int((~solutions[k].converged.flatten()).nonzero()[0])
        warnings.warn(
            f"samples did not converge at {len(failed)} of {len(solutions)} lams; first at lams[{k}] = "
            f"{float(grid[k].flatten()[sample]):.4g}, sample {sample}: {solutions[k].message(sample)}",
            DSCWarning,
            stacklevel=3,
        )


def _mean(values: Tensor) -> float:
    finite = values[torch.isfinite(values)].double()
    return float(finite.mean()) if finite.numel() else math.nan


def _largest(values: Tensor) -> float:
    finite = values[torch.isfinite(values)]
    return float(finite.max()) if finite.numel() else math.nan
