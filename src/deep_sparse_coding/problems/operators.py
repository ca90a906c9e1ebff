"""The linear operator A of a problem's standard form: one dictionary, or a chain of them, on tuples of tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import DenseDictionary, Dictionary

# One tensor per layer, each with exactly one leading batch axis.
Blocks = tuple[Tensor, ...]


class Operator(ABC):
    """``A``: blocks of codes to blocks of data, without its matrix.

    Norms are those of A's columns, so that a mask and the weights β of a joint problem are inside.
    """

    @property
    @abstractmethod
    def dictionaries(self) -> tuple[Dictionary, ...]:
        """The dictionary of every block of codes."""

    @abstractmethod
    def synthesize(self, codes: Blocks) -> Blocks:
        """Return ``A x``."""

    @abstractmethod
    def analyze(self, data: Blocks) -> Blocks:
        """Return ``Aᵀ r``."""

    @abstractmethod
    def squared_norms(self) -> Blocks:
        """Return the squared column norms, each in a shape that broadcasts against its block of codes."""

    @abstractmethod
    def lipschitz(self) -> tuple[float, ...]:
        """Return ``L_j`` with ``AᵀA ≤ diag(L)`` blockwise: one over them are safe steps of proximal gradient (N4)."""

    @abstractmethod
    def terms(self) -> tuple[int, int]:
        """Return the most products added up for one entry of ``A x`` and of ``Aᵀ r``: they scale rounding errors."""

    @abstractmethod
    def entrywise_abs(self) -> Operator:
        """Return ``|A|``, which bounds the rounding error of ``A x`` by ``|A||x|``."""

    @abstractmethod
    def cast(self, dtype: torch.dtype) -> Self:
        """Return the operator in another precision."""

    @abstractmethod
    def select(self, keep: Tensor) -> Self:
        """Return the operator for some samples of the batch (masks may differ from sample to sample)."""

    @abstractmethod
    def matrix(self) -> Tensor | None:
        """Return A as a matrix if its layers are dense and all samples share it, else None; never for convolutions."""


@dataclass(frozen=True, eq=False)
class SingleOperator(Operator):
    """``A = M D``: one dictionary under an optional mask M on the signal.

    Attributes:
        dictionary: D.
        mask: ``(1 or batch, *signal)``, or None.
        size: Spatial size of the codes; where it is not known, norms of atoms that a border cuts off are bounds.
    """

    dictionary: Dictionary
    mask: Tensor | None = None
    size: tuple[int, ...] | None = None

    @property
    def dictionaries(self) -> tuple[Dictionary, ...]:
        """The dictionary of every block of codes."""
        return (self.dictionary,)

    def synthesize(self, codes: Blocks) -> Blocks:
        """Return ``(M D x,)``."""
        signal = self.dictionary.synthesize(codes[0])
        return (signal if self.mask is None else self.mask * signal,)

    def analyze(self, data: Blocks) -> Blocks:
        """Return ``(Dᵀ M r,)``."""
        return (self.dictionary.analyze(data[0] if self.mask is None else self.mask * data[0]),)

    def squared_norms(self) -> Blocks:
        """Return ``(‖M d_i‖²,)``."""
        norms = self.dictionary.squared_norms(self.mask, self.size)
        return (norms if self.mask is not None else norms[None],)

    def lipschitz(self) -> tuple[float, ...]:
        """Return ``(‖D‖² max M²,)``."""
        scale = 1.0 if self.mask is None or not self.mask.numel() else float(self.mask.abs().max())
        return ((self.dictionary.operator_norm() * scale) ** 2,)

    def terms(self) -> tuple[int, int]:
        """Return the dictionary's numbers of terms."""
        return self.dictionary.synthesis_terms, self.dictionary.analysis_terms

    def entrywise_abs(self) -> SingleOperator:
        """Return ``|M||D|``."""
        dictionary = self.dictionary.with_weight(self.dictionary.weight.detach().abs())
        return replace(self, dictionary=dictionary, mask=None if self.mask is None else self.mask.abs())

    def cast(self, dtype: torch.dtype) -> SingleOperator:
        """Return the operator in another precision."""
        mask = None if self.mask is None else self.mask.to(dtype)
        return replace(self, dictionary=self.dictionary.cast(dtype), mask=mask)

    def select(self, keep: Tensor) -> SingleOperator:
        """Return the operator for the samples `keep`."""
        if self.mask is None or len(self.mask) == 1:
            return self
        return replace(self, mask=self.mask[keep])

    def matrix(self) -> Tensor | None:
        """Return ``M D`` for a dense dictionary whose mask all samples share."""
        if not isinstance(self.dictionary, DenseDictionary) or (self.mask is not None and len(self.mask) != 1):
            return None
        matrix = self.dictionary.matrix.detach()
        return matrix if self.mask is None else self.mask[0][:, None] * matrix


