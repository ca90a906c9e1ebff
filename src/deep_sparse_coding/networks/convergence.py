"""The recursion of a layer as the compiled network computes it: see `guarantees.recursion` for the arithmetic."""

from __future__ import annotations

from torch import Tensor

from ..dictionaries import Dictionary
from ..guarantees import recursion
from ..guarantees.hypotheses import LayerHypotheses
from .layout import LayerLayout


def layer_recursion(
    dictionary: Dictionary, hypotheses: LayerHypotheses, analysis: Tensor | None = None
) -> recursion.LayerRecursion:
    """Return the recursion of a layer whose steps take the form that its layout has chosen (for their rounding).

    Args:
        dictionary: D, atoms of unit norm.
        hypotheses: What is assumed of the layer's codes.
        analysis: W, shaped like the dictionary's weight; None for W = D.
    """
    through = LayerLayout.of(dictionary, signed=not hypotheses.nonnegative).through_signal
    return recursion.layer_recursion(dictionary, hypotheses, analysis=analysis, through_signal=through)
