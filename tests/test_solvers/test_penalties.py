"""Solutions with bounds, a ridge or groups: against independent references, under changes, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess
from operators import Operator, each_operator
from references import explicit_matrix, kkt_violation, lasso_objective, orthonormal_lasso, sklearn_lasso
from references_penalties import (
    box_violation,
    group_objective,
    group_violation,
    orthonormal_groups,
    scipy_box_lasso,
    sklearn_elastic_net,
)
from strategies import SEEDS, draw_dense, normal, orthonormal, randint, rng

KIND = {"dtype": torch.float64}
each_proximal = pytest.mark.parametrize("solver", [dsc.FISTA(), dsc.ISTA()], ids=["FISTA", "ISTA"])
PAIRS = [[0, 3], [1], [2, 4, 5]]
# Draws may put lam above lam_max; that is then part of what is tested.
pytestmark = pytest.mark.filterwarnings("ignore:lam is at or above lam_max")


def draw_bounds(atoms: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return bounds per atom, a fifth each zero and infinite."""
    bounds = 0.4 * torch.rand(2, atoms, generator=generator, **KIND)
    kinds = torch.randint(0, 5, (2, atoms), generator=generator)
    bounds = torch.where(kinds == 0, 0.0, torch.where(kinds == 1, math.inf, bounds))
    return -bounds[0], bounds[1]


def draw_groups(atoms: int, generator: torch.Generator) -> list[list[int]]:
    """Return the atoms in random groups of one to four."""
    order = torch.randperm(atoms, generator=generator).tolist()
    groups = []
    while order:
        size = randint(1, 4, generator)
        groups.append(order[:size])
        order = order[size:]
    return groups


def entries_of(groups: Sequence[Sequence[int]], places: int) -> list[list[int]]:
    """Return the flat entries of groups of atoms, place by place."""
    return [[atom * places + place for atom in group] for group in groups for place in range(places)]


# ---------------------------------------------------------------------- bounds


@each_proximal
@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_bounds_against_bounded_least_squares(solver: dsc.Solver, seed: int) -> None:
    dictionary, g = draw_dense(seed), rng(seed)
    signal = 2 * normal(2, dictionary.channels, generator=g)
    matrix, bounds = dictionary.matrix.detach(), draw_bounds(dictionary.atoms, g)
    weights = torch.rand(dictionary.atoms, generator=g, **KIND) + 0.2
    lam = 0.2 * float(dsc.Lasso(dictionary, 1.0).lam_max(signal).min())
    problem = dsc.Lasso(dictionary, lam, weights, box=bounds)
    solution = dsc.solve(problem, signal, solver, tol=1e-9, max_steps=4000, on_failure="ignore")
    found = solution.certificate
    rows = zip(signal, solution.codes, found.objective, found.gap, solution.converged, strict=True)
    for y, x, objective, gap, done in rows:
        assert bool(((x >= bounds[0]) & (x <= bounds[1])).all())
        best = scipy_box_lasso(matrix, y, lam * weights, *bounds)
        want = lasso_objective(matrix, y, best, lam * weights)
        assert float(objective) == pytest.approx(lasso_objective(matrix, y, x, lam * weights), rel=1e-12)
        assert float(objective) - want <= float(gap) + 1e-8 * want
        if bool(done):
            assert float(objective) <= want * (1 + 2e-9)
            assert box_violation(matrix, y, x, lam * weights, *bounds) < 1e-3


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_bounds_of_orthonormal_atoms_have_a_closed_form(lam: float) -> None:
    dictionary, signal = orthonormal(7, 3), 2 * normal(4, 7, generator=rng(1))
    solution = dsc.solve(dsc.Lasso(dictionary, lam, box=(-0.5, 0.2)), signal, tol=1e-13)
    for y, x in zip(signal, solution.unwrap(), strict=True):
        want = orthonormal_lasso(dictionary.matrix.detach(), y, lam).clamp(-0.5, 0.2)
        assert float((x - want).abs().max()) < 1e-7