@dataclass(frozen=True, eq=False)
class ChainOperator(Operator):
    """The block bidiagonal A of the joint problem: ``√β_j D_j`` on the diagonal, ``-√β_j I`` left of it.

    Attributes:
        layers: ``D_1, ..., D_J``.
        beta: ``β_1, ..., β_J``, positive.
        mask: On the signal, ``(1 or batch, *signal)``, or None.
        coupling: The sign of the identities: -1, or +1 for the operator of absolute values.
        sizes: Spatial size of every layer's codes; where they are not known, norms of atoms that a border cuts off are
            bounds.

    Source: joint DSC₁ in section 1 of docs/theory.md.
    """

    layers: tuple[Dictionary, ...]
    beta: tuple[float, ...]
    mask: Tensor | None = None
    coupling: float = -1.0
    sizes: tuple[tuple[int, ...], ...] | None = None

    @property
    def dictionaries(self) -> tuple[Dictionary, ...]:
        """The dictionary of every block of codes."""
        return self.layers

    def synthesize(self, codes: Blocks) -> Blocks:
        """Return ``√β_1 M D_1 x_1`` and ``√β_j (D_j x_j - x_{j-1})``."""
        rows = [layer.synthesize(x) for layer, x in zip(self.layers, codes, strict=True)]
        rows[0] = rows[0] if self.mask is None else self.mask * rows[0]
        for j in range(1, len(rows)):
            rows[j] = rows[j] + self.coupling * codes[j - 1]
        return tuple(math.sqrt(b) * row for b, row in zip(self.beta, rows, strict=True))

    def analyze(self, data: Blocks) -> Blocks:
        """Return ``√β_j D_jᵀ r_j - √β_{j+1} r_{j+1}``."""
        scaled = [math.sqrt(b) * row for b, row in zip(self.beta, data, strict=True)]
        first = scaled[0] if self.mask is None else self.mask * scaled[0]
        blocks = [layer.analyze(r) for layer, r in zip(self.layers, [first, *scaled[1:]], strict=True)]
        for j in range(len(blocks) - 1):
            blocks[j] = blocks[j] + self.coupling * scaled[j + 1]
        return tuple(blocks)

    def squared_norms(self) -> Blocks:
        """Return ``β_j ‖d_i‖² + β_{j+1}`` (the deepest layer without the second term)."""
        blocks = []
        sizes = (None,) * len(self.layers) if self.sizes is None else self.sizes
        for j, (layer, size) in enumerate(zip(self.layers, sizes, strict=True)):
            norms = SingleOperator(layer, self.mask if j == 0 else None, size).squared_norms()[0]
            above = self.beta[j + 1] if j + 1 < len(self.beta) else 0.0
            blocks.append(self.beta[j] * norms + above)
        return tuple(blocks)

    def lipschitz(self) -> tuple[float, ...]:
        """Return ``L_j = β_j‖D_j‖(‖D_j‖ + [j > 1]) + β_{j+1}(1 + ‖D_{j+1}‖)`` (N4)."""
        norms = [float(layer.operator_norm()) for layer in self.layers]
        if self.mask is not None and self.mask.numel():
            norms[0] *= float(self.mask.abs().max())
        bounds = []
        for j, (b, norm) in enumerate(zip(self.beta, norms, strict=True)):
            own = b * norm * (norm + (j > 0))
            above = self.beta[j + 1] * (1 + norms[j + 1]) if j + 1 < len(norms) else 0.0
            bounds.append(own + above)
        return tuple(bounds)

    def terms(self) -> tuple[int, int]:
        """Return the largest numbers of terms of a layer, and one more for the identity."""
        return (
            max(layer.synthesis_terms for layer in self.layers) + 1,
            max(layer.analysis_terms for layer in self.layers) + 1,
        )

    def entrywise_abs(self) -> ChainOperator:
        """Return ``|A|``."""
        layers = tuple(layer.with_weight(layer.weight.detach().abs()) for layer in self.layers)
        return replace(self, layers=layers, mask=None if self.mask is None else self.mask.abs(), coupling=1.0)

    def cast(self, dtype: torch.dtype) -> Self:
        """Return the operator in another precision."""
        layers = tuple(layer.cast(dtype) for layer in self.layers)
        return replace(self, layers=layers, mask=None if self.mask is None else self.mask.to(dtype))

    def select(self, keep: Tensor) -> Self:
        """Return the operator for the samples `keep`."""
        if self.mask is None or len(self.mask) == 1:
            return self
        return replace(self, mask=self.mask[keep])

    def matrix(self) -> Tensor | None:
        """Return A for dense layers whose mask all samples share."""
        parts = [SingleOperator(layer, self.mask if j == 0 else None).matrix() for j, layer in enumerate(self.layers)]
        dense = [part for part in parts if part is not None]
        if len(dense) != len(parts):
            return None
        heights, widths = [part.shape[0] for part in dense], [part.shape[1] for part in dense]
        whole = dense[0].new_zeros(sum(heights), sum(widths))
        for j, part in enumerate(dense):
            top, left, root = sum(heights[:j]), sum(widths[:j]), math.sqrt(self.beta[j])
            whole[top : top + heights[j], left : left + widths[j]] = root * part
            if j:
                whole[top : top + heights[j], left - widths[j - 1] : left] = (
                    self.coupling * root * torch.eye(heights[j]).to(whole)
                )
        return whole


