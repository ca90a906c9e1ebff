"""What every dictionary can do: synthesize, analyze, and answer for its atoms without being written as a matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..checks import require_integer
from . import coherence
from .norms import OperatorNorm


class Dictionary(nn.Module, ABC):
    """A linear synthesis operator D: codes to signals, with named atoms as columns.

    Leading axes of signals and codes are batch axes. One signal has `event_axes` trailing axes, and so has its code:
    ``(d,)`` and ``(atoms,)`` for dense dictionaries, ``(channels, H, W)`` and ``(atoms, h, w)`` for images.
    """

    event_axes: int
    boundary: str

    def __init__(self) -> None:
        super().__init__()
        self._cached: dict[Any, Any] = {}
        self._cached_for: Tensor | None = None

    # ------------------------------------------------------------------ what a concrete dictionary defines

    @property
    @abstractmethod
    def weight(self) -> nn.Parameter:
        """The tensor that holds the atoms: ``(d, atoms)`` or ``(atoms, channels, k, ...)``."""

    @property
    @abstractmethod
    def atoms(self) -> int:
        """The number of atoms (for convolutions: of kernels)."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """The number of entries (dense) or channels (convolutional) of a signal: what the layer below has as atoms."""

    @property
    @abstractmethod
    def synthesis_terms(self) -> int:
        """The most products that are added up for one entry of ``D x``."""

    @property
    @abstractmethod
    def analysis_terms(self) -> int:
        """The most products that are added up for one entry of ``Dᵀ r``."""

    @abstractmethod
    def synthesize(self, codes: Tensor) -> Tensor:
        """Return ``D x`` for codes of shape ``(*batch, atoms, ...)``."""

    @abstractmethod
    def analyze(self, signal: Tensor) -> Tensor:
        """Return ``Dᵀ r`` for signals of shape ``(*batch, channels, ...)``."""

    @abstractmethod
    def signal_shape(self, size: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the shape of a signal whose code has the spatial `size`."""

    @abstractmethod
    def code_shape(self, size: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the shape of the code of a signal of the spatial `size`, as much of it as whole atoms cover."""

    @abstractmethod
    def exact_code_shape(self, size: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return the shape of the code of a signal of the spatial `size`; raise if no code makes that size."""

    @abstractmethod
    def check_signal(self, signal: object) -> Tensor:
        """Return `signal` if it fits this dictionary, else raise a `DSCError` that says what does."""

    @abstractmethod
    def check_codes(self, codes: object) -> Tensor:
        """Return `codes` if they fit this dictionary, else raise a `DSCError` that says what does."""

    @abstractmethod
    def squared_norms(self, mask: Tensor | None = None, size: tuple[int, ...] | None = None) -> Tensor:
        """Return ``‖M d_i‖²`` for a mask M on signals (all ones if None), in a shape that broadcasts against codes.

        Args:
            mask: M, a signal.
            size: Spatial size of the code, for norms position by position where the border cuts atoms off (boundary
                "same"); without it, and without a mask, norms of whole atoms, which bound them.
        """

    @abstractmethod
    def gram_rows(self, rows: slice = slice(None), analysis: Tensor | None = None) -> Tensor:
        """Return rows of ``G = WᵀD``, float64, shape ``(rows, atoms, lags)``; an atom's own entry is at the middle lag.

        Args:
            rows: Which atoms' rows.
            analysis: The weights W in the shape of `weight`; D itself if None.

        Raises:
            UnsupportedError: The border cuts atoms off (boundary "same"), so that lags do not say it all.
        """

    @abstractmethod
    def with_weight(self, weight: Tensor) -> Self:
        """Return a dictionary of the same kind (stride, boundary) with other atoms, unchecked and not copied."""

    @abstractmethod
    def operator_norm(self, size: tuple[int, ...] | None = None) -> OperatorNorm:
        """Return ``‖D‖``, exact or a proved upper bound; the answer says which.

        Args:
            size: Spatial size of the code; None for a value that holds for every size.
        """

    # ------------------------------------------------------------------ what follows for all of them

    @property
    def dtype(self) -> torch.dtype:
        """The number type of the atoms, which signals and codes must have."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the atoms live, and signals and codes must too."""
        return self.weight.device

    def column_norms(self) -> Tensor:
        """Return the ℓ2 norm of every atom, uncut by a border, float64, shape ``(atoms,)``."""
        return self.cast(torch.float64).squared_norms().sqrt().reshape(self.atoms)

    def mutual_coherence(self) -> float:
        """Return ``μ = max_{i≠l} |⟨d_i, d_l⟩| / (‖d_i‖‖d_l‖)``; shifts of an atom count as other atoms.

        Raises:
            UnsupportedError: Boundary "same": atoms that the border cuts off may be far more alike.

        Source: Donoho & Elad 2003; for convolutions all lags that are multiples of the stride.
        """
        return self.babel(1)

    def babel(self, s: int) -> float:
        """Return the Babel function ``μ_1(s) = max_i top_s(|G_il|, l ≠ i)`` of the normalized atoms.

        Args:
            s: How many other atoms are added up; 0 gives 0.

        Raises:
            DictionaryError: The atoms were changed so that one is zero or not finite.
            ParameterError: `s` is negative or no whole number.
            UnsupportedError: Boundary "same", as in `mutual_coherence`.

        Source: Tropp 2004.
        """
        s = require_integer("s", s, minimum=0)
        return self.cached(("babel", s), lambda: coherence.babel(self, s))

    def cast(self, dtype: torch.dtype) -> Self:
        """Return this dictionary with atoms of another number type, without gradients; itself if nothing changes."""
        if self.dtype == dtype and not self.weight.requires_grad:
            return self
        return self.cached(("cast", dtype), lambda: self.with_weight(self.weight.detach().to(dtype)))

    def cached(self, key: object, compute: Callable[[], Any]) -> Any:
        """Return ``compute()``, kept until the atoms are changed in place or replaced.

        The atoms are compared with a copy, entry by entry: autograd's version counter does not see what is written
        through ``.data``, and a number of atoms that are gone would prove what is false.
        """
        weight, known = self.weight.detach(), self._cached_for
        same = known is not None and known.dtype == weight.dtype and known.device == weight.device
        if known is None or not same or not torch.equal(known, weight):
            self._cached, self._cached_for = {}, weight.clone()
        if key not in self._cached:
            self._cached[key] = compute()
        return self._cached[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": {}, "_cached_for": None}

    def forward(self, codes: Tensor) -> Tensor:
        """Return ``D x``: a dictionary is a linear layer from codes to signals."""
        return self.synthesize(codes)
