"""From which fraction of zeros on `SparseLinear` beats the dense product, for several sizes and batches, on one CPU.

For each size and batch the layer as it is and the one that skips zeros take turns on the same input, at several
fractions of zeros at random places; the best of the repeats counts for both, since another process can only add time.
Where the two times cross is found by interpolation of their ratio.

    python benchmarks/sparse_inference.py --json sparse_inference.json --figure docs/images/sparse_inference.png
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deep_sparse_coding._drawing import BLUE, GREEN, INK, MUTED, ORANGE, new_figure, style
from deep_sparse_coding.sparsity.inference.sparse import SparseLinear

SIZES = ((256, 256), (512, 512), (1024, 1024), (4096, 1024))
BATCHES = (1, 16, 256)
IMAGES = ((64, 256, 14), (256, 64, 14), (512, 512, 7))
ZEROS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)


def compare(
    dense: nn.Module, shape: tuple[int, ...], repeats: int, clock: Callable[[], float], last: bool = False
) -> dict[str, Any]:
    """Return milliseconds of both at every fraction of zeros, and where they cross."""
    sparse = SparseLinear(dense)
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, float]] = []
    for zeros in ZEROS:
        x = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) >= zeros)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        times = race(lambda x=x: dense(x), lambda x=x: sparse(x), repeats, clock)
        error = float((dense(x) - sparse(x)).abs().max() / dense(x).abs().max())
        rows.append({"zeros": zeros, "dense_ms": times[0], "sparse_ms": times[1], "relative_error": error})
    return {"rows": rows, "wins_from": crossing(rows)}


def race(
    dense: Callable[[], Tensor], sparse: Callable[[], Tensor], repeats: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Return the best milliseconds of both, in turns."""
    start = clock()
    dense()
    sparse()
    runs = max(1, math.ceil(2e-3 / max(clock() - start, 1e-6)))  # a measurement lasts a millisecond at least
    best = [math.inf, math.inf]
    for _ in range(repeats):
        for which, run in enumerate((dense, sparse)):
            start = clock()
            for _ in range(runs):
                run()
            best[which] = min(best[which], 1000 * (clock() - start) / runs)
    return best[0], best[1]


def crossing(rows: list[dict[str, float]]) -> float | None:
    """Return the fraction of zeros from which on skipping is faster throughout, or None."""
    gains = [math.log(row["dense_ms"] / row["sparse_ms"]) for row in rows]
    behind = [index for index, gain in enumerate(gains) if gain <= 0]
    if not behind:
        return 0.0
    last = behind[-1]
    if last == len(rows) - 1:
        return None
    low, high = rows[last]["zeros"], rows[last + 1]["zeros"]
    return round(low + (high - low) * -gains[last] / (gains[last + 1] - gains[last]), 3)


def measure(repeats: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Run all cases."""
    cases: dict[str, Any] = {}
    torch.manual_seed(0)
    with torch.no_grad():
        for inputs, outputs in SIZES:
            layer = nn.Linear(inputs, outputs)
            for batch in BATCHES:
                cases[f"linear {inputs} to {outputs}, batch {batch}"] = compare(layer, (batch, inputs), repeats, clock)
        for inputs, outputs, side in IMAGES:
            layer = nn.Conv2d(inputs, outputs, 1)
            for batch, last in ((1, False), (1, True), (16, False), (16, True)):
                name = f"1 × 1 conv {inputs} to {outputs}, {side} × {side}, batch {batch}" + ", channels last" * last
                cases[name] = compare(layer, (batch, inputs, side, side), repeats, clock, last)
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "clock": clock.__name__,
    }
    return {"machine": machine, "cases": cases}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw how many times as fast skipping zeros is, a panel per batch size."""
    colors = dict(zip(SIZES, (BLUE, GREEN, ORANGE, MUTED), strict=True))
    with style():
        figure = new_figure(8.4, 3.1)
        panels = figure.subplots(1, len(BATCHES), sharey=True)
        for axes, batch in zip(panels, BATCHES, strict=True):
            for (inputs, outputs), color in colors.items():
                rows = result["cases"][f"linear {inputs} to {outputs}, batch {batch}"]["rows"]
                x = [100 * row["zeros"] for row in rows]
                y = [row["dense_ms"] / row["sparse_ms"] for row in rows]
                axes.plot(x, y, "-o", color=color, ms=3.5, mew=0, label=f"{inputs} to {outputs}")
            axes.axhline(1, color=INK, lw=1, ls=(0, (4, 3)))
            axes.set_yscale("log", base=2)
            ticks = 2.0 ** np.arange(-3, 6)
            axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xlim(0, 100)
            axes.set_title("one signal" if batch == 1 else f"batch of {batch}")
            axes.set_xlabel("zeros in the input, %")
        panels[0].set_ylabel("times as fast as dense")
        panels[0].legend(frameon=False, loc="upper left", fontsize=8.5)
        figure.savefig(path, dpi=200, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--processor-time", action="store_true", help="time of all threads, for a machine that is busy")
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file")
    parser.add_argument("--figure", type=Path, default=None, help="also draw them into this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result = measure(arguments.repeats, time.process_time if arguments.processor_time else time.perf_counter)
    print(f"{'layer':58} wins from  at 70 %  at 90 %  at 98 % zeros")
    for name, case in result["cases"].items():
        gains = {row["zeros"]: row["dense_ms"] / row["sparse_ms"] for row in case["rows"]}
        start = "never" if case["wins_from"] is None else f"{100 * case['wins_from']:.0f} %"
        print(f"{name:58} {start:>9} {gains[0.7]:7.1f}× {gains[0.9]:7.1f}× {gains[0.98]:7.1f}×")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if arguments.figure is not None:
        draw(result, arguments.figure)


if __name__ == "__main__":
    main()
