"""Dense Lasso: the compiled solver against SPAMS (LARS and coordinate descent) and scikit-learn.

    python benchmarks/dense_lasso.py [--small] [--json PATH] [--threads 2] [--repeats 5]

Runs are interleaved in one process; medians are shown. Every answer's duality gap is recomputed here with NumPy. Peers
that iterate get the loosest tolerance of a list that brings their largest relative gap to 1e-6, found before the
timing. Compiling and warming up is shown apart. The photograph's patches need scikit-image and scikit-learn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TARGET = 1e-6
Solve = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One comparison; seconds are medians over the whole batch."""

    work: str
    peer: str
    ours_seconds: float
    peer_seconds: float | None
    ratio: float | None
    ours_gap: float
    peer_gap: float | None
    note: str = ""


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def patches(count: int, atoms: int) -> tuple[Any, Any]:
    """8×8 patches of a photograph without their means, and a dictionary learned on a part of them."""
    import numpy as np
    from skimage import data
    from sklearn.decomposition import MiniBatchDictionaryLearning

    image = data.camera().astype(float) / 255
    every = np.lib.stride_tricks.sliding_window_view(image, (8, 8)).reshape(-1, 64)
    chosen = every[np.random.default_rng(0).choice(len(every), count, replace=False)]
    Y = np.ascontiguousarray(chosen - chosen.mean(1, keepdims=True))
    train = Y[:5000] / Y[:5000].std()
    options: dict[str, Any] = {"alpha": 0.1, "random_state": 0, "max_iter": 20, "batch_size": 256}
    learner = MiniBatchDictionaryLearning(atoms, **options)
    D = learner.fit(train).components_.T
    return np.ascontiguousarray(D / np.linalg.norm(D, axis=0)), Y


def gaussian(count: int, d: int, atoms: int) -> tuple[Any, Any]:
    """Gaussian dictionary; codes with 5 % support; noise 0.01."""
    import numpy as np

    rng = np.random.default_rng(1)
    D = rng.standard_normal((d, atoms))
    D /= np.linalg.norm(D, axis=0)
    X = rng.standard_normal((count, atoms)) * (rng.random((count, atoms)) < 0.05)
    return D, X @ D.T + 0.01 * rng.standard_normal((count, d))


def largest_gap(D: Any, Y: Any, X: Any, lam: float) -> float:
    """Largest duality gap over objective, from the codes alone."""
    import numpy as np

    R = Y - X @ D.T
    C = R @ D
    rr = (R * R).sum(1)
    alpha = np.minimum((Y * R).sum(1) / np.maximum(rr, 1e-300), lam / np.maximum(np.abs(C).max(1), 1e-300))
    penalty = lam * np.abs(X).sum(1)
    gap = 0.5 * (1 - alpha) ** 2 * rr + penalty - alpha * (X * C).sum(1)
    return float((gap / np.maximum(0.5 * rr + penalty, 1e-300)).max())


def peers(D: Any, Y: Any, lam: float, threads: int) -> dict[str, tuple[str, str, list[Solve]]]:
    """Name → (module, pip command, calls from the loosest tolerance to the tightest); calls return codes (n, m)."""
    import numpy as np

    DF, YF = np.asfortranarray(D), np.asfortranarray(Y.T)
    tolerances = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)

    def lars() -> Any:
        import spams

        return spams.lasso(YF, DF, lambda1=lam, mode=2, numThreads=threads).T

    def descent(tol: float) -> Solve:
        def call() -> Any:
            import scipy.sparse
            import spams

            zero = scipy.sparse.csc_matrix((D.shape[1], len(Y)))
            return spams.cd(YF, DF, zero, lambda1=lam, mode=2, itermax=10_000, tol=tol, numThreads=threads).T

        return call

    def sklearn(tol: float) -> Solve:
        def call() -> Any:
            from sklearn.linear_model import Lasso

            model = Lasso(alpha=lam / len(D), fit_intercept=False, precompute=True, tol=tol, max_iter=10_000)
            return model.fit(D, Y.T).coef_

        return call

    return {
        "SPAMS LARS": ("spams", "pip install spams-bin", [lars]),
        "SPAMS CD": ("spams", "pip install spams-bin", [descent(t) for t in tolerances]),
        "scikit-learn CD": ("sklearn", "pip install scikit-learn", [sklearn(t) for t in tolerances]),
    }


