"""Does ℓ1 find the sparsest codes? Statement G2, before any signal is seen or for one known support."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import Cascade, ConvDictionary, DenseDictionary, Dictionary, as_cascade

from .babel import Atoms, circular_hypotheses, counted, largest_count, norm_ratio
from .guarantee import Condition, Guarantee
from .supports import check_sparsity, check_supports, seen_from, support_sums

SOURCE = "G2 of docs/theory.md; Li, Feng & Zhou 2024, Theorem 2; Tropp 2004"
_EPS = torch.finfo(torch.float64).eps


def equivalence(
    model: Dictionary | Cascade,
    sparsity: int | Sequence[int] | None = None,
    *,
    supports: Tensor | Sequence[Tensor] | None = None,
) -> Guarantee:
    """Prove that exact codes with so few non-zeros are the only solution of the layered ℓ1 problem.

    Per layer, dense: ``μ_1(2s - 1) < 1`` (or ``μ_1(s) + μ_1(s-1) < 1``, ``s < ½(1 + 1/μ)``, which imply it);
    convolutional: ``μ_1(s) + μ_1(s-1) < 1`` with s per stripe. For one known support of a dense layer also
    ``a(S) + b(S) < 1`` or ``max_{i∉S} ‖D_S^† d_i‖_1 < 1``. Where atoms differ in norm, the ratio of the largest to the
    smallest enters (an ℓ1 norm favors long atoms).

    Args:
        model: A dictionary or a cascade.
        sparsity: s, one number or one per layer (per stripe for convolutional layers); None: that of `supports`.
        supports: One support per layer of a dense model, ``(atoms,)`` each: True or non-zero (a code) on S. The
            statement is then about codes with these supports.

    Raises:
        DictionaryError: Not a model, or its atoms were changed to zero or non-finite ones.
        ParameterError: A count below 1, not one per layer, or below that of its support; neither argument given.
        ShapeError: A support that does not fit its layer.
        UnsupportedError: Supports for a convolutional model.

    Source: G2 of docs/theory.md; Tropp 2004; Fuchs 2004.
    """
    model = as_cascade(model)
    masks = None if supports is None else check_supports(model, supports)
    counts = check_sparsity(model, sparsity, masks)
    tried, decisive = [], []
    for j, layer in enumerate(model.layers):
        options = _forms(Atoms(layer), counts[j], j + 1)
        if masks is not None:
            options += _support_forms(layer, masks[j], j + 1)
        tried += options
        decisive.append(max(options, key=lambda condition: condition.margin - condition.slack))
    proved = all(condition.holds for condition in decisive)
    if not proved:
        decisive = [condition for condition in decisive if not condition.holds]
    conv = isinstance(model.layers[0], ConvDictionary)
    which = f"at most {counted(counts, conv)}" if masks is None else f"the given supports, {counted(counts, conv)}"
    layers = [(f"layer {j}", layer) for j, layer in enumerate(model.layers, start=1)]
    bounds = {
        f"largest s proved for layer {j + 1}": float(
            largest_count(
                lambda k, layer=layer: any(form.holds for form in _forms(Atoms(layer), k, 1)),
                layer.gram_rows(slice(0, 1)).numel(),
            )
        )
        for j, layer in enumerate(model.layers)
    }
    return Guarantee(
        proved,
        f"exact codes with {which} are the only solution of the layered ℓ1 problem",
        tuple(tried),
        SOURCE,
        tuple(decisive),
        ("the codes are exact (ε = 0)", *circular_hypotheses(layers)),
        bounds,
    )


def _forms(atoms: Atoms, s: int, layer: int) -> list[Condition]:
    """Return the forms of G2 for all supports of s atoms.

    With norms ``n_i`` and ``q = max n / min n`` a null vector in units of the normalized atoms has
    ``‖h_{S^c}‖_1 ≤ q‖h_S‖_1``: its weights sum to at most ``(1 + q)s - 1``, or b(S) counts q times.
    """
    ratio = norm_ratio(atoms.dictionary)
    conditions = []
    if isinstance(atoms.dictionary, DenseDictionary):
        mass = (1 + ratio) * s - 1
        value = atoms.babel_mass(mass)
        name = f"μ_1({2 * s - 1})" if mass - (2 * s - 1) < 1e-3 else f"μ_1({mass:.4g})"
        conditions.append(Condition(name, value, 1.0, layer, atoms.slack(value, math.ceil(mass))))
    value = atoms.babel(s - 1) + ratio * atoms.babel(s)
    name = f"μ_1({s - 1}) + μ_1({s})" if ratio < 1.001 else f"μ_1({s - 1}) + {ratio:.4g}·μ_1({s})"
    slack = ratio * (atoms.slack(value, s - 1) + atoms.slack(value, s))
    conditions.append(Condition(name, value, 1.0, layer, slack))
    mu = ((1 + ratio) * s - 1) * atoms.babel(1)
    conditions.append(Condition(f"{(1 + ratio) * s - 1:.4g}·μ", mu, 1.0, layer, 2 * ratio * s * atoms.slack(mu, 1)))
    return conditions


def _support_forms(layer: Dictionary, mask: Tensor, number: int) -> list[Condition]:
    """Return ``a(S) + b(S)`` and ``max_{i∉S} ‖D_S^† d_i‖_1`` for a dense dictionary."""
    size = int(mask.sum())
    inside, outside = support_sums(layer, mask)
    ratio = norm_ratio(layer)
    value = inside + ratio * outside
    conditions = [Condition("a(S) + b(S)", value, 1.0, number, ratio * 2 * Atoms(layer).slack(value, size))]
    value, slack = _exact_recovery(layer, mask)
    return [*conditions, Condition("max ‖D_S^† d_i‖_1", value, 1.0, number, slack)]


def _exact_recovery(layer: Dictionary, mask: Tensor) -> tuple[float, float]:
    """Return ``max_{i∉S} ‖D_S^† d_i‖_1`` and a bound on its error; inf if D_S is not proved injective."""
    seen = seen_from(layer, mask)
    size, others = seen.values.shape
    if not others:
        return 0.0, 0.0
    if not math.isfinite(float(seen.errors[0])):
        return math.inf, 0.0
    values, errors = abs(seen.values).sum(0), seen.errors * math.sqrt(size)
    worst = int((values + errors).argmax())
    return float(values[worst]), float(errors[worst]) + size * _EPS * float(values[worst])
