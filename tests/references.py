"""Independent oracles: slow, plain, and written without the code they judge."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import deep_sparse_coding as dsc

# ---------------------------------------------------------------------- matrices


def explicit_matrix(dictionary: dsc.Dictionary, size: tuple[int, ...] = ()) -> Tensor:
    """Return D as a matrix, ``(signal entries, code entries)`` float64, each atom put in its place by index.

    Args:
        dictionary: Dense or convolutional.
        size: Spatial size of the code.
    """
    weight = dictionary.weight.detach().double()
    if not isinstance(dictionary, dsc.ConvDictionary):
        return weight.clone()
    kernel, stride = dictionary.kernel_size, dictionary.stride
    ring, open_ = dictionary.boundary == "circular", dictionary.boundary == "valid"
    lengths = [(n - 1) * q + k if open_ else n * q for n, q, k in zip(size, stride, kernel, strict=True)]
    # "same": the middle entry on p·q (of an even number the left one of the middle two); what sticks out is cut off.
    shift = [(k - 1) // 2 if dictionary.boundary == "same" else 0 for k in kernel]
    columns = []
    for atom in range(dictionary.atoms):
        for position in itertools.product(*(range(n) for n in size)):
            signal = np.zeros((dictionary.channels, *lengths))
            for tap in itertools.product(*(range(k) for k in kernel)):
                place = [p * q + t - s for p, q, t, s in zip(position, stride, tap, shift, strict=True)]
                place = [x % n for x, n in zip(place, lengths, strict=True)] if ring else place
                if any(not 0 <= x < n for x, n in zip(place, lengths, strict=True)):
                    continue
                signal[(slice(None), *place)] += weight[(atom, slice(None), *tap)].numpy()
            columns.append(signal.ravel())
    return torch.from_numpy(np.stack(columns, axis=1))


def joint_matrix(model: dsc.Cascade, size: tuple[int, ...], beta: Sequence[float]) -> tuple[Tensor, list[int]]:
    """Return the stacked matrix A of the joint problem and the number of code entries per layer.

    Row block j holds ``√β_j D_j`` on the diagonal and ``-√β_j I`` left of it; the data are ``(√β_1 y, 0, ...)``.

    Args:
        model: The cascade.
        size: Spatial size of the deepest code.
        beta: One weight per layer.
    """
    matrices: list[Tensor] = []
    for layer in reversed(model.layers):
        matrices.insert(0, explicit_matrix(layer, size))
        size = layer.signal_shape(size)[1:]
    widths = [matrix.shape[1] for matrix in matrices]
    blocks = []
    for j, matrix in enumerate(matrices):
        row = [torch.zeros(len(matrix), width, dtype=torch.float64) for width in widths]
        row[j] = beta[j] ** 0.5 * matrix
        if j:
            row[j - 1] = -(beta[j] ** 0.5) * torch.eye(len(matrix), dtype=torch.float64)
        blocks.append(torch.cat(row, 1))
    return torch.cat(blocks, 0), widths


# ---------------------------------------------------------------------- coherence


def normalized_gram(matrix: Tensor) -> np.ndarray:
    """Return ``|⟨d_i, d_l⟩|/(‖d_i‖‖d_l‖)`` with sign, own entries 0."""
    columns = matrix.numpy()
    gram = (columns.T @ columns) / np.outer(np.linalg.norm(columns, axis=0), np.linalg.norm(columns, axis=0))
    np.fill_diagonal(gram, 0.0)
    return gram


def brute_babel(matrix: Tensor, s: int) -> float:
    """Return ``max over atoms i and sets T of s other atoms of Σ_T |G_il|``, set by set where that is feasible."""
    gram = np.abs(normalized_gram(matrix))
    best = 0.0
    for i, row in enumerate(gram):
        others = np.delete(row, i)
        best = max(best, float(np.sort(others)[::-1][:s].sum()))
    return best


def exhaustive_babel(matrix: Tensor, s: int) -> float:
    """Return the same by going through all sets: only for few atoms."""
    gram = np.abs(normalized_gram(matrix))
    n = len(gram)
    return max(
        sum(gram[i, other] for other in chosen)
        for i in range(n)
        for chosen in itertools.combinations([k for k in range(n) if k != i], min(s, n - 1))
    )


def brute_one_sided_babel(matrix: Tensor, negative: int, positive: int) -> float:
    """Return ``max_i ( top_negative(G⁻_il) + top_positive(G⁺_il) )`` by sorting lists."""
    best = 0.0
    gram = normalized_gram(matrix)
    for i, row in enumerate(gram):
        others = [float(v) for k, v in enumerate(row) if k != i]
        minus = sorted((-v for v in others if v < 0), reverse=True)[:negative]
        plus = sorted((v for v in others if v > 0), reverse=True)[:positive]
        best = max(best, sum(minus) + sum(plus))
    return best


# ---------------------------------------------------------------------- counting


def brute_stripe_sparsity(dictionary: dsc.ConvDictionary, codes: Tensor) -> int:
    """Return ``‖x‖_{0,∞}`` of one code map ``(atoms, ...)`` by walking over positions and their neighbors."""
    grid, ring = codes.shape[1:], dictionary.boundary == "circular"
    best = 0
    for center in itertools.product(*(range(n) for n in grid)):
        members = set()
        for shift in itertools.product(*(range(-lag, lag + 1) for lag in dictionary.lags)):
            place = tuple(c + s for c, s in zip(center, shift, strict=True))
            if ring:
                place = tuple(p % n for p, n in zip(place, grid, strict=True))
            if all(0 <= p < n for p, n in zip(place, grid, strict=True)):
                members.add(place)
        best = max(best, sum(int((codes[(slice(None), *place)] != 0).sum()) for place in members))
    return best


def brute_place_sparsity(dictionary: dsc.ConvDictionary, below: Tensor) -> int:
    """Return the most non-zeros of one signal ``(channels, ...)`` under an atom, position by position."""
    lengths, ring, same = below.shape[1:], dictionary.boundary == "circular", dictionary.boundary == "same"
    grid = dictionary.code_shape(tuple(lengths))[1:]
    best = 0
    for position in itertools.product(*(range(n) for n in grid)):
        count = 0
        for tap in itertools.product(*(range(k) for k in dictionary.kernel_size)):
            axes = zip(position, dictionary.stride, tap, dictionary.kernel_size, strict=True)
            place = tuple(p * q + t - same * ((k - 1) // 2) for p, q, t, k in axes)
            if ring:
                place = tuple(x % n for x, n in zip(place, lengths, strict=True))
            if any(not 0 <= x < n for x, n in zip(place, lengths, strict=True)):
                continue
            count += int((below[(slice(None), *place)] != 0).sum())
        best = max(best, count)
    return best


# ---------------------------------------------------------------------- the Lasso


def lasso_objective(matrix: Tensor, signal: Tensor, codes: Tensor, weights: Tensor | float) -> float:
    """Return ``½‖y - Ax‖² + Σ w_i|x_i|`` in float64; entries that are exactly 0 cost nothing even at weight inf."""
    y, x = signal.double().flatten(), codes.double().flatten()
    w = torch.as_tensor(weights, dtype=torch.float64).expand_as(x)
    cost = torch.where(x == 0, torch.zeros_like(x), w * x.abs())
    return float(0.5 * (y - matrix.double() @ x).square().sum() + cost.sum())


def sklearn_lasso(
    matrix: Tensor,
    signal: Tensor,
    weights: Tensor | float,
    *,
    nonnegative: bool = False,
    mask: Tensor | None = None,
    tol: float = 1e-13,
    max_iter: int = 100_000,
) -> Tensor:
    """Return a minimizer of ``½‖M(y - Ax)‖² + Σ w_i|x_i|`` by scikit-learn's coordinate descent, float64.

    scikit-learn minimizes ``‖y - Xw‖²/(2n) + α‖w‖_1``, so ``α = 1/n`` and columns are divided by their weights; columns
    of infinite weight are left out. Weights must be positive.

    Args:
        matrix: A, ``(d, n)``.
        signal: y, d entries in any shape.
        weights: A number or one per column.
        nonnegative: Whether x ≥ 0.
        mask: M, d entries, None for all ones.
        tol: Relative duality gap at which scikit-learn stops.
        max_iter: Passes over the columns.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    a, y = matrix.double().numpy(), signal.double().flatten().numpy()
    if mask is not None:
        m = mask.double().flatten().numpy()
        a, y = a * m[:, None], y * m
    w = np.broadcast_to(np.asarray(torch.as_tensor(weights, dtype=torch.float64)), (a.shape[1],))
    free = np.isfinite(w)
    x = np.zeros(a.shape[1])
    if free.any():
        model = Lasso(alpha=1.0 / len(y), fit_intercept=False, positive=nonnegative, tol=tol, max_iter=max_iter)
        with warnings.catch_warnings():
            # The gap that is asked for lies at the edge of float64; what comes out is the best there is.
            warnings.simplefilter("ignore", ConvergenceWarning)
            x[free] = model.fit(a[:, free] / w[free], y).coef_ / w[free]
    return torch.from_numpy(x)


