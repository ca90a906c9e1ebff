"""The group penalty: ℓ2 norms over groups of atoms, at every place by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .operators import Blocks
from .penalties import L1, Curvature, Penalty, largest_quotient
from .sums import extreme_rows, flat_sum, group_sums, per_sample


@dataclass(frozen=True, eq=False)
class Groups(Penalty):
    """``Σ_g w_g‖x_g‖₂`` over groups of atoms, at every place by itself; with ``x ≥ 0`` if asked.

    Attributes:
        index: For every block, the group of each atom, ``(atoms,)``, counted from 0.
        first: For every block, one atom of each group: weights agree within a group.
        nonnegative: Whether codes are held at or above zero.

    Source: Yuan & Lin 2006.
    """

    beyond: ClassVar[str] = "groups"
    index: Blocks
    first: Blocks
    nonnegative: bool = False

    def sums(self, blocks: Blocks) -> Blocks:
        """Return sums over the atoms of each group, ``(batch, groups, ...)``."""
        parts = zip(blocks, self.index, self.first, strict=True)
        return tuple(group_sums(x, index, len(first)) for x, index, first in parts)

    def spread(self, values: Blocks) -> Blocks:
        """Return values of groups at every atom."""
        return tuple(v.index_select(1, index) for v, index in zip(values, self.index, strict=True))

    def norms(self, blocks: Blocks) -> Blocks:
        """Return ``‖x_g‖₂``, ``(batch, groups, ...)``."""
        return tuple(block.sqrt() for block in self.sums(tuple(x.square() for x in blocks)))

    def of_groups(self, weights: Blocks) -> Blocks:
        """Return the weights of the groups from those of the atoms."""
        pairs = zip(weights, self.first, strict=True)
        return tuple(w if w.shape[1] == 1 else w.index_select(1, first) for w, first in pairs)

    def value(self, weights: Blocks, codes: Blocks) -> Tensor:
        """Return ``Σ_g w_g‖x_g‖₂``."""
        pairs = zip(self.of_groups(weights), self.norms(codes), strict=True)
        total = flat_sum(tuple(torch.where(n > 0, w * n, 0.0) for w, n in pairs))
        return self._allowed(codes, total)

    def shrink(self, points: Blocks, thresholds: Blocks) -> Blocks:
        """Return ``(1 - t_g/‖z_g‖)₊ z_g``, of ``max(z, 0)`` for non-negative codes."""
        points = tuple(z.clamp_min(0) for z in points) if self.nonnegative else points
        pairs = zip(self.of_groups(thresholds), self.norms(points), strict=True)
        factors = tuple(torch.where(n > t, (n - t) / n, 0.0) for t, n in pairs)
        return tuple(f * z for f, z in zip(self.spread(factors), points, strict=True))

    def interval(self, weights: Blocks, correlation: Blocks) -> tuple[Tensor, Tensor]:
        """Return the interval of α with ``|α|‖c_g‖ ≤ w_g`` (non-negative codes: the norm of c's part of α's sign)."""
        high = self._reach(weights, correlation, 1.0)
        return (-self._reach(weights, correlation, -1.0) if self.nonnegative else -high), high

    def slack(self, weights: Blocks, codes: Blocks, correlation: Blocks, alpha: Tensor) -> Tensor:
        """Return ``Σ_g (w_g‖x_g‖ - ⟨x_g, αc_g⟩)``: feasibility makes every term non-negative."""
        products = self.sums(tuple(x * c for x, c in zip(codes, correlation, strict=True)))
        parts = zip(self.of_groups(weights), self.norms(codes), products, strict=True)
        terms = []
        for w, n, product in parts:
            term = (w * n - per_sample(alpha, product) * product).clamp_min(0)
            terms.append(torch.where((n == 0) | (w == 0), 0.0, term))
        return self._allowed(codes, flat_sum(tuple(terms)))

    def largest_ratio(self, weights: Blocks, correlation: Blocks) -> Tensor:
        """Return ``max_g ‖c_g‖/w_g`` over the penalized groups (non-negative codes: of the positive part of c)."""
        correlation = tuple(c.clamp_min(0) for c in correlation) if self.nonnegative else correlation
        return largest_quotient(self.of_groups(weights), self.norms(correlation))

    def unpenalized(self, weights: Blocks, codes: Blocks) -> tuple[Blocks, Blocks] | None:
        """Return the entries of weight 0, as without groups."""
        return L1(self.nonnegative).unpenalized(weights, codes)

    def movable(self, codes: Blocks) -> Blocks:
        """Return all entries of the groups in use; of non-negative codes those above zero."""
        if self.nonnegative:
            return tuple(x > 0 for x in codes)
        return tuple(n > 0 for n in self.spread(self.norms(codes)))

    def slope(self, weights: Blocks, codes: Blocks) -> Blocks:
        """Return ``w x_g/‖x_g‖``, the weights entry by entry, so that each atom's has its share of a gradient."""
        return tuple(w * u for w, u in zip(weights, self._units(codes)[0], strict=True))

    def curvature(self, weights: Blocks, codes: Blocks) -> Curvature | None:
        """Return the Hessian; nothing is added where a group is one entry, as ``I - x̂x̂ᵀ`` is zero there."""
        units, norms = self._units(codes)
        scales = []
        for w, n, moves in zip(weights, norms, self.movable(codes), strict=True):
            scales.append(torch.where(moves & (w > 0), w / n, 0.0))
        return Curvature(self.index, tuple(len(first) for first in self.first), tuple(scales), units)

    def _units(self, codes: Blocks) -> tuple[Blocks, Blocks]:
        """Return ``x_g/‖x_g‖`` and ``‖x_g‖``, 1 where it is 0, at every entry."""
        norms = tuple(torch.where(n > 0, n, 1.0) for n in self.spread(self.norms(codes)))
        return tuple(x / n for x, n in zip(codes, norms, strict=True)), norms

    def _reach(self, weights: Blocks, correlation: Blocks, sign: float) -> Tensor:
        sided = tuple((sign * c).clamp_min(0) for c in correlation) if self.nonnegative else correlation
        pairs = zip(self.of_groups(weights), self.norms(sided), strict=True)
        return extreme_rows(tuple(torch.where(n > 0, w / n, math.inf) for w, n in pairs), largest=False)

    def _allowed(self, codes: Blocks, total: Tensor) -> Tensor:
        if not self.nonnegative:
            return total
        for x in codes:
            total = torch.where((x < 0).flatten(1).any(1), math.inf, total)
        return total
