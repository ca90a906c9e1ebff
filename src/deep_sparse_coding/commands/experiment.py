"""``dsc experiment list | run | show | compare``: the paper's figures and tables, and pictures of the theory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ..errors import ParameterError, missing_extra, near_misses
from .dispatch import Group, Tailored

if TYPE_CHECKING:
    from ..experiments.compare import Comparison
    from ..experiments.execute import Job
    from ..experiments.experiment import Experiment, Measure
    from ..experiments.store import Record

Preset = Literal["smoke", "cpu", "full"]
# Characters that a column of sentences has at least.
_WRAPPED = 36


# ---------------------------------------------------------------------- list


def list_experiments(results: Path | None = None) -> None:
    """A row per figure and table: what it shows, and its result or the command that makes it.

    Args:
        results: A folder of results; by default runs/experiments, then docs/results.
    """
    from ..experiments.registry import PLACES, experiments, results_of

    places = PLACES if results is None else (results,)
    rows = []
    for experiment in experiments().values():
        done = next(results_of(experiment.name, places), None)
        told = str(
            done or f"dsc experiment run {experiment.name}" + (" --data FOLDER" if experiment.needs_data else "")
        )
        shows = experiment.shows or {experiment.source: experiment.title}
        sizes = " ".join(experiment.presets)
        rows += [(figure, experiment.name, sizes, told, what) for figure, what in shows.items()]
    rows.sort(key=lambda row: _place(row[0]))
    head = ("shows", "experiment", "presets", "result, or the command", "what")
    _print_table(head, rows, text=range(len(head)), wraps=4)


def _place(figure: str) -> tuple[int, int, str]:
    """Return where a row stands: figures by number, tables, then statements of the theory."""
    found = re.match(r"(Figure|Table)\W*(\d*)", figure)
    if found is None:
        return 2, 0, ""  # as the registry has them
    return ("Figure", "Table").index(found[1]), int(found[2] or 0), figure


# ---------------------------------------------------------------------- run


def tailor_run(words: Sequence[str]) -> tuple[type, Callable[[Any], None]]:
    """Return the options of ``dsc experiment run`` for the experiment and preset that `words` name, and what runs it.

    Raises:
        NameMatchError: No such experiment.
        ParameterError: The experiment has no such preset, or `words` name none.
    """
    from ..experiments.registry import find_experiment

    if not words or words[0].startswith("-"):
        given = f"the first word is {words[0]!r}" if words else "there is no word"
        raise ParameterError(
            f"{given}; expected an experiment: dsc experiment run NAME [options]; dsc experiment list shows all, and "
            "dsc experiment run NAME --help its options"
        )
    experiment = find_experiment(words[0])
    preset = _option_of(words, "--preset") or usual_preset(experiment)
    return _form_of(experiment, preset), lambda form: _run(experiment, form)


def usual_preset(experiment: Experiment) -> str:
    """Return the preset without ``--preset``: "cpu" if the experiment has it."""
    return "cpu" if "cpu" in experiment.presets else next(iter(experiment.presets))


def _option_of(words: Sequence[str], option: str) -> str | None:
    for number, word in enumerate(words):
        if word == option and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def _form_of(experiment: Experiment, preset: str) -> type:
    """Return the dataclass whose fields are the options: those of every run, and the entries of the config."""
    import dataclasses

    import tyro

    config = experiment.config(preset)
    seeds = ", ".join(f"{name}: {' '.join(map(str, experiment.seeds[name]))}" for name in experiment.presets)
    data = experiment.needs_data or "this experiment needs none"
    options: list[tuple[str, Any, Any, str]] = [
        ("preset", Literal[tuple(experiment.presets)], preset, "How large; it stands in the name of the result."),
        ("seeds", tuple[int, ...], tuple(experiment.seeds[preset]), f"One training each. By preset, {seeds}."),
        ("data", Path | None, None, f"Where the data lies: {data}."),
        ("out", Path | None, None, "The folder; None: runs/experiments/NAME-PRESET. An unfinished run in it goes on."),
        ("dry_run", tyro.conf.FlagCreatePairsOff[bool], False, "Only say what would run."),
        ("quiet", tyro.conf.FlagCreatePairsOff[bool], False, "Show no progress."),
        # Without a prefix: --train.epochs, not --config.train.epochs.
        ("config", Annotated[type(config), tyro.conf.arg(name="")], config, ""),
    ]
    name = ("name", tyro.conf.Positional[Literal[experiment.name]])
    fields = [(key, kind, dataclasses.field(default=default)) for key, kind, default, _ in options]
    told = "\n".join(f"    {key}: {text}" for key, _, _, text in options if text)
    text = f"{experiment.title} ({experiment.source}).\n\nAttributes:\n    name: The experiment.\n{told}\n"
    return dataclasses.make_dataclass("Form", [name, *fields], frozen=True, namespace={"__doc__": text})


def _run(experiment: Experiment, form: Any) -> None:
    from ..experiments.execute import prepare

    job = prepare(experiment, form.preset, config=form.config, seeds=form.seeds, out=form.out, data=form.data)
    if form.dry_run:
        _print_plan(job)
        return
    from ..progress import Stages

    with contextlib.ExitStack() as stack:
        stages = stack.enter_context(Stages(quiet=form.quiet))
        bar = stack.enter_context(contextlib.ExitStack())

        def begin(title: str) -> Callable[[float], None]:
            bar.close()  # the bar of the part before is full
            return bar.enter_context(stages.stage(title))

        record = job.execute(begin, stages.say)
    _print_record(experiment, record)
    for path in job.draw(record):
        print(f"figure: {path}")
    print(f"results: {job.folder / 'results.json'}")


def _print_plan(job: Job) -> None:
    """Say what would run, and what is there already."""
    from ..experiments.store import flatten

    todo = job.unfinished()
    whole = len(job.settings) * len(job.seeds)
    print(f"{job.experiment.name}, preset {job.preset}: {job.experiment.title} ({job.experiment.source})")
    print(f"  folder   {job.folder}")
    print(f"  settings {', '.join(job.settings)}")
    print(f"  seeds    {' '.join(map(str, job.seeds))}")
    for key, value in flatten(job.config).items():
        print(f"  {key} = {value}{'  (changed)' if key in job.changes else ''}")
    print(f"  {len(todo)} of {whole} parts are still to run{' (nothing was started)' if todo else ''}")


# ---------------------------------------------------------------------- show


def show(
    name: str,
    /,
    *,
    preset: Preset | None = None,
    results: Path | None = None,
    figures: Path | None = None,
    markdown: bool = False,
) -> None:
    """The results of an experiment: its table, how it was made, and on request its figures.

    Args:
        name: The experiment, or a file of results.
        preset: Which of its results; the largest preset there is if not given.
        results: A folder of results; by default runs/experiments, then docs/results.
        figures: Draw the figures anew into this folder.
        markdown: Print the table alone, in Markdown.
    """
    from ..experiments.compare import markdown as as_markdown
    from ..experiments.compare import table_of
    from ..experiments.execute import draw
    from ..experiments.registry import PLACES, find_experiment, find_record

    path, record = find_record(name, preset, PLACES if results is None else (results,))
    experiment = find_experiment(record.name)
    if markdown:
        print(as_markdown(*table_of(record, experiment.measures)))
    else:
        _print_record(experiment, record)
        print(f"results: {path}")
    if figures is not None:
        for drawn in draw(experiment, record, figures):
            print(f"figure: {drawn}")


def _print_record(experiment: Experiment, record: Record) -> None:
    from ..experiments.compare import table_of

    _print_table(*table_of(record, experiment.measures), title=f"{experiment.title} ({experiment.source})")
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    print(f"{record.caption} · {record.seconds:.0f} s with {record.threads} thread{'s' if record.threads > 1 else ''}")
    print(f"command: {record.command}")
    print(f"made by: {versions}")


# ---------------------------------------------------------------------- compare


def compare(
    name: str,
    other: str | None = None,
    /,
    *,
    preset: Preset | None = None,
    measure: str | None = None,
    results: Path | None = None,
    across_presets: bool = False,
) -> None:
    """Paired tests over seeds: the settings of one experiment against its first, or two of NAME:SETTING.

    Args:
        name: An experiment, NAME:SETTING, or a file of results.
        other: Another one; None: the other settings of the first.
        preset: Which of the results; the largest preset there is if not given.
        measure: One measure; all if not given.
        results: A folder of results; by default runs/experiments, then docs/results.
        across_presets: Compare results of different presets too.
    """
    from ..experiments.registry import PLACES, find_experiment, find_record

    places = PLACES if results is None else (results,)
    records = []
    for word in (name, *([] if other is None else [other])):
        place, _, setting = word.partition(":")
        records.append((find_record(place, preset, places)[1], setting))
    measures = find_experiment(records[0][0].name).measures
    if measure is not None:
        measures = tuple(m for m in measures if m.name == measure)
        if not measures:
            known = [m.name for m in find_experiment(records[0][0].name).measures]
            raise ParameterError(
                f"measure is {measure!r}; expected {' or '.join(map(repr, known))}{near_misses(measure, known)}"
            )
    for comparison in _pairs(records, measures, across_presets):
        print(comparison)
    print(" | ".join(dict.fromkeys(record.caption for record, _ in records)))


def _pairs(
    records: Sequence[tuple[Record, str]], measures: Sequence[Measure], across_presets: bool
) -> list[Comparison]:
    """Return what `compare` prints: every measure that both settings of a pair have."""
    from ..experiments.compare import compare_settings

    (a, setting), (b, other) = records[0], records[-1]
    if len(records) == 1:
        baseline = setting or a.settings[0]
        pairs = [(baseline, name) for name in a.settings if name != baseline]
        if not pairs:
            raise ParameterError(f"{a.name} has the one setting {a.settings[0]!r}; expected another to compare with")
    elif setting or other:
        pairs = [(setting or other, other or setting)]
    else:
        pairs = [(name, name) for name in a.settings if name in b.settings]
        if not pairs:
            raise ParameterError(
                f"{a.name} has the settings {list(a.settings)}, {b.name} {list(b.settings)}; expected some in "
                "common, or NAME:SETTING"
            )
    found = []
    for first, second in pairs:
        have = a.measures(first) & b.measures(second)
        found += [
            compare_settings((a, first), (b, second), m, across_presets=across_presets)
            for m in measures
            if m.name in have
        ]
    return found


# ---------------------------------------------------------------------- tables


def _print_table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str | None = None,
    *,
    text: Collection[int] = (0,),
    wraps: int | None = None,
) -> None:
    """Print a table: columns of `text` to the left, numbers to the right; the column `wraps` may take several lines."""
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        raise missing_extra("rich", "cli", "tables on the terminal") from None
    widths = [
        max(
            len(word)
            for row in (name.split(), *(row[i].split() if i == wraps else [row[i]] for row in rows))
            for word in row
        )
        for i, name in enumerate(head)
    ]
    # Beside every cell two spaces, and one between columns.
    frame = 3 * len(widths) + 2
    if wraps is not None:
        others = sum(widths) - widths[wraps]
        widths[wraps] = max(widths[wraps], _WRAPPED, Console().width - others - frame)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number in text else "right", width=widths[number])
    for row in rows:
        table.add_row(*row)
    # In a narrow terminal or a pipe the lines are longer than asked: no word and no number is cut.
    console = Console(highlight=False, markup=False, width=max(Console().width, sum(widths) + frame))
    if title:
        console.print(title)
    console.print(table)


EXPERIMENT = Group(
    summary="The experiments of the paper, and pictures of the theory.",
    commands={
        "list": list_experiments,
        "run": Tailored("Run an experiment: dsc experiment run NAME --preset smoke.", tailor_run),
        "show": show,
        "compare": compare,
    },
    options={},
)
