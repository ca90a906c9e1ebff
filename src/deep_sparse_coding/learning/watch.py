"""What is seen while a layer is learned: its record, the objective on held-out data, when to stop, time left."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from deep_sparse_coding.dictionaries import Dictionary
from deep_sparse_coding.errors import DSCWarning
from deep_sparse_coding.problems import Lasso
from deep_sparse_coding.solvers.solve import solve_quietly

from .result import LearningProgress

# The relative gap of held-out codes: far below what one epoch changes.
_TOL = 1e-3
_STEPS = 1000
# Progress below this share of the objective counts as none.
_FALL = 1e-3
# An objective that has risen by more than this share is more than rounding.
_RISE = 1e-5


@dataclass
class LayerRecord:
    """What every epoch left: objective, share of non-zeros, atoms replaced, seconds, objective on held-out data."""

    objective: list[float] = field(default_factory=list)
    density: list[float] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    heldout: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    value: float
    density: float
    replaced: int


class Watch:
    """The eye on one layer.

    Args:
        layer: Its number, from 0.
        epochs: Of every layer.
        lam: The weight of the ℓ1 norm.
        nonnegative: Whether codes are held at or above zero.
        heldout: Signals that are not learned from, in groups of one shape; none for none.
        patience: Epochs without progress that end the layer; None never does.
        callback: Called after every epoch; True ends the layer.
    """

    def __init__(
        self,
        layer: int,
        epochs: Sequence[int],
        lam: float,
        nonnegative: bool,
        heldout: list[Tensor],
        patience: int | None,
        callback: Callable[[LearningProgress], object] | None,
    ) -> None:
        self.record = LayerRecord()
        self._layer, self._epochs, self._heldout = layer, tuple(epochs), heldout
        self._lam, self._nonnegative = lam, nonnegative
        self._patience, self._callback = patience, callback
        self._began = time.perf_counter()
        self.over = False

    def resume(self, record: LayerRecord, over: bool) -> None:
        """Go on from a record, whose seconds have been spent."""
        self.record, self.over = record, over
        self._began -= record.seconds[-1] if record.seconds else 0.0

    def note(self, dictionary: Dictionary, epoch: Epoch) -> None:
        """Write an epoch down."""
        record = self.record
        record.objective.append(epoch.value)
        record.density.append(epoch.density)
        record.replaced.append(epoch.replaced)
        if self._heldout:
            record.heldout.append(self._evaluate(dictionary))
        record.seconds.append(time.perf_counter() - self._began)

    def warn_of_rise(self) -> None:
        """Warn if the objective of a batch has risen, which only rounding can do."""
        values = self.record.objective
        if len(values) > 1 and values[-1] > values[-2] * (1 + _RISE):
            warnings.warn(
                f"the objective rose from {values[-2]:.6g} to {values[-1]:.6g} in epoch {len(values)}, which only "
                "rounding can do; expected it to fall: learn in float64 (dtype=torch.float64)",
                DSCWarning,
                stacklevel=4,
            )

    def judge(self) -> None:
        """Set `over` if the layer is to end: by its epochs, for want of progress, or because the callback says so."""
        record, epochs = self.record, self._epochs
        done = len(record.objective)
        stop = done >= epochs[self._layer] or self._has_stalled()
        self.over = stop
        if self._callback is None:
            return
        ahead = 0 if stop else epochs[self._layer] - done
        left = record.seconds[-1] / done * (ahead + sum(epochs[self._layer + 1 :]))
        seen = LearningProgress(
            self._layer + 1,
            len(epochs),
            done,
            epochs[self._layer],
            record.objective[-1],
            record.density[-1],
            record.heldout[-1] if record.heldout else math.nan,
            record.seconds[-1],
            left,
        )
        self.over = self._callback(seen) is True or stop

    def _has_stalled(self) -> bool:
        values = self.record.heldout or self.record.objective
        if self._patience is None or len(values) <= self._patience:
            return False
        before, since = values[: -self._patience], values[-self._patience :]
        return min(since) > min(before) * (1 - _FALL)

    def _evaluate(self, dictionary: Dictionary) -> float:
        """Return the objective of the held-out data, codes solved for."""
        problem = Lasso(dictionary, self._lam, nonnegative=self._nonnegative)
        value = 0.0
        for signal in self._heldout:
            # From zero, so that a run that was resumed sees the same numbers.
            solution = solve_quietly(problem, signal, None, tol=_TOL, max_steps=_STEPS)
            value += float(solution.certificate.objective.sum())
        return value
