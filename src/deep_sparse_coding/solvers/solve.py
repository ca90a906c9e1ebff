"""`solve`: check what is given, choose a solver, run the loop, certify the answer, say what must be said."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, require_finite_atoms, require_integer, require_number
from deep_sparse_coding.errors import DSCWarning, NotConvergedError, ParameterError, UnsupportedError
from deep_sparse_coding.problems import (
    BasisPursuit,
    Blocks,
    Codes,
    ConvexProblem,
    Lasso,
    LayeredLasso,
    LayeredProblem,
    LayeredSparseApproximation,
    MultiLayerLasso,
    Problem,
    SparseApproximation,
    StandardForm,
    assess,
)
from deep_sparse_coding.problems.base import form_objective, per_sample, squared_norm
from deep_sparse_coding.problems.cascaded import CascadeProblem
from deep_sparse_coding.problems.single import SingleProblem
from deep_sparse_coding.problems.sums import used_rows

from .base import Solver
from .batches import run_groups
from .choice import choose_solver
from .constrained import solve_pursuit
from .gradients import attach_gradients, require_differentiable
from .greedy import OMP, Pursuit, solve_greedy
from .loop import Callback, Progress, Run, Settings
from .memory import parse_memory, sample_groups
from .multilayer import MultiLayerSolver, solve_multilayer
from .solution import Solution, Status, settle
from .work import plan_work

# A relative gap that is zero but for rounding of lam_max: the square of how far lam is below it.
_NO_GAP = 1e-26

AnySolver = Solver[Any] | Pursuit | MultiLayerSolver


def solve(
    problem: Problem,
    signal: Tensor,
    solver: AnySolver | None = None,
    *,
    tol: float = 1e-6,
    max_steps: int = 10_000,
    start: Codes | None = None,
    on_failure: str = "warn",
    callback: Callback | None = None,
    differentiable: bool = False,
    max_memory: int | float | str | None = None,
) -> Solution:
    """Solve a sparse coding problem and certify the answer, sample by sample.

    Args:
        problem: A `Lasso`, `JointLasso`, `BasisPursuit`, `SparseApproximation`, or one of the layered problems.
        signal: ``(*batch, ...)`` in the dictionary's dtype and on its device. float32 is solved in float32 first;
            samples that it cannot bring to `tol` are finished in float64.
        solver: How; None chooses by structure, size and device, and the solution says which.
        tol: The relative duality gap at which a sample has converged, computed in float64 from the codes that are
            returned. `SparseApproximation` has no gap: there CONVERGED means that the constraints are met.
        max_steps: The most steps (per layer for layered problems).
        start: Codes to start from, as a solution has them; an optimal start takes 0 steps.
        on_failure: "warn", "raise" or "ignore" when a sample does not converge.
        callback: Called at every check; returning True stops the run, with the best codes so far.
        differentiable: Whether the codes carry gradients with respect to the signal, the atoms, lam and weights, as far
            as these require them, by implicit differentiation on the support (not through the steps; once, not twice):
            exact up to `tol` for a unique minimizer away from kinks. The certificate carries none.
        max_memory: A limit on what is held beside the signal, in bytes or as words such as "2 GB": samples are worked
            on in groups, and an image on one convolutional dictionary whose codes leave too little room for the work on
            it is cut into tiles, with one certificate for the whole. None: no limit, and a warning above 1 GB.

    Returns:
        A `Solution`. A sample that is not finite gets NaN codes and NONFINITE_INPUT; it never spoils the others.

    Raises:
        NotConvergedError: With ``on_failure="raise"``.
        ParameterError: A setting out of range or a start that is not finite.
        ShapeError, DtypeError, DeviceError: A signal or a start that does not fit.
        UnsupportedError: The solver does not take this problem.
    """
    if not isinstance(on_failure, str) or on_failure not in ("warn", "raise", "ignore"):
        raise ParameterError(f"on_failure is {on_failure!r}; expected 'warn', 'raise' or 'ignore'")
    if check_flag("differentiable", differentiable):
        require_differentiable(problem)
    solution = solve_quietly(
        problem, signal, solver, tol=tol, max_steps=max_steps, start=start, callback=callback, max_memory=max_memory
    )
    solution = _report(solution, on_failure)
    return replace(solution, codes=attach_gradients(problem, signal, solution.codes)) if differentiable else solution


def solve_quietly(
    problem: Problem,
    signal: Tensor,
    solver: AnySolver | None,
    *,
    tol: float,
    max_steps: int,
    start: Codes | None = None,
    callback: Callback | None = None,
    max_memory: int | float | str | None = None,
) -> Solution:
    """Return what `solve` returns, after the same checks, without a word about samples that failed or are zero."""
    if not isinstance(problem, Problem):
        raise ParameterError(f"problem is a {type(problem).__name__}; expected dsc.Lasso, dsc.BasisPursuit or the like")
    if solver is not None and not isinstance(solver, Solver | Pursuit | MultiLayerSolver):
        raise ParameterError(f"solver is {solver!r}; expected a solver such as dsc.FISTA(), or None to have one chosen")
    if callback is not None and not callable(callback):
        raise ParameterError(
            f"callback is {callback!r}; expected a function of one dsc.Progress, which may return True to stop"
        )
    tol = require_number("tol", tol, minimum=0.0)
    max_steps = require_integer("max_steps", max_steps, minimum=0)
    limit = parse_memory("max_memory", max_memory)
    signal = problem.check_signal(signal)
    _require_finite_dictionaries(problem)
    blocks = None if start is None else _check_start(problem, signal, start)
    with torch.no_grad():
        settings = Settings(solver, tol, max_steps, callback, max_memory=limit)
        if isinstance(problem, LayeredProblem):
            return _solve_layers(problem, signal, settings, blocks)
        return _solve_single(problem, signal, settings, blocks)


def _check_start(problem: Problem, signal: Tensor, start: Codes) -> Blocks:
    blocks = problem.pack(start, signal)
    bad = sum(int((~torch.isfinite(block)).sum()) for block in blocks)
    if bad:
        raise ParameterError(
            f"start has {bad} entries that are not finite; expected finite codes: leave start out, or repair it with "
            "torch.nan_to_num"
        )
    return blocks


def _require_finite_dictionaries(problem: Problem) -> None:
    """Raise if atoms became NaN or infinite after their dictionary was made, as a diverged training leaves them."""
    if isinstance(problem, Lasso | SingleProblem):
        require_finite_atoms("the dictionary", problem.dictionary.weight)
    elif isinstance(problem, CascadeProblem):
        for j, layer in enumerate(problem.model.layers, start=1):
            require_finite_atoms(f"layer {j} of the cascade", layer.weight)


def _solve_single(problem: Problem, signal: Tensor, settings: Settings, start: Blocks | None) -> Solution:
    if isinstance(problem, ConvexProblem):
        return _solve_convex(problem, signal, settings, start)
    if settings.max_memory is not None:
        raise UnsupportedError(
            f"max_memory is for dsc.Lasso, dsc.JointLasso and dsc.LayeredLasso, and the problem is a "
            f"{type(problem).__name__}; leave it out and pass fewer samples at once"
        )
    if isinstance(problem, MultiLayerLasso):
        return _solve_multilayer(problem, signal, settings, start)
    if isinstance(problem, BasisPursuit):
        return _solve_pursuit(problem, signal, settings, start)
    if isinstance(problem, SparseApproximation):
        return _solve_greedy(problem, signal, settings, start)
    raise UnsupportedError(f"solve does not take a {type(problem).__name__}")


def _solver_for(form: StandardForm, settings: Settings) -> Solver[Any]:
    if isinstance(settings.solver, Pursuit):
        raise UnsupportedError(f"{settings.solver.name} takes dsc.SparseApproximation (ℓ0); use dsc.FISTA()")
    if isinstance(settings.solver, MultiLayerSolver):
        raise UnsupportedError(f"{settings.solver.name} takes dsc.MultiLayerLasso; use dsc.FISTA()")
    solver = settings.solver or choose_solver(form)
    reason = solver.refuse(form)
    if reason:
        raise UnsupportedError(reason)
    return solver


def _solve_greedy(problem: SparseApproximation, signal: Tensor, settings: Settings, start: Blocks | None) -> Solution:
    solver = settings.solver or OMP()
    if not isinstance(solver, Pursuit):
        raise UnsupportedError(f"{solver.name} takes convex problems, and SparseApproximation is none; use dsc.OMP()")
    if start is not None:
        raise UnsupportedError(f"{solver.name} takes no start: it chooses atoms from none; leave start out")
    solution = solve_greedy(problem, signal, solver, tol=settings.tol, max_steps=settings.max_steps)
    if settings.callback is None:
        return solution
    samples = len(solution.status)
    steps = int(solution.steps.max()) if samples else 0
    gap = float(solution.certificate.relative_gap.max()) if samples else 0.0
    seen = Progress(steps, settings.max_steps, 0, samples, gap, settings.layer)
    return replace(solution, stopped=settings.callback(seen) is True)


def _solve_multilayer(problem: MultiLayerLasso, signal: Tensor, settings: Settings, start: Blocks | None) -> Solution:
    return solve_multilayer(
        problem,
        signal,
        settings.solver,
        tol=settings.tol,
        max_steps=settings.max_steps,
        start=None if start is None else start[0],
        callback=settings.callback,
    )


def _solve_pursuit(problem: BasisPursuit, signal: Tensor, settings: Settings, start: Blocks | None) -> Solution:
    form = problem.form(signal)
    solver = _solver_for(form, settings)

    def lasso(here: StandardForm, begin: Blocks, tol: float, limit: int) -> tuple[Blocks, Tensor]:
        run = Run(here, here, solver, Settings(solver, tol, limit, None))
        run.iterate(begin)
        return run.codes, run.steps_taken

    def report(step: int, active: int, gap: float) -> bool:
        seen = Progress(step, settings.max_steps, active, form.batch, gap, settings.layer)
        return settings.callback is not None and settings.callback(seen) is True

    return solve_pursuit(
        problem,
        signal,
        start,
        tol=settings.tol,
        max_steps=settings.max_steps,
        solve_lasso=lasso,
        report=report,
        name=f"{solver.name} in a search for lam",
    )


def _solve_convex(problem: ConvexProblem, signal: Tensor, settings: Settings, start: Blocks | None) -> Solution:
    form = problem.form(signal)
    work = plan_work(form, settings, lambda part: _solver_for(part, settings))
    exact = problem.exact_form(signal)
    rows = _finite_samples(form).nonzero().flatten()
    start = _zeros(form) if start is None else _sensible_start(form, start, settings)
    outcome = run_groups(form, exact, start, settings, list(sample_groups(rows, work.size)), work.run)
    shape = problem.batch_shape(signal)
    certificate = outcome.certificate.reshape(shape)
    return Solution(
        problem.unpack(outcome.codes, shape),
        settle(outcome.status, certificate, settings.tol),
        outcome.steps.reshape(shape),
        certificate,
        (outcome.history,),
        work.name,
        settings.tol,
        problem,
        signal.detach(),
        outcome.stopped,
    )


def _zeros(form: StandardForm) -> Blocks:
    """Return codes of zero that take no memory: all samples share theirs."""
    one = form.data[0]
    return tuple(one.new_zeros(1, *shape).expand(form.batch, *shape) for shape in form.code_shapes)


def _sensible_start(form: StandardForm, start: Blocks, settings: Settings) -> Blocks:
    """Return a start that keeps to the bounds, with zeros for samples that it explains worse than zeros do.

    From far away working sets hold everything and splittings take long to forget.
    """
    start = form.penalty.project(form.weights, start)
    if not settings.max_steps or not any(bool(block.any()) for block in start):
        return start
    worse = form_objective(form, start, form.residual(start)) > 0.5 * squared_norm(form.data)
    return tuple(torch.where(per_sample(worse, block), 0.0, block) for block in start)


def _solve_layers(
    problem: LayeredProblem,
    signal: Tensor,
    settings: Settings,
    start: Blocks | None,
) -> Solution:
    current, solutions = signal, []
    stopped = False
    for j, stage in enumerate(problem.stages):
        # After a stop the layers above are left at their start: what was not worked on is not made up.
        limit = 0 if stopped else settings.max_steps
        here = replace(settings, max_steps=limit, layer=j + 1)
        solution = _solve_single(stage, current, here, None if start is None else (start[j],))
        solutions.append(solution)
        stopped = stopped or solution.stopped
        current = cast(Tensor, solution.codes)  # the codes of one layer are one tensor
    codes = tuple(solution.codes for solution in solutions)
    return Solution(
        codes,
        tuple(max(column) for column in zip(*(solution.status for solution in solutions), strict=True)),
        torch.stack([solution.steps for solution in solutions]).sum(0),
        assess(problem, signal, codes),
        tuple(solution.history[0] for solution in solutions),
        " + ".join(dict.fromkeys(solution.solver for solution in solutions)),
        settings.tol,
        problem,
        signal.detach(),
        stopped,
    )


def _finite_samples(form: StandardForm) -> Tensor:
    """Return which samples have finite data and weights that are not NaN."""
    finite = torch.ones(form.batch, dtype=torch.bool, device=form.data[0].device)
    for block in form.data:
        if not bool(torch.isfinite(block.sum())):  # a sum with NaN or an infinity in it is not finite
            finite &= torch.isfinite(block).flatten(1).all(1)
    for weight in form.weights:
        finite &= (~torch.isnan(weight)).flatten(1).all(1).expand(form.batch)
    return finite


def _report(solution: Solution, on_failure: str) -> Solution:
    """Say aloud what must not be silent: samples that failed, and lam at or above lam_max."""
    whole = set(solution.status) <= {Status.CONVERGED}
    failed = [] if whole else [i for i, status in enumerate(solution.status) if status != Status.CONVERGED]
    if failed and on_failure != "ignore":
        words = f"{len(failed)} of {len(solution.status)} samples did not converge; sample {failed[0]}: "
        words += solution.message(failed[0])
        if on_failure == "raise":
            raise NotConvergedError(words)
        warnings.warn(words, DSCWarning, stacklevel=3)
    blocks = solution.codes if isinstance(solution.codes, tuple) else (solution.codes,)
    axes = solution.certificate.gap.ndim
    if blocks[0].numel() and not _is_without_bound(solution.problem):
        flat, signal = (x.reshape(len(solution.status), -1) for x in (blocks[0], solution.signal))
        zero = (~used_rows(flat)).nonzero().flatten()
        empty = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        empty[zero] = used_rows(signal[zero])
        empty = empty.reshape(blocks[0].shape[:axes]) & solution.converged.to(flat.device)
        if bool(empty.any()):
            warnings.warn(_zero_words(solution, empty), DSCWarning, stacklevel=3)
    return solution


def _is_without_bound(problem: Problem) -> bool:
    """Return whether no setting of an ℓ0 problem can be blamed for codes that are zero."""
    first = problem.stages[0] if isinstance(problem, LayeredSparseApproximation) else problem
    return isinstance(first, SparseApproximation) and first.epsilon is None


def _zero_words(solution: Solution, empty: Tensor) -> str:
    largest = float(solution.problem.lam_max(solution.signal).detach().max())
    which = f"{int(empty.sum())} of {len(solution.status)} samples, whose codes are all zero"
    if not isinstance(solution.problem, ConvexProblem | LayeredLasso | MultiLayerLasso):
        return (
            f"epsilon is at or above the norm of the signal for {which}; expected a smaller epsilon: the largest norm "
            f"here is {largest:.4g} (problem.lam_max(signal))"
        )
    first = solution.certificate.layers[0] if solution.certificate.layers else solution.certificate
    # At lam_max and above zero codes have no gap; just below it they can have one within tol.
    above = bool((first.relative_gap.to(empty.device)[empty] <= _NO_GAP).all())
    return (
        f"lam is {'at or above' if above else 'at, above or within tol of'} lam_max for {which}; expected a smaller "
        f"lam: the largest lam_max here is {largest:.4g} (problem.lam_max(signal))"
    )
