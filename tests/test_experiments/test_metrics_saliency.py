"""Measures of saliency: equal to pysodmetrics, as recorded and directly where it is installed; edges, bad input."""

from __future__ import annotations

import json
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deep_sparse_coding.errors import DtypeError, MissingExtraError, ParameterError, ShapeError
from deep_sparse_coding.experiments import metrics
from deep_sparse_coding.experiments.metrics import (
    EMeasure,
    FMeasure,
    SaliencyMAE,
    SMeasure,
    WeightedFMeasure,
    adaptive_e,
    adaptive_f,
    e_curve,
    f_curve,
    mean_absolute_error,
    s_measure,
    saliency_measures,
    weighted_f,
)
from test_experiments.record_saliency import RECORD, peer_values, saliency_cases

CASES = saliency_cases()
RECORDED = json.loads(RECORD.read_text())["values"]


def ours(maps: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    truth = mask > 128
    return {
        "mae": mean_absolute_error(maps, truth)[0],
        "f": f_curve(maps, truth)[0],
        "adaptive_f": adaptive_f(maps, truth)[0],
        "weighted_f": weighted_f(maps, truth)[0],
        "e": e_curve(maps, truth)[0],
        "adaptive_e": adaptive_e(maps, truth)[0],
        "s": s_measure(maps, truth)[0],
    }


def test_record_has_every_case():
    assert RECORDED.keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_record(name):
    found, recorded = ours(*CASES[name]), RECORDED[name]
    for curve in ("f", "e"):
        assert found[curve].max() == pytest.approx(recorded[f"max_{curve}"], abs=1e-9)
        assert found[curve].mean() == pytest.approx(recorded[f"mean_{curve}"], abs=1e-9)
        np.testing.assert_allclose(found.pop(curve)[::15], recorded[curve], atol=1e-9)
    if recorded["s"] is None:
        assert 0 <= found.pop("s") <= 1
    for key, value in found.items():
        assert value == pytest.approx(recorded[key], abs=1e-9), key


def test_equal_to_the_peer():
    pytest.importorskip("py_sod_metrics")
    rng = np.random.default_rng(5)
    cases = dict(CASES)
    for k in range(20):
        height, width = rng.integers(2, 40, 2)
        maps = rng.integers(0, 256, (height, width), dtype=np.uint8)
        cases[f"drawn {k}"] = maps, np.where(rng.random((height, width)) < rng.random(), 255, 0).astype(np.uint8)
    for name, values in peer_values(cases).items():
        for key, value in ours(*cases[name]).items():
            if key == "s" and np.isnan(values["s"]):
                continue
            np.testing.assert_allclose(value, values[key], atol=1e-9, err_msg=f"{name}, {key}")


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_against_plain_loops(seed):
    """F, E and MAE against their definitions, threshold by threshold, pixel by pixel."""
    rng = np.random.default_rng(seed)
    p = np.round(rng.random((6, 7)), 2)
    p[0, 0], p[-1, -1] = 0, 1
    g = rng.random((6, 7)) < 0.4
    g[2, 3], g[1, 1] = True, False
    f, e = f_curve(p, g)[0], e_curve(p, g)[0]
    for k in (0, 17, 100, 200, 255):
        chosen = np.floor(p * 255) >= 255 - k
        hits = (chosen & g).sum()
        precision, recall = hits / max(chosen.sum(), 1), hits / g.sum()
        expected = 1.3 * precision * recall / (0.3 * precision + recall) if hits else 0.0
        assert f[k] == pytest.approx(expected, abs=1e-12)
        a, b = chosen - chosen.mean(), g - g.mean()
        aligned = 2 * a * b / (a**2 + b**2 + 1e-300)
        assert e[k] == pytest.approx(((1 + aligned) ** 2 / 4).sum() / (g.size - 1), abs=1e-12)
    assert mean_absolute_error(p, g)[0] == pytest.approx(np.mean([abs(p[i, j] - g[i, j]) for i, j in np.ndindex(6, 7)]))


def test_s_of_a_mask_at_the_last_column():
    """The peer divides by the area of a part without pixels; such a part has no weight in the sum."""
    maps, mask = CASES["some, last column"]
    assert RECORDED["some, last column"]["s"] is None
    p = (maps - maps.min()) / np.ptp(maps)
    g = mask > 128
    row = int(np.round(np.argwhere(g)[:, 0].mean())) + 1

    def similarity(x, y):
        (a, cross), (_, b) = np.cov(x.ravel(), y.ravel())
        return 4 * x.mean() * y.mean() * cross / ((x.mean() ** 2 + y.mean() ** 2) * (a + b))

    upper = row / len(p)
    regions = upper * similarity(p[:row], g[:row]) + (1 - upper) * similarity(p[row:], g[row:])
    objects = sum(
        part.size / p.size * 2 * part.mean() / (part.mean() ** 2 + 1 + part.std(ddof=1)) for part in (p[g], 1 - p[~g])
    )
    assert s_measure(maps, g)[0] == pytest.approx((regions + objects) / 2)
    assert s_measure(mask, g)[0] == pytest.approx(1)


def test_perfect_and_worst():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:12, 5:11] = True
    best = saliency_measures(mask.float(), mask)
    assert (best.mae, best.max_f, best.s) == pytest.approx((0, 1, 1))
    assert best.weighted_f == pytest.approx(1)
    assert best.max_e == pytest.approx(256 / 255)  # the measure divides by one less than the number of pixels
    worst = saliency_measures((~mask).float(), mask)
    assert worst.mae == 1
    assert worst.weighted_f < 0.1
    assert worst.s < 0.1


