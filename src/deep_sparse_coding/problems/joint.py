"""The joint problem: all layers of a cascade at once, convex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from deep_sparse_coding.checks import check_flag, per_layer, require_number
from deep_sparse_coding.dictionaries import Cascade
from deep_sparse_coding.errors import UnsupportedError

from .base import ConvexProblem, StandardForm
from .cascaded import CascadeProblem, check_cascade, layer_shapes
from .dual import largest_ratio
from .operators import ChainOperator
from .weights import check_lam, check_mask, check_weights_by_layer, flatten_mask, flatten_weights


@dataclass(frozen=True, eq=False)
class JointLasso(CascadeProblem, ConvexProblem):
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
        object.__setattr__(self, "weights", check_weights_by_layer(self.weights, depth))
        object.__setattr__(self, "nonnegative", check_flag("nonnegative", self.nonnegative))
        object.__setattr__(self, "mask", check_mask(self.mask, self.model.layers[0]))

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
        operator = ChainOperator(layers, beta, mask, sizes=tuple(shape[1:] for shape in shapes))
        return StandardForm(operator, (first, *rest), weights, self.nonnegative, shapes)

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
