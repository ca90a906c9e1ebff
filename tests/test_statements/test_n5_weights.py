"""N5: analysis weights: all have w_iᵀd_i = 1, each minimizes what it says, and the bound chooses among them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.dictionaries.coherence import top_sum
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.guarantees.hypotheses import layer_hypotheses
from deep_sparse_coding.networks import codes_by_depth, to_cnn
from deep_sparse_coding.networks.analysis import WEIGHTS, analysis_weights, shifted_atoms
from strategies import draw_conv, draw_dense, equiangular, normal, rng, simplex

SEEDS = st.integers(0, 2**31 - 1)
F64 = torch.float64


def rows(dictionary: dsc.Dictionary, analysis: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return ``WᵀD`` off its diagonal, flattened per row, and its diagonal."""
    gram = dictionary.gram_rows(slice(None), analysis).clone()
    index, middle = torch.arange(dictionary.atoms), gram.shape[-1] // 2
    own = gram[index, index, middle].clone()
    gram[index, index, middle] = 0.0
    return gram.flatten(1), own


def measure(gram: Tensor, s: int, nonnegative: bool) -> Tensor:
    up, down = (gram.clamp_min(0), (-gram).clamp_min(0)) if nonnegative else (gram.abs(), gram.abs())
    return top_sum(up, s) + top_sum(down, s - 1)


def draw(seed: int) -> dsc.Dictionary:
    return draw_dense(seed, max_d=8) if seed % 2 else draw_conv(seed)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_each_kind_minimizes_what_it_says(seed: int) -> None:
    dictionary = draw(seed)
    s, nonnegative = 1 + seed % 3, seed % 5 == 0
    (assumed,) = layer_hypotheses(dictionary, sparsity=s, nonnegative=nonnegative)
    found = {kind: analysis_weights(dictionary, assumed, kind) for kind in WEIGHTS}
    assert found["atoms"] is None
    sums, squares = {}, {}
    for kind, analysis in found.items():
        if analysis is not None:
            assert analysis.shape == dictionary.weight.shape
        gram, own = rows(dictionary, analysis)
        assert torch.allclose(own, torch.ones_like(own), atol=1e-9)
        sums[kind], squares[kind] = measure(gram, s, nonnegative), gram.square().sum(1)
    for kind in ("atoms", "pseudo-inverse"):
        assert bool((sums["program"] <= sums[kind] + 1e-6).all())
        assert bool((squares["pseudo-inverse"] <= squares[kind] + 1e-9).all())
    assert bool((squares["pseudo-inverse"] <= squares["program"] + 1e-6).all())
    # No direction improves the program: it is a minimum of a convex function.
    program = found["program"]
    assert program is not None
    own = dictionary.weight.detach() if isinstance(dictionary, dsc.ConvDictionary) else dictionary.weight.detach().T
    flat = own.flatten(1)
    for trial in range(5):
        move = normal(*flat.shape, generator=rng(seed + trial))
        move -= (move * flat).sum(1, keepdim=True) / flat.square().sum(1, keepdim=True) * flat
        step = 1e-3 * (move.reshape(own.shape) if isinstance(dictionary, dsc.ConvDictionary) else move.T)
        gram, _ = rows(dictionary, program + step)
        assert bool((measure(gram, s, nonnegative) >= sums["program"] - 1e-6).all())


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_shifted_atoms_give_the_gram_matrix(seed: int) -> None:
    dictionary = draw(seed)
    analysis = normal(*dictionary.weight.shape, generator=rng(seed))
    flat = analysis.flatten(1) if isinstance(dictionary, dsc.ConvDictionary) else analysis.T
    assert torch.allclose(flat @ shifted_atoms(dictionary).T, dictionary.gram_rows(slice(None), analysis).flatten(1))


def test_injective_atoms_are_inverted_in_one_step() -> None:
    dictionary = dsc.DenseDictionary.random(30, 20, seed=0, dtype=F64)
    net = to_cnn(dictionary, sparsity=15, weights="pseudo-inverse", target_error=1e-9)
    assert net.plan.steps == (1,)
    codes = normal(3, 20, generator=rng(0)).clamp(-1, 1)
    assert float((net(dictionary.synthesize(codes)) - codes).abs().max()) <= net.error_bound
    with pytest.raises(ParameterError, match="does not shrink"):
        to_cnn(dictionary, sparsity=15, weights="atoms")


