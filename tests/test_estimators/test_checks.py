"""All of scikit-learn's checks of estimators, none skipped and none expected to fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import SkipTest

import pytest
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator, parametrize_with_checks

from deep_sparse_coding.estimators import DeepSparseCoder, DictionaryLearner, SparseCoder

# The data of the checks are few: learning says so.
pytestmark = pytest.mark.filterwarnings("ignore::deep_sparse_coding.errors.DSCWarning")

SMALL = [
    SparseCoder(),
    DictionaryLearner(epochs=1),
    DeepSparseCoder((4, 3), epochs=1),
    DeepSparseCoder((3, 2), epochs=1, joint=True, joint_epochs=1, layer="all"),
]


@pytest.fixture(autouse=True)
def array_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """One check, of arrays of other libraries, skips itself without this switch."""
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")


@parametrize_with_checks(SMALL)
def test_scikit_learn_check(estimator: Any, check: Callable[[Any], None]) -> None:
    try:
        check(estimator)
    except SkipTest as reason:
        pytest.fail(f"skipped: {reason}")


@pytest.mark.parametrize("estimator", SMALL[:3])
def test_no_tag_spares_a_check(estimator: Any) -> None:
    tags = get_tags(estimator)
    assert tags.requires_fit
    assert tags.input_tags.two_d_array
    assert tags.transformer_tags is not None
    assert tags.transformer_tags.preserves_dtype == ["float64", "float32"]
    spared = (tags.no_validation, tags.non_deterministic, tags._skip_test, tags.input_tags.allow_nan)
    assert not any(spared)
    checks = [check for _, check in estimator_checks_generator(estimator, mark=None)]
    assert len(checks) >= 45


def test_all_at_once_with_no_check_skipped_and_none_expected_to_fail() -> None:
    records = check_estimator(SparseCoder(), on_skip=None, on_fail=None)
    assert len(records) >= 45
    assert [(r["check_name"], r["status"]) for r in records if r["status"] != "passed"] == []
    assert not any(r["expected_to_fail"] for r in records)
