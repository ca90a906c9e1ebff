"""Networks that compute sparse codes: plans with error bounds, and their compilation into plain CNNs."""

from ..guarantees.convergence import convergence_plan as convergence_plan
from ..guarantees.schedule import LayerConvergence as LayerConvergence
from .cnn import CompiledCNN as CompiledCNN
from .cnn import Estimate as Estimate
from .cnn import codes_by_depth as codes_by_depth
from .cnn import to_cnn as to_cnn
from .plan import Plan as Plan
from .plan import PlanLayer as PlanLayer
from .plan import StepBound as StepBound
