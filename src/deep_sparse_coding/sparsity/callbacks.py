"""The penalty inside other people's training loops: Lightning, and the Trainer of Hugging Face transformers.

Both use an `ActivationPenalty` that you made, take its hooks off when training ends or fails, and leave its report to
you. Lightning Fabric and plain loops need nothing: add ``penalty.value()`` to the loss.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import MissingExtraError, ParameterError, UnsupportedError
from .penalties.penalty import ActivationPenalty

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from transformers import Trainer

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def lightning_callback(penalty: ActivationPenalty, *, log: bool = True) -> Callback:
    """Return a Lightning callback that adds a penalty to the loss of every training step.

    ::

        penalty = ActivationPenalty(module.net, targets=[torch.nn.ReLU], weight=1e-4)
        trainer = lightning.Trainer(callbacks=[lightning_callback(penalty)])
        trainer.fit(module, loader)
        print(penalty.report())

    The penalty is added to the loss between `training_step` and its backward pass, so that there is one backward pass,
    also with DDP; with gradient accumulation it is divided by the number of batches, as Lightning divides the loss, and
    with a gradient scaler it is scaled like the loss. What `training_step` logs is the loss without the penalty.
    Sums for the report start anew with every training epoch; batches of validation within the epoch count.

    Args:
        penalty: Made on the module that is trained, or on a part of it.
        log: Log ``activation_penalty`` for every step and ``zero_fraction`` for every epoch.

    Returns:
        A callback for the trainers of `lightning` and of `pytorch_lightning`, whichever is imported.

    Raises:
        MissingExtraError: Neither package is installed.
        ParameterError: `penalty` is none.
        UnsupportedError: When training starts: the module optimizes by hand.
    """
    _require_penalty(penalty)
    base: type[Any] = _callback_base()

    class PenaltyCallback(base):  # type: ignore[misc, valid-type]  # the base is known when it is imported
        def __init__(self) -> None:
            super().__init__()
            self.penalty = penalty

        def __reduce__(self) -> tuple[Any, ...]:
            return (_rebuild, (penalty, log))

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if not pl_module.automatic_optimization:
                raise UnsupportedError(
                    f"{type(pl_module).__name__} optimizes by hand (automatic_optimization is False), so that no loss "
                    "is known to a callback; expected automatic optimization: use `with penalty:` around "
                    "trainer.fit(...) and add penalty.value() to your loss"
                )
            penalty.__enter__()

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            penalty.reset()

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            penalty.discard()  # batches of validation, or of a step that was skipped

        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
            value = penalty.value()
            if log:
                pl_module.log("activation_penalty", value.detach())
            value = value / trainer.accumulate_grad_batches
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            # Lightning made this very tensor by dividing the loss; changed in place it is what backward() starts from.
            loss.add_(value if scaler is None else scaler.scale(value))

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if log:
                pl_module.log("zero_fraction", penalty.report().zero_fraction)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            penalty.__exit__(None, None, None)

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            penalty.__exit__(None, None, None)

    return PenaltyCallback()  # type: ignore[return-value]


@contextmanager
def penalized(trainer: Trainer, penalty: ActivationPenalty) -> Iterator[ActivationPenalty]:
    """Add a penalty to the training loss of a Hugging Face `Trainer`, or of a subclass, inside of the context.

    ::

        penalty = ActivationPenalty(model, targets=["*.act"], weight=1e-4, channel_axis=-1)
        with penalized(trainer, penalty):
            trainer.train()
        print(penalty.report())

    It wraps ``trainer.compute_loss``, so that the training loss that is logged has the penalty in it; the loss of
    evaluation has not. With gradient accumulation the penalty is the mean over the accumulated batches, also where the
    model divides its own loss by the number of items. A callback of the Trainer would not do: none of its events lies
    between the loss and its backward pass.

    Args:
        trainer: The trainer; it is given back as it was, also after an exception.
        penalty: Made on the model of the trainer.

    Raises:
        ParameterError: `penalty` is none.
        UnsupportedError: The trainer would run on several devices from one process (``torch.nn.DataParallel``).
    """
    _require_penalty(penalty)
    if trainer.args.n_gpu > 1:
        raise UnsupportedError(
            f"the trainer runs on {trainer.args.n_gpu} devices from one process, as torch.nn.DataParallel; expected "
            "one process per device: start it with torchrun or accelerate launch"
        )
    compute, own = trainer.compute_loss, "compute_loss" in vars(trainer)

    def compute_loss(
        model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **settings: Any
    ) -> Any:
        penalty.discard()
        result = compute(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **settings
        )
        if not (model.training and torch.is_grad_enabled()):
            penalty.discard()
            return result
        value = penalty.value() / _batches_that_share(trainer, num_items_in_batch)
        if isinstance(result, tuple):
            return (result[0] + value.to(result[0].device), *result[1:])
        return result + value.to(result.device)

    with penalty:
        trainer.compute_loss = compute_loss
        try:
            yield penalty
        finally:
            if own:
                trainer.compute_loss = compute
            else:
                del trainer.compute_loss  # the method of the class shows again


def _batches_that_share(trainer: Any, num_items_in_batch: Any) -> int:
    """Return by how many the Trainer will *not* divide though batches are accumulated."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)  # newer versions only
    if scaled is None:
        counted = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        scaled = counted or trainer.compute_loss_func is not None
    if not scaled:
        return 1
    return getattr(trainer, "current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)


def _rebuild(penalty: ActivationPenalty, log: bool) -> Callback:
    return lightning_callback(penalty, log=log)


def _callback_base() -> type[Any]:
    """Return the base of callbacks of the package that is imported; of both if both are."""
    loaded = [import_module(name) for name in _PACKAGES if name in sys.modules]
    for name in _PACKAGES:
        if not loaded:
            with suppress(ImportError):
                loaded = [import_module(name)]
    if not loaded:
        raise MissingExtraError(
            "lightning_callback needs the package 'lightning' or 'pytorch-lightning', and neither is installed; "
            "install one with: pip install lightning"
        )
    bases = tuple(module.Callback for module in loaded)
    return bases[0] if len(bases) == 1 else type("Callback", bases, {})


def _require_penalty(penalty: object) -> None:
    if not isinstance(penalty, ActivationPenalty):
        raise ParameterError(
            f"penalty is a {type(penalty).__name__}; expected an ActivationPenalty made on the model that is trained"
        )
