"""CamVid and DUT-OMRON in their layouts: sizes, tasks, damaged and missing files; the stand-ins can be learned."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image

from deep_sparse_coding.errors import FileFormatError, ParameterError
from deep_sparse_coding.experiments.data import (
    CAMVID_CLASSES,
    CAMVID_IGNORE,
    camvid,
    draw_camvid,
    draw_cifar10,
    draw_dut_omron,
    dut_omron,
    hold_out,
    read_camvid,
    read_cifar10,
    read_dut_omron,
)
from deep_sparse_coding.experiments.data.drawn import _encode
from deep_sparse_coding.experiments.metrics import MeanIoU, saliency_measures
from deep_sparse_coding.experiments.models import build


@pytest.fixture(scope="module")
def roads(tmp_path_factory) -> Path:
    return draw_camvid(tmp_path_factory.mktemp("camvid"), train=12, val=3, test=4, size=(36, 48), seed=1)


@pytest.fixture(scope="module")
def salient(tmp_path_factory) -> Path:
    return draw_dut_omron(tmp_path_factory.mktemp("omron"), count=8, size=(30, 40), seed=1)


def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def rewrite(path: Path, change) -> None:
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(("split", "count"), [("train", 12), ("val", 3), ("test", 4)])
def test_camvid(roads, split, count):
    data = read_camvid(roads, split, complete=False)
    assert (len(data), data.size, data.ignore, data.classes) == (count, (36, 48), CAMVID_IGNORE, CAMVID_CLASSES)
    rows = pq.read_table(roads / f"{split}.parquet").to_pylist()
    assert list(data.names) == [row["name"] for row in rows]
    for k, row in enumerate(rows):
        (roads / "one.png").write_bytes(row["mask"]["bytes"])
        np.testing.assert_array_equal(data.masks[k].numpy(), np.array(Image.open(roads / "one.png")))
        (roads / "one.jpg").write_bytes(row["image"]["bytes"])
        np.testing.assert_array_equal(data.images[k].permute(1, 2, 0).numpy(), np.array(Image.open(roads / "one.jpg")))


def test_every_class_is_drawn(roads):
    assert read_camvid(roads, complete=False).masks.unique().tolist() == list(range(12))


def test_camvid_moving(roads):
    every, moving = (read_camvid(roads, complete=False, task=task) for task in ("classes", "moving"))
    expected = (every.masks == 8) | (every.masks == 9) | (every.masks == 10)
    assert torch.equal(moving.masks, expected.to(torch.uint8))
    assert (moving.classes, moving.ignore) == (("rest", "moving"), None)
    assert 0 < expected.float().mean() < 0.3


def test_camvid_resized(roads):
    data = read_camvid(roads, complete=False, size=(18, 32))
    assert data.size == (18, 32)
    full = read_camvid(roads, complete=False)
    picture = Image.fromarray(full.images[2].permute(1, 2, 0).numpy()).resize((32, 18), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(data.images[2].permute(1, 2, 0).numpy(), np.array(picture))
    assert set(data.masks.unique().tolist()) <= set(range(12))
    assert read_camvid(roads, complete=False, size=20).size == (20, 20)


def test_palette_masks_are_read_as_numbers(roads, tmp_path):
    folder = copied(roads, tmp_path)
    expected = read_camvid(folder, "val", complete=False)

    def repaint(rows):
        for k, row in enumerate(rows):
            drawn = Image.fromarray(expected.masks[k].numpy()).convert("P")
            drawn.putdata(expected.masks[k].flatten().tolist())
            drawn.putpalette([(37 * k) % 256 for k in range(768)])
            drawn.save(tmp_path / "mask.png")
            row["mask"]["bytes"] = (tmp_path / "mask.png").read_bytes()

    rewrite(folder / "val.parquet", repaint)
    assert torch.equal(read_camvid(folder, "val", complete=False).masks, expected.masks)


def test_camvid_bad_rows(roads, tmp_path):
    folder = copied(roads, tmp_path)
    good = (folder / "val.parquet").read_bytes()

    def check(change, message, **settings):
        (folder / "val.parquet").write_bytes(good)
        rewrite(folder / "val.parquet", change)
        with pytest.raises(FileFormatError, match=message):
            read_camvid(folder, "val", complete=False, **settings)

    def mask(pixels):
        def change(rows):
            rows[1]["mask"]["bytes"] = _encode(pixels, "PNG")

        return change

    def smaller(rows):
        rows[1]["mask"]["bytes"] = _encode(np.zeros((20, 20), np.uint8), "PNG")
        rows[1]["image"]["bytes"] = _encode(np.zeros((20, 20, 3), np.uint8), "PNG")

    check(mask(np.zeros((36, 40), np.uint8)), r"row 1, drawn_0001\.png\) has 36×48 pixels and .* its mask 36×40")
    check(mask(np.full((36, 48), 12, np.uint8)), r"row 1.*has the class 12 in its mask; expected 0 to 10, or 11")
    check(smaller, r"row 1.* has 20×20 pixels and the first image 36×48.*pass size=")
    check(lambda rows: rows[2]["mask"].update(bytes=b"PNG"), r"row 2.*its mask cannot be read")
    check(lambda rows: [row.pop("mask") for row in rows], "expected 'mask' among them")
    (folder / "val.parquet").write_bytes(good)
    rewrite(folder / "val.parquet", smaller)
    assert read_camvid(folder, "val", complete=False, size=20).size == (20, 20)


def test_camvid_missing(roads, tmp_path):
    with pytest.raises(FileFormatError, match=r"no CamVid of the split 'val'; expected a folder with val\.parquet"):
        read_camvid(tmp_path, "val")
    with pytest.raises(FileFormatError, match="does not exist; expected CamVid"):
        read_camvid(tmp_path / "nowhere")
    with pytest.raises(FileFormatError, match="holds 12 images of the split 'train'; expected 367"):
        read_camvid(roads)
    with pytest.raises(ParameterError, match="split is 'dev'"):
        read_camvid(roads, "dev")
    with pytest.raises(ParameterError, match="task is 'cars'; expected 'classes' or 'moving'"):
        read_camvid(roads, task="cars")
    with pytest.raises(ParameterError, match="size is 0"):
        read_camvid(roads, size=0)


def test_camvid_cache(roads, tmp_path, monkeypatch):
    first = read_camvid(roads, complete=False, size=24, cache=tmp_path)
    calls = []
    read = camvid._read
    monkeypatch.setattr(camvid, "_read", lambda *settings: calls.append(1) or read(*settings))
    for task in ("classes", "moving"):
        again = read_camvid(roads, complete=False, size=24, cache=tmp_path, task=task)
        assert torch.equal(first.images, again.images)
        assert first.names == again.names
    assert not calls
    assert read_camvid(roads, complete=False, size=20, cache=tmp_path).size == (20, 20)
    assert calls


def test_dut_omron(salient):
    data = read_dut_omron(salient, (24, 32), complete=False)
    assert (len(data), data.size, data.ignore) == (8, (24, 32), None)
    assert data.classes == ("background", "salient")
    assert data.names == tuple(f"drawn_{k:04}" for k in range(8))
    assert data.masks.flatten(1).float().mean(1).min() > 0.02
    sizes = {Image.open(path).size for path in (salient / "DUT-OMRON-image").iterdir()}
    assert len(sizes) > 4
    one = Image.open(salient / "pixelwiseGT-new-PNG" / "drawn_0003.png")
    expected = np.array(one.resize((32, 24), Image.Resampling.NEAREST)) > 128
    np.testing.assert_array_equal(data.masks[3].numpy(), expected)


def test_dut_omron_in_nested_folders(salient, tmp_path):
    for name in ("DUT-OMRON-image", "pixelwiseGT-new-PNG"):
        shutil.copytree(salient / name, tmp_path / name / name)
        (tmp_path / name / name / "._drawn_0000.jpg").write_text("")
        (tmp_path / name / name / "Thumbs.db").write_text("")
    expected = read_dut_omron(salient, 16, complete=False)
    assert torch.equal(read_dut_omron(tmp_path, 16, complete=False).images, expected.images)


def test_dut_omron_damaged(salient, tmp_path):
    folder = copied(salient, tmp_path)
    images, masks = folder / "DUT-OMRON-image", folder / "pixelwiseGT-new-PNG"
    with pytest.raises(FileFormatError, match="holds 8 images; expected 5168"):
        read_dut_omron(folder, 16)
    (masks / "drawn_0002.png").rename(tmp_path / "kept.png")
    with pytest.raises(FileFormatError, match=r"1 images have no mask .* in pixelwiseGT-new-PNG: drawn_0002; expected"):
        read_dut_omron(folder, 16, complete=False)
    (images / "drawn_0002.jpg").rename(tmp_path / "kept.jpg")
    assert len(read_dut_omron(folder, 16, complete=False)) == 7
    (tmp_path / "kept.png").rename(masks / "drawn_0002.png")
    with pytest.raises(FileFormatError, match=r"1 masks have no image .* in DUT-OMRON-image: drawn_0002"):
        read_dut_omron(folder, 16, complete=False)
    content = (tmp_path / "kept.jpg").read_bytes()
    (images / "drawn_0002.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(FileFormatError, match=r"drawn_0002\.jpg cannot be read .*truncated.*copy or download it again"):
        read_dut_omron(folder, 16, complete=False)
    (images / "drawn_0002.jpg").write_bytes(content)
    Image.new("L", (9, 9)).save(masks / "drawn_0002.png")
    with pytest.raises(FileFormatError, match=r"drawn_0002\.jpg has .* pixels and .*drawn_0002\.png 9×9"):
        read_dut_omron(folder, 16, complete=False)
    for path in masks.iterdir():
        path.unlink()
    with pytest.raises(FileFormatError, match=r"has no files that end in \.png"):
        read_dut_omron(folder, 16, complete=False)
    masks.rmdir()
    with pytest.raises(FileFormatError, match="has no folder pixelwiseGT-new-PNG"):
        read_dut_omron(folder, 16, complete=False)
    with pytest.raises(FileFormatError, match="does not exist; expected DUT-OMRON"):
        read_dut_omron(tmp_path / "nowhere", 16)


def test_dut_omron_cache_and_progress(salient, tmp_path, monkeypatch):
    shares: list[float] = []
    first = read_dut_omron(salient, 16, complete=False, cache=tmp_path / "o.safetensors", progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    monkeypatch.setattr(dut_omron, "_read", lambda *_: pytest.fail("read anew"))
    again = read_dut_omron(salient, 16, complete=False, cache=tmp_path / "o.safetensors")
    assert torch.equal(first.masks, again.masks)


def test_drawing_again_gives_the_same_pixels(tmp_path):
    for draw, read in (
        (partial(draw_cifar10, train=10, test=1), lambda path: read_cifar10(path, complete=False).images),
        (partial(draw_camvid, train=2, val=1, test=1), lambda path: read_camvid(path, complete=False).images),
        (partial(draw_dut_omron, count=2), lambda path: read_dut_omron(path, 24, complete=False).images),
    ):
        one, same, other = (
            read(draw(tmp_path / f"{draw.func.__name__}{k}", seed=seed)) for k, seed in enumerate((4, 4, 5))
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def floats(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 255 - 0.5) / 0.25


def train(model, images, targets, rate: float, epochs: int, batch: int, ignore: int = -100) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    source = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=source).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(model(floats(images[chosen])), targets[chosen].long(), ignore_index=ignore).backward()
            optimizer.step()
    model.eval()


def test_objects_can_be_learned(tmp_path):
    draw_cifar10(tmp_path, seed=0)
    data, held = (read_cifar10(tmp_path, split, complete=False) for split in ("train", "test"))
    model = build("vgg11", 10, width=1 / 8, seed=0)
    train(model, data.images, data.labels, 3e-3, 4, 25)
    with torch.no_grad():
        accuracy = float((model(floats(held.images)).argmax(1) == held.labels).float().mean())
    assert accuracy > 0.4  # chance: 0.1


def test_roads_can_be_learned(tmp_path):
    draw_camvid(tmp_path, seed=0)
    data, held = (read_camvid(tmp_path, split, complete=False) for split in ("train", "test"))
    model = build("unet", 11, width=1 / 4, seed=0)
    train(model, data.images, data.masks, 3e-3, 3, 4, ignore=CAMVID_IGNORE)
    measure = MeanIoU(11, ignore=CAMVID_IGNORE)
    with torch.no_grad():
        measure.update(model(floats(held.images)), held.masks)
    assert float(measure.compute()) > 0.4  # all road: 0.03


def test_what_stands_out_can_be_learned(tmp_path):
    draw_dut_omron(tmp_path, seed=0)
    data, held = hold_out(read_dut_omron(tmp_path, 48, complete=False), 12, 0)
    model = build("unet", 2, width=1 / 16, seed=0)
    train(model, data.images, data.masks, 5e-3, 5, 4)
    with torch.no_grad():
        found = saliency_measures(model(floats(held.images)).softmax(1)[:, 1], held.masks)
    assert found.max_f > 0.8  # everything: 0.2
    assert found.mae < 0.2
