"""Images as overlapping patches: checks, the dictionary of patches, and one pass that codes every patch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..checks import require_float_tensor, require_number
from ..dictionaries import DenseDictionary
from ..errors import DictionaryError, DSCWarning, ParameterError, ShapeError
from ..problems import SparseApproximation
from ..solvers import OMP
from ..solvers.solve import solve_quietly

# What is not 0 to 1 but 0 to 255 is seen by this; noise of any sense stays below.
_LARGEST_ENTRY = 10.0
DEFAULT = "dense-grey-8"

Progress = Callable[[float], None]


def check_image(name: str, image: object, *, side: int, finite: bool = True, level: int = 3) -> Tensor:
    """Return an image ``(*batch?, channels, H, W)`` in float32 or float64; whole numbers are scaled, and said so.

    Raises:
        DtypeError: No tensor, or half precision.
        ParameterError: Entries that are not finite, or far from 0 to 1.
        ShapeError: Fewer than three axes, no entries, or smaller than a patch.
    """
    if isinstance(image, Tensor) and not image.is_floating_point() and not image.is_complex():
        top = 1 if image.dtype == torch.bool else torch.iinfo(image.dtype).max
        warnings.warn(
            f"{name} has dtype {image.dtype}; its numbers are divided by {top}, the largest of that type, as float32: "
            f"to choose the scale yourself pass {name}.float() / scale",
            DSCWarning,
            stacklevel=level + 1,
        )
        image = image.double().div(top).float()
    tensor = require_float_tensor(name, image).detach()
    if tensor.ndim < 3 or 0 in tensor.shape:
        raise ShapeError(
            f"{name} has shape {tuple(tensor.shape)}; expected (channels, H, W) or (*batch, channels, H, W), none of "
            f"them 0: of one grey image (H, W) take {name}[None]"
        )
    if min(tensor.shape[-2:]) < side:
        raise ShapeError(
            f"{name} has {tensor.shape[-2]}×{tensor.shape[-1]} pixels; expected at least {side}×{side}, one patch: "
            "pad it, or give a dictionary of smaller patches"
        )
    if finite:
        require_finite(name, tensor)
    return tensor


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise ParameterError unless all entries are finite and on the scale from 0 to 1."""
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        raise ParameterError(
            f"{name} has {int(bad.sum())} entries that are not finite, the first at {place}; expected numbers from 0 "
            "to 1: what is missing is filled by dsc.inpaint(image, mask)"
        )
    if float(tensor.abs().max()) > _LARGEST_ENTRY:
        raise ParameterError(
            f"{name} goes up to {float(tensor.abs().max()):g}; expected numbers from 0 (black) to 1 (white): divide by "
            "255 what is in 8-bit units"
        )


def patch_dictionary(dictionary: object) -> tuple[DenseDictionary, int]:
    """Return the dictionary of square grey patches in float64 on the CPU, and the side of a patch; None: the default.

    Raises:
        DictionaryError: Not dense, or its signals are no square patches.
    """
    if dictionary is None:
        from ..pretrained import load_pretrained

        dictionary = load_pretrained(DEFAULT)
    if not isinstance(dictionary, DenseDictionary):
        raise DictionaryError(
            f"dictionary is a {type(dictionary).__name__}; expected a dsc.DenseDictionary of square patches, such as "
            f'dsc.load_pretrained("{DEFAULT}"), or None for that one'
        )
    length = dictionary.weight.shape[0]
    side = math.isqrt(length)
    if side * side != length or side < 2:
        raise DictionaryError(
            f"dictionary has atoms of {length} entries; expected a square number of at least 4 (64 for 8×8 patches)"
        )
    return DenseDictionary(dictionary.weight.detach().cpu().double(), normalize=True), side


def color_basis(channels: int) -> Tensor:
    """Return an orthonormal basis of the channels whose first row is their mean; the noise stays what it was.

    It is the discrete cosine transform; of three channels the grey value, red less blue, and green less the other two.
    """
    k = torch.arange(channels, dtype=torch.float64)
    basis = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / channels) * math.sqrt(2 / channels)
    basis[0] /= math.sqrt(2)
    return basis


def patches_at_once(dictionary: DenseDictionary, max_memory: int | None) -> int:
    """Return how many patches are coded together under a limit in bytes.

    Raises:
        ParameterError: Not even one.
    """
    length, atoms = dictionary.weight.shape
    each = 8 * (5 * atoms + 8 * length)
    room = (1 << 28) if max_memory is None else max_memory
    if room < each:
        raise ParameterError(f"max_memory is {room} bytes; expected at least {each}, what one patch takes: raise it")
    return room // each


def average_patches(
    plane: Tensor, dictionary: DenseDictionary, epsilon: float, at_once: int, progress: Progress | None = None
) -> tuple[Tensor, float]:
    """Return the average over all overlapping patches, each the fewest atoms within ε of it, beside its mean.

    Args:
        plane: ``(H, W)``, float64, on the CPU.
        dictionary: Of patches.
        epsilon: How far a patch may be from its codes.
        at_once: How many patches are coded together; the outcome does not depend on it.
        progress: Called with the share that is done.

    Returns:
        ``(H, W)``, and the mean number of atoms of a patch.
    """
    from ._kernels_groups import add_patches

    side = math.isqrt(dictionary.weight.shape[0])
    problem, (height, width) = SparseApproximation(dictionary, epsilon=epsilon), plane.shape
    total, weight = np.zeros((height, width)), np.zeros((height, width))
    used, count = 0, (height - side + 1) * (width - side + 1)
    for first in range(0, count, at_once):
        last = min(first + at_once, count)
        patches = cut_patches(plane, side, first, last)
        mean = patches.mean(1, keepdim=True)
        # Quietly: codes that are all zero, where there is only noise, are what is wanted.
        codes = solve_quietly(problem, patches - mean, OMP(), tol=1e-6, max_steps=side * side).codes
        assert isinstance(codes, Tensor)
        used += int((codes != 0).sum())
        found = (dictionary.synthesize(codes) + mean).numpy()
        add_patches(found, np.ones(last - first), first, total, weight, side)
        if progress is not None:
            progress(last / count)
    return torch.from_numpy(total / weight), used / count


def cut_patches(plane: Tensor, side: int, first: int, last: int) -> Tensor:
    """Return the patches at the places ``first`` to ``last``, counted along rows, ``(n, side²)``."""
    width = plane.shape[1] - side + 1
    low, high = first // width, (last - 1) // width + 1
    rows = plane[low : high + side - 1].unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side)
    return rows[first - low * width : last - low * width].contiguous()


def check_sigma(sigma: object, batch: tuple[int, ...]) -> Tensor:
    """Return one noise level per image, ``(*batch)``, float64.

    Raises:
        ParameterError: Not a number of at least 0.
        ShapeError: A tensor of another shape than the batch.
    """
    if isinstance(sigma, Tensor) and sigma.numel() != 1:
        if tuple(sigma.shape) != batch:
            raise ShapeError(f"sigma has shape {tuple(sigma.shape)}; expected a number or {batch}, one per image")
        levels = sigma.detach().cpu().double()
        for value in levels.flatten().tolist():
            require_number("sigma", value, minimum=0.0)
        return levels
    return torch.full(batch, require_number("sigma", sigma, minimum=0.0), dtype=torch.float64)
