"""Joint problem of two layers: the compiled solvers against FISTA, and SPAMS on the dense one written as one Lasso.

    python benchmarks/joint_lasso.py [--small] [--json PATH] [--threads 2] [--repeats 5]

Gaussian dictionaries of unit norm; signals are made from sparse deepest codes, with 1 % noise. Both lam are a share of
lam_max (its mean), chosen so that both layers are in use. Every method gets the loosest setting of a list whose largest
relative gap, computed again here in float64, is at most 1e-4: for this library a tolerance, for SPAMS none (LARS is
exact). Settings are found before the timing; the timed runs are interleaved in one process and medians shown, in
seconds and in seconds of CPU time. The time of our methods includes all their certificates, except
for the row that says kernel alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TARGET = 1e-4
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
STEPS = 3000
Solve = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One comparison; seconds are medians over the whole batch, ratios the peer's over ours."""

    work: str
    peer: str
    steps: int | None
    seconds: float | None
    cpu_seconds: float | None
    gap: float | None
    ratio: float | None
    cpu_ratio: float | None
    note: str = ""


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def planted(model: Any, shape: tuple[int, ...], share: float, dtype: Any) -> Any:
    """Signals of deepest codes with a share of non-zeros, and 1 % noise."""
    import torch

    generator = torch.Generator().manual_seed(3)
    codes = torch.randn(shape, generator=generator, dtype=torch.float64)
    codes *= torch.rand(shape, generator=generator, dtype=torch.float64) < share
    signal = model.synthesize(codes)
    signal += 0.01 * signal.std() * torch.randn(signal.shape, generator=generator, dtype=torch.float64)
    return signal.to(dtype)


def dense(small: bool, shares: tuple[float, float], beta: float) -> tuple[str, Any, Any]:
    """64 → 128 → 256, float64."""
    import torch

    import deep_sparse_coding as dsc

    count = 200 if small else 1000
    layers = [
        dsc.DenseDictionary.random(rows, atoms, seed=j, dtype=torch.float64)
        for j, (rows, atoms) in enumerate([(64, 128), (128, 256)])
    ]
    model = dsc.Cascade(layers)
    signal = planted(model, (count, 256), 0.02, torch.float64)
    return named(f"dense 64→128→256 ×{count}", model, signal, shares, beta)


def convolutional(small: bool, shares: tuple[float, float], beta: float, nonzeros: int | None) -> tuple[str, Any, Any]:
    """Images 64², 32 kernels 8×8 and 64 kernels 5×5×32, float32."""
    import torch

    import deep_sparse_coding as dsc

    count, size, atoms = (4, 32, (8, 16)) if small else (8, 64, (32, 64))
    wide = dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=atoms[0], channels=1, size=8, seed=0, dtype=torch.float64),
            dsc.ConvDictionary.random(
                atoms=atoms[1], channels=atoms[0], size=5, nonzeros=nonzeros, seed=1, dtype=torch.float64
            ),
        ]
    )
    signal = planted(wide, (count, atoms[1], size - 11, size - 11), 0.002, torch.float32)
    kind = "dense" if nonzeros is None else "sparse"
    return named(f"conv {size}² {atoms[0]}+{atoms[1]} {kind} ×{count}", wide.cast(torch.float32), signal, shares, beta)


def named(work: str, model: Any, signal: Any, shares: tuple[float, float], beta: float) -> tuple[str, Any, Any]:
    import deep_sparse_coding as dsc

    top = float(dsc.JointLasso(model, 1.0, (1.0, beta)).lam_max(signal).mean())
    problem = dsc.JointLasso(model, (top * shares[0], top * shares[1]), (1.0, beta))
    return f"{work} lam {shares[0]:g}, {shares[1]:g} β {beta:g}", problem, signal


