"""``dsc experiment``: list, run with overrides, a dry run, show, compare; and words that fit nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from deep_sparse_coding.cli import main
from deep_sparse_coding.experiments.registry import experiments

RUN = ["experiment", "run", "theory-attention", "--preset", "smoke", "--grid", "4", "--quiet"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def test_the_group_has_help_and_near_misses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: dsc experiment COMMAND")
    assert all(name in told for name in ("list", "run", "show", "compare"))
    assert main(["experiment"]) == 2
    assert main(["experiment", "rum"]) == 2
    assert "'rum' is no command of dsc experiment; expected" in capsys.readouterr().err


def test_list_has_a_row_per_figure_with_its_command_or_result(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "list"]) == 0
    told = capsys.readouterr().out
    for name, experiment in experiments().items():
        rows = len(experiment.shows or {experiment.source: ""})
        assert len(re.findall(rf"dsc experiment run {name}(?![\w-])", told)) == rows
    shown = re.findall(r"^ ?(Figure \d|Table|N\d+|G\d)", told, re.MULTILINE)
    assert shown[0] == "Figure 1"
    figures = [row for row in shown if row.startswith("Figure")]
    assert figures == sorted(figures)
    assert set(figures) == {f"Figure {k}" for k in range(1, 8)}
    assert shown.index("Table") == len(figures)
    assert main(RUN) == 0
    capsys.readouterr()
    assert main(["experiment", "list"]) == 0
    told = capsys.readouterr().out
    assert "runs/experiments/theory-attention-smoke/results.json" in told
    assert "dsc experiment run theory-attention " not in told


def test_a_run_with_a_changed_config(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--seeds", "3"]) == 0
    told = words(capsys)
    folder = here / "runs" / "experiments" / "theory-attention-smoke"
    content = json.loads((folder / "results.json").read_text())
    assert content["config"]["grid"] == 4
    assert content["changes"] == {"grid": 4}
    assert content["command"] == "dsc experiment run theory-attention --preset smoke --seeds 3 --grid 4"
    assert content["command"] in told
    assert "preset smoke · changed: grid = 4 · seed 3" in told
    assert (folder / "figures" / "theory_attention.png").read_bytes().startswith(b"\x89PNG")
    # Another config in the same folder is refused, in one line.
    assert main([*RUN[:-2], "5", "--quiet"]) == 1
    assert "holds a run of another kind (grid: there 4, now 5)" in capsys.readouterr().err


def test_a_dry_run_starts_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--dry-run"]) == 0
    told = words(capsys)
    assert "grid = 4 (changed)" in told
    assert "2 of 2 parts are still to run (nothing was started)" in told
    assert not list(here.iterdir())
    assert main(RUN) == 0
    capsys.readouterr()
    assert main([*RUN, "--dry-run"]) == 0
    assert "0 of 2 parts are still to run" in words(capsys)


def test_show_finds_committed_results_and_draws_them_anew(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "show", "theory-attention"]) == 1
    assert "there are no results of theory-attention" in capsys.readouterr().err
    assert main([*RUN, "--out", "elsewhere"]) == 0
    kept = here / "docs" / "results" / "theory-attention-smoke.json"
    kept.parent.mkdir(parents=True)
    (here / "elsewhere" / "results.json").rename(kept)
    capsys.readouterr()
    assert main(["experiment", "show", "theory-attention", "--figures", "images"]) == 0
    told = words(capsys)
    assert "results: docs/results/theory-attention-smoke.json" in told
    assert "figure: images/theory_attention.png" in told
    assert main(["experiment", "show", "theory-attention", "--markdown", "--results", "docs/results"]) == 0
    assert capsys.readouterr().out.startswith("| setting ")
    assert main(["experiment", "show", str(kept)]) == 0
    assert main(["experiment", "show", "theory-attention", "--preset", "cpu"]) == 1
    assert "with preset 'cpu'" in capsys.readouterr().err


def test_compare_prints_pairs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--seeds", "0", "1"]) == 0
    capsys.readouterr()
    assert main(["experiment", "compare", "theory-attention", "--measure", "inside"]) == 0
    told = words(capsys)
    assert "least weight on the token looked for, %: sharp - soft = +" in told
    assert "preset smoke" in told
    pair = ["experiment", "compare", "theory-attention:sharp", "theory-attention:soft", "--measure", "inside"]
    assert main(pair) == 0
    assert "theory-attention:soft - theory-attention:sharp = -" in words(capsys)
    assert main(["experiment", "compare", "theory-attention", "--measure", "insied"]) == 1
    assert "did you mean 'inside'" in capsys.readouterr().err
    assert main(["experiment", "compare", "theory-attention:shrp", "theory-attention:soft"]) == 1
    assert "did you mean 'sharp'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["run", "theory-dept"], "'theory-dept' is no experiment; did you mean 'theory-depth'"),
        (["show", "theory-dept"], "did you mean 'theory-depth'"),
        (["run", "--preset", "cpu"], "the first word is '--preset'; expected an experiment"),
        (["run"], "there is no word; expected an experiment"),
        (["run", "theory-depth", "--preset", "cup"], "preset is 'cup'; theory-depth has 'smoke' or 'cpu'"),
        (["run", "theory-depth", "--seeds", "1", "1"], "seeds are [1, 1]"),
    ],
)
def test_what_fits_nothing_is_one_line(
    args: list[str], told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", *args]) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_unknown_entries_of_a_config_give_near_misses(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["experiment", "run", "theory-depth", "--sinals", "3"])
    assert ended.value.code == 2
    assert "--signals" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["experiment", "run", "theory-depth", "--help"])
    assert ended.value.code == 0
    told = words(capsys)
    assert all(option in told for option in ("--preset {smoke,cpu}", "--seeds", "--dry-run", "--target-error"))
    assert not list(here.iterdir())
