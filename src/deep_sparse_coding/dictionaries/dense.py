"""Dense dictionaries: a matrix whose columns are the atoms."""

from __future__ import annotations

import sys
import warnings
from typing import Self

import torch
from torch import Tensor, nn

from ..checks import require_finite_atoms, require_float_tensor, require_integer, require_same_kind, require_trailing
from ..errors import DictionaryError, DSCWarning, ShapeError
from . import random as families
from .base import Dictionary
from .norms import OperatorNorm, matrix_norm

# Rows of the Gram matrix that are searched for duplicates at a time.
_DUPLICATE_ROWS = 1024


def prepare_atoms(name: str, weight: Tensor, axis: int, normalize: bool) -> Tensor:
    """Return the atoms after the checks that all dictionaries share, scaled to unit norm if asked.

    Args:
        name: What the user calls the tensor.
        weight: The tensor of atoms.
        axis: The axis that counts the atoms.
        normalize: Whether to scale, in float64 whatever the dtype.

    Raises:
        DictionaryError: An entry is not finite, an atom is zero, or its squared norm cannot be represented.
    """
    require_finite_atoms(name, weight)
    moved = weight.detach().double().movedim(axis, 0)
    columns = moved.flatten(1)
    peaks = columns.abs().amax(1, keepdim=True)
    zero = (peaks == 0).flatten().nonzero().flatten().tolist()
    if zero:
        raise DictionaryError(
            f"{_list_atoms(zero)} of {len(columns)} zero; expected atoms that are not: remove them before building the "
            "dictionary"
        )
    # Scaled by the largest entry first: the squares of an atom of size 1e-200 would all be zero.
    unit = columns / peaks
    lengths = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    unit = unit / lengths
    _warn_of_duplicates(unit, weight.dtype)
    if normalize:
        return unit.reshape(moved.shape).movedim(0, axis).to(weight.dtype)
    norms, limits = (peaks * lengths).flatten(), torch.finfo(weight.dtype)
    extreme = ((norms < limits.tiny**0.5) | (norms > limits.max**0.5)).nonzero().flatten().tolist()
    if extreme:
        raise DictionaryError(
            f"atom {extreme[0]} of {len(columns)} has norm {norms[extreme[0]]:.3g}, whose square {weight.dtype} cannot "
            "hold; expected atoms of moderate size: pass normalize=True, or scale them"
        )
    return weight


def _warn_of_duplicates(unit: Tensor, dtype: torch.dtype) -> None:
    """Warn of rows that are parallel up to the rounding of `dtype` (1 - cosine is half the angle squared)."""
    rounding = 16 * torch.finfo(torch.float64).eps * unit.shape[1] ** 0.5 + 4 * torch.finfo(dtype).eps ** 2
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(unit), _DUPLICATE_ROWS):
        cosines = unit[start : start + _DUPLICATE_ROWS] @ unit.T
        found = (cosines.abs() >= 1 - rounding).triu(start + 1).nonzero()
        pairs += [(start + i, j) for i, j in found.tolist()]
    if pairs:
        shown = ", ".join(f"{i} and {j}" for i, j in pairs[:3]) + (", ..." if len(pairs) > 3 else "")
        warnings.warn(
            f"{len(pairs)} pair(s) of atoms are the same up to scale and sign: {shown}; codes that use them are not "
            "unique: remove one of each pair",
            DSCWarning,
            stacklevel=_level_of_the_caller(),
        )


def _level_of_the_caller() -> int:
    """Return the stack level, seen from the caller of this function, of the first line outside of this library.

    Atoms are prepared by constructors, by random families and by `load`, at different depths.
    """
    library = __name__.split(".")[0]
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] == library:
        frame, level = frame.f_back, level + 1
    return level


def _list_atoms(indices: list[int]) -> str:
    shown = ", ".join(str(i) for i in indices[:5]) + (", ..." if len(indices) > 5 else "")
    return f"atoms {shown} are" if len(indices) > 1 else f"atom {shown} is"


