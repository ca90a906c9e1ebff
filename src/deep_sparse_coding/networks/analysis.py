"""Analysis weights W for a dictionary: the atoms, ALISTA's closed form, or a linear program for the rate (N5)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..dictionaries import ConvDictionary, Dictionary
from ..errors import DictionaryError, ParameterError, UnsupportedError, near_misses
from ..guarantees.hypotheses import LayerHypotheses

WEIGHTS = ("atoms", "pseudo-inverse", "program")
# A program of more entries than this is solved only where it is asked for by name.
_PROGRAM_ENTRIES = 1 << 21
_MOST_ENTRIES = 1 << 26


def check_weights(weights: object) -> str:
    """Return `weights` if it is one of the kinds or "best".

    Raises:
        ParameterError: It is not.
    """
    offered = (*WEIGHTS, "best")
    if not isinstance(weights, str) or weights not in offered:
        words = ", ".join(repr(name) for name in offered)
        raise ParameterError(f"weights is {weights!r}; expected one of {words}{near_misses(str(weights), offered)}")
    return weights


def analysis_weights(dictionary: Dictionary, hypotheses: LayerHypotheses, weights: str) -> Tensor | None:
    """Return W of a kind, float64 and shaped like the dictionary's weight, ``w_iᵀd_i = 1``; None for the atoms.

    Args:
        dictionary: D.
        hypotheses: What is assumed of the layer's codes: how many entries of a row count, and whether signs do.
        weights: "atoms", "pseudo-inverse" or "program".

    Raises:
        UnsupportedError: A program that is too large.

    Source: statement N5 of docs/theory.md; the closed form: Liu, Chen, Wang & Yin 2019 (ALISTA).
    """
    if weights == "atoms":
        return None
    if weights == "pseudo-inverse":
        return analytic_weights(dictionary)
    if program_size(dictionary) > _MOST_ENTRIES:
        raise UnsupportedError(
            f"the program for the weights of layer {hypotheses.layer} has {program_size(dictionary)} entries for "
            f"{dictionary!r}; expected at most {_MOST_ENTRIES}: use weights='pseudo-inverse' or 'atoms'"
        )
    rows = _program(dictionary, hypotheses)
    return _shaped(dictionary, rows / (rows * _own(dictionary)).sum(1, keepdim=True))


def analytic_weights(dictionary: Dictionary) -> Tensor:
    """Return ``W ∝ (DDᵀ)^† D`` with ``w_iᵀ d_i = 1``, float64, in the shape of the dictionary's weight.

    It has the least ``‖Wᵀ D‖_F`` under that constraint. Convolutional: kernels ``w_c ∝ M^† d_c`` of the same size, M
    the sum of ``d dᵀ`` over all shifted atoms, cut to the place of one: least in the mean over all lags.

    Raises:
        DictionaryError: An atom with which no weights can have the product 1 (it is zero).

    Source: N5 of docs/theory.md; Liu, Chen, Wang & Yin 2019.
    """
    shifted, own = shifted_atoms(dictionary), _own(dictionary)
    rows = own @ torch.linalg.pinv(shifted.T @ shifted, hermitian=True)
    products = (rows * own).sum(1, keepdim=True)
    if not bool((products > 0).all()):
        raise DictionaryError("an atom is zero or not finite; expected atoms that are neither")
    return _shaped(dictionary, rows / products)


def candidates(dictionary: Dictionary, hypotheses: LayerHypotheses, weights: str) -> list[tuple[str, Tensor | None]]:
    """Return the kinds to choose from, with their W: all that can be had in reasonable time for "best"."""
    kinds = [weights] if weights != "best" else list(WEIGHTS)
    if weights == "best" and program_size(dictionary) > _PROGRAM_ENTRIES:
        kinds.remove("program")
    return [(kind, analysis_weights(dictionary, hypotheses, kind)) for kind in kinds]


def program_size(dictionary: Dictionary) -> int:
    """Return the entries of all programs together: atoms × (atoms at all lags) × entries of an atom."""
    lags = math.prod(2 * lag + 1 for lag in dictionary.lags) if isinstance(dictionary, ConvDictionary) else 1
    return dictionary.atoms**2 * lags * dictionary.analysis_terms


def shifted_atoms(dictionary: Dictionary) -> Tensor:
    """Return all atoms at all lags, cut to the place of one, float64, ``(atoms · Π(2L + 1), entries)``.

    ``WᵀD`` at all lags is a product with them: an inner product of w with a shifted atom sees only what lies in w's
    place.
    """
    if not isinstance(dictionary, ConvDictionary):
        return dictionary.weight.detach().double().T
    weight = dictionary.weight.detach()
    basis = torch.eye(weight[0].numel(), dtype=torch.float64, device=weight.device)
    rows = dictionary.gram_rows(slice(None), basis.reshape(-1, *weight.shape[1:]))
    return rows.flatten(1).T


def _own(dictionary: Dictionary) -> Tensor:
    """Return the atoms as rows."""
    weight = dictionary.weight.detach().double()
    return weight.flatten(1) if isinstance(dictionary, ConvDictionary) else weight.T


def _shaped(dictionary: Dictionary, rows: Tensor) -> Tensor:
    weight = dictionary.weight
    return rows.reshape(weight.shape) if isinstance(dictionary, ConvDictionary) else rows.T.contiguous()


def _program(dictionary: Dictionary, hypotheses: LayerHypotheses) -> Tensor:
    """Return the rows that minimize ``top_s + top_{s-1}`` of ``|w_iᵀd_l|, l ≠ i``, subject to ``w_iᵀd_i = 1``.

    ``top_s(v) = min_t st + Σ(v - t)_+`` makes it a linear program. Non-negative codes: top_s of the positive and
    top_{s-1} of the negative parts. What noise adds is not in it.
    """
    import numpy as np
    from scipy import sparse
    from scipy.optimize import linprog

    s = hypotheses.sparsity
    shifted, own = shifted_atoms(dictionary).cpu(), _own(dictionary).cpu()
    lags = len(shifted) // dictionary.atoms
    entries = own.shape[1]
    count = len(shifted) - 1
    found = []
    for i in range(dictionary.atoms):
        kept = torch.ones(len(shifted), dtype=torch.bool)
        kept[i * lags + lags // 2] = False
        others = shifted[kept].numpy()
        # Unknowns: w, t, then the excess over t of every other atom; for s > 1 a second t and excess.
        blocks: list[Any] = []
        weights = [s] if s == 1 else [s, s - 1]
        minus, ones = -sparse.identity(count), -np.ones((count, 1))
        no_t, no_excess = sparse.csr_matrix((count, 1)), sparse.csr_matrix((count, count))
        for which in range(len(weights)):
            signs = (1.0, -1.0) if not hypotheses.nonnegative else (1.0 - 2.0 * which,)
            for sign in signs:
                row: list[Any] = [sparse.csr_matrix(sign * others)]
                for block in range(len(weights)):
                    row += [ones, minus] if block == which else [no_t, no_excess]
                blocks.append(row)
        cost = np.concatenate([np.zeros(entries), *(np.concatenate([[k], np.ones(count)]) for k in weights)])
        matrix = sparse.bmat(blocks, format="csr")
        equal = sparse.csr_matrix(
            (own[i].numpy(), (np.zeros(entries, dtype=int), np.arange(entries))), shape=(1, len(cost))
        )
        bounds = [(None, None)] * entries + [(0, None)] * (len(cost) - entries)
        result = linprog(
            cost, A_ub=matrix, b_ub=np.zeros(len(blocks) * count), A_eq=equal, b_eq=[1.0], bounds=bounds, method="highs"
        )
        # The atom itself is feasible; it stays where the solver gives up.
        found.append(torch.from_numpy(result.x[:entries].copy()) if result.x is not None else own[i])
    return torch.stack(found).to(dictionary.device)
