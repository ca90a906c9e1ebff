"""The lam that is chosen meets its target, recomputed by independent references, or the error says why none does."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from references import scipy_lasso, sklearn_lasso
from strategies import SEEDS, normal, rng

KIND = {"dtype": torch.float64}
DENSE = dsc.DenseDictionary.random(16, 40, seed=0, **KIND)
CONV = dsc.ConvDictionary.random(atoms=4, channels=1, size=3, seed=0, **KIND)
SIGNAL = normal(50, 16, generator=rng(0))


@pytest.mark.parametrize("target", [0.02, 0.05, 0.2, 0.35])
def test_the_density_is_met(target: float) -> None:
    lam = dsc.choose_lam(DENSE, SIGNAL, density=target)
    codes = torch.stack([sklearn_lasso(DENSE.matrix, y, float(lam)) for y in SIGNAL])
    assert float((codes.abs() > 1e-9).double().mean()) == pytest.approx(target, rel=0.02)
    assert lam.density == pytest.approx(target, rel=0.01)
    assert lam.density == float((lam.solution.codes != 0).double().mean())  # type: ignore[operator]


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("target", [0.05, 0.3, 0.9])
def test_the_discrepancy_is_met(target: float, nonnegative: bool) -> None:
    lam = dsc.choose_lam(DENSE, SIGNAL, noise=target, nonnegative=nonnegative, accuracy=1e-3, tol=1e-8)
    codes = [sklearn_lasso(DENSE.matrix, y, float(lam), nonnegative=nonnegative) for y in SIGNAL]
    total = sum(float((y - DENSE.matrix @ x).square().sum()) for x, y in zip(codes, SIGNAL, strict=True))
    assert math.sqrt(total / (50 * 16)) == pytest.approx(target, rel=3e-3)
    assert lam.noise == pytest.approx(target, rel=1e-3)
    assert lam.solves <= 12


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_one_signal_against_the_exact_path(seed: int) -> None:
    """‖y - D x‖ is found on the piecewise linear path of LARS by bisection between its knots."""
    from sklearn.linear_model import lars_path

    signal = normal(16, generator=rng(seed))
    target = 0.02 + 0.5 * float(torch.rand((), generator=rng(seed))) * float(signal.norm()) / 4
    matrix, y = DENSE.matrix.numpy(), signal.numpy()
    knots, _, corners = lars_path(matrix, y, method="lasso")
    low, high = 0.0, float(knots[0] * 16)
    for _ in range(60):
        middle = (low + high) / 2
        x = np.array([np.interp(-middle, -knots * 16, corner) for corner in corners])
        low, high = (middle, high) if np.linalg.norm(y - matrix @ x) < target * 4 else (low, middle)
    lam = dsc.choose_lam(DENSE, signal, noise=target, accuracy=1e-5, tol=1e-11)
    # ρ(λ)/λ does not rise, so ρ may be flat in λ: what must agree is the residual, and lam no more than it allows.
    assert lam.noise == pytest.approx(target, rel=1e-5)
    exact = scipy_lasso(DENSE.matrix, signal, float(lam))
    assert float((signal - DENSE.matrix @ exact).norm()) / 4 == pytest.approx(target, rel=1e-4)
    assert float(lam) == pytest.approx(high, rel=0.02)


def test_masks_count_what_was_observed() -> None:
    mask = torch.rand(16, generator=rng(1)) < 0.6
    weights = torch.linspace(0.5, 1.5, 40, **KIND)
    lam = dsc.choose_lam(DENSE, SIGNAL[0], noise=0.2, mask=mask, weights=weights)
    codes = sklearn_lasso(DENSE.matrix, SIGNAL[0], float(lam) * weights, mask=mask)
    left = (SIGNAL[0] - DENSE.matrix @ codes)[mask]
    assert float(left.square().mean().sqrt()) == pytest.approx(0.2, rel=0.02)


def test_convolutional_and_float32() -> None:
    signal = normal(3, 1, 12, 12, generator=rng(2)).float()
    dictionary = CONV.cast(torch.float32)
    lam = dsc.choose_lam(dictionary, signal, density=0.1)
    assert lam.density == pytest.approx(0.1, rel=0.01)
    lam = dsc.choose_lam(dictionary, signal, noise=0.5)
    residual = signal - dictionary.synthesize(lam.solution.codes)  # type: ignore[arg-type]
    assert float(residual.square().mean().sqrt()) == pytest.approx(0.5, rel=0.011)


def test_a_jump_past_the_target_ends_on_its_nearer_side() -> None:
    """Equal correlations come in together: densities 0 and 1/2, nothing between (and the zeros of the other half)."""
    identity = dsc.DenseDictionary(torch.eye(4, **KIND))
    signal = torch.tensor([1.0, 1.0, 0.1, 0.1], **KIND)
    lam = dsc.choose_lam(identity, signal, density=0.45)
    assert lam.density == 0.5
    assert 0.1 <= lam < 1.0
    lam = dsc.choose_lam(identity, signal, density=0.9)
    assert lam.density == 1.0
    assert lam < 0.1


def test_it_is_a_number_that_tells_its_story() -> None:
    lam = dsc.choose_lam(DENSE, SIGNAL, density=0.2)
    assert isinstance(lam, float)
    text = str(lam)
    assert text.startswith(f"lam = {float(lam):.6g} for density 0.2 · reached density 0.")
    assert text.endswith(f" · {lam.solves} solves")
    assert f"{lam:.3f}" == f"{float(lam):.3f}"
    assert repr(lam) == repr(float(lam))
    problem = dsc.Lasso(DENSE, lam=lam)
    assert problem.lam == lam
    assert type(problem.lam) is float
    again = dsc.solve(problem, SIGNAL, tol=1e-5, start=lam.solution.codes)
    assert int(again.steps.max()) == 0
    with pytest.raises(AttributeError):
        lam.density = 1.0  # type: ignore[misc]
    other = pickle.loads(pickle.dumps(lam))
    assert other == lam
    assert str(other) == text
    assert str(dsc.choose_lam(DENSE, SIGNAL, noise=0.5)).split(" · ")[0].endswith(" for noise 0.5")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither of density and noise given; expected one: density=0.05, or noise=0.02"),
        ({"density": 0.1, "noise": 0.1}, "both of density and noise given; expected one"),
        ({"density": 0.0}, "density is 0.0; expected a finite number above 0 and at most 1"),
        ({"density": 1.5}, "density is 1.5; expected"),
        ({"density": math.nan}, "density is nan; expected"),
        (
            {"density": 0.9},
            "density is 0.9; expected at most 0.4: a code needs no more non-zeros than .* observed entries",
        ),
        ({"noise": -1.0}, "noise is -1.0; expected a finite number above 0"),
        ({"noise": 50.0}, "noise is 50; expected less than .*, the root mean square of the signal itself: zero"),
        ({"noise": 0.1, "accuracy": 0.0}, "accuracy is 0.0"),
        ({"noise": 0.1, "max_solves": 0}, "max_solves is 0"),
        ({"noise": 0.1, "solver": "FISTA"}, "expected a solver such as"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(dsc.ParameterError, match=message):
        dsc.choose_lam(DENSE, SIGNAL, **settings)


def test_targets_out_of_reach_are_refused_with_what_is_in_reach() -> None:
    half = torch.tensor([1.0, 2.0, -1.0, -2.0], **KIND)
    tall = dsc.DenseDictionary.random(16, 6, seed=0, **KIND)
    best = torch.linalg.lstsq(tall.matrix, SIGNAL.T).solution
    least = float((SIGNAL.T - tall.matrix @ best).square().mean().sqrt())
    with pytest.raises(
        dsc.ParameterError, match=r"noise is .* and cannot be reached: .* per entry; expected more"
    ) as raised:
        dsc.choose_lam(tall, SIGNAL, noise=0.99 * least)
    assert f"still {least:.3g}" in str(raised.value)
    assert dsc.choose_lam(tall, SIGNAL, noise=1.01 * least, accuracy=1e-3).noise == pytest.approx(
        1.01 * least, rel=1e-3
    )
    with pytest.raises(
        dsc.ParameterError, match=r"density is 0.9 and cannot be reached: at lam = .* it is 0.5; expected"
    ):
        dsc.choose_lam(dsc.DenseDictionary(torch.eye(4, **KIND)), half, density=0.9, nonnegative=True)
    with pytest.raises(dsc.ParameterError, match="lam_max of the signal is 0, so that its codes are zero whatever lam"):
        dsc.choose_lam(DENSE, torch.zeros(2, 16, **KIND), density=0.1)
    with pytest.raises(dsc.ShapeError, match=r"shape \(0, 16\) and no entries; expected at least one sample"):
        dsc.choose_lam(DENSE, SIGNAL[:0], density=0.1)
    bad = SIGNAL.clone()
    bad[3, 0] = math.inf
    with pytest.raises(dsc.ParameterError, match="signal has 1 samples that are not finite"):
        dsc.choose_lam(DENSE, bad, density=0.1)
    with pytest.raises(dsc.DictionaryError, match="dictionary is a Parameter; expected a dictionary"):
        dsc.choose_lam(DENSE.matrix, SIGNAL, density=0.1)  # type: ignore[arg-type]


def test_running_out_of_solves_or_of_steps_is_said() -> None:
    with pytest.warns(
        dsc.DSCWarning, match=r"noise 0.05 was not met within 1e-05 after 2 solves, .* was reached; raise"
    ):
        lam = dsc.choose_lam(DENSE, SIGNAL, noise=0.05, accuracy=1e-5, max_solves=2)
    assert lam.solves == 2
    with pytest.warns(
        dsc.DSCWarning, match="50 of 50 samples did not converge at the lam that was chosen; sample 0: ran"
    ):
        dsc.choose_lam(DENSE, SIGNAL, density=0.2, solver=dsc.FISTA(), tol=1e-13, max_steps=20, accuracy=0.2)
