"""Aligned tables in plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from ...errors import NameMatchError, near_misses

Cells = Sequence[str]


def aligned(head: Cells, rows: Sequence[Cells], last: Cells, *, texts: int = 2) -> str:
    """Return a table: a head, rows, and a last line for all of them, between rules.

    Args:
        head: One title per column.
        rows: The body.
        last: The closing line.
        texts: How many columns, from the left, hold text and stand on the left; numbers stand on the right.
    """
    table = [head, *rows, last]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]
    rule = "─" * max(len(line) for line in lines)
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


class Named(Protocol):
    """A row with a name."""

    @property
    def name(self) -> str:
        """What it is found by."""
        ...


Row = TypeVar("Row", bound=Named)


def row_named(rows: Sequence[Row], name: str) -> Row:
    """Return the row of one layer.

    Raises:
        NameMatchError: There is no such layer; the message lists near misses.
    """
    for row in rows:
        if row.name == name:
            return row
    known = [row.name for row in rows]
    raise NameMatchError(f"the report has no layer {name!r}{near_misses(name, known)}; it has: {known}")


def number(value: float, form: str, unit: str = "") -> str:
    """Return a formatted number, or a dash for NaN."""
    return "–" if math.isnan(value) else format(value, form) + unit
