"""Watching modules: forward hooks that are put on and taken off together, and never anybody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import DtypeError, HookError, ShapeError, UnsupportedError
from .selection import Target, select

Receiver = Callable[[str, Tensor, bool], None]


class Watch:
    """Hands the outputs of selected modules to a receiver, as ``receiver(name, output, recomputing)``.

    `recomputing` is true while activation checkpointing runs a forward again inside a backward pass.
    """

    def __init__(self, model: nn.Module, targets: Target | Iterable[Target], owner: str, receiver: Receiver) -> None:
        if isinstance(model, nn.DataParallel):
            raise UnsupportedError(
                f"{owner} cannot watch torch.nn.DataParallel, whose replicas are made anew in every forward; "
                "use torch.nn.parallel.DistributedDataParallel, or the model on one device"
            )
        self.modules = select(model, targets)
        self._owner = owner
        self._receiver = receiver
        # Compiled code may keep calling a hook that was removed, so hooks live as long as their owner and are switched.
        self._hooks = {name: _Hook(name) for name in self.modules}
        self._handles: list[RemovableHandle] = []

    @property
    def active(self) -> bool:
        """Whether the hooks are on."""
        return bool(self._handles)

    def start(self) -> None:
        """Put the hooks on.

        Raises:
            HookError: They are on already.
        """
        if self.active:
            raise HookError(
                f"this {self._owner} is in use already; expected to enter it once at a time: leave the outer `with` "
                f"first, or make a second {self._owner}"
            )
        # A hook is plain Python that reads state between steps; a compiler that traced it would freeze that state.
        observe = cast("Callable[[str, Any], None]", torch.compiler.disable(self._observe))
        for name, module in self.modules.items():
            self._hooks[name].sink = observe
            self._handles.append(module.register_forward_hook(self._hooks[name]))

    def stop(self) -> None:
        """Take off our own hooks; others stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for hook in self._hooks.values():
            hook.sink = None

    def require_active(self, call: str) -> None:
        """Raise unless the hooks are on.

        Raises:
            HookError: They are not.
        """
        if not self.active:
            raise HookError(
                f"{call} was called outside of the context; expected it inside of `with {self._owner}(...) as ...:`, "
                "together with the forward pass that it refers to"
            )

    def _observe(self, name: str, output: Any) -> None:
        self._receiver(name, _single_tensor(name, output), _in_backward())


class _Hook:
    """A forward hook that copies and pickles as one that does nothing, so that a model can be copied while watched."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sink: Callable[[str, Any], None] | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.sink is not None:
            self.sink(self.name, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(self.name)

    def __reduce__(self) -> tuple[type[_Hook], tuple[str]]:
        return (_Hook, (self.name,))


def describe(names: Iterable[str], limit: int = 8) -> str:
    """Return names in quotes with commas, and how many were left out."""
    items = [repr(name) if name else "the model itself" for name in names]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _in_backward() -> bool:
    # A forward pass inside a backward pass is a recomputation; the autograd engine knows which thread is in one.
    return torch._C._current_graph_task_id() != -1


def _single_tensor(name: str, output: Any) -> Tensor:
    """Return the output, or the first item of a tuple or list, such as the sequence that LSTM or attention put out.

    Raises:
        DtypeError: The tensor is not dense and real.
        HookError: There is no such tensor.
        ShapeError: The tensor has no batch axis.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        inside = f" whose first item is a {type(first).__name__}" if first is not output else ""
        raise HookError(
            f"{describe([name])} put out a {type(output).__name__}{inside}; expected a tensor, or a tuple or list that "
            "begins with one: choose a module inside of it, or one that follows, as the target"
        )
    if first.layout != torch.strided or first.is_nested or not first.is_floating_point():
        raise DtypeError(
            f"{describe([name])} put out dtype {first.dtype} with layout {first.layout}; expected dense floating-point "
            "numbers: choose another module as the target"
        )
    if first.ndim == 0:
        raise ShapeError(
            f"{describe([name])} put out a single number; expected activations with a batch axis: choose another module"
        )
    return first
