"""A model that meets the hypotheses: proved before the fact, compiled into a CNN, its error compared with the bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..dictionaries import Cascade, ConvDictionary, place_sparsity, sample, stripe_sparsity
from ..guarantees import Guarantee, equivalence, uniqueness
from ..networks import CompiledCNN, codes_by_depth, to_cnn
from ..progress import Stages
from .photograph import guarantee_summary
from .settings import DemoSettings

# The class of signals: non-zeros per stripe and layer, non-zeros of x_1 under an atom of layer 2, largest entry.
_STRIPES = (12, 2)
_PLACE = 8
_AMPLITUDE = 1.0


@dataclass(frozen=True, eq=False)
class DesignedResult:
    """What came of the designed model.

    Attributes:
        model: The cascade.
        stripes: ``‖x_j‖_{0,∞}`` that the class of signals allows.
        uniqueness: G1.
        equivalence: G2.
        net: The compiled network.
        drawn: Signals drawn.
        signals: Those of them that meet the hypotheses of the plan, ``(n, 1, H, W)``.
        depths: Linear layers into the network, one per step.
        layers: The sparse coding layer of each step.
        bounds: The proved bound after each step.
        errors: The true error of every signal after each step, ``(n, steps)``.
        supports_kept: Whether no step of any signal had a non-zero off the true support.
    """

    model: Cascade
    stripes: tuple[int, ...]
    uniqueness: Guarantee
    equivalence: Guarantee
    net: CompiledCNN
    drawn: int
    signals: Tensor
    depths: tuple[int, ...]
    layers: tuple[int, ...]
    bounds: tuple[float, ...]
    errors: Tensor
    supports_kept: bool

    def summary(self) -> dict[str, Any]:
        """Return the numbers that JSON can hold."""
        plan = self.net.plan
        return {
            "stripe_sparsity": list(self.stripes),
            "coherence": [layer.mutual_coherence() for layer in self.model.layers],
            "uniqueness": guarantee_summary(self.uniqueness),
            "equivalence": guarantee_summary(self.equivalence),
            "hypotheses": list(plan.hypotheses),
            "drawn": self.drawn,
            "signals": len(self.signals),
            "signal_size": list(self.signals.shape[-2:]),
            "linear_layers": plan.depth,
            "width": plan.width,
            "parameters": plan.parameters,
            "multiply_adds": plan.multiply_adds(tuple(self.signals.shape[-2:])),
            "steps": list(plan.steps),
            "rates": [layer.rate for layer in plan.layers],
            "depths": list(self.depths),
            "layers": list(self.layers),
            "bounds": list(self.bounds),
            "errors": self.errors.amax(0).tolist(),
            "error_bound": self.net.error_bound,
            "supports_kept": self.supports_kept,
        }


def run_designed(settings: DemoSettings, seed: int, stages: Stages) -> DesignedResult:
    """Prove, compile and measure a cascade of low coherence."""
    kind = {"seed": seed, "dtype": torch.float64}
    with stages.stage("Designing a model of low coherence") as advance:
        first = ConvDictionary.low_coherence(atoms=16, channels=1, size=12, stride=6, **kind)
        advance(0.5)
        second = ConvDictionary.low_coherence(atoms=24, channels=16, size=3, stride=3, nonzeros=4, **kind)
        model = Cascade([first, second])
        advance(0.7)
        unique = uniqueness(model, _STRIPES)
        same = equivalence(model, _STRIPES)
    with stages.stage("Compiling it into a CNN, measuring") as advance:
        net = to_cnn(
            model,
            sparsity=_STRIPES,
            place_sparsity=_PLACE,
            amplitude=_AMPLITUDE,
            target_error=settings.target_error,
        )
        advance(0.2)
        drawn = sample(model, sparsity=(10_000, 14), size=(8, 8), batch=settings.signals, seed=seed)
        meets = stripe_sparsity(first, drawn.codes[0]) <= _STRIPES[0]
        meets &= stripe_sparsity(second, drawn.codes[1]) <= _STRIPES[1]
        meets &= place_sparsity(second, drawn.codes[0]) <= _PLACE
        for x in drawn.codes:
            meets &= x.abs().flatten(1).amax(1) <= _AMPLITUDE
        signals, codes = drawn.signal[meets], tuple(x[meets] for x in drawn.codes)
        errors, kept = [], True
        for estimate in codes_by_depth(net, signals):
            truth = codes[estimate.layer - 1]
            errors.append((estimate.codes - truth).abs().flatten(1).amax(1))
            kept = kept and not bool(estimate.codes[truth == 0].any())
    marks = net.plan.bound_by_depth
    return DesignedResult(
        model=model,
        stripes=_STRIPES,
        uniqueness=unique,
        equivalence=same,
        net=net,
        drawn=settings.signals,
        signals=signals,
        depths=tuple(mark.depth for mark in marks),
        layers=tuple(mark.layer for mark in marks),
        bounds=tuple(mark.bound for mark in marks),
        errors=torch.stack(errors, 1),
        supports_kept=kept,
    )
