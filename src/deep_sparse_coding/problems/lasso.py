"""The Lasso and its relatives: one dictionary, an ℓ1 penalty, bounds, a ridge, groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, require_float_tensor, require_number, require_same_kind
from deep_sparse_coding.dictionaries import DenseDictionary, Dictionary
from deep_sparse_coding.errors import ShapeError, UnsupportedError

from .base import Codes, ConvexProblem, StandardForm
from .dual import largest_ratio
from .operators import Blocks, Operator, RidgeOperator, SingleOperator
from .penalties import Box, Penalty
from .penalty_settings import check_box, check_groups, lay_out, require_no_bounds_with_groups
from .weights import check_dictionary, check_lam, check_mask, check_weights, flatten_mask, flatten_weights


@dataclass(frozen=True, eq=False)
class Lasso(ConvexProblem):
    """``min ½‖M(y - D x)‖² + Σ lam·w_i|x_i|``, with ``x ≥ 0`` if asked.

    With more settings bounded codes, ``lower ≤ x ≤ upper``; the elastic net, ``+ (ridge/2)‖x‖²``; or the group Lasso,
    whose penalty is ``Σ_g lam·w_g‖x_g‖₂``. Certificates, gradients, `dsc.ISTA` and `dsc.FISTA` cover them all, and
    `dsc.CoordinateDescent` and `dsc.Homotopy` the elastic net on a dense dictionary.

    Attributes:
        dictionary: D, dense or convolutional.
        lam: A number; a tensor of the batch's shape (one per sample); or of shape ``(atoms,)`` or the code's shape (one
            per atom). Never scaled by the number of entries. 0 leaves an atom unpenalized (dense dictionaries only),
            inf forbids it.
        weights: Optional multipliers of lam, ``(atoms,)`` or the code's shape.
        nonnegative: Hold the codes at or above zero.
        mask: Optional, broadcasts against the signal: True or 1 where it was observed.
        box: Optional bounds ``(lower, upper)`` with ``lower ≤ 0 ≤ upper``, each a number or a tensor ``(atoms,)`` or of
            the code's shape; infinite ones bind nothing. With `nonnegative` both hold.
        ridge: ρ ≥ 0.
        groups: Optional: "channels" (all atoms at one place of a convolutional code), or lists of atoms, each atom in
            one of them (convolutional codes: at each place by itself). lam and weights agree within a group, and may be
            combined with `nonnegative` but not with other bounds.

    Bounds and ridge are settings like the mask: no gradient reaches them.

    Raises:
        DSCError: A setting out of range; on use, shapes that do not fit.

    Source: Tibshirani 1996; Chen, Donoho & Saunders 1998; DSC₁ for one layer, Li, Feng & Zhou 2024, Definition 4;
        elastic net: Zou & Hastie 2005; groups: Yuan & Lin 2006; certificates: G5 of docs/theory.md.
    """

    dictionary: Dictionary
    lam: float | Tensor
    weights: Tensor | None = None
    nonnegative: bool = False
    mask: Tensor | None = None
    box: tuple[float | Tensor, float | Tensor] | None = None
    ridge: float = 0.0
    groups: str | Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        check_dictionary("dictionary", self.dictionary)
        object.__setattr__(self, "lam", check_lam("lam", self.lam))
        object.__setattr__(self, "weights", check_weights("weights", self.weights))
        object.__setattr__(self, "nonnegative", check_flag("nonnegative", self.nonnegative))
        object.__setattr__(self, "mask", check_mask(self.mask, self.dictionary))
        object.__setattr__(self, "box", check_box(self.box, self.dictionary))
        object.__setattr__(self, "ridge", require_number("ridge", self.ridge, minimum=0.0))
        object.__setattr__(self, "groups", check_groups(self.groups, self.dictionary))
        require_no_bounds_with_groups(self.box, self.groups)

    def batch_shape(self, signal: Tensor) -> tuple[int, ...]:
        """Return the leading axes of a signal."""
        return tuple(signal.shape[: signal.ndim - self.dictionary.event_axes])

    def check_signal(self, signal: object) -> Tensor:
        """Return the signal if it fits the dictionary, else raise."""
        return self.dictionary.check_signal(signal)

    def code_shape(self, signal: Tensor) -> tuple[int, ...]:
        """Return the shape of one sample's codes."""
        axes = self.dictionary.event_axes
        return self.dictionary.exact_code_shape(tuple(signal.shape[signal.ndim - axes + 1 :]) if axes > 1 else ())

    def form(self, signal: Tensor, *, differentiable: bool = False) -> StandardForm:
        """Return the standard form, ``A = M D`` and ``b = M y``; with a ridge ``[A; √ρ I]`` and ``(b, 0)``."""
        batch, shape = self.batch_shape(signal), self.code_shape(signal)
        event = signal.shape[len(batch) :]
        mask = flatten_mask(self.mask, signal, self.dictionary.event_axes)
        weights = flatten_weights("lam", self.lam, self.weights, self.dictionary, batch, shape, signal.dtype)
        nonnegative, structure = lay_out(self.box, self.groups, self.nonnegative, weights, shape)
        require_penalized(weights, self.dictionary, structure)
        if not differentiable:
            signal, weights = signal.detach(), weights.detach()
        data = signal.reshape(math.prod(batch), *event)
        data = (data if mask is None else mask * data,)
        operator: Operator = SingleOperator(self.dictionary, mask, shape[1:])
        if self.ridge > 0:
            operator, data = RidgeOperator(operator, self.ridge), (*data, data[0].new_zeros(len(data[0]), *shape))
        return StandardForm(operator, data, (weights,), nonnegative, (shape,), structure)

    def pack(self, codes: object, signal: Tensor) -> Blocks:
        """Return codes ``(*batch, *code)`` with one batch axis."""
        return (flat_codes("codes", codes, self.dictionary, self.batch_shape(signal), self.code_shape(signal)),)

    def unpack(self, blocks: Blocks, batch_shape: tuple[int, ...]) -> Codes:
        """Return the codes as ``(*batch, *code)``."""
        return blocks[0].reshape(*batch_shape, *blocks[0].shape[1:])

    def lam_max(self, signal: Tensor) -> Tensor:
        """Return the smallest lam for which the codes are zero, ``max_i |d_iᵀ M y| / w_i``, per sample, ``(*batch,)``.

        Unpenalized atoms are not counted; without the bars for non-negative codes, and without atoms that their bounds
        hold at zero on that side. For groups it is ``max_g ‖D_gᵀ M y‖ / w_g``.
        """
        signal = self.check_signal(signal)
        return largest_ratio(replace(self, lam=1.0).form(signal)).reshape(self.batch_shape(signal))


