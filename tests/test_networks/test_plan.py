"""The plan: its counts are those of the network, its depth is the cheapest, its words name every hypothesis."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.networks import CompiledCNN, convergence_plan, to_cnn

F64 = torch.float64


def counted(net: CompiledCNN, signal: torch.Tensor) -> tuple[int, int, int, int]:
    """Return depth, parameters, widest layer and multiply-adds by watching the layers run."""
    depth = parameters = widest = work = 0
    for module in net:
        signal = module(signal)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            positions = math.prod(signal.shape[2:])
            widest = max(widest, signal.shape[1])
        elif isinstance(module, nn.Linear):
            positions = 1
            widest = max(widest, signal.shape[-1])
        else:
            continue
        depth += 1
        parameters += sum(p.numel() for p in module.parameters())
        work += positions * module.weight.numel()
    return depth, parameters, widest, work


@pytest.mark.parametrize("boundary", ["valid", "circular"])
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (4, 2)])
def test_counts(boundary: str, nonnegative: bool, strides: tuple[int, int]) -> None:
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=4, channels=2, size=4, stride=strides[0], boundary=boundary, seed=0),
            dsc.ConvDictionary.random(atoms=3, channels=4, size=3, stride=strides[1], boundary=boundary, seed=1),
        ]
    )
    net = to_cnn(model, sparsity=1, steps=(3, 2), nonnegative=nonnegative)
    size = model.layers[1].signal_shape((5, 4))[1:]
    size = model.layers[0].signal_shape(size)[1:]
    depth, parameters, widest, work = counted(net, torch.zeros(1, 2, *size))
    plan = net.plan
    assert (plan.depth, plan.parameters, plan.width, plan.multiply_adds(size)) == (depth, parameters, widest, work)
    big = 4096
    if boundary == "circular":
        assert math.isclose(plan.multiply_adds(big) / big**2, plan.multiply_adds_per_entry, rel_tol=1e-9)
    with pytest.raises(ParameterError, match=r"size is \(5,\); expected 2 number"):
        plan.multiply_adds((5,))


def test_dense_counts() -> None:
    net = to_cnn(dsc.DenseDictionary.random(60, 10, seed=0), sparsity=1, steps=4)
    assert counted(net, torch.zeros(1, 60)) == (
        net.plan.depth,
        net.plan.parameters,
        net.plan.width,
        net.plan.multiply_adds(),
    )
    assert net.plan.multiply_adds() == net.plan.multiply_adds_per_entry


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_chosen_depth_is_the_cheapest(seed: int) -> None:
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=3, channels=1, size=(12,), stride=(2, 4)[seed % 2], seed=seed, dtype=F64),
            dsc.ConvDictionary.random(atoms=2, channels=3, size=(5,), stride=2, nonzeros=3, seed=seed, dtype=F64),
        ]
    )
    target = 0.05
    try:
        net = to_cnn(model, sparsity=1, target_error=target)
    except ParameterError:
        bounds = [layer.bounds[-1].max() for layer in convergence_plan(model, sparsity=1, steps=400)]
        assert float(bounds[-1]) > target
        return
    assert net.error_bound <= target
    first, second = net.plan.steps
    best = math.inf
    for steps in itertools.product(range(1, first + 6), range(max(1, second - 6), second + 7)):
        layers = convergence_plan(model, sparsity=1, steps=steps)
        if float(layers[-1].bounds[-1].max()) <= target:
            best = min(best, to_cnn(model, sparsity=1, steps=steps).plan.multiply_adds_per_entry)
    # The cost of a layer's last step differs a little from the others', which the search leaves out.
    one_step = net.plan.multiply_adds_per_entry / sum(net.plan.steps)
    assert net.plan.multiply_adds_per_entry <= best + one_step


def test_one_layer_takes_the_fewest_steps() -> None:
    dictionary = dsc.DenseDictionary.random(300, 20, seed=0, dtype=F64)
    for target in (0.5, 0.1, 1e-3, 1e-8):
        net = to_cnn(dictionary, sparsity=2, target_error=target)
        assert net.error_bound <= target
        (steps,) = net.plan.steps
        if steps > 1:
            assert to_cnn(dictionary, sparsity=2, steps=steps - 1).error_bound > target


def test_bounds_fall_and_end_in_the_error_bound() -> None:
    net = to_cnn(dsc.DenseDictionary.random(300, 20, seed=0), sparsity=2, noise=0.01, steps=9)
    plan = net.plan
    assert list(plan.bounds) == sorted(plan.bounds, reverse=True)
    assert plan.bounds[-1] == plan.error_bound == net.error_bound
    assert [mark.bound for mark in plan.bound_by_depth] == list(plan.bounds)
    assert plan.layers[0].thresholds.shape == (9, 20)
    assert plan.layers[0].noise >= 0.01
    assert plan.layers[0].slack > 0
    assert plan.layers[0].start == 1.0


def test_printed_plan_names_every_hypothesis_and_rounds_outwards() -> None:
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.low_coherence(atoms=6, channels=1, size=8, stride=4, boundary="circular", seed=0),
            dsc.ConvDictionary.low_coherence(
                atoms=6, channels=6, size=3, stride=2, nonzeros=3, boundary="circular", seed=0
            ),
        ]
    )
    net = to_cnn(
        model, sparsity=(2, 1), amplitude=(0.5, 2.0), noise=1e-4, epsilon=(0.0, 1e-3), nonnegative=(False, True)
    )
    assert net.plan.error_bound <= 1e-2
    text = str(net.plan)
    for words in (
        "‖the signal - D_1 x_1‖_2 ≤ 0.0001 under every atom",
        "every stripe of x_1 has at most 2 non-zeros",
        "‖x_1‖_∞ ≤ 0.5",
        "the signal has at least 15 × 15 positions",
        "‖x_1 - D_2 x_2‖_2 ≤ 0.001 under every atom",
        "every stripe of x_2 has at most 1 non-zero",
        "‖x_2‖_∞ ≤ 2",
        "x_2 ≥ 0",
        "at most 2 non-zeros of x_1 under one atom of layer 2",
        "float32",
    ):
        assert words in text
    assert "x_1 ≥ 0" not in text
    assert set(net.plan.hypotheses) == {line[4:] for line in text.splitlines() if line.startswith("  - ")}
    found = re.search(r"truth‖_∞ ≤ (\S+) in", text)
    assert found is not None
    assert net.error_bound <= float(found.group(1)) <= 1.01 * net.error_bound


def test_known_places_are_used_only_where_they_are_fewer() -> None:
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=2, channels=8, size=(4,), stride=4, seed=0),
            dsc.ConvDictionary.random(atoms=2, channels=2, size=(3,), seed=1),
        ]
    )
    for given_, expected in ((None, 3), (2, 2), (9, 3)):
        plan = to_cnn(model, sparsity=1, steps=1, place_sparsity=given_).plan
        assert plan.layers[1].hypotheses.place_sparsity == expected


def test_convergence_plan_tells_the_numbers_also_where_nothing_shrinks() -> None:
    dictionary = dsc.DenseDictionary.random(4, 12, seed=0)
    (layer,) = convergence_plan(dictionary, sparsity=4, steps=5)
    assert layer.rate >= 1
    assert torch.equal(layer.bounds[-1], torch.ones(12, dtype=F64))
    (layer,) = convergence_plan(dictionary, sparsity=4, steps=0)
    assert layer.thresholds.shape == (0, 12)
    assert layer.bounds.shape == (1, 12)


def test_numbers_scale_with_the_signal() -> None:
    dictionary = dsc.DenseDictionary.random(300, 20, seed=0, dtype=F64)
    (one,) = convergence_plan(dictionary, sparsity=2, noise=0.01, steps=6)
    (many,) = convergence_plan(dictionary, sparsity=2, amplitude=100.0, noise=1.0, steps=6)
    assert torch.allclose(100 * one.bounds, many.bounds, rtol=1e-9)
    assert torch.allclose(100 * one.thresholds, many.thresholds, rtol=1e-9)
