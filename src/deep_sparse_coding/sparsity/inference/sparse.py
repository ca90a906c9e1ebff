"""Linear layers and 1 × 1 convolutions that skip the zeros of their input on the CPU, where that is faster."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...checks import require_number
from ...errors import DictionaryError, HookError, ParameterError
from ..measuring.table import aligned, number
from ..watching.running import Forward, call, evaluating

_SHARE = 1 << 20  # multiply-adds that are worth a thread


class SparseLinear(nn.Module):
    """A linear layer or 1 × 1 convolution that reads only the columns of its matrix where the input is not zero.

    The output is that of the layer it wraps up to rounding. Where skipping zeros is not known to be faster, the wrapped
    layer runs: above `limit`, for more signals than `rows`, with gradients or autocast, in compiled code, and off the
    CPU. Weights that change later are noticed at the next call.

    Args:
        dense: A ``torch.nn.Linear``, or a ``Conv1d`` to ``Conv3d`` with kernel and stride 1 and neither padding nor
            groups.
        limit: The largest fraction of entries that are not zero.
        rows: The largest number of signals (batch times positions); None for any.

    Raises:
        ParameterError: `dense` is of another kind, or `limit` is not in [0, 1].
    """

    def __init__(self, dense: nn.Module, limit: float = 1.0, rows: int | None = None) -> None:
        super().__init__()
        if not can_skip_zeros(dense):
            raise ParameterError(
                f"dense is {dense}; expected torch.nn.Linear, or a convolution with kernel and stride 1 and neither "
                "padding nor groups, without hooks of its own"
            )
        self.dense = dense
        self.limit = require_number("limit", limit, minimum=0.0, maximum=1.0)
        self.rows = rows
        self._prepared: _Prepared | None = None

    @property
    def weight(self) -> Tensor:
        """The matrix of the wrapped layer."""
        return cast("Tensor", self.dense.weight)

    @property
    def bias(self) -> Tensor | None:
        """The offset of the wrapped layer, or None."""
        return cast("Tensor | None", self.dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the wrapped layer returns, up to rounding."""
        result = self._skipping(x) if self._can_skip(x) else None
        return self.dense(x) if result is None else result

    def extra_repr(self) -> str:
        """Return the settings for print."""
        return f"limit={self.limit:.3g}, rows={self.rows}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    def _can_skip(self, x: Tensor) -> bool:
        weight = self.weight
        return (
            not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and x.device.type == weight.device.type == "cpu"
            and x.dtype == weight.dtype
            and x.dtype in (torch.float32, torch.float64)
            and x.layout == torch.strided
            and x.ndim > 0
            and x.shape[self._axis(x)] == weight.shape[1]
            and not torch.is_autocast_enabled("cpu")
        )

    def _axis(self, x: Tensor) -> int:
        """Return the axis of features: the last one, or that of channels."""
        spatial = self.weight.ndim - 2
        return -1 if not spatial or x.ndim <= spatial else -1 - spatial

    def _skipping(self, x: Tensor) -> Tensor | None:
        axis = self._axis(x)
        # Positions of a convolution are signals of their own; in channels_last memory this copies nothing.
        signals = x.movedim(axis, -1)
        flat = signals.reshape(-1, signals.shape[-1]).contiguous()
        count = len(flat)
        if not count or (self.rows is not None and count > self.rows):
            return None
        prepared = self._prepare()
        source = flat.numpy()
        if self.limit < 1 and prepared.kernels.nonzeros(source) > self.limit * source.size:
            return None
        outputs = prepared.columns.shape[1]
        y = torch.empty(count, outputs, dtype=x.dtype)
        run = partial(prepared.kernels.multiply, source, prepared.columns, prepared.bias, y.numpy())
        threads = min(torch.get_num_threads(), max(1, source.size * outputs // _SHARE), count)
        if threads == 1:
            run(0, count)
        else:
            cuts = [count * part // threads for part in range(threads + 1)]
            with ThreadPoolExecutor(threads) as pool:
                for part in [pool.submit(run, first, last) for first, last in pairwise(cuts)]:
                    part.result()
        result = y.reshape(*signals.shape[:-1], outputs).movedim(-1, axis)
        # The memory has the order that the wrapped layer's output would have, so that a later view() still works.
        return result.contiguous() if x.is_contiguous() else result

    def _prepare(self) -> _Prepared:
        """Return Wᵀ and the bias as arrays, made anew when the weights changed."""
        weight, bias = self.weight, self.bias
        key = tuple(
            (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
            for tensor in ((weight,) if bias is None else (weight, bias))
        )
        if self._prepared is None or self._prepared.key != key:
            from . import _kernels_sparse as kernels

            matrix = weight.detach().reshape(weight.shape[:2])
            if not bool(torch.isfinite(matrix).all()):
                raise DictionaryError(
                    "the weights of a SparseLinear are not finite; expected finite ones, since a zero times infinity "
                    "cannot be skipped"
                )
            offset = torch.zeros(len(matrix), dtype=matrix.dtype) if bias is None else bias.detach().contiguous()
            self._prepared = _Prepared(kernels, matrix.T.contiguous().numpy(), offset.numpy(), key)
        return self._prepared


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What a product needs: compiled passes, Wᵀ, bias, and which state of the weights they belong to."""

    kernels: Any
    columns: Any
    bias: Any
    key: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class LayerChoice:
    """What the calibration found for one layer.

    Attributes:
        name: The name of the module in the model.
        kind: The name of its type.
        rows: Signals (batch times positions) in its input.
        zero_fraction: The fraction of zeros in its input.
        dense_ms: Milliseconds of the layer as it was.
        sparse_ms: Milliseconds when zeros are skipped.
        sparse: Whether it now skips zeros.
    """

    name: str
    kind: str
    rows: int
    zero_fraction: float
    dense_ms: float
    sparse_ms: float
    sparse: bool


@dataclass(frozen=True, eq=False)
class SparseInference:
    """A network for inference on the CPU, and what was measured.

    Attributes:
        model: A copy of the network in evaluation mode, some layers replaced by `SparseLinear`.
        layers: One choice for each layer that could be replaced.
        dense_ms: Milliseconds of a forward pass of the network as it was.
        sparse_ms: Milliseconds of a forward pass of the copy.
    """

    model: nn.Module
    layers: tuple[LayerChoice, ...]
    dense_ms: float
    sparse_ms: float

    @property
    def speedup(self) -> float:
        """``dense_ms / sparse_ms`` of the whole network."""
        return self.dense_ms / self.sparse_ms

    def __str__(self) -> str:
        head = ("layer", "type", "signals", "zero inputs", "dense", "zeros skipped", "used")
        body = [
            (
                row.name or "(model)",
                row.kind,
                f"{row.rows:,}",
                number(100 * row.zero_fraction, ".1f", " %"),
                f"{row.dense_ms:.3f} ms",
                f"{row.sparse_ms:.3f} ms",
                "yes" if row.sparse else "no",
            )
            for row in self.layers
        ]
        last = ("network", "", "", "", f"{self.dense_ms:.3f} ms", f"{self.sparse_ms:.3f} ms", "")
        return aligned(head, body, last)


def can_skip_zeros(module: nn.Module) -> bool:
    """Return whether `SparseLinear` can stand for a module."""
    # Exact types: a subclass may compute something else, and hooks (as of weight_norm) would no longer run.
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if type(module) is nn.Linear:
        return True
    if type(module) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return False
    conv = cast("nn.Conv2d", module)
    unpadded = isinstance(conv.padding, str) or not any(conv.padding)
    return conv.groups == 1 and unpadded and all(size == 1 for size in (*conv.kernel_size, *conv.stride))


def sparse_inference(
    model: nn.Module, example: Any, *, forward: Forward = call, margin: float = 0.9, repeats: int = 9
) -> SparseInference:
    """Return a copy of a network whose layers skip zeros of their inputs wherever that is faster on this CPU.

    Every linear layer and 1 × 1 convolution is timed on the input that it has in a forward pass of `example`, as it is
    and with zeros skipped, in turns. Where skipping takes less than `margin` of the time it is used from then on, for
    at most as many signals as here, and up to the density at which both would take the same time; beyond, the layer
    runs as it was. Outputs change by rounding only. See `multiply_adds` for what zeros make unnecessary in all layers.

    Args:
        model: Any network on the CPU; it is not changed.
        example: A typical batch of the size that inference will have, as in `measure_sparsity`.
        forward: How the network runs on it, ``forward(model, example)``.
        margin: In (0, 1].
        repeats: How often each is timed; medians count.

    Raises:
        DictionaryError: A weight is not finite.
        HookError: No linear layer or 1 × 1 convolution ran.
        ParameterError: The model is not on the CPU, or a setting is out of range.

    Source: measurement; benchmarks/sparse_inference.py shows from which zero fraction on it wins.
    """
    margin = require_number("margin", margin, minimum=0.0, maximum=1.0, strict=True)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ParameterError(f"repeats is {repeats!r}; expected a whole number of at least 1")
    away = {parameter.device.type for parameter in model.parameters()} - {"cpu"}
    if away:
        raise ParameterError(f"the model has parameters on {sorted(away)}; expected the CPU: use model.cpu()")
    inputs = _inputs(model, example, forward)
    if not inputs:
        raise HookError(
            f"no linear layer or 1 × 1 convolution of {type(model).__name__} ran as a module; expected at least one: "
            "other layers do not skip zeros"
        )
    twin = copy.deepcopy(model).eval()
    choices = []
    with torch.no_grad():
        for name, x in inputs.items():
            choice, layer = _choose(name, twin.get_submodule(name), x, margin, repeats)
            choices.append(choice)
            if choice.sparse:
                twin = _replace(twin, name, layer)
    with evaluating(model):
        dense_ms, sparse_ms = _race(lambda: forward(model, example), lambda: forward(twin, example), repeats)
    return SparseInference(twin, tuple(choices), dense_ms, sparse_ms)


@contextmanager
def _recording(model: nn.Module, inputs: dict[str, Tensor]) -> Iterator[None]:
    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
            x = args[0] if args else settings["input"]
            inputs.setdefault(name, x.detach().clone())

        return hook

    candidates = [(name, module) for name, module in model.named_modules() if can_skip_zeros(module)]
    handles = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in candidates]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _inputs(model: nn.Module, example: Any, forward: Forward) -> dict[str, Tensor]:
    """Return the first input of every layer that could skip zeros."""
    inputs: dict[str, Tensor] = {}
    with evaluating(model), _recording(model, inputs):
        forward(model, example)
    return inputs


def _choose(name: str, dense: nn.Module, x: Tensor, margin: float, repeats: int) -> tuple[LayerChoice, SparseLinear]:
    layer = SparseLinear(dense)
    features = layer.weight.shape[1]
    zeros = float((x == 0).double().mean()) if x.numel() else math.nan
    if x.numel():
        dense_ms, sparse_ms = _race(lambda: dense(x), lambda: layer(x), repeats)
    else:
        dense_ms = sparse_ms = math.nan
    used = sparse_ms < margin * dense_ms
    if used:
        # The time grows with the number of non-zeros at most in proportion, so this density is on the safe side.
        layer.limit = min(1.0, (1 - zeros) * margin * dense_ms / sparse_ms)
        layer.rows = x.numel() // features
    kind = type(dense).__name__
    return LayerChoice(name, kind, x.numel() // features, zeros, dense_ms, sparse_ms, used), layer


def _race(dense: Callable[[], object], sparse: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median milliseconds of both, run in turns after one run each that is not timed."""
    times: tuple[list[float], list[float]] = ([], [])
    for number_of_round in range(repeats + 1):
        for run, kept in zip((dense, sparse), times, strict=True):
            start = time.perf_counter()
            run()
            if number_of_round:
                kept.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def _replace(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Put a layer in the place of the module of this name, and wherever else the model holds it; return the model."""
    old = model.get_submodule(name)
    if old is model:
        return layer
    for parent in list(model.modules()):
        if parent is not layer:
            for key, child in list(parent._modules.items()):  # named_children() leaves second names out
                if child is old:
                    parent.add_module(key, layer)
    return model
