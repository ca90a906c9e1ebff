"""N11: what learned weights prove about the codes of an unfolded network, N0 step by step and atom by atom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...dictionaries import ConvDictionary, Dictionary
from ...dictionaries.coherence import top_sum
from ...guarantees import Condition, Guarantee
from ...guarantees.hypotheses import LayerHypotheses, layer_hypotheses
from ...guarantees.recursion import OUTWARDS

_SOURCE = "N0 (atom by atom), N11 and Rounding of docs/theory.md; Chen, Liu, Wang & Yin 2018"


@dataclass(frozen=True, eq=False)
class LearnedStep:
    """One step ``x ← S_θ(x + Wᵀ(y - B x))``, or ``x ← S_θ(Wᵀ y + S x)``, float64.

    Attributes:
        analysis: W, shaped like the dictionary's weight.
        thresholds: θ, ``(atoms,)``.
        inhibition: S, ``(atoms, atoms)``; None where the step is of the first form.
        synthesis: B, shaped like the dictionary's weight; None for D.
        selected: Whether entries may pass the threshold unchanged.
    """

    analysis: Tensor
    thresholds: Tensor
    inhibition: Tensor | None
    synthesis: Tensor | None
    selected: bool


@dataclass(frozen=True, eq=False)
class _Errors:
    """Bounds per atom: e on the support, η off it (``η ≤ e``)."""

    on: Tensor
    off: Tensor


def learned_bound(
    dictionary: Dictionary,
    steps: Sequence[LearnedStep],
    *,
    sparsity: int | Sequence[int],
    amplitude: float | Sequence[float],
    noise: float,
    nonnegative: bool,
    method: str,
) -> Guarantee:
    """Return the guarantee that `error_bound` of an unfolded network answers with.

    With ``G = WᵀB`` off its diagonal, ``f = |1 - G_ii|`` and ``R = Wᵀ(D - B)``, an argument of the threshold is off by
    at most ``t_i = f_i e_i + top_{s-1}(|G_il|(e_l - η_l)) + Σ_l |G_il| η_l + top_s(|R_il|)·amplitude + ν_i`` on the
    support, and by ``u_i``, the same with ``f_i η_i`` and ``top_s``, off it. Then ``e_i' = t_i + θ_i``, at most the
    amplitude if ``t_i ≤ θ_i`` (no overshoot), and ``η_i' = (u_i - θ_i)_+``.
    """
    (assumed,) = layer_hypotheses(
        dictionary, sparsity=sparsity, amplitude=amplitude, noise=noise, nonnegative=nonnegative
    )
    exact = dictionary.cast(torch.float64)
    start = torch.full((dictionary.atoms,), assumed.amplitude, dtype=torch.float64)
    errors = _Errors(start, torch.zeros_like(start))
    bounds: dict[str, float] = {}
    clean = True
    for k, step in enumerate(steps, start=1):
        errors = _advance(exact, step, errors, assumed, dictionary.dtype, first=k == 1)
        clean = clean and not bool(errors.off.any())
        bounds[f"e_{k} = ‖x^{k} - x‖_∞"] = float(errors.on.max())
    last = len(steps)
    bounds[f"η_{last}: leak off the support"] = float(errors.off.max())
    if not isinstance(dictionary, ConvDictionary):
        inside = top_sum((errors.on.square() - errors.off.square()).clamp_min(0), assumed.sparsity)
        bounds[f"‖x^{last} - x‖_2"] = math.sqrt(float(inside + errors.off.square().sum())) * OUTWARDS
    bounds = {name: value if value == value else math.inf for name, value in bounds.items()}
    condition = Condition(
        f"e_{last}, error after {last} steps", bounds[f"e_{last} = ‖x^{last} - x‖_∞"], assumed.amplitude
    )
    supports = ", with no non-zero outside the true support" if clean else ""
    return Guarantee(
        condition.holds,
        f"{last} learned steps ({method}) find the codes better than zero codes do{supports}",
        (condition,),
        _SOURCE,
        (condition,),
        (
            *assumed.sentences(dictionary),
            f"steps are computed in {str(dictionary.dtype).removeprefix('torch.')} or better",
        ),
        bounds,
    )


def safe_thresholds(
    dictionary: Dictionary,
    steps: Sequence[LearnedStep],
    *,
    sparsity: int | Sequence[int],
    amplitude: float | Sequence[float],
    noise: float,
    nonnegative: bool,
) -> Tensor:
    """Return the least thresholds at or above the given ones that keep supports exact, ``(steps, atoms)``, float64.

    Step by step ``θ_i ← max(θ_i, u_i)`` with the leak ``u_i`` of `learned_bound`, which the thresholds before have set.

    Source: N11 of docs/theory.md.
    """
    (assumed,) = layer_hypotheses(
        dictionary, sparsity=sparsity, amplitude=amplitude, noise=noise, nonnegative=nonnegative
    )
    exact = dictionary.cast(torch.float64)
    start = torch.full((dictionary.atoms,), assumed.amplitude, dtype=torch.float64)
    errors = _Errors(start, torch.zeros_like(start))
    # A threshold is rounded to its number type, and a larger one rounds a little more.
    margin = 1 + 16 * torch.finfo(dictionary.dtype).eps
    found = []
    for k, step in enumerate(steps, start=1):
        _, leak = _reach(exact, step, errors, assumed, dictionary.dtype, first=k == 1)
        found.append(torch.maximum(step.thresholds.cpu(), leak * margin))
        held = replace(step, thresholds=found[-1])
        errors = _advance(exact, held, errors, assumed, dictionary.dtype, first=k == 1)
    return torch.stack(found)


def _advance(
    exact: Dictionary,
    step: LearnedStep,
    errors: _Errors,
    assumed: LayerHypotheses,
    dtype: torch.dtype,
    *,
    first: bool,
) -> _Errors:
    inside, outside = _reach(exact, step, errors, assumed, dtype, first=first)
    theta = step.thresholds.cpu()
    reached = (inside + theta) * OUTWARDS
    if not step.selected:
        reached = torch.where(inside <= theta, reached.clamp_max(assumed.amplitude), reached)
    left = outside if step.selected else ((outside - theta) * OUTWARDS).clamp_min(0)
    return _Errors(torch.maximum(reached, left), left)


def _reach(
    exact: Dictionary,
    step: LearnedStep,
    errors: _Errors,
    assumed: LayerHypotheses,
    dtype: torch.dtype,
    *,
    first: bool,
) -> tuple[Tensor, Tensor]:
    """Return how far an argument of the threshold is off, on the support (t) and off it (u), ``(atoms,)`` each."""
    s, amplitude = assumed.sparsity, assumed.amplitude
    gram, rest = _rows(exact, step, first=first)
    atoms, middle = exact.atoms, gram.shape[-1] // 2
    index = torch.arange(atoms)
    own = (1 - gram[index, index, middle]).abs()
    others = gram.abs()
    others[index, index, middle] = 0.0
    on, off = errors.on, errors.off
    leak = (others * off[None, :, None]).flatten(1).sum(1)
    # A stripe's entries of x - x*: e on at most s of them, η elsewhere.
    spread = (others * (on - off)[None, :, None]).flatten(1)
    wide = exact.weight.detach().flatten(1) if isinstance(exact, ConvDictionary) else exact.weight.detach().T
    norms = torch.linalg.vector_norm(_vectors(exact, step.analysis), dim=1).cpu()
    common = leak + norms * assumed.residual + top_sum(rest.flatten(1), s) * amplitude
    common = common + _slack(exact, step, errors, assumed, dtype, norms, others)
    # The Gram entries are themselves computed: sums of that many products in float64, on all that x - x* can hold.
    held = s * float(on.max()) + float(off.max()) * others[0].numel() + s * amplitude
    common = common + 4 * exact.analysis_terms * torch.finfo(torch.float64).eps * norms * held * float(
        torch.linalg.vector_norm(wide, dim=1).max()
    )
    inside = (own * on + top_sum(spread, s - 1) + common) * OUTWARDS
    outside = (own * off + top_sum(spread, s) + common) * OUTWARDS
    return inside, outside


def _vectors(exact: Dictionary, weight: Tensor) -> Tensor:
    """Return weights with one row per atom."""
    return weight.flatten(1) if isinstance(exact, ConvDictionary) else weight.T


def _rows(exact: Dictionary, step: LearnedStep, *, first: bool) -> tuple[Tensor, Tensor]:
    """Return G (for S: ``I - S``) and ``|R|``, ``(atoms, atoms, lags)``, on the CPU."""
    learned = exact.gram_rows(analysis=step.analysis)
    if first:
        # From x = 0 the argument is WᵀDx* alone, whatever S or B may be.
        return learned.clone().cpu(), torch.zeros_like(learned).cpu()
    if step.inhibition is not None:
        eye = torch.eye(exact.atoms, dtype=torch.float64, device=step.inhibition.device)
        gram = (eye - step.inhibition)[..., None]
        return gram.cpu(), (learned - gram).abs().cpu()
    if step.synthesis is not None:
        gram = exact.with_weight(step.synthesis).gram_rows(analysis=step.analysis)
        return gram.clone().cpu(), (learned - gram).abs().cpu()
    return learned.clone().cpu(), torch.zeros_like(learned).cpu()


def _slack(
    exact: Dictionary,
    step: LearnedStep,
    errors: _Errors,
    assumed: LayerHypotheses,
    dtype: torch.dtype,
    norms: Tensor,
    others: Tensor,
) -> Tensor:
    """Return how far a computed argument of the threshold lies from the exact one, ``(atoms,)``.

    A sum of n products has an error of at most ``n u Σ|products|``, u the unit roundoff; zero entries have none. The
    codes of a stripe have an ℓ1 norm of at most ``s(a + e) + Ση``. The rounding of a signal that was synthesized in the
    same precision is counted too.

    Source: "Rounding" of docs/theory.md.
    """
    unit = 0.51 * torch.finfo(dtype).eps
    s, amplitude = assumed.sparsity, assumed.amplitude
    leak = float(errors.off.max())
    entries = others[0].numel()
    codes = s * (amplitude + float(errors.on.max())) + leak * entries
    terms = exact.analysis_terms + 8 + (s if leak == 0 else exact.synthesis_terms)
    largest = float(torch.linalg.vector_norm(_vectors(exact, exact.weight.detach()), dim=1).max())
    if step.synthesis is not None:
        largest = max(largest, float(torch.linalg.vector_norm(_vectors(exact, step.synthesis), dim=1).max()))
    signal = s * amplitude * largest + assumed.residual
    error = terms * unit * norms * (codes * largest + 2 * signal)
    if step.inhibition is not None:
        error = error + terms * unit * step.inhibition.abs().amax(1).cpu() * codes
    # Adding the code itself, the scaling by a step, and the threshold.
    error = error + 4 * unit * (amplitude + errors.on + step.thresholds.cpu())
    return 1.01 * error
