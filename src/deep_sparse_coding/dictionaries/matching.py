"""Are these the same atoms? The best one-to-one match of two dictionaries, up to order, sign and shift."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DictionaryError
from .base import Dictionary
from .convolutional import ConvDictionary


@dataclass(frozen=True)
class Match:
    """The best pairing of two dictionaries' atoms.

    Attributes:
        permutation: Atom i of the first goes with atom ``permutation[i]`` of the second.
        signs: +1 or -1.
        cosines: ``|⟨d_i, d'_l⟩|`` of each pair, at the best lag for kernels; 1 for the same atom.
    """

    permutation: Tensor
    signs: Tensor
    cosines: Tensor

    def __str__(self) -> str:
        found = int((self.cosines > 0.99).sum())
        return (
            f"{found} of {len(self.cosines)} atoms found (cosine above 0.99) · "
            f"median cosine {self.cosines.median():.3f} · smallest {self.cosines.min():.3f}"
        )


def match(dictionary: Dictionary, other: Dictionary) -> Match:
    """Pair the atoms of two dictionaries so that the sum of their cosines is largest (an assignment problem).

    Args:
        dictionary: The first.
        other: One of the same kind with as many atoms of the same shape.

    Returns:
        Permutation, signs and cosines, on the first dictionary's device; kernels may be shifted against each other by
        multiples of the stride.

    Raises:
        DictionaryError: Other shapes or another kind.

    Source: Kuhn 1955 for the assignment; the measure of recovered atoms is that of Aharon, Elad & Bruckstein 2006.
    """
    for given in (dictionary, other):
        if not isinstance(given, Dictionary):
            raise DictionaryError(
                f"cannot match a {type(given).__name__}; expected two dictionaries: of a cascade take .layers[j]"
            )
    if type(dictionary) is not type(other) or dictionary.weight.shape != other.weight.shape:
        raise DictionaryError(f"cannot match {dictionary!r} with {other!r}; expected the same kind and shape")
    from scipy.optimize import linear_sum_assignment

    first, second = _whole(dictionary).cast(torch.float64), _whole(other).cast(torch.float64)
    cosines = second.gram_rows(analysis=first.weight) / (
        first.column_norms()[:, None, None] * second.column_norms()[None, :, None]
    )
    best = cosines.abs().max(-1)
    signed = cosines.gather(-1, best.indices[..., None])[..., 0]
    _, columns = linear_sum_assignment(best.values.cpu().numpy(), maximize=True)
    permutation = torch.as_tensor(columns, device=signed.device)
    chosen = signed.gather(1, permutation[:, None])[:, 0]
    return Match(permutation, torch.where(chosen < 0, -1.0, 1.0).to(chosen.dtype), chosen.abs())


def _whole(dictionary: Dictionary) -> Dictionary:
    """Return the dictionary with atoms that no border cuts off."""
    return dictionary.with_boundary("valid") if isinstance(dictionary, ConvDictionary) else dictionary
