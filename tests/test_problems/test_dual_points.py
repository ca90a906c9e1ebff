"""The dual point corrected on the support: rigorous, tight near the solution, and the better of the two."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess, assess_form, dual_point
from deep_sparse_coding.problems.certificate import certify_gap
from deep_sparse_coding.problems.dual import support_point
from references import explicit_matrix
from strategies import draw_cascade, draw_conv, draw_dense, normal, randint, rng

SEEDS = st.integers(0, 2**31 - 1)


@dataclass(frozen=True)
class Known:
    """A problem made so that its minimizer is known.

    Attributes:
        problem: The problem, lam = 1.
        signal: y.
        matrix: A, with the mask.
        weights: w, one per column.
        theta: The dual solution.
        codes: The minimizer x*, one entry per column.
    """

    problem: dsc.Lasso
    signal: Tensor
    matrix: Tensor
    weights: Tensor
    theta: Tensor
    codes: Tensor

    @property
    def optimum(self) -> float:
        """P*."""
        return float(0.5 * self.theta.square().sum() + (self.weights * self.codes.abs()).sum())

    def excess(self, codes: Tensor) -> float:
        """P(x) - P*, added up from terms that are not negative: no digits cancel."""
        move = self.matrix @ (codes - self.codes)
        slack = self.weights * codes.abs() - codes * (self.matrix.T @ self.theta)
        return float(0.5 * move.square().sum() + torch.where(codes != 0, slack.clamp_min(0), 0.0).sum())

    def shaped(self, codes: Tensor) -> Tensor:
        """Codes as the problem has them."""
        return codes.reshape(self.problem.code_shape(self.signal))

    def perturbed(self, size: float, seed: int) -> Tensor:
        """Codes of the right support and signs, each off by a factor up to 1 ± size."""
        return self.codes * (
            1 + size * (2 * torch.rand(self.codes.shape, generator=rng(seed), dtype=torch.float64) - 1)
        )


def draw_known(seed: int, dictionary: dsc.Dictionary, *, masked: bool = False, nonnegative: bool = False) -> Known:
    """Choose θ* and the support; the weights are what makes them optimal, the signal what makes θ* the residual."""
    g = rng(seed)
    conv = isinstance(dictionary, dsc.ConvDictionary)
    size = (6,) * dictionary.axes if isinstance(dictionary, dsc.ConvDictionary) else ()
    shape = dictionary.signal_shape(size)
    dense = explicit_matrix(dictionary, size)
    mask = (
        (torch.rand(shape, generator=g, dtype=torch.float64) < 0.8) if masked else torch.ones(shape, dtype=torch.bool)
    )
    matrix = mask.flatten().double()[:, None] * dense
    theta = mask.flatten() * normal(len(matrix), generator=g)
    correlation = matrix.T @ theta
    used = torch.rand(matrix.shape[1], generator=g, dtype=torch.float64) < (0.1 if conv else 0.25)
    used &= correlation.abs() > 1e-2
    if nonnegative:
        used &= correlation > 0
    slack = 0.02 + torch.rand(used.shape, generator=g, dtype=torch.float64)
    weights = torch.where(used, correlation.abs(), correlation.abs() + slack)
    codes = torch.where(
        used, correlation.sign() * (0.1 + torch.rand(used.shape, generator=g, dtype=torch.float64)), 0.0
    )
    signal = (dense @ codes + theta).reshape(shape)
    signal = torch.where(mask, signal, 7.0)  # what was not observed must not count
    grid = dictionary.exact_code_shape(tuple(shape[1:])) if conv else (dictionary.atoms,)
    problem = dsc.Lasso(
        dictionary, 1.0, weights=weights.reshape(grid), nonnegative=nonnegative, mask=mask if masked else None
    )
    return Known(problem, signal, matrix, weights, theta, codes)


def draw_any(seed: int) -> dsc.Dictionary:
    return draw_conv(seed) if randint(0, 2, rng(seed)) == 0 else draw_dense(seed)


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, masked=st.booleans(), nonnegative=st.booleans(), digits=st.integers(1, 12))
def test_no_gap_is_below_the_true_excess(seed: int, masked: bool, nonnegative: bool, digits: int) -> None:
    known = draw_known(seed, draw_any(seed), masked=masked, nonnegative=nonnegative)
    codes = known.perturbed(10.0**-digits, seed)
    extra = torch.rand(codes.shape, generator=rng(seed + 1), dtype=torch.float64) < 0.05
    for x in (codes, codes + extra * 10.0**-digits, torch.where(extra, 0.0, codes), torch.zeros_like(codes)):
        form = known.problem.exact_form(known.signal[None])
        blocks = (known.shaped(x)[None],)
        scaled = dual_point(form, blocks)
        better = support_point(form, blocks, scaled.residual)
        rounding = 1e-14 * (known.optimum + float(known.signal.square().sum()))
        for point in (scaled, better):
            assert float(point.gap) >= known.excess(x) * (1 - 1e-9) - rounding
            assert float(point.gap) >= 0
            reach = known.matrix.T @ point.theta[0].flatten()
            over = (reach if nonnegative else reach.abs()) - known.weights * (1 + 1e-14)
            assert float(over.max()) <= 1e-14 * float(known.theta.norm() + known.signal.norm())


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, masked=st.booleans(), nonnegative=st.booleans(), digits=st.integers(2, 8))
def test_the_corrected_point_is_exact_on_the_right_support(
    seed: int, masked: bool, nonnegative: bool, digits: int
) -> None:
    # r - θ* lies in the span of the atoms in use: what is left of the gap is the primal's own excess, so that the
    # bound is attained. The scaled residual's gap falls only as fast as the error itself.
    known = draw_known(seed, draw_any(seed), masked=masked, nonnegative=nonnegative)
    columns = known.matrix[:, known.codes != 0]
    if not 0 < columns.shape[1] <= len(columns) or float(torch.linalg.cond(columns)) > 30:
        return
    x = known.perturbed(10.0**-digits, seed)
    form = known.problem.exact_form(known.signal[None])
    blocks = (known.shaped(x)[None],)
    gap = float(support_point(form, blocks, form.residual(blocks)).gap)
    excess = known.excess(x)
    assert gap <= excess * (1 + 1e-6) + 1e-12 * known.optimum
    certificate = assess(known.problem, known.signal, known.shaped(x), tol=0.0)
    assert float(certificate.gap) <= float(dual_point(form, blocks).gap) * (1 + 1e-12)


def _numpy_certificate(known: Known, x: Tensor, tol: float) -> tuple[float, float]:
    """Return objective and gap of the better point, by NumPy's least squares."""
    (
        a,
        w,
        x_,
    ) = known.matrix.numpy(), known.weights.numpy(), x.numpy()
    nonnegative = known.problem.nonnegative
    b = known.matrix.numpy() @ known.codes.numpy() + known.theta.numpy()
    r = b - a @ x_
    objective = 0.5 * r @ r + w @ np.abs(x_)

    def gap(ray: np.ndarray) -> float:
        c = a.T @ ray
        top = np.max(c / w) if nonnegative else np.max(np.abs(c) / w)
        high = 1 / top if top > 0 else np.inf
        low = -np.inf if nonnegative and not (c < 0).any() else (1 / np.min(c / w) if nonnegative else -high)
        alpha = np.clip(b @ ray / (ray @ ray), low, high)
        return 0.5 * np.sum((r - alpha * ray) ** 2) + float(np.sum(w * np.abs(x_) - alpha * x_ * c))

    first = gap(r)
    if not tol < first / objective <= 1e-3:
        return float(objective), float(first)
    s = x_ != 0
    target = w[s] * np.sign(x_[s])
    ray = r - a[:, s] @ np.linalg.lstsq(a[:, s].T @ a[:, s], a[:, s].T @ r - target, rcond=None)[0]
    return float(objective), min(float(first), gap(ray))


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, masked=st.booleans(), nonnegative=st.booleans(), digits=st.integers(1, 7))
def test_the_certificate_equals_a_recomputation_in_numpy(
    seed: int, masked: bool, nonnegative: bool, digits: int
) -> None:
    known = draw_known(seed, draw_dense(seed), masked=masked, nonnegative=nonnegative)
    columns = known.matrix[:, known.codes != 0]
    if not 0 < columns.shape[1] <= len(columns) or float(torch.linalg.cond(columns)) > 30:
        return
    x = known.perturbed(10.0**-digits, seed)
    for tol in (1e-6, 0.0, math.inf):
        found = assess(known.problem, known.signal, x, tol=tol)
        objective, gap = _numpy_certificate(known, x, tol)
        assert float(found.objective) == pytest.approx(objective, rel=1e-9)
        # Room for rounding of the correlations, of the size of ‖θ‖ against a weight, is part of the gap.
        room = 1e-14 * (10 + float(known.theta.norm() / known.weights.min()))
        assert float(found.gap) == pytest.approx(gap, rel=1e-9, abs=room * objective)
        assert float(found.dual) == pytest.approx(objective - gap, rel=1e-9)
        assert float(found.relative_gap) == pytest.approx(gap / objective, rel=1e-9, abs=room)


