"""Which modules of a network are meant: by type, name, glob, regular expression or predicate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, TypeVar

import torch
from torch import nn

from ...errors import NameMatchError, ParameterError, near_misses

ModuleTarget: TypeAlias = str | type[nn.Module] | re.Pattern[str] | nn.Module | Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class InputsOf:
    """A target: what goes into the modules that the targets inside mean. Made by `inputs_of`."""

    targets: tuple[ModuleTarget, ...]


@dataclass(frozen=True)
class Functional:
    """A target: what a function of torch returns inside the network's forward pass. Made by `functional`."""

    function: str

    def matches(self, name: str) -> bool:
        """Return whether a function of that name is meant; the in-place kind is, too."""
        return name in (self.function, f"{self.function}_")


Target: TypeAlias = ModuleTarget | InputsOf | Functional
Setting = TypeVar("Setting")

COMPILED = "_orig_mod"
_INPUT = ":input"


@dataclass(frozen=True)
class Selection:
    """What targets mean.

    Attributes:
        modules: By the name of the activation: that of the module, or with ``":input"`` behind it.
        functions: The functions that are meant; which calls there are is known once the network ran.
    """

    modules: dict[str, nn.Module]
    functions: tuple[Functional, ...]


def inputs_of(*targets: ModuleTarget) -> InputsOf:
    """Return the target that means the inputs of modules, such as ``inputs_of("fc")`` or ``inputs_of(nn.Linear)``.

    The first argument of a module counts. Its name is that of the module with ``":input"``, such as ``"fc:input"``.

    Raises:
        ParameterError: There is no target.
    """
    if not targets:
        raise ParameterError("inputs_of() has no target; expected at least one type, name, glob, or regular expression")
    return InputsOf(targets)


def functional(function: str | Callable[..., Any]) -> Functional:
    """Return the target that means what a function of torch returns: ``F.relu(x)``, ``torch.relu(x)``, ``x.relu()``.

    Every call inside the network's forward pass is one activation, named after the module whose forward calls it:
    ``"layer1.0:relu"``, and ``"layer1.0:relu#2"`` for the second in one forward. Modules such as `torch.nn.ReLU` call
    functions, too, and count unless they are targets themselves. Calls inside of compiled models, of TorchScript or of
    another function of torch cannot be seen.

    Args:
        function: The name or the function itself; ``"relu"`` means ``relu_``, too.

    Raises:
        NameMatchError: torch, torch.nn.functional and torch.Tensor have no such function.
    """
    name = function if isinstance(function, str) else getattr(function, "__name__", repr(function))
    known = {*dir(torch.nn.functional), *dir(torch), *dir(torch.Tensor)}
    if name not in known or name.startswith("_"):
        raise NameMatchError(
            f"functional({name!r}): torch, torch.nn.functional and torch.Tensor have no such function"
            f"{near_misses(name, known)}; expected a name such as 'relu', without the module's"
        )
    return Functional(name)


def select(model: nn.Module, targets: Target | Iterable[Target]) -> dict[str, nn.Module]:
    """Return the modules that the targets mean, by name, in the order in which the model holds them.

    A target is one of:

    * a module type: every instance of it, subclasses included;
    * a name as in ``model.named_modules()``, exact, such as ``"features.1"``;
    * a glob such as ``"features.*"``, where ``*`` also crosses dots, or a compiled regular expression, which must match
      the whole name. Where a pattern matches a container *and* modules inside it, the innermost ones are taken and the
      container is left out, so that no activation counts twice; a pattern that matches the container alone takes it;
    * a predicate ``(name, module) -> bool``, or a module of the model itself;
    * `inputs_of` any of these: what goes into the modules, under their names with ``":input"``.

    The model itself has the name ``""``; types, predicates and the exact name reach it, patterns do not. A module that
    the model holds under two names is taken once, under the first. Names never contain the ``_orig_mod`` that
    ``torch.compile`` inserts.

    Args:
        model: Any network.
        targets: One target or several.

    Returns:
        Names and modules; every target contributed at least one.

    Raises:
        NameMatchError: A target matches nothing; the message lists near misses and what there is.
        ParameterError: There is no target, or one is of none of these kinds.
    """
    selection = choose(model, targets)
    if selection.functions:
        raise ParameterError(
            f"targets has the entry functional({selection.functions[0].function!r}), which means no module; expected "
            "modules here: ActivationPenalty takes functions"
        )
    return selection.modules


def choose(model: nn.Module, targets: Target | Iterable[Target]) -> Selection:
    """Return what the targets mean, functions included; see `select`.

    Raises:
        NameMatchError: A target matches nothing; the message lists near misses and what there is.
        ParameterError: There is no target, or one is of none of these kinds.
    """
    if not isinstance(model, nn.Module):
        raise ParameterError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if isinstance(targets, str | type | re.Pattern | nn.Module | InputsOf | Functional) or callable(targets):
        entries: list[Target] = [targets]
    else:
        try:
            entries = list(targets)
        except TypeError:
            raise _wrong_kind(targets) from None
    if not entries:
        raise ParameterError(
            "targets is empty; expected at least one type, name, glob, regular expression or predicate"
        )
    named = module_names(model)
    chosen: set[tuple[int, str]] = set()
    functions: list[Functional] = []
    for entry in entries:
        if isinstance(entry, Functional):
            functions.append(entry)
            continue
        suffix = _INPUT if isinstance(entry, InputsOf) else ""
        for item in entry.targets if isinstance(entry, InputsOf) else (entry,):
            found = _matches(item, named)
            if not found:
                raise NameMatchError(_nothing_matches(item, model, named))
            chosen.update((id(named[name]), suffix) for name in found)
    modules: dict[str, nn.Module] = {}
    for name, module in named.items():
        for suffix in (_INPUT, ""):
            if (id(module), suffix) in chosen:
                modules[name + suffix] = module
                chosen.discard((id(module), suffix))
    return Selection(modules, tuple(dict.fromkeys(functions)))


