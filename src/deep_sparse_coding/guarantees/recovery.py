"""How likely ℓ1 finds codes with random signs: statement G8, where the worst case says nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deep_sparse_coding.checks import per_axis
from deep_sparse_coding.dictionaries import Cascade, ConvDictionary, Dictionary, as_cascade
from deep_sparse_coding.dictionaries.coherence import off_diagonal_rows, top_sum
from deep_sparse_coding.errors import ParameterError

from .babel import Atoms, circular_hypotheses, counted, norm_ratio
from .guarantee import Condition, Guarantee
from .supports import check_sparsity, check_supports, seen_from

SOURCE = "G8 of docs/theory.md; Fuchs 2004; cf. Tropp 2008"
_EPS = torch.finfo(torch.float64).eps
# Up to so many non-zeros on one known support all sign patterns are gone through, and the probability is exact.
_ENUMERATED = 14


def recovery(
    model: Dictionary | Cascade,
    sparsity: int | Sequence[int] | None = None,
    *,
    supports: Tensor | Sequence[Tensor] | None = None,
    size: int | Sequence[int] | None = None,
) -> Guarantee:
    """Bound the probability that the layered ℓ1 problem misses exact codes whose signs are independent and fair.

    For a support S with D_S injective it is at most ``2Σ_i exp(-1/(2‖D_S^† d_i‖_2²))``, over the atoms off S that do
    not fulfil ``‖D_S^† d_i‖_1 < 1``, the worst case. For all supports of s atoms ``‖D_S^† d_i‖_2`` is at most
    ``√top_s(G_il²)/(1 - μ_1(s-1))``. For one known support of up to 14 atoms all sign patterns are gone through.

    Args:
        model: A dictionary or a cascade.
        sparsity: s, one number or one per layer (per stripe for convolutional layers); None: that of `supports`.
        supports: One support per layer of a dense model, ``(atoms,)`` each: True or non-zero (a code) on S.
        size: The spatial size of the signal, for convolutional models: it says how many atoms there are.

    Returns:
        A guarantee, proved if the bound is below 1; `bounds` has it for every layer and for all of them.

    Raises:
        DictionaryError: Not a model, or its atoms were changed to zero or non-finite ones.
        ParameterError: A count below 1, not one per layer, or below that of its support; a size of a dense model.
        ShapeError: A support that does not fit its layer.
        UnsupportedError: Supports for a convolutional model.

    Source: G8 of docs/theory.md: Hoeffding on Fuchs' condition.
    """
    model = as_cascade(model)
    masks = None if supports is None else check_supports(model, supports)
    counts = check_sparsity(model, sparsity, masks)
    positions = _positions(model, size)
    tried: list[Condition] = []
    decisive: list[Condition] = []
    bounds: dict[str, float] = {}
    random = []
    for j, (layer, s) in enumerate(zip(model.layers, counts, strict=True)):
        if masks is None:
            injective, failure = _every_support(layer, s, positions[j], j + 1)
        else:
            injective, failure = _one_support(layer, masks[j], j + 1)
        own = [injective] if failure is None else [injective, failure]
        tried += own
        decisive += own
        if injective.holds and failure is not None and math.isfinite(failure.value):
            bounds[f"layer {j + 1}: probability of failure"] = failure.value
            if failure.value > 0:
                random.append(j + 1)
    if len(bounds) == len(model):
        bounds["probability of failure"] = sum(bounds.values()) * (1 + 8 * _EPS)
        total = Condition("probability that a layer fails", bounds["probability of failure"], 1.0)
        if len(model) > 1:
            tried.append(total)
            decisive.append(total)
    proved = all(condition.holds for condition in decisive)
    if not proved:
        decisive = [condition for condition in decisive if not condition.holds]
    conv = isinstance(model.layers[0], ConvDictionary)
    named = [(f"layer {j}", layer) for j, layer in enumerate(model.layers, start=1)]
    told = [f"the signs of x_{j} are independent and fair, whatever its support" for j in random]
    if any(j < len(model) for j in random):
        told.append("in a cascade that asks that no two entries of x_{j-1} stem from the same entry of x_j")
    which = f"at most {counted(counts, conv)}" if masks is None else "the given supports"
    return Guarantee(
        proved,
        f"exact codes with {which} are the only solution of the layered ℓ1 problem, but for a few patterns of signs",
        tuple(tried),
        SOURCE,
        tuple(decisive),
        ("the codes are exact (ε = 0)", *told, *circular_hypotheses(named)),
        bounds,
    )


def _every_support(layer: Dictionary, s: int, positions: int | None, number: int) -> tuple[Condition, Condition | None]:
    """Return the condition that all D_S are injective, and that the probability of failure is below 1."""
    atoms = Atoms(layer)
    inner = atoms.babel(s - 1)
    slack = atoms.slack(inner, s)
    injective = Condition(f"μ_1({s - 1})", inner, 1.0, number, slack)
    if not injective.holds:
        return injective, None
    room = 1 - inner - slack
    ratio = norm_ratio(layer)
    exponents = []
    for _, gram in off_diagonal_rows(layer):
        rows = gram.flatten(1).abs()
        one = (top_sum(rows, s) + slack) * ratio / room
        two = (top_sum(rows.square(), s) + 2 * slack) * (ratio / room) ** 2
        exponents.append(torch.where(one < 1, -math.inf, -1 / (2 * two)))
    exponent = torch.cat(exponents)
    terms = exponent.exp().sort(descending=True).values
    if positions is None and bool((terms > 0).any()):
        return injective, Condition("size, which says how many atoms there are,", math.nan, 1.0, number)
    if positions is None or isinstance(layer, ConvDictionary):
        total = float(terms.sum()) * (positions or 0)
    else:
        total = float(terms[: max(layer.atoms - s, 0)].sum())
    return injective, Condition("probability of failure", 2 * total * (1 + 1e-12), 1.0, number)


def _one_support(layer: Dictionary, mask: Tensor, number: int) -> tuple[Condition, Condition | None]:
    """Return the same for one support; of few atoms by going through the signs, which is exact."""
    seen = seen_from(layer, mask)
    size, others = seen.values.shape
    if others and not math.isfinite(float(seen.errors[0])):
        return Condition("D_S that is proved injective", math.nan, 1.0, number), None
    injective = Condition("share of dependent atoms in S", 0.0, 1.0, number)
    values, errors = seen.values, seen.errors * math.sqrt(size) + 4 * size * _EPS * abs(seen.values).sum(0)
    if not others:
        return injective, Condition("probability of failure", 0.0, 1.0, number)
    if size <= _ENUMERATED:
        patterns = ((np.arange(2 ** (size - 1))[:, None] >> np.arange(size)) & 1) * 2.0 - 1.0
        failed = np.zeros(len(patterns), dtype=bool)
        for start in range(0, others, 256):
            block = slice(start, start + 256)
            failed |= (abs(patterns @ values[:, block]) + errors[block] >= 1).any(1)
        return injective, Condition("share of the sign patterns that fail", float(failed.mean()), 1.0, number)
    two = ((values**2).sum(0) ** 0.5 + seen.errors) ** 2 * (1 + 8 * _EPS)
    uncertain = abs(values).sum(0) + errors >= 1
    total = 2 * float(np.exp(-1 / (2 * two[uncertain])).sum()) * (1 + 1e-12)
    return injective, Condition("probability of failure", total, 1.0, number)


def _positions(model: Cascade, size: int | Sequence[int] | None) -> tuple[int | None, ...]:
    """Return how many positions each layer's code map has; None where no size is given."""
    first = model.layers[0]
    if size is None:
        return (None if isinstance(first, ConvDictionary) else 1,) * len(model)
    if not isinstance(first, ConvDictionary):
        raise ParameterError(f"size is {size}; expected None: a dense model has as many atoms as columns")
    grid = per_axis("size", size, first.axes)
    counts: list[int | None] = []
    for layer in model.layers:
        grid = tuple(layer.code_shape(grid)[1:])
        counts.append(math.prod(grid))
    return tuple(counts)
