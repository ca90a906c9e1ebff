"""The posterior as users meet it: any codes, any problem, shapes, words, and what is refused."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DtypeError, ParameterError, ShapeError
from deep_sparse_coding.guarantees import CertifiedCodes, Posterior, certify, posterior
from strategies import normal, orthonormal, rng

F64 = torch.float64


def single(result: Posterior | tuple[Posterior, ...]) -> Posterior:
    assert isinstance(result, Posterior)
    return result


def soft(dictionary: dsc.DenseDictionary, signal: Tensor, lam: float) -> Tensor:
    return dsc.soft_threshold(dictionary.analyze(signal), lam).detach()


def test_a_solution_and_its_certified_codes_say_the_same() -> None:
    dictionary = dsc.DenseDictionary.random(16, 32, seed=0, dtype=F64)
    problem = dsc.Lasso(dictionary, 0.3)
    signal = normal(2, 4, 16, generator=rng(0))
    solution = dsc.solve(problem, signal, solver=dsc.FISTA(), tol=1e-12)
    first = single(posterior(solution))
    certified = certify(problem, signal, solution.codes, tol=1e-12)
    second = single(certified.posterior())
    assert isinstance(certified, CertifiedCodes)
    assert torch.equal(first.distance, second.distance)
    assert first.unique.shape == (2, 4)
    assert isinstance(first.zeros, Tensor)
    assert isinstance(first.lower, Tensor)
    assert first.zeros.shape == (2, 4, 32)
    assert first.zeros.dtype == torch.bool
    assert first.lower.dtype == F64
    assert bool(first.unique.all())
    assert float(first.distance.max()) < 1e-4
    assert torch.equal(certified.gap, certified.objective - certified.dual) or float(certified.gap.max()) < 1e-6
    assert torch.equal(certified.relative_gap, certified.certificate.relative_gap)
    assert "gap ≤" in str(certified)
    assert str(first).startswith(f"{int(first.zeros.sum())} of 256 atoms certainly zero, ")
    assert "unique in 8/8, ‖x - x*‖ ≤ " in str(first)


def test_polish_returns_the_closed_form_from_codes_that_are_far() -> None:
    dictionary = orthonormal(10, 1)
    signal = normal(3, 10, generator=rng(2))
    truth = soft(dictionary, signal, 0.4)
    codes = truth * (1 + 0.2 * torch.rand(truth.shape, generator=rng(3), dtype=F64))
    result = single(posterior(certify(dsc.Lasso(dictionary, 0.4), signal, codes)))
    polished = result.polish()
    assert isinstance(polished.codes, Tensor)
    assert bool(polished.exact.all())
    assert float((polished.codes - truth).norm(dim=1).max()) <= float(polished.error.max()) + 1e-15
    assert float(polished.error.max()) < 1e-12
    assert isinstance(result.zeros, Tensor)
    assert torch.equal(result.zeros, truth == 0)
    assert float(result.distance[0]) == pytest.approx(float((codes - truth)[0].norm()), rel=1e-9)


def test_polish_keeps_the_codes_where_nothing_is_proved() -> None:
    dictionary = dsc.DenseDictionary.random(3, 9, seed=0, dtype=F64)
    codes = torch.ones(9, dtype=F64)
    result = single(posterior(certify(dsc.Lasso(dictionary, 0.01), torch.ones(3, dtype=F64), codes)))
    polished = result.polish()
    assert not bool(polished.exact)
    assert isinstance(polished.codes, Tensor)
    assert torch.equal(polished.codes, codes)
    assert math.isinf(float(polished.error))
    assert result.unique.shape == ()


def test_samples_that_are_not_finite_or_infeasible_prove_nothing_and_harm_no_other() -> None:
    dictionary = orthonormal(6, 0)
    signal = normal(4, 6, generator=rng(0))
    codes = soft(dictionary, signal, 0.2).clamp_min(0)
    problem = dsc.Lasso(dictionary, 0.2, nonnegative=True)
    broken_signal, broken = signal.clone(), codes.clone()
    broken_signal[1, 2] = math.nan
    broken[2, 0] = math.nan
    broken[3, 1] = -5.0
    result = single(posterior(certify(problem, broken_signal, broken)))
    alone = single(posterior(certify(problem, signal[:1], codes[:1])))
    assert bool(result.unique[0])
    assert float(result.distance[0]) == pytest.approx(float(alone.distance[0]), abs=1e-14)
    assert not bool(result.unique[1:3].any())
    assert bool(torch.isinf(result.radius[1:]).all())
    assert "not finite" in result.reasons[1]
    assert isinstance(result.zeros, Tensor)
    assert not bool(result.zeros[1:3].any())
    # Codes below zero give no sphere, but their support still leads to the minimizer.
    if bool(result.unique[3]):
        assert float(result.distance[3]) >= 5.0


def test_tiny_and_huge_signals() -> None:
    dictionary = orthonormal(6, 0)
    for scale in (1e-200, 1e-100, 1e-20, 1e20, 1e100):
        signal = scale * normal(6, generator=rng(0))
        codes = soft(dictionary, signal, 0.3 * scale)
        result = single(posterior(certify(dsc.Lasso(dictionary, 0.3 * scale), signal, codes)))
        assert isinstance(result.zeros, Tensor)
        assert isinstance(result.support, Tensor)
        assert not bool((result.zeros & (codes != 0)).any())
        assert not bool((result.support & (codes == 0)).any())
        if 1e-110 < scale < 1e110:
            assert bool(result.unique)


def test_zero_signal() -> None:
    result = single(
        posterior(certify(dsc.Lasso(orthonormal(5, 0), 0.1), torch.zeros(2, 5).double(), torch.zeros(2, 5).double()))
    )
    assert bool(result.unique.all())
    assert float(result.distance.max()) == 0.0
    assert bool(result.zeros.all())  # type: ignore[union-attr]
    assert bool(torch.isinf(result.smallest_singular).all())


def test_empty_batch() -> None:
    problem = dsc.Lasso(orthonormal(5, 0), 0.1)
    result = single(posterior(certify(problem, torch.zeros(0, 5).double(), torch.zeros(0, 5).double())))
    assert result.unique.shape == (0,)
    assert result.reasons == ()
    assert str(result) == "posterior of an empty batch"


def test_unpenalized_atoms_per_sample_mask() -> None:
    dictionary = dsc.DenseDictionary.random(8, 6, seed=3, dtype=F64)
    weights = torch.tensor([0.0, 1.0, 1.0, math.inf, 1.0, 0.0], dtype=F64)
    mask = torch.ones(2, 8)
    mask[1, :2] = 0
    signal = 2 * normal(2, 8, generator=rng(0))
    problem = dsc.Lasso(dictionary, 0.1, weights, mask=mask)
    matrix = dictionary.matrix.detach().numpy()
    for sample in range(2):
        rows = mask[sample].numpy()[:, None] * matrix
        free = np.linalg.lstsq(rows[:, [0, 5]], mask[sample].numpy() * signal[sample].numpy(), rcond=None)[0]
        codes = torch.zeros(2, 6, dtype=F64)
        codes[sample, [0, 5]] = torch.from_numpy(free)
        result = single(posterior(_Bare(problem, signal, codes)))
        assert isinstance(result.zeros, Tensor)
        assert bool(result.zeros[:, 3].all())
        assert math.isfinite(float(result.gap[sample]))


class _Bare:
    """Anything with a problem, a signal and codes has a posterior."""

    def __init__(self, problem: dsc.Lasso, signal: Tensor, codes: Tensor) -> None:
        self.problem, self.signal, self.codes = problem, signal, codes


def test_a_layered_problem_has_one_posterior_per_layer() -> None:
    cascade = dsc.Cascade([orthonormal(6, 0), orthonormal(6, 1)])
    signal = normal(3, 6, generator=rng(1))
    problem = dsc.LayeredLasso(cascade, (0.2, 0.1))
    result = posterior(dsc.solve(problem, signal, solver=dsc.FISTA(), tol=1e-8))
    assert isinstance(result, tuple)
    assert [r.note for r in result] == ["layer 1", "layer 2, given the codes of layer 1"]
    assert all(bool(r.unique.all()) for r in result)
    assert str(result[1]).startswith("layer 2, given the codes of layer 1: ")
    assert repr(result[0]).startswith("<Posterior layer 1: ")


def test_a_joint_problem_has_one_posterior_with_a_tuple_per_field() -> None:
    first = dsc.ConvDictionary.random(atoms=3, channels=1, size=(3, 3), seed=0, dtype=F64)
    second = dsc.ConvDictionary.random(atoms=4, channels=3, size=(2, 2), seed=1, dtype=F64)
    problem = dsc.JointLasso(dsc.Cascade([first, second]), (0.5, 0.3))
    signal = normal(2, 1, 10, 10, generator=rng(0))
    result = single(posterior(dsc.solve(problem, signal, tol=1e-9, max_steps=20000)))
    assert isinstance(result.zeros, tuple)
    assert result.zeros[0].shape == (2, 3, 8, 8)
    assert result.zeros[1].shape == (2, 4, 7, 7)
    assert bool(result.unique.all())


def test_inputs_may_require_gradients_and_be_strided() -> None:
    dictionary = orthonormal(5, 0)
    signal = normal(5, 3, generator=rng(0)).T.requires_grad_()
    codes = soft(dictionary, signal, 0.2).T.contiguous().T.requires_grad_()
    result = single(certify(dsc.Lasso(dictionary, 0.2), signal, codes).posterior())
    assert bool(result.unique.all())
    assert not result.distance.requires_grad


def test_bad_input_is_refused_in_words() -> None:
    problem = dsc.Lasso(orthonormal(5, 0), 0.2)
    signal = torch.zeros(2, 5, dtype=F64)
    with pytest.raises(ShapeError, match=r"codes have shape \(2, 4\); expected \(2, 5\)"):
        certify(problem, signal, torch.zeros(2, 4, dtype=F64))
    with pytest.raises(DtypeError, match="float16"):
        certify(problem, signal.half(), torch.zeros(2, 5, dtype=F64))
    with pytest.raises(ShapeError, match=r"codes have shape \(3, 5\)"):
        posterior(_Bare(problem, signal, torch.zeros(3, 5, dtype=F64)))
    codes = torch.zeros(2, 5, dtype=F64)
    with pytest.raises(
        ParameterError, match=r"solution is a Tensor; expected what dsc\.solve returned, or dsc\.certify"
    ):
        posterior(codes)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"problem is a Tensor; expected dsc\.Lasso"):
        certify(signal, problem, codes)  # type: ignore[arg-type]


def test_code_maps_of_an_image_take_seconds() -> None:
    dictionary = dsc.ConvDictionary.random(atoms=16, channels=1, size=(6, 6), seed=0, dtype=F64)
    g = rng(1)
    codes = normal(1, 16, 59, 59, generator=g) * (torch.rand(1, 16, 59, 59, generator=g) < 0.003)
    signal = dictionary.synthesize(codes) + 0.02 * normal(1, 1, 64, 64, generator=g)
    solution = dsc.solve(dsc.Lasso(dictionary, 0.2), signal, tol=1e-5)
    start = time.perf_counter()
    result = single(posterior(solution))
    assert time.perf_counter() - start < 10
    assert bool(result.unique)
    assert bool(result.polish().exact)
    assert float(result.distance) < 0.05


def test_an_idle_unpenalized_atom_of_non_negative_codes_costs_nothing() -> None:
    dictionary = dsc.DenseDictionary(torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=F64))
    problem = dsc.Lasso(dictionary, 0.1, torch.tensor([0.0, 1.0], dtype=F64), nonnegative=True)
    signal, codes = torch.tensor([-1.0, 2.0], dtype=F64), torch.tensor([0.0, 0.9], dtype=F64)
    result = single(posterior(_Bare(problem, signal, codes)))
    # Its correlation is below zero, which is feasible; asking for equality would leave a gap of the objective's size.
    assert float(result.gap) < 1e-12
    assert isinstance(result.zeros, Tensor)
    assert result.zeros.tolist() == [True, False]
    assert bool(result.unique)
    assert float(result.distance) < 1e-14