def is_input(name: str) -> bool:
    """Return whether a name of `choose` means the input of a module."""
    return name.endswith(_INPUT)


def is_glob(pattern: str) -> bool:
    """Return whether a text has a wildcard of globs in it."""
    return any(mark in pattern for mark in "*?[")


def match_settings(settings: Mapping[str, Setting], names: Iterable[str], meaning: str) -> dict[str, Setting]:
    """Return one setting for each name, from a mapping whose keys are names or globs; an exact name goes before a glob.

    Raises:
        NameMatchError: A key matches no name; the message lists near misses.
        ParameterError: A name has no setting, or two globs give it different ones.
    """
    known = list(names)
    resolved: dict[str, Setting] = {}
    source: dict[str, str] = {}
    for key in sorted(settings, key=is_glob, reverse=True):
        found = [name for name in known if name == key or (is_glob(key) and fnmatchcase(name, key))]
        if not found:
            raise NameMatchError(
                f"{meaning} has the key {key!r}, which matches no selected module"
                f"{near_misses(key, known)}; selected are: {_shorten([repr(name) for name in known])}"
            )
        for name in found:
            other = source.get(name)
            if other is not None and is_glob(key) and settings[other] != settings[key]:
                raise ParameterError(
                    f"{meaning} gives {name!r} two values: {settings[other]} by {other!r} and {settings[key]} by "
                    f"{key!r}; give the exact name {name!r} its own"
                )
            resolved[name], source[name] = settings[key], key
    missing = [repr(name) for name in known if name not in resolved]
    if missing:
        raise ParameterError(
            f"{meaning} has no value for {_shorten(missing)}; expected one for every selected module: add the names, "
            "a glob such as '*', or leave these modules out of targets"
        )
    return {name: resolved[name] for name in known}


def module_names(model: nn.Module) -> dict[str, nn.Module]:
    """Return all modules under all their names, without the part of a name that torch.compile inserts."""
    named: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        parts = [part for part in name.split(".") if part != COMPILED]
        # A compiled wrapper and what it wraps get one name; the wrapped module comes later and is the one that runs.
        named[".".join(parts)] = module
    return named


def _matches(entry: ModuleTarget, named: dict[str, nn.Module]) -> list[str]:
    """Return the names that one target means."""
    if isinstance(entry, str):
        if entry in named:
            return [entry]
        return _innermost([name for name in named if name and fnmatchcase(name, entry)]) if is_glob(entry) else []
    if isinstance(entry, re.Pattern):
        return _innermost([name for name in named if name and entry.fullmatch(name)])
    if isinstance(entry, type):
        if not issubclass(entry, nn.Module):
            raise _wrong_kind(entry)
        return [name for name, module in named.items() if isinstance(module, entry)]
    if isinstance(entry, nn.Module):
        return [name for name, module in named.items() if module is entry][:1]
    if callable(entry):
        return [name for name, module in named.items() if entry(name, module)]
    raise _wrong_kind(entry)


def _innermost(names: list[str]) -> list[str]:
    """Leave out every name that is a container of another."""
    outer = {".".join(parts[:depth]) for parts in (name.split(".") for name in names) for depth in range(1, len(parts))}
    return [name for name in names if name not in outer]


def _wrong_kind(entry: object) -> ParameterError:
    return ParameterError(
        f"targets has the entry {entry!r} of type {type(entry).__name__}; expected a module type such as "
        "torch.nn.ReLU, a name, a glob such as 'features.*', a compiled regular expression, or a predicate "
        "(name, module) -> bool"
    )


def _nothing_matches(entry: ModuleTarget, model: nn.Module, named: dict[str, nn.Module]) -> str:
    """Say which target matches nothing, what is like it, and what the model holds."""
    kinds = Counter(type(module).__name__ for name, module in named.items() if name)
    close = ""
    if isinstance(entry, type):
        shown = f"type {entry.__name__}"
        close = near_misses(entry.__name__, kinds)
    elif isinstance(entry, str):
        shown = repr(entry)
        close = near_misses(entry, [name for name in named if name])
    elif isinstance(entry, re.Pattern):
        shown = f"regular expression {entry.pattern!r} (it must match the whole name)"
    elif isinstance(entry, nn.Module):
        shown = f"module {type(entry).__name__} (it is not part of the model)"
    else:
        shown = f"predicate {getattr(entry, '__name__', repr(entry))}"
    types = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(12)) or "no submodules"
    return (
        f"targets has the entry {shown}, which matches no module of {type(model).__name__}{close}; "
        f"its types: {types}; its names: {_shorten([repr(name) for name in named if name]) or 'none'}"
    )


def _shorten(items: list[str], limit: int = 16) -> str:
    """Join with commas, and say how many were left out."""
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f", and {rest} more" if rest > 0 else "")
