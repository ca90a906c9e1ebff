"""Progress on the terminal: one bar per stage with the time left, and a line that says what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .errors import missing_extra

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Advance = Callable[[float], None]


class Stages:
    """Stages of a job on a terminal, as a context manager.

    Args:
        console: Where to; None for standard output.
        quiet: Show nothing.

    Raises:
        MissingExtraError: rich is not installed.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        try:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                Progress,
                TaskProgressColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )
        except ImportError:
            raise missing_extra("rich", "demo", "the progress of dsc demo") from None
        self._progress: Progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or Console(highlight=False),
            disable=quiet,
        )
        self._quiet = quiet

    @contextmanager
    def stage(self, name: str) -> Iterator[Advance]:
        """Show a bar while the context lasts; call what it yields with the share that is done, 0 to 1."""
        task = self._progress.add_task(name, total=1.0)
        try:
            yield lambda share: self._progress.update(task, completed=min(max(share, 0.0), 1.0))
            self._progress.update(task, completed=1.0)
        finally:
            self._progress.stop_task(task)

    def say(self, text: str) -> None:
        """Print text above the bars."""
        if not self._quiet:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Stages:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
