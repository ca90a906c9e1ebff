"""Results on disk: whole or not at all, one run per folder, a killed run goes on, nothing mistaken for another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deep_sparse_coding.errors import DSCWarning, FileFormatError, ParameterError
from deep_sparse_coding.experiments.execute import Job, prepare
from deep_sparse_coding.experiments.experiment import Experiment, Measure, Part, Run
from deep_sparse_coding.experiments.store import (
    differences,
    flatten,
    open_folder,
    read_json,
    read_record,
    write_json,
    write_record,
)


@dataclass(frozen=True)
class Train:
    epochs: int = 3
    rates: tuple[float, ...] = (0.1, 0.2)
    amp: bool = False


@dataclass(frozen=True)
class Config:
    width: int = 4
    train: Train = field(default_factory=Train)
    note: str | None = None


SETTINGS = ("without", "with penalty")


def toy(calls: list[tuple[str, int]], fail_at: int | None = None) -> Experiment:
    """Return an experiment that notes which parts it makes, and fails in place of part number `fail_at`."""

    def make(config: Config, part: Part) -> Mapping[str, Any]:
        if fail_at is not None and len(calls) == fail_at:
            raise KeyboardInterrupt
        calls.append((part.setting, part.seed))
        part.advance(1.0)
        better = 1.0 if part.setting == "with penalty" else 0.0
        return {"measures": {"accuracy": 80.0 + part.seed + better}, "curve": [0.5, 0.25]}

    return Experiment(
        name="toy-net",
        title="a toy",
        source="Figure 1",
        presets={"smoke": Config(), "cpu": Config(width=8)},
        run=lambda config, run: {"runs": run.each(SETTINGS, lambda part: make(config, part))},
        draw=lambda record, folder: [],
        measures=(Measure("accuracy", "test accuracy, %", 2, "higher"),),
        settings=lambda config: SETTINGS,
    )


def job(tmp_path: Path, calls: list[tuple[str, int]], fail_at: int | None = None, **changes: Any) -> Job:
    given = {"seeds": (0, 1), "out": tmp_path / "toy-net-cpu", **changes}
    return prepare(toy(calls, fail_at), "cpu", **given)


# ---------------------------------------------------------------------- JSON


def test_json_comes_back_as_it_was_written_and_lists_stand_on_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = {"numbers": [0.1 + 0.2, 1e-300, 3], "nested": [{"a": (1, 2)}, {"b": None}] * 9, "text": "±"}
    back = write_json(path, content)
    assert read_json(path) == back
    assert back["numbers"] == [0.1 + 0.2, 1e-300, 3]
    assert back["nested"][0] == {"a": [1, 2]}
    lines = path.read_text().splitlines()
    assert any('"numbers": [0.30000000000000004, 1e-300, 3]' in line for line in lines)
    assert len(lines) > 10


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"a": {"b": [1.0, float("nan")]}}, r"a\['a'\]\['b'\]\[1\] is nan; expected a finite number"),
        ({"loss": float("inf")}, r"a\['loss'\] is inf"),
        ({"x": {1, 2}}, r"a\['x'\] is of type set; expected numbers, text, lists and mappings"),
    ],
)
def test_what_json_does_not_hold_is_named(tmp_path: Path, content: dict[str, Any], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        write_json(tmp_path / "a.json", content)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "[1, 2]", "\xff\xfe"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, text: str) -> None:
    path = tmp_path / "part.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(FileFormatError, match=r"part.json (is damaged|holds a list).*run again"):
        read_json(path)
    with pytest.raises(FileFormatError, match="cannot read"):
        read_json(tmp_path / "none.json")


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "part.json"
    write_json(path, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileFormatError, match="No space left on device"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["part.json"]


# ---------------------------------------------------------------------- configs


def test_configs_are_flattened_and_compared() -> None:
    flat = flatten(Config())
    assert flat == {
        "width": 4,
        "train.epochs": 3,
        "train.rates": [0.1, 0.2],
        "train.amp": False,
        "note": None,
    }
    other = flatten(Config(train=Train(epochs=5)))
    assert differences(flat, other) == {"train.epochs": (3, 5)}
    assert differences(flat, flat) == {}


def test_the_command_says_what_was_changed(tmp_path: Path) -> None:
    config = Config(width=8, train=Train(epochs=5, rates=(0.5,), amp=True), note="a b")
    changed = job(tmp_path, [], config=config, seeds=(3, 4))
    assert changed.command == (
        "dsc experiment run toy-net --preset cpu --seeds 3 4 "
        "--train.epochs 5 --train.rates 0.5 --train.amp --note 'a b'"
    )
    assert job(tmp_path, [], seeds=None).command == "dsc experiment run toy-net --preset cpu"
    record = changed.execute()
    assert record.changes == {"train.epochs": 5, "train.rates": [0.5], "train.amp": True, "note": "a b"}
    assert "preset cpu · changed: train.epochs = 5" in record.caption


# ---------------------------------------------------------------------- runs


def test_a_run_leaves_everything_that_tells_it_from_another(tmp_path: Path) -> None:
    record = job(tmp_path, []).execute()
    assert read_record(tmp_path / "toy-net-cpu" / "results.json") == record
    assert (record.name, record.preset, record.seeds) == ("toy-net", "cpu", (0, 1))
    assert record.config["width"] == 8
    assert record.changes == {}
    assert set(record.versions) == {"deep_sparse_coding", "torch", "python"}
    assert record.threads >= 1
    assert record.settings == SETTINGS
    assert record.values("with penalty", "accuracy") == {0: 81.0, 1: 82.0}
    assert record.caption.startswith("toy-net · preset cpu · seeds 0 1 · 20")
    assert str(tmp_path) not in (tmp_path / "toy-net-cpu" / "results.json").read_text()


def test_a_stopped_run_goes_on_and_makes_no_part_twice(tmp_path: Path) -> None:
    first: list[tuple[str, int]] = []
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path, first, fail_at=2).execute()
    assert not (tmp_path / "toy-net-cpu" / "results.json").exists()
    second: list[tuple[str, int]] = []
    again = job(tmp_path, second)
    assert again.unfinished() == [("without", 1), ("with penalty", 1)]
    record = again.execute()
    assert first + second == [(setting, seed) for seed in (0, 1) for setting in SETTINGS]
    whole = job(tmp_path, [], out=tmp_path / "other").execute()
    without_times = [[{k: v for k, v in run.items() if k != "seconds"} for run in r.runs] for r in (record, whole)]
    assert without_times[0] == without_times[1]
    third: list[tuple[str, int]] = []
    assert job(tmp_path, third).execute().runs == record.runs
    assert third == []


def test_more_seeds_are_added_to_a_run(tmp_path: Path) -> None:
    job(tmp_path, []).execute()
    calls: list[tuple[str, int]] = []
    record = job(tmp_path, calls, seeds=(0, 1, 2)).execute()
    assert calls == [("without", 2), ("with penalty", 2)]
    assert record.seeds == (0, 1, 2)


def test_another_config_in_the_same_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    job(tmp_path, []).execute()
    config = Config(width=8, train=Train(epochs=5))
    with pytest.raises(ParameterError, match=r"another kind \(train.epochs: there 3, now 5\).*--out"):
        job(tmp_path, [], config=config).execute()
    smoke = prepare(toy([]), "smoke", out=tmp_path / "toy-net-cpu")
    with pytest.raises(ParameterError, match=r"preset: there 'cpu', now 'smoke'; width: there 8, now 4"):
        smoke.execute()


def test_a_damaged_part_is_not_taken_for_whole(tmp_path: Path) -> None:
    job(tmp_path, []).execute()
    path = tmp_path / "toy-net-cpu" / "parts" / "with_penalty-seed1" / "part.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        FileFormatError, match=r"with_penalty-seed1/part.json is damaged .* delete the file and run again"
    ):
        job(tmp_path, []).execute()


def test_parts_of_other_versions_are_kept_with_a_warning(tmp_path: Path) -> None:
    job(tmp_path, []).execute()
    path = tmp_path / "toy-net-cpu" / "run.json"
    manifest = json.loads(path.read_text())
    manifest["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest))
    with pytest.warns(DSCWarning, match=r"begun with other versions \(torch 1.0, now .*delete the folder"):
        job(tmp_path, []).execute()


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from deep_sparse_coding.experiments.store import open_folder
        with open_folder(Path(sys.argv[1]), {"name": "toy-net", "preset": "cpu"}, {}, {}):
            print("held", flush=True)
            sys.stdin.read()
        """
    )
    folder = tmp_path / "toy-net-cpu"
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    identity = {"name": "toy-net", "preset": "cpu"}
    with pytest.raises(ParameterError, match="is in use by another run"), open_folder(folder, identity, {}, {}):
        pass
    # A run that is killed leaves no lock behind.
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with open_folder(folder, identity, {}, {}):
        pass


