"""What the loop stands on: Fabric, the optimizer, TensorBoard, threads, and the global generator given back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...errors import FileFormatError, missing_extra
from .settings import TrainSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def make_fabric(settings: TrainSettings) -> Fabric:
    """Return Fabric for this process: alone, or one of those that ``torchrun`` started.

    Raises:
        MissingExtraError: lightning-fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise missing_extra("lightning-fabric", "train", "training networks") from None
    several = torch.distributed.is_torchelastic_launched()
    fabric = Fabric(
        accelerator=settings.accelerator,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]) if several else 1,
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]) if several else 1,
        strategy="ddp" if several else "auto",
        precision=settings.precision,  # type: ignore[arg-type]  # one of PRECISIONS
    )
    fabric.launch()
    return fabric


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer; the learning rate is set anew at every step."""
    if settings.optimizer == "adamw":
        betas = (settings.momentum, 0.999)
        return torch.optim.AdamW(model.parameters(), settings.lr, betas=betas, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def open_board(folder: Path, epochs: int) -> Any:
    """Return a writer for TensorBoard that goes on behind the given number of epochs.

    Raises:
        FileFormatError: The folder cannot be written.
        MissingExtraError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise missing_extra("tensorboard", "train", "tensorboard=True") from None
    try:
        return SummaryWriter(str(folder / "tensorboard"), purge_step=epochs + 1)
    except OSError as error:
        raise FileFormatError(f"cannot write to {folder} ({error}); expected a folder with room to write") from error


def write_board(board: Any, line: dict[str, Any]) -> None:
    """Write the line of an epoch."""
    numbers = {key: value for key, value in line.items() if key not in ("epoch", "validation")}
    numbers |= {f"validation/{key}": value for key, value in line.get("validation", {}).items()}
    for key, value in numbers.items():
        board.add_scalar(key, value, line["epoch"])
    board.flush()


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Use so many threads of torch inside of the context; 0: as many as before."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators inside of the context, for layers that read them, and give them back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