def scipy_lasso(
    matrix: Tensor, signal: Tensor, weights: Tensor | float, *, nonnegative: bool = False, mask: Tensor | None = None
) -> Tensor:
    """Return a minimizer as `sklearn_lasso` does, by a finite method, weights 0 allowed: SciPy's active-set NNLS.

    The dual is a projection, ``min ‖z‖ s.t. Gz ≥ h`` with ``z = θ - y, G = [-Aᵀ; Aᵀ], h = [Aᵀy - w; -Aᵀy - w]``,
    which Lawson & Hanson (1974, chapter 23) solve as ``min_{u ≥ 0} ‖[Gᵀ; hᵀ]u - (0, ..., 0, 1)‖``. The multipliers
    ``u/(1 - hᵀu)`` are the positive and the negative part of x; for non-negative x the first half of G is all there is.
    """
    from scipy.optimize import nnls

    a, y = matrix.double().numpy(), signal.double().flatten().numpy()
    if mask is not None:
        m = mask.double().flatten().numpy()
        a, y = a * m[:, None], y * m
    n = a.shape[1]
    w = np.broadcast_to(np.asarray(torch.as_tensor(weights, dtype=torch.float64)), (n,))
    free = np.isfinite(w)
    x = np.zeros(n)
    if not free.any():
        return torch.from_numpy(x)
    a, w = a[:, free], w[free]
    constraints = -a.T if nonnegative else np.concatenate([-a.T, a.T])
    levels = a.T @ y - w if nonnegative else np.concatenate([a.T @ y - w, -(a.T @ y) - w])
    target = np.zeros(len(y) + 1)
    target[-1] = 1.0
    u, _ = nnls(np.concatenate([constraints.T, levels[None]]), target, maxiter=100 * len(levels))
    multipliers = u / (1.0 - levels @ u)
    x[free] = multipliers if nonnegative else multipliers[: len(w)] - multipliers[len(w) :]
    return torch.from_numpy(x)


