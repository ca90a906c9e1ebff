"""The experiments on segmentation: every preset's settings, runs on the stand-ins, masks that come back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.experiments.execute import prepare
from deep_sparse_coding.experiments.experiment import PRESETS, Experiment, Run
from deep_sparse_coding.experiments.segmentation import SEGMENTATION, SegmentationConfig, run_segmentation
from deep_sparse_coding.experiments.training.parts import pack, penalty_of, unpack

BY_NAME = {experiment.name: experiment for experiment in SEGMENTATION}


@pytest.mark.parametrize("experiment", SEGMENTATION, ids=BY_NAME)
def test_every_preset_names_penalties_that_exist_and_begins_without(experiment: Experiment) -> None:
    assert tuple(experiment.presets) == PRESETS
    for config in experiment.presets.values():
        assert config.penalties[0] == "none"
        assert experiment.settings(config) == config.penalties
        for penalty in config.penalties:
            penalty_of(penalty)


@pytest.mark.parametrize("experiment", SEGMENTATION, ids=BY_NAME)
def test_a_run_has_every_measure_and_is_drawn(experiment: Experiment, tmp_path: Path) -> None:
    small = replace(experiment.presets["smoke"], penalties=("none", "0.05"))
    record = prepare(experiment, "smoke", config=small, out=tmp_path / "out").execute()
    for run in record.runs:
        assert {measure.name for measure in experiment.measures} <= run["measures"].keys()
        assert unpack(run["masks"]).shape == (small.masks, small.height, small.across)
        assert np.array_equal(unpack(run["truth"]), unpack(record.runs[0]["truth"]))
    paths = experiment.draw(record, tmp_path)
    assert all(path.stat().st_size > 5000 for path in paths)


def test_masks_come_back_as_they_were() -> None:
    masks = torch.randint(0, 12, (3, 5, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert np.array_equal(unpack(pack(masks)), masks.numpy())


def test_data_is_asked_for_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"expected --data FOLDER with DUT-OMRON"):
        run_segmentation(SegmentationConfig(), Run(tmp_path))
    with pytest.raises(ParameterError, match=r"data is 'camvit'; .*did you mean 'camvid'"):
        SegmentationConfig(data="camvit")
