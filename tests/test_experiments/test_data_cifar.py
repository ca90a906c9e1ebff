"""CIFAR-10 from every layout: the same tensors, counts and checksums, damaged and hostile files, the cache."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deep_sparse_coding.errors import FileFormatError, MissingExtraError, ParameterError
from deep_sparse_coding.experiments.data import CIFAR10_CLASSES, cifar, content_digest, draw_cifar10, read_cifar10
from deep_sparse_coding.experiments.data.drawn import CIFAR10_LAYOUTS


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cifar")
    return {layout: draw_cifar10(root / layout, train=60, test=20, seed=3, layout=layout) for layout in CIFAR10_LAYOUTS}


@pytest.fixture
def counts(monkeypatch):
    """The published counts, as if the drawn stand-in were the whole."""
    monkeypatch.setattr(cifar, "_COUNTS", {"train": 60, "test": 20})


def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def rewrite(path: Path, change) -> None:
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_layout_gives_the_same(drawn, split):
    first = read_cifar10(drawn["parquet"], split, complete=False)
    assert len(first) == {"train": 60, "test": 20}[split]
    assert first.images.shape[1:] == (3, 32, 32)
    assert first.classes == CIFAR10_CLASSES
    for folder in drawn.values():
        other = read_cifar10(folder, split, complete=False)
        assert torch.equal(first.images, other.images)
        assert torch.equal(first.labels, other.labels)


def test_the_file_or_the_folder_itself(drawn):
    expected = read_cifar10(drawn["parquet"], complete=False)
    for path in (
        drawn["parquet"] / "train.parquet",
        drawn["python"] / "cifar-10-batches-py",
        drawn["binary"] / "cifar-10-batches-bin",
        drawn["python-archive"] / "cifar-10-python.tar.gz",
        drawn["binary-archive"] / "cifar-10-binary.tar.gz",
    ):
        assert torch.equal(read_cifar10(path, complete=False).images, expected.images), path


def test_names_that_the_hub_uses(drawn, tmp_path):
    """Two files in the folder plain_text, with the column `img`."""
    table = pq.read_table(drawn["parquet"] / "train.parquet").rename_columns(["img", "label"])
    (tmp_path / "plain_text").mkdir()
    pq.write_table(table.slice(0, 25), tmp_path / "plain_text" / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(25), tmp_path / "plain_text" / "train-00001-of-00002.parquet")
    expected = read_cifar10(drawn["parquet"], complete=False)
    assert torch.equal(read_cifar10(tmp_path, complete=False).images, expected.images)


def python_2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """Protocol 2 as Python 2 wrote the original batches: text without encoding, an array by reconstruction."""
    content = pixels.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + b"M" + struct.pack("<H", len(pixels)) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86"
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89T" + struct.pack("<i", len(content)) + content + b"tb"
    )  # fmt: skip
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x0bbatch_labelU\x05batchU\x06labels" + numbers + b"U\x04data" + array + b"u."


def test_pickles_of_python_2(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    (tmp_path / "test_batch").write_bytes(python_2_pickle(pixels, [3, 1, 4, 1]))
    data = read_cifar10(tmp_path, "test", complete=False)
    order = [
        int((pixels.reshape(4, 3, 32, 32) == image.numpy()).all((1, 2, 3)).nonzero()[0][0]) for image in data.images
    ]
    assert sorted(order) == [0, 1, 2, 3]
    assert data.labels.tolist() == [[3, 1, 4, 1][k] for k in order]


class Hostile:
    def __init__(self, call, *arguments):
        self.made = call, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (Hostile(os.mkdir, "made_by_pickle"), r"not safe to read: it asks for (posix|nt|os)\.mkdir"),
        (Hostile(eval, "1"), r"it asks for (builtins|__builtin__)\.eval"),
        (Hostile(np.dtype, "O"), "it makes an array of type 'O'"),
        (np.zeros(3), "it makes an array of type 'f8'"),
        (Hostile(np.zeros(0, np.uint8).__reduce__()[0], np.ndarray, (10**9,), b"b"), "it makes an array of shape"),
    ],
)
def test_pickles_that_hold_more_are_refused(tmp_path, monkeypatch, thing, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": thing, b"labels": [1]}, protocol=2))
    with pytest.raises(FileFormatError, match=message):
        read_cifar10(tmp_path, "test", complete=False)
    assert not (tmp_path / "made_by_pickle").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"not a pickle", "cannot be read"),
        (pickle.dumps([1, 2], protocol=2), "it holds a list"),
        (pickle.dumps({b"labels": [1]}, protocol=2), "no data and labels"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}, protocol=2), "for 1 labels"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["cat"]}, protocol=2), "labels of type"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [12]}, protocol=2), "the first is 12"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]}, protocol=2), "the first is -1"),
    ],
)
def test_damaged_pickles(tmp_path, content, message):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_cifar10(tmp_path, "test", complete=False)


@pytest.mark.parametrize("layout", CIFAR10_LAYOUTS)
def test_files_cut_off(drawn, tmp_path, layout):
    folder = copied(drawn[layout], tmp_path)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileFormatError, match=r"(batch|cifar|parquet|test).*expected.*copy or\s+download it again"):
        read_cifar10(folder, "test", complete=False)


def test_missing_files(drawn, tmp_path):
    with pytest.raises(FileFormatError, match=r"nowhere does not exist; expected CIFAR-10: a folder with the Parquet"):
        read_cifar10(tmp_path / "nowhere")
    with pytest.raises(FileFormatError, match=r"no CIFAR-10 of the split 'train'; expected the Parquet files"):
        read_cifar10(tmp_path)
    folder = copied(drawn["python"], tmp_path)
    (folder / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(FileFormatError, match=r"data_batch_4 cannot be read.*one of 5 files of the split 'train'"):
        read_cifar10(folder, complete=False)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder / "cifar-10-batches-py" / "data_batch_1")
    with pytest.raises(
        FileFormatError, match=r"lacks data_batch_2, data_batch_3, data_batch_4, data_batch_5; expected"
    ):
        read_cifar10(archive, complete=False)


def test_bad_rows_are_named(drawn, tmp_path):
    folder = copied(drawn["parquet"], tmp_path)
    good = (folder / "train.parquet").read_bytes()

    def check(change, message):
        (folder / "train.parquet").write_bytes(good)
        rewrite(folder / "train.parquet", change)
        with pytest.raises(FileFormatError, match=message):
            read_cifar10(folder, complete=False)

    def cut(rows):
        rows[7]["image"]["bytes"] = rows[7]["image"]["bytes"][:200]

    def grow(rows):
        from deep_sparse_coding.experiments.data.drawn import _encode

        rows[9]["image"]["bytes"] = _encode(np.zeros((32, 40, 3), np.uint8), "PNG")

    check(cut, r"train\.parquet \(row 7\) cannot be read .* expected a picture: copy or download it again")
    check(grow, r"row 9\) has a picture of 32×40; expected 32×32")
    check(lambda rows: rows[3].update(label=10), r"row 3\) has the label 10; expected a whole number from 0 to 9")
    check(lambda rows: rows[3].update(label=None), r"row 3\) has the label None")
    check(lambda rows: rows[4].update(image=None), r"row 4\) holds a NoneType; expected the bytes of a picture")
    check(lambda rows: [row.pop("label") for row in rows], r"has columns 'image'; expected 'label' among them")
    check(lambda rows: [row.update(photo=row.pop("image")) for row in rows], r"expected 'image' or 'img' among them")


def test_counts(drawn, tmp_path, counts):
    assert len(read_cifar10(drawn["parquet"])) == 60
    folder = copied(drawn["parquet"], tmp_path)
    rewrite(folder / "train.parquet", lambda rows: rows[0].update(label=(rows[0]["label"] + 1) % 10))
    with pytest.raises(FileFormatError, match=r"has [57] images of class '\w+' in the split 'train'; expected 6"):
        read_cifar10(folder)
    rewrite(folder / "train.parquet", lambda rows: rows.pop())
    with pytest.raises(
        FileFormatError, match=r"holds 59 images of the split 'train'; expected 60.*pass complete=False"
    ):
        read_cifar10(folder)
    assert len(read_cifar10(folder, complete=False)) == 59


def test_counts_are_the_published_ones(drawn):
    with pytest.raises(FileFormatError, match="holds 60 images of the split 'train'; expected 50000"):
        read_cifar10(drawn["binary"])
    with pytest.raises(FileFormatError, match="holds 20 images of the split 'test'; expected 10000"):
        read_cifar10(drawn["binary"], "test")


def test_checksum(drawn, tmp_path, counts, monkeypatch):
    data = read_cifar10(drawn["parquet"], "test")
    digest = content_digest(data.images.numpy(), data.labels.numpy())
    monkeypatch.setattr(cifar, "_DIGESTS", {"test": digest})
    for folder in drawn.values():
        read_cifar10(folder, "test", verify=True)
    folder = copied(drawn["binary"], tmp_path)
    path = folder / "cifar-10-batches-bin" / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    read_cifar10(folder, "test")
    with pytest.raises(FileFormatError, match="pixels or labels that differ from CIFAR-10's split 'test'"):
        read_cifar10(folder, "test", verify=True)


def test_digest_knows_content_and_not_order():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (6, 3, 4, 4), dtype=np.uint8), np.arange(6)
    order = rng.permutation(6)
    digest = content_digest(images, labels)
    assert digest == content_digest(images[order], labels[order])
    assert digest != content_digest(images, labels[::-1])
    images[2, 1, 3, 3] ^= 1
    assert digest != content_digest(images, labels)


def test_cache(drawn, tmp_path, monkeypatch):
    folder, cache = copied(drawn["parquet"], tmp_path), tmp_path / "kept.safetensors"
    first = read_cifar10(folder, complete=False, cache=cache)
    assert cache.is_file()
    calls = []
    monkeypatch.setattr(cifar, "decode", lambda *_, **__: calls.append(1) or np.zeros((32, 32, 3), np.uint8))
    again = read_cifar10(folder, complete=False, cache=cache)
    assert not calls
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    # Another split, and other files, are read anew.
    read_cifar10(folder, "test", complete=False, cache=cache)
    assert len(calls) == 20
    rewrite(folder / "test.parquet", lambda rows: rows.pop())
    assert len(read_cifar10(folder, "test", complete=False, cache=cache)) == 19
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_cache_in_a_folder(drawn, tmp_path):
    for split in ("train", "test"):
        read_cifar10(drawn["python"], split, complete=False, cache=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar10-test.safetensors", "cifar10-train.safetensors"]


def test_cache_never_replaces_another_file(drawn, tmp_path):
    from safetensors.torch import save_file

    other, damaged = tmp_path / "notes.txt", tmp_path / "cut.safetensors"
    other.write_text("mine")
    with pytest.raises(FileFormatError, match="is no cache of decoded data, or a damaged one"):
        read_cifar10(drawn["binary"], complete=False, cache=other)
    assert other.read_text() == "mine"
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FileFormatError, match="but no cache of decoded data: name another file"):
        read_cifar10(drawn["binary"], complete=False, cache=tmp_path / "model.safetensors")
    read_cifar10(drawn["binary"], complete=False, cache=damaged)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(FileFormatError, match=r"damaged one .* delete it"):
        read_cifar10(drawn["binary"], complete=False, cache=damaged)
    with pytest.raises(FileFormatError, match="expected an existing folder with room to write"):
        read_cifar10(drawn["binary"], complete=False, cache=tmp_path / "none" / "kept.safetensors")


@pytest.mark.parametrize("layout", CIFAR10_LAYOUTS)
def test_progress_ends_at_one(drawn, layout):
    shares: list[float] = []
    read_cifar10(drawn[layout], complete=False, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert shares[0] > 0


@pytest.mark.parametrize(("package", "named"), [("pyarrow", "pyarrow"), ("PIL", "pillow")])
def test_without_the_packages(drawn, monkeypatch, package, named):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"the package '{named}'.*deep_sparse_coding\[vision\]"):
        read_cifar10(drawn["parquet"], complete=False)
    assert len(read_cifar10(drawn["binary-archive"], complete=False)) == 60


def test_bad_settings(drawn, tmp_path):
    with pytest.raises(ParameterError, match="split is 'val'; expected 'train' or 'test'"):
        read_cifar10(drawn["parquet"], "val")
    with pytest.raises(ParameterError, match="complete is 1; expected True or False"):
        read_cifar10(drawn["parquet"], complete=1)
    with pytest.raises(ParameterError, match="layout is 'zip'"):
        draw_cifar10(tmp_path, layout="zip")
    with pytest.raises(ParameterError, match="train is 4"):
        draw_cifar10(tmp_path, train=4)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="cannot make the folder"):
        draw_cifar10(tmp_path / "file")
