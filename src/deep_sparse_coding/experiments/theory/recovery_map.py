"""``theory-map``: for which coherence and sparsity the theory holds, and where codes are recovered in fact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ... import DenseDictionary, Lasso, prove, sample, solve
from ..experiment import Experiment, Measure, Part, Run
from ..figures import INK, MUTED, ORANGE, new_figure, save_figure, style
from ..store import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is proved, by the name of its limit: the largest sparsity for which it holds.
LIMITS = {
    "coherence": "(2s − 1)μ < 1",
    "uniqueness": "G1, G2: Babel form",
    "convergence": "N1: ρ < 1",
}


@dataclass(frozen=True)
class MapConfig:
    """The grid of the map, and how codes are recovered.

    Attributes:
        atoms: Atoms of every dictionary.
        lengths: Lengths of the signal; each is a dictionary of low coherence, a column of the map.
        most: The largest sparsity.
        signals: Signals per dictionary and sparsity.
        lam: The weight of the Lasso that stands for basis pursuit.
        error: Codes within this of the truth (in the largest entry, of 0.5 to 1) are recovered.
    """

    atoms: int = 128
    lengths: tuple[int, ...] = (16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112)
    most: int = 40
    signals: int = 100
    lam: float = 1e-3
    error: float = 0.05


def run_map(config: MapConfig, run: Run) -> Mapping[str, Any]:
    """Return the map's columns, one per length and seed."""
    return {"runs": run.each(_settings(config), lambda part: _measure(config, part)), "atoms": config.atoms}


def _settings(config: MapConfig) -> tuple[str, ...]:
    return tuple(f"d={d}" for d in config.lengths)


def _measure(config: MapConfig, part: Part) -> Mapping[str, Any]:
    d = int(part.setting.removeprefix("d="))
    dictionary = DenseDictionary.low_coherence(d, config.atoms, seed=part.seed, dtype=torch.float64)
    rates, recovered = [], []
    limits = dict.fromkeys((*LIMITS, "fact"), 0)
    for s in range(1, config.most + 1):
        converges = prove.convergence(dictionary, s, steps=1)
        rates.append(converges.bounds["layer 1: ρ"])
        held = {
            # The weakest form comes last.
            "coherence": converges.conditions[-1].holds,
            "uniqueness": prove.uniqueness(dictionary, s).proved and prove.equivalence(dictionary, s).proved,
            "convergence": converges.proved,
        }
        recovered.append(_recovered(config, dictionary, s, part.seed))
        held["fact"] = recovered[-1] >= 0.95
        for name, holds in held.items():
            # What holds for s holds for less; a lucky draw beyond a failure does not count.
            if holds and limits[name] == s - 1:
                limits[name] = s
        part.advance(s / config.most)
    return {
        "coherence": dictionary.mutual_coherence(),
        "rates": rates,
        "recovered": recovered,
        "measures": {"mu": dictionary.mutual_coherence(), **limits},
    }


def _recovered(config: MapConfig, dictionary: DenseDictionary, s: int, seed: int) -> float:
    """Return the share of random codes with s non-zeros that the Lasso finds."""
    drawn = sample(dictionary, sparsity=s, batch=config.signals, seed=1000 * seed + s)
    found = solve(Lasso(dictionary, lam=config.lam), drawn.signal, tol=1e-7, on_failure="ignore").codes
    assert isinstance(found, torch.Tensor)
    return float(((found - drawn.codes[0]).abs().amax(1) < config.error).double().mean())


def draw_map(record: Record, folder: Path) -> list[Path]:
    """Draw the share that is recovered, and ρ, over coherence and sparsity, with the limits of what is proved."""
    settings = record.settings
    mean = {name: [float(np.mean(list(record.values(s, name).values()))) for s in settings] for name in ("mu", *LIMITS)}
    fields = {
        key: np.asarray([np.mean([run[key] for run in record.runs if run["setting"] == s], axis=0) for s in settings]).T
        for key in ("recovered", "rates")
    }
    sparsity = np.arange(1, len(fields["rates"]) + 1)
    with style():
        figure = new_figure(10.0, 4.4)
        left, right = figure.subplots(1, 2, sharey=True)
        shown = left.pcolormesh(mean["mu"], sparsity, 100 * fields["recovered"], cmap="Blues", vmin=0, vmax=100)
        figure.colorbar(shown, ax=left, label="recovered by the Lasso, %", pad=0.02).outline.set_visible(False)
        left.set_title("In fact: random codes that are found")
        shown = right.pcolormesh(mean["mu"], sparsity, fields["rates"].clip(None, 4), cmap="PuOr_r", vmin=-2, vmax=4)
        bar = figure.colorbar(shown, ax=right, label="ρ, the rate of convergence", pad=0.02, extend="max")
        bar.outline.set_visible(False)
        bar.ax.set_ylim(0, 4)
        right.set_title("Proved where ρ < 1")
        for axes in (left, right):
            _draw_limits(axes, mean)
            axes.set_xlabel("mutual coherence μ of the dictionary")
            axes.grid(False)
            axes.set_ylim(0.5, len(sparsity) + 0.5)
        left.set_ylabel("non-zeros s")
        left.legend(frameon=True, framealpha=0.9, edgecolor="none", loc="upper right", title="proved for s up to")
        return [save_figure(figure, folder / "theory_map.png", record)]


def _draw_limits(axes: Axes, mean: Mapping[str, list[float]]) -> None:
    looks = {"coherence": (MUTED, "o", 5.0), "uniqueness": (ORANGE, "s", 3.5), "convergence": (INK, "D", 2.5)}
    for name, text in LIMITS.items():
        color, marker, size = looks[name]
        axes.plot(mean["mu"], mean[name], color=color, marker=marker, ms=size, lw=1.3, label=text)


MAP = Experiment(
    name="theory-map",
    title="where the theory holds and where codes are recovered in fact, by coherence and sparsity",
    source="G1, G2, N1 of docs/theory.md",
    presets=MappingProxyType(
        {
            "smoke": MapConfig(atoms=32, lengths=(8, 16, 24), most=6, signals=20),
            "cpu": MapConfig(),
        }
    ),
    run=run_map,
    draw=draw_map,
    measures=(
        Measure("mu", "coherence μ", 3),
        Measure("coherence", "(2s-1)μ < 1: s ≤", 1, "higher"),
        Measure("uniqueness", "G1 and G2: s ≤", 1, "higher"),
        Measure("convergence", "N1: s ≤", 1, "higher"),
        Measure("fact", "95 % recovered: s ≤", 1, "higher"),
    ),
    settings=_settings,
)
