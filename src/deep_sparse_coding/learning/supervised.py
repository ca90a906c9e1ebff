"""Task-driven learning: atoms and a linear classifier fitted together, through the codes, to labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deep_sparse_coding.checks import check_flag, require_float_tensor, require_integer, require_number
from deep_sparse_coding.dictionaries import DenseDictionary
from deep_sparse_coding.dictionaries.random import generator
from deep_sparse_coding.errors import DictionaryError, DtypeError, ParameterError, ShapeError
from deep_sparse_coding.problems import Lasso
from deep_sparse_coding.solvers import solve
from deep_sparse_coding.solvers.gradients import attach_gradients
from deep_sparse_coding.solvers.solve import solve_quietly

# Codes in training are this near to their optimum, and those of predictions.
_TOL, _TOL_PREDICT = 1e-4, 1e-5
_STEPS = 10_000


@dataclass(frozen=True)
class SupervisedProgress:
    """What a callback sees after every epoch.

    Attributes:
        epoch: The epoch that has ended, counted from 1.
        epochs: How many there are.
        loss: The mean cross-entropy over the epoch.
        accuracy: The share of samples that were right as they came by.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class SupervisedResult:
    """A dictionary and a linear classifier of its codes.

    Attributes:
        model: The dictionary.
        weight: ``(classes, atoms)``.
        bias: ``(classes,)``.
        lam: The weight of the ℓ1 norm.
        nonnegative: Whether codes are held at or above zero.
        loss: The mean cross-entropy of every epoch.
        accuracy: The share that was right in every epoch, as samples came by.
    """

    model: DenseDictionary
    weight: Tensor
    bias: Tensor
    lam: float
    nonnegative: bool
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]

    def encode(self, signals: Tensor) -> Tensor:
        """Return the codes of signals ``(n, d)``."""
        problem = Lasso(self.model, self.lam, nonnegative=self.nonnegative)
        codes = solve(problem, signals, tol=_TOL_PREDICT).codes
        assert isinstance(codes, Tensor), "one dictionary has one tensor of codes"
        return codes

    def predict(self, signals: Tensor) -> Tensor:
        """Return the most likely class of signals ``(n, d)``, int64."""
        return (self.encode(signals) @ self.weight.T + self.bias).argmax(1)


