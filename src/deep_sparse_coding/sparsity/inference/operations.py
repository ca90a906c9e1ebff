"""Multiply-adds of linear and convolutional layers, and how many of them zeros in a layer's input make unnecessary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...errors import HookError
from ..measuring.table import aligned, number, row_named
from ..watching.running import Forward, call, device_of, evaluating, move

_FORWARD = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COUNTED = (nn.Linear, *_FORWARD, *_TRANSPOSED)


@dataclass(frozen=True)
class LayerOperations:
    """The multiply-adds of one layer.

    Attributes:
        name: The name of the module in the model.
        kind: The name of its type.
        calls: How often it ran.
        dense: Multiply-adds of all entries of its input; those with zeros of a padding are not among them.
        unnecessary: Those whose entry of the input is exactly zero.
        zero_fraction: The fraction of zeros in the input; NaN where it did not run.
    """

    name: str
    kind: str
    calls: int
    dense: int
    unnecessary: int
    zero_fraction: float

    @property
    def fraction(self) -> float:
        """``unnecessary / dense``; NaN where it did not run."""
        return self.unnecessary / self.dense if self.dense else math.nan


@dataclass(frozen=True)
class OperationReport:
    """Multiply-adds layer by layer.

    Attributes:
        layers: One row per layer, in the order of the model.
    """

    layers: tuple[LayerOperations, ...]

    @property
    def dense(self) -> int:
        """Multiply-adds of all layers."""
        return sum(row.dense for row in self.layers)

    @property
    def unnecessary(self) -> int:
        """Those that zeros make unnecessary."""
        return sum(row.unnecessary for row in self.layers)

    @property
    def fraction(self) -> float:
        """``unnecessary / dense`` of all layers."""
        return self.unnecessary / self.dense if self.dense else math.nan

    def __getitem__(self, name: str) -> LayerOperations:
        """Return the row of one layer.

        Raises:
            NameMatchError: There is no such layer in the report.
        """
        return row_named(self.layers, name)

    def __iter__(self) -> Iterator[LayerOperations]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts that JSON can hold; what is NaN becomes None."""
        rows = [asdict(row) for row in self.layers]
        for row in rows:
            row["zero_fraction"] = None if math.isnan(row["zero_fraction"]) else row["zero_fraction"]
        return {"dense": self.dense, "unnecessary": self.unnecessary, "layers": rows}

    def __str__(self) -> str:
        head = ("layer", "type", "calls", "multiply-adds", "zero inputs", "unnecessary")
        body = [
            (
                row.name or "(model)",
                row.kind,
                str(row.calls),
                f"{row.dense:,}",
                number(100 * row.zero_fraction, ".1f", " %"),
                number(100 * row.fraction, ".1f", " %"),
            )
            for row in self.layers
        ]
        return aligned(head, body, ("all", "", "", f"{self.dense:,}", "", number(100 * self.fraction, ".1f", " %")))


class _Counter:
    """Running sums of one layer."""

    def __init__(self) -> None:
        self.calls = self.dense = self.unnecessary = self.entries = self.zeros = 0

    def __call__(self, module: Any, args: tuple[Any, ...], settings: dict[str, Any], output: Tensor) -> None:
        x = args[0] if args else settings["input"]
        dense, unnecessary = _count(module, x.detach(), output)
        self.calls += 1
        self.dense += dense
        self.unnecessary += unnecessary
        self.entries += x.numel()
        self.zeros += int((x == 0).sum())


def multiply_adds(
    model: nn.Module, example: Any, *, forward: Forward = call, device: torch.device | str | None = None
) -> OperationReport:
    """Return the multiply-adds of one forward pass, and those that zeros in the layers' inputs make unnecessary.

    An entry of a layer's input takes part in as many multiply-adds as there are weights that reach an output from it:
    all outputs of a linear layer, the kernel's taps at all positions of a convolution. Where the entry is zero they
    change nothing. This says what sparsity could save, not what a device saves: see `sparse_inference`.

    Counted are ``torch.nn.Linear``, ``Conv1d`` to ``Conv3d`` and their transposed kinds, where they run as modules; the
    projections inside ``torch.nn.MultiheadAttention`` do not. Additions of a bias are not counted.

    Args:
        model: Any network; it runs in evaluation mode and is given back as it was.
        example: A batch, as in `measure_sparsity`.
        forward: How the network runs on it, ``forward(model, example)``.
        device: Where its tensors go; None: to the device of the first parameter.

    Raises:
        HookError: The model has no such layer, or none ran.
        ParameterError: The batch is of an unknown kind.

    Source: counting; the measure is this library's own.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, COUNTED)}
    counters = {name: _Counter() for name in layers}
    handles = [
        module.register_forward_hook(counters[name], with_kwargs=True)  # type: ignore[arg-type]  # any module
        for name, module in layers.items()
    ]
    try:
        with evaluating(model):
            forward(model, move(example, device_of(model) if device is None else torch.device(device)))
    finally:
        for handle in handles:
            handle.remove()
    if not any(counter.calls for counter in counters.values()):
        raise HookError(
            f"no linear or convolutional layer of {type(model).__name__} ran (it has {len(layers)}); expected at least "
            "one that runs as a module"
        )
    return OperationReport(
        tuple(
            LayerOperations(
                name.replace("_orig_mod.", ""), type(layers[name]).__name__, counter.calls, counter.dense,
                counter.unnecessary, counter.zeros / counter.entries if counter.entries else math.nan,
            )
            for name, counter in counters.items()
        )
    )  # fmt: skip


def _count(module: Any, x: Tensor, output: Tensor) -> tuple[int, int]:
    """Return the multiply-adds of one call, and the unnecessary ones."""
    if isinstance(module, nn.Linear):
        return x.numel() * module.out_features, int((x == 0).sum()) * module.out_features
    axes = len(module.kernel_size)
    x = x if x.ndim == axes + 2 else x.unsqueeze(0)
    padding = _padding_before(module)
    if module.padding_mode != "zeros":
        # What is put around the image has entries of the image, which count like any others.
        x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), [0] * axes
    transposed = isinstance(module, _TRANSPOSED)
    uses = [
        _uses(
            x.shape[2 + axis], output.shape[axis - axes], module.kernel_size[axis], module.stride[axis],
            module.dilation[axis], padding[axis], transposed,
        )
        for axis in range(axes)
    ]  # fmt: skip
    reach = reduce(lambda a, b: a.unsqueeze(-1) * b, uses).to(x.device)
    zeros = (x == 0).sum(dim=(0, 1))
    each = module.out_channels // module.groups
    return int(reach.sum()) * x.shape[0] * x.shape[1] * each, int((reach * zeros).sum()) * each


def _padding_before(module: Any) -> Sequence[int]:
    if module.padding == "same":
        return [d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return [0] * len(module.kernel_size) if module.padding == "valid" else module.padding


def _uses(size: int, outputs: int, kernel: int, stride: int, dilation: int, padding: int, transposed: bool) -> Tensor:
    """Return how many pairs of tap and output use each entry along one axis."""
    near, far = (size, outputs) if transposed else (outputs, size)
    reached = torch.arange(near).unsqueeze(1) * stride + torch.arange(kernel) * dilation - padding
    inside = (reached >= 0) & (reached < far)
    return inside.sum(1) if transposed else torch.bincount(reached[inside], minlength=size)
