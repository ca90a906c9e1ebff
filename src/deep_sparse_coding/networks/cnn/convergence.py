"""The recursion of a layer as the compiled network computes it, and with an activation that is not quite ReLU (N7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...dictionaries import Dictionary
from ...guarantees import recursion
from ...guarantees.hypotheses import LayerHypotheses
from ...guarantees.recursion import OUTWARDS, LayerRecursion
from ...guarantees.schedule import LayerConvergence
from .activations import Activation
from .layout import LayerLayout

# The first leak, as a share of what it may be without spoiling the first step; and how much faster than ρ leaks fall.
_FIRST, _FASTER, _SLOWEST = 0.1, 0.9, 1e-3
_BLOCK_ENTRIES = 1 << 24


def layer_recursion(
    dictionary: Dictionary,
    hypotheses: LayerHypotheses,
    analysis: Tensor | None = None,
    *,
    direct: bool = False,
) -> LayerRecursion:
    """Return the recursion of a layer whose steps take the form that its layout has chosen (for their rounding).

    Args:
        dictionary: D, atoms of unit norm.
        hypotheses: What is assumed of the layer's codes.
        analysis: W, shaped like the dictionary's weight; None for W = D.
        direct: Whether the form through ``Dx`` is ruled out.
    """
    through = LayerLayout.of(dictionary, signed=not hypotheses.nonnegative, direct=direct).through_signal
    return recursion.layer_recursion(dictionary, hypotheses, analysis=analysis, through_signal=through)


@dataclass(frozen=True, eq=False)
class LeakyRecursion:
    """A layer's recursion where all codes, also those that should be zero, are off by a little.

    Attributes:
        exact: The recursion without that, in terms of ``|G|``.
        signed: Whether codes are pairs.
        rows: ``F_i``, the sum of ``|G_il|`` over all l but i, ``(atoms,)``.
        entries: How many they are.
    """

    exact: LayerRecursion
    signed: bool
    rows: Tensor
    entries: int


def leaky_recursion(
    dictionary: Dictionary, hypotheses: LayerHypotheses, analysis: Tensor | None, *, direct: bool
) -> LeakyRecursion:
    """Return the recursion of N0 for a layer; non-negative codes do not gain from the signs of G here."""
    two_sided = replace(hypotheses, nonnegative=False)
    exact = layer_recursion(dictionary, two_sided, analysis, direct=direct)
    high = dictionary.cast(torch.float64)
    probe = high.gram_rows(slice(0, 1))
    block = max(1, _BLOCK_ENTRIES // probe.numel())
    rows = []
    for start in range(0, high.atoms, block):
        taken = slice(start, min(start + block, high.atoms))
        gram = high.gram_rows(taken, analysis).abs()
        index = torch.arange(taken.start, taken.stop, device=gram.device)
        gram[index - taken.start, index, gram.shape[-1] // 2] = 0.0
        rows.append(gram.flatten(1).sum(1))
    # The error of a Gram entry in float64 is far below 1e-9 of its row's norm.
    sums = torch.cat(rows).cpu() * (1 + 1e-9) + 1e-13 * probe.numel()
    return LeakyRecursion(exact, not hypotheses.nonnegative, sums, probe.numel())


@dataclass(frozen=True, eq=False)
class LeakyConvergence:
    """Bounds of a layer with an activation that is not ReLU.

    Attributes:
        bounds: Thresholds and bounds on the true support, step by step.
        scales: t of every step.
        leaks: η: the bound of codes that should be zero, before the first and after every step.
        carry: t with which v is handed on.
        largest: A bound of all arguments.
    """

    bounds: LayerConvergence
    scales: tuple[float, ...]
    leaks: tuple[float, ...]
    carry: float
    largest: float


def run_leaky(
    layers: Sequence[LeakyRecursion],
    order: Sequence[int],
    rates: Sequence[tuple[float, float]],
    activation: Activation,
) -> tuple[LeakyConvergence, ...]:
    """Return thresholds, scales and bounds for steps in any order.

    With ``ς = c/t``, errors e on the support and η off it, ``θ_i = top_s(|G_il|(e_l - η)) + F_iη + ν_i + h_i`` and
    ``e' = min(e_0, θ + top_{s-1}(|G_il|(e_l - η)) + F_iη + ν + h) + ς``, ``η' = ς``. From step to step t grows a little
    faster than ``ρ^{-k}``, so that e still falls like ``ρ^k``. From below come
    ``ν_i = top_p(|w_i|(E - η)) + ‖w_i‖_1η + ‖w_i‖ε``.

    Source: statements N0 and N7 of docs/theory.md.
    """
    taken = [sum(1 for j in order if j == layer) for layer in range(len(layers))]
    running = [
        _Running(layer, activation, rate, count) for layer, (rate, _), count in zip(layers, rates, taken, strict=True)
    ]
    for j in order:
        running[j].step(running[j - 1] if j else None)
    return tuple(layer.finish(rate) for layer, rate in zip(running, rates, strict=True))


class _Running:
    def __init__(self, layer: LeakyRecursion, activation: Activation, rate: float, steps: int) -> None:
        exact = layer.exact
        self.layer, self.exact, self.activation = layer, exact, activation
        amplitude = exact.hypotheses.amplitude
        self.distance = activation.threshold_distance(signed=layer.signed)
        largest = 2.0 ** (30 if exact.dtype == torch.float32 else 44)
        self.most = 2.0 ** math.floor(math.log2(largest / amplitude))
        ratio = min(max(rate * _FASTER, _SLOWEST), _FASTER)
        first = _FIRST * max(1 - rate, 1e-3) * amplitude / (1 + 2 * float(layer.rows.max()))
        self.shares = [first * ratio**k for k in range(steps)]
        self.carry = self.most if activation.distance else 1.0
        self.bounds, self.leaks = [exact.start], [0.0]
        self.thresholds, self.scales = list[Tensor](), list[float]()
        self.noise = self.slack = torch.zeros_like(exact.own)
        # v is handed on as a pair in all steps but the last, and each of the two is off by as much as any.
        self.steps, self.lost = steps, 2 * steps * activation.distance / self.carry
        self.bounded, self.evaluation = 1.0, 0.0

    def step(self, below: _Running | None) -> None:
        exact, activation = self.exact, self.activation
        errors, leak = self.bounds[-1], self.leaks[-1]
        if below is None:
            noise = exact.noise(None) + self.lost
        else:
            under, lower = below.bounds[-1], below.leaks[-1]
            noise = exact.noise((under - lower).clamp_min(0)) + exact.weights.flatten(1).sum(1) * lower * OUTWARDS
            noise = noise + self.lost
        if not self.thresholds:
            self.slack = self._rounding(noise, below)
            largest = self._largest(noise)
            if activation.limit < math.inf:
                self.bounded = self.carry = 2.0 ** math.floor(math.log2(activation.limit / largest))
        self.noise = noise
        over = (errors - leak).clamp_min(0)
        around = (self.layer.rows + exact.own) * leak
        theta = (exact.above(over) + around + noise + self.slack) * OUTWARDS
        scale, off = self.bounded, 0.0
        if self.distance:
            wanted = self.distance / self.shares[len(self.thresholds)]
            scale = min(self.most, 2.0 ** math.ceil(math.log2(wanted)))
            off = self.distance / scale
        if activation.form != "plain" or activation.distance:
            # Rounding of the activation itself: it does not give back exact zeros.
            off = off + self.evaluation
        reached = (theta + exact.below(over) + around + noise + self.slack) * OUTWARDS
        self.thresholds.append(theta)
        self.scales.append(scale)
        self.bounds.append(torch.minimum(exact.start, reached) + off)
        self.leaks.append(off)

    def _largest(self, noise: Tensor) -> float:
        """Return a bound of all arguments, ``|u| + θ`` and ``|v|``."""
        exact = self.exact
        sizes = 2 * (exact.start * (1 + exact.own) + exact.above(exact.start) + noise + self.slack)
        return float((sizes + 2 * self.layer.rows * (self.shares or [0.0])[0]).max()) * 1.01

    def _rounding(self, noise: Tensor, below: _Running | None) -> Tensor:
        """Return h where every entry of a sum counts, as none is exactly zero.

        A sum of n products is off by ``n u Σ|products|``; the values are at most those of `_largest`.
        """
        exact, unit = self.exact, 0.51 * torch.finfo(self.exact.dtype).eps
        amplitude = below.exact.hypotheses.amplitude if below is not None else None
        slack = exact.slack(noise, amplitude, carried=False)
        terms = 2 * (self.layer.entries + exact.weights[0].numel()) + 16
        largest = self._largest(noise)
        # The code itself, v, the threshold; and, where ReLU is made of two numbers, what a mark subtracts.
        sizes = (self.layer.rows + exact.own + (11 if self.activation.of_two else 3)) * largest
        self.evaluation = 16 * unit * largest * self.activation.growth
        if below is not None:
            largest = below._largest(below.noise)
            sizes = sizes + exact.weights.flatten(1).sum(1) * largest
        handed = 8 * self.steps * unit * self.activation.growth * self._largest(noise)
        return slack + 1.1 * terms * unit * self.activation.growth * sizes + handed

    def finish(self, rates: tuple[float, float]) -> LeakyConvergence:
        exact = self.exact
        theta = torch.stack(self.thresholds) if self.thresholds else exact.own.new_zeros(0, len(exact.own))
        found = LayerConvergence(exact.hypotheses, *rates, self.noise, self.slack, theta, torch.stack(self.bounds))
        return LeakyConvergence(found, tuple(self.scales), tuple(self.leaks), self.carry, self._largest(self.noise))
