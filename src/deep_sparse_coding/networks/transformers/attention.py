"""A convolution as self-attention: one head per shift, how sharp it must be, and how far it then errs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ...dictionaries import ConvDictionary
from ...errors import ParameterError
from .positions import PositionCode


@dataclass(frozen=True)
class Sharpness:
    """How sharply the heads look: temperature, null slot, and the error that softmax leaves.

    Attributes:
        temperature: t, by which queries are multiplied.
        gap: ``t·gap`` of the position code, less twice the rounding of the logits.
        null_logit: How far the null slot lies below the peak, ``½(t·gap - ln n)``; None without one (circular).
        tokens: n.

    Source: statement N8 of docs/theory.md.
    """

    temperature: float
    gap: float
    null_logit: float | None
    tokens: int

    @property
    def error(self) -> float:
        """The largest error of a head whose values are bounded by 1."""
        return head_error(self.gap, self.tokens, null=self.null_logit is not None)


def head_error(gap: float, tokens: int, *, null: bool = True) -> float:
    """Return ``(a + 2b)/(1 + a + b)``, the largest error of a head whose values are bounded by 1.

    ``a = √n e^{-gap/2}`` is the weight of the null slot and ``b = (n - 1)e^{-gap}`` that of all wrong tokens, relative
    to the true one: it loses both, and wrong tokens bring b. Where the true token lies beyond the border the error is
    at most ``a/(1 + a)``, which is less. Attained where all wrong tokens have the same logit.

    Args:
        gap: ``t·gap``, the distance of the true token's logit to those of the others.
        tokens: n.
        null: Whether there is a null slot.

    Source: statement N8 of docs/theory.md.
    """
    a = math.sqrt(tokens) * math.exp(-gap / 2) if null else 0.0
    b = (tokens - 1) * math.exp(-gap)
    return min(2.0, (a + 2 * b) / (1 + a + b) * (1 + 1e-12)) if b < 1 else 2.0


def sharpen(code: PositionCode, error: float, *, null: bool, head_width: int, dtype: torch.dtype) -> Sharpness:
    """Return the temperature at which a head of values bounded by 1 errs by at most `error`.

    Raises:
        ParameterError: The rounding of the logits is as large as the gap.

    Source: statement N8 of docs/theory.md.
    """
    # A logit sums head_width products of sizes that add up to at most 3.5·t·peak; 16 roundings made its factors.
    rounding = 2 * (head_width + 16) * torch.finfo(dtype).eps * code.peak
    usable = code.gap - 2 * rounding
    if usable <= 0:
        word = str(dtype).removeprefix("torch.")
        raise ParameterError(
            f"the position code has gap {code.gap:.3g} at peak {code.peak:g}, and {word} rounds logits by "
            f"{rounding:.3g} of that scale; expected a larger gap: more frequencies=, or the model in float64"
        )
    n = code.tokens
    error = min(error, 0.5)
    if null:
        # The root of (a + 2a²)/(1 + a + a²) = error: b is at most a².
        a = 2 * error / (1 - error + math.sqrt((1 - error) ** 2 + 4 * error * (2 - error)))
        needed = 2 * math.log(math.sqrt(n) / a)
    else:
        needed = math.log(max(n - 1, 1) * (2 - error) / error)
    temperature = needed / usable * (1 + 1e-9)
    below = (temperature * code.gap - math.log(n)) / 2 if null else None
    return Sharpness(temperature, temperature * usable * (1 - 1e-12), below, n)


@dataclass(frozen=True, eq=False)
class ShiftedKernels:
    """What a step of one layer adds up: ``Σ_Δ K_Δ h(p + Δ)`` on the tokens ``h = (x_{j-1}, x_j)``.

    Attributes:
        shifts: Δ, in tokens.
        weights: ``K_Δ`` in float64, ``(shifts, atoms, atoms below + atoms)``.
        bounds: ``M_Δ`` per atom, ``(shifts, atoms)``: the most that ``|K_Δ h|`` can be at a token.
    """

    shifts: tuple[tuple[int, ...], ...]
    weights: Tensor
    bounds: Tensor

    @property
    def reach(self) -> tuple[int, ...]:
        """The largest shift per axis."""
        return tuple(max(abs(step) for step in along) for along in zip(*self.shifts, strict=True))


def step_kernels(
    dictionary: ConvDictionary,
    *,
    spacing: Sequence[int],
    sparsity: int,
    amplitude: float,
    below: tuple[int, int, float, Sequence[int]] | None,
) -> ShiftedKernels:
    """Return the kernels of ``Dᵀ x_{j-1} - DᵀD x_j`` by shift, and the bounds of their values.

    At a token at most `sparsity` codes of the layer are not zero, and they are at most `amplitude` (no overshoot), so
    that ``M_Δ`` is a sum of the largest entries of each row and not the whole row.

    Args:
        dictionary: D.
        spacing: Tokens from one code of the layer to the next, per axis.
        sparsity: The most non-zeros of ``x_j`` at a token.
        amplitude: Bound of ``‖x_j‖_∞``.
        below: Of the layer below: atoms, non-zeros at a token, amplitude, spacing; None for the first layer, whose
            input is not in the tokens.

    Source: statement N8 of docs/theory.md.
    """
    atoms, kernel, lags = dictionary.atoms, dictionary.kernel_size, dictionary.lags
    wide = 0 if below is None else below[0]
    found: dict[tuple[int, ...], Tensor] = {}
    gram = dictionary.gram_rows().cpu().reshape(atoms, atoms, *(2 * lag + 1 for lag in lags))
    for place in product(*(range(2 * lag + 1) for lag in lags)):
        shift = tuple((at - lag) * q for at, lag, q in zip(place, lags, spacing, strict=True))
        found[shift] = torch.cat([gram.new_zeros(atoms, wide), -gram[(slice(None), slice(None), *place)]], 1)
    if below is not None:
        analysis = dictionary.kernels.detach().double().cpu()
        for place in product(*(range(k) for k in kernel)):
            shift = tuple(at * q for at, q in zip(place, below[3], strict=True))
            matrix = found.setdefault(shift, gram.new_zeros(atoms, wide + atoms))
            matrix[:, :wide] = analysis[(slice(None), slice(None), *place)]
    kept = {shift: matrix for shift, matrix in sorted(found.items()) if matrix.any()}
    weights = torch.stack(list(kept.values()))
    sizes = weights.abs()
    bounds = amplitude * _top(sizes[..., wide:], sparsity)
    if below is not None:
        bounds = bounds + below[2] * _top(sizes[..., :wide], below[1])
    return ShiftedKernels(tuple(kept), weights, bounds * (1 + 1e-12))


def _top(sizes: Tensor, count: int) -> Tensor:
    return sizes.topk(min(count, sizes.shape[-1]), -1).values.sum(-1)


def attention(
    kernels: ShiftedKernels,
    code: PositionCode,
    sharpness: Sharpness,
    *,
    token_width: int,
    heads: int,
    reads: tuple[int, int],
    writes: int,
    dtype: torch.dtype,
    device: torch.device,
) -> nn.MultiheadAttention:
    """Return the attention layer that computes a step's sum, its position codes last in the tokens.

    Args:
        kernels: The kernels by shift, one head each.
        code: The position code, the last entries of a token.
        sharpness: Temperature and null slot.
        token_width: Entries of a token.
        heads: At least the number of shifts; the others do nothing.
        reads: Where ``(x_{j-1}, x_j)`` lies in a token: first entry of each.
        writes: The entry of a token from which on the sum is added.
        dtype: Its number type.
        device: Where it lives.

    Source: statement N8 of docs/theory.md.
    """
    atoms = kernels.weights.shape[1]
    wide = kernels.weights.shape[2] - atoms
    head_width, phi = token_width // heads, code.width
    query, key, value = torch.zeros(3, token_width, token_width, dtype=torch.float64)
    bias = torch.zeros(3, token_width, dtype=torch.float64)
    out = torch.zeros(token_width, token_width, dtype=torch.float64)
    # nn.MultiheadAttention divides logits by √(head width).
    scale = math.sqrt(head_width)
    for head, shift in enumerate(kernels.shifts):
        first = head * head_width
        query[first : first + phi, token_width - phi :] = scale * sharpness.temperature * code.rotation(shift)
        key[first : first + phi, token_width - phi :] = torch.eye(phi, dtype=torch.float64)
        if sharpness.null_logit is not None:
            # The null slot's logit is 0: the tokens' are moved instead, by one constant entry.
            bias[0, first + phi] = scale * (sharpness.null_logit - sharpness.temperature * code.peak)
            bias[1, first + phi] = 1.0
        value[first : first + atoms, reads[0] : reads[0] + wide] = kernels.weights[head, :, :wide]
        value[first : first + atoms, reads[1] : reads[1] + atoms] = kernels.weights[head, :, wide:]
        out[writes : writes + atoms, first : first + atoms] = torch.eye(atoms, dtype=torch.float64)
    module: nn.MultiheadAttention = skip_init(  # type: ignore[assignment]  # it is typed as nn.Module
        nn.MultiheadAttention,
        token_width,
        heads,
        batch_first=True,
        add_zero_attn=sharpness.null_logit is not None,
        device=device,
        dtype=dtype,
    )
    filled(
        module,
        in_proj_weight=torch.cat([query, key, value]),
        in_proj_bias=bias.flatten(),
        **{"out_proj.weight": out, "out_proj.bias": out.new_zeros(token_width)},
    )
    return module


def filled(module: nn.Module, **values: Tensor) -> nn.Module:
    """Return `module` with its parameters set to `values`, without gradients."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(values[name])
    return module.requires_grad_(False)
