"""N2: layer after layer, the error of one is the noise of the next; counted per place, not per stripe."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.networks import CompiledCNN, codes_by_depth, convergence_plan, to_cnn

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64


def check(net: CompiledCNN, signal: torch.Tensor, codes: tuple[torch.Tensor, ...]) -> list[float]:
    """Check error and support of every layer after every step; return actual over bound."""
    ratios = []
    for mark, estimate in zip(net.plan.bound_by_depth, codes_by_depth(net, signal), strict=True):
        truth = codes[mark.layer - 1]
        error = float((estimate.codes - truth).abs().max())
        assert error <= mark.bound
        assert not estimate.codes[truth == 0].any()
        ratios.append(error / mark.bound)
    assert float((net(signal) - codes[len(net.plan.layers) - 1]).abs().max()) <= net.error_bound
    return ratios


def two_layers(dtype: torch.dtype = F64) -> dsc.Cascade:
    return dsc.Cascade(
        [
            dsc.ConvDictionary.low_coherence(atoms=16, channels=1, size=8, stride=4, seed=0, dtype=dtype),
            dsc.ConvDictionary.low_coherence(atoms=16, channels=16, size=3, stride=2, nonzeros=4, seed=0, dtype=dtype),
        ]
    )


@pytest.fixture(scope="module")
def cascade() -> dsc.Cascade:
    return two_layers()


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_true_error_is_below_the_bound_at_every_depth(cascade: dsc.Cascade, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    sample = dsc.sample(cascade, sparsity=(1000, 3), size=(7, 6), batch=2, amplitude=2.0, seed=seed)
    noise = 0.01 * (seed % 3)
    wave = torch.randn(sample.signal.shape, generator=rng, dtype=F64)
    signal = sample.signal + noise * wave / wave.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    settings_ = {
        "sparsity": sample.stripe_sparsity,
        "amplitude": sample.amplitudes,
        "place_sparsity": sample.place_sparsity,
        "noise": noise * (1 + 1e-12),
    }
    if max(layer.rate for layer in convergence_plan(cascade, steps=0, **settings_)) >= 1:  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="does not shrink"):
            to_cnn(cascade, steps=3, **settings_)  # type: ignore[arg-type]
        return
    check(to_cnn(cascade, steps=(12, 20), **settings_), signal, sample.codes)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [14, 28])
def test_codes_in_single_precision_stay_within_the_bound(seed: int) -> None:
    model = two_layers(torch.float32)
    sample = dsc.sample(model, sparsity=(1000, 16 if seed == 14 else 12), size=(15, 15), seed=seed)
    net = to_cnn(
        model,
        sparsity=sample.stripe_sparsity,
        amplitude=sample.amplitudes,
        place_sparsity=sample.place_sparsity,
        target_error=1e-2,
    )
    ratios = check(net, sample.signal, sample.codes)
    assert min(ratios) > 0.4
    deep = to_cnn(
        model,
        sparsity=sample.stripe_sparsity,
        amplitude=sample.amplitudes,
        place_sparsity=sample.place_sparsity,
        steps=(60, 80),
    )
    check(deep, sample.signal, sample.codes)
    assert deep.error_bound < 3e-3


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_dense_cascades(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    # Sparse atoms above, so that x_1 = D_2 x_2 is sparse: disjoint pairs of layer-1 atoms.
    matrix = torch.zeros(24, 12, dtype=F64)
    for column, pair in enumerate(torch.randperm(24, generator=rng).reshape(12, 2)):
        matrix[pair, column] = torch.randn(2, generator=rng, dtype=F64)
    first = dsc.DenseDictionary.random(400, 24, seed=seed, dtype=F64)
    model = dsc.Cascade([first, dsc.DenseDictionary(matrix, normalize=True)])
    sample = dsc.sample(model, sparsity=(2, 1), batch=8, seed=seed)
    if convergence_plan(model, sparsity=(2, 1), steps=0)[0].rate >= 1:
        return
    net = to_cnn(model, sparsity=(2, 1), steps=(10, 4), epsilon=(0.0, 0.0))
    check(net, sample.signal, sample.codes)


def shrunk_pairs(c: float = 0.3) -> tuple[dsc.Cascade, tuple[torch.Tensor, ...]]:
    """Return a cascade whose layer 2 sees three shrunk non-zeros at once, each alone in its stripe of layer 1."""
    first = torch.tensor([[[1.0, 0.0]], [[c, math.sqrt(1 - c * c)]]], dtype=F64)
    second = torch.zeros(2, 2, 5, dtype=F64)
    second[0, 0, 0], second[0, 1, 2], second[0, 0, 4] = 1.0, -1.0, 1.0
    second[1, 1, 0], second[1, 1, 1], second[1, 0, 3] = 1.0, 1.0, -1.0
    model = dsc.Cascade(
        [
            dsc.ConvDictionary(first, stride=2),
            dsc.ConvDictionary(second, normalize=True),
        ]
    )
    deepest = torch.zeros(1, 2, 7, dtype=F64)
    deepest[0, 0, 3] = 1.0
    middle = model.synthesize(deepest, to=1)
    return model, (middle, deepest)


def test_a_kernel_longer_than_a_stripe_counts_places() -> None:
    model, codes = shrunk_pairs()
    assert int(dsc.stripe_sparsity(model.layers[0], codes[0])) == 1
    assert int(dsc.place_sparsity(model.layers[1], codes[0])) == 3
    amplitude = (1 / math.sqrt(3), 1.0)
    net = to_cnn(model, sparsity=(1, 1), amplitude=amplitude, place_sparsity=3, steps=(2, 12))
    ratios = check(net, model.synthesize(codes[1]), codes)
    # All three errors of layer 1 are at their bound and pull the same way, so both bounds are attained.
    assert ratios[1] >= 0.999
    assert ratios[-1] >= 0.999
    by_cover = to_cnn(model, sparsity=(1, 1), amplitude=amplitude, steps=(2, 12))
    assert by_cover.plan.layers[1].hypotheses.place_sparsity == 5
    assert by_cover.error_bound > net.error_bound
    # Counted per stripe (one non-zero), the bound would be wrong.
    wrong = to_cnn(model, sparsity=(1, 1), amplitude=amplitude, place_sparsity=1, steps=(2, 12))
    error = float((wrong(model.synthesize(codes[1])) - codes[1]).abs().max())
    assert error > wrong.error_bound


def test_noise_at_its_bound_passes_through_both_layers() -> None:
    model, codes = shrunk_pairs()
    signal = model.synthesize(codes[1])
    kernels = model.layers[0].weight
    # Under every atom that is used, noise along the atom and against its code.
    noisy = signal.clone()
    for channel, position in (codes[0][0] != 0).nonzero().tolist():
        sign = float(codes[0][0, channel, position].sign())
        noisy[0, :, 2 * position : 2 * position + 2] -= 0.01 * sign * kernels[channel]
    net = to_cnn(
        model, sparsity=(1, 1), amplitude=(1 / math.sqrt(3), 1.0), noise=0.01, place_sparsity=3, steps=(20, 30)
    )
    ratios = check(net, noisy, codes)
    assert ratios[19] >= 0.999
    assert ratios[-1] >= 0.999


def test_epsilon_between_the_layers() -> None:
    model, codes = shrunk_pairs()
    noisy = codes[0] - 0.02 * model.layers[1].synthesize(codes[1])
    signal = model.layers[0].synthesize(noisy)
    net = to_cnn(
        model,
        sparsity=(1, 1),
        amplitude=(1 / math.sqrt(3), 1.0),
        epsilon=(0.0, 0.02 * (1 + 1e-9)),
        place_sparsity=3,
        steps=(25, 30),
    )
    ratios = check(net, signal, (noisy, codes[1]))
    assert ratios[-1] >= 0.99


def test_a_target_below_the_floor_is_refused_with_the_numbers() -> None:
    model, _ = shrunk_pairs()
    floor = convergence_plan(model, sparsity=1, noise=0.05, place_sparsity=3, steps=400)[-1].bounds[-1].max()
    with pytest.raises(
        ParameterError, match=r"bound of layer 2 stays above .* \(layer 1: ρ = 0.300, ν = 0.05"
    ) as caught:
        to_cnn(model, sparsity=1, noise=0.05, place_sparsity=3, target_error=float(floor) * 0.999)
    assert "raise target_error" in str(caught.value)
    net = to_cnn(model, sparsity=1, noise=0.05, place_sparsity=3, target_error=float(floor) * 1.001)
    assert float(floor) <= net.error_bound <= float(floor) * 1.001


def test_a_layer_that_does_not_contract_is_named() -> None:
    model = two_layers()
    with pytest.raises(ParameterError, match=r"layer 2: .* ρ = 1\.\d+ at 5 .* expected ρ < 1: sparsity of at most 2"):
        to_cnn(model, sparsity=(4, 5), target_error=0.1)
    with pytest.raises(ParameterError, match=r"layer 1: .* at 9 non-zeros per stripe"):
        to_cnn(model, sparsity=(9, 2), target_error=0.1)
