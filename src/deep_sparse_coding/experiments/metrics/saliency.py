"""How well maps of what stands out agree with masks: MAE, F, weighted F, E and S, one number per image.

The measures are those of the literature, with its conventions: maps are stretched to [0, 1] first (unless
``normalize=False``), thresholds run over the 256 levels of a grey picture, and empty or full masks are treated as the
programs of the measures' authors treat them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...checks import check_flag, require_number
from ...errors import DtypeError, ParameterError, ShapeError

Array = np.ndarray
LEVELS = 256
_EPS = float(np.spacing(1))
Maps = Tensor | Array


@dataclass(frozen=True)
class SaliencyMeasures:
    """The measures of a set of images that the literature reports.

    Attributes:
        mae: Mean absolute error; smaller is better.
        max_f: Largest F over thresholds, of the mean over images (β² = 0.3).
        weighted_f: Weighted F (β = 1).
        max_e: Largest E over thresholds, of the mean over images.
        mean_e: E, mean over thresholds.
        s: S (α = 0.5).
    """

    mae: float
    max_f: float
    weighted_f: float
    max_e: float
    mean_e: float
    s: float


def saliency_measures(predictions: Maps, masks: Maps, *, normalize: bool = True) -> SaliencyMeasures:
    """Return all measures of a set of images of one size.

    Args:
        predictions: Maps ``(n, H, W)`` or ``(H, W)``: floats in [0, 1], or uint8 from 0 to 255.
        masks: The truth in the same shape: booleans or 0 and 1 (numbers above 1 are not read).
        normalize: Stretch each map to [0, 1].

    Raises:
        ShapeError: Other shapes.
        DtypeError: Other types of numbers.
        ParameterError: Maps outside [0, 1] or not finite, masks with other entries than 0 and 1.
    """
    maps, truth = prepare(predictions, masks, normalize=normalize)
    e = _each(_e_curve, maps, truth).mean(0)
    return SaliencyMeasures(
        mae=float(_each(_mae, maps, truth).mean()),
        max_f=float(_each(_f_curve, maps, truth, 0.3).mean(0).max()),
        weighted_f=float(_each(_weighted_f, maps, truth, 1.0).mean()),
        max_e=float(e.max()),
        mean_e=float(e.mean()),
        s=float(_each(_s, maps, truth, 0.5).mean()),
    )


def mean_absolute_error(predictions: Maps, masks: Maps, *, normalize: bool = True) -> Array:
    """Return ``mean |P - G|`` of every image, ``(n,)``.

    Args and Raises: as `saliency_measures`.

    Source: F. Perazzi et al., Saliency filters, CVPR 2012, equation 11.
    """
    return _each(_mae, *prepare(predictions, masks, normalize=normalize))


def f_curve(predictions: Maps, masks: Maps, *, beta2: float = 0.3, normalize: bool = True) -> Array:
    """Return ``F = (1 + β²) p r / (β² p + r)`` of every image at the thresholds 255, 254, ..., 0, ``(n, 256)``.

    p and r are precision and recall of ``{P ≥ threshold}``, with P rounded down to levels of 1/255. F is 0 where no
    pixel of the mask is found.

    Args and Raises: as `saliency_measures`; `beta2` weighs the precision.

    Source: R. Achanta et al., Frequency-tuned salient region detection, CVPR 2009, equation 6.
    """
    beta2 = require_number("beta2", beta2, minimum=0, strict=True)
    return _each(_f_curve, *prepare(predictions, masks, normalize=normalize), beta2)


def adaptive_f(predictions: Maps, masks: Maps, *, beta2: float = 0.3, normalize: bool = True) -> Array:
    """Return F of every image at twice the mean of its map (at most 1), ``(n,)``.

    Args and Raises: as `saliency_measures`; `beta2` weighs the precision.

    Source: R. Achanta et al., Frequency-tuned salient region detection, CVPR 2009, section 4.
    """
    beta2 = require_number("beta2", beta2, minimum=0, strict=True)
    return _each(_adaptive_f, *prepare(predictions, masks, normalize=normalize), beta2)


def weighted_f(predictions: Maps, masks: Maps, *, beta2: float = 1.0, normalize: bool = True) -> Array:
    """Return the weighted F of every image, ``(n,)``; 0 where the mask is empty.

    Errors near each other count less inside the mask (each is compared with a Gaussian mean, 7×7, σ = 5), and errors
    outside it count more the further away they are: ``2 - exp(ln(½)/5 · distance)``.

    Args and Raises: as `saliency_measures`; `beta2` weighs the precision.

    Source: R. Margolin, L. Zelnik-Manor and A. Tal, How to evaluate foreground maps?, CVPR 2014, equations 3 to 7.
    """
    beta2 = require_number("beta2", beta2, minimum=0, strict=True)
    return _each(_weighted_f, *prepare(predictions, masks, normalize=normalize), beta2)


def e_curve(predictions: Maps, masks: Maps, *, normalize: bool = True) -> Array:
    """Return the enhanced alignment E of every image at the thresholds 255, 254, ..., 0, ``(n, 256)``.

    ``E = Σ (1 + ξ)² / 4 / (HW - 1)``, ``ξ = 2ab / (a² + b²)`` for a and b, map and mask less their means. Where the
    mask is empty (full), E is the share of pixels that the map leaves (takes).

    Args and Raises: as `saliency_measures`.

    Source: D.-P. Fan et al., Enhanced-alignment measure for binary foreground map evaluation, IJCAI 2018, equations 1
        to 4.
    """
    return _each(_e_curve, *prepare(predictions, masks, normalize=normalize))


def adaptive_e(predictions: Maps, masks: Maps, *, normalize: bool = True) -> Array:
    """Return E of every image at twice the mean of its map (at most 1), ``(n,)``.

    Args and Raises: as `saliency_measures`.

    Source: D.-P. Fan et al., Enhanced-alignment measure for binary foreground map evaluation, IJCAI 2018.
    """
    return _each(_adaptive_e, *prepare(predictions, masks, normalize=normalize))


def s_measure(predictions: Maps, masks: Maps, *, alpha: float = 0.5, normalize: bool = True) -> Array:
    """Return the structure measure ``S = α S_object + (1 - α) S_region`` of every image, ``(n,)``.

    Where the mask is empty, S is one less the mean of the map; where it is full, the mean of the map. A part of the
    image without pixels (the center of the mask is in the last row or column) has no weight; pysodmetrics gives NaN
    there.

    Args and Raises: as `saliency_measures`; `alpha` weighs the objects, in [0, 1].

    Source: D.-P. Fan et al., Structure-measure: a new way to evaluate foreground maps, ICCV 2017, equations 1 to 9.
    """
    alpha = require_number("alpha", alpha, minimum=0, maximum=1)
    return _each(_s, *prepare(predictions, masks, normalize=normalize), alpha)


def prepare(predictions: Maps, masks: Maps, *, normalize: bool) -> tuple[Array, Array]:
    """Return maps as float64 in [0, 1] and masks as booleans, ``(n, H, W)`` both.

    Raises:
        ShapeError: Other shapes.
        DtypeError: Other types of numbers.
        ParameterError: Maps outside [0, 1] or not finite, masks with other entries than 0 and 1.
    """
    check_flag("normalize", normalize)
    maps, truth = _as_array(predictions), _as_array(masks)
    if maps.shape != truth.shape or maps.ndim not in (2, 3) or 0 in maps.shape:
        raise ShapeError(
            f"predictions has shape {maps.shape} and masks {truth.shape}; expected the same, (n, height, width) or "
            "(height, width)"
        )
    if truth.dtype != np.bool_:
        if not bool(((truth == 0) | (truth == 1)).all()):
            raise ParameterError(
                f"masks has entries up to {truth.max()}; expected 0 and 1: use masks > 128 of pictures"
            )
        truth = truth == 1
    if maps.dtype == np.uint8:
        maps = maps / 255
    elif maps.dtype == np.bool_ or maps.dtype.kind == "f":
        maps = maps.astype(np.float64)
    else:
        raise DtypeError(f"predictions has dtype {maps.dtype}; expected floats in [0, 1] or uint8 from 0 to 255")
    if not bool(((maps >= 0) & (maps <= 1)).all()):
        raise ParameterError(
            f"predictions runs from {maps.min():g} to {maps.max():g}; expected finite numbers in [0, 1]: apply a "
            "sigmoid or softmax to scores"
        )
    if maps.ndim == 2:
        maps, truth = maps[None], truth[None]
    if normalize:
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        maps = np.where(high > low, (maps - low) / np.where(high > low, high - low, 1), maps)
    return maps, truth


def _as_array(values: Maps) -> Array:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype.is_floating_point and values.dtype.itemsize < 4 else values).numpy()
    return np.asarray(values)


def _each(measure: Callable[..., Any], maps: Array, truth: Array, *settings: float) -> Array:
    return np.array([measure(*pair, *settings) for pair in zip(maps, truth, strict=True)], dtype=np.float64)


def _mae(p: Array, g: Array) -> float:
    return float(np.abs(p - g).mean())


def _found(p: Array, g: Array) -> tuple[Array, Array]:
    """Return how many pixels inside and outside the mask are at or above each level, from 255 down."""
    levels = (p * 255).astype(np.uint8)
    inside, outside = np.bincount(levels[g], minlength=LEVELS), np.bincount(levels[~g], minlength=LEVELS)
    return np.cumsum(inside[::-1]), np.cumsum(outside[::-1])


def _f(hits: Array, false: Array, truth: int, beta2: float) -> Array:
    precision, recall = hits / np.maximum(hits + false, 1), hits / max(truth, 1)
    return (1 + beta2) * precision * recall / np.where(hits > 0, beta2 * precision + recall, 1)


def _f_curve(p: Array, g: Array, beta2: float) -> Array:
    return _f(*_found(p, g), int(g.sum()), beta2)


def _at_twice_the_mean(p: Array, g: Array) -> tuple[Array, Array]:
    chosen = p >= min(2 * p.mean(), 1)
    return np.array([(chosen & g).sum()]), np.array([(chosen & ~g).sum()])


def _adaptive_f(p: Array, g: Array, beta2: float) -> float:
    return float(_f(*_at_twice_the_mean(p, g), int(g.sum()), beta2)[0])


def _e(hits: Array, false: Array, truth: int, size: int) -> Array:
    found = hits + false
    if truth == 0:
        total = size - found
    elif truth == size:
        total = found
    else:
        # Four kinds of pixels: in the map or not, in the mask or not; all pixels of a kind are aligned alike.
        map_mean, mask_mean = found / size, truth / size
        total = np.zeros(len(found))
        for count, a, b in (
            (hits, 1 - map_mean, 1 - mask_mean),
            (false, 1 - map_mean, -mask_mean),
            (truth - hits, -map_mean, 1 - mask_mean),
            (size - truth - false, -map_mean, -mask_mean),
        ):
            total = total + count * (2 * a * b / (a**2 + b**2 + _EPS) + 1) ** 2 / 4
    return total / (size - 1 + _EPS)


def _e_curve(p: Array, g: Array) -> Array:
    return _e(*_found(p, g), int(g.sum()), g.size)


def _adaptive_e(p: Array, g: Array) -> float:
    return float(_e(*_at_twice_the_mean(p, g), int(g.sum()), g.size)[0])


def _weighted_f(p: Array, g: Array, beta2: float) -> float:
    if not g.any():
        return 0.0
    from scipy.ndimage import convolve, distance_transform_edt

    result: Any = distance_transform_edt(~g, return_indices=True)
    distance, nearest = result
    error = np.abs(p - g)
    # Outside the mask the error of its nearest pixel stands in, so that the mean at the edge is that of the mask.
    dependent = np.where(g, error, error[tuple(nearest)])
    steps = np.arange(-3, 4)
    kernel = np.exp(-(steps[:, None] ** 2 + steps**2) / (2 * 5**2))
    smooth = convolve(dependent, kernel / kernel.sum(), mode="constant", cval=0)
    weighted = np.where(g, np.minimum(error, smooth), error * (2 - np.exp(np.log(0.5) / 5 * distance)))
    hits, false = g.sum() - weighted[g].sum(), weighted[~g].sum()
    recall, precision = 1 - weighted[g].mean(), hits / (hits + false + _EPS)
    return float((1 + beta2) * recall * precision / (recall + beta2 * precision + _EPS))


def _s(p: Array, g: Array, alpha: float) -> float:
    share = g.mean()
    if share in (0, 1):
        return float(p.mean() if share else 1 - p.mean())
    objects = share * _object(p[g]) + (1 - share) * _object(1 - p[~g])
    return float(max(alpha * objects + (1 - alpha) * _region(p, g), 0))


def _object(values: Array) -> float:
    mean, deviation = values.mean(), values.std(ddof=1) if values.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + _EPS)


def _region(p: Array, g: Array) -> float:
    """Return the similarity in four parts of the image, cut at the center of the mask, weighted by their sizes."""
    row, column = (int(center) + 1 for center in np.argwhere(g).mean(0).round())
    total = 0.0
    for rows in (slice(None, row), slice(row, None)):
        for columns in (slice(None, column), slice(column, None)):
            part = g[rows, columns]
            if part.size:
                total += part.size / g.size * _similarity(p[rows, columns], part)
    return total


def _similarity(p: Array, g: Array) -> float:
    x, y, freedom = p.mean(), g.mean(), p.size - 1 + _EPS
    dx, dy = p - x, g - y
    variances = ((dx**2).sum() + (dy**2).sum()) / freedom
    alpha, beta = 4 * x * y * (dx * dy).sum() / freedom, (x**2 + y**2) * variances
    if alpha != 0:
        return alpha / (beta + _EPS)
    return 1.0 if beta == 0 else 0.0
