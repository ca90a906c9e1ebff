"""How ℓ0 problems are solved: one entry for every pursuit, with a status per sample and the certificate."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deep_sparse_coding.errors import DSCWarning
from deep_sparse_coding.problems import Certificate, SparseApproximation, StandardForm, assess
from deep_sparse_coding.problems.base import squared_norm, unresolved

from .constrained import distance_to_range
from .exhaustive import Exhaustive as Exhaustive
from .hard_thresholding import IHT as IHT
from .omp import OMP as OMP
from .pursuit import Pursuit as Pursuit
from .solution import History, Solution, Status
from .subspace import CoSaMP as CoSaMP
from .subspace import SubspacePursuit as SubspacePursuit


def solve_greedy(
    problem: SparseApproximation, signal: Tensor, solver: Pursuit, *, tol: float, max_steps: int
) -> Solution:
    """Solve an ℓ0 problem.

    Args:
        problem: What to solve.
        signal: ``(*batch, ...)``, checked.
        solver: How.
        tol: Kept in the solution; an ℓ0 problem has no gap to compare with it.
        max_steps: The most atoms.
    """
    began = time.perf_counter()
    shape, form, limits = problem.batch_shape(signal), problem.form(signal), problem.limits(signal)
    energy = squared_norm(form.data)
    given = _Given(problem, signal, form, limits)
    bad = torch.zeros(form.batch, dtype=torch.bool, device=energy.device)
    if not bool(torch.isfinite(energy).all()):
        bad = ~torch.isfinite(form.data[0]).flatten(1).all(1)
    lost = unresolved(form.data, energy) & ~bad
    void = bad | lost
    if bool(void.any()):
        # A sample of zeros is solved at once, and disturbs nothing.
        data = form.data[0].clone()
        data[void] = 0.0
        form, limits = replace(form, data=(data,)), None if limits is None else torch.where(void, 0.0, limits)
    most = _most_atoms(problem, form)
    wanted = min(most, max_steps)
    (codes,), steps = solver.pursue(form, wanted, None if limits is None else _aim(limits, form, signal.dtype))
    codes = codes.to(signal.dtype)
    certificate = given.certificate(codes)
    unmet = torch.isinf(certificate.objective.flatten())
    status = torch.full((form.batch,), int(Status.CONVERGED), device=codes.device)
    if wanted < most:
        short = (steps.to(codes.device) == wanted) & (unmet | torch.tensor(limits is None))
        status[short] = int(Status.MAX_STEPS)
    rows = (unmet & (status == Status.CONVERGED)).nonzero().flatten()
    status[rows] = int(Status.INFEASIBLE if solver.exact else Status.STALLED)
    rows = unmet.nonzero().flatten()
    if limits is not None and len(rows):
        far = distance_to_range(form.select(rows), limits[rows]) >= limits[rows]
        status[rows[far]] = int(Status.INFEASIBLE)
    status[lost] = int(Status.DIVERGED)
    status[bad] = int(Status.NONFINITE_INPUT)
    void = bad | (status == Status.INFEASIBLE)
    if bool(void.any()):
        codes[void] = math.nan
        certificate = given.certificate(codes)
    if solver.exact and wanted == most:
        certificate = _proved(certificate)
    history = History(
        (int(steps.max()) if len(steps) else 0,),
        (time.perf_counter() - began,),
        certificate.objective.flatten().cpu()[None],
        certificate.relative_gap.flatten().cpu()[None],
    )
    members = {int(member): member for member in Status}  # faster than calling the class 20,000 times
    ended = tuple(members[code] for code in status.tolist())
    return Solution(
        problem.unpack((codes,), shape), ended, steps.reshape(shape), certificate.reshape(shape), (history,),
        solver.name, tol, problem, signal.detach(),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Given:
    """The problem as it was given, every sample of it: what codes are certified against."""

    problem: SparseApproximation
    signal: Tensor
    form: StandardForm
    limits: Tensor | None

    def certificate(self, codes: Tensor) -> Certificate:
        """Return what `assess` does for flat codes; for a matrix on a CPU from the few entries that are not zero."""
        problem, form, matrix = self.problem, self.form, self.form.operator.matrix()
        if matrix is None or codes.device.type != "cpu":
            return assess(problem, self.signal, problem.unpack((codes,), problem.batch_shape(self.signal)))
        from ._kernels_codes import measure_codes

        threads = torch.get_num_threads()
        found = measure_codes(matrix.numpy(), form.data[0].numpy(), codes.double().numpy(), threads)
        energy, count = torch.from_numpy(found[0]), torch.from_numpy(found[1])
        negative = (codes < 0).any(1) if problem.nonnegative else torch.zeros(len(codes), dtype=torch.bool)
        return problem.certify(form.data, self.limits, energy, count, negative)


def _aim(limits: Tensor, form: StandardForm, dtype: torch.dtype) -> Tensor:
    """Return limits that leave room for the rounding of codes to the user's precision."""
    return torch.maximum(limits - 4 * torch.finfo(dtype).eps * squared_norm(form.data).sqrt(), 0.5 * limits)


def _most_atoms(problem: SparseApproximation, form: StandardForm) -> int:
    """Return the sparsity, or the most that can be independent; more than that is clipped with a warning."""
    matrix = form.operator.matrix()
    entries = math.prod(form.code_shapes[0])
    rank = min(entries, math.prod(form.data[0].shape[1:]))
    if matrix is not None and problem.mask is not None:
        rank = min(rank, int(torch.linalg.matrix_rank(matrix)))
    elif matrix is not None:
        rank = min(rank, problem.dictionary.cached("rank", lambda: int(torch.linalg.matrix_rank(matrix))))
    if problem.sparsity is None:
        return max(rank, 1)
    if problem.sparsity > rank:
        warnings.warn(
            f"sparsity is {problem.sparsity} and no more than {rank} atoms are independent on this signal; {rank} are "
            "used: expected a sparsity of at most that",
            DSCWarning,
            stacklevel=5,
        )
    return max(min(problem.sparsity, rank), 1)


def _proved(certificate: Certificate) -> Certificate:
    """Return the certificate of codes that were compared with all others."""
    value = certificate.objective
    zero = torch.where(torch.isfinite(value), 0.0, certificate.gap)
    return Certificate(value, torch.where(torch.isfinite(value), value, certificate.dual), zero, zero)
