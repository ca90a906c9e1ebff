"""The checks that all parts share, setting by setting."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from deep_sparse_coding import checks
from deep_sparse_coding.errors import DictionaryError, ParameterError, ShapeError


@pytest.mark.parametrize(
    "value", [3, 3.0, np.float32(3), np.int64(3), torch.tensor(3), torch.tensor([3.0], requires_grad=True)]
)
def test_numbers(value: object) -> None:
    number = checks.require_number("x", value)
    assert number == 3.0
    assert type(number) is float


@pytest.mark.parametrize(
    "value", ["3", b"3", None, True, [3], (3,), {}, 1j, torch.ones(2), np.ones(2), object(), torch.tensor(1j)]
)
def test_what_is_no_number(value: object) -> None:
    with pytest.raises(ParameterError, match=r"x is (.|\n)*; expected a number$"):
        checks.require_number("x", value)


@pytest.mark.parametrize(
    ("value", "settings", "message"),
    [
        (math.nan, {}, "x is nan; expected a finite number$"),
        (math.inf, {}, "x is inf; expected a finite number$"),
        (math.nan, {"finite": False}, "x is nan; expected a number$"),
        (-0.1, {"minimum": 0}, "x is -0.1; expected a finite number at least 0$"),
        (0, {"minimum": 0, "strict": True}, "x is 0.0; expected a finite number above 0$"),
        (2, {"minimum": 0, "maximum": 1}, "x is 2.0; expected a finite number at least 0 and at most 1$"),
        (10**400, {}, "x is a whole number too large for a float"),
    ],
)
def test_numbers_out_of_range(value: float, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        checks.require_number("x", value, **settings)  # type: ignore[arg-type]


def test_limits_belong_to_the_range() -> None:
    assert checks.require_number("x", 0, minimum=0, maximum=0) == 0.0
    assert checks.require_number("x", math.inf, finite=False) == math.inf


def test_integers() -> None:
    assert checks.require_integer("n", 2**63 - 1, minimum=0) == 2**63 - 1
    assert checks.require_integer("n", 4.0, minimum=0) == 4
    assert type(checks.require_integer("n", np.int32(4), minimum=0)) is int
    with pytest.raises(ParameterError, match=r"n is 4\.5; expected a whole number of at least 1"):
        checks.require_integer("n", 4.5, minimum=1)
    with pytest.raises(ParameterError, match="n is 0; expected a whole number of at least 1"):
        checks.require_integer("n", 0, minimum=1)
    with pytest.raises(ParameterError, match="n is True; expected a number"):
        checks.require_integer("n", True, minimum=0)


def test_per_axis_and_per_layer() -> None:
    assert checks.per_axis("stride", 2, 3) == (2, 2, 2)
    assert checks.per_axis("stride", [1, 2], 2) == (1, 2)
    assert checks.per_axis("size", torch.Size([4, 5]), 2) == (4, 5)
    with pytest.raises(ParameterError, match="stride has 2 entries"):
        checks.per_axis("stride", (1, 2), 3)
    assert checks.per_layer("lam", 0.1, 2) == (0.1, 0.1)
    assert checks.per_layer("lam", [1, 2], 2) == (1, 2)
    with pytest.raises(
        ParameterError, match="lam has 3 entries; expected one for each of the 2 layers, or a single value"
    ):
        checks.per_layer("lam", (1, 2, 3), 2)


def test_trailing_axes() -> None:
    checks.require_trailing("x", torch.zeros(2, 3, 4), (3, None), "")
    checks.require_trailing("x", torch.zeros(3, 0), (3, None), "")
    for shape in ((4,), (4, 5), (3, 4, 5), ()):
        with pytest.raises(ShapeError, match=r"expected \(\*batch, 3, any\): why"):
            checks.require_trailing("x", torch.zeros(shape), (3, None), "why")


def test_finite_atoms() -> None:
    checks.require_finite_atoms("w", torch.ones(2, 2))
    with pytest.raises(DictionaryError, match=r"w has 2 entries that are not finite, the first at \(0, 1\)"):
        checks.require_finite_atoms("w", torch.tensor([[0.0, math.nan], [math.inf, 1.0]]))
