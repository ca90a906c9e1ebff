"""G8: the share of sign patterns that ℓ1 misses is never above the bound; exact in Fuchs' condition for one support.

Hoeffding's inequality is not attained by sums of a few signs, so the bound has no instance where it is equal to what
happens. Its exponent is held from above by binomial tails: ½ could not be 0.75. The form that goes through all signs of
one support is exact in Fuchs' condition (what the Lasso needs as λ falls to 0), which ℓ1 itself may not need.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError, UnsupportedError
from deep_sparse_coding.guarantees import equivalence
from deep_sparse_coding.guarantees.recovery import recovery
from strategies import equiangular, gram_dictionary, normal, rng, simplex
from test_statements.test_g1_uniqueness import perturbed_basis, unit

F64 = torch.float64
FAILURE = "layer 1: probability of failure"


def missed(matrix: np.ndarray, support: list[int]) -> float:
    """Return the share of sign patterns for which a code on the support is no ℓ1 solution, by linear programs."""
    from scipy.optimize import linprog

    atoms = matrix.shape[1]
    both = np.concatenate([matrix, -matrix], 1)
    failed = patterns = 0
    for tail in itertools.product((-1.0, 1.0), repeat=len(support) - 1):
        signs = np.zeros(atoms)
        signs[support] = (1.0, *tail)
        patterns += 1
        # Is there h ≠ 0 in the null space with ⟨σ, h_S⟩ + ‖h_{S^c}‖_1 ≤ 0? Then x is not the only solution.
        weights = np.where(signs == 0, 1.0, signs)
        cost = np.concatenate([weights, np.where(signs == 0, 1.0, -signs)])
        answer = linprog(cost, A_eq=both, b_eq=np.zeros(len(matrix)), bounds=[(0, 1)] * (2 * atoms), method="highs")
        failed += answer.fun < -1e-9
    return failed / patterns


def fuchs(matrix: np.ndarray, support: list[int]) -> float:
    """Return the share of sign patterns that Fuchs' condition does not admit."""
    seen = np.linalg.pinv(matrix[:, support]) @ np.delete(matrix, support, 1)
    patterns = np.array(list(itertools.product((-1.0, 1.0), repeat=len(support))))
    return float((abs(patterns @ seen) >= 1).any(1).mean())


def test_no_support_fails_more_often_than_the_bound() -> None:
    given = useful = 0
    for seed in range(60):
        g = rng(seed)
        dictionary = perturbed_basis(seed, largest=7)
        matrix = dictionary.matrix.detach().numpy()
        atoms = matrix.shape[1]
        for s in (2, 3):
            if s >= atoms:
                continue
            general = recovery(dictionary, s)
            kept = torch.randperm(atoms, generator=g)[:s].tolist()
            mask = torch.zeros(atoms, dtype=torch.bool)
            mask[kept] = True
            own = recovery(dictionary, supports=mask)
            share = missed(matrix, kept)
            if own.bounds:
                given += 1
                useful += own.proved and not equivalence(dictionary, supports=mask).proved
                assert share <= own.bounds[FAILURE] + 1e-12
                assert own.bounds[FAILURE] == pytest.approx(fuchs(matrix, kept), abs=1e-9)
                if general.bounds:
                    assert share <= general.bounds[FAILURE]
    assert given > 80
    assert useful > 5


def test_one_support_is_exact_where_the_worst_case_is_empty() -> None:
    # Atoms of S orthonormal, one more atom along σ: it is missed for two of the 2^s patterns.
    s = 8
    gram = torch.eye(s + 1, dtype=F64)
    gram[:s, s] = gram[s, :s] = 1.01 / s
    dictionary = gram_dictionary(gram)
    mask = torch.ones(s + 1, dtype=torch.bool)
    mask[s] = False
    guarantee = recovery(dictionary, supports=mask)
    assert not equivalence(dictionary, supports=mask)
    assert guarantee.proved
    assert guarantee.bounds[FAILURE] == pytest.approx(2 / 2**s)
    worst_case = equivalence(dictionary, supports=mask).conditions
    assert max(c.value for c in worst_case) > 1


def test_hoeffding_covers_many_signs() -> None:
    # More than 14 atoms: the bound of Hoeffding, against the exact binomial tail.
    for s, t in ((16, 12), (20, 14), (24, 16)):
        c = 1 / t
        gram = torch.eye(s + 1, dtype=F64)
        gram[:s, s] = gram[s, :s] = c
        dictionary = gram_dictionary(gram)
        mask = torch.ones(s + 1, dtype=torch.bool)
        mask[s] = False
        bound = recovery(dictionary, supports=mask).bounds[FAILURE]
        tail = sum(math.comb(s, k) for k in range(s + 1) if abs(2 * k - s) >= t) / 2**s
        assert bound == pytest.approx(2 * math.exp(-1 / (2 * s * c * c)), rel=1e-9)
        assert tail <= bound
        assert tail > 2 * math.exp(-0.75 / (s * c * c))


