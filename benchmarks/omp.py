"""Orthogonal matching pursuit: `dsc.solve` with its checks and certificate against ``spams.omp`` alone.

    python benchmarks/omp.py [--small] [--json PATH] [--threads 1] [--repeats 7]

20,000 8×8 patches of a photograph, 256 learned atoms, 10 non-zeros. Runs are interleaved in one process; medians are
shown, seconds and processor seconds. ``spams.omp`` computes forward selection, so `OMP(forward=True)` gives its codes,
and plain `OMP()` the classical ones; both are timed, with the squared residual of each, recomputed here.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NONZEROS = 10


def clocks(call: Callable[[], Any]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tenth of the signals")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    # Before NumPy is loaded: idle threads of its linear algebra library would spin beside the solvers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.threads))
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    import numpy as np
    import torch
    from dense_lasso import dense, installed, patches

    import deep_sparse_coding as dsc

    if not (installed("skimage") and installed("sklearn")):
        raise SystemExit("8×8 patches: not installed (pip install scikit-image pooch scikit-learn)")
    torch.set_num_threads(options.threads)
    D, Y = patches(2_000 if options.small else 20_000, 256)
    signal = torch.from_numpy(Y)
    problem = dsc.SparseApproximation(dsc.DenseDictionary(torch.from_numpy(D)), NONZEROS)

    def ours(forward: bool) -> Callable[[], Any]:
        return lambda: dsc.solve(problem, signal, dsc.OMP(forward=forward)).codes.numpy()  # type: ignore[union-attr]

    calls: dict[str, Callable[[], Any]] = {"OMP()": ours(False), "OMP(forward=True)": ours(True)}
    if installed("spams"):
        import spams

        DF, YF = np.asfortranarray(D), np.asfortranarray(Y.T)
        calls["spams.omp"] = lambda: spams.omp(YF, DF, L=NONZEROS, eps=0.0, numThreads=options.threads).T
    else:
        print("spams.omp: not installed (pip install spams-bin)")
    first = {name: clocks(call)[0] for name, call in calls.items()}
    errors = {name: float(np.square(Y - dense(call()) @ D.T).sum()) for name, call in calls.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(options.repeats):
        for name, call in calls.items():
            times[name].append(clocks(call))
    medians = {
        name: tuple(statistics.median(column) for column in zip(*rows, strict=True)) for name, rows in times.items()
    }
    peer = medians.get("spams.omp")
    rows = []
    print(f"{'method':<18} {'ms':>8} {'cpu ms':>8} {'‖r‖² sum':>10} {'first s':>8} {'ratio':>6} {'cpu':>6}")
    for name, (wall, processor) in medians.items():
        ratio = (peer[0] / wall, peer[1] / processor) if peer else (float("nan"), float("nan"))
        rows.append({"method": name, "seconds": wall, "cpu_seconds": processor, "error": errors[name], "ratio": ratio})
        print(
            f"{name:<18} {1e3 * wall:>8.1f} {1e3 * processor:>8.1f} {errors[name]:>10.4f} {first[name]:>8.2f} "
            f"{ratio[0]:>6.2f} {ratio[1]:>6.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
