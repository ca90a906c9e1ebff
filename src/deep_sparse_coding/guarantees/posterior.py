"""What is certain about the minimizer, given any codes: zeros, support, signs, uniqueness, distance. Statement G5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from deep_sparse_coding.errors import ParameterError, UnsupportedError
from deep_sparse_coding.problems import (
    BasisPursuit,
    Codes,
    ConvexProblem,
    LayeredBasisPursuit,
    LayeredLasso,
    Problem,
)

from .analysis import Analysis, analyze
from .guarantee import rounded_up
from .places import Intervals
from .polish import Polished, join
from .pursuit import analyze_pursuit
from .widen import widen

SOURCE = "G5 of docs/theory.md; gap-safe spheres: Ndiaye, Fercoq, Gramfort & Salmon 2017"


@runtime_checkable
class HasCodes(Protocol):
    """What a posterior is about: a solution of `solve`, or `CertifiedCodes`."""

    @property
    def problem(self) -> Problem:
        """What is minimized."""
        ...

    @property
    def signal(self) -> Tensor:
        """For which signal."""
        ...

    @property
    def codes(self) -> Codes:
        """Codes, near the minimizer or not."""
        ...


@dataclass(frozen=True, eq=False)
class Posterior:
    """What is proved about the minimizer x* from codes x, sample by sample, rounding included.

    Nothing here says "false": where a flag is not set, nothing is proved.

    Attributes:
        zeros: True where ``x*_i = 0`` in every minimizer; in the structure of the codes, as are the next four.
        support: True where ``x*_i ≠ 0``.
        signs: The sign of x*_i where it is on the support, else 0; int8.
        lower: ``x*_i ≥ lower``, float64; -inf where nothing is known.
        upper: ``x*_i ≤ upper``.
        unique: True where there is exactly one minimizer, ``(*batch,)``, as are all the following.
        distance: ``‖x - x*‖_2 ≤ distance``; inf where `unique` is not proved.
        distances: ``‖x_j - x*_j‖_2`` per layer, x* the optimum of the whole problem: one tensor for every layer of a
            joint problem; for one layer of a layered problem a single one, relative to nothing (the codes of all
            layers below at their optimum); inf where that is not proved.
        radius: R, of the sphere that holds the dual solution (basis pursuit: the residual of all minimizers).
        gap: ``P(x) - P* ≤ gap``, rounding included.
        smallest_singular: A proved lower bound of ``σ_min(A_E)`` on the atoms E that are not certain zeros; 0 where
            none is proved, inf where E is empty.
        reasons: Why `unique` is not proved, one text per sample of the flattened batch; empty where it is.
        note: What the statement is relative to, for one layer of a layered problem.
        polished: What `polish` returns.
    """

    zeros: Codes
    support: Codes
    signs: Codes
    lower: Codes
    upper: Codes
    unique: Tensor
    distance: Tensor
    distances: tuple[Tensor, ...]
    radius: Tensor
    gap: Tensor
    smallest_singular: Tensor
    reasons: tuple[str, ...]
    polished: Polished
    note: str = ""
    source: str = SOURCE

    def polish(self) -> Polished:
        """Return the exact minimizers with a mask of the samples where they are proved to be that."""
        return self.polished

    def __str__(self) -> str:
        zeros, support = _count(self.zeros), _count(self.support)
        total = sum(block.numel() for block in _blocks(self.zeros))
        samples = self.unique.numel()
        if not samples:
            return "posterior of an empty batch"
        unique, exact = int(self.unique.sum()), int(self.polished.exact.sum())
        head = f"{self.note}: " if self.note else ""
        parts = [f"{zeros} of {total} atoms certainly zero", f"{support} certainly active"]
        parts.append(f"unique in {unique}/{samples}")
        if unique:
            parts.append(f"‖x - x*‖ ≤ {_up(float(self.distance[self.unique].max()))}")
        parts.append(f"known exactly in {exact}/{samples}")
        lines = [head + ", ".join(parts)]
        open_samples = [i for i, reason in enumerate(self.reasons) if reason]
        lines += [f"  sample {i} not proved unique: {self.reasons[i]}" for i in open_samples[:3]]
        if len(open_samples) > 3:
            lines.append(f"  ... and {len(open_samples) - 3} more samples not proved unique")
        lines.append(f"  gap ≤ {_largest(self.gap)}, sphere of radius ≤ {_largest(self.radius)}")
        return "\n".join([*lines, f"  source: {self.source}"])

    def __repr__(self) -> str:
        return f"<Posterior {str(self).splitlines()[0]}>"


def posterior(solution: HasCodes) -> Posterior | tuple[Posterior, ...]:
    """Prove what can be proved about the minimizer from codes near it, for any dictionary.

    A sphere around the dual solution gives certain zeros; the atoms that remain give uniqueness, intervals and a
    distance if they are proved linearly independent. One linear solve on the codes' support often gives the minimizer
    itself, and its optimality conditions, checked with all rounding errors, then prove everything at once. Computed in
    float64 for the problem as its tensors hold it. For basis pursuit the sphere holds the residual that all minimizers
    share (G6), and there is no polish.

    Args:
        solution: Anything with `problem`, `signal` and `codes`: what `solve` or `certify` returned.

    Returns:
        A posterior; for a layered problem one per layer, each relative to the given codes of the layer below.

    Raises:
        ParameterError: Bare codes, or anything else without problem, signal and codes.
        UnsupportedError: A problem with ℓ0, or with box constraints or groups.

    Source: G5 to G7 of docs/theory.md.
    """
    if not isinstance(solution, HasCodes):
        raise ParameterError(
            f"solution is a {type(solution).__name__}; expected what dsc.solve returned, or "
            "dsc.certify(problem, signal, codes) of codes from anywhere"
        )
    problem = solution.problem
    signal = problem.check_signal(solution.signal)
    with torch.no_grad():
        if isinstance(problem, ConvexProblem | BasisPursuit):
            analysis = analyze_any(problem, signal, solution.codes)
            return _assemble(analysis, "", analysis.distances())
        if isinstance(problem, LayeredLasso | LayeredBasisPursuit):
            problem.pack(solution.codes, signal)
            return _layered(problem, signal, solution.codes)
    raise UnsupportedError(
        f"no posterior for a {type(problem).__name__}; expected a Lasso, JointLasso, LayeredLasso, BasisPursuit or "
        "LayeredBasisPursuit: for codes of an ℓ0 problem, dsc.prove.uniqueness and stability say what is known"
    )


def analyze_any(problem: Problem, signal: Tensor, codes: Codes) -> Analysis:
    """Return what codes prove about the minimizer of a problem of one stage.

    Raises:
        UnsupportedError: A problem of another kind.
    """
    if isinstance(problem, ConvexProblem):
        return analyze(problem, signal, codes)
    if isinstance(problem, BasisPursuit):
        return analyze_pursuit(problem, signal, codes)
    raise UnsupportedError(f"nothing is proved after the fact for a {type(problem).__name__}")


def _layered(problem: LayeredLasso | LayeredBasisPursuit, signal: Tensor, codes: Codes) -> tuple[Posterior, ...]:
    """Return one posterior per layer; `distances` by G7: layer j at the optimum's input, which lies within δ_{j-1}."""
    found: list[Posterior] = []
    below: Tensor | None = None
    for j, (stage, x, z) in enumerate(problem.by_layer(codes, signal), start=1):
        analysis = analyze_any(stage, z.detach(), x)
        if below is None:
            below = analysis.distance()
        elif isinstance(problem, LayeredLasso):
            usable = torch.isfinite(below)
            moved = widen(analysis, torch.where(usable, below, 0.0)).distance
            below = torch.where(usable, moved, math.inf)
        else:
            # A fixed ε gives no Lipschitz constant: only an input that is exactly the optimum's passes on.
            below = torch.where(below == 0, analysis.distance(), math.inf)
        found.append(_assemble(analysis, _relative_to(j), (below,)))
    return tuple(found)


