"""Results beside each other: means and spread over seeds, and paired tests between two settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ParameterError
from .experiment import Measure
from .store import Record

# With fewer pairs no outcome of Wilcoxon's two-sided test is below 0.05: its least p is 2/2ⁿ.
_WILCOXON_PAIRS = 6


@dataclass(frozen=True)
class Comparison:
    """A measure of two settings with the same seeds.

    Attributes:
        measure: What is compared.
        first: Name of the one.
        second: Name of the other.
        seeds: The seeds that both have.
        first_values: By seed, in their order.
        second_values: By seed, in their order.
        difference: The mean of second - first.
        interval: Student's 95 % interval of that mean; None with one seed, or where all differences are equal.
        p_t: p-value of the paired t-test, two-sided; None with the interval.
        p_wilcoxon: p-value of Wilcoxon's signed-rank test, two-sided; None also with fewer than 6 seeds.
    """

    measure: Measure
    first: str
    second: str
    seeds: tuple[int, ...]
    first_values: tuple[float, ...]
    second_values: tuple[float, ...]
    difference: float
    interval: tuple[float, float] | None
    p_t: float | None
    p_wilcoxon: float | None

    @property
    def verdict(self) -> str:
        """In words: better, worse, more, less, not told apart (paired t-test, level 5 %), equal, or no test."""
        if self.interval is None:
            return (
                "no test"
                if any(v != u for u, v in zip(self.first_values, self.second_values, strict=True))
                else "equal"
            )
        if self.interval[0] <= 0 <= self.interval[1]:
            return "not told apart"
        higher = self.difference > 0
        if self.measure.better is None:
            return "more" if higher else "less"
        return "better" if higher == (self.measure.better == "higher") else "worse"

    def __str__(self) -> str:
        """Return one line: ``"test accuracy, %: b - a = +0.42 [0.10, 0.74], p = 0.013, 5 seeds: better"``."""
        write = self.measure.text
        text = f"{self.measure.title}: {self.second} - {self.first} = {write(self.difference, sign=True)}"
        if self.interval is not None:
            text += f" [{write(self.interval[0], sign=True)}, {write(self.interval[1], sign=True)}]"
        if self.p_t is not None:
            text += f", p = {self.p_t:.2g}"
        if self.p_wilcoxon is not None:
            text += f" (Wilcoxon {self.p_wilcoxon:.2g})"
        return f"{text}, {len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}: {self.verdict}"


def compare_settings(
    first: tuple[Record, str], second: tuple[Record, str], measure: Measure, *, across_presets: bool = False
) -> Comparison:
    """Compare a measure of two settings, paired by seed.

    Args:
        first: A record and the name of one of its settings.
        second: Another, of the same record or of another one.
        measure: What is compared.
        across_presets: Compare different presets too.

    Raises:
        ParameterError: Different presets, no such setting or measure, or no seed in common.

    Source: Student's paired t-test; Wilcoxon 1945.
    """
    (a, a_name), (b, b_name) = first, second
    if a.preset != b.preset and not across_presets:
        raise ParameterError(
            f"{a.name} was run with preset {a.preset!r}, {b.name} with {b.preset!r}: their numbers do not compare; "
            "choose runs of one preset, or ask for it with --across-presets"
        )
    a_values, b_values = a.values(a_name, measure.name), b.values(b_name, measure.name)
    seeds = tuple(seed for seed in a_values if seed in b_values)
    if not seeds:
        raise ParameterError(
            f"{a_name!r} was run with the seeds {list(a_values)}, {b_name!r} with {list(b_values)}; expected some in "
            "common: pairs share a seed"
        )
    x, y = tuple(a_values[seed] for seed in seeds), tuple(b_values[seed] for seed in seeds)
    one = a_name if a is b else f"{a.name}:{a_name}"
    other = b_name if a is b else f"{b.name}:{b_name}"
    return Comparison(measure, one, other, seeds, x, y, *_test(x, y))


def _test(
    first: Sequence[float], second: Sequence[float]
) -> tuple[float, tuple[float, float] | None, float | None, float | None]:
    """Return mean, interval and p-values of the differences second - first."""
    differences = [v - u for u, v in zip(first, second, strict=True)]
    n, mean = len(differences), statistics.fmean(differences)
    if n < 2:
        return mean, None, None, None
    spread = statistics.stdev(differences)
    if spread <= 1e-12 * max(map(abs, differences), default=0.0) or spread == 0.0:
        # The tests divide by the spread: equal differences are no evidence that they can weigh.
        return mean, None, None, None
    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1)) * spread / math.sqrt(n)
    student: Any = stats.ttest_rel(second, first)
    signed: Any = stats.wilcoxon(differences) if n >= _WILCOXON_PAIRS else None
    return mean, (mean - half, mean + half), float(student.pvalue), None if signed is None else float(signed.pvalue)


def spread(values: Mapping[int, float], measure: Measure) -> str:
    """Return mean and standard deviation over seeds, ``"82.90 ± 0.31"``; with one seed the value alone."""
    numbers = list(values.values())
    mean = measure.text(statistics.fmean(numbers))
    return f"{mean} ± {measure.text(statistics.stdev(numbers))}" if len(numbers) > 1 else mean


def table_of(record: Record, measures: Sequence[Measure]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table: a row per setting, mean ± standard deviation of every measure.

    A measure that a setting does not have is a dash.

    Args:
        record: The results.
        measures: The columns.
    """
    rows = []
    for setting in record.settings:
        have = record.measures(setting)
        cells = [spread(record.values(setting, m.name), m) if m.name in have else "-" for m in measures]
        rows.append([setting, *cells])
    return ["setting", *(measure.title for measure in measures)], rows


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, columns aligned."""
    every = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in every) for i in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in every
    ]
    rule = "|" + "|".join(("-" * (width + 1) + ":") if i else "-" * (width + 2) for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