@each_operator()
def test_bounds_on_every_operator(operator: Operator) -> None:
    dictionary, g = operator.build(), rng(7)
    signal = normal(2, *dictionary.signal_shape(operator.size), generator=g)
    mask = torch.rand(signal.shape, generator=g, **KIND) < 0.8
    matrix = explicit_matrix(dictionary, operator.size)
    lower, upper = draw_bounds(dictionary.atoms, g)
    lam = 0.1 * float(dictionary.analyze(signal).abs().max())
    problem = dsc.Lasso(dictionary, lam, mask=mask, box=(lower, upper))
    solution = dsc.solve(problem, signal, tol=1e-10, max_steps=50_000)
    places = math.prod(operator.size)
    bounds = (lower.repeat_interleave(places), upper.repeat_interleave(places))
    for i in range(2):
        m = mask[i].double().flatten()
        args = (m[:, None] * matrix, m * signal[i].flatten())
        assert box_violation(*args, solution.codes[i], lam, *bounds) < 2e-4  # type: ignore[arg-type]


def test_unpenalized_atoms_within_bounds() -> None:
    """With finite bounds on both sides nothing is asked of the dual point, so that convolutions are certified too."""
    conv = dsc.ConvDictionary.random(atoms=3, channels=1, size=(3,), seed=0, **KIND)
    signal = normal(2, 1, 9, generator=rng(0))
    matrix = explicit_matrix(conv, (7,))
    solution = dsc.solve(dsc.Lasso(conv, 0.0, box=(-0.2, 0.3)), signal, tol=1e-11)
    for y, x in zip(signal, solution.unwrap(), strict=True):
        assert box_violation(matrix, y, x, 0.0, -0.2, 0.3) < 1e-4
    dense = dsc.DenseDictionary.random(8, 6, seed=3, **KIND)
    weights = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0], **KIND)
    lower = torch.tensor([-math.inf, -0.1, 0.0, -0.1, -math.inf, 0.0], **KIND)
    upper = torch.tensor([math.inf, math.inf, math.inf, 0.2, 0.1, math.inf], **KIND)
    signal = normal(6, 8, generator=rng(1))
    solution = dsc.solve(dsc.Lasso(dense, 0.1, weights, box=(lower, upper)), signal, tol=1e-11)
    for y, x in zip(signal, solution.unwrap(), strict=True):
        assert box_violation(dense.matrix.detach(), y, x, 0.1 * weights, lower, upper) < 1e-4


# ---------------------------------------------------------------------- the ridge


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(
    "solver", [dsc.FISTA(), dsc.ISTA(), dsc.CoordinateDescent(), dsc.Homotopy()], ids=lambda solver: solver.name
)
def test_the_elastic_net_is_that_of_scikit_learn(solver: dsc.Solver, nonnegative: bool) -> None:
    dictionary = dsc.DenseDictionary.random(10, 16, seed=2, **KIND)
    signal = normal(4, 10, generator=rng(4))
    problem = dsc.Lasso(dictionary, 0.15, nonnegative=nonnegative, ridge=0.4)
    solution = dsc.solve(problem, signal, solver, tol=1e-12, max_steps=50_000)
    for y, x, objective in zip(signal, solution.unwrap(), solution.certificate.objective, strict=True):
        best = sklearn_elastic_net(dictionary.matrix.detach(), y, 0.15, 0.4, nonnegative=nonnegative)
        assert float((x - best).abs().max()) < 1e-5
        want = lasso_objective(dictionary.matrix.detach(), y, best, 0.15) + 0.2 * float(best.square().sum())
        assert float(objective) == pytest.approx(want, rel=1e-10)


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_ridge_is_more_rows(seed: int) -> None:
    dictionary, g = draw_dense(seed), rng(seed)
    signal = normal(3, dictionary.channels, generator=g)
    ridge = 10.0 ** randint(-3, 1, g)
    more = {"nonnegative": bool(randint(0, 1, g))}
    stacked = torch.cat([dictionary.matrix.detach(), math.sqrt(ridge) * torch.eye(dictionary.atoms, **KIND)])
    longer = torch.cat([signal, torch.zeros(3, dictionary.atoms, **KIND)], 1)
    first = dsc.solve(dsc.Lasso(dictionary, 0.1, ridge=ridge, **more), signal, tol=1e-11)
    second = dsc.solve(dsc.Lasso(dsc.DenseDictionary(stacked), 0.1, **more), longer, tol=1e-11)
    assert torch.allclose(first.certificate.objective, second.certificate.objective, rtol=1e-10)
    assert torch.allclose(first.codes, second.codes, atol=1e-4)  # type: ignore[arg-type]
    proofs = [dsc.prove.posterior(solution) for solution in (first, second)]
    assert all(isinstance(proof, dsc.prove.Posterior) and bool(proof.unique.all()) for proof in proofs)
    for name in ("zeros", "signs"):
        assert torch.equal(*(getattr(proof, name) for proof in proofs))