@pytest.mark.parametrize("power", [-100, -30, 30, 100])
def test_scales(power: int) -> None:
    known = draw_known(5, draw_dense(5))
    x, c = known.perturbed(1e-5, 5), 10.0**power
    plain = assess(known.problem, known.signal, x, tol=0.0)
    lam = dsc.Lasso(known.problem.dictionary, c, weights=known.weights)
    scaled = assess(lam, c * known.signal, c * x, tol=0.0)
    assert float(scaled.relative_gap) == pytest.approx(float(plain.relative_gap), rel=1e-3, abs=1e-13)
    assert float(scaled.gap) >= c * c * known.excess(x) * (1 - 1e-6) - 1e-13 * float(scaled.objective)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_joint_problems_and_penalties_get_it_too(seed: int) -> None:
    # Perturbed codes of an accurate solution: sound against the objective of the best known codes, and near it.
    g = rng(seed)
    dense = draw_dense(seed, "gaussian")
    model = draw_cascade(seed, conv=False, depth=2)
    signal, below = normal(dense.channels, generator=g), normal(model.layers[0].channels, generator=g)
    lam = 0.1 * float(dsc.Lasso(dense, 1.0).lam_max(signal))
    first = 0.1 * float(dsc.JointLasso(model, 1.0).lam_max(below))
    problems: list[tuple[dsc.Lasso | dsc.JointLasso, Tensor]] = [
        (dsc.JointLasso(model, (first, 0.5 * first)), below),
        (dsc.Lasso(dense, lam, ridge=0.1), signal),
        (dsc.Lasso(dense, lam, box=(-0.5, 0.5)), signal),
        (dsc.Lasso(dense, lam, groups=[list(range(dense.atoms))[i::3] for i in range(3)]), signal),
    ]
    for problem, signal in problems:
        best = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-12, on_failure="ignore")
        size = float(best.certificate.objective)
        if float(best.certificate.relative_gap) > 1e-11:
            continue
        blocks = best.codes if isinstance(best.codes, tuple) else (best.codes,)
        moved = tuple(b * (1 - 1e-5 * torch.rand(b.shape, generator=g, dtype=torch.float64)) for b in blocks)
        codes = moved if isinstance(best.codes, tuple) else moved[0]
        certificate = assess(problem, signal, codes, tol=0.0)
        excess = float(certificate.objective) - size
        assert float(certificate.gap) >= excess - 1e-12 * size
        assert float(certificate.gap) <= float(assess(problem, signal, codes, tol=math.inf).gap) * (1 + 1e-12)


