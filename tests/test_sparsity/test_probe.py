"""The probe: what it records, what it refuses, and that it leaves the model as it was."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from deep_sparse_coding.errors import HookError, NameMatchError, UnsupportedError
from deep_sparse_coding.sparsity import Probe


def network(seed: int = 0, inplace: bool = False) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=inplace), nn.Conv2d(4, 3, 3), nn.ReLU(inplace=inplace))
    net = net.double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
    return net


def images(seed: int = 1, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_records_one_tensor_for_each_call_without_gradient() -> None:
    net, x = network(), images()
    with Probe(net, targets=[nn.ReLU]) as probe:
        y = net(x)
        net(2 * x)
    assert probe.names == ("1", "3")
    assert repr(probe) == "<Probe of '1', '3': 4 tensors recorded>"
    recorded = probe.activations
    assert [len(calls) for calls in recorded.values()] == [2, 2]
    torch.testing.assert_close(recorded["3"][0], y.detach())
    torch.testing.assert_close(recorded["1"][0], net[1](net[0](x)).detach())
    assert not recorded["1"][0].requires_grad
    with pytest.raises(HookError, match="'1' ran 2 times; expected once"):
        probe["1"]
    probe.clear()
    with pytest.raises(HookError, match="'1' did not run inside of the context; expected one forward pass"):
        probe["1"]


def test_record_survives_an_in_place_module_behind_the_target() -> None:
    net, x = network(inplace=True), images()
    with Probe(net, targets=["0"]) as probe:
        net(x)
    torch.testing.assert_close(probe["0"], net[0](x).detach())
    assert (probe["0"] < 0).any()


def test_tensors_of_the_graph_give_gradients_and_refuse_overwritten_ones() -> None:
    net, x = network(), images()
    with Probe(net, targets=[nn.ReLU], detach=False) as probe:
        loss = net(x).square().sum()
    (gradient,) = torch.autograd.grad(loss, probe["3"])
    torch.testing.assert_close(gradient, 2 * probe["3"])
    with Probe(network(inplace=True), targets=["0"], detach=False) as probe:
        probe._watch.modules["0"](x).relu_()
    with pytest.raises(HookError, match=r"'0' was overwritten in place.*detach=True"):
        probe["0"]


def test_clear_and_entering_again_start_anew() -> None:
    net, x = network(), images()
    probe = Probe(net, targets=[nn.ReLU])
    for _ in range(2):
        with probe:
            net(x)
            probe.clear()
            net(x)
        assert len(probe.activations["1"]) == 1


def test_nothing_ran_and_some_did_not_run() -> None:
    net, x = network(), images()
    with Probe(net, targets=[nn.ReLU]) as probe:
        pass
    net(x)
    with pytest.raises(HookError, match=r"recorded nothing: none of '1', '3' ran.*torch.compiler.reset"):
        _ = probe.activations
    with Probe(net, targets=[nn.ReLU]) as probe:
        net[:2](x)
    with pytest.raises(HookError, match=r"'3' did not run, while others did.*allow_missing=True"):
        probe.report()
    with Probe(net, targets=[nn.ReLU], allow_missing=True) as probe:
        net[:2](x)
    assert probe.activations["3"] == ()
    row = probe.report()["3"]
    assert row.calls == 0
    assert math.isnan(row.zero_fraction)
    with pytest.raises(NameMatchError, match="does not watch '11'; did you mean '1'"):
        probe["11"]


def test_only_own_hooks_are_removed_also_after_an_exception() -> None:
    net, x = network(), images()
    seen: list[str] = []
    net[1].register_forward_hook(lambda *_: seen.append("user"))

    def run() -> None:
        with Probe(net, targets=[nn.ReLU]):
            net[3].register_forward_hook(lambda *_: seen.append("inside"))
            net(x)
            raise ValueError("from inside")

    with pytest.raises(ValueError, match="from inside"):
        run()
    seen.clear()
    net(x)
    assert seen == ["user", "inside"]
    assert [len(module._forward_hooks) for module in net] == [0, 1, 0, 1]


def test_model_copies_and_pickles_inside_and_after() -> None:
    net, x = network(), images()
    with Probe(net, targets=[nn.ReLU]) as probe:
        net(x)
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            torch.testing.assert_close(twin(x), net(x))
        assert len(probe.activations["1"]) == 3
    assert all(not module._forward_hooks for module in net)
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x), net(x))


def test_tuples_give_their_first_tensor_and_others_are_refused() -> None:
    lstm = nn.LSTM(3, 4, batch_first=True)
    with Probe(lstm, targets=[nn.LSTM]) as probe:
        output, _ = lstm(torch.ones(2, 5, 3))
    torch.testing.assert_close(probe[""], output.detach())

    class Answer(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x}

    answer = nn.Sequential(Answer())
    with (
        Probe(answer, targets=[Answer]),
        pytest.raises(HookError, match="'0' put out a dict; expected a tensor, or a tuple"),
    ):
        answer(torch.ones(2))


def test_recomputation_is_not_recorded() -> None:
    net, x = network(), images().requires_grad_()
    with Probe(net, targets=[nn.ReLU]) as probe:
        checkpoint(net, x, use_reentrant=False).sum().backward()
        assert [len(calls) for calls in probe.activations.values()] == [1, 1]


def test_inference_mode_and_nesting() -> None:
    net, x = network(), images()
    with torch.inference_mode(), Probe(net, targets=[nn.ReLU]) as probe, Probe(net, "0", detach=False) as other:
        net(x)
    assert probe["1"].shape == (3, 4, 6, 6)
    assert other["0"].shape == (3, 4, 6, 6)
    with (
        Probe(net, targets=[nn.ReLU]) as probe,
        pytest.raises(HookError, match="this Probe is in use already"),
        probe,
    ):
        pass


def test_data_parallel_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="DistributedDataParallel"):
        Probe(nn.DataParallel(network()), targets=[nn.ReLU])