@dataclass(frozen=True, eq=False)
class RidgeOperator(Operator):
    """``[A; √ρ I]``: with data ``(b, 0)`` the squared residual is ``‖b - A x‖² + ρ‖x‖²``.

    Attributes:
        inner: A, of one block of codes.
        ridge: ρ, positive.

    Source: the elastic net as a Lasso, Zou & Hastie 2005, Lemma 1.
    """

    inner: Operator
    ridge: float

    @property
    def dictionaries(self) -> tuple[Dictionary, ...]:
        """The dictionary of every block of codes."""
        return self.inner.dictionaries

    def synthesize(self, codes: Blocks) -> Blocks:
        """Return ``(A x, √ρ x)``."""
        return (*self.inner.synthesize(codes), *(math.sqrt(self.ridge) * x for x in codes))

    def analyze(self, data: Blocks) -> Blocks:
        """Return ``Aᵀ r + √ρ s`` for data ``(r, s)``."""
        (first,) = self.inner.analyze(data[:1])
        return (torch.add(first, data[1], alpha=math.sqrt(self.ridge)),)

    def squared_norms(self) -> Blocks:
        """Return ``‖a_i‖² + ρ``."""
        return tuple(norms + self.ridge for norms in self.inner.squared_norms())

    def lipschitz(self) -> tuple[float, ...]:
        """Return ``L + ρ``."""
        return tuple(bound + self.ridge for bound in self.inner.lipschitz())

    def terms(self) -> tuple[int, int]:
        """Return A's numbers of terms, and one more for the identity."""
        synthesis, analysis = self.inner.terms()
        return synthesis + 1, analysis + 1

    def entrywise_abs(self) -> RidgeOperator:
        """Return ``[|A|; √ρ I]``."""
        return replace(self, inner=self.inner.entrywise_abs())

    def cast(self, dtype: torch.dtype) -> Self:
        """Return the operator in another precision."""
        return replace(self, inner=self.inner.cast(dtype))

    def select(self, keep: Tensor) -> Self:
        """Return the operator for the samples `keep`."""
        return replace(self, inner=self.inner.select(keep))

    def matrix(self) -> Tensor | None:
        """Return ``[A; √ρ I]`` where A has a matrix."""
        matrix = self.inner.matrix()
        if matrix is None:
            return None
        identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        return torch.cat([matrix, math.sqrt(self.ridge) * identity])
