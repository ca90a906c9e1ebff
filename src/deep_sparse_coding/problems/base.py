"""What a problem is: data, penalty and dictionary, and the standard form that all convex problems share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .operators import Blocks, Operator

Codes = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class StandardForm:
    """``min ½‖b - A x‖² + Σ w_i |x_i|`` (and ``x ≥ 0`` if `nonnegative`) for every sample of a flat batch.

    Attributes:
        operator: A.
        data: b, one tensor per block of rows, ``(batch, ...)``.
        weights: w, one tensor per block of codes, broadcasting against ``(batch, ...)``; 0 = unpenalized, inf = zero.
        nonnegative: Whether codes are held at or above zero.
        code_shapes: The shape of one sample's codes, block by block.
    """

    operator: Operator
    data: Blocks
    weights: Blocks
    nonnegative: bool
    code_shapes: tuple[tuple[int, ...], ...]

    @property
    def batch(self) -> int:
        """The number of samples."""
        return self.data[0].shape[0]

    def zeros(self) -> Blocks:
        """Return codes that are all zero."""
        return tuple(self.data[0].new_zeros(self.batch, *shape) for shape in self.code_shapes)

    def residual(self, codes: Blocks) -> Blocks:
        """Return ``b - A x``."""
        return tuple(b - a for b, a in zip(self.data, self.operator.synthesize(codes), strict=True))

    def cast(self, dtype: torch.dtype) -> Self:
        """Return the form in another precision."""
        return type(self)(
            self.operator.cast(dtype),
            tuple(b.to(dtype) for b in self.data),
            tuple(w.to(dtype) for w in self.weights),
            self.nonnegative,
            self.code_shapes,
        )

    def select(self, keep: Tensor) -> Self:
        """Return the form of the samples `keep` (indices)."""
        return type(self)(
            self.operator.select(keep),
            tuple(b[keep] for b in self.data),
            tuple(w if len(w) == 1 else w[keep] for w in self.weights),
            self.nonnegative,
            self.code_shapes,
        )


class Problem(ABC):
    """What is minimized. A concrete problem is a frozen dataclass and knows nothing of how it is solved."""

    @abstractmethod
    def batch_shape(self, signal: Tensor) -> tuple[int, ...]:
        """Return the leading axes of a signal."""

    @abstractmethod
    def check_signal(self, signal: object) -> Tensor:
        """Return the signal if it fits, else raise."""

    @abstractmethod
    def pack(self, codes: object, signal: Tensor) -> Blocks:
        """Return user codes as flat blocks ``(batch, ...)``, checked against the signal."""

    @abstractmethod
    def unpack(self, blocks: Blocks, batch_shape: tuple[int, ...]) -> Codes:
        """Return flat blocks as users see them: a tensor, or a tuple with one per layer."""

    @abstractmethod
    def objective(self, codes: Codes, signal: Tensor) -> Tensor:
        """Return the objective per sample, in float64, ``(*batch,)``."""

    @abstractmethod
    def lam_max(self, signal: Tensor) -> Tensor:
        """Return, per sample, the smallest (first) lam for which all codes are zero."""


class ConvexProblem(Problem, ABC):
    """A problem that is one weighted Lasso: its standard form is all that solvers and certificates need."""

    @abstractmethod
    def form(self, signal: Tensor, *, differentiable: bool = False) -> StandardForm:
        """Return the standard form for a checked signal, its batch axes flattened into one.

        Args:
            signal: ``(*batch, ...)``.
            differentiable: Whether data and weights keep their graph to the signal, lam and weights.
        """

    def exact_form(self, signal: Tensor) -> StandardForm:
        """Return the standard form in float64 of the problem as its settings and tensors hold it.

        Formed in float64 from the start: a lam or a ``√β y`` that was rounded to float32 would be another problem.
        """
        return self.form(signal.detach().double()).cast(torch.float64)

    def objective(self, codes: Codes, signal: Tensor) -> Tensor:
        """Return ``½‖b - A x‖² + Σ w_i|x_i|`` per sample, in float64; inf where a constraint is violated."""
        signal = self.check_signal(signal)
        form = self.exact_form(signal)
        blocks = tuple(block.double() for block in self.pack(codes, signal))
        return form_objective(form, blocks, form.residual(blocks)).reshape(self.batch_shape(signal))


def flat_sum(blocks: Blocks) -> Tensor:
    """Return the sum over all entries of all blocks, per sample."""
    total = blocks[0].flatten(1).sum(1)
    for block in blocks[1:]:
        total = total + block.flatten(1).sum(1)
    return total


def squared_norm(blocks: Blocks) -> Tensor:
    """Return the sum of squares over all blocks, per sample."""
    return flat_sum(tuple(block.square() for block in blocks))


def unresolved(data: Blocks, energy: Tensor) -> Tensor:
    """Return which samples are so large or so small that float64 holds no certificate for them, ``(samples,)``.

    Objectives are of the size of ``‖b‖²``. Where this overflows nothing can be said, and where it comes near the
    smallest number, gaps would round to zero and prove anything.

    Args:
        data: b, float64.
        energy: ``‖b‖²`` per sample.
    """
    limits = torch.finfo(torch.float64)
    small = energy < limits.tiny / limits.eps
    if bool(small.any()):  # a sample of zeros is no such case
        small &= torch.stack([(block != 0).flatten(1).any(1) for block in data]).any(0)
    return small | torch.isinf(energy)


def inner(first: Blocks, second: Blocks) -> Tensor:
    """Return the inner product over all blocks, per sample."""
    return flat_sum(tuple(a * b for a, b in zip(first, second, strict=True)))


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Return one number per sample in a shape that broadcasts against a block."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def used_entries(weights: Tensor, codes: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Return where a block of codes is not zero, with the weights and the values there: few of many entries."""
    index = codes.nonzero(as_tuple=True)
    place = tuple(i if n > 1 else torch.zeros_like(i) for i, n in zip(index, weights.shape, strict=True))
    return index, weights[place], codes[index]


def sum_rows(batch: int, rows: Tensor, values: Tensor) -> Tensor:
    """Return the sums of `values` over the samples that `rows` names, ``(batch,)``."""
    return values.new_zeros(batch).index_add_(0, rows, values)


def penalty(form: StandardForm, codes: Blocks) -> Tensor:
    """Return ``Σ w_i|x_i|`` per sample: 0·inf counts as 0, a violated ``x ≥ 0`` as inf."""
    total = codes[0].new_zeros(form.batch)
    for w, x in zip(form.weights, codes, strict=True):
        index, weight, value = used_entries(w, x)
        part = weight * value.abs()
        if form.nonnegative:
            part = torch.where(value < 0, math.inf, part)
        total = total + sum_rows(form.batch, index[0], part)
    return total


def form_objective(form: StandardForm, codes: Blocks, residual: Blocks) -> Tensor:
    """Return ``½‖r‖² + Σ w_i|x_i|`` per sample."""
    return 0.5 * squared_norm(residual) + penalty(form, codes)
