"""Atoms held apart: moved as little as it takes until no two, at any lag, are more alike than a limit."""

from __future__ import annotations

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_number
from deep_sparse_coding.dictionaries import ConvDictionary, DenseDictionary, Dictionary
from deep_sparse_coding.errors import ParameterError

from .updates import Lags, apply_gram, from_rows, project_atoms

# Atoms are brought this much below the limit, so that rounding to float32 does not lift them above it.
_MARGIN = 1e-6
_STEP = 0.5


def coherence_of(dictionary: Dictionary, rows: Tensor) -> float:
    """Return the largest cosine between two atoms, at any lag, of unit atoms ``(atoms, K, channels)``."""
    return float(_off_diagonal(dictionary, rows).abs().amax()) if _has_pairs(dictionary) else 0.0


def decohere(
    dictionary: Dictionary, rows: Tensor, table: Lags, limit: float, *, nonnegative: bool, nonzeros: int, steps: int
) -> Tensor:
    """Return unit atoms near `rows` whose cosines are at most `limit`, as far as `steps` gradient steps bring them.

    They descend ``½ Σ_{i≠l,s} (|G_il(s)| - limit)₊²``, a penalty on the Gram matrix beyond the limit: its gradient is
    the excess of the Gram matrix applied to the atoms, and what is within the limit is left alone.

    Args:
        dictionary: Which stride and boundary.
        rows: ``(atoms, K, channels)``, unit norm, float64.
        table: As `updates.lag_table` gives it.
        limit: In (0, 1).
        nonnegative: Hold the atoms at or above zero.
        nonzeros: Non-zeros of an atom; 0 for no limit.
        steps: The most steps.

    Source: Sigg, Dikk & Buhmann 2012 (a penalty on the Gram matrix while learning); Elad 2007 (shrinking what exceeds).
    """
    if not _has_pairs(dictionary):
        return rows
    everyone = torch.ones(len(rows), dtype=torch.bool)
    goal = limit - _MARGIN
    for _ in range(steps):
        gram = _off_diagonal(dictionary, rows)
        if float(gram.abs().amax()) <= limit - 0.5 * _MARGIN:
            break
        excess = gram.sign() * (gram.abs() - goal).clamp_min(0)
        # A row sum bounds the curvature where excesses are many; few and small ones take the whole step.
        busy = (excess != 0).double().sum((1, 2)).clamp_min(1.0).sqrt()
        gradient = torch.zeros_like(rows)
        for i, product in apply_gram(rows, excess, table, everyone):
            gradient[i] = product / busy[i]
        rows = project_atoms(rows - _STEP * gradient, rows, nonnegative, nonzeros)
    return rows


def welch_bound(dictionary: Dictionary) -> float:
    """Return a coherence that no dense dictionary of this shape is below; 0 for convolutions and square matrices."""
    if not isinstance(dictionary, DenseDictionary):
        return 0.0
    d, m = dictionary.channels, dictionary.atoms
    return ((m - d) / (d * (m - 1))) ** 0.5 if m > d else 0.0


def check_coherence(limit: object, dictionary: Dictionary) -> float:
    """Return a limit on the cosines of atoms, 1 for None.

    Args:
        limit: What the user gave.
        dictionary: Of the kind to be learned.

    Raises:
        ParameterError: Not in (0, 1], or below what any atoms of this number reach.
    """
    if limit is None:
        return 1.0
    value = require_number("coherence", limit, minimum=0.0, maximum=1.0, strict=True)
    least = welch_bound(dictionary)
    if value < least:
        raise ParameterError(
            f"coherence is {value:g}, and no {dictionary.atoms} atoms of {dictionary.channels} entries have less than "
            f"{least:.4g} (the Welch bound); expected more than that, or fewer atoms"
        )
    return value


def _has_pairs(dictionary: Dictionary) -> bool:
    shifts = isinstance(dictionary, ConvDictionary) and any(dictionary.lags)
    return dictionary.atoms > 1 or shifts


def _off_diagonal(dictionary: Dictionary, rows: Tensor) -> Tensor:
    """Return the Gram matrix at all lags without an atom's product with itself, ``(atoms, atoms, lags)``."""
    if isinstance(dictionary, DenseDictionary):
        gram = (rows[:, 0] @ rows[:, 0].T)[..., None]
    else:
        gram = from_rows(dictionary.cast(torch.float64), rows).gram_rows().reshape(len(rows), len(rows), -1)
    gram = gram.clone()
    own = torch.arange(len(rows))
    gram[own, own, gram.shape[2] // 2] = 0.0
    return gram
