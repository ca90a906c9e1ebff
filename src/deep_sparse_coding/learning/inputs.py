"""What learning accepts: images or vectors, finite, not constant, large enough, and settings per layer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import SUPPORTED_DTYPES, per_axis, per_layer, require_integer, require_number
from deep_sparse_coding.checks import require_float_tensor as require_float
from deep_sparse_coding.errors import DSCWarning, DtypeError, ParameterError, ShapeError, UnsupportedError


@dataclass(frozen=True)
class LayerSettings:
    """The checked settings of one layer; `size` is None for dense layers."""

    atoms: int
    size: tuple[int, ...] | None
    stride: tuple[int, ...]
    lam: float
    epochs: int
    nonzeros: int = 0


def check_images(images: object, *, dense: bool, dtype: torch.dtype | None, finite: bool = True) -> Tensor:
    """Return the data as one tensor: ``(n, d)`` if dense, else ``(n, channels, ...)``.

    Args:
        images: A tensor, or a list of tensors of one shape, one per sample.
        dense: Whether vectors are expected.
        dtype: The number type to convert to; None keeps it.
        finite: Whether to refuse entries that are not finite.

    Raises:
        DtypeError: Half precision, or no tensor.
        ParameterError: Entries that are not finite.
        ShapeError: Empty, of several shapes, or without the axis of samples or of channels.
    """
    groups = check_groups(images, dense=dense, dtype=dtype, finite=finite)
    if len(groups) > 1:
        shapes = sorted(tuple(group.shape[1:]) for group in groups)
        raise ShapeError(
            f"images have {len(groups)} shapes, among them {shapes[:2]}; expected one: crop them to a common size, or "
            "give those of each size by themselves"
        )
    return groups[0]


def check_groups(
    images: object, *, dense: bool, dtype: torch.dtype | None, finite: bool = True, level: int = 5
) -> list[Tensor]:
    """Return the data as tensors of one image size each, in the order in which sizes first appear.

    Integers and truth values are scaled to [0, 1] by the largest number that their type holds, and that is said.

    Args:
        images: As for `check_images`, but tensors of a list may have several sizes.
        dense: Whether vectors are expected.
        dtype: The number type to convert to; None keeps it.
        finite: Whether to refuse entries that are not finite.
        level: The stack level of the warning.

    Raises:
        DtypeError, ParameterError, ShapeError: As `check_images`.
    """
    if dtype is not None and dtype not in SUPPORTED_DTYPES:
        raise DtypeError(f"dtype is {dtype}; expected torch.float32 or torch.float64")
    stacks = _stack(images) if isinstance(images, list | tuple) else [images]
    return [_check_stack(stack, dense, dtype, finite, level) for stack in stacks]


def scale_integers(name: str, images: Tensor, level: int) -> Tensor:
    """Return integers as float32 in [0, 1] (signed ones in [-1, 1]), with a warning; other tensors as they are."""
    if images.is_floating_point() or images.is_complex():
        return images
    top = 1 if images.dtype == torch.bool else torch.iinfo(images.dtype).max
    warnings.warn(
        f"{name} has dtype {images.dtype}; its numbers are divided by {top}, the largest of that type, as float32: to "
        f"choose the scale yourself pass {name}.float() / scale",
        DSCWarning,
        stacklevel=level,
    )
    return images.double().div(top).float()


def _check_stack(images: object, dense: bool, dtype: torch.dtype | None, finite: bool, level: int) -> Tensor:
    if isinstance(images, Tensor):
        images = scale_integers("images", images, level)
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
    if finite and not bool(torch.isfinite(tensor.sum())):
        bad = (~torch.isfinite(tensor)).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise ParameterError(
                f"images has entries that are not finite in {len(bad)} of {len(tensor)} samples, the first in sample "
                f"{bad[0]}; expected finite numbers: remove these samples, or say what is missing by mask="
            )
    return tensor if dtype is None else tensor.to(dtype)


def check_masks(mask: object, images: object, groups: list[Tensor]) -> list[Tensor | None]:
    """Return for every group of images a mask of ones and zeros in its shape, or None where none was given.

    Args:
        mask: None; or as images are given: a tensor that broadcasts against them, or a list with one per image.
        images: What the groups were made of.
        groups: The images.

    Raises:
        DtypeError: Something else.
        ParameterError: Numbers that are neither 0 nor 1, or a sample of which nothing was observed.
        ShapeError: A mask that does not fit.
    """
    if mask is None:
        return [None] * len(groups)
    if isinstance(images, list | tuple) != isinstance(mask, list | tuple):
        raise DtypeError(f"mask is a {type(mask).__name__}; expected as images, a {type(images).__name__}")
    stacks: Sequence[object] = [mask]
    if isinstance(mask, list | tuple) and isinstance(images, list | tuple):
        if len(mask) != len(images):
            raise ShapeError(f"mask has {len(mask)} entries and images {len(images)}; expected one per image")
        for i, (hole, image) in enumerate(zip(mask, images, strict=True)):
            if not isinstance(hole, Tensor) or hole.shape != image.shape:
                shape = tuple(hole.shape) if isinstance(hole, Tensor) else type(hole).__name__
                raise ShapeError(f"mask[{i}] is {shape}; expected a tensor of the image's shape, {tuple(image.shape)}")
        stacks = _stack([hole.to(group_of.device) for hole, group_of in zip(mask, images, strict=True)])
    checked: list[Tensor | None] = []
    for stack, group in zip(stacks, groups, strict=True):
        if not isinstance(stack, Tensor):
            raise DtypeError(f"mask is a {type(stack).__name__}; expected a tensor of True and False, or of 1 and 0")
        try:
            whole = stack.to(group.device, group.dtype).expand(group.shape)
        except RuntimeError as error:
            raise ShapeError(
                f"mask has shape {tuple(stack.shape)}; expected one that broadcasts against {tuple(group.shape)}"
            ) from error
        if not bool(((whole == 0) | (whole == 1)).all()):
            raise ParameterError("mask has entries that are neither 0 nor 1; expected True where a pixel was observed")
        empty = (whole == 0).flatten(1).all(1).nonzero().flatten().tolist()
        if empty:
            raise ParameterError(
                f"mask has {len(empty)} samples of which nothing was observed, the first is sample {empty[0]}; "
                "expected some pixel in each: leave these out"
            )
        checked.append(whole.contiguous())
    return checked


def require_content(groups: Sequence[Tensor], dense: bool) -> None:
    """Raise unless there is something to learn.

    Raises:
        ParameterError: Every image is constant; or, of vectors, all are the same or zero.
    """
    axis = 0 if dense else 1
    flats = [images.flatten(1) for images in groups]
    if not any(bool((flat.amax(axis) > flat.amin(axis)).any()) for flat in flats):
        what = "all vectors are the same" if dense else "every image is constant"
        raise ParameterError(
            f"images of shape {tuple(groups[0].shape)} hold nothing to learn from: {what}; expected images with "
            "structure: look at how they were loaded and scaled"
        )


def check_layers(
    images: Tensor,
    atoms: object,
    size: object,
    stride: object,
    lam: object,
    epochs: object,
    boundary: str,
    nonzeros: object = None,
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
    limits = per_layer("nonzeros", nonzeros, depth)
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
                0 if limits[j] is None else require_integer(f"nonzeros{label}", limits[j], minimum=1),
            )
        )
    if size is not None:
        _require_room(tuple(images.shape[2:]), layers, boundary)
    return tuple(layers)


def default_batch(samples: int, code_entries: int) -> int:
    """Return how many samples are coded together: eight parts at least, and code maps of some megabytes at most."""
    return max(1, min(-(-samples // 8), (1 << 20) // max(code_entries, 1)))


def tolerance(tol: object, *, online: bool) -> float:
    """Return the relative gap of the codes of a visit; None chooses.

    Raises:
        ParameterError: Not a number above 0.
    """
    return (0.1 if online else 0.01) if tol is None else require_number("tol", tol, minimum=0.0, strict=True)


def warn_of_few(samples: int, atoms: int, level: int) -> None:
    """Warn of fewer vectors than atoms, most of which then stand for one vector each."""
    if samples < atoms:
        warnings.warn(
            f"images has {samples} samples and atoms is {atoms}; expected at least as many samples as atoms, and "
            "rather ten times as many: with fewer an atom copies a sample: give more data or fewer atoms",
            DSCWarning,
            stacklevel=level,
        )


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


def _stack(images: Sequence[object]) -> list[Tensor]:
    """Return one stack of the tensors of each shape, in the order in which shapes first appear."""
    if not images:
        raise ShapeError("images is an empty list; expected at least one tensor")
    for i, image in enumerate(images):
        if not isinstance(image, Tensor):
            raise DtypeError(f"images[{i}] is a {type(image).__name__}; expected a torch.Tensor: use torch.as_tensor")
    tensors = [image for image in images if isinstance(image, Tensor)]
    kinds = {(image.dtype, image.device) for image in tensors}
    if len(kinds) > 1:
        raise DtypeError(f"images have several dtypes or devices, {sorted(map(str, kinds))}; expected one")
    channels = {tuple(image.shape[:1]) for image in tensors}
    if len(channels) > 1 or len({image.ndim for image in tensors}) > 1:
        shapes = sorted({tuple(image.shape) for image in tensors})
        raise ShapeError(f"images have shapes {shapes[:2]}; expected the same number of axes and of channels in all")
    groups: dict[tuple[int, ...], list[Tensor]] = {}
    for image in tensors:
        groups.setdefault(tuple(image.shape), []).append(image)
    return [torch.stack(group) for group in groups.values()]


def _times(sizes: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in sizes)
