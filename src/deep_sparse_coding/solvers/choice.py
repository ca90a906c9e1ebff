"""Which solver takes a problem when the user names none."""

from __future__ import annotations

import math
from typing import Any

from deep_sparse_coding.problems import StandardForm

from .base import Solver
from .convolutional import ConvCoordinateDescent
from .coordinate import CoordinateDescent
from .proximal import FISTA


def choose_solver(form: StandardForm) -> Solver[Any]:
    """Return the fastest solver that takes the form.

    On a CPU coordinate descent, for dense atoms and for convolutions whose codes outnumber the data: the others are so
    well conditioned that FISTA needs only tens of steps. All else is FISTA's.
    """
    coordinate = CoordinateDescent()
    if coordinate.refuse(form) is None:
        return coordinate
    convolutional = ConvCoordinateDescent()
    codes, data = math.prod(form.code_shapes[0]), math.prod(form.data[0].shape[1:])
    if convolutional.refuse(form) is None and codes > data:
        return convolutional
    return FISTA()