def dense(codes: Any) -> Any:
    """Codes as an array; the conversion is not timed."""
    import numpy as np

    return codes if isinstance(codes, np.ndarray) else codes.toarray()


def timed(call: Solve) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(work: str, D: Any, Y: Any, threads: int, repeats: int) -> list[Row]:
    import numpy as np

    from deep_sparse_coding.solvers._kernels_dense import solve_batch

    lam = 0.1 * float(np.abs(Y @ D).max(1).mean())
    lams, weights = np.full(len(Y), lam), np.ones(D.shape[1])

    def ours() -> Any:
        return solve_batch(D, D.T @ D, Y, lams, weights, tol=TARGET, threads=threads)[0]

    calls: dict[str, Solve] = {}
    gaps: dict[str, float] = {}
    notes: dict[str, str] = {}
    ours_gap = largest_gap(D, Y, ours(), lam)
    for name, (module, command, candidates) in peers(D, Y, lam, threads).items():
        if not installed(module):
            notes[name] = f"not installed ({command})"
            continue
        for call in candidates:
            calls[name], gaps[name] = call, largest_gap(D, Y, dense(call()), lam)
            if gaps[name] <= TARGET:
                break
        else:
            notes[name] = f"does not reach {TARGET:g}"
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *calls)}
    for _ in range(repeats):
        for name, call in {"ours": ours, **calls}.items():
            seconds[name].append(timed(call))
    mine = statistics.median(seconds["ours"])
    rows = []
    for name in peers(D, Y, lam, threads):
        theirs = statistics.median(seconds[name]) if name in calls else None
        ratio = theirs / mine if theirs is not None else None
        rows.append(Row(work, name, mine, theirs, ratio, ours_gap, gaps.get(name), notes.get(name, "")))
    return rows


def show(row: Row, count: int) -> str:
    line = f"{row.work:<28} {row.ours_seconds / count * 1e6:>9.1f} {row.ours_gap:>9.1e}  {row.peer:<16}"
    if row.peer_seconds is None or row.ratio is None or row.peer_gap is None:
        return f"{line} {row.note}"
    return f"{line} {row.peer_seconds / count * 1e6:>9.1f} {row.peer_gap:>9.1e} {row.ratio:>7.2f}  {row.note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tenth of the signals")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    # Before NumPy is loaded: idle threads of its linear algebra library would spin beside the solvers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.threads))
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    import numpy as np

    start = time.perf_counter()
    import deep_sparse_coding  # noqa: F401

    library = time.perf_counter() - start
    start = time.perf_counter()
    from deep_sparse_coding.solvers._kernels_dense import solve_batch

    eye = np.eye(2)
    solve_batch(eye, eye, eye, np.ones(2), np.ones(2))
    first = time.perf_counter() - start
    print(f"import of the library and PyTorch: {library:.2f} s")
    print(f"first call (compile the kernels or load them from the cache): {first:.2f} s\n")
    works: dict[str, Callable[[int], tuple[Any, Any]]] = {
        "Gaussian 64×256": lambda n: gaussian(n, 64, 256),
        "Gaussian 256×1024": lambda n: gaussian(n // 4, 256, 1024),
    }
    if installed("skimage") and installed("sklearn"):
        works = {"8×8 patches, 256 learned": lambda n: patches(n, 256), **works}
    else:
        print("8×8 patches: not installed (pip install scikit-image pooch scikit-learn)")
    print(f"{'work':<28} {'ours µs':>9} {'gap':>9}  {'peer':<16} {'peer µs':>9} {'gap':>9} {'ratio':>7}   (a signal)")
    rows: list[Row] = []
    for work, make in works.items():
        D, Y = make(2_000 if options.small else 20_000)
        for row in compare(work, D, Y, options.threads, options.repeats):
            rows.append(row)
            print(show(row, len(Y)), flush=True)
    if options.json:
        facts = {
            "import_seconds": library,
            "first_call_seconds": first,
            "threads": options.threads,
            "python": sys.version,
        }
        options.json.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
