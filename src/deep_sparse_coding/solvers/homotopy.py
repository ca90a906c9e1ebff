"""Homotopy: the exact solution path of a dense Lasso, from breakpoint to breakpoint down to the lam asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deep_sparse_coding.problems import Blocks, StandardForm

from .base import Solver, State, select_blocks

# Above this many columns the Gram matrix (8 bytes an entry) no longer pays: 16384² are 2 GB.
_LARGEST = 16384
# An atom whose correlation keeps to its bound up to this share of it (a copy of one in use) has no need to join.
_PARALLEL = 1e-10
# Events closer than this are one event; the least index goes first, which keeps pivoting among ties from cycling.
_TIE = 1e-12


@dataclass(frozen=True, eq=False)
class HomotopyState(State):
    """A point of the path of every sample, in float64.

    Attributes:
        level: The scale λ at which `values` are optimal for the weights ``λ w``; the path ends at 1, ``(batch,)``.
        values: The codes at that level, all blocks joined, ``(batch, m)``.
        signs: The signs of the atoms in use just below the level, 0 for all others, ``(batch, m)``.
        done: Whether the path has ended, at 1 or where the atoms in use became dependent, ``(batch,)``.
        matrix: A.
        gram: ``AᵀA``.
        data: b, ``(batch, n)``.
        pull: ``Aᵀb``, ``(batch, m)``.
        weights: w, ``(1 or batch, m)``.
    """

    level: Tensor
    values: Tensor
    signs: Tensor
    done: Tensor
    matrix: Tensor
    gram: Tensor
    data: Tensor
    pull: Tensor
    weights: Tensor

    def select(self, keep: Tensor) -> HomotopyState:
        """Return the state of the samples `keep`."""
        return replace(
            self,
            codes=select_blocks(self.codes, keep),
            level=self.level[keep],
            values=self.values[keep],
            signs=self.signs[keep],
            done=self.done[keep],
            data=self.data[keep],
            pull=self.pull[keep],
            weights=self.weights if len(self.weights) == 1 else self.weights[keep],
        )


@dataclass(frozen=True)
class Homotopy(Solver[HomotopyState]):
    """The exact path ``λ ↦ argmin ½‖b - Ax‖² + λ Σ w_i|x_i|`` from ``x = 0`` down to ``λ = 1``, for dense dictionaries.

    Between breakpoints the codes in use are ``x_S(λ) = (A_SᵀA_S)⁻¹(A_Sᵀb - λ w_S s_S)``. One step goes to the next
    breakpoint, where the correlation of an atom reaches ``λ w_i`` and it joins, or a code reaches zero and its atom
    leaves. Each step solves afresh, so errors do not add up; all samples step together, in float64. Dense joint
    problems are solved as one Lasso in the stacked matrix.

    It is exact to rounding and depends on no tolerance: a reference, slower than `CoordinateDescent` (5 to 40 times for
    64×256), which needs no path. The number of breakpoints can be exponential in the atoms. A start that is not optimal
    is not used. Where atoms in use become dependent to rounding the path ends early, and the loop calls the sample
    stalled. `steps` counts to the next check after the last breakpoint.

    Source: Osborne, Presnell & Turlach 2000; Efron, Hastie, Johnstone & Tibshirani 2004 (LARS with drops); Murty 1974
    (least index among ties).
    """

    # Rare: the gap says little before the end of the path, and a sample that has ended costs nothing.
    check_every = 100

    def refuse(self, form: StandardForm) -> str | None:
        """Return why not: convolutions, masks per sample, unpenalized atoms, too many atoms."""
        use = "use dsc.FISTA()"
        if form.beyond:
            return f"Homotopy takes no {form.beyond}; {use}"
        if sum(shape[0] for shape in form.code_shapes) > _LARGEST:
            return f"Homotopy keeps the Gram matrix and takes up to {_LARGEST} atoms; {use}"
        if form.operator.matrix() is None:
            return f"Homotopy takes dense dictionaries whose mask, if any, is shared by all samples; {use}"
        if any(bool((weight == 0).any()) for weight in form.weights):
            return f"Homotopy needs every atom penalized and lam or weights hold zeros; {use}"
        return None

    def init(self, form: StandardForm, start: Blocks, tol: float) -> HomotopyState:
        """Return the state at the first breakpoint, the level from which on codes are zero; `codes` is `start`."""
        matrix = form.operator.matrix()
        assert matrix is not None, "refuse() has been asked"
        matrix = matrix.double()
        data = torch.cat([block.flatten(1) for block in form.data], 1).double()
        batch = 1 if all(len(w) == 1 for w in form.weights) else form.batch
        parts = zip(form.weights, form.code_shapes, strict=True)
        weights = torch.cat([w.expand(batch, *shape).flatten(1) for w, shape in parts], 1).double()
        correlation = data @ matrix
        ratio = (correlation if form.nonnegative else correlation.abs()) / weights
        level = ratio.amax(1)
        first = _first_at(ratio, level)
        done = level <= 1
        signs = torch.zeros_like(correlation)
        rows = (~done).nonzero().flatten()
        signs[rows, first[rows]] = correlation[rows, first[rows]].sign()
        values = torch.zeros_like(correlation)
        return HomotopyState(
            start, 0, level, values, signs, done, matrix, matrix.T @ matrix, data, correlation, weights
        )

    def step(self, form: StandardForm, state: HomotopyState) -> HomotopyState:
        """Return the state at the next breakpoint of every sample whose path has not ended."""
        rows = (~state.done).nonzero().flatten()
        if not len(rows) and state.steps:
            return replace(state, steps=state.steps + 1)
        level, values, signs, done = (t.clone() for t in (state.level, state.values, state.signs, state.done))
        if len(rows):
            here = state if len(rows) == len(done) else state.select(rows)
            level[rows], values[rows], signs[rows], done[rows] = _advance(here, form.nonnegative)
        blocks = values.to(form.data[0].dtype).split([shape[0] for shape in form.code_shapes], 1)
        codes = tuple(block.contiguous() for block in blocks)
        return replace(state, codes=codes, steps=state.steps + 1, level=level, values=values, signs=signs, done=done)


def _advance(state: HomotopyState, nonnegative: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return level, values, signs and done at the next breakpoint; all samples of `state` are on their way."""
    used, w = state.signs != 0, state.weights.expand_as(state.signs)
    fixed, slope, sound = _segment(state, used)
    # x(λ) = fixed - λ slope and Aᵀ(b - Ax(λ)) = rest + λ turn.
    rest = (state.data - fixed @ state.matrix.T) @ state.matrix
    turn = (slope @ state.matrix.T) @ state.matrix
    events = torch.where(used & (state.signs * slope < 0), fixed / slope, -math.inf)
    for side in (1.0,) if nonnegative else (1.0, -1.0):
        approach = w - side * turn
        joins = ~used & torch.isfinite(w) & (approach > _PARALLEL * w)
        events = torch.where(joins, torch.maximum(events, side * rest / approach), events)
    events = torch.minimum(events, state.level[:, None])
    following = events.amax(1)
    ends = following <= 1
    level = torch.where(ends, 1.0, following)
    values = fixed - level[:, None] * slope
    # Rounding must not turn a sign, least of all that of the code that is leaving.
    values = torch.where(values * state.signs > 0, values, 0.0)

    which = _first_at(events, following)[:, None]
    before = state.signs.gather(1, which)
    correlation = (rest + level[:, None] * turn).gather(1, which)
    joined = torch.ones_like(before) if nonnegative else correlation.sign()
    signs = state.signs.scatter(1, which, torch.where(before != 0, 0.0, joined))
    leaving = (before != 0) & ~ends[:, None]
    values = values.scatter(1, which, torch.where(leaving, 0.0, values.gather(1, which)))
    signs = torch.where(ends[:, None], state.signs, signs)
    # Where the equations cannot be solved, the last point that is known stands.
    level = torch.where(sound, level, state.level)
    values = torch.where(sound[:, None], values, state.values)
    return level, values, signs, ends | ~sound


