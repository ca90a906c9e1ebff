"""The whole table of comparisons by one command: ours, the best peer, their ratio and the ratio asked for.

    python benchmarks/table.py [--rows patches,conv,...] [--small] [--repeats 5] [--minutes 5] [--json DIR] [--again]

Every part of a row runs in a process of its own (about twenty minutes in all on two cores) and leaves a JSON file in
the folder of ``--json``; a part whose file is there already is not run again, so an interrupted run goes on where it
stopped. A part that takes longer than ``--minutes`` is ended, and said to be. Rows that are not in the default list:
``series`` (alphacsc) and ``conv512``.

Each method gets the loosest setting of a list that reaches the target, found before the timing. The timed runs are
interleaved in one process; medians are shown (a method that takes seconds is timed three times), and the ratio of
processor seconds beside that of seconds. Gaps, excesses and residuals are recomputed in float64 outside the solvers.
The first call's extra time (compiling the kernels, or loading them from the cache on disk) has a column of its own. All
peers at once:

    pip install spams-bin scikit-learn celer skglm sporco scikit-image pooch
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from racing import Ask, Entry, Options, Work

DEFAULT = ("patches", "gaussian64", "gaussian256", "conv", "joint", "omp", "one-signal", "path")
KNOWN = (*DEFAULT, "conv512", "series")
_HEAD = ("work", "ours", "time", "error", "first", "best peer", "time", "error", "ratio", "CPU", "ask", "verdict")
_WIDTHS = (44, 24, 8, 6, 7, 17, 8, 6, 7, 7, 4, 0)


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(DEFAULT), help=f"some of {','.join(KNOWN)}")
    parser.add_argument("--small", action="store_true", help="small problems, to see that all runs")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=5.0, help="the most that one part of a row may take")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    parser.add_argument("--again", action="store_true", help="measure again what is in the folder already")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        measure(options)
        return
    rows = [row.strip() for row in options.rows.split(",") if row.strip()]
    unknown = [row for row in rows if row not in KNOWN]
    if unknown:
        parser.error(f"unknown rows: {', '.join(unknown)}; known are {', '.join(KNOWN)}")
    options.json.mkdir(parents=True, exist_ok=True)
    from rows import PARTS

    print(line(_HEAD))
    began = time.monotonic()
    for row in rows:
        for part in PARTS[row]:
            target = place(options, part)
            problem = None if target.exists() and not options.again else run(options, part)
            if problem is not None:
                print(f"{part}: {problem}", flush=True)
                continue
            for work in json.loads(target.read_text())["works"]:
                for text in show(Work.from_json(work)):
                    print(text, flush=True)
    print(f"\n{time.monotonic() - began:.0f} s; details of every method: {options.json}/*.json")


def place(options: argparse.Namespace, part: str) -> Path:
    """Return the file of a part's results."""
    return options.json / f"{part}{'-small' if options.small else ''}.json"


def run(options: argparse.Namespace, part: str) -> str | None:
    """Measure a part in a process of its own; return what went wrong, or None."""
    command = [sys.executable, __file__, "--part", part, "--repeats", str(options.repeats)]
    command += ["--threads", str(options.threads), "--minutes", str(options.minutes), "--json", str(options.json)]
    command += ["--small"] if options.small else []
    # Before NumPy is loaded: idle threads of its linear algebra library would spin beside the solvers.
    threads = {f"{name}_NUM_THREADS": str(options.threads) for name in ("OPENBLAS", "OMP", "MKL", "NUMBA")}
    try:
        done = subprocess.run(
            command, env={**os.environ, **threads}, timeout=60 * options.minutes, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        return f"ended after {options.minutes:g} minutes (--minutes)"
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    return None


def measure(options: argparse.Namespace) -> None:
    """Measure one part and write its file, whole or not at all."""
    import torch
    from rows import PARTS, quiet

    torch.set_num_threads(options.threads)
    quiet()
    start = time.monotonic()
    # From half of the time on slow methods are no longer repeated, so that the rest suffices to finish.
    settings = Options(options.small, options.threads, options.repeats, start + 30 * options.minutes, options.json)
    works = {name: work for parts in PARTS.values() for name, work in parts.items()}[options.part](settings)
    facts: dict[str, Any] = {
        "part": options.part,
        "small": options.small,
        "threads": options.threads,
        "repeats": options.repeats,
        "seconds": time.monotonic() - start,
        "python": sys.version,
        "torch": torch.__version__,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "works": [work.to_json() for work in works],
    }
    target = place(options, options.part)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(facts, indent=1, ensure_ascii=False))
    partial.replace(target)


# ----------------------------------------------------------------------- print


def show(work: Work) -> list[str]:
    """Return the lines of a work: one for each of our ways and each ratio asked for, then what was not compared."""
    ours = [entry for entry in work.entries if entry.ours]
    asks = work.asks or (Ask(0.0),)
    lines = [line(cells(work, mine, ask)) for ask in asks for mine in ours]
    for entry in work.entries:
        if not entry.ours and (entry.seconds is None or not entry.reached):
            lines.append(f"    {entry.method}: {entry.note}")
    return lines


def best_peer(work: Work, ask: Ask) -> Entry | None:
    """Return the fastest peer that reached the target, of those that an ask names."""
    known = [e for e in work.entries if not e.ours and e.reached and (not ask.peers or e.method in ask.peers)]
    timed = [(entry.seconds, index) for index, entry in enumerate(known) if entry.seconds is not None]
    return known[min(timed)[1]] if timed else None


def cells(work: Work, mine: Entry, ask: Ask) -> tuple[str, ...]:
    """Return a line's cells; times are for one signal."""
    first = "" if mine.first is None else f"{mine.first:.2f} s"
    head = (work.name, mine.method, duration(mine.seconds, work.count), number(mine.error), first)
    peer = best_peer(work, ask)
    asked = f"{ask.ratio:g}×" if ask.ratio else ""
    if peer is None or peer.seconds is None or mine.seconds is None:
        return (*head, "none", "", "", "", "", asked, "no comparison")
    ratio = peer.seconds / mine.seconds
    if not mine.reached:
        verdict = f"target {work.target:.0e} not reached"
    elif not ask.ratio:
        verdict = ""
    else:
        verdict = "met" if ratio >= ask.ratio else f"short by {ask.ratio / ratio:.2f}×"
    notes = ", ".join(part for part in (verdict, peer.note and f"{peer.method}: {peer.note}") if part)
    times = duration(peer.seconds, work.count), number(peer.error)
    processor = f"{peer.cpu_seconds / mine.cpu_seconds:.2f}×" if peer.cpu_seconds and mine.cpu_seconds else ""
    return (*head, peer.method, *times, f"{ratio:.2f}×", processor, asked, notes)


def duration(seconds: float | None, count: int) -> str:
    """Return seconds for one of `count` signals."""
    if seconds is None:
        return "-"
    each = seconds / count
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if each >= size:
            return f"{each / size:.3g} {unit}"
    return f"{each / 1e-6:.3g} µs"


def number(value: float | None) -> str:
    """Return an error as it stands in the table."""
    return "-" if value is None else f"{value:.0e}"


def line(cells: tuple[str, ...]) -> str:
    """Return cells under their columns."""
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


if __name__ == "__main__":
    main()
