"""How noisy an image is, from the image alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .patches import check_image, color_basis

# Patches from which the covariance of 8×8 patches is known well enough; fewer take smaller ones.
_ENOUGH, _SIDES = 40, (8, 6, 4, 3, 2)
# At most so many patches are looked at: more say nothing new.
_MOST = 1 << 16


def estimate_noise(image: Tensor) -> Tensor:
    """Return the standard deviation of white Gaussian noise in an image, in units of the image.

    Patches of photographs fill only a part of their space; in the rest there is noise alone. Of the eigenvalues of the
    patches' covariance the largest are left out until the mean of those that remain is their median; its square root is
    σ. Of an image in several channels it is the root mean square over them.

    Args:
        image: ``(*batch?, channels, H, W)``, 0 to 1.

    Returns:
        σ, ``(*batch?)``, float64; 0 for constant images.

    Raises:
        DSCError: What `denoise` says of such an image.

    Source: Chen, Zhu & Heng, An efficient statistical method for image noise level estimation, ICCV 2015.
    """
    image = check_image("image", image, side=2)
    flat = image.double().reshape(-1, *image.shape[-3:])
    levels = torch.stack([noise_of_planes(one) for one in flat])
    return levels.reshape(image.shape[:-3])


def noise_of_planes(planes: Tensor) -> Tensor:
    """Return σ of the planes ``(channels, H, W)``, float64, of one image, a number in a tensor."""
    mixed = torch.einsum("kc,chw->khw", color_basis(len(planes)), planes)
    return torch.stack([_of_plane(plane) for plane in mixed]).square().mean().sqrt()


def _of_plane(plane: Tensor) -> Tensor:
    height, width = plane.shape
    fits = [n for n in _SIDES if min(height, width) >= n and (height - n + 1) * (width - n + 1) >= _ENOUGH * n * n]
    side = fits[0] if fits else _SIDES[-1]
    cut = plane.unfold(0, side, 1).unfold(1, side, 1)
    step = max(1, int((cut.shape[0] * cut.shape[1] / _MOST) ** 0.5))
    patches = cut[::step, ::step].reshape(-1, side * side)
    patches = patches - patches.mean(0)
    values = torch.linalg.eigvalsh(patches.T @ patches / max(len(patches) - 1, 1)).clamp_min(0).flip(0)
    for first in range(len(values)):
        rest = values[first:]
        if rest.mean() <= rest.quantile(0.5) * (1 + 1e-12):
            return rest.mean().sqrt()
    return values[-1].sqrt()
