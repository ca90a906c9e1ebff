"""Intersection over union with an ignored class: against loops in NumPy and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from deep_sparse_coding.errors import DtypeError, ParameterError, ShapeError
from deep_sparse_coding.experiments.metrics import MeanIoU, class_iou, confusion_matrix, mean_iou, pixel_accuracy


def drawn(seed: int, classes: int, ignore: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    predictions = torch.randint(classes, (3, 6, 5), generator=source)
    targets = torch.randint(classes, (3, 6, 5), generator=source).to(torch.uint8)
    if ignore is not None:
        targets[torch.rand(targets.shape, generator=source) < 0.2] = ignore
    return predictions, targets


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize(("classes", "ignore"), [(11, 11), (4, 255), (2, None)])
def test_against_loops(classes, ignore, seed):
    predictions, targets = drawn(seed, classes, ignore)
    expected = np.zeros((classes, classes), dtype=np.int64)
    for p, t in zip(predictions.flatten().tolist(), targets.flatten().tolist(), strict=True):
        if t != ignore:
            expected[t, p] += 1
    found = confusion_matrix(predictions, targets, classes, ignore=ignore)
    np.testing.assert_array_equal(found.numpy(), expected)
    ious = []
    for k in range(classes):
        counted = targets.numpy() != (-1 if ignore is None else ignore)
        p, t = (predictions.numpy() == k) & counted, targets.numpy() == k
        ious.append((p & t).sum() / (p | t).sum() if (p | t).any() else np.nan)
    np.testing.assert_allclose(class_iou(found).numpy(), ious)
    assert mean_iou(found) == pytest.approx(np.nanmean(ious))
    assert pixel_accuracy(found) == pytest.approx(np.trace(expected) / expected.sum())


@pytest.mark.parametrize(("classes", "ignore"), [(11, 11), (5, 255), (3, None)])
def test_against_torchmetrics(classes, ignore):
    metric, peer = MeanIoU(classes, ignore=ignore), MulticlassJaccardIndex(classes, ignore_index=ignore, average=None)
    for seed in range(4):
        predictions, targets = drawn(seed, classes, ignore)
        metric.update(predictions, targets)
        peer.update(predictions, targets.long())
    torch.testing.assert_close(metric.per_class().float(), peer.compute())
    assert float(metric.compute()) == pytest.approx(float(peer.compute().mean()), abs=1e-6)


def test_a_class_that_never_occurs_does_not_count():
    predictions, targets = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1])
    metric = MeanIoU(5)
    metric.update(predictions, targets)
    assert float(metric.compute()) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metric.per_class()[2:].isnan().all()


def test_a_class_that_is_only_predicted_counts_as_zero():
    assert mean_iou(confusion_matrix(torch.tensor([0, 2]), torch.tensor([0, 0]), 3)) == pytest.approx(0.25)


def test_ignored_pixels_count_in_no_way():
    predictions, targets = drawn(1, 4, 255)
    changed = torch.where(targets == 255, (predictions + 1) % 4, predictions)
    assert (changed != predictions).any()
    torch.testing.assert_close(
        confusion_matrix(predictions, targets, 4, ignore=255), confusion_matrix(changed, targets, 4, ignore=255)
    )


def test_scores_and_batches():
    scores = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(3, (4, 5, 5), generator=torch.Generator().manual_seed(1))
    metric = MeanIoU(3)
    for k in range(4):
        metric.update(scores[k : k + 1], targets[k : k + 1])
    assert float(metric.compute()) == mean_iou(confusion_matrix(scores.argmax(1), targets, 3))


def test_nothing_counted():
    metric = MeanIoU(3, ignore=3)
    metric.update(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 3))
    assert math.isnan(float(metric.compute()))


def test_bad_input():
    predictions, targets = drawn(0, 4, 255)
    with pytest.raises(ParameterError, match=r"targets runs from 0 to 255; expected 0 to 3$"):
        confusion_matrix(predictions, targets, 4)
    with pytest.raises(ParameterError, match="predictions runs from 0 to 3; expected 0 to 2, or 255"):
        confusion_matrix(predictions, torch.where(targets == 3, 0, targets), 3, ignore=255)
    with pytest.raises(ShapeError, match=r"use scores.argmax\(1\)"):
        confusion_matrix(predictions[None].float(), targets, 4)
    with pytest.raises(DtypeError, match=r"predictions has dtype torch\.float32"):
        confusion_matrix(predictions.float(), targets, 4)
