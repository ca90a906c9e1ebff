"""Posterior and counterpart of basis pursuit, and the distance of every layer to the whole problem's optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DSCWarning, ParameterError, UnsupportedError
from deep_sparse_coding.guarantees import Posterior, counterpart, posterior
from deep_sparse_coding.guarantees.pursuit import given_epsilon, pursuit_sphere
from strategies import SEEDS, draw_dense, duplicate_matrix, normal, orthonormal, randint, rng
from test_statements.oracles_guarantees import exact_lasso

F64 = torch.float64


def single(result: Posterior | tuple[Posterior, ...]) -> Posterior:
    assert isinstance(result, Posterior)
    return result


def tensor(codes: object) -> Tensor:
    assert isinstance(codes, Tensor)
    return codes


@settings(max_examples=120, deadline=None)
@given(seed=SEEDS)
def test_the_minimizer_of_basis_pursuit_is_where_it_is_said_to_be(seed: int) -> None:
    g = rng(seed)
    dictionary = draw_dense(seed, max_d=8)
    matrix = dictionary.matrix.detach().numpy()
    atoms = matrix.shape[1]
    nonnegative = bool(randint(0, 1, g))
    signal = normal(len(matrix), generator=g)
    weights = 0.5 + torch.rand(atoms, generator=g, dtype=F64)
    ratio = dictionary.analyze(signal) if nonnegative else dictionary.analyze(signal).abs()
    lam = 0.5 * float((ratio / weights).max())
    if lam <= 0.01:
        return
    truth = exact_lasso(matrix, signal.numpy(), lam * weights.numpy(), nonnegative)
    if not truth.resolved:
        return
    # The minimizer of a Lasso solves basis pursuit at its own residual norm.
    epsilon = float(np.linalg.norm(truth.residual))
    problem = dsc.BasisPursuit(dictionary, epsilon * (1 + 1e-12), weights, nonnegative)
    size = 10.0 ** -randint(1, 9, g)
    codes = torch.from_numpy(truth.codes) * (1 + size * normal(atoms, generator=g))
    result = single(posterior(dsc.certify(problem, signal, codes)))
    x = torch.from_numpy(truth.codes)
    assert not x[tensor(result.zeros)].any()
    assert bool((x[tensor(result.support)].sign() == tensor(result.signs)[tensor(result.support)]).all())
    assert bool((x >= tensor(result.lower) - 1e-9).all())
    assert bool((x <= tensor(result.upper) + 1e-9).all())
    assert float((codes - x).norm()) <= float(result.distance) + 1e-9
    other = counterpart(dsc.certify(problem, signal, codes))
    assert float(other.lower) <= lam * (1 + 1e-9)
    assert float(other.upper) >= lam * (1 - 1e-9)
    back = counterpart(dsc.certify(dsc.Lasso(dictionary, lam, weights, nonnegative), signal, codes))
    assert float(back.lower) <= epsilon <= float(back.upper)


def test_good_codes_prove_nearly_everything() -> None:
    dictionary = dsc.DenseDictionary.random(20, 40, seed=0, dtype=F64)
    signal = normal(6, 20, generator=rng(0))
    problem = dsc.BasisPursuit(dictionary, epsilon=1.0)
    result = single(posterior(dsc.solve(problem, signal, tol=1e-10)))
    assert bool(result.unique.all())
    assert float(result.distance.max()) < 1e-2
    assert int(tensor(result.zeros).sum()) + int(tensor(result.support).sum()) >= 0.98 * 240
    assert "unique in 6/6" in str(result)
    assert not bool(result.polish().exact.any())


def test_the_radius_is_that_of_the_cap_up_to_a_factor() -> None:
    # Orthonormal atoms: the true residual is known; the sphere about poor codes holds it, and not with much room.
    dictionary = orthonormal(6, 0)
    signal = 3 * normal(6, generator=rng(0))
    inner = dictionary.analyze(signal)
    codes = dsc.soft_threshold(inner, 0.5).detach()
    residual = signal - dictionary.synthesize(codes)
    problem = dsc.BasisPursuit(dictionary, float(residual.norm()))
    worse = codes * 1.02
    result = single(posterior(dsc.certify(problem, signal, worse)))
    moved = float((signal - dictionary.synthesize(worse) - residual).norm())
    assert moved <= 2 * float(result.radius) < 20 * moved


def test_zero_codes_and_equality() -> None:
    dictionary = orthonormal(4, 0)
    signal = torch.ones(2, 4, dtype=F64)
    wide = single(posterior(dsc.certify(dsc.BasisPursuit(dictionary, 2.5), signal, torch.zeros(2, 4, dtype=F64))))
    assert bool(wide.unique.all())
    assert bool(tensor(wide.zeros).all())
    assert float(wide.distance.max()) == pytest.approx(0.0, abs=1e-12)
    exact = single(
        posterior(dsc.certify(dsc.BasisPursuit(dictionary, 0.0), signal, dictionary.analyze(signal).detach()))
    )
    assert not bool(exact.unique.any())
    assert exact.reasons[0]


def test_a_doubled_atom_is_never_unique() -> None:
    with pytest.warns(DSCWarning):
        dictionary = dsc.DenseDictionary(duplicate_matrix(6, 8, 0))
    signal = 3 * dictionary.matrix[:, 0].detach()
    result = single(posterior(dsc.solve(dsc.BasisPursuit(dictionary, 0.5), signal, tol=1e-9)))
    assert not bool(result.unique)
    assert not bool(tensor(result.zeros)[[0, 7]].any())


def test_convolutions() -> None:
    dictionary = dsc.ConvDictionary.random(atoms=4, channels=1, size=(5, 5), stride=2, seed=0, dtype=F64)
    signal = normal(2, 1, 15, 15, generator=rng(0))
    problem = dsc.BasisPursuit(dictionary, 0.85 * float(signal.flatten(1).norm(dim=1).min()))
    solution = dsc.solve(problem, signal, tol=1e-9)
    result = single(posterior(solution))
    assert int(tensor(result.zeros).sum()) > 0.5 * tensor(result.zeros).numel()
    lam = counterpart(solution)
    assert float((lam.upper / lam.lower).max()) < 1.1
    again = dsc.solve(dsc.Lasso(dictionary, lam.lower.sqrt() * lam.upper.sqrt()), signal, tol=1e-9)
    assert bool((again.codes[tensor(result.support)] != 0).all())


def model() -> dsc.Cascade:
    first = dsc.DenseDictionary.random(30, 12, seed=0, dtype=F64)
    return dsc.Cascade([first, dsc.DenseDictionary.random(12, 8, seed=1, dtype=F64)])


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-8])
def test_the_distance_of_every_layer_to_the_whole_optimum(tol: float) -> None:
    cascade = model()
    signal = 2 * cascade.synthesize(normal(4, 8, generator=rng(0))).detach()
    for problem in (dsc.LayeredLasso(cascade, (0.1, 0.05)), dsc.JointLasso(cascade, (0.1, 0.05))):
        best = dsc.solve(problem, signal, tol=1e-13, on_failure="ignore").codes
        rough = dsc.solve(problem, signal, solver=dsc.FISTA(), tol=tol)
        told = posterior(rough)
        distances = [layer.distances[0] for layer in told] if isinstance(told, tuple) else list(told.distances)
        assert len(distances) == 2
        for x, exact, bound in zip(rough.codes, best, distances, strict=True):
            error = (x - exact).norm(dim=1)
            assert bool((error <= bound + 1e-7).all())
        if isinstance(told, tuple):
            assert bool((told[1].distances[0] >= told[1].distance * (1 - 1e-9)).all())
        else:
            assert all(bool((bound <= told.distance * (1 + 1e-9)).all()) for bound in distances)
        if tol <= 1e-8:
            assert max(float(bound.max()) for bound in distances) < 1e-2


def test_layered_basis_pursuit_says_what_it_is_relative_to() -> None:
    cascade = model()
    signal = 2 * cascade.synthesize(normal(2, 8, generator=rng(0))).detach()
    told = posterior(dsc.solve(dsc.LayeredBasisPursuit(cascade, (0.3, 0.2)), signal, tol=1e-9))
    assert isinstance(told, tuple)
    assert bool(torch.isfinite(told[0].distances[0]).all())
    assert bool(torch.isinf(told[1].distances[0]).all())  # no Lipschitz constant at a fixed ε
    assert told[1].note == "layer 2, given the codes of layer 1"


def test_what_is_not_offered_is_refused() -> None:
    dictionary = orthonormal(4, 0)
    solution = dsc.solve(dsc.SparseApproximation(dictionary, sparsity=1), torch.ones(4, dtype=F64))
    with pytest.raises(UnsupportedError, match=r"no posterior for a SparseApproximation; expected .*uniqueness"):
        posterior(solution)
    with pytest.raises(UnsupportedError, match="no counterpart of a SparseApproximation"):
        counterpart(solution)
    with pytest.raises(ParameterError, match="expected what solve or certify returned"):
        counterpart(torch.ones(4))  # type: ignore[arg-type]


def test_the_sphere_holds_the_residual_and_has_no_room_to_spare() -> None:
    closest = 0.0
    for seed in range(150):
        g = rng(seed)
        dictionary = draw_dense(seed, max_d=6)
        matrix = dictionary.matrix.detach()
        signal = normal(len(matrix), generator=g)
        lam = 0.6 * float((matrix.T @ signal).abs().max())
        truth = exact_lasso(matrix.numpy(), signal.numpy(), np.full(matrix.shape[1], lam))
        residual = torch.from_numpy(truth.residual)
        epsilon = float(residual.norm())
        if not truth.resolved or epsilon < 1e-6:
            continue
        problem = dsc.BasisPursuit(dictionary, epsilon)
        form = problem.form(signal)
        for size in (1e-1, 1e-3, 1e-5):
            codes = torch.from_numpy(truth.codes) + size * normal(matrix.shape[1], generator=g)
            found = pursuit_sphere(form, given_epsilon(problem, form), (codes[None],))
            radius = float(found.radius)
            if not np.isfinite(radius):
                continue
            distance = float((found.center[0][0] - residual).norm())
            assert distance <= radius * (1 + 1e-9) + 1e-12
            closest = max(closest, distance / radius)

    assert closest > 0.75
