"""What an experiment is, and what it is given when it runs: a folder, seeds, finished parts, progress.

An experiment is a frozen description: a name, where in the paper it stands, presets of a config, a function that runs
and a function that draws. It runs in *parts*, one training of one setting with one seed each; a finished part is a JSON
file that is written whole or not at all, so a run that was killed goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import ParameterError, near_misses
from .store import Record, read_json, write_json

PRESETS = ("smoke", "cpu", "full")
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_SEEDS: Mapping[str, tuple[int, ...]] = MappingProxyType({"smoke": (0,), "cpu": (0, 1, 2), "full": (0, 1, 2, 3, 4)})

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Measure:
    """A number that every part of an experiment ends with.

    Attributes:
        name: Its key in a part's ``measures``.
        title: What a table's column says, with the unit: ``"test accuracy, %"``.
        digits: Digits behind the point.
        better: Which way is better; None where neither is.
        scientific: Written with an exponent: 1.2e-5.
    """

    name: str
    title: str
    digits: int = 2
    better: str | None = None
    scientific: bool = False

    def text(self, value: float, *, sign: bool = False) -> str:
        """Return a value as tables show it."""
        return f"{value:{'+' if sign else ''}.{self.digits}{'e' if self.scientific else 'f'}}"

    def __post_init__(self) -> None:
        if self.better not in (None, "higher", "lower"):
            raise ParameterError(f"better is {self.better!r}; expected 'higher', 'lower' or None")


@dataclass(frozen=True)
class Experiment:
    """One figure or table of the paper, or one picture of the theory, as something that can be run.

    Attributes:
        name: Lower case words joined by hyphens: ``"cifar10-vgg11"``.
        title: What it shows, one line.
        source: Where it comes from: ``"Figures 1 and 3"``, ``"N2 of docs/theory.md"``.
        presets: A config by preset, among "smoke" (seconds), "cpu" (hours on two cores) and "full" (the paper's
            scale). A config is a frozen dataclass of plain values and of such dataclasses.
        run: Called with the config and a `Run`; returns the results: a mapping that JSON can hold, with
            ``"runs"``: one mapping per part, with ``"setting"``, ``"seed"`` and ``"measures"`` (what
            `Run.each` returns).
        draw: Called with the record of a run and a folder that is there; writes figures with `save_figure` and returns
            their paths.
        measures: What the tables show, in this order.
        settings: Called with the config; the names of what is compared. The first is the baseline.
        seeds: Seeds by preset.
        shows: What it gives for each figure and table of the paper, a row each in ``dsc experiment list``:
            ``{"Figure 1": "test accuracy over the epochs"}``; empty: one row, of `source` and `title`.
        needs_data: Which data the user must give with ``--data``; empty: none.
    """

    name: str
    title: str
    source: str
    presets: Mapping[str, Any]
    run: Callable[[Any, Run], Mapping[str, Any]]
    draw: Callable[[Record, Path], list[Path]]
    measures: tuple[Measure, ...]
    settings: Callable[[Any], tuple[str, ...]]
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: _SEEDS)
    shows: Mapping[str, str] = field(default_factory=dict)
    needs_data: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ParameterError(f"name is {self.name!r}; expected lower case words joined by hyphens")
        unknown = [preset for preset in self.presets if preset not in PRESETS]
        if unknown or not self.presets:
            raise ParameterError(
                f"{self.name} has the presets {list(self.presets)}; expected some of {', '.join(map(repr, PRESETS))}"
            )
        for preset, config in self.presets.items():
            if isinstance(config, type) or not dataclasses.is_dataclass(config):
                raise ParameterError(f"preset {preset!r} of {self.name} is {config!r}; expected a frozen dataclass")

    def config(self, preset: str) -> Any:
        """Return the config of a preset.

        Raises:
            ParameterError: There is none of that name.
        """
        if preset not in self.presets:
            known = " or ".join(map(repr, self.presets))
            raise ParameterError(f"preset is {preset!r}; {self.name} has {known}{near_misses(preset, self.presets)}")
        return self.presets[preset]


@dataclass(frozen=True)
class Part:
    """What one part is given.

    Attributes:
        setting: What is compared, a name.
        seed: The seed, for everything random in the part.
        folder: The part's own folder, for checkpoints and logs; it is there and keeps what an earlier, killed try left.
        advance: Call it with the share that is done, 0 to 1.
        say: Prints a line above the progress.
    """

    setting: str
    seed: int
    folder: Path
    advance: Advance
    say: Callable[[str], None]


def _quiet(_: object) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Run:
    """What an experiment is given to run in.

    Attributes:
        folder: The folder of this run, there and locked.
        seeds: The seeds.
        data: Where the user's data lies; None where none was given. Not part of the config: a folder is no setting.
        stage: Called with the title of a part when it begins; returns what takes its progress.
        say: Prints a line.
    """

    folder: Path
    seeds: tuple[int, ...] = (0,)
    data: Path | None = None
    stage: Callable[[str], Advance] = field(default=lambda title: _quiet)
    say: Callable[[str], None] = _quiet

    def part(self, setting: str, seed: int, make: Callable[[Part], Mapping[str, Any]]) -> dict[str, Any]:
        """Return one part's result: read if an earlier run finished it, else made now and kept.

        Args:
            setting: What is compared, a name; one file per setting and seed.
            seed: The seed.
            make: Makes the part; returns a mapping that JSON can hold, with ``"measures"``: numbers by name. It is
                called in the main process and, under ``torchrun`` or Fabric, in every other; only the first writes.

        Returns:
            The mapping, with ``"setting"``, ``"seed"`` and ``"seconds"``, as JSON gives it back.

        Raises:
            FileFormatError: The disk is full, or an earlier part's file is damaged.
            ParameterError: The part has no measures, or a number that is not finite.
        """
        folder = self.part_folder(setting, seed)
        path = folder / "part.json"
        title = f"{setting}, seed {seed}"
        if path.exists():
            self.stage(f"{title} (kept)")(1.0)
            return read_json(path)
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        made = make(Part(setting, seed, folder, self.stage(title), self.say))
        if not isinstance(made.get("measures"), Mapping):
            raise ParameterError(
                f"the part {title!r} returned {sorted(made)}; expected also 'measures', numbers by name"
            )
        result = {"setting": setting, "seed": seed, **made, "seconds": round(time.perf_counter() - begin, 2)}
        return write_json(path, result) if is_first_process() else result

    def each(self, settings: Iterable[str], make: Callable[[Part], Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the results of every setting with every seed, made one after the other: seeds outside.

        Args:
            settings: Names.
            make: Makes a part.
        """
        names = tuple(settings)
        return [self.part(setting, seed, make) for seed in self.seeds for setting in names]

    def part_folder(self, setting: str, seed: int) -> Path:
        """Return where the files of a part lie.

        Raises:
            ParameterError: The setting's name cannot be a folder's.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+=-]*", setting):
            raise ParameterError(
                f"setting is {setting!r}; expected a name of letters, digits, spaces, '.', '_', '+', '=' and '-'"
            )
        return self.folder / "parts" / f"{setting.replace(' ', '_')}-seed{seed}"

    def unfinished(self, settings: Sequence[str]) -> list[tuple[str, int]]:
        """Return setting and seed of every part that is still to be made."""
        return [
            (setting, seed)
            for seed in self.seeds
            for setting in settings
            if not (self.part_folder(setting, seed) / "part.json").exists()
        ]


def is_first_process() -> bool:
    """Return whether this process writes: the only one, or the first of those that ``torchrun`` or Fabric started."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))
