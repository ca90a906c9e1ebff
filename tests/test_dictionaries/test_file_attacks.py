"""Files that are damaged, foreign or hostile: `load` answers with a FileFormatError, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DSCWarning, FileFormatError

GOOD = {"version": 1, "cascade": False, "layers": [{"kind": "dense"}]}
MATRIX = {"layer1": torch.eye(3)}
KERNELS = {"layer1": torch.arange(1.0, 19.0).reshape(2, 1, 3, 3).square()}


def _write(path: Path, description: Any, tensors: dict[str, torch.Tensor], **metadata: str) -> Path:
    text = description if isinstance(description, str) else json.dumps(description)
    save_file(tensors, path, metadata={"deep_sparse_coding.dictionary": text, **metadata})
    return path


def _header(length: int, text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text + data


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    model = dsc.Cascade([dsc.ConvDictionary.random(atoms=2, channels=1, size=3, stride=2, seed=0)])
    return dsc.save(model, tmp_path / "good").read_bytes()


def _refused(path: Path, message: str = "safetensors file") -> None:
    with pytest.raises(FileFormatError, match=message) as caught:
        dsc.load(path)
    assert str(path) in str(caught.value)


# ---------------------------------------------------------------------- not a whole safetensors file


def test_truncated_at_every_byte(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "cut"
    for length in range(len(good)):
        path.write_bytes(good[:length])
        _refused(path, "is no complete safetensors file .*; save it again")


def test_bytes_after_the_end(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "long"
    path.write_bytes(good + b"\0")
    _refused(path, "is no complete safetensors file")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        _header(0, b""),
        _header(1 << 63, b"{}"),
        _header((1 << 64) - 1, b"{}"),
        _header(10_000, b"{}"),
        _header(2, b"\xff\xfe"),
        _header(4, b"nope"),
        _header(2, b"[]"),
        _header(4, b"null"),
        _header(2, b"{}", b"left over"),
        _header(100_000, b"[" * 100_000),
        b"PK\x03\x04" + b"\0" * 100,
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    ],
    ids=str,
)
def test_headers_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    _refused(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 35]},
        {"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 72]},
        {"dtype": "F32", "shape": [3, 3], "data_offsets": [36, 0]},
        {"dtype": "F32", "shape": [3, 3], "data_offsets": [-4, 32]},
        {"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 36]},
        {"dtype": "F32", "shape": [-3, -3], "data_offsets": [0, 36]},
        {"dtype": "F33", "shape": [3, 3], "data_offsets": [0, 36]},
        {"dtype": "F32", "shape": [3, 3]},
        {"dtype": "F32", "data_offsets": [0, 36]},
        {"shape": [3, 3], "data_offsets": [0, 36]},
        "F32",
        None,
    ],
    ids=str,
)
def test_tensors_that_are_described_wrongly(tmp_path: Path, entry: Any) -> None:
    metadata = {"deep_sparse_coding.dictionary": json.dumps(GOOD)}
    text = json.dumps({"__metadata__": metadata, "layer1": entry}).encode()
    path = tmp_path / "bad"
    path.write_bytes(_header(len(text), text, torch.eye(3).numpy().tobytes()))
    _refused(path)


def test_overlapping_tensors(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [3, 3], "data_offsets": [0, 36]}
    metadata = {
        "deep_sparse_coding.dictionary": json.dumps({**GOOD, "layers": [{"kind": "dense"}] * 2}),
    }
    text = json.dumps({"__metadata__": metadata, "layer1": entry, "layer2": entry}).encode()
    path = tmp_path / "bad"
    path.write_bytes(_header(len(text), text, torch.eye(3).numpy().tobytes()))
    _refused(path)


@given(data=st.data())
@settings(max_examples=60)
def test_a_changed_header_byte_is_an_error_of_ours_or_a_valid_dictionary(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    content = bytearray(dsc.save(dsc.DenseDictionary(torch.eye(2)), folder / "good").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    (folder / "flipped").write_bytes(content)
    try:
        loaded = dsc.load(folder / "flipped")
    except FileFormatError:
        return
    except DSCWarning:  # the flipped entry made two atoms parallel
        return
    assert bool(torch.isfinite(loaded.weight if isinstance(loaded, dsc.Dictionary) else loaded.layers[0].weight).all())


# ---------------------------------------------------------------------- not one of ours, or of another time


def test_a_foreign_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    save_file({"weight": torch.eye(3)}, path)
    _refused(
        path, r"with metadata \[\]; expected 'deep_sparse_coding.dictionary', .*: load it with safetensors and build"
    )
    save_file({"layer1": torch.eye(3)}, path, metadata={"format": "pt"})
    _refused(path, r"with metadata \['format'\]")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, r"has version 2; this library reads up to 1: update deep_sparse_coding"),
        (10**30, "this library reads up to 1"),
        (0, "has version 0; expected a whole number from 1"),
        (-1, "has version -1"),
        (1.5, "has version 1.5"),
        ("1", "has version '1'"),
        (True, "has version True"),
        (None, "has version None"),
        ([1], r"has version \[1\]"),
    ],
)
def test_versions(tmp_path: Path, version: Any, message: str) -> None:
    _refused(_write(tmp_path / "v", {**GOOD, "version": version}, MATRIX), message)


@pytest.mark.parametrize(
    "description",
    [
        "",
        "not json",
        "null",
        "3",
        "[]",
        '"text"',
        "{}",
        "[" * 50_000,
        '{"version": 1, "cascade": false}',
        '{"version": 1, "layers": [{"kind": "dense"}]}',
        {**GOOD, "cascade": "false"},
        {**GOOD, "cascade": 1},
        {**GOOD, "layers": None},
        {**GOOD, "layers": "a"},
        {**GOOD, "layers": ["dense"]},
        {**GOOD, "layers": [{}]},
        {**GOOD, "layers": [{"kind": "fourier"}]},
        {**GOOD, "layers": [{"kind": ["dense"]}]},
        {**GOOD, "layers": [{"kind": "conv"}]},
    ],
    ids=lambda value: str(value)[:40],
)
def test_descriptions_that_are_none(tmp_path: Path, description: Any) -> None:
    path = _write(tmp_path / "d", description, MATRIX)
    with pytest.raises(FileFormatError):
        dsc.load(path)


def test_other_metadata_beside_the_description_is_left_alone(tmp_path: Path) -> None:
    assert isinstance(dsc.load(_write(tmp_path / "d", GOOD, MATRIX, author="somebody")), dsc.DenseDictionary)


@pytest.mark.parametrize(
    "stride", [0, -1, 1.5, "2", [0, 1], [1], [1, 1, 1], [1.5, 1], ["1", "1"], [True, 1], [1e400, 1], None, {}]
)
def test_strides_that_are_nonsense(tmp_path: Path, stride: Any) -> None:
    layer = {"kind": "conv", "stride": stride, "boundary": "valid"}
    path = _write(tmp_path / "d", {**GOOD, "layers": [layer]}, KERNELS)
    with pytest.raises(FileFormatError, match="stride"):
        dsc.load(path)


@pytest.mark.parametrize("boundary", ["Same", "Valid", "", None, 1, ["valid"]])
def test_boundaries_that_do_not_exist(tmp_path: Path, boundary: Any) -> None:
    layer = {"kind": "conv", "stride": [1, 1], "boundary": boundary}
    _refused(_write(tmp_path / "d", {**GOOD, "layers": [layer]}, KERNELS), "boundary")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, r"holds tensors \[\] for 1 layer"),
        ({"layer2": torch.eye(3)}, "layer2"),
        ({"layer1": torch.eye(3), "layer2": torch.eye(3)}, "for 1 layer"),
        ({"layer1": torch.eye(3), "../../evil": torch.eye(3)}, "evil"),
        ({"layer1": torch.ones(3)}, r"matrix has shape \(3,\)"),
        ({"layer1": torch.ones(0, 3)}, r"matrix has shape \(0, 3\)"),
        ({"layer1": torch.zeros(3, 3)}, "atoms 0, 1, 2 are of 3 zero"),
        ({"layer1": torch.full((3, 3), float("nan"))}, "9 entries that are not finite"),
        ({"layer1": torch.eye(3).half()}, "dtype torch.float16"),
        ({"layer1": torch.eye(3).int()}, "dtype torch.int32"),
        ({"layer1": torch.eye(3).bool()}, "dtype torch.bool"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    _refused(_write(tmp_path / "d", GOOD, tensors), message)


def test_layers_that_do_not_fit_each_other(tmp_path: Path) -> None:
    layers = [{"kind": "dense"}, {"kind": "dense"}]
    tensors = {"layer1": torch.eye(3), "layer2": torch.eye(4)}
    _refused(
        _write(tmp_path / "d", {**GOOD, "cascade": True, "layers": layers}, tensors),
        "layer 2 takes codes of 4 channels",
    )
    _refused(_write(tmp_path / "d", {**GOOD, "layers": layers}, tensors), "takes codes of 4|describes one")
    fitting = {"layer1": torch.eye(3), "layer2": 2 * torch.eye(3)}
    _refused(_write(tmp_path / "d", {**GOOD, "layers": layers}, fitting), "describes one dictionary and holds 2")
    _refused(_write(tmp_path / "d", {**GOOD, "cascade": True, "layers": []}, {}), "layers is empty")


# ---------------------------------------------------------------------- nothing runs


class _Bomb:
    def __init__(self, fuse: Path) -> None:
        self.fuse = fuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.fuse),))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    fuse = tmp_path / "exploded"
    plain, archive = tmp_path / "plain.safetensors", tmp_path / "archive.safetensors"
    plain.write_bytes(pickle.dumps(_Bomb(fuse)))
    torch.save({"layer1": torch.eye(3)}, tmp_path / "torch.pt")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(_Bomb(fuse)))
        file.writestr("archive/version", "3")
    for path in (plain, archive, tmp_path / "torch.pt"):
        _refused(path, "is no complete safetensors file")
    assert not fuse.exists()
    pickle.loads(plain.read_bytes())
    assert fuse.exists()  # the bomb is live: it would have gone off


def test_loading_needs_no_unpickler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: bytes) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, fail)
    monkeypatch.setattr(torch, "load", fail)
    (tmp_path / "copy").write_bytes(good)
    assert isinstance(dsc.load(tmp_path / "copy"), dsc.Cascade)


# ---------------------------------------------------------------------- places


def test_what_is_no_file(tmp_path: Path) -> None:
    link = tmp_path / "dangling"
    link.symlink_to(tmp_path / "nowhere")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / "missing", tmp_path, link, loop, tmp_path / "no" / "folder", Path("/dev/null")):
        _refused(path, "is not a file; expected one that dsc.save wrote")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "secret"
    path.write_bytes(good)
    path.chmod(0)
    _refused(path)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_killed_between_write_and_rename_leaves_the_old_file(tmp_path: Path) -> None:
    path = dsc.save(dsc.DenseDictionary(torch.eye(3)), tmp_path / "d")
    before = path.read_bytes()
    program = (
        "import os, signal, sys, torch\n"
        "import deep_sparse_coding as dsc\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "dsc.save(dsc.DenseDictionary(2 * torch.eye(3)), sys.argv[1])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program, str(path)], env=environment, check=False, timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    left = [name for name in os.listdir(tmp_path) if name != "d"]
    assert all(name.startswith(".") and name.endswith(".part") for name in left)
    dsc.save(dsc.DenseDictionary(2 * torch.eye(3)), path)
    loaded = dsc.load(path)
    assert isinstance(loaded, dsc.DenseDictionary)
    assert torch.equal(loaded.matrix, 2 * torch.eye(3))