def _segment(state: HomotopyState, used: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``G_S⁻¹A_Sᵀb`` and ``G_S⁻¹w_S s_S`` spread over all atoms, and whether the equations could be solved."""
    size = max(int(used.sum(1).max()), 1)
    places = used.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]
    inside = used.gather(1, places)
    gram = state.gram[places[:, :, None], places[:, None, :]]
    # Places beyond a sample's own atoms hold the identity.
    gram = torch.where(inside[:, :, None] & inside[:, None, :], gram, 0.0)
    gram = gram + torch.diag_embed((~inside).double())
    # At diagonal one atoms of very different lengths do no harm.
    scale = gram.diagonal(dim1=1, dim2=2).rsqrt()
    factor, info = torch.linalg.cholesky_ex(gram * scale[:, :, None] * scale[:, None, :])
    pull = state.pull.gather(1, places)
    push = (state.weights * state.signs).nan_to_num(0.0).gather(1, places)
    right = torch.stack([torch.where(inside, pull, 0.0), push], 2) * scale[:, :, None]
    factor = torch.where((info == 0)[:, None, None], factor, torch.eye(size).to(factor))
    answer = torch.cholesky_solve(right, factor) * scale[:, :, None]
    sound = (info == 0) & torch.isfinite(answer).all(2).all(1)
    answer = torch.where(sound[:, None, None], answer, 0.0)
    spread = torch.zeros_like(state.signs)
    return spread.scatter(1, places, answer[:, :, 0]), spread.scatter(1, places, answer[:, :, 1]), sound


def _first_at(values: Tensor, largest: Tensor) -> Tensor:
    """Return per row the least index whose value is the largest up to rounding."""
    near = largest - _TIE * largest.abs()
    return (values >= near[:, None]).to(torch.uint8).argmax(1)
