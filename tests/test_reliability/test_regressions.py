"""Defects that were found once, each named by what went wrong."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding import checks
from strategies import normal, rng
from test_reliability.cases import CONV, CONV_MODEL, DENSE, F64, IMAGES, MODEL, SIGNAL, blocks


@pytest.mark.parametrize("check", [checks.require_number, checks.require_integer])
@pytest.mark.parametrize("value", [torch.tensor(1.0, device="meta"), torch.ones(1, 1, device="meta"), b"1"])
def test_numbers_without_a_value_had_the_errors_of_torch(check: object, value: object) -> None:
    with pytest.raises(dsc.ParameterError, match=r"x is (.|\n)*; expected a number"):
        check("x", value, minimum=0)  # type: ignore[operator]


def test_whole_numbers_too_large_for_a_float_overflowed() -> None:
    with pytest.raises(dsc.ParameterError, match="x is a whole number too large for a float; expected a number"):
        checks.require_number("x", 10**400)
    assert checks.require_integer("x", 10**400, minimum=0) == 10**400
    assert dsc.solve(dsc.Lasso(DENSE, 0.2), SIGNAL, dsc.FISTA(), max_steps=10**400).converged.all()
    with pytest.raises(dsc.ParameterError, match="tol is a whole number too large for a float"):
        dsc.solve(dsc.Lasso(DENSE, 0.2), SIGNAL, tol=10**400)


def test_one_sample_that_is_not_finite_hid_the_gaps_of_the_others_in_a_posterior() -> None:
    signal = SIGNAL.clone()
    signal[1, 0] = math.nan
    for problem in (dsc.Lasso(DENSE, 0.2), dsc.JointLasso(MODEL, 0.1), dsc.BasisPursuit(DENSE, 0.4)):
        words = str(dsc.prove.posterior(dsc.solve(problem, signal, on_failure="ignore")))
        assert "gap ≤ inf" not in words
        assert "(unknown in 1 of 3 samples), sphere of radius ≤" in words
        fine = str(dsc.prove.posterior(dsc.solve(problem, SIGNAL)))
        assert "unknown" not in fine
    lost = str(dsc.prove.posterior(dsc.solve(dsc.Lasso(DENSE, 0.2), signal[1], on_failure="ignore")))
    assert "gap ≤ inf" in lost


def test_lam_just_below_lam_max_was_said_to_be_above_it() -> None:
    for problem, signal in (
        (dsc.Lasso(DENSE, 1.0), SIGNAL[0]),
        (dsc.Lasso(CONV, 1.0), IMAGES[0]),
        (dsc.Lasso(DENSE, 1.0, ridge=0.5), SIGNAL[0]),
        (dsc.Lasso(DENSE, 1.0, box=(-1.0, 1.0)), SIGNAL[0]),
    ):
        top = float(problem.lam_max(signal))
        how = {"ridge": problem.ridge, "box": problem.box}
        with pytest.warns(dsc.DSCWarning, match="lam is at, above or within tol of lam_max for 1 of 1 samples"):
            dsc.solve(dsc.Lasso(problem.dictionary, top * (1 - 1e-9), **how), signal)  # type: ignore[arg-type]
        with pytest.warns(dsc.DSCWarning, match="lam is at or above lam_max for 1 of 1 samples"):
            dsc.solve(dsc.Lasso(problem.dictionary, top, **how), signal)  # type: ignore[arg-type]
    layered = dsc.LayeredLasso(MODEL, (float(dsc.LayeredLasso(MODEL, 1.0).lam_max(SIGNAL[0])) * (1 - 1e-9), 0.1))
    with pytest.warns(dsc.DSCWarning, match="lam is at, above or within tol of lam_max"):
        dsc.solve(layered, SIGNAL[0])


def test_compiled_certificates_of_huge_codes_printed_the_warnings_of_numpy() -> None:
    images = IMAGES.clone()
    images[1] *= 1e160
    for problem in (dsc.Lasso(CONV, 0.2), dsc.JointLasso(CONV_MODEL, 0.1)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            solution = dsc.solve(problem, images, on_failure="ignore")
        assert solution.status == (dsc.Status.CONVERGED, dsc.Status.DIVERGED)


def test_starts_that_are_worse_than_zeros_are_never_called_solved() -> None:
    for solver in (dsc.FISTA(), dsc.ADMM(), dsc.CoordinateDescent(), dsc.Homotopy()):
        start = torch.full((3, 12), 1e6, **F64)
        solution = dsc.solve(dsc.Lasso(DENSE, 0.2), SIGNAL, solver, start=start, max_steps=200, on_failure="ignore")
        assert bool((solution.converged == (solution.certificate.relative_gap <= solution.tol)).all())
        assert all(bool(torch.isfinite(block).all()) for block in blocks(solution.codes))


def test_a_multilayer_limit_says_that_it_is_the_methods() -> None:
    signal = normal(2, 8, generator=rng(8))
    solution = dsc.solve(dsc.MultiLayerLasso(MODEL, 0.1), signal, tol=1e-12, max_steps=3000, on_failure="ignore")
    for i, status in enumerate(solution.status):
        proved = float(solution.certificate.relative_gap[i]) <= 1e-12
        assert (status is dsc.Status.CONVERGED) == proved
        if status is dsc.Status.STALLED:
            assert "this is the method's own limit" in solution.message(i)
    for bad in (math.nan, math.inf):
        spoiled = signal.clone()
        spoiled[0, 3] = bad
        found = dsc.solve(dsc.MultiLayerLasso(MODEL, 0.1), spoiled, tol=0.5, on_failure="ignore")
        assert found.status[0] is dsc.Status.NONFINITE_INPUT
        assert bool(torch.isnan(blocks(found.codes)[0][0]).all())
        assert bool(torch.isfinite(blocks(found.codes)[0][1]).all())
        start = torch.zeros(2, 14, **F64)
        start[1, 1] = bad
        with pytest.raises(dsc.ParameterError, match="start has 1 entries that are not finite"):
            dsc.solve(dsc.MultiLayerLasso(MODEL, 0.1), signal, start=start)
    for scale in (1e-30, 1e30):
        once = dsc.solve(dsc.MultiLayerLasso(MODEL, 0.1), signal, max_steps=300, on_failure="ignore")
        other = dsc.solve(dsc.MultiLayerLasso(MODEL, 0.1 * scale), signal * scale, max_steps=300, on_failure="ignore")
        assert torch.allclose(other.certificate.objective / scale**2, once.certificate.objective, rtol=1e-6)
