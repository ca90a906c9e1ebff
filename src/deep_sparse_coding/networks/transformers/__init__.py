"""Sparse coding compiled into standard transformer blocks: plan, positions, attention."""

from .build import CompiledTransformer as CompiledTransformer
from .build import to_transformer as to_transformer
from .plan import TransformerLayer as TransformerLayer
from .plan import TransformerPlan as TransformerPlan