def joint_gap(problem: Any, signal: Any, codes: Any) -> float:
    """Largest duality gap over objective, float64, from the codes and plain synthesis and correlation."""
    import torch

    layers = [layer.cast(torch.float64) for layer in problem.model.layers]
    y, x = signal.double(), [block.double() for block in codes]
    below = [y, *x[:-1]]
    nu = [b * (z - layer.synthesize(c)) for b, z, layer, c in zip(problem.beta, below, layers, x, strict=True)]
    slope = [layer.analyze(n) for layer, n in zip(layers, nu, strict=True)]
    slope = [s - n for s, n in zip(slope, nu[1:], strict=False)] + slope[-1:]
    flat = [s.flatten(1).abs().amax(1) / lam for s, lam in zip(slope, problem.lam, strict=True)]
    energy = sum(n.flatten(1).square().sum(1) / b for n, b in zip(nu, problem.beta, strict=True))
    penalty = sum(lam * c.flatten(1).abs().sum(1) for c, lam in zip(x, problem.lam, strict=True))
    match = (y * nu[0]).flatten(1).sum(1)
    alpha = torch.minimum(match / energy, 1 / torch.stack(flat).amax(0))
    primal = 0.5 * energy + penalty
    return float(((primal - (alpha * match - 0.5 * alpha**2 * energy)) / primal).max())


def library(problem: Any, signal: Any, solver: Any, tol: float) -> Any:
    import deep_sparse_coding as dsc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dsc.solve(problem, signal, solver, tol=tol, max_steps=STEPS)


def lars(problem: Any, signal: Any, threads: int) -> tuple[Solve, Callable[[Any], Any]]:
    """SPAMS on the stacked matrix, its columns over their weights, and what makes its answers codes: both not timed."""
    import numpy as np
    import spams
    import torch

    form = problem.form(signal)
    weights = torch.cat([w.expand(1, *s)[0] for w, s in zip(form.weights, form.code_shapes, strict=True)]).numpy()
    matrix = np.asfortranarray(form.operator.matrix().numpy() / weights)
    data = np.asfortranarray(torch.cat([b.flatten(1) for b in form.data], 1).numpy().T)

    def solve() -> Any:
        return spams.lasso(data, D=matrix, lambda1=1.0, mode=2, numThreads=threads)

    def codes(answer: Any) -> Any:
        found = torch.from_numpy((answer.toarray() / weights[:, None]).T.copy())
        return found.split([s[0] for s in form.code_shapes], 1)

    return solve, codes


def kernel(problem: Any, signal: Any, threads: int) -> Solve:
    """Our dense solver without the library around it: no certificate, as the peer has none."""
    import numpy as np
    import torch

    from deep_sparse_coding.solvers._kernels_dense import solve_batch

    form = problem.form(signal)
    weights = torch.cat([w.expand(1, *s)[0] for w, s in zip(form.weights, form.code_shapes, strict=True)]).numpy()
    matrix = form.operator.matrix().numpy()
    data = torch.cat([b.flatten(1) for b in form.data], 1).numpy()
    sizes = [s[0] for s in form.code_shapes]

    def solve() -> Any:
        found = solve_batch(
            matrix, matrix.T @ matrix, data, np.ones(len(data)), weights, tol=0.9 * TARGET, threads=threads
        )[0]
        return torch.from_numpy(found).split(sizes, 1)

    return solve


