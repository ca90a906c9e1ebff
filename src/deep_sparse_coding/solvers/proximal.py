"""Proximal gradient: FISTA with restarts, a step per layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.problems import Blocks, StandardForm

from .base import Solver, State, select_blocks, soft_threshold


@dataclass(frozen=True, eq=False)
class FISTAState(State):
    """Codes, the extrapolated point, and each sample's momentum.

    Attributes:
        point: Where the next gradient is taken.
        momentum: ``t_k`` of every sample, ``(batch,)``.
        lipschitz: ``L_j`` of every layer.
    """

    point: Blocks
    momentum: Tensor
    lipschitz: tuple[float, ...]

    def select(self, keep: Tensor) -> FISTAState:
        """Return the state of the samples `keep`."""
        return FISTAState(
            select_blocks(self.codes, keep),
            self.steps,
            select_blocks(self.point, keep),
            self.momentum[keep],
            self.lipschitz,
        )


@dataclass(frozen=True)
class FISTA(Solver[FISTAState]):
    """Accelerated proximal gradient, for every problem, dense or convolutional, on every device.

    ``x⁺ = S_{w/L}(z - Aᵀ(Az - b)/L)``, ``z⁺ = x⁺ + (t - 1)/t⁺ (x⁺ - x)``, a step ``1/L_j`` per layer. A sample whose
    momentum points uphill, ``⟨z - x⁺, x⁺ - x⟩_L > 0``, restarts its own momentum and no one else's.

    Attributes:
        restart: Whether momentum restarts.

    Source: Beck & Teboulle 2009; O'Donoghue & Candès 2015 (gradient restart); step per layer: N4 of docs/theory.md.
    """

    restart: bool = True

    def refuse(self, form: StandardForm) -> str | None:
        """Return None: FISTA takes every standard form."""
        return None

    def init(self, form: StandardForm, start: Blocks, tol: float) -> FISTAState:
        """Return the state at `start`, without momentum."""
        return FISTAState(start, 0, start, form.data[0].new_ones(form.batch), form.operator.lipschitz())

    def step(self, form: StandardForm, state: FISTAState) -> FISTAState:
        """Return the state one proximal gradient step later."""
        ascent = form.operator.analyze(form.residual(state.point))
        codes = []
        for z, g, w, lipschitz in zip(state.point, ascent, form.weights, state.lipschitz, strict=True):
            codes.append(soft_threshold(torch.add(z, g, alpha=1 / lipschitz), w / lipschitz, form.nonnegative))
        moves = [x - old for x, old in zip(codes, state.codes, strict=True)]
        momentum = state.momentum
        if self.restart:
            uphill = torch.zeros_like(momentum)
            for z, x, move, lipschitz in zip(state.point, codes, moves, state.lipschitz, strict=True):
                uphill = uphill + lipschitz * ((z - x) * move).flatten(1).sum(1)
            momentum = torch.where(uphill > 0, 1.0, momentum)
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        weight = (momentum - 1) / following
        point = []
        for x, move in zip(codes, moves, strict=True):
            point.append(torch.addcmul(x, weight.reshape(-1, *(1,) * (x.ndim - 1)), move))
        return FISTAState(tuple(codes), state.steps + 1, tuple(point), following, state.lipschitz)
