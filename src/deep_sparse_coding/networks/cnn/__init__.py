"""Sparse coding compiled into plain CNNs: plan, weights, activations."""

from ..plan import Estimate as Estimate
from ..plan import StepBound as StepBound
from .build import CompiledCNN as CompiledCNN
from .build import codes_by_depth as codes_by_depth
from .build import to_cnn as to_cnn
from .plan import Plan as Plan
from .plan import PlanLayer as PlanLayer
