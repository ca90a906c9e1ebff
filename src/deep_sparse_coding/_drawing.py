"""The look of all figures in one place: colors, sizes, the mosaic of tiles, and how a figure becomes SVG or PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import missing_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1d2733", "#66717f", "#d5dbe2"
BLUE, ORANGE, GREEN = "#2a6f9e", "#c8641b", "#2f8f7f"
_STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.titleweight": "regular",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.minor.visible": False,
    "ytick.minor.visible": False,
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "deep_sparse_coding",
    "image.interpolation": "nearest",
}


@contextmanager
def style() -> Iterator[None]:
    """Use the style of this library's figures for what is drawn or saved inside of the context.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise missing_extra("matplotlib", "plot", "drawing figures") from None
    with mpl.rc_context({**mpl.rcParamsDefault, **_STYLE, "backend": mpl.rcParams["backend"]}):
        yield


def new_figure(width: float, height: float, constrained: bool = True) -> Figure:
    """Return an empty figure of this style, sizes in inches, by default laid out without overlaps; within `style`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained" if constrained else None)


def mosaic(tiles: np.ndarray, columns: int, gap: int | None = None) -> np.ndarray:
    """Return tiles ``(n, h, w)`` or ``(n, h, w, 3)`` side by side as RGBA in [0, 1], transparent between them.

    Args:
        tiles: Values about 0; each tile is scaled by its largest absolute value.
        columns: Tiles per row.
        gap: Transparent pixels between tiles; None: in proportion to the tiles.
    """
    count, h, w = tiles.shape[:3]
    # Whole enlargement, so that the gap can be thinner than a pixel of an atom.
    grow = max(1, 48 // h)
    space = max(2, round(0.1 * h * grow)) if gap is None else gap
    rows = -(-count // columns)
    image = np.zeros((rows * (h * grow + space) - space, columns * (w * grow + space) - space, 4))
    for index, tile in enumerate(tiles):
        peak = np.abs(tile).max()
        shown = 0.5 + 0.5 * (tile / peak if peak > 0 else tile)
        top, left = (h * grow + space) * (index // columns), (w * grow + space) * (index % columns)
        block = image[top : top + h * grow, left : left + w * grow]
        block[..., :3] = np.kron(shown.reshape(h, w, -1), np.ones((grow, grow, 1)))
        block[..., 3] = 1.0
    return image


# The colors of figures as variables of the page that shows them, so that they follow its light or dark palette.
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    FAINT: "var(--line)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--green)",
}


def to_svg(figure: Figure, prefix: str) -> str:
    """Return a figure as an ``<svg>`` element for a page: colors and font are the page's, names begin with `prefix`.

    Args:
        figure: A figure of this library.
        prefix: Keeps the element's names apart from those of other figures on the page.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    used = set(re.findall(r"#([A-Za-z][\w-]*)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'((?:href="|url\()#)(?=[A-Za-z])', rf"\g<1>{prefix}-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    # A style element would speak for the whole page; the page says this for its figures.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return text


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """Return a figure as a PNG with a transparent ground, cut to what is drawn."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0, metadata={"Software": None})
    return buffer.getvalue()


def image_png(values: np.ndarray, *, low: float, high: float, grow: int = 1) -> bytes:
    """Return a gray picture ``(h, w)`` as a PNG, `low` black and `high` white, every pixel `grow` times as large.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "plot", "writing pictures") from None
    gray = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    pixels = np.kron(np.rint(255 * gray).astype(np.uint8), np.ones((grow, grow), dtype=np.uint8))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
