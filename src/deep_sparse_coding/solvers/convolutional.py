"""Coordinate descent on the residual image, compiled, for convolutional dictionaries on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deep_sparse_coding.checks import require_integer
from deep_sparse_coding.dictionaries import ConvDictionary
from deep_sparse_coding.problems import Blocks, Certificate, StandardForm, assess_form
from deep_sparse_coding.problems.operators import RidgeOperator, SingleOperator

from .base import Solver, State, select_blocks
from .compiled_certificate import certify_compiled, with_violations

if TYPE_CHECKING:
    from ._kernels_conv import Picture

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
    1e-4 and in float64 below. Codes are the same to the last bit for any number of threads and any batch. A mask, and
    boundary "same", which is one on a larger image, cost a quarter more: norms then depend on the position.

    Attributes:
        rounds: The most rounds of one step; `steps` of a solution counts rounds.

    Raises:
        ParameterError: `rounds` is no whole number of at least 1.

    Source: Kavukcuoglu et al. 2010 (coordinate descent on convolutions); Massias, Gramfort & Salmon 2018 (working
    sets); Moreau, Oudre & Vayatis 2018 (regions).
    """

    rounds: int = 50
    check_every = 1
    makes_new_codes = True
    finds_zero = True

    def __post_init__(self) -> None:
        require_integer("rounds", self.rounds, minimum=1)

    def refuse(self, form: StandardForm) -> str | None:
        """Return why not: dense or layered operators, other penalties, three spatial axes, other devices."""
        use = "use dsc.FISTA()"
        operator = form.operator
        if form.beyond:
            return f"ConvCoordinateDescent takes no {form.beyond}; {use}"
        if isinstance(operator, RidgeOperator):
            return f"ConvCoordinateDescent takes no ridge; {use}"
        if form.data[0].device.type != "cpu":
            return f"ConvCoordinateDescent runs on the CPU and the signal is on {form.data[0].device}; {use}"
        if not isinstance(operator, SingleOperator) or not isinstance(operator.dictionary, ConvDictionary):
            return "ConvCoordinateDescent takes one ConvDictionary; use dsc.CoordinateDescent() or dsc.FISTA()"
        if operator.mask is not None and bool(((operator.mask != 0) & (operator.mask != 1)).any()):
            return f"ConvCoordinateDescent takes masks of zeros and ones and this one has other numbers; {use}"
        if operator.dictionary.axes > 2:
            return f"ConvCoordinateDescent takes one or two spatial axes and the kernels have three; {use}"
        return None

    def init(self, form: StandardForm, start: Blocks, tol: float) -> ConvCoordinateState:
        """Return the state at `start`."""
        return ConvCoordinateState(start, 0, _AIM[form.data[0].dtype] * tol, start[0])

    def step(self, form: StandardForm, state: ConvCoordinateState) -> ConvCoordinateState:
        """Return the state after one run of the kernel."""
        from ._kernels_conv import solve_images

        picture = _picture(form, state.exact)
        codes, rounds, _ = solve_images(picture, tol=state.aim, max_rounds=self.rounds, threads=torch.get_num_threads())
        exact = torch.from_numpy(codes).reshape(state.exact.shape)
        used = int(rounds.max()) if len(rounds) else 0
        return replace(state, codes=(exact.to(form.data[0].dtype),), steps=state.steps + max(used, 1), exact=exact)

    def assess(self, form: StandardForm, codes: Blocks, tol: float) -> Certificate:
        """Return the certificate of flat codes that `assess_form` returns, as far as that will do by compiled passes.

        Samples whose relative gap at the scaled residual is above `tol`, and whose codes are not zero, are left to it.

        Args:
            form: The problem, in float64.
            codes: Finite codes ``(batch, atoms, ...)``.
            tol: The relative gap that is small enough.
        """
        if self.refuse(form) is not None or bool((form.weights[0] == 0).any()):
            return assess_form(form, codes, tol)
        from ._kernels_conv import assess_images

        form = form.cast(torch.float64)
        found = with_violations(form, codes, assess_images(_picture(form, codes[0]), threads=torch.get_num_threads()))
        return certify_compiled(form, codes, *found, tol)


def _picture(form: StandardForm, codes: Tensor) -> Picture:
    """Return a problem on lines or images as arrays of images, with codes to begin from."""
    from ._kernels_conv import Picture

    operator = form.operator
    assert isinstance(operator, SingleOperator), "refuse() has been asked"
    dictionary, images, mask = operator.dictionary, form.data[0], operator.mask
    assert isinstance(dictionary, ConvDictionary), "refuse() has been asked"
    margin = [max(n, 0) for pair in reversed(dictionary.padding) for n in pair]
    if any(margin):
        # Atoms that the border cuts off are whole ones on a larger image of which the margin was not observed.
        mask = images.new_ones(1, *images.shape[1:]) if mask is None else mask
        images, mask = F.pad(images, margin), F.pad(mask, margin)
    line = dictionary.axes == 1
    parts = (dictionary.kernels.detach(), images, form.weights[0], codes.detach())
    kernels, pictures, weights, numbers = (_image(part, line).numpy() for part in parts)
    return Picture(
        kernels,
        pictures,
        weights,
        numbers,
        (1, dictionary.stride[0]) if line else (dictionary.stride[0], dictionary.stride[1]),
        dictionary.boundary == "circular",
        form.nonnegative,
        None if mask is None else _image(mask, line).numpy(),
    )


def _image(tensor: Tensor, line: bool) -> Tensor:
    """Return a signal over a line as an image of height 1, and an image as it is."""
    return tensor.unsqueeze(-2) if line else tensor
