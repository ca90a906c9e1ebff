"""Bounds, ridge and groups in use: gaps near the optimum, starts, paths, refusals, and gradients of the codes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess
from strategies import normal, rng

KIND = {"dtype": torch.float64}
STEP = 1e-5
each_proximal = pytest.mark.parametrize("solver", [dsc.FISTA(), dsc.ISTA()], ids=["FISTA", "ISTA"])
# The first lam of a path is lam_max.
pytestmark = pytest.mark.filterwarnings("ignore:lam is at or above lam_max")
MORE: dict[str, dict[str, Any]] = {
    "box": {"box": (-0.15, 0.25)},
    "one-sided": {"box": (-0.15, math.inf)},
    "ridge": {"ridge": 0.3},
    "ridge-box": {"ridge": 0.3, "box": (0.0, 0.2)},
    "groups": {"groups": [[0, 1, 2], [3], [4, 5, 6, 7], [8, 9], [10, 11]]},
    "groups-ridge": {"groups": [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]], "nonnegative": True, "ridge": 0.1},
}
each_penalty = pytest.mark.parametrize("more", MORE.values(), ids=MORE)


@each_penalty
def test_gaps_are_sound_and_tight_near_the_optimum(more: dict[str, Any]) -> None:
    dictionary = dsc.DenseDictionary.random(8, 12, seed=6, **KIND)
    signal = normal(5, 8, generator=rng(8))
    problem = dsc.Lasso(dictionary, 0.2, **more)
    best = dsc.solve(problem, signal, dsc.FISTA(), tol=0.0, max_steps=30_000, on_failure="ignore")
    assert float(best.certificate.relative_gap.max()) < 1e-13
    least = best.certificate.objective
    form = problem.form(signal)
    for k in range(1, 15):
        noise = 10.0**-k * normal(5, 12, generator=rng(k))
        (codes,) = form.penalty.project(form.weights, (best.codes + noise,))  # type: ignore[operator]
        certificate = assess(problem, signal, codes)
        excess = certificate.objective - least
        assert bool((certificate.gap >= excess - 4e-15 * least).all())
        assert bool((certificate.dual <= least * (1 + 4e-15)).all())
        assert bool((certificate.gap <= 50 * 10.0**-k + 1e-13).all())


@each_penalty
@each_proximal
def test_optimal_starts_take_no_step_and_others_are_made_feasible(solver: dsc.Solver, more: dict[str, Any]) -> None:
    dictionary = dsc.DenseDictionary.random(8, 12, seed=6, **KIND)
    signal = normal(5, 8, generator=rng(8))
    problem = dsc.Lasso(dictionary, 0.2, **more)
    first = dsc.solve(problem, signal, solver, tol=1e-6, max_steps=50_000)
    again = dsc.solve(problem, signal, solver, tol=1e-6, start=first.codes)
    assert int(again.steps.max()) == 0
    assert torch.equal(again.codes, first.codes)  # type: ignore[arg-type]
    zero = dsc.solve(problem, torch.zeros_like(signal), solver, tol=0.0)
    assert int(zero.steps.max()) == 0
    far = dsc.solve(problem, signal, solver, tol=1e-6, max_steps=50_000, start=5 * normal(5, 12, generator=rng(9)))
    assert bool(far.converged.all())
    assert torch.allclose(far.certificate.objective, first.certificate.objective, rtol=2e-6)


@each_penalty
def test_paths_float32_and_empty_batches(more: dict[str, Any]) -> None:
    dictionary = dsc.DenseDictionary.random(8, 12, seed=6, **KIND)
    signal = normal(5, 8, generator=rng(8))
    path = dsc.solve_path(dsc.Lasso(dictionary, 1.0, **more), signal, lams=4, ratio=0.1)
    assert all(bool(solution.converged.all()) for solution in path.solutions)
    assert float(path.density[0].max()) == 0.0
    assert float(path.density[-1].min()) > 0.0
    single = dictionary.cast(torch.float32)
    solution = dsc.solve(dsc.Lasso(single, 0.2, **more), signal.float(), tol=1e-5)
    exact = dsc.solve(dsc.Lasso(dictionary, 0.2, **more), signal, tol=1e-9)
    assert solution.codes.dtype == torch.float32  # type: ignore[union-attr]
    assert bool(solution.converged.all())
    assert torch.allclose(solution.certificate.objective, exact.certificate.objective, rtol=1e-4)
    empty = dsc.solve(dsc.Lasso(dictionary, 0.2, **more), signal[:0])
    assert empty.codes.shape == (0, 12)  # type: ignore[union-attr]


def test_a_sample_that_is_not_finite_spoils_no_other() -> None:
    dictionary = dsc.DenseDictionary.random(8, 12, seed=6, **KIND)
    signal = normal(3, 8, generator=rng(8))
    signal[1, 0] = math.nan
    for more in MORE.values():
        solution = dsc.solve(dsc.Lasso(dictionary, 0.2, **more), signal, on_failure="ignore")
        assert [status.name for status in solution.status] == ["CONVERGED", "NONFINITE_INPUT", "CONVERGED"]


def test_kernels_that_cannot_refuse_and_the_choice_goes_to_one_that_can() -> None:
    dense = dsc.DenseDictionary.random(8, 12, seed=6, **KIND)
    conv = dsc.ConvDictionary.random(atoms=4, channels=1, size=3, seed=0, **KIND)
    signal, image = normal(2, 8, generator=rng(0)), normal(2, 1, 6, 6, generator=rng(0))
    boxed, grouped = {"box": (-0.1, 0.1)}, {"groups": [[i, i + 1] for i in range(0, 12, 2)]}
    for solver, more in itertools.product((dsc.CoordinateDescent(), dsc.Homotopy()), (boxed, grouped)):
        word = "box constraints" if "box" in more else "groups"
        with pytest.raises(dsc.UnsupportedError, match=rf"{solver.name} takes no {word}; use dsc.FISTA\(\)"):
            dsc.solve(dsc.Lasso(dense, 0.1, **more), signal, solver)
        assert dsc.solve(dsc.Lasso(dense, 0.1, **more), signal).solver == "ADMM"
    for more, word in ((boxed, "box constraints"), ({"groups": "channels"}, "groups"), ({"ridge": 0.1}, "ridge")):
        with pytest.raises(dsc.UnsupportedError, match=rf"ConvCoordinateDescent takes no {word}; use dsc.FISTA\(\)"):
            dsc.solve(dsc.Lasso(conv, 0.1, **more), image, dsc.ConvCoordinateDescent())
        assert dsc.solve(dsc.Lasso(conv, 0.1, **more), image).solver == "ADMM"
    assert dsc.solve(dsc.Lasso(dense, 0.1, ridge=0.1), signal).solver == "CoordinateDescent"
    for more in (boxed, grouped):
        solution = dsc.solve(dsc.Lasso(dense, 0.1, **more), signal)
        with pytest.raises(dsc.UnsupportedError, match=r"nothing beyond the gap is proved.*dsc\.certify"):
            dsc.prove.posterior(solution)


# ---------------------------------------------------------------------- gradients


def check(build: Callable[[], dsc.Problem], signal: Tensor, inputs: Sequence[Tensor]) -> None:
    """Compare gradients of a linear loss with a central difference along one random direction in all inputs."""

    def codes(differentiable: bool) -> Tensor:
        solution = dsc.solve(
            build(),
            signal,
            dsc.FISTA(),
            tol=1e-15,
            max_steps=20_000,
            on_failure="ignore",
            differentiable=differentiable,
        )
        assert float(solution.certificate.relative_gap.max()) < 1e-11
        assert isinstance(solution.codes, Tensor)
        return solution.codes

    found = codes(True)
    generator = rng(5)
    pull = normal(*found.shape, generator=generator)
    gradients = torch.autograd.grad((pull * found).sum(), list(inputs))
    assert all(float(g.abs().max()) > 0 for g in gradients)
    directions = [torch.randn(x.shape, generator=generator, **KIND) for x in inputs]
    values = []
    for step in (STEP, -STEP):
        with torch.no_grad():
            before = [x.clone() for x in inputs]
            for x, direction in zip(inputs, directions, strict=True):
                x += step * direction
            moved = codes(False)
            for x, old in zip(inputs, before, strict=True):
                x.copy_(old)
        assert torch.equal(found != 0, moved != 0), "the case must be away from kinks"
        values.append(float((pull * moved).sum()))
    got = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert got == pytest.approx((values[0] - values[1]) / (2 * STEP), rel=5e-5, abs=5e-6)


@each_penalty
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_gradients_against_differences(more: dict[str, Any], masked: bool) -> None:
    dictionary = dsc.DenseDictionary.random(8, 12, seed=6, **KIND).requires_grad_()
    signal = normal(3, 8, generator=rng(8)).requires_grad_()
    lam = torch.tensor([[0.2], [0.25], [0.3]], **KIND, requires_grad=True)
    # With a mask per sample there is no matrix: conjugate gradients instead of Cholesky.
    mask = torch.rand(3, 8, generator=rng(2)) < 0.9 if masked else None
    check(lambda: dsc.Lasso(dictionary, lam, mask=mask, **more), signal, [signal, dictionary.matrix, lam])


@pytest.mark.parametrize(
    "more",
    [{"box": (-0.1, 0.2)}, {"ridge": 0.3}, {"groups": "channels"}, {"groups": [[0, 2], [1]], "nonnegative": True}],
    ids=["box", "ridge", "channels", "groups-nonnegative"],
)
def test_gradients_of_convolutions(more: dict[str, Any]) -> None:
    dictionary = dsc.ConvDictionary.random(atoms=3, channels=2, size=3, seed=0, **KIND).requires_grad_()
    signal = normal(2, 2, 6, 6, generator=rng(1)).requires_grad_()
    lam = torch.tensor(0.9, **KIND, requires_grad=True)
    check(lambda: dsc.Lasso(dictionary, lam, **more), signal, [signal, dictionary.kernels, lam])


@each_penalty
def test_gradcheck(more: dict[str, Any]) -> None:
    dictionary = dsc.DenseDictionary.random(8, 12, seed=6, **KIND)

    def codes(signal: Tensor, lam: Tensor) -> Tensor:
        problem = dsc.Lasso(dictionary, lam, **more)
        solution = dsc.solve(
            problem, signal, dsc.FISTA(), tol=1e-15, max_steps=20_000, on_failure="ignore", differentiable=True
        )
        assert isinstance(solution.codes, Tensor)
        return solution.codes

    signal = normal(2, 8, generator=rng(8)).requires_grad_()
    lam = torch.tensor(0.25, **KIND, requires_grad=True)
    assert torch.autograd.gradcheck(codes, (signal, lam), atol=1e-5, rtol=1e-4, eps=1e-5)


def test_codes_at_a_bound_do_not_move_and_weights_of_a_group_share() -> None:
    dictionary = dsc.DenseDictionary(torch.eye(3, **KIND))
    signal = torch.tensor([3.0, 0.5, -2.0], **KIND, requires_grad=True)
    codes = dsc.solve(dsc.Lasso(dictionary, 0.1, box=(-1.0, 1.0)), signal, tol=1e-12, differentiable=True).codes
    (gradient,) = torch.autograd.grad(codes.sum(), signal)  # type: ignore[union-attr]
    assert torch.allclose(gradient, torch.tensor([0.0, 1.0, 0.0], **KIND))
    weights = torch.ones(3, **KIND, requires_grad=True)
    problem = dsc.Lasso(dictionary, 1.0, weights, groups=[[0, 1, 2]])
    codes = dsc.solve(problem, signal, tol=1e-13, differentiable=True).codes
    (gradient,) = torch.autograd.grad(codes.norm(), weights)  # type: ignore[union-attr]
    # ‖x‖ = ‖y‖ - w: all atoms' weights move together, by shares y_i²/‖y‖².
    assert float(gradient.sum()) == pytest.approx(-1.0, rel=1e-6)
    assert torch.allclose(gradient, -signal.detach().square() / signal.detach().square().sum(), atol=1e-6)