def test_a_ridge_on_images_with_everything_else() -> None:
    conv = dsc.ConvDictionary.random(atoms=3, channels=2, size=3, stride=2, seed=1, **KIND)
    signal = normal(2, 2, 9, 9, generator=rng(0))
    matrix = explicit_matrix(conv, (4, 4))
    mask = (torch.rand(signal.shape, generator=rng(1), **KIND) < 0.8).double()
    lam = torch.tensor([0.2, 0.3], **KIND)
    solution = dsc.solve(dsc.Lasso(conv, lam, mask=mask, ridge=0.3), signal, tol=1e-11)
    assert solution.solver == "FISTA"
    for i in range(2):
        m = mask[i].flatten()
        rows = torch.cat([m[:, None] * matrix, math.sqrt(0.3) * torch.eye(48, **KIND)])
        data = torch.cat([m * signal[i].flatten(), torch.zeros(48, **KIND)])
        assert kkt_violation(rows, data, solution.codes[i], float(lam[i])) < 1e-4  # type: ignore[arg-type]
    exact = dsc.prove.posterior(solution)
    assert isinstance(exact, dsc.prove.Posterior)
    assert bool(exact.polish().exact.all())
    assert float((exact.polish().codes - solution.codes).abs().max()) < 1e-4  # type: ignore[operator]


@pytest.mark.parametrize("solver", [dsc.FISTA(), dsc.CoordinateDescent()], ids=lambda solver: solver.name)
def test_without_lam_a_ridge_is_a_linear_system(solver: dsc.Solver) -> None:
    dictionary = dsc.DenseDictionary.random(6, 10, seed=0, **KIND)
    signal, matrix = normal(3, 6, generator=rng(0)), dictionary.matrix.detach()
    want = torch.linalg.solve(matrix.T @ matrix + 0.2 * torch.eye(10, **KIND), matrix.T @ signal.T).T
    solution = dsc.solve(dsc.Lasso(dictionary, 0.0, ridge=0.2), signal, solver, tol=1e-12)
    assert torch.allclose(solution.unwrap(), want, atol=1e-6)  # type: ignore[arg-type]
    weights = torch.tensor([0.0] * 4 + [1.0] * 6, **KIND)
    partly = dsc.solve(dsc.Lasso(dictionary, 0.1, weights, ridge=0.2), signal, solver, tol=1e-12)
    proof = dsc.prove.posterior(partly)
    assert isinstance(proof, dsc.prove.Posterior)
    assert bool(proof.polish().exact.all())


# ---------------------------------------------------------------------- groups


@each_proximal
@pytest.mark.parametrize("nonnegative", [False, True])
@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_groups_meet_their_conditions(solver: dsc.Solver, nonnegative: bool, seed: int) -> None:
    dictionary, g = draw_dense(seed, "tall"), rng(seed)
    signal, groups = normal(2, dictionary.channels, generator=g), draw_groups(dictionary.atoms, g)
    lam = 0.3 * float(dsc.Lasso(dictionary, 1.0, groups=groups).lam_max(signal).min())
    problem = dsc.Lasso(dictionary, lam, nonnegative=nonnegative, groups=groups)
    solution = dsc.solve(problem, signal, solver, tol=1e-11, max_steps=20_000, on_failure="ignore")
    matrix = dictionary.matrix.detach()
    for i in range(2):
        value = group_objective(matrix, signal[i], solution.codes[i], lam, groups)
        assert float(solution.certificate.objective[i]) == pytest.approx(value, rel=1e-12)
        if bool(solution.converged[i]):
            violation = group_violation(matrix, signal[i], solution.codes[i], lam, groups, nonnegative=nonnegative)
            assert violation < 1e-4


