"""Proximal gradient: ISTA, and FISTA with restarts, both with a step per layer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.problems import Blocks, StandardForm

from .base import Solver, State, select_blocks


def proximal_step(form: StandardForm, point: Blocks, lipschitz: tuple[float, ...]) -> Blocks:
    """Return ``prox_{Ω/L}(z - Aᵀ(Az - b)/L)``, layer by layer with the layer's own L; for an ℓ1 norm S_{w/L}.

    Args:
        form: The problem.
        point: z, one block per layer.
        lipschitz: ``L_j`` of every layer, such that ``‖Ax‖² ≤ Σ_j L_j‖x_j‖²``.

    Source: N4 of docs/theory.md (the steps are safe).
    """
    ascent = form.operator.analyze(form.residual(point))
    moved = tuple(torch.add(z, g, alpha=1 / bound) for z, g, bound in zip(point, ascent, lipschitz, strict=True))
    return form.penalty.shrink(moved, tuple(w / bound for w, bound in zip(form.weights, lipschitz, strict=True)))


@dataclass(frozen=True, eq=False)
class ISTAState(State):
    """Codes and the steps that are safe.

    Attributes:
        lipschitz: ``L_j`` of every layer.
    """

    lipschitz: tuple[float, ...]

    def select(self, keep: Tensor) -> ISTAState:
        """Return the state of the samples `keep`."""
        return replace(self, codes=select_blocks(self.codes, keep))


@dataclass(frozen=True)
class ISTA(Solver[ISTAState]):
    """Plain proximal gradient, for every problem, dense or convolutional, on every device.

    ``x⁺ = S_{w/L}(x - Aᵀ(Ax - b)/L)``, a step ``1/L_j`` per layer; with bounds or groups their proximal step takes the
    place of the soft threshold S. The objective never rises, and
    ``P(x_k) - P* ≤ Σ_j L_j‖x_j⁰ - x_j*‖²/(2k)``. It is the yardstick for the others, which need far fewer steps, and
    what one layer of an unrolled network computes.

    Source: Daubechies, Defrise & De Mol 2004; Beck & Teboulle 2009, Theorem 3.1; step per layer: N4 of docs/theory.md.
    """

    def refuse(self, form: StandardForm) -> str | None:
        """Return None: ISTA takes every standard form, with bounds, a ridge or groups."""
        return None

    def init(self, form: StandardForm, start: Blocks, tol: float) -> ISTAState:
        """Return the state at `start`, or at the nearest codes that are allowed."""
        return ISTAState(form.penalty.project(form.weights, start), 0, form.operator.lipschitz())

    def step(self, form: StandardForm, state: ISTAState) -> ISTAState:
        """Return the state one proximal gradient step later."""
        return ISTAState(proximal_step(form, state.codes, state.lipschitz), state.steps + 1, state.lipschitz)


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

    ``x⁺ = S_{w/L}(z - Aᵀ(Az - b)/L)``, ``z⁺ = x⁺ + (t - 1)/t⁺ (x⁺ - x)``, a step ``1/L_j`` per layer (with
    bounds or groups their proximal step takes the place of the soft threshold S). A sample whose
    momentum points uphill, ``⟨z - x⁺, x⁺ - x⟩_L > 0``, restarts its own momentum and no one else's.

    Attributes:
        restart: Whether momentum restarts.

    Raises:
        ParameterError: `restart` is no boolean.

    Source: Beck & Teboulle 2009; O'Donoghue & Candès 2015 (gradient restart); step per layer: N4 of docs/theory.md.
    """

    restart: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.restart, bool):
            raise ParameterError(f"restart is {self.restart!r}; expected True or False")

    def refuse(self, form: StandardForm) -> str | None:
        """Return None: FISTA takes every standard form, with bounds, a ridge or groups."""
        return None

    def init(self, form: StandardForm, start: Blocks, tol: float) -> FISTAState:
        """Return the state at `start`, or at the nearest codes that are allowed, without momentum."""
        start = form.penalty.project(form.weights, start)
        return FISTAState(start, 0, start, form.data[0].new_ones(form.batch), form.operator.lipschitz())

    def step(self, form: StandardForm, state: FISTAState) -> FISTAState:
        """Return the state one proximal gradient step later."""
        codes = proximal_step(form, state.point, state.lipschitz)
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
        return FISTAState(codes, state.steps + 1, tuple(point), following, state.lipschitz)
