"""The penalty: its value and gradient, what counts, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deep_sparse_coding.errors import DtypeError, HookError, NameMatchError, ParameterError, ShapeError
from deep_sparse_coding.sparsity import ActivationPenalty, Probe

SEEDS = st.integers(0, 2**31 - 1)


def network(seed: int = 0, inplace: bool = False, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=inplace), nn.Conv2d(4, 3, 3), nn.ReLU(inplace=inplace))
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype) / 3
    return net


def images(seed: int = 1, batch: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, 2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(net: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


def by_hand(net: nn.Sequential, x: Tensor, weights: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Σ_j ω_j Σ|x_j| / batch, with the network's layers called as functions."""
    total = x.new_zeros(())
    for position in (0, 2):
        x = torch.relu(net[position](x))
        total = total + weights[position // 2] * x.abs().sum() / x.shape[0]
    return total


@given(seed=SEEDS, inplace=st.booleans(), measure=st.booleans(), save_signs=st.booleans())
@settings(max_examples=20, deadline=None)
def test_value_and_gradient_equal_the_hand_computation(
    seed: int, inplace: bool, measure: bool, save_signs: bool
) -> None:
    net, x = network(seed, inplace), images(seed + 1)
    with ActivationPenalty(net, [nn.ReLU], 0.3, measure=measure, save_signs=save_signs) as penalty:
        net(x)
        value = penalty.value()
    expected = 0.3 * by_hand(net, x)
    torch.testing.assert_close(value, expected)
    for have, want in zip(gradients(net, value), gradients(net, expected), strict=True):
        torch.testing.assert_close(have, want)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_signed_activations_have_the_gradient_of_the_absolute_value(seed: int) -> None:
    net, x = network(seed), images(seed + 1).requires_grad_()
    with ActivationPenalty(net, ["0"], 2.0) as penalty:
        net(x)
        value = penalty.value()
    expected = 2 * net[0](x).abs().sum() / 3
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (value, expected)))


def test_repeating_the_batch_leaves_the_value_and_doubling_the_weight_doubles_the_gradient() -> None:
    net, x = network(), images()

    def run(batch: Tensor, weight: float, per_entry: bool = False) -> Tensor:
        with ActivationPenalty(net, [nn.ReLU], weight, per_entry=per_entry) as penalty:
            net(batch)
            return penalty.value()

    for per_entry in (False, True):
        once, twice = run(x, 0.3, per_entry), run(x.repeat(2, 1, 1, 1), 0.3, per_entry)
        torch.testing.assert_close(once, twice)
        for have, want in zip(gradients(net, run(x, 0.6, per_entry)), gradients(net, once), strict=True):
            torch.testing.assert_close(have, 2 * want)


def test_per_entry_takes_the_mean_of_every_layer() -> None:
    net, x = network(), images()
    with ActivationPenalty(net, [nn.ReLU], 0.3, per_entry=True) as penalty, Probe(net, [nn.ReLU]) as probe:
        net(x)
        expected = 0.3 * (probe["1"].abs().mean() + probe["3"].abs().mean())
        torch.testing.assert_close(penalty.value().detach(), expected)


def test_weights_by_name_and_glob() -> None:
    net, x = network(), images()
    with ActivationPenalty(net, [nn.ReLU], {"*": 0.5, "3": 2.0}) as penalty:
        net(x)
        torch.testing.assert_close(penalty.value(), by_hand(net, x, (0.5, 2.0)))
    assert penalty.weights == {"1": 0.5, "3": 2.0}
    assert repr(penalty) == "<ActivationPenalty of '1', '3': weight 0.5 to 2>"
    assert penalty.names == ("1", "3")
    with pytest.raises(NameMatchError, match=r"weight has the key '13'.*did you mean .*'3'"):
        ActivationPenalty(net, [nn.ReLU], {"1": 0.5, "13": 2.0})
    with pytest.raises(ParameterError, match="weight has no value for '3'"):
        ActivationPenalty(net, [nn.ReLU], {"1": 0.5})


@pytest.mark.parametrize("weight", [-1e-9, math.nan, math.inf, "1", None, True, [0.1], {"1": -1.0, "3": 1.0}, 1j])
def test_weights_out_of_range_are_refused(weight: object) -> None:
    with pytest.raises(ParameterError, match=r"weight.* is .*; expected a finite number of at least 0"):
        ActivationPenalty(network(), [nn.ReLU], weight)  # type: ignore[arg-type]


def test_weight_zero_costs_nothing_and_tensors_are_numbers() -> None:
    net = network()
    with ActivationPenalty(net, [nn.ReLU], torch.tensor(0.0)) as penalty:  # type: ignore[arg-type]
        net(images())
        assert penalty.value() == 0


