"""What learning accepts: images or vectors, finite, not constant, large enough, and settings per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import SUPPORTED_DTYPES, per_axis, per_layer, require_integer, require_number
from deep_sparse_coding.checks import require_float_tensor as require_float
from deep_sparse_coding.errors import DtypeError, ParameterError, ShapeError, UnsupportedError


@dataclass(frozen=True)
class LayerSettings:
    """The checked settings of one layer; `size` is None for dense layers."""

    atoms: int
    size: tuple[int, ...] | None
    stride: tuple[int, ...]
    lam: float
    epochs: int


def check_images(images: object, *, dense: bool, dtype: torch.dtype | None, finite: bool = True) -> Tensor:
    """Return the data as one tensor: ``(n, d)`` if dense, else ``(n, channels, ...)``.

    Args:
        images: A tensor, or a list of tensors of one shape, one per sample.
        dense: Whether vectors are expected.
        dtype: The number type to convert to; None keeps it.
        finite: Whether to refuse entries that are not finite.

    Raises:
        DtypeError: Integers, half precision, or no tensor.
        ParameterError: Entries that are not finite.
        ShapeError: Empty, of several shapes, or without the axis of samples or of channels.
    """
    if dtype is not None and dtype not in SUPPORTED_DTYPES:
        raise DtypeError(f"dtype is {dtype}; expected torch.float32 or torch.float64")
    if isinstance(images, list | tuple):
        images = _stack(images)
    if isinstance(images, Tensor) and not images.is_floating_point() and not images.is_complex():
        raise DtypeError(
            f"images has dtype {images.dtype}; expected float32 or float64: of 8-bit images take images.float() / 255, "
            "then dsc.contrast_normalize"
        )
    tensor = require_float("images", images).detach()
    if dense and tensor.ndim != 2:
        raise ShapeError(
            f"images has shape {tuple(tensor.shape)}; expected (n, d) since size is None: give size= for convolutional "
            "dictionaries, or images.flatten(1)"
        )
    if not dense and tensor.ndim not in (3, 4, 5):
        raise ShapeError(
            f"images has shape {tuple(tensor.shape)}; expected (n, channels, H, W), (n, channels, L) or "
            "(n, channels, T, H, W): of grey images (n, H, W) take images[:, None]"
        )
    if finite and 0 in tensor.shape:
        raise ShapeError(f"images has shape {tuple(tensor.shape)}; expected at least one sample, none of the axes 0")
    if finite:
        bad = (~torch.isfinite(tensor)).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise ParameterError(
                f"images has entries that are not finite in {len(bad)} of {len(tensor)} samples, the first in sample "
                f"{bad[0]}; expected finite numbers: remove these samples"
            )
    return tensor if dtype is None else tensor.to(dtype)


def require_content(images: Tensor, dense: bool) -> None:
    """Raise unless there is something to learn.

    Raises:
        ParameterError: Every image is constant; or, of vectors, all are the same or zero.
    """
    flat, axis = images.flatten(1), 0 if dense else 1
    spread = flat.amax(axis) - flat.amin(axis)
    if not bool((spread > 0).any()):
        what = "all vectors are the same" if dense else "every image is constant"
        raise ParameterError(
            f"images of shape {tuple(images.shape)} hold nothing to learn from: {what}; expected images with "
            "structure: look at how they were loaded and scaled"
        )


def check_layers(
    images: Tensor, atoms: object, size: object, stride: object, lam: object, epochs: object, boundary: str
) -> tuple[LayerSettings, ...]:
    """Return the settings of every layer, checked against the data.

    Raises:
        ParameterError: Out of range, or of another number than the layers.
        ShapeError: Images too small for the kernels.
        UnsupportedError: boundary="same".
    """
    if boundary == "same":
        raise UnsupportedError(
            "learning with boundary 'same' is not offered: the statistics of an atom would differ from position to "
            "position; learn with 'valid' or 'circular', then use .with_boundary('same')"
        )
    counts = tuple(atoms) if isinstance(atoms, Sequence) and not isinstance(atoms, str) else (atoms,)
    if not counts:
        raise ParameterError("atoms is empty; expected a number of atoms per layer, such as atoms=(64, 128)")
    depth = len(counts)
    deep = isinstance(atoms, Sequence)
    axes = images.ndim - 2
    sizes = per_layer("size", size, depth) if deep else (size,)
    strides = per_layer("stride", stride, depth) if deep else (stride,)
    lams = per_layer("lam", lam, depth)
    rounds = per_layer("epochs", epochs, depth)
    if any(s is None for s in sizes) and not all(s is None for s in sizes):
        raise ParameterError(f"size is {size}; expected a kernel size for every layer, or None for all (dense)")
    layers = []
    for j in range(depth):
        label = f"[{j}]" if deep else ""
        _require_axes(images, sizes[j])
        kernel = None if sizes[j] is None else per_axis(f"size{label}", sizes[j], axes)  # type: ignore[arg-type]
        step = per_axis(f"stride{label}", strides[j], axes) if kernel else ()  # type: ignore[arg-type]
        layers.append(
            LayerSettings(
                require_integer(f"atoms{label}", counts[j], minimum=1),
                kernel,
                step,
                require_number(f"lam{label}", lams[j], minimum=0.0, strict=True),
                require_integer(f"epochs{label}", rounds[j], minimum=1),
            )
        )
    if size is not None:
        _require_room(tuple(images.shape[2:]), layers, boundary)
    return tuple(layers)


def default_batch(samples: int, code_entries: int) -> int:
    """Return how many samples are coded together: eight parts at least, and code maps of some megabytes at most."""
    return max(1, min(-(-samples // 8), (1 << 20) // max(code_entries, 1)))


def code_entries(image_shape: tuple[int, ...], layer: LayerSettings) -> int:
    """Return about how many entries the codes of one sample have."""
    if layer.size is None:
        return layer.atoms
    return layer.atoms * math.prod(-(-n // q) for n, q in zip(image_shape, layer.stride, strict=True))


def _require_axes(images: Tensor, size: object) -> None:
    """Raise unless images have the spatial axes that a kernel size speaks of: a single number means two."""
    axes = len(size) if isinstance(size, Sequence) else 2
    if size is not None and images.ndim != 2 + axes:
        raise ShapeError(
            f"images has shape {tuple(images.shape)} and size is {size}; expected {2 + axes} axes, samples and "
            f"channels before {axes} spatial one(s): of grey images (n, H, W) take images[:, None]; for signals "
            "(n, channels, L) give a size with one number per axis, such as (7,), or ((7,), (5,)) for two layers"
        )


def _require_room(spatial: tuple[int, ...], layers: list[LayerSettings], boundary: str) -> None:
    current = spatial
    for j, layer in enumerate(layers):
        assert layer.size is not None
        if any(n < k for n, k in zip(current, layer.size, strict=True)):
            where = "images have" if j == 0 else f"code maps of layer {j} have"
            raise ShapeError(
                f"{where} size {_times(current)}, smaller than the kernels of layer {j + 1}, {_times(layer.size)}; "
                f"expected larger images (they are {_times(spatial)}), or smaller size= or stride="
            )
        origin = (0,) * len(current) if boundary == "circular" else layer.size
        if any((n - o) % q for n, o, q in zip(current, origin, layer.stride, strict=True)):
            fit = tuple(n - (n - o) % q for n, o, q in zip(current, origin, layer.stride, strict=True))
            raise ShapeError(
                f"layer {j + 1} of stride {_times(layer.stride)} and kernels {_times(layer.size)} makes no signal of "
                f"size {_times(current)} (boundary {boundary!r}); expected for example {_times(fit)}: crop the images"
            )
        current = tuple(
            (n - o) // q + (boundary != "circular") for n, o, q in zip(current, origin, layer.stride, strict=True)
        )


def _stack(images: Sequence[object]) -> Tensor:
    if not images:
        raise ShapeError("images is an empty list; expected at least one tensor")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise DtypeError(f"images[{i}] is a {type(image).__name__}; expected a torch.Tensor: use torch.as_tensor")
    tensors = [image for image in images if isinstance(image, Tensor)]
    shapes = {tuple(image.shape) for image in tensors}
    kinds = {(image.dtype, image.device) for image in tensors}
    if len(shapes) > 1:
        raise ShapeError(
            f"images have {len(shapes)} shapes, among them {sorted(shapes)[:2]}; expected one: crop them "
            "to a common size"
        )
    if len(kinds) > 1:
        raise DtypeError(f"images have several dtypes or devices, {sorted(map(str, kinds))}; expected one")
    return torch.stack(tensors)


def _times(sizes: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in sizes)
