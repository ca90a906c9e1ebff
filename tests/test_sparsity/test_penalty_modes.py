"""The penalty under autocast, checkpointing, compilation, copies, exceptions, and other people's hooks."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deep_sparse_coding.errors import HookError, UnsupportedError
from deep_sparse_coding.sparsity import ActivationPenalty


def network(seed: int = 0, inplace: bool = False) -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(inplace), nn.Linear(16, 16), nn.ReLU(inplace), nn.Linear(16, 2), nn.Softplus()
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 3
    return net


def signals(seed: int = 1, batch: int = 8) -> Tensor:
    return torch.randn(batch, 6, generator=torch.Generator().manual_seed(seed))


def plain(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the value and the gradients of output sum + penalty without any special mode."""
    with ActivationPenalty(net, [nn.ReLU], 0.1) as penalty:
        loss = net(x).sum()
        value = penalty.value()
    return value.detach(), list(torch.autograd.grad(loss + value, list(net.parameters())))


@pytest.mark.parametrize("inplace", [False, True])
def test_autocast_computes_value_and_gradient_in_float32(inplace: bool) -> None:
    net, x = network(inplace=inplace), signals(batch=64)
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        outputs.append(output)

    net[1].register_forward_hook(keep)
    with ActivationPenalty(net, ["1"], 0.1) as penalty, torch.autocast("cpu", dtype=torch.bfloat16):
        net(x)
        value = penalty.value()
    (output,) = outputs
    assert output.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    # In bfloat16 the sum of a thousand entries would be off by parts in a hundred.
    torch.testing.assert_close(value, 0.1 * output.float().sum() / 64, rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(value, output, retain_graph=True)
    torch.testing.assert_close(gradient, (0.1 / 64 * output.float().sign()).bfloat16(), rtol=0, atol=0)
    value.backward()
    assert penalty.report()["1"].zero_fraction == pytest.approx((output == 0).float().mean().item())


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("save_signs", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_checkpointing_counts_once_and_has_the_same_gradient(save_signs: bool, inplace: bool, together: bool) -> None:
    net, x = network(inplace=inplace), signals()
    expected_value, expected = plain(net, x)
    with ActivationPenalty(net, [nn.ReLU], 0.1, save_signs=save_signs) as penalty:
        for step in range(3):
            net.zero_grad()
            if together:
                y = net[4:](checkpoint(net[:4], x, use_reentrant=False))
            else:
                y = net[4:](checkpoint(net[2:4], checkpoint(net[:2], x, use_reentrant=False), use_reentrant=False))
            value = penalty.value()
            torch.testing.assert_close(value.detach(), expected_value)
            (y.sum() + value).backward()
            for parameter, want in zip(net.parameters(), expected, strict=True):
                torch.testing.assert_close(parameter.grad, want)
            assert penalty.report()["1"].calls == step + 1
        with pytest.raises(HookError, match="found no activations"):
            penalty.value()


def test_reentrant_checkpointing_is_refused_with_the_remedy() -> None:
    net, x = network(), signals().requires_grad_()
    with ActivationPenalty(net, [nn.ReLU], 0.1) as penalty:
        net[2:](checkpoint(net[:2], x, use_reentrant=True))
        with pytest.raises(HookError, match=r"'1' ran only without gradient.*set use_reentrant=False"):
            penalty.value()


def test_compiled_inside_and_outside_of_the_context() -> None:
    net, x = network(), signals()
    expected, _ = plain(net, x)
    torch.compiler.reset()
    with ActivationPenalty(net, [nn.ReLU], 0.1) as penalty:
        compiled = torch.compile(net, backend="eager")
        for step in range(2):
            y = compiled(x)
            value = penalty.value()
            torch.testing.assert_close(value.detach(), expected)
            (y.sum() + value).backward()
            assert penalty.report()["3"].calls == step + 1
    compiled(x)
    assert penalty.report()["3"].calls == 2
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager")
    assert isinstance(compiled, nn.Module)
    with ActivationPenalty(compiled, ["1", "3"], 0.1) as penalty:
        compiled(x)
        torch.testing.assert_close(penalty.value().detach(), expected)


def test_compiled_model_that_ran_before_says_so_or_works() -> None:
    net, x = network(), signals()
    torch.compiler.reset()
    compiled = torch.compile(net, backend="eager")
    compiled(x)
    with ActivationPenalty(net, [nn.ReLU], 0.1) as penalty:
        compiled(x)
        with pytest.raises(HookError, match=r"compiled and had run before.*torch.compiler.reset\(\)"):
            penalty.value()
        torch.compiler.reset()
        compiled(x)
        torch.testing.assert_close(penalty.value().detach(), plain(net, x)[0])


def test_exception_leaves_only_other_peoples_hooks_and_the_context_works_again() -> None:
    net, x = network(), signals()
    expected, _ = plain(net, x)
    seen: list[str] = []
    net[1].register_forward_hook(lambda *_: seen.append("before"))
    penalty = ActivationPenalty(net, [nn.ReLU], 0.1)

    def run() -> None:
        with penalty:
            net[1].register_forward_hook(lambda *_: seen.append("inside"))
            net(x)
            raise ValueError("from inside")

    with pytest.raises(ValueError, match="from inside"):
        run()
    assert [len(module._forward_hooks) for module in net] == [0, 2, 0, 0, 0, 0]
    assert penalty.report()["1"].calls == 1
    with penalty:
        seen.clear()
        net(x)
        assert seen == ["before", "inside"]
        torch.testing.assert_close(penalty.value().detach(), expected)
        with pytest.raises(HookError, match="this ActivationPenalty is in use already"), penalty:
            pass
    assert penalty.report()["1"].calls == 1


def test_model_copies_and_pickles_inside_and_after() -> None:
    net, x = network(), signals()
    expected, _ = plain(net, x)
    with ActivationPenalty(net, [nn.ReLU], 0.1) as penalty:
        net(x)
        for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            twin(x)
        torch.testing.assert_close(penalty.value().detach(), expected)
        keys = list(net.state_dict())
    assert all(not module._forward_hooks for module in net.modules())
    assert keys == list(network().state_dict())
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(not module._forward_hooks for module in twin.modules())
        torch.testing.assert_close(plain(twin, x)[0], expected)


def test_hook_that_is_called_after_the_context_does_nothing() -> None:
    """Compiled code may hold on to a hook that was removed."""
    net, x = network(), signals()
    with ActivationPenalty(net, [nn.ReLU], 0.1) as penalty:
        hook = next(iter(net[1]._forward_hooks.values()))
        net(x)
    hook(net[1], (x,), x)
    assert penalty.report()["1"].calls == 1


def test_two_penalties_at_once_do_not_mix() -> None:
    net, x = network(), signals()
    with ActivationPenalty(net, ["1"], 0.1) as first, ActivationPenalty(net, ["3"], 0.1) as second:
        net(x)
        total = first.value() + second.value()
    torch.testing.assert_close(total.detach(), plain(net, x)[0])


def test_nothing_is_held_after_value() -> None:
    net, x = network(), signals()
    held: list[weakref.ref[Tensor]] = []

    def watch(module: nn.Module, inputs: object, output: Tensor) -> None:
        held.append(weakref.ref(output))

    handle = net[1].register_forward_hook(watch)
    with ActivationPenalty(net, [nn.ReLU], 0.1) as penalty:
        net(x)
        penalty.value().backward()
        gc.collect()
        assert held[0]() is None
        with torch.no_grad():
            net(x)
        gc.collect()
        assert held[1]() is None
    handle.remove()


def test_saves_no_copy_for_the_backward_pass() -> None:
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    def storages(weight: float | None) -> set[int]:
        net, x = network(), signals()
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if weight is None:
                net(x)
            else:
                with ActivationPenalty(net, [nn.ReLU], weight) as penalty:
                    net(x)
                    penalty.value()
        return {tensor.untyped_storage().data_ptr() for tensor in saved}

    assert len(storages(0.1)) == len(storages(None))


def test_training_is_the_same_with_and_without_measuring() -> None:
    x = signals()
    nets = network(), network()
    for net, measure in zip(nets, (True, False), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with ActivationPenalty(net, [nn.ReLU], 0.1, measure=measure) as penalty:
            for _ in range(3):
                optimizer.zero_grad()
                (net(x).sum() + penalty.value()).backward()
                optimizer.step()
    for have, want in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(have, want)


def test_data_parallel_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"cannot watch torch.nn.DataParallel"):
        ActivationPenalty(nn.DataParallel(network()), [nn.ReLU], 0.1)
