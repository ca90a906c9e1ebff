"""Cascades: composition, effective atoms, printing, and layers that do not fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.dictionaries import as_cascade
from deep_sparse_coding.errors import DictionaryError, DSCWarning, ParameterError, ShapeError
from references import explicit_matrix
from strategies import SEEDS, code_size, draw_cascade, draw_codes, draw_conv, duplicate_matrix


@given(seed=SEEDS)
@settings(max_examples=30)
def test_synthesis_is_the_product_of_the_matrices(seed: int) -> None:
    model = draw_cascade(seed)
    codes = draw_codes(model.layers[-1], seed, batch=(2,))
    expected, size = codes.flatten(1), tuple(codes.shape[2:])
    for layer in reversed(model.layers):
        expected = expected @ explicit_matrix(layer, size).T
        size = layer.signal_shape(size)[1:]
    torch.testing.assert_close(model.synthesize(codes).flatten(1), expected)
    assert torch.equal(model(codes), model.synthesize(codes))
    assert torch.equal(model.synthesize(codes, to=len(model) - 1), model.layers[-1].synthesize(codes))


@given(seed=SEEDS)
@settings(max_examples=30)
def test_an_effective_atom_is_what_one_non_zero_makes(seed: int) -> None:
    model = draw_cascade(seed)
    for j in range(1, len(model) + 1):
        top = dsc.Cascade(model.layers[:j])
        atoms = model.effective(j)
        grid = (1,) * (top.layers[-1].event_axes - 1)
        units = torch.eye(len(atoms), dtype=torch.float64).reshape(len(atoms), len(atoms), *grid)
        torch.testing.assert_close(atoms, top.synthesize(units))
    assert torch.equal(model.effective(), model.effective(len(model)))
    assert not model.effective().requires_grad
    # Growth of the atoms: K_j = (k_j - 1)·stride + K_{j-1} in the signal's entries.
    first = model.layers[0]
    if isinstance(first, dsc.ConvDictionary):
        reach, spread = list(first.kernel_size), list(first.stride)
        for layer in model.layers[1:]:
            assert isinstance(layer, dsc.ConvDictionary)
            reach = [r + (k - 1) * s for r, k, s in zip(reach, layer.kernel_size, spread, strict=True)]
            spread = [s * q for s, q in zip(spread, layer.stride, strict=True)]
        assert list(model.effective().shape[2:]) == reach


def test_effective_atoms_of_rings_do_not_wrap_and_do_not_warn_again() -> None:
    kernels = duplicate_matrix(6, 3, 0).T.reshape(3, 1, 2, 3)
    with pytest.warns(DSCWarning, match="1 pair"):
        first = dsc.ConvDictionary(kernels, boundary="circular", normalize=True)
    second = draw_conv(1, axes=2, channels=3, boundary="circular")
    atoms = dsc.Cascade([first, second]).effective()
    opened = dsc.Cascade([first.with_weight(first.kernels), second])
    with pytest.warns(DSCWarning):
        opened = dsc.Cascade(
            [dsc.ConvDictionary(first.kernels), dsc.ConvDictionary(second.kernels, stride=second.stride)]
        )
    torch.testing.assert_close(atoms, opened.effective())
    assert first.boundary == "circular"


def test_effective_refuses_layers_that_do_not_exist() -> None:
    model = draw_cascade(0, depth=2)
    with pytest.raises(ParameterError, match="layer is 3; expected 1 to 2, the number of layers"):
        model.effective(3)
    for layer in (0, -1):
        with pytest.raises(ParameterError, match=f"layer is {layer}; expected a whole number of at least 1"):
            model.effective(layer)
    with pytest.raises(ParameterError, match=r"to is 2; expected 0 \(the signal\) to 1"):
        model.synthesize(torch.zeros(1), to=2)
    with pytest.raises(ParameterError, match="to is -1; expected a whole number of at least 0"):
        model.synthesize(torch.zeros(1), to=-1)
    with pytest.raises(ParameterError, match="layer is 'deepest'; expected a number"):
        model.effective("deepest")  # type: ignore[arg-type]


def test_printing_tells_layers_kernels_coherence_and_norm() -> None:
    first = dsc.ConvDictionary.random(atoms=4, channels=3, size=(3, 5), stride=2, seed=0)
    second = dsc.ConvDictionary.random(atoms=8, channels=4, size=3, seed=1)
    model = dsc.Cascade([first, second])
    lines = str(model).splitlines()
    assert lines[0] == "Cascade of 2 layer(s), float32"
    assert lines[1].split() == ["layer", "atoms", "kernel", "stride", "boundary", "coherence", "norm"]
    coherence, norm = f"{first.mutual_coherence():.3f}", f"{float(first.operator_norm()):.3f}"
    assert lines[2].split() == ["1", "4", "3×3×5", "2×2", "valid", coherence, "≤", norm]
    assert len({len(line) for line in lines[1:]}) == 1
    assert repr(model) == f"Cascade([{first!r}, {second!r}])"
    assert repr(first) == "ConvDictionary(atoms=4, channels=3, size=3×5, stride=2×2, boundary='valid')"
    dense = dsc.Cascade([dsc.DenseDictionary(torch.eye(3, dtype=torch.float64))])
    assert str(dense).splitlines()[2].split() == ["1", "3", "3", "–", "–", "0.000", "=", "1.000"]
    assert repr(dense) == "Cascade([DenseDictionary(d=3, atoms=3)])"


def test_a_cascade_that_went_bad_can_still_be_printed() -> None:
    model = dsc.Cascade([dsc.DenseDictionary.random(3, 5, seed=0)])
    model.layers[0].weight[0, 0] = float("nan")
    assert str(model).splitlines()[2].split()[-2:] == ["none", "none"]


def test_a_cascade_is_a_module() -> None:
    model = draw_cascade(3, depth=2)
    assert len(model) == 2
    assert model.dtype == torch.float64
    assert model.float().dtype == torch.float32
    assert len(list(model.parameters())) == 2
    assert model.cast(torch.float64).dtype == torch.float64
    assert isinstance(model.layers, tuple)
    assert (model.dtype, model.device) == (model.layers[0].dtype, model.layers[0].device)
    assert as_cascade(model) is model
    assert as_cascade(model.layers[0]).layers == (model.layers[0],)


DENSE = dsc.DenseDictionary.random(4, 6, seed=0)
CONV = dsc.ConvDictionary.random(atoms=6, channels=1, size=3, seed=0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "layers is empty; expected at least one dictionary"),
        (DENSE, "layers is a DenseDictionary; expected a list of dictionaries: a single one goes in brackets"),
        (3, "layers is a int; expected a list of dictionaries"),
        ([DENSE, torch.nn.Linear(6, 7)], "layer 2 is a Linear; expected a dictionary"),
        (
            [DENSE, dsc.DenseDictionary.random(5, 8, seed=1)],
            r"layer 2 takes codes of 5 channels and layer 1 has 6 atoms; .*channels=6",
        ),
        (
            [DENSE, dsc.ConvDictionary.random(atoms=3, channels=6, size=3, seed=0)],
            "expected all dense, or all convolutional",
        ),
        ([CONV, dsc.ConvDictionary.random(atoms=3, channels=6, size=(3,), seed=0)], "over the same number of axes"),
        (
            [DENSE, dsc.DenseDictionary.random(6, 8, seed=1, dtype=torch.float64)],
            r"torch.float64 on cpu; expected the same: use \.to",
        ),
    ],
)
def test_layers_that_do_not_fit(layers: object, message: str) -> None:
    with pytest.raises(DictionaryError, match=message):
        dsc.Cascade(layers)  # type: ignore[arg-type]


def test_codes_that_do_not_fit_the_deepest_layer() -> None:
    model = dsc.Cascade([CONV, dsc.ConvDictionary.random(atoms=3, channels=6, size=3, seed=0)])
    with pytest.raises(ShapeError, match=r"codes has shape \(6, 4, 4\); expected \(\*batch, 3, any, any\)"):
        model.synthesize(torch.zeros(6, 4, 4))


@given(seed=SEEDS)
@settings(max_examples=10)
def test_sizes_go_through_all_layers(seed: int) -> None:
    model = draw_cascade(seed, conv=True)
    size = code_size(model.layers[-1], seed)
    for layer in reversed(model.layers):
        shape = layer.signal_shape(size)
        assert layer.code_shape(shape[1:]) == (layer.atoms, *size)
        size = shape[1:]
