"""Unfolded networks: untrained they are the solver's steps, trained they need far fewer; training is deterministic."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import deep_sparse_coding as dsc
from deep_sparse_coding.networks.analysis import analytic_weights
from deep_sparse_coding.networks.unfolded.build import unfold
from deep_sparse_coding.networks.unfolded.training import TrainingProgress
from deep_sparse_coding.problems import Blocks, ConvexProblem
from strategies import SEEDS, draw_conv, draw_dense, draw_signal


def ista(problem: ConvexProblem, signal: Tensor, steps: int) -> Blocks:
    """Return the codes of so many steps of the solver, one batch axis."""
    form = problem.form(signal)
    solver = dsc.ISTA()
    state = solver.init(form, form.zeros(), 0.0)
    for _ in range(steps):
        state = solver.step(form, state)
    return state.codes


def model(dtype: torch.dtype = torch.float64) -> dsc.Cascade:
    return dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=4, channels=2, size=4, stride=2, seed=0, dtype=dtype),
            dsc.ConvDictionary.random(atoms=5, channels=4, size=3, seed=1, dtype=dtype),
        ]
    )


def nmse(codes: object, truth: Tensor) -> float:
    assert isinstance(codes, Tensor)
    return float(((codes - truth).square().sum() / truth.square().sum()).detach())


# ---------------------------------------------------------------------- before training


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_untrained_it_is_ista(seed: int) -> None:
    if seed % 2:
        dictionary: dsc.Dictionary = draw_dense(seed)
    else:
        dictionary = draw_conv(seed, boundary=("valid", "circular", "same")[seed % 3])
    generator = torch.Generator().manual_seed(seed)
    weights = 0.5 + torch.rand(dictionary.atoms, generator=generator, dtype=torch.float64)
    problem = dsc.Lasso(dictionary, 0.1, weights=weights, nonnegative=seed % 5 == 0)
    signal = draw_signal(dictionary, seed, batch=(3,))
    for method in ("lista", "lista-cpss"):
        net = unfold(problem, 6, method=method)
        (expected,) = ista(problem, signal, 6)
        codes = net(signal)
        assert isinstance(codes, Tensor)
        assert float((codes - expected).detach().abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max()))
        assert len(net.trace(signal)) == 6
        one = net(signal[0])
        assert isinstance(one, Tensor)
        assert torch.allclose(one, codes[0], atol=1e-13)


def test_alista_starts_with_analytic_weights_and_is_ista_where_they_are_the_atoms() -> None:
    dictionary = dsc.DenseDictionary(
        torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    )
    problem = dsc.Lasso(dictionary, 0.1)
    signal = draw_signal(dictionary, 0, batch=(4,))
    codes = unfold(problem, 3, method="alista")(signal)
    assert torch.allclose(codes, ista(problem, signal, 3)[0], atol=1e-12)  # type: ignore[arg-type]


def test_analytic_weights_are_least_coherent_in_the_mean() -> None:
    dense = dsc.DenseDictionary.random(6, 10, seed=0, dtype=torch.float64)
    conv = dsc.ConvDictionary.random(atoms=3, channels=2, size=(3, 2), stride=(2, 1), seed=0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for dictionary in (dense, conv):
        weights = analytic_weights(dictionary)
        least = dictionary.gram_rows(analysis=weights)
        middle = least.shape[-1] // 2
        assert torch.allclose(least[..., middle].diagonal(), torch.ones(dictionary.atoms, dtype=torch.float64))
        for _ in range(10):
            other = weights + 0.1 * torch.randn(weights.shape, generator=generator, dtype=torch.float64)
            own = dictionary.gram_rows(analysis=other)[..., middle].diagonal()
            scaled = other / (own if dictionary is dense else own[:, None, None, None])
            assert float(dictionary.gram_rows(analysis=scaled).square().sum()) > float(least.square().sum())


def test_untrained_joint_network_is_the_proximal_gradient_of_the_joint_problem() -> None:
    problem = dsc.JointLasso(model(), lam=(0.05, 0.02), beta=(1.0, 3.0))
    signal = torch.randn(2, 3, 2, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = unfold(problem, 5)
    codes = net(signal)
    expected = ista(problem, signal, 5)
    assert isinstance(codes, tuple)
    for found, want in zip(codes, expected, strict=True):
        assert float((found.flatten(0, 1) - want).detach().abs().max()) <= 1e-12
    objective = net.objective(codes, signal).detach()
    assert torch.allclose(objective.reshape(2, 3), problem.objective(tuple(x.detach() for x in codes), signal))


def test_untrained_ml_lista_is_ml_ista() -> None:
    problem = dsc.MultiLayerLasso(model(), lam=(0.05, 0.02))
    signal = torch.randn(3, 2, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = unfold(problem, 7)
    expected = dsc.solve(problem, signal, dsc.MLISTA(), tol=0, max_steps=7, on_failure="ignore")
    assert expected.steps.tolist() == [7, 7, 7]
    codes = net(signal)
    assert isinstance(codes, Tensor)
    assert float((codes - expected.codes).detach().abs().max()) <= 1e-12  # type: ignore[operator]
    assert torch.allclose(net.objective(codes, signal).detach(), problem.objective(codes.detach(), signal))


def test_support_selection_lets_the_largest_pass() -> None:
    problem = dsc.Lasso(dsc.DenseDictionary(torch.eye(10, dtype=torch.float64)), 0.5)
    signal = torch.arange(1.0, 11.0, dtype=torch.float64)
    plain, chosen = unfold(problem, 1)(signal), unfold(problem, 1, support_selection=(0.25, 1.0))(signal)
    assert isinstance(plain, Tensor) and isinstance(chosen, Tensor)  # noqa: PT018
    assert torch.allclose(chosen[:8], plain[:8])
    assert torch.allclose(chosen[8:], signal[8:])


# ---------------------------------------------------------------------- training


def test_trained_steps_do_what_five_times_as_many_steps_of_ista_do() -> None:
    dictionary = dsc.DenseDictionary.random(32, 64, seed=0)
    train = dsc.sample(dictionary, sparsity=3, batch=1200, seed=1)
    test = dsc.sample(dictionary, sparsity=3, batch=200, seed=2)
    steps = 8
    best = min(
        nmse(ista(dsc.Lasso(dictionary, lam), test.signal, 5 * steps)[0], test.codes[0])
        for lam in (0.01, 0.02, 0.05, 0.1, 0.2)
    )
    for method, rate in (("lista-cpss", 4e-3), ("alista", 2e-2)):
        net = unfold(dsc.Lasso(dictionary, 0.05), steps, method=method)
        history = net.fit(train, epochs=8, lr=rate, batch_size=40)
        assert net.history is history
        assert nmse(net(test.signal), test.codes[0]) < best
        assert history.best < 0.2 * history.untrained


@pytest.mark.parametrize("kind", ["lasso", "joint", "ml"])
def test_the_objective_falls_without_any_codes(kind: str) -> None:
    cascade = model()
    problem: dsc.Problem = {
        "lasso": dsc.Lasso(cascade.layers[0], 0.1),
        "joint": dsc.JointLasso(cascade, 0.05),
        "ml": dsc.MultiLayerLasso(cascade, 0.05),
    }[kind]
    signals = torch.randn(40, 2, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = unfold(problem, 3)
    with torch.no_grad():
        before = float(problem.objective(net(signals), signals).sum())
        history = net.fit(signals, loss="objective", epochs=4, batch_size=10, lr=2e-3)
        after = float(problem.objective(net(signals), signals).sum())
    assert after < before
    assert history.loss == "objective"
    assert history.best < history.untrained


def small() -> tuple[dsc.Lasso, dsc.Sample]:
    dictionary = dsc.DenseDictionary.random(8, 12, seed=0, dtype=torch.float64)
    return dsc.Lasso(dictionary, 0.05), dsc.sample(dictionary, sparsity=2, batch=60, seed=1)


def test_the_same_seed_gives_the_same_bits_and_nothing_else_is_drawn_from() -> None:
    problem, sample = small()
    state = torch.get_rng_state()
    first, second, other = (unfold(problem, 3) for _ in range(3))
    first.fit(sample, epochs=3, batch_size=16, seed=5)
    torch.rand(3)
    torch.set_rng_state(state)
    second.fit(sample.signal, sample.codes[0], epochs=3, batch_size=16, seed=5)
    other.fit(sample, epochs=3, batch_size=16, seed=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.history is not None and second.history is not None  # noqa: PT018
    assert first.history.held_out == second.history.held_out
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert any(not torch.equal(v, other.state_dict()[n]) for n, v in first.state_dict().items())


def test_a_function_draws_the_signals() -> None:
    problem, _ = small()
    asked: list[int] = []

    def draw(batch: int, seed: int) -> dsc.Sample:
        asked.append(batch)
        return dsc.sample(problem.dictionary, sparsity=2, batch=batch, seed=seed)

    net = unfold(problem, 3)
    history = net.fit(draw, epochs=3, batches=4, batch_size=20, lr=3e-3)
    assert asked == [160] + [20] * 12
    assert history.best < history.untrained


def test_only_what_is_to_be_learned_changes_and_thresholds_stay_above_zero() -> None:
    problem, sample = small()
    for method, learn, names in (
        ("lista", ("analysis",), ("analysis", "inhibition")),
        ("lista-cpss", ("threshold",), ("threshold",)),
        ("alista", ("step",), ("step",)),
    ):
        net = unfold(problem, 3, learn, method=method)
        before = copy.deepcopy(net.state_dict())
        net.fit(sample, epochs=2, batch_size=16, lr=1e-3)
        changed = {
            name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])
        }
        assert changed == set(names)
        assert all(float(p.detach().min()) >= 0 for p in net.thresholds())


def test_the_best_weights_are_kept_and_training_can_be_stopped() -> None:
    problem, sample = small()
    seen: list[TrainingProgress] = []

    def watch(progress: TrainingProgress) -> bool:
        seen.append(progress)
        return progress.epoch == 2

    net = unfold(problem, 3)
    history = net.fit(sample, epochs=9, callback=watch)
    assert [p.epoch for p in seen] == [1, 2]
    assert history.stopped == "callback"
    assert seen[-1].held_out == history.held_out[-1]
    # So large a rate makes things worse at once: the untrained weights are what is kept.
    wild = unfold(problem, 3)
    before = copy.deepcopy(wild.state_dict())
    history = wild.fit(sample, epochs=30, lr=50.0, patience=4)
    assert history.stopped == "patience"
    assert history.best_epoch == 0
    assert len(history.held_out) == 4
    assert history.best == history.untrained
    assert all(torch.equal(value, before[name]) for name, value in wild.state_dict().items())
    assert "stopped by patience" in str(history)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    problem, sample = small()
    net = unfold(problem, 3)
    with pytest.raises(dsc.NotConvergedError, match=r"loss is (nan|inf) in epoch \d+, batch \d+.*lower lr"):
        net.fit(sample, epochs=5, lr=1e200)
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
    with pytest.raises(dsc.NotConvergedError, match="loss of the untrained network is nan"):
        net.fit(sample.signal * math.nan, sample.codes[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"held_out": 0.0}, "held_out is 0.0"),
        ({"loss": "codse"}, "loss is 'codse'; .* did you mean 'codes'"),
        ({"patience": 0}, "patience is 0"),
        ({"callback": 3}, "callback is 3"),
    ],
)
def test_bad_settings_of_training(options: dict[str, object], message: str) -> None:
    problem, sample = small()
    with pytest.raises(dsc.ParameterError, match=message):
        unfold(problem, 2).fit(sample, **options)  # type: ignore[arg-type]


def test_bad_data_of_training() -> None:
    problem, sample = small()
    net = unfold(problem, 2)
    with pytest.raises(dsc.ParameterError, match="loss is 'codes' and there are no codes"):
        net.fit(sample.signal, loss="codes")
    with pytest.raises(dsc.ShapeError, match="exactly one batch axis"):
        net.fit(sample.signal[0])
    with pytest.raises(dsc.ShapeError, match=r"codes have shape \(59, 12\); expected \(60, 12\)"):
        net.fit(sample.signal, sample.codes[0][1:])
    with pytest.raises(dsc.ParameterError, match=r"dsc\.Sample, which has its own"):
        net.fit(sample, sample.codes[0])
    with pytest.raises(dsc.ParameterError, match="nothing of the network"):
        unfold(problem, 2, ()).fit(sample)


# ---------------------------------------------------------------------- as a module


def test_it_is_a_module() -> None:
    problem, sample = small()
    net = unfold(problem, 3, method="lista")
    assert isinstance(net, nn.Module)
    assert "method='lista', steps=3" in repr(net)
    codes = net(sample.signal)
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(again(sample.signal), codes)  # type: ignore[arg-type]
    signal = sample.signal.clone().requires_grad_()
    net(signal).sum().backward()  # type: ignore[union-attr]
    assert signal.grad is not None
    assert problem.dictionary.matrix.grad is None  # type: ignore[union-attr]
    single = copy.deepcopy(net).float()
    assert torch.allclose(single(sample.signal.float()).double(), codes, atol=1e-5)  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 0}, dsc.ParameterError, "steps is 0"),
        ({"method": "listta"}, dsc.ParameterError, "method is 'listta'; .* did you mean 'lista'"),
        ({"method": "joint"}, dsc.ParameterError, "'joint' is for a dsc.JointLasso, and the problem is a Lasso"),
        ({"learn": ("step",)}, dsc.ParameterError, "learn has 'step'; expected some of 'analysis', 'threshold'"),
        ({"support_selection": (0.1,)}, dsc.ParameterError, "support_selection is"),
        ({"support_selection": (2.0, 1.0)}, dsc.ParameterError, r"support_selection\[0\] is 2"),
    ],
)
def test_bad_settings(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unfold(small()[0], **change)  # type: ignore[arg-type]


def test_problems_that_are_not_unfolded() -> None:
    dictionary = small()[0].dictionary
    for options, word in (
        ({"mask": torch.ones(8)}, "mask"),
        ({"ridge": 0.1}, "ridge"),
        ({"box": (-1.0, 1.0)}, "box"),
    ):
        with pytest.raises(dsc.UnsupportedError, match=f"the problem has {word}"):
            unfold(dsc.Lasso(dictionary, 0.1, **options))  # type: ignore[arg-type]
    with pytest.raises(dsc.UnsupportedError, match=r"lam has shape \(3,\); unfold takes a number or one per atom"):
        unfold(dsc.Lasso(dictionary, torch.ones(3, dtype=torch.float64)))
    with pytest.raises(dsc.UnsupportedError, match="does not take a BasisPursuit"):
        unfold(dsc.BasisPursuit(dictionary, 0.1))
