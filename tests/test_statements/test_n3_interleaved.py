"""N3: all layers in step; the bound of every layer holds after every step, and is attained; and `prove.convergence`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.guarantees import LayerConvergence, convergence, convergence_plan
from deep_sparse_coding.guarantees.depth import fewest_rounds, fewest_steps
from deep_sparse_coding.guarantees.hypotheses import layer_hypotheses
from deep_sparse_coding.guarantees.recursion import layer_recursion
from deep_sparse_coding.guarantees.schedule import run, step_order
from strategies import normal, rng, simplex
from test_statements.test_n2_layerwise import shrunk_pairs, two_layers

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64


def shrink(u: Tensor, theta: Tensor, nonnegative: bool) -> Tensor:
    return (u - theta).clamp_min(0) - (0 if nonnegative else (-u - theta).clamp_min(0))


def iterate(
    layers: Sequence[dsc.Dictionary],
    signal: Tensor,
    plan: Sequence[LayerConvergence],
    order: Sequence[int],
    truth: Sequence[Tensor],
    analysis: Sequence[dsc.Dictionary] | None = None,
) -> list[float]:
    """Take the planned steps; check error, support and overshoot after each; return actual over bound."""
    weights = layers if analysis is None else analysis
    codes = [torch.zeros_like(x) for x in truth]
    taken = [0] * len(layers)
    ratios = []
    for j in order:
        below = signal if j == 0 else codes[j - 1]
        layer, step = layers[j], plan[j]
        theta = step.thresholds[taken[j]].to(signal.dtype).reshape(-1, *(1,) * (layer.event_axes - 1))
        u = codes[j] + weights[j].analyze(below - layer.synthesize(codes[j]))
        codes[j] = shrink(u, theta, step.hypotheses.nonnegative)
        taken[j] += 1
        errors = (codes[j] - truth[j]).abs().double()
        bound = step.bounds[taken[j]].reshape(-1, *(1,) * (layer.event_axes - 1))
        assert bool((errors <= bound).all())
        assert not codes[j][truth[j] == 0].any()
        assert bool((codes[j] * truth[j] >= 0).all())
        ratios.append(float(errors.max() / bound.max()) if float(bound.max()) else 1.0)
    return ratios


@pytest.fixture(scope="module")
def cascade() -> dsc.Cascade:
    return two_layers()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_both_layers_are_within_their_bounds_at_every_step(cascade: dsc.Cascade, seed: int) -> None:
    sample = dsc.sample(cascade, sparsity=(1000, 3), size=(7, 6), batch=2, amplitude=2.0, seed=seed)
    noise = 0.01 * (seed % 3)
    wave = normal(*sample.signal.shape, generator=rng(seed))
    signal = sample.signal + noise * wave / wave.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    given_ = {
        "sparsity": sample.stripe_sparsity,
        "amplitude": sample.amplitudes,
        "place_sparsity": sample.place_sparsity,
        "noise": noise * (1 + 1e-12),
    }
    guarantee = convergence(cascade, steps=15, strategy="interleaved", **given_)  # type: ignore[arg-type]
    plan = convergence_plan(cascade, steps=15, strategy="interleaved", **given_)  # type: ignore[arg-type]
    assert guarantee.proved == all(layer.rate < 1 for layer in plan)
    iterate(cascade.layers, signal, plan, step_order("interleaved", (15, 15)), sample.codes)
    for j, layer in enumerate(plan, start=1):
        assert guarantee.bounds[f"layer {j}: ‖x^15 - x‖_∞"] == float(layer.bounds[-1].max())


@pytest.mark.parametrize("seed", [14, 28])
def test_single_precision(seed: int) -> None:
    model = two_layers(torch.float32)
    sample = dsc.sample(model, sparsity=(1000, 12), size=(9, 9), seed=seed)
    plan = convergence_plan(
        model,
        sparsity=sample.stripe_sparsity,
        amplitude=sample.amplitudes,
        place_sparsity=sample.place_sparsity,
        steps=60,
        strategy="interleaved",
    )
    iterate(model.layers, sample.signal, plan, step_order("interleaved", (60, 60)), sample.codes)
    assert float(plan[0].bounds[-1].max()) < 1e-3


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_any_order_of_the_steps_and_any_analysis_weights(seed: int) -> None:
    g = rng(seed)
    matrix = torch.zeros(20, 10, dtype=F64)
    for column, pair in enumerate(torch.randperm(20, generator=g).reshape(10, 2)):
        matrix[pair, column] = normal(2, generator=g)
    first = dsc.DenseDictionary.random(300, 20, seed=seed, dtype=F64)
    model = dsc.Cascade([first, dsc.DenseDictionary(matrix, normalize=True)])
    sample = dsc.sample(model, sparsity=(2, 1), batch=4, seed=seed)
    assumed = layer_hypotheses(model, sparsity=(2, 1), noise=0.05)
    # ALISTA's closed form for layer 1: here the pseudoinverse, scaled to w_iᵀd_i = 1.
    inverse = torch.linalg.pinv(first.matrix).T
    inverse = inverse / (inverse * first.matrix).sum(0)
    weights = [inverse, model.layers[1].weight]
    recursions = [layer_recursion(d, h, analysis=w) for d, h, w in zip(model.layers, assumed, weights, strict=True)]
    assert recursions[0].rate() < 1e-9  # W^T D = I
    order = torch.randint(0, 2, (30,), generator=g).tolist()
    plan = run(recursions, order, carried=False)
    wave = normal(4, 300, generator=g)
    signal = sample.signal + 0.05 * (1 - 1e-12) * wave / wave.norm(dim=1, keepdim=True)
    analysis = [d.with_weight(w.detach()) for d, w in zip(model.layers, weights, strict=True)]
    iterate(model.layers, signal, plan, order, sample.codes, analysis)


def test_the_bound_is_attained_in_both_layers() -> None:
    model, codes = shrunk_pairs()
    settings_ = {"sparsity": (1, 1), "amplitude": (1 / math.sqrt(3), 1.0), "place_sparsity": 3}
    plan = convergence_plan(model, steps=15, strategy="interleaved", **settings_)  # type: ignore[arg-type]
    order = step_order("interleaved", (15, 15))
    ratios = iterate(model.layers, model.synthesize(codes[1]), plan, order, codes)
    assert min(ratios[0::2]) >= 0.999
    assert max(ratios[1::2]) >= 0.999
    # ν of layer 2 is what layer 1 has left at that step.
    left = float(plan[0].bounds[5].max())
    theta = plan[1].thresholds[4].max() - recursion_of(model).above(plan[1].bounds[4]).max()
    assert float(theta) == pytest.approx(math.sqrt(3) * left, rel=1e-6)


def recursion_of(model: dsc.Cascade) -> object:
    assumed = layer_hypotheses(model, sparsity=1, place_sparsity=3)
    return layer_recursion(model.layers[1], assumed[1])


def test_noise_at_its_bound() -> None:
    model, codes = shrunk_pairs()
    signal = model.synthesize(codes[1])
    for channel, position in (codes[0][0] != 0).nonzero().tolist():
        sign = float(codes[0][0, channel, position].sign())
        signal[0, :, 2 * position : 2 * position + 2] -= 0.01 * sign * model.layers[0].weight[channel]
    plan = convergence_plan(
        model,
        sparsity=1,
        amplitude=(1 / math.sqrt(3), 1.0),
        noise=0.01,
        place_sparsity=3,
        steps=30,
        strategy="interleaved",
    )
    ratios = iterate(model.layers, signal, plan, step_order("interleaved", (30, 30)), codes)
    assert ratios[-2] >= 0.999
    assert ratios[-1] >= 0.999
    # The floor 2ν/(1-ρ) of layer 1.
    assert float(plan[0].bounds[-1].max()) == pytest.approx(0.02 / (1 - 0.3), rel=1e-3)


def test_both_strategies_end_at_the_same_floor() -> None:
    model, _ = shrunk_pairs()
    common = {"sparsity": 1, "noise": 0.05, "place_sparsity": 3}
    ends = [
        float(convergence_plan(model, steps=300, strategy=name, **common)[-1].bounds[-1].max())  # type: ignore[arg-type]
        for name in ("layerwise", "interleaved")
    ]
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)
    guarantee = convergence(model, steps=300, strategy="interleaved", **common)  # type: ignore[arg-type]
    assert guarantee.bounds["layer 2: floor at any depth"] == pytest.approx(ends[0], rel=1e-6)


def test_the_least_number_of_steps_is_found() -> None:
    model, _ = shrunk_pairs()
    common = {"sparsity": 1, "noise": 0.001, "place_sparsity": 3}
    recursions = [layer_recursion(d, h) for d, h in zip(model.layers, layer_hypotheses(model, **common), strict=True)]  # type: ignore[arg-type]
    rounds = fewest_rounds(recursions, 0.1)
    assert rounds is not None
    for count, enough in ((rounds, True), (rounds - 1, False)):
        plan = convergence_plan(model, steps=count, strategy="interleaved", **common)  # type: ignore[arg-type]
        assert (float(plan[-1].bounds[-1].max()) < 0.1) == enough
    layered = fewest_steps(recursions, 0.1, carried=False)
    assert layered is not None
    guarantee = convergence(model, target_error=0.1, **common)  # type: ignore[arg-type]
    assert guarantee.proved
    assert str(guarantee).startswith(f"proved: {layered[0]} steps of layer 1 and then {layered[1]} steps of layer 2")
    together = convergence(model, target_error=0.1, strategy="interleaved", **common)  # type: ignore[arg-type]
    assert str(together).startswith(f"proved: {rounds} steps of all layers in turn from zero")
    assert max(layered) <= rounds <= sum(layered)


def test_a_target_below_the_floor_is_said_with_the_floor() -> None:
    model, _ = shrunk_pairs()
    for strategy in ("layerwise", "interleaved"):
        guarantee = convergence(model, sparsity=1, noise=0.05, place_sparsity=3, target_error=0.05, strategy=strategy)
        assert not guarantee
        assert [c.layer for c in guarantee.decisive] == [2]
        assert "missing layer 2: floor of the bound at any depth up to 2000 steps = " in str(guarantee)
    few = convergence(model, sparsity=1, steps=2, place_sparsity=3, target_error=0.05)
    assert "missing layer 2: bound after 2 steps = " in str(few)


def test_refused_where_nothing_shrinks() -> None:
    guarantee = convergence(simplex(8, 1 / 7), 4, steps=3, target_error=0.1)
    assert not guarantee.proved
    assert [c.value for c in guarantee.conditions[:3]] == pytest.approx([1.0, 1.0, 1.0])
    assert not any(c.holds for c in guarantee.conditions)
    assert "layer 1: floor at any depth" not in guarantee.bounds
    below = convergence(simplex(8, 1 / 7 * (1 - 1e-6)), 4, steps=3)
    assert below.proved
    assert below.bounds["layer 1: ‖x^3 - x‖_∞"] == pytest.approx(1.0, rel=1e-4)


def test_the_call_of_the_guide() -> None:
    model = two_layers()
    g = dsc.prove.convergence(model, sparsity=(3, 2), amplitude=1.0, noise=0.0, steps=(20, 20))
    assert g.proved
    assert {c.layer for c in g.conditions} == {1, 2}
    assert "N2" in g.source
    assert g.bounds["layer 2: ρ"] < 1
    dense = dsc.prove.convergence(dsc.DenseDictionary.random(200, 40, seed=0, dtype=F64), 2, steps=5)
    assert dense.bounds["layer 1: ‖x^5 - x‖_2"] <= math.sqrt(2) * dense.bounds["layer 1: ‖x^5 - x‖_∞"] * (1 + 1e-9)


def test_what_is_wrong_is_said() -> None:
    model = two_layers()
    with pytest.raises(ParameterError, match=r"strategy is 'interleave'; expected .* did you mean 'interleaved'"):
        convergence(model, 1, strategy="interleave")
    with pytest.raises(ParameterError, match=r"steps is \(3, 4\); expected one number for all layers"):
        convergence(model, 1, steps=(3, 4), strategy="interleaved")
    with pytest.raises(ParameterError, match="target_error is 0"):
        convergence(model, 1, target_error=0)
