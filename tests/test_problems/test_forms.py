"""Objectives, lam_max and the ways to give lam, against the explicit matrix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from operators import Operator, each_operator
from references import explicit_matrix, joint_matrix, lasso_objective
from strategies import draw_cascade, draw_codes, draw_dense, draw_dictionary, draw_signal, normal, rng

SEEDS = st.integers(0, 2**31 - 1)


@each_operator()
def test_lasso_objective_is_that_of_the_explicit_matrix(operator: Operator) -> None:
    dictionary = operator.build()
    generator = rng(1)
    codes = normal(2, *dictionary.code_shape(dictionary.signal_shape(operator.size)[1:]), generator=generator)
    signal = normal(2, *dictionary.signal_shape(operator.size), generator=generator)
    mask = torch.rand(signal.shape[1:], generator=generator, dtype=torch.float64) < 0.7
    weights = torch.rand(dictionary.atoms, generator=generator, dtype=torch.float64) + 0.1
    matrix = explicit_matrix(dictionary, operator.size)
    full = weights.reshape(-1, *(1,) * (dictionary.event_axes - 1)).expand(codes.shape[1:]).flatten()
    got = dsc.Lasso(dictionary, 0.3, weights=weights, mask=mask).objective(codes, signal)
    for i in range(2):
        m = mask.double().flatten()
        want = lasso_objective(m[:, None] * matrix, m * signal[i].flatten(), codes[i], 0.3 * full)
        assert float(got[i]) == pytest.approx(want, rel=1e-12)


@given(seed=SEEDS)
def test_joint_objective_is_that_of_the_stacked_matrix(seed: int) -> None:
    model = draw_cascade(seed, depth=2)
    size = (3,) * (model.layers[-1].event_axes - 1)
    codes, shapes = [], []
    deepest = model.layers[-1]
    shape: tuple[int, ...] = (deepest.atoms, *size)
    for layer in reversed(model.layers):
        shapes.insert(0, shape)
        shape = layer.signal_shape(shape[1:])
    generator = rng(seed)
    codes = tuple(normal(*s, generator=generator) for s in shapes)
    signal = normal(*shape, generator=generator)
    beta, lam = (1.5, 0.4), (0.2, 0.7)
    matrix, widths = joint_matrix(model, size, beta)
    flat = torch.cat([x.flatten() for x in codes])
    data = torch.zeros(len(matrix), dtype=torch.float64)
    data[: signal.numel()] = math.sqrt(beta[0]) * signal.flatten()
    weights = torch.cat([torch.full((n,), v, dtype=torch.float64) for n, v in zip(widths, lam, strict=True)])
    got = float(dsc.JointLasso(model, lam, beta).objective(codes, signal))
    assert got == pytest.approx(lasso_objective(matrix, data, flat, weights), rel=1e-12)


@given(seed=SEEDS, nonnegative=st.booleans())
def test_lam_max_is_where_codes_vanish(seed: int, nonnegative: bool) -> None:
    dictionary = draw_dictionary(seed)
    signal = draw_signal(dictionary, seed)
    largest = float(dsc.Lasso(dictionary, 1.0, nonnegative=nonnegative).lam_max(signal))
    if largest < 1e-6:  # every correlation is negative: nothing to shrink
        return
    above = dsc.Lasso(dictionary, largest * (1 + 1e-9), nonnegative=nonnegative)
    with pytest.warns(dsc.DSCWarning, match="lam is at or above lam_max"):
        assert float(dsc.solve(above, signal).unwrap().abs().max()) == 0.0
    below = dsc.Lasso(dictionary, largest * 0.999, nonnegative=nonnegative)
    assert float(dsc.solve(below, signal, tol=1e-10, on_failure="ignore").codes.abs().max()) > 0.0


def test_lam_of_every_layer_of_a_joint_problem_counts() -> None:
    model = dsc.Cascade([dsc.DenseDictionary.random(8, 12, seed=0), dsc.DenseDictionary.random(12, 16, seed=1)])
    signal = torch.randn(3, 8, generator=rng(0))
    problem = dsc.JointLasso(model, (0.1, 0.2), beta=(2.0, 1.0))
    assert torch.allclose(problem.lam_max(signal).float(), 2 * model.layers[0].analyze(signal).abs().amax(1))


def test_lam_per_sample_and_per_atom() -> None:
    dictionary = dsc.DenseDictionary.random(4, 6, seed=0, dtype=torch.float64)
    signal, codes = normal(3, 4, generator=rng(0)), normal(3, 6, generator=rng(1))
    fit = 0.5 * (signal - dictionary.synthesize(codes)).square().sum(1)
    per_sample = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    per_atom = torch.arange(1.0, 7.0, dtype=torch.float64)
    for lam, expected in (
        (per_sample, per_sample * codes.abs().sum(1)),
        (per_sample[:, None], per_sample * codes.abs().sum(1)),
        (per_atom, (per_atom * codes.abs()).sum(1)),
    ):
        assert torch.allclose(dsc.Lasso(dictionary, lam).objective(codes, signal), fit + expected)
    both = dsc.Lasso(dictionary, per_sample, weights=per_atom).objective(codes, signal)
    assert torch.allclose(both, fit + per_sample * (per_atom * codes.abs()).sum(1))


def test_lam_that_could_be_read_two_ways_is_refused() -> None:
    dictionary = dsc.DenseDictionary.random(4, 6, seed=0)
    with pytest.raises(dsc.ParameterError, match=r"one number per sample or one per atom.*reshape it to \(6, 1\)"):
        dsc.solve(dsc.Lasso(dictionary, torch.ones(6)), torch.zeros(6, 4))


@given(seed=SEEDS)
def test_infinite_and_zero_weights_have_their_meaning(seed: int) -> None:
    dictionary = draw_dense(seed, family="gaussian") if seed % 2 else draw_dense(seed)
    weights = torch.ones(dictionary.atoms, dtype=torch.float64)
    weights[0] = math.inf
    problem = dsc.Lasso(dictionary, 0.1, weights=weights)
    codes = draw_codes(dictionary, seed)
    signal = draw_signal(dictionary, seed)
    codes[..., 0] = 1.0
    assert torch.isinf(problem.objective(codes, signal)).all()
    codes[..., 0] = 0.0
    assert torch.isfinite(problem.objective(codes, signal)).all()


@pytest.mark.parametrize("lam", [-1.0, math.nan, torch.tensor([0.1, -0.2]), torch.tensor([math.nan, 0.2])])
def test_lam_out_of_range_is_refused(lam: float | torch.Tensor) -> None:
    with pytest.raises(dsc.ParameterError, match=r"lam .*expected .*at least 0"):
        dsc.Lasso(dsc.DenseDictionary.random(4, 2, seed=0), lam)


def test_settings_are_checked_before_any_work() -> None:
    dense = dsc.DenseDictionary.random(4, 6, seed=0)
    conv = dsc.ConvDictionary.random(atoms=3, channels=1, size=3, seed=0)
    model = dsc.Cascade([dense, dsc.DenseDictionary.random(6, 8, seed=1)])
    with pytest.raises(dsc.DictionaryError, match=r"dictionary is a Parameter; expected a dictionary: use dsc.Dense"):
        dsc.Lasso(dense.matrix, 0.1)  # type: ignore[arg-type]
    with pytest.raises(dsc.DictionaryError, match=r"expected a dsc.Cascade: dsc.Cascade\(\[dictionary\]\)"):
        dsc.JointLasso(dense, 0.1)  # type: ignore[arg-type]
    with pytest.raises(dsc.ParameterError, match="lam has 3 entries; expected one for each of the 2 layers"):
        dsc.JointLasso(model, (0.1, 0.2, 0.3))
    with pytest.raises(dsc.ParameterError, match=r"beta\[1\] is 0.0; expected a finite number above 0"):
        dsc.JointLasso(model, 0.1, beta=(1.0, 0.0))
    with pytest.raises(dsc.ShapeError, match=r"weights has shape \(5,\); expected \(6,\) \(one per atom\)"):
        dsc.solve(dsc.Lasso(dense, 0.1, weights=torch.ones(5)), torch.zeros(2, 4))
    with pytest.raises(dsc.ShapeError, match=r"mask has shape \(3,\); expected one that broadcasts"):
        dsc.solve(dsc.Lasso(dense, 0.1, mask=torch.ones(3)), torch.zeros(2, 4))
    with pytest.raises(dsc.ParameterError, match="mask has entries that are negative or not finite"):
        dsc.Lasso(dense, 0.1, mask=torch.tensor([1.0, -1.0, 1.0, 1.0]))
    with pytest.raises(dsc.UnsupportedError, match=r"zeros with a convolutional dictionary.*small positive lam"):
        dsc.solve(dsc.Lasso(conv, 0.0), torch.zeros(1, 8, 8))
    with pytest.raises(dsc.UnsupportedError, match="joint problem hold zeros"):
        dsc.solve(dsc.JointLasso(model, (0.0, 0.1)), torch.zeros(2, 4))
    two = dsc.Cascade([conv, dsc.ConvDictionary.random(atoms=2, channels=3, size=3, seed=1)])
    with pytest.raises(dsc.ShapeError, match="layer 2 of the cascade: H = 2 is smaller than the kernel, 3"):
        dsc.solve(dsc.LayeredLasso(two, 0.1), torch.zeros(1, 4, 4))
