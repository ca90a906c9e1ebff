"""N12: once E is known the error falls by the given factor in every step; attained along the weakest direction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import DSCWarning, ParameterError, UnsupportedError
from deep_sparse_coding.guarantees.runtime import linear_rate
from strategies import SEEDS, draw_dense, duplicate_matrix, normal, orthonormal, rng
from test_statements.oracles_guarantees import exact_lasso

F64 = torch.float64


def restricted_step(matrix: Tensor, signal: Tensor, lam: float, codes: Tensor, step: float, active: Tensor) -> Tensor:
    u = codes + step * (matrix.T @ (signal - matrix @ codes))
    return torch.where(active, dsc.soft_threshold(u, step * lam), 0.0)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_every_step_contracts(seed: int) -> None:
    g = rng(seed)
    dictionary = draw_dense(seed, max_d=8)
    matrix = dictionary.matrix.detach()
    signal = normal(len(matrix), generator=g)
    lam = 0.4 * float((matrix.T @ signal).abs().max())
    truth = exact_lasso(matrix.numpy(), signal.numpy(), np.full(matrix.shape[1], lam))
    codes = torch.from_numpy(truth.codes) + 10.0 ** -(seed % 7) * normal(matrix.shape[1], generator=g)
    rate = linear_rate(dsc.certify(dsc.Lasso(dictionary, lam), signal, codes))
    if not truth.resolved or float(rate.rate) >= 1:
        return
    exact = torch.from_numpy(truth.codes)
    assert isinstance(rate.active, Tensor)
    assert not exact[~rate.active].any()
    x = torch.where(rate.active, codes, 0.0)
    assert float((x - exact).norm()) <= float(rate.distance) + 1e-10
    step = float(rate.step) if math.isfinite(float(rate.step)) else 1.0
    for _ in range(8):
        after = restricted_step(matrix, signal, lam, x, step, rate.active)
        assert float((after - exact).norm()) <= float(rate.rate) * float((x - exact).norm()) + 1e-10
        x = after


@pytest.mark.parametrize("seed", range(6))
def test_the_weakest_direction_attains_the_rate_and_the_number_of_steps(seed: int) -> None:
    dictionary = draw_dense(seed, "tall")
    matrix = dictionary.matrix.detach()
    truth = 2.0 + torch.rand(matrix.shape[1], generator=rng(seed), dtype=F64)
    lam = 0.01
    # A signal whose minimizer is the truth: the optimality conditions with all signs +.
    dual = matrix @ torch.linalg.solve(matrix.T @ matrix, torch.full((matrix.shape[1],), lam, dtype=F64))
    signal = matrix @ truth + dual
    weakest = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, 0]
    start = truth + 0.5 * weakest
    rate = linear_rate(dsc.certify(dsc.Lasso(dictionary, lam), signal, start))
    assert isinstance(rate.active, Tensor)
    assert bool(rate.active.all())
    assert float(rate.distance) == pytest.approx(0.5, rel=1e-9)
    after = restricted_step(matrix, signal, lam, start, float(rate.step), rate.active)
    reached = float((after - truth).norm() / (start - truth).norm())
    assert reached <= float(rate.rate) * (1 + 1e-9)
    assert 1 - float(rate.rate) >= (1 - reached) * (1 - 1e-5)  # 1 - rate = tσ², all of it is used
    steps = int(rate.steps(1e-3))
    x = start
    errors = [float((x - truth).norm())]
    for _ in range(min(steps, 4000)):
        x = restricted_step(matrix, signal, lam, x, float(rate.step), rate.active)
        errors.append(float((x - truth).norm()))
    if steps <= 4000:
        assert errors[-1] <= 1e-3 * (1 + 1e-6)
        assert len(errors) < 3 or errors[-2] > 1e-3 * (1 - 1e-3)


def test_orthonormal_atoms_need_one_step_and_zero_codes_none() -> None:
    dictionary = orthonormal(5, 0)
    signal = normal(5, generator=rng(0))
    solution = dsc.certify(dsc.Lasso(dictionary, 0.3), signal, torch.zeros(5, dtype=F64))
    rate = linear_rate(solution)
    assert float(rate.rate) < 1e-5
    assert float(rate.steps(1e-5)) <= 2
    small = dsc.certify(dsc.Lasso(dictionary, 100.0), signal, torch.zeros(5, dtype=F64))
    assert float(linear_rate(small).rate) == 0
    assert float(linear_rate(small).steps(1e-6)) == 0
    assert "falls by" in str(rate)


def test_steps_with_a_wrong_support_are_few() -> None:
    # Without restriction at most ‖x^0 - x*‖²/(tδ)² steps of ISTA have a non-zero off the equicorrelation set.
    seen = 0
    for seed in range(40):
        g = rng(seed)
        dictionary = draw_dense(seed, max_d=8)
        matrix = dictionary.matrix.detach()
        signal = normal(len(matrix), generator=g)
        lam = 0.3 * float((matrix.T @ signal).abs().max())
        truth = exact_lasso(matrix.numpy(), signal.numpy(), np.full(matrix.shape[1], lam))
        if not truth.resolved or truth.codes.all():
            continue
        exact = torch.from_numpy(truth.codes)
        off = exact == 0
        margin = lam - float((matrix.T @ torch.from_numpy(truth.residual))[off].abs().max())
        step = 1 / float(torch.linalg.matrix_norm(matrix, 2)) ** 2
        x = torch.zeros_like(exact)
        limit = float(exact.norm()) ** 2 / (step * margin) ** 2
        bad = 0
        for _ in range(300):
            x = restricted_step(matrix, signal, lam, x, step, torch.ones_like(off))
            bad += bool(x[off].any())
        seen += bad > 0
        assert bad <= limit
    assert seen > 3


def test_nothing_is_proved_for_a_doubled_atom() -> None:
    with pytest.warns(DSCWarning):
        dictionary = dsc.DenseDictionary(duplicate_matrix(6, 8, 0))
    signal = 3 * dictionary.matrix[:, 0].detach()
    rate = linear_rate(dsc.solve(dsc.Lasso(dictionary, 0.5), signal))
    assert float(rate.rate) == 1
    assert math.isinf(float(rate.steps(0.1)))
    assert str(rate) == "no rate is proved"


def test_what_is_wrong_is_said() -> None:
    dictionary = orthonormal(4, 0)
    solution = dsc.solve(dsc.BasisPursuit(dictionary, epsilon=0.5), torch.ones(4, dtype=F64))
    with pytest.raises(UnsupportedError, match="no rate for a BasisPursuit"):
        linear_rate(solution)
    with pytest.raises(ParameterError, match="expected what solve or certify returned"):
        linear_rate(torch.ones(4))  # type: ignore[arg-type]
    plain = dsc.solve(dsc.Lasso(dictionary, 0.5), torch.ones(4, dtype=F64))
    with pytest.raises(ParameterError, match="error is 0"):
        linear_rate(plain).steps(0.0)
