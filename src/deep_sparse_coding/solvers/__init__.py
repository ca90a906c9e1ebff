"""How problems are solved: one loop, solvers that describe a step, solutions that carry their evidence."""

from .base import Solver as Solver
from .base import State as State
from .base import soft_threshold as soft_threshold
from .coordinate import CoordinateDescent as CoordinateDescent
from .proximal import FISTA as FISTA
from .solution import History as History
from .solution import Solution as Solution
from .solution import Status as Status
from .solve import Progress as Progress
from .solve import solve as solve
