"""The joint problem: all layers of a cascade at once, convex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import per_layer, require_number
from deep_sparse_coding.dictionaries import Cascade
from deep_sparse_coding.errors import DictionaryError, ShapeError, UnsupportedError

from .base import Codes, ConvexProblem, StandardForm
from .dual import largest_ratio
from .lasso import flat_codes
from .operators import Blocks, ChainOperator
from .weights import check_lam, check_mask, flatten_mask, flatten_weights


@dataclass(frozen=True, eq=False)
class JointLasso(ConvexProblem):
    """``min Σ_j (β_j/2)‖x_{j-1} - D_j x_j‖² + lam_j‖x_j‖₁`` over all ``x_1, ..., x_J`` together, ``x_0 = y``.

    As ``β_2, ..., β_J`` grow it becomes the exact cascade; at the minimizer ``‖x_{j-1} - D_j x_j‖ ≤ ‖y‖√(β_1/β_j)``.

    Attributes:
        model: The cascade.
        lam: One setting per layer, each as in `Lasso` but positive; or one for all.
        beta: One positive number per layer, or one for all.
        weights: Optional, one tensor (or None) per layer: multipliers of lam per atom.
        nonnegative: Hold all codes at or above zero.
        mask: Optional, broadcasts against the signal.

    Source: joint DSC₁ in section 1 of docs/theory.md; what ML-ISTA approximates, Sulam, Aberdam, Beck & Elad 2019.
    """

    model: Cascade
    lam: Sequence[float | Tensor] | float
    beta: Sequence[float] | float = 1.0
    weights: Sequence[Tensor | None] | None = None
    nonnegative: bool = False
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_cascade(self.model)
        depth = len(self.model)
        lam = tuple(check_lam(f"lam[{j}]", value) for j, value in enumerate(per_layer("lam", self.lam, depth)))
        object.__setattr__(self, "lam", lam)
        beta = per_layer("beta", self.beta, depth)
        checked = tuple(require_number(f"beta[{j}]", b, minimum=0, strict=True) for j, b in enumerate(beta))
        object.__setattr__(self, "beta", checked)
        object.__setattr__(self, "weights", per_layer("weights", self.weights, depth))
        object.__setattr__(self, "mask", check_mask(self.mask, self.model.layers[0]))

    def batch_shape(self, signal: Tensor) -> tuple[int, ...]:
        """Return the leading axes of a signal."""
        return tuple(signal.shape[: signal.ndim - self.model.layers[0].event_axes])

    def check_signal(self, signal: object) -> Tensor:
        """Return the signal if it fits the first layer and its code every layer above, else raise."""
        tensor = self.model.layers[0].check_signal(signal)
        layer_shapes(self.model, tensor)
        return tensor

    def form(self, signal: Tensor, *, differentiable: bool = False) -> StandardForm:
        """Return the standard form, block bidiagonal A and data ``(√β_1 y, 0, ...)``."""
        batch, shapes = self.batch_shape(signal), layer_shapes(self.model, signal)
        layers = self.model.layers
        beta = tuple(float(b) for b in per_layer("beta", self.beta, len(layers)))  # type: ignore[arg-type]
        lam, multipliers = per_layer("lam", self.lam, len(layers)), per_layer("weights", self.weights, len(layers))
        mask = flatten_mask(self.mask, signal, layers[0].event_axes)
        first = (signal if differentiable else signal.detach()).reshape(math.prod(batch), *signal.shape[len(batch) :])
        first = math.sqrt(beta[0]) * (first if mask is None else mask * first)
        rest = tuple(first.new_zeros(len(first), *shape) for shape in shapes[:-1])
        weights = tuple(
            flatten_weights(f"lam[{j}]", lam[j], multipliers[j], layer, batch, shapes[j], signal.dtype)  # type: ignore[arg-type]
            for j, layer in enumerate(layers)
        )
        if any(bool((w == 0).any()) for w in weights):
            raise UnsupportedError(
                "lam or weights of a joint problem hold zeros; its certificate needs every entry penalized: use a "
                "small positive lam"
            )
        if not differentiable:
            weights = tuple(w.detach() for w in weights)
        return StandardForm(ChainOperator(layers, beta, mask), (first, *rest), weights, self.nonnegative, shapes)

    def pack(self, codes: object, signal: Tensor) -> Blocks:
        """Return a tuple with one tensor per layer, each with a single batch axis."""
        return pack_layers(self.model, codes, signal, self.batch_shape(signal))

    def unpack(self, blocks: Blocks, batch_shape: tuple[int, ...]) -> Codes:
        """Return one tensor ``(*batch, *code)`` per layer."""
        return tuple(block.reshape(*batch_shape, *block.shape[1:]) for block in blocks)

    def lam_max(self, signal: Tensor) -> Tensor:
        """Return the smallest lam of the first layer for which all codes are zero, ``β_1 max|D_1ᵀ y|``, per sample.

        With the first layer's codes zero nothing reaches the layers above, whatever their lam.
        """
        signal = self.check_signal(signal)
        depth = len(self.model)
        free = JointLasso(
            self.model, (1.0,) + (math.inf,) * (depth - 1), self.beta, self.weights, self.nonnegative, self.mask
        )
        return largest_ratio(free.form(signal)).reshape(self.batch_shape(signal))


def check_cascade(model: object) -> Cascade:
    """Return `model` if it is a cascade.

    Raises:
        DictionaryError: It is something else; a single dictionary belongs into `Lasso`.
    """
    if not isinstance(model, Cascade):
        raise DictionaryError(
            f"model is a {type(model).__name__}; expected a dsc.Cascade: dsc.Cascade([dictionary]) makes one"
        )
    return model


def layer_shapes(model: Cascade, signal: Tensor) -> tuple[tuple[int, ...], ...]:
    """Return the shape of one sample's codes in every layer.

    Raises:
        ShapeError: A layer cannot stand on the code of the one below; the message names the layer.
    """
    axes = model.layers[0].event_axes
    size = tuple(signal.shape[signal.ndim - axes + 1 :]) if axes > 1 else ()
    shapes = []
    for j, layer in enumerate(model.layers, start=1):
        try:
            shape = layer.exact_code_shape(size)
        except ShapeError as error:
            raise ShapeError(f"layer {j} of the cascade: {error}") from None
        shapes.append(shape)
        size = shape[1:]
    return tuple(shapes)


def pack_layers(model: Cascade, codes: object, signal: Tensor, batch: tuple[int, ...]) -> Blocks:
    """Return codes of all layers, each with a single batch axis.

    Raises:
        ShapeError: Not a tuple or list with one tensor per layer, or a tensor of another shape.
    """
    if isinstance(codes, torch.Tensor) or not isinstance(codes, Sequence) or len(codes) != len(model):
        got = f"{len(codes)} entries" if isinstance(codes, tuple | list) else f"a {type(codes).__name__}"
        raise ShapeError(f"codes are {got}; expected a tuple with one tensor for each of the {len(model)} layers")
    shapes = layer_shapes(model, signal)
    triples = zip(codes, model.layers, shapes, strict=True)
    return tuple(flat_codes(f"codes[{j}]", x, layer, batch, s) for j, (x, layer, s) in enumerate(triples))
