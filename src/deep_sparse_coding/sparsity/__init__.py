"""Sparsity in any network: record activations, penalize them while training, and measure them.

Stands alone on torch: nothing here knows of dictionaries or solvers. The classes for torchmetrics are in
`deep_sparse_coding.sparsity.metrics`, which needs that package.
"""

from .callbacks import lightning_callback as lightning_callback
from .callbacks import penalized as penalized
from .inference.operations import LayerOperations as LayerOperations
from .inference.operations import OperationReport as OperationReport
from .inference.operations import multiply_adds as multiply_adds
from .inference.sparse import LayerChoice as LayerChoice
from .inference.sparse import SparseInference as SparseInference
from .inference.sparse import SparseLinear as SparseLinear
from .inference.sparse import sparse_inference as sparse_inference
from .measuring.measures import dead_channels as dead_channels
from .measuring.measures import hoyer as hoyer
from .measuring.measures import l1_per_entry as l1_per_entry
from .measuring.measures import zero_fraction as zero_fraction
from .measuring.probe import Probe as Probe
from .measuring.report import LayerSparsity as LayerSparsity
from .measuring.report import SparsityReport as SparsityReport
from .measuring.survey import measure_sparsity as measure_sparsity
from .penalties.forms import L1 as L1
from .penalties.forms import Form as Form
from .penalties.forms import GroupL1 as GroupL1
from .penalties.forms import HoyerRatio as HoyerRatio
from .penalties.forms import KLRate as KLRate
from .penalties.forms import ScaleInvariantL1 as ScaleInvariantL1
from .penalties.forms import TopK as TopK
from .penalties.forms import TransformedL1 as TransformedL1
from .penalties.penalty import ActivationPenalty as ActivationPenalty
from .penalties.projection import TopKActivation as TopKActivation
from .penalties.schedule import Constant as Constant
from .penalties.schedule import Cosine as Cosine
from .penalties.schedule import Decay as Decay
from .penalties.schedule import LateStart as LateStart
from .penalties.schedule import Piecewise as Piecewise
from .penalties.schedule import Schedule as Schedule
from .penalties.schedule import WarmUp as WarmUp
from .penalties.target import TargetSparsity as TargetSparsity
from .penalties.weights import BySize as BySize
from .watching.selection import Target as Target
from .watching.selection import functional as functional
from .watching.selection import inputs_of as inputs_of
from .watching.selection import select as select
