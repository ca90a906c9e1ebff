"""No guarantee is given wrongly to small dictionaries of four families, and most that could be given are."""

from __future__ import annotations

import pytest

from deep_sparse_coding.errors import DSCWarning
from test_statements.how_often import table


@pytest.mark.filterwarnings(f"ignore::{DSCWarning.__module__}.{DSCWarning.__name__}")
def test_none_is_wrong_and_many_are_given() -> None:
    rows = table(6)
    assert sum(drawn for drawn, *_ in rows.values()) > 120
    assert not any(wrong for *_, wrong in rows.values())
    given, true = (sum(row[k] for row in rows.values()) for k in (2, 1))
    assert given > 0.4 * true
