"""Numbers as they stand in the report and on the terminal."""

from __future__ import annotations

import math


def count(value: int) -> str:
    """Return a whole number with narrow spaces, where no line breaks, between groups of three digits."""
    return f"{value:,}".replace(",", "\u202f")


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent; it is 100 only if it is all."""
    if share == 1:
        return "100\u00a0%"
    shown = 100 * share
    limit = 100 - 10.0**-digits
    if share < 1 and shown > limit:
        shown = limit
    return f"{shown:.{digits}f}\u00a0%"


def power(value: float) -> str:
    """Return a number in two digits with a power of ten, rounded up: an upper bound stays one."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "none"
    exponent = math.floor(math.log10(abs(value)))
    digits = math.ceil(value / 10.0**exponent * 10 - 1e-9) / 10
    if digits >= 10:
        digits, exponent = 1.0, exponent + 1
    raised = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(c)] if c.isdigit() else "⁻" for c in str(exponent))
    return f"{digits:.1f}·10{raised}"


def seconds(value: float) -> str:
    """Return a duration."""
    return f"{value:.1f} s" if value < 100 else f"{value:.0f} s"
