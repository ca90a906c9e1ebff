"""Weights that change: what each schedule is, when it advances, and going on from a checkpoint."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deep_sparse_coding.errors import HookError, NameMatchError, ParameterError
from deep_sparse_coding.sparsity.penalties.penalty import ActivationPenalty
from deep_sparse_coding.sparsity.penalties.schedule import (
    Constant,
    Cosine,
    Decay,
    LateStart,
    Piecewise,
    Schedule,
    WarmUp,
)
from deep_sparse_coding.sparsity.penalties.target import TargetSparsity
from deep_sparse_coding.sparsity.penalties.weights import BySize


def network(seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
    return net


def signals(seed: int = 1, batch: int = 8) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(0.3), {0: 0.3, 1000: 0.3}),
        (WarmUp(0.4, steps=4), {0: 0.0, 1: 0.1, 2: 0.2, 4: 0.4, 5: 0.4}),
        (WarmUp(0.4, steps=2, start=0.2), {0: 0.2, 1: 0.3, 2: 0.4}),
        (LateStart(0.4, start=3), {0: 0.0, 2: 0.0, 3: 0.4, 9: 0.4}),
        (LateStart(0.4, start=3, ramp=2), {3: 0.0, 4: 0.2, 5: 0.4}),
        (Cosine(0.4, steps=4), {0: 0.4, 1: 0.2 + 0.2 * math.cos(math.pi / 4), 2: 0.2, 4: 0.0, 7: 0.0}),
        (Decay(0.4, steps=4, start=2, final=0.2), {0: 0.4, 2: 0.4, 4: 0.3, 6: 0.2, 8: 0.2}),
        (Piecewise({2: 0.0, 4: 0.4, 8: 0.2}), {0: 0.0, 2: 0.0, 3: 0.2, 4: 0.4, 6: 0.3, 8: 0.2, 9: 0.2}),
    ],
    ids=str,
)
def test_schedule_is_what_it_says(schedule: Schedule, expected: dict[int, float]) -> None:
    for step, weight in expected.items():
        assert schedule.at(step) == pytest.approx(weight, abs=1e-15)
    assert schedule.length is not None
    assert schedule.at(schedule.length) == schedule.at(schedule.length + 100)


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=10, deadline=None)
def test_value_takes_the_weight_of_its_step(seed: int) -> None:
    net, x = network(seed), signals(seed + 1)
    with ActivationPenalty(net, [nn.ReLU], 1.0) as penalty:
        net(x)
        unit = penalty.value()
    schedule = WarmUp(0.4, steps=4)
    with ActivationPenalty(net, [nn.ReLU], schedule) as penalty:
        for step in range(6):
            assert penalty.weights == dict.fromkeys(["1", "3"], schedule.at(step))
            net(x)
            torch.testing.assert_close(penalty.value(), unit * schedule.at(step))
            with torch.no_grad():  # validation does not count
                net(x)
                torch.testing.assert_close(penalty.value(), (unit * schedule.at(step + 1)).detach())
        assert penalty.steps == 6
    with penalty:
        assert penalty.steps == 6


def test_any_function_and_one_rule_per_layer() -> None:
    net, x = network(), signals()
    with ActivationPenalty(net, [nn.ReLU], lambda step: 0.1 * step) as penalty:
        for step in range(3):
            assert penalty.weights["1"] == pytest.approx(0.1 * step)
            net(x)
            penalty.value()
    with ActivationPenalty(net, [nn.ReLU], {"1": LateStart(0.5, 1), "*": 2.0}) as penalty:
        assert penalty.weights == {"1": 0.0, "3": 2.0}
        net(x)
        penalty.value()
        assert penalty.weights == {"1": 0.5, "3": 2.0}
        assert repr(penalty) == "<ActivationPenalty of '1', '3': weight 0.5 to 2>"
    with pytest.raises(NameMatchError, match="weight has the key '13'"):
        ActivationPenalty(net, [nn.ReLU], {"13": LateStart(0.5, 1), "*": 2.0})


def test_weights_by_size_let_layers_count_alike() -> None:
    net, x = network(), signals()
    with ActivationPenalty(net, [nn.ReLU], BySize(0.3)) as penalty:
        with pytest.raises(HookError, match=r"weights depend on the activations.*forward pass and value\(\)"):
            _ = penalty.weights
        assert repr(penalty) == "<ActivationPenalty of '1', '3': weight BySize(weight=0.3)>"
        net(x)
        by_size = penalty.value()
        assert penalty.weights == {"1": pytest.approx(0.3 * 10 / 16), "3": pytest.approx(0.3 * 10 / 4)}
    with ActivationPenalty(net, [nn.ReLU], 0.3 * 10, per_entry=True) as penalty:
        net(x)
        torch.testing.assert_close(penalty.value(), by_size)
    with ActivationPenalty(net, [nn.ReLU], BySize(WarmUp(0.6, 2))) as penalty:
        for _ in range(2):
            net(x)
            value = penalty.value()
        torch.testing.assert_close(value, by_size)


def test_manual_steps_count_optimizer_steps_or_epochs() -> None:
    net, x = network(), signals()
    with ActivationPenalty(net, [nn.ReLU], LateStart(0.5, 1), manual_steps=True) as penalty:
        for _ in range(3):
            net(x)
            assert penalty.value() == 0
        assert penalty.steps == 0
        penalty.step()
        net(x)
        assert penalty.value() > 0
    with pytest.raises(ParameterError, match=r"manual_steps is False, so that value\(\) counts steps"):
        ActivationPenalty(net, [nn.ReLU], 1.0).step()


def test_a_step_that_raises_does_not_count() -> None:
    net, x = network(), signals()
    with ActivationPenalty(net, [nn.ReLU], WarmUp(0.5, 4)) as penalty:
        with pytest.raises(HookError):
            penalty.value()
        net(x * math.nan)
        with pytest.raises(HookError, match="not finite"):
            penalty.value()
        assert penalty.steps == 0


@pytest.mark.parametrize(
    "weight",
    [WarmUp(0.2, 7), BySize(Cosine(0.2, 9)), TargetSparsity(0.8), TargetSparsity(0.8, per_layer=True)],
    ids=str,
)
@pytest.mark.parametrize("manual", [False, True])
def test_training_resumes_to_the_same_bits(weight: object, manual: bool) -> None:
    net, batches = network(), [signals(seed) for seed in range(8)]

    def train(net: nn.Module, penalty: ActivationPenalty, batches: list[Tensor]) -> None:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for number, x in enumerate(batches):
            loss = net(x).square().mean() + penalty.value()
            loss.backward()
            if not manual or number % 2:
                optimizer.step()
                optimizer.zero_grad()
            if manual and number % 2:
                penalty.step()

    with ActivationPenalty(net, [nn.ReLU], weight, manual_steps=manual) as penalty:  # type: ignore[arg-type]
        train(net, penalty, batches[:4])
        weights, state = copy.deepcopy(net.state_dict()), json.loads(json.dumps(penalty.state_dict()))
        train(net, penalty, batches[4:])
    again = network(9)
    again.load_state_dict(weights)
    with ActivationPenalty(again, [nn.ReLU], weight, manual_steps=manual) as resumed:  # type: ignore[arg-type]
        resumed.load_state_dict(state)
        train(again, resumed, batches[4:])
    assert resumed.state_dict() == penalty.state_dict()
    assert resumed.weights == penalty.weights
    for have, want in zip(again.parameters(), net.parameters(), strict=True):
        assert torch.equal(have, want)


def test_states_that_do_not_fit_are_refused() -> None:
    net = network()
    plain = ActivationPenalty(net, [nn.ReLU], 0.1)
    every = ActivationPenalty(net, [nn.ReLU], TargetSparsity(0.9))
    layers = ActivationPenalty(net, [nn.ReLU], TargetSparsity(0.9, per_layer=True))
    for penalty, state, message in (
        (plain, every.state_dict(), "state is that of a TargetSparsity, and this penalty's weight is none"),
        (layers, every.state_dict(), "multipliers for the model itself, and this penalty has them for '1', '3'"),
        (plain, {**plain.state_dict(), "version": 99}, r"version 99; expected .* version 1"),
        (plain, {**plain.state_dict(), "steps": -1}, "has -1 steps"),
        (plain, [1], "the state is list"),
        (
            every,
            {**every.state_dict(), "multipliers": {"": {"log_weight": "0"}}},
            "log_weight = '0'; expected a number",
        ),
    ):
        with pytest.raises(ParameterError, match=message):
            penalty.load_state_dict(state)  # type: ignore[arg-type]


def test_settings_out_of_range_are_refused() -> None:
    for make, message in (
        (lambda: WarmUp(-1.0, 3), "weight is -1.0; expected a finite number at least 0"),
        (lambda: WarmUp(1.0, 0), "steps is 0; expected a whole number of at least 1"),
        (lambda: LateStart(1.0, -1), "start is -1"),
        (lambda: Cosine(math.nan, 3), "weight is nan"),
        (lambda: Decay(1.0, 3, final=math.inf), "final is inf"),
        (lambda: Piecewise({}), r"points is \{\}; expected a mapping"),
        (lambda: Piecewise({0: -1.0}), r"points\[0\] is -1.0"),
        (lambda: Piecewise({-1: 1.0}), "a step in points is -1"),
        (lambda: BySize(-1.0), "weight is -1.0; expected a finite number of at least 0"),
    ):
        with pytest.raises(ParameterError, match=message):
            make()
    net = network()
    with ActivationPenalty(net, [nn.ReLU], lambda step: -1.0) as penalty:
        net(signals())
        with pytest.raises(ParameterError, match=r"the weight at step 0 is -1\.0"):
            penalty.value()
