"""Reading pictures: every mode that files have, folders, what cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deep_sparse_coding.errors import DSCWarning, FileFormatError, ParameterError, ShapeError
from deep_sparse_coding.images import find_images, image_bytes, read_image, read_images

GRAY = (np.arange(12).reshape(3, 4) * 20).astype(np.uint8)


def test_gray_colour_and_depth(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    gray = read_image(tmp_path / "gray.png", dtype=torch.float64)
    assert torch.equal(gray, torch.from_numpy(GRAY.astype(np.float64))[None] / 255)
    assert torch.equal(read_image(tmp_path / "gray.png", channels=3), gray.float().expand(3, -1, -1))
    deep = (np.arange(12).reshape(3, 4) * 5000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert torch.allclose(read_image(tmp_path / "deep.png"), torch.from_numpy(deep.astype(np.float32))[None] / 65535)
    colour = np.stack([GRAY, 255 - GRAY, GRAY // 2], -1)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    read = read_image(tmp_path / "colour.png")
    assert torch.equal(read, torch.from_numpy(colour).movedim(-1, 0) / 255)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert torch.allclose(read_image(tmp_path / "colour.png", channels=1), (weights * read).sum(0, True), atol=1 / 255)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    drawn = torch.randint(0, 256, (3, 5, 6), generator=torch.Generator().manual_seed(0)) / 255
    (tmp_path / "a.png").write_bytes(image_bytes(drawn))
    assert torch.equal(read_image(tmp_path / "a.png"), drawn)
    (tmp_path / "b.png").write_bytes(image_bytes(torch.tensor([[-1.0, 2.0]])))
    assert read_image(tmp_path / "b.png").tolist() == [[[0.0, 1.0]]]
    with pytest.raises(ShapeError, match=r"expected \(1, H, W\)"):
        image_bytes(torch.zeros(2, 3, 4))


def test_unreadable_files_are_named_and_skipped_only_on_request(tmp_path: Path) -> None:
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("no picture")
    assert [path.name for path in find_images(tmp_path)] == ["a.png", "b.png"]
    with pytest.raises(FileFormatError, match=r"1 of 2 files cannot be read as pictures: .*b\.png.*--skip-unreadable"):
        read_images(tmp_path)
    with pytest.warns(DSCWarning, match=r"left out 1 of 2 files: .*b\.png"):
        assert len(read_images(tmp_path, skip_unreadable=True)) == 1
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_images(tmp_path / "b.png", skip_unreadable=True)  # nothing is left


def test_places_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="holds no picture"):
        find_images(tmp_path)
    with pytest.raises(FileFormatError, match="does not exist"):
        find_images([tmp_path / "none.png"])
    with pytest.raises(FileFormatError, match="is not a file"):
        read_image(tmp_path)
    with pytest.raises(ParameterError, match="channels is 2"):
        read_image(tmp_path / "a.png", channels=2)
