"""The commands that solve, prove and compile: from files to files, with the errors of the library in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deep_sparse_coding as dsc
from deep_sparse_coding.cli import main
from deep_sparse_coding.commands.solve import crop_to_grid
from deep_sparse_coding.solvers.files import load_codes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    cascade = dsc.Cascade(
        [
            dsc.ConvDictionary.low_coherence(atoms=16, channels=1, size=8, stride=4, seed=0),
            dsc.ConvDictionary.low_coherence(atoms=16, channels=16, size=3, stride=2, nonzeros=4, seed=0),
        ]
    )
    return dsc.save(cascade, tmp_path / "model.safetensors")


def picture(path: Path, height: int = 50, width: int = 47) -> Path:
    values = torch.randint(0, 256, (height, width), generator=torch.Generator().manual_seed(0))
    Image.fromarray(values.numpy().astype(np.uint8)).save(path)
    return path


def test_codes_of_a_picture_are_those_of_the_library(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = picture(tmp_path / "a.png"), tmp_path / "codes.parquet"
    assert main(["solve", str(image), "--model", str(model), "--lam", "0.3", "0.1", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "1/1 converged" in told
    assert str(out) in told
    cascade = dsc.load(model)
    assert isinstance(cascade, dsc.Cascade)
    signal = torch.from_numpy(np.array(Image.open(image))).to(cascade.layers[0].dtype)[None, None] / 255
    cropped = crop_to_grid(cascade, signal)
    assert tuple(cropped.shape[2:]) == (48, 40)  # 8 + 4·(…): the largest that both strides reach
    expected = dsc.solve(dsc.LayeredLasso(cascade, (0.3, 0.1)), cropped, tol=1e-4)
    for got, want in zip(load_codes(out), expected.codes, strict=True):
        assert torch.equal(got, want)


def test_pictures_of_two_sizes_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    picture(folder / "a.png")
    picture(folder / "b.png", 60)
    assert main(["solve", str(folder), "--model", str(model), "--lam", "0.3"]) == 1
    assert "expected one size" in capsys.readouterr().err


def test_what_is_proved_is_what_the_library_proves(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", str(model), "--sparsity", "5", "2"]) == 0
    told = capsys.readouterr().out
    cascade = dsc.load(model)
    assert str(dsc.prove.uniqueness(cascade, (5, 2))) in told
    assert str(dsc.prove.equivalence(cascade, (5, 2))) in told
    assert "convergence" in told


def test_a_compiled_network_lies_in_the_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "net.onnx"
    words = ["--sparsity", "2", "1", "--place-sparsity", "1", "--target-error", "0.2", "--size", "3", "3"]
    status = main(["compile", str(model), *words, "--out", str(out)])
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert "every entry of the codes within" in captured.out
    session = onnxruntime.InferenceSession(out.read_bytes())
    cascade = dsc.load(model)
    assert isinstance(cascade, dsc.Cascade)
    drawn = dsc.sample(cascade, sparsity=(4, 1), size=(3, 3), seed=3)
    codes = session.run(None, {session.get_inputs()[0].name: drawn.signal.float().numpy()})[0]
    assert codes.shape == tuple(drawn.codes[-1].shape)


def test_a_model_that_meets_no_condition_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dsc.save(dsc.ConvDictionary.random(atoms=8, channels=1, size=3, seed=0), tmp_path / "m.safetensors")
    assert main(["compile", str(path), "--sparsity", "9", "--target-error", "0.1"]) == 1
    assert capsys.readouterr().err.startswith("dsc: ")
    assert main(["prove", str(tmp_path / "none"), "--sparsity", "2"]) == 1
    assert "is not a file" in capsys.readouterr().err
