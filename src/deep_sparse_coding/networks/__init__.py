"""Networks that compute sparse codes: compiled CNNs and transformers, unfolded and safeguarded ones, ONNX export."""

from ..guarantees.convergence import convergence_plan as convergence_plan
from ..guarantees.schedule import LayerConvergence as LayerConvergence
from .cnn.build import CompiledCNN as CompiledCNN
from .cnn.build import codes_by_depth as codes_by_depth
from .cnn.build import to_cnn as to_cnn
from .cnn.plan import Plan as Plan
from .cnn.plan import PlanLayer as PlanLayer
from .export import export_onnx as export_onnx
from .plan import Estimate as Estimate
from .plan import StepBound as StepBound
from .safeguard import Safeguarded as Safeguarded
from .safeguard import SafeguardReport as SafeguardReport
from .transformers.build import CompiledTransformer as CompiledTransformer
from .transformers.build import to_transformer as to_transformer
from .transformers.plan import TransformerPlan as TransformerPlan
from .unfolded.base import Unfolded as Unfolded
from .unfolded.build import unfold as unfold
from .unfolded.training import TrainingHistory as TrainingHistory
from .unfolded.training import TrainingProgress as TrainingProgress
