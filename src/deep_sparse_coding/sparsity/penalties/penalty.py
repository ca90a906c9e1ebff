"""A penalty on the activations of any network: ℓ1 or another form, with a fixed, scheduled or self-adjusting weight."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from ...checks import check_flag
from ...errors import DSCWarning, HookError, ParameterError, ShapeError
from ..measuring.measures import require_tolerance
from ..measuring.report import LayerStatistics, SparsityReport
from ..watching.hooks import Watch, describe
from ..watching.selection import Functional, Target
from .forms import Form, resolve_form
from .sums import Sums, counted, sample_sizes, widest
from .values import Call
from .weights import Held, Weight, weighting


class ActivationPenalty:
    """The penalty ``Σ_j ω_j P(x_j)`` on chosen activations x_j, mostly ``P(x) = ‖x‖_1 / batch``, as a context manager.

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
    can fall while no entry becomes zero. So read the zero fraction in `report` next to it, or take a form that does not
    depend on the scale.

    Schedules and targets advance by one step with every `value` that has a gradient. With gradient accumulation set
    ``manual_steps=True`` and call `step` once per optimizer step. Save `state_dict` in checkpoints to go on from there.

    Args:
        model: Any network; it is given back as it was, and hooks of others stay on it.
        targets: Which activations: outputs of modules, see `select`; `inputs_of` modules; results of `functional`
            calls. Of tuples or lists the first item is penalized.
        weight: ω, at least 0: a number; a schedule such as `WarmUp`, or any function of the step; `BySize`; a mapping
            from names or globs to numbers or schedules that covers every activation; or `TargetSparsity`.
        form: What is penalized: "l1", "hoyer", "hoyer-square", "group", "transformed" or "scale-invariant", or a `Form`
            with settings such as ``TopK(0.1)``.
        per_entry: ω multiplies the value per entry (for ℓ1 the mean ``|x|``) instead of that per sample, so that
            layers of different sizes weigh the same.
        manual_steps: Count steps by `step` and not by `value`.
        measure: Keep the running sums for `report`. ``False`` saves their cost.
        tol: What counts as zero in the report and for `TargetSparsity`, ``|x| ≤ tol``.
        batch_axis: The axis of samples in the activations; 1 for recurrent layers without ``batch_first``.
        channel_axis: The axis of channels, for dead channels in the report and forms that group; -1 for tokens
            ``(batch, tokens, features)``.
        save_signs: Keep what the backward pass needs (signs, one byte per entry; for other forms than ℓ1 a copy)
            instead of sharing the activation itself. Needed where a later in-place operation overwrites it.
        allow_missing: Accept modules that did not run while others did, as in networks that skip layers.
        check_finite: Raise an error if a layer's penalty is NaN or infinite. It waits for the device once per `value`;
            ``False`` leaves such steps to a gradient scaler.

    Raises:
        NameMatchError: A target, a form, or a key of `weight` matches nothing.
        ParameterError: A setting is out of range, or `weight` does not cover every activation.
        UnsupportedError: The model is a ``torch.nn.DataParallel``, or the form cannot be had for a target.

    Source: section "Sparsity in training" of docs/theory.md.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Target | Iterable[Target],
        weight: Weight,
        form: str | Form = "l1",
        *,
        per_entry: bool = False,
        manual_steps: bool = False,
        measure: bool = True,
        tol: float = 0.0,
        batch_axis: int = 0,
        channel_axis: int = 1,
        save_signs: bool = False,
        allow_missing: bool = False,
        check_finite: bool = True,
    ) -> None:
        self._watch = Watch(model, targets, "ActivationPenalty", self._receive, functions=True)
        self._form = resolve_form(form)
        self._forms = self._form.bind(model, self._watch.modules)
        self._weight = weight
        self._weighting = weighting(weight, self._watch.modules, complete=not self._watch.functions)
        self._per_entry = per_entry
        self._manual_steps = check_flag("manual_steps", manual_steps)
        self._measure = measure
        self._tol = require_tolerance(tol)
        self._batch_axis, self._channel_axis = batch_axis, channel_axis
        self._save_signs = save_signs
        self._allow_missing = allow_missing
        self._check_finite = check_finite
        if batch_axis == channel_axis:
            raise ParameterError(
                f"batch_axis and channel_axis are both {batch_axis}; expected two axes: set channel_axis, such as -1"
            )
        self._statistics = {
            name: self._new_statistics(name, type(module).__name__) for name, module in self._watch.modules.items()
        }
        self._calls: dict[str, Call] = {}
        self._sums: dict[str, Sums] = {}
        self._units: dict[str, float] = {}
        self._zeros: dict[str, tuple[Tensor, int]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of what is penalized, in the order of the model; calls of functions behind, as they were seen."""
        return (*self._watch.modules, *self._watch.calls)

    @property
    def weights(self) -> dict[str, float]:
        """ω by name, as the next `value` takes it.

        Raises:
            HookError: It depends on the sizes of the activations, and there was no forward pass with a `value` yet.
        """
        weights = self._weighting.current(self._units)
        if not weights:
            raise HookError(
                "the weights depend on the activations, and there was none yet; expected a forward pass and value() "
                "before weights are read"
            )
        return weights

    @property
    def sparsity(self) -> dict[str, float]:
        """With `TargetSparsity`: the fraction of zeros that is held, averaged over steps; "" is that over all layers.

        Raises:
            ParameterError: The weight is no `TargetSparsity`.
        """
        if not isinstance(self._weighting, Held):
            raise ParameterError("sparsity is kept for TargetSparsity only; expected it as the weight: use report()")
        return {name: item.zeros for name, item in self._weighting.multipliers.items()}

    @property
    def steps(self) -> int:
        """How many steps were counted."""
        return self._weighting.steps

    def value(self) -> Tensor:
        """Return the penalty of all forward passes since the last call, and start anew.

        Counts a step if it has a gradient, unless ``manual_steps=True``; contexts do not set the count back.

        Returns:
            A scalar in float32 (float64 if an activation is), with gradient unless gradients are switched off.

        Raises:
            HookError: Called outside of the context; nothing chosen ran, or something did not while the rest did; the
                activations were computed without gradient; or a layer's penalty is not finite.
        """
        self._watch.require_active("value()")
        sums, self._sums = self._sums, {}
        with_gradient = torch.is_grad_enabled()
        names = self.names
        parts = {name: part for name in names if (part := counted(sums.get(name), with_gradient)) is not None}
        self._require_all(parts, sums)
        self._weighting.learn(names)
        self._units.update({name: sums[name].unit for name in parts})
        weights = self._weighting.current({name: self._units[name] for name in names if name in self._units})
        device = next(iter(parts.values())).device
        weighted = [weights[name] * part.to(device) for name, part in parts.items()]
        total = torch.stack([item.to(widest(weighted)) for item in weighted]).sum()
        if self._check_finite and not bool(torch.isfinite(total.detach())):
            self._raise_not_finite(parts)
        if with_gradient:
            for name in parts:
                self._count(name, sums[name])
            if not self._manual_steps:
                self._advance()
        return total

    def step(self) -> None:
        """Count a step: call it once per optimizer step (or per epoch, for schedules over epochs).

        Raises:
            ParameterError: The penalty was made with ``manual_steps=False``, where `value` counts.
        """
        if not self._manual_steps:
            raise ParameterError("manual_steps is False, so that value() counts steps; expected True to call step()")
        self._advance()

    def state_dict(self) -> dict[str, Any]:
        """Return steps and weights as plain numbers and texts, to go on from with the same bits.

        Sums for `report` are not part of it, nor zeros counted since the last step.
        """
        return self._weighting.state()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ParameterError: It comes from another kind of weight, other targets, or another version.
        """
        self._weighting.restore(state)
        self._zeros = {}

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
            raise HookError(self._nothing_ran("report()", "was entered, or since reset()"))
        return SparsityReport(tuple(layer.row() for layer in self._statistics.values()))

    def reset(self) -> None:
        """Forget the sums for `report`, as at the start of an epoch."""
        for layer in self._statistics.values():
            layer.reset()

    def __repr__(self) -> str:
        weights = sorted(set(self._weighting.current(self._units).values()))
        few = f"{weights[0]:g}" if len(weights) == 1 else f"{weights[0]:g} to {weights[-1]:g}" if weights else ""
        shown = few or repr(self._weight)
        form = "" if self._form == resolve_form("l1") else f"{self._form}, "
        functions = ", ".join(f"functional({item.function!r})" for item in self._watch.functions)
        of = ", ".join(part for part in (describe(self._watch.modules), functions) if part)
        return f"<ActivationPenalty of {of}: {form}weight {shown}>"

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

    def _new_statistics(self, name: str, kind: str) -> LayerStatistics:
        return LayerStatistics(name, kind, tol=self._tol, batch_axis=self._batch_axis, channel_axis=self._channel_axis)

    def _receive(self, name: str, x: Tensor, recomputing: bool) -> None:
        if not -x.ndim <= self._batch_axis < x.ndim:
            raise ShapeError(
                f"{describe([name])} has the shape {tuple(x.shape)}, and batch_axis is {self._batch_axis}; "
                f"expected an axis of it: {-x.ndim} to {x.ndim - 1}"
            )
        statistics = None
        if self._measure and not recomputing:
            if name not in self._statistics:
                self._statistics[name] = self._new_statistics(name, "function")
            statistics = self._statistics[name].update
        # A recomputation must save the same tensors as the first forward pass did, so it runs too, and is then dropped.
        call = self._calls.get(name)
        if call is None:
            call = self._calls[name] = Call(name, self._batch_axis, self._channel_axis, self._save_signs)
        form = self._forms.get(name, self._form)
        value = form.evaluate(x, call, statistics)
        if recomputing:
            return
        unit = form.unit(*sample_sizes(x, call))
        if self._per_entry:
            value, unit = value / max(unit, 1), 1.0
        sums = self._sums.setdefault(name, Sums())
        sums.add(value, unit, torch.is_grad_enabled())
        if self._weighting.counts_zeros and torch.is_grad_enabled():
            sums.count(x, self._tol)

    def _count(self, name: str, sums: Sums) -> None:
        if sums.zeros is None:
            return
        zeros, entries = self._zeros.get(name, (0, 0))
        self._zeros[name] = (sums.zeros + zeros, sums.entries + entries)

    def _advance(self) -> None:
        zeros, self._zeros = self._zeros, {}
        for text in self._weighting.advance(zeros):
            warnings.warn(text, DSCWarning, stacklevel=3)

    def _require_all(self, parts: Mapping[str, Tensor], sums: Mapping[str, Sums]) -> None:
        """Raise unless everything chosen has something to penalize; of functions, some call."""
        called = {target for name, target in self._watch.calls.items() if name in parts}
        missing = [name for name in self.names if name not in parts and self._watch.calls.get(name) not in called]
        without = [name for name in missing if name in sums]
        if without:
            raise HookError(
                f"{describe(without)} ran only without gradient, so that the penalty would change nothing. Usual "
                "causes: the forward pass under torch.no_grad() (call value() there too, or run it again); "
                "torch.utils.checkpoint with use_reentrant=True (set use_reentrant=False)"
            )
        if not parts:
            raise HookError(self._nothing_ran("value()", "was entered, or since the last value()"))
        unseen = [item for item in self._watch.functions if item not in called]
        if unseen and not self._allow_missing:
            raise HookError(_unseen(unseen))
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
            f"(check_finite=False leaves such steps to a gradient scaler){self._form.hint}"
        )

    def _nothing_ran(self, call: str, since: str) -> str:
        if self._watch.functions and not self._watch.modules:
            return _unseen(self._watch.functions)
        return (
            f"{call} found no activations: none of {describe(self.names)} ran since the context {since}. Usual causes: "
            "no forward pass before it; value() called twice for one forward pass (keep its result); the modules are "
            "not used in forward; the forward pass ran on a copy of the model; the model was compiled and had run "
            "before the context was entered (enter first, or call torch.compiler.reset())"
        )


def _unseen(functions: Iterable[Functional]) -> str:
    names = ", ".join(f"functional({item.function!r})" for item in functions)
    return (
        f"{names} was not seen: no such call in a forward pass of the model since the context was entered, or since "
        "the last value(). Usual causes: no forward pass before it; value() called twice for one forward pass; the "
        "function has another name, or is called by a module that is a target itself; it is called inside of another "
        "function of torch, of compiled code or of TorchScript, where Python does not see it (use modules as targets)"
    )
