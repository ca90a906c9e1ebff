"""The pieces of a page."""

from __future__ import annotations

from pathlib import Path

import pytest

import deep_sparse_coding as dsc
from deep_sparse_coding import report
from deep_sparse_coding.demo.words import count, percent, power
from deep_sparse_coding.plotting import plot_bound


def test_text_is_escaped_and_marked_up() -> None:
    assert report.text("1 < 2 & `a<b` is *so*, x_1 in D_2, ‖x‖_∞") == (
        "<p>1 &lt; 2 &amp; <code>a&lt;b</code> is <em>so</em>, x<sub>1</sub> in D<sub>2</sub>, ‖x‖<sub>∞</sub></p>"
    )


def test_columns_of_numbers_are_set_right() -> None:
    shown = report.table(["name", "share"], [["a", "12.5 %"], ["b", "3.0 %"]], "title")
    assert shown.count('<td class="number">') == 2
    assert "<td>a</td>" in shown
    assert "<caption>title</caption>" in shown
    mixed = report.table(["x"], [["1"], [report.PROVED]])
    assert "number" not in mixed


def test_a_plot_takes_colors_from_the_page_and_keeps_its_names_apart() -> None:
    figure = plot_bound([1, 2], [0.1, 0.05], [0.2, 0.1])
    first, second = report.plot(figure, "one", 'a "b"'), report.plot(figure, "two", "c")
    assert 'aria-label="a &quot;b&quot;"' in first
    assert "var(--orange)" in first
    assert "#c8641b" not in first
    assert "<style" not in first
    assert 'id="one-' in first
    assert 'id="two-' in second
    assert "one-" not in second
    assert "xmlns" not in first


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(dsc.FileFormatError, match="cannot write"):
        report.write(tmp_path / "missing" / "page.html", "x")
    assert report.write(tmp_path / "page.html", "ü").read_bytes() == "ü".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.01e-4, "1.1·10⁻⁴"), (1e-4, "1.0·10⁻⁴"), (9.96e-7, "1.0·10⁻⁶"), (0.0, "0"), (25.0, "2.5·10¹")],
)
def test_bounds_are_rounded_up(value: float, shown: str) -> None:
    assert power(value) == shown


def test_a_share_is_all_only_if_it_is() -> None:
    assert percent(0.99999) == "99.9\u00a0%"
    assert percent(1.0) == "100\u00a0%"
    assert count(159440) == "159\u202f440"
