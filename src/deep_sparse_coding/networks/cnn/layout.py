"""How a layer's state lies in channels, and what one linear layer costs: a network's shape, without its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from ...dictionaries import ConvDictionary, Dictionary
from ...errors import UnsupportedError


@dataclass(frozen=True)
class Reading:
    """Where the codes of a layer lie in the channels of a state.

    Attributes:
        layer: The sparse coding layer, counted from 1.
        step: The step after which they are these codes, counted from 1.
        start: Their first channel.
        atoms: Atoms of the layer.
        signed: Whether they are a pair ``x⁺, x⁻``.
        phases: Positions of the layer in one position of the state, per axis: 1, or more where the state lies on the
            coarser grid of a deeper layer; channels run over phases, then atoms.
        surplus: Positions per axis, after the layer's last one, that the state's grid has too many.
    """

    layer: int
    step: int
    start: int
    atoms: int
    signed: bool
    phases: tuple[int, ...] = ()
    surplus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One linear layer of the network.

    Attributes:
        kind: "analyze" (``Wᵀz``, the first step), "step" (one convolution by ``I - WᵀD``), "spread" and "gather" (a
            step through ``Dx``), "steps" (a step of several layers), "frame" (onto the grid of the deepest layer),
            "merge" (into signed codes), or "shift" (part of a convolution that was split).
        layer: The sparse coding layer it belongs to, counted from 1; the deepest of several.
        step: The step of that layer that it completes or is part of, counted from 1.
        inputs: Channels in.
        outputs: Channels out.
        kernel: Its size per axis; empty for dense layers.
        bias: Whether it has one.
        activated: Whether an activation follows.
        stride: Its stride per axis.
        padding: Entries put before and after its input together, per axis (fewer than 0: taken away).
        extra: Parameters of its activation.
        readings: The codes that its activation's output holds.
        scales: t of every output's activation (N7); None for 1.
    """

    kind: str
    layer: int
    step: int
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    bias: bool
    activated: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    extra: int = 0
    readings: tuple[Reading, ...] = ()
    scales: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def taps(self) -> int:
        """Multiply-adds per position of the output."""
        return self.inputs * self.outputs * math.prod(self.kernel)

    @property
    def parameters(self) -> int:
        """Weights and biases, and what the activation has."""
        return self.taps + (self.outputs if self.bias else 0) + self.extra

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spatial size of the output for an input of the spatial `size`."""
        axes = zip(size, self.kernel, self.stride, self.padding, strict=True)
        return tuple((n + pad - k) // q + 1 for n, k, q, pad in axes)


@dataclass(frozen=True)
class LayerLayout:
    """The channels of one layer: codes, signed ones as pairs ``x = x⁺ - x⁻``, then ``v = Wᵀz`` as a pair.

    Attributes:
        atoms: Number of atoms.
        channels: Channels of the layer's signal (dense: its length).
        kernel: Kernel size per axis; empty for dense layers.
        stride: Stride per axis.
        lags: ``L`` per axis.
        boundary: "valid", "circular" or "none".
        signed: Whether codes are carried as pairs.
        through_signal: Whether a step is two convolutions of kernel k through ``Dx`` and not one of kernel ``2L + 1``.
    """

    atoms: int
    channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    lags: tuple[int, ...]
    boundary: str
    signed: bool
    through_signal: bool

    @classmethod
    def of(cls, dictionary: Dictionary, *, signed: bool, direct: bool = False) -> LayerLayout:
        """Return the layout of a dictionary's layer; for stride 1 a step takes the cheaper of its two forms.

        With a larger stride ``Dx`` lives on a finer grid than the codes that have to be carried beside it, and the one
        convolution of kernel ``2L + 1`` is used; as it is if `direct`.

        Raises:
            UnsupportedError: Boundary "same".
        """
        if dictionary.boundary == "same":
            raise UnsupportedError(
                f"cannot compile {dictionary!r}: with boundary 'same' atoms that the border cuts off have other "
                "correlations, and a step would have other weights there; expected boundary 'valid' or 'circular': use "
                ".with_boundary('valid') on padded signals"
            )
        if not isinstance(dictionary, ConvDictionary):
            return cls(dictionary.atoms, dictionary.channels, (), (), (), "none", signed, False)
        kernel, stride, lags = dictionary.kernel_size, dictionary.stride, dictionary.lags
        state = (4 if signed else 3) * dictionary.atoms
        middle = dictionary.channels + 2 * dictionary.atoms
        one = state * state * math.prod(2 * lag + 1 for lag in lags)
        through = 2 * state * middle * math.prod(kernel)
        shorter = not direct and all(q == 1 for q in stride) and through < one
        return cls(dictionary.atoms, dictionary.channels, kernel, stride, lags, dictionary.boundary, signed, shorter)

    @property
    def axes(self) -> int:
        """Spatial axes; 0 for dense layers."""
        return len(self.kernel)

    @property
    def code_width(self) -> int:
        """Channels that hold the codes."""
        return (2 if self.signed else 1) * self.atoms

    @property
    def state_width(self) -> int:
        """Channels that hold the codes and v."""
        return self.code_width + 2 * self.atoms

    @property
    def step_taps(self) -> int:
        """Multiply-adds of a step in the middle, per position of the codes."""
        if self.through_signal:
            return 2 * self.state_width * (self.channels + 2 * self.atoms) * math.prod(self.kernel)
        return self.state_width**2 * math.prod(2 * lag + 1 for lag in self.lags)

    def reading(self, layer: int, step: int) -> Reading:
        """Return where the codes lie in a state of this layer alone."""
        return Reading(layer, step, 0, self.atoms, self.signed)
