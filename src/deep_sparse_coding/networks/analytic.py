"""Analytic weights: the W that is least coherent with the atoms in the mean, in closed form (N5)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..dictionaries import ConvDictionary, Dictionary
from ..errors import DictionaryError


def analytic_weights(dictionary: Dictionary) -> Tensor:
    """Return ``W ∝ (DDᵀ)^† D`` with ``w_iᵀ d_i = 1``, float64, in the shape of the dictionary's weight.

    It has the least ``‖Wᵀ D‖_F`` under that constraint. Convolutional: kernels ``w_c ∝ M^† d_c`` of the same size, M
    the sum of ``d dᵀ`` over all shifted atoms, cut to the place of one: least in the mean over all lags.

    Raises:
        DictionaryError: An atom with which no weights can have the product 1 (it is zero).

    Source: N5 of docs/theory.md; Liu, Chen, Wang & Yin 2019.
    """
    weight = dictionary.weight.detach().double()
    if isinstance(dictionary, ConvDictionary):
        atoms = weight.flatten(1)
        seen = torch.cat([atom.flatten(1) for atom in _shifted(weight, dictionary.stride)])
    else:
        atoms = weight.T
        seen = atoms
    raised = torch.linalg.pinv(seen.T @ seen, hermitian=True) @ atoms.T
    products = (raised * atoms.T).sum(0)
    if not bool((products > 0).all()):
        raise DictionaryError("an atom is zero or not finite; expected atoms that are neither")
    raised = raised / products
    return raised.T.reshape(weight.shape) if isinstance(dictionary, ConvDictionary) else raised


def _shifted(kernels: Tensor, stride: tuple[int, ...]) -> list[Tensor]:
    """Return the kernels moved by every lag at which they still overlap one place, what leaves it cut off."""
    size = tuple(kernels.shape[2:])
    lags = [(k - 1) // q for k, q in zip(size, stride, strict=True)]
    padding = [n for lag, q in zip(reversed(lags), reversed(stride), strict=True) for n in (lag * q, lag * q)]
    wide = F.pad(kernels, padding)
    moved = []
    for place in itertools.product(*(range(2 * lag + 1) for lag in lags)):
        cut = wide
        for axis, (at, q, k) in enumerate(zip(place, stride, size, strict=True), start=2):
            cut = cut.narrow(axis, at * q, k)
        moved.append(cut)
    return moved
