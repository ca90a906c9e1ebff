"""Sparsity over a loader: equal to the measures of everything at once, and the model is given back as it was."""

from __future__ import annotations

import weakref
from collections import UserDict
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from deep_sparse_coding.errors import HookError, NameMatchError, ParameterError
from deep_sparse_coding.sparsity import Probe
from deep_sparse_coding.sparsity.measuring.survey import measure_sparsity


def network(seed: int = 0) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5),
        nn.ReLU(),
    ).double()  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
    return net


def images(seed: int, batch: int) -> Tensor:
    return torch.randn(batch, 2, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=10, deadline=None)
def test_batches_give_what_all_samples_give_at_once(seed: int) -> None:
    net, x = network(seed % 97), images(seed, 11)
    loader = DataLoader(TensorDataset(x, torch.arange(11)), batch_size=4)
    net.train()
    net[1].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    report = measure_sparsity(net, loader, targets=[nn.ReLU])
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(not module._forward_hooks for module in net.modules())
    net.eval()
    with Probe(net, [nn.ReLU]) as probe:
        net(x)
    for row, whole in zip(report, probe.report(), strict=True):
        assert (row.name, row.entries, row.channels) == (whole.name, whole.entries, whole.channels)
        assert row.calls == 3
        assert row.dead_channels == whole.dead_channels
        for measure in ("zero_fraction", "hoyer", "l1_per_entry"):
            assert getattr(row, measure) == pytest.approx(getattr(whole, measure), rel=1e-12, nan_ok=True)


def test_kinds_of_batches() -> None:
    net, x = network(), images(3, 4)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, *, pixels: Tensor, scale: float = 1.0) -> Tensor:
            return self.net(pixels * scale)

    expected = measure_sparsity(net, [x], [nn.ReLU]).zero_fraction
    for batch in ((x, 1), [x, "label"], ({"x": x},)):
        forward = {} if not isinstance(batch[0], dict) else {"forward": lambda model, batch: model(batch[0]["x"])}
        assert measure_sparsity(net, [batch], [nn.ReLU], **forward).zero_fraction == expected
    for batch in ({"pixels": x}, UserDict(pixels=x, scale=1.0)):
        assert measure_sparsity(Named(), [batch], [nn.ReLU]).zero_fraction == expected
    with pytest.raises(ParameterError, match=r"a batch is a int; expected a tensor, a tuple.*set forward="):
        measure_sparsity(net, [7], [nn.ReLU])


def test_progress_limit_and_streams() -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(images(0, 6))

    net = network()
    seen: list[tuple[int, int | None]] = []
    keep = lambda done, total: seen.append((done, total))  # noqa: E731
    measure_sparsity(net, DataLoader(Stream(), batch_size=2), [nn.ReLU], progress=keep)
    assert seen == [(1, None), (2, None), (3, None)]
    seen.clear()
    report = measure_sparsity(net, [images(0, 2)] * 5, [nn.ReLU], progress=keep, limit=2)
    assert seen == [(1, 2), (2, 2)]
    assert report["2"].calls == 2
    for limit in (0, -1, 1.5, True):
        with pytest.raises(ParameterError, match=r"limit is .*; expected a number of batches of at least 1"):
            measure_sparsity(net, [images(0, 2)], [nn.ReLU], limit=limit)  # type: ignore[arg-type]


def test_given_back_after_an_exception() -> None:
    net = network()
    net.train()

    def stop(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    fused = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(KeyboardInterrupt):
        measure_sparsity(net, [images(0, 2)], [nn.ReLU], progress=stop)
    assert all(module.training and not module._forward_hooks for module in net.modules())
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled() is fused


def test_what_did_not_run_is_an_error() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    x = torch.ones(2, 3)
    with pytest.raises(HookError, match="'idle' did not run in any of 2 batches; expected every target to run"):
        measure_sparsity(Idle(), [x, x], [nn.ReLU])
    assert measure_sparsity(Idle(), [x, x], [nn.ReLU], allow_missing=True)["idle"].calls == 0
    with pytest.raises(HookError, match="'idle' did not run in any of 1 batches"):
        measure_sparsity(Idle(), [x], ["idle"], allow_missing=True)
    with pytest.raises(ParameterError, match="the loader gave no batch"):
        measure_sparsity(Idle(), [], [nn.ReLU])
    with pytest.raises(NameMatchError, match="did you mean 'used'"):
        measure_sparsity(Idle(), [x], ["usd"])


def test_transformer_layers_run_module_by_module() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True)
    net = nn.TransformerEncoder(layer, 2)
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2])
    report = measure_sparsity(
        net, [x], [nn.ReLU, nn.Linear], forward=lambda model, x: model(x, src_key_padding_mask=mask), channel_axis=-1,
        allow_missing=True,
    )  # fmt: skip
    assert report["layers.1.activation"].entries == 3 * 5 * 16
    assert 0.2 < report["layers.1.activation"].zero_fraction < 0.8


def test_memory_does_not_grow_with_the_number_of_batches() -> None:
    outputs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    net = nn.Sequential(nn.ReLU())

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        outputs.append(weakref.ref(output))

    def count(done: int, total: int | None) -> None:
        alive.append(sum(output() is not None for output in outputs))

    net[0].register_forward_hook(keep)
    measure_sparsity(net, (torch.ones(4, 10) for _ in range(20)), [nn.ReLU], progress=count)
    assert len(outputs) == 20
    assert max(alive) <= 1
