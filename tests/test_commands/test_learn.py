"""The command that learns from image files: sizes mixed, colours, unreadable files named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deep_sparse_coding as dsc
from deep_sparse_coding.commands.learn import learn

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
