"""Denoising of photographs by sparse codes of their overlapping patches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checks import require_integer
from ..dictionaries import DenseDictionary
from ..errors import ParameterError
from ..learning import learn
from ..solvers.memory import parse_memory
from .noise import noise_of_planes
from .patches import (
    Progress,
    average_patches,
    check_image,
    check_sigma,
    color_basis,
    cut_patches,
    patch_dictionary,
    patches_at_once,
)

# A patch of n entries of noise has norm σ√n; its codes stop a little above. Chosen on photographs of scikit-image.
_STOP = 1.1
# Groups: so many similar patches, out of this far, around every fourth place along both axes.
_MEMBERS, _RADIUS, _STEP = 50, 15, 4
# Learning from a noisy image: lam that noise alone exceeds at few atoms, and the most patches to learn from.
_ADAPT_LAM, _ADAPT_PATCHES = 3.0, 20_000


@dataclass(frozen=True, eq=False)
class Denoised:
    """A denoised image, and how it came about.

    Attributes:
        image: ``(*batch?, channels, H, W)``, 0 to 1, in the dtype and on the device of the input.
        sigma: The noise level that was given or estimated, ``(*batch?)``, float64, in units of the image.
        estimated: Whether it was estimated.
        pilot: The image after the first pass: the average of the codes' patches.
        atoms_per_patch: The mean number of atoms of a patch, ``(*batch?)``, over all channels.
        passes: How many passes were made.
    """

    image: Tensor
    sigma: Tensor
    estimated: bool
    pilot: Tensor
    atoms_per_patch: Tensor
    passes: int

    def __str__(self) -> str:
        """Return one line: size, noise level, atoms."""
        levels = ", ".join(f"{255 * value:.1f}" for value in self.sigma.flatten().tolist())
        how = "estimated" if self.estimated else "given"
        size = "×".join(map(str, self.image.shape))
        return (
            f"{size} · σ = {levels} of 255 ({how}) · {float(self.atoms_per_patch.mean()):.1f} atoms per patch · "
            f"{self.passes} pass{'es' if self.passes > 1 else ''}"
        )


def denoise(
    image: Tensor,
    sigma: float | Tensor | None = None,
    *,
    dictionary: DenseDictionary | None = None,
    passes: int = 2,
    adapt: int = 0,
    max_memory: int | float | str | None = None,
    progress: Progress | None = None,
) -> Denoised:
    """Remove white Gaussian noise from a photograph.

    First pass: every overlapping patch, less its mean, is coded with the fewest atoms that explain all but the noise,

        min ‖x‖₀  s.t.  ‖y - D x‖ ≤ c σ √n,   c = 1.1,

    and the patches D x are averaged where they overlap. Further passes gather, around every fourth place along both
    axes, the 50 patches of a 31×31 window that are most alike in the estimate so far, and filter the noisy ones by the
    covariance C of that group, ``x̂ = ȳ + C (C + σ²I)⁻¹ (y - ȳ)``: the best linear estimate in the principal components
    of the group. Colours are coded as grey value and two differences, in which the noise is as large as before.

    Work is done in float64 on the CPU, a bounded number of patches at a time; the outcome does not depend on how many.

    Args:
        image: ``(*batch?, channels, H, W)``, 0 to 1, any size of at least a patch. Whole numbers are scaled, and that
            is said.
        sigma: The standard deviation of the noise, in units of the image (25 of 255 is ``25 / 255``), one number or
            one per image; None estimates it, see `estimate_noise`.
        dictionary: Atoms of square grey patches without mean, ``(side², atoms)``; None takes the one that comes with
            the library, "dense-grey-8".
        passes: 1 uses the dictionary alone; each further pass filters groups of similar patches.
        adapt: Epochs in which the dictionary is first learned further on the noisy image itself.
        max_memory: Bytes, or words such as "100 MB", for what is held beside a few copies of the image; None: 256 MB.
        progress: Called with the share of the work that is done, 0 to 1.

    Returns:
        A `Denoised`. Constant images, and images of σ = 0, come back as they are.

    Raises:
        DictionaryError: A dictionary that is not one of square patches.
        DtypeError: No tensor, or half precision.
        ParameterError: Entries that are not finite or not 0 to 1, σ below 0, settings out of range, too little memory.
        ShapeError: An image smaller than a patch or without three axes, sigma of another shape than the batch.

    Source: Elad & Aharon 2006 (codes of overlapping patches); Lebrun, Buades & Morel 2013 (groups).
    """
    atoms, side = patch_dictionary(dictionary)
    image = check_image("image", image, side=side)
    passes, adapt = require_integer("passes", passes, minimum=1), require_integer("adapt", adapt, minimum=0)
    batch = tuple(image.shape[:-3])
    levels = None if sigma is None else check_sigma(sigma, batch).flatten()
    limit = parse_memory("max_memory", max_memory)
    at_once = patches_at_once(atoms, limit)
    flat = image.cpu().double().reshape(-1, *image.shape[-3:])
    outcomes = []
    for i, one in enumerate(flat):
        level = float(noise_of_planes(one) if levels is None else levels[i])
        share = _part(progress, i, len(flat))
        outcomes.append((level, *_denoise_one(one, level, atoms, passes, adapt, at_once, limit, share)))
    found, pilot = (torch.stack([o[k] for o in outcomes]).reshape(image.shape).to(image) for k in (1, 2))
    used = torch.tensor([o[3] for o in outcomes], dtype=torch.float64).reshape(batch)
    return Denoised(
        found, torch.tensor([o[0] for o in outcomes], dtype=torch.float64).reshape(batch), sigma is None, pilot, used,
        passes,
    )  # fmt: skip


def _denoise_one(
    image: Tensor,
    sigma: float,
    atoms: DenseDictionary,
    passes: int,
    adapt: int,
    at_once: int,
    limit: int | None,
    progress: Progress | None,
) -> tuple[Tensor, Tensor, float]:
    """Return image, pilot and atoms per patch of one image ``(channels, H, W)``, float64."""
    spread = (image.amax((1, 2)) - image.amin((1, 2))).max()
    if sigma == 0 or float(spread) == 0:
        if progress is not None:
            progress(1.0)
        return image, image, 0.0
    side = math.isqrt(atoms.weight.shape[0])
    basis = color_basis(len(image))
    noisy = torch.einsum("kc,chw->khw", basis, image)
    if adapt:
        atoms = _adapt(noisy[0], sigma, atoms, adapt)
    planes, used, parts = [], 0.0, len(noisy) + passes - 1
    for k, plane in enumerate(noisy):
        found, count = average_patches(plane, atoms, _STOP * sigma * side, at_once, _part(progress, k, parts))
        planes.append(found)
        used += count
    pilot = current = torch.stack(planes)
    for step in range(passes - 1):
        current = filter_groups(current, noisy, sigma, side, limit, _part(progress, len(noisy) + step, parts))
    back = (torch.einsum("kc,khw->chw", basis, x).clamp(0, 1) for x in (current, pilot))
    return next(back), next(back), used


def filter_groups(
    pilot: Tensor, noisy: Tensor, sigma: float, side: int, limit: int | None = None, progress: Progress | None = None
) -> Tensor:
    """Return the noisy image, filtered by groups of patches that are alike in the pilot.

    Args:
        pilot: ``(channels, H, W)``, float64, on the CPU.
        noisy: The same shape.
        sigma: The standard deviation of the noise, above 0.
        side: Of a patch.
        limit: Bytes for the patches of groups that are held at once; None: 256 MB.
        progress: Called with the share that is done.

    Raises:
        ParameterError: Less memory than one group takes.
    """
    from ..solvers._kernels_codes import CHUNK, in_chunks
    from ._kernels_groups import add_groups, refine_groups

    guide, before, seen = (x.contiguous().numpy() for x in (pilot[0], pilot, noisy))
    channels, height, width = seen.shape
    corners = np.array(list(_corners(height, width, side)), dtype=np.int64)
    each = 8 * _MEMBERS * (channels * side * side + 2)
    room = (1 << 28) if limit is None else limit
    if room < each:
        raise ParameterError(f"max_memory is {room} bytes; expected at least {each}, what one group takes: raise it")
    at_once = min(room // each, len(corners))
    at_once = max(at_once // CHUNK, 1) * CHUNK if at_once >= CHUNK else at_once
    total, weight = np.zeros_like(seen), np.zeros((height, width))
    for first in range(0, len(corners), at_once):
        here = corners[first : first + at_once]
        places, counts = np.empty((len(here), _MEMBERS, 2), np.int64), np.empty(len(here), np.int64)
        found = np.empty((len(here), channels, _MEMBERS, side * side))

        def work(lo: int, here: np.ndarray = here, places: np.ndarray = places, counts: np.ndarray = counts,
                 found: np.ndarray = found) -> None:  # fmt: skip
            hi = min(lo + CHUNK, len(here))
            refine_groups(guide, before, seen, here, lo, hi, side, _RADIUS, sigma**2, places, counts, found)

        in_chunks(work, len(here), torch.get_num_threads())
        add_groups(places, counts, found, total, weight, side)
        if progress is not None:
            progress((first + len(here)) / len(corners))
    return torch.from_numpy(total / weight)


def _corners(height: int, width: int, side: int) -> Iterator[tuple[int, int]]:
    """Yield every fourth place along both axes, and the last: groups around them cover every pixel."""
    rows, cols = ([*range(0, n - side, min(_STEP, side)), n - side] for n in (height, width))
    return ((r, c) for r in rows for c in cols)


def _adapt(plane: Tensor, sigma: float, atoms: DenseDictionary, epochs: int) -> DenseDictionary:
    """Return the dictionary, learned further from the patches of a noisy plane."""
    side = math.isqrt(atoms.weight.shape[0])
    count = (plane.shape[0] - side + 1) * (plane.shape[1] - side + 1)
    step = max(1, math.ceil(count / _ADAPT_PATCHES))
    patches = torch.cat([cut_patches(plane, side, first, first + 1) for first in range(0, count, step)])
    patches = patches - patches.mean(1, keepdim=True)
    many = atoms.weight.shape[1]
    if len(patches) < many or float(patches.norm(dim=1).max()) <= _ADAPT_LAM * sigma:
        return atoms  # nothing stands out of the noise
    learned = learn(patches, many, lam=_ADAPT_LAM * sigma, epochs=epochs, seed=0, start=atoms)
    assert isinstance(learned.model, DenseDictionary)
    return learned.model


def _part(progress: Progress | None, index: int, parts: int) -> Progress | None:
    """Return what reports the progress of one of several equal parts."""
    if progress is None:
        return None
    return lambda share: progress((index + share) / parts)
