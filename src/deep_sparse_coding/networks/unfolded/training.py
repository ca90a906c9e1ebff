"""Training of unfolded networks: Adam on true codes or on the objective, deterministic, with held-out signals."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ...checks import require_integer, require_number
from ...dictionaries import Sample
from ...errors import NotConvergedError, ParameterError, ShapeError, near_misses
from ...problems import Codes

if TYPE_CHECKING:
    from .base import Unfolded

_LOSSES = ("codes", "objective")
# The last of the learning rates along a cosine, as a share of the first.
_LAST_RATE = 0.01
_LARGEST_NORM = 1.0

Batch = Sample | Tensor | tuple[Tensor, Codes]
Sampler = Callable[[int, int], Batch]
Signals = Tensor | Sample | Sampler


@dataclass(frozen=True)
class TrainingProgress:
    """What a callback sees after every epoch.

    Attributes:
        epoch: The epoch that has ended, counted from 1.
        epochs: How many there are at most.
        loss: The mean training loss of the epoch.
        held_out: The loss on held-out signals.
        best: The smallest of these so far, the untrained network's included.
    """

    epoch: int
    epochs: int
    loss: float
    held_out: float
    best: float


@dataclass(frozen=True)
class TrainingHistory:
    """How training went; the network has the weights of `best_epoch`.

    Attributes:
        loss: What was minimized: "codes" or "objective".
        untrained: The held-out loss before the first step.
        training: The mean training loss of every epoch.
        held_out: The held-out loss after every epoch.
        best_epoch: The epoch, counted from 1, whose weights were kept; 0 for the untrained ones.
        seconds: How long it took.
        stopped: "epochs" if all were run, "patience" or "callback".
    """

    loss: str
    untrained: float
    training: tuple[float, ...]
    held_out: tuple[float, ...]
    best_epoch: int
    seconds: float
    stopped: str

    @property
    def best(self) -> float:
        """The held-out loss of the weights that were kept."""
        return self.held_out[self.best_epoch - 1] if self.best_epoch else self.untrained

    def __str__(self) -> str:
        return (
            f"{len(self.held_out)} epochs · held-out loss ({self.loss}) {self.untrained:.4g} → {self.best:.4g} "
            f"(epoch {self.best_epoch}) · {self.seconds:.1f} s · stopped by {self.stopped}"
        )


Callback = Callable[[TrainingProgress], object]


def train_unfolded(
    net: Unfolded,
    signals: Signals,
    codes: Codes | None = None,
    *,
    loss: str | None = None,
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 1e-3,
    held_out: float = 0.1,
    patience: int | None = None,
    batches: int = 50,
    seed: int = 0,
    callback: Callback | None = None,
    supports_up_to: int | Sequence[int] | None = None,
    amplitude: float | Sequence[float] = 1.0,
    noise: float = 0.0,
) -> TrainingHistory:
    """Train the network, and leave the weights with the smallest held-out loss in it.

    "codes": ``Σ‖x - x*‖² / Σ‖x*‖²``, the normalized squared error; "objective": ``Σ P(x) / Σ ½‖y‖²``, which needs no
    codes. The mean over all steps is trained on, the last step counting as much as the others together, so that early
    steps learn too; what is reported is the last step alone. Adam, gradients of norm at most 1, learning rates along
    a cosine.

    Args:
        net: What `unfold` made; as a method, ``net.fit(signals, ...)``.
        signals: ``(samples, ...)``; a `dsc.Sample`, whose codes are taken; or a function of a batch size and a seed
            that returns a `dsc.Sample`, a pair (signals, codes) or signals, asked anew for every batch.
        codes: True codes for signals that are a tensor, as the network returns them.
        loss: "codes" or "objective"; None for "codes" where there are any.
        epochs: The most passes over the signals.
        batch_size: Samples per step.
        lr: The first learning rate; thresholds and steps of the network go at the same rate.
        held_out: The share of the signals that is held out (a function: as many signals as eight batches).
        patience: Stop after so many epochs without a smaller held-out loss; None for never.
        batches: Batches per epoch where `signals` is a function.
        seed: Seed of the order, of the held-out signals, and of what a function is asked for.
        callback: Called after every epoch; returning True stops the training.
        supports_up_to: Hold thresholds at or above the leak for codes with so many non-zeros (convolutional: per
            stripe; a cascade: for all layers or one per layer), after every step (`keep_supports`): ``error_bound`` of
            the trained network is then about exact supports. None leaves thresholds free.
        amplitude: Bound of ``‖x*‖_∞`` that `supports_up_to` goes with.
        noise: Bound of the signals' noise that it goes with.

    Returns:
        How it went, which is also kept in ``net.history``.

    Raises:
        NotConvergedError: The loss is not finite; the weights are the best ones before.
        ParameterError: A setting out of range, or codes that are missing.
        UnsupportedError: `supports_up_to` for a method that no bound speaks of.
        ShapeError: Signals and codes of different numbers, or codes unlike those that the network returns.
    """
    epochs = require_integer("epochs", epochs, minimum=1)
    batch_size = require_integer("batch_size", batch_size, minimum=1)
    batches = require_integer("batches", batches, minimum=1)
    lr = require_number("lr", lr, minimum=0, strict=True)
    held_out = require_number("held_out", held_out, minimum=0, maximum=0.9, strict=True)
    seed = require_integer("seed", seed, minimum=0)
    if patience is not None:
        patience = require_integer("patience", patience, minimum=1)
    if callback is not None and not callable(callback):
        raise ParameterError(f"callback is {callback!r}; expected a function of one TrainingProgress")
    parameters = [p for p in net.parameters() if p.requires_grad]
    if not parameters:
        raise ParameterError(f"nothing of the network is trained (learn={net.learn}); expected something in learn")
    keep: Callable[[], None] | None = None
    if supports_up_to is not None:
        keep = functools.partial(net.keep_supports, supports_up_to, amplitude=amplitude, noise=noise)
    source = _Source.of(net, signals, codes, held_out, batch_size, batches, seed)
    chosen = _choose_loss(loss, source.test[1] is not None)
    meter = _Meter(net, chosen)

    began = time.perf_counter()
    if keep is not None:
        keep()
    untrained = meter.evaluate(*source.test, batch_size)
    if not math.isfinite(untrained):
        raise NotConvergedError(
            f"the loss of the untrained network is {untrained}; look for signals or codes that are not finite or zero"
        )
    best, best_epoch, kept = untrained, 0, copy.deepcopy(net.state_dict())
    training: list[float] = []
    tested: list[float] = []
    optimizer = torch.optim.Adam(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=lr * _LAST_RATE)
    stopped = "epochs"
    try:
        for epoch in range(1, epochs + 1):
            total, count = 0.0, 0
            for b, (y, x) in enumerate(source.epoch(epoch), start=1):
                with torch.enable_grad():
                    value, last = meter.training_loss(y, x)
                if not math.isfinite(last):
                    raise NotConvergedError(
                        f"the loss is {last} in epoch {epoch}, batch {b}; the network has the weights of epoch "
                        f"{best_epoch}: lower lr (it is {lr:g}), or look for signals that are not finite"
                    )
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                torch.nn.utils.clip_grad_norm_(parameters, _LARGEST_NORM)
                optimizer.step()
                with torch.no_grad():
                    for parameter in net.thresholds():
                        parameter.clamp_(min=0)
                if keep is not None:
                    keep()
                total, count = total + last, count + 1
            schedule.step()
            training.append(total / max(count, 1))
            tested.append(meter.evaluate(*source.test, batch_size))
            if tested[-1] < best:
                best, best_epoch, kept = tested[-1], epoch, copy.deepcopy(net.state_dict())
            progress = TrainingProgress(epoch, epochs, training[-1], tested[-1], best)
            if callback is not None and callback(progress) is True:
                stopped = "callback"
                break
            if patience is not None and epoch - best_epoch >= patience:
                stopped = "patience"
                break
    finally:
        net.load_state_dict(kept)
        for parameter in parameters:
            parameter.grad = None
    net.history = TrainingHistory(
        chosen, untrained, tuple(training), tuple(tested), best_epoch, time.perf_counter() - began, stopped
    )
    return net.history


def _choose_loss(loss: str | None, has_codes: bool) -> str:
    if loss is None:
        return "codes" if has_codes else "objective"
    if loss not in _LOSSES:
        raise ParameterError(f"loss is {loss!r}; expected 'codes' or 'objective'{near_misses(str(loss), _LOSSES)}")
    if loss == "codes" and not has_codes:
        raise ParameterError("loss is 'codes' and there are no codes; pass codes=, a dsc.Sample, or loss='objective'")
    return loss


@dataclass(frozen=True, eq=False)
class _Meter:
    """The loss of a network's codes, normalized."""

    net: Unfolded
    loss: str

    def measure(self, codes: Codes, signal: Tensor, truth: Codes | None) -> tuple[Tensor, Tensor]:
        """Return numerator and denominator of the loss of some samples."""
        if self.loss == "objective":
            return self.net.objective(codes, signal).sum(), 0.5 * signal.square().sum()
        pairs = list(zip(_layers(codes), _layers(cast(Codes, truth)), strict=True))
        wrong = torch.stack([(x - t).square().sum() for x, t in pairs]).sum()
        return wrong, torch.stack([t.square().sum() for _, t in pairs]).sum()

    def training_loss(self, signal: Tensor, truth: Codes | None) -> tuple[Tensor, float]:
        """Return what is descended on, and the loss of the last step."""
        values = []
        for codes in self.net.trace(signal):
            wrong, scale = self.measure(codes, signal, truth)
            values.append(wrong / scale)
        last = values[-1]
        total = last if len(values) == 1 else 0.5 * (last + torch.stack(values[:-1]).mean())
        return total, float(last.detach())

    def evaluate(self, signal: Tensor, truth: Codes | None, batch_size: int) -> float:
        """Return the loss of the last step over all of some signals."""
        wrong, scale = 0.0, 0.0
        with torch.no_grad():
            for start in range(0, len(signal), batch_size):
                rows = slice(start, start + batch_size)
                y, x = signal[rows], _take(truth, rows)
                numbers = self.measure(self.net(y), y, x)
                wrong, scale = wrong + float(numbers[0]), scale + float(numbers[1])
        return wrong / scale if scale else math.nan


