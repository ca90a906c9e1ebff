"""Which linear or convolutional layers read what a module puts out, and the norms of their columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias, cast

from torch import Tensor, fx, nn

from ...errors import NameMatchError, ParameterError, ShapeError, UnsupportedError, near_misses

Following: TypeAlias = "Mapping[str, str | nn.Module] | None"

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_READERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_FLATTENING = (nn.Flatten,)
# Operations that pass α·x on as α times the same, channel by channel.
_HOMOGENEOUS = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.ZeroPad1d,
    nn.ZeroPad2d,
    nn.ZeroPad3d,
    nn.Upsample,
)
_FLATTENING_NAMES = frozenset({"flatten", "reshape", "view"})
_HOMOGENEOUS_NAMES = frozenset(
    {
        "relu",
        "relu_",
        "leaky_relu",
        "dropout",
        "dropout2d",
        "contiguous",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "boolean_dispatch",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "adaptive_max_pool2d",
        "interpolate",
    }
)
_SHAPE_NAMES = frozenset({"size", "dim", "getattr"})  # read the shape, not the entries


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads an activation.

    Attributes:
        layer: Linear or convolutional.
        flattened: Whether the activation may be flattened on the way, so that a linear layer sees every entry.
    """

    layer: nn.Module
    flattened: bool

    @property
    def weight(self) -> Tensor:
        """The weights of the layer now, parametrizations included."""
        return cast(nn.Linear, self.layer).weight


def following_layers(
    model: nn.Module, modules: Mapping[str, nn.Module], following: Following
) -> dict[str, tuple[Reader, ...]]:
    """Return for every module the layers that read its output: those given, or those that torch.fx finds.

    Raises:
        NameMatchError: A name in `following` is not known.
        ParameterError: `following` leaves a module out, or names no linear or convolutional layer.
        UnsupportedError: What reads a module was not found.
    """
    if following is not None:
        return _given(model, modules, following)
    graph = _trace(model, modules)
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, tuple[Reader, ...]] = {}
    for name, module in modules.items():
        nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == names[module]]
        if not nodes:
            raise UnsupportedError(
                f"torch.fx finds no call of {name!r} in {type(model).__name__}, so that the layer that reads it is not "
                f"known; {_remedy(name)}"
            )
        readers: dict[int, Reader] = {}
        for node in nodes:
            for reader in _readers(model, node, name):
                readers[id(reader.layer)] = reader
        found[name] = tuple(readers.values())
    return found


def column_squares(reader: Reader, weight: Tensor, channels: int, positions: int, name: str) -> Tensor:
    """Return ``‖W_{·c}‖²`` with shape (channels, 1), or (channels, positions) where a linear layer reads every entry.

    Raises:
        ShapeError: The layer does not read that many channels.
    """
    layer = reader.layer
    if isinstance(layer, _Transposed):
        squares = weight.square().flatten(1).sum(1, keepdim=True)
    elif isinstance(layer, _Convolution):
        # Output channels come in groups; each group reads its own input channels.
        groups = layer.groups
        squares = weight.square().unflatten(0, (groups, -1)).flatten(3).sum((1, 3)).reshape(-1, 1)
    else:
        squares = weight.square().sum(0)
        if squares.numel() == channels:
            squares = squares.reshape(-1, 1)
        elif squares.numel() == channels * positions:
            squares = squares.reshape(channels, positions)
        elif reader.flattened and squares.numel() % channels == 0:
            squares = squares.reshape(channels, -1).sum(1, keepdim=True)  # pooled, then flattened
    if squares.shape[0] != channels:
        raise ShapeError(
            f"{name!r} put out {channels} channels with {positions} positions each, and the {type(layer).__name__} "
            f"that reads it has {squares.numel()} inputs; expected as many: set channel_axis, such as -1 for tokens, "
            "or name the layer in ScaleInvariantL1(following=...)"
        )
    return squares


def _given(
    model: nn.Module, modules: Mapping[str, nn.Module], following: Mapping[str, str | nn.Module]
) -> dict[str, tuple[Reader, ...]]:
    named = dict(model.named_modules())
    for key in following:
        if key not in modules:
            raise NameMatchError(
                f"following has the key {key!r}, which is no penalized module{near_misses(key, modules)}; expected "
                f"{', '.join(map(repr, modules))}"
            )
    missing = [name for name in modules if name not in following]
    if missing:
        raise ParameterError(
            f"following has no layer for {', '.join(map(repr, missing))}; expected one for every penalized module"
        )
    found: dict[str, tuple[Reader, ...]] = {}
    for name in modules:
        layer = following[name]
        if isinstance(layer, str):
            if layer not in named:
                raise NameMatchError(
                    f"following names the layer {layer!r}, which {type(model).__name__} does not have"
                    f"{near_misses(layer, named)}"
                )
            layer = named[layer]
        if not isinstance(layer, _READERS):
            raise ParameterError(
                f"following gives {name!r} a {type(layer).__name__}; expected a torch.nn.Linear or a convolution"
            )
        found[name] = (Reader(layer, flattened=True),)
    return found


class _Tracer(fx.Tracer):
    """Traces through everything but torch's own modules and the penalized ones."""

    def __init__(self, leaves: set[nn.Module]) -> None:
        super().__init__()
        self._leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module stays one node."""
        return m in self._leaves or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module, modules: Mapping[str, nn.Module]) -> fx.Graph:
    try:
        return _Tracer(set(modules.values())).trace(model)
    except Exception as error:  # whatever the model's own code raises when it meets a proxy
        name = next(iter(modules))
        raise UnsupportedError(
            f"torch.fx cannot trace {type(model).__name__} ({type(error).__name__}: {error}), so that the layers that "
            f"read the activations are not known; {_remedy(name)}"
        ) from error


def _readers(model: nn.Module, start: fx.Node, name: str) -> list[Reader]:
    """Follow an output to the layers that read it."""
    readers: list[Reader] = []
    waiting = [(user, False) for user in start.users]
    if not waiting:
        raise _not_invariant(name, "it is what the network puts out")
    while waiting:
        node, flattened = waiting.pop(0)
        kind = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            kind = f"{type(module).__name__} ({node.target})"
            if isinstance(module, _READERS):
                readers.append(Reader(module, flattened))
                continue
            passes, flattens = isinstance(module, (*_HOMOGENEOUS, *_FLATTENING)), isinstance(module, _FLATTENING)
        elif node.op == "output":
            raise _not_invariant(name, "it is part of what the network puts out")
        else:
            if kind in _SHAPE_NAMES:
                continue
            passes, flattens = kind in _HOMOGENEOUS_NAMES | _FLATTENING_NAMES, kind in _FLATTENING_NAMES
        if not passes:
            raise _not_invariant(name, f"it goes into {kind}")
        if not node.users:
            continue
        waiting.extend((user, flattened or flattens) for user in node.users)
    if not readers:
        raise _not_invariant(name, "nothing reads it")
    return readers


def _not_invariant(name: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"the scale-invariant weight of {name!r} needs a linear or convolutional layer that reads it, and {why}: "
        f"with a normalization or a sum there, no scaling of one layer undoes that of the other; {_remedy(name)}, "
        f"leave {name!r} out of targets, or use form='hoyer', which does not depend on the scale"
    )


def _remedy(name: str) -> str:
    return f"name the layer: ScaleInvariantL1(following={{{name!r}: 'name of the next layer'}})"
