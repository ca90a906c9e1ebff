"""What the boundary of a convolution means along one axis: which sizes go together, and what is cut off."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from ..errors import ParameterError, ShapeError, UnsupportedError

AXIS_NAMES = {1: ("L",), 2: ("H", "W"), 3: ("T", "H", "W")}
BOUNDARIES = ("valid", "same", "circular")


class Axis(NamedTuple):
    """How code positions and entries of the signal lie to each other along one spatial axis.

    Position p of the code has the first entry of its kernel at ``p·stride - before``, ``before = padding[0]``.

    Attributes:
        name: What messages call it.
        kernel: k, the entries of a kernel.
        stride: q, the entries from one position to the next.
        boundary: "valid", "same" or "circular".
    """

    name: str
    kernel: int
    stride: int
    boundary: str

    @property
    def padding(self) -> tuple[int, int]:
        """How many entries of the "valid" signal are missing before and after this one: 0, 0 unless "same".

        The last entry of n = h·q is ``n - 1``, that of the last atom ``(h - 1)q + k - 1 - before``.
        """
        if self.boundary != "same":
            return 0, 0
        before = (self.kernel - 1) // 2
        return before, self.kernel - self.stride - before

    @property
    def spare(self) -> int:
        """1 where padding by `before` on both sides is one entry short of the last position: k even, stride 1."""
        return int(self.boundary == "same" and self.stride == 1 and self.kernel % 2 == 0)

    @property
    def beyond(self) -> int:
        """What a transposed convolution, cut by `before` on both sides, lacks of n + `spare` entries ("same")."""
        if self.boundary != "same":
            return 0
        return self.stride + self.spare + 2 * self.padding[0] - self.kernel

    @property
    def origin(self) -> int:
        """Signals have this many entries plus a multiple of the stride."""
        return self.kernel if self.boundary == "valid" else 0

    @property
    def least(self) -> int:
        """The entries of the smallest signal."""
        return self.stride if self.boundary == "same" else self.kernel

    def fits(self, entries: int) -> bool:
        """Return whether a code grid makes a signal of so many entries."""
        return entries >= self.least and (entries - self.origin) % self.stride == 0

    def holds(self, positions: int) -> bool:
        """Return whether so many positions make a signal."""
        return positions * self.stride >= (self.kernel if self.boundary == "circular" else 1)

    def entries(self, positions: int) -> int:
        """Return the entries of the signal of a code of so many positions.

        Raises:
            ShapeError: Atoms would wrap onto themselves.
        """
        if not self.holds(positions):
            n = positions * self.stride
            raise ShapeError(
                f"{positions} positions of stride {self.stride} make a circular signal with {self.name} = {n}, smaller "
                f"than the kernel, {self.kernel}: an atom would wrap onto itself; expected at least "
                f"{-(-self.kernel // self.stride)} positions"
            )
        if self.boundary == "valid":
            return (positions - 1) * self.stride + self.kernel
        return positions * self.stride

    def positions(self, entries: int) -> int:
        """Return the positions of the largest code whose signal has no more than so many entries.

        Raises:
            ShapeError: None has so few.
        """
        if entries < self.least:
            what = "stride" if self.boundary == "same" else "kernel"
            raise ShapeError(
                f"{self.name} = {entries} is smaller than the {what}, {self.least}; expected at least {self.least}: "
                "pad the signal"
            )
        return (entries - self.origin) // self.stride + (self.boundary == "valid")

    def require_exact(self, entries: int) -> None:
        """Raise unless a code makes exactly so many entries.

        Raises:
            ShapeError: None does; the message names sizes that fit.
        """
        rest = (entries - self.origin) % self.stride
        if rest:
            below = entries - rest
            crop = f"crop to {below} or " if below >= self.least else ""
            raise ShapeError(
                f"{self.name} = {entries} is made by no code grid of stride {self.stride} and kernel {self.kernel} "
                f"(boundary '{self.boundary}'); expected {self.origin} plus a multiple of {self.stride}: {crop}pad to "
                f"{below + self.stride}"
            )


class Grid(NamedTuple):
    """The axes of a convolution, and what its two directions ask of each, one number per axis.

    Attributes:
        axes: The axes.
        before: ``padding[0]``.
        spare: `Axis.spare`.
        beyond: `Axis.beyond`.
    """

    axes: tuple[Axis, ...]
    before: tuple[int, ...]
    spare: tuple[int, ...]
    beyond: tuple[int, ...]


@lru_cache(maxsize=256)
def grid_of(kernel: tuple[int, ...], stride: tuple[int, ...], boundary: str) -> Grid:
    """Return the grid of a convolution: asked for at every call of the operator, and kept for that."""
    names = AXIS_NAMES[len(kernel)]
    axes = tuple(Axis(name, k, q, boundary) for name, k, q in zip(names, kernel, stride, strict=True))
    return Grid(
        axes,
        tuple(axis.padding[0] for axis in axes),
        tuple(axis.spare for axis in axes),
        tuple(axis.beyond for axis in axes),
    )


def known_boundary(boundary: str) -> str:
    """Return `boundary` if there is one of that name.

    Raises:
        ParameterError: There is none.
    """
    if boundary not in BOUNDARIES:
        raise ParameterError(f"boundary is {boundary!r}; expected 'valid', 'same' or 'circular'")
    return boundary


def cut_atoms_have_no_lags(boundary: str) -> UnsupportedError:
    """Return the error of all that is computed from correlations at lags, where the border cuts atoms."""
    return UnsupportedError(
        f"boundary {boundary!r} cuts atoms at the border, where their norms and correlations are not those of the "
        "kernels at all lags: coherence, Babel numbers and the guarantees made of them are not offered; use "
        ".with_boundary('valid') for atoms that lie wholly inside, or dsc.prove.posterior(solution), which knows every "
        "atom as it is"
    )
