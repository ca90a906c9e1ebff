"""The sparsity of a network over a whole data loader, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import HookError, ParameterError
from ..watching.hooks import Watch, describe
from ..watching.running import Forward, call, device_of, evaluating, move
from ..watching.selection import Target
from .measures import measured, require_tolerance
from .report import LayerStatistics, SparsityReport


def measure_sparsity(
    model: nn.Module,
    loader: Iterable[Any],
    targets: Target | Iterable[Target],
    *,
    forward: Forward = call,
    device: torch.device | str | None = None,
    limit: int | None = None,
    tol: float = 0.0,
    batch_axis: int = 0,
    channel_axis: int = 1,
    allow_missing: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> SparsityReport:
    """Return the sparsity of chosen layers over all batches of a loader.

    ::

        report = measure_sparsity(net, loader, targets=[torch.nn.ReLU])
        print(report)
        report.save("sparsity.json")

    The network runs in evaluation mode and without gradients, and is given back in the mode that each of its modules
    had. Memory does not grow with the number of batches.

    Args:
        model: Any network.
        loader: Batches: tensors, tuples or lists whose first item is the input, or mappings of keyword arguments.
        targets: Which modules, see `select`.
        forward: How the network runs on a batch, ``forward(model, batch)``, where it is none of these.
        device: Where tensors of a batch go; None: to the device of the first parameter.
        limit: The number of batches, where not all are wanted.
        tol: What counts as zero, ``|x| ≤ tol``.
        batch_axis: The axis of samples in the outputs.
        channel_axis: The axis of channels; -1 for tokens ``(batch, tokens, features)``.
        allow_missing: Accept modules that never ran; their row has 0 calls.
        progress: Called as ``progress(done, total)`` after each batch; `total` is None where the loader has no length.

    Raises:
        HookError: A module did not run, or put out no tensor.
        NameMatchError: A target matches no module.
        ParameterError: The loader gave no batch, or one of an unknown kind, or a setting is out of range.
        ShapeError: An output has no such channel axis.
        UnsupportedError: The model is a ``torch.nn.DataParallel``.

    Source: section "Sparsity in training" of docs/theory.md.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ParameterError(f"limit is {limit!r}; expected a number of batches of at least 1, or None for all")
    tol = require_tolerance(tol)
    statistics: dict[str, LayerStatistics] = {}

    def receive(name: str, x: Tensor, recomputing: bool) -> None:
        if not recomputing:
            statistics[name].update(measured(x).abs())

    watch = Watch(model, targets, "measure_sparsity", receive)
    for name, module in watch.modules.items():
        kind = type(module).__name__
        statistics[name] = LayerStatistics(name, kind, tol=tol, batch_axis=batch_axis, channel_axis=channel_axis)
    place = device_of(model) if device is None else torch.device(device)
    total, done = _length(loader, limit), 0
    with evaluating(model):
        watch.start()
        try:
            for batch in loader:
                forward(model, move(batch, place))
                done += 1
                if progress is not None:
                    progress(done, total)
                if done == limit:
                    break
        finally:
            watch.stop()
    if not done:
        raise ParameterError("the loader gave no batch; expected at least one: an iterator can be used up only once")
    idle = [name for name, layer in statistics.items() if not layer.calls]
    if len(idle) == len(statistics) or (idle and not allow_missing):
        raise HookError(
            f"{describe(idle)} did not run in any of {done} batches; expected every target to run: leave it out of "
            "targets, or set allow_missing=True where others ran"
        )
    return SparsityReport(tuple(layer.row() for layer in statistics.values()))


def _length(loader: Iterable[Any], limit: int | None) -> int | None:
    try:
        total = len(loader)  # type: ignore[arg-type]  # a loader over a stream has the method and raises
    except TypeError:
        return limit
    return total if limit is None else min(total, limit)
