"""docs/coming-from-other-libraries.md: its code runs, as far as what it imports is installed, and its links exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-other-libraries.md"


def test_the_code_runs_from_top_to_bottom() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, object] = {}
    ran = 0
    for block in blocks:
        packages = re.findall(r"^(?:import|from) (\w+)", block, flags=re.MULTILINE)
        if all(importlib.util.find_spec(package) for package in packages):
            exec(compile(block, PAGE.name, "exec"), names)
            ran += 1
    assert ran >= 10
    assert {"classical", "learner", "filters", "search"} <= names.keys()


def test_links_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).is_file(), target
