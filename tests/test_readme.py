"""The README's code runs, and prints what the README says it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_code_of_the_first_screen_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    exec(compile(code, str(README), "exec"), {})
    out = capsys.readouterr().out
    said = re.search(r"It prints\n\n```\n(.*?)```", text, flags=re.DOTALL)
    assert said is not None
    # Steps and gaps may differ in the last digits between machines; what is proved may not.
    for line in said.group(1).splitlines():
        if line.startswith(("proved", "18896")) or "because" in line:
            assert line in out
    error, bound = re.search(r"^(0\.\d+) ≤ (0\.\d+)$", out, flags=re.MULTILINE).groups()  # type: ignore[union-attr]
    assert float(error) <= float(bound) <= 0.01


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).is_file(), target
