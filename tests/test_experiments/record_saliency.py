"""Write recorded_saliency.json: what pysodmetrics gives for maps and masks drawn from a seed.

Run it where pysodmetrics is installed: python tests/test_experiments/record_saliency.py
"""

import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RECORD = Path(__file__).with_name("recorded_saliency.json")


def saliency_cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return maps and masks by name, uint8 from 0 to 255, of different sizes."""
    cases = {}
    for k, (height, width) in enumerate([(24, 32), (33, 21), (48, 48), (17, 40)]):
        rng = np.random.default_rng(k)
        rows, columns = np.mgrid[:height, :width]
        center = rng.uniform(0.3, 0.7, 2) * (height, width)
        radius = rng.uniform(0.15, 0.35) * min(height, width)
        distance = np.hypot(rows - center[0], columns - center[1])
        mask = np.where(distance < radius, 255, 0).astype(np.uint8)
        shift = rng.uniform(-3, 3, 2)
        soft = 1 / (1 + np.exp(0.7 * (np.hypot(rows - center[0] - shift[0], columns - center[1] - shift[1]) - radius)))
        noisy = soft + rng.normal(0, 0.15, soft.shape)
        noisy = (noisy - noisy.min()) / np.ptp(noisy)
        cases[f"disc {k}"] = np.rint(255 * noisy).astype(np.uint8), mask
        cases[f"flat range {k}"] = np.rint(60 + 90 * noisy).astype(np.uint8), mask
        cases[f"binary {k}"] = np.where(noisy > 0.5, 255, 0).astype(np.uint8), mask
        cases[f"inverse {k}"] = 255 - np.rint(255 * noisy).astype(np.uint8), mask
        cases[f"scattered {k}"] = (
            rng.integers(0, 256, mask.shape, dtype=np.uint8),
            np.where(rng.random(mask.shape) < 0.2, 255, 0).astype(np.uint8),
        )
    rng = np.random.default_rng(99)
    some = rng.integers(0, 256, (20, 24), dtype=np.uint8)
    half = np.zeros((20, 24), np.uint8)
    half[:, 12:] = 255
    zeros, ones = np.zeros_like(half), np.full_like(half, 255)
    corner, last, line = zeros.copy(), zeros.copy(), zeros.copy()
    corner[0, 0], last[-1, -1], line[:, -1] = 255, 255, 255
    hole = ones.copy()
    hole[7, 7] = 0
    for name, mask in {
        "half": half,
        "empty": zeros,
        "full": ones,
        "corner": corner,
        "last pixel": last,
        "last column": line,
        "hole": hole,
    }.items():
        cases[f"some, {name}"] = some, mask
        cases[f"zeros, {name}"] = zeros, mask
        cases[f"ones, {name}"] = ones, mask
        cases[f"grey, {name}"] = np.full_like(half, 100), mask
        cases[f"itself, {name}"] = mask, mask
    return cases


def peer_values(cases: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, dict[str, Any]]:
    """Return the peer's values of each case, curves as lists."""
    import py_sod_metrics as peer

    values = {}
    for name, pair in cases.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            measures = peer.MAE(), peer.Fmeasure(), peer.WeightedFmeasure(), peer.Emeasure(), peer.Smeasure()
            for measure in measures:
                measure.step(*pair)
            mae, f, weighted, e, s = (measure.get_results() for measure in measures)
        values[name] = {
            "mae": float(mae["mae"]),
            "f": [float(value) for value in f["fm"]["curve"]],
            "adaptive_f": float(f["fm"]["adp"]),
            "weighted_f": float(weighted["wfm"]),
            "e": [float(value) for value in e["em"]["curve"]],
            "adaptive_e": float(e["em"]["adp"]),
            "s": float(s["sm"]),
        }
    return values


def main() -> None:
    """Record every 15th entry of the curves: all of them would fill a megabyte."""
    values = peer_values(saliency_cases())
    for entry in values.values():
        for curve in ("f", "e"):
            entry[f"max_{curve}"], entry[f"mean_{curve}"] = max(entry[curve]), float(np.mean(entry[curve]))
            entry[curve] = entry[curve][::15]
    values = {
        name: {key: np.round(value, 12).tolist() for key, value in entry.items()} for name, entry in values.items()
    }
    for entry in values.values():  # S of a mask whose center is in the last row or column
        entry["s"] = None if np.isnan(entry["s"]) else entry["s"]
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in values.items())
    RECORD.write_text(f'{{"pysodmetrics": "{version("pysodmetrics")}", "values": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main()
