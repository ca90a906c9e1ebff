"""Watching modules: forward hooks that are put on and taken off together, and never anybody else's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...errors import DtypeError, HookError, ShapeError, UnsupportedError
from .calls import FunctionWatch, in_backward
from .selection import Functional, Target, choose, is_input

Receiver = Callable[[str, Tensor, bool], None]


class Watch:
    """Hands the activations that targets mean to a receiver, as ``receiver(name, activation, recomputing)``.

    `recomputing` is true while activation checkpointing runs a forward again inside a backward pass.

    Args:
        model: The network.
        targets: Modules, their inputs, and functions; see `choose`.
        owner: For messages.
        receiver: What takes the activations.
        functions: Whether the owner can deal with functions, whose names are known only once they ran.

    Raises:
        UnsupportedError: The model is a ``torch.nn.DataParallel``, or the owner cannot deal with functions.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Target | Iterable[Target],
        owner: str,
        receiver: Receiver,
        *,
        functions: bool = False,
    ) -> None:
        if isinstance(model, nn.DataParallel):
            raise UnsupportedError(
                f"{owner} cannot watch torch.nn.DataParallel, whose replicas are made anew in every forward; "
                "use torch.nn.parallel.DistributedDataParallel, or the model on one device"
            )
        selection = choose(model, targets)
        if selection.functions and not functions:
            raise UnsupportedError(
                f"{owner} cannot watch functional({selection.functions[0].function!r}); expected modules or inputs_of "
                "them: ActivationPenalty watches functions"
            )
        self.modules = selection.modules
        self.functions = selection.functions
        outputs = [module for name, module in self.modules.items() if not is_input(name)]
        self._calls = FunctionWatch(model, selection.functions, outputs, owner) if selection.functions else None
        self._owner = owner
        self._receiver = receiver
        # Compiled code may keep calling a hook that was removed, so hooks live as long as their owner and are switched.
        self._hooks = {name: _InputHook(name) if is_input(name) else _Hook(name) for name in self.modules}
        self._handles: list[RemovableHandle] = []
        self._active = False

    @property
    def active(self) -> bool:
        """Whether the hooks are on."""
        return self._active

    @property
    def calls(self) -> dict[str, Functional]:
        """The names of the calls of functions that were seen so far, and the target of each."""
        return {} if self._calls is None else self._calls.found

    def start(self) -> None:
        """Put the hooks on.

        Raises:
            HookError: They are on already.
            UnsupportedError: A function is a target, and the model is compiled.
        """
        if self.active:
            raise HookError(
                f"this {self._owner} is in use already; expected to enter it once at a time: leave the outer `with` "
                f"first, or make a second {self._owner}"
            )
        # A hook is plain Python that reads state between steps; a compiler that traced it would freeze that state.
        observe = cast("Callable[[str, Any], None]", torch.compiler.disable(self._observe))
        if self._calls is not None:
            self._calls.start(observe)
        for name, module in self.modules.items():
            hook = self._hooks[name]
            hook.sink = observe
            self._handles.append(hook.register(module))
        self._active = True

    def stop(self) -> None:
        """Take off our own hooks; others stay."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for hook in self._hooks.values():
            hook.sink = None
        if self._calls is not None:
            self._calls.stop()
        self._active = False

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
        x, recomputing = _single_tensor(name, output), in_backward()
        if self._calls is None:
            self._receiver(name, x, recomputing)
            return
        with self._calls.paused():  # what the receiver calls is not the network's
            self._receiver(name, x, recomputing)


class _Hook:
    """A forward hook that copies and pickles as one that does nothing, so that a model can be copied while watched."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sink: Callable[[str, Any], None] | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.sink is not None:
            self.sink(self.name, output)

    def register(self, module: nn.Module) -> RemovableHandle:
        """Put the hook on a module."""
        return module.register_forward_hook(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook(self.name)

    def __reduce__(self) -> tuple[type[_Hook], tuple[str]]:
        return (_Hook, (self.name,))


class _InputHook:
    """The same before forward, for the first argument."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sink: Callable[[str, Any], None] | None = None

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.sink is not None:
            self.sink(self.name, inputs[0] if inputs else next(iter(named.values()), None))

    def register(self, module: nn.Module) -> RemovableHandle:
        """Put the hook on a module."""
        return module.register_forward_pre_hook(self, with_kwargs=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> _InputHook:
        return _InputHook(self.name)

    def __reduce__(self) -> tuple[type[_InputHook], tuple[str]]:
        return (_InputHook, (self.name,))


def describe(names: Iterable[str], limit: int = 8) -> str:
    """Return names in quotes with commas, and how many were left out."""
    items = [repr(name) if name else "the model itself" for name in names]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _single_tensor(name: str, output: Any) -> Tensor:
    """Return the activation, or the first item of a tuple or list, such as the sequence that LSTM or attention put out.

    Raises:
        DtypeError: The tensor is not dense and real.
        HookError: There is no such tensor.
        ShapeError: The tensor has no batch axis.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    got = "got" if is_input(name) else "put out"
    if not isinstance(first, Tensor):
        inside = f" whose first item is a {type(first).__name__}" if first is not output else ""
        raise HookError(
            f"{describe([name])} {got} a {type(output).__name__}{inside}; expected a tensor, or a tuple or list that "
            "begins with one: choose a module inside of it, or one that follows, as the target"
        )
    if first.layout != torch.strided or first.is_nested or not first.is_floating_point():
        raise DtypeError(
            f"{describe([name])} {got} dtype {first.dtype} with layout {first.layout}; expected dense floating-point "
            "numbers: choose another module as the target"
        )
    if first.ndim == 0:
        raise ShapeError(
            f"{describe([name])} {got} a single number; expected activations with a batch axis: choose another module"
        )
    return first
