"""How alike the atoms are: Babel function, its one-sided and cumulative relatives, from rows of the Gram matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checks import require_finite_atoms, require_integer
from ..errors import DictionaryError

if TYPE_CHECKING:
    from .base import Dictionary

# Rows of the Gram matrix are visited in blocks of about this many entries: 128 MB of float64.
_BLOCK_ENTRIES = 1 << 24


def top_sum(values: Tensor, s: int) -> Tensor:
    """Return the sum of the `s` largest entries along the last axis (all of them if there are fewer; 0 for s = 0)."""
    count = min(s, values.shape[-1])
    if count == 0:
        return values.new_zeros(values.shape[:-1])
    if count == 1:
        return values.amax(-1)
    return values.topk(count, dim=-1, sorted=False).values.sum(-1)


def require_sound_atoms(dictionary: Dictionary) -> None:
    """Raise if atoms that were changed after the dictionary was built are zero or not finite.

    Raises:
        DictionaryError: With the first such atom.
    """
    require_finite_atoms("the dictionary", dictionary.weight.detach())
    zero = (dictionary.column_norms() == 0).nonzero()
    if len(zero):
        raise DictionaryError(
            f"atom {int(zero[0])} of {dictionary.atoms} is zero; expected atoms that are not: remove it, or draw it "
            "anew"
        )


def off_diagonal_rows(dictionary: Dictionary) -> Iterator[tuple[slice, Tensor]]:
    """Yield blocks of rows of the normalized Gram matrix, own entries set to 0, shape ``(rows, atoms, lags)``."""
    require_sound_atoms(dictionary)
    exact = dictionary.cast(torch.float64)
    norms = exact.column_norms()
    probe = exact.gram_rows(slice(0, 1))
    block = max(1, _BLOCK_ENTRIES // max(1, probe.numel()))
    for start in range(0, exact.atoms, block):
        rows = slice(start, min(start + block, exact.atoms))
        gram = exact.gram_rows(rows) / (norms[rows, None, None] * norms[None, :, None])
        own = torch.arange(rows.start, rows.stop, device=gram.device)
        gram[own - rows.start, own, gram.shape[-1] // 2] = 0.0
        yield rows, gram


def largest_row(dictionary: Dictionary, measure: Callable[[Tensor], Tensor]) -> float:
    """Return the largest `measure` of a row, given off-diagonal entries flattened to ``(rows, atoms · lags)``."""
    return float(torch.stack([measure(gram.flatten(1)).max() for _, gram in off_diagonal_rows(dictionary)]).max())


def babel(dictionary: Dictionary, s: int) -> float:
    """Return ``μ_1(s) = max_i top_s(|G_il|, l ≠ i)`` (Tropp 2004)."""
    return largest_row(dictionary, lambda gram: top_sum(gram.abs(), s))


def one_sided_babel(dictionary: Dictionary, negative: int, positive: int) -> float:
    """Return ``max_i ( top_negative(G⁻_il) + top_positive(G⁺_il) )`` over ``l ≠ i``, the non-negative form of G1.

    Args:
        dictionary: The atoms.
        negative: How many entries of the negative part are added up.
        positive: How many of the positive part.

    Source: statement G1 of docs/theory.md, non-negative codes.
    """
    negative, positive = (
        require_integer(name, count, minimum=0) for name, count in (("negative", negative), ("positive", positive))
    )

    def measure(gram: Tensor) -> Tensor:
        return top_sum((-gram).clamp_min(0), negative) + top_sum(gram.clamp_min(0), positive)

    return largest_row(dictionary, measure)
