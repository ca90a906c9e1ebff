"""Where numbers stop being finite: the first module whose output is not, found by one more forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import NotConvergedError


def not_finite(
    model: nn.Module, inputs: Tensor, *, step: int, epoch: int, loss: float, penalty: float, kept: int
) -> NotConvergedError:
    """Return the error for a loss that is NaN or infinite.

    Args:
        model: The network, with the weights that the step began with.
        inputs: The step's inputs.
        step: The step, counted from 1 over all epochs.
        epoch: The epoch, counted from 1.
        loss: The loss without the penalty.
        penalty: The penalty.
        kept: How many epochs the last checkpoint holds.
    """
    checkpoint = f"the checkpoint after epoch {kept} is kept" if kept else "there is no checkpoint yet"
    return NotConvergedError(
        f"the loss is not finite at step {step}, in epoch {epoch} (loss {loss}, penalty {penalty}): "
        f"{first_not_finite(model, inputs)}; {checkpoint}. Lower the learning rate or the penalty's weight, or use "
        "precision '32-true', and begin in another folder"
    )


def first_not_finite(model: nn.Module, inputs: Tensor) -> str:
    """Say where the first numbers that are not finite stand: in the inputs, the weights, or a module's output."""
    if not bool(torch.isfinite(inputs).all()):
        return "the inputs hold numbers that are not finite"
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            return f"the weight {name!r} is not finite, since the step before"
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(f"the first output that is not finite is that of {name!r} ({type(module).__name__})")

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "every module's output is finite, so it arises in the loss or in the penalty"
