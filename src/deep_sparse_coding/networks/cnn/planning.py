"""From settings to numbers: steps, thresholds and bounds of every layer, for each kind of weights and activation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from ...dictionaries import Dictionary
from ...errors import ParameterError
from ...guarantees.depth import fewest_rounds, fewest_steps
from ...guarantees.hypotheses import LayerHypotheses
from ...guarantees.recursion import MOST_STEPS, LayerRecursion
from ...guarantees.schedule import floors, run, step_order
from ..analysis import candidates
from .activations import Activation
from .convergence import LeakyRecursion, layer_recursion, leaky_recursion, run_leaky
from .layout import LayerLayout
from .plan import PlanLayer

# All combinations of weights over the layers are tried if they are not more; else the same kind for every layer.
_COMBINATIONS = 81


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One layer with one kind of weights."""

    name: str
    analysis: Tensor | None
    recursion: LayerRecursion | LeakyRecursion
    rate: tuple[float, float]

    @property
    def exact(self) -> LayerRecursion:
        """Its recursion for ReLU."""
        return self.recursion if isinstance(self.recursion, LayerRecursion) else self.recursion.exact


def plan_layers(
    dictionaries: Sequence[Dictionary],
    assumed: Sequence[LayerHypotheses],
    *,
    target_error: float,
    steps: Sequence[int] | None,
    strategy: str,
    activation: Activation,
    weights: str,
) -> tuple[PlanLayer, ...]:
    """Return the layers for the given numbers of steps, or for the cheapest that reach `target_error`.

    Raises:
        ParameterError: A layer whose bound does not shrink (ρ ≥ 1), or a target below what noise and rounding leave.

    Source: statements N2, N3, N5 and N7 of docs/theory.md.
    """
    direct = strategy == "interleaved" and len(dictionaries) > 1
    layouts = [
        LayerLayout.of(d, signed=not h.nonnegative, direct=direct) for d, h in zip(dictionaries, assumed, strict=True)
    ]
    costs, finer = [], 1
    for layout in layouts:
        finer *= math.prod(layout.stride)
        costs.append(layout.step_taps / finer)
    offered: list[list[_Candidate]] = []
    for dictionary, h in zip(dictionaries, assumed, strict=True):
        options = [
            _candidate(dictionary, h, name, analysis, activation, direct)
            for name, analysis in candidates(dictionary, h, weights)
        ]
        usable = [option for option in options if option.rate[0] < 1]
        if not usable:
            best = min(options, key=lambda option: option.rate[0])
            raise ParameterError(_no_contraction(dictionary, best.exact, best.rate[0]))
        offered.append(usable)
    search = _Search(layouts, costs, target_error, steps, strategy, activation)
    choices = list(product(*offered))
    if len(choices) > _COMBINATIONS:
        first = [options[0] for options in offered]
        choices = [tuple(first)]
        for j, options in enumerate(offered):
            choices += [(*first[:j], option, *first[j + 1 :]) for option in options[1:]]
    found, errors = list[tuple[tuple[float, float], tuple[PlanLayer, ...]]](), list[ParameterError]()
    for choice in choices:
        try:
            layers = search.plan(choice)
        except ParameterError as error:
            errors.append(error)
            continue
        cost = sum(layer.steps * c for layer, c in zip(layers, costs, strict=True))
        key = (layers[-1].error_bound, cost) if steps is not None else (cost, layers[-1].error_bound)
        found.append((key, layers))
    if not found:
        raise errors[-1]
    return min(found, key=lambda pair: pair[0])[1]


def _candidate(
    dictionary: Dictionary,
    hypotheses: LayerHypotheses,
    name: str,
    analysis: Tensor | None,
    activation: Activation,
    direct: bool,
) -> _Candidate:
    if activation.is_relu:
        recursion: LayerRecursion | LeakyRecursion = layer_recursion(dictionary, hypotheses, analysis, direct=direct)
        exact = recursion
    else:
        recursion = leaky_recursion(dictionary, hypotheses, analysis, direct=direct)
        exact = recursion.exact
    return _Candidate(name, analysis, recursion, (exact.rate(), exact.babel_rate()))