@dataclass(frozen=True, eq=False)
class _Source:
    """Where batches come from: tensors, or a function that draws them."""

    train: tuple[Tensor, Codes | None] | None
    test: tuple[Tensor, Codes | None]
    sampler: Sampler | None
    net: Unfolded
    batch_size: int
    batches: int
    rng: torch.Generator

    @classmethod
    def of(
        cls,
        net: Unfolded,
        signals: Signals,
        codes: Codes | None,
        held_out: float,
        batch_size: int,
        batches: int,
        seed: int,
    ) -> _Source:
        """Return the source for what the user gave, with the held-out part taken away."""
        rng = torch.Generator().manual_seed(seed)
        if isinstance(signals, Tensor | Sample):
            if isinstance(signals, Sample) and codes is not None:
                raise ParameterError("codes are given and signals is a dsc.Sample, which has its own; leave codes out")
            y, x = _unpack(net, signals if codes is None else (cast(Tensor, signals), codes))
            if len(y) < 2:
                raise ParameterError(f"there are {len(y)} signals; expected at least 2: some are held out")
            tests = min(max(1, round(held_out * len(y))), len(y) - 1)
            order = torch.randperm(len(y), generator=rng).to(y.device)
            test, train = ((y[rows], _take(x, rows)) for rows in (order[:tests], order[tests:]))
            return cls(train, test, None, net, batch_size, batches, rng)
        if not callable(signals):
            raise ParameterError(
                f"signals is a {type(signals).__name__}; expected a tensor, a dsc.Sample, or a function of a batch "
                "size and a seed"
            )
        if codes is not None:
            raise ParameterError("codes are given and signals is a function; expected it to return them")
        test = _unpack(net, signals(8 * batch_size, _draw(rng)))
        return cls(None, test, signals, net, batch_size, batches, rng)

    def epoch(self, epoch: int) -> Sequence[tuple[Tensor, Codes | None]]:
        """Return the batches of one epoch, in a new order or newly drawn."""
        if self.sampler is not None:
            return [_unpack(self.net, self.sampler(self.batch_size, _draw(self.rng))) for _ in range(self.batches)]
        assert self.train is not None, "tensors or a function"
        y, x = self.train
        order = torch.randperm(len(y), generator=self.rng).to(y.device)
        return [(y[rows], _take(x, rows)) for rows in order.split(self.batch_size)]