def test_module_that_runs_twice_counts_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin, self.act = nn.Linear(4, 4).double(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.lin(self.act(x)))

    net, x = Twice(), images()[:, 0, 0, :4]
    net.lin.weight.data = -2 * torch.eye(4, dtype=torch.float64)
    net.lin.bias.data = torch.ones(4, dtype=torch.float64)
    for per_entry, size in ((False, 3), (True, 12)):
        with ActivationPenalty(net, ["act"], 1.0, per_entry=per_entry) as penalty:
            y = net(x)
            value = penalty.value()
        assert y.abs().sum() > 0
        torch.testing.assert_close(value, (torch.relu(x).sum() + y.sum()) / size)
        assert penalty.report()["act"].calls == 2


def test_several_forward_passes_add_up_and_are_consumed() -> None:
    net, x, z = network(), images(), images(7, batch=5)
    with ActivationPenalty(net, [nn.ReLU], 1.0) as penalty:
        net(x)
        net(z)
        torch.testing.assert_close(penalty.value(), by_hand(net, x) + by_hand(net, z))
        net(z)
        torch.testing.assert_close(penalty.value(), by_hand(net, z))
        net(x)
        penalty.discard()
        net(z)
        torch.testing.assert_close(penalty.value(), by_hand(net, z))


def test_gradient_accumulation_equals_the_sum() -> None:
    net, x = network(), images(batch=4)
    expected = gradients(net, by_hand(net, x))
    with ActivationPenalty(net, [nn.ReLU], 1.0) as penalty:
        for part in x.split(2):
            net(part)
            (penalty.value() / 2).backward()
    for parameter, want in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, want)


