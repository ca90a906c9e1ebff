"""Iterative hard thresholding: gradient steps, each followed by keeping the largest entries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, require_integer, require_number
from deep_sparse_coding.errors import ParameterError, near_misses
from deep_sparse_coding.problems import Blocks, StandardForm
from deep_sparse_coding.problems.base import inner, per_sample, squared_norm

from .pursuit import Pursuit, by_size, column_norms, largest_entries, unit_gram
from .subspace import refined

_STEPS = ("accelerated", "normalized", "fixed")
# A step that would not lower the objective for sure is divided by this.
_SHRINK, _SHRINKS = 2.0, 60
_ROOM = 0.99
_ZERO = 1e-14


@dataclass(frozen=True)
class IHT(Pursuit):
    """Iterative hard thresholding: ``x ← H_s(x + μ Aᵀ(b - A x))``, where H_s keeps the s largest entries.

    Atoms count as if they had norm one. ``‖b - A x‖`` falls with every round: μ is at most ``‖Δx‖²/‖A Δx‖²``. The
    operator is all that is asked for, so that large convolutions and masks per sample cost what a gradient step costs;
    for convolutions s counts the whole map. Held non-negative, H_s keeps positive entries only. With ε, the number of
    atoms is searched for. All in float64.

    `steps` of a solution counts atoms.

    Attributes:
        step: How μ is chosen. "fixed": ``1/‖A‖²``. "normalized": exact for the gradient on the support, halved until
            it is safe. "accelerated": normalized, and then along ``x - x_old`` on the new support as far as the
            residual falls.
        rounds: The most gradient steps for one number of atoms.
        tol: The rounds end when ``‖b - A x‖²`` falls by less than this share of ``‖b‖²``.
        polish: Finish by least squares on the support. The residual never rises by it.

    Source: Blumensath & Davies 2009 (fixed), 2010 (normalized); Blumensath 2012 (accelerated).
    """

    step: str = "accelerated"
    rounds: int = 1000
    tol: float = 1e-10
    polish: bool = True

    def __post_init__(self) -> None:
        if self.step not in _STEPS:
            hint = near_misses(self.step, _STEPS) if isinstance(self.step, str) else ""
            raise ParameterError(f"step is {self.step!r}; expected 'accelerated', 'normalized' or 'fixed'{hint}")
        object.__setattr__(self, "rounds", require_integer("rounds", self.rounds, minimum=1))
        object.__setattr__(self, "tol", require_number("tol", self.tol, minimum=0.0))
        object.__setattr__(self, "polish", check_flag("polish", self.polish))

    def pursue(self, form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
        """Return codes and the number of their non-zeros."""
        return by_size(form, sparsity, limits, self._search)

    def _search(self, form: StandardForm, sizes: Tensor) -> Tensor:
        codes = descend(self, form, sizes)
        return refined(form, codes, unit_gram(form)) if self.polish else codes


def descend(settings: IHT, form: StandardForm, sizes: Tensor, seen: list[Tensor] | None = None) -> Tensor:
    """Return the codes of iterative hard thresholding, without least squares on their support.

    Args:
        settings: Step, rounds and tolerance.
        form: The problem, float64.
        sizes: The most non-zeros of every sample.
        seen: Takes ``‖b - A x‖²`` of all samples after every round.
    """
    norms, inverse = column_norms(form)
    (codes,), residual = form.zeros(), form.data[0].clone()
    first = squared_norm(form.data)
    energy = first.clone()
    safe = 1.0 / max(_unit_lipschitz(form, inverse), 1e-300)
    rows = (energy > 0).nonzero().flatten()
    for _ in range(settings.rounds):
        if not len(rows):
            break
        here = form.select(rows)
        scale, back = (v if len(v) == 1 else v[rows] for v in (norms, inverse))
        x, r, size = codes[rows] * scale, residual[rows], sizes[rows]

        def synthesize(z: Tensor, here: StandardForm = here, back: Tensor = back) -> Tensor:
            return here.operator.synthesize((z * back,))[0]

        gradient = here.operator.analyze((r,))[0] * back
        step = torch.full_like(energy[rows], safe)
        if settings.step != "fixed":
            start = torch.where((x == 0).flatten(1).all(1), 1.0, 0.0)
            top = _kept(gradient, size, form.nonnegative)
            part = torch.where(per_sample(start, x) > 0, top, torch.where(x != 0, gradient, 0.0))
            curvature = squared_norm((synthesize(part),))
            exact = squared_norm((part,)) / curvature.clamp_min(torch.finfo(torch.float64).tiny)
            step = torch.where(curvature > 0, exact.clamp_min(safe), step)
        new, move, image = x, torch.zeros_like(x), torch.zeros_like(r)
        waiting = torch.ones_like(step, dtype=torch.bool)
        for _ in range(_SHRINKS):
            new = _kept(x + per_sample(step, x) * gradient, size, form.nonnegative)
            move = new - x
            image = synthesize(move)
            waiting = (step * squared_norm((image,)) > _ROOM * squared_norm((move,))) & (step > safe)
            if not bool(waiting.any()):
                break
            step = torch.where(waiting, (step / _SHRINK).clamp_min(safe), step)
        r = r - image
        if settings.step == "accelerated":
            new, r = _further(new, move, r, synthesize, form.nonnegative)
        now = squared_norm((r,))
        better = now < energy[rows]
        enough = energy[rows] - now <= settings.tol * first[rows]
        taken = rows[better]
        codes[taken], residual[taken], energy[taken] = (new * back)[better], r[better], now[better]
        rows = rows[better & ~enough & (now > _ZERO**2 * first[rows])]
        if seen is not None:
            seen.append(energy.clone())
    return codes


def _kept(values: Tensor, sizes: Tensor, nonnegative: bool) -> Tensor:
    """Return H_s: the largest entries, and zeros."""
    return torch.where(largest_entries(values.clamp_min(0) if nonnegative else values.abs(), sizes), values, 0.0)


def _further(
    codes: Tensor, move: Tensor, residual: Tensor, synthesize: Callable[[Tensor], Tensor], nonnegative: bool
) -> tuple[Tensor, Tensor]:
    """Return codes and residual at the lowest point of the line along the last move on the support."""
    along = torch.where(codes != 0, move, 0.0)
    image = synthesize(along)
    curvature = squared_norm((image,))
    share = torch.where(curvature > 0, inner((residual,), (image,)) / curvature, 0.0)
    if nonnegative:
        room = torch.where(along < 0, codes / -along, torch.inf).flatten(1).amin(1)
        share = torch.minimum(share.clamp_min(0), room)
    moved = codes + per_sample(share, along) * along
    if nonnegative:
        moved = moved.clamp_min(0)  # the entry that reaches zero may come out a rounding below it
    return moved, residual - per_sample(share, image) * image


def _unit_lipschitz(form: StandardForm, inverse: Tensor) -> float:
    """Return a bound on ``‖A‖²`` for A with unit columns."""
    gram = unit_gram(form)
    if gram is not None:
        return (1 + 1e-9) * float(torch.linalg.eigvalsh(gram)[-1]) if gram.numel() else 1.0
    return form.operator.lipschitz()[0] * (float(inverse.max()) ** 2 if inverse.numel() else 1.0)
