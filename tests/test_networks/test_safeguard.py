"""A network that certifies itself: every code is within `tol`, and the solver works only where it must."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import deep_sparse_coding as dsc
from deep_sparse_coding.networks.safeguard import Safeguarded
from strategies import SEEDS, draw_signal


class Given(nn.Module):
    """Returns what it was given, whatever the signal."""

    def __init__(self, codes: object) -> None:
        super().__init__()
        self.codes = codes
        self.calls = 0

    def forward(self, signal: Tensor) -> object:
        self.calls += 1
        return self.codes


def problem_of(seed: int = 0, lam: float | Tensor = 0.1) -> dsc.Lasso:
    return dsc.Lasso(dsc.DenseDictionary.random(8, 14, seed=seed, dtype=torch.float64), lam)


def signals(problem: dsc.Lasso, batch: int = 6, seed: int = 1) -> Tensor:
    return draw_signal(problem.dictionary, seed, batch=(batch,))


def true_gap(problem: dsc.Problem, signal: Tensor, codes: object) -> Tensor:
    return dsc.certify(problem, signal, codes).relative_gap  # type: ignore[arg-type]


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_the_gap_is_small_for_every_input_and_only_bad_samples_are_solved(seed: int) -> None:
    problem = problem_of(seed)
    y = signals(problem, seed=seed)
    good = dsc.solve(problem, y, tol=1e-9).codes
    assert isinstance(good, Tensor)
    bad = good.clone()
    bad[1] += 1.0
    bad[3] = math.nan
    bad[4] = 1e200
    coder = Safeguarded(Given(bad), problem, tol=1e-6, on_failure="raise")
    codes = coder(y)
    report = coder.last
    assert report is not None
    assert report.needed.tolist() == [False, True, False, True, True, False]
    assert report.share == 0.5
    assert bool((true_gap(problem, y, codes) <= 1e-6).all())
    assert torch.equal(codes[~report.needed], bad[~report.needed])
    assert torch.allclose(report.relative_gap, true_gap(problem, y, codes), atol=1e-12)
    assert math.isnan(float(report.network_gap[3]))
    assert report.solution is not None
    assert report.solution.signal.shape == (3, 8)
    assert bool(report.certified.all())


def test_a_network_that_is_good_enough_is_left_alone() -> None:
    problem = problem_of()
    y = signals(problem)
    good = dsc.solve(problem, y, tol=1e-9).codes
    coder = Safeguarded(Given(good), problem, tol=1e-6)
    assert coder.last is None
    assert torch.equal(coder(y), good)  # type: ignore[arg-type]
    assert coder.last is not None
    assert coder.last.share == 0
    assert coder.last.solution is None
    assert str(coder.last).startswith("0/6 needed the solver · relative gap ≤ ")
    assert "tol=1e-06" in repr(coder)


def test_the_solver_starts_from_the_codes_of_the_network() -> None:
    problem = problem_of()
    y = signals(problem)
    nearly = dsc.solve(problem, y, dsc.FISTA(), tol=1e-7).codes
    assert isinstance(nearly, Tensor)
    near = Safeguarded(Given(nearly), problem, tol=1e-8, solver=dsc.FISTA())
    far = Safeguarded(Given(torch.zeros_like(nearly)), problem, tol=1e-8, solver=dsc.FISTA())
    near(y)
    far(y)
    assert near.last is not None and far.last is not None  # noqa: PT018
    assert near.last.solution is not None and far.last.solution is not None  # noqa: PT018
    assert int(near.last.solution.steps.max()) < int(far.last.solution.steps.max())
    # Codes that are worse than none are no start.
    worse = Safeguarded(Given(1e8 + torch.zeros_like(nearly)), problem, tol=1e-8, solver=dsc.FISTA())
    worse(y)
    assert worse.last is not None and worse.last.solution is not None  # noqa: PT018
    assert torch.equal(worse.last.solution.steps, far.last.solution.steps)


def test_settings_of_single_samples_stay_with_them() -> None:
    lam = torch.tensor([0.05, 0.1, 0.2, 0.4], dtype=torch.float64)
    problem = problem_of(lam=lam)
    y = signals(problem, batch=4)
    codes = dsc.solve(problem, y, tol=1e-9).codes
    assert isinstance(codes, Tensor)
    bad = codes.clone()
    bad[2] = 0.3
    coder = Safeguarded(Given(bad), problem, tol=1e-6, on_failure="raise")
    answer = coder(y)
    assert torch.allclose(answer, codes, atol=1e-5)
    assert torch.equal(answer[[0, 1, 3]], bad[[0, 1, 3]])
    assert coder.last is not None
    assert coder.last.needed.tolist() == [False, False, True, False]


@pytest.mark.parametrize("kind", [dsc.LayeredLasso, dsc.JointLasso])
def test_cascades_return_a_tuple(kind: type[dsc.LayeredLasso] | type[dsc.JointLasso]) -> None:
    model = dsc.Cascade(
        [
            dsc.DenseDictionary.random(8, 10, seed=0, dtype=torch.float64),
            dsc.DenseDictionary.random(10, 12, seed=1, dtype=torch.float64),
        ]
    )
    problem = kind(model, lam=(0.05, 0.02))
    y = draw_signal(model.layers[0], 3, batch=(2, 3))
    good = dsc.solve(problem, y, tol=1e-8).codes
    bad = [layer.clone() for layer in good]
    bad[1][0, 1] = math.nan
    bad[0][1, 2] += 0.5
    coder = Safeguarded(Given(bad), problem, tol=1e-6, on_failure="raise")
    codes = coder(y)
    assert isinstance(codes, tuple)
    assert [tuple(x.shape) for x in codes] == [(2, 3, 10), (2, 3, 12)]
    assert coder.last is not None
    assert coder.last.needed.tolist() == [[False, True, False], [False, False, True]]
    assert bool((true_gap(problem, y, codes) <= 1e-6).all())
    with pytest.raises(dsc.ShapeError, match=r"network's output does not fit .* 1 entries; expected a tuple with one"):
        Safeguarded(Given(bad[:1]), problem)(y)


def test_wrong_shapes_and_kinds_are_errors() -> None:
    problem = problem_of()
    y = signals(problem)
    with pytest.raises(dsc.ShapeError, match=r"network's output does not fit .* \(6, 13\); expected \(6, 14\)"):
        Safeguarded(Given(torch.zeros(6, 13, dtype=torch.float64)), problem)(y)
    with pytest.raises(dsc.DtypeError, match=r"codes has dtype torch\.float32|codes have dtype|float32"):
        Safeguarded(Given(torch.zeros(6, 14)), problem)(y)
    with pytest.raises(dsc.DtypeError, match="NoneType"):
        Safeguarded(Given(None), problem)(y)
    net = Given(None)
    with pytest.raises(dsc.ShapeError):
        Safeguarded(net, problem)(y[:, :5])
    assert net.calls == 0


def test_a_failure_of_the_solver_is_said() -> None:
    problem = problem_of()
    y = signals(problem)
    zeros = Given(torch.zeros(6, 14, dtype=torch.float64))
    with pytest.raises(dsc.NotConvergedError, match=r"6 of 6 samples are not (.|\n)*sample 0: ran out of steps"):
        Safeguarded(zeros, problem, tol=1e-9, solver=dsc.ISTA(), max_steps=1, on_failure="raise")(y)
    coder = Safeguarded(zeros, problem, tol=1e-9, solver=dsc.ISTA(), max_steps=1)
    with pytest.warns(dsc.DSCWarning, match=r"\.\.\. and 3 more"):
        coder(y)
    assert coder.last is not None
    assert not bool(coder.last.certified.any())
    assert "6 not certified" in str(coder.last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Safeguarded(zeros, problem, tol=1e-9, max_steps=1, solver=dsc.ISTA(), on_failure="ignore")(y)
    y[2] = math.nan
    with pytest.warns(dsc.DSCWarning, match=r"1 of 6 .*\n  sample 2: the signal or its lam is NaN"):
        codes = Safeguarded(zeros, problem)(y)
    assert bool(torch.isnan(codes[2]).all())
    assert bool(torch.isfinite(codes[[0, 1, 3, 4, 5]]).all())


def test_one_signal_no_signal_gradients_copies() -> None:
    problem = problem_of()
    y = signals(problem)
    linear = nn.Linear(8, 14, dtype=torch.float64)
    coder = Safeguarded(linear, problem, tol=1e-5, on_failure="raise")
    codes = coder(y[0])
    assert codes.shape == (14,)
    assert not codes.requires_grad
    assert coder.last is not None
    assert coder.last.needed.shape == ()
    assert coder(y[:0]).shape == (0, 14)
    assert coder.last.share == 0
    assert str(coder.last) == "safeguard of an empty batch"
    for again in (copy.deepcopy(coder), pickle.loads(pickle.dumps(coder))):
        assert torch.equal(again(y[0]), codes)


def test_a_compiled_network_in_single_precision() -> None:
    conv = dsc.ConvDictionary.low_coherence(atoms=2, channels=1, size=4, stride=2, seed=0)
    net = dsc.to_cnn(conv, sparsity=1, target_error=1e-2)
    sample = dsc.sample(conv, sparsity=3, size=(4, 4), batch=3, seed=0)
    problem = dsc.Lasso(conv, 0.01)
    coder = Safeguarded(net, problem, tol=1e-3, on_failure="raise")
    codes = coder(sample.signal)
    assert codes.dtype == torch.float32
    assert bool((true_gap(problem, sample.signal, codes) <= 1e-3).all())


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"tol": -1.0}, "tol is -1.0"),
        ({"tol": math.nan}, "tol is nan"),
        ({"on_failure": "never"}, "on_failure is 'never'; expected 'warn', 'raise' or 'ignore'"),
        ({"max_steps": -1}, "max_steps is -1"),
    ],
)
def test_bad_settings(settings_: dict[str, object], message: str) -> None:
    with pytest.raises(dsc.ParameterError, match=message):
        Safeguarded(nn.Identity(), problem_of(), **settings_)  # type: ignore[arg-type]


def test_bad_parts() -> None:
    with pytest.raises(dsc.ParameterError, match=r"net is a function; expected a torch\.nn\.Module"):
        Safeguarded(lambda y: y, problem_of())  # type: ignore[arg-type]
    with pytest.raises(dsc.ParameterError, match="problem is a float"):
        Safeguarded(nn.Identity(), 0.1)  # type: ignore[arg-type]
    with pytest.raises(dsc.UnsupportedError, match="SparseApproximation has no duality gap"):
        Safeguarded(nn.Identity(), dsc.SparseApproximation(problem_of().dictionary, sparsity=2))
