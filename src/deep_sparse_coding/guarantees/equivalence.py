"""Does ℓ1 find the sparsest codes? Statement G2, before any signal is seen or for one known support."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deep_sparse_coding.checks import per_layer
from deep_sparse_coding.dictionaries import Cascade, ConvDictionary, DenseDictionary, Dictionary, as_cascade
from deep_sparse_coding.errors import ParameterError, ShapeError, UnsupportedError

from .babel import Atoms, check_counts, circular_hypotheses, counted, largest_count
from .conditioning import factorize
from .guarantee import Condition, Guarantee

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
    masks = None if supports is None else _check_supports(model, supports)
    counts = _check_sparsity(model, sparsity, masks)
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
    ratio = _norm_ratio(atoms.dictionary)
    conditions = []
    if isinstance(atoms.dictionary, DenseDictionary):
        mass = (1 + ratio) * s - 1
        whole = math.floor(mass)
        part = mass - whole
        value = atoms.babel(whole)
        if part:
            value = (1 - part) * value + part * atoms.babel(whole + 1)
        name = f"μ_1({2 * s - 1})" if whole == 2 * s - 1 and part < 1e-3 else f"μ_1({mass:.4g})"
        conditions.append(Condition(name, value, 1.0, layer, atoms.slack(value, whole + 1)))
    value = atoms.babel(s - 1) + ratio * atoms.babel(s)
    name = f"μ_1({s - 1}) + μ_1({s})" if ratio < 1.001 else f"μ_1({s - 1}) + {ratio:.4g}·μ_1({s})"
    slack = ratio * (atoms.slack(value, s - 1) + atoms.slack(value, s))
    conditions.append(Condition(name, value, 1.0, layer, slack))
    mu = ((1 + ratio) * s - 1) * atoms.babel(1)
    conditions.append(Condition(f"{(1 + ratio) * s - 1:.4g}·μ", mu, 1.0, layer, 2 * ratio * s * atoms.slack(mu, 1)))
    return conditions


def _norm_ratio(dictionary: Dictionary) -> float:
    """Return ``max‖d_i‖ / min‖d_i‖``, rounded up."""
    norms = dictionary.column_norms()
    error = (dictionary.analysis_terms + 4) * _EPS
    return float(norms.max() / norms.min()) * (1 + 2 * error)


def _support_forms(layer: Dictionary, mask: Tensor, number: int) -> list[Condition]:
    """Return ``a(S) + b(S)`` and ``max_{i∉S} ‖D_S^† d_i‖_1`` for a dense dictionary."""
    matrix = layer.weight.detach().double()
    size = int(mask.sum())
    norms = layer.column_norms()
    gram = (matrix.T @ matrix / (norms[:, None] * norms[None, :])).abs().fill_diagonal_(0.0)
    sums = gram[:, mask].sum(1)
    inside = float(sums[mask].max())
    outside = float(sums[~mask].max()) if size < layer.atoms else 0.0
    ratio = _norm_ratio(layer)
    value = inside + ratio * outside
    atoms = Atoms(layer)
    slack = ratio * 2 * atoms.slack(value, size)
    conditions = [Condition("a(S) + b(S)", value, 1.0, number, slack)]
    value, slack = _exact_recovery(matrix, mask)
    return [*conditions, Condition("max ‖D_S^† d_i‖_1", value, 1.0, number, slack)]


def _exact_recovery(matrix: Tensor, mask: Tensor) -> tuple[float, float]:
    """Return ``max_{i∉S} ‖D_S^† d_i‖_1`` and a bound on its error; inf if D_S is not proved injective.

    The computed X errs by ``G_S^{-1}D_S^T(D_S X - D_{S^c})``, of norm at most that of the last factors over σ_min².
    """
    inside, outside = matrix[:, mask].cpu().numpy(), matrix[:, ~mask].cpu().numpy()
    if not outside.shape[1]:
        return 0.0, 0.0
    d, size = inside.shape
    factor = factorize(inside, d)
    if factor.squared <= 0:
        return math.inf, 0.0
    solved = factor.solve(inside.T @ outside)
    solved = solved + factor.solve(inside.T @ (outside - inside @ solved))
    rest = outside - inside @ solved
    defect = inside.T @ rest
    # Rounding of the residual, then of its correlations, by column.
    trace = float((inside**2).sum())
    absolute = abs(inside) @ abs(solved) + abs(outside)
    rounding = math.sqrt(trace) * _EPS * ((size + 2) * (absolute**2).sum(0) ** 0.5 + (d + 2) * (rest**2).sum(0) ** 0.5)
    errors = ((defect**2).sum(0) ** 0.5 + rounding) * math.sqrt(size) / factor.squared
    values = abs(solved).sum(0)
    worst = int((values + errors).argmax())
    return float(values[worst]), float(errors[worst]) + size * _EPS * float(values[worst])


def _check_supports(model: Cascade, supports: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    if isinstance(supports, Tensor):
        supports = (supports,)
    given = per_layer("supports", tuple(supports), len(model))
    masks = []
    for j, (layer, support) in enumerate(zip(model.layers, given, strict=True)):
        if not isinstance(layer, DenseDictionary):
            raise UnsupportedError(
                "supports are given for a convolutional model; conditions for one support are offered for dense "
                "dictionaries only: pass sparsity (stripe_sparsity of the codes), or solve and use posterior"
            )
        if not isinstance(support, Tensor) or tuple(support.shape) != (layer.atoms,):
            got = tuple(support.shape) if isinstance(support, Tensor) else type(support).__name__
            raise ShapeError(f"supports[{j}] is {got}; expected a tensor of shape ({layer.atoms},): one code or mask")
        mask = (support.detach() != 0).to(layer.device)
        if not bool(mask.any()):
            raise ParameterError(f"supports[{j}] is empty; expected at least one atom in every layer")
        masks.append(mask)
    return tuple(masks)


def _check_sparsity(
    model: Cascade, sparsity: int | Sequence[int] | None, masks: tuple[Tensor, ...] | None
) -> tuple[int, ...]:
    own = None if masks is None else tuple(int(mask.sum()) for mask in masks)
    if sparsity is None:
        if own is None:
            raise ParameterError("neither sparsity nor supports is given; expected one of them")
        return own
    counts = check_counts("sparsity", sparsity, len(model))
    for j, (s, size) in enumerate(zip(counts, own or counts, strict=True)):
        if s < size:
            raise ParameterError(f"sparsity[{j}] is {s} but its support has {size} atoms; expected at least {size}")
    return counts if own is None else own
