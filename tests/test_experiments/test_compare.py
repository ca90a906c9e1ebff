"""Means, spread and paired tests over seeds."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.experiments.compare import compare_settings, markdown, table_of
from deep_sparse_coding.experiments.experiment import Measure
from deep_sparse_coding.experiments.store import Record

ACCURACY = Measure("accuracy", "test accuracy, %", 2, "higher")
LOSS = Measure("loss", "loss", 1, "lower", scientific=True)


def record(values: dict[str, dict[int, float]], preset: str = "cpu", name: str = "toy-net", **more: Any) -> Record:
    runs = [
        {"setting": setting, "seed": seed, "measures": {"accuracy": value, "loss": value / 1e4}}
        for setting, by_seed in values.items()
        for seed, value in by_seed.items()
    ]
    seeds = tuple(dict.fromkeys(run["seed"] for run in runs))
    return Record(name, preset, {}, {}, seeds, {"runs": runs, **more}, {}, 1, "2026-01-01", "dsc", 0.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_the_tests_are_scipys_and_the_interval_is_students(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.randint(2, 9)
    a = {k: rng.gauss(80, 2) for k in range(n)}
    b = {k: a[k] + rng.gauss(0.5, 1) for k in range(n)}
    both = record({"a": a, "b": b})
    found = compare_settings((both, "a"), (both, "b"), ACCURACY)
    x, y = list(a.values()), list(b.values())
    reference: Any = stats.ttest_rel(y, x)
    assert found.p_t == pytest.approx(reference.pvalue, rel=1e-9)
    interval = reference.confidence_interval(0.95)
    assert found.interval == pytest.approx((interval.low, interval.high), rel=1e-9)
    # The interval and the test agree at the level of 5 %.
    assert found.interval is not None
    assert (found.interval[0] <= 0 <= found.interval[1]) == (reference.pvalue >= 0.05)
    assert found.verdict == (
        "not told apart" if reference.pvalue >= 0.05 else "better" if found.difference > 0 else "worse"
    )
    if n >= 6:
        signed: Any = stats.wilcoxon(y, x)
        assert found.p_wilcoxon == pytest.approx(signed.pvalue, rel=1e-9)
    else:
        assert found.p_wilcoxon is None


def test_pairs_share_a_seed_whatever_the_order() -> None:
    a = record({"a": {0: 1.0, 1: 2.0, 2: 4.0}})
    b = record({"b": {2: 5.0, 0: 3.0, 7: 9.0}})
    found = compare_settings((a, "a"), (b, "b"), ACCURACY)
    assert found.seeds == (0, 2)
    assert (found.first_values, found.second_values) == ((1.0, 4.0), (3.0, 5.0))
    assert found.difference == 1.5
    with pytest.raises(ParameterError, match=r"seeds \[0, 1, 2\].*\[5\].*in common"):
        compare_settings((a, "a"), (record({"b": {5: 1.0}}), "b"), ACCURACY)


def test_better_is_lower_where_the_measure_says_so() -> None:
    both = record({"a": {0: 3.0, 1: 3.2, 2: 3.1}, "b": {0: 1.0, 1: 1.1, 2: 1.2}})
    assert compare_settings((both, "a"), (both, "b"), LOSS).verdict == "better"
    assert compare_settings((both, "a"), (both, "b"), ACCURACY).verdict == "worse"
    assert compare_settings((both, "a"), (both, "b"), Measure("accuracy", "width")).verdict == "less"


def test_where_nothing_can_be_tested_it_says_so() -> None:
    one = record({"a": {0: 1.0}, "b": {0: 2.0}})
    found = compare_settings((one, "a"), (one, "b"), ACCURACY)
    assert (found.interval, found.p_t, found.verdict) == (None, None, "no test")
    assert str(found) == "test accuracy, %: b - a = +1.00, 1 seed: no test"
    same = record({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0, 1: 2.0}})
    assert compare_settings((same, "a"), (same, "b"), ACCURACY).verdict == "equal"
    shifted = record({"a": {0: 0.1, 1: 0.2}, "b": {0: 1.1, 1: 1.2}})
    found = compare_settings((shifted, "a"), (shifted, "b"), ACCURACY)
    assert (found.p_t, found.verdict) == (None, "no test")
    assert not math.isnan(found.difference)


def test_presets_are_not_compared_unless_asked() -> None:
    cpu, smoke = record({"a": {0: 1.0, 1: 2.0}}), record({"a": {0: 1.5, 1: 2.0}}, "smoke")
    with pytest.raises(ParameterError, match=r"preset 'cpu', .* with 'smoke': .*--across-presets"):
        compare_settings((cpu, "a"), (smoke, "a"), ACCURACY)
    found = compare_settings((cpu, "a"), (smoke, "a"), ACCURACY, across_presets=True)
    assert found.difference == 0.25


def test_a_line_tells_all() -> None:
    both = record({"a": {k: float(k % 3) for k in range(6)}, "b": {k: k % 3 + 1 + 0.1 * k for k in range(6)}})
    text = str(compare_settings((both, "a"), (both, "b"), ACCURACY))
    assert text.startswith(
        "test accuracy, %: b - a = +1.25 [+1.05, +1.45], p = 1.6e-05 (Wilcoxon 0.031), 6 seeds: better"
    )


def test_the_table_shows_mean_and_spread() -> None:
    both = record({"a": {0: 1.0, 1: 3.0}, "b": {0: 5.0}})
    head, rows = table_of(both, (ACCURACY, LOSS, Measure("none", "not there")))
    assert head == ["setting", "test accuracy, %", "loss", "not there"]
    assert rows == [["a", "2.00 ± 1.41", "2.0e-04 ± 1.4e-04", "-"], ["b", "5.00", "5.0e-04", "-"]]
    lines = markdown(head, rows).splitlines()
    assert lines[1].startswith("|---")
    assert lines[1].endswith(":|")
    assert len({len(line) for line in lines}) == 1
