"""The settings of a Lasso's penalty beyond weights: how bounds and groups are given, checked and laid out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_float_tensor, require_integer, require_number
from deep_sparse_coding.dictionaries import DenseDictionary, Dictionary
from deep_sparse_coding.errors import ParameterError, UnsupportedError

from .groups import Groups
from .penalties import Box, Penalty
from .weights import expand_atoms

Bound = float | Tensor
# "channels", or the atoms of every group.
Grouping = str | Sequence[Sequence[int]]


def check_box(box: object, dictionary: Dictionary) -> tuple[Bound, Bound] | None:
    """Return the bounds of the codes in the dictionary's dtype, or None.

    A bound that the dtype cannot hold is rounded toward zero: codes can then stand at it, and keep to what was asked.

    Raises:
        ParameterError: No pair, or no ``lower ≤ 0 ≤ upper``.
        DtypeError: A tensor that is not float32 or float64.
    """
    if box is None:
        return None
    if isinstance(box, Tensor | str) or not isinstance(box, Sequence) or len(box) != 2:
        got = f"has {len(box)} entries" if isinstance(box, tuple | list) else f"is a {type(box).__name__}"
        raise ParameterError(f"box {got}; expected a pair (lower, upper) of numbers or tensors, one entry per atom")
    return _check_bound("box[0]", box[0], dictionary, -1.0), _check_bound("box[1]", box[1], dictionary, 1.0)


def _check_bound(name: str, bound: object, dictionary: Dictionary, sign: float) -> Bound:
    if not isinstance(bound, Tensor) or not bound.ndim:
        least, most = (0.0, math.inf) if sign > 0 else (-math.inf, 0.0)
        number = require_number(name, bound, minimum=least, maximum=most, finite=False)
        return float(_round_toward_zero(torch.tensor(number, dtype=torch.float64), dictionary.dtype))
    values = require_float_tensor(name, bound).detach()
    bad = ~(sign * values >= 0)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ParameterError(
            f"{name} has {int(bad.sum())} entries that are {'negative' if sign > 0 else 'positive'} or NaN, the first "
            f"at {where}: {float(values[where])}; expected lower bounds of at most 0 and upper bounds of at least 0: "
            "zero codes must be allowed"
        )
    return _round_toward_zero(values, dictionary.dtype).to(dictionary.device)


def _round_toward_zero(values: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = values.to(dtype)
    beyond = rounded.to(values.dtype).abs() > values.abs()
    return torch.where(beyond, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)


def check_groups(groups: object, dictionary: Dictionary) -> Grouping | None:
    """Return "channels" or the atoms of every group, or None.

    Raises:
        ParameterError: Something else, "channels" of a dense dictionary, or groups that are no partition of the atoms.
    """
    if groups is None:
        return None
    if isinstance(groups, str) and groups == "channels":
        if isinstance(dictionary, DenseDictionary):
            raise ParameterError(
                "groups='channels' takes the atoms at one place together and a dense dictionary has no places; "
                "expected a partition of its atoms, such as [[0, 1], [2, 3, 4]]"
            )
        return groups
    if isinstance(groups, str | bytes) or not isinstance(groups, Sequence):
        raise ParameterError(
            f"groups is {groups!r}; expected 'channels' or a partition of the atoms, such as [[0, 1], [2, 3, 4]]"
        )
    lists = []
    for i, group in enumerate(groups):
        members = group.tolist() if isinstance(group, Tensor) else group
        if isinstance(members, str | bytes) or not isinstance(members, Sequence):
            raise ParameterError(f"groups[{i}] is {group!r}; expected a list of atoms")
        if not members:
            raise ParameterError(f"groups[{i}] is empty; expected at least one atom in each group")
        lists.append(tuple(require_integer(f"groups[{i}][{k}]", atom, minimum=0) for k, atom in enumerate(members)))
    named = [atom for group in lists for atom in group]
    expected = set(range(dictionary.atoms))
    twice = sorted({atom for atom in named if named.count(atom) > 1}) if len(set(named)) < len(named) else []
    for atoms, what in (
        (sorted(set(named) - expected), f"name atoms that do not exist (there are {dictionary.atoms})"),
        (twice, "name atoms more than once"),
        (sorted(expected - set(named)), "leave out atoms"),
    ):
        if atoms:
            shown = ", ".join(map(str, atoms[:5])) + (", ..." if len(atoms) > 5 else "")
            raise ParameterError(f"groups {what}: {shown}; expected every atom in exactly one group")
    return tuple(lists)


def require_no_bounds_with_groups(box: tuple[Bound, Bound] | None, groups: Grouping | None) -> None:
    """Raise if there are groups and bounds other than 0 and infinity.

    Raises:
        UnsupportedError: The proximal step and the conjugate of both together have no closed form.
    """
    if groups is None or box is None:
        return
    lower, upper = map(torch.as_tensor, box)
    if bool(torch.isinf(upper).all()) and (bool((lower == 0).all()) or bool(torch.isinf(lower).all())):
        return
    raise UnsupportedError(
        "groups and box are given together, and no solver takes both; expected one of them: with groups codes may be "
        "held at or above zero by nonnegative=True"
    )


def lay_out(
    box: tuple[Bound, Bound] | None,
    groups: Grouping | None,
    nonnegative: bool,
    weights: Tensor,
    code_shape: tuple[int, ...],
) -> tuple[bool, Penalty | None]:
    """Return whether codes are non-negative with no other bound, and the penalty if it is more than that.

    Args:
        box: As `check_box` returns it.
        groups: As `check_groups` returns it.
        nonnegative: Of the problem.
        weights: ``(1 or batch, ...)``.
        code_shape: Of one sample.

    Raises:
        ParameterError: Weights that differ within a group.
        ShapeError: Bounds that do not fit the codes.
    """
    structure: Penalty | None = None
    if box is not None:
        kind = {"dtype": weights.dtype, "device": weights.device}
        ones = (1,) * (1 + len(code_shape))
        lower, upper = (
            expand_atoms(f"box[{i}]", bound.to(**kind), code_shape)
            if isinstance(bound, Tensor)
            else torch.full(ones, bound, **kind)
            for i, bound in enumerate(box)
        )
        lower = lower.clamp_min(0) if nonnegative else lower
        without_upper = bool(torch.isinf(upper).all())
        nonnegative = without_upper and bool((lower == 0).all())
        if not nonnegative and not (without_upper and bool(torch.isinf(lower).all())):
            structure = Box((lower,), (upper,))
    if groups is not None:
        members = (range(code_shape[0]),) if isinstance(groups, str) else groups
        index = torch.empty(code_shape[0], dtype=torch.int64)
        for g, atoms in enumerate(members):
            index[list(atoms)] = g
        first = torch.tensor([atoms[0] for atoms in members], dtype=torch.int64)
        structure = Groups((index.to(weights.device),), (first.to(weights.device),), nonnegative)
        _require_equal_weights(weights.detach(), structure, members)
    return nonnegative, structure


def _require_equal_weights(weights: Tensor, structure: Groups, members: Sequence[Sequence[int]]) -> None:
    if weights.shape[1] == 1:
        return
    (shared,) = structure.spread(structure.of_groups((weights,)))
    differ = (weights != shared).movedim(1, 0).flatten(1).any(1).nonzero()
    if len(differ):
        g = int(structure.index[0][differ[0, 0]])
        raise ParameterError(
            f"lam or weights differ within groups[{g}] (atoms {', '.join(map(str, members[g]))}); expected one weight "
            "for all atoms of a group: a group's penalty is lam·w·‖x_g‖₂"
        )
