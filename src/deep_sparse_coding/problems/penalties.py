"""What a standard form adds to ``½‖b - A x‖²``: its value, its proximal step, its conjugate and its derivatives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_float_tensor, require_number

from .operators import Blocks
from .sums import extreme_rows, group_sums, per_sample, sum_rows, used_entries


class Penalty(ABC):
    """Ω, convex with ``Ω(0) = 0``: a sum over entries, or over groups of entries, of every sample.

    Every method takes the weights w of the form, one tensor per block that broadcasts against the codes; a weight of 0
    leaves an entry unpenalized, inf holds it at zero. Correlations are ``c = Aᵀv`` of some v, so that those of a dual
    point ``θ = αv`` are ``αc``.

    Source: "Other penalties" in G5 of docs/theory.md.
    """

    #: What it has beyond ``Σ w_i|x_i|`` and ``x ≥ 0``, in a word for messages; empty if nothing.
    beyond: ClassVar[str] = ""

    @abstractmethod
    def value(self, weights: Blocks, codes: Blocks) -> Tensor:
        """Return ``Ω(x)`` per sample: 0·inf counts as 0, a violated constraint as inf."""

    @abstractmethod
    def shrink(self, points: Blocks, thresholds: Blocks) -> Blocks:
        """Return the proximal step ``argmin_x ½‖x - z‖² + Ω(x)``, with `thresholds` in the place of the weights."""

    @abstractmethod
    def interval(self, weights: Blocks, correlation: Blocks) -> tuple[Tensor, Tensor]:
        """Return the interval of α on which ``Ω*(αc)`` is finite, per sample; entries 0/0 bind nothing."""

    @abstractmethod
    def slack(self, weights: Blocks, codes: Blocks, correlation: Blocks, alpha: Tensor) -> Tensor:
        """Return ``Ω(x) + Ω*(αc) - ⟨x, αc⟩`` per sample, every term rounded up to zero; inf where x is not allowed."""

    @abstractmethod
    def largest_ratio(self, weights: Blocks, correlation: Blocks) -> Tensor:
        """Return the smallest factor of the weights for which ``c`` is a subgradient at zero codes, per sample."""

    @abstractmethod
    def unpenalized(self, weights: Blocks, codes: Blocks) -> tuple[Blocks, Blocks] | None:
        """Return the entries whose weight of 0 makes Ω* infinite on one side, and those that need ``c = 0`` exactly.

        None if there are none. The second are those in use, or without any bound.
        """

    @abstractmethod
    def movable(self, codes: Blocks) -> Blocks:
        """Return which entries of a minimizer move with the data: those used that are not held by a bound."""

    @abstractmethod
    def slope(self, weights: Blocks, codes: Blocks) -> Blocks:
        """Return ``∇Ω`` at the movable entries; anything elsewhere."""

    def project(self, weights: Blocks, codes: Blocks) -> Blocks:
        """Return the nearest codes that are allowed: codes that already are come back as they are."""
        return self.shrink(codes, tuple(torch.where(torch.isinf(w), w, 0.0) for w in weights))

    def scaling(
        self, weights: Blocks, correlation: Blocks, best: Tensor, quadratic: Tensor, low: Tensor, high: Tensor
    ) -> Tensor:
        """Return the α in ``[low, high]`` with the largest dual value ``q(α·best - ½α²) - Ω*(αc)``.

        Args:
            weights: w.
            correlation: c.
            best: The maximizer without Ω*, per sample.
            quadratic: q.
            low: At most 0.
            high: At least 0.
        """
        return torch.minimum(torch.maximum(best, low), high)

    def curvature(self, weights: Blocks, codes: Blocks) -> Curvature | None:
        """Return ``∇²Ω`` at the movable entries, None where it is zero."""
        return None

    def cast(self, dtype: torch.dtype) -> Penalty:
        """Return the penalty in another precision."""
        return self


@dataclass(frozen=True, eq=False)
class Curvature:
    """The Hessian of ``Σ_g w_g‖x_g‖``: in every group ``(w_g/‖x_g‖)(I - x̂x̂ᵀ)`` with ``x̂ = x_g/‖x_g‖``.

    Attributes:
        index: For every block, the group of each atom.
        counts: For every block, the number of groups.
        scale: ``w_g/‖x_g‖`` at every entry, 0 at those that do not move.
        unit: x̂, 0 at entries that do not move.
    """

    index: Blocks
    counts: tuple[int, ...]
    scale: Blocks
    unit: Blocks

    def apply(self, codes: Blocks) -> Blocks:
        """Return the Hessian times some codes."""
        found = []
        for x, scale, unit, index, count in zip(codes, self.scale, self.unit, self.index, self.counts, strict=True):
            along = group_sums(x * unit, index, count).index_select(1, index)
            found.append(scale * (x - unit * along))
        return tuple(found)


def soft_threshold(values: Tensor, threshold: Tensor | float, nonnegative: bool = False) -> Tensor:
    """Return ``S_θ(u) = sign(u)·max(|u| - θ, 0)``, or ``max(u - θ, 0)`` for non-negative codes.

    Args:
        values: u.
        threshold: θ ≥ 0, broadcasts against u; inf gives 0.
        nonnegative: The one-sided form.

    Raises:
        DtypeError: `values` are no tensor of float32 or float64.
        ParameterError: A threshold that is a number below 0.

    Source: the proximal operator of ``θ‖·‖_1``; section 0 of docs/theory.md.
    """
    require_float_tensor("values", values)
    if not isinstance(threshold, Tensor):
        require_number("threshold", threshold, minimum=0.0, finite=False)
    if nonnegative:
        return (values - threshold).clamp_min(0)
    threshold = torch.as_tensor(threshold, dtype=values.dtype, device=values.device)
    return values - values.clamp(-threshold, threshold)


@dataclass(frozen=True, eq=False)
class L1(Penalty):
    """``Σ w_i|x_i|``, with ``x ≥ 0`` if asked.

    Attributes:
        nonnegative: Whether codes are held at or above zero.
    """

    nonnegative: bool = False

    def value(self, weights: Blocks, codes: Blocks) -> Tensor:
        """Return ``Σ w_i|x_i|``."""
        total = codes[0].new_zeros(len(codes[0]))
        for w, x in zip(weights, codes, strict=True):
            index, weight, value = used_entries(w, x)
            part = weight * value.abs()
            if self.nonnegative:
                part = torch.where(value < 0, math.inf, part)
            total = total + sum_rows(len(x), index[0], part)
        return total

    def shrink(self, points: Blocks, thresholds: Blocks) -> Blocks:
        """Return the soft threshold."""
        pairs = zip(points, thresholds, strict=True)
        return tuple(soft_threshold(z, t, self.nonnegative) for z, t in pairs)

    def interval(self, weights: Blocks, correlation: Blocks) -> tuple[Tensor, Tensor]:
        """Return the interval of α with ``|αc_i| ≤ w_i`` for all i (non-negative codes: ``αc_i ≤ w_i``)."""
        high = correlation[0].new_full((len(correlation[0]),), math.inf)
        low = -high
        for w, c in zip(weights, correlation, strict=True):
            if not c[:1].numel():
                continue
            top, bottom = _extremes(w, c)
            # A quotient 0/0 stands for an entry that binds nothing.
            upper = torch.where(top > 0, w / top, math.inf).flatten(1).amin(1)
            lower = torch.where(bottom < 0, w / bottom, -math.inf).flatten(1).amax(1)
            if not self.nonnegative:
                upper = torch.minimum(upper, -lower)
                lower = -upper
            high, low = torch.minimum(high, upper), torch.maximum(low, lower)
        return low, high

    def slack(self, weights: Blocks, codes: Blocks, correlation: Blocks, alpha: Tensor) -> Tensor:
        """Return ``Σ (w_i|x_i| - x_i αc_i)``: feasibility makes every term non-negative."""
        total = codes[0].new_zeros(len(codes[0]))
        for w, x, c in zip(weights, codes, correlation, strict=True):
            index, weight, value = used_entries(w, x)
            term = (weight * value.abs() - value * alpha[index[0]] * c[index]).clamp_min(0)
            term = torch.where(weight == 0, 0.0, term)
            if self.nonnegative:
                term = torch.where(value < 0, math.inf, term)
            total = total + sum_rows(len(x), index[0], term)
        return total

    def largest_ratio(self, weights: Blocks, correlation: Blocks) -> Tensor:
        """Return ``max |c_i|/w_i`` over the penalized entries (non-negative codes: without the bars)."""
        sizes = []
        for w, c in zip(weights, correlation, strict=True):
            top, bottom = _extremes(w, c) if c[:1].numel() else (c, c)
            sizes.append(top.clamp_min(0) if self.nonnegative else torch.maximum(top, -bottom))
        return largest_quotient(weights, tuple(sizes))

    def unpenalized(self, weights: Blocks, codes: Blocks) -> tuple[Blocks, Blocks] | None:
        """Return the entries of weight 0; non-negative codes need ``c = 0`` where they are in use, else ``c ≤ 0``."""
        if not any(bool((w == 0).any()) for w in weights):
            return None
        exposed = tuple((w == 0).expand_as(x) for w, x in zip(weights, codes, strict=True))
        if not self.nonnegative:
            return exposed, exposed
        return exposed, tuple(e & (x > 0) for e, x in zip(exposed, codes, strict=True))

    def movable(self, codes: Blocks) -> Blocks:
        """Return the support."""
        return tuple(x != 0 for x in codes)

    def slope(self, weights: Blocks, codes: Blocks) -> Blocks:
        """Return ``w_i sign(x_i)``."""
        return tuple(w * x.sign() for w, x in zip(weights, codes, strict=True))


@dataclass(frozen=True, eq=False)
class Box(Penalty):
    """``Σ w_i|x_i|`` on ``l ≤ x ≤ u``, where ``l ≤ 0 ≤ u``.

    A finite bound makes the conjugate ``u_i(c_i - w_i)₊ + |l_i|(-c_i - w_i)₊`` finite: correlations may exceed the
    weight, at a price.

    Attributes:
        lower: l, one tensor per block, ``(1, ...)``, broadcasting against the codes; -inf where there is no bound.
        upper: u.
    """

    beyond: ClassVar[str] = "box constraints"
    lower: Blocks
    upper: Blocks

    def value(self, weights: Blocks, codes: Blocks) -> Tensor:
        """Return ``Σ w_i|x_i|``, inf outside the box."""
        total = L1().value(weights, codes)
        for x, lower, upper in zip(codes, self.lower, self.upper, strict=True):
            total = torch.where(((x < lower) | (x > upper)).flatten(1).any(1), math.inf, total)
        return total

    def shrink(self, points: Blocks, thresholds: Blocks) -> Blocks:
        """Return the soft threshold, clamped: convex functions of one variable rise away from their minimum."""
        parts = zip(points, thresholds, self.lower, self.upper, strict=True)
        return tuple(torch.clamp(soft_threshold(z, t), lower, upper) for z, t, lower, upper in parts)

    def interval(self, weights: Blocks, correlation: Blocks) -> tuple[Tensor, Tensor]:
        """Return the interval of ``α ≥ 0`` with ``αc_i ≤ w_i`` where u_i is infinite, ``-αc_i ≤ w_i`` where l_i is."""
        limits = []
        for w, c, lower, upper in zip(weights, correlation, self.lower, self.upper, strict=True):
            binds = ((c > 0) & torch.isinf(upper)) | ((c < 0) & torch.isinf(lower))
            limits.append(torch.where(binds, w / c.abs(), math.inf))
        high = extreme_rows(tuple(limits), largest=False)
        return torch.zeros_like(high), high

    def scaling(
        self, weights: Blocks, correlation: Blocks, best: Tensor, quadratic: Tensor, low: Tensor, high: Tensor
    ) -> Tensor:
        """Return the maximizer, found exactly: the dual value's slope is linear but for falls at ``α = w_i/|c_i|``.

        With the falls up to knot k added up, ``slope(α) = q(z_k - α)``; the maximizer is ``min_k max(knot_k, z_k)``.
        """
        top = torch.minimum(best.clamp_min(0), high)
        rows, knots, falls = [], [], []
        for w, c, lower, upper in zip(weights, correlation, self.lower, self.upper, strict=True):
            size, bound = c.abs(), torch.where(c > 0, upper, -lower)
            passed = torch.isfinite(bound) & (bound > 0) & (size * per_sample(top, c) > w)
            index = passed.nonzero(as_tuple=True)
            rows.append(index[0])
            knots.append(w.expand_as(c)[index] / size[index])
            falls.append(bound[index] * size[index] / quadratic[index[0]])
        row, knot, fall = torch.cat(rows), torch.cat(knots), torch.cat(falls)
        if not len(row):
            return top
        # Sample by sample in rows of a table: sums over samples of other sizes would round.
        if len(rows) > 1:
            order = torch.argsort(row, stable=True)
            row, knot, fall = row[order], knot[order], fall[order]
        counts = torch.bincount(row, minlength=len(top))
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        table = top.new_full((len(top), int(counts.max())), math.inf)
        added = torch.zeros_like(table)
        table[row, place], added[row, place] = knot, fall
        table, order = table.sort(1)
        roots = best[:, None] - added.gather(1, order).cumsum(1)
        return torch.minimum(top, torch.maximum(table, roots).amin(1))

    def slack(self, weights: Blocks, codes: Blocks, correlation: Blocks, alpha: Tensor) -> Tensor:
        """Return ``Σ x₊(w - v)₊ + (u - x₊)(v - w)₊ + x₋(w + v)₊ + (|l| - x₋)(-v - w)₊`` for ``v = αc``.

        The same as ``w|x| - xv + Ω*(v)``, but nothing cancels.
        """
        total = codes[0].new_zeros(len(codes[0]))
        for w, x, c, lower, upper in zip(weights, codes, correlation, self.lower, self.upper, strict=True):
            v = per_sample(alpha, c) * c
            term = _one_side(w, x.clamp_min(0), v, upper) + _one_side(w, (-x).clamp_min(0), -v, -lower)
            term = torch.where((x < lower) | (x > upper), math.inf, term)
            total = total + term.flatten(1).sum(1)
        return total

    def largest_ratio(self, weights: Blocks, correlation: Blocks) -> Tensor:
        """Return ``max |c_i|/w_i`` over the penalized entries that may move to c's side."""
        parts = zip(correlation, self.lower, self.upper, strict=True)
        sizes = tuple(torch.where(torch.where(c > 0, upper, -lower) > 0, c.abs(), 0.0) for c, lower, upper in parts)
        return largest_quotient(weights, sizes)

    def unpenalized(self, weights: Blocks, codes: Blocks) -> tuple[Blocks, Blocks] | None:
        """Return the entries of weight 0 with an infinite bound, and those of them that are off their finite one."""
        exposed, free = [], []
        for w, x, lower, upper in zip(weights, codes, self.lower, self.upper, strict=True):
            zero, up, down = (w == 0).expand_as(x), torch.isinf(upper), torch.isinf(lower)
            exposed.append(zero & (up | down))
            free.append(zero & ((up & (x > lower)) | (down & (x < upper))))
        return (tuple(exposed), tuple(free)) if any(bool(block.any()) for block in exposed) else None

    def movable(self, codes: Blocks) -> Blocks:
        """Return the support without the entries at a bound."""
        parts = zip(codes, self.lower, self.upper, strict=True)
        return tuple((x != 0) & (x > lower) & (x < upper) for x, lower, upper in parts)

    def slope(self, weights: Blocks, codes: Blocks) -> Blocks:
        """Return ``w_i sign(x_i)``."""
        return L1().slope(weights, codes)

    def cast(self, dtype: torch.dtype) -> Box:
        """Return the penalty in another precision."""
        return Box(tuple(b.to(dtype) for b in self.lower), tuple(b.to(dtype) for b in self.upper))


def _one_side(weights: Tensor, used: Tensor, value: Tensor, bound: Tensor) -> Tensor:
    """Return ``x(w - v)₊ + (u - x)(v - w)₊`` for a code's part on one side of zero; without bound the second is 0."""
    below = torch.where(used > 0, used * (weights - value).clamp_min(0), 0.0)
    above = torch.where(value > weights, (bound - used) * (value - weights), 0.0)
    return below + torch.where(torch.isinf(bound), 0.0, above)


def _extremes(weights: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest and the smallest of the values that share a weight, for all of them."""
    shared = tuple(axis for axis in range(1, values.ndim) if weights.shape[axis] == 1)
    return (values.amax(shared, keepdim=True), values.amin(shared, keepdim=True)) if shared else (values, values)


def largest_quotient(weights: Blocks, sizes: Blocks) -> Tensor:
    """Return the largest quotient over the entries whose weight is neither 0 nor inf, 0 if there are none."""
    pairs = zip(weights, sizes, strict=True)
    ratios = tuple(torch.where((w > 0) & torch.isfinite(w), size / w, 0.0) for w, size in pairs)
    return extreme_rows(ratios, largest=True).clamp_min(0)