@pytest.mark.parametrize("solver", [None, dsc.FISTA()], ids=["chosen", "FISTA"])
@pytest.mark.parametrize("share", [0.1, 0.01])
def test_float32_codes_are_certified_to_the_default_tol(solver: dsc.Solver | None, share: float) -> None:
    dictionary = dsc.DenseDictionary.random(64, 128, seed=0)
    signal = torch.randn(40, 64, generator=rng(0))
    lam = share * dsc.Lasso(dictionary, 1.0).lam_max(signal).float()
    problem = dsc.Lasso(dictionary, lam.reshape(40, 1))
    solution = dsc.solve(problem, signal, solver)
    assert bool(solution.converged.all())
    assert isinstance(solution.codes, Tensor)
    # The scaled residual of the very codes does not show it.
    plain = assess(problem, signal, solution.codes, tol=math.inf)
    if share == 0.01:
        assert float(plain.relative_gap.max()) > 1e-6
    # In float64 the solution's objective is no lower than what is proved.
    exact = problem.exact_form(signal)
    best = dsc.solve(dsc.Lasso(dictionary.cast(torch.float64), lam.double().reshape(40, 1)), signal.double(), tol=1e-12)
    assert bool((best.certificate.objective >= solution.certificate.dual - 1e-13 * best.certificate.objective).all())
    again = assess_form(exact, (solution.codes,))
    assert torch.allclose(again.relative_gap, solution.certificate.relative_gap, rtol=1e-6, atol=1e-12)