def timed(call: Solve) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(work: str, problem: Any, signal: Any, repeats: int, threads: int) -> list[Row]:
    import deep_sparse_coding as dsc
    from deep_sparse_coding.solvers.joint import JointCoordinateDescent

    convolution = isinstance(problem.model.layers[0], dsc.ConvDictionary)
    ours: Any = JointCoordinateDescent() if convolution else dsc.CoordinateDescent()
    solvers = {"ours": ours, "plain FISTA": dsc.FISTA(restart=False), "FISTA": dsc.FISTA()}
    calls: dict[str, Solve] = {}
    gaps: dict[str, float] = {}
    steps: dict[str, int] = {}
    notes: dict[str, str] = {}
    used = ""
    for name, solver in solvers.items():
        for tol in TOLERANCES:
            solution = library(problem, signal, solver, tol)
            if name == "ours":
                used = ", ".join(f"{100 * float((x != 0).double().mean()):.2f} %" for x in solution.codes)
            gaps[name], steps[name] = joint_gap(problem, signal, solution.codes), int(solution.steps.max())
            calls[name] = lambda solver=solver, tol=tol: library(problem, signal, solver, tol)
            if gaps[name] <= TARGET:
                break
        else:
            notes[name] = f"not at {TARGET:g} after {steps[name]} steps"
    print(f"{work}: {used} of the codes in use", flush=True)
    if not convolution:
        calls["kernel alone"] = kernel(problem, signal, threads)
        gaps["kernel alone"] = joint_gap(problem, signal, calls["kernel alone"]())
    if not convolution and installed("spams"):
        calls["SPAMS LARS"], codes = lars(problem, signal, threads)
        gaps["SPAMS LARS"] = joint_gap(problem, signal, codes(calls["SPAMS LARS"]()))
    elif not convolution:
        notes["SPAMS LARS"] = "not installed (pip install spams-bin)"
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(timed(call))
    wall = {name: statistics.median(t[0] for t in seen) for name, seen in times.items()}
    cpu = {name: statistics.median(t[1] for t in seen) for name, seen in times.items()}
    if "SPAMS LARS" in calls:
        ratios = (t["SPAMS LARS"] / t["kernel alone"] for t in (wall, cpu))
        notes["SPAMS LARS"] = "over the kernel alone: {:.1f}, CPU {:.1f}".format(*ratios)
    rows = []
    for name in dict.fromkeys([*calls, *notes]):
        ratio, cpu_ratio = (t[name] / t["ours"] if name in calls else None for t in (wall, cpu))
        note = notes.get(name, "")
        facts = steps.get(name), wall.get(name), cpu.get(name), gaps.get(name)
        rows.append(Row(work, name, *facts, ratio, cpu_ratio, note))
    return rows


def show(row: Row) -> str:
    line = f"  {row.peer:<12} {'' if row.steps is None else row.steps:>6}"
    if row.seconds is None or row.cpu_seconds is None or row.gap is None or row.ratio is None or row.cpu_ratio is None:
        return f"{line} {row.note}"
    times = f"{row.seconds:>8.3f} {row.cpu_seconds:>8.3f}"
    return f"{line} {times} {row.gap:>9.1e} {row.ratio:>8.1f} {row.cpu_ratio:>8.1f}  {row.note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="200 signals; four images of 32² with 8 + 16 kernels")
    parser.add_argument("--only", choices=("dense", "conv"), help="one of the two kinds")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.threads))
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    import numpy as np
    import torch

    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    from deep_sparse_coding.solvers._kernels_joint import Stage, solve_joint

    one = Stage(np.ones((1, 1, 2, 2)), np.full((1, 1, 1, 1), 0.1), (1, 1), 1.0, False)
    zeros = [np.zeros((1, 1, 8, 8)), np.zeros((1, 1, 7, 7))]
    solve_joint([one, one], np.ones((1, 1, 9, 9)), zeros, False, 1e-6, 20)
    first = time.perf_counter() - start
    print(f"first call (import, compile or load from the cache): {first:.2f} s\n")
    works: list[Callable[[], tuple[str, Any, Any]]] = []
    if options.only != "conv":
        works += [lambda s=s, b=b: dense(options.small, s, b) for s, b in (((0.3, 0.1), 1.0), ((0.1, 0.1), 1.0))]
    if options.only != "dense":
        works += [lambda n=n: convolutional(options.small, (0.1, 0.02), 1.0, n) for n in (None, 6)]
    print(f"  {'method':<12} {'steps':>6} {'seconds':>8} {'CPU':>8} {'gap':>9} {'ratio':>8} {'CPU':>8}")
    rows: list[Row] = []
    for work in works:
        for row in compare(*work(), options.repeats, options.threads):
            rows.append(row)
            print(show(row), flush=True)
    if options.json:
        facts = {"first_call_seconds": first, "threads": options.threads, "python": sys.version}
        options.json.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
