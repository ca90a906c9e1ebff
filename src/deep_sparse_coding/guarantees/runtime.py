"""What an estimate proves at run time: its distance to the truth (N10), and the rate of what remains (N12)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_integer, require_number
from deep_sparse_coding.dictionaries import ConvDictionary, Dictionary, stripe_sparsity
from deep_sparse_coding.dictionaries.coherence import top_sum
from deep_sparse_coding.errors import ParameterError, ShapeError, UnsupportedError
from deep_sparse_coding.problems import Codes, ConvexProblem

from .analysis import analyze
from .babel import Atoms, norm_range
from .conditioning import largest_square
from .guarantee import rounded_up
from .posterior import HasCodes
from .recursion import OUTWARDS
from .sphere import EPS
from .widen import widen


@dataclass(frozen=True, eq=False)
class TruthBound:
    """How far codes can be from the true ones, per sample ``(*batch,)``; inf where nothing is proved.

    Attributes:
        largest: ``‖x̂ - x*‖_∞ ≤ largest``.
        distance: ``‖x̂ - x*‖_2 ≤ distance``.
        counts: m, the most non-zeros (per stripe for convolutions) of the difference.
        source: Where it is proved.
    """

    largest: Tensor
    distance: Tensor
    counts: Tensor
    source: str = "N10 of docs/theory.md"

    def __str__(self) -> str:
        if not self.largest.numel():
            return "bounds of an empty batch"
        known = torch.isfinite(self.largest)
        if not bool(known.any()):
            return f"nothing is proved about the truth: the codes differ in up to {int(self.counts.max())} non-zeros"
        worst, far = (rounded_up(float(part[known].max()), 3) for part in (self.largest, self.distance))
        return (
            f"‖x̂ - x‖_∞ ≤ {worst:.3g}, ‖x̂ - x‖_2 ≤ {far:.3g} in {int(known.sum())}/{known.numel()} "
            f"(source: {self.source})"
        )


def against_truth(
    dictionary: Dictionary,
    signal: Tensor,
    codes: Tensor,
    sparsity: int,
    *,
    noise: float = 0.0,
    analysis: Tensor | None = None,
    contained: bool = False,
) -> TruthBound:
    """Bound the distance of codes to the true ones of ``z = Dx* + n``, whoever computed them.

    ``‖x̂ - x*‖_∞ ≤ (‖Wᵀ(z - Dx̂)‖_∞ + ν)/(1 - μ̃_1(m-1))`` and ``‖x̂ - x*‖_2 ≤ (‖z - Dx̂‖ + ‖n‖)/√(1 - μ_1(m-1))``, m the
    non-zeros of x̂ plus s. Both at the price of one synthesis and one analysis.

    Args:
        dictionary: D.
        signal: z, ``(*batch, ...)``.
        codes: x̂, ``(*batch, ...)``.
        sparsity: s, the most non-zeros of x*, per stripe for convolutions.
        noise: ``‖n‖_2``.
        analysis: W, shaped like the dictionary's weight; None for W = D.
        contained: Whether no non-zero of x̂ lies outside the true support, as N1 proves for its iterates: then m = s.

    Raises:
        DSCError: Tensors that do not fit, a count below 1, negative noise.

    Source: N10 of docs/theory.md.
    """
    sparsity = require_integer("sparsity", sparsity, minimum=1)
    noise = require_number("noise", noise, minimum=0)
    signal, codes = dictionary.check_signal(signal), dictionary.check_codes(codes)
    axes = dictionary.event_axes
    batch = codes.shape[: codes.ndim - axes]
    exact = dictionary.cast(torch.float64)
    weight = exact.weight.detach() if analysis is None else analysis.detach().double()
    if weight.shape != exact.weight.shape:
        raise ShapeError(
            f"analysis has shape {tuple(weight.shape)}; expected that of the dictionary, {tuple(exact.weight.shape)}"
        )
    with torch.no_grad():
        x, z = codes.detach().double(), signal.detach().double()
        residual = z - exact.synthesize(x)
        absolute = exact.with_weight(exact.weight.detach().abs()).synthesize(x.abs())
        if residual.shape != z.shape:
            raise ShapeError(f"codes give a signal of shape {tuple(residual.shape)}, not {tuple(z.shape)}")
        length = _norm(residual, axes)
        lost = (exact.synthesis_terms + 3) * EPS * (_norm(z, axes) + _norm(absolute, axes))
        seen = exact.with_weight(weight).analyze(residual)
        rows = (weight if isinstance(exact, ConvDictionary) else weight.T).flatten(1)
        gains = torch.linalg.vector_norm(rows, dim=1) * (1 + 16 * EPS)
        own = stripe_sparsity(dictionary, codes)
        counts = torch.full_like(own, sparsity) if contained else own + sparsity
        largest, distance = torch.full_like(length, math.inf), torch.full_like(length, math.inf)
        low = norm_range(exact)[0]
        per_atom = gains.reshape(-1, *(1,) * (axes - 1)) * (
            noise + lost + (exact.analysis_terms + 3) * EPS * length
        ).reshape(*batch, *(1,) * axes)
        size = (seen.abs() + per_atom).flatten(-axes)
        for m in torch.unique(counts).tolist():
            where = counts == m
            room = 1 - _row_babel(exact, None if analysis is None else weight, m - 1)
            peak = size[where].amax(-1)
            if room > 0:
                largest[where] = peak / room * OUTWARDS
            inner = exact.babel(m - 1)
            room = 1 - inner - Atoms(exact).slack(inner, m)
            if room > 0:
                distance[where] = (length[where] + lost[where] + noise) / math.sqrt(room) / low * OUTWARDS
        bad = ~torch.isfinite(length)
        return TruthBound(largest.masked_fill(bad, math.inf), distance.masked_fill(bad, math.inf), counts)


def _row_babel(dictionary: Dictionary, analysis: Tensor | None, s: int) -> float:
    """Return ``max_i ( top_s(|G_il|, l ≠ i) + |1 - G_ii| )``, ``G = WᵀD``, rounded up."""
    worst = 0.0
    for i in range(dictionary.atoms):
        gram = dictionary.gram_rows(slice(i, i + 1), analysis)[0].clone()
        middle = gram.shape[-1] // 2
        own = abs(1 - float(gram[i, middle]))
        gram[i, middle] = 0.0
        worst = max(worst, float(top_sum(gram.flatten().abs(), s)) + own)
    entry = (dictionary.analysis_terms + 8) * EPS
    return (worst + (s + 1) * entry) * OUTWARDS


def _norm(tensor: Tensor, axes: int) -> Tensor:
    return torch.linalg.vector_norm(tensor.flatten(-axes), dim=-1)


@dataclass(frozen=True, eq=False)
class LinearRate:
    """How fast proximal gradient steps on the atoms that can be active converge, per sample ``(*batch,)``.

    Attributes:
        rate: ``‖x^{k+1} - x*‖ ≤ rate·‖x^k - x*‖``; 1 where nothing is proved.
        step: The step t that has this rate, ``1/‖A_E‖²``.
        distance: A bound of ``‖x^0 - x*‖`` for the given codes, zeros applied.
        active: E, the entries that are not certain zeros; steps keep all others at zero.
        source: Where it is proved.
    """

    rate: Tensor
    step: Tensor
    distance: Tensor
    active: Codes
    source: str = "N12 of docs/theory.md; Hale, Yin & Zhang 2008"

    def steps(self, error: float) -> Tensor:
        """Return how many steps bring ``‖x - x*‖`` to at most `error`, float64; inf where nothing is proved.

        Raises:
            ParameterError: An error that is not above 0.
        """
        error = require_number("error", error, minimum=0, strict=True)
        needed = (torch.log(self.distance / error) / -torch.log(self.rate)).ceil().clamp_min(0)
        needed = torch.where(self.distance <= error, 0.0, needed)
        return torch.where((self.rate < 1) & torch.isfinite(self.distance), needed, math.inf).nan_to_num(
            nan=math.inf, posinf=math.inf
        )

    def __str__(self) -> str:
        known = self.rate < 1
        if not bool(known.any()):
            return "no rate is proved"
        return (
            f"‖x - x*‖ falls by {rounded_up(float(self.rate[known].max()), 4):.4g} a step in "
            f"{int(known.sum())}/{known.numel()} (source: {self.source})"
        )


def linear_rate(solution: HasCodes) -> LinearRate:
    """Return the rate that is left once it is known which atoms can be active.

    Steps restricted to E, all else kept at zero, with ``t ≤ 1/‖A_E‖²`` obey
    ``‖x^{k+1} - x*‖ ≤ (1 - tσ_min(A_E)²)‖x^k - x*‖``.

    Args:
        solution: What `solve` or `certify` returned for a convex problem.

    Raises:
        ParameterError: Bare codes, or anything else without problem, signal and codes.
        UnsupportedError: A problem that is not one minimization; box constraints or groups.

    Source: N12 of docs/theory.md; Hale, Yin & Zhang 2008.
    """
    if not isinstance(solution, HasCodes):
        raise ParameterError(f"solution is a {type(solution).__name__}; expected what solve or certify returned")
    problem = solution.problem
    if not isinstance(problem, ConvexProblem):
        raise UnsupportedError(
            f"no rate for a {type(problem).__name__}; expected a Lasso or JointLasso: of a layered problem, its stages"
        )
    signal = problem.check_signal(solution.signal)
    with torch.no_grad():
        found = analyze(problem, signal, solution.codes)
        wide = widen(found, torch.zeros_like(found.found.radius))
        rate, step = torch.ones_like(wide.sigma), torch.zeros_like(wide.sigma)
        for sample in wide.unique.nonzero().flatten().tolist():
            index = (~wide.zeros[sample]).nonzero().flatten().cpu().numpy()
            if not len(index):
                rate[sample], step[sample] = 0.0, math.inf
                continue
            columns = found.flat.columns.take(sample, index)
            square = largest_square(columns, found.flat.gram_terms)
            step[sample] = 1 / square
            rate[sample] = 1 - float(wide.sigma[sample]) ** 2 / square * (1 - 16 * EPS)
        batch = found.batch
        return LinearRate(
            rate.reshape(batch), step.reshape(batch), wide.distance.reshape(batch), found.shaped(~wide.zeros)
        )
