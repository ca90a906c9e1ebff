"""Babel numbers with their rounding errors, and the dictionaries that several layers make together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from deep_sparse_coding.checks import per_layer, require_integer
from deep_sparse_coding.dictionaries import Cascade, ConvDictionary, DenseDictionary, Dictionary
from deep_sparse_coding.dictionaries.boundaries import cut_atoms_have_no_lags
from deep_sparse_coding.dictionaries.coherence import one_sided_babel

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Atoms:
    """A dictionary whose atoms may themselves be rounded.

    Attributes:
        dictionary: The atoms.
        error: A bound on ``‖d̂_i - d_i‖/‖d_i‖`` over all atoms; 0 where the atoms are given.
    """

    dictionary: Dictionary
    error: float = 0.0

    def slack(self, value: float, count: int) -> float:
        """Return a bound on the rounding error of a sum of the `count` largest normalized Gram entries.

        Each entry errs by at most ``(n + 8)·eps`` (n products, two norms, a division) plus twice the atoms' own error.
        """
        columns = math.prod(self.dictionary.gram_rows(slice(0, 1)).shape) - 1
        count = min(count, columns)
        entry = (self.dictionary.analysis_terms + 8) * _EPS + 4 * self.error
        return count * (entry + _EPS * abs(value))

    def babel(self, s: int) -> float:
        """Return ``μ_1(s)``."""
        return self.dictionary.babel(s)

    def babel_mass(self, mass: float) -> float:
        """Return μ_1 interpolated: the most that weights in [0, 1] of total `mass` gather in a row of |G|."""
        whole = math.floor(mass)
        part = mass - whole
        value = self.babel(whole)
        return (1 - part) * value + part * self.babel(whole + 1) if part else value

    def one_sided(self, negative: int, positive: int) -> float:
        """Return ``max_i (top_negative(G⁻_il) + top_positive(G⁺_il))``, l ≠ i."""
        return one_sided_babel(self.dictionary, negative, positive)


def check_counts(name: str, value: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """Return one count of at least 1 per layer.

    Raises:
        ParameterError: No whole number, one below 1, or the wrong number of them.
    """
    if not isinstance(value, Sequence):
        return (require_integer(name, value, minimum=1),) * layers
    given = per_layer(name, tuple(value), layers)
    return tuple(require_integer(f"{name}[{j}]", count, minimum=1) for j, count in enumerate(given))


def largest_count(holds: Callable[[int], bool], limit: int) -> int:
    """Return the largest count up to `limit` for which `holds`, given that it holds for all smaller ones; 0 if none."""
    low, high = 0, 1
    while high <= limit and holds(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def circular_hypotheses(layers: Sequence[tuple[str, Dictionary]]) -> tuple[str, ...]:
    """Return what must be true of signals on circular grids for the lags of the Gram matrix to be its entries."""
    texts = []
    for name, layer in layers:
        if isinstance(layer, ConvDictionary) and layer.boundary == "circular":
            least = "×".join(str(2 * k - 1) for k in layer.kernel_size)
            texts.append(f"the signal of {name} has at least {least} entries (circular boundary: nothing wraps twice)")
    return tuple(texts)


def composite(model: Cascade, first: int, last: int) -> Atoms | None:
    """Return ``D_first ··· D_last`` (counted from 1) as one dictionary, or None if a column may be zero.

    Convolutional layers compose to one of stride ``Π q_j`` (None if their boundaries differ, or cut atoms off: a layer
    between them then cuts what no single one would). The rounding error of the products is carried along.
    """
    layers = model.layers[first - 1 : last]
    if len(layers) == 1:
        return Atoms(layers[0])
    boundaries = {layer.boundary for layer in layers}
    if len(boundaries) > 1 or "same" in boundaries:
        return None
    exact = Cascade([layer.cast(torch.float64) for layer in layers])
    atoms = exact.effective()
    sizes = Cascade([layer.with_weight(layer.weight.detach().abs()) for layer in exact.layers]).effective()
    norms, largest = atoms.flatten(1).norm(dim=1), sizes.flatten(1).norm(dim=1)
    terms = sum(layer.synthesis_terms + 2 for layer in layers)
    errors = terms * _EPS * largest
    if not bool((norms > 4 * errors).all()):
        return None
    error = float((errors / (norms - errors)).max())
    with warnings.catch_warnings():
        # Columns that coincide are no surprise in a product, and make the condition fail by themselves.
        warnings.simplefilter("ignore")
        if isinstance(layers[0], DenseDictionary):
            return Atoms(DenseDictionary(atoms.T), error)
        convs = [layer for layer in layers if isinstance(layer, ConvDictionary)]
        stride = tuple(math.prod(c.stride[axis] for c in convs) for axis in range(convs[0].axes))
        return Atoms(ConvDictionary(atoms, stride=stride, boundary=convs[0].boundary), error)


def covers(own: Dictionary, whole: Dictionary) -> int:
    """Return how many stripes of `own` cover one of `whole`, two dictionaries with the same codes (dense: 1)."""
    if not isinstance(own, ConvDictionary) or not isinstance(whole, ConvDictionary):
        return 1
    return math.prod(-(-(2 * b + 1) // (2 * a + 1)) for a, b in zip(own.lags, whole.lags, strict=True))


def counted(counts: Sequence[int], stripes: bool) -> str:
    """Return counts of non-zeros in words: ``"3 non-zeros in layer 1, 2 in layer 2"``."""
    unit = "non-zero" if counts[0] == 1 else "non-zeros"
    unit += " per stripe" if stripes else ""
    if len(counts) == 1:
        return f"{counts[0]} {unit}"
    rest = "".join(f", {s} in layer {j}" for j, s in enumerate(counts[1:], start=2))
    return f"{counts[0]} {unit} in layer 1{rest}"


def norm_ratio(dictionary: Dictionary) -> float:
    """Return ``max‖d_i‖ / min‖d_i‖``, rounded up."""
    low, high = norm_range(dictionary)
    return high / low * (1 + _EPS)


def norm_range(dictionary: Dictionary) -> tuple[float, float]:
    """Return the smallest atom's norm, rounded down, and the largest's, rounded up.

    Raises:
        UnsupportedError: A border cuts atoms off, of which none is known to be long.
    """
    if dictionary.boundary == "same":
        raise cut_atoms_have_no_lags(dictionary.boundary)
    norms = dictionary.column_norms()
    error = (dictionary.analysis_terms + 4) * _EPS
    return float(norms.min()) * (1 - error), float(norms.max()) * (1 + error)
