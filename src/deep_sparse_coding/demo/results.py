"""Everything that the report of the main job is about."""

from __future__ import annotations

from dataclasses import dataclass

from ..dictionaries import Cascade, ConvDictionary
from .designed import DesignedResult
from .digits import DigitsResult
from .photograph import PhotographResult
from .settings import DemoSettings


@dataclass(frozen=True, eq=False)
class Results:
    """Everything that the report is about.

    Attributes:
        settings: The preset.
        seed: The seed.
        photograph: The photograph and its codes.
        designed: The model that meets the hypotheses.
        digits: The networks that were trained.
        seconds: Seconds per part.
        versions: Versions by package.
    """

    settings: DemoSettings
    seed: int
    photograph: PhotographResult
    designed: DesignedResult
    digits: DigitsResult
    seconds: dict[str, float]
    versions: dict[str, str]


def reach(model: Cascade, layer: int) -> tuple[int, int]:
    """Return stride and size of the atoms of a layer in pixels of the signal."""
    stride, size = 1, 1
    for part in model.layers[:layer]:
        if isinstance(part, ConvDictionary):
            size += (part.kernel_size[0] - 1) * stride
            stride *= part.stride[0]
    return stride, size
