"""N11: bounds from learned weights, step by step: never below what happens, and attained where they can be."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.networks.unfolded.base import Unfolded
from deep_sparse_coding.networks.unfolded.build import unfold
from deep_sparse_coding.networks.unfolded.lasso import UnfoldedLasso
from strategies import SEEDS, equiangular, normal, randint, rng


@functools.cache
def frame(seed: int) -> dsc.DenseDictionary:
    return dsc.DenseDictionary.low_coherence(24, 32, seed=seed, dtype=torch.float64)


@functools.cache
def conv() -> dsc.ConvDictionary:
    return dsc.ConvDictionary.random(atoms=3, channels=2, size=4, stride=2, seed=0, dtype=torch.float64)


def learned(net: Unfolded) -> UnfoldedLasso:
    assert isinstance(net, UnfoldedLasso)
    return net


def disturb(net: UnfoldedLasso, seed: int, size: float) -> None:
    """Change all weights at random: what training would leave, or worse."""
    g = rng(seed)
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.requires_grad):
            noise = torch.randn(parameter.shape, generator=g, dtype=torch.float64).to(parameter.dtype)
            parameter += size * parameter.abs().mean() * noise


def set_to_n1(net: UnfoldedLasso, sparsity: int, noise: float = 0.0) -> None:
    """Give the network the weights W = D and the thresholds of N1, which prove convergence."""
    (plan,) = dsc.prove.convergence_plan(net.dictionary, sparsity=sparsity, noise=noise, steps=net.steps)
    with torch.no_grad():
        for k, dictionary in enumerate(net.analysis):
            dictionary.weight.copy_(net.dictionary.weight)  # type: ignore[operator,union-attr]
            net.threshold[k] = plan.thresholds[k].to(net.threshold) + 1e-12


def draw_truth(dictionary: dsc.Dictionary, sparsity: int, seed: int, batch: int = 50, low: float = -1.0) -> Tensor:
    g = rng(seed)
    truth = torch.zeros(batch, dictionary.atoms, dtype=torch.float64)
    for row in truth:
        where = torch.randperm(dictionary.atoms, generator=g)[:sparsity]
        row[where] = low + (1 - low) * torch.rand(sparsity, generator=g, dtype=torch.float64)
        row[where[0]] = 1.0
    return truth


def check(net: UnfoldedLasso, truth: Tensor, signal: Tensor, sparsity: int, noise: float) -> dsc.Guarantee:
    """Assert that bounds hold after every step, on and off the support, and return the guarantee."""
    found = net.error_bound(sparsity, amplitude=1.0, noise=noise)
    for k, codes in enumerate(net.trace(signal), start=1):
        assert isinstance(codes, Tensor)
        error = (codes - truth).detach().abs()
        assert float(error.max()) <= found.bounds[f"e_{k} = ‖x^{k} - x‖_∞"]
        if k == net.steps:
            assert float(error[truth == 0].max()) <= found.bounds[f"η_{k}: leak off the support"]
            euclid = found.bounds.get(f"‖x^{k} - x‖_2", math.inf)
            assert float(torch.linalg.vector_norm(error.flatten(1), dim=1).max()) <= euclid
    return found


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_bounds_hold_for_any_weights(seed: int) -> None:
    g = rng(seed)
    method = ("lista", "lista-cpss", "alista")[seed % 3]
    selection = (0.05, 0.1) if seed % 5 == 0 else None
    nonnegative = seed % 7 == 0
    dictionary = frame(seed % 4)
    net = learned(
        unfold(dsc.Lasso(dictionary, 0.05, nonnegative=nonnegative), 4, method=method, support_selection=selection)
    )
    disturb(net, seed, 0.2 * float(torch.rand((), generator=g)))
    sparsity, noise = randint(1, 3, g), 0.1 * (seed % 2)
    truth = draw_truth(dictionary, sparsity, seed, low=0.0 if nonnegative else -1.0)
    wave = normal(len(truth), 24, generator=g)
    signal = dictionary.synthesize(truth) + noise * wave / torch.linalg.vector_norm(wave, dim=1, keepdim=True)
    check(net, truth, signal, sparsity, noise)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_bounds_hold_for_convolutions(seed: int) -> None:
    method = ("lista", "lista-cpss", "alista")[seed % 3]
    dictionary = conv()
    net = learned(unfold(dsc.Lasso(dictionary, 0.05), 3, method=method))
    disturb(net, seed, 0.1)
    sample = dsc.sample(dictionary, sparsity=3, size=(8, 8), batch=10, seed=seed)
    check(net, sample.codes[0], sample.signal, sample.stripe_sparsity[0], 0.0)


def test_weights_of_n1_are_proved_with_its_bounds() -> None:
    dictionary = dsc.DenseDictionary.low_coherence(64, 80, seed=0, dtype=torch.float64)
    net = learned(unfold(dsc.Lasso(dictionary, 0.1), 8))
    set_to_n1(net, sparsity=3)
    truth = draw_truth(dictionary, 3, 0)
    found = check(net, truth, dictionary.synthesize(truth), 3, 0.0)
    (plan,) = dsc.prove.convergence_plan(dictionary, sparsity=3, steps=8)
    assert found.proved
    assert "no non-zero outside the true support" in found.statement
    assert found.bounds["η_8: leak off the support"] == 0
    assert float(plan.bounds[8].max()) < 0.1
    for k in range(1, 9):
        expected = float(plan.bounds[k].max())
        assert math.isclose(found.bounds[f"e_{k} = ‖x^{k} - x‖_∞"], expected, rel_tol=1e-6)
    # The same weights in float32 count its rounding.
    single = dsc.DenseDictionary(dictionary.matrix.detach().float(), normalize=True)
    rounded = learned(unfold(dsc.Lasso(single, 0.1), 8))
    set_to_n1(rounded, sparsity=3)
    assert rounded.error_bound(3).bounds["e_8 = ‖x^8 - x‖_∞"] > found.bounds["e_8 = ‖x^8 - x‖_∞"]


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_the_error_on_the_support_is_attained(scale: float) -> None:
    # Equiangular atoms, and codes whose atoms all lower the argument of the first; W = scale·D, so that f counts.
    c, s = 0.1, 3
    dictionary = equiangular(6, c)
    net = learned(unfold(dsc.Lasso(dictionary, 0.1), 1))
    theta = 0.3
    with torch.no_grad():
        net.analysis[0].weight.copy_(scale * dictionary.matrix)  # type: ignore[operator,union-attr]
        net.threshold.fill_(theta)
    truth = torch.tensor([1.0, -1.0, -1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    noise = 0.05
    signal = dictionary.synthesize(truth) - noise * dictionary.matrix[:, 0]
    found = net.error_bound(s, noise=noise)
    actual = float((net(signal) - truth)[0].abs().detach())  # type: ignore[operator]
    bound = found.bounds["e_1 = ‖x^1 - x‖_∞"]
    assert math.isclose(bound, (1 - scale) + scale * (s - 1) * c + scale * noise + theta, rel_tol=1e-6)
    assert 0.999999 * bound <= actual <= bound


def test_the_leak_is_attained_and_carried_along() -> None:
    c, s, theta = 0.1, 2, 0.15
    dictionary = equiangular(5, c)
    net = learned(unfold(dsc.Lasso(dictionary, 0.1), 2))
    with torch.no_grad():
        for analysis in net.analysis:
            analysis.weight.copy_(dictionary.matrix)  # type: ignore[operator,union-attr]
        net.threshold[0] = theta
        net.threshold[1] = 0.0
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    first = net.trace(dictionary.synthesize(truth))[0]
    assert isinstance(first, Tensor)
    one = learned(unfold(dsc.Lasso(dictionary, 0.1), 1))
    with torch.no_grad():
        one.analysis[0].weight.copy_(dictionary.matrix)  # type: ignore[operator,union-attr]
        one.threshold.fill_(theta)
    leak = one.error_bound(s).bounds["η_1: leak off the support"]
    assert math.isclose(leak, s * c - theta, rel_tol=1e-6)
    assert 0.999999 * leak <= float(first.detach()[2:].abs().max()) <= leak
    # Then: e = c + θ on the support, η off it; every other atom counts.
    e = c + theta
    found = net.error_bound(s)
    assert math.isclose(found.bounds["η_2: leak off the support"], c * (s * (e - leak) + 4 * leak), rel_tol=1e-6)
    assert "no non-zero" not in found.statement


def test_uncoupled_weights_pay_for_what_they_do_not_cancel() -> None:
    # S = I - (1 + r)WᵀD on one atom: R = -r there, and the error cannot fall below r·amplitude.
    dictionary = dsc.DenseDictionary(torch.eye(4, dtype=torch.float64))
    net = learned(unfold(dsc.Lasso(dictionary, 0.1), 2, method="lista"))
    assert net.inhibition is not None
    with torch.no_grad():
        net.threshold.zero_()
        net.inhibition[0].copy_(0.25 * torch.eye(4, dtype=torch.float64))
    truth = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = check(net, truth, truth, 1, 0.0)
    assert math.isclose(found.bounds["e_2 = ‖x^2 - x‖_∞"], 0.25, rel_tol=1e-6)
    assert math.isclose(float((net(truth) - truth).detach().abs().max()), 0.25, rel_tol=1e-9)  # type: ignore[operator]


def test_a_trained_network_is_proved_and_the_bound_is_near_what_happens() -> None:
    # The thresholds of a large lam stay above the leak while training improves the codes.
    dictionary = dsc.DenseDictionary.low_coherence(48, 60, seed=0, dtype=torch.float64)
    sample = dsc.sample(dictionary, sparsity=2, batch=600, seed=1)
    net = learned(unfold(dsc.Lasso(dictionary, 0.3), 8, ("threshold",)))
    history = net.fit(sample, epochs=3, lr=2e-3, batch_size=50)
    assert history.best < 0.9 * history.untrained
    found = check(net, sample.codes[0], sample.signal, 2, 0.0)
    assert found.proved
    actual = float((net(sample.signal) - sample.codes[0]).detach().abs().max())  # type: ignore[operator]
    assert actual >= 0.8 * found.bounds["e_8 = ‖x^8 - x‖_∞"]


@pytest.mark.parametrize("method", ["lista", "lista-cpss", "alista"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_that_keeps_supports_is_proved_where_free_training_is_not(method: str, dtype: torch.dtype) -> None:
    dictionary = dsc.DenseDictionary.low_coherence(48, 60, seed=0, dtype=dtype)
    sample = dsc.sample(dictionary, sparsity=2, batch=600, seed=1)
    fresh = dsc.sample(dictionary, sparsity=2, batch=500, seed=2)
    rate = {"lista": 1e-3, "lista-cpss": 2e-3, "alista": 1e-2}[method]
    proved = []
    for held in (None, 2):
        net = learned(unfold(dsc.Lasso(dictionary, 0.05), 8, method=method))
        history = net.fit(sample, epochs=3, lr=rate, batch_size=50, supports_up_to=held)
        assert history is net.history
        assert history.best <= history.untrained
        proved.append(check(net, fresh.codes[0], fresh.signal, 2, 0.0))
        if held:
            codes = net(fresh.signal)
            assert isinstance(codes, Tensor)
            assert not bool(codes[fresh.codes[0] == 0].any())
    assert [bool(guarantee) for guarantee in proved] == [False, True]
    assert "no non-zero outside the true support" in proved[1].statement
    assert proved[1].bounds["e_8 = ‖x^8 - x‖_∞"] < 0.1


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_supports_are_kept_for_any_weights_by_no_more_than_is_needed(seed: int) -> None:
    method = ("lista", "lista-cpss", "alista")[seed % 3]
    net = learned(unfold(dsc.Lasso(frame(seed % 4), 0.05), 4, method=method))
    disturb(net, seed, 0.1)
    before = net.threshold.detach().clone()
    net.keep_supports(2, noise=0.01)
    after = net.threshold.detach().clone()
    assert bool((after >= before).all())
    bounds = net.error_bound(2, noise=0.01).bounds
    assert bounds["η_4: leak off the support"] == 0
    net.keep_supports(2, noise=0.01)
    assert torch.allclose(net.threshold, after, rtol=1e-12, atol=0)
    # A little less where a threshold was raised, and the bound leaks.
    raised = (after > before * (1 + 1e-6))[0]
    if raised.any():
        with torch.no_grad():
            net.threshold[0, raised] *= 1 - 1e-6
        assert net.error_bound(2, noise=0.01).bounds != bounds
        assert "no non-zero" not in net.error_bound(2, noise=0.01).statement


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_single_precision_meets_its_bound_where_thresholds_are_the_leak(seed: int) -> None:
    # The simplex, turned at random so that nothing is exact: every atom lowers the others, as the bound has it.
    g = rng(seed)
    turn = torch.linalg.qr(normal(8, 8, generator=g)).Q
    dictionary = dsc.DenseDictionary((turn @ (torch.eye(8, dtype=torch.float64) - 1 / 8)).float(), normalize=True)
    net = learned(unfold(dsc.Lasso(dictionary, 1e-6), 30, method="lista" if seed % 2 else "lista-cpss"))
    with torch.no_grad():
        for analysis in net.analysis:
            analysis.weight.copy_(dictionary.matrix)  # type: ignore[operator,union-attr]
        for inhibition in net.inhibition or ():
            inhibition.copy_(torch.eye(8) - dictionary.matrix.T @ dictionary.matrix)
        net.threshold.zero_()
    net.keep_supports(3)
    truth = torch.zeros(1, 8)
    truth[0, torch.randperm(8, generator=g)[:3]] = 1.0
    found = check(net, truth.double(), dictionary.synthesize(truth), 3, 0.0)
    assert found.proved
    assert found.bounds["e_30 = ‖x^30 - x‖_∞"] < 1e-3
    for k, codes in enumerate(net.trace(dictionary.synthesize(truth)), start=1):
        assert isinstance(codes, Tensor)
        assert not bool(codes[truth == 0].any())
        if k <= 5:
            error = float((codes - truth).detach().abs().max())
            assert error >= 0.99 * found.bounds[f"e_{k} = ‖x^{k} - x‖_∞"]


def test_supports_that_cannot_be_kept() -> None:
    dictionary = frame(0)
    selective = unfold(dsc.Lasso(dictionary, 0.05), 2, support_selection=(0.05, 0.1))
    with pytest.raises(dsc.UnsupportedError, match=r"support_selection is \(0\.05, 0\.1\).*expected None"):
        selective.keep_supports(2)
    # Where ρ ≥ 1 thresholds rise, and nothing is proved.
    crowded = learned(unfold(dsc.Lasso(dsc.DenseDictionary.random(8, 16, seed=0, dtype=torch.float64), 0.1), 3))
    crowded.keep_supports(4)
    assert not crowded.error_bound(4)


def test_not_proved_where_the_error_does_not_fall() -> None:
    dictionary = dsc.DenseDictionary.random(8, 16, seed=0, dtype=torch.float64)
    net = unfold(dsc.Lasso(dictionary, 0.1), 6)
    found = net.error_bound(3)
    assert not found
    assert found.bounds["e_6 = ‖x^6 - x‖_∞"] >= 1
    assert str(found).startswith("not proved: 6 learned steps (lista-cpss)")
    assert "missing e_6, error after 6 steps" in str(found)
    # Zero weights and thresholds leave zero codes: an error of exactly the amplitude proves nothing.
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert not net.error_bound(1)
    assert net.error_bound(1, amplitude=2.0).bounds["e_6 = ‖x^6 - x‖_∞"] >= 2.0


def test_weights_that_are_not_finite_prove_nothing() -> None:
    dictionary = dsc.DenseDictionary.random(8, 10, seed=0, dtype=torch.float64)
    net = learned(unfold(dsc.Lasso(dictionary, 0.1), 3))
    with torch.no_grad():
        net.analysis[1].weight[0, 0] = math.nan  # type: ignore[index,union-attr]
    assert not net.error_bound(2)


def test_what_has_no_bound_says_so() -> None:
    first = dsc.ConvDictionary.random(atoms=1, channels=1, size=3, seed=0)
    model = dsc.Cascade([first, dsc.ConvDictionary.random(atoms=1, channels=1, size=3, seed=1)])
    for problem in (dsc.JointLasso(model, 0.1), dsc.MultiLayerLasso(model, 0.1)):
        with pytest.raises(dsc.UnsupportedError, match=r"convolutional cascade: .* from place to place.*certify"):
            unfold(problem, 2).error_bound(2)
    same = dsc.ConvDictionary.random(atoms=2, channels=1, size=3, boundary="same", seed=0)
    with pytest.raises(dsc.UnsupportedError, match="same"):
        unfold(dsc.Lasso(same, 0.1), 2).error_bound(2)
    loud = dsc.DenseDictionary(2 * torch.eye(3, dtype=torch.float64))
    with pytest.raises(dsc.ParameterError, match="atom 0 of layer 1 has norm 2"):
        unfold(dsc.Lasso(loud, 0.1), 2).error_bound(1)
