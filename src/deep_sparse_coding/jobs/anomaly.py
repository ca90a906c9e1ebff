"""Where a dictionary cannot explain an image: the energy that is left, place by place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import require_number
from ..dictionaries import Cascade, Dictionary
from ..dictionaries.cascade import as_cascade
from ..errors import ParameterError, ShapeError
from ..learning.preprocess import gaussian_window, mirrored
from ..solvers import Solution

KINDS = ("energy", "surprise")


def anomaly_map(
    codes: Solution | Tensor | Sequence[Tensor],
    model: Dictionary | Cascade,
    signal: Tensor | None = None,
    *,
    sigma: float = 2.0,
    kind: str = "energy",
    floor: float = 1.0,
) -> Tensor:
    """Return how badly every place of an image is explained, 0 where the codes give it exactly.

    With ``r = y - ŷ`` and g a Gaussian window, ``e_r = g * ‖r‖²`` and ``e_ŷ = g * ‖ŷ‖²``, norms over the channels.

    Kind "energy" is ``e_r``. Codes of a Lasso leave about the same residual wherever atoms fit, whatever the contrast
    there, for ``|Dᵀr| ≤ lam``; what stands out is what no atom resembles.

    Kind "surprise" is ``-log(e / (e + e_r))`` with ``e = e_ŷ + floor·mean(e_ŷ)``: the negative logarithm of the
    explained share of the energy. It also finds faint defects among faint structure, and the floor keeps it from
    finding what is merely flat.

    Args:
        codes: A solution; or a tensor ``(*batch, atoms, ...)``; or, of a cascade, one tensor per layer: the deepest
            explain.
        model: The dictionary, or the cascade, that the codes belong to.
        signal: What was coded, ``(*batch, channels, H, W)``, 1-d and 3-d alike; of a solution its own.
        sigma: Width of the window in pixels: about half the width of what is looked for.
        kind: "energy" or "surprise".
        floor: Share of the mean explained energy that is added, for "surprise".

    Returns:
        ``(*batch, H, W)``, float64, at or above 0.

    Raises:
        ParameterError: An unknown kind, a window or floor that is not positive, codes that are not finite, no signal.
        ShapeError: Codes or signal that do not fit, or a dense dictionary.
    """
    cascade = as_cascade(model)
    sigma = require_number("sigma", sigma, minimum=0.0, strict=True)
    floor = require_number("floor", floor, minimum=0.0, strict=True)
    if kind not in KINDS:
        raise ParameterError(f"kind is {kind!r}; expected 'energy' or 'surprise'")
    if isinstance(codes, Solution):
        signal = codes.signal if signal is None else signal
        codes = codes.codes
    if signal is None:
        raise ParameterError("signal is None and codes are no solution; expected the image that was coded")
    first, last = cascade.layers[0], cascade.layers[-1]
    if first.event_axes == 1:
        raise ShapeError(
            "model is dense, and its signals have no places; expected a convolutional dictionary: of patches compare "
            "their residuals"
        )
    deepest = last.check_codes(codes if isinstance(codes, Tensor) else codes[-1]).detach()
    if not bool(torch.isfinite(deepest).all()):
        raise ParameterError("codes have entries that are not finite; expected finite codes: look at solution.status")
    estimate = cascade.cast(torch.float64).synthesize(deepest.double())
    image = first.check_signal(signal).detach().double()
    if image.shape != estimate.shape:
        raise ShapeError(f"signal has shape {tuple(image.shape)}; expected {tuple(estimate.shape)}, what codes make")
    axes = first.event_axes - 1
    left = _window((image - estimate).square().sum(-axes - 1), sigma, axes)
    if kind == "energy":
        return left
    explained = _window(estimate.square().sum(-axes - 1), sigma, axes)
    explained = explained + floor * explained.mean(tuple(range(-axes, 0)), keepdim=True)
    # Where nothing at all is explained the share is nought: the smallest number stands for it.
    return torch.log1p(left / explained.clamp_min(torch.finfo(torch.float64).tiny))


def _window(values: Tensor, sigma: float, axes: int) -> Tensor:
    """Return values under a Gaussian window along the last axes, mirrored at the border."""
    reach = max(1, math.ceil(4 * sigma))
    window = gaussian_window(sigma, reach).to(values)
    for axis in range(-axes, 0):
        values = (mirrored(values, axis, reach).unfold(axis, 2 * reach + 1, 1) * window).sum(-1)
    return values
