"""The main job end to end, small: files, numbers that agree, a page that needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.demo import PRESETS, DemoResult, run_demo
from deep_sparse_coding.demo.digits import run_digits
from deep_sparse_coding.progress import Stages

SECTIONS = ("photograph", "atoms", "codes", "gap", "proofs", "network", "digits", "made")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo") / "new" / "folder", preset_name="small", seed=0, quiet=True)


@pytest.fixture(scope="module")
def numbers(result: DemoResult) -> dict[str, Any]:
    return json.loads(result.summary.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(result: DemoResult) -> str:
    return result.report.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects tags, identifiers and everything that a browser would fetch; checks that tags are closed."""

    void = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.alts: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[name] or "" for name in ("src", "href", "xlink:href", "srcset") if name in values]
        if tag == "img":
            self.alts.append(values.get("alt"))
        if tag not in self.void:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_only_the_three_files_are_left(result: DemoResult) -> None:
    names = {path.name for path in result.report.parent.iterdir()}
    assert names == {"report.html", "summary.json", "hero.png"}
    assert result.picture.read_bytes().startswith(b"\x89PNG")


def test_picture_is_1600_pixels_wide(result: DemoResult) -> None:
    from PIL import Image

    with Image.open(result.picture) as image:
        assert image.width == 1600


def test_page_is_whole_and_fetches_nothing(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.stack == []
    assert len(reader.ids) == len(set(reader.ids))
    assert not {"script", "link", "iframe", "object", "embed"} & set(reader.tags)
    for link in reader.links:
        assert link.startswith(("#", "data:image/png;base64,")), link[:80]
        if link.startswith("#"):
            assert link[1:] in reader.ids
    for inside in re.findall(r"url\(([^)]*)\)", page):
        assert inside.startswith("#")
        assert inside[1:] in reader.ids
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert all(reader.alts)


def test_every_section_and_figure_is_there(page: str) -> None:
    for anchor in SECTIONS:
        assert f'<section id="{anchor}">' in page
        assert f'href="#{anchor}"' in page
    assert page.count("<svg") == 3
    assert page.count("<img") == 8
    assert "not proved" in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()


def test_the_page_says_how_it_was_made(page: str) -> None:
    assert "dsc demo --preset small --seed 0" in page
    assert torch.__version__ in page


def test_true_error_stays_below_the_bound_at_every_depth(numbers: dict[str, Any]) -> None:
    designed = numbers["designed"]
    assert designed["uniqueness"]["proved"]
    assert designed["equivalence"]["proved"]
    assert designed["signals"] > 0
    assert len(designed["errors"]) == len(designed["bounds"]) == len(designed["depths"]) > 5
    assert all(error <= bound for error, bound in zip(designed["errors"], designed["bounds"], strict=True))
    # The bound is not idle: the worst signal comes near it in every layer.
    assert max(e / b for e, b in zip(designed["errors"], designed["bounds"], strict=True)) > 0.5
    assert designed["bounds"][-1] == designed["error_bound"] <= PRESETS["small"].target_error
    assert designed["supports_kept"]
    assert sorted(designed["depths"]) == designed["depths"]


def test_codes_are_certified(numbers: dict[str, Any]) -> None:
    photo = numbers["photograph"]
    assert photo["converged"]
    assert 0 <= photo["relative_gap"] <= photo["tol"]
    assert photo["relative_gap"] == pytest.approx(photo["gap"] / photo["objective"], rel=1e-6)
    assert all(0 < count < entries for count, entries in zip(photo["nonzeros"], photo["entries"], strict=True))
    assert photo["psnr"] > photo["psnr_second_layer"]
    assert photo["psnr"] > photo["psnr_local_mean"] + 3


def test_what_is_proved_agrees_with_the_codes(numbers: dict[str, Any]) -> None:
    photo = numbers["photograph"]
    assert not photo["uniqueness"]["proved"]
    after = photo["posterior"]
    for zeros, support, entries in zip(after["certain_zeros"], after["certain_support"], photo["entries"], strict=True):
        assert zeros > 0
        assert zeros + support <= entries
    if after["unique"]:
        assert 0 < after["distance"] < after["codes_norm"]


def test_penalty_makes_activations_sparse(numbers: dict[str, Any]) -> None:
    digits = numbers["digits"]
    assert digits["train"] + digits["test"] == 1797
    assert digits["sparse"]["zero_fraction"] > digits["plain"]["zero_fraction"] + 0.1
    assert min(digits["sparse"]["accuracy"] + digits["plain"]["accuracy"]) > 0.8


def test_the_numbers_in_memory_are_those_in_the_file(result: DemoResult, numbers: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result.numbers)) == numbers


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if "seconds" not in key}
    return value


def test_the_same_seed_gives_the_same_numbers(numbers: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(123)
    again = run_demo(tmp_path, preset_name="small", seed=0, quiet=True)
    assert without_times(again.numbers) == without_times(numbers)


def test_training_leaves_threads_and_the_global_generator_alone() -> None:
    settings = replace(PRESETS["small"], seeds=1, digit_epochs=1)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = run_digits(settings, 0, Stages(quiet=True))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.summary() != run_digits(settings, 1, Stages(quiet=True)).summary()


def test_an_unknown_preset_gives_near_misses(tmp_path: Path) -> None:
    with pytest.raises(dsc.ParameterError, match="did you mean 'small'"):
        run_demo(tmp_path, preset_name="smal", quiet=True)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(dsc.FileFormatError, match="cannot make the folder"):
        run_demo(tmp_path / "file" / "demo", preset_name="small", quiet=True)


@pytest.mark.parametrize("package", ["sklearn", "matplotlib", "PIL"])
def test_a_missing_package_is_told_before_any_work(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(dsc.MissingExtraError, match=r"deep_sparse_coding\[demo\]"):
        run_demo(tmp_path / "out", preset_name="small", quiet=True)
    assert not (tmp_path / "out").exists()


def test_without_rich_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(dsc.MissingExtraError, match=r"rich.*deep_sparse_coding\[demo\]"):
        run_demo(tmp_path, preset_name="small", quiet=True)
