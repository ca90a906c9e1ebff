"""The layered problem: one Lasso after the other, each on the codes of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from deep_sparse_coding.checks import check_flag, per_layer
from deep_sparse_coding.dictionaries import Cascade

from .cascaded import LayeredProblem, check_cascade
from .lasso import Lasso
from .weights import check_lam, check_mask, check_weights_by_layer


@dataclass(frozen=True, eq=False)
class LayeredLasso(LayeredProblem):
    """``x_j = argmin ½‖x_{j-1} - D_j z‖² + lam_j‖z‖₁`` for ``j = 1, ..., J`` in turn, ``x_0 = y``.

    Not one minimization but J of them; objective, dual value and gap add up over the layers, and a sample has converged
    when the relative gap of every layer is small.

    Attributes:
        model: The cascade.
        lam: One setting per layer, each as in `Lasso`; or one for all.
        weights: Optional, one tensor (or None) per layer: multipliers of lam per atom.
        nonnegative: Hold all codes at or above zero.
        mask: Optional, on the signal.

    Source: DSC₁ in its Lagrangian form, Li, Feng & Zhou 2024, Definition 4.
    """

    model: Cascade
    lam: Sequence[float | Tensor] | float
    weights: Sequence[Tensor | None] | None = None
    nonnegative: bool = False
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_cascade(self.model)
        depth = len(self.model)
        lam = tuple(check_lam(f"lam[{j}]", value) for j, value in enumerate(per_layer("lam", self.lam, depth)))
        object.__setattr__(self, "lam", lam)
        object.__setattr__(self, "weights", check_weights_by_layer(self.weights, depth))
        object.__setattr__(self, "nonnegative", check_flag("nonnegative", self.nonnegative))
        object.__setattr__(self, "mask", check_mask(self.mask, self.model.layers[0]))

    @property
    def stages(self) -> tuple[Lasso, ...]:
        """The Lasso of every layer; the mask belongs to the first."""
        lam = per_layer("lam", self.lam, len(self.model))
        weights = per_layer("weights", self.weights, len(self.model))
        return tuple(
            Lasso(layer, lam[j], weights[j], self.nonnegative, self.mask if j == 0 else None)  # type: ignore[arg-type]
            for j, layer in enumerate(self.model.layers)
        )
