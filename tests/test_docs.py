"""The pages of docs/ say what the code does: their code runs, their links exist, their messages are the real ones."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

import deep_sparse_coding as dsc

DOCS = Path(__file__).parent.parent / "docs"
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
PAGES = [
    "how-to-choose-a-solver.md",
    "did-it-converge.md",
    "how-to-read-a-guarantee.md",
    "sparse-training.md",
    "sparse-inference.md",
    "learning.md",
    "pretrained.md",
    "explain.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_runs_from_top_to_bottom(
    page: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # for the pages that write files
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    out = capsys.readouterr().out
    # What a print is said to show; steps and gaps may differ in the last digits between machines.
    said = re.findall(r"^\s*print\(.*\)  # (.*)$", text, flags=re.MULTILINE)
    assert said
    for line in said:
        for part in NUMBER.sub("#", line).split("…"):
            assert part.strip() in NUMBER.sub("#", out)


@pytest.mark.parametrize("page", PAGES)
def test_links_exist(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / target).is_file(), target


@pytest.mark.parametrize("status", list(dsc.Status), ids=lambda status: status.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_status_is_explained_with_its_message_and_remedy(status: dsc.Status, dtype: torch.dtype) -> None:
    dictionary = dsc.DenseDictionary.random(4, 6, seed=0, dtype=dtype)
    signal = torch.ones(1, 4, dtype=dtype)
    solution = dsc.solve(dsc.Lasso(dictionary, 0.1), signal, on_failure="ignore")
    message = dataclasses.replace(solution, status=(status,)).message(0)
    text = (DOCS / "did-it-converge.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {status.name} |")]
    opening = re.split(r":|after|;", message)[0].strip()
    assert opening in row
    if status != dsc.Status.CONVERGED:
        remedy = re.split(r"[;:] ", message)[-1]
        assert remedy in row, remedy


def test_the_code_of_the_denoising_page_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "denoising.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(block, "denoising.md", "exec"), {})
