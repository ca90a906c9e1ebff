"""Groups of samples that are worked on one after the other, and their outcomes put together again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deep_sparse_coding.problems import Blocks, Certificate, StandardForm, assess_form

from .base import Solver, select_blocks
from .loop import Run, Settings
from .solution import History, Status


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the loop leaves, for a flat batch: what a `Solution` is made of.

    Attributes:
        codes: One block per layer; NaN for samples that were not finite.
        status: One number of `Status` per sample.
        steps: Steps per sample.
        history: What the checks saw.
        stopped: Whether a callback ended the work.
        certificate: The assessor's words on these very codes.
    """

    codes: Blocks
    status: Tensor
    steps: Tensor
    history: History
    stopped: bool
    certificate: Certificate


Runner = Callable[[StandardForm, StandardForm, Blocks, Settings], Outcome]


def run_group(
    form: StandardForm, exact: StandardForm, start: Blocks, settings: Settings, solver: Solver[Any]
) -> Outcome:
    """Return the outcome of one pass of the loop over all samples of a form."""
    run = Run(form, exact, solver, settings)
    run.iterate(start)
    return Outcome(run.codes, run.status, run.steps_taken, run.history(), run.stopped, run.certificate())


def run_groups(
    form: StandardForm,
    exact: StandardForm,
    start: Blocks,
    settings: Settings,
    groups: Sequence[Tensor],
    runner: Runner,
) -> Outcome:
    """Return the outcome for a whole batch of which each group is worked on by itself.

    Args:
        form: The problem of all samples, in the precision to work in.
        exact: The same in float64.
        start: Codes to start from.
        settings: As the loop takes them.
        groups: Indices of the samples of each group; samples in none of them were not finite and get NaN.
        runner: What works on one group.
    """
    batch = form.batch
    if len(groups) == 1 and len(groups[0]) == batch:
        return runner(form, exact, start, settings)
    codes = tuple(torch.full_like(block, math.nan) for block in form.zeros())
    status = torch.full((batch,), int(Status.NONFINITE_INPUT))
    steps = torch.zeros(batch, dtype=torch.int64)
    histories: list[tuple[Tensor, History]] = []
    certificates, places_of = [], []
    stopped = False
    for rows in groups:
        # After a stop the groups to come are left at their start: what was not worked on is not made up.
        here = replace(settings, max_steps=0) if stopped else settings
        part = runner(form.select(rows), exact.select(rows), select_blocks(start, rows), here)
        for whole, block in zip(codes, part.codes, strict=True):
            whole[rows] = block
        places = rows.cpu()
        status[places], steps[places] = part.status, part.steps
        histories.append((places, part.history))
        certificates.append(part.certificate)
        places_of.append(rows)
        stopped = stopped or part.stopped
    left = torch.ones(batch, dtype=torch.bool, device=codes[0].device)
    for rows in groups:
        left[rows] = False
    rest = left.nonzero().flatten()
    if len(rest):
        certificates.append(assess_form(exact.select(rest), select_blocks(codes, rest)))
        places_of.append(rest)
    order = torch.argsort(torch.cat(places_of)) if places_of else rest
    joined = join_certificates(certificates) if certificates else assess_form(exact, codes)
    certificate = Certificate(
        joined.objective[order], joined.dual[order], joined.gap[order], joined.relative_gap[order]
    )
    return Outcome(codes, status, steps, _join(histories, batch), stopped, certificate)


def _join(parts: list[tuple[Tensor, History]], batch: int) -> History:
    """Return one history: checks side by side, groups that ended earlier keep their last values."""
    length = max((len(history.steps) for _, history in parts), default=0)
    objective = torch.full((length, batch), math.nan, dtype=torch.float64)
    gap = objective.clone()
    longest: History | None = None
    for places, history in parts:
        count = len(history.steps)
        if count:
            rows = torch.arange(length).clamp_max(count - 1)
            objective[:, places], gap[:, places] = history.objective[rows], history.relative_gap[rows]
        if longest is None or count > len(longest.steps):
            longest = history
    return History(longest.steps if longest else (), longest.seconds if longest else (), objective, gap)


def join_certificates(parts: Sequence[Certificate]) -> Certificate:
    """Return the certificate of samples one after the other."""
    return Certificate(
        torch.cat([part.objective for part in parts]),
        torch.cat([part.dual for part in parts]),
        torch.cat([part.gap for part in parts]),
        torch.cat([part.relative_gap for part in parts]),
    )