def flat_codes(
    name: str, codes: object, dictionary: Dictionary, batch: tuple[int, ...], shape: tuple[int, ...]
) -> Tensor:
    """Return one layer's codes with a single batch axis.

    Raises:
        ShapeError: Another shape than ``(*batch, *shape)``.
        DtypeError: Another dtype than the dictionary's.
    """
    tensor = require_float_tensor(name, codes)
    if tuple(tensor.shape) != (*batch, *shape):
        raise ShapeError(
            f"{name} have shape {tuple(tensor.shape)}; expected {(*batch, *shape)}: the signal's batch axes, then one "
            "code"
        )
    require_same_kind(name, tensor, "the dictionary", dictionary.weight)
    return tensor.detach().reshape(math.prod(batch), *shape)


def require_penalized(weights: Tensor, dictionary: Dictionary, structure: Penalty | None) -> None:
    """Raise if an entry is unpenalized and the dictionary is not dense: its dual point could not be made feasible.

    Raises:
        UnsupportedError: A zero weight with a convolutional dictionary, without a finite bound on both sides.
    """
    zero = weights == 0
    if isinstance(structure, Box):
        zero = zero & ~(torch.isfinite(structure.lower[0]) & torch.isfinite(structure.upper[0]))
    if not isinstance(dictionary, DenseDictionary) and bool(zero.any()):
        raise UnsupportedError(
            "lam or weights hold zeros with a convolutional dictionary; zeros (unpenalized atoms) are certified for "
            "dense dictionaries only: use a small positive lam"
        )
