"""A photograph: two layers of atoms learned from it, its codes with a certificate, and what is proved about them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..dictionaries import Cascade, stripe_sparsity
from ..errors import missing_extra
from ..guarantees import Guarantee, Posterior, equivalence, posterior, uniqueness
from ..learning import LearningProgress, LearningResult, contrast_normalize, learn
from ..problems import JointLasso
from ..progress import Stages
from ..solvers import Progress, Solution, solve
from .settings import DemoSettings

# Width of the Gaussian window of the local mean, in pixels.
_SIGMA = 6.0


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph in gray, and its split into local mean and detail: ``gray = mean + scale·detail``.

    Attributes:
        gray: ``(H, W)``, 0 black to 1 white, float64.
        mean: The mean under a Gaussian window.
        detail: The rest, of standard deviation 1.
        scale: One number, so that a squared error of the detail is one of the picture.
    """

    gray: Tensor
    mean: Tensor
    detail: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class PhotographResult:
    """What came of the photograph.

    Attributes:
        photograph: The whole picture.
        region: Its part that was solved, ``(side, side)``, 0 to 1.
        reconstruction: ``mean + scale·D_1 x_1`` there.
        coarse: ``mean + scale·D_1 D_2 x_2``: what the second layer alone explains.
        smooth: The local mean there, which needs no code.
        learning: The learned model and how it was learned.
        crops: How many crops it was learned from.
        learning_seconds: How long that took.
        model: The model in float64.
        solution: Codes of the region with their certificate.
        solving_seconds: How long that took.
        posterior: What is certain about them.
        posterior_seconds: How long that took.
        stripes: ``‖x_j‖_{0,∞}`` of the solution, per layer.
        uniqueness: G1 for codes as sparse as these, before the fact.
        equivalence: G2 for the same.
    """

    photograph: Photograph
    region: Tensor
    reconstruction: Tensor
    coarse: Tensor
    smooth: Tensor
    learning: LearningResult
    crops: int
    learning_seconds: float
    model: Cascade
    solution: Solution
    solving_seconds: float
    posterior: Posterior
    posterior_seconds: float
    stripes: tuple[int, ...]
    uniqueness: Guarantee
    equivalence: Guarantee

    @property
    def codes(self) -> tuple[Tensor, ...]:
        """The codes of both layers, ``(1, atoms, h, w)``."""
        return tuple(self.solution.codes)

    def psnr(self, picture: Tensor) -> float:
        """Return the peak signal-to-noise ratio of a picture against the region, in dB; white is 1."""
        return -10 * math.log10(max(float((picture - self.region).square().mean()), 1e-30))

    def summary(self) -> dict[str, Any]:
        """Return the numbers that JSON can hold."""
        certificate, proved = self.solution.certificate, self.posterior
        return {
            "pixels": self.region.numel(),
            "crops": self.crops,
            "learning_seconds": self.learning_seconds,
            "learning_objective": [list(values) for values in self.learning.history.objective],
            "psnr": self.psnr(self.reconstruction),
            "psnr_second_layer": self.psnr(self.coarse),
            "psnr_local_mean": self.psnr(self.smooth),
            "converged": bool(self.solution.converged.all()),
            "solver": self.solution.solver,
            "steps": int(self.solution.steps.max()),
            "solving_seconds": self.solving_seconds,
            "tol": self.solution.tol,
            "objective": float(certificate.objective.max()),
            "gap": float(certificate.gap.max()),
            "relative_gap": float(certificate.relative_gap.max()),
            "entries": [x.numel() for x in self.codes],
            "nonzeros": [int((x != 0).sum()) for x in self.codes],
            "stripe_sparsity": list(self.stripes),
            "coherence": [layer.mutual_coherence() for layer in self.model.layers],
            "uniqueness": guarantee_summary(self.uniqueness),
            "equivalence": guarantee_summary(self.equivalence),
            "posterior": {
                "certain_zeros": [int(x.sum()) for x in proved.zeros],
                "certain_support": [int(x.sum()) for x in proved.support],
                "unique": bool(proved.unique.all()),
                "distance": finite_or_none(float(proved.distance.max())),
                "codes_norm": math.sqrt(sum(float(x.square().sum()) for x in self.codes)),
                "exact": bool(proved.polished.exact.all()),
                "seconds": self.posterior_seconds,
            },
        }


def guarantee_summary(guarantee: Guarantee) -> dict[str, Any]:
    """Return a guarantee in numbers."""
    return {
        "proved": guarantee.proved,
        "statement": guarantee.statement,
        "conditions": [
            {"name": c.name, "value": finite_or_none(c.value), "bound": c.bound, "layer": c.layer, "holds": c.holds}
            for c in guarantee.conditions
        ],
    }


