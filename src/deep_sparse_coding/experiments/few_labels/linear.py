"""A linear classifier that needs no validation images: ridge regression, its penalty chosen by leaving one out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ParameterError, ShapeError

PENALTIES = tuple(10.0**k for k in range(-5, 3))


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """``argmax_k ⟨w_k, (f - mean) / scale⟩ + b_k``.

    Attributes:
        weight: ``(features, classes)``, of the scaled features.
        bias: ``(classes,)``.
        mean: ``(features,)``.
        scale: One number: the root mean square distance of the samples from their mean.
        penalty: The weight of ``‖W‖²`` that leaving one out chose.
        error: The mean squared error of leaving one out, at that penalty.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: float
    penalty: float
    error: float

    def predict(self, features: Tensor) -> Tensor:
        """Return the class of every row of features, ``(n,)``."""
        return (((features - self.mean) / self.scale) @ self.weight + self.bias).argmax(1)


def fit_linear(
    features: Tensor, labels: Tensor, classes: int, penalties: tuple[float, ...] = PENALTIES
) -> LinearClassifier:
    """Return the ridge classifier of targets 1 and -1, with the penalty of the smallest leave-one-out error.

    With the features F centered and divided by one number, ``K = F Fᵀ`` and ``H = K (K + a I)⁻¹ + 1/n``, the residual
    at sample i of what is fitted to the others is ``(y - ŷ)_i / (1 - H_ii)``, exactly.

    Args:
        features: ``(n, features)``, float64.
        labels: ``(n,)``, 0 to ``classes - 1``.
        classes: How many there are.
        penalties: What is tried; of equal ones the largest is taken.

    Raises:
        ParameterError: No penalties.
        ShapeError: Fewer than two samples, or another number of labels.

    Source: Rifkin & Lippert 2007, "Notes on regularized least squares".
    """
    if features.ndim != 2 or len(features) < 2 or labels.shape != (len(features),):
        raise ShapeError(
            f"features has shape {tuple(features.shape)} and labels {tuple(labels.shape)}; expected (n, features) and "
            "(n,), n at least 2"
        )
    if not penalties:
        raise ParameterError("penalties is empty; expected at least one number above 0")
    count = len(features)
    mean = features.mean(0)
    # One number for all features: so few samples cannot tell which of those that hardly vary are to be blown up.
    scale = max(float((features - mean).square().sum(1).mean().sqrt()), 1e-12)
    matrix = (features - mean) / scale
    targets = torch.full((count, classes), -1.0, dtype=matrix.dtype)
    targets[torch.arange(count), labels] = 1.0
    bias = targets.mean(0)
    # Of the two Gram matrices the smaller one: F = U S Vᵀ either way.
    wide = matrix.shape[1] >= count
    values, vectors = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)
    kept = values > values[-1].clamp_min(1e-300) * 1e-12
    values, vectors = values[kept], vectors[:, kept]
    left = vectors if wide else matrix @ (vectors / values.sqrt())
    share = left.T @ (targets - bias)
    best: tuple[float, float, Tensor] | None = None
    for penalty in sorted(penalties, reverse=True):
        shrink = values / (values + penalty)
        leverage = left.square() @ shrink + 1 / count
        residual = (targets - bias - left @ (shrink[:, None] * share)) / (1 - leverage).clamp_min(1e-12)[:, None]
        error = float(residual.square().mean())
        if best is None or error < best[0]:
            best = error, penalty, values.sqrt() / (values + penalty)
    assert best is not None
    error, penalty, factor = best
    right = matrix.T @ (left / values.sqrt()) if wide else vectors
    return LinearClassifier(right @ (factor[:, None] * share), bias, mean, scale, penalty, error)
