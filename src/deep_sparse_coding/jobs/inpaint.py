"""Filling of missing pixels by sparse codes of what is observed of every patch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checks import require_integer, require_number
from ..dictionaries import DenseDictionary
from ..errors import ParameterError, ShapeError
from ..problems import Lasso
from ..solvers import CoordinateDescent
from ..solvers.memory import parse_memory
from ..solvers.solve import solve_quietly
from .denoise import filter_groups
from .patches import (
    Progress,
    average_patches,
    check_image,
    color_basis,
    cut_patches,
    patch_dictionary,
    patches_at_once,
    require_finite,
)

# The Lasso of the first filling: lam, the gap that is good enough, and the share of a patch that must be observed.
_LAM, _TOL = 0.02, 1e-2
# Error levels between which the further passes fall, and how many of the last ones filter groups of patches.
_FIRST, _LAST, _STOP = 0.06, 0.004, 1.1


@dataclass(frozen=True, eq=False)
class Inpainted:
    """A filled image, and how it came about.

    Attributes:
        image: ``(*batch?, channels, H, W)``, in the dtype and on the device of the input; observed pixels are kept.
        first: The image after the first filling, by the masked Lasso alone.
        missing: The share of the pixels that was missing, ``(*batch?)``, float64.
        rounds: How many rounds the first filling took, of every image: 1 where no patch was missing altogether.
    """

    image: Tensor
    first: Tensor
    missing: Tensor
    rounds: tuple[int, ...]

    def __str__(self) -> str:
        """Return one line: size, share missing, rounds."""
        size = "×".join(map(str, self.image.shape))
        shares = ", ".join(f"{100 * value:.1f} %" for value in self.missing.flatten().tolist())
        return f"{size} · {shares} missing · {max(self.rounds)} round{'s' if max(self.rounds) > 1 else ''} to fill"


def inpaint(
    image: Tensor,
    mask: Tensor,
    *,
    dictionary: DenseDictionary | None = None,
    lam: float = _LAM,
    passes: int = 12,
    max_memory: int | float | str | None = None,
    progress: Progress | None = None,
) -> Inpainted:
    """Fill missing pixels of a photograph.

    First filling: what is observed of every overlapping patch, less its mean, is coded by the masked Lasso

        min ½‖M(y - D x)‖² + lam‖x‖₁,

    D with a constant atom beside the others, and the patches D x are averaged where they overlap, each with the square
    of how many of its pixels were observed. Patches with no observed pixel wait until their neighbours are filled. Then
    `passes` passes treat what is still wrong as noise whose level falls: the filled image is denoised, in turn by the
    fewest atoms per patch and by groups of similar patches, and the observed pixels are put back.

    Args:
        image: ``(*batch?, channels, H, W)``, 0 to 1. What it holds where the mask is 0 is not looked at; NaN is fine.
        mask: True or 1 where a pixel was observed: the shape of the image, or one that broadcasts to it.
        dictionary: Atoms of square grey patches without mean, ``(side², atoms)``; None: "dense-grey-8".
        lam: The weight of the ℓ1 norm in the first filling.
        passes: Further passes; 0 leaves the first filling.
        max_memory: Bytes, or words such as "100 MB", for what is held beside a few copies of the image; None: 256 MB.
        progress: Called with the share of the work that is done, 0 to 1.

    Returns:
        An `Inpainted`. Observed pixels are those of the input to the last bit.

    Raises:
        DictionaryError, DtypeError: As `denoise`.
        ParameterError: All pixels of a channel missing, a mask of other numbers than 0 and 1, observed entries that are
            not finite, settings out of range.
        ShapeError: A mask that does not fit, an image smaller than a patch.

    Source: Elad, Starck, Querre & Donoho 2005 (masked codes); Guleryuz 2006 (denoising, falling thresholds).
    """
    atoms, side = patch_dictionary(dictionary)
    image = check_image("image", image, side=side, finite=False)
    observed = _check_mask(mask, image)
    seen = torch.where(observed, image, 0.0)
    require_finite("the observed part of image", seen)
    lam = require_number("lam", lam, minimum=0.0, strict=True)
    passes = require_integer("passes", passes, minimum=0)
    limit = parse_memory("max_memory", max_memory)
    at_once = patches_at_once(atoms, limit)
    flat = seen.cpu().double().reshape(-1, *image.shape[-3:])
    holes = observed.cpu().reshape(flat.shape)
    found, first, rounds = [], [], []
    for i, (one, known) in enumerate(zip(flat, holes, strict=True)):
        filled = [_fill(plane, there, atoms, lam, at_once) for plane, there in zip(one, known, strict=True)]
        start = torch.stack([plane for plane, _ in filled])
        rounds.append(max(count for _, count in filled))
        first.append(start)
        found.append(_improve(start, known, atoms, passes, at_once, limit, progress, i, len(flat)))
    filled_image, first_image = (
        torch.where(observed, image, torch.stack(x).clamp(0, 1).reshape(image.shape).to(image)) for x in (found, first)
    )
    missing = 1 - holes.double().mean((1, 2, 3)).reshape(image.shape[:-3])
    return Inpainted(filled_image, first_image, missing, tuple(rounds))


def _check_mask(mask: object, image: Tensor) -> Tensor:
    if not isinstance(mask, Tensor):
        raise ParameterError(f"mask is a {type(mask).__name__}; expected a tensor, True or 1 where observed")
    try:
        full = torch.broadcast_to(mask.to(image.device), image.shape)
    except RuntimeError:
        raise ShapeError(
            f"mask has shape {tuple(mask.shape)}; expected {tuple(image.shape)}, the shape of the image, or one that "
            "broadcasts to it, such as (H, W)"
        ) from None
    if not bool(((full == 0) | (full == 1)).all()):
        raise ParameterError("mask holds other numbers than 0 and 1; expected True or 1 where a pixel was observed")
    observed = full != 0
    empty = ~observed.flatten(-2).any(-1)
    if bool(empty.any()):
        raise ParameterError(
            f"all pixels are missing in {int(empty.sum())} of {empty.numel()} channels; expected at least one observed "
            "pixel in each: the mask is True or 1 where a pixel was observed"
        )
    return observed


def _fill(plane: Tensor, known: Tensor, atoms: DenseDictionary, lam: float, at_once: int) -> tuple[Tensor, int]:
    """Return the plane ``(H, W)`` with all pixels filled by the masked Lasso, and the number of rounds."""
    from ._kernels_groups import add_patches

    matrix = atoms.weight
    length = matrix.shape[0]
    side = math.isqrt(length)
    constant = torch.full((length, 1), length**-0.5, dtype=matrix.dtype)
    widened = DenseDictionary(torch.cat([matrix, constant], 1))
    count = (plane.shape[0] - side + 1) * (plane.shape[1] - side + 1)
    filled, rounds = plane.clone(), 0
    while not bool(known.all()):
        rounds += 1
        total, weight = np.zeros(tuple(plane.shape)), np.zeros(tuple(plane.shape))
        there = known.double()
        for first in range(0, count, at_once):
            last = min(first + at_once, count)
            m = cut_patches(there, side, first, last)
            number = m.sum(1)
            rows = ((number > 0) & (number < length)).nonzero().flatten()  # a whole patch fills nothing
            patches, weights = torch.zeros(last - first, length, dtype=matrix.dtype), np.zeros(last - first)
            if len(rows):
                m, y = m[rows], cut_patches(filled, side, first, last)[rows]
                mean = (m * y).sum(1, keepdim=True) / number[rows, None]
                problem = Lasso(widened, lam, mask=m)
                solution = solve_quietly(problem, m * (y - mean), CoordinateDescent(), tol=_TOL, max_steps=20)
                assert isinstance(solution.codes, Tensor)
                patches[rows] = widened.synthesize(solution.codes) + mean
                weights[rows.numpy()] = number[rows].square().numpy()
            add_patches(patches.numpy(), weights, first, total, weight, side)
        new = ~known & torch.from_numpy(weight > 0)
        average = torch.from_numpy(total / np.maximum(weight, 1e-300)).clamp(0, 1)
        filled = torch.where(new, average, filled)
        known = known | new
    return filled, max(rounds, 1)


def _improve(
    image: Tensor,
    known: Tensor,
    atoms: DenseDictionary,
    passes: int,
    at_once: int,
    limit: int | None,
    progress: Progress | None,
    index: int,
    images: int,
) -> Tensor:
    """Return the filled image ``(channels, H, W)`` after passes that denoise it at falling levels."""
    side = math.isqrt(atoms.weight.shape[0])
    basis = color_basis(len(image))
    current = image
    for step in range(passes):
        level = _FIRST * (_LAST / _FIRST) ** (step / max(passes - 1, 1))
        mixed = torch.einsum("kc,chw->khw", basis, current)
        if step % 2:
            found = filter_groups(mixed, mixed, level, side, limit)
        else:
            epsilon = _STOP * level * side
            found = torch.stack([average_patches(plane, atoms, epsilon, at_once)[0] for plane in mixed])
        back = torch.einsum("kc,khw->chw", basis, found)
        current = torch.where(known, image, back)
        if progress is not None:
            progress((index + (step + 1) / passes) / images)
    return current
