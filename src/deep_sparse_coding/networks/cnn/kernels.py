"""The linear layers of a network that works layer after layer: weights from the dictionaries (N6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...dictionaries import ConvDictionary, Dictionary
from .layout import LayerLayout, Reading, Stage


@dataclass(frozen=True, eq=False)
class LinearMap:
    """One linear layer, in float64, before it becomes a module; its activation is taken for a ReLU.

    Attributes:
        name: What the module will be called.
        kind: As in `Stage`, and so are `layer` and `step`.
        layer: The sparse coding layer it belongs to, counted from 1.
        step: The step it completes or is part of.
        weight: ``(outputs, inputs, *kernel)``.
        bias: ``(outputs,)`` or None.
        activated: Whether an activation follows.
        stride: Per axis.
        padding: Entries before and after the input, per axis.
        wrap: Whether they repeat the other end; otherwise they are zeros.
        readings: The codes that the activation's output holds.
        carried: Outputs that hand on ``v`` and marks, as a slice; None for none.
        scales: t of every output's activation; None for 1.
    """

    name: str
    kind: str
    layer: int
    step: int
    weight: Tensor
    bias: Tensor | None
    activated: bool
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    wrap: bool = False
    readings: tuple[Reading, ...] = ()
    carried: slice | None = None
    scales: Tensor | None = None

    @property
    def kernel(self) -> tuple[int, ...]:
        """The kernel's size per axis."""
        return tuple(self.weight.shape[2:])

    def stage(self, extra: int = 0) -> Stage:
        """Return its shape, with so many parameters of its activation."""
        return Stage(
            self.kind,
            self.layer,
            self.step,
            self.weight.shape[1],
            self.weight.shape[0],
            self.kernel,
            self.bias is not None,
            self.activated,
            self.stride,
            tuple(sum(pair) for pair in self.padding),
            extra if self.activated else 0,
            self.readings,
            self.scales,
        )


def atoms_first(dictionary: Dictionary, weight: Tensor | None) -> Tensor:
    """Return W (None: the atoms) as ``(atoms, channels, k, ...)`` in float64 (dense: ``(atoms, d)``)."""
    taken = (dictionary.weight if weight is None else weight).detach().double()
    return taken if isinstance(dictionary, ConvDictionary) else taken.T


def gram_kernel(dictionary: Dictionary, layout: LayerLayout, analysis: Tensor | None) -> Tensor:
    """Return ``WᵀD`` as a kernel ``(atoms, atoms, 2L + 1, ...)`` (dense: a matrix), float64."""
    size = tuple(2 * lag + 1 for lag in layout.lags)
    return dictionary.gram_rows(slice(None), analysis).reshape(layout.atoms, layout.atoms, *size)


def center(layout: LayerLayout, kernel: tuple[int, ...], place: tuple[int, ...], like: Tensor) -> Tensor:
    """Return the kernel that hands every atom's channel on, its one tap at `place`."""
    identity = like.new_zeros(layout.atoms, layout.atoms, *kernel)
    index = torch.arange(layout.atoms, device=like.device)
    identity[(index, index, *place)] = 1.0
    return identity


def merge_map(layout: LayerLayout, layer: int, step: int, like: Tensor) -> LinearMap:
    """Return ``x⁺ - x⁻`` (non-negative codes: x itself) as a layer of kernel 1 without activation."""
    identity = torch.eye(layout.atoms, dtype=torch.float64, device=like.device)
    weight = torch.cat([identity, -identity], dim=1) if layout.signed else identity
    weight = weight.reshape(*weight.shape, *(1,) * layout.axes)
    ones, none = (1,) * layout.axes, ((0, 0),) * layout.axes
    return LinearMap("merge", "merge", layer, step, weight, None, False, ones, none)


def layerwise_maps(
    dictionaries: Sequence[Dictionary],
    layouts: Sequence[LayerLayout],
    thresholds: Sequence[Tensor],
    analyses: Sequence[Tensor | None],
) -> list[LinearMap]:
    """Return the linear layers of a network that works layer after layer, up to the deepest codes as pairs.

    Args:
        dictionaries: D of every layer.
        layouts: Their layouts.
        thresholds: θ, ``(steps, atoms)`` per layer.
        analyses: W of every layer; None for the atoms.

    Source: statements N2 and N6 of docs/theory.md.
    """
    maps: list[LinearMap] = []
    pairs = False
    for j, parts in enumerate(zip(dictionaries, layouts, thresholds, analyses, strict=True), start=1):
        dictionary, layout, theta, analysis = parts
        builder = _Layer(dictionary, layout, analysis, j, theta)
        maps.append(builder.analyze(pairs))
        for step in range(2, len(theta) + 1):
            maps += builder.through(step) if layout.through_signal else [builder.step(step)]
        pairs = layout.signed
    return maps


