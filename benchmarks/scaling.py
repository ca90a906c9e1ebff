"""How cost grows with signals, atoms, image size and layers: seconds of `dsc.solve`, and exponents fitted.

    python benchmarks/scaling.py [--small] [--only signals,atoms,...] [--json DIR] [--repeats 3] [--device cpu]
                                 [--draw PNG] [--again]

Everything is planted, so that the difficulty does not change with the size: Gaussian dictionaries of unit norm, 5 % of
the dense codes and 0.2 % of the convolutional ones non-zero, noise of 1 %, lam a tenth of lam_max, a relative gap of
1e-6 (dense), 1e-4 (images, layers), certified. Exponents are the slope of a line through the logarithms by least
squares, with its standard error. Sizes are run in turns, and medians taken; the first call (compiling) is not among
them. Each variable leaves a JSON file, which is not measured again. A variable stops growing after ``--minutes``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A problem of one size: what is timed, and the gap of its answer."""

    solve: Callable[[], Any]
    size: int


@dataclass(frozen=True)
class Variable:
    """What is varied, what stays, and how a case is made."""

    label: str
    fixed: str
    sizes: tuple[int, ...]
    small: tuple[int, ...]
    make: Callable[[int, Any], Case]


def planted(dictionary: Any, shape: tuple[int, ...], share: float, device: Any) -> Any:
    """Signals of codes with a share of non-zeros, and noise of 1 %, from a seed."""
    import torch

    generator = torch.Generator().manual_seed(7)
    dtype = torch.float64
    codes = torch.randn(shape, generator=generator, dtype=dtype)
    codes *= torch.rand(shape, generator=generator, dtype=dtype) < share
    signal = dictionary.synthesize(codes)
    return (signal + 0.01 * signal.std() * torch.randn(signal.shape, generator=generator, dtype=dtype)).to(device)


def case(problem: Any, signal: Any, tol: float, size: int) -> Case:
    import deep_sparse_coding as dsc

    return Case(lambda: dsc.solve(problem, signal, tol=tol), size)


def dense(count: int, atoms: int, device: Any, size: int) -> Case:
    """Signals of 64 entries."""
    import torch

    import deep_sparse_coding as dsc

    dictionary = dsc.DenseDictionary.random(64, atoms, seed=0, dtype=torch.float64)
    signal = planted(dictionary, (count, atoms), 0.05 * 256 / atoms, device)
    problem = dsc.Lasso(dictionary.cast(torch.float64).to(device), 1.0)
    lam = 0.1 * float(problem.lam_max(signal).mean())
    return case(dsc.Lasso(problem.dictionary, lam), signal, 1e-6, size)


def image(side: int, device: Any) -> Case:
    """One image, 32 kernels 8×8, float32, on a ring."""
    import torch

    import deep_sparse_coding as dsc

    wide = dsc.ConvDictionary.random(atoms=32, channels=1, size=8, boundary="circular", seed=0, dtype=torch.float64)
    signal = planted(wide, (1, 32, side, side), 0.002, device).float()
    dictionary = wide.cast(torch.float32).to(device)
    # The largest correlation grows a little with the number of places, lam must not.
    problem = dsc.Lasso(dictionary, 0.3)
    return case(problem, signal, 1e-4, side)


def layers(depth: int, device: Any) -> Case:
    """A joint problem of Gaussian layers 64 → 128 → 256 → 512, 500 signals."""
    import torch

    import deep_sparse_coding as dsc

    widths = (64, 128, 256, 512)
    parts = [
        dsc.DenseDictionary.random(widths[j], widths[j + 1], seed=j, dtype=torch.float64).to(device)
        for j in range(depth)
    ]
    model = dsc.Cascade(parts)
    signal = planted(model, (500, widths[depth]), 0.02, device)
    beta = (1.0,) * depth
    top = float(dsc.JointLasso(model, 1.0, beta).lam_max(signal).mean())
    return case(dsc.JointLasso(model, (0.1 * top,) * depth, beta), signal, 1e-4, depth)


VARIABLES = {
    "signals": Variable(
        "signals",
        "64×256, Gaussian",
        (500, 1_000, 2_000, 5_000, 10_000, 20_000),
        (500, 1_000, 2_000),
        lambda n, device: dense(n, 256, device, n),
    ),
    "atoms": Variable(
        "atoms",
        "2,000 signals of 64 entries",
        (64, 128, 256, 512, 1024),
        (64, 128, 256),
        lambda m, device: dense(2_000, m, device, m),
    ),
    "image": Variable("side of the image", "32 kernels 8×8, circular", (64, 128, 256, 512), (32, 64, 128), image),
    "layers": Variable("layers", "joint, 64→128→256→512, 500 signals", (1, 2, 3), (1, 2), layers),
}


