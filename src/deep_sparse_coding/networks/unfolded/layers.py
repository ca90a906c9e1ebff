"""Unfolded networks for cascades: the joint problem's proximal gradient (N4) and the nested thresholds of ML-ISTA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...checks import per_layer
from ...dictionaries import Dictionary
from ...errors import UnsupportedError
from ...guarantees import Guarantee
from ...problems import Codes, JointLasso, MultiLayerLasso
from ...problems.base import flat_sum, form_objective, squared_norm
from ...problems.cascaded import layer_shapes
from ...problems.multilayer import cascade_codes
from ...problems.operators import ChainOperator
from .base import Unfolded, copy_of, per_channel, shrink, weights_by_atom
from .cascade_bound import CascadeBound, LayerStep


class UnfoldedJoint(Unfolded):
    """All layers in step: ``x_j ← S_θ(x_j + W_jᵀ(x_{j-1} - D_j x_j) - c_j(x_j - D_{j+1} x_{j+1}))``, from zero.

    Attributes:
        dictionaries: ``D_1, ..., D_J``, not trained.
        analysis: W, per step and layer, from ``t_j β_j D_j``.
        coupling: c, ``(steps, layers)``, from ``t_j β_{j+1}``; 0 for the deepest layer.
        threshold: θ, one tensor ``(steps, atoms)`` per layer, from ``t_j lam_j``.

    Source: N4 of docs/theory.md, with weights that are learned as in Sulam, Aberdam, Beck & Elad 2019.
    """

    def __init__(self, problem: JointLasso, steps: int, method: str, learn: tuple[str, ...]) -> None:
        super().__init__(problem, steps, method, learn)
        if problem.mask is not None:
            raise UnsupportedError("the problem has a mask; unfold takes a JointLasso without: leave it out")
        layers = problem.model.layers
        depth = len(layers)
        beta = cast(tuple[float, ...], per_layer("beta", problem.beta, depth))
        lam = per_layer("lam", problem.lam, depth)
        multipliers = cast(tuple[Tensor | None, ...], per_layer("weights", problem.weights, depth))
        times = [1 / bound for bound in ChainOperator(layers, beta).lipschitz()]
        self.nonnegative = problem.nonnegative
        self.dictionaries = nn.ModuleList([copy_of(layer, layer.weight, False) for layer in layers])
        starts = [
            (t * b * layer.weight.detach().double()).to(layer.dtype)
            for t, b, layer in zip(times, beta, layers, strict=True)
        ]
        self.analysis = nn.ModuleList(
            [
                nn.ModuleList([copy_of(d, w, "analysis" in learn) for d, w in zip(layers, starts, strict=True)])
                for _ in range(steps)
            ]
        )
        coupling = [t * b for t, b in zip(times, (*beta[1:], 0.0), strict=True)]
        like = layers[0].weight
        self.coupling = nn.Parameter(like.new_tensor(coupling).repeat(steps, 1), requires_grad="step" in learn)
        self.threshold = nn.ParameterList(
            [
                nn.Parameter(
                    (times[j] * weights_by_atom(f"lam[{j}]", lam[j], multipliers[j], layer)).repeat(steps, 1),
                    requires_grad="threshold" in learn,
                )
                for j, layer in enumerate(layers)
            ]
        )

    def thresholds(self) -> list[nn.Parameter]:
        """Return θ of every layer and the couplings."""
        return [*self.threshold, self.coupling]

    def trace(self, signal: Tensor) -> list[Codes]:
        """Return the codes of all layers after every step."""
        layers = _dictionaries(self.dictionaries)
        batch = signal.shape[: signal.ndim - layers[0].event_axes]
        shapes = layer_shapes(cast(JointLasso, self.problem).model, signal)
        codes = tuple(signal.new_zeros(*batch, *shape) for shape in shapes)
        found: list[Codes] = []
        for k in range(self.steps):
            analyses = _dictionaries(cast(nn.ModuleList, self.analysis[k]))
            below = (signal, *codes[:-1])
            residuals = [z - d.synthesize(x) for z, d, x in zip(below, layers, codes, strict=True)]
            moved = []
            for j, (x, analysis) in enumerate(zip(codes, analyses, strict=True)):
                point = x + analysis.analyze(residuals[j])
                if j + 1 < len(codes):
                    point = point - F.relu(self.coupling[k, j]) * residuals[j + 1]
                theta = per_channel(self.threshold[j][k], analysis.event_axes)
                moved.append(shrink(point, theta, self.nonnegative))
            codes = tuple(moved)
            found.append(codes)
        return found

    def error_bound(
        self, sparsity: int | Sequence[int], *, amplitude: float | Sequence[float] = 1.0, noise: float = 0.0
    ) -> Guarantee:
        """Bound the distance of the codes to true ones of a dense cascade, from the weights as they are now.

        Args:
            sparsity: The most non-zeros of ``x*_j``, for all layers or one per layer.
            amplitude: Bound of ``‖x*_j‖_∞``, for all layers or one per layer.
            noise: Bound of ``‖y - D_1 x*_1‖_2``.

        Raises:
            ParameterError: A number out of range, or atoms that are not of unit norm.
            UnsupportedError: Convolutional layers.

        Source: N11 (cascades) of docs/theory.md.
        """
        layers = _dictionaries(self.dictionaries)
        bound = CascadeBound.of(
            layers, sparsity=sparsity, amplitude=amplitude, noise=noise, nonnegative=self.nonnegative
        )
        found, _ = bound.joint(self._learned())
        return bound.guarantee(found, self.method, layers)

    def keep_supports(
        self, sparsity: int | Sequence[int], *, amplitude: float | Sequence[float] = 1.0, noise: float = 0.0
    ) -> None:
        """Raise thresholds to the leak where they are below it; see `Unfolded.keep_supports`."""
        layers = _dictionaries(self.dictionaries)
        limits = {"sparsity": sparsity, "amplitude": amplitude, "noise": noise}
        bound = CascadeBound.of(layers, **limits, nonnegative=self.nonnegative, hold=True)
        _, taken = bound.joint(self._learned())
        with torch.no_grad():
            for j, parameter in enumerate(self.threshold):
                parameter.copy_(torch.stack([thetas[j] for thetas in taken]))

    def _learned(self) -> list[list[LayerStep]]:
        """Return what N11 needs to know of the steps."""
        return [
            [
                LayerStep.of(d, theta[k], self.coupling[k, j])
                for j, (d, theta) in enumerate(
                    zip(_dictionaries(cast(nn.ModuleList, parts)), self.threshold, strict=True)
                )
            ]
            for k, parts in enumerate(self.analysis)
        ]

    def objective(self, codes: Codes, signal: Tensor) -> Tensor:
        """Return the joint objective per sample."""
        form = cast(JointLasso, self.problem).form(signal)
        blocks = tuple(x.reshape(form.batch, *shape) for x, shape in zip(codes, form.code_shapes, strict=True))
        return form_objective(form, blocks, form.residual(blocks))


class UnfoldedCascade(Unfolded):
    """Passes ``γ_j = S_θ(x_j + W_jᵀ(γ_{j-1} - x_{j-1}))`` from the signal up, ``γ_0 = y``, then ``x_J ← γ_J``.

    ``x_{j-1} = D_j x_j`` are what the deepest codes make. With one layer it is the coupled form of LISTA.

    Attributes:
        dictionaries: ``D_1, ..., D_J``, not trained.
        analysis: W, per step and layer, from ``D_j/‖D_j‖²``.
        threshold: θ, one tensor ``(steps, atoms)`` per layer.

    Source: ML-LISTA, Sulam, Aberdam, Beck & Elad 2019.
    """

    def __init__(self, problem: MultiLayerLasso, steps: int, method: str, learn: tuple[str, ...]) -> None:
        super().__init__(problem, steps, method, learn)
        layers = problem.model.layers
        lam = per_layer("lam", problem.lam, len(layers))
        times = [1 / float(layer.operator_norm()) ** 2 for layer in layers]
        self.dictionaries = nn.ModuleList([copy_of(layer, layer.weight, False) for layer in layers])
        starts = [(t * d.weight.detach().double()).to(d.dtype) for t, d in zip(times, layers, strict=True)]
        self.analysis = nn.ModuleList(
            [
                nn.ModuleList([copy_of(d, w, "analysis" in learn) for d, w in zip(layers, starts, strict=True)])
                for _ in range(steps)
            ]
        )
        self.threshold = nn.ParameterList(
            [
                nn.Parameter(
                    (math.prod(times[: j + 1]) * weights_by_atom(f"lam[{j}]", lam[j], None, layer)).repeat(steps, 1),
                    requires_grad="threshold" in learn,
                )
                for j, layer in enumerate(layers)
            ]
        )

    def thresholds(self) -> list[nn.Parameter]:
        """Return θ of every layer."""
        return list(self.threshold)

    def trace(self, signal: Tensor) -> list[Codes]:
        """Return the deepest codes after every pass."""
        layers = _dictionaries(self.dictionaries)
        batch = signal.shape[: signal.ndim - layers[0].event_axes]
        shapes = layer_shapes(cast(MultiLayerLasso, self.problem).model, signal)
        deepest = signal.new_zeros(*batch, *shapes[-1])
        found: list[Codes] = []
        for k in range(self.steps):
            analyses = _dictionaries(cast(nn.ModuleList, self.analysis[k]))
            made = cascade_codes(layers, deepest)
            here = (layers[0].synthesize(made[0]), *made[:-1])
            passed = signal
            for j, (x, analysis) in enumerate(zip(made, analyses, strict=True)):
                point = x + analysis.analyze(passed - here[j])
                passed = shrink(point, per_channel(self.threshold[j][k], analysis.event_axes), False)
            deepest = passed
            found.append(deepest)
        return found

    def error_bound(
        self, sparsity: int | Sequence[int], *, amplitude: float | Sequence[float] = 1.0, noise: float = 0.0
    ) -> Guarantee:
        """Bound the distance of the codes to true ones of a dense cascade, ``x*_{j-1} = D_j x*_j`` for ``j > 1``.

        Args:
            sparsity: The most non-zeros of ``x*_j``, for all layers or one per layer.
            amplitude: Bound of ``‖x*_j‖_∞``, for all layers or one per layer.
            noise: Bound of ``‖y - D_1 x*_1‖_2``.

        Raises:
            ParameterError: A number out of range, or atoms that are not of unit norm.
            UnsupportedError: Convolutional layers.

        Source: N11 (cascades) of docs/theory.md.
        """
        layers = _dictionaries(self.dictionaries)
        bound = CascadeBound.of(layers, sparsity=sparsity, amplitude=amplitude, noise=noise, nonnegative=False)
        found, _ = bound.nested(self._learned())
        return bound.guarantee(found, self.method, layers)

    def keep_supports(
        self, sparsity: int | Sequence[int], *, amplitude: float | Sequence[float] = 1.0, noise: float = 0.0
    ) -> None:
        """Raise thresholds to the leak where they are below it; see `Unfolded.keep_supports`."""
        layers = _dictionaries(self.dictionaries)
        limits = {"sparsity": sparsity, "amplitude": amplitude, "noise": noise}
        bound = CascadeBound.of(layers, **limits, nonnegative=False, hold=True)
        _, taken = bound.nested(self._learned())
        with torch.no_grad():
            for j, parameter in enumerate(self.threshold):
                parameter.copy_(torch.stack([thetas[j] for thetas in taken]))

    def _learned(self) -> list[list[LayerStep]]:
        """Return what N11 needs to know of the steps."""
        return [
            [
                LayerStep.of(d, theta[k])
                for d, theta in zip(_dictionaries(cast(nn.ModuleList, parts)), self.threshold, strict=True)
            ]
            for k, parts in enumerate(self.analysis)
        ]

    def objective(self, codes: Codes, signal: Tensor) -> Tensor:
        """Return the multi-layer objective per sample."""
        problem = cast(MultiLayerLasso, self.problem)
        flat = problem.flat_signal(signal)
        deepest = cast(Tensor, codes).reshape(len(flat), *layer_shapes(problem.model, signal)[-1])
        layers = _dictionaries(self.dictionaries)
        made = cascade_codes(layers, deepest)
        penalties = tuple(w * x.abs() for w, x in zip(problem.layer_weights(signal), made, strict=True))
        return 0.5 * squared_norm((flat - layers[0].synthesize(made[0]),)) + flat_sum(penalties)


def _dictionaries(modules: nn.ModuleList) -> tuple[Dictionary, ...]:
    return tuple(cast(Dictionary, module) for module in modules)