def learn_supervised(
    signals: Tensor,
    labels: Tensor,
    start: DenseDictionary,
    *,
    lam: float,
    seed: int,
    epochs: int = 15,
    batch: int = 64,
    rate: float = 0.05,
    decay: float = 1e-4,
    nonnegative: bool = False,
    freeze_atoms: bool = False,
    callback: Callable[[SupervisedProgress], object] | None = None,
) -> SupervisedResult:
    """Fit atoms and a linear classifier of the codes to labels: ``min_{D,W} E[ℓ(t, W x(y, D))] + (decay/2)‖W‖²``.

    Codes ``x(y, D)`` are solutions of the Lasso, and gradients reach the atoms through their optimality conditions, not
    through the steps of a solver. The classifier is fitted first, with the atoms held, so that the atoms do not follow
    what an untrained one asks for. Rates fall along half a cosine; atoms are scaled to unit norm after every step.

    Args:
        signals: ``(n, d)``, float32 or float64.
        labels: Classes from 0, ``(n,)``, integers.
        start: Where atoms begin, such as those that `learn` finds without labels.
        lam: The weight of the ℓ1 norm.
        seed: Of the order of the samples.
        epochs: Passes over the data in which atoms move.
        batch: Samples per step.
        rate: The first learning rate of Adam for the classifier; atoms go at a tenth of it.
        decay: Of the classifier's weights.
        nonnegative: Hold the codes at or above zero.
        freeze_atoms: Hold the atoms and fit the classifier alone, for comparison: the same epochs and rates.
        callback: Called after every epoch with a `SupervisedProgress`; True ends the work.

    Returns:
        A `SupervisedResult`.

    Raises:
        DSCError: Signals, labels or a start that do not fit together; settings out of range.

    Source: Mairal, Bach & Ponce 2012 (task-driven dictionary learning).
    """
    signals = require_float_tensor("signals", signals).detach()
    if not isinstance(start, DenseDictionary):
        raise DictionaryError(f"start is a {type(start).__name__}; expected a dsc.DenseDictionary")
    start.check_signal(signals)
    classes = _check_labels(labels, signals)
    lam = require_number("lam", lam, minimum=0.0, strict=True)
    epochs, batch = require_integer("epochs", epochs, minimum=1), require_integer("batch", batch, minimum=1)
    rate = require_number("rate", rate, minimum=0.0, strict=True)
    decay = require_number("decay", decay, minimum=0.0)
    nonnegative, freeze_atoms = check_flag("nonnegative", nonnegative), check_flag("freeze_atoms", freeze_atoms)
    rng = generator(seed)
    dictionary = DenseDictionary(start.weight.detach().clone(), normalize=True)
    codes = _codes(dictionary, signals, lam, nonnegative)
    # Codes on one scale: what the classifier's rate means does not depend on the signals'.
    spread = float(codes.square().sum(1).mean().sqrt())
    if not spread > 0:
        raise ParameterError(f"lam is {lam:g} and leaves every code zero; expected a smaller one")
    weight = torch.zeros(classes, start.atoms, dtype=signals.dtype, device=signals.device, requires_grad=True)
    bias = torch.zeros(classes, dtype=signals.dtype, device=signals.device, requires_grad=True)
    _fit_classifier(codes / spread, labels, weight, bias, decay)
    atoms = dictionary.matrix.requires_grad_(not freeze_atoms)
    groups = [{"params": [weight, bias], "lr": 0.1 * rate}]
    if not freeze_atoms:
        groups.append({"params": [atoms], "lr": 0.1 * rate})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    steps = epochs * -(-len(signals) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, rights = [], []
    for epoch in range(epochs):
        total, right = 0.0, 0
        order = torch.randperm(len(signals), generator=rng).to(signals.device)
        for rows in order.split(batch):
            x = codes[rows] if freeze_atoms else _codes(dictionary, signals[rows], lam, nonnegative)
            scores = (x / spread) @ weight.T + bias
            loss = F.cross_entropy(scores, labels[rows])
            optimizer.zero_grad()
            (loss + 0.5 * decay * weight.square().sum()).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                atoms /= torch.linalg.vector_norm(atoms, dim=0)
            total += float(loss.detach()) * len(rows)
            right += int((scores.detach().argmax(1) == labels[rows]).sum())
        losses.append(total / len(signals))
        rights.append(right / len(signals))
        seen = SupervisedProgress(epoch + 1, epochs, losses[-1], rights[-1])
        if callback is not None and callback(seen) is True:
            break
    model = DenseDictionary(dictionary.matrix.detach().clone())
    if not freeze_atoms:
        # The classifier of the last atoms, as good as it gets: that of the steps lags behind them.
        _fit_classifier(_codes(model, signals, lam, nonnegative) / spread, labels, weight, bias, decay)
    scaled = weight.detach() / spread
    return SupervisedResult(model, scaled, bias.detach(), lam, nonnegative, tuple(losses), tuple(rights))


def _codes(dictionary: DenseDictionary, signals: Tensor, lam: float, nonnegative: bool) -> Tensor:
    problem = Lasso(dictionary, lam, nonnegative=nonnegative)
    codes = solve_quietly(problem, signals, None, tol=_TOL, max_steps=_STEPS).codes
    if dictionary.matrix.requires_grad:
        codes = attach_gradients(problem, signals, codes)
    assert isinstance(codes, Tensor), "one dictionary has one tensor of codes"
    return codes


def _fit_classifier(codes: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, decay: float) -> None:
    """Fit a linear classifier to fixed codes, in place, from where it is."""
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")
    codes = codes.detach()

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(codes @ weight.T + bias, labels) + 0.5 * decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(evaluate)


def _check_labels(labels: object, signals: Tensor) -> int:
    """Return the number of classes.

    Raises:
        DtypeError: No tensor of integers.
        ParameterError: A negative label, or all the same.
        ShapeError: Not one per signal.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise DtypeError(f"labels is {kind}; expected a tensor of int64, a class from 0 for every signal")
    if labels.shape != signals.shape[:1]:
        raise ShapeError(f"labels has shape {tuple(labels.shape)}; expected ({len(signals)},), one for every signal")
    if int(labels.min()) < 0 or int(labels.min()) == int(labels.max()):
        raise ParameterError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; expected two classes or more, counted from 0"
        )
    return int(labels.max()) + 1