def fit(sizes: list[int], seconds: list[float]) -> tuple[float, float]:
    """Return the exponent of ``seconds = c·sizeᵖ`` by least squares on logarithms, and its standard error."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    middle, level = statistics.fmean(x), statistics.fmean(y)
    spread = sum((a - middle) ** 2 for a in x)
    slope = sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - level - slope * (a - middle)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, math.sqrt(rest / (len(x) - 2) / spread) if len(x) > 2 else math.nan


def measure(variable: Variable, sizes: tuple[int, ...], device: Any, repeats: int, minutes: float) -> dict[str, Any]:
    """Return medians of all sizes, and the exponent."""
    import torch

    limit = time.monotonic() + 60 * minutes
    cases: list[Case] = []
    facts: list[dict[str, Any]] = []
    for size in sizes:
        if cases and time.monotonic() > limit:
            break
        made = variable.make(size, device)
        start = time.perf_counter()
        solution = made.solve()
        first = time.perf_counter() - start
        cases.append(made)
        facts.append(
            {
                "size": size,
                "first_seconds": first,
                "gap": float(solution.certificate.relative_gap.max()),
                "zero_fraction": solution.zero_fraction,
                "solver": solution.solver,
            }
        )
    times: list[list[tuple[float, float]]] = [[] for _ in cases]
    for turn in range(repeats):
        if turn and time.monotonic() > limit:
            break
        for index, made in enumerate(cases):
            wall, processor = time.perf_counter(), time.process_time()
            made.solve()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times[index].append((time.perf_counter() - wall, time.process_time() - processor))
    for fact, seen in zip(facts, times, strict=True):
        fact["seconds"] = statistics.median(wall for wall, _ in seen)
        fact["cpu_seconds"] = statistics.median(cpu for _, cpu in seen)
        fact["runs"] = len(seen)
    shown = [fact["size"] for fact in facts]
    results: dict[str, Any] = {"label": variable.label, "fixed": variable.fixed, "points": facts}
    for clock in ("seconds", "cpu_seconds"):
        exponent, error = fit(shown, [fact[clock] for fact in facts]) if len(shown) > 1 else (math.nan, math.nan)
        results[clock] = {"exponent": exponent, "standard_error": None if math.isnan(error) else error}
    return results


def draw(results: dict[str, dict[str, Any]], target: Path) -> None:
    """Draw seconds against every variable, on logarithmic axes, with the fitted lines."""
    import numpy as np
    from curves import save

    from deep_sparse_coding._drawing import BLUE, MUTED, new_figure, style

    with style():
        figure = new_figure(2.5 * len(results) + 0.4, 2.7)
        for place, (name, result) in enumerate(results.items()):
            axes = figure.add_subplot(1, len(results), place + 1)
            sizes = np.array([point["size"] for point in result["points"]], dtype=float)
            seconds = np.array([point["seconds"] for point in result["points"]])
            power = result["seconds"]["exponent"]
            level = np.exp(np.mean(np.log(seconds) - power * np.log(sizes)))
            axes.plot(sizes, level * sizes**power, color=MUTED, lw=1, ls=(0, (4, 3)))
            axes.plot(sizes, seconds, "o", color=BLUE, ms=5)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            # At least a decade, so that noise does not fill the axis and every axis has labels.
            axes.set_ylim(10 ** np.floor(np.log10(0.9 * seconds.min())), 10 ** np.ceil(np.log10(1.1 * seconds.max())))
            axes.set_xticks(sizes, [f"{int(size):,}" for size in sizes], rotation=0 if len(sizes) < 5 else 45)
            axes.set_xlabel(result["label"])
            axes.set_title(f"{name}: exponent {power:.2f}")
            if place == 0:
                axes.set_ylabel("seconds")
        save(figure, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small sizes only, to see that all runs")
    parser.add_argument("--only", default=",".join(VARIABLES), help="some of the variables")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1.0, help="the most that one variable may take, about")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--draw", type=Path, help="write a figure of the results to this PNG")
    parser.add_argument("--again", action="store_true", help="measure again what is in the folder already")
    options = parser.parse_args()
    # Before NumPy is loaded: idle threads of its linear algebra library would spin beside the solvers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.threads))
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    os.environ.setdefault("NUMBA_NUM_THREADS", str(options.threads))
    names = [name.strip() for name in options.only.split(",")]
    if unknown := [name for name in names if name not in VARIABLES]:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(VARIABLES)}")
    import torch

    import deep_sparse_coding as dsc

    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", dsc.DSCWarning)
    options.json.mkdir(parents=True, exist_ok=True)
    device, results = torch.device(options.device), {}
    for name in names:
        suffix = ("-small" if options.small else "") + ("" if device.type == "cpu" else f"-{device.type}")
        target = options.json / f"scaling-{name}{suffix}.json"
        if options.again or not target.exists():
            variable = VARIABLES[name]
            sizes = variable.small if options.small else variable.sizes
            result = measure(variable, sizes, device, options.repeats, options.minutes)
            target.write_text(json.dumps({"threads": options.threads, **result}, indent=1, ensure_ascii=False))
        results[name] = json.loads(target.read_text())
        show(name, results[name])
    if options.draw:
        draw(results, options.draw)


def show(name: str, result: dict[str, Any]) -> None:
    """Print a variable's medians and exponents."""
    wall, processor = result["seconds"], result["cpu_seconds"]
    errors = [
        "" if part["standard_error"] is None else f" ± {part['standard_error']:.2f}" for part in (wall, processor)
    ]
    print(
        f"{name} ({result['fixed']}): exponent {wall['exponent']:.2f}{errors[0]}, of processor time "
        f"{processor['exponent']:.2f}{errors[1]}"
    )
    for point in result["points"]:
        print(
            f"  {point['size']:>7,} {point['seconds']:>9.4f} s {point['cpu_seconds']:>9.4f} s CPU   gap "
            f"{point['gap']:.0e}, {100 * point['zero_fraction']:.2f} % zeros, {point['solver']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