def _draw(rng: torch.Generator) -> int:
    return int(torch.randint(0, 2**31 - 1, (), generator=rng))


def _layers(codes: Codes) -> tuple[Tensor, ...]:
    return codes if isinstance(codes, tuple) else (codes,)


def _take(codes: Codes | None, rows: slice | Tensor) -> Codes | None:
    if codes is None:
        return None
    return tuple(x[rows] for x in codes) if isinstance(codes, tuple) else codes[rows]


def _unpack(net: Unfolded, batch: Batch) -> tuple[Tensor, Codes | None]:
    """Return checked signals and codes with one batch axis; of a sample's codes those that the network returns.

    Raises:
        ShapeError: Signals without one batch axis, or codes that do not fit.
    """
    truth: Codes | None = None
    if isinstance(batch, Sample):
        signal, truth = batch.signal, batch.codes
    elif isinstance(batch, tuple):
        signal, truth = batch
    else:
        signal = batch
    signal = net.problem.check_signal(signal).detach()
    if len(net.problem.batch_shape(signal)) != 1:
        raise ShapeError(
            f"signals have shape {tuple(signal.shape)}; expected exactly one batch axis: signals.flatten(...) or [None]"
        )
    if truth is None:
        return signal, None
    with torch.no_grad():
        like = net(signal[:1])
    if isinstance(batch, Sample) and isinstance(like, Tensor):
        truth = cast(tuple[Tensor, ...], truth)[-1]
    if isinstance(truth, list):
        truth = tuple(truth)
    blocks = net.problem.pack(truth, signal)
    return signal, net.problem.unpack(blocks, (len(signal),))