def test_fewer_steps_of_proximal_gradient() -> None:
    dictionary = dsc.DenseDictionary.random(64, 128, seed=0, dtype=torch.float64)
    signal = normal(20, 64, generator=rng(0))
    lam = 0.1 * dsc.Lasso(dictionary, 1.0).lam_max(signal)
    problem = dsc.Lasso(dictionary, lam.reshape(20, 1))
    solution = dsc.solve(problem, signal, dsc.FISTA())
    assert isinstance(solution.codes, Tensor)
    plain = assess(problem, signal, solution.codes, tol=math.inf).relative_gap
    assert float(plain.median()) > 5 * float(solution.certificate.relative_gap.median())


@pytest.mark.parametrize("masks", ["none", "shared", "each"])
def test_conjugate_gradients_and_cholesky_agree(masks: str) -> None:
    dictionary = dsc.DenseDictionary.random(24, 40, seed=1, dtype=torch.float64)
    signal = normal(6, 24, generator=rng(1))
    mask = None if masks == "none" else torch.rand(24 if masks == "shared" else (6, 24), generator=rng(2)) < 0.9
    problem = dsc.Lasso(dictionary, 0.4, mask=mask)
    codes = dsc.solve(problem, signal, tol=1e-5).codes
    assert isinstance(codes, Tensor)
    whole = assess(problem, signal, codes, tol=0.0)
    for i in range(6):
        one = dsc.Lasso(dictionary, 0.4, mask=mask if mask is None or mask.ndim == 1 else mask[i])
        alone = assess(one, signal[i], codes[i], tol=0.0)
        assert float(alone.gap) == pytest.approx(float(whole.gap[i]), rel=1e-6, abs=1e-12 * float(whole.objective[i]))


def test_dependent_columns_and_bad_codes_change_nothing() -> None:
    matrix = normal(6, 9, generator=rng(0))
    matrix[:, 8] = matrix[:, 0] * (1 + 1e-15)
    with pytest.warns(dsc.DSCWarning, match="same"):
        dictionary = dsc.DenseDictionary(matrix, normalize=True)
    signal = normal(4, 6, generator=rng(1))
    problem = dsc.Lasso(dictionary, 0.2)
    codes = dsc.solve(problem, signal, tol=1e-5).codes
    assert isinstance(codes, Tensor)
    split = codes.clone()
    split[:, 8] = split[:, 0] = 0.5 * (codes[:, 0] + codes[:, 8])
    every = torch.where(codes == 0, 1e-9, codes)  # more columns than rows
    bad = codes.clone()
    bad[1] = math.nan
    for x in (split, every, bad):
        better, plain = assess(problem, signal, x, tol=0.0), assess(problem, signal, x, tol=math.inf)
        keep = ~torch.isnan(plain.gap)
        assert bool((better.gap[keep] <= plain.gap[keep]).all())
        assert bool((better.gap[keep] >= 0).all())
        assert bool((better.dual[keep] <= dsc.solve(problem, signal, tol=1e-9).certificate.objective[keep]).all())
    assert not bool(assess(problem, signal, bad, tol=0.0).relative_gap[1] <= 1e9)


def test_samples_within_tol_keep_the_scaled_residual() -> None:
    known = draw_known(3, draw_dense(3))
    x = known.perturbed(1e-6, 3)
    form = known.problem.exact_form(known.signal[None])
    plain = certify_gap(form.data, assess_form(form, (x[None],)).objective, dual_point(form, (x[None],)).gap)
    tol = float(plain.relative_gap)
    assert torch.equal(assess_form(form, (x[None],), tol).gap, plain.gap)
    assert float(assess_form(form, (x[None],), 0.5 * tol).gap) < 0.1 * float(plain.gap)
