"""ADMM: its resolvents against the explicit matrix, and its answers against FISTA, on every operator and penalty."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.solvers._spectral import ConvResolvent, DenseResolvent, ring_size
from deep_sparse_coding.solvers.splitting import ADMM
from operators import Operator, each_operator, explicit_matrix
from references import kkt_violation, lasso_objective, sklearn_joint, sklearn_lasso
from strategies import SEEDS, draw_conv, draw_signal, normal, rng

pytestmark = pytest.mark.filterwarnings("ignore:lam is at or above lam_max")


def agree(problem: dsc.Problem, signal: Tensor, solver: ADMM | None = None, tol: float = 1e-8) -> dsc.Solution:
    """Return ADMM's solution after checking it against FISTA's, each within the other's gap."""
    solution = dsc.solve(problem, signal, solver or ADMM(), tol=tol, max_steps=20_000)
    assert bool(solution.converged.all())
    other = dsc.solve(problem, signal, dsc.FISTA(), tol=tol, max_steps=20_000, on_failure="ignore")
    excess = solution.certificate.objective - other.certificate.objective
    slack = 1e-12 * other.certificate.objective
    assert bool((excess <= solution.certificate.gap + slack).all())
    assert bool((-excess <= other.certificate.gap + slack).all())
    return solution


def codes_of(solution: dsc.Solution) -> Tensor:
    assert isinstance(solution.codes, Tensor)
    return solution.codes


def relative_lam(dictionary: dsc.Dictionary, signal: Tensor, share: float = 0.2) -> float:
    return share * float(dictionary.analyze(signal).abs().max())


@each_operator(same=True)
def test_the_quadratic_is_solved_exactly(operator: Operator) -> None:
    dictionary, generator = operator.build(), rng(1)
    signal = normal(2, *dictionary.signal_shape(operator.size), generator=generator)
    if isinstance(dictionary, dsc.ConvDictionary):
        resolvent = ConvResolvent.of(dictionary, operator.size)
        matrix = explicit_matrix(resolvent.dictionary, resolvent.grid)
        point = normal(2, dictionary.atoms, *resolvent.grid, generator=generator)
    else:
        matrix = explicit_matrix(dictionary)
        resolvent = DenseResolvent.of(matrix, (dictionary.atoms,))
        point = normal(2, dictionary.atoms, generator=generator)
    rho, data = torch.tensor([0.3, 2.0], dtype=torch.float64), resolvent.embed(signal)
    change, rotated = point.clone(), resolvent.rotate(data)
    inner = resolvent.correct_(change, rotated, rho)
    eye = torch.eye(matrix.shape[1], dtype=torch.float64)
    for i in range(2):
        w, b = point[i].flatten(), data[i].flatten()
        want = torch.linalg.solve(matrix.T @ matrix + rho[i] * eye, matrix.T @ b + rho[i] * w)
        assert torch.allclose(w + change[i].flatten(), want, atol=1e-10)
        made = resolvent.unrotate(rotated - rho.reshape(-1, *(1,) * (inner.ndim - 1)) * inner)[i]
        assert torch.allclose(made.flatten(), matrix @ want, atol=1e-9)
        assert torch.allclose(resolvent.synthesize(point)[i].flatten(), matrix @ w, atol=1e-10)


@each_operator(same=True)
@pytest.mark.parametrize(("nonnegative", "masked"), [(False, False), (True, True)])
def test_every_operator(operator: Operator, nonnegative: bool, masked: bool) -> None:
    dictionary, generator = operator.build(), rng(7)
    signal = normal(2, *dictionary.signal_shape(operator.size), generator=generator)
    seen = torch.rand(signal.shape, generator=generator, dtype=torch.float64) < 0.8
    mask = seen if masked else None
    matrix, lam = explicit_matrix(dictionary, operator.size), relative_lam(dictionary, signal)
    problem = dsc.Lasso(dictionary, lam, nonnegative=nonnegative, mask=mask)
    solution = dsc.solve(problem, signal, ADMM(), tol=1e-9, max_steps=20_000)
    assert solution.solver == "ADMM"
    for i in range(2):
        m = (torch.ones_like(signal[i]) if mask is None else mask.expand_as(signal)[i].double()).flatten()
        best = sklearn_lasso(matrix, signal[i], lam, nonnegative=nonnegative, mask=m)
        want = lasso_objective(m[:, None] * matrix, m * signal[i].flatten(), best, lam)
        assert float(solution.certificate.objective[i]) == pytest.approx(want, rel=1e-8)
        assert (
            kkt_violation(matrix, signal[i], codes_of(solution)[i], lam, nonnegative=nonnegative, mask=m) < 1e-3 * lam
        )


