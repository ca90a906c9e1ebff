"""What a linear classifier is given: pixels, principal components, codes; all learned without labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...dictionaries import Cascade
from ...dictionaries.random import generator
from ...errors import missing_extra
from ...learning import LearningResult, learn
from ...problems import LayeredLasso
from ...solvers import solve

Advance = Callable[[float], None]
_PART = 250


@dataclass(frozen=True)
class CodeConfig:
    """How codes are learned and made into features.

    Attributes:
        atoms: Of the two layers.
        size: Kernel size of the two layers.
        stride: Of the two layers.
        lam: Of the two layers.
        epochs: Passes over the images that are learned from.
        learned_from: How many images of the pool the dictionaries are learned from.
        cells: Pooled over so many by so many cells.
        tol: The relative duality gap to which images are solved.
        encoder: How scikit-learn codes patches: "lasso_cd", or "threshold" where that takes too long.
        components: Principal components.
    """

    atoms: tuple[int, int] = (32, 64)
    size: tuple[int, int] = (4, 3)
    stride: tuple[int, int] = (1, 1)
    lam: tuple[float, float] = (0.1, 0.1)
    epochs: int = 5
    learned_from: int = 500
    cells: int = 2
    tol: float = 1e-2
    encoder: str = "lasso_cd"
    components: int = 40


def pool(codes: Tensor, cells: int) -> Tensor:
    """Return roots of the means of positive and of negative parts of code maps over cells.

    Args:
        codes: ``(n, atoms, h, w)``.
        cells: So many by so many; 2 for quadrants.

    Returns:
        ``(n, 2·atoms·cells²)``. The root keeps a few large codes from outweighing all others.

    Source: Coates & Ng 2011, "The importance of encoding versus training with sparse coding and vector quantization".
    """
    split = torch.cat([codes.clamp_min(0), (-codes).clamp_min(0)], 1)
    return F.adaptive_avg_pool2d(split, cells).flatten(1).sqrt()


def principal_components(images: Tensor, count: int) -> Callable[[Tensor], Tensor]:
    """Return what takes images to their first principal components, learned from `images`."""
    flat = images.flatten(1).double()
    mean = flat.mean(0)
    centered = flat - mean
    if len(flat) < flat.shape[1]:  # of the two Gram matrices the smaller one
        vectors = torch.linalg.eigh(centered @ centered.T).eigenvectors
        axes = F.normalize(centered.T @ vectors.flip(1)[:, : min(count, len(flat) - 1)], dim=0)
    else:
        axes = torch.linalg.eigh(centered.T @ centered).eigenvectors.flip(1)[:, :count]
    return lambda other: (other.flatten(1).double() - mean) @ axes


def learn_codes(images: Tensor, config: CodeConfig, seed: int) -> LearningResult:
    """Return the two layers of atoms, learned from images without labels.

    Args:
        images: ``(n, channels, H, W)``, prepared.
        config: The settings.
        seed: Which images, and where atoms begin.
    """
    chosen = torch.randperm(len(images), generator=generator(seed))[: config.learned_from]
    return learn(
        images[chosen], config.atoms, size=config.size, stride=config.stride, lam=config.lam, epochs=config.epochs,
        seed=seed, method="batch",
    )  # fmt: skip


def code_features(learned: LearningResult, images: Tensor, config: CodeConfig, advance: Advance) -> tuple[Tensor, ...]:
    """Return the pooled codes of every layer, ``(n, 2·atoms·cells²)``, float64.

    Args:
        learned: The two layers.
        images: ``(n, channels, H, W)``, prepared.
        config: The settings.
        advance: Takes the share that is done.

    Raises:
        NotConvergedError: Codes of some image did not converge.
    """
    if not isinstance(learned.model, Cascade):
        raise TypeError("learning two layers gives a cascade")
    problem = LayeredLasso(learned.model, learned.lam)
    rows = []
    for start in range(0, len(images), _PART):
        codes = solve(problem, images[start : start + _PART], tol=config.tol).unwrap()
        rows.append([pool(block.double(), config.cells) for block in codes])
        advance(min(1.0, (start + _PART) / len(images)))
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


def sklearn_features(learned_from: Tensor, images: Tensor, config: CodeConfig, seed: int, advance: Advance) -> Tensor:
    """Return pooled codes of patches under scikit-learn's online dictionary learning.

    The patches lie where the kernels of the first layer lie, and atoms, lam and pooling are those of the first layer.

    Args:
        learned_from: Images to learn from, prepared.
        images: Images to code.
        config: The settings.
        seed: Which images, and where atoms begin.
        advance: Takes the share that is done.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.decomposition import MiniBatchDictionaryLearning
    except ImportError:
        raise missing_extra("scikit-learn", "sklearn", "its dictionary learning") from None
    lam: Any = config.lam[0]  # their annotation says a whole number
    side, step = config.size[0], config.stride[0]
    chosen = torch.randperm(len(learned_from), generator=generator(seed))[: config.learned_from]
    learner = MiniBatchDictionaryLearning(
        config.atoms[0], alpha=lam, fit_algorithm="cd", transform_algorithm=config.encoder,
        transform_alpha=lam, max_iter=config.epochs, batch_size=512, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that some patch's codes are not at its default tolerance of 1e-4
        learner.fit(_patches(learned_from[chosen], side, step).flatten(0, 2).numpy())
        rows = []
        for start in range(0, len(images), _PART):
            cut = _patches(images[start : start + _PART], side, step)
            codes = torch.from_numpy(learner.transform(cut.flatten(0, 2).numpy()))
            rows.append(pool(codes.reshape(*cut.shape[:3], -1).movedim(3, 1).double(), config.cells))
            advance(min(1.0, (start + _PART) / len(images)))
    return torch.cat(rows)


def _patches(images: Tensor, side: int, step: int) -> Tensor:
    """Return all patches of images, ``(n, h, w, channels·side²)``."""
    return images.unfold(2, side, step).unfold(3, side, step).permute(0, 2, 3, 1, 4, 5).flatten(3).contiguous()
