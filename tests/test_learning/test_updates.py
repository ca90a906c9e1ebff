"""The parts of learning: statistics against the plain formula, updates that only lower the objective, moved kernels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.learning.coding import Coder
from deep_sparse_coding.learning.recenter import move_codes, proposed_moves
from deep_sparse_coding.learning.statistics import SparseCodes, Statistics, gather
from deep_sparse_coding.learning.updates import from_rows, lag_table, objective, to_rows, update_atoms
from strategies import SEEDS, draw_conv, draw_dense, normal, randint, rng


def draw(seed: int) -> tuple[dsc.Dictionary, Tensor, Tensor]:
    """Return a dictionary (small circular grids too), signals that it does not explain, and sparse codes."""
    g = rng(seed)
    samples = randint(1, 3, g)
    if seed % 3 == 0:
        dictionary: dsc.Dictionary = draw_dense(seed)
        codes = normal(samples, dictionary.atoms, generator=g)
    else:
        dictionary = conv = draw_conv(seed, axes=3 if seed % 7 == 0 else None)
        grid = tuple(-(-k // q) + randint(0, 4, g) for k, q in zip(conv.kernel_size, conv.stride, strict=True))
        codes = normal(samples, conv.atoms, *grid, generator=g)
    codes = codes * (torch.rand(codes.shape, generator=g, dtype=torch.float64) < 0.4)
    clean = dictionary.synthesize(codes)
    return dictionary, clean + normal(*clean.shape, generator=g), codes


def plain_objective(dictionary: dsc.Dictionary, signal: Tensor, codes: Tensor, lam: float) -> float:
    residual = signal - dictionary.synthesize(codes)
    return 0.5 * float(residual.square().sum()) + lam * float(codes.abs().sum())


@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_statistics_know_the_objective_of_every_dictionary(seed: int) -> None:
    dictionary, signal, codes = draw(seed)
    statistics = gather(dictionary, signal, SparseCodes.of(codes), 0.3)
    other = from_rows(dictionary, normal(*to_rows(dictionary).shape, generator=rng(seed + 1)))
    for current in (dictionary, other):
        value = objective(to_rows(current), statistics, lag_table(current))
        assert value == pytest.approx(plain_objective(current, signal, codes, 0.3), rel=1e-9, abs=1e-9)
    assert int(statistics.nonzeros.sum()) == int((codes != 0).sum())
    assert statistics.entries == codes.numel()


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_statistics_of_parts_add_up_and_can_be_taken_away(seed: int) -> None:
    dictionary, signal, codes = draw(seed)
    sparse = SparseCodes.of(codes)
    twice = gather(dictionary, torch.cat([signal, 2 * signal]), SparseCodes.of(torch.cat([codes, -codes])), 0.3)
    first, second = gather(dictionary, signal, sparse, 0.3), gather(dictionary, 2 * signal, SparseCodes.of(-codes), 0.3)
    for have, want in ((first + second, twice), (twice - second, first)):
        for name in ("gram", "cross", "nonzeros"):
            torch.testing.assert_close(getattr(have, name), getattr(want, name), atol=1e-9, rtol=1e-9)
        assert have.energy == pytest.approx(want.energy)
        assert have.penalty == pytest.approx(want.penalty)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_sparse_codes_are_the_codes(seed: int) -> None:
    _, _, codes = draw(seed)
    assert torch.equal(SparseCodes.of(codes).dense(), codes)


@given(seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_an_update_never_raises_the_objective_and_keeps_unit_atoms(seed: int) -> None:
    dictionary, signal, codes = draw(seed)
    nonnegative = seed % 2 == 0
    statistics = gather(dictionary, signal, SparseCodes.of(codes), 0.3)
    rows, table = to_rows(dictionary), lag_table(dictionary)
    if nonnegative:
        rows = rows.abs()
    rows = rows / torch.linalg.vector_norm(rows, dim=(1, 2), keepdim=True)
    before = objective(rows, statistics, table)
    for _ in range(3):
        rows = update_atoms(rows, statistics, table, sweeps=1, nonnegative=nonnegative)
        after = objective(rows, statistics, table)
        assert after <= before + 1e-9 * abs(before)
        before = after
    torch.testing.assert_close(torch.linalg.vector_norm(rows, dim=(1, 2)), torch.ones(len(rows), dtype=torch.float64))
    assert not nonnegative or float(rows.min()) >= 0


def test_an_update_finds_the_best_atoms_where_they_are_known() -> None:
    """Codes that never overlap and use one atom each: the best atom is the mean of its pieces, scaled."""
    pieces = normal(4, 9, generator=rng(0))
    codes = torch.zeros(4, 2, dtype=torch.float64)
    codes[:2, 0], codes[2:, 1] = 1.0, 2.0
    start = dsc.DenseDictionary.random(9, 2, seed=0, dtype=torch.float64)
    statistics = gather(start, pieces, SparseCodes.of(codes), 0.1)
    rows = update_atoms(to_rows(start), statistics, lag_table(start), sweeps=1)
    best = torch.stack([pieces[:2].sum(0), pieces[2:].sum(0)])
    best = best / torch.linalg.vector_norm(best, dim=1, keepdim=True)
    torch.testing.assert_close(rows[:, 0], best)


def test_an_atom_without_codes_stays() -> None:
    dictionary, signal, codes = draw(3)
    codes[:, 0] = 0.0
    statistics = gather(dictionary, signal, SparseCodes.of(codes), 0.3)
    rows = update_atoms(to_rows(dictionary), statistics, lag_table(dictionary), sweeps=2)
    assert torch.equal(rows[0], to_rows(dictionary)[0])


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_coding_steps_never_raise_the_objective_of_a_sample(seed: int) -> None:
    dictionary, signal, codes = draw(seed)
    coder = Coder(0.3, nonnegative=False, seed=0)
    for _ in range(3):
        better = coder.improve(dictionary, signal, codes, 4)
        problem = dsc.Lasso(dictionary, 0.3)
        assert bool((problem.objective(better, signal) <= problem.objective(codes, signal) * (1 + 1e-12)).all())
        codes = better


def test_codes_move_by_whole_positions() -> None:
    codes = torch.arange(1.0, 13.0).reshape(1, 2, 2, 3)
    steps = torch.tensor([[0, 1], [-1, 0]])
    moved = move_codes(codes, steps, circular=False)
    assert moved[0].tolist() == [[[0, 1, 2], [0, 4, 5]], [[10, 11, 12], [0, 0, 0]]]
    around = move_codes(codes, steps, circular=True)
    assert around[0].tolist() == [[[3, 1, 2], [6, 4, 5]], [[10, 11, 12], [7, 8, 9]]]


@pytest.mark.parametrize(("boundary", "stride"), [("valid", 1), ("circular", 1), ("valid", 2)])
def test_a_kernel_that_sits_off_center_is_moved_to_where_it_belongs(boundary: str, stride: int) -> None:
    true = dsc.ConvDictionary.random(
        atoms=1, channels=2, size=6, stride=stride, boundary=boundary, seed=0, dtype=torch.float64
    )
    sample = dsc.sample(true, sparsity=5, size=(24, 24), batch=4, seed=0)
    kernel = true.kernels.detach()
    # The left part of the kernel is cut off, the rest stands at the left: its codes stand two entries further right.
    cut = torch.zeros_like(kernel)
    cut[..., :-2] = kernel[..., 2:]
    off = dsc.ConvDictionary(cut, stride=stride, boundary=boundary, normalize=True)
    ahead = 2 // stride
    codes = SparseCodes.of(move_codes(sample.codes[0], torch.tensor([[0, ahead]]), boundary == "circular"))
    statistics = gather(off, sample.signal, codes, 0.1)
    own = statistics.gram[:, 0, statistics.gram.shape[2] // 2]
    steps, fresh = proposed_moves(off, to_rows(off), own, [(sample.signal, codes)])
    assert steps.tolist() == [[0, -ahead]]
    found = from_rows(off, fresh)
    assert abs(float((found.weight * kernel).sum())) > 0.9
    again, _ = proposed_moves(true, to_rows(true), own, [(sample.signal, SparseCodes.of(sample.codes[0]))])
    assert again.tolist() == [[0, 0]]


def test_empty_statistics_are_those_of_zero_codes() -> None:
    dictionary, signal, codes = draw(1)
    statistics = gather(dictionary, signal, SparseCodes.of(torch.zeros_like(codes)), 0.3)
    assert isinstance(statistics, Statistics)
    assert math.isclose(objective(to_rows(dictionary), statistics, lag_table(dictionary)), statistics.energy)
