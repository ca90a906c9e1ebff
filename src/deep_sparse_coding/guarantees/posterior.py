"""What is certain about the minimizer, given any codes: zeros, support, signs, uniqueness, distance. Statement G5."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from deep_sparse_coding.errors import ParameterError, UnsupportedError
from deep_sparse_coding.problems import Codes, ConvexProblem, LayeredLasso, Problem

from .places import Places, locate
from .polish import Candidate, Flat, Polished, join, polish, refine
from .sphere import EPS, Rounding, Sphere, sphere

SOURCE = "G5 of docs/theory.md; gap-safe spheres: Ndiaye, Fercoq, Gramfort & Salmon 2017"
# How often a guessed support is corrected before the proof is given up; each time costs one factorization.
_CORRECTIONS = 4


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
        radius: R, of the sphere that holds the dual solution.
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
        lines.append(f"  gap ≤ {_up(float(self.gap.max()))}, sphere of radius ≤ {_up(float(self.radius.max()))}")
        return "\n".join([*lines, f"  source: {self.source}"])

    def __repr__(self) -> str:
        return f"<Posterior {str(self).splitlines()[0]}>"


def posterior(solution: HasCodes) -> Posterior | tuple[Posterior, ...]:
    """Prove what can be proved about the minimizer from codes near it, for any dictionary.

    A sphere around the dual solution gives certain zeros; the atoms that remain give uniqueness, intervals and a
    distance if they are proved linearly independent. One linear solve on the codes' support often gives the minimizer
    itself, and its optimality conditions, checked with all rounding errors, then prove everything at once. Computed in
    float64 for the problem as its tensors hold it.

    Args:
        solution: Anything with `problem`, `signal` and `codes`: what `solve` or `certify` returned.

    Returns:
        A posterior; for a layered problem one per layer, each relative to the given codes of the layer below.

    Raises:
        ParameterError: Bare codes, or anything else without problem, signal and codes.
        UnsupportedError: A problem that is neither convex nor layered.

    Source: G5 of docs/theory.md.
    """
    if not isinstance(solution, HasCodes):
        raise ParameterError(
            f"solution is a {type(solution).__name__}; expected what dsc.solve returned, or "
            "dsc.certify(problem, signal, codes) of codes from anywhere"
        )
    problem = solution.problem
    signal = problem.check_signal(solution.signal)
    with torch.no_grad():
        if isinstance(problem, ConvexProblem):
            return _convex(problem, signal, solution.codes, "")
        if isinstance(problem, LayeredLasso):
            problem.pack(solution.codes, signal)
            layers = problem.by_layer(solution.codes, signal)
            return tuple(
                _convex(stage, z.detach(), x, _relative_to(j))
                for j, (stage, (_, x, z)) in enumerate(zip(problem.stages, layers, strict=True), start=1)
            )
    raise UnsupportedError(f"no posterior for a {type(problem).__name__}; expected a Lasso, JointLasso or LayeredLasso")


def _relative_to(layer: int) -> str:
    return "layer 1" if layer == 1 else f"layer {layer}, given the codes of layer {layer - 1}"


def _convex(problem: ConvexProblem, signal: Tensor, codes: Codes, note: str) -> Posterior:
    batch = problem.batch_shape(signal)
    form = problem.exact_form(signal)
    blocks = tuple(block.double() for block in problem.pack(codes, signal))
    rounding = Rounding.of(form)
    found = sphere(form, blocks, rounding)
    flat = Flat.of(form, rounding)
    x, zeros = join(blocks), join(found.zeros)

    usable = torch.isfinite(x).all(1) & torch.isfinite(join(form.data)).all(1)
    candidate = refine(flat, *_guess(flat, x, zeros), zeros, usable, _CORRECTIONS)
    # A second guess for codes on another support: all atoms that may be active, with the signs that the sphere shows.
    again = usable & ~candidate.exact & torch.isfinite(found.radius)
    signs = join(found.correlation).sign() if not form.nonnegative else torch.ones_like(x)
    second = polish(flat, ~zeros, signs, zeros, again)
    candidate = candidate.replace(second, second.exact)
    places = locate(flat, x, found, zeros, ~candidate.exact)
    return _assemble(problem, batch, flat, x, found, zeros, candidate, places, note)


def _guess(flat: Flat, x: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes' support and signs as a guess of the minimizer's, unpenalized atoms included."""
    weights = flat.weights
    if flat.form.nonnegative:
        support = (x > 0) & ~zeros
        return support, torch.ones_like(x)
    return ((x != 0) & ~zeros) | (weights == 0), x.sign()


def _assemble(
    problem: ConvexProblem,
    batch: tuple[int, ...],
    flat: Flat,
    x: Tensor,
    found: Sphere,
    zeros: Tensor,
    candidate: Candidate,
    places: Places,
    note: str,
) -> Posterior:
    exact = candidate.exact[:, None]
    zeros = torch.where(exact, ~candidate.support, zeros)
    center = torch.where(exact, candidate.codes, places.center)
    reach = torch.where(exact, candidate.error[:, None] * candidate.support, places.reach)
    reach = torch.where(zeros, 0.0, reach + 4 * EPS * (center.abs() + reach))
    lower, upper = center - reach, center + reach
    # The sign of the correlation with the sphere's center is that of every non-zero entry within reach of it.
    signed, correlation = join(found.signed), join(found.correlation)
    if flat.form.nonnegative:
        lower = lower.clamp_min(0.0)
    else:
        lower = torch.where(signed & (correlation > 0), lower.clamp_min(0.0), lower)
        upper = torch.where(signed & (correlation < 0), upper.clamp_max(0.0), upper)
    support = (lower > 0) | (upper < 0)
    signs = torch.where(support, torch.where(lower > 0, 1, -1), 0).to(torch.int8)
    moved = (x - candidate.codes).norm(dim=1) * (1 + (x.shape[1] + 8) * EPS)
    distance = torch.where(candidate.exact, moved + candidate.error, places.distance)
    sigma = torch.where(candidate.exact, candidate.sigma, places.sigma)
    kept = torch.where(exact, candidate.codes, x)
    reasons = tuple("" if done else text for done, text in zip(candidate.exact.tolist(), places.reasons, strict=True))

    def shaped(joined: Tensor) -> Codes:
        return problem.unpack(flat.split(joined), batch)

    return Posterior(
        shaped(zeros),
        shaped(support),
        shaped(signs),
        shaped(lower),
        shaped(upper),
        (candidate.exact | places.unique).reshape(batch),
        distance.reshape(batch),
        found.radius.reshape(batch),
        found.gap.reshape(batch),
        sigma.reshape(batch),
        reasons,
        Polished(shaped(kept), candidate.exact.reshape(batch), candidate.error.reshape(batch)),
        note,
    )


def _blocks(codes: Codes) -> tuple[Tensor, ...]:
    return codes if isinstance(codes, tuple) else (codes,)


def _count(flags: Codes) -> int:
    return sum(int(block.sum()) for block in _blocks(flags))


def _up(value: float) -> str:
    """Return a number in two digits, rounded up."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    shown = float(f"{value:.1e}")
    if shown < value:
        step = 10.0 ** (math.floor(math.log10(value)) - 1)
        shown = float(f"{value + step:.1e}")
    return f"{shown:.1e}"
