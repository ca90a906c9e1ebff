"""How lam and weights become one weight per code entry: a number, one per sample, or one per atom."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deep_sparse_coding.checks import per_layer, require_float_tensor, require_number
from deep_sparse_coding.dictionaries import Dictionary
from deep_sparse_coding.errors import DeviceError, DictionaryError, DtypeError, ParameterError, ShapeError


def check_dictionary(name: str, value: object) -> Dictionary:
    """Return `value` if it is a dictionary.

    Raises:
        DictionaryError: It is something else, such as a bare matrix.
    """
    if not isinstance(value, Dictionary):
        raise DictionaryError(
            f"{name} is a {type(value).__name__}; expected a dictionary: use dsc.DenseDictionary(matrix) or "
            "dsc.ConvDictionary(kernels)"
        )
    return value


def check_lam(name: str, lam: object) -> float | Tensor:
    """Return lam as a number, or as a tensor whose entries are at or above 0 (inf allowed).

    A tensor keeps its graph, for solutions that are differentiated; one without axes becomes a number unless it asks
    for gradients.

    Raises:
        ParameterError: Negative or NaN.
    """
    if isinstance(lam, Tensor) and lam.ndim:
        lam = require_float_tensor(name, lam)
        bad = ~(lam >= 0)
        if bool(bad.any()):
            where = tuple(bad.nonzero()[0].tolist())
            raise ParameterError(
                f"{name} has {int(bad.sum())} entries that are negative or NaN, the first at {where}: "
                f"{float(lam[where].detach())}; expected entries of at least 0"
            )
        return lam
    if isinstance(lam, Tensor) and lam.requires_grad:
        require_number(name, require_float_tensor(name, lam).detach(), minimum=0.0, finite=False)
        return lam
    return require_number(name, lam, minimum=0.0, finite=False)


def check_weights(name: str, weights: object) -> Tensor | None:
    """Return multipliers of lam, or None, if they are a tensor whose entries are at or above 0 (inf allowed).

    Raises:
        DtypeError: No tensor, or one of another number type.
        ParameterError: Negative or NaN entries.
        ShapeError: A tensor without axes.
    """
    if weights is None:
        return None
    if not isinstance(weights, Tensor):
        raise DtypeError(f"{name} is a {type(weights).__name__}; expected a tensor, one entry per atom")
    if not weights.ndim:
        raise ShapeError(f"{name} is a tensor without axes; expected one entry per atom: one number for all is lam's")
    checked = check_lam(name, weights)
    assert isinstance(checked, Tensor), "a tensor with axes stays one"
    return checked


def check_weights_by_layer(weights: object, layers: int) -> tuple[Tensor | None, ...]:
    """Return the multipliers of every layer, each as `check_weights` has it.

    Raises:
        DtypeError: Something else than None, or a tuple or list with one tensor or None per layer.
        ParameterError: Another number of entries than layers.
    """
    if weights is not None and not isinstance(weights, tuple | list):
        raise DtypeError(
            f"weights is a {type(weights).__name__}; expected a tuple with one tensor, or None, for each of the "
            f"{layers} layers"
        )
    return tuple(check_weights(f"weights[{j}]", value) for j, value in enumerate(per_layer("weights", weights, layers)))


def check_mask(mask: object, dictionary: Dictionary) -> Tensor | None:
    """Return a mask as numbers in the dictionary's dtype.

    Raises:
        DtypeError: Not a dense tensor of booleans or numbers.
        DeviceError: A tensor without data.
        ParameterError: Entries that are negative or not finite.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.is_complex():
        raise DtypeError(f"mask is {type(mask).__name__}; expected a tensor of booleans (True = observed) or weights")
    if mask.layout != torch.strided:
        raise DtypeError(f"mask has layout {mask.layout}; expected a dense tensor: use mask.to_dense()")
    if mask.device.type == "meta":
        raise DeviceError(f"mask is on meta and has no values; expected a tensor on {dictionary.device}")
    mask = mask.detach().to(dtype=dictionary.dtype, device=dictionary.device)
    if not bool((torch.isfinite(mask) & (mask >= 0)).all()):
        raise ParameterError("mask has entries that are negative or not finite; expected True and False, or 0 and 1")
    return mask


