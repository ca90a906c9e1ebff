"""Measures against closed forms and plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deep_sparse_coding.errors import DtypeError, ParameterError, ShapeError
from deep_sparse_coding.sparsity import dead_channels, hoyer, l1_per_entry, zero_fraction

SEEDS = st.integers(0, 2**31 - 1)


def sparse(seed: int, *shape: int, density: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x * (torch.rand(*shape, generator=generator) < density)


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_measures_equal_plain_loops(seed: int) -> None:
    x = sparse(seed, 3, 4, 5)
    entries = x.flatten().tolist()
    assert zero_fraction(x).item() == pytest.approx(sum(entry == 0 for entry in entries) / len(entries), abs=1e-12)
    assert zero_fraction(x, tol=0.5).item() == pytest.approx(sum(abs(e) <= 0.5 for e in entries) / 60, abs=1e-12)
    assert l1_per_entry(x).item() == pytest.approx(sum(map(abs, entries)) / len(entries), rel=1e-12)
    dead = [all(entry == 0 for entry in x[:, channel].flatten().tolist()) for channel in range(4)]
    assert dead_channels(x).tolist() == dead
    for sample, value in zip(x, hoyer(x), strict=True):
        values = sample.flatten().tolist()
        l2 = math.sqrt(sum(v * v for v in values))
        if l2 == 0:
            assert math.isnan(value)
        else:
            root = math.sqrt(20)
            assert value.item() == pytest.approx((root - sum(map(abs, values)) / l2) / (root - 1), abs=1e-12)


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_hoyer_of_k_equal_entries_has_a_closed_form(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(2, 50, (), generator=generator))
    k = int(torch.randint(1, n + 1, (), generator=generator))
    x = torch.zeros(n, dtype=torch.float64)
    x[torch.randperm(n, generator=generator)[:k]] = -2.5
    assert hoyer(x).item() == pytest.approx((math.sqrt(n) - math.sqrt(k)) / (math.sqrt(n) - 1), abs=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-8, -3.0, 1e300])
def test_hoyer_does_not_change_with_scale(scale: float) -> None:
    x = sparse(1, 4, 30)
    torch.testing.assert_close(hoyer(scale * x), hoyer(x), rtol=1e-12, atol=1e-12)


def test_hoyer_is_nan_where_undefined() -> None:
    values = hoyer(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    assert math.isnan(values[0])
    assert values[1].item() == pytest.approx(1, abs=1e-6)
    assert hoyer(torch.ones(4, 1)).isnan().all()
    assert hoyer(torch.ones(())).isnan()
    assert hoyer(torch.ones(0, 5)).shape == (0,)
    assert hoyer(torch.ones(2, 0)).isnan().all()


def test_axes_of_hoyer() -> None:
    x = sparse(2, 2, 3, 4)
    assert hoyer(x).shape == (2,)
    assert hoyer(x, start_axis=2).shape == (2, 3)
    torch.testing.assert_close(hoyer(x, start_axis=0), hoyer(x.flatten()))
    with pytest.raises(ShapeError, match=r"start_axis is 3 and x has shape \(2, 3, 4\); expected 0 to 2"):
        hoyer(x, start_axis=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((2, 5000), 0.1, dtype=dtype)
    assert l1_per_entry(x).dtype == torch.float32
    # The sum of 10,000 such entries in half precision would be off by percents.
    assert l1_per_entry(x).item() == pytest.approx(x[0, 0].item(), rel=1e-6)
    assert zero_fraction(x).dtype == torch.float32
    assert hoyer(x).abs().max() < 1e-4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert l1_per_entry(x).dtype == torch.float32


def test_dead_channels_along_the_last_axis() -> None:
    x = torch.zeros(2, 3, 4)
    x[1, 2, 3] = 1e-3
    assert dead_channels(x, channel_axis=-1).tolist() == [True, True, True, False]
    assert dead_channels(x, channel_axis=-1, tol=1e-2).all()
    assert dead_channels(torch.tensor([0.0, 1.0]), channel_axis=0).tolist() == [True, False]


def test_empty_tensors_and_nan() -> None:
    assert zero_fraction(torch.ones(0)).isnan()
    assert l1_per_entry(torch.ones(0)).isnan()
    assert zero_fraction(torch.tensor([math.nan, 0.0])) == 0.5


def test_bad_input_says_what_is_expected() -> None:
    with pytest.raises(DtypeError, match=r"x is a list; expected a torch.Tensor"):
        zero_fraction([0.0])  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match="complex64; expected a dense real tensor"):
        l1_per_entry(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ShapeError, match="channel_axis is 1 and x has shape"):
        dead_channels(torch.ones(3))
    for tol in (-1.0, math.nan, math.inf, True):
        with pytest.raises(ParameterError, match=r"tol is .*expected a finite number of at least 0"):
            zero_fraction(torch.ones(3), tol=tol)


@given(seed=SEEDS)
@settings(max_examples=10, deadline=None)
def test_rescaling_layers_keeps_zeros_and_changes_l1(seed: int) -> None:
    """With ReLU, (W, b) → α(W, b) and W' → W'/α leave the function and every zero, and multiply ‖x‖_1 by α."""
    generator = torch.Generator().manual_seed(seed)
    W, b, V = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9, 6), (9,), (4, 9)))
    y = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    x, rescaled = torch.relu(y @ W.T + b), torch.relu(y @ (0.25 * W).T + 0.25 * b)
    torch.testing.assert_close(x @ V.T, rescaled @ (V / 0.25).T)
    assert zero_fraction(rescaled) == zero_fraction(x)
    torch.testing.assert_close(hoyer(rescaled), hoyer(x), equal_nan=True)
    assert l1_per_entry(rescaled).item() == pytest.approx(0.25 * l1_per_entry(x).item(), rel=1e-12)
