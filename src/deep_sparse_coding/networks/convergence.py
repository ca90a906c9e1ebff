"""The error bound of N1 and N2, atom by atom and step by step: pure numbers, no network.

One layer takes ``x ← S_θ(x + Wᵀ(z - Dx))`` from ``x = 0``, here with W = D. If the errors of the atoms are at most e_i,
the thresholds ``θ_i = top_s(|G_il| e_l) + ν_i`` keep the support inside the true one and bring the errors down to
``e_i' = θ_i + top_{s-1}(|G_il| e_l) + ν_i``. For convolutions all shifts of a kernel share one number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import per_layer, require_integer
from ..dictionaries import Cascade, ConvDictionary, Dictionary, as_cascade
from ..dictionaries.coherence import top_sum
from .hypotheses import LayerHypotheses, layer_hypotheses
from .layout import LayerLayout

# Everything here is computed in float64 and then moved outwards by this factor.
OUTWARDS = 1 + 1e-12
_BLOCK_ENTRIES = 1 << 24
_RATE_ROUNDS = 200
# No layer gets more steps, and a bound that changes less in one stands still.
MOST_STEPS = 2000
STANDSTILL = 1e-9


@dataclass(frozen=True, eq=False)
class LayerRecursion:
    """The recursion of one layer: what of the dictionary and the hypotheses it needs.

    Attributes:
        hypotheses: What is assumed of the layer's codes.
        rising: ``(atoms, atoms, ·)``: for every pair of atoms the largest ``|G_il|`` over the lags (non-negative codes:
            of the positive part), as many as can count; what pushes an argument above its true value.
        falling: The same for what pushes it below (non-negative codes: the negative part).
        own: ``|1 - G_ii|``, which rounding leaves.
        weights: ``|w_i|``, ``(atoms, channels, entries of a channel)``.
        through_signal: Whether a step goes through ``Dx`` (for its rounding).
        dtype: In which the network computes.
    """

    hypotheses: LayerHypotheses
    rising: Tensor
    falling: Tensor
    own: Tensor
    weights: Tensor
    through_signal: bool
    dtype: torch.dtype

    @property
    def start(self) -> Tensor:
        """``e_0``: the amplitude, for every atom."""
        return torch.full_like(self.own, self.hypotheses.amplitude)

    def above(self, errors: Tensor) -> Tensor:
        """Return how far errors ``e`` can lift an argument: ``top_s(|G_il| e_l) + f_i e_i``, ``(atoms,)``."""
        return top_sum((self.rising * errors[None, :, None]).flatten(1), self.hypotheses.sparsity) + self.own * errors

    def below(self, errors: Tensor) -> Tensor:
        """Return how far errors can lower it on the support: ``top_{s-1}(|G_il| e_l) + f_i e_i``, ``(atoms,)``."""
        spread = (self.falling * errors[None, :, None]).flatten(1)
        return top_sum(spread, self.hypotheses.sparsity - 1) + self.own * errors

    def noise(self, errors_below: Tensor | None) -> Tensor:
        """Return ``ν_i = top_p(|w_i| E) + ‖w_i‖ ε`` for final errors E of the layer below (None: the first layer).

        Source: statement N2 of docs/theory.md, with one error bound per channel.
        """
        noise = torch.linalg.vector_norm(self.weights.flatten(1), dim=1) * self.hypotheses.residual
        if errors_below is not None and self.hypotheses.place_sparsity is not None:
            carried = (self.weights * errors_below[None, :, None]).flatten(1)
            noise = noise + top_sum(carried, self.hypotheses.place_sparsity)
        return noise * OUTWARDS

    def slack(self, noise: Tensor, amplitude_below: float | None) -> Tensor:
        """Return h: how far the computed argument of the threshold lies from the exact one, ``(atoms,)``.

        A sum of n products has an error of at most ``n u Σ|products|``, u the unit roundoff, in any order; a product
        with an entry that is zero has none. By no overshoot ``|x_i| ≤ e_0``, at most s codes of a stripe are not zero,
        and what they synthesize has a norm of at most ``e_0 √(s (1 + μ_1(s-1)))`` by Gershgorin. The rounding of a
        signal that was synthesized in the same precision is counted too.

        Source: "Rounding" of docs/theory.md.
        """
        unit = 0.51 * torch.finfo(self.dtype).eps
        s, start, amplitude = self.hypotheses.sparsity, self.start, self.hypotheses.amplitude
        norms = torch.linalg.vector_norm(self.weights.flatten(1), dim=1)
        terms = self.weights[0].numel()
        # The entries |G_il|: non-negative codes keep the two signs apart.
        parts = [self.rising, self.falling] if self.hypotheses.nonnegative else [self.rising]
        gram = torch.cat(parts, -1).flatten(1)
        largest = float(top_sum(gram, s - 1).max()) + float(self.own.max())
        # ‖Dx‖ under an atom, and the same for |D||x|.
        image = norms * amplitude * math.sqrt(s * (1 + largest))
        absolute = norms * amplitude * s
        inputs, input_terms = image + norms * self.hypotheses.residual, terms
        if amplitude_below is not None and self.hypotheses.place_sparsity is not None:
            input_terms = min(terms, self.hypotheses.place_sparsity)
            inputs = top_sum(self.weights.flatten(1), input_terms) * amplitude_below
        threshold = self.above(start) + noise
        analysis = top_sum(gram, s) * amplitude
        v = start + analysis + noise
        synthesized = (s + 1) * unit * (absolute + norms * self.hypotheses.residual)
        first = (input_terms + 3) * unit * (inputs + threshold)
        carried = (input_terms + 1) * unit * inputs
        if self.through_signal:
            step = (s + 2) * unit * absolute + (terms + 6) * unit * (image + start + v + threshold)
        else:
            step = (s + 5) * unit * (self.own * start + analysis + v + threshold)
        return 1.01 * (synthesized + torch.maximum(first, carried + step))

    def thresholds(self, errors: Tensor, noise: Tensor, slack: Tensor) -> Tensor:
        """Return ``θ_i`` for the step that starts from `errors`."""
        return (self.above(errors) + noise + slack) * OUTWARDS

    def advance(self, errors: Tensor, noise: Tensor, slack: Tensor) -> Tensor:
        """Return the errors after one step with those thresholds, never above ``e_0``."""
        reached = self.thresholds(errors, noise, slack) + self.below(errors) + noise + slack
        return torch.minimum(self.start, reached * OUTWARDS)

    def rate(self) -> float:
        """Return ρ: noise apart, errors fall like ``ρ^k``.

        Uniform errors give the number ``μ_1(s) + μ_1(s-1)``; the map from errors to errors is monotone and
        homogeneous, so that ``max_i e'_i/e_i`` bounds its growth for any positive e, and the best e found by a few
        rounds is taken (Collatz and Wielandt).
        """
        errors = torch.ones_like(self.own)
        best = float("inf")
        for _ in range(_RATE_ROUNDS):
            after = (self.above(errors) + self.below(errors)) * OUTWARDS
            ratio = float((after / errors).max())
            if ratio >= best * (1 - 1e-6) and best < float("inf"):
                return min(best, ratio)
            best = ratio
            if best == 0:
                return 0.0
            mixed = after / after.max() + errors
            errors = mixed / mixed.max()
        return best

    def babel_rate(self) -> float:
        """Return ``max_i ( top_s(|G_il|) + top_{s-1}(|G_il|) )``: ρ for errors that are the same for all atoms."""
        ones = torch.ones_like(self.own)
        return float(((self.above(ones) + self.below(ones)) * OUTWARDS).max())

    def floor(self, noise: Tensor, slack: Tensor) -> Tensor:
        """Return the errors that no depth improves on: where the recursion stands still, or the most steps end it."""
        errors = self.start
        for _ in range(MOST_STEPS):
            after = self.advance(errors, noise, slack)
            if bool((after >= errors * (1 - STANDSTILL)).all()):
                return after
            errors = after
        return errors


@dataclass(frozen=True, eq=False)
class LayerConvergence:
    """The bounds of one layer, step by step.

    Attributes:
        hypotheses: What is assumed of the layer's codes.
        rate: ρ, atom by atom.
        babel_rate: ``μ_1(s) + μ_1(s-1)`` or its one-sided form.
        noise: ν per atom, ``(atoms,)``.
        slack: The rounding slack h per atom, ``(atoms,)``.
        thresholds: θ of every step, ``(steps, atoms)``.
        bounds: e before the first and after every step, ``(steps + 1, atoms)``.
    """

    hypotheses: LayerHypotheses
    rate: float
    babel_rate: float
    noise: Tensor
    slack: Tensor
    thresholds: Tensor
    bounds: Tensor


def layer_recursion(dictionary: Dictionary, hypotheses: LayerHypotheses) -> LayerRecursion:
    """Return the recursion of one layer: the Gram matrix is read in blocks of rows, and only what can count is kept."""
    exact = dictionary.cast(torch.float64)
    weight = exact.weight.detach()
    weights = (weight if isinstance(exact, ConvDictionary) else weight.T[..., None]).flatten(2).abs()
    s = hypotheses.sparsity
    # The Gram entries are sums of that many products of unit vectors' entries, in float64.
    error = exact.analysis_terms * torch.finfo(torch.float64).eps
    probe = exact.gram_rows(slice(0, 1))
    block = max(1, _BLOCK_ENTRIES // probe.numel())
    rising, falling, own = [], [], []
    for start in range(0, exact.atoms, block):
        rows = slice(start, min(start + block, exact.atoms))
        gram = exact.gram_rows(rows).clone()
        index = torch.arange(rows.start, rows.stop, device=gram.device)
        middle = gram.shape[-1] // 2
        own.append((1 - gram[index - rows.start, index, middle]).abs() + error)
        up = gram.clamp_min(0) if hypotheses.nonnegative else gram.abs()
        down = (-gram).clamp_min(0) if hypotheses.nonnegative else up
        for part, kept in ((up, rising), (down, falling)):
            part = part + error
            part[index - rows.start, index, middle] = 0.0
            kept.append(part.topk(min(s, part.shape[-1]), dim=-1).values)
    return LayerRecursion(
        hypotheses=hypotheses,
        rising=torch.cat(rising).cpu(),
        falling=torch.cat(falling).cpu(),
        own=torch.cat(own).cpu(),
        weights=weights.cpu(),
        through_signal=LayerLayout.of(dictionary, signed=not hypotheses.nonnegative).through_signal,
        dtype=dictionary.dtype,
    )


def run(
    recursions: Sequence[LayerRecursion], steps: Sequence[int], rates: Sequence[tuple[float, float]] | None = None
) -> tuple[LayerConvergence, ...]:
    """Return the bounds of every layer for given numbers of steps, layer after layer (N2)."""
    layers: list[LayerConvergence] = []
    errors, amplitude = None, None
    for j, (recursion, count) in enumerate(zip(recursions, steps, strict=True)):
        noise = recursion.noise(errors)
        slack = recursion.slack(noise, amplitude)
        bounds, thresholds = [recursion.start], []
        for _ in range(count):
            thresholds.append(recursion.thresholds(bounds[-1], noise, slack))
            bounds.append(recursion.advance(bounds[-1], noise, slack))
        rate, babel_rate = rates[j] if rates is not None else (recursion.rate(), recursion.babel_rate())
        layers.append(
            LayerConvergence(
                hypotheses=recursion.hypotheses,
                rate=rate,
                babel_rate=babel_rate,
                noise=noise,
                slack=slack,
                thresholds=torch.stack(thresholds) if thresholds else recursion.own.new_zeros(0, len(recursion.own)),
                bounds=torch.stack(bounds),
            )
        )
        errors, amplitude = bounds[-1], recursion.hypotheses.amplitude
    return tuple(layers)


def convergence_plan(
    model: Dictionary | Cascade,
    *,
    sparsity: int | Sequence[int],
    amplitude: float | Sequence[float] = 1.0,
    noise: float = 0.0,
    epsilon: float | Sequence[float] = 0.0,
    place_sparsity: int | Sequence[int] | None = None,
    steps: int | Sequence[int],
    nonnegative: bool | Sequence[bool] = False,
) -> tuple[LayerConvergence, ...]:
    """Return the bounds of N1 and N2 for every layer, after `steps` steps of each; whether or not ρ < 1.

    Arguments as in `layer_hypotheses`; `steps` for all layers or one per layer.

    Raises:
        ParameterError: A number out of range, or atoms that are not of unit norm.

    Source: statements N0, N1 ("per atom"), N2 and "Rounding" of docs/theory.md; sharpens Chen, Liu, Wang & Yin 2018.
    """
    cascade = as_cascade(model)
    assumed = layer_hypotheses(
        cascade,
        sparsity=sparsity,
        amplitude=amplitude,
        noise=noise,
        epsilon=epsilon,
        place_sparsity=place_sparsity,
        nonnegative=nonnegative,
    )
    wanted = tuple(steps) if isinstance(steps, Sequence) else steps
    counts = [require_integer("steps", k, minimum=0) for k in per_layer("steps", wanted, len(cascade))]
    return run([layer_recursion(d, h) for d, h in zip(cascade.layers, assumed, strict=True)], counts)
