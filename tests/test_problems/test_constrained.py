"""Basis pursuit as a problem: what it refuses, its objective, and the dual bounds of its certificate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess
from references import explicit_matrix, sklearn_lasso
from references_constrained import basis_pursuit_lp
from strategies import code_size, draw_dense, draw_dictionary, normal, rng

DENSE = dsc.DenseDictionary.random(8, 14, seed=0, dtype=torch.float64)
CONV = dsc.ConvDictionary.random(atoms=3, channels=1, size=3, seed=0, dtype=torch.float64)
SIGNAL = normal(4, 8, generator=rng(0))
CASCADE = dsc.Cascade([DENSE, dsc.DenseDictionary.random(14, 18, seed=1, dtype=torch.float64)])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"epsilon": -0.1}, dsc.ParameterError, "epsilon is -0.1; expected a number at least 0"),
        ({"epsilon": math.nan}, dsc.ParameterError, "epsilon is nan; expected a number at least 0"),
        ({"epsilon": "small"}, dsc.ParameterError, "epsilon is 'small'; expected a number"),
        (
            {"epsilon": torch.tensor([0.1, -1.0, math.nan, 0.0])},
            dsc.ParameterError,
            r"epsilon has 2 entries that are negative or NaN, the first at \(1,\): -1.0",
        ),
        ({"epsilon": 0.1, "weights": torch.zeros(14)}, dsc.ParameterError, "weights of basis pursuit hold zeros"),
        (
            {"epsilon": 0.1, "weights": [1.0]},
            dsc.DtypeError,
            "weights is a list; expected a tensor, one entry per atom",
        ),
        ({"epsilon": 0.1, "mask": torch.tensor(-1.0)}, dsc.ParameterError, "mask has entries that are negative"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dsc.BasisPursuit(DENSE, **settings)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(dsc.DictionaryError, match="dictionary is a Parameter; expected a dictionary"):
        dsc.BasisPursuit(DENSE.matrix, 0.1)  # type: ignore[arg-type]
    with pytest.raises(dsc.DictionaryError, match=r"model is a DenseDictionary; expected a dsc\.Cascade"):
        dsc.LayeredBasisPursuit(DENSE, 0.1)  # type: ignore[arg-type]
    with pytest.raises(dsc.ParameterError, match="epsilon has 3 entries; expected one for each of the 2 layers"):
        dsc.LayeredBasisPursuit(CASCADE, (0.1, 0.1, 0.1))
    with pytest.raises(dsc.ParameterError, match=r"epsilon\[1\] is -1.0"):
        dsc.LayeredBasisPursuit(CASCADE, (0.1, -1.0))
    problem = dsc.BasisPursuit(DENSE, torch.ones(3, dtype=torch.float64))
    with pytest.raises(dsc.ShapeError, match=r"epsilon has shape \(3,\); expected a number, or one per sample: \(4,\)"):
        assess(problem, SIGNAL, torch.zeros(4, 14, dtype=torch.float64))
    with pytest.raises(dsc.ShapeError, match=r"shape \(4, 13\); expected \(4, 14\)"):
        problem.objective(torch.zeros(4, 13, dtype=torch.float64), SIGNAL)


def test_objective_and_certificate_of_codes_that_are_infeasible() -> None:
    problem = dsc.BasisPursuit(DENSE, 0.5)
    zeros = torch.zeros(4, 14, dtype=torch.float64)
    certificate = assess(problem, SIGNAL, zeros)
    assert bool(torch.isinf(certificate.objective).all())
    assert bool(torch.isinf(certificate.gap).all())
    assert bool(torch.isfinite(certificate.dual).all())
    exact = torch.linalg.lstsq(DENSE.matrix.detach(), SIGNAL.T, driver="gelsd").solution.T.contiguous()
    assert torch.allclose(problem.objective(exact, SIGNAL), exact.abs().sum(1))
    assert bool((certificate.dual <= problem.objective(exact, SIGNAL)).all())
    positive = dsc.BasisPursuit(DENSE, 0.5, nonnegative=True)
    assert bool(torch.isinf(positive.objective(exact, SIGNAL)).all())
    forbidden = torch.ones(14, dtype=torch.float64)
    forbidden[3] = math.inf
    assert bool(torch.isinf(dsc.BasisPursuit(DENSE, 0.5, forbidden).objective(exact, SIGNAL)).all())


def test_zeros_are_optimal_when_epsilon_reaches_the_signal() -> None:
    norms = SIGNAL.norm(dim=1)
    problem = dsc.BasisPursuit(DENSE, norms)
    assert torch.allclose(problem.lam_max(SIGNAL), norms)
    zeros = torch.zeros(4, 14, dtype=torch.float64)
    certificate = assess(problem, SIGNAL, zeros)
    assert bool((certificate.relative_gap == 0).all())
    less = assess(dsc.BasisPursuit(DENSE, norms * (1 - 1e-9)), SIGNAL, zeros)
    assert bool(torch.isinf(less.objective).all())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_any_codes_give_a_lower_bound_of_the_minimum(seed: int) -> None:
    dictionary = draw_dense(seed)
    generator = rng(seed)
    codes = normal(dictionary.atoms, generator=generator) * (torch.rand(dictionary.atoms, generator=generator) < 0.4)
    signal = dictionary.synthesize(codes)
    minimum = basis_pursuit_lp(dictionary.matrix.detach(), signal)
    problem = dsc.BasisPursuit(dictionary, 0.0)
    scale = float(codes.abs().sum()) + 1e-9
    for guess in (codes, torch.zeros_like(codes), codes + 0.1 * normal(dictionary.atoms, generator=generator)):
        certificate = assess(problem, signal, guess)
        assert float(certificate.dual) <= minimum + 1e-7 * scale + 1e-12
    exact = assess(problem, signal, codes)
    assert float(exact.objective) == pytest.approx(float(codes.abs().sum()), rel=1e-12, abs=1e-300)
    assert float(exact.gap) >= float(exact.objective) - minimum - 1e-7 * scale - 1e-12


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_the_solution_of_a_lasso_solves_the_basis_pursuit_with_its_residual(seed: int) -> None:
    """G6: the gap is tight, also where codes are rounded to float32."""
    dictionary = draw_dictionary(seed)
    size = code_size(dictionary, seed)
    matrix = explicit_matrix(dictionary, size)
    signal = normal(*dictionary.signal_shape(size), generator=rng(seed))
    lam = 0.2 * float((matrix.T @ signal.flatten()).abs().max())
    codes = sklearn_lasso(matrix, signal.flatten(), lam).reshape(dictionary.code_shape(signal.shape[1:]))
    epsilon = float((signal - dictionary.synthesize(codes)).norm()) * (1 + 1e-12)
    certificate = assess(dsc.BasisPursuit(dictionary, epsilon), signal, codes)
    assert float(certificate.relative_gap) < 1e-7
    single = dictionary.cast(torch.float32)
    rounded = assess(dsc.BasisPursuit(single, epsilon * (1 + 1e-5)), signal.float(), codes.float())
    # The room of 1e-5 in ε costs ‖ν‖ times that, ν = r/lam.
    assert float(rounded.gap) <= 2e-5 * epsilon**2 / lam + 1e-4 * float(rounded.objective)


def test_layers_add_up() -> None:
    problem = dsc.LayeredBasisPursuit(CASCADE, (1.0, 0.5))
    first = dsc.solve(problem.stages[0], SIGNAL).codes
    second = dsc.solve(problem.stages[1], first).codes
    whole = assess(problem, SIGNAL, (first, second))
    assert len(whole.layers) == 2
    assert torch.allclose(whole.objective, first.abs().sum(1) + second.abs().sum(1))
    assert torch.equal(whole.relative_gap, torch.stack([part.relative_gap for part in whole.layers]).amax(0))
    assert torch.allclose(problem.objective((first, second), SIGNAL), whole.objective)
    assert torch.allclose(problem.lam_max(SIGNAL), SIGNAL.norm(dim=1))
