"""G4b: the Lasso stays on the support and near the truth; two atoms attain both bounds; refused at equality."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError, UnsupportedError
from deep_sparse_coding.guarantees.stability import stability
from strategies import equiangular, normal, randint, rng, simplex
from test_statements.oracles_guarantees import exact_lasso
from test_statements.test_g1_uniqueness import perturbed_basis

F64 = torch.float64


def numbers(guarantee: dsc.Guarantee, layer: int = 1) -> tuple[float, float]:
    """Return λ and the bound in ℓ∞."""
    return guarantee.bounds[f"layer {layer}: λ"], guarantee.bounds[f"layer {layer}: ‖x̂ - x‖_∞"]


def worst_noise(matrix: np.ndarray, support: list[int], g: torch.Generator, size: float) -> np.ndarray:
    """Return noise of a norm: along an atom off the support, against one on it, or in between."""
    kind = randint(0, 3, g)
    noise = normal(len(matrix), generator=g).numpy()
    off = [i for i in range(matrix.shape[1]) if i not in support]
    if kind == 1 and off:
        noise = matrix[:, off[randint(0, len(off) - 1, g)]]
        inside = matrix[:, support]
        noise = noise - inside @ np.linalg.lstsq(inside, noise, rcond=None)[0]
    elif kind == 2:
        noise = -matrix[:, support[0]]
    elif kind == 3 and off:
        noise = matrix[:, off[0]] + 0.1 * noise
    length = np.linalg.norm(noise)
    return size * noise / length if length > 1e-9 else np.zeros(len(matrix))


def test_minimizers_stay_on_the_support_and_within_the_bound() -> None:
    proved, closest = 0, 0.0
    for seed in range(150):
        g = rng(seed)
        dictionary = perturbed_basis(seed, largest=7)
        matrix = dictionary.matrix.detach().numpy()
        for s in (1, 2):
            general = stability(dictionary, s, noise=0.1, kind="lagrangian")
            for kept in itertools.islice(itertools.combinations(range(matrix.shape[1]), s), 6):
                mask = torch.zeros(matrix.shape[1], dtype=torch.bool)
                mask[list(kept)] = True
                guarantee = stability(dictionary, noise=0.1, kind="lagrangian", supports=mask)
                assert guarantee.proved or not general.proved
                if not guarantee.proved:
                    continue
                proved += 1
                lam, bound = numbers(guarantee)
                lam *= 1 + 1e-9
                truth = np.zeros(matrix.shape[1])
                truth[list(kept)] = normal(s, generator=g).numpy()
                noise = worst_noise(matrix, list(kept), g, 0.1)
                found = exact_lasso(matrix, matrix @ truth + noise, np.full(len(truth), lam)).codes
                assert not found[~mask.numpy()].any()
                error = np.abs(found - truth)
                assert error.max() <= bound * (1 + 1e-8)
                large = np.abs(truth) > bound
                assert (np.sign(found[large]) == np.sign(truth[large])).all()
                closest = max(closest, error.max() / bound)

    assert proved > 600
    assert closest > 0.9


def test_no_other_minimizer_is_found_by_the_general_form() -> None:
    proved = 0
    for seed in range(100):
        g = rng(seed)
        dictionary = perturbed_basis(seed, largest=8)
        matrix = dictionary.matrix.detach().numpy()
        for s in (1, 2, 3):
            guarantee = stability(dictionary, s, noise=0.05, epsilon=0.02, kind="lagrangian", lam=0.4)
            if not guarantee.proved:
                assert not guarantee.bounds or not guarantee.conditions[-1].holds or not guarantee.conditions[0].holds
                continue
            proved += 1
            kept = torch.randperm(matrix.shape[1], generator=g)[:s].tolist()
            truth = np.zeros(matrix.shape[1])
            truth[kept] = normal(len(kept), generator=g).numpy()
            found = exact_lasso(
                matrix, matrix @ truth + worst_noise(matrix, kept, g, 0.07), np.full(len(truth), 0.4)
            ).codes
            assert not np.delete(found, kept).any()
            assert np.abs(found - truth).max() <= numbers(guarantee)[1] * (1 + 1e-9)
    assert proved > 60


@pytest.mark.parametrize("c", [-0.6, -0.2, 0.1, 0.3, 0.7])
def test_two_atoms_attain_both_bounds(c: float) -> None:
    dictionary = dsc.DenseDictionary(torch.tensor([[1.0, c], [0.0, math.sqrt(1 - c * c)]], dtype=F64))
    matrix = dictionary.matrix.detach().numpy()
    nu = 0.1
    correlations = np.array([-c * nu / abs(c), nu])  # d_1ᵀn, d_2ᵀn
    noise = np.linalg.solve(matrix.T, correlations)
    truth = np.array([3.0 * np.sign(c), 0.0])
    size = float(np.linalg.norm(noise))
    support = torch.tensor([True, False])
    guarantee = stability(dictionary, noise=size, correlation=nu, kind="lagrangian", supports=support)
    lam, bound = numbers(guarantee)
    assert lam == pytest.approx(nu * (1 + abs(c)) / (1 - abs(c)), rel=1e-9)
    signal = matrix @ truth + noise
    at, below = (exact_lasso(matrix, signal, np.full(2, lam * share)).codes for share in (1 + 1e-6, 0.999))
    assert at[1] == 0
    assert below[1] != 0  # the support leaves S
    assert bound / np.abs(at - truth).max() == pytest.approx(1.0, rel=1e-5)
    # λ × 0.999 is refused, and so is the general form for a smaller λ.
    for counts in ({"supports": support}, {"sparsity": 1}):
        refused = stability(dictionary, noise=size, correlation=nu, kind="lagrangian", lam=0.999 * lam, **counts)
        assert not refused
        assert "missing layer 1: least λ that keeps the support" in str(refused)
        assert "layer 1: ‖x̂ - x‖_∞" not in refused.bounds


@pytest.mark.parametrize("c", [0.02, 0.2, 0.5])
def test_noise_of_known_norm_needs_a_smaller_lam(c: float) -> None:
    dictionary = dsc.DenseDictionary(torch.tensor([[1.0, c], [0.0, math.sqrt(1 - c * c)]], dtype=F64))
    matrix = dictionary.matrix.detach().numpy()
    guarantee = stability(dictionary, 1, noise=0.1, kind="lagrangian")
    lam, _ = numbers(guarantee)
    assert lam == pytest.approx(0.1 / (1 - c), rel=1e-9)  # against 0.1(1 + c)/(1 - c)
    # The worst noise is orthogonal to d_1: |d_2ᵀn| is then √(1-c²)‖n‖, so that the bound is attained as c goes to 0.
    noise = 0.1 * np.array([0.0, 1.0])
    signal = matrix @ np.array([1.0, 0.0]) + noise
    reached = math.sqrt(1 - c * c)
    leaving = 0.1 * reached / (1 - c)  # the least λ that works for this noise
    assert exact_lasso(matrix, signal, np.full(2, leaving * (1 + 1e-9))).codes[1] == 0
    assert exact_lasso(matrix, signal, np.full(2, leaving * (1 - 1e-3))).codes[1] != 0
    assert leaving / lam == pytest.approx(reached)


def test_a_correlation_that_is_only_bounded_needs_more_than_nu_off_the_support() -> None:
    # |d_2ᵀP_S^⊥n| can exceed ν: a λ that only covers it by ν loses the support (the counter-example of G4b).
    c, nu = 0.5, 0.1
    matrix = np.array([[1.0, c], [0.0, math.sqrt(1 - c * c)]])
    noise = np.linalg.solve(matrix.T, np.array([-nu, nu]))
    lam = nu / (1 - c) * 1.01  # ν in place of ν(1+c)
    assert exact_lasso(matrix, matrix @ np.array([3.0, 0.0]) + noise, np.full(2, lam)).codes[1] != 0


@pytest.mark.parametrize("s", [2, 3, 5])
def test_refused_at_equality(s: int) -> None:
    dictionary = simplex(2 * s, 1 / (2 * s - 1))
    guarantee = stability(dictionary, s, noise=0.1, kind="lagrangian")
    assert not guarantee
    assert not guarantee.bounds
    assert stability(equiangular(2 * s, 0.999 / (2 * s - 1)), s, noise=0.1, kind="lagrangian")


def test_without_noise_any_lam_will_do_and_has_to_be_given() -> None:
    dictionary = simplex(4, 0.1)
    with pytest.raises(ParameterError, match=r"lam is None and nothing disturbs layer 1: .* expected lam"):
        stability(dictionary, 1, kind="lagrangian")
    guarantee = stability(dictionary, 1, kind="lagrangian", lam=0.01)
    assert numbers(guarantee)[1] == pytest.approx(0.01, rel=1e-9)
    codes = exact_lasso(dictionary.matrix.detach().numpy(), dictionary.matrix[:, 0].detach().numpy(), np.full(4, 0.01))
    assert abs(codes.codes[0] - 1) == pytest.approx(0.01, rel=1e-9)
    with pytest.raises(UnsupportedError, match="use kind='l1'"):
        stability(dictionary, 1, kind="lagrangian", lam=0.01, nonnegative=True)


def cascade(seed: int) -> tuple[dsc.Cascade, Tensor, Tensor]:
    g = rng(seed)
    first = dsc.DenseDictionary.random(80, 10, seed=seed, dtype=F64)
    second = 0.02 * normal(10, 5, generator=g)
    second[:, 0] = 0.0
    for column in range(5):
        second[:, column] = 0.0
        second[2 * column : 2 * column + 2, column] = normal(2, generator=g)
    model = dsc.Cascade([first, dsc.DenseDictionary(second, normalize=True)])
    deepest = torch.zeros(5, dtype=F64)
    deepest[randint(0, 4, g)] = 2.0
    return model, deepest, model.synthesize(deepest, to=1)


def test_cascades() -> None:
    proved = 0
    for seed in range(40):
        model, deepest, middle = cascade(seed)
        guarantee = stability(model, (2, 1), noise=0.05, kind="lagrangian")
        if not guarantee.proved:
            continue
        proved += 1
        first, second = (layer.matrix.detach().numpy() for layer in model.layers)  # type: ignore[union-attr]
        noise = worst_noise(first, np.nonzero(middle.numpy())[0].tolist(), rng(seed), 0.05)
        x1 = exact_lasso(first, first @ middle.numpy() + noise, np.full(10, numbers(guarantee)[0] * (1 + 1e-9))).codes
        assert not x1[middle.numpy() == 0].any()
        assert np.abs(x1 - middle.numpy()).max() <= numbers(guarantee)[1]
        x2 = exact_lasso(second, x1, np.full(5, numbers(guarantee, 2)[0] * (1 + 1e-9))).codes
        assert not x2[deepest.numpy() == 0].any()
        assert np.abs(x2 - deepest.numpy()).max() <= numbers(guarantee, 2)[1]
    assert proved > 15


def test_places_count_in_convolutional_cascades() -> None:
    first = torch.tensor([[[1.0, 0.0]], [[0.3, math.sqrt(1 - 0.09)]]], dtype=F64)
    second = torch.zeros(2, 2, 5, dtype=F64)
    second[0, 0, 0], second[0, 1, 2], second[0, 0, 4] = 1.0, -1.0, 1.0
    second[1, 1, 0], second[1, 1, 1], second[1, 0, 3] = 1.0, 1.0, -1.0
    model = dsc.Cascade([dsc.ConvDictionary(first, stride=2), dsc.ConvDictionary(second, normalize=True)])
    covered, known = (
        stability(model, (1, 1), noise=0.01, kind="lagrangian", place_sparsity=p, lam=(0.05, 0.6)) for p in (None, 3)
    )
    nu = [g.bounds["layer 2: ν"] for g in (covered, known)]
    below = known.bounds["layer 1: ‖x̂ - x‖_∞"]
    assert nu[1] == pytest.approx(math.sqrt(3) * below)
    assert nu[0] == pytest.approx(nu[1])  # atoms of three entries: five places see no more
    deepest = torch.zeros(1, 2, 7, dtype=F64)
    deepest[0, 0, 3] = 2.0
    middle = model.synthesize(deepest, to=1)
    signal = model.synthesize(deepest)
    problem = dsc.LayeredLasso(model, lam=(0.05, 0.6))
    codes = dsc.solve(problem, signal, tol=1e-12, on_failure="ignore").codes
    assert known.proved
    assert float((codes[0] - middle).abs().max()) <= below
    assert float((codes[1] - deepest).abs().max()) <= known.bounds["layer 2: ‖x̂ - x‖_∞"]
    assert not codes[1][deepest == 0].abs().gt(1e-9).any()
