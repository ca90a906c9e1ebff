"""Bad input to dictionaries: the message says what was given, what is expected and what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import (
    DeviceError,
    DictionaryError,
    DSCWarning,
    DtypeError,
    ParameterError,
    ShapeError,
)
from strategies import duplicate_matrix, normal, rng

DENSE = dsc.DenseDictionary.random(5, 8, seed=0)
CONV = dsc.ConvDictionary.random(atoms=4, channels=3, size=5, stride=2, seed=0)
RING = dsc.ConvDictionary(CONV.kernels, stride=2, boundary="circular")

FOREIGN = [
    ([[1.0, 2.0]], "is a list; expected a torch.Tensor: use torch.as_tensor"),
    (np.eye(3), "is a ndarray; expected a torch.Tensor"),
    (None, "is a NoneType"),
    (
        torch.eye(3).half(),
        r"has dtype torch.float16 \(half precision cannot carry a certificate\); expected float32 or float64: use",
    ),
    (torch.eye(3).bfloat16(), "has dtype torch.bfloat16 .half precision"),
    (torch.eye(3).int(), "has dtype torch.int32; expected float32 or float64"),
    (torch.eye(3).bool(), "has dtype torch.bool"),
    (torch.eye(3).to(torch.complex64), "has dtype torch.complex64"),
    (torch.eye(3).to_sparse(), "has layout torch.sparse_coo; expected a dense tensor: use .*to_dense"),
]


@pytest.mark.parametrize(("value", "message"), FOREIGN)
def test_what_is_no_float_tensor(value: object, message: str) -> None:
    calls = {
        "matrix": dsc.DenseDictionary,
        "kernels": dsc.ConvDictionary,
        "codes": DENSE.synthesize,
        "signal": CONV.analyze,
    }
    for name, call in calls.items():
        with pytest.raises(DtypeError, match=f"{name} {message}"):
            call(value)  # type: ignore[operator]
    for name, call in {"codes": CONV.synthesize, "signal": DENSE.analyze}.items():
        with pytest.raises(DtypeError, match=f"{name} {message}"):
            call(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: dsc.DenseDictionary(torch.ones(3)),
            r"matrix has shape \(3,\); expected \(d, atoms\), neither of them 0",
        ),
        (lambda: dsc.DenseDictionary(torch.ones(3, 0)), r"matrix has shape \(3, 0\)"),
        (lambda: dsc.DenseDictionary(torch.ones(2, 3, 4)), r"matrix has shape \(2, 3, 4\)"),
        (lambda: dsc.ConvDictionary(torch.ones(3, 3)), r"kernels have shape \(3, 3\); expected \(atoms, channels, k\)"),
        (lambda: dsc.ConvDictionary(torch.ones(3, 0, 3)), r"kernels have shape \(3, 0, 3\)"),
        (lambda: dsc.ConvDictionary(torch.ones(1, 1, 1, 1, 1, 1)), "kernels have shape"),
    ],
)
def test_shapes_of_atoms(build: object, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "value", "message"),
    [
        (
            DENSE.synthesize,
            torch.zeros(2, 7),
            r"codes has shape \(2, 7\); expected \(\*batch, 8\): 8 is the number of atoms",
        ),
        (DENSE.analyze, torch.zeros(2, 8), r"signal has shape \(2, 8\); expected \(\*batch, 5\): d = 5 is the length"),
        (DENSE.analyze, torch.zeros(()), r"signal has shape \(\); expected \(\*batch, 5\)"),
        (
            CONV.synthesize,
            torch.zeros(3, 4, 4),
            r"codes has shape \(3, 4, 4\); expected \(\*batch, 4, any, any\): 4 is the number of kernels",
        ),
        (CONV.synthesize, torch.zeros(4, 4), r"codes has shape \(4, 4\)"),
        (CONV.synthesize, torch.zeros(4, 0, 4), "size is 0; expected a whole number of at least 1"),
        (
            CONV.analyze,
            torch.zeros(1, 9, 9),
            r"signal has shape \(1, 9, 9\); expected \(\*batch, 3, any, any\): the kernels have 3 channel.* over H, W",
        ),
        (
            CONV.analyze,
            torch.zeros(3, 4, 9),
            "H = 4 is smaller than the kernel, 5; expected at least 5: pad the signal",
        ),
        (
            CONV.analyze,
            torch.zeros(3, 9, 10),
            r"W = 10 is made by no code grid of stride 2 and kernel 5 .*: crop to 9 or pad to 11",
        ),
        (
            RING.analyze,
            torch.zeros(3, 8, 9),
            r"W = 9 is made by no code grid .*'circular'.*multiple of 2: crop to 8 or pad to 10",
        ),
        (RING.analyze, torch.zeros(3, 5, 8), r"H = 5 is made by no code grid .*multiple of 2: pad to 6"),
        (
            RING.synthesize,
            torch.zeros(4, 4, 2),
            r"2 positions of stride 2 make .* W = 4, smaller than the kernel, 5: .* wrap .*; expected at least 3 pos",
        ),
    ],
)
def test_shapes_of_codes_and_signals(call: object, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ParameterError if "size is" in message else ShapeError, match=message):
        call(value)  # type: ignore[operator]


def test_dtypes_and_devices_that_differ() -> None:
    message = r"codes has dtype torch.float64 and the dictionary has torch.float32; expected the same: use codes\.to\("
    with pytest.raises(DtypeError, match=message):
        DENSE.synthesize(torch.zeros(8, dtype=torch.float64))
    with pytest.raises(DtypeError, match=r"signal has dtype torch\.float64"):
        CONV.analyze(torch.zeros(3, 9, 9, dtype=torch.float64))
    with pytest.raises(
        DeviceError,
        match=r"signal is on meta and the dictionary on cpu; expected the same device: use signal.to\('cpu'\)",
    ):
        DENSE.analyze(torch.zeros(5, device="meta"))


# ---------------------------------------------------------------------- atoms


@pytest.mark.parametrize("normalize", [False, True])
def test_zero_atoms(normalize: bool) -> None:
    matrix = normal(4, 6, generator=rng(0))
    matrix[:, 3] = 0
    with pytest.raises(
        DictionaryError, match="atom 3 is of 6 zero; expected atoms that are not: remove them"
    ) as caught:
        dsc.DenseDictionary(matrix, normalize=normalize)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(DictionaryError, match=r"atoms 0, 1, 2, 3, 4, \.\.\. are of 7 zero"):
        dsc.ConvDictionary(torch.zeros(7, 1, 3), normalize=normalize)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_atoms_that_are_not_finite(bad: float) -> None:
    kernels = normal(2, 1, 3, 3, generator=rng(0))
    kernels[1, 0, 2, 1] = bad
    with pytest.raises(
        DictionaryError,
        match=r"kernels has 1 entries that are not finite, the first at \(1, 0, 2, 1\); .*division by zero",
    ):
        dsc.ConvDictionary(kernels, normalize=True)


@pytest.mark.parametrize("scale", [1.0, -1.0, 1e3, -1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [2, 4, 300])
def test_duplicate_atoms(scale: float, dtype: torch.dtype, d: int) -> None:
    matrix = duplicate_matrix(d, 6, 0, scale).to(dtype)
    with pytest.warns(
        DSCWarning, match=r"1 pair\(s\) of atoms are the same up to scale and sign: 0 and 5; .* remove one"
    ) as seen:
        dsc.DenseDictionary(matrix)
    assert seen[0].filename == __file__
    with pytest.warns(DSCWarning, match="0 and 5"):
        dsc.ConvDictionary(matrix.T.reshape(6, d, 1))
    with pytest.warns(DSCWarning, match="1 pair") as seen:
        dsc.DenseDictionary.random(1, 2, seed=0)  # a line may have two atoms only if they are the same
    assert seen[0].filename == __file__


def test_many_duplicates_are_counted_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.ones(3, 6)
    with pytest.warns(DSCWarning, match=r"15 pair\(s\) .*: 0 and 1, 0 and 2, 0 and 3, \.\.\.; "):
        dsc.DenseDictionary(matrix)
    monkeypatch.setattr("deep_sparse_coding.dictionaries.dense._DUPLICATE_ROWS", 2)
    with pytest.warns(DSCWarning, match=r"15 pair\(s\) .*: 0 and 1, 0 and 2, 0 and 3, \.\.\.; "):
        dsc.DenseDictionary(matrix)


def test_atoms_that_are_only_alike_are_no_duplicates() -> None:
    """An angle of 5e-4 is well resolved in float32: no warning (warnings are errors here)."""
    angle = torch.tensor(5e-4, dtype=torch.float64)
    matrix = torch.stack([torch.tensor([1.0, 0.0]).double(), torch.stack([angle.cos(), angle.sin()])], 1)
    assert dsc.DenseDictionary(matrix.float(), normalize=True).mutual_coherence() < 1


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_normalizing_atoms_of_any_size(scale: float) -> None:
    matrix = normal(4, 6, generator=rng(0))
    expected = dsc.DenseDictionary(matrix, normalize=True)
    torch.testing.assert_close(dsc.DenseDictionary(matrix * scale, normalize=True).matrix, expected.matrix)
    kernels = dsc.ConvDictionary((matrix * scale).reshape(4, 1, 6), normalize=True)
    torch.testing.assert_close(kernels.column_norms(), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1e-30, torch.float32), (1e30, torch.float32), (1e-200, torch.float64), (1e200, torch.float64)]
)
def test_atoms_whose_squares_cannot_be_held(scale: float, dtype: torch.dtype) -> None:
    matrix = (normal(4, 6, generator=rng(0)) * scale).to(dtype)
    with pytest.raises(
        DictionaryError, match=rf"atom 0 of 6 has norm .*, whose square {dtype} cannot hold; .* pass normalize=True"
    ):
        dsc.DenseDictionary(matrix)


def test_moderate_sizes_are_taken_as_they_are() -> None:
    for scale in (1e-8, 1e8):
        dictionary = dsc.DenseDictionary(DENSE.matrix * scale)
        assert torch.equal(dictionary.matrix, DENSE.matrix * scale)


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("stride", "message"),
    [
        (0, "stride is 0; expected a whole number of at least 1"),
        (-2, "stride is -2"),
        (1.5, "stride is 1.5; expected a whole number of at least 1"),
        ("2", "stride has 1 entries"),
        (("2", "1"), "stride is '2'; expected a number"),
        ((1, 2, 3), r"stride has 3 entries, \(1, 2, 3\); expected one, or one for each of 2 axes"),
        (float("nan"), "stride is nan; expected a finite number"),
        (float("inf"), "stride is inf"),
        (True, "stride is True; expected a number"),
        (None, "stride is None; expected a number"),
    ],
)
def test_strides(stride: object, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        dsc.ConvDictionary(CONV.kernels, stride=stride)  # type: ignore[arg-type]


def test_boundaries() -> None:
    with pytest.raises(ParameterError, match="boundary is 'reflect'; expected 'valid', 'same' or 'circular'"):
        dsc.ConvDictionary(CONV.kernels, boundary="reflect")
    with pytest.raises(ParameterError, match="boundary is 'none'; expected 'valid', 'same' or 'circular'"):
        CONV.with_boundary("none")


def test_sizes() -> None:
    assert CONV.signal_shape((3, 3)) == CONV.signal_shape(3) == (3, 9, 9)  # type: ignore[arg-type]
    with pytest.raises(
        ParameterError, match=r"size has 3 entries, \(1, 2, 3\); expected one, or one for each of 2 axes"
    ):
        CONV.code_shape((1, 2, 3))
    with pytest.raises(ShapeError, match="expected none: a dense dictionary has one size"):
        DENSE.code_shape((3,))
    with pytest.raises(ShapeError, match="expected none: a dense dictionary has one size"):
        DENSE.operator_norm((3,))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: dsc.DenseDictionary.random(0, 3, seed=0), "d is 0"),
        (lambda: dsc.DenseDictionary.random(3, -1, seed=0), "atoms is -1"),
        (lambda: dsc.DenseDictionary.random(3, 2.5, seed=0), "atoms is 2.5; expected a whole number"),  # type: ignore[arg-type]
        (lambda: dsc.DenseDictionary.random(3, 4, seed=-1), "seed is -1"),
        (lambda: dsc.DenseDictionary.dct(4, 3), "atoms is 3; expected at least d = 4"),
        (lambda: dsc.DenseDictionary.low_coherence(0, 3, seed=0), "d is 0"),
        (lambda: dsc.ConvDictionary.random(atoms=0, channels=1, size=3, seed=0), "atoms is 0"),
        (lambda: dsc.ConvDictionary.random(atoms=1, channels=0, size=3, seed=0), "channels is 0"),
        (lambda: dsc.ConvDictionary.random(atoms=1, channels=1, size=0, seed=0), "size is 0"),
        (lambda: dsc.ConvDictionary.random(atoms=1, channels=1, size=(2, 2, 2, 2), seed=0), "size has 4 entries"),
        (
            lambda: dsc.ConvDictionary.random(atoms=1, channels=1, size=3, nonzeros=10, seed=0),
            "nonzeros is 10; expected at most the 9",
        ),
        (lambda: dsc.ConvDictionary.random(atoms=1, channels=1, size=3, nonzeros=0, seed=0), "nonzeros is 0"),
        (lambda: dsc.ConvDictionary.low_coherence(atoms=0, channels=1, size=3, seed=0), "atoms is 0"),
    ],
)
def test_random_families(build: object, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        build()  # type: ignore[operator]


def test_half_precision_modules_refuse_to_work() -> None:
    half = dsc.DenseDictionary.random(5, 8, seed=0).half()
    with pytest.raises(DtypeError, match="half precision"):
        half.synthesize(torch.zeros(8, dtype=torch.float16))
