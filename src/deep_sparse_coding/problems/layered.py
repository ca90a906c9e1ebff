"""The layered problem: one Lasso after the other, each on the codes of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import per_layer
from deep_sparse_coding.dictionaries import Cascade

from .base import Codes, Problem
from .joint import check_cascade, layer_shapes, pack_layers
from .lasso import Lasso
from .operators import Blocks
from .weights import check_lam, check_mask


@dataclass(frozen=True, eq=False)
class LayeredLasso(Problem):
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
        object.__setattr__(self, "weights", per_layer("weights", self.weights, depth))
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

    def batch_shape(self, signal: Tensor) -> tuple[int, ...]:
        """Return the leading axes of a signal."""
        return tuple(signal.shape[: signal.ndim - self.model.layers[0].event_axes])

    def check_signal(self, signal: object) -> Tensor:
        """Return the signal if it fits the first layer and its code every layer above, else raise."""
        tensor = self.model.layers[0].check_signal(signal)
        layer_shapes(self.model, tensor)
        return tensor

    def pack(self, codes: object, signal: Tensor) -> Blocks:
        """Return a tuple with one tensor per layer, each with a single batch axis."""
        return pack_layers(self.model, codes, signal, self.batch_shape(signal))

    def unpack(self, blocks: Blocks, batch_shape: tuple[int, ...]) -> Codes:
        """Return one tensor ``(*batch, *code)`` per layer."""
        return tuple(block.reshape(*batch_shape, *block.shape[1:]) for block in blocks)

    def objective(self, codes: Codes, signal: Tensor) -> Tensor:
        """Return the sum of the layers' objectives per sample, layer j measured on the given codes of layer j - 1."""
        self.pack(codes, self.check_signal(signal))
        values = [stage.objective(x, z) for stage, x, z in self.by_layer(codes, signal)]
        return torch.stack(values).sum(0)

    def lam_max(self, signal: Tensor) -> Tensor:
        """Return the smallest lam of the first layer for which all codes are zero, per sample."""
        return self.stages[0].lam_max(self.check_signal(signal))

    def by_layer(self, codes: Codes, signal: Tensor) -> list[tuple[Lasso, Tensor, Tensor]]:
        """Return, layer by layer, its Lasso, its codes and its signal (the codes below)."""
        layers = tuple(codes)
        return list(zip(self.stages, layers, (signal, *layers[:-1]), strict=True))
