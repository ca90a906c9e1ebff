"""One step of a layer in numbers: the recursion of N0 and N1, atom by atom, for any analysis weights.

One layer takes ``x ← S_θ(x + Wᵀ(z - Dx))`` from ``x = 0``. If the errors of the atoms are at most e_i, the thresholds
``θ_i = top_s(|G_il| e_l) + ν_i``, ``G = WᵀD``, keep the support inside the true one and bring the errors down to
``e_i' = θ_i + top_{s-1}(|G_il| e_l) + ν_i``. For convolutions all shifts of a kernel share one number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary, Dictionary
from deep_sparse_coding.dictionaries.coherence import top_sum
from deep_sparse_coding.errors import ShapeError

from .hypotheses import LayerHypotheses

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
        image: A bound on ``‖Dx‖`` for codes of size 1: ``√(s(1 + μ_1(s-1)))`` with D's own Gram matrix.
        through_signal: Whether a step goes through ``Dx`` (for its rounding).
        dtype: In which the steps are computed.
    """

    hypotheses: LayerHypotheses
    rising: Tensor
    falling: Tensor
    own: Tensor
    weights: Tensor
    image: float
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

    def slack(self, noise: Tensor, amplitude_below: float | None, *, carried: bool = True) -> Tensor:
        """Return h: how far the computed argument of the threshold lies from the exact one, ``(atoms,)``.

        A sum of n products has an error of at most ``n u Σ|products|``, u the unit roundoff, in any order; a product
        with an entry that is zero has none. By no overshoot ``|x_i| ≤ e_0``, at most s codes of a stripe are not zero,
        and what they synthesize has a norm of at most ``e_0 √(s (1 + μ_1(s-1)))`` by Gershgorin. The rounding of a
        signal that was synthesized in the same precision is counted too.

        Args:
            noise: ν, the largest of all steps.
            amplitude_below: Bound of ``‖x_{j-1}‖_∞``; None for the first layer.
            carried: Whether ``v = Wᵀz`` is computed by itself and added as a number. Otherwise its products may be
                summed together with the step's, or ``z - Dx`` is formed first.

        Source: "Rounding" of docs/theory.md.
        """
        unit = 0.51 * torch.finfo(self.dtype).eps
        s, start, amplitude = self.hypotheses.sparsity, self.start, self.hypotheses.amplitude
        norms = torch.linalg.vector_norm(self.weights.flatten(1), dim=1)
        terms = self.weights[0].numel()
        # The entries |G_il|: non-negative codes keep the two signs apart.
        parts = [self.rising, self.falling] if self.hypotheses.nonnegative else [self.rising]
        gram = torch.cat(parts, -1).flatten(1)
        # ‖Dx‖ under an atom, and the same for |D||x|.
        image = norms * amplitude * self.image
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
        added = ((input_terms if carried else terms) + 1) * unit * inputs
        if self.through_signal:
            step = (s + 2) * unit * absolute + (terms + 6) * unit * (image + start + v + threshold)
        else:
            step = (s + 5) * unit * (self.own * start + analysis + v + threshold)
        worst = torch.maximum(first, added + step)
        if not carried:
            sizes = (1 + self.own) * start + analysis + inputs + threshold
            worst = torch.maximum(worst, (input_terms + s + 6) * unit * sizes)
        return 1.01 * (synthesized + worst)

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


def layer_recursion(
    dictionary: Dictionary,
    hypotheses: LayerHypotheses,
    *,
    analysis: Tensor | None = None,
    through_signal: bool = True,
) -> LayerRecursion:
    """Return the recursion of one layer: the Gram matrix is read in blocks of rows, and only what can count is kept.

    Args:
        dictionary: D, atoms of unit norm.
        hypotheses: What is assumed of the layer's codes.
        analysis: W, shaped like the dictionary's weight; None for W = D.
        through_signal: Whether a step is computed through ``Dx``, and not by ``WᵀD`` on the codes (for its rounding).

    Raises:
        ShapeError: Analysis weights of another shape.
    """
    exact = dictionary.cast(torch.float64)
    own_weight = exact.weight.detach()
    if analysis is not None and analysis.shape != own_weight.shape:
        raise ShapeError(
            f"analysis has shape {tuple(analysis.shape)}; expected that of the dictionary, {tuple(own_weight.shape)}"
        )
    weight = own_weight if analysis is None else analysis.detach().double()
    weights = (weight if isinstance(exact, ConvDictionary) else weight.T[..., None]).flatten(2).abs()
    s = hypotheses.sparsity
    # The Gram entries are sums of that many products of the two vectors' entries, in float64.
    size = max(1.0, float(torch.linalg.vector_norm(weights.flatten(1), dim=1).max()))
    error = exact.analysis_terms * torch.finfo(torch.float64).eps * size
    probe = exact.gram_rows(slice(0, 1))
    block = max(1, _BLOCK_ENTRIES // probe.numel())
    rising, falling, own = [], [], []
    for start in range(0, exact.atoms, block):
        rows = slice(start, min(start + block, exact.atoms))
        gram = exact.gram_rows(rows, analysis).clone()
        index = torch.arange(rows.start, rows.stop, device=gram.device)
        middle = gram.shape[-1] // 2
        own.append((1 - gram[index - rows.start, index, middle]).abs() + error)
        up = gram.clamp_min(0) if hypotheses.nonnegative else gram.abs()
        down = (-gram).clamp_min(0) if hypotheses.nonnegative else up
        for part, kept in ((up, rising), (down, falling)):
            part = part + error
            part[index - rows.start, index, middle] = 0.0
            kept.append(part.topk(min(s, part.shape[-1]), dim=-1).values)
    # By Gershgorin ‖Dx‖² ≤ (1 + μ_1(s-1))·s for codes of size 1; norms are 1 up to rounding.
    overlap = exact.babel(s - 1) + (s + 1) * error
    return LayerRecursion(
        hypotheses=hypotheses,
        rising=torch.cat(rising).cpu(),
        falling=torch.cat(falling).cpu(),
        own=torch.cat(own).cpu(),
        weights=weights.cpu(),
        image=math.sqrt(s * (1 + overlap)) * (1 + 128 * torch.finfo(dictionary.dtype).eps),
        through_signal=through_signal,
        dtype=dictionary.dtype,
    )
