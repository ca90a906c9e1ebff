"""``theory-unfolding``: what a few trained steps reach, against the steps of ISTA and FISTA."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ... import FISTA, ISTA, DenseDictionary, Lasso, sample, unfold
from ..experiment import Experiment, Measure, Part, Run
from ..figures import BLUE, GREEN, INK, MUTED, ORANGE, line_with_range, new_figure, save_figure, style
from ..store import Record

_SOLVERS = ("ISTA", "FISTA")
_RATES = MappingProxyType({"lista": 1e-3, "lista-cpss": 2e-3, "alista": 1e-2})
SETTINGS = (*_SOLVERS, *_RATES)


@dataclass(frozen=True)
class UnfoldingConfig:
    """The dictionary, the codes, and the training.

    Attributes:
        d: Length of a signal.
        atoms: Atoms of the Gaussian dictionary.
        sparsity: Non-zeros of a code.
        steps: Steps of the networks.
        most: Steps of the solvers.
        lams: The weights among which the solvers get the best, at every number of steps.
        start: The weight that the networks start from.
        signals: Signals that are trained on.
        test: Signals that errors are measured on.
        epochs: Passes over the signals.
    """

    d: int = 64
    atoms: int = 128
    sparsity: int = 6
    steps: int = 12
    most: int = 400
    lams: tuple[float, ...] = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15)
    start: float = 0.05
    signals: int = 10_000
    test: int = 1000
    epochs: int = 25


def run_unfolding(config: UnfoldingConfig, run: Run) -> Mapping[str, Any]:
    """Return the error after every step of every method and seed, and how many steps ISTA takes for the same."""
    runs = run.each(SETTINGS, lambda part: _measure(config, part))
    ista = {part["seed"]: part["errors"] for part in runs if part["setting"] == "ISTA"}
    for part in runs:
        reached = part["errors"][config.steps]
        # Where ISTA does not get there, its last step: a lower bound of what it would take.
        counts = (k for k, error in enumerate(ista[part["seed"]]) if error <= reached)
        part["measures"]["ista_steps"] = next(counts, config.most)
    return {"runs": runs, "steps": config.steps}


def _measure(config: UnfoldingConfig, part: Part) -> Mapping[str, Any]:
    dictionary = DenseDictionary.random(config.d, config.atoms, seed=part.seed)
    test = sample(dictionary, sparsity=config.sparsity, batch=config.test, seed=1_000_000 + part.seed)
    if part.setting in _SOLVERS:
        errors = _of_solver(config, part.setting, dictionary, test.signal, test.codes[0])
    else:
        train = sample(dictionary, sparsity=config.sparsity, batch=config.signals, seed=2_000_000 + part.seed)
        net = unfold(Lasso(dictionary, config.start), config.steps, method=part.setting)
        net.fit(train, epochs=config.epochs, lr=_RATES[part.setting], batch_size=100, seed=part.seed)
        with torch.no_grad():
            errors = [1.0, *(_error(codes, test.codes[0]) for codes in net.trace(test.signal))]
    return {"errors": errors, "measures": {"decibel": 10 * math.log10(errors[config.steps])}}


def _of_solver(
    config: UnfoldingConfig, name: str, dictionary: DenseDictionary, signal: Tensor, truth: Tensor
) -> list[float]:
    """Return the error after every step, each with the weight that is best for it."""
    solver = ISTA() if name == "ISTA" else FISTA()
    best = [1.0] * (config.most + 1)
    for lam in config.lams:
        form = Lasso(dictionary, lam).form(signal)
        state: Any = solver.init(form, form.zeros(), 0.0)
        for k in range(1, config.most + 1):
            state = solver.step(form, state)
            best[k] = min(best[k], _error(state.codes[0], truth))
    return best


def _error(codes: Any, truth: Tensor) -> float:
    return float((codes - truth).square().sum() / truth.square().sum())


def draw_unfolding(record: Record, folder: Path) -> list[Path]:
    """Draw the error against steps, solvers as far as ten times the networks' steps."""
    steps = record.results["steps"]
    colors = dict(zip(SETTINGS, (MUTED, INK, GREEN, ORANGE, BLUE), strict=True))
    with style():
        figure = new_figure(7.6, 4.4)
        axes = figure.add_subplot()
        for setting, color in colors.items():
            length = 10 * steps if setting in _SOLVERS else steps
            rows = [part["errors"][1 : length + 1] for part in record.runs if part["setting"] == setting]
            across = list(range(1, len(rows[0]) + 1))
            line_with_range(axes, across, rows, color, setting, dashed=setting in _SOLVERS)
        axes.set(xscale="log", yscale="log")
        ticks = [1, 2, 4, steps, 2 * steps, 5 * steps, 10 * steps]
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.set_xlabel("steps")
        axes.set_ylabel("‖x − x*‖² / ‖x*‖²  on signals not trained on")
        axes.set_title(f"Trained steps against steps of a solver with the best λ at every step ({steps} trained)")
        axes.legend(frameon=False)
        return [save_figure(figure, folder / "theory_unfolding.png", record)]


UNFOLDING = Experiment(
    name="theory-unfolding",
    title="trained steps against steps of ISTA and FISTA",
    source="N11 of docs/theory.md",
    presets=MappingProxyType(
        {
            "smoke": UnfoldingConfig(
                d=16, atoms=24, sparsity=2, steps=4, most=40, lams=(0.05, 0.1), signals=400, test=100, epochs=2
            ),
            "cpu": UnfoldingConfig(),
        }
    ),
    run=run_unfolding,
    draw=draw_unfolding,
    measures=(
        Measure("decibel", "error after the trained steps, dB", 1, "lower"),
        Measure("ista_steps", "steps of ISTA for the same, at least", 0, "higher"),
    ),
    settings=lambda config: SETTINGS,
)
