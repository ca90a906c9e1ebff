"""G5: no certain zero, sign, interval or distance is ever wrong, for any codes; tight where the statement is."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DSCWarning
from deep_sparse_coding.guarantees import Posterior, certify, posterior
from deep_sparse_coding.guarantees.places import Places, locate
from deep_sparse_coding.guarantees.polish import Flat, join
from deep_sparse_coding.guarantees.sphere import Rounding, Sphere, sphere
from deep_sparse_coding.problems import ConvexProblem, dual_point
from references import explicit_matrix, joint_matrix
from strategies import draw_dense, duplicate_matrix, nearly_parallel, normal, orthonormal, randint, rng
from test_statements.oracles_guarantees import Exact, exact_lasso

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64
# The oracle's own resolution.
TOL = 1e-12


@dataclass(frozen=True)
class Instance:
    """A Lasso with its exact minimizers and codes at several distances from them, one sample each."""

    problem: dsc.Lasso
    signal: Tensor
    codes: Tensor
    exact: list[Exact]


def draw(seed: int, *, dtype: torch.dtype = F64) -> Instance:
    """Return one problem with the settings a user may combine, and codes from far to the last digit."""
    g = rng(seed)
    d, atoms = randint(3, 8, g), randint(2, 12, g)
    matrix = normal(d, atoms, generator=g)
    matrix = matrix / torch.linalg.vector_norm(matrix, dim=0)
    if randint(0, 2, g) == 0:
        matrix = matrix * (0.3 + 2 * torch.rand(atoms, generator=g, dtype=F64))
    dictionary = dsc.DenseDictionary(matrix.to(dtype))
    signal = normal(d, generator=g).to(dtype)
    nonnegative = randint(0, 2, g) == 0
    mask = (torch.rand(d, generator=g) < 0.8) if randint(0, 2, g) == 0 else None
    weights = torch.ones(atoms, dtype=F64)
    if randint(0, 1, g) == 0:
        weights = 0.5 + torch.rand(atoms, generator=g, dtype=F64)
        weights[torch.rand(atoms, generator=g) < 0.15] = math.inf
        if randint(0, 1, g) == 0:
            weights[0] = 0.0
    observed = signal if mask is None else mask * signal
    top = float((dictionary.matrix.detach().T @ observed).abs().max())
    lam = top * 10 ** (-2 * float(torch.rand((), generator=g, dtype=F64))) + 1e-3
    problem = dsc.Lasso(dictionary, lam, weights.to(dtype), nonnegative, mask)
    held = dictionary.matrix.detach().double().numpy()
    if mask is not None:
        held = mask.numpy()[:, None] * held
    w = problem.exact_form(signal[None]).weights[0][0].expand(atoms).numpy()
    exact = exact_lasso(held, observed.double().numpy(), w, nonnegative)
    best = torch.from_numpy(exact.codes)
    rows = []
    for scale in (1.0, 0.1, 1e-3, 1e-6, 1e-9, 1e-12, 0.0):
        noise = normal(atoms, generator=g) * (best != 0) if randint(0, 1, g) else normal(atoms, generator=g)
        row = best + scale * noise
        rows.append(torch.where(torch.from_numpy(w) == math.inf, 0.0, row.clamp_min(0) if nonnegative else row))
    codes = torch.stack([*rows, torch.zeros(atoms, dtype=F64)]).to(dtype)
    return Instance(problem, signal.expand(len(codes), d), codes, [exact] * len(codes))


def stages(problem: ConvexProblem, signal: Tensor, codes: Tensor) -> tuple[Sphere, Places, Tensor]:
    """Return the sphere and the places without the polish, which would hide them, and the certain zeros."""
    form = problem.exact_form(problem.check_signal(signal))
    blocks = tuple(block.double() for block in problem.pack(codes, signal))
    rounding = Rounding.of(form)
    found = sphere(form, blocks, rounding)
    zeros = join(found.zeros)
    every = torch.ones(form.batch, dtype=torch.bool)
    places = locate(Flat.of(form, rounding), join(blocks), found.center, found.radius, zeros, every)
    return found, places, zeros


def assert_never_wrong(result: Posterior, codes: Tensor, exact: list[Exact]) -> None:
    assert isinstance(result.zeros, Tensor)
    assert isinstance(result.support, Tensor)
    assert isinstance(result.signs, Tensor)
    assert isinstance(result.lower, Tensor)
    assert isinstance(result.upper, Tensor)
    for k, answer in enumerate(exact):
        if not answer.resolved:
            continue
        truth = torch.from_numpy(answer.codes)
        assert not bool((result.zeros[k] & (truth != 0)).any())
        assert not bool((result.support[k] & (truth == 0)).any())
        assert bool((result.signs[k] * truth >= 0).all())
        assert bool((result.signs[k] != 0).eq(result.support[k]).all())
        assert bool((truth >= result.lower[k] - TOL).all())
        assert bool((truth <= result.upper[k] + TOL).all())
        assert float((codes[k].double() - truth).norm()) <= float(result.distance[k]) + TOL


def test_nothing_is_ever_wrong_over_thousands_of_spheres() -> None:
    unique = exact = resolved = near = 0
    for seed in range(350):
        instance = draw(seed)
        result = posterior(certify(instance.problem, instance.signal, instance.codes))
        assert isinstance(result, Posterior)
        assert_never_wrong(result, instance.codes, instance.exact)
        found, places, zeros = stages(instance.problem, instance.signal, instance.codes)
        for k, answer in enumerate(instance.exact):
            if not answer.resolved:
                continue
            truth, theta = torch.from_numpy(answer.codes), torch.from_numpy(answer.residual)
            assert float((found.center[0][k] - theta).norm()) <= float(found.radius[k]) + 1e-14
            assert not bool((zeros[k] & (truth != 0)).any())
            assert bool(((truth - places.center[k]).abs() <= places.reach[k] + TOL).all())
            assert float((instance.codes[k] - truth).norm()) <= float(places.distance[k]) + TOL
            resolved += 1
            unique += bool(result.unique[k])
            exact += bool(result.polished.exact[k])
        if instance.exact[0].resolved:
            near += bool(result.polished.exact[6])
            assert float(found.radius[6]) < 1e-4
    assert resolved > 1500
    assert near == resolved // 8  # codes that are the minimizer are always recognized
    assert exact > 0.6 * resolved
    assert unique >= exact


def test_spheres_near_the_solution_need_their_rounding_terms() -> None:
    """Codes within rounding of x*: the sphere holds θ* of extended precision; without the terms it would not."""
    without = total = 0
    for seed in range(60):
        g = rng(seed)
        dictionary = draw_dense(seed, max_d=6)
        signal = normal(dictionary.channels, generator=g)
        lam = 0.3 * float((dictionary.matrix.detach().T @ signal).abs().max())
        matrix = dictionary.matrix.detach().numpy()
        answer = exact_lasso(matrix, signal.numpy(), np.full(matrix.shape[1], lam))
        if not answer.resolved:
            continue
        best, theta = torch.from_numpy(answer.codes), torch.from_numpy(answer.residual)
        scales = 10.0 ** torch.linspace(-17, -9, 50, dtype=F64)[:, None]
        codes = best + scales * normal(50, len(best), generator=g) * (best != 0)
        problem = dsc.Lasso(dictionary, lam)
        form = problem.exact_form(signal.expand(50, -1))
        rounding = Rounding.of(form)
        found = sphere(form, (codes,), rounding)
        assert bool(((found.center[0] - theta).norm(dim=1) <= found.radius).all())
        assert not bool((found.zeros[0] & (best != 0)).any())
        assert float(found.radius.max()) < 1e-3
        point = dual_point(form, (codes,))
        apart = (point.residual[0] - point.theta[0]).norm(dim=1)
        blind = (point.gap - 0.25 * apart**2).clamp_min(0).sqrt()
        middle = 0.5 * (point.residual[0] + point.theta[0])
        without += int(((middle - theta).norm(dim=1) > blind).sum())
        total += 50
    assert total > 2000
    assert without > 0


@settings(max_examples=40)
@given(seed=SEEDS)
def test_one_atom_attains_every_bound(seed: int) -> None:
    g = rng(seed)
    size = float(0.5 + torch.rand((), generator=g, dtype=F64))
    sign = 1.0 if seed % 2 else -1.0
    dictionary = dsc.DenseDictionary(torch.tensor([[1.0]], dtype=F64))
    lam = 0.1
    truth = sign * (size - lam)
    off = 0.2 * (float(torch.rand((), generator=g, dtype=F64)) - 0.5) + 1e-3
    codes = torch.tensor([[truth + off]], dtype=F64)
    found, places, _ = stages(dsc.Lasso(dictionary, lam), torch.tensor([[sign * size]], dtype=F64), codes)
    theta = sign * lam
    assert abs(float(found.center[0]) - theta) == pytest.approx(float(found.radius), rel=1e-6, abs=1e-7)
    if float(found.radius) < lam:  # else the sign is open and the atom may be zero
        assert float(places.distance) == pytest.approx(abs(off), rel=1e-6, abs=1e-7)


def test_orthonormal_atoms_attain_the_bound() -> None:
    for seed in range(60):
        dictionary, g = orthonormal(8, seed), rng(seed)
        clear = normal(8, generator=g).sign() * (0.5 + torch.rand(8, generator=g, dtype=F64))
        signal = dictionary.synthesize(clear).detach()
        truth = dsc.soft_threshold(clear, 0.3)
        for size in (1e-1, 1e-3, 1e-6):
            # The residual is a multiple of θ*: nothing is lost by scaling.
            offset = size * truth.sign() * (1.0 if seed % 2 else -1.0)
            found, places, zeros = stages(dsc.Lasso(dictionary, 0.3), signal[None], (truth + offset)[None])
            assert not bool(zeros.any())
            assert float(offset.norm()) <= float(places.distance[0]) + TOL
            if bool(places.unique[0]) and float(found.radius[0]) < 0.3:
                assert float(places.distance[0]) <= float(offset.norm()) * (1 + 1e-6) + 1e-6


def test_a_support_with_missing_or_idle_atoms_is_corrected() -> None:
    exact = total = 0
    for seed in range(60):
        dictionary = dsc.DenseDictionary.random(12, 20, seed=seed, dtype=F64)
        signal = normal(12, generator=rng(seed))
        answer = exact_lasso(dictionary.matrix.detach().numpy(), signal.numpy(), np.full(20, 0.4))
        if not answer.resolved or not answer.codes.any():
            continue
        used, idle = np.nonzero(answer.codes)[0], np.nonzero(answer.codes == 0)[0]
        codes = torch.from_numpy(answer.codes)[None].repeat(2, 1)
        codes[0, used[:1]] = 0.0
        codes[1, idle[:2]] = 0.1
        result = posterior(certify(dsc.Lasso(dictionary, 0.4), signal.expand(2, 12), codes))
        assert isinstance(result, Posterior)
        assert_never_wrong(result, codes, [answer] * 2)
        assert isinstance(result.polished.codes, Tensor)
        error = (result.polished.codes - torch.from_numpy(answer.codes)).norm(dim=1)
        assert bool((~result.polished.exact | (error <= result.polished.error + TOL)).all())
        exact += int(result.polished.exact.sum())
        total += 2
    assert total > 80
    assert exact > 0.8 * total


def test_far_codes_prove_nothing_and_say_why() -> None:
    dictionary = dsc.DenseDictionary.random(4, 12, seed=0, dtype=F64)
    signal = normal(2, 4, generator=rng(0))
    result = posterior(certify(dsc.Lasso(dictionary, 0.01), signal, torch.zeros(2, 12, dtype=F64)))
    assert isinstance(result, Posterior)
    assert not bool(result.unique.any())
    assert not bool(result.polish().exact.any())
    assert bool(torch.isinf(result.distance).all())
    assert "more than 4 rows" in result.reasons[0]
    assert "sample 1 not proved unique" in str(result)
    assert "false" not in str(result).lower()


@settings(max_examples=30)
@given(seed=SEEDS)
def test_a_doubled_atom_that_is_used_is_never_called_unique(seed: int) -> None:
    with pytest.warns(DSCWarning, match="same up to scale"):
        dictionary = dsc.DenseDictionary(duplicate_matrix(6, 8, seed))
    signal = 2 * dictionary.matrix.detach()[:, 0] + 0.01 * normal(6, generator=rng(seed))
    matrix = dictionary.matrix.detach().numpy()
    lam = 0.2
    answer = exact_lasso(matrix[:, :-1], signal.numpy(), np.full(7, lam)).codes
    assert answer[0] != 0
    codes = np.stack(
        [np.r_[answer, 0.0], np.r_[0.0, answer[1:], answer[0]], np.r_[answer[0] / 2, answer[1:], answer[0] / 2]]
    )
    result = posterior(certify(dsc.Lasso(dictionary, lam), signal.expand(3, 6), torch.from_numpy(codes)))
    assert isinstance(result, Posterior)
    assert not bool(result.unique.any())
    assert not bool(result.polished.exact.any())
    assert all("not proved linearly independent" in reason or "more than" in reason for reason in result.reasons)
    assert not bool(result.support[:, [0, 7]].any())  # type: ignore[index]


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-6, 1e-8])
def test_nearly_parallel_atoms(angle: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DSCWarning)  # the smallest angle counts as a duplicate
        dictionary = nearly_parallel(6, 8, 3, angle)
    signal = 2 * dictionary.matrix.detach()[:, 0] + 0.05 * normal(6, generator=rng(0))
    answer = exact_lasso(dictionary.matrix.detach().numpy(), signal.numpy(), np.full(8, 0.2))
    result = posterior(certify(dsc.Lasso(dictionary, 0.2), signal, torch.from_numpy(answer.codes)))
    assert isinstance(result, Posterior)
    assert isinstance(result.zeros, Tensor)
    if bool(result.unique):
        singular = np.linalg.svd(dictionary.matrix.detach().numpy()[:, ~result.zeros.numpy()], compute_uv=False)[-1]
        assert float(result.smallest_singular) <= singular * (1 + 1e-9)
    if angle == 1e-8:
        assert not (bool(result.unique) and not bool(result.zeros[:2].any()))


@settings(max_examples=25)
@given(seed=SEEDS)
def test_float32_codes_of_a_float32_problem(seed: int) -> None:
    instance = draw(seed, dtype=torch.float32)
    result = posterior(certify(instance.problem, instance.signal, instance.codes))
    assert isinstance(result, Posterior)
    assert_never_wrong(result, instance.codes, instance.exact)
    if instance.exact[0].resolved:
        assert bool(result.polished.exact[6])
        assert result.polished.codes.dtype == F64  # type: ignore[union-attr]
        assert float(result.polished.error[6]) < 1e-9


@settings(max_examples=25)
@given(seed=SEEDS)
def test_joint_problem_is_the_stacked_lasso(seed: int) -> None:
    g = rng(seed)
    d, m, n = randint(3, 5, g), randint(3, 6, g), randint(2, 5, g)
    cascade = dsc.Cascade(
        [
            dsc.DenseDictionary(normal(d, m, generator=g), normalize=True),
            dsc.DenseDictionary(normal(m, n, generator=g), normalize=True),
        ]
    )
    beta, lam = (1.0, 0.3 + 3 * float(torch.rand((), generator=g))), (0.15, 0.1)
    nonnegative = seed % 3 == 0
    problem = dsc.JointLasso(cascade, lam, beta=beta, nonnegative=nonnegative)
    signal = normal(d, generator=g)
    matrix, widths = joint_matrix(cascade, (), beta)
    data = np.r_[math.sqrt(beta[0]) * signal.numpy(), np.zeros(m)]
    weights = np.r_[np.full(m, lam[0]), np.full(n, lam[1])]
    answer = exact_lasso(matrix.numpy(), data, weights, nonnegative)
    best = torch.from_numpy(answer.codes)
    rows = torch.stack([best + scale * normal(m + n, generator=g) for scale in (0.0, 1e-8, 1e-4, 1e-2, 1.0)])
    rows = rows.clamp_min(0) if nonnegative else rows
    result = posterior(certify(problem, signal.expand(5, d), rows.split(widths, 1)))
    assert isinstance(result, Posterior)
    names = ("zeros", "support", "signs", "lower", "upper")
    joined = replace(result, **{name: torch.cat(list(getattr(result, name)), 1) for name in names})
    assert_never_wrong(joined, rows, [answer] * 5)
    if answer.resolved:
        assert bool(result.polished.exact[0])


@settings(max_examples=30)
@given(seed=SEEDS)
def test_convolution_equals_its_matrix(seed: int) -> None:
    g = rng(seed)
    boundary = "circular" if seed % 2 else "valid"
    kernels = normal(2, 1 + seed % 2, 3, generator=g)
    dictionary = dsc.ConvDictionary(kernels, stride=1 + seed % 3, boundary=boundary, normalize=True)
    positions = 5
    shape = dictionary.signal_shape((positions,))
    mask = (torch.rand(shape, generator=g) < 0.85) if seed % 5 == 0 else None
    signal = normal(*shape, generator=g)
    problem = dsc.Lasso(dictionary, 0.2, nonnegative=seed % 7 == 0, mask=mask)
    matrix = explicit_matrix(dictionary, (positions,)).numpy()
    observed = signal.flatten().numpy()
    if mask is not None:
        matrix, observed = mask.flatten().numpy()[:, None] * matrix, mask.flatten().numpy() * observed
    answer = exact_lasso(matrix, observed, np.full(matrix.shape[1], 0.2), problem.nonnegative)
    best = torch.from_numpy(answer.codes)
    rows = torch.stack([best + scale * normal(len(best), generator=g) for scale in (0.0, 1e-7, 1e-3, 0.5)])
    rows = rows.clamp_min(0) if problem.nonnegative else rows
    codes = rows.reshape(4, 2, positions)
    result = posterior(certify(problem, signal.expand(4, *shape), codes))
    assert isinstance(result, Posterior)
    names = ("zeros", "support", "signs", "lower", "upper")
    flat = replace(result, **{name: getattr(result, name).flatten(1) for name in names})
    assert_never_wrong(flat, rows, [answer] * 4)
    if answer.resolved:
        assert bool(result.polished.exact[0])
    # The stages alone, too.
    found, places, zeros = stages(problem, signal.expand(4, *shape), codes)
    if answer.resolved:
        assert bool(((best - places.center).abs() <= places.reach + TOL).all())
        assert not bool((zeros & (best != 0)).any())
    del found
