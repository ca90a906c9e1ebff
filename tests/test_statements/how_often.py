"""How often a guarantee could have been given and was not: `python -m test_statements.how_often` in tests/.

For small drawn dictionaries, random, structured and adversarial, the truth is found by going through all supports (and,
for ℓ1, all signs by linear programs); every line also counts guarantees that were given wrongly, which must be 0.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator

import numpy as np
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DSCWarning
from strategies import draw_dense, equiangular, nearly_parallel, simplex, spike_hadamard
from test_statements.oracles_guarantees import null_space_constant, weakest_support
from test_statements.test_g1_uniqueness import perturbed_basis, unit


def instances(count: int) -> Iterator[tuple[str, dsc.DenseDictionary]]:
    """Yield dictionaries with the name of their family."""
    for seed in range(count):
        yield "nearly orthonormal", perturbed_basis(seed, largest=7)
        yield "random", draw_dense(seed, max_d=7)
        yield "structured", (simplex(4 + seed % 4, 0.9 / (3 + seed % 4)), equiangular(5, 0.02 * (seed % 40)))[seed % 2]
        yield "adversarial", nearly_parallel(6, 7, seed, angle=0.02 * (1 + seed % 60))
    yield "structured", spike_hadamard(8)


def exact_recovery_constant(matrix: np.ndarray, support: tuple[int, ...]) -> float:
    """Return ``max_{i∉S} ‖D_S^† d_i‖_1``."""
    inside = matrix[:, support]
    if np.linalg.matrix_rank(inside) < len(support):
        return np.inf
    return float(abs(np.linalg.pinv(inside) @ np.delete(matrix, support, 1)).sum(0).max(initial=0.0))


def table(count: int) -> dict[tuple[str, str, int], list[int]]:
    """Return, by statement, family and sparsity: drawn, true, given, given wrongly."""
    rows: dict[tuple[str, str, int], list[int]] = {}

    def note(statement: str, family: str, s: int, given: bool, true: bool) -> None:
        row = rows.setdefault((statement, family, s), [0, 0, 0, 0])
        for k, flag in enumerate((True, true, given, given and not true)):
            row[k] += flag

    for family, dictionary in instances(count):
        matrix = unit(dictionary)
        atoms = matrix.shape[1]
        for s in (1, 2):
            if 2 * s > atoms:
                continue
            supports = list(itertools.combinations(range(atoms), s))
            injective = weakest_support(matrix, 2 * s) > 1e-9
            note("G1, G3", family, s, dsc.prove.stability(dictionary, s, noise=0.1).proved, injective)
            own = dictionary.matrix.detach().numpy()
            found = all(null_space_constant(own, support) < 1 - 1e-9 for support in supports)
            note("G2, G4", family, s, dsc.prove.stability(dictionary, s, noise=0.1, kind="l1").proved, found)
            kept = all(exact_recovery_constant(own, support) < 1 - 1e-9 for support in supports)
            note("G4b", family, s, dsc.prove.stability(dictionary, s, noise=0.1, kind="lagrangian").proved, kept)
    return rows


def main(count: int = 60) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DSCWarning)
        rows = table(count)
    print(f"{'statement':10}{'family':20}{'s':>3}{'drawn':>8}{'true':>8}{'given':>8}{'share':>8}{'wrong':>8}")
    for (statement, family, s), (drawn, true, given, wrong) in sorted(rows.items()):
        share = f"{given / true:.2f}" if true else "-"
        print(f"{statement:10}{family:20}{s:>3}{drawn:>8}{true:>8}{given:>8}{share:>8}{wrong:>8}")


if __name__ == "__main__":
    main()
