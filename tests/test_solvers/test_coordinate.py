"""Coordinate descent beyond one shared matrix: masks per sample, weights of any kind, many atoms, paths in one call."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess_form
from deep_sparse_coding.solvers import coordinate
from deep_sparse_coding.solvers.coordinate import CoordinateDescent
from references import joint_matrix, kkt_violation
from strategies import normal, rng

KIND: dict[str, Any] = {"dtype": torch.float64}
DENSE = dsc.DenseDictionary.random(12, 20, seed=0, **KIND)
MODEL = dsc.Cascade([DENSE, dsc.DenseDictionary.random(20, 24, seed=1, **KIND)])
SIGNAL = normal(5, 12, generator=rng(0))
MASK = torch.rand(5, 12, generator=rng(1)) < 0.7
SOLVER = dsc.CoordinateDescent()


def flat(codes: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat(codes, -1) if isinstance(codes, tuple) else codes


@pytest.mark.parametrize("nonnegative", [False, True])
def test_masks_per_sample(nonnegative: bool) -> None:
    problem = dsc.Lasso(DENSE, 0.1, nonnegative=nonnegative, mask=MASK)
    solution = dsc.solve(problem, SIGNAL, tol=1e-10)
    assert solution.solver == "CoordinateDescent"
    assert bool(solution.converged.all())
    for i in range(5):
        codes = flat(solution.codes)[i]
        assert kkt_violation(DENSE.matrix, SIGNAL[i], codes, 0.1, nonnegative=nonnegative, mask=MASK[i]) < 1e-5
        alone = dsc.solve(dsc.Lasso(DENSE, 0.1, nonnegative=nonnegative, mask=MASK[i]), SIGNAL[i], tol=1e-10)
        assert torch.allclose(flat(alone.codes), codes, atol=1e-7)


def test_masks_per_sample_of_a_joint_problem() -> None:
    solution = dsc.solve(dsc.JointLasso(MODEL, (0.05, 0.02), beta=(1.0, 2.0), mask=MASK), SIGNAL, SOLVER, tol=1e-10)
    assert bool(solution.converged.all())
    matrix, widths = joint_matrix(MODEL, (), (1.0, 2.0))
    weights = torch.cat([torch.full((n,), w, **KIND) for n, w in zip(widths, (0.05, 0.02), strict=True)])
    for i in range(5):
        rows = torch.cat([MASK[i].double(), torch.ones(20, **KIND)])
        data = torch.cat([SIGNAL[i], torch.zeros(20, **KIND)])
        codes = torch.cat([block[i] for block in solution.codes])
        assert kkt_violation(matrix, data, codes, weights, mask=rows) < 1e-5


def test_masks_stay_with_their_samples_when_others_end() -> None:
    """A round at a time, so that samples leave at different steps and the last is alone with its mask."""
    signal, mask = SIGNAL.clone(), MASK.clone()
    signal[:4] *= 1e-3  # all zero at once, below lam_max
    one = dsc.CoordinateDescent(rounds=1)
    with pytest.warns(dsc.DSCWarning, match="lam is at or above lam_max for 4 of 5 samples"):
        solution = dsc.solve(dsc.Lasso(DENSE, 0.02, mask=mask), signal, one, tol=1e-9, on_failure="ignore")
    assert bool(solution.converged.all())
    assert int(solution.steps[4]) > int(solution.steps[:4].max())
    assert kkt_violation(DENSE.matrix, signal[4], flat(solution.codes)[4], 0.02, mask=mask[4]) < 1e-5


def test_weights_of_layers_that_do_not_factor() -> None:
    """lam per sample in one layer and not in the other: no product of a number per sample and one per atom."""
    lams = (torch.linspace(0.02, 0.2, 5, **KIND), 0.03)
    solution = dsc.solve(dsc.JointLasso(MODEL, lams), SIGNAL, SOLVER, tol=1e-10)
    assert bool(solution.converged.all())
    matrix, widths = joint_matrix(MODEL, (), (1.0, 1.0))
    for i in range(5):
        pairs = zip(widths, (float(lams[0][i]), 0.03), strict=True)
        weights = torch.cat([torch.full((n,), w, **KIND) for n, w in pairs])
        data = torch.cat([SIGNAL[i], torch.zeros(20, **KIND)])
        codes = torch.cat([block[i] for block in solution.codes])
        assert kkt_violation(matrix, data, codes, weights) < 1e-5


@pytest.mark.parametrize("signals", [1, 80])
def test_with_and_without_gram_agree(monkeypatch: pytest.MonkeyPatch, signals: int) -> None:
    dictionary = dsc.DenseDictionary.random(20, 600, seed=2, **KIND)
    signal = normal(signals, 20, generator=rng(3))
    problem = dsc.Lasso(dictionary, 0.05)
    state = SOLVER.init(problem.form(signal), problem.form(signal).zeros(), 1e-6)
    assert (state.gram is None) == (signals == 1)
    one = dsc.solve(problem, signal, SOLVER, tol=1e-10)
    monkeypatch.setattr(coordinate, "_gram_pays", lambda signals, atoms: state.gram is None)
    other = dsc.solve(problem, signal, SOLVER, tol=1e-10)
    assert torch.allclose(flat(one.codes), flat(other.codes), atol=1e-6)
    assert torch.allclose(one.certificate.objective, other.certificate.objective, rtol=1e-9)


def test_more_atoms_than_a_gram_matrix_could_hold() -> None:
    matrix = normal(15, 20_000, generator=rng(4))
    dictionary = dsc.DenseDictionary(matrix / matrix.norm(dim=0))
    solution = dsc.solve(dsc.Lasso(dictionary, 0.2), normal(2, 15, generator=rng(5)), tol=1e-9)
    assert solution.solver == "CoordinateDescent"
    assert bool(solution.converged.all())


def test_matrices_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinate, "_LARGEST", 100)
    with pytest.raises(
        dsc.UnsupportedError, match=r"a matrix of up to 100 entries, and this is 12 × 20; use dsc\.FISTA"
    ):
        dsc.solve(dsc.Lasso(DENSE, 0.1), SIGNAL, SOLVER)
    conv = dsc.ConvDictionary.random(atoms=3, channels=1, size=3, seed=0, **KIND)
    with pytest.raises(dsc.UnsupportedError, match="CoordinateDescent takes dense dictionaries only; use"):
        dsc.solve(dsc.Lasso(conv, 0.1), torch.ones(1, 8, 8, **KIND), SOLVER)


@pytest.mark.parametrize("lam", [1e-30, 1e-40, 1e-200])
def test_tiny_lams_do_not_stall_at_zero(lam: float) -> None:
    """More rows than atoms: least squares, which no dual point proves; fewer: an exact fit of least ℓ1 norm."""
    tall = dsc.DenseDictionary.random(20, 8, seed=0, **KIND)
    signal = normal(3, 20, generator=rng(6))
    solution = dsc.solve(dsc.Lasso(tall, lam), signal, SOLVER, on_failure="ignore")
    want = signal @ torch.linalg.pinv(tall.matrix).T
    assert torch.allclose(flat(solution.codes), want, atol=1e-8)
    wide, near = (dsc.solve(dsc.Lasso(DENSE, value), SIGNAL, SOLVER) for value in (lam, 1e-9))
    assert bool(wide.converged.all())
    assert torch.allclose(DENSE.synthesize(flat(wide.codes)), SIGNAL, atol=1e-9)
    assert torch.allclose(flat(wide.codes).abs().sum(1), flat(near.codes).abs().sum(1), rtol=1e-4)


@pytest.mark.parametrize("slice_entries", [2**25, 1])
def test_multiples_in_slices(monkeypatch: pytest.MonkeyPatch, slice_entries: int) -> None:
    monkeypatch.setattr(coordinate, "_SLICE", slice_entries)
    form = dsc.Lasso(DENSE, 1.0, mask=MASK).form(SIGNAL)
    multiples = torch.tensor([0.5, 0.2, 0.1], **KIND)[:, None] * torch.linspace(1.0, 2.0, 5, **KIND)
    (codes,), rounds = SOLVER.solve_multiples(form, multiples, 1e-10)
    assert codes.shape == (3, 5, 20)
    assert rounds.shape == (3, 5)
    for k in range(3):
        for i in range(5):
            assert kkt_violation(DENSE.matrix, SIGNAL[i], codes[k, i], float(multiples[k, i]), mask=MASK[i]) < 1e-5


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_compiled_certificate_is_that_of_the_assessor(nonnegative: bool, masked: bool, share: float) -> None:
    generator = torch.Generator().manual_seed(3)
    D = dsc.DenseDictionary.random(20, 50, seed=3, dtype=torch.float64)
    y = torch.randn(130, 20, generator=generator, dtype=torch.float64)
    y[5] = 0
    mask = torch.rand(130, 20, generator=generator) > 0.3 if masked else None
    problem = dsc.Lasso(D, 0.3, nonnegative=nonnegative, mask=mask)
    form = problem.exact_form(y)
    codes = share * dsc.solve(problem, y, tol=1e-6).codes
    plain, compiled = assess_form(form, (codes,), math.inf), CoordinateDescent().assess(form, (codes,), math.inf)
    torch.testing.assert_close(compiled.objective, plain.objective, rtol=1e-12, atol=0)
    assert float(((compiled.gap - plain.gap).abs() / plain.objective.clamp_min(1e-300)).max()) <= 1e-13
