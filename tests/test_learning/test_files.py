"""Images from files and the command that learns from them: sizes mixed, colors, unreadable files named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.commands.learn import learn
from deep_sparse_coding.errors import FileFormatError, ParameterError
from deep_sparse_coding.learning.files import read_images

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of different sizes, grey and colour, and a file that is no image."""
    place = tmp_path / "images"
    place.mkdir()
    rng = np.random.default_rng(0)
    texture = np.clip(rng.standard_normal((40, 48)).cumsum(1) * 20 + 128, 0, 255).astype(np.uint8)
    Image.fromarray(texture).save(place / "a.png")
    Image.fromarray(np.stack([texture[:36, :32]] * 3, 2)).save(place / "b.png")
    (place / "notes.txt").write_text("not an image, not looked at")
    return place


def test_images_are_read_as_they_are(folder: Path) -> None:
    grey = read_images(folder)
    assert [tuple(x.shape) for x in grey] == [(1, 40, 48), (1, 36, 32)]
    assert all(x.dtype == torch.float32 and float(x.min()) >= 0 and float(x.max()) <= 1 for x in grey)
    color = read_images([folder / "a.png", folder / "b.png"], color=True)
    assert [x.shape[0] for x in color] == [3, 3]
    torch.testing.assert_close(color[0][1], grey[0][0])
    deep = np.full((20, 20), 65535, dtype=np.uint16)
    Image.fromarray(deep).save(folder / "c.png")
    assert float(read_images(folder / "c.png")[0].mean()) == pytest.approx(1.0)


def test_unreadable_files_are_named_and_skipped_on_request(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileFormatError, match=r"2 of 4 files cannot be read.*broken.png.*cut.png.*--skip-unreadable"):
        read_images(folder)
    with pytest.warns(dsc.DSCWarning, match=r"left out 2 of 4 files: .*broken.png"):
        assert len(read_images(folder, skip_unreadable=True)) == 2
    with pytest.raises(FileFormatError, match="none of 1 files"):
        read_images(folder / "broken.png", skip_unreadable=True)


def test_places_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="holds no image files"):
        read_images(tmp_path)
    with pytest.raises(FileFormatError, match="neither a file nor a folder"):
        read_images(tmp_path / "none.png")
    with pytest.raises(ParameterError, match="paths is empty"):
        read_images([])


def test_the_command_learns_and_writes_a_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.safetensors"
    learn((folder,), atoms=(6, 4), size=(5, 3), lam=(0.8,), epochs=2, out=out, seed=1, nonzeros=5, joint=1)
    model = dsc.load(out)
    assert isinstance(model, dsc.Cascade)
    assert [layer.atoms for layer in model.layers] == [6, 4]
    assert int((model.layers[1].weight != 0).flatten(1).sum(1).max()) <= 5
    said = capsys.readouterr().out
    assert "2 images" in said
    assert "layer 2/2 · epoch 2/2" in said
    assert "s left" in said
    learn(
        (folder / "a.png",),
        atoms=(4,),
        size=(5,),
        lam=(0.8,),
        epochs=1,
        out=out,
        color=True,
        quiet=True,
        method="online",
    )
    single = dsc.load(out)
    assert isinstance(single, dsc.ConvDictionary)
    assert single.channels == 3
