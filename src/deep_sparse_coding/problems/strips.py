"""The certificate of large code maps, strip by strip: no map in float64 as large as the codes is ever held."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary
from deep_sparse_coding.dictionaries.windows import Window, Windows

from .base import StandardForm, inner, squared_norm, sum_rows, used_entries
from .certificate import Certificate, certify_gap
from .operators import Blocks, SingleOperator

# Maps of float64 as large as a strip of codes that are held at once.
_STRIP_MAPS = 4


@dataclass(frozen=True, eq=False)
class WindowForm:
    """The problem in the codes of one window, all others held at zero.

    Attributes:
        window: Where.
        form: The form, with the data that lie under the window.
    """

    window: Window
    form: StandardForm

    def codes(self, whole: Blocks) -> Tensor:
        """Return the window's part of a code map, in float64."""
        return self.window.cut_codes(whole[0]).double()


def convolution_of(form: StandardForm) -> ConvDictionary | None:
    """Return the dictionary of a form that can be cut into windows: a plain Lasso on one convolutional dictionary."""
    operator = form.operator
    if not form.beyond and isinstance(operator, SingleOperator) and isinstance(operator.dictionary, ConvDictionary):
        return operator.dictionary
    return None


def windows_of(form: StandardForm) -> Windows:
    """Return the windows of a form on one convolutional dictionary."""
    dictionary = convolution_of(form)
    assert dictionary is not None, "convolution_of() has been asked"
    return Windows.of(dictionary, form.code_shapes[0][1:], tuple(form.data[0].shape[2:]))


def window_form(form: StandardForm, windows: Windows, window: Window, data: Tensor | None = None) -> WindowForm:
    """Return the Lasso in the codes of one window.

    Args:
        form: The whole problem.
        windows: Its windows.
        window: One of them.
        data: What takes the place of the data under the window; None for the data themselves.
    """
    operator = form.operator
    assert isinstance(operator, SingleOperator), "convolution_of() has been asked"
    data = window.take(form.data[0]) if data is None else data
    mask = None if operator.mask is None else window.take(operator.mask)
    if window.cut:
        inside = window.inside().to(data)
        mask = inside.expand(1, 1, *inside.shape) if mask is None else mask * inside
    return WindowForm(
        window,
        replace(
            form,
            operator=SingleOperator(windows.valid, mask),
            data=(data,),
            weights=(window.cut_codes(form.weights[0]),),
            code_shapes=((form.code_shapes[0][0], *window.grid),),
        ),
    )


def strip_rows(form: StandardForm, room: int) -> int:
    """Return how many rows of code positions a strip may have for its maps in float64 to take `room` bytes."""
    atoms, grid = form.code_shapes[0][0], form.code_shapes[0][1:]
    columns = 2 * form.operator.dictionaries[0].weight[0].numel()  # to which a convolution unfolds on a CPU
    row = 8 * (_STRIP_MAPS * atoms + columns) * math.prod(grid[1:])
    return max(1, min(grid[0], room // row))


def assess_strips(form: StandardForm, codes: Blocks, rows: int) -> Certificate:
    """Return what `assess_form` returns, strip by strip, for a Lasso on one convolutional dictionary.

    The dual point is the scaled residual alone, whose scale all strips bound together; a first pass makes the residual,
    a second one the correlations, of which only those of atoms in use are kept.

    Args:
        form: The problem, in float64.
        codes: One block ``(batch, atoms, ...)`` in any precision.
        rows: Positions along the first axis that are worked on at once.
    """
    strips = list(_strips(form, rows))
    residual = form.data[0].clone()
    for strip in strips:
        part = (strip.codes(codes),)
        strip.window.add(residual, -strip.form.operator.synthesize(part)[0])
    energy = squared_norm((residual,))
    low = energy.new_full((form.batch,), -math.inf)
    high = -low
    value, used = torch.zeros_like(energy), []
    for strip in strips:
        correlation = strip.form.operator.analyze((strip.window.take(residual),))
        bounds = strip.form.penalty.interval(strip.form.weights, correlation)
        low, high = torch.maximum(low, bounds[0]), torch.minimum(high, bounds[1])
        part = strip.codes(codes)
        value += strip.form.penalty.value(strip.form.weights, (part,))
        index, weight, entry = used_entries(strip.form.weights[0], part)
        used.append((index[0], weight * entry.abs(), entry * correlation[0][index]))
    tiny = torch.finfo(energy.dtype).tiny
    alpha = torch.where(energy > 0, inner(form.data, (residual,)) / energy.clamp_min(tiny), 0.0)
    alpha = torch.minimum(torch.maximum(alpha, low), high)
    gap = 0.5 * (1 - alpha).square() * energy
    for rows_of, size, product in used:
        gap = gap + sum_rows(form.batch, rows_of, (size - alpha[rows_of] * product).clamp_min(0))
    return certify_gap(form.data, 0.5 * energy + value, torch.where(torch.isinf(value), math.inf, gap))


def _strips(form: StandardForm, rows: int) -> Iterator[WindowForm]:
    """Yield windows of whole rows that cover the code map."""
    windows = windows_of(form)
    n = windows.grid[0]
    for a in range(0, n, rows):
        box = windows.at([(a, min(a + rows, n)), *((0, m) for m in windows.grid[1:])])
        yield window_form(form, windows, box)
