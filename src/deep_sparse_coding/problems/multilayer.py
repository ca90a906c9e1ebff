"""The multi-layer synthesis problem: only the deepest codes are unknown, and what they make at every layer costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import per_layer
from deep_sparse_coding.dictionaries import Cascade, Dictionary
from deep_sparse_coding.errors import ParameterError

from .base import Codes, flat_sum, inner, per_sample, squared_norm, unresolved
from .cascaded import CascadeProblem, check_cascade, layer_shapes
from .certificate import Certificate, CertifiedProblem
from .lasso import flat_codes
from .operators import Blocks
from .weights import check_lam, flatten_weights

_OBJECTIVE_FLOOR = 1e-6
# First steps of the passes that propose multipliers: codes are best certified by a step like the one that made them.
_SHARES = (1.0, 0.1, 0.01)


@dataclass(frozen=True, eq=False)
class MultiLayerLasso(CascadeProblem, CertifiedProblem):
    """``min_x ½‖y - D_1 ··· D_J x‖² + Σ_j lam_j‖x_j‖₁`` with ``x_J = x`` and ``x_{j-1} = D_j x_j`` exactly.

    The codes are the deepest ones, one tensor; `model.synthesize` makes the others of them. `JointLasso` relaxes the
    equalities, and its minimizers approach this problem's as ``β_2, ..., β_J`` grow.

    The certificate's lower bound needs multipliers ``|u_j| ≤ lam_j`` with
    ``(D_1···D_J)ᵀθ = Σ_j (D_{j+1}···D_J)ᵀu_j``. Those below the deepest are taken from the codes, in several ways of
    which the best counts: the signs ``u_j = lam_j sign(x_j)``, and what the thresholds of ML-ISTA passes take away.
    u_J follows, and all are scaled until ``|u_J| ≤ lam_J``. The bound is always valid, but it need not be tight: the
    gap can stay above zero even at the minimizer where entries of ``D_{j+1}···D_J x`` vanish there.

    Attributes:
        model: The cascade.
        lam: One finite setting per layer, each as in `Lasso`; or one for all.

    Raises:
        DSCError: A setting out of range; on use, shapes that do not fit.

    Source: multi-layer basis pursuit, Sulam, Aberdam, Beck & Elad 2019.
    """

    model: Cascade
    lam: Sequence[float | Tensor] | float

    def __post_init__(self) -> None:
        check_cascade(self.model)
        depth = len(self.model)
        lam = tuple(check_lam(f"lam[{j}]", value) for j, value in enumerate(per_layer("lam", self.lam, depth)))
        for j, value in enumerate(lam):
            if not bool(torch.isfinite(torch.as_tensor(value)).all()):
                raise ParameterError(f"lam[{j}] is infinite; expected finite numbers: leave the atoms out instead")
        object.__setattr__(self, "lam", lam)

    def pack(self, codes: object, signal: Tensor) -> Blocks:
        """Return the deepest codes with a single batch axis."""
        shape = layer_shapes(self.model, signal)[-1]
        return (flat_codes("codes", codes, self.model.layers[-1], self.batch_shape(signal), shape),)

    def unpack(self, blocks: Blocks, batch_shape: tuple[int, ...]) -> Codes:
        """Return the deepest codes as ``(*batch, *code)``."""
        return blocks[0].reshape(*batch_shape, *blocks[0].shape[1:])

    def flat_signal(self, signal: Tensor) -> Tensor:
        """Return the signal with a single batch axis, without its graph."""
        batch = self.batch_shape(signal)
        return signal.detach().reshape(math.prod(batch), *signal.shape[len(batch) :])

    def layer_weights(self, signal: Tensor) -> Blocks:
        """Return ``lam_j`` of every layer, ``(1 or batch, ...)``, in the signal's precision."""
        layers, shapes = self.model.layers, layer_shapes(self.model, signal)
        lam, batch = per_layer("lam", self.lam, len(layers)), self.batch_shape(signal)
        return tuple(
            flatten_weights(f"lam[{j}]", lam[j], None, layer, batch, shapes[j], signal.dtype).detach()  # type: ignore[arg-type]
            for j, layer in enumerate(layers)
        )

    def lam_max(self, signal: Tensor) -> Tensor:
        """Return ``max|(D_1···D_J)ᵀy|`` per sample: from this deepest lam on codes are zero, whatever the others."""
        signal = self.check_signal(signal)
        correlation = self.flat_signal(signal).double()
        for layer in self.model.layers:
            correlation = layer.cast(torch.float64).analyze(correlation)
        return correlation.flatten(1).abs().amax(1).reshape(self.batch_shape(signal))

    def certificate(self, codes: Codes, signal: Tensor) -> Certificate:
        """Return objective, lower bound and gap of checked codes, float64."""
        batch = self.batch_shape(signal)
        (deepest,) = self.pack(codes, signal)
        y, weights = self.flat_signal(signal).double(), self.layer_weights(signal.double())
        layers = tuple(layer.cast(torch.float64) for layer in self.model.layers)
        made = cascade_codes(layers, deepest.double())
        residual = y - layers[0].synthesize(made[0])
        penalties = flat_sum(tuple(w * x.abs() for w, x in zip(weights, made, strict=True)))
        objective = 0.5 * squared_norm((residual,)) + penalties
        signs = tuple(w * x.sign() for w, x in zip(weights[:-1], made[:-1], strict=True))
        steps = tuple(1 / float(layer.operator_norm()) ** 2 for layer in layers)
        found = [signs]
        for share in _SHARES if len(layers) > 1 else ():
            _, taken = threshold_pass(layers, weights, (share * steps[0], *steps[1:]), y, made)
            found.append(taken[:-1])
        gaps = torch.stack([_gap(layers, weights, y, residual, made, multipliers) for multipliers in found])
        energy = squared_norm((y,))
        nothing = unresolved((y,), energy) | ~torch.isfinite(objective)
        gap = torch.where(nothing, math.inf, gaps.amin(0))
        scale = torch.maximum(objective, _OBJECTIVE_FLOOR * 0.5 * energy)
        relative = torch.where(gap == 0, 0.0, gap / scale)
        relative = torch.where(nothing, math.inf, relative)
        return Certificate(objective, torch.where(nothing, -math.inf, objective - gap), gap, relative).reshape(batch)


