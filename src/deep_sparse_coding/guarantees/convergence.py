"""Do a few steps find the codes, how fast, and how near? Statements N1 to N3, before any signal is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deep_sparse_coding.checks import require_number
from deep_sparse_coding.dictionaries import Cascade, ConvDictionary, Dictionary, as_cascade
from deep_sparse_coding.dictionaries.coherence import top_sum

from .babel import Atoms
from .depth import fewest_rounds, fewest_steps
from .guarantee import Condition, Guarantee
from .hypotheses import layer_hypotheses
from .recursion import MOST_STEPS, OUTWARDS, layer_recursion
from .schedule import STRATEGIES, LayerConvergence, check_steps, floors, run, step_order

SOURCE = "N1 (atom by atom), {} and Rounding of docs/theory.md; Li, Feng & Zhou 2024; Chen, Liu, Wang & Yin 2018"


def convergence(
    model: Dictionary | Cascade,
    sparsity: int | Sequence[int],
    *,
    amplitude: float | Sequence[float] = 1.0,
    noise: float = 0.0,
    epsilon: float | Sequence[float] = 0.0,
    place_sparsity: int | Sequence[int] | None = None,
    nonnegative: bool | Sequence[bool] = False,
    steps: int | Sequence[int] | None = None,
    target_error: float | None = None,
    strategy: str = "layerwise",
) -> Guarantee:
    """Prove that ``x_j ← S_θ(x_j + D_jᵀ(x_{j-1} - D_j x_j))`` from zero finds the codes at a geometric rate.

    With thresholds ``θ = μ_1(s)e + ν`` the error e becomes ``ρe + 2ν``, nothing outside the true support is ever
    non-zero, and nothing overshoots. ``ρ < 1`` is what has to be proved for every layer: atom by atom, which decides,
    or through ``μ_1(s) + μ_1(s-1)`` or ``(2s-1)μ``, which are never smaller. All thresholds and the bounds atom by atom
    are in `convergence_plan`.

    Args:
        model: A dictionary or a cascade, atoms of unit norm.
        sparsity: Non-zeros per stripe (dense: in all), for all layers or one per layer.
        amplitude: Bound of ``‖x_j‖_∞``, for all layers or one per layer.
        noise: Bound of the ℓ2 norm of the signal's noise (convolutional: under any one atom is enough).
        epsilon: Bound of ``‖x_{j-1} - D_j x_j‖_2``, for all layers or one per layer.
        place_sparsity: Non-zeros of ``x_{j-1}`` under one atom of layer j, one per layer but the deepest; None for the
            bound by covering with stripes.
        nonnegative: Whether codes are non-negative, for all layers or one per layer.
        steps: How many steps, for all layers or one per layer; None for as many as `target_error` takes.
        target_error: What the bound of the deepest layer must fall below; None where no target is set.
        strategy: "layerwise" (all steps of layer 1, then of layer 2, ...) or "interleaved" (one step of every layer in
            turn: an estimate of all layers at any time).

    Returns:
        A guarantee; `bounds` has for every layer ρ, ν, the error after the steps (in the model's number type, rounding
        included), and the floor ``2ν/(1-ρ)`` that no number of steps passes.

    Raises:
        ParameterError: A number out of range, atoms that are not of unit norm, or an unknown strategy.

    Source: N1 to N3 of docs/theory.md; sharpens Chen, Liu, Wang & Yin 2018.
    """
    cascade = as_cascade(model)
    depth = len(cascade)
    assumed = layer_hypotheses(
        cascade,
        sparsity=sparsity,
        amplitude=amplitude,
        noise=noise,
        epsilon=epsilon,
        place_sparsity=place_sparsity,
        nonnegative=nonnegative,
    )
    if target_error is not None:
        target_error = require_number("target_error", target_error, minimum=0, strict=True)
    order = step_order(strategy, (0,) * depth if steps is None else check_steps(steps, depth))
    recursions = [layer_recursion(d, h) for d, h in zip(cascade.layers, assumed, strict=True)]
    rates = [(recursion.rate(), recursion.babel_rate()) for recursion in recursions]
    contracts = all(rate < 1 for rate, _ in rates)
    lowest = floors(recursions, carried=False) if contracts else None
    if steps is None and target_error is not None and contracts:
        if strategy == "layerwise":
            found = fewest_steps(recursions, target_error, carried=False)
        else:
            rounds = fewest_rounds(recursions, target_error)
            found = None if rounds is None else (rounds,) * depth
        order = order if found is None else step_order(strategy, found)
    layers = run(recursions, order, rates, carried=False)

    tried: list[Condition] = []
    decisive: list[Condition] = []
    for layer, dictionary in zip(layers, cascade.layers, strict=True):
        options = _rates(dictionary, layer)
        tried += options
        decisive.append(options[0])
    if target_error is not None:
        floor = None if lowest is None else float(lowest[-1].max())
        tried.append(_target(layers[-1], floor, target_error))
        decisive.append(tried[-1])
    proved = all(condition.holds for condition in decisive)
    if not proved:
        decisive = [condition for condition in decisive if not condition.holds]
    bounds: dict[str, float] = {}
    for j, (layer, dictionary) in enumerate(zip(layers, cascade.layers, strict=True)):
        bounds |= _numbers(layer, isinstance(dictionary, ConvDictionary))
        if lowest is not None:
            bounds[f"layer {j + 1}: floor at any depth"] = float(lowest[j].max())
    told = [text for d, layer in zip(cascade.layers, layers, strict=True) for text in layer.hypotheses.sentences(d)]
    word = str(cascade.dtype).removeprefix("torch.")
    return Guarantee(
        proved,
        _statement(layers, strategy, target_error),
        tuple(tried),
        SOURCE.format(STRATEGIES[strategy]),
        tuple(decisive),
        (*told, f"steps are computed in {word} or better"),
        bounds,
    )


def _rates(dictionary: Dictionary, layer: LayerConvergence) -> list[Condition]:
    """Return the forms of ``ρ < 1``, the sharpest first."""
    assumed = layer.hypotheses
    s, j = assumed.sparsity, assumed.layer
    atoms = Atoms(dictionary)
    name = f"top_{s}(G⁺) + top_{s - 1}(G⁻)" if assumed.nonnegative else f"top_{s}(|G|) + top_{s - 1}(|G|)"
    mu = (2 * s - 1) * dictionary.mutual_coherence()
    return [
        Condition(f"ρ atom by atom, {s} non-zero{'' if s == 1 else 's'}", layer.rate, 1.0, j),
        Condition(name, layer.babel_rate, 1.0, j),
        Condition(f"{2 * s - 1}·μ", mu, 1.0, j, (2 * s - 1) * atoms.slack(mu, 1)),
    ]


def _target(layer: LayerConvergence, floor: float | None, target: float) -> Condition:
    """Return the condition that the deepest layer's bound is below the target; at what depth, or at none."""
    j, steps = layer.hypotheses.layer, len(layer.thresholds)
    if floor is not None and floor >= target:
        return Condition(f"floor of the bound at any depth up to {MOST_STEPS} steps", floor, target, j)
    if not steps:
        return Condition("bound that shrinks (ρ < 1)", math.nan, target, j)
    return Condition(f"bound after {steps} steps", float(layer.bounds[-1].max()), target, j)


