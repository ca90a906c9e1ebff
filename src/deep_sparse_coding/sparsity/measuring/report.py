"""The report on sparsity: one row per layer, running sums behind it; a table in print, a figure, a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import FileFormatError, ShapeError
from .table import aligned, number, row_named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMAT, _VERSION = "deep_sparse_coding.sparsity_report", 1


@dataclass(frozen=True)
class LayerSparsity:
    """The measures of one layer over all calls that were seen.

    Attributes:
        name: The name of the module in the model.
        kind: The name of its type.
        calls: How often it ran.
        entries: How many entries it put out in all.
        zero_fraction: The fraction of them that is zero; NaN where it did not run.
        hoyer: The mean over samples of Hoyer's sparsity, without those where it is undefined; NaN if none is left.
        l1_per_entry: The mean absolute entry.
        channels: The number of channels, or None where it differed from call to call.
        dead_channels: How many channels were zero at all entries seen, or None where `channels` is None.
    """

    name: str
    kind: str
    calls: int
    entries: int
    zero_fraction: float
    hoyer: float
    l1_per_entry: float
    channels: int | None
    dead_channels: int | None


@dataclass(frozen=True)
class SparsityReport:
    """Sparsity layer by layer.

    Attributes:
        layers: One row per layer, in the order of the model.
    """

    layers: tuple[LayerSparsity, ...]

    @property
    def zero_fraction(self) -> float:
        """The fraction of zeros among all entries of all layers."""
        ran = [row for row in self.layers if row.entries]
        entries = sum(row.entries for row in ran)
        return sum(row.zero_fraction * row.entries for row in ran) / entries if entries else math.nan

    def __getitem__(self, name: str) -> LayerSparsity:
        """Return the row of one layer.

        Raises:
            NameMatchError: There is no such layer in the report.
        """
        return row_named(self.layers, name)

    def __iter__(self) -> Iterator[LayerSparsity]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts that JSON can hold; what is NaN or infinite becomes None."""
        rows = [{key: _finite_or_none(value) for key, value in asdict(row).items()} for row in self.layers]
        return {"zero_fraction": _finite_or_none(self.zero_fraction), "layers": rows}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as JSON, whole or not at all.

        Args:
            path: Where; a file that is there is replaced, its folder must exist.

        Returns:
            The path.

        Raises:
            FileFormatError: The folder does not exist or cannot be written.
        """
        from ...files import write_whole

        path = Path(path)
        text = json.dumps({"format": _FORMAT, "version": _VERSION, **self.to_dict()}, indent=2, allow_nan=False)
        write_whole(path, f"{text}\n".encode())
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SparsityReport:
        """Read what `save` wrote; what was NaN or infinite is NaN.

        Raises:
            FileFormatError: No such file, damaged, not one of ours, or of a later version.
        """
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FileFormatError(f"{path} is no complete JSON file ({error}); save the report again") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise FileFormatError(f"{path} is JSON without the format {_FORMAT!r}, which SparsityReport.save writes")
        version = content.get("version")
        if type(version) is not int or not 1 <= version <= _VERSION:
            raise FileFormatError(
                f"{path} has version {version!r}; this library reads up to {_VERSION}: update deep_sparse_coding"
            )
        try:
            rows = tuple(_row_of(entry) for entry in content["layers"])
            if len({row.name for row in rows}) != len(rows):
                raise ValueError("two layers have one name")
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} has damaged layers ({error}); save the report again") from error
        return cls(rows)

    def plot(self, title: str | None = None) -> Figure:
        """Draw zero fraction, Hoyer's sparsity and dead channels per layer; save it with ``figure.savefig(path)``.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from .drawing import plot_report

        return plot_report(self, title)

    def __str__(self) -> str:
        head = ("layer", "type", "calls", "zeros", "Hoyer", "l1 per entry", "dead channels")
        body = [
            (
                row.name or "(model)",
                row.kind,
                str(row.calls),
                number(100 * row.zero_fraction, ".1f", " %"),
                number(row.hoyer, ".3f"),
                number(row.l1_per_entry, ".3e"),
                "–" if row.channels is None else f"{row.dead_channels} of {row.channels}",
            )
            for row in self.layers
        ]
        return aligned(head, body, ("all", "", "", number(100 * self.zero_fraction, ".1f", " %"), "", "", ""))