def test_atoms_are_best_where_noise_decides_and_others_where_coherence_does() -> None:
    dictionary = dsc.DenseDictionary.low_coherence(10, 20, seed=1, dtype=F64)
    quiet = to_cnn(dictionary, sparsity=1, steps=5, weights="best")
    loud = to_cnn(dictionary, sparsity=1, noise=0.2, steps=5, weights="best")
    assert quiet.plan.layers[0].weights == "program"
    assert loud.plan.layers[0].weights == "atoms"
    assert quiet.error_bound < 0.9 * to_cnn(dictionary, sparsity=1, steps=5).error_bound
    # Independent atoms can be inverted, and a target is reached in one step.
    once = to_cnn(equiangular(8, 0.2), sparsity=2, target_error=1e-3, weights="best")
    assert once.plan.layers[0].weights != "atoms"
    assert once.plan.steps == (1,)
    # On a simplex that is singular all three are the same up to the null space.
    assert to_cnn(simplex(5, 0.25), sparsity=1, steps=4, weights="best").plan.layers[0].rate <= 0.25 + 1e-9


@pytest.mark.parametrize("strategy", ["layerwise", "interleaved"])
@pytest.mark.parametrize("weights", [*WEIGHTS, "best"])
def test_true_error_is_below_the_bound(weights: str, strategy: str) -> None:
    for boundary, dtype in (("valid", F64), ("circular", torch.float32)):
        model = dsc.Cascade(
            [
                dsc.ConvDictionary.low_coherence(
                    atoms=6, channels=1, size=6, stride=3, boundary=boundary, seed=0, dtype=dtype
                ),
                dsc.ConvDictionary.low_coherence(
                    atoms=4, channels=6, size=3, stride=2, nonzeros=3, boundary=boundary, seed=0, dtype=dtype
                ),
            ]
        )
        for seed in range(2):
            sample = dsc.sample(model, sparsity=(10, 1), size=(4, 4), batch=2, seed=seed)
            wave = normal(*sample.signal.shape, generator=rng(seed))
            signal = sample.signal + (0.005 * wave / wave.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)).to(dtype)
            net = to_cnn(
                model,
                sparsity=sample.stripe_sparsity,
                amplitude=sample.amplitudes,
                place_sparsity=sample.place_sparsity,
                noise=0.00501,
                steps=6,
                strategy=strategy,
                weights=weights,
                nonnegative=False,
            )
            for mark, estimate in zip(net.plan.bound_by_depth, codes_by_depth(net, signal), strict=True):
                truth = sample.codes[mark.layer - 1]
                assert float((estimate.codes - truth).abs().max()) <= mark.bound
                assert not estimate.codes[truth == 0].any()
            assert weights == "best" or {layer.weights for layer in net.plan.layers} == {weights}


def test_the_bound_is_nearly_attained_with_the_program() -> None:
    """Row i with the largest sums, its code 1, the others against it: as for the atoms, with WᵀD for G."""
    dictionary = dsc.DenseDictionary.low_coherence(8, 16, seed=0, dtype=F64)
    net = to_cnn(dictionary, sparsity=2, steps=8, weights="program")
    (layer,) = net.plan.layers
    gram, _ = rows(dictionary, layer.analysis)
    best = 0.0
    for i in range(16):
        other = int(gram[i].abs().argmax())
        codes = torch.zeros(1, 16, dtype=F64)
        codes[0, i], codes[0, other] = 1.0, -float(gram[i, other].sign())
        first = codes_by_depth(net, dictionary.synthesize(codes))[0].codes
        error = float((first - codes).abs().max())
        assert error <= layer.bounds[0]
        best = max(best, error / layer.bounds[0])
    assert best >= 0.99


def test_best_is_never_worse() -> None:
    for seed in range(3):
        dictionary = dsc.DenseDictionary.low_coherence(10, 20, seed=seed, dtype=F64)
        for noise in (0.0, 0.02, 0.2):
            bounds = [
                to_cnn(dictionary, sparsity=1, noise=noise, steps=5, weights=kind).error_bound for kind in WEIGHTS
            ]
            assert to_cnn(dictionary, sparsity=1, noise=noise, steps=5, weights="best").error_bound == min(bounds)


def test_refusals() -> None:
    dictionary = dsc.DenseDictionary.random(30, 20, seed=0, dtype=F64)
    with pytest.raises(ParameterError, match=r"weights is 'pseudoinverse'; expected one of .* 'pseudo-inverse'"):
        to_cnn(dictionary, sparsity=1, weights="pseudoinverse")
