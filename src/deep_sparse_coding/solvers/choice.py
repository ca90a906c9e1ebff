"""Which solver takes a problem when the user names none."""

from __future__ import annotations

import math
from typing import Any

from deep_sparse_coding.problems import StandardForm

from .base import Solver
from .convolutional import ConvCoordinateDescent
from .coordinate import CoordinateDescent
from .joint import JointCoordinateDescent
from .proximal import FISTA
from .splitting import ADMM


def choose_solver(form: StandardForm) -> Solver[Any]:
    """Return the fastest solver that takes the form.

    On a CPU coordinate descent, for dense atoms, for joint problems, and for convolutions whose codes outnumber the
    data; and ADMM for other penalties or three axes. With fewer codes than data problems are so well conditioned that
    FISTA needs only tens of steps. All else is FISTA's.
    """
    coordinate = CoordinateDescent()
    if coordinate.refuse(form) is None:
        return coordinate
    joint = JointCoordinateDescent()
    if joint.refuse(form) is None:
        return joint
    codes, data = math.prod(form.code_shapes[0]), math.prod(form.data[0].shape[1:])
    if form.data[0].device.type == "cpu" and len(form.code_shapes) == 1 and codes > data:
        for solver in (ConvCoordinateDescent(), ADMM()):
            if solver.refuse(form) is None:
                return solver
    return FISTA()