def test_other_processes_of_one_run_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    record = job(tmp_path, []).execute()
    assert len(record.runs) == 4
    assert not list(tmp_path.rglob("*.json"))


def test_a_part_must_end_with_measures(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(ParameterError, match=r"part 'a, seed 0' returned \['loss'\]; expected also 'measures'"):
        run.part("a", 0, lambda part: {"loss": 1.0})
    with pytest.raises(ParameterError, match=r"\['accuracy'\] is nan"):
        run.part("a", 0, lambda part: {"measures": {"accuracy": float("nan")}})
    for name in ("../a", "", "a/b", ".hidden"):
        with pytest.raises(ParameterError, match="expected a name of letters"):
            run.part(name, 0, lambda part: {"measures": {}})


def test_the_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="cannot write to"):
        job(tmp_path, [], out=tmp_path / "file" / "run").execute()


def test_what_is_asked_is_checked_before_work(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"preset is 'cup'; toy-net has 'smoke' or 'cpu'; did you mean 'cpu'"):
        prepare(toy([]), "cup")
    with pytest.raises(ParameterError, match=r"seeds are \[1, 1\]; expected at least one, each once"):
        job(tmp_path, [], seeds=(1, 1))
    with pytest.raises(ParameterError, match="seed is -1"):
        job(tmp_path, [], seeds=(-1,))
    with pytest.raises(ParameterError, match=r"data is .*none, which does not exist"):
        job(tmp_path, [], data=tmp_path / "none")
    with pytest.raises(ParameterError, match="config is a Train; expected a Config"):
        job(tmp_path, [], config=Train())


# ---------------------------------------------------------------------- records


def test_records_that_are_none_are_refused(tmp_path: Path) -> None:
    record = job(tmp_path, []).execute()
    path = tmp_path / "results.json"
    write_record(path, record)
    content = json.loads(path.read_text())
    for change, told in (
        ({"format": 99}, "has format 99; expected 1"),
        ({"results": {"runs": [{"setting": "a"}]}}, "no list of runs"),
        ({"results": []}, "no list of runs"),
    ):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(FileFormatError, match=told):
            read_record(path)
    del content["preset"]
    path.write_text(json.dumps(content))
    with pytest.raises(FileFormatError, match="lacks preset"):
        read_record(path)


def test_unknown_settings_and_measures_give_near_misses(tmp_path: Path) -> None:
    record = job(tmp_path, []).execute()
    with pytest.raises(ParameterError, match=r"setting is 'witout'; toy-net has .* did you mean 'without'"):
        record.values("witout", "accuracy")
    with pytest.raises(ParameterError, match=r"measure is 'acuracy', which 'without'.* did you mean 'accuracy'"):
        record.values("without", "acuracy")
    assert replace(record, seeds=(0,)).caption.startswith("toy-net · preset cpu · seed 0 ·")
