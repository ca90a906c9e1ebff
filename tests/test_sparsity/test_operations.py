"""Multiply-adds: equal to counting them one by one with convolutions of ones."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deep_sparse_coding.errors import HookError, NameMatchError
from deep_sparse_coding.sparsity.inference.operations import multiply_adds

LAYERS = {
    "plain": nn.Conv2d(4, 6, 3),
    "strided": nn.Conv2d(4, 6, (3, 2), stride=(2, 3), padding=(1, 0)),
    "grouped": nn.Conv2d(4, 6, 3, groups=2, padding=2, dilation=2),
    "same": nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)),
    "valid": nn.Conv2d(4, 2, 1, padding="valid"),
    "reflected": nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    "circular": nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"),
    "skipping": nn.Conv2d(4, 6, 2, stride=3),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    "transposed dilated": nn.ConvTranspose2d(4, 5, (2, 3), stride=(1, 2), padding=(0, 1), dilation=2),
    "line": nn.Conv1d(4, 3, 3, stride=2, padding=1),
    "volume": nn.Conv3d(4, 3, 2, padding=1),
}


def ones_like(layer: nn.Module) -> nn.Module:
    """Set all weights to one: an output is then the number of multiply-adds behind it, of an input of ones."""
    for parameter in layer.parameters():
        parameter.data.fill_(1.0)
    if getattr(layer, "bias", None) is not None:
        layer.bias.data.zero_()  # type: ignore[union-attr,operator]
    return layer


def drawn(seed: int, layer: nn.Module) -> Tensor:
    axes = len(layer.kernel_size)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    sizes = [int(n) for n in torch.randint(5, 9, (axes,), generator=generator)]
    return (torch.rand(2, 4, *sizes, generator=generator) < 0.4).float()


@pytest.mark.parametrize("name", LAYERS)
@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=6, deadline=None)
def test_counts_equal_sums_of_ones(name: str, seed: int) -> None:
    layer = ones_like(LAYERS[name])
    x = drawn(seed, layer)
    row = multiply_adds(nn.Sequential(layer), x)["0"]
    with torch.no_grad():
        assert row.dense == int(layer(torch.ones_like(x)).sum())
        assert row.dense - row.unnecessary == int(layer(x).sum())
    assert row.zero_fraction == pytest.approx(float((x == 0).double().mean()))
    alone = multiply_adds(nn.Sequential(layer), x[0])["0"] if name != "reflected" else None
    if alone is not None:
        assert alone.dense == row.dense // 2


def test_network_report_and_keyword_input() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head, self.idle = nn.Conv2d(1, 2, 3), nn.Linear(32, 5), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=torch.relu(self.conv(x)).flatten(1) * 0)

    net = Net()
    report = multiply_adds(net, torch.ones(3, 1, 6, 6))
    assert (report["conv"].dense, report["conv"].unnecessary) == (3 * 16 * 9 * 2, 0)
    assert (report["head"].dense, report["head"].unnecessary, report["head"].fraction) == (480, 480, 1.0)
    assert report["idle"].calls == 0
    assert report.fraction == pytest.approx(480 / (480 + 864))
    assert [row.name for row in report] == ["conv", "head", "idle"]
    assert len(report) == 3
    text = str(report)
    assert "480      100.0 %      100.0 %" in text
    assert text.splitlines()[-1].split() == ["all", "1,344", "35.7", "%"]
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["layers"][2]["zero_fraction"] is None
    assert all(not module._forward_hooks for module in net.modules())
    with pytest.raises(NameMatchError, match="no layer 'haed'; did you mean 'head'"):
        report["haed"]
    with pytest.raises(HookError, match=r"no linear or convolutional layer of Sequential ran \(it has 0\)"):
        multiply_adds(nn.Sequential(nn.ReLU()), torch.ones(1, 2))
