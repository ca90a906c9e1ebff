"""One experiment with one config, from the command to results and figures in a folder."""

from __future__ import annotations

import contextlib
import datetime
import platform
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..checks import require_integer
from ..errors import ParameterError
from .experiment import Advance, Experiment, Run, is_first_process
from .store import RESULTS, Record, differences, flatten, open_folder, write_record

RUNS = Path("runs/experiments")


@dataclass(frozen=True)
class Job:
    """One experiment, ready to run.

    Attributes:
        experiment: What to run.
        preset: The preset that its config comes from, and that its name ends with.
        config: The config: the preset's, or one that was changed.
        seeds: The seeds.
        folder: Where it runs.
        data: Where the user's data lies; None where none was given.
    """

    experiment: Experiment
    preset: str
    config: Any
    seeds: tuple[int, ...]
    folder: Path
    data: Path | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """What the config has other than its preset, by dotted name."""
        before = flatten(self.experiment.config(self.preset))
        return {name: now for name, (_, now) in differences(before, flatten(self.config)).items()}

    @property
    def command(self) -> str:
        """The command that runs it; where the user's data lies is left open."""
        words = ["dsc", "experiment", "run", self.experiment.name, "--preset", self.preset]
        if self.seeds != self.experiment.seeds.get(self.preset):
            words += ["--seeds", *map(str, self.seeds)]
        for name, value in self.changes.items():
            words += _option(name, value)
        return shlex.join(words) + (" --data FOLDER" if self.data is not None else "")

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of what is compared."""
        return tuple(self.experiment.settings(self.config))

    def unfinished(self) -> list[tuple[str, int]]:
        """Return setting and seed of every part that is still to be made in the folder."""
        return Run(self.folder, self.seeds).unfinished(self.settings)

    def execute(
        self,
        stage: Callable[[str], Advance] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> Record:
        """Run what is unfinished, write results.json, and return the record. The folder is locked meanwhile.

        Args:
            stage: Called with the title of a part when it begins; returns what takes its progress. None: show nothing.
            say: Prints a line; None: print nothing.

        Raises:
            FileFormatError: The folder cannot be written, the disk is full, or a part's file is damaged.
            ParameterError: Another run holds the folder, or it belongs to another config.
        """
        config = flatten(self.config)
        identity = {"name": self.experiment.name, "preset": self.preset}
        first = is_first_process()
        # The other processes of one run (torchrun, Fabric) share the folder of the first.
        held = open_folder(self.folder, identity, config, _versions()) if first else contextlib.nullcontext()
        with held:
            shown: dict[str, Any] = {key: f for key, f in {"stage": stage, "say": say}.items() if f and first}
            results = self.experiment.run(self.config, Run(self.folder, self.seeds, self.data, **shown))
            runs = results.get("runs")
            if not isinstance(runs, Sequence) or not runs:
                raise ParameterError(
                    f"{self.experiment.name} returned {sorted(results)}; expected also 'runs', what Run.each returns"
                )
            record = Record(
                **identity,
                changes=self.changes,
                config=config,
                seeds=self.seeds,
                results=results,
                versions=_versions(),
                threads=torch.get_num_threads(),
                date=datetime.datetime.now(datetime.UTC).date().isoformat(),
                command=self.command,
                seconds=round(sum(float(run.get("seconds", 0.0)) for run in runs), 1),
            )
            return write_record(self.folder / RESULTS, record) if first else record

    def draw(self, record: Record, folder: Path | None = None) -> list[Path]:
        """Draw the figures of a record into `folder`, by default ``figures`` beside the results; return their paths.

        Raises:
            FileFormatError: The folder cannot be written.
            MissingExtraError: matplotlib is not installed.
        """
        return draw(self.experiment, record, self.folder / "figures" if folder is None else folder)


def prepare(
    experiment: Experiment,
    preset: str,
    *,
    config: Any = None,
    seeds: Sequence[int] | None = None,
    out: Path | None = None,
    data: Path | None = None,
) -> Job:
    """Return an experiment that is ready to run.

    Args:
        experiment: What to run.
        preset: "smoke", "cpu" or "full", if the experiment has it.
        config: The config; None for the preset's.
        seeds: The seeds; None for the preset's.
        out: The folder; None for ``runs/experiments/NAME-PRESET``.
        data: Where the user's data lies.

    Raises:
        ParameterError: No such preset, a config of another type, seeds that are none or doubled, no folder at `data`.
    """
    usual = experiment.config(preset)
    if config is not None and type(config) is not type(usual):
        raise ParameterError(f"config is a {type(config).__name__}; expected a {type(usual).__name__}")
    chosen = tuple(experiment.seeds[preset] if seeds is None else seeds)
    for seed in chosen:
        require_integer("seed", seed, minimum=0)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ParameterError(f"seeds are {list(chosen)}; expected at least one, each once")
    if data is not None and not data.exists():
        raise ParameterError(f"data is {data}, which does not exist; expected the folder of {experiment.needs_data}")
    folder = RUNS / f"{experiment.name}-{preset}" if out is None else out
    return Job(experiment, preset, usual if config is None else config, chosen, folder, data)


def draw(experiment: Experiment, record: Record, folder: Path) -> list[Path]:
    """Draw the figures of a record into a folder, which is made if need be, and return their paths.

    Raises:
        FileFormatError: The folder cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    if record.name != experiment.name:
        raise ParameterError(f"the record is of {record.name}; expected one of {experiment.name}")
    folder.mkdir(parents=True, exist_ok=True)
    return experiment.draw(record, folder)


def _versions() -> Mapping[str, str]:
    return {"deep_sparse_coding": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _option(name: str, value: Any) -> list[str]:
    """Return the words of the command line that set an entry of a config."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        outer, _, last = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{outer}{'.' if outer else ''}no-{last}"]
    if isinstance(value, list):
        return [f"--{flag}", *map(str, value)]
    return [f"--{flag}", str(value)]
