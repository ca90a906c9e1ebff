"""G7: within the certified radius support and signs stay, whatever the noise; just above it some noise changes them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DSCWarning, ParameterError, UnsupportedError
from deep_sparse_coding.guarantees import Posterior, posterior
from deep_sparse_coding.guarantees.robustness import Robustness, robustness
from strategies import SEEDS, draw_dense, duplicate_matrix, normal, orthonormal, randint, rng
from test_statements.oracles_guarantees import exact_lasso

F64 = torch.float64


def single(result: Robustness | tuple[Robustness, ...]) -> Robustness:
    assert isinstance(result, Robustness)
    return result


def tensor(codes: object) -> Tensor:
    assert isinstance(codes, Tensor)
    return codes


def certified(dictionary: dsc.DenseDictionary, signal: Tensor, lam: float, codes: Tensor, **settings: object) -> object:
    return dsc.certify(dsc.Lasso(dictionary, lam, **settings), signal, codes)  # type: ignore[arg-type]


def critical(matrix: np.ndarray, signal: np.ndarray, lam: float, codes: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the exact distance to the nearest signal with another support or sign, and the direction to it."""
    support = np.nonzero(codes)[0]
    inside = matrix[:, support]
    rows = np.linalg.pinv(inside)
    best, direction = math.inf, np.zeros(len(signal))
    for k, i in enumerate(support):
        size = np.linalg.norm(rows[k])
        if abs(codes[i]) / size < best:
            best, direction = abs(codes[i]) / size, -np.sign(codes[i]) * rows[k] / size
    residual = signal - matrix @ codes
    for i in np.setdiff1d(np.arange(matrix.shape[1]), support):
        part = matrix[:, i] - inside @ (rows @ matrix[:, i])
        size, value = np.linalg.norm(part), matrix[:, i] @ residual
        if size > 1e-9 and (lam - abs(value)) / size < best:
            best = (lam - abs(value)) / size
            direction = np.sign(value) * part / size
    return best, direction


def test_the_radius_is_exact() -> None:
    seen = inside = 0
    for seed in range(100):
        g = rng(seed)
        dictionary = draw_dense(seed, max_d=8)
        matrix = dictionary.matrix.detach().numpy()
        signal = normal(len(matrix), generator=g)
        lam = 0.5 * float(dictionary.analyze(signal).abs().max()) * float(torch.rand((), generator=g, dtype=F64) + 0.2)
        truth = exact_lasso(matrix, signal.numpy(), np.full(matrix.shape[1], lam))
        if not truth.resolved or not truth.codes.any():
            continue
        result = single(robustness(certified(dictionary, signal, lam, torch.from_numpy(truth.codes))))  # type: ignore[arg-type]
        exact, direction = critical(matrix, signal.numpy(), lam, truth.codes)
        seen += 1
        assert float(result.radius) <= exact * (1 + 1e-9)
        assert float(result.radius) >= exact * (1 - 1e-6) - 1e-9
        # Just inside nothing changes; just outside support or sign do.
        for share in (0.999, 1.001):
            moved = exact_lasso(matrix, signal.numpy() + share * exact * direction, np.full(matrix.shape[1], lam))
            same = bool((np.sign(moved.codes) == np.sign(truth.codes)).all())
            if moved.resolved:
                inside += 1
                assert same == (share < 1)
    assert seen > 40
    assert inside > 55


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_everything_holds_for_every_signal_within_the_radius(seed: int) -> None:
    g = rng(seed)
    dictionary = draw_dense(seed, max_d=8)
    matrix = dictionary.matrix.detach().numpy()
    atoms = matrix.shape[1]
    nonnegative = bool(randint(0, 1, g))
    signal = normal(len(matrix), generator=g)
    lam = 0.4 * float(dictionary.analyze(signal).max().clamp_min(0.1))
    weights = np.full(atoms, lam)
    truth = exact_lasso(matrix, signal.numpy(), weights, nonnegative)
    # Codes of any quality: with good ones the minimizer is known, with bad ones only the sphere speaks.
    size = 10.0 ** -randint(0, 6, g)
    codes = torch.from_numpy(truth.codes) + size * normal(atoms, generator=g) * (normal(atoms, generator=g) > 0)
    codes = codes.clamp_min(0) if nonnegative else codes
    epsilon = 10.0 ** -randint(0, 3, g)
    solution = certified(dictionary, signal, lam, codes, nonnegative=nonnegative)
    weights_out = normal(atoms, generator=g)
    result = single(robustness(solution, epsilon, readout=weights_out))  # type: ignore[arg-type]
    center = truth.codes
    for _ in range(6):
        step = normal(len(matrix), generator=g)
        step = step / step.norm() * epsilon * (1 - 1e-9)
        moved = exact_lasso(matrix, (signal + step).numpy(), weights, nonnegative)
        # In the minimizer's own arithmetic zero is up to 1e-9; unresolved minimizers need a unique one to compare.
        if not moved.resolved:
            continue
        x = torch.from_numpy(moved.codes)
        assert not x[tensor(result.zeros)].any()
        assert bool((x[tensor(result.support)].sign() == tensor(result.signs)[tensor(result.support)]).all())
        room = 1e-9 * (1 + x.abs())
        assert bool((x >= tensor(result.lower) - room).all())
        assert bool((x <= tensor(result.upper) + room).all())
        if truth.resolved and bool(result.unique):
            assert float(np.linalg.norm(moved.codes - center)) <= float(result.moves) + 1e-9
            assert result.readout is not None
            assert abs(float(weights_out @ (x - torch.from_numpy(center)))) <= float(result.readout) + 1e-9
        if truth.resolved and bool(result.stays):
            assert (np.sign(moved.codes) == np.sign(center)).all()
        if truth.resolved:
            assert np.linalg.norm(matrix @ (moved.codes - center)) <= epsilon + 1e-9