@dataclass(frozen=True, eq=False)
class _Search:
    layouts: Sequence[LayerLayout]
    costs: Sequence[float]
    target: float
    steps: Sequence[int] | None
    strategy: str
    activation: Activation

    @property
    def carried(self) -> bool:
        """Whether every layer computes ``Wᵀz`` once."""
        return self.strategy == "layerwise" or len(self.layouts) == 1

    def plan(self, choice: Sequence[_Candidate]) -> tuple[PlanLayer, ...]:
        """Return the layers for one choice of weights."""
        steps = self.steps
        if steps is None:
            steps = self._exact_steps(choice)
            if steps is None:
                raise ParameterError(_under_the_floor(choice, self.target, self.carried))
            if not self.activation.is_relu:
                steps = self._leaky_steps(choice, steps)
        return self._layers(choice, steps)

    def _exact_steps(self, choice: Sequence[_Candidate]) -> tuple[int, ...] | None:
        recursions = [candidate.exact for candidate in choice]
        if self.strategy == "layerwise":
            return fewest_steps(recursions, self.target, self.costs, carried=self.carried)
        rounds = fewest_rounds(recursions, self.target, carried=self.carried)
        return None if rounds is None else (rounds,) * len(choice)

    def _leaky_steps(self, choice: Sequence[_Candidate], least: Sequence[int]) -> tuple[int, ...]:
        """Return steps that are enough with leaks, from those that are without."""

        def enough(steps: Sequence[int]) -> bool:
            return self._layers(choice, steps)[-1].error_bound <= self.target

        low, high = -1, 0
        while not enough([k + high for k in least]):
            low, high = high, 2 * high + 1
            if high > 4 * max(least) + 64:
                reached = self._layers(choice, [k + high for k in least])[-1].error_bound
                raise ParameterError(
                    f"target_error is {self.target:g}, and with activation {self.activation.name!r} the bound is still "
                    f"{reached:.3g} after {'+'.join(str(k + high) for k in least)} steps; expected a target above "
                    "that: raise target_error, use activation='relu', or the model in float64"
                )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough([k + middle for k in least]) else (middle, high)
        found = [k + high for k in least]
        if self.strategy == "layerwise":
            for j in sorted(range(len(found)), key=lambda j: -self.costs[j]):
                while found[j] > 1 and enough([*found[:j], found[j] - 1, *found[j + 1 :]]):
                    found[j] -= 1
        return tuple(found)

    def _layers(self, choice: Sequence[_Candidate], steps: Sequence[int]) -> tuple[PlanLayer, ...]:
        order = step_order(self.strategy, steps)
        rates = [candidate.rate for candidate in choice]
        if self.activation.is_relu:
            planned = run([candidate.exact for candidate in choice], order, rates, carried=self.carried)
            return tuple(
                PlanLayer(layer, layout, candidate.name, candidate.analysis)
                for layout, layer, candidate in zip(self.layouts, planned, choice, strict=True)
            )
        leaky = [c.recursion for c in choice if isinstance(c.recursion, LeakyRecursion)]
        found = run_leaky(leaky, order, rates, self.activation)
        layers = []
        for layout, layer, candidate in zip(self.layouts, found, choice, strict=True):
            # The hypotheses as they were given: the recursion's are two-sided.
            stated = replace(layer.bounds.hypotheses, nonnegative=not layout.signed)
            bounds = replace(layer.bounds, hypotheses=stated)
            layers.append(
                PlanLayer(
                    bounds,
                    layout,
                    candidate.name,
                    candidate.analysis,
                    layer.scales,
                    layer.carry,
                    layer.leaks,
                    layer.largest,
                )
            )
        return tuple(layers)


# ---------------------------------------------------------------------- words


def _no_contraction(dictionary: Dictionary, recursion: LayerRecursion, rate: float) -> str:
    assumed = recursion.hypotheses
    per = "per stripe" if dictionary.event_axes > 1 else "in all"
    allowed = 0
    for s in range(assumed.sparsity - 1, 0, -1):
        if replace(recursion, hypotheses=replace(assumed, sparsity=s)).rate() < 1:
            allowed = s
            break
    lower = f"sparsity of at most {allowed} for this layer" if allowed else "no sparsity would do for these atoms"
    one_sided = "" if assumed.nonnegative else ", nonnegative=True if the codes are"
    return (
        f"layer {assumed.layer}: the error bound does not shrink, ρ = {rate:.3f} at {assumed.sparsity} non-zeros {per} "
        f"(mutual coherence {dictionary.mutual_coherence():.3f}); expected ρ < 1: {lower}, less coherent atoms "
        f"(low_coherence(...)){one_sided}"
    )


def _under_the_floor(choice: Sequence[_Candidate], target: float, carried: bool) -> str:
    recursions, rates = [candidate.exact for candidate in choice], [candidate.rate[0] for candidate in choice]
    errors, amplitude, told, rounded = None, None, list[str](), False
    floor = math.inf
    for recursion, rate, lowest in zip(recursions, rates, floors(recursions, carried=carried), strict=True):
        noise = recursion.noise(errors)
        slack = recursion.slack(noise, amplitude, carried=carried)
        errors, amplitude = lowest, recursion.hypotheses.amplitude
        floor = float(lowest.max())
        rounded = rounded or float(slack.max()) > 0.1 * float(noise.max())
        told.append(
            f"layer {recursion.hypotheses.layer}: ρ = {rate:.3f}, ν = {float(noise.max()):.3g}, "
            f"rounding {float(slack.max()):.3g}, floor {floor:.3g}"
        )
    deepest = recursions[-1].hypotheses.layer
    word = str(recursions[-1].dtype).removeprefix("torch.")
    wider = ", or the model in float64" if word == "float32" and rounded else ""
    return (
        f"target_error is {target:g}, and the bound of layer {deepest} stays above {floor:.3g} at any depth up to "
        f"{MOST_STEPS} steps per layer ({'; '.join(told)}); expected a target above that: raise target_error, or lower "
        f"the floor with less noise=, epsilon=, sparsity= or place_sparsity= or less coherent atoms{wider}"
    )
