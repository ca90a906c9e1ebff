"""What a guarantee says: proved or not proved, why, and by what margin."""

from __future__ import annotations

import math
import pickle

import pytest

from deep_sparse_coding.guarantees import Condition, Guarantee, uniqueness
from strategies import simplex


def test_margin_and_strictness() -> None:
    condition = Condition("μ_1(3)", 0.9, 1.0, layer=2)
    assert condition.margin == pytest.approx(0.1)
    assert condition.holds
    assert not Condition("v", 1.0, 1.0).holds
    assert not Condition("v", 1.0 - 1e-15, 1.0, slack=1e-14).holds
    assert not Condition("v", math.nan, 1.0).holds


def test_conditions_in_words() -> None:
    assert str(Condition("μ_1(3)", 0.9, 1.0, 2)) == "layer 2: μ_1(3) = 0.9 < 1, margin 0.1"
    assert str(Condition("μ_1(3)", 1.5, 1.0)) == "μ_1(3) = 1.5 ≥ 1, too large by 0.5"
    assert "not below 1 by more than its rounding error of 1.0e-14" in str(Condition("v", 1 - 1e-15, 1.0, slack=1e-14))
    assert str(Condition("v", math.nan, 1.0)) == "v is not available"


def test_a_guarantee_counts_as_proved_and_never_says_false() -> None:
    good, bad = Condition("a", 0.5, 1.0, 1), Condition("b", 2.0, 1.0, 1)
    proved = Guarantee(True, "codes are unique", (good, bad), "G1", (good,), ("ε = 0",), {"largest κ": 2.0})
    assert proved
    assert str(proved).splitlines() == [
        "proved: codes are unique",
        "  because layer 1: a = 0.5 < 1, margin 0.5",
        "  tried layer 1: b = 2 ≥ 1, too large by 1",
        "  given ε = 0",
        "  largest κ: 2",
        "  source: G1",
    ]
    refused = Guarantee(False, "codes are unique", (bad,), "G1", (bad,))
    assert not refused
    assert str(refused).startswith("not proved: codes are unique\n  missing layer 1: b = 2")
    assert "false" not in str(refused).lower()


def test_a_guarantee_survives_pickling() -> None:
    guarantee = uniqueness(simplex(4, 0.3), 2)
    assert pickle.loads(pickle.dumps(guarantee)) == guarantee
