"""How far noise moves the codes: statements G3, G4 and G4b, before any signal is seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, per_layer, require_number
from deep_sparse_coding.dictionaries import Cascade, ConvDictionary, Dictionary, as_cascade
from deep_sparse_coding.dictionaries.coherence import top_sum
from deep_sparse_coding.errors import ParameterError, UnsupportedError, near_misses

from .babel import Atoms, check_counts, circular_hypotheses, counted, norm_range
from .guarantee import Condition, Guarantee, rounded_up
from .hypotheses import place_counts
from .recursion import OUTWARDS
from .supports import check_sparsity, check_supports, support_sums
from .uniqueness import Counts, forms, sharpest

SOURCES = {
    "l0": "G3 of docs/theory.md; Li, Feng & Zhou 2024, Theorem 3",
    "l1": "G4 of docs/theory.md; Donoho, Elad & Temlyakov 2006; Cai, Wang & Xu 2010",
    "lagrangian": "G4b of docs/theory.md; Tropp 2006; Fuchs 2004",
}


def stability(
    model: Dictionary | Cascade,
    sparsity: int | Sequence[int] | None = None,
    *,
    noise: float = 0.0,
    epsilon: float | Sequence[float] = 0.0,
    kind: str = "l0",
    hat_epsilon: float | Sequence[float] | None = None,
    rivals: int | Sequence[int] | None = None,
    supports: Tensor | Sequence[Tensor] | None = None,
    nonzeros: int | Sequence[int] | None = None,
    nonnegative: bool = False,
    lam: float | Sequence[float] | None = None,
    correlation: float | None = None,
    place_sparsity: int | Sequence[int] | None = None,
) -> Guarantee:
    """Prove how far codes of a noisy signal lie from the true ones, layer by layer.

    The truth has ``‖x_{j-1} - D_j x_j‖ ≤ ε_j`` and s_j non-zeros; the signal differs from ``x_0`` by at most `noise`.

    - ``kind="l0"``: any codes with tolerances ε̂_j and at most κ_j non-zeros have
      ``‖x̂_j - x_j‖ ≤ (δ_{j-1} + ε_j + ε̂_j)/√(1 - μ_1(s_j + κ_j - 1))``.
    - ``kind="l1"``: codes of layered basis pursuit with tolerances ``η_j ≥ δ_{j-1} + ε_j``, by the sharpest of three
      bounds, in ℓ2.
    - ``kind="lagrangian"``: minimizers of the layered Lasso have no non-zero outside the true supports and
      ``‖x̂_j - x_j‖_∞ ≤ (λ_j + ν_j)/(1 - a_j)``.

    Args:
        model: A dictionary or a cascade.
        sparsity: s, one number or one per layer (per stripe for convolutional layers); None: that of `supports`.
        noise: ``δ_0``, the ℓ2 norm of the signal's noise.
        epsilon: ε, for all layers or one per layer.
        kind: "l0", "l1" or "lagrangian".
        hat_epsilon: ε̂ or η, the tolerances at which the codes are computed; None for the truth's own ε (l0, as in the
            paper) or the least that lets the truth be feasible (l1).
        rivals: κ, the most non-zeros of the codes that are found, if it is not s (l0).
        supports: One support per layer of a dense model (l1, lagrangian): its own sums replace the Babel numbers.
        nonzeros: All non-zeros of each code (l1 with convolutional layers, whose bound grows with their root).
        nonnegative: Whether all codes are at or above zero (l0 gets sharper by it).
        lam: λ per layer (lagrangian); None for just above the least that is proved to do.
        correlation: ``‖D_1ᵀn‖_∞``, if a bound below the noise's norm is known (lagrangian).
        place_sparsity: Non-zeros of ``x_{j-1}`` under one atom of layer j (lagrangian); None for the covering bound.

    Returns:
        A guarantee; `bounds` has the distance for every layer up to the first that is not proved.

    Raises:
        DictionaryError: Not a model, or its atoms were changed to zero or non-finite ones.
        ParameterError: A number out of range, an unknown kind, or an argument that the kind does not use.
        UnsupportedError: Supports of a convolutional model, or non-negative codes with "lagrangian".

    Source: G3, G4 and G4b of docs/theory.md.
    """
    model = as_cascade(model)
    if kind not in SOURCES:
        known = ", ".join(repr(name) for name in SOURCES)
        raise ParameterError(f"kind is {kind!r}; expected one of {known}{near_misses(str(kind), SOURCES)}")
    used = {
        "l0": {"hat_epsilon", "rivals"},
        "l1": {"hat_epsilon", "supports", "nonzeros"},
        "lagrangian": {"supports", "lam", "correlation", "place_sparsity"},
    }[kind]
    given = {
        "hat_epsilon": hat_epsilon,
        "rivals": rivals,
        "supports": supports,
        "nonzeros": nonzeros,
        "lam": lam,
        "correlation": correlation,
        "place_sparsity": place_sparsity,
    }
    for name, value in given.items():
        if value is not None and name not in used:
            raise ParameterError(f"{name} is given, but kind={kind!r} does not use it; expected None")
    masks = None if supports is None else check_supports(model, supports)
    case = _Case(
        model,
        check_sparsity(model, sparsity, masks),
        masks,
        require_number("noise", noise, minimum=0),
        _numbers("epsilon", epsilon, len(model)),
        None if hat_epsilon is None else _numbers("hat_epsilon", hat_epsilon, len(model)),
    )
    if kind == "l0":
        rival = case.counts if rivals is None else check_counts("rivals", rivals, len(model))
        layers = _sparse(case, rival, check_flag("nonnegative", nonnegative))
    elif kind == "l1":
        check_flag("nonnegative", nonnegative)
        layers = _constrained(case, None if nonzeros is None else check_counts("nonzeros", nonzeros, len(model)))
    else:
        if check_flag("nonnegative", nonnegative):
            raise UnsupportedError(
                "nonnegative=True with kind='lagrangian' is not offered: at an entry that is pressed to zero the "
                "multiplier has no bound; use kind='l1', or solve and use posterior"
            )
        weights = None if lam is None else _numbers("lam", lam, len(model), strict=True)
        own = case.noise if correlation is None else require_number("correlation", correlation, minimum=0)
        layers = _lagrangian(case, weights, own, place_counts(model, case.counts, place_sparsity))
    return _guarantee(case, kind, layers)


@dataclass(frozen=True, eq=False)
class _Case:
    """The arguments, checked."""

    model: Cascade
    counts: tuple[int, ...]
    masks: tuple[Tensor, ...] | None
    noise: float
    epsilon: tuple[float, ...]
    hat_epsilon: tuple[float, ...] | None

    @property
    def conv(self) -> bool:
        return isinstance(self.model.layers[0], ConvDictionary)

    def sums(self, j: int) -> tuple[float, float]:
        """Return a and b of layer j (from 0), rounded up: of its support, or ``μ_1(s-1), μ_1(s)``."""
        layer, s = self.model.layers[j], self.counts[j]
        atoms = Atoms(layer)
        a, b = (atoms.babel(s - 1), atoms.babel(s)) if self.masks is None else support_sums(layer, self.masks[j])
        return a + atoms.slack(a, s), b + atoms.slack(b, s)


@dataclass(frozen=True)
class _Layer:
    """What is found for one layer: all conditions, those that decide, and the numbers that follow."""

    tried: tuple[Condition, ...]
    decisive: tuple[Condition, ...]
    bounds: dict[str, float]
    hypotheses: tuple[str, ...] = ()

    @property
    def proved(self) -> bool:
        return all(condition.holds for condition in self.decisive)


def _sparse(case: _Case, rival: tuple[int, ...], nonnegative: bool) -> list[_Layer]:
    """G3: ``δ_j = (δ_{j-1} + ε_j + ε̂_j)/√(1 - μ_1(s+κ-1))``, for atoms of norm n at least with a further 1/n."""
    found, delta = [], case.noise
    hats = case.epsilon if case.hat_epsilon is None else case.hat_epsilon
    for j, layer in enumerate(case.model.layers):
        options = forms(Atoms(layer), Counts(case.counts[j], rival[j]), nonnegative, j + 1, "")
        best = sharpest(options)
        room = best.margin - best.slack
        delta = math.inf
        if best.holds and all(one.proved for one in found):
            before = case.noise if j == 0 else found[-1].bounds[_distance(j, 2)]
            delta = _up((before + case.epsilon[j] + hats[j]) / math.sqrt(room) / norm_range(layer)[0])
        bounds = {_distance(j + 1, 2): delta} if math.isfinite(delta) else {}
        text = (
            f"codes are found with ‖{_input(j)} - D_{j + 1} x̂_{j + 1}‖ ≤ {hats[j]:g} and at most {rival[j]} non-zeros"
        )
        found.append(_Layer(tuple(options), (best,), bounds, (text + (" per stripe" if case.conv else ""),)))
    return found


def _constrained(case: _Case, totals: tuple[int, ...] | None) -> list[_Layer]:
    """G4: the smallest of (i), (ii), (iii) for ``E = η_j + δ_{j-1} + ε_j``."""
    found: list[_Layer] = []
    for j in range(len(case.model)):
        known = all(one.proved for one in found)
        delta = case.noise if j == 0 else (found[-1].bounds[_distance(j, 2)] if known else math.inf)
        least = delta + case.epsilon[j]
        eta = least if case.hat_epsilon is None else case.hat_epsilon[j]
        total = case.counts[j] if not case.conv else None if totals is None else totals[j]
        options = _l1_forms(case, j, total)
        holding = [(bound, condition) for condition, bound, _ in options if condition.holds]
        tried = [condition for condition, _, _ in options]
        decisive = [min(holding, key=lambda pair: pair[0])[1] if holding else sharpest(tried)]
        if total is None:
            name = "nonzeros, the number of all non-zeros of the code (the bound grows with its root),"
            decisive.append(Condition(name, math.nan, math.inf, j + 1))
        if case.hat_epsilon is not None and math.isfinite(least):
            feasible = Condition("δ + ε, at which the truth is feasible,", least, math.nextafter(eta, math.inf), j + 1)
            decisive.append(feasible)
        tried += [condition for condition in decisive if condition not in tried]
        bounds: dict[str, float] = {}
        if known and all(condition.holds for condition in decisive):
            error = (eta + delta + case.epsilon[j]) / norm_range(case.model.layers[j])[0]
            bounds[_distance(j + 1, 2)] = _up(error * min(bound for bound, _ in holding))
            peaks = [peak for condition, _, peak in options if condition.holds and math.isfinite(peak)]
            if peaks:
                bounds[_distance(j + 1, "∞")] = _up(error * min(peaks))
        text = f"x̂_{j + 1} has the least ℓ1 norm with ‖{_input(j)} - D_{j + 1} x̂_{j + 1}‖ ≤ {eta:g}"
        found.append(_Layer(tuple(tried), tuple(decisive), bounds, (text,) if math.isfinite(eta) else ()))
    return found


def _l1_forms(case: _Case, j: int, total: int | None) -> list[tuple[Condition, float, float]]:
    """Return every form of G4 with its ``‖Δ‖_2/E`` and ``‖Δ‖_∞/E`` (inf where it gives none).

    In units of the normalized atoms, ``Δ_i‖d_i‖``, an ℓ1 minimizer has ``‖Δ_{S^c}‖_1 ≤ q‖Δ_S‖_1``, q the ratio of the
    largest norm to the smallest: so ``‖Δ‖_1 ≤ (1+q)‖Δ_S‖_1``, and b counts q times.
    """
    layer, s = case.model.layers[j], case.counts[j]
    atoms = Atoms(layer)
    low, high = norm_range(layer)
    q = high / low
    mu = layer.mutual_coherence()
    mu_up = mu + atoms.slack(mu, 1)
    options: list[tuple[Condition, float, float]] = []
    n = total if total is not None else s

    def spread(mass_squared: float) -> float:
        """Return ``‖Δ‖_2/E`` from ``E² ≥ (1+μ)‖Δ‖² - μ‖Δ‖_1²`` and a bound on ``‖Δ‖_1²/E²``."""
        return math.sqrt((1 + mu_up * mass_squared) / (1 + mu_up)) if total is not None else math.inf

    times = _mass(q, n, math.inf if case.conv else layer.atoms) - 1
    condition = Condition(f"{times:.4g}·μ", times * mu, 1.0, j + 1, times * atoms.slack(mu, 1))
    if total is not None:
        ratio = 1 / math.sqrt(condition.margin - condition.slack) if condition.holds else math.inf
        options.append((condition, ratio, math.inf))

    a, b = case.sums(j)
    names = ("a(S)", "b(S)") if case.masks is not None else (f"μ_1({s - 1})", f"μ_1({s})")
    label = f"{names[0]} + {names[1]}" if q - 1 < 1e-3 else f"{names[0]} + {q:.4g}·{names[1]}"
    condition = Condition(label, a + q * b, 1.0, j + 1)
    mass = (1 + q) ** 2 * n * (1 + a) / condition.margin**2 if condition.holds else math.inf
    options.append((condition, spread(mass), math.inf))

    if total is not None:
        weight = (1 + q) * n
        value = atoms.babel_mass(weight - 1)
        label = f"μ_1({2 * n - 1})" if weight - 2 * n < 1e-3 else f"μ_1({weight - 1:.4g})"
        condition = Condition(label, value, 1.0, j + 1, atoms.slack(value, math.ceil(weight)))
        room = condition.margin - condition.slack if condition.holds else math.nan
        both = min(math.sqrt(weight) / room, spread((weight / room) ** 2)) if condition.holds else math.inf
        options.append((condition, both, 1 / room if condition.holds else math.inf))
    return options


def _mass(q: float, s: int, atoms: float) -> float:
    """Return the largest ``‖Δ‖_1²/‖Δ‖_2²`` with ``‖Δ_{S^c}‖_1 ≤ q‖Δ_S‖_1``: ``4s(1 - s/m)`` for q = 1 and m ≥ 2s.

    With ``t = ‖Δ_{S^c}‖_1/‖Δ_S‖_1`` it is at most ``(1+t)²/(1/s + t²/(m-s))``, which grows up to ``t = (m-s)/s``.
    """
    if s >= atoms:
        return atoms
    t = min(q, (atoms - s) / s)
    return (1 + t) ** 2 / (1 / s + t**2 / (atoms - s)) * OUTWARDS


def _lagrangian(
    case: _Case, weights: tuple[float, ...] | None, correlation: float, places: tuple[int | None, ...]
) -> list[_Layer]:
    """G4b: ``λ > ν(1-a+b)/(1-a-b)``, or for noise of known norm ``λ > ‖n‖(1-a)/(1-a-b)``."""
    found: list[_Layer] = []
    for j, layer in enumerate(case.model.layers):
        a, b = case.sums(j)
        low, high = norm_range(layer)
        q = high / low
        names = ("a(S)", "b(S)") if case.masks is not None else (f"μ_1({case.counts[j] - 1})", f"μ_1({case.counts[j]})")
        label = f"{names[0]} + {names[1]}" if q - 1 < 1e-3 else f"{names[0]} + {q:.4g}·{names[1]}"
        condition = Condition(label, a + q * b, 1.0, j + 1)
        if not condition.holds or not all(one.proved for one in found):
            found.append(_Layer((condition,), (condition,), {}))
            continue
        if j == 0:
            nu, size = min(correlation, case.noise) + case.epsilon[0], case.noise + case.epsilon[0]
        else:
            below = found[-1].bounds[_distance(j, "∞")]
            count = places[j] or case.counts[j - 1]
            nu = _gain(layer, count) * below + case.epsilon[j]
            size = math.inf if case.conv else math.sqrt(count) * below + case.epsilon[j]
        room = condition.margin
        by_correlation = nu * high * (1 - a + b) / room
        by_norm = size * high * (1 - a) / room
        least = _up(min(by_correlation, by_norm))
        if weights is None and least == 0:
            raise ParameterError(
                f"lam is None and nothing disturbs layer {j + 1}: without noise every lam > 0 will do, and the error "
                "grows with it; expected lam, one number per layer"
            )
        lam = math.nextafter(least, math.inf) if weights is None else weights[j]
        enough = Condition("least λ that keeps the support", least, lam, j + 1)
        error = _up((lam / low + nu) / (1 - a) / low)
        bounds = {f"layer {j + 1}: λ": lam, f"layer {j + 1}: ν": _up(nu)}
        if enough.holds:
            bounds[_distance(j + 1, "∞")] = error
            if not case.conv:
                bounds[_distance(j + 1, 2)] = _up(math.sqrt(case.counts[j]) * error)
        both, text = (
            (condition, enough),
            f"x̂_{j + 1} minimizes ½‖{_input(j)} - D_{j + 1} z‖² + {rounded_up(lam, 6):g}·‖z‖_1",
        )
        found.append(_Layer(both, both, bounds, (text,)))
    return found


def _gain(layer: Dictionary, count: int) -> float:
    """Return ``τ_p(D) = max_i top_p(|d_·i|)/‖d_i‖``."""
    weight = layer.weight.detach().double()
    rows = (weight if isinstance(layer, ConvDictionary) else weight.T).flatten(1).abs()
    return float((top_sum(rows, count) / torch.linalg.vector_norm(rows, dim=1)).max()) * OUTWARDS


def _guarantee(case: _Case, kind: str, layers: list[_Layer]) -> Guarantee:
    decisive = [condition for layer in layers for condition in layer.decisive]
    proved = all(condition.holds for condition in decisive)
    if not proved:
        decisive = [condition for condition in decisive if not condition.holds]
    tried = [condition for layer in layers for condition in layer.tried]
    bounds: dict[str, float] = {}
    for layer in layers:
        bounds |= layer.bounds
    named = [(f"layer {j}", layer) for j, layer in enumerate(case.model.layers, start=1)]
    limits = ", ".join(f"{value:g}" for value in case.epsilon)
    told = [
        f"the true codes have ‖x_{{j-1}} - D_j x_j‖ ≤ {limits}",
        f"the signal differs from x_0 by at most {case.noise:g}",
        *(text for layer in layers for text in layer.hypotheses),
    ]
    which = f"at most {counted(case.counts, case.conv)}" if case.masks is None else "the given supports"
    words = {
        "l0": f"codes with {which} are stable: any that explain the signal are near the true ones",
        "l1": f"true codes with {which} are found by layered basis pursuit up to an error",
        "lagrangian": f"true codes with {which} are found by the layered Lasso up to an error, with no other atom",
    }
    return Guarantee(
        proved, words[kind], tuple(tried), SOURCES[kind], tuple(decisive), (*told, *circular_hypotheses(named)), bounds
    )


def _input(j: int) -> str:
    """Return the name of the signal of the layer above j."""
    return f"x̂_{j}" if j else "ŷ"


def _distance(layer: int, norm: int | str) -> str:
    return f"layer {layer}: ‖x̂ - x‖_{norm}"


def _up(value: float) -> float:
    """Return a number moved up past the rounding of the few operations that made it."""
    return value * OUTWARDS


def _numbers(name: str, value: object, layers: int, *, strict: bool = False) -> tuple[float, ...]:
    value = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    return tuple(require_number(name, item, minimum=0, strict=strict) for item in per_layer(name, value, layers))
