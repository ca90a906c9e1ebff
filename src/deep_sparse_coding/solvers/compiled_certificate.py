"""The certificate of codes whose objective and gap a compiled kernel has computed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from deep_sparse_coding.problems import Blocks, Certificate, StandardForm, assess_form
from deep_sparse_coding.problems.certificate import certify_gap
from deep_sparse_coding.problems.sums import used_rows

from .base import select_blocks


def with_violations(form: StandardForm, codes: Blocks, found: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
    """Return objective and gap per sample, inf where codes are negative or forbidden that may not be.

    Args:
        form: The problem.
        codes: One block per layer.
        found: Objective and gap as arrays, computed as if all codes were allowed.
    """
    violated = torch.zeros(form.batch, dtype=torch.bool)
    for block, weights in zip(codes, form.weights, strict=True):
        if form.nonnegative:
            violated |= (block < 0).flatten(1).any(1)
        if bool(torch.isinf(weights).any()):
            violated |= ((block != 0) & torch.isinf(weights)).flatten(1).any(1)
    objective, gap = (torch.from_numpy(value).masked_fill(violated, math.inf) for value in found)
    return objective, gap


def certify_compiled(form: StandardForm, codes: Blocks, objective: Tensor, gap: Tensor, tol: float) -> Certificate:
    """Return what `assess_form` returns, given objective and gap at the scaled residual.

    Samples whose relative gap is above `tol`, and whose codes are not zero, are left to `assess_form`, which has better
    dual points.

    Args:
        form: The problem, in float64.
        codes: One block per layer.
        objective: Per sample, float64.
        gap: Per sample, float64.
        tol: The relative gap that is small enough.
    """
    certificate = certify_gap(form.data, objective, gap)
    rows = (~(certificate.relative_gap <= tol)).nonzero().flatten()
    if len(rows):
        rows = rows[torch.stack([used_rows(block[rows]) for block in codes]).any(0)]
    if not len(rows):
        return certificate
    second = assess_form(form.select(rows), select_blocks(codes, rows), tol)
    return certify_gap(form.data, objective, gap.index_copy(0, rows, second.gap))
