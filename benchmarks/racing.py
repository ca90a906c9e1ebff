"""What the rows of the table share: settings found before the timing, timed runs in turns, and results as JSON."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

Call = Callable[[], Any]

# A method whose one run takes longer than this (seconds) is timed only `FEWEST` times, which its note says.
SLOW = 4.0
FEWEST = 3


@dataclass(frozen=True)
class Options:
    """How a row is measured; `deadline` is an instant of ``time.monotonic``, `folder` keeps results."""

    small: bool
    threads: int
    repeats: int
    deadline: float
    folder: Path


@dataclass(frozen=True)
class Method:
    """A method with the setting that was found for it.

    Attributes:
        name: What the table calls it.
        call: What is timed; None where the method is missing.
        error: Gap, excess or residual of its answer, recomputed in float64 outside.
        reached: Whether the error is at most the target.
        first: Seconds of its first call in this process.
        once: Seconds of its last call, which says whether it is slow.
        setting: The tolerance, number of steps or penalty parameter.
        ours: Whether it is this library's.
        note: What the table should say of it.
    """

    name: str
    call: Call | None
    error: float | None = None
    reached: bool = False
    first: float | None = None
    once: float = 0.0
    setting: str = ""
    ours: bool = False
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """A method as it was timed; seconds are medians, `first` is the first call's time beyond the median."""

    method: str
    ours: bool
    setting: str
    seconds: float | None
    cpu_seconds: float | None
    runs: int
    first: float | None
    error: float | None
    reached: bool
    note: str


@dataclass(frozen=True)
class Ask:
    """A ratio that is asked for against the fastest of some peers (all, where none is named)."""

    ratio: float
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """One problem and all that was timed on it.

    Attributes:
        name: The problem.
        measure: What the errors are: "gap", "excess" or "residual".
        target: The error that counts as solved.
        count: Signals, so that times can be shown for one.
        asks: The ratios asked for.
        entries: Ours first, then the peers.
    """

    name: str
    measure: str
    target: float
    count: int
    asks: tuple[Ask, ...]
    entries: tuple[Entry, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Work:
        """Return what `to_json` described."""
        asks = tuple(Ask(ask["ratio"], tuple(ask["peers"])) for ask in values["asks"])
        entries = tuple(Entry(**entry) for entry in values["entries"])
        return cls(values["name"], values["measure"], values["target"], values["count"], asks, entries)


def installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def missing(name: str, package: str) -> Method:
    """Return the place of a peer that is not installed."""
    return Method(name, None, note=f"not installed: pip install {package}")


def prepare(
    name: str,
    candidates: Mapping[str, Call],
    error: Callable[[Any], float],
    target: float,
    *,
    ours: bool = False,
    deadline: float = float("inf"),
) -> Method:
    """Return a method with the first of its settings, from the loosest to the tightest, that meets the target.

    Args:
        name: The method's name.
        candidates: Setting → call.
        error: The error of an answer, in float64; not timed.
        target: The largest error that counts as solved.
        ours: Whether the method is this library's.
        deadline: After this instant no further setting of a peer is tried.
    """
    first: float | None = None
    found = Method(name, None, ours=ours, note="no setting")
    for setting, call in candidates.items():
        start = time.perf_counter()
        answer = call()
        once = time.perf_counter() - start
        first = once if first is None else first
        value = error(answer)
        found = Method(name, call, value, value <= target, first, once, setting, ours)
        if found.reached:
            return found
        if time.monotonic() > deadline and not ours:
            note = f"target not reached at {setting}, out of time for more"
            return replace(found, first=first, note=note)
    return replace(found, first=first, note="target not reached")


def race(methods: list[Method], options: Options) -> tuple[Entry, ...]:
    """Time the methods in turns, and return the median of each.

    Slow methods, and all after the deadline, are timed `FEWEST` times; a peer that misses the target is timed so too.
    """
    times: dict[str, list[tuple[float, float]]] = {method.name: [] for method in methods}
    for turn in range(options.repeats):
        if turn >= FEWEST and time.monotonic() > options.deadline:
            break
        for method in methods:
            few = method.once > SLOW or not (method.reached or method.ours)
            if method.call is None or (turn >= FEWEST and few):
                continue
            wall, processor = time.perf_counter(), time.process_time()
            method.call()
            times[method.name].append((time.perf_counter() - wall, time.process_time() - processor))
    return tuple(_entry(method, times[method.name], options.repeats) for method in methods)


def _entry(method: Method, seen: list[tuple[float, float]], repeats: int) -> Entry:
    seconds = statistics.median(wall for wall, _ in seen) if seen else None
    processor = statistics.median(cpu for _, cpu in seen) if seen else None
    first = None if method.first is None or seconds is None else max(0.0, method.first - seconds)
    few = f"{len(seen)} runs" if seen and len(seen) < repeats else ""
    note = ", ".join(part for part in (method.note, few) if part)
    return Entry(
        method.name,
        method.ours,
        method.setting,
        seconds,
        processor,
        len(seen),
        first,
        method.error,
        method.reached,
        note,
    )


def clocked(call: Call) -> tuple[Any, float]:
    """Return what a call returns, and its seconds."""
    start = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - start
