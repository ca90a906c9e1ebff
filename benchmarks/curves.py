"""Gap against seconds, for ours, FISTA, ADMM, and peers that can be stopped on the way: one figure per problem class.

    python benchmarks/curves.py [--small] [--only dense,conv,joint] [--json DIR] [--images DIR] [--again]

A point is a whole run with one setting (a tolerance, or a number of steps), the best of ``--repeats``: its seconds, and
its relative gap (dense, joint: the largest of the batch) or excess over the least known objective (convolutional),
recomputed in float64 outside. All runs of one setting are made in turns with the other methods'. A method ends when it
is below the floor, or takes longer than ``--longest`` seconds, and a class after ``--minutes``. JSON that is there
already is only drawn again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from racing import installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = dict[str, list[tuple[float, float]]]
# Setting → answer; the second call gives the error of an answer.
Runner = Callable[[Any], Any]
Lines = dict[str, tuple[tuple[Any, ...], Runner, Callable[[Any], float]]]

STEPS = (5, 10, 20, 40, 80, 160, 320, 640, 1280)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def with_steps(problem: Any, signal: Any, solver: Any) -> Runner:
    """Return what runs a solver for a number of steps."""
    import deep_sparse_coding as dsc

    return lambda steps: dsc.solve(problem, signal, solver, tol=1e-12, max_steps=steps).codes


def with_tol(problem: Any, signal: Any, solver: Any = None) -> Runner:
    """Return what runs a solver (None: the one that `solve` chooses) to a tolerance."""
    import deep_sparse_coding as dsc

    return lambda tol: dsc.solve(problem, signal, solver, tol=tol).codes


def dense(small: bool, threads: int) -> tuple[str, str, Lines]:
    """Gaussian signals 64×256: problem, what the vertical axis shows, methods."""
    import dense_lasso
    import numpy as np
    import torch

    import deep_sparse_coding as dsc

    count = 200 if small else 2_000
    real = installed("skimage") and installed("sklearn")
    D, Y = dense_lasso.patches(max(count, 2_000), 256) if real else dense_lasso.gaussian(count, 64, 256)
    Y = np.ascontiguousarray(Y[:count])
    lam = 0.1 * float(np.abs(Y @ D).max(1).mean())
    problem, signal = dsc.Lasso(dsc.DenseDictionary(torch.from_numpy(D)), lam), torch.from_numpy(Y)

    def gap(codes: Any) -> float:
        codes = codes.numpy() if isinstance(codes, torch.Tensor) else dense_lasso.dense(codes)
        return dense_lasso.largest_gap(D, Y, codes, lam)

    lines: Lines = {
        "this library": (TOLERANCES, with_tol(problem, signal), gap),
        "FISTA": (STEPS, with_steps(problem, signal, dsc.FISTA()), gap),
        "ADMM": (STEPS, with_steps(problem, signal, dsc.ADMM()), gap),
    }
    if installed("spams"):
        import scipy.sparse
        import spams

        DF, YF = np.asfortranarray(D), np.asfortranarray(Y.T)
        zero = scipy.sparse.csc_matrix((D.shape[1], len(Y)))
        options: dict[str, Any] = {"lambda1": lam, "mode": 2, "numThreads": threads}
        lines["SPAMS LARS"] = (("exact",), lambda _: spams.lasso(YF, DF, **options).T, gap)
        descent: Runner = lambda n: spams.cd(YF, DF, zero, itermax=n, tol=1e-12, **options).T  # noqa: E731
        lines["SPAMS CD"] = (STEPS, descent, gap)
    if installed("sklearn"):
        from sklearn.linear_model import Lasso

        def sklearn(steps: int) -> Any:
            model = Lasso(alpha=lam / len(D), fit_intercept=False, precompute=True, tol=0.0, max_iter=steps)
            return model.fit(D, Y.T).coef_

        lines["scikit-learn CD"] = (STEPS, sklearn, gap)
    kind = "8×8 patches" if real else "Gaussian signals"
    return f"{count:,} {kind}, 256 atoms, lam 0.1 mean max|Dᵀy|", "largest relative gap", lines


def conv(small: bool, threads: int) -> tuple[str, str, Lines]:
    """One photograph; `threads` is what PyTorch has been told already."""
    import numpy as np
    import torch
    from conv_lasso import learned_kernels, objective, photographs, sporco, sporco_codes

    import deep_sparse_coding as dsc

    del threads
    size, atoms, lam = (64, 8, 0.05) if small else (256, 32, 0.05)
    image = photographs(max(size, 128))[1][-size:, -size:].copy()
    kernels = learned_kernels(photographs(128 if small else size), atoms, 8)
    kernels = (kernels / np.sqrt((kernels**2).sum((1, 2), keepdims=True))).astype(np.float32)

    def parts(dtype: Any) -> tuple[Any, Any]:
        dictionary = dsc.ConvDictionary(torch.from_numpy(kernels).to(dtype)[:, None], boundary="circular")
        return dsc.Lasso(dictionary, lam), torch.from_numpy(image).to(dtype)[None]

    problem, signal = parts(torch.float32)
    exact: Any = dsc.solve(*parts(torch.float64), dsc.ConvCoordinateDescent(), tol=1e-8).codes
    best = objective(kernels, image, exact.numpy(), lam)

    def excess(codes: Any) -> float:
        return objective(kernels, image, codes.numpy(), lam) / best - 1

    lines: Lines = {
        "this library": (TOLERANCES[:6], with_tol(problem, signal, dsc.ConvCoordinateDescent()), excess),
        "FISTA": (STEPS[:8], with_steps(problem, signal, dsc.FISTA()), excess),
        "ADMM": (STEPS[:7], with_steps(problem, signal, dsc.ADMM()), excess),
    }
    if installed("sporco"):
        run: Runner = lambda n: sporco(kernels, image, lam, 10 * lam, True, n)  # noqa: E731
        error: Runner = lambda solver: objective(kernels, image, sporco_codes(solver), lam) / best - 1  # noqa: E731
        lines["SPORCO ADMM"] = (STEPS[:7], run, error)
    return f"photograph {size}², {atoms} kernels 8×8, lam {lam}", "objective over the least, less 1", lines


def joint(small: bool, threads: int) -> tuple[str, str, Lines]:
    """Two dense layers as one problem."""
    import joint_lasso

    import deep_sparse_coding as dsc

    name, problem, signal = joint_lasso.dense(small, (0.1, 0.1), 1.0)

    def gap(codes: Any) -> float:
        return joint_lasso.joint_gap(problem, signal, codes)

    lines: Lines = {
        "this library": (TOLERANCES, with_tol(problem, signal), gap),
        "FISTA": (STEPS, with_steps(problem, signal, dsc.FISTA()), gap),
        "FISTA, no restart": (STEPS, with_steps(problem, signal, dsc.FISTA(restart=False)), gap),
    }
    if installed("spams"):
        run, codes = joint_lasso.lars(problem, signal, threads)
        lines["SPAMS LARS"] = (("exact",), lambda _: run(), lambda answer: gap(codes(answer)))
    return f"joint, {name}", "largest relative gap", lines


CLASSES = {"dense": dense, "conv": conv, "joint": joint}


def measure(lines: Lines, repeats: int, floor: float, longest: float, minutes: float) -> Points:
    """Return (seconds, error) of every method's settings, methods in turns; each is run once before, untimed."""
    points: Points = {name: [] for name in lines}
    alive = dict.fromkeys(lines, True)
    limit = time.monotonic() + 60 * minutes
    for settings, run, _ in lines.values():
        run(settings[0])
    for index in range(max(len(settings) for settings, _, _ in lines.values())):
        if time.monotonic() > limit:
            break
        taken = {name: line for name, line in lines.items() if alive[name] and index < len(line[0])}
        best: dict[str, float] = {}
        errors: dict[str, float] = {}
        for turn in range(repeats):
            for name, (settings, run, error) in taken.items():
                # What takes long is known well enough from one run.
                if turn and (best[name] > longest / 5 or time.monotonic() > limit):
                    continue
                start = time.perf_counter()
                answer = run(settings[index])
                seconds = time.perf_counter() - start
                best[name] = min(seconds, best.get(name, seconds))
                if not turn:
                    errors[name] = error(answer)
        for name in taken:
            points[name].append((best[name], max(errors[name], floor)))
            alive[name] = errors[name] > floor and best[name] < longest
    return points


