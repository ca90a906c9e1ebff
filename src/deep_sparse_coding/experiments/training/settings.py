"""How a network of the experiments is trained, and how it is made sparse: frozen settings, checked when made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...checks import check_flag, require_integer, require_number
from ...errors import ParameterError, near_misses

OPTIMIZERS = ("sgd", "adamw")
RATES = ("one-cycle", "cosine", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
AUGMENTATIONS = ("none", "flip", "crop-flip")
KINDS = ("none", "fixed", "target")
FORMS = ("l1", "hoyer", "group", "transformed")
LAYERS = ("all", "early", "late", "last")
SCHEDULES = ("constant", "warm-up", "late-start", "cosine", "decay")

# A one-cycle schedule rises over this share of the steps, from this share of the highest rate.
_RISE, _FIRST = 0.3, 1 / 25


@dataclass(frozen=True)
class TrainSettings:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training samples.
        batch: Samples per step, over all processes together. What is left over at an epoch's end waits for the next,
            whose order is another.
        optimizer: "sgd" (with Nesterov's momentum) or "adamw".
        lr: The highest learning rate.
        momentum: Of "sgd"; for "adamw" the first of its two decay rates.
        weight_decay: Of all weights.
        schedule: "one-cycle" (up over the first 30 % of the steps, then down to 0 along a cosine), "cosine" or
            "constant".
        precision: "32-true", "bf16-mixed" or "16-mixed".
        augmentation: "none", "flip" (left to right) or "crop-flip" (also moved by up to an eighth of the side).
        label_noise: The share of training labels that are replaced by another class, drawn from the seed.
        threads: Threads of torch; 0 leaves them as they are. Resuming to the same bits needs the same number.
        log_every: Epochs from one measurement on the validation split to the next; the last epoch is always measured.
        tensorboard: Write scalars for TensorBoard too.
        accelerator: "auto", "cpu" or "cuda".

    Raises:
        ParameterError: A setting is unknown or out of range.
    """

    epochs: int = 20
    batch: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    precision: str = "32-true"
    augmentation: str = "none"
    label_noise: float = 0.0
    threads: int = 0
    log_every: int = 1
    tensorboard: bool = False
    accelerator: str = "auto"

    def __post_init__(self) -> None:
        require_integer("epochs", self.epochs, minimum=1)
        require_integer("batch", self.batch, minimum=1)
        require_number("lr", self.lr, minimum=0, strict=True)
        require_number("momentum", self.momentum, minimum=0, maximum=1 - 1e-9)
        require_number("weight_decay", self.weight_decay, minimum=0)
        require_number("label_noise", self.label_noise, minimum=0, maximum=1)
        require_integer("threads", self.threads, minimum=0)
        require_integer("log_every", self.log_every, minimum=1)
        check_flag("tensorboard", self.tensorboard)
        require_word("optimizer", self.optimizer, OPTIMIZERS)
        require_word("schedule", self.schedule, RATES)
        require_word("precision", self.precision, PRECISIONS)
        require_word("augmentation", self.augmentation, AUGMENTATIONS)
        require_word("accelerator", self.accelerator, ("auto", "cpu", "cuda"))

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step, counted from 0, among `steps`."""
        if self.schedule == "constant":
            return self.lr
        share = step / steps
        if self.schedule == "one-cycle":
            if share < _RISE:
                return self.lr * (_FIRST + (1 - _FIRST) * (1 - math.cos(math.pi * share / _RISE)) / 2)
            share = (share - _RISE) / (1 - _RISE)
        return self.lr * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class PenaltySettings:
    """How the activations are made sparse: ``loss + ω(step) · Σ_j form(x_j)`` over the chosen layers.

    Attributes:
        kind: "none"; "fixed", with the weight ω; or "target", where ω is moved until `target` is reached.
        weight: ω, for "fixed".
        target: The share of zeros to reach over all chosen layers, for "target".
        form: "l1", "hoyer" (ℓ1/ℓ2), "group" (channels) or "transformed" (ℓ1).
        per_entry: ω multiplies the mean over a layer's entries instead of the sum per sample, so that layers of
            different sizes count alike.
        layers: "all" activations, the "early" or "late" half of them, or the "last".
        schedule: Of ω, for "fixed": "constant"; "warm-up" (from 0 over the first `share` of the steps); "late-start"
            (0 for the first `share`); "cosine" (down to 0 over the first `share`); "decay" (constant for half of
            `share`, then down to 0 in a straight line until `share`).
        share: The share of the steps that the schedule speaks of.

    Raises:
        ParameterError: A setting is unknown or out of range, or contradicts `kind`.
    """

    kind: str = "none"
    weight: float = 0.0
    target: float = 0.0
    form: str = "l1"
    per_entry: bool = True
    layers: str = "all"
    schedule: str = "constant"
    share: float = 0.5

    def __post_init__(self) -> None:
        require_word("kind", self.kind, KINDS)
        require_word("form", self.form, FORMS)
        require_word("layers", self.layers, LAYERS)
        require_word("schedule", self.schedule, SCHEDULES)
        check_flag("per_entry", self.per_entry)
        require_number("weight", self.weight, minimum=0)
        require_number("target", self.target, minimum=0, maximum=1 - 1e-9)
        require_number("share", self.share, minimum=0, maximum=1, strict=True)
        if self.kind == "fixed" and self.weight == 0:
            raise ParameterError("weight is 0 with kind 'fixed'; expected a positive weight, or kind 'none'")
        if self.kind != "fixed" and self.weight != 0:
            raise ParameterError(f"weight is {self.weight} with kind {self.kind!r}; expected kind 'fixed', or weight 0")
        if self.kind == "target" and self.target == 0:
            raise ParameterError("target is 0 with kind 'target'; expected a share of zeros above 0, such as 0.8")
        if self.kind != "target" and self.target != 0:
            raise ParameterError(
                f"target is {self.target} with kind {self.kind!r}; expected kind 'target', or target 0"
            )
        if self.kind == "target" and self.schedule != "constant":
            raise ParameterError(
                f"schedule is {self.schedule!r} with kind 'target', whose weight moves by itself; expected 'constant'"
            )


def require_word(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise unless `value` is one of the known words.

    Raises:
        ParameterError: It is not; near misses are named.
    """
    if value not in known:
        raise ParameterError(
            f"{name} is {value!r}; expected {' or '.join(map(repr, known))}{near_misses(str(value), known)}"
        )
