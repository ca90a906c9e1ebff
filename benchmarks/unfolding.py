"""Error of the codes against steps: ISTA, FISTA, and the trained kinds of `dsc.unfold`, with seeds and spread.

    python benchmarks/unfolding.py [--small] [--seeds 3] [--steps 12] [--json PATH] [--figure unfolding.png]

A Gaussian dictionary (64 × 128), codes with 6 non-zeros (5 %), no noise. The error is the normalized squared error
``Σ‖x - x*‖²/Σ‖x*‖²`` on 1,000 signals that no network has seen. ISTA and FISTA get the lam that is best at every number
of steps, which a user does not know; the networks start from one lam. Shown are the median over the seeds and, in the
figure, their range. Each seed draws the dictionary, the codes, and the order of training anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

LAMS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15)
START = 0.05
RATES = {"lista": 1e-3, "lista-cpss": 2e-3, "alista": 1e-2}
MOST = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one seed, few signals, few epochs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--figure", type=Path, default=Path("unfolding.png"))
    options = parser.parse_args()
    seeds = 1 if options.small else options.seeds
    runs = [run(seed, options.steps, options.small) for seed in range(seeds)]
    table(runs, options.steps)
    if options.json:
        options.json.write_text(json.dumps(runs, indent=1))
    figure(runs, options.steps, options.figure)
    print(f"figure: {options.figure}")


def run(seed: int, steps: int, small: bool) -> dict[str, Any]:
    """Return, for one seed, the errors after every step of every method, and the seconds of training."""
    import torch

    import deep_sparse_coding as dsc
    from deep_sparse_coding.networks.unfolded.build import unfold

    dictionary = dsc.DenseDictionary.random(64, 128, seed=seed)
    test = dsc.sample(dictionary, sparsity=6, batch=1000, seed=1_000_000 + seed)
    train = dsc.sample(dictionary, sparsity=6, batch=4_000 if small else 10_000, seed=2_000_000 + seed)
    truth = test.codes[0]

    def error(codes: Any) -> float:
        return float((codes - truth).square().sum() / truth.square().sum())

    found: dict[str, Any] = {"seconds": {}}
    with torch.no_grad():
        for solver in (dsc.ISTA(), dsc.FISTA()):
            best = [1.0] * (MOST + 1)
            for lam in LAMS:
                form = dsc.Lasso(dictionary, lam).form(test.signal)
                state: Any = solver.init(form, form.zeros(), 0.0)
                for k in range(1, MOST + 1):
                    state = solver.step(form, state)
                    best[k] = min(best[k], error(state.codes[0]))
            found[solver.name] = best
    for method, rate in RATES.items():
        net = unfold(dsc.Lasso(dictionary, START), steps, method=method)
        began = time.process_time()
        net.fit(train, epochs=15 if small else 25, lr=rate, batch_size=100, seed=seed)
        found["seconds"][method] = time.process_time() - began
        with torch.no_grad():
            found[method] = [1.0, *(error(codes) for codes in net.trace(test.signal))]
    return found


def needed(errors: list[float], target: float) -> int | None:
    """Return the first step with an error of at most `target`."""
    return next((k for k, value in enumerate(errors) if value <= target), None)


def table(runs: list[dict[str, Any]], steps: int) -> None:
    print(f"{len(runs)} seed(s), {steps} steps, best lam of {LAMS} at every step for ISTA and FISTA")
    print(f"{'':>12} {'error':>10} {'ISTA steps':>11} {'FISTA steps':>12} {'training':>10}")
    for method in ("ISTA", "FISTA", *RATES):
        value = statistics.median(run[method][steps] for run in runs)
        cells = []
        for other in ("ISTA", "FISTA"):
            counts = [needed(run[other], run[method][steps]) for run in runs]
            known = [MOST + 1 if count is None else count for count in counts]
            middle = statistics.median(known)
            cells.append(f"> {MOST}" if middle > MOST else f"{middle:g}")
        seconds = statistics.median(run["seconds"].get(method, 0.0) for run in runs)
        print(f"{method:>12} {value:>10.2e} {cells[0]:>11} {cells[1]:>12} {seconds:>8.0f} s")


def figure(runs: list[dict[str, Any]], steps: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from deep_sparse_coding import _drawing

    palette = (_drawing.MUTED, _drawing.INK, _drawing.GREEN, _drawing.ORANGE, _drawing.BLUE)
    colors = dict(zip(("ISTA", "FISTA", *RATES), palette, strict=True))
    with _drawing.style():
        drawn, axes = plt.subplots(figsize=(6.4, 3.8), facecolor="white")
        for method, color in colors.items():
            length = 10 * steps if method in ("ISTA", "FISTA") else steps
            rows = [run[method][1 : length + 1] for run in runs]
            middle = [statistics.median(column) for column in zip(*rows, strict=True)]
            across = range(1, len(middle) + 1)
            axes.plot(across, middle, color=color, label=method)
            low, high = ([pick(column) for column in zip(*rows, strict=True)] for pick in (min, max))
            axes.fill_between(across, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="‖x - x*‖² / ‖x*‖²")
        axes.set_xticks([1, 3, steps, 5 * steps, 10 * steps], [str(k) for k in (1, 3, steps, 5 * steps, 10 * steps)])
        axes.set_title("Codes of sparse signals: trained steps against steps of a solver")
        axes.legend(frameon=False)
        drawn.tight_layout()
        drawn.savefig(path, dpi=150)
        plt.close(drawn)


if __name__ == "__main__":
    main()