class DenseDictionary(Dictionary):
    """A matrix ``D ∈ R^{d × atoms}`` whose columns are the atoms.

    Args:
        matrix: ``(d, atoms)``, float32 or float64, finite, no zero column.
        normalize: Scale the columns to unit norm.

    Raises:
        DictionaryError: A column is zero, too small or too large for its dtype, or an entry is not finite.
        DtypeError: Not float32 or float64.
        ShapeError: Not two axes.

    Source: section 0 of docs/theory.md; Donoho & Elad 2003.
    """

    event_axes = 1
    boundary = "none"

    def __init__(self, matrix: Tensor, *, normalize: bool = False) -> None:
        super().__init__()
        matrix = require_float_tensor("matrix", matrix)
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise ShapeError(f"matrix has shape {tuple(matrix.shape)}; expected (d, atoms), neither of them 0")
        matrix = prepare_atoms("matrix", matrix, 1, normalize)
        self.matrix = nn.Parameter(matrix.detach().contiguous().clone(), requires_grad=False)

    @classmethod
    def random(
        cls, d: int, atoms: int, *, seed: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Self:
        """Return Gaussian atoms of unit norm, a matrix ``(d, atoms)``.

        Args:
            d: Length of a signal.
            atoms: Number of columns.
            seed: Seed of the generator.
            dtype: float32 (default) or float64.
            device: Where the atoms live.

        Raises:
            DtypeError: Another number type.
            ParameterError: A size below 1, or a negative seed.
        """
        shape = _matrix_shape(d, atoms)
        return cls(families.to_kind(families.gaussian_atoms(shape, (0,), seed), dtype, device), normalize=True)

    @classmethod
    def dct(cls, d: int, atoms: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Self:
        """Return the overcomplete discrete cosine dictionary ``cos(π l (n + ½) / atoms)``, columns of unit norm.

        For ``atoms = d`` it is the orthonormal DCT-II. Columns other than the constant one have their mean removed
        where ``atoms > d``, as is the custom.

        Args:
            d: Length of a signal.
            atoms: Number of columns, at least d.
            dtype: float32 (default) or float64.
            device: Where the atoms live.

        Raises:
            DtypeError: Another number type.
            ParameterError: A size below 1, or fewer atoms than d.

        Source: Elad & Aharon 2006.
        """
        return cls(families.to_kind(families.cosine_atoms(*_matrix_shape(d, atoms)), dtype, device), normalize=True)

    @classmethod
    def low_coherence(
        cls, d: int, atoms: int, *, seed: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Self:
        """Return atoms of low mutual coherence, by alternating projection from a random start.

        No ``(d, atoms)`` matrix has less than ``√((atoms - d)/(d(atoms - 1)))``; up to ``atoms = d`` the columns are
        orthonormal.

        Args:
            d: Length of a signal.
            atoms: Number of columns.
            seed: Seed of the generator.
            dtype: float32 (default) or float64.
            device: Where the atoms live.

        Raises:
            DtypeError: Another number type.
            ParameterError: A size below 1, or a negative seed.

        Source: Tropp, Dhillon, Heath & Strohmer 2005; the bound is Welch's (1974).
        """
        shape = _matrix_shape(d, atoms)
        return cls(families.to_kind(families.low_coherence_frame(*shape, seed), dtype, device), normalize=True)

    @property
    def weight(self) -> nn.Parameter:
        """The matrix ``(d, atoms)``."""
        return self.matrix

    @property
    def atoms(self) -> int:
        """The number of columns."""
        return self.matrix.shape[1]

    @property
    def channels(self) -> int:
        """The length d of a signal."""
        return self.matrix.shape[0]

    @property
    def synthesis_terms(self) -> int:
        """The number of atoms."""
        return self.atoms

    @property
    def analysis_terms(self) -> int:
        """The length d of a signal."""
        return self.channels

    def synthesize(self, codes: Tensor) -> Tensor:
        """Return ``D x``, ``(*batch, d)``, for codes ``(*batch, atoms)``."""
        return self.check_codes(codes) @ self.matrix.T

    def analyze(self, signal: Tensor) -> Tensor:
        """Return ``Dᵀ r``, ``(*batch, atoms)``, for signals ``(*batch, d)``."""
        return self.check_signal(signal) @ self.matrix

    def signal_shape(self, size: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return ``(d,)``."""
        _require_no_size(size)
        return (self.channels,)

    def code_shape(self, size: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return ``(atoms,)``."""
        _require_no_size(size)
        return (self.atoms,)

    def exact_code_shape(self, size: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return ``(atoms,)``."""
        return self.code_shape(size)

    def check_signal(self, signal: object) -> Tensor:
        """Return `signal` if it is ``(*batch, d)`` of the dictionary's dtype and device, else raise."""
        tensor = require_float_tensor("signal", signal)
        require_trailing("signal", tensor, (self.channels,), f"d = {self.channels} is the length of the atoms")
        require_same_kind("signal", tensor, "the dictionary", self.matrix)
        return tensor

    def check_codes(self, codes: object) -> Tensor:
        """Return `codes` if they are ``(*batch, atoms)`` of the dictionary's dtype and device, else raise."""
        tensor = require_float_tensor("codes", codes)
        require_trailing("codes", tensor, (self.atoms,), f"{self.atoms} is the number of atoms")
        require_same_kind("codes", tensor, "the dictionary", self.matrix)
        return tensor

    def squared_norms(self, mask: Tensor | None = None, size: tuple[int, ...] | None = None) -> Tensor:
        """Return ``‖M d_i‖²``, shape ``(atoms,)``, or ``(*batch, atoms)`` for a mask per sample."""
        squares = self.matrix.square()
        return squares.sum(0) if mask is None else mask.square() @ squares

    def gram_rows(self, rows: slice = slice(None), analysis: Tensor | None = None) -> Tensor:
        """Return rows of ``WᵀD``, float64, ``(rows, atoms, 1)``."""
        matrix = self.matrix.detach().double()
        weights = matrix if analysis is None else analysis.detach().double()
        return (weights[:, rows].T @ matrix)[..., None]

    def with_weight(self, weight: Tensor) -> Self:
        """Return a dense dictionary that holds `weight` as it is."""
        other = type(self).__new__(type(self))
        Dictionary.__init__(other)
        other.matrix = nn.Parameter(weight, requires_grad=False)
        return other

    def operator_norm(self, size: tuple[int, ...] | None = None) -> OperatorNorm:
        """Return the largest singular value of the matrix (exact)."""
        _require_no_size(size or ())
        return self.cached("norm", lambda: matrix_norm(self.matrix))

    def extra_repr(self) -> str:
        """Return the words between the brackets of the printed form."""
        return f"d={self.channels}, atoms={self.atoms}"


def _matrix_shape(d: int, atoms: int) -> tuple[int, int]:
    return require_integer("d", d, minimum=1), require_integer("atoms", atoms, minimum=1)


def _require_no_size(size: tuple[int, ...]) -> None:
    if size:
        raise ShapeError(f"size is {size}; expected none: a dense dictionary has one size of signals")