@pytest.mark.parametrize("nonnegative", [False, True])
def test_groups_of_orthonormal_atoms_have_a_closed_form(nonnegative: bool) -> None:
    dictionary, signal = orthonormal(6, 4), normal(5, 6, generator=rng(2))
    problem = dsc.Lasso(dictionary, 0.7, nonnegative=nonnegative, groups=PAIRS)
    solution = dsc.solve(problem, signal, tol=1e-13)
    for y, x in zip(signal, solution.unwrap(), strict=True):
        want = orthonormal_groups(dictionary.matrix.detach(), y, 0.7, PAIRS, nonnegative=nonnegative)
        assert float((x - want).abs().max()) < 1e-7
        assert torch.equal(x == 0, want == 0)


@each_operator(kind=dsc.ConvDictionary)
def test_channels_vanish_together_at_every_place(operator: Operator) -> None:
    dictionary, g = operator.build(), rng(5)
    signal = normal(1, *dictionary.signal_shape(operator.size), generator=g)
    matrix, places = explicit_matrix(dictionary, operator.size), math.prod(operator.size)
    lam = 0.4 * float(dsc.Lasso(dictionary, 1.0, groups="channels").lam_max(signal))
    for groups in ("channels", draw_groups(dictionary.atoms, g)):
        solution = dsc.solve(dsc.Lasso(dictionary, lam, groups=groups), signal, tol=1e-11, max_steps=50_000)
        lists = [list(range(dictionary.atoms))] if groups == "channels" else groups
        entries = entries_of(lists, places)  # type: ignore[arg-type]
        assert group_violation(matrix, signal[0], solution.unwrap()[0], lam, entries) < 1e-4 * max(lam, 1.0)
        used = (solution.unwrap()[0] != 0).flatten(1)  # type: ignore[union-attr]
        assert all(bool((used[list(group)] == used[group[0]]).all()) for group in lists)


def test_unpenalized_and_forbidden_groups() -> None:
    dictionary = dsc.DenseDictionary.random(9, 6, seed=1, **KIND)
    signal = normal(4, 9, generator=rng(3))
    weights = torch.tensor([0.0, 1.0, math.inf, 0.0, math.inf, math.inf], **KIND)
    codes = dsc.solve(dsc.Lasso(dictionary, 0.3, weights, groups=PAIRS), signal, tol=1e-11).unwrap()
    assert isinstance(codes, Tensor)
    assert float(codes[:, [2, 4, 5]].abs().max()) == 0.0
    correlation = (signal - dictionary.synthesize(codes)) @ dictionary.matrix
    assert float(correlation[:, [0, 3]].abs().max()) < 1e-5
    assert bool(((correlation[:, 1] - 0.3 * codes[:, 1].sign()).abs() < 1e-5)[codes[:, 1] != 0].all())


# ---------------------------------------------------------------------- changes that the answer must follow


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_a_flipped_signal_swaps_the_bounds(seed: int) -> None:
    dictionary, g = draw_dense(seed), rng(seed)
    signal, (lower, upper) = normal(2, dictionary.channels, generator=g), draw_bounds(dictionary.atoms, g)
    sign = 2.0 * torch.randint(0, 2, (dictionary.atoms,), generator=g) - 1
    one = dsc.solve(dsc.Lasso(dictionary, 0.2, box=(lower, upper)), signal, tol=1e-10, on_failure="ignore")
    two = dsc.solve(dsc.Lasso(dictionary, 0.2, box=(-upper, -lower)), -signal, tol=1e-10, on_failure="ignore")
    assert torch.allclose(one.codes, -two.codes, atol=1e-9)  # type: ignore[operator,arg-type]
    flipped = dsc.DenseDictionary(sign * dictionary.matrix.detach())
    bounds = (torch.where(sign > 0, lower, -upper), torch.where(sign > 0, upper, -lower))
    three = dsc.solve(dsc.Lasso(flipped, 0.2, box=bounds), signal, tol=1e-10, on_failure="ignore")
    room = torch.maximum(one.certificate.gap, three.certificate.gap) + 1e-12
    assert bool(((one.certificate.objective - three.certificate.objective).abs() <= room).all())


