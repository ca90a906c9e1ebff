"""Bounds, ridge and groups: what settings mean and which are refused, objectives, lam_max, certificates, steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess, dual_point
from deep_sparse_coding.problems.base import penalty
from deep_sparse_coding.problems.groups import Groups
from deep_sparse_coding.problems.penalties import L1, Box, Penalty
from operators import Operator, each_operator
from references import explicit_matrix, lasso_objective
from references_penalties import group_objective, projected_prox
from strategies import SEEDS, draw_dense, draw_dictionary, draw_signal, normal, orthonormal, randint, rng

KIND = {"dtype": torch.float64}
DENSE = dsc.DenseDictionary.random(4, 6, seed=0, **KIND)
CONV = dsc.ConvDictionary.random(atoms=3, channels=1, size=3, seed=0, **KIND)
SIGNAL = normal(2, 4, generator=rng(0))
PAIRS = [[0, 1], [2, 3], [4, 5]]


def draw_partition(atoms: int, generator: torch.Generator) -> list[list[int]]:
    """Return the atoms in random groups of one to four."""
    order, groups = torch.randperm(atoms, generator=generator).tolist(), []
    while order:
        size = randint(1, 4, generator)
        groups.append(sorted(order[:size]))
        order = order[size:]
    return groups


def draw_bounds(atoms: int, generator: torch.Generator, scale: float = 0.3) -> tuple[Tensor, Tensor]:
    """Return bounds per atom, some zero and some infinite."""
    bounds = scale * torch.rand(2, atoms, generator=generator, **KIND)
    kinds = torch.randint(0, 5, (2, atoms), generator=generator)
    bounds = torch.where(kinds == 0, 0.0, torch.where(kinds == 1, math.inf, bounds))
    return -bounds[0], bounds[1]


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"box": 1.0}, dsc.ParameterError, r"box is a float; expected a pair \(lower, upper\)"),
        ({"box": (0.0,)}, dsc.ParameterError, r"box has 1 entries; expected a pair \(lower, upper\)"),
        ({"box": torch.ones(2)}, dsc.ParameterError, r"box is a (Tensor|Parameter); expected a pair"),
        ({"box": (0.1, 1.0)}, dsc.ParameterError, r"box\[0\] is 0.1; expected a number at most 0"),
        ({"box": (-1.0, -0.5)}, dsc.ParameterError, r"box\[1\] is -0.5; expected a number at least 0"),
        ({"box": (math.nan, 1.0)}, dsc.ParameterError, r"box\[0\] is nan; expected a number at most 0"),
        ({"box": (-1.0, "1")}, dsc.ParameterError, r"box\[1\] is '1'; expected a number"),
        (
            {"box": (-torch.ones(6), torch.tensor([1.0, -2.0, math.nan, 1.0, 1.0, 1.0]))},
            dsc.ParameterError,
            r"box\[1\] has 2 entries that are negative or NaN, the first at \(1,\): -2.0.*zero codes must be allowed",
        ),
        ({"box": (torch.ones(6), 1.0)}, dsc.ParameterError, r"box\[0\] has 6 entries that are positive or NaN"),
        ({"box": (torch.zeros(6).half(), 1.0)}, dsc.DtypeError, r"box\[0\] has dtype torch.float16"),
        ({"ridge": -0.1}, dsc.ParameterError, "ridge is -0.1; expected a finite number at least 0"),
        ({"ridge": math.inf}, dsc.ParameterError, "ridge is inf; expected a finite number at least 0"),
        ({"ridge": None}, dsc.ParameterError, "ridge is None; expected a number"),
        ({"groups": "channels"}, dsc.ParameterError, "a dense dictionary has no places; expected a partition"),
        ({"groups": "atoms"}, dsc.ParameterError, "groups is 'atoms'; expected 'channels' or a partition"),
        ({"groups": 3}, dsc.ParameterError, "groups is 3; expected 'channels' or a partition"),
        ({"groups": [0, 1]}, dsc.ParameterError, r"groups\[0\] is 0; expected a list of atoms"),
        ({"groups": [[0, 1.5]]}, dsc.ParameterError, r"groups\[0\]\[1\] is 1.5; expected a whole number"),
        ({"groups": [[0, 1], []]}, dsc.ParameterError, r"groups\[1\] is empty"),
        ({"groups": [[0, 1, 2], [2, 3, 4, 5]]}, dsc.ParameterError, "name atoms more than once: 2; expected every"),
        ({"groups": [[0, 1, 6], [2, 3, 4, 5]]}, dsc.ParameterError, r"do not exist \(there are 6\): 6"),
        ({"groups": [[0, 1], [2, 3]]}, dsc.ParameterError, "groups leave out atoms: 4, 5; expected every atom in"),
        (
            {"groups": PAIRS, "box": (-1.0, 1.0)},
            dsc.UnsupportedError,
            "groups and box are given together.*held at or above zero by nonnegative=True",
        ),
        (
            {"groups": PAIRS, "box": (torch.tensor([0.0, 0.0, -math.inf, 0.0, 0.0, 0.0]), math.inf)},
            dsc.UnsupportedError,
            "groups and box are given together",
        ),
    ],
)
def test_settings_out_of_range_are_refused(more: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dsc.Lasso(DENSE, 0.1, **more)


def test_what_does_not_fit_is_refused_on_use() -> None:
    with pytest.raises(dsc.ShapeError, match=r"box\[1\] has shape \(5,\); expected \(6,\) \(one per atom\)"):
        dsc.solve(dsc.Lasso(DENSE, 0.1, box=(0.0, torch.ones(5))), SIGNAL)
    lam = torch.tensor([0.1, 0.1, 0.1, 0.2, 0.1, 0.1], **KIND)
    with pytest.raises(dsc.ParameterError, match=r"lam or weights differ within groups\[1\] \(atoms 2, 3\)"):
        dsc.solve(dsc.Lasso(DENSE, lam, groups=PAIRS), SIGNAL)
    with pytest.raises(dsc.ParameterError, match=r"differ within groups\[0\] \(atoms 0, 1, 2\); expected one weight"):
        dsc.solve(dsc.Lasso(CONV, 0.1, torch.tensor([1.0, 1.0, 2.0]), groups="channels"), torch.zeros(1, 6, 6, **KIND))
    with pytest.raises(dsc.UnsupportedError, match="zeros with a convolutional dictionary"):
        dsc.solve(dsc.Lasso(CONV, 0.0, box=(-1.0, math.inf)), torch.zeros(1, 6, 6, **KIND))


def test_bounds_that_are_no_bounds_leave_the_plain_form() -> None:
    """Kernels for the plain Lasso take them, as they take what is the same as non-negative codes."""
    infinite = torch.full((6,), math.inf, **KIND)
    for box in ((-math.inf, math.inf), (-infinite, math.inf), (-infinite, infinite)):
        form = dsc.Lasso(DENSE, 0.1, box=box).form(SIGNAL)
        assert (form.nonnegative, form.structure, form.beyond) == (False, None, "")
    for more in ({"box": (0, math.inf)}, {"box": (-infinite, infinite), "nonnegative": True}, {"nonnegative": True}):
        form = dsc.Lasso(DENSE, 0.1, **more).form(SIGNAL)
        assert (form.nonnegative, form.structure) == (True, None)
    both = dsc.Lasso(DENSE, 0.1, nonnegative=True, box=(-1.0, 2.0)).form(SIGNAL)
    assert isinstance(both.structure, Box)
    assert not both.nonnegative
    assert both.beyond == "box constraints"
    assert (float(both.structure.lower[0]), float(both.structure.upper[0])) == (0.0, 2.0)
    grouped = dsc.Lasso(DENSE, 0.1, groups=PAIRS, box=(0.0, math.inf)).form(SIGNAL)
    assert isinstance(grouped.structure, Groups)
    assert grouped.structure.nonnegative
    assert grouped.beyond == "groups"


def test_bounds_are_rounded_toward_zero_in_float32() -> None:
    """Codes in float32 can stand at a bound only if it is a float32 number, and must not exceed what was asked."""
    single = DENSE.cast(torch.float32)
    problem = dsc.Lasso(single, 0.01, box=(-0.1, torch.full((6,), 0.1, **KIND)))
    assert problem.box is not None
    lower, upper = problem.box
    assert isinstance(upper, Tensor)
    assert -0.1 <= float(lower) < -0.1 + 1e-8
    assert 0.1 - 1e-8 < float(upper[0]) <= 0.1
    solution = dsc.solve(problem, 10 * SIGNAL.float(), tol=1e-5)
    assert bool(solution.converged.all())
    assert float(solution.codes.max()) == float(upper[0])  # type: ignore[union-attr]
    again = dsc.Lasso(single, 0.01, box=problem.box)
    assert torch.equal(again.box[1], upper)  # type: ignore[index,arg-type]


# ---------------------------------------------------------------------- objectives


@each_operator()
def test_objectives_are_those_of_the_explicit_matrix(operator: Operator) -> None:
    dictionary, generator = operator.build(), rng(1)
    shape = dictionary.signal_shape(operator.size)
    codes = normal(2, *dictionary.code_shape(shape[1:]), generator=generator)
    signal = normal(2, *shape, generator=generator)
    matrix = explicit_matrix(dictionary, operator.size)
    groups = draw_partition(dictionary.atoms, generator)
    places = math.prod(codes.shape[2:])
    entries = [[atom * places + place for atom in group] for group in groups for place in range(places)]
    grouped = dsc.Lasso(dictionary, 0.3, groups=groups).objective(codes, signal)
    ridge = dsc.Lasso(dictionary, 0.3, ridge=0.7).objective(codes, signal)
    inside = dsc.Lasso(dictionary, 0.3, box=(-10.0, 10.0)).objective(codes, signal)
    for i in range(2):
        assert float(grouped[i]) == pytest.approx(group_objective(matrix, signal[i], codes[i], 0.3, entries), rel=1e-12)
        plain = lasso_objective(matrix, signal[i].flatten(), codes[i], 0.3)
        assert float(inside[i]) == pytest.approx(plain, rel=1e-12)
        assert float(ridge[i]) == pytest.approx(plain + 0.35 * float(codes[i].square().sum()), rel=1e-12)


def test_what_is_not_allowed_costs_everything() -> None:
    codes = torch.tensor([[0.5, -0.5, 0.0, 0.0, 0.0, 0.0]], **KIND)
    for more in ({"box": (-0.4, 1.0)}, {"box": (-1.0, 0.4)}, {"groups": PAIRS, "nonnegative": True}):
        certificate = assess(dsc.Lasso(DENSE, 0.1, **more), SIGNAL[:1], codes)
        assert math.isinf(float(certificate.objective))
        assert math.isinf(float(certificate.gap))
    weights = torch.tensor([1.0, 1.0, math.inf, math.inf, 0.0, 0.0], **KIND)
    for more in ({"box": (-1.0, 1.0)}, {"groups": PAIRS}):
        problem = dsc.Lasso(DENSE, 0.1, weights, **more)
        assert bool(torch.isfinite(problem.objective(codes, SIGNAL[:1])).all())
        assert bool(torch.isinf(problem.objective(codes.roll(2, 1), SIGNAL[:1])).all())


# ---------------------------------------------------------------------- lam_max


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_lam_max_is_where_codes_vanish(seed: int) -> None:
    dictionary, g = draw_dictionary(seed), rng(seed)
    signal = draw_signal(dictionary, seed)
    lower, upper = draw_bounds(dictionary.atoms, g)
    groups = draw_partition(dictionary.atoms, g)
    for more in ({"box": (lower, upper)}, {"groups": groups}, {"groups": groups, "nonnegative": True}, {"ridge": 0.5}):
        largest = float(dsc.Lasso(dictionary, 1.0, **more).lam_max(signal))
        if largest < 1e-6:
            continue
        with pytest.warns(dsc.DSCWarning, match="lam is at or above lam_max"):
            solution = dsc.solve(dsc.Lasso(dictionary, largest * (1 + 1e-12), **more), signal, dsc.FISTA(), tol=0.0)
        assert int(solution.steps) == 0
        problem = dsc.Lasso(dictionary, largest * 0.99, **more)
        below = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-14, max_steps=500, on_failure="ignore")
        assert float(below.codes.abs().max()) > 0.0  # type: ignore[union-attr]


def test_lam_max_of_bounds_and_groups_in_numbers() -> None:
    dictionary = dsc.DenseDictionary(torch.eye(3, **KIND))
    signal = torch.tensor([3.0, -4.0, 1.0], **KIND)
    for more, want in (
        ({}, 4.0),
        ({"box": (0.0, 1.0)}, 3.0),
        ({"box": (torch.tensor([-1.0, 0.0, -1.0]), torch.tensor([0.0, 1.0, 1.0]))}, 1.0),
        ({"box": (0.0, 0.0)}, 0.0),
        ({"groups": [[0, 1], [2]]}, 5.0),
        ({"groups": [[0, 1], [2]], "nonnegative": True}, 3.0),
        ({"groups": [[0, 2], [1]], "nonnegative": True}, math.sqrt(10.0)),
        ({"groups": [[0, 1], [2]], "weights": torch.tensor([10.0, 10.0, 1.0])}, 1.0),
        ({"groups": [[0, 1], [2]], "weights": torch.tensor([math.inf, math.inf, 0.5])}, 2.0),
    ):
        assert float(dsc.Lasso(dictionary, 0.1, **more).lam_max(signal)) == pytest.approx(want, rel=1e-14)


# ---------------------------------------------------------------------- the gap


@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_the_gap_is_primal_minus_dual_of_a_feasible_point(seed: int) -> None:
    dictionary, g = draw_dense(seed), rng(seed)
    matrix, signal = dictionary.matrix.detach(), normal(3, dictionary.channels, generator=g)
    lower, upper = draw_bounds(dictionary.atoms, g)
    codes = torch.maximum(torch.minimum(0.4 * normal(3, dictionary.atoms, generator=g), upper), lower)
    codes = codes * (torch.rand(codes.shape, generator=g) < 0.7)
    problem = dsc.Lasso(dictionary, 0.2, box=(lower, upper))
    point = dual_point(problem.form(signal), (codes,))
    v = point.theta[0] @ matrix
    over, under = (v - 0.2).clamp_min(0), (-v - 0.2).clamp_min(0)
    assert float(over[:, torch.isinf(upper)].sum()) + float(under[:, torch.isinf(lower)].sum()) < 1e-10
    conjugate = torch.where(torch.isinf(upper), 0.0, upper * over) + torch.where(
        torch.isinf(lower), 0.0, -lower * under
    )
    energy = signal.square().sum(1)
    dual = 0.5 * energy - 0.5 * (signal - point.theta[0]).square().sum(1) - conjugate.sum(1)
    assert torch.allclose(problem.objective(codes, signal) - dual, point.gap, rtol=1e-11, atol=1e-11)

    groups = draw_partition(dictionary.atoms, g)
    problem = dsc.Lasso(dictionary, 0.2, groups=groups)
    point = dual_point(problem.form(signal), (codes,))
    v = point.theta[0] @ matrix
    assert all(bool((v[:, group].norm(dim=1) <= 0.2 * (1 + 1e-12)).all()) for group in groups)
    dual = 0.5 * energy - 0.5 * (signal - point.theta[0]).square().sum(1)
    assert torch.allclose(problem.objective(codes, signal) - dual, point.gap, rtol=1e-11, atol=1e-11)


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_dual_points_of_codes_that_overshoot_are_feasible(seed: int) -> None:
    """Where ``⟨y, r⟩ < 0`` the best α is negative, and the other part of the correlations binds."""
    dictionary, g = draw_dense(seed), rng(seed)
    signal, groups = normal(3, dictionary.channels, generator=g), draw_partition(dictionary.atoms, g)
    codes = 20 * dictionary.analyze(signal).detach().clamp_min(0)
    problem = dsc.Lasso(dictionary, 0.2, groups=groups, nonnegative=True)
    point = dual_point(problem.form(signal), (codes,))
    v = (point.theta[0] @ dictionary.matrix.detach()).clamp_min(0)
    assert all(bool((v[:, group].norm(dim=1) <= 0.2 * (1 + 1e-12)).all()) for group in groups)
    dual = 0.5 * signal.square().sum(1) - 0.5 * (signal - point.theta[0]).square().sum(1)
    assert torch.allclose(problem.objective(codes, signal) - dual, point.gap, rtol=1e-11, atol=1e-11)


def test_unpenalized_codes_between_bounds_are_projected_out() -> None:
    """Far from the optimum too a gap is proved, with θ orthogonal to atoms that have a bound on one side only."""
    dictionary = dsc.DenseDictionary.random(8, 6, seed=3, **KIND)
    signal = normal(5, 8, generator=rng(1))
    weights = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0], **KIND)
    lower, upper = torch.full((6,), -math.inf, **KIND), torch.full((6,), math.inf, **KIND)
    lower[0], upper[1] = -5.0, 5.0
    problem = dsc.Lasso(dictionary, 0.3, weights, box=(lower, upper))
    best = dsc.solve(problem, signal, tol=1e-12).unwrap()
    assert isinstance(best, Tensor)
    assert float(best[:, :2].abs().max()) < 5.0
    certificate = assess(problem, signal, best + 1e-4 * normal(5, 6, generator=rng(2)))
    assert float(certificate.relative_gap.max()) < 1e-2


@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_no_scaling_of_the_residual_proves_more(seed: int) -> None:
    """The best α of a box, found from its knots, against a fine grid."""
    dictionary, g = draw_dense(seed), rng(seed)
    matrix, signal = dictionary.matrix.detach(), normal(2, dictionary.channels, generator=g)
    lower, upper = draw_bounds(dictionary.atoms, g, 10.0 ** randint(-2, 2, g))
    form = dsc.Lasso(dictionary, 0.2, box=(lower, upper)).form(signal)
    codes = torch.maximum(torch.minimum(0.3 * normal(2, dictionary.atoms, generator=g), upper), lower)
    if form.structure is None:
        return
    point = dual_point(form, (codes,))
    residual = point.residual[0]
    correlation = residual @ matrix
    alpha = torch.linspace(0, 2, 401, **KIND)[:, None, None]
    v = alpha * correlation
    over, under = (v - 0.2).clamp_min(0), (-v - 0.2).clamp_min(0)
    conjugate = torch.where(over > 0, upper * over, 0.0) + torch.where(under > 0, -lower * under, 0.0)
    bracket = penalty(form, (codes,)) + (conjugate - codes * v).sum(2)
    gaps = 0.5 * ((1 - alpha) * residual).square().sum(2) + bracket
    assert bool((point.gap <= gaps.amin(0) * (1 + 1e-9) + 1e-12).all())


def test_wide_bounds_prove_as_much_as_none() -> None:
    """A bound of 1e6 that is not in use must not enter the gap with its size."""
    dictionary = dsc.DenseDictionary.random(10, 20, seed=1, **KIND)
    signal, codes = normal(4, 10, generator=rng(1)), 0.1 * normal(4, 20, generator=rng(2))
    plain, wide = (assess(dsc.Lasso(dictionary, 0.2, box=box), signal, codes) for box in (None, (-1e6, 1e6)))
    assert bool((wide.gap <= plain.gap * (1 + 1e-9)).all())
    assert bool((wide.gap >= 0.5 * plain.gap).all())


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_samples_of_other_sizes_do_not_change_a_certificate(seed: int) -> None:
    dictionary, g = draw_dense(seed), rng(seed)
    signal, codes = normal(1, dictionary.channels, generator=g), 0.1 * normal(1, dictionary.atoms, generator=g)
    codes = codes.clamp(-0.2, 0.2)
    lam = torch.tensor([0.1, 1e9], **KIND)
    alone = assess(dsc.Lasso(dictionary, 0.1, box=(-0.2, 0.2)), signal, codes)
    both = torch.cat([signal, 1e10 * signal])
    together = assess(dsc.Lasso(dictionary, lam[:, None], box=(-0.2, 0.2)), both, codes.expand(2, -1))
    assert float(together.gap[0]) == pytest.approx(float(alone.gap[0]), rel=1e-13)


# ---------------------------------------------------------------------- proximal steps


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_the_step_of_a_box_minimizes(seed: int) -> None:
    g = rng(seed)
    lower, upper = draw_bounds(4, g, 2.0)
    point, threshold = 3 * normal(1, 4, generator=g), float(torch.rand((), generator=g, **KIND))
    box = Box((lower[None],), (upper[None],))
    (got,) = box.shrink((point,), (torch.full((1, 1), threshold, **KIND),))
    for i in range(4):
        want, near = projected_prox(point[0, i], threshold, float(lower[i]), float(upper[i]))
        assert float(got[0, i]) == pytest.approx(want, abs=near)


@pytest.mark.parametrize("nonnegative", [False, True])
@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_the_step_of_groups_meets_its_conditions(seed: int, nonnegative: bool) -> None:
    """It is the closed form of the problem with orthonormal atoms, and no other codes cost less."""
    g = rng(seed)
    dictionary, signal = orthonormal(6, seed), 2 * normal(1, 6, generator=g)
    problem = dsc.Lasso(dictionary, 0.8, groups=PAIRS, nonnegative=nonnegative)
    form = problem.form(signal)
    point, weights = dictionary.analyze(signal).detach(), form.weights
    (best,) = form.penalty.shrink((point,), weights)
    least = problem.objective(best, signal)
    for scale in (1e-3, 1e-1, 1.0):
        other = best + scale * normal(50, 6, generator=g)
        other = other.clamp_min(0) if nonnegative else other
        assert bool((problem.objective(other, signal.expand(50, 6)) >= least - 1e-12).all())


@pytest.mark.parametrize(
    "structure",
    [
        L1(),
        L1(nonnegative=True),
        Box((-torch.ones(1, 6, **KIND),), (torch.full((1, 6), math.inf, **KIND),)),
        Groups((torch.tensor([0, 1, 0, 1, 2, 2]),), (torch.tensor([0, 1, 4]),)),
        Groups((torch.zeros(6, dtype=torch.int64),), (torch.tensor([0]),), nonnegative=True),
    ],
    ids=["l1", "nonnegative", "box", "groups", "one-group-nonnegative"],
)
def test_projection_reaches_what_is_allowed_and_leaves_it_alone(structure: Penalty) -> None:
    weights = (torch.tensor([[1.0, 0.0, 1.0, 0.0, math.inf, math.inf]], **KIND),)
    if isinstance(structure, Groups) and len(structure.first[0]) == 1:
        weights = (torch.ones(1, 1, **KIND),)
    codes = (3 * normal(5, 6, generator=rng(3)),)
    allowed = structure.project(weights, codes)
    assert bool(torch.isfinite(structure.value(weights, allowed)).all())
    assert torch.equal(structure.project(weights, allowed)[0], allowed[0])