def flatten_mask(mask: Tensor | None, signal: Tensor, event_axes: int) -> Tensor | None:
    """Return the mask as ``(1 or batch, *signal)`` for a signal ``(*batch, *signal)``.

    Raises:
        ShapeError: It does not broadcast against the signal.
    """
    if mask is None:
        return None
    event, batch = signal.shape[signal.ndim - event_axes :], signal.shape[: signal.ndim - event_axes]
    shared = mask.ndim <= event_axes
    target = event if shared else signal.shape
    try:
        full = mask.expand(target)
    except RuntimeError:
        raise ShapeError(
            f"mask has shape {tuple(mask.shape)}; expected one that broadcasts against a signal of shape "
            f"{tuple(signal.shape)}"
        ) from None
    return full[None] if shared else full.reshape(math.prod(batch), *event)


def flatten_weights(
    name: str,
    lam: float | Tensor,
    weights: Tensor | None,
    dictionary: Dictionary,
    batch_shape: tuple[int, ...],
    code_shape: tuple[int, ...],
    dtype: torch.dtype,
) -> Tensor:
    """Return ``lam · weights`` as ``(1 or batch, ...)``, to broadcast against codes ``(batch, *code_shape)``.

    A tensor lam of the batch's shape is one number per sample; of shape ``(atoms,)`` or of a code's shape one per atom.

    Raises:
        ParameterError: Both readings fit.
        ShapeError: Neither does.
    """
    kind = {"dtype": dtype, "device": dictionary.device}
    ones = (1,) * (len(code_shape) - 1)
    scale = torch.ones((1,) * (1 + len(code_shape)), **kind)
    if weights is not None:
        scale = scale * expand_atoms("weights", weights.to(**kind), code_shape)
    if not isinstance(lam, Tensor):
        return _multiply(scale, torch.tensor(lam, **kind))
    lam = lam.to(**kind)
    if not lam.ndim:
        return _multiply(scale, lam)
    samples = math.prod(batch_shape)
    per_sample_singleton = lam.shape == (*batch_shape, *(1,) * len(code_shape)) and lam.ndim > len(code_shape)
    per_sample = per_sample_singleton or (tuple(lam.shape) == batch_shape and lam.ndim > 0)
    per_atom = lam.ndim <= len(code_shape) and _fits_atoms(lam, code_shape)
    if per_sample and per_atom and not per_sample_singleton:
        shape = (*batch_shape, *(1,) * len(code_shape))
        raise ParameterError(
            f"{name} of shape {tuple(lam.shape)} could be one number per sample or one per atom; "
            f"expected one reading: reshape it to {shape} for samples, or pass weights= for atoms"
        )
    if per_sample:
        return _multiply(scale, lam.reshape(samples, 1, *ones))
    if per_atom:
        return _multiply(scale, expand_atoms(name, lam, code_shape))
    raise ShapeError(
        f"{name} has shape {tuple(lam.shape)}; expected a number, {batch_shape} (one per sample), "
        f"({code_shape[0]},) (one per atom) or {code_shape} (one per entry)"
    )


def _multiply(first: Tensor, second: Tensor) -> Tensor:
    """Return the product where a factor 0 beats inf: an unpenalized entry stays unpenalized.

    Factors 0 and inf are settings, not numbers: no gradient passes through a product with one of them.
    """
    zero = (first == 0) | (second == 0)
    fixed = zero | torch.isinf(first) | torch.isinf(second)
    product = torch.where(fixed, 1.0, first) * torch.where(fixed, 1.0, second)
    return torch.where(fixed, torch.where(zero, 0.0, math.inf).to(product), product)


def _fits_atoms(values: Tensor, code_shape: tuple[int, ...]) -> bool:
    if values.ndim == 1 and len(values) == code_shape[0]:
        return True
    sizes = zip(values.shape, code_shape, strict=False)
    return values.ndim == len(code_shape) and all(n in (1, size) for n, size in sizes)


def expand_atoms(name: str, values: Tensor, code_shape: tuple[int, ...]) -> Tensor:
    """Return values ``(atoms,)`` or of a code's shape as ``(1, atoms, ...)``, to broadcast against codes.

    Raises:
        ShapeError: Another shape.
    """
    if not _fits_atoms(values, code_shape):
        raise ShapeError(
            f"{name} has shape {tuple(values.shape)}; expected ({code_shape[0]},) (one per atom) or {code_shape} "
            "(one per entry)"
        )
    if values.ndim == 1:
        values = values.reshape(-1, *(1,) * (len(code_shape) - 1))
    return values[None]
