"""Compilation of sparse coding into a plain CNN: standard layers whose weights follow from the dictionaries (N6)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..checks import per_layer, require_integer
from ..dictionaries import Cascade, ConvDictionary, Dictionary, as_cascade
from ..errors import ParameterError, UnsupportedError, near_misses
from .hypotheses import layer_hypotheses
from .layout import LayerLayout, Stage
from .plan import Plan, make_plan

_CONV: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_WRAP: dict[int, Callable[..., nn.Module]] = {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d}
_DEFAULT_TARGET = 1e-2
_STRATEGIES = ("layerwise", "interleaved")
_ACTIVATIONS = ("relu", "gelu", "silu", "elu", "celu", "mish", "softplus", "leaky_relu", "relu6", "hardtanh")


class CompiledCNN(nn.Sequential):
    """A plain CNN that computes sparse codes: an `nn.Sequential` of standard layers, with the plan it was built from.

    Takes ``(batch, channels, H, W)`` or one signal without the batch axis (dense: ``(*batch, d)``), returns the deepest
    codes. A slice of it is an ordinary `nn.Sequential`.

    Attributes:
        plan: Depth, thresholds and bounds, and what they take for granted.

    Source: statement N6 of docs/theory.md.
    """

    def __init__(self, layers: OrderedDict[str, nn.Module], plan: Plan) -> None:
        super().__init__(layers)
        self.plan = plan

    @property
    def error_bound(self) -> float:
        """``‖codes - truth‖_∞`` is at most this for every signal that meets ``plan.hypotheses``.

        It speaks of the weights that `to_cnn` set. In a number type narrower than ``plan.dtype``, whose rounding the
        plan does not count, nothing is proved: inf.
        """
        planned = torch.finfo(self.plan.dtype).eps
        narrower = any(torch.finfo(weight.dtype).eps > planned for weight in self.parameters())
        return math.inf if narrower else self.plan.error_bound

    def __getitem__(self, idx: slice | int) -> Any:
        if isinstance(idx, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[idx]))
        return super().__getitem__(idx)


@dataclass(frozen=True, eq=False)
class Estimate:
    """Codes part of the way: after `step` steps of `layer`, `depth` linear layers into the network."""

    depth: int
    layer: int
    step: int
    codes: Tensor


def to_cnn(
    model: Dictionary | Cascade,
    *,
    sparsity: int | Sequence[int],
    amplitude: float | Sequence[float] = 1.0,
    noise: float = 0.0,
    target_error: float | None = None,
    strategy: str = "layerwise",
    activation: str = "relu",
    steps: int | Sequence[int] | None = None,
    place_sparsity: int | Sequence[int] | None = None,
    nonnegative: bool | Sequence[bool] = False,
    epsilon: float | Sequence[float] = 0.0,
    layer: int | None = None,
) -> CompiledCNN:
    """Compile a model into a CNN that computes its codes within a proved error, for every signal of a class.

    Every step is ``x ← S_θ(x + Dᵀ(z - Dx))``, written as a convolution, a bias and a ReLU on pairs ``x = x⁺ - x⁻``;
    layer after layer, thresholds and depth from the error bounds of N1 and N2.

    Args:
        model: A dictionary or a cascade, atoms of unit norm.
        sparsity: The most non-zeros of ``x_j`` in a stripe (dense: in all), for all layers or one per layer.
        amplitude: Bound of ``‖x_j‖_∞``, for all layers or one per layer.
        noise: Bound of the ℓ2 norm of the signal's noise; for convolutions of its part under any one atom.
        target_error: The bound of ``‖codes - truth‖_∞`` to reach at the least cost; 0.01 without `steps`.
        strategy: "layerwise".
        activation: "relu".
        steps: The number of steps, for all layers or one per layer, in place of `target_error`.
        place_sparsity: The most non-zeros of ``x_{j-1}`` under one atom of layer j, one per layer but the deepest; None
            for the bound by covering the place with stripes.
        nonnegative: Whether codes are non-negative, for all layers or one per layer: less width and smaller bounds.
        epsilon: Bound of ``‖x_{j-1} - D_j x_j‖_2`` (convolutional: under any one atom), for all layers or one each.
        layer: Compile for the codes of this layer, counted from 1; the deepest if None.

    Returns:
        A `CompiledCNN` in the model's dtype and on its device, without gradients.

    Raises:
        ParameterError: Settings out of range; a layer whose bound does not shrink (ρ ≥ 1); a target below what noise
            and rounding leave at any depth.
        UnsupportedError: Another strategy or activation.

    Source: statements N1, N2 and N6 of docs/theory.md; Chen, Liu, Wang & Yin 2018; Papyan, Romano & Elad 2017.
    """
    cascade = as_cascade(model)
    _require_offered(strategy, activation)
    if steps is not None and target_error is not None:
        raise ParameterError(
            f"steps is {steps} and target_error is {target_error}; expected one of them: steps fixes the depth, "
            "target_error lets it be chosen"
        )
    depth = len(cascade) if layer is None else require_integer("layer", layer, minimum=1)
    if depth > len(cascade):
        raise ParameterError(f"layer is {layer}; expected 1 to {len(cascade)}, the number of layers")
    assumed = layer_hypotheses(
        cascade,
        sparsity=sparsity,
        amplitude=amplitude,
        noise=noise,
        epsilon=epsilon,
        place_sparsity=place_sparsity,
        nonnegative=nonnegative,
    )[:depth]
    counts = None
    if steps is not None:
        wanted = tuple(steps) if isinstance(steps, Sequence) else steps
        counts = [require_integer("steps", k, minimum=1) for k in per_layer("steps", wanted, depth)]
    dictionaries = cascade.layers[:depth]
    target = _DEFAULT_TARGET if target_error is None else target_error
    plan = make_plan(dictionaries, assumed, target_error=target, steps=counts)
    return CompiledCNN(_modules(dictionaries, plan), plan)


def codes_by_depth(net: CompiledCNN, signal: Tensor) -> list[Estimate]:
    """Return the codes after every step of every layer, signed; they match ``net.plan.bound_by_depth`` one by one.

    Args:
        net: A compiled network, whole (a slice of it has no plan).
        signal: What the network takes: ``(batch, channels, H, W)`` or one signal (dense: ``(*batch, d)``).

    Returns:
        One `Estimate` per step, codes ``(batch, atoms, h, w)`` (dense: ``(*batch, atoms)``).

    Raises:
        ParameterError: Not a compiled network.

    Source: statements N1 and N2 of docs/theory.md.
    """
    if not isinstance(net, CompiledCNN):
        raise ParameterError(f"net is a {type(net).__name__}; expected a network that dsc.to_cnn made")
    estimates: list[Estimate] = []
    marks = iter(net.plan.bound_by_depth)
    axis = -len(net.plan.layers[0].layout.kernel) - 1
    state = signal
    for module in net:
        state = module(state)
        if isinstance(module, nn.ReLU):
            mark = next(marks)
            layout = net.plan.layers[mark.layer - 1].layout
            codes = state.narrow(axis, 0, layout.atoms)
            if layout.signed:
                codes = codes - state.narrow(axis, layout.atoms, layout.atoms)
            estimates.append(Estimate(mark.depth, mark.layer, mark.step, codes.contiguous()))
    return estimates


def _require_offered(strategy: str, activation: str) -> None:
    if strategy == "interleaved":
        raise UnsupportedError(
            "strategy 'interleaved' is not offered yet; use 'layerwise', whose codes meet the same kind of bound"
        )
    if strategy != "layerwise":
        raise ParameterError(f"strategy is {strategy!r}; expected 'layerwise'{near_misses(str(strategy), _STRATEGIES)}")
    if activation != "relu":
        if activation in _ACTIVATIONS:
            raise UnsupportedError(f"activation {activation!r} is not offered yet; use 'relu', which is exact")
        raise ParameterError(
            f"activation is {activation!r}; expected 'relu'{near_misses(str(activation), _ACTIVATIONS)}"
        )


# ---------------------------------------------------------------------- weights


def _modules(dictionaries: Sequence[Dictionary], plan: Plan) -> OrderedDict[str, nn.Module]:
    """Return the layers of the network, named after what they do."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    signed_input = False
    for stage in plan.stages:
        dictionary = dictionaries[stage.layer - 1]
        planned = plan.layers[stage.layer - 1]
        if stage.kind == "analyze":
            weight = _analysis(dictionary, planned.layout, stage, signed_input)
            signed_input = planned.layout.signed
        else:
            weight = _WEIGHTS[stage.kind](dictionary, planned.layout, stage)
        bias = None
        if stage.bias:
            theta = planned.thresholds[stage.step - 1]
            pieces = [-theta] * (planned.layout.code_width // planned.layout.atoms)
            bias = torch.cat([*pieces, theta.new_zeros(stage.outputs - planned.layout.code_width)])
        name = "merge" if stage.kind == "merge" else f"layer{stage.layer}_step{stage.step}"
        name += {"spread": "_synthesize", "gather": "_analyze"}.get(stage.kind, "")
        for suffix, module in _linear(weight, bias, stage, planned.layout, dictionary):
            modules[name + suffix] = module
        if stage.activated:
            modules[name + "_relu"] = nn.ReLU()
    return modules


def _linear(
    weight: Tensor, bias: Tensor | None, stage: Stage, layout: LayerLayout, dictionary: Dictionary
) -> list[tuple[str, nn.Module]]:
    """Return the standard layers that apply a weight: a convolution, where the boundary wraps after its padding.

    Layers are made without their usual random weights: those would be drawn from the global generator.
    """
    kind: dict[str, Any] = {"bias": bias is not None, "dtype": dictionary.dtype, "device": dictionary.device}
    found: list[tuple[str, nn.Module]] = []
    axes = len(stage.kernel)
    if axes == 0:
        module: nn.Module = skip_init(nn.Linear, stage.inputs, stage.outputs, **kind)
    else:
        options: dict[str, Any] = {}
        circular = layout.boundary == "circular"
        before, after = [0] * axes, [0] * axes
        if stage.kind == "analyze":
            options["stride"] = layout.stride
            after = [max(k - q, 0) for k, q in zip(layout.kernel, layout.stride, strict=True)]
        elif stage.kind == "step":
            options["padding"] = layout.lags
            if circular:
                options["padding_mode"] = "circular"
        elif stage.kind == "spread":
            before = [k - 1 for k in layout.kernel]
            if not circular:
                options["padding"] = tuple(before)
        elif stage.kind == "gather":
            after = [k - 1 for k in layout.kernel]
        if circular and any(before + after):
            padding = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
            found.append(("_wrap", _WRAP[axes](tuple(padding))))
        module = skip_init(_CONV[axes], stage.inputs, stage.outputs, stage.kernel, **options, **kind)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        parameters["weight"].copy_(weight)
        if bias is not None:
            parameters["bias"].copy_(bias)
    module.requires_grad_(False)
    return [*found, ("", module)]


def _kernels(dictionary: Dictionary) -> Tensor:
    """Return the atoms as ``(atoms, channels, k, ...)`` in float64 (dense: ``(atoms, d)``)."""
    weight = dictionary.weight.detach().double()
    return weight if isinstance(dictionary, ConvDictionary) else weight.T


def _center(layout: LayerLayout, kernel: tuple[int, ...], place: tuple[int, ...], like: Tensor) -> Tensor:
    """Return the kernel that hands every atom's channel on, its one tap at `place`."""
    identity = like.new_zeros(layout.atoms, layout.atoms, *kernel)
    index = torch.arange(layout.atoms, device=like.device)
    identity[(index, index, *place)] = 1.0
    return identity


def _analysis(dictionary: Dictionary, layout: LayerLayout, stage: Stage, signed_input: bool) -> Tensor:
    """Return ``Wᵀ`` on a signal, or on the pairs of the layer below, for ``(v - θ, -v - θ, v, -v)``."""
    weight = _kernels(dictionary)
    if signed_input:
        weight = torch.cat([weight, -weight], dim=1)
    rows = [weight, -weight] if layout.signed else [weight]
    if stage.outputs > layout.code_width:
        rows += [weight, -weight]
    return torch.cat(rows)


def _step(dictionary: Dictionary, layout: LayerLayout, stage: Stage) -> Tensor:
    """Return one convolution for ``u = x - WᵀDx + v`` and its negative, and v carried along."""
    place = tuple(k // 2 for k in stage.kernel)
    gram = dictionary.gram_rows().reshape(layout.atoms, layout.atoms, *stage.kernel)
    identity = _center(layout, stage.kernel, place, gram)
    return _rows(layout, stage, identity - gram, identity)


def _spread(dictionary: Dictionary, layout: LayerLayout, stage: Stage) -> Tensor:
    """Return a convolution for ``(Dx, x + v, v)`` on the signal's grid, what is carried at an atom's first entry."""
    kernels = _kernels(dictionary)
    axes = tuple(range(2, kernels.ndim))
    synthesis = kernels.transpose(0, 1).flip(axes)
    carry = _center(layout, layout.kernel, tuple(k - 1 for k in layout.kernel), kernels)
    rows = [_pairs(layout, synthesis, torch.zeros_like(synthesis)), _pairs(layout, carry, carry)]
    if stage.outputs > layout.channels + layout.atoms:
        rows.append(_pairs(layout, torch.zeros_like(carry), carry))
    return torch.cat(rows)


def _gather(dictionary: Dictionary, layout: LayerLayout, stage: Stage) -> Tensor:
    """Return a convolution for ``u = (x + v) - Wᵀ(Dx)`` and its negative, and v as a pair."""
    kernels = _kernels(dictionary)
    carry = _center(layout, layout.kernel, (0,) * len(layout.kernel), kernels)
    nothing = torch.zeros_like(carry)
    more = stage.outputs > layout.code_width
    argument = torch.cat([-kernels, carry, *([nothing] if more else [])], dim=1)
    rows = [argument, -argument] if layout.signed else [argument]
    if more:
        kept = torch.cat([torch.zeros_like(kernels), nothing, carry], dim=1)
        rows += [kept, -kept]
    return torch.cat(rows)


def _merge(dictionary: Dictionary, layout: LayerLayout, stage: Stage) -> Tensor:
    """Return ``x⁺ - x⁻`` as a convolution of kernel 1."""
    identity = torch.eye(layout.atoms, dtype=torch.float64, device=dictionary.device)
    return torch.cat([identity, -identity], dim=1).reshape(layout.atoms, layout.code_width, *stage.kernel)


def _pairs(layout: LayerLayout, on_codes: Tensor, on_v: Tensor) -> Tensor:
    """Return the columns for the channels of the state, given those for x and for v."""
    codes = [on_codes, -on_codes] if layout.signed else [on_codes]
    return torch.cat([*codes, on_v, -on_v], dim=1)


def _rows(layout: LayerLayout, stage: Stage, on_codes: Tensor, identity: Tensor) -> Tensor:
    argument = _pairs(layout, on_codes, identity)
    rows = [argument, -argument] if layout.signed else [argument]
    if stage.outputs > layout.code_width:
        kept = identity.new_zeros(layout.atoms, argument.shape[1], *identity.shape[2:])
        for start in (layout.code_width, layout.code_width + layout.atoms):
            row = kept.clone()
            row[:, start : start + layout.atoms] = identity
            rows.append(row)
    return torch.cat(rows)


_WEIGHTS: dict[str, Callable[[Dictionary, LayerLayout, Stage], Tensor]] = {
    "step": _step,
    "spread": _spread,
    "gather": _gather,
    "merge": _merge,
}