def nonnegative_least_squares(matrix: Tensor, signal: Tensor) -> Tensor:
    """Return ``argmin ½‖y - Ax‖², x ≥ 0`` by the active-set method of Lawson & Hanson (SciPy): lam = 0."""
    from scipy.optimize import nnls

    return torch.from_numpy(nnls(matrix.double().numpy(), signal.double().flatten().numpy())[0])


def orthonormal_lasso(matrix: Tensor, signal: Tensor, weights: Tensor | float, *, nonnegative: bool = False) -> Tensor:
    """Return the closed form for orthonormal columns: the soft threshold of ``Aᵀy``."""
    u = matrix.double().T @ signal.double().flatten()
    shrunk = (u if nonnegative else u.abs()) - torch.as_tensor(weights, dtype=torch.float64)
    return shrunk.clamp_min(0) * (1.0 if nonnegative else u.sign())


def kkt_violation(
    matrix: Tensor,
    signal: Tensor,
    codes: Tensor,
    weights: Tensor | float,
    *,
    nonnegative: bool = False,
    mask: Tensor | None = None,
) -> float:
    """Return the largest violation of the optimality conditions of the (weighted, masked) Lasso.

    ``Aᵀ(y - Ax)_i = w_i sign(x_i)`` where ``x_i ≠ 0``, at most w_i in size (non-negative: in value) elsewhere.
    """
    a, y, x = matrix.double(), signal.double().flatten(), codes.double().flatten()
    m = torch.ones_like(y) if mask is None else mask.double().flatten()
    w = torch.as_tensor(weights, dtype=torch.float64).expand_as(x)
    correlation = a.T @ (m.square() * (y - a @ x))
    on = (correlation - w * x.sign()).abs()
    off = ((correlation if nonnegative else correlation.abs()) - w).clamp_min(0)
    violation = torch.where(x != 0, on, off)
    if nonnegative:
        violation = torch.maximum(violation, -x)
    return float(violation.max())


