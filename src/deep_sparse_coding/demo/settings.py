"""How large the main job is: the full one, and a small one for tests."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from ..errors import ParameterError, near_misses


@dataclass(frozen=True)
class DemoSettings:
    """Everything that the main job can vary, apart from its seed.

    Attributes:
        name: The preset's name.
        atoms: Atoms per layer of the learned model.
        size: Kernel size per layer.
        stride: Stride per layer.
        learning_lam: ℓ1 weight per layer while learning.
        epochs: Passes over the crops per layer.
        crop: Side of the crops that are learned from, in pixels.
        crop_step: Pixels from one crop to the next.
        corner: Upper left corner of the region that is solved, (row, column).
        side: Its side in pixels.
        lam: ℓ1 weight per layer of the joint problem.
        beta: Weight per layer of its quadratic terms.
        tol: The relative gap to reach.
        max_steps: The most steps.
        target_error: Error bound that the compiled network is to reach.
        signals: Signals drawn from the designed model.
        seeds: Networks that are trained on the digits, with and without the penalty.
        digit_epochs: Passes over the digits.
        penalty: The weight of the activation penalty.
    """

    name: str
    atoms: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int]
    learning_lam: tuple[float, float]
    epochs: tuple[int, int]
    crop: int
    crop_step: int
    corner: tuple[int, int]
    side: int
    lam: tuple[float, float]
    beta: tuple[float, float]
    tol: float
    max_steps: int
    target_error: float
    signals: int
    seeds: int
    digit_epochs: int
    penalty: float


PRESETS = MappingProxyType(
    {
        "full": DemoSettings(
            name="full",
            atoms=(32, 48),
            size=(9, 5),
            stride=(2, 2),
            learning_lam=(1.8, 1.0),
            epochs=(14, 10),
            crop=65,
            crop_step=52,
            corner=(22, 138),
            side=129,
            lam=(0.7, 0.1),
            beta=(1.0, 0.1),
            tol=1e-6,
            max_steps=5000,
            target_error=1e-4,
            signals=24,
            seeds=5,
            digit_epochs=25,
            penalty=3e-4,
        ),
        "small": DemoSettings(
            name="small",
            atoms=(8, 8),
            size=(9, 5),
            stride=(2, 2),
            learning_lam=(1.2, 0.8),
            epochs=(2, 2),
            crop=65,
            crop_step=120,
            corner=(60, 170),
            side=33,
            lam=(0.7, 0.1),
            beta=(1.0, 0.1),
            tol=1e-5,
            max_steps=5000,
            target_error=1e-2,
            signals=6,
            seeds=2,
            digit_epochs=3,
            penalty=3e-4,
        ),
    }
)


def preset(name: str) -> DemoSettings:
    """Return the settings of a preset.

    Raises:
        ParameterError: There is none of that name.
    """
    if name not in PRESETS:
        raise ParameterError(
            f"preset is {name!r}; expected {' or '.join(map(repr, PRESETS))}{near_misses(name, PRESETS)}"
        )
    return PRESETS[name]
