"""Preparing images for learning: local contrast normalization, which leaves edges and takes light and shade away."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from deep_sparse_coding.checks import require_float_tensor, require_number
from deep_sparse_coding.errors import ParameterError, ShapeError


def contrast_normalize(images: Tensor, sigma: float = 3.0, *, floor: float = 0.5) -> Tensor:
    """Return ``(y - m) / max(s, floor·s̄)``: the local mean m taken away, divided by the local standard deviation s.

    Mean and deviation are taken under a Gaussian window of width `sigma` over all channels together; at the border the
    image is mirrored. ``s̄`` is the mean of s over the image: where the picture is flat the floor keeps noise small.

    Args:
        images: ``(*batch, channels, H, W)``, float32 or float64.
        sigma: Width of the window in pixels: about as large as the atoms are to be.
        floor: Deviations below this share of their mean over the image count as that share.

    Returns:
        Images of the same shape, with deviations of about one.

    Raises:
        DtypeError: Not float32 or float64; of 8-bit images take ``images.float() / 255``.
        ParameterError: `sigma` or `floor` not positive, or images that are not finite.
        ShapeError: Fewer than three axes, or empty images.

    Source: Jarrett, Kavukcuoglu, Ranzato & LeCun 2009, section 2 (local contrast normalization).
    """
    images = require_float_tensor("images", images)
    sigma = require_number("sigma", sigma, minimum=0.0, strict=True)
    floor = require_number("floor", floor, minimum=0.0, strict=True)
    if images.ndim < 3 or 0 in images.shape[-3:]:
        raise ShapeError(
            f"images has shape {tuple(images.shape)}; expected (*batch, channels, H, W), none of them 0: of one grey "
            "image take image[None]"
        )
    if not bool(torch.isfinite(images).all()):
        raise ParameterError("images has entries that are not finite; expected finite images: repair or remove them")
    *batch, channels, height, width = images.shape
    flat = images.detach().reshape(math.prod(batch), channels, height, width)
    mean = _blur(flat.mean(1, keepdim=True), sigma)
    centered = flat - mean
    deviation = _blur(centered.square().mean(1, keepdim=True), sigma).clamp_min(0).sqrt()
    least = floor * deviation.mean((1, 2, 3), keepdim=True)
    # A constant image has deviation 0 (up to rounding) and becomes 0.
    tiny = torch.finfo(images.dtype).eps * flat.abs().amax((1, 2, 3), keepdim=True)
    scale = torch.maximum(deviation, torch.maximum(least, 16 * tiny)).clamp_min(torch.finfo(images.dtype).tiny)
    return (centered / scale).reshape(images.shape)


def gaussian_window(sigma: float, reach: int) -> Tensor:
    """Return the weights ``∝ exp(-t²/(2σ²))`` for ``|t| ≤ reach``, float64, with sum 1."""
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    window = torch.exp(-0.5 * (offsets / sigma).square())
    return window / window.sum()


def mirrored(values: Tensor, axis: int, reach: int) -> Tensor:
    """Return values continued by `reach` entries on both sides of an axis, mirrored at the border."""
    length = values.shape[axis]
    # As often as it takes: a window may be wider than the image.
    places = torch.arange(-reach, length + reach) % (2 * length)
    places = torch.where(places < length, places, 2 * length - 1 - places).to(values.device)
    return values.index_select(axis, places)


def _blur(images: Tensor, sigma: float) -> Tensor:
    """Return images ``(n, 1, H, W)`` under a Gaussian window, mirrored at the border."""
    reach = max(1, math.ceil(3 * sigma))
    window = gaussian_window(sigma, reach).to(images)
    for axis in (2, 3):
        wide = mirrored(images, axis, reach)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        images = F.conv2d(wide, window.reshape(shape))
    return images
