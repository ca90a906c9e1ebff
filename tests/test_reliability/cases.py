"""One small instance of every problem, with every solver that takes it: what the reliability tests run through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from strategies import normal, rng

F64: dict[str, Any] = {"dtype": torch.float64}
DENSE = dsc.DenseDictionary.random(8, 12, seed=0, **F64)
CONV = dsc.ConvDictionary.random(atoms=3, channels=1, size=3, seed=0, **F64)
MODEL = dsc.Cascade([DENSE, dsc.DenseDictionary.random(12, 14, seed=1, **F64)])
SIGNAL = normal(3, 8, generator=rng(0))
IMAGES = normal(2, 1, 6, 7, generator=rng(1))
SAME, RING = CONV.with_boundary("same"), CONV.with_boundary("circular")
CONV_MODEL = dsc.Cascade([CONV, dsc.ConvDictionary.random(atoms=4, channels=3, size=2, seed=1, **F64)])
# One per sample.
MASKS = torch.rand(3, 8, generator=rng(2), dtype=torch.float64) < 0.8
IMAGE_MASKS = torch.rand(2, 1, 6, 7, generator=rng(3), dtype=torch.float64) < 0.8
# One per sample and atom.
WEIGHTS = torch.rand(3, 12, generator=rng(4), dtype=torch.float64) + 0.5
GROUPS = ((0, 1, 2), (3, 4), (5, 6, 7, 8), (9,), (10, 11))


@dataclass(frozen=True)
class Case:
    """A problem that follows the scale of its signal, the signal, and a solver.

    Attributes:
        name: What pytest prints.
        build: Makes the problem for a signal of the given scale.
        signal: At scale 1.
        solver: Which solver, None for the one that is chosen.
        degree: The power of the scale with which the objective grows.
        tol: A relative gap that the solver reaches quickly.
    """

    name: str
    build: Callable[[float], dsc.Problem]
    signal: Tensor
    solver: Any
    degree: int = 2
    tol: float = 1e-8

    @property
    def problem(self) -> dsc.Problem:
        """The problem at scale 1."""
        return self.build(1.0)

    def solve(self, problem: dsc.Problem | None = None, signal: Tensor | None = None, **settings: Any) -> dsc.Solution:
        """Solve this case's problem and signal, or others, without a word about failures."""
        settings = {"tol": self.tol, "on_failure": "ignore", "max_steps": 20_000, **settings}
        problem = self.problem if problem is None else problem
        return dsc.solve(problem, self.signal if signal is None else signal, self.solver, **settings)


_FISTA, _CD, _CONV = dsc.FISTA(), dsc.CoordinateDescent(), dsc.ConvCoordinateDescent()
_ADMM, _JOINT = dsc.ADMM(), dsc.JointCoordinateDescent()


def _boxed(c: float) -> dsc.Problem:
    return dsc.Lasso(DENSE, 0.2 * c, box=(-0.3 * c, 0.5 * c))


def _masked(c: float) -> dsc.Problem:
    return dsc.Lasso(DENSE, 0.2 * c, mask=MASKS)


def _joint_images(c: float) -> dsc.Problem:
    return dsc.JointLasso(CONV_MODEL, (0.1 * c, 0.05 * c), beta=(1.0, 2.0))


