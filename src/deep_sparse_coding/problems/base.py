"""What a problem is: data, penalty and dictionary, and the standard form that all convex problems share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from .operators import Blocks, Operator
from .penalties import L1, Penalty
from .sums import flat_sum as flat_sum
from .sums import inner as inner
from .sums import per_sample as per_sample
from .sums import squared_norm as squared_norm
from .sums import sum_rows as sum_rows
from .sums import used_entries as used_entries

Codes = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class StandardForm:
    """``min ½‖b - A x‖² + Ω(x)`` for every sample of a flat batch, ``Ω = Σ w_i|x_i|``, and ``x ≥ 0`` if `nonnegative`.

    With `structure` Ω is another penalty: what takes forms must then refuse it or go by `penalty`.

    Attributes:
        operator: A.
        data: b, one tensor per block of rows, ``(batch, ...)``.
        weights: w, one tensor per block of codes, broadcasting against ``(batch, ...)``; 0 = unpenalized, inf = zero.
        nonnegative: Whether codes are held at or above zero.
        code_shapes: The shape of one sample's codes, block by block.
        structure: A penalty that is more than a weighted ℓ1 norm on codes of any or of one sign, else None.
    """

    operator: Operator
    data: Blocks
    weights: Blocks
    nonnegative: bool
    code_shapes: tuple[tuple[int, ...], ...]
    structure: Penalty | None = None

    @property
    def penalty(self) -> Penalty:
        """Ω."""
        return L1(self.nonnegative) if self.structure is None else self.structure

    @property
    def beyond(self) -> str:
        """What Ω has that kernels for the plain Lasso lack, in a word for their refusals; empty if nothing."""
        return self.penalty.beyond

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
            None if self.structure is None else self.structure.cast(dtype),
        )

    def select(self, keep: Tensor) -> Self:
        """Return the form of the samples `keep` (indices)."""
        return type(self)(
            self.operator.select(keep),
            tuple(b[keep] for b in self.data),
            tuple(w if len(w) == 1 else w[keep] for w in self.weights),
            self.nonnegative,
            self.code_shapes,
            self.structure,
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
    """A problem that is one Lasso or a relative of it: its standard form is all that solvers and certificates need."""

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
        """Return ``½‖b - A x‖² + Ω(x)`` per sample, in float64; inf where a constraint is violated."""
        signal = self.check_signal(signal)
        form = self.exact_form(signal)
        blocks = tuple(block.double() for block in self.pack(codes, signal))
        return form_objective(form, blocks, form.residual(blocks)).reshape(self.batch_shape(signal))


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


def penalty(form: StandardForm, codes: Blocks) -> Tensor:
    """Return ``Ω(x)`` per sample: 0·inf counts as 0, a violated constraint as inf."""
    return form.penalty.value(form.weights, codes)


def form_objective(form: StandardForm, codes: Blocks, residual: Blocks) -> Tensor:
    """Return ``½‖r‖² + Ω(x)`` per sample."""
    return 0.5 * squared_norm(residual) + penalty(form, codes)
