"""The report as a file and as a figure: what was written is read again, and nothing damaged is taken for whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deep_sparse_coding.errors import FileFormatError
from deep_sparse_coding.sparsity import LayerSparsity, SparsityReport


def report(layers: int = 2) -> SparsityReport:
    rows = [
        LayerSparsity(f"features.{k}", "ReLU", 3, 120, 0.1 + k / 20, 0.25, 1.5e-3 / 7, 8, k % 3) for k in range(layers)
    ]
    idle = LayerSparsity("", "Net", 0, 0, math.nan, math.nan, math.nan, None, None)
    return SparsityReport((*rows, idle))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = report().save(tmp_path / "sparsity.json")
    loaded = SparsityReport.load(path)
    assert str(loaded) == str(report())
    assert loaded.layers[:2] == report().layers[:2]
    assert math.isnan(loaded[""].hoyer)
    assert loaded.save(path).read_bytes() == path.read_bytes()
    assert [item.name for item in tmp_path.iterdir()] == ["sparsity.json"]
    with pytest.raises(FileFormatError, match="cannot write"):
        report().save(tmp_path / "missing" / "sparsity.json")


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = report().save(tmp_path / "sparsity.json")
    content = path.read_bytes()
    for end in range(0, len(content) - 2, 7):
        path.write_bytes(content[:end])
        with pytest.raises(FileFormatError, match="no complete JSON file"):
            SparsityReport.load(path)
    with pytest.raises(FileFormatError, match="no complete JSON file"):
        SparsityReport.load(tmp_path / "missing.json")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FileFormatError, match="no complete JSON file"):
        SparsityReport.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="another"), "without the format"),
        (lambda c: c.update(version=2), "has version 2; this library reads up to 1"),
        (lambda c: c.update(version=True), "has version True"),
        (lambda c: c.pop("layers"), "damaged layers"),
        (lambda c: c.update(layers=3), "damaged layers"),
        (lambda c: c["layers"][0].pop("hoyer"), "expected .*'hoyer'"),
        (lambda c: c["layers"][0].update(more=1), "more"),
        (lambda c: c["layers"][0].update(name=3), "name is 3; expected a text"),
        (lambda c: c["layers"][0].update(calls=-1), "calls is -1; expected a whole number"),
        (lambda c: c["layers"][0].update(entries=1.5), "entries is 1.5"),
        (lambda c: c["layers"][0].update(entries=None), "entries is None"),
        (lambda c: c["layers"][0].update(zero_fraction=1.5), "zero_fraction is 1.5; expected at most 1"),
        (lambda c: c["layers"][0].update(zero_fraction="much"), "zero_fraction is 'much'; expected a number or null"),
        (lambda c: c["layers"][0].update(l1_per_entry=-1), "l1_per_entry is -1"),
        (lambda c: c["layers"][0].update(name="features.1"), "two layers have one name"),
        (lambda c: c["layers"].append(7), "a layer has 7"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = report().save(tmp_path / "sparsity.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(FileFormatError, match=message):
        SparsityReport.load(path)
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(FileFormatError):
        SparsityReport.load(path)


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=50, deadline=None)
def test_numbers_come_back_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    value = seed / (2**31 - 1)
    row = LayerSparsity('ä \n"x', "ReLU", seed, seed, value, value**0.5, value * 1e-30, 5, 5)
    path = SparsityReport((row,)).save(tmp_path_factory.mktemp("r") / "a.json")
    assert SparsityReport.load(path).layers == (row,)


@pytest.mark.parametrize("layers", [0, 1, 30])
def test_the_figure_has_a_line_per_layer(layers: int) -> None:
    figure = report(layers).plot(title="VGG11")
    left, middle, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()][-1] == "(model)"
    assert len(left.get_yticklabels()) == layers + 1
    marks = next(line for line in right.lines if line.get_marker() == "o")
    assert list(marks.get_xdata())[:layers] == [100 * (k % 3) / 8 for k in range(layers)]
    assert middle.get_xlabel() == "Hoyer's sparsity"
