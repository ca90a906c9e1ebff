"""Unfolded networks for one layer: LISTA, its coupled form, and the one with analytic weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...dictionaries import ConvDictionary, Dictionary
from ...errors import UnsupportedError
from ...guarantees import Guarantee
from ...problems import Codes, Lasso
from ...problems.base import form_objective
from ..analysis import analytic_weights
from .base import Unfolded, copy_of, per_channel, shrink, weights_by_atom
from .bound import LearnedStep, learned_bound, safe_thresholds


class UnfoldedLasso(Unfolded):
    """Steps ``x ← S_θ(x + Wᵀ(y - D x))`` from zero, or ``x ← S_θ(W_e y + S x)``, with weights of their own.

    Attributes:
        analysis: A dictionary per step that holds W (or W_e); one for all steps for "alista".
        synthesis: Convolutional "lista": a dictionary per step that holds B. Otherwise D alone.
        inhibition: Dense "lista": S of the steps from the second on.
        threshold: θ, ``(steps, atoms)``.
        step: The step of "alista", ``(steps,)``; else None.

    Source: N11 of docs/theory.md; Gregor & LeCun 2010; Chen, Liu, Wang & Yin 2018; Liu, Chen, Wang & Yin 2019;
        Sreter & Giryes 2018.
    """

    def __init__(
        self,
        problem: Lasso,
        steps: int,
        method: str,
        learn: tuple[str, ...],
        selection: tuple[float, float] | None,
    ) -> None:
        super().__init__(problem, steps, method, learn)
        _require_plain(problem)
        dictionary = problem.dictionary
        weights = weights_by_atom("lam", problem.lam, problem.weights, dictionary)
        self.nonnegative = problem.nonnegative
        self.selection = selection
        norm = float(dictionary.operator_norm())
        exact = dictionary.weight.detach().double()
        trained = "analysis" in learn
        self.dictionary = copy_of(dictionary, dictionary.weight, False)
        self.inhibition: nn.ParameterList | None = None
        self.step: nn.Parameter | None = None
        self.synthesis = nn.ModuleList()
        if method == "alista":
            analytic = analytic_weights(dictionary)
            size = norm * float(dictionary.with_weight(analytic.to(dictionary.dtype)).operator_norm())
            scale = 1 / size
            self.analysis = nn.ModuleList([copy_of(dictionary, analytic.to(dictionary.dtype), False)])
            self.step = nn.Parameter(dictionary.weight.new_full((steps,), scale), requires_grad="step" in learn)
        else:
            scale = 1 / norm**2
            start = (scale * exact).to(dictionary.dtype)
            self.analysis = nn.ModuleList([copy_of(dictionary, start, trained) for _ in range(steps)])
            if method == "lista":
                if isinstance(dictionary, ConvDictionary):
                    kernels = dictionary.weight
                    self.synthesis.extend([copy_of(dictionary, kernels, trained) for _ in range(steps - 1)])
                else:
                    eye = torch.eye(dictionary.atoms, dtype=torch.float64, device=dictionary.device)
                    first = (eye - scale * exact.T @ exact).to(dictionary.dtype)
                    copies = [nn.Parameter(first.clone(), requires_grad=trained) for _ in range(steps - 1)]
                    self.inhibition = nn.ParameterList(copies)
        theta = (scale * weights).expand(steps, -1).clone()
        self.threshold = nn.Parameter(theta, requires_grad="threshold" in learn)

    def thresholds(self) -> list[nn.Parameter]:
        """Return θ, and the step of "alista"."""
        return [self.threshold] if self.step is None else [self.threshold, self.step]

    def trace(self, signal: Tensor) -> list[Codes]:
        """Return the codes after every step."""
        codes: Tensor | None = None
        found: list[Codes] = []
        for k in range(self.steps):
            codes = self._shrink(self._point(k, signal, codes), k)
            found.append(codes)
        return found

    def objective(self, codes: Codes, signal: Tensor) -> Tensor:
        """Return the problem's objective per sample."""
        form = cast(Lasso, self.problem).form(signal)
        block = cast(Tensor, codes).reshape(form.batch, *form.code_shapes[0])
        return form_objective(form, (block,), form.residual((block,)))

    def error_bound(
        self, sparsity: int | Sequence[int], *, amplitude: float | Sequence[float] = 1.0, noise: float = 0.0
    ) -> Guarantee:
        """Bound ``‖codes - x*‖_∞`` for all signals ``y = D x* + n``, from the weights as they are now.

        N0 step by step, atom by atom: the error e on the support and the leak η off it, with the learned weights and
        thresholds, and the rounding of the network's number type. Not proved where the error does not end below the
        amplitude, as for zero codes. Thresholds below the leak, which training on codes likes, let it grow from step
        to step: where a proof is wanted, train with ``fit(..., supports_up_to=sparsity)``.

        Args:
            sparsity: s, the most non-zeros of x* (convolutional: per stripe).
            amplitude: Bound of ``‖x*‖_∞``.
            noise: Bound of ``‖n‖_2`` (convolutional: of its part under any one atom).

        Returns:
            A guarantee; `bounds` has the error on the support after every step, and at the end the leak off the support
            (0: no false non-zeros) and, dense, the ℓ2 error.

        Raises:
            ParameterError: A number out of range, or atoms that are not of unit norm.
            UnsupportedError: Boundary "same", whose atoms at the border correlate otherwise.

        Source: N0 and N11 of docs/theory.md.
        """
        steps = [self._learned(k) for k in range(self.steps)]
        problem = cast(Lasso, self.problem)
        return learned_bound(
            self.dictionary,
            steps,
            sparsity=sparsity,
            amplitude=amplitude,
            noise=noise,
            nonnegative=problem.nonnegative,
            method=self.method,
        )

    def keep_supports(
        self, sparsity: int | Sequence[int], *, amplitude: float | Sequence[float] = 1.0, noise: float = 0.0
    ) -> None:
        """Raise thresholds to the leak where they are below it; see `Unfolded.keep_supports`.

        Raises:
            UnsupportedError: With `support_selection`, entries pass whatever the threshold.
        """
        if self.selection is not None:
            raise UnsupportedError(
                f"support_selection is {self.selection}: entries that pass their threshold unchanged can lie off the "
                "support, whatever the threshold; expected None where supports are kept"
            )
        held = safe_thresholds(
            self.dictionary,
            [self._learned(k) for k in range(self.steps)],
            sparsity=sparsity,
            amplitude=amplitude,
            noise=noise,
            nonnegative=self.nonnegative,
        )
        with torch.no_grad():
            self.threshold.copy_(held)

    # ------------------------------------------------------------------ the parts of a step

    def _analysis(self, k: int) -> Dictionary:
        return cast(Dictionary, self.analysis[0 if self.method == "alista" else k])

    def _point(self, k: int, signal: Tensor, codes: Tensor | None) -> Tensor:
        """Return the argument of the k-th threshold (k from 0); codes None stand for zero."""
        analysis = self._analysis(k)
        if codes is None:
            ascent = analysis.analyze(signal)
            return ascent if self.step is None else F.relu(self.step[k]) * ascent
        if self.inhibition is not None:
            return analysis.analyze(signal) + codes @ self.inhibition[k - 1].T
        synthesis = cast(Dictionary, self.synthesis[k - 1]) if len(self.synthesis) else self.dictionary
        ascent = analysis.analyze(signal - synthesis.synthesize(codes))
        return codes + (ascent if self.step is None else F.relu(self.step[k]) * ascent)

    def _shrink(self, point: Tensor, k: int) -> Tensor:
        axes = self.dictionary.event_axes
        shrunk = shrink(point, per_channel(self.threshold[k], axes), self.nonnegative)
        if self.selection is None:
            return shrunk
        size = point.clamp_min(0) if self.nonnegative else point.abs()
        flat = size.flatten(point.ndim - axes)
        share, most = self.selection
        count = math.floor(min((k + 1) * share, most) * flat.shape[-1])
        if count == 0:
            return shrunk
        least = flat.topk(count, dim=-1).values[..., -1:].reshape(*point.shape[: point.ndim - axes], *(1,) * axes)
        kept = point.clamp_min(0) if self.nonnegative else point
        return torch.where(size >= least, kept, shrunk)

    def _learned(self, k: int) -> LearnedStep:
        """Return what N0 needs to know of a step, in float64."""
        weight = self._analysis(k).weight.detach().double()
        if self.step is not None:
            weight = weight * float(self.step[k].detach().clamp_min(0))
        inhibition, synthesis = None, None
        if k and self.inhibition is not None:
            inhibition = self.inhibition[k - 1].detach().double()
        elif k and len(self.synthesis):
            synthesis = cast(Dictionary, self.synthesis[k - 1]).weight.detach().double()
        theta = self.threshold[k].detach().double().clamp_min(0)
        return LearnedStep(weight, theta, inhibition, synthesis, self.selection is not None)


def _require_plain(problem: Lasso) -> None:
    extras = {
        "mask": problem.mask is not None,
        "box": problem.box is not None,
        "ridge": problem.ridge > 0,
        "groups": problem.groups is not None,
    }
    present = [name for name, there in extras.items() if there]
    if present:
        raise UnsupportedError(f"the problem has {', '.join(present)}; unfold takes a Lasso without: leave them out")
