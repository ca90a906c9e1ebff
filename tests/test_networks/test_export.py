"""Networks as ONNX files: ONNX Runtime agrees, sizes stay free, nothing is printed, and no half of a file is left."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deep_sparse_coding as dsc
from deep_sparse_coding.networks import export
from deep_sparse_coding.networks.export import export_onnx
from deep_sparse_coding.networks.unfolded.build import unfold

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")


def axes(path: Path) -> list[int | str]:
    """Return the sizes of the file's input, names for those that are free."""
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    return [dim.dim_param or dim.dim_value for dim in shape.dim]


def run(path: Path, signal: Tensor) -> list[Tensor]:
    session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.as_tensor(out) for out in session.run(None, {"signal": signal.numpy()})]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dense() -> dsc.DenseDictionary:
    return dsc.DenseDictionary.random(8, 12, seed=0)


def test_a_compiled_network_takes_every_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    conv = dsc.ConvDictionary.random(atoms=3, channels=1, size=4, stride=2, seed=0)
    net = dsc.to_cnn(conv, sparsity=1, steps=2)
    path = tmp_path / "codes.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = export_onnx(net, path, example=normal(1, 1, 12, 12))
    assert 0 <= found <= 1e-5
    assert axes(path) == ["batch", 1, "height", "width"]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    for signal in (normal(3, 1, 14, 10), normal(1, 1, 4, 30)):
        (codes,) = run(path, signal)
        assert torch.allclose(codes, net(signal), atol=1e-5 * float(codes.abs().max()))
    assert [p.name for p in tmp_path.iterdir()] == ["codes.onnx"]


@pytest.mark.parametrize("method", ["lista", "lista-cpss", "alista"])
def test_unfolded_networks_after_a_change_of_weights(tmp_path: Path, method: str) -> None:
    net = unfold(dsc.Lasso(dense(), 0.1), 2, method=method)
    with torch.no_grad():
        for parameter in net.thresholds():
            parameter.mul_(0.7)
    path = tmp_path / "codes.onnx"
    signal = normal(5, 8)
    assert export_onnx(net, path, example=signal[:2]) <= 1e-5
    assert axes(path) == ["batch", 8]
    (codes,) = run(path, signal)
    assert torch.allclose(codes, net(signal), atol=1e-5)  # type: ignore[arg-type]


def test_all_layers_of_an_unfolded_joint_network(tmp_path: Path) -> None:
    model = dsc.Cascade([dense(), dsc.DenseDictionary.random(12, 10, seed=1)])
    net = unfold(dsc.JointLasso(model, 0.05), 2)
    path = tmp_path / "codes.onnx"
    assert export_onnx(net, path, example=normal(2, 8)) <= 1e-5
    found = run(path, normal(3, 8, seed=1))
    for have, want in zip(found, net(normal(3, 8, seed=1)), strict=True):
        assert torch.allclose(have, want, atol=1e-5)


@pytest.mark.parametrize("kind", ["dense", "circular", "cascade"])
def test_transformers_keep_the_batch_free(tmp_path: Path, kind: str) -> None:
    ring = "circular" if kind == "circular" else "valid"
    conv = dsc.ConvDictionary.low_coherence(atoms=8, channels=1, size=8, stride=4, boundary=ring, seed=0)
    second = dsc.ConvDictionary.low_coherence(atoms=6, channels=8, size=3, nonzeros=3, seed=0)
    if kind == "dense":
        net = dsc.to_transformer(dsc.DenseDictionary.low_coherence(24, 32, seed=0), sparsity=1, steps=2)
        event: tuple[int, ...] = (24,)
    else:
        model = dsc.Cascade([conv, second]) if kind == "cascade" else conv
        net = dsc.to_transformer(model, size=20, sparsity=1, steps=1)
        event = (1, 20, 20)
    path = tmp_path / "codes.onnx"
    assert export_onnx(net, path, example=normal(2, *event)) <= 1e-5
    assert axes(path) == ["batch", *event]
    for batch in (1, 5):
        signal = normal(batch, *event, seed=batch)
        (codes,) = run(path, signal)
        want = net(signal)
        assert codes.shape == want.shape
        assert bool(want.any())
        assert float((codes - want).abs().max()) <= 1e-5 * float(want.abs().max())


class Fixed(nn.Module):
    """Takes one shape only."""

    def forward(self, signal: Tensor) -> Tensor:
        if signal.shape[0] != 2:
            raise ValueError("two samples")
        return signal * 2


def test_sizes_that_are_not_free_are_fixed(tmp_path: Path) -> None:
    path = tmp_path / "codes.onnx"
    assert export_onnx(Fixed(), path, example=normal(2, 3)) == 0
    assert axes(path) == [2, 3]


class Control(nn.Module):
    """Does what no graph can say."""

    def forward(self, signal: Tensor) -> Tensor:
        return signal if float(signal.sum()) > 0 else -signal


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "codes.onnx"
    path.write_bytes(b"before")
    with pytest.raises(dsc.UnsupportedError, match="the network cannot be exported"):
        export_onnx(Control(), path, example=normal(2, 3))
    net = nn.Linear(3, 4)
    nn.init.ones_(net.weight)
    conv = dsc.ConvDictionary.random(atoms=2, channels=1, size=2, seed=0, dtype=torch.float64)
    precise = dsc.to_cnn(conv, sparsity=1, steps=1)
    with pytest.raises(dsc.UnsupportedError, match=r"cannot run .*float64.*export net\.float\(\)"):
        export_onnx(precise, path, example=normal(2, 1, 5, 5).double())
    assert path.read_bytes() == b"before"
    with pytest.raises(dsc.FileFormatError, match="expected an existing folder"):
        export_onnx(net, tmp_path / "none" / "codes.onnx", example=normal(2, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["codes.onnx"]


def test_networks_that_disagree_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "codes.onnx"
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)).train()
    original = export._attempt

    def wrong(module: nn.Module, example: Tensor, free: dict[int, str]) -> bytes:
        content = original(module, example, free)
        with torch.no_grad():
            net[0].weight.mul_(1.001)  # type: ignore[operator]
        return content

    monkeypatch.setattr(export, "_attempt", wrong)
    with pytest.raises(dsc.UnsupportedError, match=r"differs from torch's by .* expected at most 1e-05"):
        export_onnx(net, path, example=normal(2, 3))
    assert not path.exists()
    assert net.training and net[1].training  # noqa: PT018
    monkeypatch.undo()
    assert export_onnx(net, path, example=normal(2, 3)) <= 1e-5
    assert net[1].training


def test_nothing_is_computed_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(dsc.MissingExtraError, match=r"'onnx'.*pip install 'deep_sparse_coding\[onnx\]'"):
        export_onnx(nn.Identity(), tmp_path / "codes.onnx", example=normal(2, 3))


def test_bad_arguments(tmp_path: Path) -> None:
    path = tmp_path / "codes.onnx"
    with pytest.raises(dsc.ParameterError, match="net is a int"):
        export_onnx(3, path, example=normal(2, 3))  # type: ignore[arg-type]
    with pytest.raises(dsc.ParameterError, match=r"example has shape \(3,\); expected \(batch"):
        export_onnx(nn.Identity(), path, example=normal(3))
    with pytest.raises(dsc.DtypeError, match="example is a list"):
        export_onnx(nn.Identity(), path, example=[1.0])  # type: ignore[arg-type]
    with pytest.raises(dsc.ParameterError, match="tolerance is -1"):
        export_onnx(nn.Identity(), path, example=normal(2, 3), tolerance=-1.0)
