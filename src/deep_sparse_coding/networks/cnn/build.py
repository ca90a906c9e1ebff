"""Compilation of sparse coding into a plain CNN: standard layers whose weights follow from the dictionaries (N6)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ...checks import require_integer, require_number
from ...dictionaries import Cascade, Dictionary, as_cascade
from ...errors import ParameterError
from ...guarantees.hypotheses import LayerHypotheses, layer_hypotheses
from ...guarantees.schedule import check_steps, step_order
from ..analysis import check_weights
from ..plan import Estimate, asked_layers, bound_in_use
from .activations import Activation, resolve_activation
from .interleaved import interleaved_maps
from .kernels import LinearMap, layerwise_maps, merge_map
from .layout import Reading
from .plan import Plan, PlanLayer
from .planning import plan_layers
from .splitting import split

_CONV: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_WRAP: dict[int, Callable[..., nn.Module]] = {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d}
_ZEROS: dict[int, Callable[..., nn.Module]] = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}
_DEFAULT_TARGET = 1e-2
# Subtracted where a grid is longer than the codes, in units of the largest amplitude: no argument is as large.
_OFF = 2.0**24


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
        return bound_in_use(self, self.plan.error_bound, self.plan.dtype)

    def __getitem__(self, idx: slice | int) -> Any:
        if isinstance(idx, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[idx]))
        return super().__getitem__(idx)


def to_cnn(
    model: Dictionary | Cascade,
    *,
    sparsity: int | Sequence[int],
    amplitude: float | Sequence[float] = 1.0,
    noise: float = 0.0,
    target_error: float | None = None,
    strategy: str = "layerwise",
    activation: str | nn.Module | Callable[[Tensor], Tensor] = "relu",
    distance: float | None = None,
    weights: str = "atoms",
    max_kernel: int | None = None,
    steps: int | Sequence[int] | None = None,
    place_sparsity: int | Sequence[int] | None = None,
    nonnegative: bool | Sequence[bool] = False,
    epsilon: float | Sequence[float] = 0.0,
    layer: int | None = None,
) -> CompiledCNN:
    """Compile a model into a CNN that computes its codes within a proved error, for every signal of a class.

    Every step is ``x ← S_θ(x + Wᵀ(z - Dx))``, written as a convolution, a bias and a ReLU on pairs ``x = x⁺ - x⁻``;
    thresholds and depth come from the error bounds of N1 to N3.

    Args:
        model: A dictionary or a cascade, atoms of unit norm.
        sparsity: The most non-zeros of ``x_j`` in a stripe (dense: in all), for all layers or one per layer.
        amplitude: Bound of ``‖x_j‖_∞``, for all layers or one per layer.
        noise: Bound of the ℓ2 norm of the signal's noise; for convolutions of its part under any one atom.
        target_error: The bound of ``‖codes - truth‖_∞`` to reach at the least cost; 0.01 without `steps`.
        strategy: "layerwise" (all steps of layer 1, then of layer 2, ...) or "interleaved" (one step of every layer per
            linear layer: an estimate of all codes at any depth).
        activation: "relu"; "leaky_relu", "prelu", "relu6" or "hardtanh", of which ReLU is made exactly; "elu", "celu",
            "gelu", "silu", "mish" or "softplus", whose distance to ReLU is in the bound; a module of one of these kinds
            with settings of its own; any other module or function together with `distance`.
        distance: ``sup|σ(u) - max(u, 0)|`` of an activation of another kind.
        weights: W: "atoms" (D itself), "pseudo-inverse" (ALISTA's closed form), "program" (the rows of least ρ, by
            linear programs), or "best": for every layer what makes the bound smallest or the network cheapest.
        max_kernel: Split kernels exactly into several of at most this odd size; None to leave them whole.
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
        UnsupportedError: Boundary "same", or a program that is too large.

    Source: statements N1 to N3, N5 to N7 and N9 of docs/theory.md; Chen, Liu, Wang & Yin 2018; Papyan, Romano & Elad
        2017.
    """
    cascade = as_cascade(model)
    step_order(strategy, (1,))
    check_weights(weights)
    applied = resolve_activation(activation, distance, cascade.dtype)
    if max_kernel is not None and require_integer("max_kernel", max_kernel, minimum=3) % 2 == 0:
        raise ParameterError(f"max_kernel is {max_kernel}; expected an odd number, or None to leave kernels whole")
    depth = asked_layers(cascade, layer, steps, target_error)
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
        counts = list(check_steps(steps, depth, minimum=1))
        step_order(strategy, counts)
    dictionaries = cascade.layers[:depth]
    target = _DEFAULT_TARGET if target_error is None else target_error
    layers = plan_layers(
        dictionaries,
        assumed,
        target_error=require_number("target_error", target, minimum=0, strict=True),
        steps=counts,
        strategy=strategy,
        activation=applied,
        weights=weights,
    )
    maps = _maps(dictionaries, layers, strategy, applied)
    if max_kernel is not None:
        maps = [part for linear in maps for part in split(linear, max_kernel)]
    told = _hypotheses(dictionaries, assumed)
    stages = tuple(linear.stage(applied.parameters) for linear in maps)
    plan = Plan(layers, stages, told, cascade.dtype, strategy, applied)
    return CompiledCNN(_modules(maps, plan, cascade.device), plan)


def codes_by_depth(net: CompiledCNN, signal: Tensor) -> list[Estimate]:
    """Return the codes after every step of every layer, signed; they match ``net.plan.bound_by_depth`` one by one.

    Args:
        net: A compiled network, whole (a slice of it has no plan).
        signal: What the network takes: ``(batch, channels, H, W)`` or one signal (dense: ``(*batch, d)``).

    Returns:
        One `Estimate` per step, codes ``(batch, atoms, h, w)`` (dense: ``(*batch, atoms)``).

    Raises:
        ParameterError: Not a compiled network.

    Source: statements N1 to N3 of docs/theory.md.
    """
    if not isinstance(net, CompiledCNN):
        raise ParameterError(f"net is a {type(net).__name__}; expected a network that dsc.to_cnn made")
    estimates: list[Estimate] = []
    marks = iter(net.plan.bound_by_depth)
    axes = net.plan.layers[0].layout.axes
    state = signal
    stages = iter(net.plan.stages)
    suffix = f"_{net.plan.activation.name}"
    for name, module in net.named_children():
        state = module(state)
        if name.endswith(suffix):
            stage = next(stage for stage in stages if stage.activated)
            values = net.plan.activation.as_relu(state, stage.scales, -axes - 1)
            for reading in stage.readings:
                mark = next(marks)
                estimates.append(Estimate(mark.depth, mark.layer, mark.step, _read(values, reading, axes)))
    return estimates


def _read(values: Tensor, reading: Reading, axes: int) -> Tensor:
    """Return the codes of a layer on their own grid."""
    axis = values.ndim - axes - 1
    phases = reading.phases or (1,) * axes
    width = reading.atoms * math.prod(phases)
    codes = values.narrow(axis, reading.start, width)
    if reading.signed:
        codes = codes - values.narrow(axis, reading.start + width, width)
    if math.prod(phases) > 1:
        # (phases, atoms) per position becomes atoms on a grid that is finer by as many.
        grid = codes.shape[axis + 1 :]
        codes = codes.unflatten(axis, (*phases, reading.atoms)).movedim(axis + axes, axis)
        order = [place for at in range(axes) for place in (axis + 1 + axes + at, axis + 1 + at)]
        codes = codes.permute(*range(axis + 1), *order)
        fine = [n * count for n, count in zip(grid, phases, strict=True)]
        codes = codes.reshape(*codes.shape[: axis + 1], *fine)
    for at, surplus in enumerate(reading.surplus):
        codes = codes.narrow(axis + 1 + at, 0, codes.shape[axis + 1 + at] - surplus)
    return codes.contiguous()


def _hypotheses(dictionaries: Sequence[Dictionary], assumed: Sequence[LayerHypotheses]) -> tuple[str, ...]:
    told = [sentence for d, h in zip(dictionaries, assumed, strict=True) for sentence in h.sentences(d)]
    word = str(dictionaries[0].dtype).removeprefix("torch.")
    told.append(f"the network runs in {word} or better, sums of products in any order (no TF32, no Winograd or FFT)")
    return tuple(told)


# ---------------------------------------------------------------------- layers


def _maps(
    dictionaries: Sequence[Dictionary], layers: Sequence[PlanLayer], strategy: str, activation: Activation
) -> list[LinearMap]:
    """Return the linear layers, with what makes up for the activation."""
    layouts = [layer.layout for layer in layers]
    thresholds = [layer.thresholds for layer in layers]
    analyses = [layer.analysis for layer in layers]
    deepest, top = layouts[-1], layers[-1]
    if strategy == "layerwise" or len(layers) == 1:
        maps = layerwise_maps(dictionaries, layouts, thresholds, analyses)
    else:
        amplitudes = [layer.hypotheses.amplitude for layer in layers]
        # Where zero is made of two numbers, what is subtracted must not drown the rest in its rounding.
        off = 2 * max(layer.largest for layer in layers) if activation.of_two else _OFF * max(amplitudes)
        maps = interleaved_maps(dictionaries, layouts, thresholds, analyses, off=off, height=min(amplitudes))
    surplus = maps[-1].readings[0].surplus
    if deepest.signed or not activation.is_relu or any(surplus):
        merge = merge_map(deepest, len(layers), top.steps, maps[-1].weight)
        maps.append(replace(merge, padding=tuple((0, -n) for n in surplus) if surplus else merge.padding))
    if activation.distance or activation.limit < math.inf:
        maps = [_scaled(linear, layers) if linear.activated else linear for linear in maps]
    return activation.replace_relu(maps)


def _scaled(linear: LinearMap, layers: Sequence[PlanLayer]) -> LinearMap:
    """Return the layer with the scales of its outputs: by step for codes, large for what is handed on."""
    scales = linear.weight.new_ones(len(linear.weight))
    for reading in linear.readings:
        parts = 2 if reading.signed else 1
        width = parts * reading.atoms * math.prod(reading.phases)
        scales[reading.start : reading.start + width] = layers[reading.layer - 1].scales[reading.step - 1]
    if linear.carried is not None:
        scales[linear.carried] = min(layer.carry for layer in layers)
    return replace(linear, scales=scales)


def _modules(maps: Sequence[LinearMap], plan: Plan, device: torch.device) -> OrderedDict[str, nn.Module]:
    """Return the layers of the network, named after what they do.

    Layers are made without their usual random weights: those would be drawn from the global generator.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for linear in maps:
        outputs, inputs = linear.weight.shape[:2]
        kind: dict[str, Any] = {"bias": linear.bias is not None, "dtype": plan.dtype, "device": device}
        axes = len(linear.kernel)
        if axes == 0:
            module: nn.Module = skip_init(nn.Linear, inputs, outputs, **kind)
        else:
            options: dict[str, Any] = {"stride": linear.stride}
            even = all(before == after >= 0 for before, after in linear.padding)
            step = even and all(k == 2 * pair[0] + 1 for k, pair in zip(linear.kernel, linear.padding, strict=True))
            if even and (step or not linear.wrap):
                options["padding"] = tuple(before for before, _ in linear.padding)
                if linear.wrap and any(options["padding"]):
                    options["padding_mode"] = "circular"
            elif any(before or after for before, after in linear.padding):
                flat = [n for pair in reversed(linear.padding) for n in pair]
                if linear.wrap:
                    modules[linear.name + "_wrap"] = _WRAP[axes](tuple(flat))
                else:
                    modules[linear.name + "_pad"] = _ZEROS[axes](tuple(flat), 0.0)
            module = skip_init(_CONV[axes], inputs, outputs, linear.kernel, **options, **kind)
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            parameters["weight"].copy_(linear.weight)
            if linear.bias is not None:
                parameters["bias"].copy_(linear.bias)
        modules[linear.name] = module.requires_grad_(False)
        if linear.activated:
            applied = plan.activation.make().to(device).requires_grad_(False)
            modules[f"{linear.name}_{plan.activation.name}"] = applied
    return modules
