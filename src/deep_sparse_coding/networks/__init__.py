"""Networks that compute sparse codes: compiled CNNs and transformers, unfolded and safeguarded ones, ONNX export."""

from ..guarantees.convergence import convergence_plan as convergence_plan
from ..guarantees.schedule import LayerConvergence as LayerConvergence
from .cnn import CompiledCNN as CompiledCNN
from .cnn import Estimate as Estimate
from .cnn import codes_by_depth as codes_by_depth
from .cnn import to_cnn as to_cnn
from .export import export_onnx as export_onnx
from .plan import Plan as Plan
from .plan import PlanLayer as PlanLayer
from .plan import StepBound as StepBound
from .safeguard import Safeguarded as Safeguarded
from .safeguard import SafeguardReport as SafeguardReport
from .training import TrainingHistory as TrainingHistory
from .training import TrainingProgress as TrainingProgress
from .transformer import CompiledTransformer as CompiledTransformer
from .transformer import to_transformer as to_transformer
from .transformer_plan import TransformerPlan as TransformerPlan
from .unfolded import Unfolded as Unfolded
from .unfolding import unfold as unfold
