"""Solvers whose first step finds codes of zero: a start of zeros has no check of its own, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import Blocks, Certificate, StandardForm
from deep_sparse_coding.solvers.convolutional import ConvCoordinateDescent
from deep_sparse_coding.solvers.coordinate import CoordinateDescent
from deep_sparse_coding.solvers.joint import JointCoordinateDescent
from strategies import normal, rng

# The second sample is so small that zero is its answer.
SCALES = torch.tensor([1.0, 1e-3, 2.0], dtype=torch.float64)


def dense(kind: dict[str, Any]) -> dsc.Lasso:
    return dsc.Lasso(dsc.DenseDictionary.random(12, 20, seed=0, **kind), 0.3)


def kernels(kind: dict[str, Any]) -> dsc.ConvDictionary:
    return dsc.ConvDictionary.random(atoms=4, channels=1, size=3, seed=1, **kind)


def convolutional(kind: dict[str, Any]) -> dsc.Lasso:
    return dsc.Lasso(kernels(kind), 0.3)


def joint(kind: dict[str, Any]) -> dsc.JointLasso:
    second = dsc.ConvDictionary.random(atoms=3, channels=4, size=2, seed=2, **kind)
    return dsc.JointLasso(dsc.Cascade([kernels(kind), second]), (0.2, 0.1))


CASES = [
    (CoordinateDescent, dense, (12,)),
    (ConvCoordinateDescent, convolutional, (1, 9, 8)),
    (JointCoordinateDescent, joint, (1, 9, 8)),
]
IDS = [case[0].__name__ for case in CASES]


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (normal(3, *shape, generator=rng(3)) * SCALES.reshape(3, *[1] * len(shape))).to(dtype)


def solved(problem: Any, signal: Tensor, solver: Any, **options: Any) -> dsc.Solution:
    with pytest.warns(dsc.DSCWarning, match="lam is at or above lam_max for 1 of 3 samples"):
        return dsc.solve(problem, signal, solver, tol=1e-7 if signal.dtype == torch.float64 else 1e-4, **options)


def blocks(codes: Any) -> tuple[Tensor, ...]:
    return codes if isinstance(codes, tuple) else (codes,)


def counted(monkeypatch: pytest.MonkeyPatch, kind: Any) -> list[int]:
    """The number of samples at every look of a solver at its codes."""
    looks: list[int] = []
    before = kind.assess

    def assess(self: Any, form: StandardForm, codes: Blocks, tol: float) -> Certificate:
        looks.append(form.batch)
        return before(self, form, codes, tol)

    monkeypatch.setattr(kind, "assess", assess)
    return looks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "make", "shape"), CASES, ids=IDS)
def test_a_zero_start_is_not_checked_and_the_answer_is_the_same(
    kind: Any, make: Any, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal, problem = drawn(shape, dtype), make({"dtype": dtype})
    looks = counted(monkeypatch, kind)
    solution = solved(problem, signal, kind())
    assert looks == [3]
    assert bool(solution.converged.all())
    assert solution.steps[1] == 0
    assert not any(bool(block[1].any()) for block in blocks(solution.codes))
    looks.clear()
    monkeypatch.setattr(kind, "finds_zero", False)
    checked = solved(problem, signal, kind())
    assert looks == [3, 2]
    assert solution.steps.tolist() == checked.steps.tolist()
    assert solution.certificate.gap.tolist() == checked.certificate.gap.tolist()
    for block, other in zip(blocks(solution.codes), blocks(checked.codes), strict=True):
        assert torch.equal(block, other)


@pytest.mark.parametrize(("kind", "make", "shape"), CASES, ids=IDS)
def test_a_callback_and_no_steps_still_look_at_zero(
    kind: Any, make: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    signal, problem = drawn(shape, torch.float64), make({"dtype": torch.float64})
    seen: list[int] = []
    solved(problem, signal, kind(), callback=lambda progress: seen.append(progress.step))
    assert seen[0] == 0
    looks = counted(monkeypatch, kind)
    with pytest.warns(dsc.DSCWarning):
        stopped = dsc.solve(problem, signal, kind(), max_steps=0)
    assert looks == [3]
    assert stopped.steps.tolist() == [0, 0, 0]
    assert not any(bool(block.any()) for block in blocks(stopped.codes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kind", "make", "shape"), CASES, ids=IDS)
def test_steps_write_into_no_codes_of_before(
    kind: Any, make: Any, shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One round a step: the start, and every state, are after all steps what they were when they were made."""
    signal, problem = drawn(shape, dtype), make({"dtype": dtype})
    answer = blocks(solved(problem, signal, kind()).codes)
    start = tuple(normal(*block.shape, generator=rng(4)).to(dtype) for block in answer)
    made: list[tuple[Tensor, Tensor]] = [(block, block.clone()) for block in start]
    before = kind.step

    def step(self: Any, form: StandardForm, state: Any) -> Any:
        after = before(self, form, state)
        made.extend((block, block.clone()) for block in after.codes)
        return after

    monkeypatch.setattr(kind, "step", step)
    first, *others = start
    begin = start if others else first
    with pytest.warns(dsc.DSCWarning, match="lam is at or above lam_max"):
        solution = dsc.solve(problem, signal, kind(rounds=1), tol=1e-4, start=begin)
    assert len(made) >= 4 * len(start)
    ends = blocks(solution.codes)
    for block, copy in made:
        # The best codes are kept in those of one step, and samples that end later are written there.
        if not any(block.data_ptr() == end.data_ptr() for end in ends):
            assert torch.equal(block, copy)
