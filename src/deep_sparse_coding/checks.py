"""Checks of what users pass in: one wording for tensors, numbers and shapes, used before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .errors import DeviceError, DictionaryError, DtypeError, ParameterError, ShapeError

SUPPORTED_DTYPES = (torch.float32, torch.float64)


def require_float_tensor(name: str, value: object) -> Tensor:
    """Return `value` if it is a dense float32 or float64 tensor.

    Raises:
        DtypeError: It is no tensor, or one of half precision, integers, complex numbers, or in a sparse layout.
    """
    if not isinstance(value, Tensor):
        raise DtypeError(f"{name} is a {type(value).__name__}; expected a torch.Tensor: use torch.as_tensor({name})")
    if value.layout != torch.strided:
        raise DtypeError(f"{name} has layout {value.layout}; expected a dense tensor: use {name}.to_dense()")
    if value.dtype not in SUPPORTED_DTYPES:
        why = " (half precision cannot carry a certificate)" if value.dtype in (torch.float16, torch.bfloat16) else ""
        raise DtypeError(
            f"{name} has dtype {value.dtype}{why}; expected float32 or float64: use {name}.float() or {name}.double()"
        )
    return value


def require_same_kind(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless `value` has the dtype and the device of `other`.

    Raises:
        DtypeError: The dtypes differ.
        DeviceError: The devices differ.
    """
    if value.dtype != other.dtype:
        raise DtypeError(
            f"{name} has dtype {value.dtype} and {other_name} has {other.dtype}; expected the same: "
            f"use {name}.to({other.dtype}) or {other_name}.to({value.dtype})"
        )
    if value.device != other.device:
        raise DeviceError(
            f"{name} is on {value.device} and {other_name} on {other.device}; expected the same device: "
            f"use {name}.to({str(other.device)!r})"
        )


def require_number(
    name: str,
    value: object,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    strict: bool = False,
    finite: bool = True,
) -> float:
    """Return `value` as a float within ``[minimum, maximum]`` (above the minimum when `strict`).

    Raises:
        ParameterError: It is no real number, is NaN, infinite (when `finite`), or out of range.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type != "meta":
        value = value.item()
    if isinstance(value, bool | str | bytes):
        raise ParameterError(f"{name} is {value!r}; expected a number")
    try:
        value = float(value)  # type: ignore[arg-type]  # NumPy scalars too
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: tensors that hold no values
        raise ParameterError(f"{name} is {value!r}; expected a number") from None
    except OverflowError:
        raise ParameterError(f"{name} is a whole number too large for a float; expected a number") from None
    low_ok = value > minimum if strict else value >= minimum
    if math.isnan(value) or (finite and math.isinf(value)) or not low_ok or value > maximum:
        low = f"{'above' if strict else 'at least'} {minimum:g}" if minimum > -math.inf else ""
        high = f"at most {maximum:g}" if maximum < math.inf else ""
        bounds = " and ".join(part for part in (low, high) if part)
        expected = f"a{' finite' if finite else ''} number" + (f" {bounds}" if bounds else "")
        raise ParameterError(f"{name} is {value}; expected {expected}")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return `value` if it is True or False: a number, a word or a tensor in its place is a mistake.

    Raises:
        ParameterError: It is something else.
    """
    if not isinstance(value, bool | np.bool_):
        raise ParameterError(f"{name} is {value!r}; expected True or False")
    return bool(value)


def require_integer(name: str, value: object, *, minimum: int) -> int:
    """Return `value` as an int that is at least `minimum`.

    Raises:
        ParameterError: It is not a whole number, or too small.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        number: float = value  # a float would round what is above 2⁵³
    else:
        number = require_number(name, value)
    if number != int(number) or number < minimum:
        raise ParameterError(f"{name} is {value!r}; expected a whole number of at least {minimum}")
    return int(number)


def require_finite_atoms(name: str, weight: Tensor) -> None:
    """Raise unless every entry of a tensor of atoms is finite.

    Raises:
        DictionaryError: With the number and the first place of those that are not.
    """
    if bool(torch.isfinite(weight.sum())):  # one pass: a sum with NaN or an infinity in it is not finite
        return
    bad = (~torch.isfinite(weight)).nonzero()
    if len(bad):
        raise DictionaryError(
            f"{name} has {len(bad)} entries that are not finite, the first at {tuple(bad[0].tolist())}; "
            "expected finite atoms: look for a division by zero, or a step that diverged, where they were made"
        )


def per_axis(name: str, value: int | Sequence[int], axes: int, *, minimum: int = 1) -> tuple[int, ...]:
    """Return one whole number per axis: `value` itself, or the same for all.

    Raises:
        ParameterError: A number is too small, or there are too few or too many.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes:
        raise ParameterError(
            f"{name} has {len(values)} entries, {values}; expected one, or one for each of {axes} axes"
        )
    return tuple(require_integer(name, item, minimum=minimum) for item in values)


def per_layer(name: str, value: object, layers: int) -> tuple[object, ...]:
    """Return one setting per layer: the entries of a tuple or list, or the same for all.

    Raises:
        ParameterError: A tuple or list of another length than the number of layers.
    """
    if isinstance(value, tuple | list):
        if len(value) != layers:
            raise ParameterError(
                f"{name} has {len(value)} entries; expected one for each of the {layers} layers, or a single value"
            )
        return tuple(value)
    return (value,) * layers


def require_trailing(name: str, value: Tensor, expected: tuple[int | None, ...], meaning: str) -> None:
    """Raise unless the last axes of `value` are `expected` (None: any size).

    Raises:
        ShapeError: Too few axes, or a size that differs.
    """
    axes = len(expected)
    tail = value.shape[value.ndim - axes :] if value.ndim >= axes else ()
    if len(tail) != axes or any(want != have for want, have in zip(expected, tail, strict=True) if want is not None):
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; expected (*batch, {wanted}): {meaning}")
