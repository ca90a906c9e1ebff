"""Reports as one HTML file: text, tables and figures inside, nothing fetched from elsewhere, light and dark.

The pieces are functions that return HTML; `page` puts them together and `write` makes the file, whole or not at all.
Texts are plain: what they hold is escaped, apart from ``*emphasis*``, code between backticks, and indices such as
``x_1``.
"""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ._drawing import to_png, to_svg
from .files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes:
        anchor: Its name in links.
        title: Its heading.
        body: HTML.
        short: Its name in the list of contents.
    """

    anchor: str
    title: str
    body: str
    short: str


@dataclass(frozen=True)
class Tag:
    """A word that says what kind of statement this is: "proved", "open" (not proved) or "measured"."""

    kind: str
    word: str

    def __str__(self) -> str:
        return f'<span class="tag {self.kind}">{_inline(self.word)}</span>'


PROVED, NOT_PROVED, MEASURED = Tag("proved", "proved"), Tag("open", "not proved"), Tag("measured", "measured")


def verdict(proved: bool) -> Tag:
    """Return the word for a guarantee."""
    return PROVED if proved else NOT_PROVED


def text(*paragraphs: str) -> str:
    """Return paragraphs."""
    return "".join(f"<p>{_inline(paragraph)}</p>" for paragraph in paragraphs)


def formula(words: str) -> str:
    """Return a formula on its own line."""
    return f'<p class="formula">{_inline(words)}</p>'


def note(tag: Tag, sentence: str) -> str:
    """Return a sentence beside the word that says of what kind it is."""
    return f'<div class="note">{tag}<span>{_inline(sentence)}</span></div>'


def plot(figure: Figure, name: str, alt: str) -> str:
    """Return a figure as vectors; `name` must differ from those of the other figures of the page."""
    label = html.escape(alt, quote=True)
    svg = to_svg(figure, name).replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f'<div class="plot">{svg}</div>'


def raster(figure: Figure, alt: str, dpi: int = 170) -> str:
    """Return a figure as a picture."""
    return picture(to_png(figure, dpi), alt)


def picture(png: bytes, alt: str, *, pixels: bool = False) -> str:
    """Return a PNG inside of the page; with `pixels` it is enlarged without smoothing."""
    data = base64.b64encode(png).decode("ascii")
    shown = ' class="pixels"' if pixels else ""
    return f'<img{shown} alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def captioned(content: str, caption: str, title: str = "") -> str:
    """Return content with a caption below, its title in bold."""
    bold = f"<b>{_inline(title)}</b> " if title else ""
    return f"<figure>{content}<figcaption>{bold}{_inline(caption)}</figcaption></figure>"


def row(*items: str, least: str = "15rem", pair: bool = False) -> str:
    """Return items side by side where each has at least the width `least`; a `pair` stays so on a phone."""
    return f'<div class="row{" pair" if pair else ""}" style="--least: {least}">{"".join(items)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str | Tag]], caption: str = "") -> str:
    """Return a table; a column is set flush right if all of its entries are numbers with or without a unit."""
    numbers = [all(_is_number(line[column]) for line in rows) for column in range(len(head))]

    def cell(kind: str, value: str | Tag, column: int) -> str:
        shown = str(value) if isinstance(value, Tag) else _inline(value)
        name = ' class="number"' if numbers[column] else ""
        return f"<{kind}{name}>{shown}</{kind}>"

    lines = ["".join(cell("td", value, i) for i, value in enumerate(line)) for line in rows]
    title = f"<caption>{_inline(caption)}</caption>" if caption else ""
    header = "".join(cell("th", value, i) for i, value in enumerate(head))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>{title}<thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def stats(values: Sequence[tuple[str, str, str]]) -> str:
    """Return large numbers with what they mean: value, unit, words."""
    cells = ""
    for value, unit, words in values:
        small = f"<small>{_inline(unit)}</small>" if unit else ""
        cells += f"<div><dt>{_inline(words)}</dt><dd>{_inline(value)}{small}</dd></div>"
    return f'<dl class="stats">{cells}</dl>'


def items(sentences: Sequence[str]) -> str:
    """Return a list of sentences."""
    return "<ul>" + "".join(f"<li>{_inline(sentence)}</li>" for sentence in sentences) + "</ul>"


def listing(code: str) -> str:
    """Return lines of code or of a terminal."""
    return f"<pre>{html.escape(code)}</pre>"


def page(*, title: str, eyebrow: str, lede: str, numbers: str, sections: Sequence[Section], foot: str) -> str:
    """Return the whole page."""
    style = resources.files("deep_sparse_coding").joinpath("report.css").read_text(encoding="utf-8")
    contents = "".join(f'<li><a href="#{part.anchor}">{_inline(part.short)}</a></li>' for part in sections)
    body = "".join(
        f'<section id="{part.anchor}"><h2>{_inline(part.title)}</h2>{part.body}</section>\n' for part in sections
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header><p class="eyebrow">{_inline(eyebrow)}</p><h1>{_inline(title)}</h1><p class="lede">{_inline(lede)}</p>'
        f'{numbers}<ul class="contents">{contents}</ul></header>\n'
        f"<main>{body}</main>\n<footer>{foot}</footer>\n</body>\n</html>\n"
    )


def write(path: str | os.PathLike[str], content: str) -> Path:
    """Write a page to `path`, whole or not at all; its folder must exist.

    Raises:
        FileFormatError: The folder is missing, not writable or full.
    """
    place = Path(path)
    write_whole(place, content.encode("utf-8"))
    return place


def _inline(words: str) -> str:
    escaped = html.escape(words, quote=False)
    escaped = re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)
    escaped = re.sub(r"\*([^*\s][^*]*)\*", r"<em>\1</em>", escaped)
    return re.sub(r"(?<=[A-Za-zβλμ‖])_([0-9∞])(?![0-9_])", r"<sub>\1</sub>", escaped)


def _is_number(value: str | Tag) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[≤<≥−±\s\d.,e+\-]+( ?(%|dB|s|×\S*))?|–", value.strip()))
