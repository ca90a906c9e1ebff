"""Which solver takes a problem when the user names none."""

from __future__ import annotations

from typing import Any

from deep_sparse_coding.problems import StandardForm

from .base import Solver
from .coordinate import CoordinateDescent
from .proximal import FISTA


def choose_solver(form: StandardForm) -> Solver[Any]:
    """Return the fastest solver that takes the form: coordinate descent for dense atoms on a CPU, else FISTA."""
    coordinate = CoordinateDescent()
    return coordinate if coordinate.refuse(form) is None else FISTA()