def test_larger_weight_gives_more_zeros_after_training() -> None:
    def train(weight: float) -> float:
        generator = torch.Generator().manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)).double()
        for parameter in net.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
        x = torch.randn(128, 8, generator=generator, dtype=torch.float64)
        t = x[:, :3].argmax(1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
        with ActivationPenalty(net, [nn.ReLU], weight) as penalty:
            for _ in range(150):
                optimizer.zero_grad()
                (F.cross_entropy(net(x), t) + penalty.value()).backward()
                optimizer.step()
            penalty.reset()
            with torch.no_grad():
                net(x)
        return penalty.report()["1"].zero_fraction

    none, some, much = train(0.0), train(2e-2), train(4e-2)
    assert none + 0.05 < some
    assert some + 0.05 < much


def test_eval_mode_and_validation_inside_of_the_context() -> None:
    net, x, z = network(), images(), images(7)
    net.eval()
    with ActivationPenalty(net, [nn.ReLU], 1.0) as penalty:
        with torch.no_grad():
            net(z)
        net(x)
        torch.testing.assert_close(penalty.value(), by_hand(net, x))
        with torch.no_grad():
            net(z)
            value = penalty.value()
        torch.testing.assert_close(value, by_hand(net, z).detach())
        assert not value.requires_grad
        with torch.inference_mode():
            net(z)
        net(x)
        assert penalty.value().requires_grad
    assert penalty.report()["1"].calls == 5


def test_half_precision_overflow_and_empty_batch() -> None:
    net = nn.Sequential(nn.Identity())
    with ActivationPenalty(net, [nn.Identity], 1.0) as penalty:
        net(torch.full((1, 100_000), 1.0, dtype=torch.float16))
        value = penalty.value()
        assert value == 100_000  # beyond float16
        assert value.dtype == torch.float32
        net(torch.ones(0, 4))
        assert penalty.value() == 0


def test_mixed_number_types_give_the_widest() -> None:
    net = nn.ModuleList([nn.Identity(), nn.Identity()])
    with ActivationPenalty(net, [nn.Identity], 1.0) as penalty:
        net[0](torch.ones(2, 3, dtype=torch.bfloat16))
        net[1](torch.ones(2, 3, dtype=torch.float64))
        value = penalty.value()
    assert value == 6
    assert value.dtype == torch.float64


def test_second_derivative_is_that_of_the_absolute_value() -> None:
    x = torch.tensor([[1.5, -2.0]], dtype=torch.float64, requires_grad=True)
    net = nn.Sequential(nn.Identity())
    with ActivationPenalty(net, [nn.Identity], 1.0) as penalty:
        net(x**3)
        value = penalty.value()
    expected = (x**3).abs().sum()
    derivatives = []
    for loss in (value.square(), expected.square()):
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        derivatives.append((first, second))
    torch.testing.assert_close(*derivatives)


# ---------------------------------------------------------------------------------------------------------- refusals


def test_value_outside_of_the_context() -> None:
    net = network()
    penalty = ActivationPenalty(net, [nn.ReLU], 1.0)
    net(images())
    with pytest.raises(HookError, match=r"value\(\) was called outside of the context; expected it inside of `with"):
        penalty.value()
    with penalty:
        net(images())
    with pytest.raises(HookError, match="outside of the context"):
        penalty.value()


def test_value_without_a_forward_pass_names_usual_causes() -> None:
    net = network()
    with ActivationPenalty(net, [nn.ReLU], 1.0) as penalty:
        causes = r"none of '1', '3' ran.*value\(\) called twice.*not used in forward.*compiled"
        with pytest.raises(HookError, match=causes):
            penalty.value()
        net(images())
        penalty.value()
        with pytest.raises(HookError, match=causes):
            penalty.value()


def test_forward_pass_without_gradient() -> None:
    net = network()
    with ActivationPenalty(net, [nn.ReLU], 1.0) as penalty:
        with torch.no_grad():
            net(images())
        with pytest.raises(HookError, match=r"'1', '3' ran only without gradient.*torch.no_grad\(\)"):
            penalty.value()


def test_target_that_did_not_run_is_named() -> None:
    net, x = network(), images()
    with ActivationPenalty(net, [nn.ReLU], 1.0) as penalty:
        net[:2](x)
        with pytest.raises(HookError, match=r"'3' did not run, while '1' did.*allow_missing=True"):
            penalty.value()
    with ActivationPenalty(net, [nn.ReLU], 1.0, allow_missing=True) as penalty:
        net[:2](x)
        torch.testing.assert_close(penalty.value(), by_hand(net, x, (1.0, 0.0)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activations_that_are_not_finite_are_named_once(bad: float) -> None:
    net, x = network(), images()
    broken = x.clone()
    broken[1, 0, 2, 2] = bad
    with ActivationPenalty(net, [nn.ReLU], 1.0) as penalty:
        net(broken)
        with pytest.raises(HookError, match=r"penalty of '1', '3' is not finite.*lower the learning rate"):
            penalty.value()
        net(x)
        torch.testing.assert_close(penalty.value(), by_hand(net, x))
    with ActivationPenalty(net, ["1"], 1.0, check_finite=False) as penalty:
        net(broken)
        assert not penalty.value().isfinite()


def test_output_overwritten_by_the_next_module() -> None:
    net, x = network(inplace=True), images()
    with ActivationPenalty(net, ["0"], 1.0) as penalty:
        net(x)
        value = penalty.value()
    torch.testing.assert_close(value, net[0](x).abs().sum() / 3)
    with pytest.raises(HookError, match=r"output of '0' was overwritten in place.*save_signs=True"):
        value.backward()
    with ActivationPenalty(net, ["0"], 1.0, save_signs=True) as penalty:
        net(x)
        value = penalty.value()
    for have, want in zip(
        torch.autograd.grad(value, list(net[0].parameters())),
        torch.autograd.grad(net[0](x).abs().sum() / 3, list(net[0].parameters())),
        strict=True,
    ):
        torch.testing.assert_close(have, want)


def test_outputs_that_cannot_be_penalized() -> None:
    net = nn.Sequential(nn.Identity())
    with ActivationPenalty(net, [nn.Identity], 1.0):
        with pytest.raises(DtypeError, match=r"'0' put out dtype torch.int64"):
            net(torch.ones(2, 2, dtype=torch.int64))
        with pytest.raises(ShapeError, match="'0' put out a single number"):
            net(torch.ones(()))
        with pytest.raises(HookError, match="'0' put out a tuple whose first item is a str"):
            net(("a", torch.ones(2)))
    with (
        ActivationPenalty(net, [nn.Identity], 1.0, batch_axis=2),
        pytest.raises(ShapeError, match="batch_axis is 2; expected an axis of it: -2 to 1"),
    ):
        net(torch.ones(2, 2))
    with pytest.raises(ParameterError, match="batch_axis and channel_axis are both 1"):
        ActivationPenalty(net, [nn.Identity], 1.0, batch_axis=1)


def test_batch_axis_of_recurrent_layers() -> None:
    lstm = nn.LSTM(3, 4).double()
    x = images()[0, 0, :5, :6].reshape(5, 2, 3)
    with ActivationPenalty(lstm, [nn.LSTM], 1.0, batch_axis=1, channel_axis=-1) as penalty:
        y, _ = lstm(x)
        torch.testing.assert_close(penalty.value(), y.abs().sum() / 2)
        lstm(x.repeat(1, 2, 1))
        torch.testing.assert_close(penalty.value(), y.abs().sum() / 2)
    assert penalty.report()[""].channels == 4
