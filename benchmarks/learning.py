"""Learning: objective on held-out data against seconds, beside scikit-learn, SPAMS, SPORCO and alphacsc.

    python benchmarks/learning.py [--small] [--json PATH] [--figures FOLDER] [--only dense conv line memory]

All methods see the same data in one process with one thread; their seconds are processor time, in which evaluating
does not count. A method hands out its atoms now and then, which are scaled to unit norm, and the objective of the
held-out data is computed by this library's certified solver. The level that all are asked for is the lowest that a peer
reached, of its best setting, plus two parts in a thousand. Memory is the peak of a process of its own, less that of its
imports.
Needs scikit-image, and for their rows scikit-learn, spams, sporco and alphacsc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from learning_jobs import Curve, conv_curves, crops, dense_curves, line_curves, photographs


def peak_memory(method: str, small: bool) -> float:
    """Return the peak of a process that learns on one image, less what it held before, in MB."""
    command = [sys.executable, __file__, "--memory-of", method, *(["--small"] if small else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure_memory(method: str, small: bool) -> None:
    """Learn for a short while in this process and print by how many MB its peak rose."""
    import resource

    import numpy as np

    size, atoms = (64, 8) if small else (512, 64)
    rng = np.random.default_rng(0)
    image = crops(size, 1, 0)[0] if small else photographs()[0].astype(np.float32)
    image = (image - image.mean()) / image.std()
    if method == "ours":
        import torch

        from deep_sparse_coding.learning import OnlineLearner

        torch.set_num_threads(1)
        warm = OnlineLearner(4, size=8, lam=1.0, seed=0)
        warm.partial_fit(torch.from_numpy(image[None, None, :64, :64].copy()))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        learner = OnlineLearner(atoms, size=8, lam=1.0, seed=0)
        for _ in range(2):
            learner.partial_fit(torch.from_numpy(image[None, None].copy()))
    else:
        from sporco.dictlrn import cbpdndl, onlinecdl

        start = rng.standard_normal((8, 8, atoms)).astype(np.float32)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if method == "online":
            told: dict[str, Any] = {"Verbose": False, "CBPDN": {"MaxMainIter": 5, "DataType": np.float32}}
            kind = onlinecdl.OnlineConvBPDNDictLearn
            online = kind(start, 1.0, kind.Options(told))
            for _ in range(2):
                online.solve(image)
        else:
            told = {"Verbose": False, "MaxMainIter": 3}
            options = cbpdndl.ConvBPDNDictLearn.Options(told, dmethod="cns")
            cbpdndl.ConvBPDNDictLearn(start, image[..., None], 1.0, options, dmethod="cns").solve()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def draw(job: str, curves: list[Curve], level: float, folder: Path) -> None:
    """Draw the curves of one job."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    names = list(dict.fromkeys(curve.method for curve in curves))
    for curve in curves:
        index = names.index(curve.method)
        style = ("-", "--", ":")[[c.setting for c in curves if c.method == curve.method].index(curve.setting) % 3]
        axes.plot(
            curve.seconds, curve.objective, style, marker=".", color=f"C{index}", lw=2.2 if index == 0 else 1.4,
            label=f"{curve.method}, {curve.setting}".rstrip(", "),
        )  # fmt: skip
    axes.axhline(level, color="0.6", lw=0.8)
    axes.text(
        1.0,
        level,
        "level asked for ",
        color="0.4",
        fontsize=8,
        ha="right",
        va="bottom",
        transform=axes.get_yaxis_transform(),
    )
    axes.set_xscale("log")
    lowest = min(min(curve.objective) for curve in curves)
    axes.set_ylim(
        lowest - 0.05 * (level - lowest) - 0.002 * level,
        min(level + 0.12 * level, 1.005 * max(max(curve.objective) for curve in curves)),
    )
    axes.set_xlabel("processor seconds")
    axes.set_ylabel("held-out objective per sample")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"learning_{job}.png", dpi=130)
    plt.close(figure)


def summarize(job: str, curves: list[Curve]) -> tuple[float, list[dict[str, Any]]]:
    """Return the level, and each method's best time to it."""
    peers = [curve for curve in curves if not curve.method.startswith("deep_sparse_coding")]
    level = 1.002 * min(min(curve.objective) for curve in peers)
    rows = []
    for name in dict.fromkeys(curve.method for curve in curves):
        times = [(t, c.setting) for c in curves if c.method == name and (t := c.time_to(level)) is not None]
        best = min(times, default=(None, ""))
        rows.append({"job": job, "method": name, "seconds": best[0], "setting": best[1]})
        shown = "never" if best[0] is None else f"{best[0]:.2f} s"
        print(f"{job}: {name:<42} to {level:.5g}: {shown:>9}  {best[1]}")
    return level, rows


def main() -> None:
    """Run what is asked for, print and write the numbers, draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--only", nargs="+", default=["dense", "conv", "line", "memory"])
    parser.add_argument("--memory-of", choices=("ours", "online", "batch"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.memory_of:
        measure_memory(options.memory_of, options.small)
        return
    import torch

    torch.set_num_threads(1)
    jobs = {"dense": dense_curves, "conv": conv_curves, "line": line_curves}
    told: dict[str, Any] = {"curves": [], "rows": [], "memory": {}}
    for job in (name for name in jobs if name in options.only):
        print(f"{job}:", flush=True)
        curves = jobs[job](options.small)
        level, rows = summarize(job, curves)
        told["curves"] += [asdict(curve) for curve in curves]
        told["rows"] += rows
        if options.figures:
            draw(job, curves, level, options.figures)
    if "memory" in options.only:
        told["memory"] = {method: peak_memory(method, options.small) for method in ("ours", "online", "batch")}
        print("peak memory in MB beyond imports:", told["memory"])
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
