"""Pictures of the theory, each an experiment."""

from .activations import ACTIVATION_CURVES
from .attention import ATTENTION
from .depth import DEPTH
from .recovery_map import MAP
from .transformer import TRANSFORMER
from .unfolding import UNFOLDING

THEORY = (DEPTH, ACTIVATION_CURVES, TRANSFORMER, ATTENTION, MAP, UNFOLDING)
