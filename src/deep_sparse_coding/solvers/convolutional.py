"""Coordinate descent on the residual image, compiled, for convolutional dictionaries on a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_integer
from deep_sparse_coding.dictionaries import ConvDictionary
from deep_sparse_coding.problems import Blocks, StandardForm
from deep_sparse_coding.problems.operators import SingleOperator

from .base import Solver, State, select_blocks

# The kernel aims below tol: what it proves must survive rounding of the codes to the user's precision.
_AIM = {torch.float64: 0.9, torch.float32: 0.8}


@dataclass(frozen=True, eq=False)
class ConvCoordinateState(State):
    """Codes, the relative gap to aim at, and the codes before they were rounded to the user's precision.

    Attributes:
        aim: The kernel's own tolerance.
        exact: Codes in float64, or those of the start: the next step goes on from here and not from rounded ones.
    """

    aim: float
    exact: Tensor

    def select(self, keep: Tensor) -> ConvCoordinateState:
        """Return the state of the samples `keep`."""
        return replace(self, codes=select_blocks(self.codes, keep), exact=self.exact[keep])


@dataclass(frozen=True)
class ConvCoordinateDescent(Solver[ConvCoordinateState]):
    """Working sets, coordinate descent on windows of the residual, and conjugate gradients on the support.

    One step runs the compiled kernel on every signal by itself: a working set grows along a falling threshold, sweeps
    of coordinate descent update one window of the residual at a time, and once the threshold is down at lam, conjugate
    gradients solve the normal equations of the support as far as the objective falls. The correlations with all
    kernels at all positions are computed between these rounds only. It works in float32 down to a relative gap of
    1e-4 and in float64 below. Codes are the same to the last bit for any number of threads and any batch.

    Attributes:
        rounds: The most rounds of one step; `steps` of a solution counts rounds.

    Raises:
        ParameterError: `rounds` is no whole number of at least 1.

    Source: Kavukcuoglu et al. 2010 (coordinate descent on convolutions); Massias, Gramfort & Salmon 2018 (working
    sets); Moreau, Oudre & Vayatis 2018 (regions).
    """

    rounds: int = 50
    check_every = 1

    def __post_init__(self) -> None:
        require_integer("rounds", self.rounds, minimum=1)

    def refuse(self, form: StandardForm) -> str | None:
        """Return why not: dense or layered operators, masks, three spatial axes, other devices."""
        use = "use dsc.FISTA()"
        operator = form.operator
        if form.data[0].device.type != "cpu":
            return f"ConvCoordinateDescent runs on the CPU and the signal is on {form.data[0].device}; {use}"
        if not isinstance(operator, SingleOperator) or not isinstance(operator.dictionary, ConvDictionary):
            return "ConvCoordinateDescent takes one ConvDictionary; use dsc.CoordinateDescent() or dsc.FISTA()"
        if operator.mask is not None:
            return f"ConvCoordinateDescent takes no mask: under one the norm of an atom depends on its position; {use}"
        if operator.dictionary.axes > 2:
            return f"ConvCoordinateDescent takes one or two spatial axes and the kernels have three; {use}"
        return None

    def init(self, form: StandardForm, start: Blocks, tol: float) -> ConvCoordinateState:
        """Return the state at `start`."""
        return ConvCoordinateState(start, 0, _AIM[form.data[0].dtype] * tol, start[0])

    def step(self, form: StandardForm, state: ConvCoordinateState) -> ConvCoordinateState:
        """Return the state after one run of the kernel."""
        from ._kernels_conv import solve_images

        kernels, images, weights, start, stride, ring = _arrays(form, state.exact)
        codes, rounds, _ = solve_images(
            kernels,
            images,
            weights,
            start,
            stride,
            ring,
            form.nonnegative,
            state.aim,
            self.rounds,
            threads=torch.get_num_threads(),
        )
        exact = torch.from_numpy(codes).reshape(state.exact.shape)
        used = int(rounds.max()) if len(rounds) else 0
        return replace(state, codes=(exact.to(form.data[0].dtype),), steps=state.steps + max(used, 1), exact=exact)


def assess_convolution(form: StandardForm, codes: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the objective and the duality gap of codes per sample, float64, or None where this file takes no form.

    The same numbers as `dual_point` gives, by the compiled correlations and without a map of the size of the codes.

    Args:
        form: The problem.
        codes: ``(batch, atoms, ...)``, finite.
    """
    if ConvCoordinateDescent().refuse(form) is not None:
        return None
    from ._kernels_conv import assess_images

    kernels, images, weights, numbers, stride, ring = _arrays(form, codes)
    objective, gap = assess_images(
        kernels, images, weights, numbers, stride, ring, form.nonnegative, torch.get_num_threads()
    )
    violated = torch.zeros(form.batch, dtype=torch.bool)
    if form.nonnegative:
        violated |= (codes < 0).flatten(1).any(1)
    if bool(torch.isinf(form.weights[0]).any()):
        violated |= ((codes != 0) & torch.isinf(form.weights[0])).flatten(1).any(1)
    values = [torch.from_numpy(value).masked_fill(violated, math.inf) for value in (objective, gap)]
    return values[0], values[1]


def _arrays(form: StandardForm, codes: Tensor) -> tuple[Any, Any, Any, Any, tuple[int, int], bool]:
    """Return kernels, images, weights and codes as arrays of images, the stride, and whether kernels wrap around."""
    operator = form.operator
    assert isinstance(operator, SingleOperator), "refuse() has been asked"
    dictionary = operator.dictionary
    assert isinstance(dictionary, ConvDictionary), "refuse() has been asked"
    line = dictionary.axes == 1
    parts = (dictionary.kernels.detach(), form.data[0], form.weights[0], codes.detach())
    kernels, images, weights, numbers = (_image(part, line).numpy() for part in parts)
    stride = (1, dictionary.stride[0]) if line else (dictionary.stride[0], dictionary.stride[1])
    return kernels, images, weights, numbers, stride, dictionary.boundary == "circular"


def _image(tensor: Tensor, line: bool) -> Tensor:
    """Return a signal over a line as an image of height 1, and an image as it is."""
    return tensor.unsqueeze(-2) if line else tensor