PENALTIES: dict[str, dict[str, Any]] = {
    "ridge": {"ridge": 0.3},
    "ridge-nonnegative": {"ridge": 0.1, "nonnegative": True},
    "box": {"box": (-0.2, 0.3)},
    "box-ridge": {"box": (-0.2, 0.3), "ridge": 0.2},
    "groups": {"groups": "channels"},
}
GEOMETRIES = {
    "valid": ((3, 2, 3, 2), 1, "valid", (4, 4)),
    "same-stride": ((5, 1, 4, 4), 2, "same", (3, 4)),
    "circular": ((2, 2, 3, 3), 1, "circular", (5, 6)),
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("masked", [False, True])
def test_every_penalty(geometry: str, penalty: str, masked: bool) -> None:
    shape, stride, boundary, size = GEOMETRIES[geometry]
    kernels = normal(*shape, generator=rng(3))
    dictionary = dsc.ConvDictionary(kernels, stride=stride, boundary=boundary, normalize=True)
    signal = normal(2, *dictionary.signal_shape(size), generator=rng(4))
    mask = torch.rand(signal.shape, generator=rng(5)) < 0.8 if masked else None
    problem = dsc.Lasso(dictionary, relative_lam(dictionary, signal), mask=mask, **PENALTIES[penalty])
    solution = agree(problem, signal, tol=1e-7)
    assert 0 < solution.zero_fraction < 1


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_lam_per_sample_and_weights_per_entry(seed: int) -> None:
    dictionary, generator = draw_conv(seed), rng(seed)
    signal = draw_signal(dictionary, seed, batch=(3,))
    weights = torch.rand(dsc.Lasso(dictionary, 1.0).code_shape(signal), generator=generator, dtype=torch.float64) + 0.3
    weights[0].flatten()[0] = torch.inf
    lam = dsc.Lasso(dictionary, 1.0, weights=weights).lam_max(signal) * torch.tensor([0.1, 0.5, 0.9])
    lam = lam.clamp_min(0.01)  # one position of one atom, which is forbidden, has no lam_max
    lam = lam.reshape(-1, *(1,) * dictionary.event_axes)
    solution = agree(dsc.Lasso(dictionary, lam, weights=weights), signal, tol=1e-6)
    assert bool((codes_of(solution)[torch.isinf(weights).expand(3, *weights.shape)] == 0).all())


def test_unpenalized_dense_atoms() -> None:
    dictionary = dsc.DenseDictionary.random(8, 5, seed=0, dtype=torch.float64)
    weights = torch.tensor([0.0, 1.0, 1.0, 0.5, 1.0], dtype=torch.float64)
    agree(dsc.Lasso(dictionary, 0.3, weights=weights), normal(3, 8, generator=rng(0)))


@pytest.mark.parametrize("dense", [False, True])
def test_a_mask_that_all_samples_share(dense: bool) -> None:
    dictionary = dsc.DenseDictionary.random(8, 12, seed=0, dtype=torch.float64) if dense else small()[0]
    signal = normal(3, 8, generator=rng(0)) if dense else small()[1]
    mask = torch.rand(signal.shape[1:], generator=rng(5)) < 0.7
    agree(dsc.Lasso(dictionary, 0.3, mask=mask), signal)


def test_dense_joint_problem() -> None:
    layers = [dsc.DenseDictionary.random(d, n, seed=d, dtype=torch.float64) for d, n in ((10, 14), (14, 18))]
    model, signal = dsc.Cascade(layers), 2 * normal(3, 10, generator=rng(1))
    problem = dsc.JointLasso(model, (0.05, 0.02), beta=(1.0, 3.0))
    solution = dsc.solve(problem, signal, ADMM(), tol=1e-8)
    for i in range(3):
        _, want = sklearn_joint(model, signal[i], (), (0.05, 0.02), (1.0, 3.0))
        assert float(solution.certificate.objective[i]) == pytest.approx(want, rel=1e-7)
    assert float(solution.codes[1].abs().max()) > 0


def test_what_is_refused() -> None:
    conv = dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=3, channels=1, size=(3,), seed=0),
            dsc.ConvDictionary.random(atoms=4, channels=3, size=(2,), seed=1),
        ]
    )
    with pytest.raises(dsc.UnsupportedError, match=r"layers are dense and share one mask; use dsc\.FISTA"):
        dsc.solve(dsc.JointLasso(conv, 0.1), torch.ones(1, 1, 9), ADMM())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"rho": 0.0}, "rho is 0.0; expected a finite number above 0"),
        ({"rho": float("nan")}, "rho is nan"),
        ({"relaxation": 2.0}, "relaxation is 2.0; expected a number above 0 and below 2"),
        ({"relaxation": 0.0}, "relaxation is 0.0"),
        ({"adapt": 1}, "adapt is 1; expected True or False"),
    ],
)
def test_bad_settings(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(dsc.ParameterError, match=message):
        ADMM(**settings_)


def small(boundary: str = "valid", dtype: torch.dtype = torch.float64) -> tuple[dsc.ConvDictionary, Tensor]:
    dictionary = dsc.ConvDictionary(normal(4, 1, 3, 3, generator=rng(2)).to(dtype), boundary=boundary, normalize=True)
    return dictionary, normal(3, *dictionary.signal_shape((6, 7)), generator=rng(3)).to(dtype)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("boundary", ["valid", "same", "circular"])
def test_an_optimal_start_takes_no_step_and_stays(boundary: str, masked: bool) -> None:
    dictionary, signal = small(boundary)
    mask = torch.rand(signal.shape, generator=rng(5)) < 0.8 if masked else None
    problem = dsc.Lasso(dictionary, 0.4, mask=mask)
    best = dsc.solve(problem, signal, ADMM(), tol=1e-13, max_steps=20_000, on_failure="ignore")
    again = dsc.solve(problem, signal, ADMM(), tol=1e-9, start=best.codes)
    assert bool((again.steps == 0).all())
    form, solver = problem.form(signal), ADMM()
    state = solver.init(form, (codes_of(best),), 1e-9)
    for _ in range(3):
        state = solver.step(form, state)
    assert float((state.codes[0] - codes_of(best)).abs().max()) < 1e-6


def test_one_bad_sample_spoils_no_other() -> None:
    dictionary, signal = small()
    problem = dsc.Lasso(dictionary, 0.4)
    alone = dsc.solve(problem, signal, ADMM(), tol=1e-8)
    spoiled = signal.clone()
    spoiled[1, 0, 2, 2] = torch.nan
    solution = dsc.solve(problem, spoiled, ADMM(), tol=1e-8, on_failure="ignore")
    assert solution.status[1] == dsc.Status.NONFINITE_INPUT
    assert torch.allclose(codes_of(solution)[[0, 2]], codes_of(alone)[[0, 2]], atol=1e-12)


def test_scales_follow_exactly() -> None:
    dictionary, signal = small()
    one = dsc.solve(dsc.Lasso(dictionary, 0.4), signal, ADMM(), tol=1e-8)
    big = dsc.solve(dsc.Lasso(dictionary, 0.4 * 2.0**40), signal * 2.0**40, ADMM(), tol=1e-8)
    assert torch.allclose(codes_of(big), codes_of(one) * 2.0**40, rtol=1e-9, atol=0)


@pytest.mark.parametrize("boundary", ["valid", "circular"])
def test_float32(boundary: str) -> None:
    dictionary, signal = small(boundary, torch.float32)
    solution = agree(dsc.Lasso(dictionary, 0.4), signal, tol=1e-4)
    assert codes_of(solution).dtype == torch.float32
    # One correlation with the kernels takes the place of the inverse transforms where kernels are small.
    assert ConvResolvent.of(dictionary, (6, 7))._direct


@pytest.mark.parametrize("solver", [ADMM(rho=0.05), ADMM(rho=50.0), ADMM(rho=3.0, adapt=False), ADMM(relaxation=1.0)])
def test_settings_change_the_way_and_not_the_answer(solver: ADMM) -> None:
    dictionary, signal = small()
    agree(dsc.Lasso(dictionary, 0.4), signal, solver)


def test_rings_have_quick_sizes_and_hold_the_signal() -> None:
    dictionary = dsc.ConvDictionary(normal(2, 1, 7, 4, generator=rng(0)))
    assert ring_size(dictionary, (91, 58)) == (100, 64)
    assert ring_size(dictionary.with_boundary("circular"), (91, 58)) == (91, 58)


def test_empty_batch() -> None:
    dictionary, signal = small()
    assert codes_of(dsc.solve(dsc.Lasso(dictionary, 0.4), signal[:0], ADMM())).shape == (0, 4, 6, 7)