def test_radius_zero_says_what_the_posterior_says() -> None:
    for seed in range(20):
        dictionary = draw_dense(seed, max_d=8)
        signal = normal(2, dictionary.channels, generator=rng(seed))
        solution = dsc.solve(dsc.Lasso(dictionary, 0.5), signal, tol=1e-6)
        plain, wide = posterior(solution), single(robustness(solution, 0.0))
        assert isinstance(plain, Posterior)
        assert torch.equal(tensor(plain.zeros), tensor(wide.zeros))
        assert torch.equal(tensor(plain.signs), tensor(wide.signs))
        assert torch.equal(plain.unique, wide.unique)
        assert float(wide.moves[wide.unique].sum()) == 0


def test_one_atom() -> None:
    dictionary = dsc.DenseDictionary(torch.tensor([[1.0], [0.0]], dtype=F64))
    signal = torch.tensor([[1.5, 7.0], [0.2, 7.0], [-3.0, 0.0]], dtype=F64)
    codes = torch.tensor([[0.5], [0.0], [-2.0]], dtype=F64)
    solution = certified(dictionary, signal, 1.0, codes)
    result = single(robustness(solution, torch.tensor([0.4, 0.9, 1.0], dtype=F64)))  # type: ignore[arg-type]
    assert result.radius.tolist() == pytest.approx([0.5, 0.8, 2.0], rel=1e-9)
    assert result.stays.tolist() == [True, False, True]
    assert result.moves.tolist() == pytest.approx([0.4, 0.9, 1.0], rel=1e-6)


def test_orthonormal_atoms() -> None:
    dictionary = orthonormal(6, 0)
    signal = normal(5, 6, generator=rng(1))
    solution = dsc.solve(dsc.Lasso(dictionary, 0.6), signal, tol=1e-12)
    result = single(robustness(solution, 0.01))
    exact = (dictionary.analyze(signal).abs() - 0.6).abs().amin(1)
    assert torch.allclose(result.radius, exact.detach(), rtol=1e-9)


def test_noise_along_a_row_attains_the_moves_of_an_entry() -> None:
    dictionary = draw_dense(3, "tall")
    matrix = dictionary.matrix.detach().numpy()
    signal = dictionary.synthesize(torch.ones(matrix.shape[1], dtype=F64)).detach()
    truth = exact_lasso(matrix, signal.numpy(), np.full(matrix.shape[1], 0.05))
    solution = certified(dictionary, signal, 0.05, torch.from_numpy(truth.codes))
    row = np.linalg.pinv(matrix)[0]
    probe = torch.zeros(matrix.shape[1], dtype=F64)
    probe[0] = 1.0
    epsilon = 0.5 * float(single(robustness(solution)).radius)  # type: ignore[arg-type]
    result = single(robustness(solution, epsilon, readout=probe))  # type: ignore[arg-type]
    moved = exact_lasso(matrix, signal.numpy() + epsilon * row / np.linalg.norm(row), np.full(matrix.shape[1], 0.05))
    change = abs(moved.codes[0] - truth.codes[0])
    assert result.readout is not None
    assert float(result.readout) == pytest.approx(change, rel=1e-6)
    # The interval of that entry is as wide, and the weakest direction attains `moves`.
    assert float(tensor(result.upper)[0]) - truth.codes[0] == pytest.approx(change, rel=1e-6)
    left = np.linalg.svd(matrix, full_matrices=False)[0]
    weak = exact_lasso(matrix, signal.numpy() + epsilon * left[:, -1], np.full(matrix.shape[1], 0.05))
    assert float(result.moves) == pytest.approx(float(np.linalg.norm(weak.codes - truth.codes)), rel=1e-5)


def test_a_doubled_atom_is_never_unique() -> None:
    for seed in range(10):
        with pytest.warns(DSCWarning):
            dictionary = dsc.DenseDictionary(duplicate_matrix(6, 8, seed))
        signal = 3 * dictionary.matrix[:, 0].detach()
        result = single(robustness(dsc.solve(dsc.Lasso(dictionary, 0.5), signal, tol=1e-8), 0.1))
        assert not bool(result.unique)
        assert float(result.radius) == 0
        assert not bool(result.stays)
        assert math.isinf(float(result.moves))
        assert result.reasons[0]


