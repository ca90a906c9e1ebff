"""All experiments by name, and where their results lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import FileFormatError, NameMatchError, ParameterError, near_misses
from .execute import RUNS
from .experiment import PRESETS, Experiment
from .store import RESULTS, Record, read_record

# Where results are looked for: what was run here, then what the project keeps.
PLACES = (RUNS, Path("docs/results"))


def experiments() -> Mapping[str, Experiment]:
    """Return every experiment by name: the paper's figures and tables, few labels, pictures of the theory."""
    from .classification import CLASSIFICATION
    from .few_labels import FEW_LABELS
    from .segmentation import SEGMENTATION
    from .theory import THEORY

    every = (*CLASSIFICATION, *SEGMENTATION, *FEW_LABELS, *THEORY)
    names = [experiment.name for experiment in every]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ParameterError(f"several experiments have the name {', '.join(doubled)}; expected one each")
    return dict(zip(names, every, strict=True))


def find_experiment(name: str) -> Experiment:
    """Return an experiment by name.

    Raises:
        NameMatchError: There is none; the message lists near misses.
    """
    known = experiments()
    if name not in known:
        hint = near_misses(name, known) or "; dsc experiment list shows all"
        raise NameMatchError(f"{name!r} is no experiment{hint}")
    return known[name]


def results_of(name: str, places: Sequence[Path] = PLACES) -> Iterator[Path]:
    """Yield the files of an experiment's results: ``NAME-PRESET/results.json`` or ``NAME-PRESET.json``.

    Args:
        name: The experiment.
        places: The folders to look in, in this order.
    """
    for preset in reversed(PRESETS):
        for place in places:
            for path in (place / f"{name}-{preset}" / RESULTS, place / f"{name}-{preset}.json"):
                if path.is_file():
                    yield path


def find_record(name: str, preset: str | None = None, places: Sequence[Path] = PLACES) -> tuple[Path, Record]:
    """Return the results of an experiment.

    Args:
        name: The experiment; or a file of results, or a folder that holds one.
        preset: The preset; None for the largest of which there are results.
        places: The folders to look in.

    Raises:
        FileFormatError: There are none, or the file is damaged.
        NameMatchError: No such experiment.
    """
    given = Path(name)
    if given.suffix == ".json" or (given / RESULTS).is_file():
        path = given if given.suffix == ".json" else given / RESULTS
        return path, read_record(path)
    experiment = find_experiment(name)
    for path in results_of(name, places):
        record = read_record(path)
        if preset is None or record.preset == preset:
            return path, record
    chosen = next(iter(experiment.presets)) if preset is None else preset
    raise FileFormatError(
        f"there are no results of {name}{f' with preset {preset!r}' if preset else ''} in "
        f"{' or '.join(map(str, places))}; make them with: dsc experiment run {name} --preset {chosen}"
    )
