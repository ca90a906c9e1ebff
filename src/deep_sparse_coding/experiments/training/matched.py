"""Accuracy at matched sparsity: is a way to sparsity better than the plain penalty that gives as many zeros?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .parts import Choice, penalty_of
from .settings import PenaltySettings


def matched_differences(
    runs: Sequence[Mapping[str, Any]], every: Mapping[str, Choice], measure: str
) -> dict[str, dict[str, float]]:
    """Return by how much each setting lies above the plain penalty at its own share of zeros, by seed.

    The plain penalty is ω constant, ℓ1 per entry, on every layer: its weights, "none" among them, give a curve of
    `measure` over the share of zeros for each seed, with straight lines between. A setting that is sparser or less
    sparse than the whole curve has no match with that seed and is left out.

    Args:
        runs: What `Run.each` returned; zeros and the measure are those of the test split.
        every: The settings by name.
        measure: The measure, "test_accuracy".

    Returns:
        Setting → seed → difference; empty for a network with fewer than two plain weights.
    """
    found: dict[str, dict[str, float]] = {}
    for setting, choice in every.items():
        if is_plain(choice.penalty):
            continue
        for run in runs:
            if run["setting"] != setting:
                continue
            curve = sorted(
                (other["measures"]["test_zeros"], other["measures"][measure])
                for other in runs
                if other["seed"] == run["seed"] and _same_network(every[other["setting"]], choice)
            )
            zeros = run["measures"]["test_zeros"]
            if len(curve) > 1 and curve[0][0] <= zeros <= curve[-1][0]:
                across, values = zip(*curve, strict=True)
                expected = float(np.interp(zeros, across, values))
                found.setdefault(setting, {})[str(run["seed"])] = run["measures"][measure] - expected
    return found


def is_plain(words: str) -> bool:
    """Return whether a penalty is none, or ω constant, ℓ1 per entry, on every layer."""
    penalty = penalty_of(words)
    return penalty == PenaltySettings() or penalty == PenaltySettings("fixed", weight=penalty.weight or 1.0)


def _same_network(plain: Choice, choice: Choice) -> bool:
    return is_plain(plain.penalty) and (plain.model, plain.activation) == (choice.model, choice.activation)
