"""Coordinate descent on the residuals of all layers, compiled, for convolutional joint problems on a CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_integer
from deep_sparse_coding.dictionaries import ConvDictionary
from deep_sparse_coding.problems import Blocks, Certificate, StandardForm, assess_form
from deep_sparse_coding.problems.operators import ChainOperator

from .base import Solver, State, select_blocks
from .compiled_certificate import certify_compiled, with_violations

# The kernel aims below tol: what it proves must survive rounding of the codes to the user's precision.
_AIM = {torch.float64: 0.9, torch.float32: 0.8}
# Maps of the size of codes and data, with their margins, that work on one sample holds.
_MAPS = 8


@dataclass(frozen=True, eq=False)
class JointCoordinateState(State):
    """Codes, the relative gap to aim at, and the codes before they were rounded to the user's precision.

    Attributes:
        aim: The kernel's own tolerance.
        exact: Codes in float64, or those of the start: the next step goes on from here and not from rounded ones.
    """

    aim: float
    exact: Blocks

    def select(self, keep: Tensor) -> JointCoordinateState:
        """Return the state of the samples `keep`."""
        return replace(self, codes=select_blocks(self.codes, keep), exact=select_blocks(self.exact, keep))


@dataclass(frozen=True)
class JointCoordinateDescent(Solver[JointCoordinateState]):
    """Working sets, coordinate descent on all layers' residuals, and conjugate gradients on their joint support.

    One step runs the compiled kernel on every signal by itself. The residuals ``y - D_1 x_1`` and
    ``x_{j-1} - D_j x_j`` are kept; a working set grows in all layers along a falling threshold, a code of layer j
    updates a window of its own residual and one entry of the residual above, and conjugate gradients on the supports
    of all layers together finish what coordinates alone do slowly where beta is large. The correlations with all
    kernels at all positions are computed between these rounds only. It works in float32 down to a relative gap of
    1e-4 and in float64 below. Codes are the same to the last bit for any number of threads and any batch.

    Attributes:
        rounds: The most rounds of one step; `steps` of a solution counts rounds.

    Raises:
        ParameterError: `rounds` is no whole number of at least 1.

    Source: joint DSC₁ in section 1 of docs/theory.md; Kavukcuoglu et al. 2010 (coordinate descent on convolutions);
    Massias, Gramfort & Salmon 2018 (working sets).
    """

    rounds: int = 50
    check_every = 1
    makes_new_codes = True
    finds_zero = True

    def __post_init__(self) -> None:
        require_integer("rounds", self.rounds, minimum=1)

    def workspace(self, form: StandardForm) -> tuple[int, int]:
        """Return the bytes that a step needs: images for every thread, and the codes in float64 for every sample."""
        codes = sum(math.prod(shape) for shape in form.code_shapes)
        data = sum(math.prod(block.shape[1:]) for block in form.data)
        return torch.get_num_threads() * _MAPS * (codes + data) * 8, 2 * codes * 8

    def refuse(self, form: StandardForm) -> str | None:
        """Return why not: other operators, masks, borders that cut atoms off, three spatial axes, other devices."""
        use = "use dsc.FISTA()"
        operator = form.operator
        if form.beyond:
            return f"JointCoordinateDescent takes no {form.beyond}; {use}"
        if form.data[0].device.type != "cpu":
            return f"JointCoordinateDescent runs on the CPU and the signal is on {form.data[0].device}; {use}"
        layers = _convolutions(form)
        if layers is None or not isinstance(operator, ChainOperator):
            return (
                "JointCoordinateDescent takes a JointLasso on convolutional layers; use dsc.CoordinateDescent() for "
                "dense ones, dsc.ConvCoordinateDescent() for a Lasso, or dsc.FISTA()"
            )
        boundaries = {layer.boundary for layer in layers}
        if not boundaries <= {"valid", "circular"}:
            return f"JointCoordinateDescent takes no atoms that the border cuts off (boundary 'same'); {use}"
        if operator.mask is not None:
            return f"JointCoordinateDescent takes no mask: under one the norm of an atom depends on its position; {use}"
        if layers[0].axes > 2:
            return f"JointCoordinateDescent takes one or two spatial axes and the kernels have three; {use}"
        return None

    def init(self, form: StandardForm, start: Blocks, tol: float) -> JointCoordinateState:
        """Return the state at `start`."""
        return JointCoordinateState(start, 0, _AIM[form.data[0].dtype] * tol, start)

    def step(self, form: StandardForm, state: JointCoordinateState) -> JointCoordinateState:
        """Return the state after one run of the kernel."""
        from ._kernels_joint import solve_joint

        stages, images, start = _arrays(form, state.exact)
        codes, rounds, _ = solve_joint(
            stages,
            images,
            start,
            form.nonnegative,
            state.aim,
            self.rounds,
            threads=torch.get_num_threads(),
        )
        exact = tuple(torch.from_numpy(x).reshape(old.shape) for x, old in zip(codes, state.exact, strict=True))
        used = int(rounds.max()) if len(rounds) else 0
        dtype = form.data[0].dtype
        return replace(state, codes=tuple(x.to(dtype) for x in exact), steps=state.steps + max(used, 1), exact=exact)

    def assess(self, form: StandardForm, codes: Blocks, tol: float) -> Certificate:
        """Return the certificate that `assess_form` returns, as far as that will do by compiled passes."""
        form = form.cast(torch.float64)
        found = assess_chain(form, codes)
        return assess_form(form, codes, tol) if found is None else certify_compiled(form, codes, *found, tol)


def assess_chain(form: StandardForm, codes: Blocks) -> tuple[Tensor, Tensor] | None:
    """Return the objective and the duality gap of codes per sample, float64, or None where this file takes no form.

    The same numbers as `dual_point` gives, by the compiled correlations.

    Args:
        form: The problem.
        codes: One block per layer, finite.
    """
    if JointCoordinateDescent().refuse(form) is not None:
        return None
    from ._kernels_joint import assess_joint

    stages, images, numbers = _arrays(form, codes)
    threads = torch.get_num_threads()
    return with_violations(form, codes, assess_joint(stages, images, numbers, form.nonnegative, threads))


def _convolutions(form: StandardForm) -> list[ConvDictionary] | None:
    """Return the layers of a chain of convolutions, or None."""
    if not isinstance(form.operator, ChainOperator):
        return None
    layers = [layer for layer in form.operator.layers if isinstance(layer, ConvDictionary)]
    return layers if len(layers) == len(form.operator.layers) else None


def _arrays(form: StandardForm, codes: Blocks) -> tuple[list[Any], Any, list[Any]]:
    """Return the layers, images and codes as arrays of images."""
    from ._kernels_joint import Stage

    operator, layers = form.operator, _convolutions(form)
    assert isinstance(operator, ChainOperator), "refuse() has been asked"
    assert layers is not None, "refuse() has been asked"
    line = layers[0].axes == 1

    def image(tensor: Tensor) -> Any:
        tensor = tensor.detach()
        return (tensor.unsqueeze(-2) if line else tensor).numpy()

    stages = []
    for layer, weights, beta in zip(layers, form.weights, operator.beta, strict=True):
        stride = (1, layer.stride[0]) if line else (layer.stride[0], layer.stride[1])
        ring = layer.boundary == "circular"
        stages.append(Stage(image(layer.kernels), image(weights), stride, beta, ring))
    return stages, image(form.data[0] / math.sqrt(operator.beta[0])), [image(block) for block in codes]
