"""Convolutional Lasso: the compiled solver against SPORCO's ADMM, alphacsc and this library's FISTA.

    python benchmarks/conv_lasso.py [--small] [--large] [--json PATH] [--threads 2] [--repeats 5]

Photographs (two of scikit-learn, three crops), high-passed; float32. SPORCO solves the circular problem, so all do:
``boundary="circular"`` with the same kernels. The reference is our solver at a relative gap of 1e-8 in float64. Each
method gets the loosest setting of a list whose objective, computed here in float64 by FFT, exceeds the best known one
by at most 1e-4 of it: for us a tolerance (every time includes all certificates), for SPORCO a number of iterations at
the best rho of a sweep (automatic adaptation on and off), for FISTA a number of steps. Settings are found before the
timing; the timed runs are interleaved in one process and medians shown, in seconds and in seconds of CPU time.

alphacsc codes time series only, so it gets one: the rows of a photograph, one after the other, under kernels of 64
entries and boundary "valid", at the loosest tolerance of a list that reaches the same excess.
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
from functools import partial
from pathlib import Path
from typing import Any

EXCESS = 1e-4
TOLERANCES = (1e-1, 7e-2, 5e-2, 3e-2, 2e-2, 1e-2, 3e-3, 1e-3, 1e-4)
Solve = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One comparison; seconds are medians, ratios the peer's over ours."""

    work: str
    peer: str
    setting: str
    seconds: float | None
    cpu_seconds: float | None
    excess: float | None
    ratio: float | None
    cpu_ratio: float | None
    note: str = ""


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def high_pass(image: Any, strength: float = 5.0) -> Any:
    """The image less its Tikhonov low-pass, ``(1 + strength·ΔᵀΔ)⁻¹``, on a symmetric extension by 16 pixels."""
    import numpy as np

    wide = np.pad(image, 16, "symmetric")
    rows, columns = (2 - 2 * np.cos(2 * np.pi * np.arange(n) / n) for n in wide.shape)
    low = np.fft.ifft2(np.fft.fft2(wide) / (1 + strength * (rows[:, None] + columns[None]))).real
    return (wide - low)[16:-16, 16:-16]


def photographs(size: int) -> list[Any]:
    from sklearn.datasets import load_sample_image

    china, flower = (load_sample_image(name).mean(2) / 255 for name in ("china.jpg", "flower.jpg"))
    crops = [china[:size, :size], china[-size:, -size:], flower[-size:, 100 : 100 + size]]
    return [high_pass(crop).astype("float32") for crop in crops]


def camera() -> Any:
    """The photograph of 512² that scikit-image ships, high-passed."""
    from skimage.data import camera as photograph

    return high_pass(photograph() / 255).astype("float32")


def learned_kernels(images: list[Any], atoms: int, k: int) -> Any:
    """Centers of the strongest patches: kernels as sparse coding finds them, and as fast."""
    import numpy as np
    from sklearn.cluster import MiniBatchKMeans

    rng = np.random.default_rng(0)
    every = np.concatenate([np.lib.stride_tricks.sliding_window_view(im, (k, k)).reshape(-1, k * k) for im in images])
    chosen = every[rng.choice(len(every), 12_000, replace=False)]
    chosen = chosen[np.argsort(-(chosen**2).sum(1))[:6000]]
    chosen = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
    options: dict[str, Any] = {"random_state": 0, "n_init": 1}
    centers = MiniBatchKMeans(atoms, **options).fit(chosen).cluster_centers_
    return np.asarray(centers).reshape(atoms, k, k)


def random_kernels(atoms: int, k: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).standard_normal((atoms, k, k))


def objective(kernels: Any, image: Any, codes: Any, lam: float) -> float:
    """``½‖y - Σ d * x‖² + lam‖x‖₁`` on the ring, in float64; codes ``(atoms, H, W)``."""
    import numpy as np

    total = np.fft.rfft2(image.astype(np.float64))
    for kernel, code in zip(kernels, codes, strict=True):
        total -= np.fft.rfft2(kernel.astype(np.float64), image.shape) * np.fft.rfft2(code.astype(np.float64))
    residual = np.fft.irfft2(total, image.shape)
    return 0.5 * float((residual**2).sum()) + lam * float(np.abs(codes).sum(dtype=np.float64))


def sporco(kernels: Any, image: Any, lam: float, rho: float, auto: bool, steps: int) -> Any:
    """Return a solver object, run for some iterations."""
    import numpy as np
    from sporco.admm import cbpdn

    options = {
        "Verbose": False,
        "MaxMainIter": steps,
        "RelStopTol": 1e-12,
        "DataType": np.float32,
        "rho": rho,
        "AutoRho": {"Enabled": auto},
        "FastSolve": True,
    }
    filters = np.ascontiguousarray(kernels.transpose(1, 2, 0))
    solver = cbpdn.ConvBPDN(filters, image, lam, cbpdn.ConvBPDN.Options(options))
    solver.solve()
    return solver


def sporco_codes(solver: Any) -> Any:
    import numpy as np

    return np.moveaxis(np.asarray(solver.getcoef()).squeeze(), -1, 0)