@dataclass(frozen=True, eq=False)
class _Layer:
    dictionary: Dictionary
    layout: LayerLayout
    analysis: Tensor | None
    number: int
    thresholds: Tensor

    def analyze(self, pairs: bool) -> LinearMap:
        """Return ``Wᵀ`` on a signal, or on the pairs of the layer below, for ``(v - θ, -v - θ, v, -v)``."""
        layout = self.layout
        weight = atoms_first(self.dictionary, self.analysis)
        if pairs:
            weight = torch.cat([weight, -weight], dim=1)
        rows = [weight, -weight] if layout.signed else [weight]
        if not self._last(1):
            rows += [weight, -weight]
        wrap = layout.boundary == "circular"
        after = [max(k - q, 0) if wrap else 0 for k, q in zip(layout.kernel, layout.stride, strict=True)]
        return self._activated(1, "", "analyze", torch.cat(rows), layout.stride, tuple((0, n) for n in after))

    def step(self, step: int) -> LinearMap:
        """Return one convolution for ``u = x - WᵀDx + v`` and its negative, and v carried along."""
        layout = self.layout
        gram = gram_kernel(self.dictionary, layout, self.analysis)
        identity = center(layout, tuple(gram.shape[2:]), layout.lags, gram)
        argument = self._pairs(identity - gram, identity)
        rows = [argument, -argument] if layout.signed else [argument]
        if not self._last(step):
            for start in (layout.code_width, layout.code_width + layout.atoms):
                row = torch.zeros_like(argument)
                row[:, start : start + layout.atoms] = identity
                rows.append(row)
        padding = tuple((lag, lag) for lag in layout.lags)
        return self._activated(step, "", "step", torch.cat(rows), (1,) * layout.axes, padding)

    def through(self, step: int) -> list[LinearMap]:
        """Return two convolutions: one for ``(Dx, x + v, v)`` on the signal's grid, one for the step.

        What is carried lies at its atom's first entry.
        """
        layout, more = self.layout, not self._last(step)
        wrap, ones = layout.boundary == "circular", (1,) * layout.axes
        kernels = atoms_first(self.dictionary, None)
        synthesis = kernels.transpose(0, 1).flip(tuple(range(2, kernels.ndim)))
        carry = center(layout, layout.kernel, tuple(k - 1 for k in layout.kernel), kernels)
        rows = [self._pairs(synthesis, torch.zeros_like(synthesis)), self._pairs(carry, carry)]
        if more:
            rows.append(self._pairs(torch.zeros_like(carry), carry))
        before = tuple((k - 1, 0 if wrap else k - 1) for k in layout.kernel)
        name = f"layer{self.number}_step{step}_synthesize"
        spread = LinearMap(name, "spread", self.number, step, torch.cat(rows), None, False, ones, before, wrap)

        weight = atoms_first(self.dictionary, self.analysis)
        carry = center(layout, layout.kernel, (0,) * layout.axes, weight)
        nothing = torch.zeros_like(carry)
        argument = torch.cat([-weight, carry, *([nothing] if more else [])], dim=1)
        rows = [argument, -argument] if layout.signed else [argument]
        if more:
            kept = torch.cat([torch.zeros_like(weight), nothing, carry], dim=1)
            rows += [kept, -kept]
        after = tuple((0, k - 1 if wrap else 0) for k in layout.kernel)
        return [spread, self._activated(step, "_analyze", "gather", torch.cat(rows), ones, after)]

    def _last(self, step: int) -> bool:
        return step == len(self.thresholds)

    def _activated(
        self,
        step: int,
        suffix: str,
        kind: str,
        weight: Tensor,
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
    ) -> LinearMap:
        layout, theta = self.layout, self.thresholds[step - 1].to(weight.device)
        codes = torch.cat([-theta] * (layout.code_width // layout.atoms))
        bias = torch.cat([codes, theta.new_zeros(len(weight) - layout.code_width)])
        return LinearMap(
            f"layer{self.number}_step{step}{suffix}",
            kind,
            self.number,
            step,
            weight,
            bias,
            True,
            stride,
            padding,
            layout.boundary == "circular",
            (layout.reading(self.number, step),),
            slice(layout.code_width, len(weight)),
        )

    def _pairs(self, on_codes: Tensor, on_v: Tensor) -> Tensor:
        """Return the columns for the channels of the state, given those for x and for v."""
        codes = [on_codes, -on_codes] if self.layout.signed else [on_codes]
        return torch.cat([*codes, on_v, -on_v], dim=1)
