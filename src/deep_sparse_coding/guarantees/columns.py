"""A few columns of A as a matrix: those of a support, never of the whole operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deep_sparse_coding.dictionaries import ConvDictionary, Dictionary
from deep_sparse_coding.problems import StandardForm
from deep_sparse_coding.problems.operators import ChainOperator, Operator, RidgeOperator, SingleOperator

# More entries than these in the columns of one sample are not written out (about 1 GB with their row numbers).
_MOST_ENTRIES = 60_000_000


@dataclass(frozen=True, eq=False)
class Columns:
    """Writes out columns of A: dense ones as an array ``(rows, k)``, convolutional ones as ``scipy.sparse.csc_array``.

    Attributes:
        form: The problem, in float64.
        shared: A as an array, if it is dense and shared by all samples.
    """

    form: StandardForm
    shared: np.ndarray | None

    @classmethod
    def of(cls, form: StandardForm) -> Columns:
        """Return the columns of a form."""
        matrix = form.operator.matrix()
        return cls(form, None if matrix is None else matrix.cpu().numpy())

    @property
    def rows(self) -> int:
        """The number of entries of one sample's data."""
        return sum(math.prod(block.shape[1:]) for block in self.form.data)

    def fit(self, count: int) -> bool:
        """Return whether `count` columns are few enough to be written out."""
        heaviest = max(layer.analysis_terms for layer in _layers(self.form.operator)) + 1
        return count * (heaviest if self._sparse else self.rows) <= _MOST_ENTRIES

    def take(self, sample: int, index: np.ndarray) -> Any:
        """Return the columns `index` (positions in the flattened, concatenated codes) for one sample."""
        if self.shared is not None:
            return self.shared[:, index]
        if self._sparse:
            return _sparse_columns(self.form, sample, index)
        matrix = self.form.operator.select(torch.tensor([sample])).matrix()
        if matrix is None:  # pragma: no cover - dense operators of one sample always have a matrix
            raise TypeError("an operator that is neither dense nor convolutional")
        return matrix.cpu().numpy()[:, index]

    @property
    def _sparse(self) -> bool:
        return isinstance(_layers(self.form.operator)[0], ConvDictionary)


def _layers(operator: Operator) -> tuple[Dictionary, ...]:
    if isinstance(operator, SingleOperator):
        return (operator.dictionary,)
    if isinstance(operator, ChainOperator):
        return operator.layers
    if isinstance(operator, RidgeOperator):
        return _layers(operator.inner)
    raise TypeError(f"no columns of a {type(operator).__name__}")


def _sparse_columns(form: StandardForm, sample: int, index: np.ndarray) -> Any:
    from scipy import sparse

    operator = form.operator.inner if isinstance(form.operator, RidgeOperator) else form.operator
    layers = _layers(operator)
    beta = operator.beta if isinstance(operator, ChainOperator) else (1.0,) * len(layers)
    coupling = operator.coupling if isinstance(operator, ChainOperator) else 0.0
    mask = operator.mask if isinstance(operator, SingleOperator | ChainOperator) else None
    offsets = np.cumsum([0, *(math.prod(shape) for shape in form.code_shapes)])
    tops = np.cumsum([0, *(math.prod(block.shape[1:]) for block in form.data)])
    values, rows, columns = [], [], []
    for j, layer in enumerate(layers):
        inside = np.nonzero((index >= offsets[j]) & (index < offsets[j + 1]))[0]
        own = index[inside] - offsets[j]
        if not isinstance(layer, ConvDictionary):
            raise TypeError("a convolutional chain with a dense layer")
        entries, places = _kernels_at(layer, own, form.code_shapes[j], tuple(form.data[j].shape[1:]))
        if j == 0 and mask is not None:
            flat = mask[sample if len(mask) > 1 else 0].expand(form.data[0].shape[1:]).reshape(-1).cpu().numpy()
            entries = entries * flat[places]
        values.append((math.sqrt(beta[j]) * entries).ravel())
        rows.append((places + tops[j]).ravel())
        columns.append(np.repeat(inside, entries.shape[1]))
        if j + 1 < len(layers):
            values.append(np.full(len(own), coupling * math.sqrt(beta[j + 1])))
            rows.append(own + tops[j + 1])
            columns.append(inside)
    if isinstance(form.operator, RidgeOperator):
        values.append(np.full(len(index), math.sqrt(form.operator.ridge)))
        rows.append(index + tops[-2])
        columns.append(np.arange(len(index)))
    triplets = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    # Duplicate places (an atom that wraps onto itself) are added up.
    return sparse.coo_array(triplets, shape=(int(tops[-1]), len(index))).tocsc()


def _kernels_at(
    layer: ConvDictionary, flat: np.ndarray, code_shape: tuple[int, ...], signal_shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the entries of atoms at code positions `flat` and their flat places in the signal, ``(k, entries)``.

    What a border cuts off is 0, at the nearest place: one farther off would couple columns that share none.
    """
    atom, *position = np.unravel_index(flat, code_shape)
    kernels = layer.kernels.detach().double().cpu().numpy()
    offsets = np.indices(kernels.shape[1:]).reshape(kernels.ndim - 1, -1)
    place = np.broadcast_to(offsets[0], (len(flat), offsets.shape[1]))
    entries = kernels.reshape(len(kernels), -1)[atom]
    axes = zip(position, layer.stride, layer.padding, strict=True)
    for axis, (p, q, (before, _)) in enumerate(axes, start=1):
        n = signal_shape[axis]
        along = (p * q)[:, None] + offsets[axis][None, :] - before
        if layer.boundary == "same":
            entries = np.where((along >= 0) & (along < n), entries, 0.0)
            along = along.clip(0, n - 1)
        place = place * n + along % n
    return entries, place