def best_sporco(kernels: Any, image: Any, lam: float, target: float, limit: int) -> tuple[str, Solve | None]:
    """Return the setting of rho (a sweep) that reaches the target objective in the fewest iterations, and its call."""
    found: tuple[int, float, bool] | None = None
    for auto in (True, False):
        for rho in (1.0, 3.0, 10.0, 30.0, 100.0):
            solver = sporco(kernels, image, lam, lam * rho, auto, 1)
            most = limit if found is None else found[0] - 1
            solver.opt["MaxMainIter"] = step = 10
            done = 1
            while done < most:
                solver.opt["MaxMainIter"] = min(step, most - done)
                solver.solve()
                done += min(step, most - done)
                if objective(kernels, image, sporco_codes(solver), lam) <= target:
                    found = (done, lam * rho, auto)
                    break
    if found is None:
        return f"> {limit} iterations", None
    steps, rho, auto = found
    name = f"rho {rho:g}{' auto' if auto else ''}, {steps} it."
    return name, lambda: sporco_codes(sporco(kernels, image, lam, rho, auto, steps))


def library(kernels: Any, image: Any, lam: float, solver: Any, tol: float, steps: int) -> Any:
    import torch

    import deep_sparse_coding as dsc

    dictionary = dsc.ConvDictionary(torch.from_numpy(kernels)[:, None], boundary="circular")
    problem = dsc.Lasso(dictionary, lam)
    signal = torch.from_numpy(image)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dsc.solve(problem, signal, solver, tol=tol, max_steps=steps)


