"""The main job from beginning to end: photograph, proofs, network, digits, and the report of it all."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from .._version import __version__
from ..checks import require_integer
from ..dictionaries.random import generator
from ..errors import FileFormatError, missing_extra
from ..files import write_whole
from ..progress import Stages
from ..report import write
from .designed import run_designed
from .digits import run_digits
from .hero import hero_png
from .pages import build
from .photograph import run_photograph
from .results import Results
from .settings import preset
from .words import percent, power

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the main job wrote, and its numbers.

    Attributes:
        report: The report, one HTML file.
        summary: All numbers, JSON.
        picture: The picture, PNG.
        numbers: What `summary` holds.
    """

    report: Path
    summary: Path
    picture: Path
    numbers: dict[str, Any]


def run_demo(
    out: str | os.PathLike[str] = "runs/demo",
    *,
    preset_name: str = "full",
    seed: int = 0,
    console: Console | None = None,
    quiet: bool = False,
) -> DemoResult:
    """Run the main job and write its report.

    Args:
        out: A folder; it is made if need be, and files of an earlier run in it are replaced.
        preset_name: "full", or "small" for a look in a few seconds.
        seed: Of everything that is random.
        console: Where progress is shown; None for standard output.
        quiet: Show none.

    Raises:
        FileFormatError: The folder cannot be made or written.
        MissingExtraError: A package of the extra "demo" is not installed.
        ParameterError: There is no such preset, or the seed is negative or too large.
    """
    settings = preset(preset_name)
    seed = require_integer("seed", seed, minimum=0)
    generator(seed)  # says what is wrong with a seed before any work
    versions = _versions()
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileFormatError(f"cannot make the folder {folder} ({error}); expected a place to write to") from error
    taken: dict[str, float] = {}
    with Stages(console, quiet=quiet) as stages:
        began = time.perf_counter()

        def lap(part: str) -> None:
            nonlocal began
            now = time.perf_counter()
            taken[part], began = now - began, now

        photograph = run_photograph(settings, seed, stages)
        stages.say(f"  {photograph.learning}".replace("\n", "\n  "))
        stages.say(f"  {photograph.solution}")
        stages.say(f"  {photograph.psnr(photograph.reconstruction):.2f} dB")
        stages.say(f"  before solving, {photograph.uniqueness}".replace("\n", "\n  "))
        stages.say(f"  after solving: {photograph.posterior}".replace("\n", "\n  "))
        lap("photograph: learning, solving, proving")
        designed = run_designed(settings, seed, stages)
        stages.say(f"  {designed.uniqueness}".replace("\n", "\n  "))
        stages.say(f"  {designed.equivalence}".replace("\n", "\n  "))
        stages.say(
            f"  CNN of {designed.net.plan.depth} layers: error {float(designed.errors[:, -1].max()):.1e}, "
            f"bound {power(designed.net.error_bound)}"
        )
        lap("designed model: proving, compiling, measuring")
        digits = run_digits(settings, seed, stages)
        for word, runs in (("without", digits.plain), ("with", digits.sparse)):
            stages.say(
                f"  {word} the penalty: {100 * runs.mean:.2f} % ± {100 * runs.spread:.2f} % right, "
                f"{percent(runs.zero_fraction)} zeros"
            )
        lap("digits: training")
        with stages.stage("Writing the report") as advance:
            results = Results(settings, seed, photograph, designed, digits, taken, versions)
            numbers = {
                "version": __version__,
                "preset": settings.name,
                "seed": seed,
                "versions": versions,
                "threads": torch.get_num_threads(),
                "seconds": dict(taken),
                "photograph": photograph.summary(),
                "designed": designed.summary(),
                "digits": digits.summary(),
            }
            page = build(results)
            advance(0.6)
            picture = folder / "hero.png"
            write_whole(picture, hero_png(results))
            summary = folder / "summary.json"
            write_whole(summary, json.dumps(numbers, indent=1, allow_nan=False).encode())
            report = write(folder / "report.html", page)
    return DemoResult(report, summary, picture, numbers)


def _versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on; also tells early what is missing."""
    try:
        import matplotlib
        import PIL
        import sklearn
    except ImportError as error:
        raise missing_extra(error.name or "matplotlib", "demo", "dsc demo") from None
    return {
        "deep_sparse_coding": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scikit-learn": sklearn.__version__,
        "matplotlib": matplotlib.__version__,
        "Pillow": PIL.__version__,
    }
