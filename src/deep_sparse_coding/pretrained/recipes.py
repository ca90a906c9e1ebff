"""What the shipped dictionaries are learned from and with: one recipe per name."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..dictionaries.random import generator
from ..learning import contrast_normalize
from .photographs import PHOTOGRAPHS, Photograph, read_photograph


@dataclass(frozen=True)
class Recipe:
    """The settings of one dictionary.

    Attributes:
        name: As `load_pretrained` takes it.
        atoms: Of every layer.
        size: Side of the patches (dense) or of the kernels of every layer.
        lam: Of every layer.
        epochs: Passes over the data, of every layer.
        samples: How many patches, or crops, are drawn from all photographs together.
        crop: Side of the crops in pixels; None: dense.
        stride: Of every layer.
        color: Three channels.
        nonzeros: The most non-zeros of an atom of the layers above the first.
        sigma: Width of the window of `contrast_normalize`; patches have their mean taken away instead.
        flat: Patches of a standard deviation below this teach nothing and are left out.
        seed: Of everything that is random.
        photographs: What is learned from.
    """

    name: str
    atoms: tuple[int, ...]
    size: tuple[int, ...]
    lam: tuple[float, ...]
    epochs: int
    samples: int
    crop: int | None = None
    stride: tuple[int, ...] = (1,)
    color: bool = False
    nonzeros: int | None = None
    sigma: float = 6.0
    flat: float = 0.02
    seed: int = 0
    photographs: tuple[Photograph, ...] = PHOTOGRAPHS

    @property
    def dense(self) -> bool:
        """Whether atoms are patches."""
        return self.crop is None

    @property
    def preparation(self) -> str:
        """How images are prepared, in words."""
        if self.dense:
            return f"patches of {self.size[0]}×{self.size[0]} grey pixels, 0 to 1, their mean taken away"
        kind = "colour" if self.color else "grey"
        return f"contrast_normalize(image, {self.sigma:g}) of a {kind} image, 0 to 1"


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("dense-grey-8", (256,), (8,), (0.1,), epochs=20, samples=72_000),
        Recipe("conv-grey-64", (64,), (11,), (1.4,), epochs=15, samples=90, crop=90),
        Recipe(
            "conv-colour-32", (32,), (8,), (1.4,), epochs=15, samples=48, crop=72, color=True,
            photographs=tuple(photograph for photograph in PHOTOGRAPHS if photograph.color),
        ),
        Recipe("cascade-grey", (32, 64), (8, 5), (1.0, 0.5), 15, samples=90, crop=72, stride=(2, 1), nonzeros=8),
    )
}  # fmt: skip


def patches(image: Tensor, side: int, step: int = 1) -> Tensor:
    """Return the patches of a grey image without their means, ``(n, side²)``.

    Args:
        image: ``(1, H, W)``.
        side: Of a patch, in pixels.
        step: From one patch to the next.
    """
    cut = image.unfold(1, side, step).unfold(2, side, step)[0].reshape(-1, side * side)
    return cut - cut.mean(1, keepdim=True)


def training_data(recipe: Recipe) -> Tensor:
    """Return what a dictionary is learned from, float32: ``(samples, side²)`` or ``(samples, channels, crop, crop)``.

    As many samples come from each photograph, at places drawn at random.

    Raises:
        MissingExtraError: scikit-image or scikit-learn is not installed.
    """
    rng = generator(recipe.seed)
    each = math.ceil(recipe.samples / len(recipe.photographs))
    parts = []
    for photograph in recipe.photographs:
        image = read_photograph(photograph, color=recipe.color)
        if recipe.crop is None:
            cut = patches(image, recipe.size[0])
            cut = cut[cut.square().mean(1).sqrt() > recipe.flat]
            parts.append(cut[torch.randperm(len(cut), generator=rng)[:each]])
            continue
        image = contrast_normalize(image, recipe.sigma)
        room = [n - recipe.crop + 1 for n in image.shape[1:]]
        corners = [torch.randint(n, (each,), generator=rng).tolist() for n in room]
        crops = [image[:, r : r + recipe.crop, c : c + recipe.crop] for r, c in zip(*corners, strict=True)]
        parts.append(torch.stack(crops))
    return torch.cat(parts)[: recipe.samples].float()
