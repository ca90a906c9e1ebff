"""The ℓ0 problem: few non-zeros, a small residual, or both; for one layer and for many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, per_layer, require_integer
from deep_sparse_coding.dictionaries import Cascade, DenseDictionary, Dictionary
from deep_sparse_coding.errors import ParameterError

from .base import Codes, StandardForm, squared_norm, unresolved
from .cascaded import LayeredProblem, check_cascade
from .certificate import Certificate
from .lasso import Lasso
from .operators import Blocks
from .single import SingleProblem, check_epsilon, residual_limits
from .weights import check_dictionary, check_mask


@dataclass(frozen=True, eq=False)
class SparseApproximation(SingleProblem):
    """Few atoms that explain the signal.

    What is minimized follows from what is given:

    - `sparsity` alone: ``min ½‖M(y - D x)‖²  s.t.  ‖x‖₀ ≤ s``;
    - `epsilon` alone: ``min ‖x‖₀  s.t.  ‖M(y - D x)‖ ≤ ε``;
    - both: ``min ‖x‖₀`` under both constraints.

    No gap proves an ℓ0 solution optimal at a size that matters. So for this problem CONVERGED means that *the
    constraints are met*, and the certificate is the trivial one: the dual value is 0, or 1 for ``‖x‖₀`` where zeros do
    not meet ε. Only `Exhaustive`, which looks at every support, reports a gap of 0. What can be proved about codes
    found is in `dsc.prove` (uniqueness, G1; stability, G3).

    A residual counts as within ε as in `BasisPursuit`: up to ``max(ε, η‖M y‖)`` in float64.

    Attributes:
        dictionary: D, dense or convolutional.
        sparsity: s, the most non-zeros of one sample's code (for convolutions: of the whole map), at least 1.
        epsilon: A number at or above 0, or a tensor of the batch's shape.
        nonnegative: Hold the codes at or above zero.
        mask: Optional, broadcasts against the signal: True or 1 where it was observed.

    Raises:
        DSCError: A setting out of range, or neither sparsity nor epsilon; on use, shapes that do not fit.

    Source: DSC₀^ε for one layer, Li, Feng & Zhou 2024, Definition 2.
    """

    dictionary: Dictionary
    sparsity: int | None = None
    epsilon: float | Tensor | None = None
    nonnegative: bool = False
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_dictionary("dictionary", self.dictionary)
        if self.sparsity is None and self.epsilon is None:
            raise ParameterError(
                "neither sparsity nor epsilon is given; expected at least one: the most non-zeros, the largest residual"
            )
        if self.sparsity is not None:
            sparsity = require_integer("sparsity", self.sparsity, minimum=1)
            if isinstance(self.dictionary, DenseDictionary):
                _check_sparsity(sparsity, self.dictionary.atoms)
            object.__setattr__(self, "sparsity", sparsity)
        if self.epsilon is not None:
            object.__setattr__(self, "epsilon", check_epsilon("epsilon", self.epsilon))
        object.__setattr__(self, "nonnegative", check_flag("nonnegative", self.nonnegative))
        object.__setattr__(self, "mask", check_mask(self.mask, self.dictionary))

    def form(self, signal: Tensor) -> StandardForm:
        """Return operator and data in the standard form, float64; its weights mean nothing here."""
        form = Lasso(self.dictionary, 1.0, None, self.nonnegative, self.mask).exact_form(signal)
        if self.sparsity is not None:
            _check_sparsity(self.sparsity, math.prod(form.code_shapes[0]))
        return form

    def limits(self, signal: Tensor) -> Tensor | None:
        """Return the residual norm that counts as within ε, ``(samples,)``, float64; None without epsilon."""
        if self.epsilon is None:
            return None
        return residual_limits(self.epsilon, self.epsilon_max(signal), signal)

    def certificate(self, codes: Codes, signal: Tensor) -> Certificate:
        """Return the certificate of checked codes, float64, in the batch's shape."""
        batch = self.batch_shape(signal)
        form = self.form(signal)
        blocks = tuple(block.double() for block in self.pack(codes, signal))
        energy = squared_norm(form.residual(blocks))
        count = torch.linalg.vector_norm(blocks[0].flatten(1), ord=0, dim=1)
        negative = (blocks[0] < 0).flatten(1).any(1)
        return self.certify(form.data, self.limits(signal), energy, count, negative).reshape(batch)

    def certify(
        self, data: Blocks, limits: Tensor | None, energy: Tensor, count: Tensor, negative: Tensor
    ) -> Certificate:
        """Return the certificate of flat codes from what decides it.

        Args:
            data: M y, float64.
            limits: The residual norm that counts as within ε, per sample, or None.
            energy: ``‖M(y - D x)‖²`` per sample.
            count: The non-zeros of the codes.
            negative: Whether a code is negative.
        """
        met = ~unresolved(data, squared_norm(data))
        if self.sparsity is not None:
            met &= count <= self.sparsity
        if self.nonnegative:
            met &= ~negative
        if limits is None:
            value, dual = 0.5 * energy, torch.zeros_like(energy)
        else:
            met &= energy.sqrt() <= limits
            value, dual = count.to(energy), (squared_norm(data).sqrt() > limits).to(energy)
        value = torch.where(torch.isnan(energy), math.nan, torch.where(met, value, math.inf))
        gap = value - dual
        relative = torch.where(gap == 0, 0.0, gap / torch.where(torch.isfinite(value), value, 1.0))
        return Certificate(value, dual, gap, relative)


@dataclass(frozen=True, eq=False)
class LayeredSparseApproximation(LayeredProblem):
    """`SparseApproximation` of every layer in turn, each on the codes of the one below, ``x_0 = y``.

    Attributes:
        model: The cascade.
        sparsity: One whole number (or None) per layer, or one for all.
        epsilon: One setting (or None) per layer, or one for all.
        nonnegative: Hold all codes at or above zero.
        mask: Optional, on the signal.

    Source: DSC₀^ε, Li, Feng & Zhou 2024, Definition 2.
    """

    model: Cascade
    sparsity: Sequence[int | None] | int | None = None
    epsilon: Sequence[float | Tensor | None] | float | None = None
    nonnegative: bool = False
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_cascade(self.model)
        depth = len(self.model)
        object.__setattr__(self, "sparsity", per_layer("sparsity", self.sparsity, depth))
        object.__setattr__(self, "epsilon", per_layer("epsilon", self.epsilon, depth))
        object.__setattr__(self, "nonnegative", check_flag("nonnegative", self.nonnegative))
        object.__setattr__(self, "mask", check_mask(self.mask, self.model.layers[0]))
        _ = self.stages  # their own checks

    @property
    def stages(self) -> tuple[SparseApproximation, ...]:
        """The problem of every layer; the mask belongs to the first."""
        sparsity = per_layer("sparsity", self.sparsity, len(self.model))
        epsilon = per_layer("epsilon", self.epsilon, len(self.model))
        made = []
        for j, layer in enumerate(self.model.layers):
            try:
                made.append(
                    SparseApproximation(layer, sparsity[j], epsilon[j], self.nonnegative, self.mask if j == 0 else None)  # type: ignore[arg-type]
                )
            except ParameterError as error:
                raise ParameterError(f"layer {j + 1} of the cascade: {error}") from None
        return tuple(made)


def _check_sparsity(sparsity: int, entries: int) -> None:
    if sparsity > entries:
        raise ParameterError(f"sparsity is {sparsity} and a code has {entries} entries; expected at most {entries}")
