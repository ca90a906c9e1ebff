"""All experiments by name; and where their results lie."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from deep_sparse_coding.errors import FileFormatError, NameMatchError, ParameterError
from deep_sparse_coding.experiments.experiment import PRESETS, Experiment, Measure
from deep_sparse_coding.experiments.registry import experiments, find_experiment, find_record, results_of
from deep_sparse_coding.experiments.store import Record, flatten, write_record


def record(name: str, preset: str) -> Record:
    runs = [{"setting": "a", "seed": 0, "measures": {"accuracy": 1.0}}]
    return Record(name, preset, {}, {}, (0,), {"runs": runs}, {}, 1, "2026-01-01", "dsc", 0.0)


def test_every_experiment_is_whole() -> None:
    for name, experiment in experiments().items():
        assert experiment.name == name
        assert "smoke" in experiment.presets
        assert "cpu" in experiment.presets
        assert experiment.title
        assert experiment.source
        assert experiment.measures
        kinds = {type(config) for config in experiment.presets.values()}
        assert len(kinds) == 1
        for preset, config in experiment.presets.items():
            assert dataclasses.is_dataclass(config)
            assert flatten(config)  # plain values throughout
            assert experiment.settings(config)
            assert experiment.seeds[preset]
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(config, dataclasses.fields(config)[0].name, None)


def test_every_figure_of_the_paper_has_an_experiment() -> None:
    shown = {figure for experiment in experiments().values() for figure in experiment.shows or (experiment.source,)}
    assert {f"Figure {number}" for number in range(1, 8)} <= {figure[:8] for figure in shown}
    assert any(figure.startswith("Table") for figure in shown)


def test_an_unknown_name_gives_near_misses() -> None:
    with pytest.raises(NameMatchError, match="'theory-mapp' is no experiment; did you mean 'theory-map'"):
        find_experiment("theory-mapp")
    with pytest.raises(NameMatchError, match="'zzz' is no experiment; dsc experiment list shows all"):
        find_experiment("zzz")


def test_results_are_found_in_both_layouts_the_largest_preset_first(tmp_path: Path) -> None:
    run, kept = tmp_path / "runs", tmp_path / "kept"
    (run / "theory-map-smoke").mkdir(parents=True)
    kept.mkdir()
    write_record(run / "theory-map-smoke" / "results.json", record("theory-map", "smoke"))
    write_record(kept / "theory-map-cpu.json", record("theory-map", "cpu"))
    places = (run, kept)
    assert [path.parent.name for path in results_of("theory-map", places)] == ["kept", "theory-map-smoke"]
    assert find_record("theory-map", places=places)[1].preset == "cpu"
    assert find_record("theory-map", "smoke", places)[1].preset == "smoke"
    assert find_record(str(run / "theory-map-smoke"))[1].preset == "smoke"
    assert find_record(str(kept / "theory-map-cpu.json"))[1].preset == "cpu"
    with pytest.raises(FileFormatError, match=r"no results of theory-depth in .*: dsc experiment run theory-depth"):
        find_record("theory-depth", places=places)
    (kept / "theory-map-cpu.json").write_text("{")
    with pytest.raises(FileFormatError, match="is damaged"):
        find_record("theory-map", places=places)


def test_what_an_experiment_must_be() -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        epochs: int = 1

    def make(**changes: object) -> Experiment:
        given: dict[str, object] = {
            "name": "a-b",
            "title": "t",
            "source": "s",
            "presets": {"cpu": Config()},
            "run": lambda config, run: {},
            "draw": lambda record, folder: [],
            "measures": (),
            "settings": lambda config: ("x",),
        }
        return Experiment(**{**given, **changes})  # type: ignore[arg-type]

    assert make().config("cpu") == Config()
    for name in ("A", "a_b", "a-", "", "a b"):
        with pytest.raises(ParameterError, match="expected lower case words joined by hyphens"):
            make(name=name)
    with pytest.raises(ParameterError, match=r"has the presets \['big'\]"):
        make(presets={"big": Config()})
    with pytest.raises(ParameterError, match=r"preset 'cpu' of a-b is .*; expected a frozen dataclass"):
        make(presets={"cpu": {"epochs": 1}})
    with pytest.raises(ParameterError, match="better is 'more'"):
        Measure("a", "a", better="more")
    assert PRESETS == ("smoke", "cpu", "full")