def cascade_codes(layers: Sequence[Dictionary], deepest: Tensor) -> Blocks:
    """Return ``x_1, ..., x_J`` with ``x_{j-1} = D_j x_j`` for the deepest codes."""
    made = [deepest]
    for layer in reversed(layers[1:]):
        made.insert(0, layer.synthesize(made[0]))
    return tuple(made)


def threshold_pass(
    layers: Sequence[Dictionary], weights: Blocks, steps: Sequence[float], signal: Tensor, made: Blocks
) -> tuple[Tensor, Blocks]:
    """Return the deepest codes of one ML-ISTA pass, and what its thresholds took away over the step, layer by layer.

    ``γ_j = S_{t_j lam_j}(x_j - s_j D_jᵀ(D_j x_j - γ_{j-1}))`` from the signal, ``γ_0 = y``, to the deepest layer, where
    ``t_j = s_1 ··· s_j``: what passes from layer j - 1 is its gradient mapping times ``t_{j-1}``.

    Args:
        layers: ``D_1, ..., D_J``.
        weights: lam of every layer.
        steps: ``s_1, ..., s_J``.
        signal: y.
        made: ``x_1, ..., x_J`` with ``x_{j-1} = D_j x_j``.

    Source: Sulam, Aberdam, Beck & Elad 2019, the recursion of nested gradient mappings.
    """
    below, taken, whole = signal, [], 1.0
    for j, (layer, weight, step) in enumerate(zip(layers, weights, steps, strict=True)):
        here = layers[0].synthesize(made[0]) if j == 0 else made[j - 1]
        point = torch.add(made[j], layer.analyze(below - here), alpha=step)
        whole *= step
        cut = torch.minimum(torch.maximum(point, -whole * weight), whole * weight)
        below = point - cut
        taken.append(cut / whole)
    return below, tuple(taken)


def _gap(
    layers: Sequence[Dictionary], weights: Blocks, signal: Tensor, residual: Tensor, made: Blocks, multipliers: Blocks
) -> Tensor:
    """Return ``P(x) - D(θ)`` for ``θ = αr``, every term at or above zero.

    Args:
        layers: The dictionaries.
        weights: lam of every layer.
        signal: y.
        residual: r.
        made: The codes of every layer.
        multipliers: ``u_1, ..., u_{J-1}`` with ``|u_j| ≤ lam_j``.
    """
    rest = residual
    for j, layer in enumerate(layers):
        rest = layer.analyze(rest)
        if j < len(multipliers):
            rest = rest - multipliers[j]
    # rest is now what the deepest layer's multipliers must be before scaling.
    bound = torch.where(rest != 0, weights[-1] / rest.abs(), math.inf).flatten(1)
    high = bound.amin(1) if bound.shape[1] else bound.new_full((len(bound),), math.inf)
    if multipliers:
        high = high.clamp_max(1.0)
    energy = squared_norm((residual,))
    alpha = torch.where(
        energy > 0, inner((signal,), (residual,)) / energy.clamp_min(torch.finfo(energy.dtype).tiny), 0.0
    )
    alpha = torch.minimum(torch.maximum(alpha, -high if not multipliers else torch.zeros_like(high)), high)
    total = 0.5 * (1 - alpha).square() * energy
    for w, x, u in zip(weights, made, (*multipliers, rest), strict=True):
        total = total + flat_sum(((w * x.abs() - per_sample(alpha, x) * x * u).clamp_min(0),))
    return total
