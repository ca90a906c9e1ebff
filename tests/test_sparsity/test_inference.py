"""Layers that skip zeros: equal to the layers they wrap, used only where they may be, and exact after changes."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deep_sparse_coding.errors import DictionaryError, HookError, ParameterError
from deep_sparse_coding.sparsity.inference import sparse as inference
from deep_sparse_coding.sparsity.inference.sparse import SparseLinear, can_skip_zeros, sparse_inference

CASES = {
    "linear": (nn.Linear(37, 300), (5, 37)),
    "one signal": (nn.Linear(37, 5), (37,)),
    "many": (nn.Linear(9, 4), (3, 50, 9)),
    "no bias": (nn.Linear(12, 7, bias=False), (70, 12)),
    "conv": (nn.Conv2d(12, 7, 1), (3, 12, 5, 4)),
    "one image": (nn.Conv2d(12, 7, 1, bias=False), (12, 5, 4)),
    "line": (nn.Conv1d(6, 3, 1), (2, 6, 11)),
    "volume": (nn.Conv3d(6, 3, 1), (2, 6, 2, 3, 4)),
    "empty": (nn.Linear(4, 3), (0, 4)),
}


def sparse(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (x * (torch.rand(shape, generator=generator) < 0.3)).to(dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=5, deadline=None)
def test_equals_the_wrapped_layer_to_rounding(case: str, dtype: torch.dtype, seed: int) -> None:
    dense, shape = CASES[case]
    dense = copy.deepcopy(dense).to(dtype)
    layer, x = SparseLinear(dense), sparse(seed, shape, dtype)
    with torch.no_grad():
        for given_x in (x, x.movedim(0, -1).contiguous().movedim(-1, 0)):
            y, expected = layer(given_x), dense(given_x)
            assert y.shape == expected.shape
            assert y.dtype == expected.dtype
            weight = layer.weight.reshape(layer.weight.shape[:2]).abs()
            eps = torch.finfo(dtype).eps
            size = weight.sum(1).max() * x.abs().max() if x.numel() else torch.ones(())
            assert x.numel() == 0 or float((y - expected).abs().max()) <= 4 * eps * weight.shape[1] * float(size)
        if x.numel():
            assert layer._skipping(x) is not None
        assert layer(x).is_contiguous()


def test_channels_last_stays_and_threads_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = nn.Conv2d(64, 48, 1)
    layer, x = SparseLinear(dense), sparse(0, (2, 64, 9, 7), torch.float32)
    with torch.no_grad():
        one = layer(x)
        last = layer(x.contiguous(memory_format=torch.channels_last))
        assert last.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one, last)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        monkeypatch.setattr(inference, "_SHARE", 1)
        assert torch.equal(layer(x), one)


def test_runs_the_wrapped_layer_where_skipping_may_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = SparseLinear(nn.Linear(8, 4), limit=0.5, rows=3)
    used: list[bool] = []
    real = SparseLinear._skipping

    def spy(self: SparseLinear, x: Tensor) -> Tensor | None:
        result = real(self, x)
        used.append(result is not None)
        return result

    monkeypatch.setattr(SparseLinear, "_skipping", spy)
    x = torch.zeros(3, 8)
    x[:, :4] = 1
    with torch.no_grad():
        layer(x)
        assert used == [True]
        x[0, 4] = 1
        layer(x)
        layer(torch.zeros(4, 8))
        assert used == [True, False, False]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with pytest.raises(RuntimeError, match=r"same dtype|expected m1 and m2"):
            layer(x.double())
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(torch.zeros(3, 7))
    y = layer(torch.zeros(3, 8))
    y.sum().backward()
    assert layer.dense.bias.grad is not None  # type: ignore[union-attr]
    assert used == [True, False, False]


def test_weights_that_change_are_noticed_and_copies_work() -> None:
    dense = nn.Linear(8, 4)
    layer, x = SparseLinear(dense), sparse(1, (3, 8), torch.float32)
    with torch.no_grad():
        layer(x)
        dense.weight.mul_(2)
        torch.testing.assert_close(layer(x), dense(x))
        dense.load_state_dict(nn.Linear(8, 4).state_dict())
        torch.testing.assert_close(layer(x), dense(x))
        dense.weight = nn.Parameter(torch.ones(4, 8))
        torch.testing.assert_close(layer(x), dense(x))
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(twin(x), layer(x))
        dense.weight[0, 0] = math.inf
        with pytest.raises(DictionaryError, match=r"weights of a SparseLinear are not finite.*cannot be skipped"):
            layer(x)
        x[0, 0] = math.nan
        dense.weight[0, 0] = 1
        assert layer(x)[0].isnan().all()
        assert layer(x)[1:].isfinite().all()
    with torch.inference_mode():
        torch.testing.assert_close(SparseLinear(nn.Linear(8, 4))(torch.zeros(2, 8)).shape, torch.Size([2, 4]))


def test_what_can_skip_zeros() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    assert can_skip_zeros(nn.Conv2d(2, 2, 1, padding="same"))
    for other in (
        nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1, stride=2), nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 2, 1, padding=1),
        Doubled(2, 2), nn.ReLU(), nn.ConvTranspose2d(2, 2, 1),
    ):  # fmt: skip
        assert not can_skip_zeros(other)
        with pytest.raises(ParameterError, match=r"dense is .*; expected torch.nn.Linear, or a convolution with"):
            SparseLinear(other)
    hooked = nn.Linear(2, 2)
    hooked.register_forward_pre_hook(lambda module, inputs: None)
    assert not can_skip_zeros(hooked)
    with pytest.raises(ParameterError, match=r"limit is 1.5"):
        SparseLinear(nn.Linear(2, 2), limit=1.5)


class Shared(nn.Module):
    """Uses one layer twice and a large one whose input is nearly all zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.large = nn.Linear(16, 512), nn.ReLU(), nn.Linear(512, 512)
        self.again = self.large

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.gate(self.large(self.gate(self.first(x)))))


