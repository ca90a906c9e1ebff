"""Handwritten digits: a small CNN trained with and without a penalty on its activations."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ..dictionaries.random import generator
from ..errors import missing_extra
from ..progress import Stages
from ..sparsity import ActivationPenalty, Probe, SparsityReport
from .settings import DemoSettings

_TEST = 597
_BATCH = 64
_RATE = 2e-3
_HEAD = "fc2"


@dataclass(frozen=True, eq=False)
class Runs:
    """Networks of one kind, one per seed.

    Attributes:
        weight: The weight of the penalty; 0 for none.
        accuracies: Share of test digits that are recognized.
        reports: Sparsity of the activations on the test digits.
    """

    weight: float
    accuracies: tuple[float, ...]
    reports: tuple[SparsityReport, ...]

    @property
    def mean(self) -> float:
        """The mean accuracy."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def spread(self) -> float:
        """The standard deviation of the accuracies."""
        variance = sum((a - self.mean) ** 2 for a in self.accuracies) / max(len(self.accuracies) - 1, 1)
        return math.sqrt(variance)

    def zeros(self, layer: str) -> float:
        """Return the mean share of zeros of one layer."""
        return sum(report[layer].zero_fraction for report in self.reports) / len(self.reports)

    @property
    def zero_fraction(self) -> float:
        """The mean share of zeros over all layers."""
        return sum(report.zero_fraction for report in self.reports) / len(self.reports)

    def summary(self) -> dict[str, Any]:
        """Return the numbers that JSON can hold."""
        return {
            "weight": self.weight,
            "accuracy": list(self.accuracies),
            "accuracy_mean": self.mean,
            "accuracy_spread": self.spread,
            "zero_fraction": self.zero_fraction,
            "reports": [report.to_dict() for report in self.reports],
        }


@dataclass(frozen=True, eq=False)
class DigitsResult:
    """What came of the digits.

    Attributes:
        train: Digits that were trained on.
        test: Digits that were not.
        plain: Networks trained without the penalty.
        sparse: Networks trained with it, from the same initial weights in the same order of batches.
    """

    train: int
    test: int
    plain: Runs
    sparse: Runs

    def summary(self) -> dict[str, Any]:
        """Return the numbers that JSON can hold."""
        return {
            "train": self.train,
            "test": self.test,
            "plain": self.plain.summary(),
            "sparse": self.sparse.summary(),
        }


def run_digits(settings: DemoSettings, seed: int, stages: Stages) -> DigitsResult:
    """Train small CNNs on the digits that ship with scikit-learn."""
    images, labels = _load()
    order = torch.randperm(len(images), generator=generator(seed))
    train, test = order[_TEST:], order[:_TEST]
    training, held_out = (images[train], labels[train]), (images[test], labels[test])
    kinds = []
    with _one_thread(), stages.stage("Training CNNs on digits") as advance:
        done = 0
        for weight in (0.0, settings.penalty):
            accuracies, reports = [], []
            for number in range(settings.seeds):
                net = _train(training, weight, settings.digit_epochs, seed + number)
                accuracy, report = _measure(net, held_out)
                accuracies.append(accuracy)
                reports.append(report)
                done += 1
                advance(done / (2 * settings.seeds))
            kinds.append(Runs(weight, tuple(accuracies), tuple(reports)))
    return DigitsResult(len(train), len(test), *kinds)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: for layers as small as these, several wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _load() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra("scikit-learn", "demo", "the digits of dsc demo") from None
    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(np.asarray(pixels, dtype=np.float32)).reshape(-1, 1, 8, 8) / 16
    return images, torch.as_tensor(np.asarray(labels, dtype=np.int64))


def _network(rng: torch.Generator) -> nn.Sequential:
    """Return an untrained CNN whose weights come from `rng` alone."""
    net = nn.Sequential(
        OrderedDict(
            conv1=skip_init(nn.Conv2d, 1, 16, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=skip_init(nn.Conv2d, 16, 32, 3, padding=1),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=skip_init(nn.Linear, 32 * 4 * 4, 64),
            relu3=nn.ReLU(),
            fc2=skip_init(nn.Linear, 64, 10),
        )
    )
    for name, module in net.named_children():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain = "linear" if name == _HEAD else "relu"
            nn.init.kaiming_uniform_(module.weight, nonlinearity=gain, generator=rng)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return net


def _train(data: tuple[Tensor, Tensor], weight: float, epochs: int, seed: int) -> nn.Sequential:
    rng = generator(seed)
    net = _network(rng)
    images, labels = data
    optimizer = torch.optim.Adam(net.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2 * _RATE, total_steps=epochs * math.ceil(len(images) / _BATCH)
    )
    with ActivationPenalty(net, targets=[nn.ReLU], weight=weight, measure=False) as penalty:
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=rng).split(_BATCH):
                loss = F.cross_entropy(net(images[batch]), labels[batch]) + penalty.value()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net


def _measure(net: nn.Sequential, data: tuple[Tensor, Tensor]) -> tuple[float, SparsityReport]:
    images, labels = data
    with torch.no_grad(), Probe(net, targets=[nn.ReLU]) as probe:
        right = net(images).argmax(1) == labels
    return float(right.double().mean()), probe.report()