def draw(title: str, label: str, points: Points) -> Figure:
    """Draw error against seconds, both logarithmic, each line named at its end."""
    from deep_sparse_coding._drawing import BLUE, GREEN, INK, MUTED, ORANGE, new_figure, style

    colors = (BLUE, ORANGE, GREEN, MUTED, INK, "#8a5a9e")
    with style():
        figure = new_figure(6.4, 3.9)
        axes = figure.add_subplot()
        for index, (name, seen) in enumerate(points.items()):
            color, ours = colors[index % len(colors)], index == 0
            seconds, errors = zip(*seen, strict=True)
            marker = "o" if len(seen) > 1 else "D"
            axes.plot(seconds, errors, marker=marker, ms=4, color=color, lw=2.4 if ours else 1.4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("seconds")
        axes.set_ylabel(label)
        axes.set_title(title)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=INK)
        return figure


def save(figure: Figure, target: Path) -> None:
    """Write a figure as a PNG on white, since pages show it on grounds of any color."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small problems, to see that all runs")
    parser.add_argument("--only", default=",".join(CLASSES), help="some of the problem classes")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks"), help="folder of the results")
    parser.add_argument("--images", type=Path, default=Path("docs/images"), help="folder of the figures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--longest", type=float, default=4.0, help="seconds after which a method ends")
    parser.add_argument("--minutes", type=float, default=1.5, help="the most that a class may take, about")
    parser.add_argument("--again", action="store_true", help="measure again what is in the folder already")
    options = parser.parse_args()
    # Before NumPy is loaded: idle threads of its linear algebra library would spin beside the solvers.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(options.threads))
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    os.environ.setdefault("NUMBA_NUM_THREADS", str(options.threads))
    names = [name.strip() for name in options.only.split(",")]
    if unknown := [name for name in names if name not in CLASSES]:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(CLASSES)}")
    import torch

    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    options.json.mkdir(parents=True, exist_ok=True)
    for name in names:
        target = options.json / f"curves-{name}{'-small' if options.small else ''}.json"
        if options.again or not target.exists():
            title, label, lines = CLASSES[name](options.small, options.threads)
            floor = 1e-10 if name == "dense" else 1e-8
            points = measure(lines, options.repeats, floor, options.longest, options.minutes)
            facts = {"title": title, "label": label, "threads": options.threads, "points": points}
            target.write_text(json.dumps(facts, indent=1, ensure_ascii=False))
        found = json.loads(target.read_text())
        picture = options.images / f"gap_{name}{'_small' if options.small else ''}.png"
        save(draw(found["title"], found["label"], found["points"]), picture)
        print(f"{picture}")
        for method, seen in found["points"].items():
            print(f"  {method:<18} " + "  ".join(f"{seconds:.3g} s {error:.0e}" for seconds, error in seen), flush=True)


if __name__ == "__main__":
    main()
