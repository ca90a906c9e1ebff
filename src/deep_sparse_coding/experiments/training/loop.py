"""The training loop on Lightning Fabric: one process or several, resumable bit for bit, stopped by NaN."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...checks import require_integer
from ...errors import ParameterError
from ..data import LabelledImages
from ..store import open_folder
from .checkpoint import append_line, identity, load_checkpoint, repair_log, save_checkpoint
from .evaluate import evaluate, ignored, require_scores, require_task
from .failures import not_finite
from .penalty import Penalty, make_penalty
from .samples import DROPOUT, Images, Scaling, batches, derived, noisy_labels, targets_of
from .settings import PenaltySettings, TrainSettings
from .surroundings import make_fabric, make_optimizer, open_board, seeded, use_threads, write_board

Advance = Callable[[float], None]


@dataclass(frozen=True)
class TrainResult:
    """How training went. The network has the weights of the last epoch.

    Attributes:
        history: One mapping per epoch: "epoch", "loss" and "penalty" (means over its steps, without and with ω),
            "weight" (ω at its end), "rate", "seconds", and of measured epochs "validation": loss, measures, zeros.
        resumed: How many epochs an earlier run had done.
        scaling: How images are scaled before they go into the network.
    """

    history: tuple[dict[str, Any], ...]
    resumed: int
    scaling: Scaling

    @property
    def seconds(self) -> float:
        """The time of all epochs together."""
        return sum(line["seconds"] for line in self.history)

    @property
    def last(self) -> dict[str, Any]:
        """The last epoch."""
        return self.history[-1]


@dataclass(frozen=True)
class DryRun:
    """What one step through everything showed.

    Attributes:
        parameters: Weights of the network.
        layers: Activations that would be penalized.
        inputs: The shape of a batch.
        outputs: The shape of its scores.
        steps: Steps per epoch.
        seconds: Seconds per step.
        total: Seconds that the steps of all epochs would take; measuring comes on top.
        checkpoint: Bytes of a checkpoint, without the optimizer's state after the first step.
    """

    parameters: int
    layers: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: int
    seconds: float
    total: float
    checkpoint: int

    def __str__(self) -> str:
        return (
            f"{self.parameters:,} weights · {self.layers} layers penalized · batch {_by(self.inputs)} → "
            f"{_by(self.outputs)} · {self.steps} steps per epoch, {1000 * self.seconds:.0f} ms each · about "
            f"{self.total / 60:.1f} min · checkpoint {self.checkpoint / 2**20:.1f} MiB"
        )


def train(
    model: nn.Module,
    data: Images,
    task: str,
    settings: TrainSettings,
    folder: Path,
    *,
    penalty: PenaltySettings | None = None,
    validation: Images | None = None,
    seed: int,
    advance: Advance | None = None,
) -> TrainResult:
    """Train a network, from the last checkpoint in `folder` if there is one.

    Order, augmentation and noise are drawn anew for each epoch from `seed`, so a run that was killed goes on to the
    same weights: bit for bit on a CPU with the same number of threads. Under ``torchrun`` every process takes its share
    of each batch; the first one writes.

    Args:
        model: The network; it is moved to the device, trained in place, and left in evaluation mode.
        data: What is trained on.
        task: "classification" or "segmentation"; the loss is the cross-entropy.
        settings: How.
        folder: Where checkpoint, log and lock lie; it is made if need be.
        penalty: How the activations are made sparse; None: not at all.
        validation: Measured every ``settings.log_every`` epochs; None: nothing is.
        seed: Of everything that is random.
        advance: Called with the share that is done, 0 to 1.

    Raises:
        FileFormatError: A damaged checkpoint or log, or a full disk; the last good checkpoint stays.
        NotConvergedError: The loss is not finite; the message names step, epoch and module.
        ParameterError: Data, task and settings do not fit; another run holds the folder, or it belongs to another
            model, other settings or other data.
    """
    penalty = penalty or PenaltySettings()
    require_integer("seed", seed, minimum=0)
    _require_fit(data, task, settings, validation)
    with use_threads(settings.threads):
        trainer = _Trainer(model, data, task, settings, penalty, seed)
        with ExitStack() as stack:
            stack.enter_context(trainer.locked(Path(folder)))
            trainer.resume(Path(folder), validation, advance or _ignore)
        model.eval()
        return TrainResult(tuple(trainer.history), trainer.resumed, trainer.scaling)


def dry_run(
    model: nn.Module,
    data: Images,
    task: str,
    settings: TrainSettings,
    *,
    penalty: PenaltySettings | None = None,
    seed: int = 0,
) -> DryRun:
    """Take a step through everything on a copy of the network, and say how large and how slow it is.

    Args:
        model: The network; it stays as it is.
        data: What would be trained on.
        task: "classification" or "segmentation".
        settings: How.
        penalty: How the activations would be made sparse.
        seed: Of the batch.

    Raises:
        DSCError: As `train` does.
    """
    _require_fit(data, task, settings, None)
    with use_threads(settings.threads):
        trainer = _Trainer(copy.deepcopy(model), data, task, settings, penalty or PenaltySettings(), seed)
        return trainer.try_out()


class _Trainer:
    """A network, its optimizer and its data on one device, and the epochs that are done."""

    def __init__(
        self, model: nn.Module, data: Images, task: str, settings: TrainSettings, penalty: PenaltySettings, seed: int
    ) -> None:
        self.settings, self.task, self.seed, self._data = settings, task, seed, data
        self.fabric = make_fabric(settings)
        rank, world = self.fabric.global_rank, self.fabric.world_size
        if settings.batch % world:
            raise ParameterError(
                f"batch is {settings.batch} for {world} processes; expected a multiple of {world}, a share for each"
            )
        self._belongs = identity(model, data, task, settings, penalty, seed, world)
        self._shares = {"rank": rank, "world": world}
        self.steps = len(data) // settings.batch
        # `Module.to` takes a memory format too, which its annotations leave out.
        self.raw = model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = make_optimizer(model, settings)
        self._wrapped, self._wrapped_optimizer = self.fabric.setup(model, self._optimizer)
        device = self.fabric.device
        self.scaling = Scaling.of(data.images)
        self._images, self._targets = data.images.to(device), targets_of(data).to(device)
        if settings.label_noise:
            noisy = noisy_labels(targets_of(data), len(data.classes), settings.label_noise, seed)
            self._targets = noisy.to(device)
        self._penalty: Penalty = make_penalty(model, penalty, settings.epochs * self.steps)
        self.history: list[dict[str, Any]] = []
        self.resumed = 0

    def locked(self, folder: Path) -> AbstractContextManager[object]:
        """Hold the folder; processes other than the first leave that to it."""
        if not self.fabric.is_global_zero:
            return nullcontext()
        # What the folder belongs to stands in the checkpoint, which says it in more detail.
        return open_folder(folder, {"kind": "training"}, {}, {})

    def resume(self, folder: Path, validation: Images | None, advance: Advance) -> None:
        """Run the epochs that are missing."""
        self.fabric.barrier()
        state = load_checkpoint(folder, self._belongs)
        if state is not None:
            self._restore(state)
            self.resumed = int(state["epoch"])
        if self.fabric.is_global_zero:
            self.history = repair_log(folder, self.resumed)
        self.fabric.barrier()
        settings = self.settings
        board = open_board(folder, self.resumed) if settings.tensorboard and self.fabric.is_global_zero else None
        with self._penalty:
            for epoch in range(self.resumed, settings.epochs):
                began = time.perf_counter()
                line = self._epoch(epoch, lambda share, epoch=epoch: advance((epoch + share) / settings.epochs))
                done = epoch + 1
                if self.fabric.is_global_zero:
                    if validation is not None and (done % settings.log_every == 0 or done == settings.epochs):
                        found = evaluate(self.raw, validation, self.task, self.scaling, detailed=False)
                        line["validation"] = found.numbers()
                        self._penalty.discard()
                    line["seconds"] = round(time.perf_counter() - began, 3)
                    self.history.append(line)
                    append_line(folder, line)
                    # After the line, so that a log never lacks an epoch of its checkpoint.
                    save_checkpoint(folder, self._belongs, self._state(done))
                    if board is not None:
                        write_board(board, line)
                self.fabric.barrier()
                self.raw.train()
        if board is not None:
            board.close()
        advance(1.0)

    def try_out(self) -> DryRun:
        """Take two steps and time the second."""
        settings = self.settings
        with self._penalty, seeded(derived(self.seed, DROPOUT), self.fabric.device):
            images, goals = next(self._batches(0))
            begin = time.perf_counter()
            for _ in range(2):
                begin = time.perf_counter()
                self._step(0, 0, images, goals)
            seconds = time.perf_counter() - begin
        with torch.no_grad():
            outputs = tuple(self.raw(self.scaling(images)).shape)
        tensors = self.raw.state_dict().values()
        return DryRun(
            parameters=sum(weight.numel() for weight in self.raw.parameters()),
            layers=len(self._penalty.names),
            inputs=tuple(images.shape),
            outputs=outputs,
            steps=self.steps,
            seconds=seconds,
            total=seconds * self.steps * settings.epochs,
            checkpoint=sum(value.numel() * value.element_size() for value in tensors),
        )

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        settings = self.settings
        return batches(
            self._images,
            self._targets,
            batch=settings.batch,
            seed=self.seed,
            epoch=epoch,
            augmentation=settings.augmentation,
            **self._shares,
        )

    def _epoch(self, epoch: int, advance: Advance) -> dict[str, Any]:
        """Take the steps of one epoch; return the means over all processes."""
        sums = torch.zeros(2, dtype=torch.float64)
        # Layers such as dropout read the global generator: it is seeded here, and given back as it was.
        with seeded(derived(self.seed, DROPOUT, epoch) + self._shares["rank"], self.fabric.device):
            for number, (images, goals) in enumerate(self._batches(epoch)):
                sums += torch.tensor(self._step(epoch, epoch * self.steps + number, images, goals))
                advance((number + 1) / self.steps)
        means = self.fabric.all_reduce(sums / self.steps, reduce_op="mean")
        last = (epoch + 1) * self.steps - 1
        return {
            "epoch": epoch + 1,
            "loss": float(means[0]),
            "penalty": float(means[1]),
            "weight": self._penalty.weight(last),
            "rate": self.settings.rate(last, self.settings.epochs * self.steps),
        }

    def _step(self, epoch: int, step: int, images: Tensor, goals: Tensor) -> tuple[float, float]:
        """Take one step; return loss and penalty."""
        rate = self.settings.rate(step, self.settings.epochs * self.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        inputs = self.scaling(images)
        scores = self._wrapped(inputs)
        require_scores(scores, goals, len(self._data.classes))
        loss = F.cross_entropy(scores.float(), goals.long(), ignore_index=ignored(self._data))
        term = self._penalty.term(step)
        total = loss if term is None else loss + term
        numbers = float(loss.detach()), 0.0 if term is None else float(term.detach())
        if not bool(torch.isfinite(total.detach())):
            raise not_finite(
                self.raw,
                inputs,
                step=step + 1,
                epoch=epoch + 1,
                loss=numbers[0],
                penalty=numbers[1],
                kept=epoch,
            )
        self._wrapped_optimizer.zero_grad()
        self.fabric.backward(total)
        self._wrapped_optimizer.step()
        self._penalty.stepped()
        return numbers

    def _state(self, epoch: int) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "model": self.raw.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "penalty": self._penalty.state(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.raw.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._penalty.restore(state["penalty"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])


def _require_fit(data: Images, task: str, settings: TrainSettings, validation: Images | None) -> None:
    require_task(task, data)
    if settings.batch > len(data):
        raise ParameterError(f"batch is {settings.batch} of {len(data)} samples; expected at most {len(data)}")
    if settings.label_noise and not isinstance(data, LabelledImages):
        raise ParameterError(
            f"label_noise is {settings.label_noise} with task {task!r}; expected 0: masks stay as they are"
        )
    if validation is not None:
        require_task(task, validation)
        if validation.classes != data.classes:
            raise ParameterError(
                f"validation has the classes {validation.classes} and data {data.classes}; expected the same"
            )


def _by(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _ignore(_: float) -> None:
    """Show nothing."""