class LayerStatistics:
    """Running sums of one layer: memory does not grow with the number of calls, and no call waits for the device."""

    def __init__(self, name: str, kind: str, *, tol: float, batch_axis: int, channel_axis: int) -> None:
        self._name, self._kind, self._tol = name, kind, tol
        self._batch_axis, self._channel_axis = batch_axis, channel_axis
        self.reset()

    def reset(self) -> None:
        """Forget everything seen so far."""
        self._calls = self._entries = 0
        self._l1: Tensor | None = None
        self._nonzeros: Tensor | None = None  # per channel
        self._ratios: dict[int, tuple[Tensor, Tensor]] = {}  # entries of a sample: sum and number of ‖x‖_1/‖x‖_2
        self._same_channels = True

    def update(self, absolute: Tensor) -> Tensor:
        """Take in the absolute values of one output, in float32 or float64; the tensor is overwritten.

        Returns:
            Their sum.

        Raises:
            ShapeError: The output has no such channel axis.
        """
        ndim = absolute.ndim
        if ndim == 1:
            absolute, ndim = absolute.unsqueeze(1), 2
            batch, channel = 0, 1
        else:
            batch, channel = self._batch_axis % ndim, self._channel_axis
            if not -ndim <= channel < ndim or channel % ndim == batch:
                raise ShapeError(
                    f"'{self._name}' put out the shape {tuple(absolute.shape)}, and channel_axis is {channel} with "
                    f"batch_axis {batch}; expected another axis of it: set channel_axis, or measure=False"
                )
            channel %= ndim
        samples = absolute.shape[batch]
        size = absolute.numel() // samples if samples else 0
        others = tuple(axis for axis in range(ndim) if axis not in (batch, channel))
        # Rows: one number per sample and channel; everything else is worked out from these few.
        if others:
            # Large temporaries cost more than the arithmetic, so the last one is written over the argument.
            l1, squares = absolute.sum(others), absolute.square().sum(others)
            nonzeros = (absolute.sign_() if self._tol == 0 else absolute > self._tol).sum(others, dtype=absolute.dtype)
        else:
            l1, squares, nonzeros = absolute, absolute.square(), (absolute > self._tol).to(absolute.dtype)
        if channel < batch:
            l1, squares, nonzeros = l1.T, squares.T, nonzeros.T
        # Sums over many steps would lose digits in float32; Apple's devices have nothing longer.
        wide = torch.float32 if absolute.device.type == "mps" else torch.float64
        sample_l1 = l1.sum(1)
        total = sample_l1.sum()
        self._calls += 1
        self._entries += absolute.numel()
        self._l1 = _add(self._l1, total.to(wide))
        per_channel = nonzeros.sum(0, dtype=wide)
        if self._nonzeros is not None and self._nonzeros.shape != per_channel.shape:
            self._same_channels = False
            self._nonzeros, per_channel = self._nonzeros.sum(0, keepdim=True), per_channel.sum(0, keepdim=True)
        self._nonzeros = _add(self._nonzeros, per_channel)
        ratio = sample_l1 / squares.sum(1).sqrt()  # NaN for x = 0, which the sum leaves out
        old_sum, old_count = self._ratios.get(size, (None, None))
        self._ratios[size] = (_add(old_sum, ratio.nansum(dtype=wide)), _add(old_count, sample_l1.count_nonzero()))
        return total

    @property
    def calls(self) -> int:
        """How many outputs were taken in."""
        return self._calls

    def row(self) -> LayerSparsity:
        """Return the measures of all that was seen since the start or `reset`."""
        entries, nan = self._entries, math.nan
        nonzeros = nan if self._nonzeros is None else float(self._nonzeros.sum())
        l1 = nan if self._l1 is None else float(self._l1)
        defined = [(size, float(total), int(count)) for size, (total, count) in self._ratios.items() if size > 1]
        counted = sum(count for _, _, count in defined)
        # The mean of (√n - ratio)/(√n - 1) over samples, from the sums of the ratios.
        sparsity = sum((count * math.sqrt(size) - total) / (math.sqrt(size) - 1) for size, total, count in defined)
        channels = self._nonzeros.numel() if self._nonzeros is not None and self._same_channels else None
        return LayerSparsity(
            name=self._name,
            kind=self._kind,
            calls=self._calls,
            entries=entries,
            zero_fraction=1 - nonzeros / entries if entries else nan,
            hoyer=sparsity / counted if counted else nan,
            l1_per_entry=l1 / entries if entries else nan,
            channels=channels,
            dead_channels=None if channels is None or self._nonzeros is None else int((self._nonzeros == 0).sum()),
        )


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part.to(total.device)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _row_of(entry: Any) -> LayerSparsity:
    """Return a row from what `to_dict` made of it.

    Raises:
        TypeError: An item has another type, or is missing, or there is one more.
        ValueError: A number is out of range.
    """
    known = {field.name for field in fields(LayerSparsity)}
    if not isinstance(entry, dict) or set(entry) != known:
        raise TypeError(
            f"a layer has {sorted(entry) if isinstance(entry, dict) else entry!r}; expected {sorted(known)}"
        )
    values: dict[str, Any] = {}
    for field in fields(LayerSparsity):
        value = entry[field.name]
        if field.type == "float":
            value = math.nan if value is None else value
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{field.name} is {value!r}; expected a number or null")
            upper = math.inf if field.name == "l1_per_entry" else 1.0
            if value < 0 or value > upper:
                raise ValueError(f"{field.name} is {value!r}; expected at most {upper} and at least 0")
            value = float(value)
        elif field.type == "str":
            if not isinstance(value, str):
                raise TypeError(f"{field.name} is {value!r}; expected a text")
        elif not (value is None and "None" in str(field.type)) and (type(value) is not int or value < 0):
            raise ValueError(f"{field.name} is {value!r}; expected a whole number of at least 0")
        values[field.name] = value
    return LayerSparsity(**values)
