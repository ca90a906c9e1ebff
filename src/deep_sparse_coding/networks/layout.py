"""How a layer's state lies in channels, and what one step costs: the shape of the network before it has weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..dictionaries import ConvDictionary, Dictionary
from ..errors import UnsupportedError


@dataclass(frozen=True)
class Stage:
    """One linear layer of the network.

    Attributes:
        kind: "analyze" (``Wᵀz``, the first step), "step" (one convolution by ``I - WᵀD``), "spread" and "gather" (a
            step through ``Dx``), or "merge" (pairs into signed codes).
        layer: The sparse coding layer it belongs to, counted from 1.
        step: The step it completes or is part of, counted from 1.
        inputs: Channels in.
        outputs: Channels out.
        kernel: Its size per axis; empty for dense layers.
        on_signal: Whether its output lies on the grid of the layer's signal, not of its code.
        bias: Whether it has one.
        activated: Whether a ReLU follows.
    """

    kind: str
    layer: int
    step: int
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    on_signal: bool = False
    bias: bool = True
    activated: bool = True

    @property
    def taps(self) -> int:
        """Multiply-adds per position of the output."""
        return self.inputs * self.outputs * math.prod(self.kernel)

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.taps + (self.outputs if self.bias else 0)


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
    def of(cls, dictionary: Dictionary, *, signed: bool) -> LayerLayout:
        """Return the layout of a dictionary's layer; for stride 1 a step takes the cheaper of its two forms.

        With a larger stride ``Dx`` lives on a finer grid than the codes that have to be carried beside it, and the one
        convolution of kernel ``2L + 1`` is used.

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
        direct = state * state * math.prod(2 * lag + 1 for lag in lags)
        through = 2 * state * middle * math.prod(kernel)
        shorter = all(q == 1 for q in stride) and through < direct
        return cls(dictionary.atoms, dictionary.channels, kernel, stride, lags, dictionary.boundary, signed, shorter)

    @property
    def code_width(self) -> int:
        """Channels that hold the codes."""
        return (2 if self.signed else 1) * self.atoms

    @property
    def state_width(self) -> int:
        """Channels that hold the codes and v."""
        return self.code_width + 2 * self.atoms

    def stages(self, layer: int, steps: int, inputs: int) -> list[Stage]:
        """Return the linear layers of `steps` steps on an input of so many channels (pairs counted twice)."""
        found = []
        for step in range(1, steps + 1):
            outputs = self.code_width if step == steps else self.state_width
            if step == 1:
                found.append(Stage("analyze", layer, 1, inputs, outputs, self.kernel))
            elif self.through_signal:
                middle = self.channels + (1 if step == steps else 2) * self.atoms
                found.append(
                    Stage(
                        "spread",
                        layer,
                        step,
                        self.state_width,
                        middle,
                        self.kernel,
                        on_signal=True,
                        bias=False,
                        activated=False,
                    )
                )
                found.append(Stage("gather", layer, step, middle, outputs, self.kernel))
            else:
                kernel = tuple(2 * lag + 1 for lag in self.lags)
                found.append(Stage("step", layer, step, self.state_width, outputs, kernel))
        return found

    def merge(self, layer: int, steps: int) -> list[Stage]:
        """Return the layer that turns pairs into signed codes, if there are pairs."""
        if not self.signed:
            return []
        kernel = (1,) * len(self.kernel)
        return [Stage("merge", layer, steps, self.code_width, self.atoms, kernel, bias=False, activated=False)]

    def grid(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spatial size of the codes of a signal of the spatial `size`."""
        if self.boundary == "circular":
            return tuple(n // q for n, q in zip(size, self.stride, strict=True))
        return tuple((n - k) // q + 1 for n, k, q in zip(size, self.kernel, self.stride, strict=True))
