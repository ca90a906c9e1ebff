"""Results on disk: JSON written whole or not at all, one run per folder, no run mistaken for another."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DSCWarning, FileFormatError, ParameterError, near_misses
from ..files import write_whole

_FORMAT = 1
RESULTS = "results.json"
_MANIFEST = "run.json"


@dataclass(frozen=True)
class Record:
    """What a run leaves: the results, and everything that tells it from another run.

    Attributes:
        name: The experiment's.
        preset: The preset.
        changes: What the config has other than the preset, by dotted name.
        config: The whole config, by dotted name.
        seeds: The seeds.
        results: What the experiment returned; ``"runs"`` holds one mapping per part.
        versions: Versions of this library, torch, Python.
        threads: Threads of torch.
        date: The day on which it ended, UTC, ISO 8601.
        command: The command that makes it.
        seconds: What the parts took together.
    """

    name: str
    preset: str
    changes: Mapping[str, Any]
    config: Mapping[str, Any]
    seeds: tuple[int, ...]
    results: Mapping[str, Any]
    versions: Mapping[str, str]
    threads: int
    date: str
    command: str
    seconds: float

    @property
    def runs(self) -> list[dict[str, Any]]:
        """One mapping per part, with ``"setting"``, ``"seed"``, ``"measures"``."""
        return self.results["runs"]

    @property
    def settings(self) -> tuple[str, ...]:
        """The names of what is compared, in order; the first is the baseline."""
        return tuple(dict.fromkeys(run["setting"] for run in self.runs))

    @property
    def caption(self) -> str:
        """What stands under every figure: ``"theory-depth · preset cpu · seeds 0 1 2 · 2026-11-24"``."""
        parts = [self.name, f"preset {self.preset}"]
        if self.changes:
            parts.append("changed: " + ", ".join(f"{key} = {value}" for key, value in self.changes.items()))
        parts.append(f"seed{'s' if len(self.seeds) > 1 else ''} {' '.join(map(str, self.seeds))}")
        return " · ".join([*parts, self.date])

    def measures(self, setting: str) -> set[str]:
        """Return the names of the measures that a setting has for every seed.

        Raises:
            ParameterError: No such setting.
        """
        return set.intersection(*map(set, self._of(setting).values()))

    def values(self, setting: str, measure: str) -> dict[int, float]:
        """Return a measure of a setting by seed.

        Raises:
            ParameterError: No such setting or measure.
        """
        found = self._of(setting)
        lacking = [seed for seed, measures in found.items() if measure not in measures]
        if lacking:
            known = sorted(self.measures(setting))
            raise ParameterError(
                f"measure is {measure!r}, which {setting!r} of {self.name} lacks for the seeds {lacking}; it has "
                f"{', '.join(map(repr, known))}{near_misses(measure, known)}"
            )
        return {seed: float(measures[measure]) for seed, measures in found.items()}

    def _of(self, setting: str) -> dict[int, dict[str, float]]:
        """Return the measures of a setting by seed."""
        found = {run["seed"]: run["measures"] for run in self.runs if run["setting"] == setting}
        if not found:
            known = self.settings
            raise ParameterError(
                f"setting is {setting!r}; {self.name} has {', '.join(map(repr, known))}{near_misses(setting, known)}"
            )
        return found


def write_record(path: Path, record: Record) -> Record:
    """Write a record to `path`, which is replaced, and return it as it is read back.

    Raises:
        FileFormatError: The folder is missing, not writable or full; nothing is left behind.
        ParameterError: Results that JSON does not hold.
    """
    content = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    write_json(path, {"format": _FORMAT, **content})
    return read_record(path)


def read_record(path: Path) -> Record:
    """Read what `write_record` wrote.

    Raises:
        FileFormatError: No such file, damaged, not a record, or of another version.
    """
    content = read_json(path)
    if content.get("format") != _FORMAT:
        raise FileFormatError(
            f"{path} has format {content.get('format')!r}; expected {_FORMAT}, the results of an experiment that this "
            "version wrote"
        )
    names = [field.name for field in dataclasses.fields(Record)]
    lacking = [name for name in names if name not in content]
    if lacking:
        raise FileFormatError(f"{path} lacks {', '.join(lacking)}; expected the results of an experiment")
    record = Record(**{**{name: content[name] for name in names}, "seeds": tuple(content["seeds"])})
    runs = record.results.get("runs") if isinstance(record.results, Mapping) else None
    if not isinstance(runs, list) or not all(_is_part(run) for run in runs):
        raise FileFormatError(f"{path} has no list of runs with setting, seed and measures; run the experiment again")
    return record


def _is_part(value: object) -> bool:
    return isinstance(value, dict) and {"setting", "seed", "measures"} <= value.keys()


def write_json(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a mapping as JSON, to a temporary name first, and return it as JSON gives it back.

    Raises:
        FileFormatError: The folder is missing, not writable or full; nothing is left behind.
        ParameterError: Something that JSON does not hold, or a number that is not finite.
    """
    text = _text(_plain(content, path.stem))
    write_whole(path, (text + "\n").encode())
    return json.loads(text)


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        FileFormatError: No such file, or damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise FileFormatError(f"cannot read {path} ({error}); expected a file that an experiment wrote") from error
    except ValueError as error:
        raise FileFormatError(
            f"{path} is damaged ({error}); expected JSON that an experiment wrote: delete the file and run again"
        ) from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} holds a {type(content).__name__}; expected an object: delete it and run again")
    return content


