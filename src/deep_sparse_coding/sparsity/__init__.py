"""Sparsity in any network: record activations, penalize them while training, and measure them.

Stands alone on torch: nothing here knows of dictionaries or solvers.
"""

from .measures import dead_channels as dead_channels
from .measures import hoyer as hoyer
from .measures import l1_per_entry as l1_per_entry
from .measures import zero_fraction as zero_fraction
from .penalty import ActivationPenalty as ActivationPenalty
from .probe import Probe as Probe
from .report import LayerSparsity as LayerSparsity
from .report import SparsityReport as SparsityReport
from .selection import Target as Target
from .selection import select as select
