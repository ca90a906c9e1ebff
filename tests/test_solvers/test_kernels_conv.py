"""The compiled convolutional Lasso solver against explicit matrices, scikit-learn and FISTA, and on hostile inputs."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess
from deep_sparse_coding.solvers import _kernels_image
from deep_sparse_coding.solvers._kernels_conv import Picture, assess_images, solve_images
from operators import OPERATORS, Operator
from references import explicit_matrix, kkt_violation, lasso_objective, sklearn_lasso
from strategies import normal, rng

SEEDS = st.integers(0, 2**31 - 1)
SOLVER = dsc.ConvCoordinateDescent()
TAKEN = [op for op in OPERATORS if isinstance(op.build(), dsc.ConvDictionary) and len(op.size) < 3]
each_taken = pytest.mark.parametrize("operator", TAKEN, ids=[op.name for op in TAKEN])
zeros_are_fine = pytest.mark.filterwarnings("ignore:lam is at or above lam_max")


def signals(dictionary: dsc.Dictionary, size: tuple[int, ...], seed: int, count: int = 2) -> Tensor:
    return normal(count, *dictionary.signal_shape(size), generator=rng(seed))


def blocks(solution: dsc.Solution) -> Tensor:
    assert isinstance(solution.codes, Tensor)
    return solution.codes


def images(seed: int, count: int = 1, size: int = 48, dtype: torch.dtype = torch.float64) -> Any:
    """A dictionary of correlated kernels and images large enough for several strips."""
    generator = rng(seed)
    kernels = normal(6, 1, 5, 5, generator=generator) + 0.3
    dictionary = dsc.ConvDictionary(kernels.to(dtype), normalize=True)
    return dictionary, normal(count, 1, size, size, generator=generator).to(dtype)


def relative_gap(matrix: Tensor, y: Tensor, x: Tensor, w: Tensor, nonnegative: bool) -> float:
    """P(x) - D(θ) over P(x), from the two objectives themselves."""
    y, x = y.flatten(), x.flatten()
    r = y - matrix @ x
    c = matrix.T @ r
    worst = float(((c if nonnegative else c.abs()) / w).max())
    alpha = min(float(y @ r / (r @ r)), 1 / worst if worst > 0 else math.inf)
    primal = lasso_objective(matrix, y, x, w)
    return (primal - float(0.5 * y @ y - 0.5 * (y - alpha * r).square().sum())) / primal


@zeros_are_fine
@each_taken
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_every_operator_against_scikit_learn(operator: Operator, nonnegative: bool, share: float) -> None:
    dictionary = operator.build()
    matrix, signal = explicit_matrix(dictionary, operator.size), signals(dictionary, operator.size, 5)
    atoms = dictionary.atoms
    weights = torch.linspace(0.5, 1.5, atoms, dtype=torch.float64)
    lam = share * float(dsc.Lasso(dictionary, 1.0, weights=weights).lam_max(signal).max())
    problem = dsc.Lasso(dictionary, lam, weights=weights, nonnegative=nonnegative)
    solution = dsc.solve(problem, signal, SOLVER, tol=1e-10)
    positions = math.prod(operator.size)
    w = lam * weights.repeat_interleave(positions)
    for i in range(2):
        codes = blocks(solution)[i].flatten()
        best = sklearn_lasso(matrix, signal[i], w, nonnegative=nonnegative)
        want = lasso_objective(matrix, signal[i], best, w)
        assert lasso_objective(matrix, signal[i], codes, w) == pytest.approx(want, rel=1e-9, abs=1e-12)
        assert kkt_violation(matrix, signal[i], codes, w, nonnegative=nonnegative) < 1e-4 * lam
        assert relative_gap(matrix, signal[i], codes, w, nonnegative) < 1.1e-10


@each_taken
def test_weights_per_entry_and_forbidden_entries(operator: Operator) -> None:
    dictionary = operator.build()
    matrix, signal = explicit_matrix(dictionary, operator.size), signals(dictionary, operator.size, 6)
    shape = (dictionary.atoms, *operator.size)
    weights = torch.rand(shape, generator=rng(3), dtype=torch.float64) + 0.1
    weights[torch.rand(shape, generator=rng(4)) < 0.3] = math.inf
    problem = dsc.Lasso(dictionary, 0.2, weights=weights)
    codes = blocks(dsc.solve(problem, signal, SOLVER, tol=1e-10))
    w = 0.2 * weights.flatten()
    for i in range(2):
        want = lasso_objective(matrix, signal[i], sklearn_lasso(matrix, signal[i], w), w)
        assert lasso_objective(matrix, signal[i], codes[i], w) == pytest.approx(want, rel=1e-9)
    assert not codes[:, torch.isinf(weights)].any()


@settings(max_examples=5, deadline=None)
@given(seed=SEEDS, nonnegative=st.booleans())
def test_large_images_equal_fista(seed: int, nonnegative: bool) -> None:
    dictionary, signal = images(seed)
    problem = dsc.Lasso(dictionary, 0.3, nonnegative=nonnegative)
    ours = dsc.solve(problem, signal, SOLVER, tol=1e-7)
    theirs = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-7)
    assert ours.converged.all()
    assert theirs.converged.all()
    want = float(theirs.certificate.objective)
    assert float(ours.certificate.objective) == pytest.approx(want, rel=2e-7)
    assert 0 < float((blocks(ours) != 0).double().mean()) < 0.5


@pytest.mark.parametrize("boundary", ["valid", "circular"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precisions_boundaries_and_strides(boundary: str, dtype: torch.dtype) -> None:
    kernels = normal(5, 2, 4, 5, generator=rng(1)).to(dtype)
    for stride in ((1, 1), (2, 1), (1, 3), (2, 2), (5, 6)):
        dictionary = dsc.ConvDictionary(kernels, stride=stride, boundary=boundary, normalize=True)
        signal = normal(*dictionary.signal_shape((37, 11)), generator=rng(2)).to(dtype)
        problem = dsc.Lasso(dictionary, 0.2 * float(dsc.Lasso(dictionary, 1.0).lam_max(signal)))
        ours = dsc.solve(problem, signal, SOLVER, tol=1e-6)
        theirs = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-6)
        assert ours.converged.all()
        want = float(theirs.certificate.objective)
        assert float(ours.certificate.objective) == pytest.approx(want, rel=2e-6)


@zeros_are_fine
@each_taken
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_masks_against_scikit_learn(operator: Operator, per_sample: bool, nonnegative: bool) -> None:
    dictionary = operator.build()
    matrix, signal = explicit_matrix(dictionary, operator.size), signals(dictionary, operator.size, 8)
    event = tuple(signal.shape[1:])
    mask = torch.rand((2, *event) if per_sample else event, generator=rng(9)) < 0.6
    lam = 0.1 * float(dsc.Lasso(dictionary, 1.0, mask=mask).lam_max(signal).max())
    problem = dsc.Lasso(dictionary, lam, mask=mask, nonnegative=nonnegative)
    solution = dsc.solve(problem, signal, SOLVER, tol=1e-10)
    for i in range(2):
        seen = (mask[i] if per_sample else mask).flatten().double()
        here, data = seen[:, None] * matrix, seen * signal[i].flatten()
        w = torch.full((here.shape[1],), lam, dtype=torch.float64)
        best = sklearn_lasso(here, data, w, nonnegative=nonnegative)
        want = lasso_objective(here, data, best, w)
        assert lasso_objective(here, data, blocks(solution)[i].flatten(), w) == pytest.approx(want, rel=1e-9, abs=1e-12)
        assert relative_gap(here, data, blocks(solution)[i], w, nonnegative) < 1.1e-10
    found = SOLVER.assess(problem.exact_form(signal), (blocks(solution),), 1e-9)
    torch.testing.assert_close(found.objective, solution.certificate.objective, rtol=1e-12, atol=0)


@pytest.mark.parametrize("boundary", ["valid", "same", "circular"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masks_and_cut_atoms_equal_fista(boundary: str, dtype: torch.dtype) -> None:
    kernels = normal(5, 2, 4, 5, generator=rng(1)).to(dtype)
    for stride in ((1, 1), (2, 1), (1, 3), (5, 6)):
        dictionary = dsc.ConvDictionary(kernels, stride=stride, boundary=boundary, normalize=True)
        signal = normal(*dictionary.signal_shape((19, 11)), generator=rng(2)).to(dtype)
        for mask in (None, torch.rand(signal.shape, generator=rng(3)) < 0.5):
            lam = 0.2 * float(dsc.Lasso(dictionary, 1.0, mask=mask).lam_max(signal))
            problem = dsc.Lasso(dictionary, lam, mask=mask)
            ours = dsc.solve(problem, signal, SOLVER, tol=1e-6)
            theirs = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-6)
            assert ours.converged.all()
            want = float(theirs.certificate.objective)
            assert float(ours.certificate.objective) == pytest.approx(want, rel=2e-6)


@pytest.mark.parametrize("boundary", ["valid", "same", "circular"])
def test_what_was_not_observed_changes_no_bit(boundary: str) -> None:
    dictionary, signal = images(21, 2, 40)
    dictionary = dictionary.with_boundary(boundary)
    mask = torch.rand(40, 40, generator=rng(1)) < 0.7
    mask[10:25, 5:30] = False  # large enough that some kernels see nothing
    problem = dsc.Lasso(dictionary, 0.2, mask=mask)
    first = dsc.solve(problem, signal, SOLVER, tol=1e-7)
    assert first.converged.all()
    other = torch.where(mask, signal, 7.0 * normal(*signal.shape, generator=rng(2)))
    again = dsc.solve(problem, other, SOLVER, tol=1e-7)
    assert torch.equal(blocks(first), blocks(again))
    # A mask of ones is none, up to the rounding of norms.
    whole = dsc.solve(dsc.Lasso(dictionary, 0.2, mask=torch.ones(40, 40)), signal, SOLVER, tol=1e-9)
    plain = dsc.solve(dsc.Lasso(dictionary, 0.2), signal, SOLVER, tol=1e-9)
    torch.testing.assert_close(whole.certificate.objective, plain.certificate.objective, rtol=2e-9, atol=0)


def run(signal: Tensor, dictionary: dsc.ConvDictionary, lam: float, **options: Any) -> tuple[Any, Any, Any]:
    grid = dictionary.code_shape(tuple(signal.shape[2:]))
    start = options.pop("start", np.zeros((len(signal), *grid)))
    weights = np.full((1, 1, 1, 1), lam)
    names = ("stride", "ring", "nonnegative", "mask")
    setting = {name: options.pop(name) for name in names if name in options}
    picture = Picture(dictionary.kernels.detach().numpy(), signal.numpy(), weights, start, **setting)
    return solve_images(picture, **options)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads_and_batches_change_no_bit(count: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels_image, "_SHARED", 0)  # every pass is shared, however short
    dictionary, signal = images(8, count, 70)
    mask = (torch.rand(1, 1, 70, 70, generator=rng(1)) < 0.7).double() if masked else torch.ones(1, 1, 70, 70)
    signal = signal * mask
    options = {"tol": 1e-8, "mask": mask.numpy() if masked else None}
    alone = run(signal, dictionary, 0.2, threads=1, **options)
    for threads in (1, 2, 3):
        codes, rounds, gaps = run(signal, dictionary, 0.2, threads=threads, **options)
        np.testing.assert_array_equal(codes, alone[0])
        np.testing.assert_array_equal(rounds, alone[1])
        assert gaps.max() <= 1e-8
    for i in range(count):
        codes = run(signal[i : i + 1], dictionary, 0.2, threads=2, **options)[0]
        np.testing.assert_array_equal(codes[0], alone[0][i])


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_compiled_certificate_equals_the_assessor(nonnegative: bool) -> None:
    for boundary in ("valid", "circular"):
        dictionary = dsc.ConvDictionary(normal(4, 2, 3, 5, generator=rng(1)), stride=(2, 1), boundary=boundary)
        signal = normal(2, *dictionary.signal_shape((20, 9)), generator=rng(2))
        codes = normal(2, 4, 20, 9, generator=rng(3)) * (torch.rand(2, 4, 20, 9, generator=rng(4)) < 0.1)
        codes = codes.clamp_min(0) if nonnegative else codes
        want = assess(dsc.Lasso(dictionary, 0.3, nonnegative=nonnegative), signal, codes)
        kernels = dictionary.kernels.detach().numpy()
        weights = np.full((1, 1, 1, 1), 0.3)
        ring = boundary == "circular"
        for threads in (1, 2):
            picture = Picture(kernels, signal.numpy(), weights, codes.numpy(), (2, 1), ring, nonnegative)
            objective, gap = assess_images(picture, threads)
            np.testing.assert_allclose(objective, want.objective.numpy(), rtol=1e-12)
            np.testing.assert_allclose(gap, want.gap.numpy(), rtol=1e-10)


def test_the_assessment_of_a_form_sees_violations() -> None:
    dictionary, signal = images(20, 3, 12)
    weights = torch.ones(6, 8, 8, dtype=torch.float64)
    weights[2] = math.inf
    codes = torch.zeros(3, 6, 8, 8, dtype=torch.float64)
    codes[1, 2, 3, 3], codes[2, 0, 1, 1] = 1.0, -1.0
    problem = dsc.Lasso(dictionary, 0.1, weights=weights, nonnegative=True)
    found, want = SOLVER.assess(problem.exact_form(signal), (codes,), 1e-6), assess(problem, signal, codes)
    torch.testing.assert_close(found.objective, want.objective)
    torch.testing.assert_close(found.gap, want.gap)
    assert torch.isinf(found.objective).tolist() == [False, True, True]
    # What the kernels do not take is assessed all the same.
    dense, signal = dsc.Lasso(dsc.DenseDictionary.random(4, 6, seed=0), 0.1), torch.ones(1, 4)
    found, want = (
        SOLVER.assess(dense.exact_form(signal), (torch.zeros(1, 6),), 1e-6),
        assess(dense, signal, torch.zeros(1, 6)),
    )
    torch.testing.assert_close(found.gap, want.gap)


def test_an_optimal_start_takes_no_step() -> None:
    dictionary, signal = images(9, 2)
    problem = dsc.Lasso(dictionary, 0.3)
    first = dsc.solve(problem, signal, SOLVER, tol=1e-7)
    again = dsc.solve(problem, signal, SOLVER, tol=1e-7, start=first.codes)
    assert (again.steps == 0).all()
    near = dsc.solve(dsc.Lasso(dictionary, 0.29), signal, SOLVER, tol=1e-7, start=first.codes)
    cold = dsc.solve(dsc.Lasso(dictionary, 0.29), signal, SOLVER, tol=1e-7)
    assert near.converged.all()
    assert (near.steps < cold.steps).all()


def test_start_values_that_the_problem_forbids_count_as_zero() -> None:
    dictionary, signal = images(10)
    grid = (1, *dictionary.code_shape((48, 48)))
    start = normal(*grid, generator=rng(1)).numpy()
    want = run(signal, dictionary, 0.3, nonnegative=True, tol=1e-9)[0]
    got, _, gap = run(signal, dictionary, 0.3, nonnegative=True, tol=1e-9, start=start)
    assert gap.max() <= 1e-9
    assert got.min() >= 0
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_zero_image_and_a_large_lam_give_zero() -> None:
    dictionary, signal = images(11, 3)
    signal[1] = 0
    lam = 1.0001 * float(dsc.Lasso(dictionary, 1.0).lam_max(signal).max())
    codes, rounds, gaps = run(signal, dictionary, lam)
    assert not codes.any()
    assert not rounds.any()
    assert not gaps.any()
    below = run(signal, dictionary, 0.99 * lam / 1.0001, tol=1e-9)
    assert below[0].any()
    assert not below[0][1].any()
    # From far away, a zero image leads back to zero exactly.
    start = normal(*codes.shape, generator=rng(2)).numpy()
    codes, _, gaps = run(torch.zeros_like(signal), dictionary, 0.1, tol=1e-9, start=start)
    assert not codes.any()
    assert not gaps.any()


def test_duplicate_kernels_share_an_objective() -> None:
    dictionary, signal = images(12)
    with pytest.warns(dsc.DSCWarning, match="are the same up to scale and sign"):
        twice = dsc.ConvDictionary(torch.cat([dictionary.kernels, dictionary.kernels]))
    one = dsc.solve(dsc.Lasso(dictionary, 0.3), signal, SOLVER, tol=1e-8)
    two = dsc.solve(dsc.Lasso(twice, 0.3), signal, SOLVER, tol=1e-8)
    assert two.converged.all()
    assert float(two.certificate.objective) == pytest.approx(float(one.certificate.objective), rel=2e-8)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e150])
def test_scale_of_the_signal_only_scales_the_codes(scale: float) -> None:
    dictionary, signal = images(13)
    want = run(signal, dictionary, 0.3, tol=1e-9)[0]
    got, _, gaps = run(signal * scale, dictionary, 0.3 * scale, tol=1e-9)
    assert gaps.max() <= 1e-9
    np.testing.assert_allclose(got / scale, want, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-15, 1e-3, 1e15])
def test_scale_of_the_kernels(scale: float) -> None:
    dictionary, signal = images(14)
    want = run(signal, dictionary, 0.3, tol=1e-9)[0]
    scaled = dsc.ConvDictionary(dictionary.kernels.detach() * scale)
    got, _, gaps = run(signal, scaled, 0.3 * scale, tol=1e-9)
    assert gaps.max() <= 1e-9
    np.testing.assert_allclose(got * scale, want, atol=1e-5)


def test_unreachable_tolerance_ends_and_rounds_are_kept() -> None:
    dictionary, signal = images(15)
    _, rounds, gaps = run(signal, dictionary, 0.3, tol=0.0, max_rounds=1000)
    assert rounds.max() < 150
    assert gaps.max() < 1e-12
    _, rounds, gaps = run(signal, dictionary, 0.3, tol=1e-9, max_rounds=2)
    assert rounds.max() == 2
    assert gaps.max() > 1e-9


def test_empty_batch_and_read_only_input() -> None:
    dictionary, signal = images(16)
    assert run(signal[:0], dictionary, 0.3)[0].shape == (0, 6, 44, 44)
    kernels, data = dictionary.kernels.detach().numpy(), signal.numpy().copy()
    kernels.flags.writeable = data.flags.writeable = False
    weights = np.broadcast_to(np.float64(0.3), (1, 6, 1, 1))
    assert solve_images(Picture(kernels, data, weights, np.zeros((1, 6, 44, 44))))[2].max() <= 1e-6


def test_refusals_say_what_to_use() -> None:
    one = dsc.DenseDictionary.random(4, 6, seed=0)
    with pytest.raises(dsc.UnsupportedError, match=r"takes one ConvDictionary; use dsc\.CoordinateDescent"):
        dsc.solve(dsc.Lasso(one, 0.1), torch.ones(4), SOLVER)
    dictionary, signal = images(17, size=12)
    with pytest.raises(dsc.UnsupportedError, match=r"takes masks of zeros and ones.*use dsc\.FISTA"):
        dsc.solve(dsc.Lasso(dictionary, 0.1, mask=0.5 * torch.ones(12, 12)), signal, SOLVER)
    cube = dsc.ConvDictionary.random(atoms=2, channels=1, size=(2, 2, 2), seed=0)
    with pytest.raises(dsc.UnsupportedError, match="one or two spatial axes"):
        dsc.solve(dsc.Lasso(cube, 0.1), torch.ones(1, 4, 4, 4), SOLVER)


@pytest.mark.skipif(os.name == "nt", reason="needs fork")
def test_solves_in_a_forked_process() -> None:
    dictionary, signal = images(18)
    expected = run(signal, dictionary, 0.3, threads=2)[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(run(signal, dictionary, 0.3, threads=2)[0], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