def test_all_supports_of_an_equiangular_frame() -> None:
    # s = 12 exceeds ½(1 + 1/μ) by far: the worst case says nothing, random signs do.
    dictionary = dsc.DenseDictionary(torch.cat([torch.eye(256, dtype=F64), hadamard(256) / 16], 1))
    assert not equivalence(dictionary, 12)
    guarantee = recovery(dictionary, 11)
    assert guarantee.conditions[0].name == "μ_1(10)"
    room = 1 - 10 / 16
    expected = 2 * (512 - 11) * math.exp(-(room**2) / (2 * 11 / 256))
    assert guarantee.bounds[FAILURE] == pytest.approx(expected, rel=1e-6)
    small = recovery(dictionary, 3)
    assert small.bounds[FAILURE] == 0.0 or small.proved


def hadamard(size: int) -> torch.Tensor:
    h = torch.ones(1, 1, dtype=F64)
    while len(h) < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h


def test_where_the_worst_case_holds_nothing_is_random() -> None:
    dictionary = simplex(9, 0.05)
    guarantee = recovery(dictionary, 3)
    assert guarantee.proved
    assert guarantee.bounds[FAILURE] == 0
    assert not any("signs of" in text for text in guarantee.hypotheses)


def test_dependent_atoms_are_refused() -> None:
    guarantee = recovery(simplex(4, 1 / 3), 4)
    assert not guarantee
    assert "missing layer 1: μ_1(3)" in str(guarantee)
    with pytest.warns(dsc.DSCWarning):
        doubled = dsc.DenseDictionary(torch.eye(3, dtype=F64)[:, [0, 0, 1]])
    refused = recovery(doubled, supports=torch.tensor([1, 1, 0]))
    assert "D_S that is proved injective is not available" in str(refused)


def test_monte_carlo_over_supports_and_signs() -> None:
    dictionary = dsc.DenseDictionary.random(200, 220, seed=0, dtype=F64)
    matrix = unit(dictionary)
    guarantee = recovery(dictionary, 2)
    g = rng(0)
    failed = 0
    for _ in range(300):
        kept = torch.randperm(220, generator=g)[:2].numpy()
        signs = np.sign(normal(2, generator=g).numpy())
        dual = matrix.T @ np.linalg.pinv(matrix[:, kept]).T @ signs
        failed += bool((np.abs(np.delete(dual, kept)) >= 1).any())
    assert failed / 300 <= guarantee.bounds[FAILURE]
    assert guarantee.proved


def test_convolutions_need_a_size() -> None:
    kernels = torch.zeros(3, 1, 4, dtype=F64)
    kernels[0, 0, 0] = 1.0
    kernels[1, 0] = torch.tensor([0.4, 0.6, 0.4, 0.3], dtype=F64)
    kernels[2, 0] = torch.tensor([0.1, -0.5, 0.5, 0.4], dtype=F64)
    dictionary = dsc.ConvDictionary(kernels, stride=4, normalize=True)
    certain = recovery(dictionary, 1)
    assert certain.proved
    assert certain.bounds[FAILURE] == 0
    assert "missing layer 1: size, which says how many atoms there are, is not available" in str(
        recovery(dictionary, 2)
    ) or not recovery(dictionary, 2)
    few, many = (recovery(dictionary, 2, size=n) for n in (8, 80))
    if FAILURE in few.bounds:
        assert many.bounds[FAILURE] == pytest.approx(10 * few.bounds[FAILURE])


def test_cascades_add_up_and_say_what_they_ask() -> None:
    dictionary = dsc.DenseDictionary(torch.cat([torch.eye(64, dtype=F64), hadamard(64) / 8], 1))
    upper = torch.zeros(128, 64, dtype=F64)
    upper[:64] = torch.eye(64, dtype=F64)
    model = dsc.Cascade([dictionary, dsc.DenseDictionary(upper)])
    guarantee = recovery(model, (3, 3))
    assert guarantee.bounds["probability of failure"] >= guarantee.bounds[FAILURE]
    random = recovery(model, (5, 3))
    assert any("no two entries of x_{j-1} stem from the same entry" in text for text in random.hypotheses)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ParameterError, match="size is 8; expected None: a dense model"):
        recovery(equiangular(4, 0.1), 1, size=8)
    conv = dsc.ConvDictionary.random(atoms=2, channels=1, size=(3,), seed=0, dtype=F64)
    with pytest.raises(UnsupportedError, match="supports are given for a convolutional model"):
        recovery(conv, supports=torch.ones(2))