def test_calibration_uses_it_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Shared(), torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    net.train()
    with torch.no_grad():
        net.first.bias.sub_(2)  # most gates are shut
    times = iter([(1.0, 2.0), (1.0, 0.25), (3.0, 2.0)])
    monkeypatch.setattr(inference, "_race", lambda dense, sparse, repeats: next(times))
    result = sparse_inference(net, x)
    assert [(row.name, row.sparse) for row in result.layers] == [("first", False), ("large", True)]
    assert result.speedup == 1.5
    chosen = result.model.get_submodule("large")
    assert isinstance(chosen, SparseLinear)
    assert result.model.get_submodule("again") is chosen
    assert chosen.rows == 4
    density = 1 - result.layers[1].zero_fraction
    assert chosen.limit == pytest.approx(min(1.0, density * 0.9 * 4))
    assert isinstance(net.large, nn.Linear)
    assert net.training
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), net.eval()(x))
    text = str(result)
    assert text.splitlines()[2].split()[-1] == "no"
    assert text.splitlines()[3].split()[-1] == "yes"
    assert "network" in text


def test_calibration_for_real_and_errors() -> None:
    x = torch.zeros(1, 1024)
    x[0, ::200] = 1.0
    result = sparse_inference(nn.Linear(1024, 1024), x, repeats=5)
    # A matrix with five of its 1024 columns read: no machine is so noisy that this is slower.
    assert isinstance(result.model, SparseLinear)
    assert result.layers[0].zero_fraction > 0.99
    with pytest.raises(HookError, match="no linear layer or 1 × 1 convolution of Sequential ran"):
        sparse_inference(nn.Sequential(nn.ReLU()), x)
    for name, value in (("margin", 0.0), ("margin", 1.5), ("repeats", 0), ("repeats", True)):
        with pytest.raises(ParameterError, match=f"{name} is"):
            sparse_inference(nn.Linear(1024, 2), x, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"parameters on \['meta'\]; expected the CPU"):
        sparse_inference(nn.Linear(1024, 2, device="meta"), x)


def test_empty_example_leaves_layers_as_they_are() -> None:
    result = sparse_inference(nn.Linear(4, 2), torch.zeros(0, 4), repeats=1)
    assert isinstance(result.model, nn.Linear)
    assert math.isnan(result.layers[0].dense_ms)
