"""Regularization paths of 50 lams: the compiled solver and `dsc.solve_path` against SPAMS, celer and skglm.

    python benchmarks/path.py [--small] [--json PATH] [--threads 2] [--repeats 5]

Patches of a photograph on 256 learned atoms, lams falling geometrically from the mean of max|Dᵀy| to a hundredth of it,
the same for all signals; SPAMS is called for each of them. celer and skglm follow the path of one signal at a time: on
twenty of the patches, and on one signal with 20,000 atoms. "kernel" is one compiled call for all lams, with the Gram
matrix's time; "solve_path" adds a float64 certificate for every lam. Gaps are recomputed here; medians of interleaved
runs in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dense_lasso import TARGET, Row, Solve, installed, largest_gap, patches, timed
from one_signal import problem, show

COUNT = 50


def worst_gap(D: Any, Y: Any, path: Any, grid: Any) -> float:
    """Largest relative gap along a path: arrays ``(signals, atoms)``, or sparse matrices of the other orientation."""
    import numpy as np

    return max(
        largest_gap(D, Y, codes if isinstance(codes, np.ndarray) else codes.toarray().T, float(lam))
        for codes, lam in zip(path, grid, strict=True)
    )


def peers(D: Any, Y: Any, grid: Any, threads: int) -> dict[str, tuple[str, str, list[Solve]]]:
    """Name → (module, pip command, calls from the loosest tolerance to the tightest)."""
    import numpy as np

    DF, YF, alphas = np.asfortranarray(D), np.asfortranarray(Y.T), grid / len(D)

    def lars() -> Any:
        import spams

        return [spams.lasso(YF, DF, lambda1=float(lam), mode=2, numThreads=threads) for lam in grid]

    def celer(tol: float) -> Solve:
        def call() -> Any:
            from celer import celer_path  # pyright: ignore[reportMissingImports]

            # Without the limit it can spend minutes on a lam of the far end whose tolerance it does not meet.
            options = {"alphas": alphas, "tol": tol, "max_epochs": 2_000}
            return np.stack([celer_path(DF, y, "lasso", **options)[1].T for y in Y], 1)

        return call

    def skglm(tol: float) -> Solve:
        def call() -> Any:
            from skglm import Lasso  # pyright: ignore[reportMissingImports]

            model = Lasso(fit_intercept=False, tol=tol)
            return np.stack([model.path(DF, y, alphas)[1].T for y in Y], 1)

        return call

    tolerances = (1e-4, 1e-6, 1e-8, 1e-10)
    several = {"SPAMS LARS": ("spams", "pip install spams-bin", [lars])}
    single = {
        "celer": ("celer", "pip install celer", [celer(tol) for tol in tolerances]),
        "skglm": ("skglm", "pip install skglm", [skglm(tol) for tol in tolerances]),
    }
    return several if len(Y) > 100 else {**several, **single}


def compare(work: str, D: Any, Y: Any, threads: int, repeats: int) -> list[Row]:
    import numpy as np
    import torch

    import deep_sparse_coding as dsc
    from deep_sparse_coding.solvers._kernels_dense import solve_batch

    torch.set_num_threads(threads)
    top = float(np.abs(Y @ D).max(1).mean())
    grid = np.geomspace(top, 0.01 * top, COUNT)
    lams, weights = np.repeat(grid[:, None], len(Y), 1), np.ones(D.shape[1])
    lasso, signal = dsc.Lasso(dsc.DenseDictionary(torch.from_numpy(D)), 1.0), torch.from_numpy(Y)

    def kernel() -> Any:
        gram = D.T @ D if D.shape[1] <= 512 else None
        return solve_batch(D, gram, Y, lams, weights, tol=TARGET, threads=threads)[0]

    def solve_path() -> Any:
        path = dsc.solve_path(lasso, signal, lams=grid.tolist(), tol=TARGET)
        return [solution.codes for solution in path]

    calls: dict[str, Solve] = {"kernel": kernel, "solve_path": solve_path}
    gaps = {name: worst_gap(D, Y, [np.asarray(x) for x in call()], grid) for name, call in calls.items()}
    notes: dict[str, str] = {}
    known = peers(D, Y, grid, threads)
    for name, (module, command, candidates) in known.items():
        if not installed(module):
            notes[name] = f"not installed ({command})"
            continue
        for call in candidates:
            calls[name], gaps[name] = call, worst_gap(D, Y, call(), grid)
            if gaps[name] <= TARGET:
                break
        else:
            notes[name] = f"does not reach {TARGET:g}"
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for ours in ("kernel", "solve_path"):
        for name in known:
            theirs = medians.get(name)
            ratio = None if theirs is None else theirs / medians[ours]
            note = notes.get(name, "")
            rows.append(Row(f"{work}, {ours}", name, medians[ours], theirs, ratio, gaps[ours], gaps.get(name), note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="200 patches, and 2,000 atoms for the one signal")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    # Before NumPy is loaded: idle threads of its linear algebra library would spin beside the solvers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.threads))
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    warnings.filterwarnings("ignore", module="celer|skglm|sklearn")
    warnings.filterwarnings("ignore", message="Objective did not converge")
    print(f"{'work':<36} {'ours ms':>9} {'gap':>9}  {'peer':<16} {'peer ms':>9} {'gap':>9} {'ratio':>7}")
    atoms = 2_000 if options.small else 20_000
    works: dict[str, tuple[Any, Any]] = {f"one signal 200×{atoms:,}": problem(200, atoms)}
    if installed("skimage") and installed("sklearn"):
        D, Y = patches(20_000, 256)
        works["20 patches"] = D, Y[:20]
        for count in (200,) if options.small else (2_000,):
            works[f"{count:,} patches"] = D, Y[:count]
    else:
        print("8×8 patches: not installed (pip install scikit-image pooch scikit-learn)")
    rows: list[Row] = []
    for work, (D, Y) in works.items():
        for row in compare(work, D, Y, options.threads, options.repeats):
            rows.append(row)
            print(show(row), flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({"threads": options.threads, "rows": [asdict(row) for row in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
