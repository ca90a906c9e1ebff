"""All layers together: joint codes of the whole cascade and every dictionary in turn, after greedy learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import Cascade, Dictionary
from deep_sparse_coding.problems import JointLasso
from deep_sparse_coding.solvers.solve import solve_quietly

from .decohere import decohere
from .engine import Settings
from .statistics import SparseCodes, Statistics, gather
from .updates import from_rows, lag_table, objective, to_rows, update_atoms

# The gap of joint codes at which a sample is left, and passes over the atoms per epoch.
_TOL = 1e-3
_SWEEPS = 5
_DECOHERE = 500


def refine_jointly(
    layers: Sequence[Dictionary],
    signals: Sequence[tuple[Tensor, Tensor | None]],
    codes: Sequence[tuple[Tensor, ...]],
    settings: Sequence[Settings],
    beta: tuple[float, ...],
    epochs: int,
    max_steps: int,
    callback: Callable[[int, float], None] | None = None,
) -> tuple[list[Dictionary], list[float]]:
    """Lower ``Σ_j (β_j/2)‖x_{j-1} - D_j x_j‖² + lam_j‖x_j‖₁`` in the codes of all layers together and in the atoms.

    Codes of a sample that would be worse than before are not taken, and atoms move by `update_atoms`, so that the
    objective never rises; the terms of different dictionaries do not meet, and each is fitted to its own layer.

    Args:
        layers: The dictionaries to begin from.
        signals: Parts of the data, each with its mask or None.
        codes: For every part its codes to begin from, one tensor per layer.
        settings: Of every layer.
        beta: The weight of every layer's residual.
        epochs: How often codes and atoms take turns.
        max_steps: Of the solver, per epoch.
        callback: Called after every epoch with its number and the objective.

    Returns:
        The dictionaries, and the objective before and after every epoch.

    Source: alternation over the joint problem of section 1 of docs/theory.md.
    """
    current, kept = list(layers), [tuple(part) for part in codes]
    values = [_measure(current, signals, kept, settings, beta)]
    for epoch in range(epochs):
        problem_of = _problem(current, settings, beta)
        sums: list[Statistics | None] = [None] * len(current)
        for k, (signal, mask) in enumerate(signals):
            problem = problem_of(mask)
            begin = kept[k]
            found = solve_quietly(problem, signal, None, tol=_TOL, max_steps=max_steps, start=begin).codes
            assert isinstance(found, tuple), "a cascade has one tensor of codes per layer"
            worse = ~(problem.objective(found, signal) <= problem.objective(begin, signal))
            kept[k] = tuple(
                torch.where(worse.reshape(-1, *(1,) * (x.ndim - 1)), old, x)
                for old, x in zip(begin, found, strict=True)
            )
            below = signal if mask is None else torch.where(mask > 0, signal, current[0].synthesize(kept[k][0]))
            for j, x in enumerate(kept[k]):
                new = gather(current[j], below, SparseCodes.of(x), settings[j].lam)
                before = sums[j]
                sums[j] = new if before is None else before + new
                below = x
        current = [_fit(layer, total, one) for layer, total, one in zip(current, sums, settings, strict=True)]
        values.append(_measure(current, signals, kept, settings, beta))
        if callback is not None:
            callback(epoch + 1, values[-1])
    return current, values


def _fit(dictionary: Dictionary, total: Statistics | None, settings: Settings) -> Dictionary:
    assert total is not None, "there is at least one part"
    rules, table, rows = settings.rules, lag_table(dictionary), to_rows(dictionary)
    held = {"nonnegative": rules.nonnegative, "nonzeros": rules.nonzeros}
    fresh = update_atoms(rows, total, table, sweeps=_SWEEPS, **held)
    if rules.coherence < 1:
        fresh = decohere(dictionary, fresh, table, rules.coherence, steps=_DECOHERE, **held)
    elif objective(fresh, total, table) > objective(rows, total, table):
        return dictionary  # atoms at their best, moved by rounding
    return from_rows(dictionary, fresh)


def _problem(
    layers: Sequence[Dictionary], settings: Sequence[Settings], beta: tuple[float, ...]
) -> Callable[[Tensor | None], JointLasso]:
    lam, cascade = tuple(one.lam for one in settings), Cascade(list(layers))
    return lambda mask: JointLasso(cascade, lam, beta, nonnegative=settings[0].nonnegative, mask=mask)


def _measure(
    layers: Sequence[Dictionary],
    signals: Sequence[tuple[Tensor, Tensor | None]],
    codes: Sequence[tuple[Tensor, ...]],
    settings: Sequence[Settings],
    beta: tuple[float, ...],
) -> float:
    problem_of = _problem(layers, settings, beta)
    pairs = zip(signals, codes, strict=True)
    return sum(float(problem_of(mask).objective(x, signal).double().sum()) for (signal, mask), x in pairs)
