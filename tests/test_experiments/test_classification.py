"""The experiments on CIFAR-10: every preset's settings, a run on the stand-in, what is chosen by validation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.experiments.classification import CLASSIFICATION, ClassificationConfig, run_classification
from deep_sparse_coding.experiments.execute import prepare
from deep_sparse_coding.experiments.experiment import PRESETS, Experiment, Run
from deep_sparse_coding.experiments.training import PenaltySettings
from deep_sparse_coding.experiments.training.matched import is_plain, matched_differences
from deep_sparse_coding.experiments.training.parts import Choice, choices, chosen_by_validation, penalty_of

BY_NAME = {experiment.name: experiment for experiment in CLASSIFICATION}


@pytest.mark.parametrize("experiment", CLASSIFICATION, ids=BY_NAME)
def test_every_preset_names_penalties_that_exist_and_begins_without(experiment: Experiment) -> None:
    assert tuple(experiment.presets) == PRESETS
    for config in experiment.presets.values():
        assert config.penalties[0] == "none"
        settings = experiment.settings(config)
        count = len(config.models) * len(config.activations) * len(config.penalties)
        assert len(set(settings)) == len(settings) == count
        for penalty in config.penalties:
            penalty_of(penalty)
    assert experiment.presets["smoke"].drawn
    assert not experiment.presets["full"].drawn


def test_a_run_is_kept_part_by_part_and_drawn(tmp_path: Path) -> None:
    experiment = BY_NAME["cifar10-accuracy"]
    small = replace(experiment.presets["smoke"], penalties=("none", "0.05"))
    record = prepare(experiment, "smoke", config=small, out=tmp_path / "out").execute()
    assert record.settings == ("none", "0.05")
    for run in record.runs:
        assert {"test_accuracy", "validation_accuracy", "test_zeros", "test_hoyer"} <= run["measures"].keys()
        assert [line["epoch"] for line in run["history"]] == [1, 2]
        assert run["sparsity"]["layers"]
    assert record.results["chosen"]["vgg11 relu"]["setting"] == "0.05"
    again = prepare(experiment, "smoke", config=small, out=tmp_path / "out").execute()
    assert again.results == record.results
    paths = [path for each in BY_NAME.values() for path in each.draw(record, tmp_path)]
    assert len(paths) >= len(BY_NAME)
    assert all(path.stat().st_size > 5000 for path in paths)


def test_data_is_asked_for_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"expected --data FOLDER with CIFAR-10"):
        run_classification(ClassificationConfig(), Run(tmp_path))
    with pytest.raises(ParameterError, match=r"penalty is '0.05 latte', and 'latte' is unknown"):
        run_classification(ClassificationConfig(penalties=("none", "0.05 latte")), Run(tmp_path))


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ("none", PenaltySettings()),
        ("0.05", PenaltySettings("fixed", weight=0.05)),
        ("1e-3 late decay", PenaltySettings("fixed", weight=1e-3, layers="late", schedule="decay")),
        ("0.2 sum last", PenaltySettings("fixed", weight=0.2, layers="last", per_entry=False)),
        ("target=0.8", PenaltySettings("target", target=0.8)),
        ("0.1 group", PenaltySettings("fixed", weight=0.1, form="group")),
    ],
)
def test_penalties_in_words(words: str, want: PenaltySettings) -> None:
    assert penalty_of(words) == want


@pytest.mark.parametrize("words", ["", "late", "0.1 late early", "0.1 0.2", "none late decay cosine", "target=x"])
def test_words_that_say_nothing_or_too_much_are_refused(words: str) -> None:
    with pytest.raises(ParameterError, match=r"penalty is "):
        penalty_of(words)


def test_names_hold_only_what_differs() -> None:
    assert tuple(choices(("vgg11",), ("relu",), ("none", "0.1"))) == ("none", "0.1")
    assert tuple(choices(("vgg11", "vgg13"), ("relu",), ("none",))) == ("vgg11 none", "vgg13 none")
    with pytest.raises(ParameterError, match="each once"):
        choices(("vgg11",), ("relu",), ("none", "none"))


def test_the_choice_is_by_validation_and_leaves_the_baseline_out() -> None:
    every = {word: Choice("vgg11", "relu", word) for word in ("none", "0.1", "0.2")}
    runs = [
        {"setting": setting, "seed": seed, "measures": {"validation_accuracy": value, "test_accuracy": -value}}
        for setting, values in (("none", (9, 9)), ("0.1", (5, 6)), ("0.2", (6, 7)))
        for seed, value in enumerate(values)
    ]
    assert chosen_by_validation(runs, every, "validation_accuracy")["vgg11 relu"]["setting"] == "0.2"


def test_matched_differences_are_those_to_the_line_between_plain_weights() -> None:
    every = {word: Choice("vgg11", "relu", word) for word in ("none", "0.1", "0.2 late", "target=0.9")}
    measured = {
        ("none", 0): (50.0, 60.0),
        ("0.1", 0): (70.0, 56.0),
        ("0.2 late", 0): (60.0, 59.5),  # the line gives 58
        ("target=0.9", 0): (90.0, 50.0),  # no plain run is as sparse
        ("none", 1): (50.0, 61.0),
        ("0.1", 1): (70.0, 61.0),
        ("0.2 late", 1): (55.0, 60.0),
        ("target=0.9", 1): (45.0, 60.0),
    }
    runs = [
        {"setting": setting, "seed": seed, "measures": {"test_zeros": zeros, "test_accuracy": accuracy}}
        for (setting, seed), (zeros, accuracy) in measured.items()
    ]
    assert matched_differences(runs, every, "test_accuracy") == {"0.2 late": {"0": 1.5, "1": -1.0}}


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        ("none", True),
        ("0.3", True),
        ("0.3 late", False),
        ("0.3 sum", False),
        ("0.3 decay", False),
        ("target=0.5", False),
    ],
)
def test_what_counts_as_the_plain_penalty(words: str, plain: bool) -> None:
    assert is_plain(words) is plain
