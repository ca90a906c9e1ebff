"""Solvers of the ℓ0 problem: orthogonal matching pursuit for any size, every support for tiny ones."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_integer
from deep_sparse_coding.errors import DSCWarning, UnsupportedError
from deep_sparse_coding.problems import Blocks, Certificate, SparseApproximation, StandardForm, assess
from deep_sparse_coding.problems.base import squared_norm, unresolved

from .constrained import distance_to_range, least_squares
from .solution import History, Solution, Status

# Correlations below this share of ‖a_i‖‖b‖ are rounding, and choose no atom.
_ROUNDING = 1e-12
# Rounds in which non-negative coefficients lose those that turned negative.
_CLIPS = 20
# Above this many columns the Gram matrix no longer pays (8 bytes an entry).
_LARGEST_GRAM = 8192
_SUPPORTS_AT_ONCE = 4096


class Pursuit(ABC):
    """A method for the ℓ0 problem. Concrete ones are frozen dataclasses that hold settings only."""

    #: Whether the answer is proved optimal.
    exact: bool = False

    @property
    def name(self) -> str:
        """The name that solutions print."""
        return type(self).__name__

    @abstractmethod
    def pursue(self, form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
        """Return codes (float64) and the number of steps per sample.

        Args:
            form: Operator and data of finite samples in float64; weights mean nothing.
            sparsity: The most non-zeros of a sample.
            limits: The residual norm at which a sample is done, or None for never.
        """


@dataclass(frozen=True)
class OMP(Pursuit):
    """Orthogonal matching pursuit: the atom most correlated with the residual, then least squares on all chosen.

    Dense dictionaries on a CPU (with a mask that all samples share, signed codes) run in a compiled kernel with
    Cholesky updates; everything else takes ``D`` and ``Dᵀ`` only, with conjugate gradients on the support. Codes that
    must not be negative choose the largest positive correlation; coefficients that turn negative leave for good. All
    in float64.

    `steps` of a solution counts atoms.

    Source: Pati, Rezaiifar & Krishnaprasad 1993; Rubinstein, Zibulevsky & Elad 2008; non-negative: Bruckstein, Elad &
    Zibulevsky 2008.
    """

    def pursue(self, form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
        """Return codes and the number of atoms chosen."""
        matrix = form.operator.matrix()
        small = matrix is not None and matrix.shape[1] <= _LARGEST_GRAM
        if matrix is None or not small or form.nonnegative or form.data[0].device.type != "cpu":
            return _pursue_any(form, sparsity, limits)
        from ._kernels_greedy import pursue_batch

        # At scale one no square overflows or vanishes.
        scale = form.data[0].abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        data = (form.data[0] / scale).contiguous()
        goal = data.new_zeros(form.batch) if limits is None else limits / scale[:, 0]
        codes, counts = pursue_batch(
            matrix.numpy(),
            (matrix.T @ matrix).numpy(),
            data.numpy(),
            (data @ matrix).numpy(),
            goal.numpy(),
            sparsity,
            torch.get_num_threads(),
        )
        return (torch.from_numpy(codes).mul_(scale),), torch.from_numpy(counts)


@dataclass(frozen=True)
class Exhaustive(Pursuit):
    """Every support of at most s atoms, least squares on each: the ℓ0 solution itself, for tiny problems.

    Attributes:
        max_supports: Refuse above this many supports.
    """

    max_supports: int = 1_000_000
    exact = True

    def __post_init__(self) -> None:
        require_integer("max_supports", self.max_supports, minimum=1)

    def pursue(self, form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
        """Return the best codes; with limits, those with the fewest atoms, and the least residual among them.

        Raises:
            UnsupportedError: Masks per sample, or too many supports.
        """
        if any(len(part) != 1 for part in form.operator.squared_norms()[:1]) and form.operator.matrix() is None:
            raise UnsupportedError("Exhaustive takes a mask that all samples share; use dsc.OMP()")
        entries = math.prod(form.code_shapes[0])
        total = sum(math.comb(entries, k) for k in range(sparsity + 1))
        if total > self.max_supports:
            raise UnsupportedError(
                f"Exhaustive would look at {total} supports, {self.max_supports} are allowed; use dsc.OMP(), a smaller "
                "sparsity, or raise max_supports"
            )
        matrix = form.operator.matrix()
        if matrix is None:
            units = torch.eye(entries, dtype=torch.float64, device=form.data[0].device)
            one = form.operator.select(torch.zeros(1, dtype=torch.long)) if form.batch else form.operator
            matrix = one.synthesize((units.reshape(entries, *form.code_shapes[0]),))[0].flatten(1).T
        data = form.data[0].flatten(1)
        best = squared_norm(form.data)
        codes = data.new_zeros(form.batch, entries)
        size = torch.zeros(form.batch, dtype=torch.int64)
        for k in range(1, sparsity + 1):
            # With limits, samples that are met keep the fewer atoms.
            open_ = torch.ones_like(best, dtype=torch.bool) if limits is None else best.sqrt() > limits
            for supports in _supports(entries, k):
                error, coefficients = _fit_supports(matrix, data, supports.to(data.device), form.nonnegative)
                least, which = error.min(0)
                rows = (open_ & (least < best * (1 - 1e-12))).nonzero().flatten()
                best[rows], size[rows.cpu()] = least[rows], k
                codes[rows] = 0.0
                codes[rows[:, None], supports.to(data.device)[which[rows]]] = coefficients[which[rows], rows]
        return (codes.reshape(form.batch, *form.code_shapes[0]),), size


def _supports(entries: int, size: int) -> Iterator[Tensor]:
    everything = itertools.combinations(range(entries), size)
    while chunk := list(itertools.islice(everything, _SUPPORTS_AT_ONCE)):
        yield torch.tensor(chunk)


def _fit_supports(matrix: Tensor, data: Tensor, supports: Tensor, nonnegative: bool) -> tuple[Tensor, Tensor]:
    """Return ``‖y - A_S c‖²`` ``(supports, samples)`` and c ``(supports, samples, size)``; inf for dependent columns.

    Dependent columns are left out: an independent support of the same span is among the others.
    """
    columns = matrix.T[supports].transpose(1, 2)
    size = supports.shape[1]
    if size > matrix.shape[0]:
        bad = data.new_full((len(supports), len(data)), math.inf)
        return bad, data.new_zeros(len(supports), len(data), size)
    q, r = torch.linalg.qr(columns)
    diagonal = r.diagonal(dim1=1, dim2=2).abs()
    lengths = torch.linalg.vector_norm(columns, dim=1)
    dependent = (diagonal <= 1e-10 * lengths.amax(1, keepdim=True)).any(1)
    r = torch.where(dependent[:, None, None], torch.eye(size).to(r), r)
    inside = q.transpose(1, 2) @ data.T
    coefficients = torch.linalg.solve_triangular(r, inside, upper=True).transpose(1, 2)
    error = (data[None] - coefficients @ columns.transpose(1, 2)).square().sum(2)
    bad = dependent[:, None] | ((coefficients < 0).any(2) if nonnegative else False)
    return torch.where(bad, math.inf, error), coefficients


def _pursue_any(form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
    """Orthogonal matching pursuit by the operator alone, all samples at once, one atom per sample and step."""
    norms = form.operator.squared_norms()[0].sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    energy = squared_norm(form.data).sqrt()
    (codes,), residual = form.zeros(), form.data[0]
    support, closed = torch.zeros_like(codes), torch.zeros_like(codes, dtype=torch.bool)
    going, steps = energy > 0, torch.zeros(form.batch, dtype=torch.int64)
    nothing = torch.zeros_like(energy)
    for _ in range(2 * sparsity if form.nonnegative else sparsity):
        if limits is not None:
            going &= squared_norm((residual,)).sqrt() > limits
        going &= support.flatten(1).sum(1) < sparsity
        score = form.operator.analyze((residual,))[0] * inverse
        score = torch.where(closed, 0.0, score.clamp_min(0) if form.nonnegative else score.abs()).flatten(1)
        top, place = score.max(1) if score.shape[1] else (nothing, nothing.long())
        going &= top > _ROUNDING * energy
        rows = going.nonzero().flatten()
        if not len(rows):
            break
        for flags, value in ((support, 1.0), (closed, True)):
            flags.flatten(1)[rows, place[rows]] = value
        steps[rows.cpu()] += 1
        here = form.select(rows)
        part, x, r = support[rows], codes[rows], residual[rows]
        for _ in range(_CLIPS):
            (x,) = least_squares(here, (x,), (r,), nothing[rows], (part,))
            negative = (x < 0) & form.nonnegative
            if not bool(negative.any()):
                break
            part, x = torch.where(negative, 0.0, part), torch.where(negative, 0.0, x)
            (r,) = here.residual((x,))
        x = x.clamp_min(0) if form.nonnegative else x
        codes[rows], support[rows] = x, part
        residual = residual.index_copy(0, rows, here.residual((x,))[0])
    return (codes,), steps


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
    bad = ~torch.isfinite(form.data[0]).flatten(1).all(1)
    lost = unresolved(form.data, squared_norm(form.data)) & ~bad
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
    answer = problem.unpack((codes,), shape)
    certificate = assess(problem, signal, answer)
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
        answer = problem.unpack((codes,), shape)
        certificate = assess(problem, signal, answer)
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
        answer, ended, steps.reshape(shape), certificate, (history,), solver.name, tol, problem, signal.detach()
    )


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
