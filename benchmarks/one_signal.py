"""One signal, many atoms: the compiled solver and `dsc.solve` against celer, skglm and scikit-learn.

    python benchmarks/one_signal.py [--small] [--json PATH] [--threads 2] [--repeats 5]

A Gaussian dictionary of 200 × 20,000, twenty atoms and noise 0.01, lam = 0.1 lam_max. Our solver is timed by itself,
with the row-major matrix as it comes, and inside `dsc.solve`, which assesses codes in float64 before, after and for the
answer. Peers get the column-major copy that they want before the timing, and the loosest tolerance that brings their
gap, recomputed here, to 1e-6. Runs are interleaved in one process; medians are shown. Warming up is not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dense_lasso import TARGET, Row, Solve, installed, largest_gap, timed


def problem(d: int, atoms: int) -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    D = rng.standard_normal((d, atoms))
    D /= np.linalg.norm(D, axis=0)
    x = np.zeros(atoms)
    x[rng.choice(atoms, 20, replace=False)] = rng.standard_normal(20)
    return D, (D @ x + 0.01 * rng.standard_normal(d))[None]


def peers(D: Any, y: Any, lam: float) -> dict[str, tuple[str, Callable[[float], Any]]]:
    """Name → (module, the call for a tolerance, which returns codes)."""
    import numpy as np

    DF, alpha = np.asfortranarray(D), lam / len(D)

    def celer(tol: float) -> Any:
        from celer import Lasso  # pyright: ignore[reportMissingImports]

        return Lasso(alpha=alpha, fit_intercept=False, tol=tol).fit(DF, y).coef_

    def skglm(tol: float) -> Any:
        from skglm import Lasso  # pyright: ignore[reportMissingImports]

        return Lasso(alpha=alpha, fit_intercept=False, tol=tol).fit(DF, y).coef_

    def sklearn(tol: float) -> Any:
        from sklearn.linear_model import Lasso

        return Lasso(alpha=alpha, fit_intercept=False, tol=tol, max_iter=10_000).fit(DF, y).coef_

    return {"celer": ("celer", celer), "skglm": ("skglm", skglm), "scikit-learn CD": ("sklearn", sklearn)}


def compare(work: str, D: Any, Y: Any, threads: int, repeats: int) -> list[Row]:
    import numpy as np
    import torch

    import deep_sparse_coding as dsc
    from deep_sparse_coding.solvers._kernels_dense import solve_batch

    torch.set_num_threads(threads)
    lam = 0.1 * float(np.abs(Y @ D).max())
    weights = np.ones(D.shape[1])
    lasso = dsc.Lasso(dsc.DenseDictionary(torch.from_numpy(D)), lam)
    signal = torch.from_numpy(Y)

    def kernel() -> Any:
        return solve_batch(D, None, Y, np.array([lam]), weights, tol=TARGET, threads=threads)[0]

    def solve() -> Any:
        codes = dsc.solve(lasso, signal, dsc.CoordinateDescent(), tol=TARGET).codes
        return codes.numpy() if isinstance(codes, torch.Tensor) else codes

    calls: dict[str, Solve] = {"kernel": kernel, "dsc.solve": solve}
    gaps = {name: largest_gap(D, Y, call(), lam) for name, call in calls.items()}
    notes: dict[str, str] = {}
    known = peers(D, Y[0], lam)
    for name, (module, call) in known.items():
        if not installed(module):
            notes[name] = f"not installed (pip install {module})"
            continue
        for tol in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
            calls[name] = lambda call=call, tol=tol: call(tol)
            gaps[name] = largest_gap(D, Y, calls[name]()[None], lam)
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
    for ours in ("kernel", "dsc.solve"):
        for name in known:
            theirs = medians.get(name)
            ratio = None if theirs is None else theirs / medians[ours]
            note = notes.get(name, "")
            rows.append(Row(f"{work}, {ours}", name, medians[ours], theirs, ratio, gaps[ours], gaps.get(name), note))
    return rows


def show(row: Row) -> str:
    line = f"{row.work:<36} {row.ours_seconds * 1e3:>9.1f} {row.ours_gap:>9.1e}  {row.peer:<16}"
    if row.peer_seconds is None or row.ratio is None or row.peer_gap is None:
        return f"{line} {row.note}"
    return f"{line} {row.peer_seconds * 1e3:>9.1f} {row.peer_gap:>9.1e} {row.ratio:>7.2f}  {row.note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="2,000 atoms only")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    # Before NumPy is loaded: idle threads of its linear algebra library would spin beside the solvers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.threads))
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    warnings.filterwarnings("ignore", module="celer|skglm|sklearn")
    print(f"{'work':<36} {'ours ms':>9} {'gap':>9}  {'peer':<16} {'peer ms':>9} {'gap':>9} {'ratio':>7}")
    rows: list[Row] = []
    for d, atoms in ((200, 2_000),) if options.small else ((200, 2_000), (200, 20_000)):
        for row in compare(f"one signal {d}×{atoms:,}", *problem(d, atoms), options.threads, options.repeats):
            rows.append(row)
            print(show(row), flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({"threads": options.threads, "rows": [asdict(row) for row in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