def finite_or_none(value: float) -> float | None:
    """Return a number that JSON can hold."""
    return value if math.isfinite(value) else None


def load_photograph() -> Photograph:
    """Return the photograph of a pavilion that ships with scikit-learn, in gray.

    Raises:
        MissingExtraError: scikit-learn or Pillow is not installed.
    """
    try:
        from sklearn.datasets import load_sample_image
    except ImportError:
        raise missing_extra("scikit-learn", "demo", "the photograph of dsc demo") from None
    from scipy.ndimage import gaussian_filter

    color = load_sample_image("china.jpg").astype(np.float64) / 255
    gray = color @ np.array([0.299, 0.587, 0.114])
    mean = gaussian_filter(gray, _SIGMA, mode="reflect")
    scale = float((gray - mean).std())
    return Photograph(torch.from_numpy(gray), torch.from_numpy(mean), torch.from_numpy((gray - mean) / scale), scale)


def run_photograph(settings: DemoSettings, seed: int, stages: Stages) -> PhotographResult:
    """Learn from the photograph around a region, solve the joint problem there, and prove what can be proved."""
    with stages.stage("Reading the photograph"):
        photograph = load_photograph()
        crops = _crops_around(photograph, settings)
    began = time.perf_counter()
    with stages.stage("Learning two layers of atoms") as advance:

        def report(seen: LearningProgress) -> None:
            advance((seen.layer - 1 + seen.epoch / seen.epochs) / seen.layers)

        learned = learn(
            crops,
            settings.atoms,
            size=settings.size,
            stride=settings.stride,
            lam=settings.learning_lam,
            epochs=settings.epochs,
            seed=seed,
            callback=report,
        )
    learning_seconds = time.perf_counter() - began
    model = learned.model
    if not isinstance(model, Cascade):
        raise TypeError("learning two layers gives a cascade")
    model = model.cast(torch.float64)

    row, column = settings.corner
    window = (slice(row, row + settings.side), slice(column, column + settings.side))
    signal = photograph.detail[window][None, None]
    problem = JointLasso(model, settings.lam, settings.beta)
    began = time.perf_counter()
    with stages.stage("Solving the joint problem") as advance:

        def watch(seen: Progress) -> None:
            # The gap falls about geometrically, so its logarithm tells how far the run is.
            advance(math.log10(max(seen.relative_gap, settings.tol)) / math.log10(settings.tol))

        solution = solve(problem, signal, tol=settings.tol, max_steps=settings.max_steps, callback=watch)
    solving_seconds = time.perf_counter() - began
    codes = tuple(solution.codes)

    stripes = tuple(int(stripe_sparsity(layer, x).max()) for layer, x in zip(model.layers, codes, strict=True))
    with stages.stage("Proving: before the fact") as advance:
        before = uniqueness(model, stripes)
        advance(0.5)
        same = equivalence(model, stripes)
    began = time.perf_counter()
    with stages.stage("Proving: after the fact"):
        after = posterior(solution)
    if not isinstance(after, Posterior):
        raise TypeError("a joint problem has one posterior")

    def picture(detail: Tensor) -> Tensor:
        return photograph.mean[window] + photograph.scale * detail[0, 0]

    return PhotographResult(
        photograph=photograph,
        region=photograph.gray[window],
        reconstruction=picture(model.layers[0].synthesize(codes[0])),
        coarse=picture(model.synthesize(codes[1])),
        smooth=photograph.mean[window],
        learning=learned,
        crops=len(crops),
        learning_seconds=learning_seconds,
        model=model,
        solution=solution,
        solving_seconds=solving_seconds,
        posterior=after,
        posterior_seconds=time.perf_counter() - began,
        stripes=stripes,
        uniqueness=before,
        equivalence=same,
    )


def _crops_around(photograph: Photograph, settings: DemoSettings) -> Tensor:
    """Return crops ``(n, 1, crop, crop)``, contrast normalized, none of which overlaps the region to be solved."""
    normalized = contrast_normalize(photograph.gray.float()[None], sigma=_SIGMA)[0]
    height, width = normalized.shape
    crop, (top, left) = settings.crop, settings.corner
    crops = []
    for row in range(0, height - crop + 1, settings.crop_step):
        for column in range(0, width - crop + 1, settings.crop_step):
            apart = row + crop <= top or row >= top + settings.side
            apart = apart or column + crop <= left or column >= left + settings.side
            if apart:
                crops.append(normalized[row : row + crop, column : column + crop])
    return torch.stack(crops)[:, None]
