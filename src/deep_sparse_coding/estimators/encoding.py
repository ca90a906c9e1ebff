"""From arrays to codes and back: solve in float32 or float64, certify, and say what did not converge."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from deep_sparse_coding.errors import DSCWarning
from deep_sparse_coding.problems import Codes, Problem
from deep_sparse_coding.solvers import Solution, Status
from deep_sparse_coding.solvers.solve import solve_quietly

# How many features are held dense at a time where sparse ones were asked for: 32 MB of float64.
_DENSE_ENTRIES = 1 << 22


@dataclass(frozen=True, eq=False)
class Encoded:
    """Codes of an array as features, with what is proved about them.

    Attributes:
        features: ``(n_samples, n_features_out)``, an array or, if asked for, a CSR array.
        objective: Per sample, float64.
        gap: Duality gap per sample, float64.
        steps: The most steps that a sample took.
        converged: Whether every sample did.
    """

    features: NDArray[np.floating] | sparse.csr_array
    objective: NDArray[np.float64]
    gap: NDArray[np.float64]
    steps: int
    converged: bool


def to_tensor(X: NDArray[np.floating]) -> Tensor:
    """Return a checked array as a tensor, copied only where torch cannot share its memory."""
    if not X.flags.writeable or any(stride < 0 for stride in X.strides):
        X = X.copy()
    return torch.from_numpy(X)


def encode(
    problem: Problem,
    X: NDArray[np.floating],
    join: Callable[[Codes], Tensor],
    width: int,
    *,
    tol: float,
    max_steps: int,
    sparse_output: bool,
) -> Encoded:
    """Return the codes of the rows of `X` as features.

    Args:
        problem: What to minimize, in the number type of `X`.
        X: ``(n_samples, n_features)``, float32 or float64, finite.
        join: Makes features ``(n, width)`` of codes.
        width: The number of features.
        tol: The relative duality gap to reach.
        max_steps: The most steps per layer.
        sparse_output: Whether to return a CSR array; then no more than some megabytes of codes are held dense.

    Returns:
        Features, objective, gap, steps.
    """
    rows = max(1, _DENSE_ENTRIES // width) if sparse_output else len(X)
    solutions: list[Solution] = []
    blocks: list[NDArray[np.floating] | sparse.csr_array] = []
    used = zero = 0
    largest, words, failed = 0.0, "", 0
    for start in range(0, len(X), rows):
        signal = to_tensor(X[start : start + rows])
        solution = solve_quietly(problem, signal, None, tol=tol, max_steps=max_steps)
        features = join(solution.codes).numpy()
        blocks.append(sparse.csr_array(features) if sparse_output else features)
        silent = ~features.any(axis=1) & signal.any(dim=1).numpy()
        used, zero = used + len(features) - int(silent.sum()), zero + int(silent.sum())
        if zero and not used:
            largest = max(largest, float(problem.lam_max(signal).max()))
        bad = [i for i, status in enumerate(solution.status) if status != Status.CONVERGED]
        if bad and not words:
            words = f"sample {start + bad[0]}: {_remedy(solution, bad[0])}"
        failed += len(bad)
        solutions.append(solution)
    if failed:
        _warn(f"{failed} of {len(X)} samples did not converge; {words}", ConvergenceWarning)
    if zero and not used:
        _warn(
            f"lam leaves all features of all {zero} samples zero; expected a smaller lam: for the first layer the "
            f"largest that leaves anything is {largest:.4g}",
            DSCWarning,
        )
    certificates = [solution.certificate for solution in solutions]
    return Encoded(
        sparse.vstack(blocks, format="csr") if sparse_output else blocks[0],  # type: ignore[arg-type]
        np.concatenate([certificate.objective.numpy() for certificate in certificates]),
        np.concatenate([certificate.gap.numpy() for certificate in certificates]),
        max(int(solution.steps.max()) for solution in solutions),
        not failed,
    )


def _remedy(solution: Solution, index: int) -> str:
    """Return what happened to a sample and what to do, in the words of the estimators' settings."""
    status = solution.status[index]
    gap = float(solution.certificate.relative_gap.flatten()[index])
    reached = f"relative gap {gap:.2g}, {solution.tol:.2g} was asked for"
    if status == Status.MAX_STEPS:
        return f"ran out of steps at {reached}: raise max_steps or loosen tol"
    if status == Status.STALLED:
        finer = " pass X as float64 or" if solution.signal.dtype == torch.float32 else ""
        return f"stalled at {reached}:{finer} loosen tol"
    return solution.message(index)


def _warn(words: str, kind: type[Warning]) -> None:
    warnings.warn(words, kind, stacklevel=6)