def _relative_to(layer: int) -> str:
    return "layer 1" if layer == 1 else f"layer {layer}, given the codes of layer {layer - 1}"


def _assemble(analysis: Analysis, note: str, distances: tuple[Tensor, ...]) -> Posterior:
    found, candidate, places, batch = analysis.found, analysis.candidate, analysis.places, analysis.batch
    exact, one = analysis.exact, analysis.exact[:, None]
    intervals = Intervals.of(
        analysis.certain_zeros(),
        torch.where(one, candidate.codes, places.center),
        torch.where(one, candidate.error[:, None] * candidate.support, places.reach),
        join(found.signed),
        join(found.correlation),
        analysis.flat.form.nonnegative,
    )
    sigma = torch.where(exact, candidate.sigma, places.sigma)
    kept = torch.where(one, candidate.codes, analysis.codes)
    reasons = tuple("" if done else text for done, text in zip(exact.tolist(), places.reasons, strict=True))
    return Posterior(
        analysis.shaped(intervals.zeros),
        analysis.shaped(intervals.support),
        analysis.shaped(intervals.signs),
        analysis.shaped(intervals.lower),
        analysis.shaped(intervals.upper),
        (exact | places.unique).reshape(batch),
        analysis.distance().reshape(batch),
        tuple(distance.reshape(batch) for distance in distances),
        found.radius.reshape(batch),
        found.gap.reshape(batch),
        sigma.reshape(batch),
        reasons,
        Polished(analysis.shaped(kept), exact.reshape(batch), candidate.error.reshape(batch)),
        note,
    )


def _blocks(codes: Codes) -> tuple[Tensor, ...]:
    return codes if isinstance(codes, tuple) else (codes,)


def _count(flags: Codes) -> int:
    return sum(int(block.sum()) for block in _blocks(flags))


def _largest(values: Tensor) -> str:
    """Return the largest of the finite numbers, and how many are not: one bad sample hides nothing of the others."""
    finite = values[torch.isfinite(values)]
    if finite.numel() in (0, values.numel()):
        return _up(float(values.max()))
    return f"{_up(float(finite.max()))} (unknown in {values.numel() - finite.numel()} of {values.numel()} samples)"


def _up(value: float) -> str:
    """Return a number in two digits, rounded up."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{rounded_up(value, 2):.1e}"