@given(seed=SEEDS)
@settings(max_examples=15, deadline=None)
def test_what_is_the_lasso_in_disguise(seed: int) -> None:
    """One group per atom, bounds beyond reach, none at all: the same objective up to what is left to prove."""
    dictionary, g = draw_dense(seed), rng(seed)
    signal, nonnegative = normal(3, dictionary.channels, generator=g), bool(randint(0, 1, g))
    plain = dsc.solve(dsc.Lasso(dictionary, 0.2, nonnegative=nonnegative), signal, tol=1e-9)
    far = 1e3 * torch.rand(dictionary.atoms, generator=g, **KIND) + 1e3
    for more in (
        {"groups": [[i] for i in torch.randperm(dictionary.atoms, generator=g).tolist()]},
        {"box": (-far, math.inf)},
        {"box": (-math.inf, far)},
        {"box": (-far, far)},
        {"box": (-math.inf, math.inf)},
        {"box": (-math.inf, math.inf), "ridge": 0.0},
    ):
        problem = dsc.Lasso(dictionary, 0.2, nonnegative=nonnegative, **more)
        solution = dsc.solve(problem, signal, tol=1e-9, max_steps=50_000, on_failure="ignore")
        difference = (solution.certificate.objective - plain.certificate.objective).abs()
        room = torch.maximum(solution.certificate.gap, plain.certificate.gap)
        assert bool((difference <= room + 1e-12).all()), more
        again = assess(problem, signal, plain.codes)
        assert bool((again.relative_gap <= 1e-8).all())


def test_permuted_atoms_and_scaled_problems() -> None:
    dictionary = dsc.DenseDictionary.random(9, 6, seed=1, **KIND)
    signal = normal(4, 9, generator=rng(3))
    base = dsc.solve(dsc.Lasso(dictionary, 0.3, groups=PAIRS), signal, tol=1e-11)
    order = torch.randperm(6, generator=rng(4))
    place = {int(atom): i for i, atom in enumerate(order)}
    permuted = dsc.DenseDictionary(dictionary.matrix.detach()[:, order])
    groups = [[place[atom] for atom in reversed(group)] for group in reversed(PAIRS)]
    other = dsc.solve(dsc.Lasso(permuted, 0.3, groups=groups), signal, tol=1e-11)
    assert torch.allclose(other.codes, base.codes[:, order], atol=1e-6)  # type: ignore[index,arg-type]
    for scale in (1e-8, 1e8):
        bounds = (-0.1 * scale, 0.2 * scale)
        small = dsc.solve(dsc.Lasso(dictionary, 0.3, box=(-0.1, 0.2)), signal, tol=1e-11)
        scaled = dsc.solve(dsc.Lasso(dictionary, 0.3 * scale, box=bounds), scale * signal, tol=1e-11)
        assert torch.allclose(scaled.codes / scale, small.codes, atol=1e-8)  # type: ignore[operator,arg-type]
        grown = dsc.solve(dsc.Lasso(dictionary, 0.3 * scale, groups=PAIRS), scale * signal, tol=1e-11)
        assert torch.allclose(grown.codes / scale, base.codes, atol=1e-6)  # type: ignore[operator,arg-type]


# ---------------------------------------------------------------------- a larger one


def test_an_independent_solver_agrees_on_a_problem_of_some_size() -> None:
    dictionary = dsc.DenseDictionary.random(30, 60, seed=0, **KIND)
    signal = normal(2, 30, generator=rng(0))
    wide = dsc.solve(dsc.Lasso(dictionary, 0.3, box=(-0.2, 0.2)), signal, tol=1e-10)
    for y, x in zip(signal, wide.unwrap(), strict=True):
        assert int((x.abs() == 0.2).sum()) > 1
        assert box_violation(dictionary.matrix.detach(), y, x, 0.3, -0.2, 0.2) < 1e-4
    loose = dsc.solve(dsc.Lasso(dictionary, 0.3, box=(-50.0, 50.0)), signal, tol=1e-10, max_steps=50_000)
    for y, x in zip(signal, loose.unwrap(), strict=True):
        assert float((x - sklearn_lasso(dictionary.matrix.detach(), y, 0.3)).abs().max()) < 1e-3
