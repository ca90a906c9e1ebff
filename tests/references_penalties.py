"""Independent oracles for bounds, ridge and groups: plain, and written without the code they judge."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor


def sklearn_elastic_net(
    matrix: Tensor, signal: Tensor, lam: float, ridge: float, *, nonnegative: bool = False
) -> Tensor:
    """Return a minimizer of ``½‖y - Ax‖² + lam‖x‖_1 + (ridge/2)‖x‖²`` by scikit-learn's coordinate descent, float64.

    scikit-learn minimizes ``‖y - Xw‖²/(2n) + α·ρ‖w‖_1 + ½α(1 - ρ)‖w‖²``.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import ElasticNet

    a, y = matrix.double().numpy(), signal.double().flatten().numpy()
    alpha = (lam + ridge) / len(y)
    model = ElasticNet(
        alpha=alpha,
        l1_ratio=lam / (lam + ridge),
        fit_intercept=False,
        positive=nonnegative,
        tol=1e-14,
        max_iter=100_000,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return torch.from_numpy(model.fit(a, y).coef_)


def scipy_box_lasso(
    matrix: Tensor, signal: Tensor, weights: Tensor | float, lower: Tensor | float, upper: Tensor | float
) -> Tensor:
    """Return a minimizer of ``½‖y - Ax‖² + Σ w_i|x_i|`` on ``l ≤ x ≤ u`` (l ≤ 0 ≤ u), by SciPy's bounded least squares.

    With ``x = p - q``, ``0 ≤ p ≤ u``, ``0 ≤ q ≤ -l`` the penalty is linear, ``c = (w - Aᵀy, w + Aᵀy)``. With
    ``SᵀS = [A, -A]ᵀ[A, -A] + εI``, ``½‖S z + S⁻ᵀc‖²`` is that up to a constant; ε costs ``ε‖z‖²/2``.
    """
    from scipy.optimize import lsq_linear

    a, y = matrix.double(), signal.double().flatten()
    n = a.shape[1]
    w, low, high = (torch.as_tensor(v, dtype=torch.float64).expand(n) for v in (weights, lower, upper))
    split = torch.cat([a, -a], 1)
    gram = split.T @ split + 1e-10 * torch.eye(2 * n, dtype=torch.float64)
    root = torch.linalg.cholesky(gram).T
    linear = torch.cat([w, w]) - split.T @ y
    target = -torch.linalg.solve_triangular(root.T, linear[:, None], upper=False)[:, 0]
    # SciPy wants bounds with room between them.
    bounds = (torch.zeros(2 * n).numpy(), torch.cat([high, -low]).clamp_min(1e-14).numpy())
    found = lsq_linear(root.numpy(), target.numpy(), bounds, method="bvls", tol=1e-15, max_iter=2000)
    z = torch.from_numpy(found.x)
    return torch.minimum(torch.maximum(z[:n] - z[n:], low), high)


def projected_prox(
    point: Tensor, threshold: float, lower: float, upper: float, *, size: int = 200_001
) -> tuple[float, float]:
    """Return the best of many points between the bounds for ``½(x - z)² + t|x|``, and their distance: no formula."""
    z = float(point)
    low, high = max(lower, min(z, 0.0) - 1.0), min(upper, max(z, 0.0) + 1.0)
    grid = torch.linspace(low, high, size, dtype=torch.float64)
    return float(grid[(0.5 * (grid - z).square() + threshold * grid.abs()).argmin()]), (high - low) / (size - 1)


def orthonormal_groups(
    matrix: Tensor, signal: Tensor, lam: float, groups: Sequence[Sequence[int]], *, nonnegative: bool = False
) -> Tensor:
    """Return the closed form of the group Lasso for orthonormal columns, group by group."""
    u = matrix.double().T @ signal.double().flatten()
    x = torch.zeros_like(u)
    for group in groups:
        part = u[list(group)].clamp_min(0) if nonnegative else u[list(group)]
        length = float(part.norm())
        if length > lam:
            x[list(group)] = (1 - lam / length) * part
    return x


def group_objective(
    matrix: Tensor, signal: Tensor, codes: Tensor, lam: float, groups: Sequence[Sequence[int]]
) -> float:
    """Return ``½‖y - Ax‖² + lam Σ_g ‖x_g‖`` in float64, group by group."""
    y, x = signal.double().flatten(), codes.double().flatten()
    norms = sum(float(x[list(group)].norm()) for group in groups)
    return float(0.5 * (y - matrix.double() @ x).square().sum()) + lam * norms


def group_violation(
    matrix: Tensor,
    signal: Tensor,
    codes: Tensor,
    lam: float,
    groups: Sequence[Sequence[int]],
    *,
    nonnegative: bool = False,
) -> float:
    """Return the largest violation of the optimality conditions of the group Lasso.

    ``A_gᵀr = lam x_g/‖x_g‖`` for groups in use, ``‖A_gᵀr‖ ≤ lam`` for others; non-negative codes: at zeros of a group
    in use ``a_iᵀr ≤ 0``, and ``‖(A_gᵀr)₊‖ ≤ lam`` for the others.
    """
    x = codes.double().flatten()
    correlation = matrix.double().T @ (signal.double().flatten() - matrix.double() @ x)
    worst = -float(x.min()) if nonnegative else 0.0
    for group in groups:
        part, values = correlation[list(group)], x[list(group)]
        if not bool((values != 0).any()):
            length = float((part.clamp_min(0) if nonnegative else part).norm())
            worst = max(worst, length - lam)
            continue
        difference = part - lam * values / values.norm()
        if nonnegative:
            difference = torch.where(values == 0, difference.clamp_min(0), difference)
        worst = max(worst, float(difference.abs().max()))
    return worst


def box_violation(
    matrix: Tensor, signal: Tensor, codes: Tensor, weights: Tensor | float, lower: Tensor | float, upper: Tensor | float
) -> float:
    """Return the largest violation of the optimality conditions of the Lasso on ``l ≤ x ≤ u``.

    ``c = Aᵀ(y - Ax)`` lies between ``w sign(x)`` (at 0: between -w and w), without an upper limit where ``x = u``, and
    without a lower one where ``x = l``.
    """
    x = codes.double().flatten()
    w, low, high = (torch.as_tensor(v, dtype=torch.float64).expand_as(x) for v in (weights, lower, upper))
    correlation = matrix.double().T @ (signal.double().flatten() - matrix.double() @ x)
    most, least = torch.where(x >= 0, w, -w), torch.where(x <= 0, -w, w)
    above = torch.where(x == high, 0.0, (correlation - most).clamp_min(0))
    below = torch.where(x == low, 0.0, (least - correlation).clamp_min(0))
    outside = torch.maximum((x - high).clamp_min(0), (low - x).clamp_min(0))
    return float(torch.stack([above, below, outside]).max())