def test_empty_and_full_masks():
    maps = torch.full((4, 4), 0.25)
    empty = saliency_measures(maps, torch.zeros(4, 4))
    assert (empty.max_f, empty.weighted_f, empty.s) == (0, 0, 0.75)
    full = saliency_measures(maps, torch.ones(4, 4))
    assert full.s == 0.25
    assert full.max_f == pytest.approx(1)


def test_normalize_stretches():
    mask = np.arange(12).reshape(3, 4) > 7
    maps = 0.2 + 0.5 * np.random.default_rng(0).random((3, 4))
    stretched = (maps - maps.min()) / np.ptp(maps)
    for measure in (mean_absolute_error, f_curve, weighted_f, e_curve, s_measure, adaptive_e, adaptive_f):
        np.testing.assert_array_equal(measure(maps, mask), measure(stretched, mask, normalize=False))
    assert mean_absolute_error(maps, mask, normalize=False) != mean_absolute_error(maps, mask)


def test_levels_are_those_of_uint8():
    maps, mask = CASES["disc 0"]
    np.testing.assert_array_equal(f_curve(maps, mask > 128), f_curve(maps / 255, mask > 128))


def batches(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    masks = torch.rand(9, 12, 16, generator=source) < 0.3
    maps = (masks.float() * 0.4 + 0.6 * torch.rand(9, 12, 16, generator=source)).clamp(0, 1)
    return maps, masks


METRICS = {
    "mae": (SaliencyMAE, lambda p, g: mean_absolute_error(p, g).mean()),
    "max f": (FMeasure, lambda p, g: f_curve(p, g).mean(0).max()),
    "mean f": (lambda: FMeasure("mean"), lambda p, g: f_curve(p, g).mean()),
    "adaptive f": (lambda: FMeasure("adaptive"), lambda p, g: adaptive_f(p, g).mean()),
    "weighted f": (WeightedFMeasure, lambda p, g: weighted_f(p, g).mean()),
    "max e": (EMeasure, lambda p, g: e_curve(p, g).mean(0).max()),
    "mean e": (lambda: EMeasure("mean"), lambda p, g: e_curve(p, g).mean()),
    "adaptive e": (lambda: EMeasure("adaptive"), lambda p, g: adaptive_e(p, g).mean()),
    "s": (SMeasure, lambda p, g: s_measure(p, g).mean()),
}


@pytest.mark.parametrize("name", METRICS)
def test_classes_over_batches(name):
    make, function = METRICS[name]
    maps, masks = batches()
    metric = make()
    for start in range(0, 9, 4):
        metric.update(maps[start : start + 4], masks[start : start + 4])
    assert float(metric.compute()) == pytest.approx(float(function(maps, masks)), abs=1e-12)
    copy = pickle.loads(pickle.dumps(metric))
    assert float(copy.compute()) == float(metric.compute())
    # Two processes that saw a part each are one that saw all.
    first, second = make(), make()
    first.update(maps[:5], masks[:5])
    second.update(maps[5:], masks[5:])
    first.merge_state(second)
    assert float(first.compute()) == pytest.approx(float(metric.compute()), abs=1e-12)
    metric.reset()
    metric.update(maps[:1], masks[:1])
    assert float(metric.compute()) == pytest.approx(float(function(maps[:1], masks[:1])), abs=1e-12)


def test_all_at_once():
    maps, masks = batches(3)
    found = saliency_measures(maps, masks)
    assert found.max_f == f_curve(maps, masks).mean(0).max()
    assert found.mean_e == pytest.approx(e_curve(maps, masks).mean(), abs=1e-12)
    assert found.s == s_measure(maps, masks).mean()
    assert found.weighted_f == weighted_f(maps, masks).mean()


def test_half_precision_maps():
    maps, masks = batches()
    half = maps.bfloat16()
    assert math.isclose(mean_absolute_error(half, masks)[0], mean_absolute_error(half.float(), masks)[0])


def test_without_torchmetrics(monkeypatch):
    name = "deep_sparse_coding.experiments.metrics.classes"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(metrics, "classes")
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(MissingExtraError, match=r"deep_sparse_coding\[train\]"):
        _ = metrics.MeanIoU
    assert metrics.mean_iou(torch.eye(2)) == 1


def test_bad_input():
    maps, masks = batches()
    with pytest.raises(ShapeError, match=r"predictions has shape \(9, 12, 16\) and masks \(8, 12, 16\)"):
        mean_absolute_error(maps, masks[:8])
    with pytest.raises(ShapeError, match="expected the same"):
        mean_absolute_error(maps[0, 0], masks[0, 0])
    with pytest.raises(
        ParameterError, match=r"runs from .* to 2; expected finite numbers in \[0, 1\]: apply a sigmoid"
    ):
        s_measure(2 * maps / maps.max(), masks)
    with pytest.raises(ParameterError, match="nan"):
        s_measure(torch.where(maps > 0.9, math.nan, maps), masks)
    with pytest.raises(ParameterError, match="masks has entries up to 255; expected 0 and 1: use masks > 128"):
        weighted_f(maps, masks.to(torch.uint8) * 255)
    with pytest.raises(DtypeError, match="predictions has dtype int64"):
        weighted_f(masks.long(), masks)
    with pytest.raises(ParameterError, match="beta2 is 0"):
        f_curve(maps, masks, beta2=0)
    with pytest.raises(ParameterError, match="alpha is 2"):
        s_measure(maps, masks, alpha=2)
    with pytest.raises(ParameterError, match="kind is 'best'; expected one of max, mean, adaptive"):
        FMeasure("best")
    with pytest.raises(AttributeError, match="no attribute 'Best'"):
        _ = metrics.Best