def scaled_dual(
    matrix: Tensor,
    signal: Tensor,
    codes: Tensor,
    weights: Tensor | float,
    *,
    nonnegative: bool = False,
    mask: Tensor | None = None,
) -> float:
    """Return ``max_α ½‖My‖² - ½‖My - αr‖²`` over the α with ``|α a_iᵀM r| ≤ w_i``, ``r = M(y - Ax)``, in NumPy.

    Non-negative: ``α a_iᵀM r ≤ w_i``. All weights must be positive.
    """
    m = np.ones(signal.numel()) if mask is None else mask.double().flatten().numpy()
    a, b = matrix.double().numpy() * m[:, None], signal.double().flatten().numpy() * m
    r = b - a @ codes.double().flatten().numpy()
    if not r.any():
        return 0.0
    correlation = a.T @ r
    w = np.broadcast_to(np.asarray(torch.as_tensor(weights, dtype=torch.float64)), correlation.shape)
    lower, upper = -np.inf, np.inf
    for value, bound in zip(correlation, w, strict=True):
        if value > 0:
            upper = min(upper, bound / value)
            lower = lower if nonnegative else max(lower, -bound / value)
        elif value < 0:
            lower = max(lower, bound / value)
            upper = upper if nonnegative else min(upper, -bound / value)
    alpha = min(max(float(b @ r) / float(r @ r), lower), upper)
    return 0.5 * float(b @ b) - 0.5 * float((b - alpha * r) @ (b - alpha * r))


def sklearn_joint(
    model: dsc.Cascade,
    signal: Tensor,
    size: tuple[int, ...],
    lam: Sequence[float],
    beta: Sequence[float],
    *,
    nonnegative: bool = False,
) -> tuple[tuple[Tensor, ...], float]:
    """Return the joint problem's minimizer, flat codes per layer, and its value, as one Lasso of the stacked matrix.

    Args:
        model: The cascade.
        signal: One signal.
        size: Spatial size of the deepest code.
        lam: One per layer.
        beta: One per layer.
        nonnegative: Whether all codes are at least 0.
    """
    matrix, widths = joint_matrix(model, size, beta)
    data = torch.zeros(len(matrix), dtype=torch.float64)
    data[: signal.numel()] = beta[0] ** 0.5 * signal.double().flatten()
    weights = torch.cat([torch.full((n,), value, dtype=torch.float64) for n, value in zip(widths, lam, strict=True)])
    flat = sklearn_lasso(matrix, data, weights, nonnegative=nonnegative)
    return tuple(flat.split(widths)), lasso_objective(matrix, data, flat, weights)