def test_joint_codes_and_beta() -> None:
    first = dsc.DenseDictionary.random(14, 10, seed=0, dtype=F64)
    second = dsc.DenseDictionary.random(10, 6, seed=1, dtype=F64)
    model = dsc.Cascade([first, second])
    for beta in ((1.0, 1.0), (4.0, 0.5)):
        problem = dsc.JointLasso(model, (0.2, 0.1), beta)
        signal = 2 * normal(1, 14, generator=rng(5))
        solution = dsc.solve(problem, signal, tol=1e-10)
        result = single(robustness(solution))
        epsilon = float(result.radius) * (1 - 1e-6)
        assert epsilon > 1e-6
        for seed in range(8):
            step = normal(1, 14, generator=rng(seed))
            moved = dsc.solve(problem, signal + epsilon * step / step.norm(), tol=1e-12, on_failure="ignore")
            there = posterior(moved)
            assert isinstance(there, Posterior)
            exact = there.polish()
            assert bool(exact.exact.all())
            told = robustness(solution, epsilon)
            for x, signs in zip(exact.codes, single(told).signs, strict=True):
                assert torch.equal(x.sign().to(torch.int8), signs)


def test_layers_pass_the_movement_on() -> None:
    first = dsc.DenseDictionary.random(30, 12, seed=0, dtype=F64)
    second = dsc.DenseDictionary.random(12, 8, seed=1, dtype=F64)
    model = dsc.Cascade([first, second])
    problem = dsc.LayeredLasso(model, (0.1, 0.05))
    checked = 0
    for seed in range(8):
        signal = 2 * model.synthesize(normal(1, 8, generator=rng(seed))).detach()
        solution = dsc.solve(problem, signal, tol=1e-10)
        layers = robustness(solution)
        assert isinstance(layers, tuple)
        total = float(layers[1].signal_radius)
        assert total <= float(layers[0].radius)
        if total <= 1e-6:
            continue
        checked += 1
        asked = robustness(solution, 0.99 * total)
        assert isinstance(asked, tuple)
        assert all(bool(layer.stays) for layer in asked)
        before = posterior(solution)
        for other in range(5):
            step = normal(1, 30, generator=rng(100 + other))
            moved = dsc.solve(problem, signal + 0.99 * total * step / step.norm(), tol=1e-12, on_failure="ignore")
            after = posterior(moved)
            assert isinstance(after, tuple)
            for layer, old, new, x in zip(asked, before, after, moved.codes, strict=True):  # type: ignore[arg-type]
                assert torch.equal(tensor(new.polish().codes).sign(), tensor(old.polish().codes).sign())
                assert bool((x >= tensor(layer.lower) - 1e-6).all())
                assert bool((x <= tensor(layer.upper) + 1e-6).all())
    assert checked >= 3


def test_convolutions() -> None:
    dictionary = dsc.ConvDictionary.random(atoms=4, channels=1, size=(5, 5), stride=2, seed=0, dtype=F64)
    signal = normal(2, 1, 17, 17, generator=rng(0))
    problem = dsc.Lasso(dictionary, 0.8)
    solution = dsc.solve(problem, signal, tol=1e-9)
    result = single(robustness(solution, 1e-4))
    assert bool((result.radius > 0).all())
    epsilon = result.radius * (1 - 1e-6)
    step = normal(*signal.shape, generator=rng(1))
    step = step / step.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * epsilon.reshape(-1, 1, 1, 1)
    moved = posterior(dsc.solve(problem, signal + step, tol=1e-10))
    assert isinstance(moved, Posterior)
    assert torch.equal(tensor(moved.signs), tensor(single(robustness(solution, epsilon)).signs))
    assert "support and signs stay for every signal within 0.0001 in 2/2; certified radius from" in str(result)


def test_what_is_not_offered_is_refused() -> None:
    dictionary = orthonormal(4, 0)
    signal = torch.ones(4, dtype=F64)
    solution = dsc.solve(dsc.BasisPursuit(dictionary, epsilon=0.5), signal)
    with pytest.raises(
        UnsupportedError, match=r"no robustness for a BasisPursuit; .*dsc\.prove\.counterpart gives the Lasso"
    ):
        robustness(solution, 0.1)
    plain = dsc.solve(dsc.Lasso(dictionary, 0.5), signal)
    with pytest.raises(ParameterError, match="radius is -1"):
        robustness(plain, -1)
    with pytest.raises(ParameterError, match=r"readout has shape .* expected that of one sample's codes"):
        robustness(plain, 0.1, readout=torch.ones(3))
    with pytest.raises(ParameterError, match=r"expected what dsc\.solve returned"):
        robustness(torch.ones(4), 0.1)  # type: ignore[arg-type]
