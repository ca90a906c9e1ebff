"""Watching functions of torch inside a network's forward pass, such as ``F.relu(x)`` or ``x.relu()``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError
from torch.utils.hooks import RemovableHandle

from ...errors import HookError, UnsupportedError
from .selection import COMPILED, Functional, module_names

_Sink = Callable[[str, Any], None]


class FunctionWatch:
    """Hands what chosen functions return to a sink, as ``sink(name, output)``, with the name of the calling module.

    Hooks on all modules say whose forward runs; a `TorchFunctionMode` sees the calls. Calls outside of the network's
    forward pass, as in the loss, do not count.

    Args:
        model: The network.
        functions: Which.
        watched: Modules whose output is watched anyway; what they call does not count twice.
        owner: For messages.
    """

    def __init__(
        self, model: nn.Module, functions: Iterable[Functional], watched: Iterable[nn.Module], owner: str
    ) -> None:
        self._model = model
        self._functions = tuple(functions)
        self._watched = {id(module) for module in watched}
        self._owner = owner
        self._frames: list[_Frame] = []
        self._handles: list[RemovableHandle] = []
        self._mode: _Mode | None = None
        self._sink: _Sink | None = None
        self.found: dict[str, Functional] = {}
        """The names of the calls seen so far, and which target each belongs to."""

    def start(self, sink: _Sink) -> None:
        """Put the hooks and the mode on.

        Raises:
            UnsupportedError: The network, or a part of it, is compiled.
        """
        named: dict[nn.Module, str] = {}
        for name, module in module_names(self._model).items():
            named.setdefault(module, name)
        for module, name in named.items():
            if module._compiled_call_impl is not None or isinstance(module, torch.jit.ScriptModule):
                raise self._compiled(name)
        for module in self._model.modules():
            if COMPILED in module._modules:  # what torch.compile returned
                raise self._compiled(named.get(module, ""))
        self._sink = sink
        self._frames.clear()
        for module, name in named.items():
            enter, leave = _Enter(name, id(module)), _Leave()
            enter.watch = leave.watch = self
            self._handles.append(module.register_forward_pre_hook(enter))
            self._handles.append(module.register_forward_hook(leave, always_call=True))
        self._mode = _Mode(self)
        self._mode.__enter__()

    def stop(self) -> None:
        """Take off our own hooks and the mode."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None
        self._frames.clear()
        self._sink = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away meanwhile."""
        sink, self._sink = self._sink, None
        try:
            yield
        finally:
            self._sink = sink

    def enter(self, name: str, module: int) -> None:
        """Note that a module's forward begins."""
        if torch.compiler.is_compiling():
            raise self._compiled(name)
        frame = _Frame(name, module)
        if not self._frames and in_backward():
            # Checkpointing runs a module again. The backward pass is a function of torch itself, inside of which no
            # mode is on; without this one the functions would not be seen, nor save what they saved before.
            frame.mode = _Mode(self)
            frame.mode.__enter__()
        self._frames.append(frame)

    def leave(self) -> None:
        """Note that the innermost one has ended."""
        if not self._frames:
            return
        frame = self._frames.pop()
        if frame.mode is not None:
            frame.mode.__exit__(None, None, None)

    def called(self, function: str, output: Any) -> None:
        """Take in a call of any function of torch."""
        target = next((item for item in self._functions if item.matches(function)), None)
        if target is None or self._sink is None:
            return
        if not self._frames:
            return
        frame = self._frames[-1]
        if frame.module in self._watched:
            return
        count = frame.counts[target.function] = frame.counts.get(target.function, 0) + 1
        name = f"{frame.name}:{target.function}" + (f"#{count}" if count > 1 else "")
        self.found[name] = target
        self._sink(name, output)

    def _compiled(self, name: str) -> UnsupportedError:
        functions = ", ".join(f"functional({item.function!r})" for item in self._functions)
        return UnsupportedError(
            f"{self._owner} cannot see {functions} inside of {repr(name) if name else 'the model'}, which is compiled: "
            "its functions run as one kernel; use modules such as torch.nn.ReLU as targets, or the model before "
            "torch.compile or TorchScript"
        )


class _Frame:
    """One forward pass of a module that is under way."""

    def __init__(self, name: str, module: int) -> None:
        self.name, self.module = name, module
        self.counts: dict[str, int] = {}
        self.mode: _Mode | None = None


class _Enter:
    """A hook before forward that copies and pickles as one that does nothing."""

    def __init__(self, name: str = "", module: int = 0) -> None:
        self.name, self.module = name, module
        self.watch: FunctionWatch | None = None

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if self.watch is not None:
            self.watch.enter(self.name, self.module)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Enter:
        return _Enter()

    def __reduce__(self) -> tuple[type[_Enter], tuple[()]]:
        return (_Enter, ())


class _Leave:
    """A hook behind forward that copies and pickles as one that does nothing."""

    def __init__(self) -> None:
        self.watch: FunctionWatch | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self.watch is not None:
            self.watch.leave()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Leave:
        return _Leave()

    def __reduce__(self) -> tuple[type[_Leave], tuple[()]]:
        return (_Leave, ())


class _Mode(TorchFunctionMode):
    """Sees every function of torch that Python calls."""

    def __init__(self, watch: FunctionWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            output = func(*args, **(kwargs or {}))
        except CheckpointError as error:
            raise HookError(
                "activation checkpointing ran a function again where functional() could not see it; let it checkpoint "
                "a module, as in checkpoint(block, x, use_reentrant=False), or use modules such as torch.nn.ReLU as "
                "targets"
            ) from error
        self._watch.called(cast(str, getattr(func, "__name__", "")), output)
        return output


def in_backward() -> bool:
    """Return whether this runs inside a backward pass, where a forward pass is a recomputation by checkpointing."""
    return torch._C._current_graph_task_id() != -1
