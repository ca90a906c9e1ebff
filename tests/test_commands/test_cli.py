"""The command line: help, version, near misses, errors without tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import deep_sparse_coding as dsc
from deep_sparse_coding.cli import main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"dsc {dsc.__version__}"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "demo" in capsys.readouterr().out
    assert main([]) == 2
    assert "usage: dsc" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dmo", "deom", "demos"])
def test_an_unknown_command_gives_near_misses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    told = capsys.readouterr().err
    assert f"'{name}' is no command" in told
    assert "did you mean 'demo'" in told


def test_an_unknown_option_gives_near_misses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--versoin"]) == 2
    assert "did you mean '--version'?" in capsys.readouterr().err


def test_options_of_a_command_have_help_and_near_misses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(option in told for option in ("--out", "--preset", "--seed"))
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--sed", "3"])
    assert ended.value.code == 2
    assert "--seed" in capsys.readouterr().err


def test_an_error_of_the_library_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--seed", "-1", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "dsc: seed is -1; expected a whole number of at least 0\n"
    assert main(["demo", "--seed", str(1 << 64), "--out", str(tmp_path / "new")]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "dsc: seed is 18446744073709551616; expected a number below 2⁶⁴\n")
    assert not (tmp_path / "new").exists()


def test_without_tyro_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["demo"]) == 1
    assert "deep_sparse_coding[cli]" in capsys.readouterr().err


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deep_sparse_coding", "--version"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, f"dsc {dsc.__version__}")