def flatten(config: Any) -> dict[str, Any]:
    """Return a config of nested dataclasses as JSON's own types by dotted name: ``{"train.epochs": 5}``."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            flat.update({f"{field.name}.{key}": item for key, item in flatten(value).items()})
        else:
            flat[field.name] = _plain(value, field.name)
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what two flat configs have unlike, by dotted name: the value before, the value now; None: not there."""
    names = dict.fromkeys([*before, *now])
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}


@contextmanager
def open_folder(
    folder: Path, identity: Mapping[str, str], config: Mapping[str, Any], versions: Mapping[str, str]
) -> Iterator[Path]:
    """Hold a run's folder: made if need be, locked against a second run, and refused if another config ran in it.

    Args:
        folder: The folder.
        identity: Name and preset: what the folder belongs to.
        config: The flat config.
        versions: Versions by package; parts that others made are kept, with a warning.

    Raises:
        FileFormatError: The folder cannot be made or written, or its run.json is damaged.
        ParameterError: Another run holds the folder, or it belongs to another experiment, preset or config.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Appended to, so that a file that another run locks keeps its content.
        lock = open(folder / ".lock", "a+")  # noqa: SIM115 - held as long as the context
    except OSError as error:
        raise FileFormatError(f"cannot write to {folder} ({error}); expected a folder with room to write") from error
    with lock:
        if not _lock(lock.fileno()):
            raise ParameterError(f"{folder} is in use by another run; wait for it, or choose another folder with --out")
        path = folder / _MANIFEST
        if path.exists():
            _require_same(folder, read_json(path), identity, config, versions)
        else:
            write_json(path, {"format": _FORMAT, **identity, "config": dict(config), "versions": dict(versions)})
        yield folder


def _require_same(
    folder: Path,
    manifest: Mapping[str, Any],
    identity: Mapping[str, str],
    config: Mapping[str, Any],
    versions: Mapping[str, str],
) -> None:
    before = manifest.get("config")
    if not isinstance(before, dict):
        raise FileFormatError(f"{folder / _MANIFEST} holds no config; delete {folder}, or choose another with --out")
    # Through JSON, so that a tuple equals the list that it became.
    now = json.loads(_text(_plain(config, "config")))
    unlike = differences({key: manifest.get(key) for key in identity}, identity)
    unlike.update(differences(before, now))
    if unlike:
        told = "; ".join(f"{name}: there {old!r}, now {new!r}" for name, (old, new) in unlike.items())
        raise ParameterError(
            f"{folder} holds a run of another kind ({told}); run with the settings that are there, delete the folder, "
            "or choose another with --out"
        )
    older = differences(manifest.get("versions", {}), versions)
    if older:
        told = ", ".join(f"{name} {old}, now {new}" for name, (old, new) in older.items())
        warnings.warn(
            f"{folder} was begun with other versions ({told}); its finished parts are kept: delete the folder to make "
            "them anew",
            DSCWarning,
            stacklevel=4,
        )


def _lock(descriptor: int) -> bool:
    """Lock an open file as long as it is open; the system frees it when the process ends, however it ends."""
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _text(value: Any, indent: str = "") -> str:
    """Return JSON that a person can read and compare: short things and lists of numbers on one line."""
    line = json.dumps(value, allow_nan=False, ensure_ascii=False)
    items = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if len(indent) + len(line) <= 110 or not any(isinstance(item, (dict, list)) for item in items):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        key = {name: json.dumps(name, ensure_ascii=False) for name in value}
        lines = [f"{inner}{key[name]}: {_text(item, inner)}" for name, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(f"{inner}{_text(item, inner)}" for item in items) + f"\n{indent}]"


def _plain(value: Any, where: str) -> Any:
    """Return a value in JSON's own types; names the entry that is none."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ParameterError(f"{where} is {value}; expected a finite number")
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ParameterError(
        f"{where} is of type {type(value).__name__}; expected numbers, text, lists and mappings (tensor.tolist())"
    )
