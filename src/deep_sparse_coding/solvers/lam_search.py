"""One lam for a batch of signals: chosen by how many non-zeros the codes may have, or by how noisy the signals are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_integer, require_number
from deep_sparse_coding.dictionaries import Dictionary
from deep_sparse_coding.errors import DSCWarning, ParameterError, ShapeError
from deep_sparse_coding.problems import Lasso

from .base import Solver
from .path import nonzero_share, residual_norms
from .solution import Solution
from .solve import solve_quietly

# Below this share of lam_max a target counts as out of reach.
_FLOOR = 1e-5
# Density jumps where many entries come in at once: a bracket this tight holds no better lam.
_TIGHT = 1.0 + 1e-4
# One step down takes lam to no less than this share of itself: warm starts stay near.
_LARGEST_STEP = 0.125


class ChosenLam(float):
    """A lam that knows why it was chosen. Used like any number; ``str`` says what was asked for and reached.

    Attributes:
        density: The share of code entries that are not zero at this lam, over all samples.
        noise: The root mean square of ``y - D x`` over all observed entries of all samples.
        solution: The solution at this lam, a start for others.
        solves: How many problems were solved to find it.
    """

    def __new__(
        cls, value: float, *, asked: str, density: float, noise: float, solution: Solution, solves: int
    ) -> ChosenLam:
        """Return the number with its story."""
        chosen = super().__new__(cls, value)
        chosen._asked, chosen._density, chosen._noise = asked, density, noise
        chosen._solution, chosen._solves = solution, solves
        return chosen

    _asked: str
    _density: float
    _noise: float
    _solution: Solution
    _solves: int

    @property
    def density(self) -> float:
        """The share of code entries that are not zero."""
        return self._density

    @property
    def noise(self) -> float:
        """The root mean square of the residual per observed entry."""
        return self._noise

    @property
    def solution(self) -> Solution:
        """The solution at this lam."""
        return self._solution

    @property
    def solves(self) -> int:
        """How many problems were solved."""
        return self._solves

    def __str__(self) -> str:
        return (
            f"lam = {float(self):.6g} for {self._asked} · reached density {self._density:.4g}, noise "
            f"{self._noise:.4g} · {self._solves} solves"
        )

    def __repr__(self) -> str:
        return float.__repr__(self)

    def __format__(self, spec: str) -> str:
        return float(self).__format__(spec)

    def __reduce__(self) -> tuple[Callable[..., ChosenLam], tuple[Any, ...]]:
        return _restore, (float(self), self._asked, self._density, self._noise, self._solution, self._solves)


def choose_lam(
    dictionary: Dictionary,
    signal: Tensor,
    *,
    density: float | None = None,
    noise: float | None = None,
    accuracy: float = 0.01,
    weights: Tensor | None = None,
    nonnegative: bool = False,
    mask: Tensor | None = None,
    solver: Solver[Any] | None = None,
    tol: float = 1e-5,
    max_steps: int = 10_000,
    max_solves: int = 60,
) -> ChosenLam:
    """Return the lam of a `Lasso`, one for the whole batch, that meets a target of density or of noise.

    With ``density`` the share of non-zero code entries over all samples, ``Σ‖x_i‖₀ / (samples·entries)``, comes within
    `accuracy` (relative) of it; where it jumps past the target, the lam on the nearer side of the jump is returned.
    With ``noise``, the standard deviation of the noise per entry, the residual has that size, the discrepancy
    principle: ``Σ‖M(y_i - D x_i)‖² = noise²·n``, n the number of observed entries of all samples together. So it holds
    on average over the samples (of one sample ``‖y - D x‖ = noise·√n``), again within `accuracy` of it.

    The residual norm ρ(λ) never falls and ρ(λ)/λ never rises with λ, so ``λ·ε/ρ(λ)`` stays on its side of the solution;
    between these bounds a secant in λ² is exact while the support stays. All solves start from the codes of the last.

    Args:
        dictionary: D, dense or convolutional.
        signal: ``(*batch, ...)``, finite.
        density: Above 0 and at most 1; this or `noise`, not both.
        noise: Above 0.
        accuracy: How near to come, relative to the target.
        weights: As in `Lasso`, as are `nonnegative` and `mask`.
        nonnegative: Hold the codes at or above zero.
        mask: True or 1 where the signal was observed.
        solver: As for `solve`.
        tol: The relative gap of every solution; residuals are known to about its root.
        max_steps: The most steps of every solution.
        max_solves: The most solutions; then the nearest lam is returned, with a warning.

    Raises:
        ParameterError: Both targets or none, one out of range, or one that no lam reaches; the message says what is.

    Source: G6 of docs/theory.md; discrepancy principle, Morozov 1966.
    """
    if (density is None) == (noise is None):
        given = "neither" if density is None else "both"
        raise ParameterError(f"{given} of density and noise given; expected one: density=0.05, or noise=0.02")
    accuracy = require_number("accuracy", accuracy, minimum=0.0, strict=True)
    max_solves = require_integer("max_solves", max_solves, minimum=1)
    top = Lasso(dictionary, 1.0, weights, nonnegative, mask)
    signal = top.check_signal(signal).detach()
    with torch.no_grad():
        search = _Search(top, signal, solver, tol, max_steps, max_solves, accuracy, _largest_lam(top, signal), [])
        if density is not None:
            target = require_number("density", density, minimum=0.0, maximum=1.0, strict=True)
            best = search.by_density(target)
            asked = f"density {target:g}"
        else:
            target = require_number("noise", noise, minimum=0.0, strict=True)
            best = search.by_noise(target)
            asked = f"noise {target:g}"
    # What was reached must not be silent where it is not what was asked for, nor proved.
    reached = best.density if density is not None else best.noise
    if abs(reached / target - 1) > accuracy and (noise is not None or len(search.points) >= max_solves):
        warnings.warn(
            f"{asked} was not met within {accuracy:.2g} after {len(search.points)} solves, {reached:.4g} was reached; "
            "raise max_solves or accuracy, or have the problems solved better (tol, max_steps)",
            DSCWarning,
            stacklevel=2,
        )
    failed = (~best.solution.converged.flatten()).nonzero().flatten().tolist()
    if failed:
        warnings.warn(
            f"{len(failed)} of {len(best.solution.status)} samples did not converge at the lam that was chosen; sample "
            f"{failed[0]}: {best.solution.message(failed[0])}",
            DSCWarning,
            stacklevel=2,
        )
    return ChosenLam(
        best.lam,
        asked=asked,
        density=best.density,
        noise=best.noise,
        solution=best.solution,
        solves=len(search.points),
    )


@dataclass(frozen=True, eq=False)
class _Point:
    """What was found at one lam."""

    lam: float
    density: float
    noise: float
    solution: Solution


@dataclass(frozen=True, eq=False)
class _Search:
    """The search for one lam.

    Attributes:
        problem: The Lasso, at lam 1.
        signal: Checked and finite.
        solver: As for `solve`, as are `tol` and `max_steps`.
        tol: The relative gap.
        max_steps: The most steps.
        max_solves: The most points.
        accuracy: Relative to the target.
        largest: The lam_max of the whole batch.
        points: What has been found, in the order of the solves.
    """

    problem: Lasso
    signal: Tensor
    solver: Solver[Any] | None
    tol: float
    max_steps: int
    max_solves: int
    accuracy: float
    largest: float
    points: list[_Point]

    def look(self, lam: float) -> _Point:
        """Solve at `lam`, starting from the codes of the last."""
        p = self.problem
        problem = Lasso(p.dictionary, lam, p.weights, p.nonnegative, p.mask)
        start = self.points[-1].solution.codes if self.points else None
        solution = solve_quietly(problem, self.signal, self.solver, tol=self.tol, max_steps=self.max_steps, start=start)
        codes = cast(Tensor, solution.codes)
        density = float(nonzero_share(codes, len(problem.batch_shape(self.signal))).mean())
        self.points.append(_Point(lam, density, self.size(residual_norms(problem, self.signal, codes)), solution))
        return self.points[-1]

    def size(self, norms: Tensor) -> float:
        """Return the root mean square per observed entry, of residual norms per sample."""
        return math.sqrt(float(norms.square().sum()) / observed(self.problem, self.signal))

    def by_density(self, target: float) -> _Point:
        """Return the point of the density nearest to `target`."""
        entries = math.prod(self.problem.code_shape(self.signal))
        samples = max(1, math.prod(self.problem.batch_shape(self.signal)))
        most = observed(self.problem, self.signal) / samples / entries
        if target > max(most, 1 / entries) * (1 + self.accuracy):
            raise ParameterError(
                f"density is {target:g}; expected at most {most:.4g}: a code needs no more non-zeros than its signal "
                f"has observed entries, and it has {entries} entries"
            )
        high, low = None, None  # the points of larger and of smaller lam around the target
        lam = 0.5 * self.largest
        while len(self.points) < self.max_solves:
            point = self.look(lam)
            if abs(point.density - target) <= self.accuracy * target:
                return point
            if point.density < target:
                high = point
            else:
                low = point
            if low is None:
                if lam <= _FLOOR * self.largest:
                    raise ParameterError(
                        f"density is {target:g} and cannot be reached: at lam = {lam:.3g}, {_FLOOR:g} of lam_max, it "
                        f"is {point.density:.4g}; expected at most that"
                    )
                lam = max(_FLOOR * self.largest, 0.5 * lam)
                continue
            above = (self.largest, 0.0) if high is None else (high.lam, high.density)
            # Nothing lies between two counts that differ by one entry of one sample.
            if above[0] / low.lam <= _TIGHT or low.density - above[1] < 1.5 / (entries * samples):
                break
            share = (target - above[1]) / (low.density - above[1])
            # A false position that stays well inside, so that the bracket shrinks on both sides.
            lam = above[0] * (low.lam / above[0]) ** min(max(share, 0.2), 0.8)
        return min(self.points, key=lambda point: abs(point.density - target))

    def by_noise(self, target: float) -> _Point:
        """Return the point whose residual is of the size nearest to `target`.

        Source: G6 of docs/theory.md.
        """
        zero = torch.zeros(self.problem.batch_shape(self.signal) + self.problem.code_shape(self.signal))
        whole = self.size(residual_norms(self.problem, self.signal, zero.to(self.signal)))
        if target >= whole:
            raise ParameterError(
                f"noise is {target:g}; expected less than {whole:.4g}, the root mean square of the signal itself: zero "
                "codes already leave no larger residual"
            )
        # The nearest lams found with too large and with too small a residual, and the residuals' sizes.
        above, below, other = (self.largest, whole), None, (self.largest, whole)
        lam = self.largest * target / whole
        while len(self.points) < self.max_solves:
            point = self.look(lam)
            if abs(point.noise / target - 1) <= self.accuracy:
                return point
            if point.noise > target:
                if lam <= _FLOOR * self.largest:
                    raise ParameterError(
                        f"noise is {target:g} and cannot be reached: at lam = {lam:.3g}, {_FLOOR:g} of lam_max, the "
                        f"residual is still {point.noise:.4g} per entry; expected more than that"
                    )
                above, other = (lam, point.noise), below or above
            else:
                below, other = (lam, point.noise), above
            if below is not None and above[0] / below[0] <= 1 + 1e-9:
                break
            bisect = below is not None and len(self.points) % 3 == 0  # a secant alone may creep from one side
            guess = math.nan if bisect else _secant((lam, point.noise), other, target)
            lam = max(_step(guess, above, below, target), _FLOOR * self.largest)
        return min(self.points, key=lambda point: abs(point.noise - target))


def observed(problem: Lasso, signal: Tensor) -> float:
    """Return the number of entries of all samples that a mask lets through."""
    if problem.mask is None:
        return float(signal.numel())
    return float((problem.mask > 0).expand(signal.shape).sum())


def _step(guess: float, above: tuple[float, float], below: tuple[float, float] | None, target: float) -> float:
    """Return the next lam: the guess, where it respects the bounds of G6 from the points on both sides."""
    high = above[0] * target / above[1]  # never past the solution, coming from above
    if below is None:
        if _LARGEST_STEP * high < guess < high:
            return guess
        # Where the bound hardly falls, the target lies near the least residual that there is.
        return high if high < 0.8 * above[0] else 0.5 * high
    low = below[0] * target / below[1] if below[1] > 0 else below[0]
    if not low < high:  # the solutions are not exact enough for the bounds
        low, high = below[0], above[0]
    return guess if low <= guess <= high else math.sqrt(low * high)


def _secant(first: tuple[float, float], second: tuple[float, float], target: float) -> float:
    """Return the lam at which ``ρ²``, linear in ``lam²`` through two points, is ``target²``; NaN if there is none."""
    slope = (first[1] ** 2 - second[1] ** 2) / (first[0] ** 2 - second[0] ** 2) if first[0] != second[0] else 0.0
    square = first[0] ** 2 + (target**2 - first[1] ** 2) / slope if slope > 0 else math.nan
    return math.sqrt(square) if square > 0 else math.nan


def _largest_lam(problem: Lasso, signal: Tensor) -> float:
    """Return the largest lam_max of the batch.

    Raises:
        ShapeError: An empty batch.
        ParameterError: Samples that are not finite, or nothing but zeros.
    """
    if not signal.numel():
        raise ShapeError(f"signal has shape {tuple(signal.shape)} and no entries; expected at least one sample")
    axes = len(problem.batch_shape(signal))
    bad = int((~torch.isfinite(signal)).flatten(axes).any(-1).sum())
    if bad:
        raise ParameterError(
            f"signal has {bad} samples that are not finite; expected finite ones: remove or repair them"
        )
    largest = float(problem.lam_max(signal).max())
    if not largest > 0:
        raise ParameterError(
            "lam_max of the signal is 0, so that its codes are zero whatever lam; expected a signal that atoms explain"
        )
    return largest


def _restore(value: float, asked: str, density: float, noise: float, solution: Solution, solves: int) -> ChosenLam:
    return ChosenLam(value, asked=asked, density=density, noise=noise, solution=solution, solves=solves)
