"""Images in memory: what is refused, parts of them, and what is held out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deep_sparse_coding.errors import DtypeError, ParameterError, ShapeError
from deep_sparse_coding.experiments.data import LabelledImages, SegmentedImages, hold_out


def labelled(labels: list[int], classes: int = 3) -> LabelledImages:
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 5).contiguous()
    return LabelledImages(images, torch.tensor(labels), tuple(f"class {k}" for k in range(classes)))


def segmented(count: int = 6, ignore: int | None = 7) -> SegmentedImages:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 5).contiguous()
    masks = torch.arange(20, dtype=torch.uint8).reshape(1, 4, 5).expand(count, -1, -1) % 3
    return SegmentedImages(images, masks.contiguous(), ("a", "b", "c"), ignore, tuple(f"n{k}" for k in range(count)))


def test_subset_keeps_samples_together():
    data = labelled([0, 1, 2, 1, 0])
    part = data.subset([3, 0])
    assert len(data) == 5
    assert data.size == (4, 5)
    assert part.labels.tolist() == [1, 0]
    assert part.images[:, 0, 0, 0].tolist() == [3, 0]
    other = segmented().subset(torch.tensor([4, 2]))
    assert other.names == ("n4", "n2")
    assert other.images[:, 0, 0, 0].tolist() == [4, 2]
    assert other.masks.shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "expected a list of at least one"),
        ([0, 5], "indices run from 0 to 5; expected 0 to 4"),
        ([-1], "indices run from -1"),
        ([True, False], r"use mask.nonzero\(\)"),
        ([0.5], "expected whole numbers"),
    ],
)
def test_bad_subsets(indices, message):
    with pytest.raises(ParameterError, match=message):
        labelled([0, 1, 2, 1, 0]).subset(indices)


def test_bad_labels():
    images, classes = torch.zeros(3, 3, 4, 4, dtype=torch.uint8), ("a", "b")
    with pytest.raises(ParameterError, match="2 labels are out of range, the first is 2 at sample 1; expected 0 to 1"):
        LabelledImages(images, torch.tensor([0, 2, -1]), classes)
    with pytest.raises(ShapeError, match=r"labels has shape \(2,\) for 3 images"):
        LabelledImages(images, torch.tensor([0, 1]), classes)
    with pytest.raises(DtypeError, match=r"labels has dtype torch\.float32.*use labels\.to\(torch\.int64\)"):
        LabelledImages(images, torch.zeros(3), classes)
    with pytest.raises(DtypeError, match=r"images has dtype torch\.float32"):
        LabelledImages(images.float(), torch.zeros(3, dtype=torch.long), classes)
    with pytest.raises(ShapeError, match=r"expected \(n, 3, height, width\)"):
        LabelledImages(images[:, :1], torch.zeros(3, dtype=torch.long), classes)
    with pytest.raises(ParameterError, match="no samples"):
        LabelledImages(images[:0], torch.zeros(0, dtype=torch.long), classes)
    with pytest.raises(ParameterError, match="all different"):
        LabelledImages(images, torch.zeros(3, dtype=torch.long), ("a", "a"))


def test_bad_masks():
    good = segmented()
    bad = good.masks.clone()
    bad[2, 0, 0] = 3
    with pytest.raises(ParameterError, match=r"entries \[3\], the first in sample 2 \('n2'\); expected 0 to 2 or 7"):
        SegmentedImages(good.images, bad, good.classes, 7, good.names)
    bad[2, 0, 0] = 7
    assert len(SegmentedImages(good.images, bad, good.classes, 7, good.names)) == 6
    with pytest.raises(ParameterError, match=r"entries \[7\].*expected 0 to 2$"):
        SegmentedImages(good.images, bad, good.classes, None, good.names)
    with pytest.raises(ShapeError, match=r"masks has shape \(6, 3, 5\).*expected masks of shape \(6, 4, 5\)"):
        SegmentedImages(good.images, good.masks[:, :3], good.classes, 7, good.names)
    with pytest.raises(ShapeError, match="5 names for 6 images"):
        SegmentedImages(good.images, good.masks, good.classes, 7, good.names[:5])
    with pytest.raises(ParameterError, match="ignore is 2; expected None or 3 to 255"):
        SegmentedImages(good.images, good.masks, good.classes, 2, good.names)
    with pytest.raises(DtypeError, match=r"masks has dtype torch\.int64"):
        SegmentedImages(good.images, good.masks.long(), good.classes, 7, good.names)


@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_hold_out_of_labels(seed):
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (40,), generator=source).tolist()
    count = int(torch.randint(1, 40, (1,), generator=source))
    train, validation = hold_out(labelled(labels), count, seed)
    assert len(validation) == count
    seen = [*train.images[:, 0, 0, 0].tolist(), *validation.images[:, 0, 0, 0].tolist()]
    assert sorted(seen) == list(range(40))
    assert [labels[k] for k in seen] == [*train.labels.tolist(), *validation.labels.tolist()]
    for label in range(3):
        exact = count * labels.count(label) / 40
        assert abs(int((validation.labels == label).sum()) - exact) < 1
    again = hold_out(labelled(labels), count, seed)
    assert torch.equal(again[1].images, validation.images)


def test_hold_out_depends_on_the_seed_and_not_on_the_global_generator():
    data = labelled([0, 1] * 30)
    before = torch.get_rng_state()
    draws = {tuple(hold_out(data, 10, seed)[1].images[:, 0, 0, 0].tolist()) for seed in range(5)}
    assert len(draws) == 5
    assert torch.equal(torch.get_rng_state(), before)


def test_hold_out_of_masks():
    train, validation = hold_out(segmented(), 2, 3)
    assert (len(train), len(validation)) == (4, 2)
    assert sorted(train.names + validation.names) == [f"n{k}" for k in range(6)]
    assert [f"n{k}" for k in validation.images[:, 0, 0, 0].tolist()] == list(validation.names)


@pytest.mark.parametrize("count", [0, 6, 2.5])
def test_hold_out_refuses(count):
    with pytest.raises(ParameterError, match="count is"):
        hold_out(segmented(), count, 0)
