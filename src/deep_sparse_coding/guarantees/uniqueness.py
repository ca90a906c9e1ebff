"""Is a code the only one with so few non-zeros? Statement G1, before any signal is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deep_sparse_coding.checks import check_flag
from deep_sparse_coding.dictionaries import Cascade, ConvDictionary, Dictionary, as_cascade

from .babel import Atoms, check_counts, circular_hypotheses, composite, counted, covers, largest_count
from .guarantee import Condition, Guarantee

SOURCE = "G1 of docs/theory.md; Li, Feng & Zhou 2024, Theorem 1; Donoho & Elad 2003"


@dataclass(frozen=True)
class Counts:
    """How many non-zeros a solution at hand (`own`) and a rival have, in one layer."""

    own: int
    rival: int

    def times(self, factor: int) -> Counts:
        """Return both counts multiplied by a number of stripes."""
        return Counts(self.own * factor, self.rival * factor)


def uniqueness(
    model: Dictionary | Cascade,
    sparsity: int | Sequence[int],
    *,
    nonnegative: bool = False,
    rivals: int | Sequence[int] | None = None,
) -> Guarantee:
    """Prove that exact codes ``y = D_1 x_1, x_1 = D_2 x_2, ...`` with so few non-zeros are the only ones.

    Per layer it is enough that ``μ_1(2κ - 1) < 1``, for which ``(2κ - 1)μ < 1`` suffices; the first is never weaker and
    decides, the second is shown beside it. For non-negative codes ``max_i(top_{κ-1}(G⁻_il) + top_κ(G⁺_il)) < 1`` is
    enough as well. A layer that meets none can be skipped where the product of dictionaries across it meets one. At
    equality uniqueness can fail, so an instance within rounding of it is not proved.

    Args:
        model: A dictionary or a cascade.
        sparsity: κ, the most non-zeros of a code: one number, or one per layer. For convolutional layers the most
            non-zeros per stripe (`stripe_sparsity`), whatever the image's size.
        nonnegative: Whether only codes at or above zero compete.
        rivals: The most non-zeros of a rival, if `sparsity` is that of a solution at hand: then ``μ_1(s + κ - 1) < 1``.

    Raises:
        DictionaryError: Not a model, or its atoms were changed to zero or non-finite ones.
        ParameterError: A count below 1, or not one per layer; `nonnegative` is neither True nor False.

    Source: G1 of docs/theory.md; Donoho & Elad 2003; Papyan, Sulam & Elad 2017 for stripes.
    """
    model = as_cascade(model)
    nonnegative = check_flag("nonnegative", nonnegative)
    depth = len(model)
    own = check_counts("sparsity", sparsity, depth)
    rival = own if rivals is None else check_counts("rivals", rivals, depth)
    counts = [Counts(s, k) for s, k in zip(own, rival, strict=True)]

    options = [forms(Atoms(layer), counts[j], nonnegative, j + 1, "") for j, layer in enumerate(model.layers)]
    tried = [condition for layer in options for condition in layer]
    spans = [(j, j + 1) for j in range(depth)]
    decisive = [sharpest(layer) for layer in options]
    proved = all(condition.holds for condition in decisive)
    if not proved and depth > 1:
        route, more = _skip(model, counts, nonnegative, decisive)
        tried += more
        if route is not None:
            proved, spans, decisive = True, [span for span, _ in route], [condition for _, condition in route]
    if not proved:
        decisive = [condition for condition in decisive if not condition.holds]

    conv = isinstance(model.layers[0], ConvDictionary)
    used = [(f"layer {a + 1}", model.layers[a]) for a, b in spans if b == a + 1]
    wide = [(f"layer {a + 1}", composite(model, a + 1, b)) for a, b in spans if b > a + 1]
    used += [(name, atoms.dictionary) for name, atoms in wide if atoms is not None]
    bounds = {
        f"largest κ proved for layer {j + 1} alone": float(
            largest_count(
                lambda k, layer=layer: sharpest(forms(Atoms(layer), Counts(k, k), nonnegative, 1, "")).holds,
                layer.gram_rows(slice(0, 1)).numel(),
            )
        )
        for j, layer in enumerate(model.layers)
    }
    return Guarantee(
        proved,
        _statement(own, None if rivals is None else rival, conv, nonnegative),
        tuple(tried),
        SOURCE,
        tuple(decisive),
        ("the codes are exact (ε = 0)", *circular_hypotheses(used)),
        bounds,
    )


def forms(atoms: Atoms, counts: Counts, nonnegative: bool, layer: int, prefix: str) -> list[Condition]:
    """Return every form of G1's condition for one dictionary."""
    total = counts.own + counts.rival - 1
    name = f"{prefix}μ_1({total})"
    value = atoms.babel(total)
    conditions = [Condition(name, value, 1.0, layer, atoms.slack(value, total))]
    if total > 1:
        mu = total * atoms.babel(1)
        conditions.append(Condition(f"{prefix}{total}·μ", mu, 1.0, layer, total * atoms.slack(mu, 1)))
    if nonnegative:
        # At the largest entry of the codes' difference, of either sign: the others of that sign, and those against.
        pairs = {(counts.own - 1, counts.rival), (counts.rival - 1, counts.own)}
        value, low, high = max((atoms.one_sided(low, high), low, high) for low, high in pairs)
        slack = max(atoms.slack(value, low) + atoms.slack(value, high) for low, high in pairs)
        name = f"{prefix}top_{low}(G⁻) + top_{high}(G⁺)"
        conditions.append(Condition(name, value, 1.0, layer, slack))
    return conditions


def sharpest(conditions: Sequence[Condition]) -> Condition:
    """Return the condition with the most room."""
    return max(conditions, key=lambda condition: condition.margin - condition.slack)


def _skip(
    model: Cascade, counts: list[Counts], nonnegative: bool, direct: list[Condition]
) -> tuple[list[tuple[tuple[int, int], Condition]] | None, list[Condition]]:
    """Return a route ``0 = a_0 < ... < a_r = J`` whose products all meet the condition, if any; and all tried."""
    depth = len(model)
    routes: dict[int, list[tuple[tuple[int, int], Condition]]] = {0: []}
    tried = []
    for end in range(1, depth + 1):
        for start in range(end - 1, -1, -1):
            if start not in routes or end in routes:
                continue
            if end == start + 1:
                condition = direct[start]
            else:
                condition = _product(model, start + 1, end, counts[end - 1], nonnegative)
                tried.append(condition)
            if condition.holds:
                routes[end] = [*routes[start], ((start, end), condition)]
    return routes.get(depth), tried


def _product(model: Cascade, first: int, last: int, counts: Counts, nonnegative: bool) -> Condition:
    prefix = "".join(f"D_{j}" for j in range(first, last + 1)) + ": "
    atoms = composite(model, first, last)
    if atoms is None:
        return Condition(f"{prefix}a product without zero columns", float("nan"), 1.0, last)
    wider = counts.times(covers(model.layers[last - 1], atoms.dictionary))
    return sharpest(forms(atoms, wider, nonnegative, last, prefix))


def _statement(own: tuple[int, ...], rival: tuple[int, ...] | None, conv: bool, nonnegative: bool) -> str:
    kind = "non-negative codes" if nonnegative else "codes"
    if rival is None:
        return f"a signal has at most one set of exact {kind} with at most {counted(own, conv)}"
    against = counted(rival, conv)
    return f"exact {kind} with {counted(own, conv)} have no rival with at most {against}"