def _numbers(layer: LayerConvergence, conv: bool) -> dict[str, float]:
    assumed, steps = layer.hypotheses, len(layer.thresholds)
    where = f"layer {assumed.layer}"
    last = layer.bounds[-1]
    numbers = {
        f"{where}: ρ": layer.rate,
        f"{where}: ν in the last step": float(layer.noise.max()),
        f"{where}: ‖x^{steps} - x‖_∞": float(last.max()),
    }
    if not conv:
        # The error lives on at most s atoms.
        numbers[f"{where}: ‖x^{steps} - x‖_2"] = math.sqrt(float(top_sum(last.square(), assumed.sparsity))) * OUTWARDS
    return numbers


def _statement(layers: Sequence[LayerConvergence], strategy: str, target: float | None) -> str:
    counts = [len(layer.thresholds) for layer in layers]
    if strategy == "interleaved":
        how = f"{counts[0]} steps of all layers in turn" if len(counts) > 1 else f"{counts[0]} steps"
    else:
        how = " and then ".join(f"{k} steps of layer {j}" for j, k in enumerate(counts, start=1))
    if not any(counts):
        how = "steps"
    to = "" if target is None else f", to less than {target:g}"
    return f"{how} from zero find the codes at a geometric rate{to}, with no non-zero outside the true supports"


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
    strategy: str = "layerwise",
) -> tuple[LayerConvergence, ...]:
    """Return thresholds and bounds of every layer, step by step and atom by atom; whether or not ρ < 1.

    They hold for ``x_j ← S_θ(x_j + D_jᵀ(x_{j-1} - D_j x_j))`` in the model's number type. For other analysis weights or
    another order of the steps see `run`.

    Args:
        model: A dictionary or a cascade, atoms of unit norm.
        sparsity: As in `layer_hypotheses`, and so are the next four and `nonnegative`.
        amplitude: Bound of ``‖x_j‖_∞``.
        noise: Bound of the signal's noise.
        epsilon: Bound of ``‖x_{j-1} - D_j x_j‖_2``.
        place_sparsity: Non-zeros of ``x_{j-1}`` under one atom of layer j.
        steps: For all layers or one per layer.
        nonnegative: Whether codes are non-negative.
        strategy: "layerwise" (N2: all steps of layer 1, then of layer 2, ...) or "interleaved" (N3: one step of every
            layer in turn).

    Raises:
        ParameterError: A number out of range, or atoms that are not of unit norm.

    Source: statements N0 to N3 and "Rounding" of docs/theory.md; sharpens Chen, Liu, Wang & Yin 2018.
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
    order = step_order(strategy, check_steps(steps, len(cascade)))
    recursions = [layer_recursion(d, h) for d, h in zip(cascade.layers, assumed, strict=True)]
    return run(recursions, order, carried=False)
