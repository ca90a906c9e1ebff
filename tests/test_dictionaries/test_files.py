"""Save and load: every kind comes back bit for bit, whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DictionaryError, DSCWarning, FileFormatError
from operators import Operator, each_operator
from strategies import SEEDS, draw_cascade, draw_codes, duplicate_matrix


def _same(first: dsc.Dictionary, second: dsc.Dictionary) -> bool:
    return type(first) is type(second) and repr(first) == repr(second) and torch.equal(first.weight, second.weight)


@each_operator(same=True)
def test_dictionaries_come_back_bit_for_bit(operator: Operator, tmp_path: Path) -> None:
    dictionary = operator.build()
    for single in (dictionary, dictionary.cast(torch.float32)):
        path = dsc.save(single, tmp_path / "one.safetensors")
        assert path == tmp_path / "one.safetensors"
        loaded = dsc.load(path)
        assert isinstance(loaded, dsc.Dictionary)
        assert _same(single, loaded)
        assert loaded.dtype == single.dtype
        assert not loaded.weight.requires_grad
    assert os.listdir(tmp_path) == ["one.safetensors"]


@given(seed=SEEDS)
@settings(max_examples=20)
def test_cascades_come_back_bit_for_bit(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = draw_cascade(seed)
    path = tmp_path_factory.mktemp("cascade") / "model.safetensors"
    dsc.save(model, str(path))
    loaded = dsc.load(str(path))
    assert isinstance(loaded, dsc.Cascade)
    assert all(_same(a, b) for a, b in zip(model.layers, loaded.layers, strict=True))
    codes = draw_codes(model.layers[-1], seed)
    assert torch.equal(model.synthesize(codes), loaded.synthesize(codes))


def test_one_dictionary_and_a_cascade_of_one_stay_what_they_are(tmp_path: Path) -> None:
    dictionary = dsc.DenseDictionary.random(3, 5, seed=0)
    assert isinstance(dsc.load(dsc.save(dictionary, tmp_path / "d")), dsc.DenseDictionary)
    assert isinstance(dsc.load(dsc.save(dsc.Cascade([dictionary]), tmp_path / "c")), dsc.Cascade)


def test_the_same_dictionary_in_two_layers(tmp_path: Path) -> None:
    square = dsc.DenseDictionary.random(4, 4, seed=0)
    loaded = dsc.load(dsc.save(dsc.Cascade([square, square]), tmp_path / "tied"))
    assert isinstance(loaded, dsc.Cascade)
    assert torch.equal(loaded.layers[0].weight, loaded.layers[1].weight)


def test_trained_and_transposed_atoms(tmp_path: Path) -> None:
    dictionary = dsc.DenseDictionary(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).T)
    dictionary.requires_grad_(True)
    loaded = dsc.load(dsc.save(dictionary, tmp_path / "d"))
    assert isinstance(loaded, dsc.Dictionary)
    assert torch.equal(loaded.weight, dictionary.weight)


def test_the_same_model_makes_the_same_bytes(tmp_path: Path) -> None:
    model = draw_cascade(1)
    first, second = dsc.save(model, tmp_path / "1"), dsc.save(model, tmp_path / "2")
    assert first.read_bytes() == second.read_bytes()


def test_duplicates_are_warned_of_again(tmp_path: Path) -> None:
    with pytest.warns(DSCWarning):
        dictionary = dsc.DenseDictionary(duplicate_matrix(4, 5, 0))
    path = dsc.save(dictionary, tmp_path / "d")
    with pytest.warns(DSCWarning, match="0 and 4"):
        dsc.load(path)


def test_atoms_that_could_not_be_loaded_are_not_saved(tmp_path: Path) -> None:
    dictionary = dsc.DenseDictionary.random(3, 5, seed=0)
    path = dsc.save(dictionary, tmp_path / "d")
    before = path.read_bytes()
    dictionary.weight[:, 2] = 0.0
    with pytest.raises(DictionaryError, match="atom 2 of 5 is zero; expected atoms that are not"):
        dsc.save(dictionary, path)
    dictionary.weight[1, 2] = float("inf")
    with pytest.raises(DictionaryError, match=r"1 entries that are not finite, the first at \(1, 2\)"):
        dsc.save(dsc.Cascade([dictionary]), path)
    assert path.read_bytes() == before


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="model is a Linear; expected a dictionary or a Cascade"):
        dsc.save(torch.nn.Linear(2, 2), tmp_path / "d")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    path = dsc.save(dsc.DenseDictionary.random(3, 5, seed=0), tmp_path / "d")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_text("something else")
    dsc.save(dsc.DenseDictionary.random(3, 5, seed=0), path)
    assert isinstance(dsc.load(path), dsc.DenseDictionary)


def test_a_link_is_followed_by_load_and_replaced_by_save(tmp_path: Path) -> None:
    first, second = (dsc.DenseDictionary.random(3, 5, seed=s) for s in (0, 1))
    target, link = dsc.save(first, tmp_path / "target"), tmp_path / "link"
    link.symlink_to(target)
    loaded = dsc.load(link)
    assert isinstance(loaded, dsc.Dictionary)
    assert _same(loaded, first)
    before = target.read_bytes()
    dsc.save(second, link)
    assert not link.is_symlink()
    assert target.read_bytes() == before


def test_folders_that_are_missing_or_in_the_way(tmp_path: Path) -> None:
    dictionary = dsc.DenseDictionary.random(3, 5, seed=0)
    with pytest.raises(FileFormatError, match=r"cannot write .*No such file.*; expected an existing folder with room"):
        dsc.save(dictionary, tmp_path / "missing" / "d")
    with pytest.raises(FileFormatError, match="cannot write"):
        dsc.save(dictionary, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileFormatError, match=r"cannot write .*Permission denied"):
            dsc.save(dsc.DenseDictionary.random(3, 5, seed=0), tmp_path / "d")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failure_before_the_rename_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    path = dsc.save(dsc.DenseDictionary.random(3, 5, seed=0), tmp_path / "d")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(os, step, fail)
    expected = FileFormatError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        dsc.save(dsc.DenseDictionary.random(3, 5, seed=1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["d"]