def alphacsc(kernels: Any, series: Any, lam: float, tol: float) -> Any:
    """Return the codes ``(atoms, positions)`` of a series by locally greedy coordinate descent."""
    from alphacsc.update_z_multi import update_z_multi

    options = {"tol": tol, "max_iter": 10**9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes, _, _ = update_z_multi(
            series[None, None], kernels[:, None], lam, solver="lgcd", solver_kwargs=options, positive=False
        )
    return codes[0]


def series_objective(kernels: Any, series: Any, codes: Any, lam: float) -> float:
    """``½‖y - Σ d * x‖² + lam‖x‖₁`` on a line, in float64."""
    import numpy as np

    total = series.astype(np.float64)
    for kernel, code in zip(kernels, codes, strict=True):
        total = total - np.convolve(code.astype(np.float64), kernel.astype(np.float64))
    return 0.5 * float((total**2).sum()) + lam * float(np.abs(codes).sum(dtype=np.float64))


def compare_series(work: str, kernels: Any, series: Any, lam: float, repeats: int) -> list[Row]:
    """Compare on a time series; both work in float64, as alphacsc does."""
    import torch

    import deep_sparse_coding as dsc

    dictionary = dsc.ConvDictionary(torch.from_numpy(kernels)[:, None])
    problem, signal = dsc.Lasso(dictionary, lam), torch.from_numpy(series)[None]

    def value(codes: Any) -> float:
        return series_objective(kernels, series, codes, lam)

    def answer(tol: float) -> Solve:
        def call() -> Any:
            codes: Any = dsc.solve(problem, signal, dsc.ConvCoordinateDescent(), tol=tol).codes
            return codes.numpy()

        return call

    best = value(answer(1e-8)())
    target = best * (1 + EXCESS)
    found = {"ours": loosest({f"tol {t:g}": answer(t) for t in TOLERANCES}, value, target)}
    notes = {}
    if installed("alphacsc"):
        calls = {f"tol {t:g}": partial(alphacsc, kernels, series, lam, t * lam) for t in (0.3, 0.1, 0.03, 0.01, 1e-3)}
        found["alphacsc LGCD"] = loosest(calls, value, target)
    else:
        notes["alphacsc LGCD"] = "not installed (pip install alphacsc)"
    return measure(work, found, notes, value, best, repeats, ("ours", "alphacsc LGCD"))


def loosest(calls: dict[str, Solve], value: Callable[[Any], float], target: float) -> tuple[str, Solve | None]:
    """Return the first call whose answer's objective is at most the target."""
    for name, call in calls.items():
        if value(call()) <= target:
            return name, call
    return f"beyond {list(calls)[-1]}", None


def timed(call: Solve) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(work: str, kernels: Any, image: Any, lam: float, repeats: int, limit: int) -> list[Row]:
    import numpy as np

    import deep_sparse_coding as dsc

    kernels = kernels / np.sqrt((kernels**2).sum((1, 2), keepdims=True))
    exact, wide = kernels.astype(np.float32).astype(np.float64), image.astype(np.float64)
    kernels = kernels.astype(np.float32)

    def value(codes: Any) -> float:
        return objective(kernels, image, codes, lam)

    def answer(solver: Any, tol: float, steps: int) -> Solve:
        return lambda: library(kernels, image, lam, solver, tol, steps).codes[0 : len(kernels)].numpy()

    ours = dsc.ConvCoordinateDescent()
    best = value(library(exact, wide, lam, ours, 1e-8, 10_000).codes.numpy())
    target = best * (1 + EXCESS)
    found = {"ours": loosest({f"tol {t:g}": answer(ours, t, 10_000) for t in TOLERANCES}, value, target)}
    fista = {f"{n} steps": answer(dsc.FISTA(), 1e-12, n) for n in (100, 200, 400, 800) if n <= 4 * limit}
    found["FISTA"] = loosest(fista, value, target)
    notes = {}
    if installed("sporco"):
        found["SPORCO ADMM"] = best_sporco(kernels, image, lam, target, limit)
    else:
        notes["SPORCO ADMM"] = "not installed (pip install sporco)"
    return measure(work, found, notes, value, best, repeats, ("ours", "FISTA", "SPORCO ADMM"))


def measure(
    work: str,
    found: dict[str, tuple[str, Solve | None]],
    notes: dict[str, str],
    value: Callable[[Any], float],
    best: float,
    repeats: int,
    names: tuple[str, ...],
) -> list[Row]:
    """Time the settings that were found, in turns, and return a row for every method."""
    runs = {name: call for name, (_, call) in found.items() if call is not None}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, call in runs.items():
            times[name].append(timed(call))
    wall = {name: statistics.median(t[0] for t in seen) for name, seen in times.items()}
    cpu = {name: statistics.median(t[1] for t in seen) for name, seen in times.items()}
    rows = []
    for name in names:
        setting = found[name][0] if name in found else ""
        excess = value(runs[name]()) / best - 1 if name in runs else None
        ratio, cpu_ratio = (t[name] / t["ours"] if name in runs and "ours" in runs else None for t in (wall, cpu))
        note = notes.get(name, "")
        rows.append(Row(work, name, setting, wall.get(name), cpu.get(name), excess, ratio, cpu_ratio, note))
    return rows


def show(row: Row) -> str:
    line = f"{row.work:<26} {row.peer:<12} {row.setting:<26}"
    if row.seconds is None or row.cpu_seconds is None or row.excess is None or row.ratio is None:
        return f"{line} {row.note}"
    return (
        f"{line} {row.seconds:>8.3f} {row.cpu_seconds:>8.3f} {row.excess:>9.1e} {row.ratio:>8.1f} {row.cpu_ratio:>8.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one photograph of 128², 16 kernels")
    parser.add_argument("--large", action="store_true", help="also 512² (400² without scikit-image), 64 kernels")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, default=300, help="most iterations of SPORCO")
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.threads))
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    import numpy as np
    import torch

    torch.set_num_threads(options.threads)
    if not installed("sklearn"):
        sys.exit("the photographs need scikit-learn (pip install scikit-learn pillow)")
    start = time.perf_counter()
    from deep_sparse_coding.solvers._kernels_conv import Picture, solve_images

    for kind, tol in (("float32", 1e-2), ("float64", 1e-6)):
        shapes = ((1, 1, 2, 2), (1, 1, 9, 9), (1, 1, 1, 1), (1, 1, 8, 8))
        kernels, image, weight, codes = (
            np.full(shape, i, kind) for shape, i in zip(shapes, (1, 1, 0.1, 0), strict=True)
        )
        solve_images(Picture(kernels, image, weight, codes), tol=tol)
    first = time.perf_counter() - start
    print(f"first call (import, compile or load from the cache): {first:.2f} s\n")
    size, atoms = (128, 16) if options.small else (256, 32)
    images = photographs(size)
    kinds = {"learned": learned_kernels(images, atoms, 8), "random": random_kernels(atoms, 8)}
    works = [
        (f"{size}² #{i + 1} {kind} lam {lam}", kernels, image, lam)
        for lam in (0.2, 0.05, 0.01)
        for kind, kernels in kinds.items()
        for i, image in enumerate(images[: 1 if options.small else 3])
    ]
    if options.large:
        big = [camera()] if installed("skimage") else photographs(400)[:1]
        many = learned_kernels(big, 64, 8)
        works += [(f"{len(big[0])}² 64 learned lam {lam}", many, big[0], lam) for lam in (0.2, 0.05)]
    print(
        f"{'work':<26} {'method':<12} {'setting':<26} {'seconds':>8} {'CPU':>8} {'excess':>9} {'ratio':>8} {'CPU':>8}"
    )
    rows: list[Row] = []
    for work, kernels, image, lam in works:
        for row in compare(work, kernels, image, lam, options.repeats, options.limit):
            rows.append(row)
            print(show(row), flush=True)
    if not options.small:
        line = images[0].astype(np.float64).reshape(-1)
        windows = np.random.default_rng(0).choice(len(line) - 64, 4000, replace=False)
        strong = sorted((line[i : i + 64] for i in windows), key=lambda part: -float(part @ part))[:8]
        series = np.stack([part / np.linalg.norm(part) for part in strong])
        for row in compare_series("65,536 in line, lam 0.2", series, line, 0.2, options.repeats):
            rows.append(row)
            print(show(row), flush=True)
    if options.json:
        facts = {"first_call_seconds": first, "threads": options.threads, "python": sys.version}
        options.json.write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1))


if __name__ == "__main__":
    main()
