"""Running a network on whatever batches a loader gives, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...errors import ParameterError

Forward: TypeAlias = Callable[[nn.Module, Any], Any]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode without gradients; afterwards every module is in the mode that it was in.

    The fused path of `torch.nn` transformers is off meanwhile, since it does not run the modules inside of it.
    """
    modes = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes:
            module.training = training


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device of the first parameter or buffer, or None for a network that has neither."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None


def move(batch: Any, device: torch.device | None) -> Any:
    """Return a batch with all tensors inside of tuples, lists and mappings on a device."""
    if isinstance(batch, Tensor):
        return batch if device is None else batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: move(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        items = [move(item, device) for item in batch]
        return items if isinstance(batch, list) else tuple(items)
    return batch


def call(model: nn.Module, batch: Any) -> Any:
    """Run a network on a batch: a tensor, a tuple or list whose first item is the input, or keyword arguments.

    Raises:
        ParameterError: The batch is of another kind.
    """
    if isinstance(batch, tuple | list) and batch:
        return call(model, batch[0])
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, Tensor):
        return model(batch)
    raise ParameterError(
        f"a batch is a {type(batch).__name__}; expected a tensor, a tuple or list whose first item is the input, or a "
        "mapping of keyword arguments: set forward=lambda model, batch: model(...)"
    )
