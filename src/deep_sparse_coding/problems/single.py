"""What problems on one dictionary share: how signals and codes of one layer are checked, packed and unpacked."""

from __future__ import annotations

import math
from abc import ABC

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_float_tensor, require_number
from deep_sparse_coding.dictionaries import Dictionary
from deep_sparse_coding.errors import ParameterError, ShapeError

from .base import Codes, squared_norm
from .certificate import CertifiedProblem
from .lasso import Lasso, flat_codes
from .operators import Blocks
from .weights import flatten_mask

# An epsilon below this share of ‖M y‖ cannot be told from rounding of the codes: it is taken as this share.
_RESOLUTION = {torch.float64: 1e-8, torch.float32: 1e-6}


class SingleProblem(CertifiedProblem, ABC):
    """A problem with a bound ε on the residual of one dictionary; fields that all of them have are abstract here."""

    dictionary: Dictionary
    nonnegative: bool
    mask: Tensor | None

    def batch_shape(self, signal: Tensor) -> tuple[int, ...]:
        """Return the leading axes of a signal."""
        return tuple(signal.shape[: signal.ndim - self.dictionary.event_axes])

    def check_signal(self, signal: object) -> Tensor:
        """Return the signal if it fits the dictionary, else raise."""
        return self.dictionary.check_signal(signal)

    def pack(self, codes: object, signal: Tensor) -> Blocks:
        """Return codes ``(*batch, *code)`` with one batch axis."""
        plain = Lasso(self.dictionary, 1.0)
        return (flat_codes("codes", codes, self.dictionary, self.batch_shape(signal), plain.code_shape(signal)),)

    def unpack(self, blocks: Blocks, batch_shape: tuple[int, ...]) -> Codes:
        """Return the codes as ``(*batch, *code)``."""
        return blocks[0].reshape(*batch_shape, *blocks[0].shape[1:])

    def lam_max(self, signal: Tensor) -> Tensor:
        """Return, per sample, the smallest epsilon for which the codes are zero, ``‖M y‖``: there is no lam here."""
        return self.epsilon_max(signal)

    def epsilon_max(self, signal: Tensor) -> Tensor:
        """Return ``‖M y‖`` per sample, the smallest epsilon for which all codes are zero, ``(*batch,)``, float64."""
        signal = self.check_signal(signal).detach()
        batch = self.batch_shape(signal)
        flat = signal.reshape(math.prod(batch), *signal.shape[len(batch) :]).double()
        mask = flatten_mask(self.mask, signal, self.dictionary.event_axes)
        return squared_norm((flat if mask is None else mask.double() * flat,)).sqrt().reshape(batch)


def check_epsilon(name: str, epsilon: object) -> float | Tensor:
    """Return epsilon as a number, or as a tensor of numbers, one per sample; at least 0, inf allowed.

    Raises:
        ParameterError: Negative or NaN.
    """
    if isinstance(epsilon, Tensor) and epsilon.ndim:
        epsilon = require_float_tensor(name, epsilon).detach()
        bad = ~(epsilon >= 0)
        if bool(bad.any()):
            where = tuple(bad.nonzero()[0].tolist())
            raise ParameterError(
                f"{name} has {int(bad.sum())} entries that are negative or NaN, the first at {where}: "
                f"{float(epsilon[where])}; expected entries of at least 0: the largest ‖y - D x‖ that counts as noise"
            )
        return epsilon
    return require_number(name, epsilon, minimum=0.0, finite=False)


def residual_limits(epsilon: float | Tensor, norms: Tensor, signal: Tensor) -> Tensor:
    """Return the residual norm that counts as within ε, ``max(ε, η‖M y‖)``, as ``(samples,)`` in float64.

    Args:
        epsilon: A number, or one per sample.
        norms: ``‖M y‖``, ``(*batch,)``, float64.
        signal: Its dtype sets η.

    Raises:
        ShapeError: A tensor that is not one number per sample.
    """
    if isinstance(epsilon, Tensor):
        if epsilon.shape != norms.shape:
            raise ShapeError(
                f"epsilon has shape {tuple(epsilon.shape)}; expected a number, or one per sample: "
                f"{tuple(norms.shape)}, the signal's batch axes"
            )
        least = epsilon.to(norms)
    else:
        least = torch.full_like(norms, epsilon)
    return torch.maximum(least, _RESOLUTION[signal.dtype] * norms).reshape(-1)
