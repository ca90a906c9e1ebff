"""All that codes prove about one minimizer, in float64 and with one axis of entries: sphere, polish, places."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.problems import Blocks, Codes, ConvexProblem, Problem, StandardForm

from .places import Places, locate
from .polish import Candidate, Flat, join, polish, refine
from .sphere import EPS, Rounding, Sphere, norm, sphere

# How often a guessed support is corrected before the proof is given up; each time costs one factorization.
_CORRECTIONS = 4


@dataclass(frozen=True, eq=False)
class Analysis:
    """What is proved about a minimizer x* from codes x.

    Attributes:
        problem: What is minimized.
        batch: The shape of the batch.
        flat: The problem with its codes joined into one axis.
        codes: x, ``(samples, entries)``.
        found: The sphere that x proves.
        zeros: Its certain zeros, ``(samples, entries)``.
        candidate: Codes that may be proved to be the minimizer.
        places: What follows from the sphere where they are not.
    """

    problem: Problem
    batch: tuple[int, ...]
    flat: Flat
    codes: Tensor
    found: Sphere
    zeros: Tensor
    candidate: Candidate
    places: Places

    @property
    def exact(self) -> Tensor:
        """Where the minimizer is known up to rounding."""
        return self.candidate.exact

    def sharpest(self) -> tuple[Blocks, Tensor]:
        """Return the smallest sphere known for ``θ* = b - A x*``: about the exact residual, where there is one."""
        residual = self.flat.form.residual(self.flat.split(self.candidate.codes))
        rows = [self.exact.reshape(-1, *(1,) * (block.ndim - 1)) for block in residual]
        triples = zip(rows, residual, self.found.center, strict=True)
        center = tuple(torch.where(row, own, other) for row, own, other in triples)
        near = self.candidate.residual_error + EPS * norm(residual)
        return center, torch.where(self.exact, near, self.found.radius)

    def certain_zeros(self) -> Tensor:
        """Return the entries that are zero in every minimizer."""
        return torch.where(self.exact[:, None], ~self.candidate.support, self.zeros)

    def distance(self) -> Tensor:
        """Return the bound of ``‖x - x*‖_2``; inf where uniqueness is not proved."""
        moved = (self.codes - self.candidate.codes).norm(dim=1) * (1 + (self.codes.shape[1] + 8) * EPS)
        return torch.where(self.exact, moved + self.candidate.error, self.places.distance)

    def distances(self) -> tuple[Tensor, ...]:
        """Return the bound of ``‖x_j - x*_j‖_2`` for every block of codes: each layer of a joint problem."""
        places, whole = self.places, self.distance()
        middle = torch.where(self.exact[:, None], self.candidate.codes, places.center)
        error = torch.where(self.exact, self.candidate.error, places.error)
        spread = places.rows * self.found.radius[:, None]
        spread = torch.where(self.exact[:, None] | self.certain_zeros(), 0.0, spread)
        found, grow = [], 1 + (self.codes.shape[1] + 8) * EPS
        for moved, reach in zip(self.flat.split(self.codes - middle), self.flat.split(spread), strict=True):
            own = (moved.flatten(1).norm(dim=1) + reach.flatten(1).norm(dim=1)) * grow
            found.append(torch.minimum(own + error, whole).nan_to_num(nan=math.inf, posinf=math.inf))
        return tuple(found)

    def shaped(self, joined: Tensor) -> Codes:
        """Return joined codes as users see them."""
        return self.problem.unpack(self.flat.split(joined), self.batch)


def analyze(problem: ConvexProblem, signal: Tensor, codes: Codes) -> Analysis:
    """Return what codes prove about the minimizer of a convex problem."""
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
    places = locate(flat, x, found.center, found.radius, zeros, ~candidate.exact)
    return Analysis(problem, problem.batch_shape(signal), flat, x, found, zeros, candidate, places)


def of_sphere(problem: Problem, batch: tuple[int, ...], form: StandardForm, codes: Tensor, found: Sphere) -> Analysis:
    """Return what a sphere alone proves, without a polish.

    Args:
        problem: What is minimized.
        batch: The shape of the batch.
        form: Its operator and data.
        codes: x, ``(samples, entries)``.
        found: A sphere for ``b - A x*``.
    """
    flat = Flat.of(form, Rounding.of(form))
    zeros = join(found.zeros)
    places = locate(flat, codes, found.center, found.radius, zeros, torch.ones_like(found.radius, dtype=torch.bool))
    no, never = torch.zeros_like(places.unique), torch.full_like(found.radius, math.inf)
    nothing = torch.zeros_like(codes)
    candidate = Candidate(nothing, zeros & False, no, never, never, torch.zeros_like(never), nothing, zeros & False)
    return Analysis(problem, batch, flat, codes, found, zeros, candidate, places)


def _guess(flat: Flat, x: Tensor, zeros: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes' support and signs as a guess of the minimizer's, unpenalized atoms included."""
    weights = flat.weights
    if flat.form.nonnegative:
        support = (x > 0) & ~zeros
        return support, torch.ones_like(x)
    return ((x != 0) & ~zeros) | (weights == 0), x.sign()
