"""Signals of a class on which a network errs most: random ones, and ones that a search drives towards the bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import Cascade, Dictionary, place_sparsity, stripe_sparsity

# The codes of one layer after every step, from the signal: `codes_by_depth` of a compiled network.
Trace = Callable[[Tensor], Sequence[tuple[int, Tensor]]]


@dataclass(frozen=True)
class SignalClass:
    """What a plan takes for granted of a signal's codes.

    Attributes:
        sparsity: The most non-zeros per stripe and layer (dense: in all).
        place: The most non-zeros of ``x_{j-1}`` under one atom of layer j, for every layer but the first.
        amplitude: The largest entry of any code.
    """

    sparsity: tuple[int, ...]
    place: tuple[int, ...]
    amplitude: float

    def holds(self, model: Dictionary | Cascade, deepest: Tensor) -> Tensor:
        """Return for every sample whether its codes belong to the class, ``(batch,)``."""
        layers, codes = codes_of(model, deepest)
        met = torch.ones(len(deepest), dtype=torch.bool)
        for j, (layer, x) in enumerate(zip(layers, codes, strict=True)):
            met &= stripe_sparsity(layer, x) <= self.sparsity[j]
            met &= x.abs().flatten(1).amax(1) <= self.amplitude
            if j:
                met &= place_sparsity(layer, codes[j - 1]) <= self.place[j - 1]
        return met


def codes_of(model: Dictionary | Cascade, deepest: Tensor) -> tuple[list[Dictionary], list[Tensor]]:
    """Return layers and codes, first layer first, of ``x_{j-1} = D_j x_j``."""
    layers: list[Dictionary] = list(model.layers) if isinstance(model, Cascade) else [model]
    codes = [deepest]
    for layer in reversed(layers[1:]):
        codes.insert(0, layer.synthesize(codes[0]))
    return layers, codes


def errors_by_depth(model: Dictionary | Cascade, trace: Trace, deepest: Tensor) -> Tensor:
    """Return ``‖codes - truth‖_∞`` of every sample after every step, ``(batch, steps)``."""
    layers, codes = codes_of(model, deepest)
    signal = layers[0].synthesize(codes[0])
    return torch.stack([(found - codes[j - 1]).abs().flatten(1).amax(1) for j, found in trace(signal)], 1)


def drive(
    model: Dictionary | Cascade, trace: Trace, start: Tensor, allowed: SignalClass, marks: Sequence[int], rounds: int
) -> Tensor:
    """Return the largest error after every step that a search finds, ``(steps,)``, over signals of the class.

    For every mark, a step of the network, the search goes from vertex to vertex of the box of codes on the support of a
    start: every entry moves to plus or minus the amplitude, as the gradient of the error after that step says. What
    leaves the class is not counted.

    Args:
        model: The dictionaries.
        trace: The codes after every step, from a signal.
        start: Deepest codes, ``(batch, atoms, ...)``.
        allowed: The class of signals.
        marks: The steps, by number, whose errors are driven up.
        rounds: Moves per mark.
    """
    largest = torch.zeros(0)
    for mark in marks:
        deepest = start
        for _ in range(rounds + 1):
            variable = deepest.clone().requires_grad_()
            errors = errors_by_depth(model, trace, variable)
            met = allowed.holds(model, deepest)
            found = torch.where(met.unsqueeze(1), errors.detach(), 0).amax(0)
            largest = found if largest.numel() == 0 else torch.maximum(largest, found)
            (slope,) = torch.autograd.grad(errors[:, mark].sum(), variable)
            # An entry on which the error does not depend keeps its sign.
            sign = torch.where(slope == 0, deepest.sign(), slope.sign())
            deepest = torch.where(start == 0, 0.0, allowed.amplitude * sign)
    return largest
