"""``dsc demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def demo(
    out: Path = Path("runs/demo"),
    preset: Literal["full", "small"] = "full",
    seed: int = 0,
    quiet: bool = False,
) -> None:
    """The main job on a real photograph and on digits: learn, solve, prove, compile, train, and report.

    Args:
        out: The folder for report.html, summary.json and hero.png; it is made if need be.
        preset: "full" takes about two minutes on two cores, "small" some seconds.
        seed: Of everything that is random; the same seed gives the same numbers.
        quiet: Show no progress, only the place of the report.
    """
    from ..demo import run_demo

    result = run_demo(out, preset_name=preset, seed=seed, quiet=quiet)
    print(f"report: {result.report.resolve()}")
