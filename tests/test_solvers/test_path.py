"""Regularization paths against scikit-learn, their grid and their table."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import deep_sparse_coding as dsc
from references import explicit_matrix, joint_matrix, kkt_violation
from strategies import normal, rng

KIND = {"dtype": torch.float64}
DENSE = dsc.DenseDictionary.random(12, 20, seed=0, **KIND)
CONV = dsc.ConvDictionary.random(atoms=3, channels=1, size=3, seed=0, **KIND)
SIGNAL = normal(4, 12, generator=rng(0))
MODEL = dsc.Cascade([DENSE, dsc.DenseDictionary.random(20, 24, seed=1, **KIND)])


@pytest.mark.parametrize("nonnegative", [False, True])
def test_every_solution_is_that_of_lasso_path(nonnegative: bool) -> None:
    from sklearn.linear_model import lasso_path

    path = dsc.solve_path(dsc.Lasso(DENSE, 0.1, nonnegative=nonnegative), SIGNAL, lams=12, tol=1e-10)
    assert len(path) == len(list(path)) == 12
    assert path.lams.shape == path.density.shape == path.residual_norm.shape == (12, 4)
    matrix = DENSE.matrix.numpy()
    for i in range(4):
        alphas = path.lams[:, i].numpy() / 12
        _, coefficients, _ = lasso_path(
            matrix, SIGNAL[i].numpy(), alphas=alphas, positive=nonnegative, tol=1e-13, max_iter=100_000
        )
        codes = torch.stack([solution.codes[i] for solution in path])
        assert np.abs(coefficients.T - codes.numpy()).max() < 1e-5
        norms = np.linalg.norm(SIGNAL[i].numpy()[:, None] - matrix @ coefficients, axis=0)
        assert np.allclose(path.residual_norm[:, i].numpy(), norms, atol=1e-6)


def test_lars_knots_lie_where_the_path_says() -> None:
    """Between two knots of the exact path the codes are linear in lam: the path meets the interpolation."""
    from sklearn.linear_model import lars_path

    knots, _, corners = lars_path(DENSE.matrix.numpy(), SIGNAL[0].numpy(), method="lasso")
    knots = knots * 12  # scikit-learn divides by the number of samples
    path = dsc.solve_path(dsc.Lasso(DENSE, 0.1), SIGNAL[0], lams=15, ratio=0.05, tol=1e-12)
    assert float(path.lams[0]) == pytest.approx(knots[0], rel=1e-12)
    for lam, solution in zip(path.lams.tolist(), path, strict=True):
        want = [np.interp(-lam, -knots, corner) for corner in corners]
        assert np.allclose(solution.codes.numpy(), want, atol=1e-6)


def test_the_grid_is_each_samples_own_and_starts_with_zeros_without_a_warning() -> None:
    signal = SIGNAL * torch.tensor([1.0, 10.0, 0.0, 1e-3], **KIND)[:, None]
    problem = dsc.Lasso(DENSE, 7.0)
    path = dsc.solve_path(problem, signal, lams=5, ratio=0.1)
    top = problem.lam_max(signal)
    top[2] = 1.0
    assert torch.allclose(path.lams / top, torch.logspace(0, -1, 5, **KIND)[:, None])
    assert float(path.density[0].max()) == 0.0
    assert bool((path.density[-1, [0, 1, 3]] > 0.1).all())
    assert bool((path.residual_norm.diff(dim=0) <= 1e-9).all())
    scaled = path.residual_norm / path.lams  # statement G6: this never falls as lam does
    assert bool((scaled.diff(dim=0)[:, [0, 1, 3]] >= -1e-6).all())
    single = dsc.solve_path(problem, SIGNAL[0], lams=3)
    assert single.lams.shape == (3,)
    assert single[1].codes.shape == (20,)


def test_given_lams_are_taken_as_they_are() -> None:
    given = [1.0, 0.5, 0.2]
    for lams in (given, tuple(given), torch.tensor(given, **KIND)):
        path = dsc.solve_path(dsc.Lasso(DENSE, 9.0), SIGNAL.reshape(2, 2, 12), lams=lams, tol=1e-9)
        assert path.lams.shape == (3, 2, 2)
        for lam, solution in zip(given, path, strict=True):
            assert solution.problem.lam == lam
            for i in range(4):
                codes = solution.codes.reshape(4, 20)[i]
                assert kkt_violation(DENSE.matrix, SIGNAL[i], codes, lam) < 1e-3 * lam


def test_warm_starts_save_steps() -> None:
    problem, lams = dsc.Lasso(CONV, 0.1), [1.0, 0.98, 0.96, 0.94, 0.92, 0.90]
    signal = normal(1, 12, 12, generator=rng(1))
    path = dsc.solve_path(problem, signal, lams=lams, tol=1e-7)
    cold = [dsc.solve(dsc.Lasso(CONV, lam), signal, tol=1e-7) for lam in lams]
    assert sum(int(s.steps) for s in path) < sum(int(s.steps) for s in cold)


def test_masks_and_weights_go_along() -> None:
    mask = torch.rand(4, 12, generator=rng(2)) < 0.7
    weights = torch.linspace(0.5, 2.0, 20, **KIND)
    path = dsc.solve_path(dsc.Lasso(DENSE, 0.1, weights, mask=mask), SIGNAL, lams=4, ratio=0.1, tol=1e-9)
    for lam, norms, solution in zip(path.lams, path.residual_norm, path, strict=True):
        for i in range(4):
            w, codes = lam[i] * weights, solution.codes[i]
            assert kkt_violation(DENSE.matrix, SIGNAL[i], codes, w, mask=mask[i]) < 1e-3 * float(lam[i])
            left = mask[i] * (SIGNAL[i] - DENSE.matrix @ codes)
            assert float(norms[i]) == pytest.approx(float(left.norm()), abs=1e-12)


@pytest.mark.parametrize("kind", [dsc.JointLasso, dsc.LayeredLasso])
def test_layers_scale_together(kind: type[dsc.JointLasso | dsc.LayeredLasso]) -> None:
    problem = kind(MODEL, (0.2, 0.1))
    path = dsc.solve_path(problem, SIGNAL, lams=4, ratio=0.05, tol=1e-8)
    assert torch.allclose(path.lams[0], problem.lam_max(SIGNAL))
    assert float(path.density[0].max()) == 0.0
    last = path[3]
    for i in range(4):
        lam = float(path.lams[3, i])
        if kind is dsc.JointLasso:
            matrix, widths = joint_matrix(MODEL, (), (1.0, 1.0))
            data = torch.cat([SIGNAL[i], torch.zeros(20, **KIND)])
            weights = torch.cat([torch.full((n,), w, **KIND) for n, w in zip(widths, (lam, lam / 2), strict=True)])
            codes = torch.cat([last.codes[0][i], last.codes[1][i]])
            assert kkt_violation(matrix, data, codes, weights) < 1e-3 * lam
        else:
            first, second = last.codes[0][i], last.codes[1][i]
            assert kkt_violation(explicit_matrix(DENSE), SIGNAL[i], first, lam) < 1e-3 * lam
            assert kkt_violation(explicit_matrix(MODEL.layers[1]), first, second, lam / 2) < 1e-3 * lam
        left = float((SIGNAL[i] - DENSE.matrix @ last.codes[0][i]).norm())
        assert float(path.residual_norm[3, i]) == pytest.approx(left, abs=1e-12)


def test_a_path_prints_as_a_table_and_is_frozen() -> None:
    path = dsc.solve_path(dsc.Lasso(DENSE, 0.1), SIGNAL, lams=3)
    head, names, *rows = str(path).splitlines()
    assert head.startswith("Path of 3 lams (3 converged) · CoordinateDescent · means over 4 samples")
    assert names.split() == ["lam", "objective", "density", "residual", "steps", "gap"]
    assert len(rows) == 3
    assert rows[0].split()[2:4] == ["0.00", "%"]
    assert float(rows[1].split()[0]) == pytest.approx(float(path.lams[1].mean()), rel=1e-3)
    assert float(rows[1].split()[4]) == pytest.approx(float(path.residual_norm[1].mean()), rel=1e-3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        path.lams = path.lams  # type: ignore[misc]
    empty = dsc.solve_path(dsc.Lasso(DENSE, 0.1), SIGNAL[:0], lams=3)
    assert empty[2].codes.shape == (0, 20)
    assert "means over 0 samples" in str(empty)


def test_bad_samples_and_failures_are_said_once() -> None:
    signal = SIGNAL.clone()
    signal[1, 0] = math.nan
    with pytest.warns(
        dsc.DSCWarning, match=r"not converge at 3 of 3 lams; first at lams\[0\] = 1, sample 1: .*NaN"
    ) as seen:
        path = dsc.solve_path(dsc.Lasso(DENSE, 0.1), signal, lams=3)
    assert len(seen) == 1
    others = dsc.solve_path(dsc.Lasso(DENSE, 0.1), SIGNAL, lams=3)
    assert torch.allclose(path[2].codes[[0, 2, 3]], others[2].codes[[0, 2, 3]], atol=1e-9)
    assert bool(torch.isnan(path.density[:, 1]).all())
    quiet = dsc.solve_path(dsc.Lasso(DENSE, 0.1), SIGNAL, lams=3, solver=dsc.FISTA(), max_steps=2, on_failure="ignore")
    assert not bool(quiet[2].converged.all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lams": 1}, "lams is 1; expected a whole number of at least 2"),
        ({"lams": True}, "lams is True; expected a whole number of at least 2, or a falling sequence"),
        ({"lams": "many"}, "lams is 'many'; expected"),
        ({"lams": []}, "lams is empty; expected at least one number"),
        ({"lams": [0.1, 0.2]}, r"lams\[1\] is 0.2 after 0.1; expected numbers that fall strictly: use sorted"),
        ({"lams": [0.1, 0.0]}, r"lams\[1\] is 0.0; expected a finite number above 0"),
        ({"lams": torch.ones(2, 2)}, r"lams has shape \(2, 2\); expected one axis"),
        ({"ratio": 0.0}, "ratio is 0.0; expected a finite number above 0"),
        ({"ratio": 1.0}, "ratio is 1.0; expected a number below 1"),
        ({"on_failure": "raise"}, "expected 'warn' or 'ignore' for a path"),
        ({"solver": "FISTA"}, "expected a solver such as"),
        ({"tol": -1.0}, "tol is -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(dsc.ParameterError, match=message):
        dsc.solve_path(dsc.Lasso(DENSE, 0.1), SIGNAL, **settings)


def test_what_cannot_be_scaled_is_refused() -> None:
    with pytest.raises(dsc.UnsupportedError, match=r"tensor of shape \(20,\); expected a number: pass weights="):
        dsc.solve_path(dsc.Lasso(DENSE, torch.ones(20)), SIGNAL)
    with pytest.raises(dsc.UnsupportedError, match="expected positive, finite numbers: their ratios"):
        dsc.solve_path(dsc.JointLasso(MODEL, (0.1, math.inf)), SIGNAL)
    with pytest.raises(dsc.UnsupportedError, match=r"does not take a str; expected a dsc.Lasso, JointLasso or Layered"):
        dsc.solve_path("lasso", SIGNAL)  # type: ignore[arg-type]
