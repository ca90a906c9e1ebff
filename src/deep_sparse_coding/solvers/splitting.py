"""Splitting: the quadratic solved exactly, in the frequency domain for convolutions, and the penalty by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, require_number
from deep_sparse_coding.dictionaries import ConvDictionary, DenseDictionary
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.problems import Blocks, StandardForm
from deep_sparse_coding.problems.base import per_sample
from deep_sparse_coding.problems.operators import Operator, RidgeOperator, SingleOperator

from ._spectral import ConvResolvent, DenseResolvent, Resolvent, ring_size
from .base import Solver, State, select_blocks

# ρ starts at this times ‖d‖²·lam/lam_max, and lam/lam_max counts as no less than the second number.
_START = 10.0
_SMALLEST_SHARE = 1e-3
# ρ is changed by no more than the first factor at a time, and not at all for less than the second.
_LARGEST_CHANGE = 10.0
_SMALLEST_CHANGE = 1.1
# It is looked at after every 10 steps, then more and more rarely: the iteration converges for any ρ that rests, and
# one that follows every swing of the residuals can swing with them for ever.
_LOOKS = frozenset(accumulate(range(60), lambda step, _: step + max(10, step // 4), initial=10))
# The weight of the split ``v = D x`` under a mask, of which an observed entry weighs 1.
_MASK_WEIGHT = 1.0


@dataclass(frozen=True, eq=False)
class ADMMState(State):
    """Both halves of the splitting, on the grid of the resolvent.

    Attributes:
        resolvent: What solves the quadratic.
        rho: ρ of every sample, ``(batch,)``.
        threshold: ``w/ρ``, ``(batch, ...)``; None if the penalty takes more than a threshold.
        split: z, which is sparse.
        dual: The scaled multipliers u of ``x = z``.
        rotated: The data in the resolvent's basis; without a mask only.
        mask: Of the data on the grid, or None.
        observed: ``Mᵀb`` under a mask.
        image: ``v + e``, the split data and their scaled multipliers, under a mask.
        scratch: Room for the next step.
    """

    resolvent: Resolvent
    rho: Tensor
    threshold: Tensor | None
    split: Tensor
    dual: Tensor
    rotated: Tensor
    mask: Tensor | None
    observed: Tensor
    image: Tensor
    scratch: Tensor

    def select(self, keep: Tensor) -> ADMMState:
        """Return the state of the samples `keep`."""
        mask = self.mask
        return ADMMState(
            select_blocks(self.codes, keep),
            self.steps,
            self.resolvent,
            self.rho[keep],
            None if self.threshold is None else self.threshold[keep],
            self.split[keep],
            self.dual[keep],
            self.rotated[keep],
            mask if mask is None or len(mask) == 1 else mask[keep],
            self.observed[keep],
            self.image[keep],
            self.scratch[: len(keep)],
        )


@dataclass(frozen=True)
class ADMM(Solver[ADMMState]):
    """Alternating directions: the data term solved exactly for all codes at once, then one threshold.

    ``x = argmin ½‖b - A x‖² + ρ/2‖x - z + u‖²``, ``z⁺ = S_{w/ρ}(x̂ + u)``, ``u⁺ = x̂ + u - z⁺`` with the over-relaxed
    ``x̂ = αx + (1 - α)z``. The codes are z, so that zeros are exact. For convolutions the first line is one small system
    per frequency; other boundaries than "circular" are solved on a larger ring, where atoms that the problem does not
    have are forbidden; with a stride the signal's residues are channels; under a mask ``v = D x`` is split off as well.
    Dense matrices are decomposed once. ρ is per sample and balances the residuals of x = z and of the multipliers,
    which costs no new factors.

    Number of steps: tens, hardly depending on the condition of A, to a moderate gap; many for a tiny one. It pays where
    codes are dense; see `dsc.ConvCoordinateDescent` for sparse ones.

    Attributes:
        rho: ρ to start from; None for one in proportion to ``lam/lam_max``.
        relaxation: α, above 0 and below 2.
        adapt: Whether ρ adapts.

    Raises:
        ParameterError: A setting out of range.

    Source: Boyd, Parikh, Chu, Peleato & Eckstein 2011; per frequency: Wohlberg 2014; splitting under a mask: Heide,
    Heidrich & Wetzstein 2015; relative residuals: Wohlberg 2017.
    """

    rho: float | None = None
    relaxation: float = 1.8
    adapt: bool = True
    check_every = 25

    def __post_init__(self) -> None:
        if self.rho is not None:
            require_number("rho", self.rho, minimum=0.0, strict=True)
        relaxation = require_number("relaxation", self.relaxation, minimum=0.0, strict=True)
        if relaxation >= 2:
            raise ParameterError(f"relaxation is {relaxation}; expected a number above 0 and below 2: 1.8 is good")
        check_flag("adapt", self.adapt)

    def workspace(self, form: StandardForm) -> tuple[int, int]:
        """Return the bytes of the factors, and of the maps that a step holds for each sample."""
        item, dictionary = form.data[0].element_size(), _convolution(form)
        if dictionary is not None:
            places = math.prod(ring_size(dictionary, form.code_shapes[0][1:]))
            rows = min(dictionary.channels * math.prod(dictionary.stride), dictionary.atoms)
            return item * places * rows * (dictionary.atoms + 1), self.step_maps * item * places * dictionary.atoms
        codes = sum(math.prod(shape) for shape in form.code_shapes)
        rows = sum(math.prod(block.shape[1:]) for block in form.data)
        return item * min(rows, codes) * (rows + codes), self.step_maps * item * codes

    def refuse(self, form: StandardForm) -> str | None:
        """Return why not: several convolutional layers, joint problems with a mask per sample."""
        operator, _ = _quadratic(form)
        if isinstance(operator, SingleOperator) or operator.matrix() is not None:
            return None
        return "ADMM takes a joint problem only if its layers are dense and share one mask; use dsc.FISTA()"

    def init(self, form: StandardForm, start: Blocks, tol: float) -> ADMMState:
        """Return the state at `start`, with multipliers that are right if it is optimal."""
        resolvent, mask = _resolvent(form)
        rows = form.data[:1] if isinstance(form.operator, RidgeOperator) else form.data
        data = resolvent.embed(rows[0] if len(rows) == 1 else torch.cat([block.flatten(1) for block in rows], 1))
        rho, codes = self._start(form), resolvent.lift(start)
        threshold, made = _threshold(form, resolvent, rho), resolvent.synthesize(codes)
        residual = data - made if mask is None else mask * (data - mask * made)
        scratch = codes + resolvent.analyze(residual) / per_sample(rho, codes)
        dual = torch.empty_like(scratch)
        _split_(form, resolvent, scratch, dual, threshold, rho)
        split = codes + dual
        _split_(form, resolvent, split, dual, threshold, rho)
        if mask is None:
            rotated = resolvent.rotate(data)
            observed = image = data[:, :0]
        else:
            observed, rotated = mask * data, data[:, :0]
            image = made - residual / _MASK_WEIGHT
        return ADMMState(start, 0, resolvent, rho, threshold, split, dual, rotated, mask, observed, image, scratch)

    def step(self, form: StandardForm, state: ADMMState) -> ADMMState:
        """Return the state one update of x, z and u later; it takes over the memory of the state before."""
        split, dual, resolvent, rho = state.split, state.dual, state.resolvent, state.rho
        image, threshold = state.image, state.threshold
        work = torch.sub(split, dual, out=state.scratch)
        if state.mask is None:
            resolvent.correct_(work, state.rotated, rho)
        else:
            observed = (state.observed + _MASK_WEIGHT * image) / (state.mask.square() + _MASK_WEIGHT)
            rotated, ratio = resolvent.rotate(2 * observed - image), rho / _MASK_WEIGHT
            inner = resolvent.correct_(work, rotated, ratio)
            made = resolvent.unrotate(rotated - per_sample(ratio, inner) * inner)
            image = image + self.relaxation * (made - observed)
        work.sub_(dual)  # x - z
        steps = state.steps + 1
        adapts = self.adapt and steps in _LOOKS
        primal, size = (_norms(work), _norms(work + split)) if adapts else (rho, rho)
        codes = work.mul_(self.relaxation).add_(split).add_(dual)
        _split_(form, resolvent, codes, dual, threshold, rho)
        if adapts:
            factor = _balance(primal / torch.maximum(size, _norms(codes)), _norms(split.sub_(codes)) / _norms(dual))
            if bool((factor != 1).any()):
                rho = rho * factor
                dual.div_(per_sample(factor, dual))
                threshold = _threshold(form, resolvent, rho)
        return replace(
            state,
            codes=resolvent.lower(codes),
            steps=steps,
            rho=rho,
            threshold=threshold,
            split=codes,
            image=image,
            scratch=split,
        )

    def _start(self, form: StandardForm) -> Tensor:
        ones = form.data[0].new_ones(form.batch)
        if self.rho is not None:
            return self.rho * ones
        operator, _ = _quadratic(form)
        norms = torch.cat([n.flatten() for n in operator.squared_norms()]).mean()
        ratio = form.penalty.largest_ratio(form.weights, form.operator.analyze(form.data))
        return _START * norms * (1 / ratio).clamp(_SMALLEST_SHARE, 1.0)


def _quadratic(form: StandardForm) -> tuple[Operator, float]:
    """Return the operator without its ridge, and the ridge, which goes with the penalty."""
    operator = form.operator
    return (operator.inner, operator.ridge) if isinstance(operator, RidgeOperator) else (operator, 0.0)


def _convolution(form: StandardForm) -> ConvDictionary | None:
    operator, _ = _quadratic(form)
    if isinstance(operator, SingleOperator) and isinstance(operator.dictionary, ConvDictionary):
        return operator.dictionary
    return None


def _resolvent(form: StandardForm) -> tuple[Resolvent, Tensor | None]:
    """Return what solves the quadratic, and the mask on its data that is not inside it."""
    operator, _ = _quadratic(form)
    matrix = operator.matrix()
    if matrix is not None:
        return DenseResolvent.of(matrix, tuple(shape[0] for shape in form.code_shapes)), None
    assert isinstance(operator, SingleOperator), "refuse() has been asked"
    dictionary, mask = operator.dictionary, operator.mask
    if isinstance(dictionary, DenseDictionary):
        return DenseResolvent.of(dictionary.matrix.detach(), (dictionary.atoms,)), mask
    assert isinstance(dictionary, ConvDictionary), "refuse() has been asked"
    resolvent = ConvResolvent.of(dictionary, form.code_shapes[0][1:])
    if mask is None and resolvent.cuts:
        mask = torch.ones_like(form.data[0][:1])
    # Where the atoms that are permitted make zeros, these may count as observed.
    return resolvent, None if mask is None else resolvent.embed(mask, 0.0 if resolvent.cuts else 1.0)


def _threshold(form: StandardForm, resolvent: Resolvent, rho: Tensor) -> Tensor | None:
    """Return ``w/ρ`` in a shape that broadcasts against codes on the grid; None if it takes more than a threshold."""
    if form.structure is not None or _quadratic(form)[1]:
        return None
    weights = form.weights[0]
    if len(form.weights) > 1 or any(n > 1 for n in weights.shape[2:]):
        most = max(len(w) for w in form.weights)
        shapes = zip(form.weights, form.code_shapes, strict=True)
        weights = resolvent.lift(tuple(w.expand(most, *shape) for w, shape in shapes))
    return weights / per_sample(rho, weights)


def _split_(
    form: StandardForm, resolvent: Resolvent, total: Tensor, dual: Tensor, threshold: Tensor | None, rho: Tensor
) -> None:
    """Turn `total` into z, the proximal step of the penalty there, and write ``u = total - z`` into `dual`.

    With a ridge δ that step is ``prox_{Ω/(ρ+δ)}(ρ/(ρ+δ)·total)``. Beyond the problem's codes z is zero.
    """
    if threshold is None:
        both = rho + _quadratic(form)[1]
        points = tuple(per_sample(rho / both, block) * block for block in resolvent.lower(total))
        split = form.penalty.shrink(points, tuple(w / per_sample(both, w) for w in form.weights))
        dual.copy_(total)
        for part, place, block in zip(resolvent.lower(dual), resolvent.lower(total), split, strict=True):
            part -= block
            place.copy_(block)
        for part in resolvent.beyond(total):
            part.zero_()
        return
    torch.minimum(total, threshold, out=dual)
    if not form.nonnegative:
        torch.maximum(dual, -threshold, out=dual)
    for part, whole in zip(resolvent.beyond(dual), resolvent.beyond(total), strict=True):
        part.copy_(whole)
    total.sub_(dual)


def _norms(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values.flatten(1), dim=1)


def _balance(primal: Tensor, dual: Tensor) -> Tensor:
    """Return, per sample, the factor of ρ that brings two relative residuals together, 1 where they are near."""
    factor = (primal / dual).sqrt()
    good = torch.isfinite(factor) & (factor > 0)
    factor = torch.where(good, factor, 1.0).clamp(1 / _LARGEST_CHANGE, _LARGEST_CHANGE)
    near = (factor < _SMALLEST_CHANGE) & (factor > 1 / _SMALLEST_CHANGE)
    return torch.where(near, 1.0, factor)
