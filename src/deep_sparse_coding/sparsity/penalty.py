"""The ℓ1 penalty on the activations of any network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..errors import HookError, ParameterError, ShapeError
from .hooks import Watch, describe
from .measures import require_tolerance
from .report import LayerStatistics, SparsityReport
from .selection import Target, match_settings


class ActivationPenalty:
    """The penalty ``Σ_j ω_j ‖x_j‖_1 / batch`` on activations x_j of chosen modules, as a context manager.

    ::

        with ActivationPenalty(net, targets=[torch.nn.ReLU], weight=1e-4) as penalty:
            for x, t in batches:
                loss = F.cross_entropy(net(x), t) + penalty.value()
                loss.backward()
        print(penalty.report())

    Doubling the batch by repeating it leaves the value as it is. A module that runs several times counts every time,
    and so do several forward passes before one `value`, each divided by its own batch. With autocast, or in half
    precision, value and gradient are computed in float32. A forward pass that activation checkpointing repeats inside a
    backward pass does not count again; it needs ``use_reentrant=False``, since the other kind runs the first forward
    pass without gradient. Forward passes under ``torch.no_grad()`` (validation within the context) enter the report,
    but never a later `value` that is to be differentiated. After a forward pass that must not count, such as one that
    raised an error halfway, call `discard`.

    The ℓ1 norm changes when layers are rescaled though the function and every zero stay (multiply one layer by α,
    divide the next by α): without weight decay, or with a normalization behind the activation, the penalty
    can fall while no entry becomes zero. So read the zero fraction in `report` next to it.

    Args:
        model: Any network; it is given back as it was, and hooks of others stay on it.
        targets: Which modules, see `select`. Of outputs that are tuples or lists the first item is penalized.
        weight: ω, at least 0: a number, or a mapping from names or globs to numbers that covers every chosen module.
        per_entry: ω multiplies the mean ``|x|`` over all entries of a call instead of the sum per sample, so that
            layers of different sizes weigh the same.
        measure: Keep the running sums for `report`. ``False`` saves their cost.
        tol: What counts as zero in the report, ``|x| ≤ tol``.
        batch_axis: The axis of samples in the outputs; 1 for recurrent layers without ``batch_first``.
        channel_axis: The axis of channels, for dead channels in the report; -1 for tokens
            ``(batch, tokens, features)``.
        save_signs: Keep signs (one byte per entry) for the backward pass instead of sharing the activation itself.
            Needed where a later in-place operation overwrites the output of a chosen module.
        allow_missing: Accept modules that did not run while others did, as in networks that skip layers.
        check_finite: Raise an error if a layer's penalty is NaN or infinite. It waits for the device once per `value`;
            ``False`` leaves such steps to a gradient scaler.

    Raises:
        NameMatchError: A target, or a key of `weight`, matches no module.
        ParameterError: A setting is out of range, or `weight` does not cover every chosen module.
        UnsupportedError: The model is a ``torch.nn.DataParallel``.

    Source: section "Sparsity in training" of docs/theory.md.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Target | Iterable[Target],
        weight: float | Mapping[str, float],
        *,
        per_entry: bool = False,
        measure: bool = True,
        tol: float = 0.0,
        batch_axis: int = 0,
        channel_axis: int = 1,
        save_signs: bool = False,
        allow_missing: bool = False,
        check_finite: bool = True,
    ) -> None:
        self._watch = Watch(model, targets, "ActivationPenalty", self._receive)
        self._weights = _require_weights(weight, self._watch.modules)
        self._per_entry = per_entry
        self._measure = measure
        self._batch_axis = batch_axis
        self._save_signs = save_signs
        self._allow_missing = allow_missing
        self._check_finite = check_finite
        tol = require_tolerance(tol)
        if batch_axis == channel_axis:
            raise ParameterError(
                f"batch_axis and channel_axis are both {batch_axis}; expected two axes: set channel_axis, such as -1"
            )
        self._statistics = {
            name: LayerStatistics(
                name, type(module).__name__, tol=tol, batch_axis=batch_axis, channel_axis=channel_axis
            )
            for name, module in self._watch.modules.items()
        }
        self._sums: dict[str, _Sums] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the modules that are penalized, in the order of the model."""
        return tuple(self._watch.modules)

    @property
    def weights(self) -> dict[str, float]:
        """ω by name."""
        return dict(self._weights)

    def value(self) -> Tensor:
        """Return the penalty of all forward passes since the last call, and start anew.

        Returns:
            A scalar in float32 (float64 if an activation is), with gradient unless gradients are switched off.

        Raises:
            HookError: Called outside of the context; no chosen module ran, or one did not while others did; the
                activations were computed without gradient; or a layer's penalty is not finite.
        """
        self._watch.require_active("value()")
        sums, self._sums = self._sums, {}
        with_gradient = torch.is_grad_enabled()
        parts = {name: part for name in self.names if (part := _part(sums.get(name), with_gradient)) is not None}
        self._require_all(parts, sums)
        device = next(iter(parts.values())).device
        weighted = [self._weights[name] * part.to(device) for name, part in parts.items()]
        total = torch.stack([item.to(_widest(weighted)) for item in weighted]).sum()
        if self._check_finite and not bool(torch.isfinite(total.detach())):
            self._raise_not_finite(parts)
        return total

    def discard(self) -> None:
        """Forget the forward passes since the last `value`; the sums for `report` stay."""
        self._sums = {}

    def report(self) -> SparsityReport:
        """Return the sparsity of every layer over all forward passes since the context was entered, or since `reset`.

        Raises:
            HookError: There was no forward pass.
            ParameterError: The penalty was made with ``measure=False``.
        """
        if not self._measure:
            raise ParameterError("measure is False, so that nothing was measured; expected True to ask for report()")
        if not any(layer.calls for layer in self._statistics.values()):
            raise HookError(_nothing_ran("report()", self.names, "was entered, or since reset()"))
        return SparsityReport(tuple(layer.row() for layer in self._statistics.values()))

    def reset(self) -> None:
        """Forget the sums for `report`, as at the start of an epoch."""
        for layer in self._statistics.values():
            layer.reset()

    def __repr__(self) -> str:
        weights = sorted(set(self._weights.values()))
        shown = f"{weights[0]:g}" if len(weights) == 1 else f"{weights[0]:g} to {weights[-1]:g}"
        return f"<ActivationPenalty of {describe(self.names)}: weight {shown}>"

    def __enter__(self) -> Self:
        self._watch.start()
        self.discard()
        self.reset()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.stop()
        self.discard()

    def _receive(self, name: str, x: Tensor, recomputing: bool) -> None:
        if not -x.ndim <= self._batch_axis < x.ndim:
            raise ShapeError(
                f"{describe([name])} put out the shape {tuple(x.shape)}, and batch_axis is {self._batch_axis}; "
                f"expected an axis of it: {-x.ndim} to {x.ndim - 1}"
            )
        statistics = self._statistics[name].update if self._measure and not recomputing else None
        # A recomputation must save the same tensors as the first forward pass did, so it runs too, and is then dropped.
        total = _AbsoluteSum.apply(x, name, self._save_signs, statistics)
        if recomputing:
            return
        size = x.numel() if self._per_entry else x.shape[self._batch_axis]
        self._sums.setdefault(name, _Sums()).add(total / max(size, 1), torch.is_grad_enabled())

    def _require_all(self, parts: Mapping[str, Tensor], sums: Mapping[str, _Sums]) -> None:
        """Raise unless every chosen module has something to penalize."""
        missing = [name for name in self.names if name not in parts]
        without = [name for name in missing if name in sums]
        if without:
            raise HookError(
                f"{describe(without)} ran only without gradient, so that the penalty would change nothing. Usual "
                "causes: the forward pass under torch.no_grad() (call value() there too, or run it again); "
                "torch.utils.checkpoint with use_reentrant=True (set use_reentrant=False)"
            )
        if not parts:
            raise HookError(_nothing_ran("value()", self.names, "was entered, or since the last value()"))
        if missing and not self._allow_missing:
            raise HookError(
                f"{describe(missing)} did not run, while {describe(parts)} did; expected every target to run: leave it "
                "out of targets, or set allow_missing=True"
            )

    def _raise_not_finite(self, parts: Mapping[str, Tensor]) -> None:
        bad = [name for name, part in parts.items() if not bool(torch.isfinite(part.detach()))]
        raise HookError(
            f"the penalty of {describe(bad or parts)} is not finite: its activations hold NaN or infinite entries, or "
            "their sum overflows; expected finite ones: check the input, lower the learning rate or clip gradients "
            "(check_finite=False leaves such steps to a gradient scaler)"
        )


class _AbsoluteSum(torch.autograd.Function):
    """``Σ_i |x_i|`` in at least float32, with the subgradient sign(x), 0 at 0.

    Saves `x` itself, which the network mostly holds anyway, where ``x.float().abs().sum()`` would save a copy.
    """

    @staticmethod
    def forward(x: Tensor, name: str, save_signs: bool, statistics: Callable[[Tensor], Tensor] | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            absolute = x.detach().abs()
            if absolute.dtype not in (torch.float32, torch.float64):
                absolute = absolute.float()
            return absolute.sum() if statistics is None else statistics(absolute)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str, bool, object], output: Tensor) -> None:
        x, name, save_signs, _ = inputs
        ctx.name, ctx.dtype = name, x.dtype
        ctx.save_for_backward(x.detach().sign().to(torch.int8) if save_signs and ctx.needs_input_grad[0] else x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        try:
            (saved,) = ctx.saved_tensors
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            raise HookError(
                f"the output of {describe([ctx.name])} was overwritten in place after the module ran, as by "
                "torch.nn.ReLU(inplace=True) or `x += y` behind it, so that the penalty has no gradient; penalize the "
                "module that overwrites it, set inplace=False there, or set save_signs=True"
            ) from error
        # ±gradient or 0: rounding the float32 gradient to the activation's number type is the only rounding.
        gradient = gradients[0].to(ctx.dtype)
        signs = saved.detach().sign().to(ctx.dtype)
        product = signs * gradient if torch.is_grad_enabled() else signs.mul_(gradient)
        return product, None, None, None


@dataclass
class _Sums:
    """What one module put in since the last `value`: forward passes with gradient, and without."""

    with_gradient: Tensor | None = None
    without_gradient: Tensor | None = None

    def add(self, part: Tensor, with_gradient: bool) -> None:
        """Add one call."""
        if with_gradient:
            self.with_gradient = part if self.with_gradient is None else self.with_gradient + part
        else:
            self.without_gradient = part if self.without_gradient is None else self.without_gradient + part


def _part(sums: _Sums | None, with_gradient: bool) -> Tensor | None:
    """Return what counts now: with gradients on, only what has them; with gradients off, all."""
    if sums is None:
        return None
    if with_gradient or sums.without_gradient is None:
        return sums.with_gradient
    return sums.without_gradient if sums.with_gradient is None else sums.with_gradient + sums.without_gradient


def _widest(parts: list[Tensor]) -> torch.dtype:
    return torch.float64 if any(part.dtype == torch.float64 for part in parts) else torch.float32


def _nothing_ran(call: str, names: tuple[str, ...], since: str) -> str:
    return (
        f"{call} found no activations: none of {describe(names)} ran since the context {since}. Usual causes: no "
        "forward pass before it; value() called twice for one forward pass (keep its result); the modules are not used "
        "in forward; the forward pass ran on a copy of the model; the model was compiled and had run before the "
        "context was entered (enter first, or call torch.compiler.reset())"
    )


def _require_weights(weight: object, modules: Mapping[str, nn.Module]) -> dict[str, float]:
    """Return one weight for each module.

    Raises:
        NameMatchError: A key matches no module.
        ParameterError: A weight is no finite number of at least 0, or a module has none.
    """
    if isinstance(weight, Mapping):
        numbers = {str(key): _require_weight(f"weight[{key!r}]", value) for key, value in weight.items()}
        return match_settings(numbers, modules, "weight")
    number = _require_weight("weight", weight)
    return dict.fromkeys(modules, number)


def _require_weight(name: str, value: object) -> float:
    expected = "expected a finite number of at least 0, or a mapping from module names to such numbers"
    if isinstance(value, bool | str):
        raise ParameterError(f"{name} is {value!r}; {expected}")
    try:
        number = float(value)  # type: ignore[arg-type]  # numbers of NumPy and tensors of one entry too
    except (TypeError, ValueError, RuntimeError):
        raise ParameterError(f"{name} is {value!r}; {expected}") from None
    if not 0 <= number < math.inf:
        raise ParameterError(f"{name} is {number}; {expected}")
    return number