CONVEX = (
    *(Case(f"lasso-{s.name}", lambda c: dsc.Lasso(DENSE, 0.2 * c), SIGNAL, s) for s in (_FISTA, _CD)),
    *(Case(f"lasso-conv-{s.name}", lambda c: dsc.Lasso(CONV, 0.2 * c), IMAGES, s) for s in (_FISTA, _CONV)),
    *(Case(f"joint-{s.name}", lambda c: dsc.JointLasso(MODEL, (0.1 * c, 0.05 * c)), SIGNAL, s) for s in (_FISTA, _CD)),
)
LAYERED = tuple(
    Case(f"layered-{s.name}", lambda c: dsc.LayeredLasso(MODEL, (0.1 * c, 0.05 * c)), SIGNAL, s) for s in (_FISTA, _CD)
)
PURSUITS = (
    *(Case(f"pursuit-{s.name}", lambda c: dsc.BasisPursuit(DENSE, 0.4 * c), SIGNAL, s, 1, 1e-6) for s in (_FISTA, _CD)),
    Case("pursuit-conv", lambda c: dsc.BasisPursuit(CONV, 2.0 * c), IMAGES, _CONV, 1, 1e-6),
)
# Problems and solvers that go beyond the plain Lasso. Most tests run through these too.
WIDER = (
    Case("lasso-ADMM", lambda c: dsc.Lasso(DENSE, 0.2 * c), SIGNAL, _ADMM, tol=1e-7),
    Case("lasso-conv-ADMM", lambda c: dsc.Lasso(CONV, 0.2 * c), IMAGES, _ADMM, tol=1e-6),
    Case("lasso-ring-ADMM", lambda c: dsc.Lasso(RING, 0.2 * c), IMAGES, _ADMM, tol=1e-6),
    Case("lasso-Homotopy", lambda c: dsc.Lasso(DENSE, 0.2 * c), SIGNAL, dsc.Homotopy()),
    Case("masks-CoordinateDescent", _masked, SIGNAL, _CD),
    Case("same-ConvCoordinateDescent", lambda c: dsc.Lasso(SAME, 0.2 * c), IMAGES, _CONV),
    Case("masks-ConvCoordinateDescent", lambda c: dsc.Lasso(CONV, 0.2 * c, mask=IMAGE_MASKS), IMAGES, _CONV),
    Case("box-FISTA", _boxed, SIGNAL, _FISTA, tol=1e-7),
    Case("box-ADMM", _boxed, SIGNAL, _ADMM, tol=1e-6),
    Case("ridge-CoordinateDescent", lambda c: dsc.Lasso(DENSE, 0.2 * c, ridge=0.1), SIGNAL, _CD),
    Case("ridge-ADMM", lambda c: dsc.Lasso(DENSE, 0.2 * c, ridge=0.1), SIGNAL, _ADMM, tol=1e-7),
    Case("groups-FISTA", lambda c: dsc.Lasso(DENSE, 0.3 * c, groups=GROUPS), SIGNAL, _FISTA, tol=1e-7),
    Case("joint-conv-JointCoordinateDescent", _joint_images, IMAGES, _JOINT, tol=1e-7),
    Case("joint-conv-chosen", _joint_images, IMAGES, None, tol=1e-7),
)
FAMILY = tuple(
    Case(f"few-atoms-{name}", lambda c: dsc.SparseApproximation(DENSE, 3), SIGNAL, solver)
    for name, solver in {
        "forward": dsc.OMP(forward=True),
        "SubspacePursuit": dsc.SubspacePursuit(),
        "CoSaMP": dsc.CoSaMP(),
        "IHT": dsc.IHT(),
    }.items()
)
GREEDY = (
    Case("few-atoms", lambda c: dsc.SparseApproximation(DENSE, 3), SIGNAL, dsc.OMP()),
    Case("few-atoms-within", lambda c: dsc.SparseApproximation(DENSE, epsilon=0.4 * c), SIGNAL, dsc.OMP(), 0),
    Case("few-atoms-exact", lambda c: dsc.SparseApproximation(DENSE, 2), SIGNAL, dsc.Exhaustive()),
)
WITH_GAP = CONVEX + LAYERED + PURSUITS + WIDER
CASES = WITH_GAP + GREEDY + FAMILY


def each(cases: tuple[Case, ...]) -> pytest.MarkDecorator:
    """Return the decorator that runs a test with `case` being every one of these."""
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def blocks(codes: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return codes as a tuple."""
    return codes if isinstance(codes, tuple) else (codes,)


def only(solution: dsc.Solution) -> Tensor:
    """Return the codes of a problem that has a single layer."""
    assert isinstance(solution.codes, Tensor)
    return solution.codes
