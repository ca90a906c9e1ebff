"""How a solve is cut: all at once, groups of samples, or tiles of each; what memory allows decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.problems import StandardForm
from deep_sparse_coding.problems.strips import convolution_of

from .base import Solver
from .batches import Runner, run_group
from .loop import Settings
from .memory import in_words, memory_need, say_memory
from .tiles import plan_tiles, run_tiles


@dataclass(frozen=True)
class WorkPlan:
    """How the samples of a form are worked on.

    Attributes:
        name: What the solution calls the solver.
        size: How many samples are worked on at once.
        run: What works on a group of them.
    """

    name: str
    size: int
    run: Runner


def plan_work(form: StandardForm, settings: Settings, choose: Callable[[StandardForm], Solver[Any]]) -> WorkPlan:
    """Return the plan for a form; say what it needs where that is much.

    Args:
        form: The problem of all samples.
        settings: `max_memory` is the limit.
        choose: What names the solver of a form, and raises where it does not take it.

    Raises:
        ParameterError: The limit is too low.
    """
    solver = choose(form)
    need, limit = memory_need(form, solver), settings.max_memory
    say_memory(need, limit)
    size = form.batch if limit is None or need.total <= limit else need.group_size(limit)
    if size or not form.batch or limit is None:
        return WorkPlan(solver.name, size, partial(run_group, solver=solver))
    if convolution_of(form) is None:
        least = need.shared + need.samples * need.answer + need.work
        raise ParameterError(
            f"max_memory is {in_words(limit)}; expected at least {in_words(least)}, what the codes and the work on one "
            "sample take (only a plain Lasso on one convolutional dictionary is cut into tiles): raise it, or pass "
            "fewer samples"
        )
    run = partial(run_tiles, choose=choose, plan=plan_tiles(form, choose, limit))
    return WorkPlan(f"{solver.name} on tiles", form.batch, run)
