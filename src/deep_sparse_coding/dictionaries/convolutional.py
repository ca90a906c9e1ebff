"""Convolutional dictionaries: every atom is a kernel that may stand at every position of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..checks import per_axis, require_float_tensor, require_same_kind, require_trailing
from ..errors import ShapeError
from . import random as families
from .base import Dictionary
from .boundaries import AXIS_NAMES, Grid, cut_atoms_have_no_lags, grid_of, known_boundary
from .dense import prepare_atoms
from .norms import OperatorNorm, convolution_norm

_CORRELATE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_SPREAD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_FOLD_CHANNELS = 2


class ConvDictionary(Dictionary):
    """Kernels ``(atoms, channels, k, ...)`` on every position of a code grid, ``stride`` apart in the signal.

    ``synthesize`` is a transposed convolution, ``analyze`` an ordinary one; no matrix is ever built. Along an axis a
    code grid of h positions makes a signal of

    - ``(h - 1)·stride + k`` entries with ``boundary="valid"``: every atom lies wholly inside;
    - ``h·stride`` entries with ``"same"``: the atom of position p has its entry ``⌊(k - 1)/2⌋`` (of an even number the
      left one of the middle two) on entry ``p·stride``, and what sticks out is cut off. It is the "valid" operator
      without the rows that `padding` counts, so atoms at the border are shorter than their kernels;
    - ``h·stride`` entries with ``"circular"``: atoms wrap around.

    Args:
        kernels: ``(atoms, channels, k)``, ``(atoms, channels, k, k)`` or with three spatial axes.
        stride: One number, or one per axis.
        boundary: "valid", "same" or "circular".
        normalize: Scale the kernels to unit norm.

    Raises:
        DictionaryError: A kernel is zero or an entry is not finite.
        DtypeError: Not float32 or float64.
        ParameterError: A stride or a boundary that does not exist.
        ShapeError: Not three to five axes.

    Source: section 0 of docs/theory.md; Papyan, Romano & Elad 2017.
    """

    def __init__(
        self,
        kernels: Tensor,
        *,
        stride: int | Sequence[int] = 1,
        boundary: str = "valid",
        normalize: bool = False,
    ) -> None:
        super().__init__()
        kernels = require_float_tensor("kernels", kernels)
        if kernels.ndim not in (3, 4, 5) or 0 in kernels.shape:
            raise ShapeError(
                f"kernels have shape {tuple(kernels.shape)}; expected (atoms, channels, k), (atoms, channels, k, k) or "
                "(atoms, channels, k, k, k), none of them 0"
            )
        self.stride = per_axis("stride", stride, kernels.ndim - 2)
        self.boundary = known_boundary(boundary)
        kernels = prepare_atoms("kernels", kernels, 0, normalize)
        self.kernels = nn.Parameter(kernels.detach().contiguous().clone(), requires_grad=False)

    @classmethod
    def random(
        cls,
        *,
        atoms: int,
        channels: int,
        size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        boundary: str = "valid",
        nonzeros: int | None = None,
        seed: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Self:
        """Return random kernels of unit norm: Gaussian, or with `nonzeros` entries at random places.

        Args:
            atoms: Number of kernels.
            channels: Channels of the signal.
            size: Kernel size: one number for square kernels on images, or a tuple with one number per axis.
            stride: One number, or one per axis.
            boundary: "valid", "same" or "circular".
            nonzeros: Non-zero entries of each kernel; None for dense ones.
            seed: Seed of the generator.
            dtype: float32 (default) or float64.
            device: Where the kernels live.

        Raises:
            DtypeError: Another number type.
            ParameterError: A size, stride or number out of range, or more non-zeros than a kernel has entries.
        """
        shape = families.kernel_shape(atoms, channels, size)
        if nonzeros is None:
            kernels = families.gaussian_atoms(shape, tuple(range(1, len(shape))), seed)
        else:
            kernels = families.sparse_atoms(shape, nonzeros, seed)
        return cls(families.to_kind(kernels, dtype, device), stride=stride, boundary=boundary, normalize=True)

    @classmethod
    def low_coherence(
        cls,
        *,
        atoms: int,
        channels: int,
        size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        boundary: str = "valid",
        nonzeros: int | None = None,
        seed: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> Self:
        """Return kernels whose correlations at all lags are small: the kind that guarantees speak of.

        Dense kernels by gradient descent on a smooth maximum of the correlations at all lags; sparse ones (`nonzeros`)
        by choosing among random candidates the one least like the kernels before it. Arguments and errors as in
        `random`.
        """
        strides = per_axis("stride", stride, len(families.kernel_size(size)))
        shape = families.kernel_shape(atoms, channels, size)
        if nonzeros is None:
            kernels = families.low_coherence_kernels(shape, strides, seed)
        else:
            kernels = families.spread_sparse_kernels(shape, strides, nonzeros, seed)
        return cls(families.to_kind(kernels, dtype, device), stride=stride, boundary=boundary, normalize=True)

    # ------------------------------------------------------------------ sizes

    @property
    def weight(self) -> nn.Parameter:
        """The kernels ``(atoms, channels, k, ...)``."""
        return self.kernels

    @property
    def atoms(self) -> int:
        """The number of kernels."""
        return self.kernels.shape[0]

    @property
    def channels(self) -> int:
        """The channels of a signal."""
        return self.kernels.shape[1]

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """The kernel's size, one number per axis."""
        return tuple(self.kernels.shape[2:])

    @property
    def axes(self) -> int:
        """The number of spatial axes."""
        return self.kernels.ndim - 2

    @property
    def event_axes(self) -> int:  # type: ignore[override]
        """One more than the spatial axes: the channels come first."""
        return self.kernels.ndim - 1

    @property
    def lags(self) -> tuple[int, ...]:
        """``L = ⌊(k - 1)/stride⌋`` per axis: atoms that many positions apart still overlap."""
        return tuple((k - 1) // q for k, q in zip(self.kernel_size, self.stride, strict=True))

    @property
    def synthesis_terms(self) -> int:
        """Atoms times the positions whose atom covers one entry."""
        return self.atoms * math.prod(-(-k // q) for k, q in zip(self.kernel_size, self.stride, strict=True))

    @property
    def analysis_terms(self) -> int:
        """The number of entries of a kernel."""
        return self.kernels[0].numel()

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        """``(before, after)`` per axis: the entries of the "valid" signal of the same codes that this one lacks.

        ``D_same = R D_valid`` where R drops so many rows at either end: the "same" problem is the "valid" one on the
        padded signal under a mask that is 0 on the padding. ``before = ⌊(k-1)/2⌋, after = k - stride - before``; a
        negative number counts entries that lie beyond the last atom, under none. All 0 for "valid" and "circular",
        which cut nothing.
        """
        return tuple(axis.padding for axis in self._grid.axes)

    def signal_shape(self, size: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return ``(channels, H, W)`` for a code grid of the spatial `size`.

        Raises:
            ShapeError: A circular signal of that size would be smaller than a kernel.
        """
        size = per_axis("size", size, self.axes)
        return (self.channels, *(axis.entries(n) for axis, n in zip(self._grid.axes, size, strict=True)))

    def aliases(self, size: tuple[int, ...]) -> bool:
        """Return whether lags of the Gram matrix add up on a circular code grid of the spatial `size`.

        Coherence and Babel function take every lag apart, as they are on all larger grids and with boundary "valid";
        on a grid of fewer than ``2L + 1`` positions along an axis they do not bound what the atoms do to each other.
        """
        size = per_axis("size", size, self.axes)
        return self.boundary == "circular" and any(n < 2 * lag + 1 for n, lag in zip(size, self.lags, strict=True))

    def code_shape(self, size: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return ``(atoms, h, w)`` of the largest code grid whose signal fits into the spatial `size`.

        Raises:
            ShapeError: The size is smaller than a kernel (boundary "same": than the stride).
        """
        size = per_axis("size", size, self.axes)
        return (self.atoms, *(axis.positions(n) for axis, n in zip(self._grid.axes, size, strict=True)))

    def exact_code_shape(self, size: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return `code_shape` of a signal that a code grid makes exactly.

        Raises:
            ShapeError: No code grid makes the size; the message names sizes that fit.
        """
        shape = self.code_shape(size)
        for axis, n in zip(self._grid.axes, per_axis("size", size, self.axes), strict=True):
            axis.require_exact(n)
        return shape

    def check_signal(self, signal: object) -> Tensor:
        """Return `signal` if it is ``(*batch, channels, H, W)`` of a size that a code grid makes, else raise."""
        tensor = require_float_tensor("signal", signal)
        names = ", ".join(AXIS_NAMES[self.axes])
        require_trailing(
            "signal",
            tensor,
            (self.channels, *(None,) * self.axes),
            f"the kernels have {self.channels} channel(s) and are laid over {names}",
        )
        require_same_kind("signal", tensor, "the dictionary", self.kernels)
        size = tensor.shape[-self.axes :]
        if not all(axis.fits(n) for axis, n in zip(self._grid.axes, size, strict=True)):
            self.exact_code_shape(tuple(size))  # says what is wrong
        return tensor

    def check_codes(self, codes: object) -> Tensor:
        """Return `codes` if they are ``(*batch, atoms, h, w)`` of the dictionary's dtype and device, else raise."""
        tensor = require_float_tensor("codes", codes)
        require_trailing("codes", tensor, (self.atoms, *(None,) * self.axes), f"{self.atoms} is the number of kernels")
        require_same_kind("codes", tensor, "the dictionary", self.kernels)
        size = tensor.shape[-self.axes :]
        if not all(axis.holds(n) for axis, n in zip(self._grid.axes, size, strict=True)):
            self.signal_shape(tuple(size))  # says what is wrong
        return tensor

    @property
    def _grid(self) -> Grid:
        return grid_of(self.kernels.shape[2:], self.stride, self.boundary)

    # ------------------------------------------------------------------ the operator

    def synthesize(self, codes: Tensor) -> Tensor:
        """Return ``D x``, ``(*batch, channels, H, W)``, for codes ``(*batch, atoms, h, w)``."""
        flat, batch = self._flatten(self.check_codes(codes))
        signal = self._spread(flat)
        if self.boundary != "valid":
            for at, (axis, n) in enumerate(zip(self._grid.axes, flat.shape[2:], strict=True), start=2):
                if axis.boundary == "circular":
                    signal = _wrap(signal, at, n * axis.stride)
                elif axis.spare:
                    signal = signal.narrow(at, 0, n)
        return signal.reshape(*batch, *signal.shape[1:])

    def analyze(self, signal: Tensor) -> Tensor:
        """Return ``Dᵀ r``, ``(*batch, atoms, h, w)``, for signals ``(*batch, channels, H, W)``."""
        return self._correlate(self.check_signal(signal), self.kernels)

    def squared_norms(self, mask: Tensor | None = None, size: tuple[int, ...] | None = None) -> Tensor:
        """Return ``‖M d_i‖²``, shape ``(atoms, 1, 1)``, or ``(*batch, atoms, h, w)`` under a mask.

        With boundary "same" the norm depends on the position, and comes as ``(atoms, h, w)`` for a code grid of the
        spatial `size`; without `size` it is that of the whole kernel, which no position exceeds.
        """
        squares = self.kernels.square()
        if mask is None and size is not None and self.boundary == "same":
            mask = squares.new_ones(self.signal_shape(size))
        if mask is None:
            return squares.flatten(1).sum(1).reshape(-1, *(1,) * self.axes)
        return self._correlate(
            mask.square().expand(*mask.shape[: -self.event_axes], self.channels, *mask.shape[-self.axes :]), squares
        )

    def gram_rows(self, rows: slice = slice(None), analysis: Tensor | None = None) -> Tensor:
        """Return ``⟨w_i, d_l shifted⟩`` at all lags, float64, ``(rows, atoms, Π(2L + 1))``.

        They are the entries of ``WᵀD`` for every grid that is large enough for nothing to wrap twice: any size with
        boundary "valid"; with "circular" at least ``2L + 1`` positions per axis (see `aliases`).

        Raises:
            UnsupportedError: Boundary "same", whose atoms at the border correlate otherwise.
        """
        if self.boundary == "same":
            raise cut_atoms_have_no_lags(self.boundary)
        kernels = self.kernels.detach().double()
        weights = (kernels if analysis is None else analysis.detach().double())[rows]
        padding: list[int] = []
        for lag, q in zip(reversed(self.lags), reversed(self.stride), strict=True):
            padding += [lag * q, lag * q]
        return _CORRELATE[self.axes](F.pad(weights, padding), kernels, stride=self.stride).flatten(2)

    def with_weight(self, weight: Tensor) -> Self:
        """Return a convolutional dictionary that holds `weight` as it is, with this stride and boundary."""
        other = type(self).__new__(type(self))
        Dictionary.__init__(other)
        other.stride, other.boundary = self.stride, self.boundary
        other.kernels = nn.Parameter(weight, requires_grad=False)
        return other

    def with_boundary(self, boundary: str) -> Self:
        """Return a dictionary with the same kernels (shared, not copied), the same stride and another boundary.

        Raises:
            ParameterError: No such boundary.
        """
        other = self.with_weight(self.kernels.detach())
        other.boundary = known_boundary(boundary)
        return other

    def operator_norm(self, size: tuple[int, ...] | None = None) -> OperatorNorm:
        """Return ``‖D‖``: exact for a circular boundary at a given code `size`, else a bound for every size.

        One bound does for "valid" and "same": ``‖D_same x‖ = ‖R D_valid x‖ ≤ ‖D_valid x‖``, as R only drops rows.
        """
        if size is not None:
            self.signal_shape(size)
            size = per_axis("size", size, self.axes)
        circular = self.boundary == "circular"
        key = size if circular else None
        return self.cached(("norm", key), lambda: convolution_norm(self.kernels, self.stride, key, circular))

    def extra_repr(self) -> str:
        """Return the words between the brackets of the printed form."""
        size, stride = ("×".join(str(n) for n in numbers) for numbers in (self.kernel_size, self.stride))
        return f"atoms={self.atoms}, channels={self.channels}, size={size}, stride={stride}, boundary={self.boundary!r}"

    def _correlate(self, signal: Tensor, kernels: Tensor) -> Tensor:
        flat, batch = self._flatten(signal)
        grid = self._grid
        if self.boundary == "circular":
            for at, axis in enumerate(grid.axes, start=2):
                n, q = flat.shape[at], axis.stride
                reach = torch.arange(n // q * q - q + axis.kernel, device=flat.device) % n
                flat = flat.index_select(at, reach)
        if any(grid.spare):
            flat = F.pad(flat, [n for spare in reversed(grid.spare) for n in (0, spare)])
        codes = _CORRELATE[self.axes](flat, kernels, stride=self.stride, padding=grid.before)
        return codes.reshape(*batch, *codes.shape[1:])

    def _spread(self, flat: Tensor) -> Tensor:
        """Return the transposed convolution: of a circular boundary unwrapped, of "same" with its spare entry."""
        grid = self._grid
        if self.axes == 2 and self.channels <= _FOLD_CHANNELS and flat.device.type == "cpu" and flat.numel():
            # One matrix product and one fold: on a CPU twice as fast as a transposed convolution to few channels.
            columns = self.kernels.flatten(1).T @ flat.flatten(2)
            grown = tuple(
                (n - 1) * axis.stride + axis.kernel - 2 * low + high
                for n, axis, low, high in zip(flat.shape[2:], grid.axes, grid.before, grid.beyond, strict=True)
            )
            return F.fold(columns, grown, self.kernel_size, padding=grid.before, stride=self.stride)
        spread = _SPREAD[self.axes]
        return spread(flat, self.kernels, stride=self.stride, padding=grid.before, output_padding=grid.beyond)

    def _flatten(self, tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        batch = tuple(tensor.shape[: tensor.ndim - self.event_axes])
        return tensor.reshape(math.prod(batch), *tensor.shape[tensor.ndim - self.event_axes :]), batch


def _wrap(signal: Tensor, axis: int, length: int) -> Tensor:
    """Add up what lies beyond `length` along an axis onto the entries it wraps around to."""
    excess = -signal.shape[axis] % length
    if excess:
        signal = F.pad(signal, [0, 0] * (signal.ndim - 1 - axis) + [0, excess])
    return signal.unflatten(axis, (-1, length)).sum(axis)
