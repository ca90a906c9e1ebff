"""The Lasso: one dictionary, an ℓ1 penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from deep_sparse_coding.checks import check_flag, require_float_tensor, require_same_kind
from deep_sparse_coding.dictionaries import DenseDictionary, Dictionary
from deep_sparse_coding.errors import ShapeError, UnsupportedError

from .base import Codes, ConvexProblem, StandardForm
from .dual import largest_ratio
from .operators import Blocks, SingleOperator
from .weights import check_dictionary, check_lam, check_mask, check_weights, flatten_mask, flatten_weights


@dataclass(frozen=True, eq=False)
class Lasso(ConvexProblem):
    """``min ½‖M(y - D x)‖² + Σ lam·w_i|x_i|``, with ``x ≥ 0`` if asked.

    Attributes:
        dictionary: D, dense or convolutional.
        lam: A number; a tensor of the batch's shape (one per sample); or of shape ``(atoms,)`` or the code's shape (one
            per atom). Never scaled by the number of entries. 0 leaves an atom unpenalized (dense dictionaries only),
            inf forbids it.
        weights: Optional multipliers of lam, ``(atoms,)`` or the code's shape.
        nonnegative: Hold the codes at or above zero.
        mask: Optional, broadcasts against the signal: True or 1 where it was observed.

    Raises:
        DSCError: A setting out of range; on use, shapes that do not fit.

    Source: Tibshirani 1996; Chen, Donoho & Saunders 1998; DSC₁ for one layer, Li, Feng & Zhou 2024, Definition 4.
    """

    dictionary: Dictionary
    lam: float | Tensor
    weights: Tensor | None = None
    nonnegative: bool = False
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_dictionary("dictionary", self.dictionary)
        object.__setattr__(self, "lam", check_lam("lam", self.lam))
        object.__setattr__(self, "weights", check_weights("weights", self.weights))
        object.__setattr__(self, "nonnegative", check_flag("nonnegative", self.nonnegative))
        object.__setattr__(self, "mask", check_mask(self.mask, self.dictionary))

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
        """Return the standard form, ``A = M D`` and ``b = M y``."""
        batch, shape = self.batch_shape(signal), self.code_shape(signal)
        event = signal.shape[len(batch) :]
        mask = flatten_mask(self.mask, signal, self.dictionary.event_axes)
        weights = flatten_weights("lam", self.lam, self.weights, self.dictionary, batch, shape, signal.dtype)
        require_penalized(weights, self.dictionary)
        if not differentiable:
            signal, weights = signal.detach(), weights.detach()
        data = signal.reshape(math.prod(batch), *event)
        return StandardForm(
            SingleOperator(self.dictionary, mask),
            (data if mask is None else mask * data,),
            (weights,),
            self.nonnegative,
            (shape,),
        )

    def pack(self, codes: object, signal: Tensor) -> Blocks:
        """Return codes ``(*batch, *code)`` with one batch axis."""
        return (flat_codes("codes", codes, self.dictionary, self.batch_shape(signal), self.code_shape(signal)),)

    def unpack(self, blocks: Blocks, batch_shape: tuple[int, ...]) -> Codes:
        """Return the codes as ``(*batch, *code)``."""
        return blocks[0].reshape(*batch_shape, *blocks[0].shape[1:])

    def lam_max(self, signal: Tensor) -> Tensor:
        """Return the smallest lam for which the codes are zero, ``max_i |d_iᵀ M y| / w_i``, per sample, ``(*batch,)``.

        Unpenalized atoms are not counted; without the bars for non-negative codes.
        """
        signal = self.check_signal(signal)
        plain = Lasso(self.dictionary, 1.0, self.weights, self.nonnegative, self.mask)
        return largest_ratio(plain.form(signal)).reshape(self.batch_shape(signal))


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


def require_penalized(weights: Tensor, dictionary: Dictionary) -> None:
    """Raise if an entry is unpenalized and the dictionary is not dense: its dual point could not be made feasible.

    Raises:
        UnsupportedError: A zero weight with a convolutional dictionary.
    """
    if not isinstance(dictionary, DenseDictionary) and bool((weights == 0).any()):
        raise UnsupportedError(
            "lam or weights hold zeros with a convolutional dictionary; zeros (unpenalized atoms) are certified for "
            "dense dictionaries only: use a small positive lam"
        )
