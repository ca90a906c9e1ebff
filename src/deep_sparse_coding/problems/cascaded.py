"""What problems on a cascade share: codes are a tuple with one tensor per layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import Cascade
from deep_sparse_coding.errors import DictionaryError, ShapeError

from .base import Codes, Problem
from .lasso import flat_codes
from .operators import Blocks


class CascadeProblem(Problem, ABC):
    """A problem whose codes are one tensor per layer of a cascade."""

    model: Cascade

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


class LayeredProblem(CascadeProblem, ABC):
    """One problem after the other, each on the codes of the one before: not one minimization but J of them.

    Objective, dual value and gap add up over the layers; a sample has converged when every layer of it has.
    """

    @property
    @abstractmethod
    def stages(self) -> tuple[Problem, ...]:
        """The problem of every layer; a mask belongs to the first."""

    def by_layer(self, codes: Codes, signal: Tensor) -> list[tuple[Problem, Tensor, Tensor]]:
        """Return, layer by layer, its problem, its codes and its signal (the codes below)."""
        layers = tuple(codes)
        return list(zip(self.stages, layers, (signal, *layers[:-1]), strict=True))

    def objective(self, codes: Codes, signal: Tensor) -> Tensor:
        """Return the sum of the layers' objectives per sample, layer j measured on the given codes of layer j - 1."""
        self.pack(codes, self.check_signal(signal))
        values = [stage.objective(x, z) for stage, x, z in self.by_layer(codes, signal)]
        return torch.stack(values).sum(0)

    def lam_max(self, signal: Tensor) -> Tensor:
        """Return, per sample, the smallest first lam (or epsilon) for which all codes are zero."""
        return self.stages[0].lam_max(self.check_signal(signal))


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
