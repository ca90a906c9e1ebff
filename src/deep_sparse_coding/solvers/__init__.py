"""How problems are solved: one loop, solvers that describe a step, solutions that carry their evidence."""

from .base import Solver as Solver
from .base import State as State
from .base import soft_threshold as soft_threshold
from .convolutional import ConvCoordinateDescent as ConvCoordinateDescent
from .coordinate import CoordinateDescent as CoordinateDescent
from .greedy import IHT as IHT
from .greedy import OMP as OMP
from .greedy import CoSaMP as CoSaMP
from .greedy import Exhaustive as Exhaustive
from .greedy import Pursuit as Pursuit
from .greedy import SubspacePursuit as SubspacePursuit
from .homotopy import Homotopy as Homotopy
from .lam_search import ChosenLam as ChosenLam
from .lam_search import choose_lam as choose_lam
from .loop import Progress as Progress
from .path import Path as Path
from .path import solve_path as solve_path
from .proximal import FISTA as FISTA
from .proximal import ISTA as ISTA
from .solution import History as History
from .solution import Solution as Solution
from .solution import Status as Status
from .solve import solve as solve
