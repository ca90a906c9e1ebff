"""Recording the activations of any network."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from torch import Tensor, nn

from ...errors import HookError, NameMatchError, near_misses
from ..watching.hooks import Watch, describe
from ..watching.selection import Target
from .measures import measured, require_tolerance
from .report import LayerStatistics, SparsityReport


class Probe:
    """Records what chosen modules of a network put out, as a context manager.

    ::

        with Probe(net, targets=[torch.nn.ReLU]) as probe:
            net(x)
        probe.activations["features.1"]      # a tuple: one tensor for each call of the module
        probe["features.1"]                  # the tensor, where the module ran once

    All calls are kept until `clear`, a new `with`, or the probe goes; so clear it in long loops. What was recorded can
    be read after the context too. Of outputs that are tuples or lists the first item is recorded. A forward pass that
    activation checkpointing repeats inside a backward pass is not recorded again.

    Args:
        model: Any network; it is given back as it was.
        targets: Which modules, see `select`.
        detach: Record copies without gradient, which nothing that follows in the network can change. ``False``: record
            the very tensors of the graph, to take gradients with respect to them; one that a later in-place operation
            overwrites is refused when it is read.
        allow_missing: Accept modules that did not run; they have an empty tuple.

    Raises:
        NameMatchError: A target matches no module.
        UnsupportedError: The model is a ``torch.nn.DataParallel``.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Target | Iterable[Target],
        *,
        detach: bool = True,
        allow_missing: bool = False,
    ) -> None:
        self._watch = Watch(model, targets, "Probe", self._receive)
        self._detach = detach
        self._allow_missing = allow_missing
        self._recorded: dict[str, list[tuple[Tensor, int | None]]] = {}
        self.clear()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the modules that are watched, in the order of the model."""
        return tuple(self._watch.modules)

    @property
    def activations(self) -> dict[str, tuple[Tensor, ...]]:
        """By name, one tensor for each call of the module, in the order of the calls.

        Raises:
            HookError: No module ran, or one did not (unless `allow_missing`), or a tensor was overwritten in place.
        """
        idle = [name for name, calls in self._recorded.items() if not calls]
        if len(idle) == len(self._recorded):
            raise HookError(
                f"the probe recorded nothing: none of {describe(idle)} ran inside of the context. Usual causes: no "
                "forward pass in it; the modules are not used in forward; the model was compiled and had run before "
                "the context was entered (enter first, or call torch.compiler.reset())"
            )
        if idle and not self._allow_missing:
            raise HookError(
                f"{describe(idle)} did not run, while others did; expected every target to run: leave it out of "
                "targets, or set allow_missing=True"
            )
        return {name: tuple(_unchanged(name, *call) for call in calls) for name, calls in self._recorded.items()}

    def __getitem__(self, name: str) -> Tensor:
        """Return what the one call of a module put out.

        Raises:
            HookError: The module did not run, or more than once, or the tensor was overwritten in place.
            NameMatchError: The probe does not watch such a module.
        """
        if name not in self._recorded:
            raise NameMatchError(
                f"the probe does not watch {name!r}{near_misses(name, self.names)}; it watches {describe(self.names)}"
            )
        calls = self._recorded[name]
        if not calls:
            raise HookError(
                f"{name!r} did not run inside of the context; expected one forward pass in it, since it was entered or "
                "cleared"
            )
        if len(calls) != 1:
            raise HookError(
                f"{name!r} ran {len(calls)} times; expected once: use probe.activations[{name!r}], a tuple with one "
                "tensor for each call, or probe.clear() before each forward pass"
            )
        return _unchanged(name, *calls[0])

    def report(self, *, tol: float = 0.0, batch_axis: int = 0, channel_axis: int = 1) -> SparsityReport:
        """Return the sparsity of what was recorded.

        Args:
            tol: What counts as zero, ``|x| ≤ tol``.
            batch_axis: The axis of samples.
            channel_axis: The axis of channels; -1 for tokens ``(batch, tokens, features)``.

        Raises:
            HookError: See `activations`.
            ParameterError: `tol` is negative or not finite.
            ShapeError: An output has no such channel axis.
        """
        tol = require_tolerance(tol)
        rows = []
        for name, calls in self.activations.items():
            kind = type(self._watch.modules[name]).__name__
            statistics = LayerStatistics(name, kind, tol=tol, batch_axis=batch_axis, channel_axis=channel_axis)
            for x in calls:
                statistics.update(measured(x).abs())
            rows.append(statistics.row())
        return SparsityReport(tuple(rows))

    def clear(self) -> None:
        """Forget what was recorded."""
        self._recorded = {name: [] for name in self._watch.modules}

    def __repr__(self) -> str:
        return f"<Probe of {describe(self.names)}: {sum(map(len, self._recorded.values()))} tensors recorded>"

    def __enter__(self) -> Self:
        self._watch.start()
        self.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.stop()

    def _receive(self, name: str, x: Tensor, recomputing: bool) -> None:
        if recomputing:
            return
        # A copy, since an in-place ReLU that follows would otherwise rewrite the record of the layer before it.
        call = (x.detach().clone(), None) if self._detach else (x, _version(x))
        self._recorded[name].append(call)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _unchanged(name: str, x: Tensor, version: int | None) -> Tensor:
    # The caller owns a copy (None) and may write to it; a tensor of the graph must still be what the module put out.
    if version is not None and _version(x) != version:
        raise HookError(
            f"the output of {describe([name])} was overwritten in place after the module ran, as by "
            "torch.nn.ReLU(inplace=True) or `x += y` behind it; use detach=True, or set inplace=False there"
        )
    return x
