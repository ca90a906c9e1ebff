"""Changes of a problem that its objective must follow exactly: a fuzzer over every solver that needs no reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from strategies import SEEDS, normal, randint, rng

# A copied atom makes every dictionary of it warn; draws may leave a sample without codes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*the same up to scale and sign"),
    pytest.mark.filterwarnings("ignore:(lam|epsilon) is at or above"),
]
TOL = 1e-8


@dataclass(frozen=True)
class Setting:
    """One random instance, before or after a change.

    Attributes:
        matrices: The weights of the layers.
        signal: ``(batch, ...)``.
        scale: Of the signal: lam and epsilon follow it.
        stride: Of convolutions, one layer.
        boundary: Of convolutions.
        nonnegative: Whether codes have one sign.
        mask: Of the shape of the signal, or None.
    """

    matrices: tuple[Tensor, ...]
    signal: Tensor
    scale: float = 1.0
    stride: int = 1
    boundary: str = "valid"
    nonnegative: bool = False
    mask: Tensor | None = None

    def dictionary(self) -> dsc.Dictionary:
        """The first layer."""
        if self.matrices[0].ndim == 2:
            return dsc.DenseDictionary(self.matrices[0])
        return dsc.ConvDictionary(self.matrices[0], stride=self.stride, boundary=self.boundary)

    def model(self) -> dsc.Cascade:
        """All layers; convolutional ones with stride in the first."""
        first = self.dictionary()
        if isinstance(first, dsc.DenseDictionary):
            return dsc.Cascade([first, *map(dsc.DenseDictionary, self.matrices[1:])])
        return dsc.Cascade([first, *(dsc.ConvDictionary(m, boundary=self.boundary) for m in self.matrices[1:])])


@dataclass(frozen=True)
class Kind:
    """A problem with a solver.

    Attributes:
        name: What pytest prints.
        build: Makes the problem.
        solver: Which solver.
        images: Whether the dictionary is convolutional.
        layers: How many.
        degree: The power of the scale that the objective follows.
        tol: The relative gap asked for.
        masked: Whether every sample has a mask of its own.
    """

    name: str
    build: Callable[[Setting], dsc.Problem]
    solver: Any
    images: bool = False
    layers: int = 1
    degree: int = 2
    tol: float = TOL
    masked: bool = False


def _lasso(s: Setting) -> dsc.Problem:
    return dsc.Lasso(s.dictionary(), 0.3 * s.scale, nonnegative=s.nonnegative, mask=s.mask)


def _boxed(s: Setting) -> dsc.Problem:
    low = 0.0 if s.nonnegative else -0.4 * s.scale
    return dsc.Lasso(s.dictionary(), 0.2 * s.scale, box=(low, 0.4 * s.scale), mask=s.mask)


def _ridged(s: Setting) -> dsc.Problem:
    return dsc.Lasso(s.dictionary(), 0.2 * s.scale, nonnegative=s.nonnegative, ridge=0.3, mask=s.mask)


def _grouped(s: Setting) -> dsc.Problem:
    dictionary = s.dictionary()
    groups = "channels" if s.matrices[0].ndim > 2 else [list(range(dictionary.atoms))]
    return dsc.Lasso(dictionary, 0.6 * s.scale, nonnegative=s.nonnegative, groups=groups, mask=s.mask)


def _joint(s: Setting) -> dsc.Problem:
    return dsc.JointLasso(s.model(), (0.2 * s.scale, 0.1 * s.scale), beta=(1.0, 2.0), nonnegative=s.nonnegative)


def _layered(s: Setting) -> dsc.Problem:
    return dsc.LayeredLasso(s.model(), (0.2 * s.scale, 0.1 * s.scale), nonnegative=s.nonnegative)


def _pursuit(s: Setting) -> dsc.Problem:
    return dsc.BasisPursuit(s.dictionary(), 0.6 * s.scale)


def _few(s: Setting) -> dsc.Problem:
    return dsc.SparseApproximation(s.dictionary(), 2)


KINDS = (
    Kind("lasso-FISTA", _lasso, dsc.FISTA()),
    Kind("lasso-CD", _lasso, dsc.CoordinateDescent()),
    Kind("conv-FISTA", _lasso, dsc.FISTA(), images=True),
    Kind("conv-CD", _lasso, dsc.ConvCoordinateDescent(), images=True),
    Kind("joint-FISTA", _joint, dsc.FISTA(), layers=2),
    Kind("joint-CD", _joint, dsc.CoordinateDescent(), layers=2),
    Kind("layered-CD", _layered, dsc.CoordinateDescent(), layers=2, tol=1e-12),
    Kind("pursuit-CD", _pursuit, dsc.CoordinateDescent(), degree=1, tol=1e-6),
    Kind("exhaustive", _few, dsc.Exhaustive()),
    Kind("lasso-Homotopy", _lasso, dsc.Homotopy()),
    Kind("lasso-ADMM", _lasso, dsc.ADMM(), tol=1e-6),
    Kind("conv-ADMM", _lasso, dsc.ADMM(), images=True, tol=1e-5),
    Kind("conv-masks-ADMM", _lasso, dsc.ADMM(), images=True, tol=1e-4, masked=True),
    Kind("masks-CD", _lasso, dsc.CoordinateDescent(), masked=True),
    Kind("conv-masks-CD", _lasso, dsc.ConvCoordinateDescent(), images=True, masked=True),
    Kind("joint-conv-FISTA", _joint, dsc.FISTA(), images=True, layers=2, tol=1e-6),
    Kind("joint-conv-CD", _joint, dsc.JointCoordinateDescent(), images=True, layers=2),
    Kind("box-FISTA", _boxed, dsc.FISTA()),
    Kind("box-conv-ADMM", _boxed, dsc.ADMM(), images=True, tol=1e-4),
    Kind("ridge-CD", _ridged, dsc.CoordinateDescent()),
    Kind("ridge-conv-chosen", _ridged, None, images=True, tol=1e-6),
    Kind("groups-FISTA", _grouped, dsc.FISTA(), tol=1e-6),
    Kind("groups-conv-chosen", _grouped, None, images=True, tol=1e-5),
)
# What a copied atom changes: a ridge and a group share out what it does, and a box lets it do more.
NO_COPIES = (_boxed, _ridged, _grouped)
# A greedy choice follows what keeps all correlations up to order and sign.
GREEDY = tuple(
    Kind(f"greedy-{name}", _few, solver)
    for name, solver in {
        "OMP": dsc.OMP(),
        "forward": dsc.OMP(forward=True),
        "SubspacePursuit": dsc.SubspacePursuit(),
        "CoSaMP": dsc.CoSaMP(),
        "IHT": dsc.IHT(),
    }.items()
)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])


def _draw(kind: Kind, seed: int) -> Setting:
    g = rng(seed)
    d, atoms, batch = randint(4, 8, g), randint(8, 12, g), randint(2, 3, g)
    nonnegative = bool(randint(0, 1, g))
    if kind.images:
        axes = randint(1, 2, g)
        size = tuple(randint(2, 3, g) for _ in range(axes))
        boundaries = ("valid", "circular") if kind.layers == 2 else ("valid", "circular", "same")
        stride, boundary = randint(1, 2, g), boundaries[randint(0, len(boundaries) - 1, g)]
        kernels = normal(randint(1, 3, g), randint(1, 2, g), *size, generator=g)
        dictionary = dsc.ConvDictionary(kernels, stride=stride, boundary=boundary, normalize=True)
        places, layers = tuple(randint(3, 5, g) for _ in range(axes)), [dictionary]
        if kind.layers == 2:
            upper = normal(dictionary.atoms + 1, dictionary.atoms, *(2,) * axes, generator=g)
            layers.append(dsc.ConvDictionary(upper, boundary=boundary, normalize=True))
            places = layers[1].signal_shape(places)[1:]
        signal = normal(batch, *dictionary.signal_shape(places), generator=g)
        mask = torch.rand(signal.shape, generator=g, dtype=torch.float64) < 0.8 if kind.masked else None
        weights = tuple(layer.weight.detach() for layer in layers)
        return Setting(weights, signal, 1.0, stride, boundary, nonnegative, mask)
    matrices = [normal(d, atoms, generator=g)]
    if kind.layers == 2:
        matrices.append(normal(atoms, atoms + 2, generator=g))
    unit = tuple(matrix / torch.linalg.vector_norm(matrix, dim=0) for matrix in matrices)
    signal = 2 * normal(batch, d, generator=g)
    mask = torch.rand(signal.shape, generator=g, dtype=torch.float64) < 0.8 if kind.masked else None
    return Setting(unit, signal, nonnegative=nonnegative, mask=mask)


def _objective(kind: Kind, setting: Setting) -> tuple[Tensor, Tensor]:
    """Return the objective, in the first setting's scale, and what is left to prove of it."""
    problem = kind.build(setting)
    solution = dsc.solve(problem, setting.signal, kind.solver, tol=kind.tol, max_steps=50_000, on_failure="ignore")
    if not isinstance(problem, dsc.SparseApproximation):
        proved = solution.certificate.relative_gap <= kind.tol
        assert bool((solution.converged == proved).all())
    size = setting.scale**kind.degree
    return solution.certificate.objective / size, solution.certificate.gap / size


# ---------------------------------------------------------------------- the changes


def _permute_atoms(s: Setting, seed: int) -> Setting:
    """Permute the deepest layer's atoms."""
    last = s.matrices[-1]
    axis = 1 if last.ndim == 2 else 0
    order = torch.randperm(last.shape[axis], generator=rng(seed))
    return replace(s, matrices=(*s.matrices[:-1], last.index_select(axis, order).contiguous()))


def _permute_first_atoms(s: Setting, seed: int) -> Setting:
    """Permute the first layer's atoms and, where there is a second layer, its rows."""
    if len(s.matrices) == 1:
        return _permute_atoms(s, seed)
    axis = 1 if s.matrices[0].ndim == 2 else 0
    order = torch.randperm(s.matrices[0].shape[axis], generator=rng(seed))
    first, second = s.matrices[0].index_select(axis, order), s.matrices[1].index_select(1 - axis, order)
    return replace(s, matrices=(first.contiguous(), second.contiguous()))


def _rotate(s: Setting, seed: int) -> Setting:
    """Turn signal and atoms by the same orthogonal matrix; images: swap and flip signs of channels."""
    g = rng(seed)
    if s.matrices[0].ndim == 2 and s.mask is not None:
        order = torch.randperm(s.signal.shape[1], generator=g)
        matrices = (s.matrices[0][order].contiguous(), *s.matrices[1:])
        return replace(s, matrices=matrices, signal=s.signal[:, order], mask=s.mask[:, order])
    if s.matrices[0].ndim == 2:
        turn = torch.linalg.qr(normal(s.signal.shape[1], s.signal.shape[1], generator=g)).Q
        return replace(s, matrices=(turn @ s.matrices[0], *s.matrices[1:]), signal=s.signal @ turn.T)
    channels = s.signal.shape[1]
    order = torch.randperm(channels, generator=g)
    sign = (2.0 * torch.randint(0, 2, (channels, *(1,) * (s.signal.ndim - 2)), generator=g) - 1).double()
    mask = None if s.mask is None else s.mask[:, order]
    matrices = (sign * s.matrices[0][:, order], *s.matrices[1:])
    return replace(s, matrices=matrices, signal=sign * s.signal[:, order], mask=mask)


def _scale(s: Setting, seed: int) -> Setting:
    """Scale signal, lam and epsilon."""
    scale = 10.0 ** randint(-10, 10, rng(seed))
    return replace(s, signal=scale * s.signal, scale=scale * s.scale)


def _flip_signal(s: Setting, seed: int) -> Setting:
    """Flip the sign of the signal, and of the first layer's atoms where codes have one sign."""
    if s.nonnegative:
        return replace(s, signal=-s.signal, matrices=(-s.matrices[0], *s.matrices[1:]))
    return replace(s, signal=-s.signal)


def _flip_atoms(s: Setting, seed: int) -> Setting:
    """Flip the sign of some of the deepest atoms, where codes may have both signs."""
    if s.nonnegative:
        return s
    last = s.matrices[-1]
    axis = 1 if last.ndim == 2 else 0
    sign = 2.0 * torch.randint(0, 2, (last.shape[axis],), generator=rng(seed)) - 1
    shape = [1] * last.ndim
    shape[axis] = -1
    return replace(s, matrices=(*s.matrices[:-1], last * sign.double().reshape(shape)))


def _copy_atom(s: Setting, seed: int) -> Setting:
    """Append a copy of one of the deepest atoms: whatever two do together one can do alone."""
    last = s.matrices[-1]
    axis = 1 if last.ndim == 2 else 0
    which = randint(0, last.shape[axis] - 1, rng(seed))
    return replace(s, matrices=(*s.matrices[:-1], torch.cat([last, last.narrow(axis, which, 1)], axis)))


def _add_unused_channel(s: Setting, seed: int) -> Setting:
    """Append a row (a channel) of zeros to the signal and to the atoms."""
    first = s.matrices[0]
    axis = 0 if first.ndim == 2 else 1
    row = torch.zeros_like(first.narrow(axis, 0, 1))
    signal = torch.cat([s.signal, torch.zeros_like(s.signal[:, :1])], 1)
    mask = None if s.mask is None else torch.cat([s.mask, s.mask[:, :1]], 1)
    return replace(s, matrices=(torch.cat([first, row], axis), *s.matrices[1:]), signal=signal, mask=mask)


def _mirror(s: Setting, seed: int) -> Setting:
    """Mirror images and kernels, and with circular ones (stride 1) move the images around."""
    if s.matrices[0].ndim == 2:
        return s
    axes = list(range(2, s.signal.ndim))
    if s.boundary == "same" and (s.stride != 1 or any(n % 2 == 0 for n in s.matrices[0].shape[2:])):
        return s  # atoms have no middle, or the grid of positions has none
    if s.boundary == "circular" and s.stride != 1:
        return s  # the grid of positions is not mirrored onto itself
    shifts = [randint(0, 4, rng(seed)) for _ in axes] if s.boundary == "circular" else [0] * len(axes)
    signal, mask = (None if x is None else x.flip(axes).roll(shifts, axes) for x in (s.signal, s.mask))
    assert signal is not None
    return replace(s, matrices=tuple(m.flip(axes) for m in s.matrices), signal=signal, mask=mask)


def _mask_atom(s: Setting, seed: int) -> Setting:
    """Append an entry that no mask lets through and an atom that lives there alone: it is a zero atom."""
    if s.mask is None or s.matrices[0].ndim > 2:
        return s
    matrix = torch.block_diag(s.matrices[0], torch.ones(1, 1, dtype=torch.float64))
    signal = torch.cat([s.signal, torch.full_like(s.signal[:, :1], 7.0)], 1)
    return replace(s, matrices=(matrix,), signal=signal, mask=torch.cat([s.mask, torch.zeros_like(s.mask[:, :1])], 1))


CHANGES = (
    _permute_atoms,
    _permute_first_atoms,
    _rotate,
    _scale,
    _flip_signal,
    _flip_atoms,
    _copy_atom,
    _add_unused_channel,
    _mirror,
    _mask_atom,
)
KEEPS_ORDER = (_permute_atoms, _rotate, _scale, _flip_signal, _add_unused_channel)


def _changed(
    s: Setting, seed: int, changes: tuple[Callable[[Setting, int], Setting], ...]
) -> tuple[Setting, list[str]]:
    """Return the setting after three changes that are drawn, and their names."""
    g, names = rng(seed), []
    for _ in range(3):
        change = changes[randint(0, len(changes) - 1, g)]
        s, names = change(s, seed), [*names, change.__name__]
    return s, names


@each_kind
@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_the_objective_follows_every_chain_of_changes(kind: Kind, seed: int) -> None:
    before = _draw(kind, seed)
    copies = kind.build not in NO_COPIES
    after, names = _changed(before, seed, tuple(c for c in CHANGES if copies or c is not _copy_atom))
    order = torch.randperm(len(before.signal), generator=rng(seed))
    after = replace(after, signal=after.signal[order], mask=None if after.mask is None else after.mask[order])
    want, gap = _objective(kind, before)
    got, other = _objective(kind, after)
    # Both are above the minimum by their gaps at most, and so apart by no more than the larger.
    room = torch.maximum(gap[order], other) if kind.layers == 1 or "joint" in kind.name else 1e-4 * want[order]
    if kind.name == "exhaustive":
        room = torch.zeros_like(got)
    assert bool(((got - want[order]).abs() <= room + 1e-10 * want[order].abs() + 1e-12).all()), names


@each_kind
@given(seed=SEEDS)
@settings(max_examples=3, deadline=None)
def test_samples_are_solved_as_if_they_were_alone(kind: Kind, seed: int) -> None:
    whole = _draw(kind, seed)
    want, gap = _objective(kind, whole)
    for i in range(len(whole.signal)):
        mask = None if whole.mask is None else whole.mask[i : i + 1]
        got, other = _objective(kind, replace(whole, signal=whole.signal[i : i + 1], mask=mask))
        room = torch.maximum(gap[i], other[0]) if kind.layers == 1 or "joint" in kind.name else 1e-4 * want[i]
        assert bool((got[0] - want[i]).abs() <= room + 1e-10 * want[i].abs() + 1e-12)


@pytest.mark.parametrize("kind", GREEDY, ids=[kind.name for kind in GREEDY])
@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_greedy_solvers_follow_changes_that_keep_all_correlations(kind: Kind, seed: int) -> None:
    before = _draw(kind, seed)
    after, names = _changed(before, seed, KEEPS_ORDER)
    want, _ = _objective(kind, before)
    got, _ = _objective(kind, after)
    assert torch.allclose(got, want, rtol=1e-6), names


PADDED = [k for k in KINDS if k.images and k.layers == 1 and not k.masked and k.build is _lasso]


@pytest.mark.parametrize("kind", PADDED, ids=[k.name for k in PADDED])
@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_zeros_around_an_image_beyond_the_reach_of_its_kernels_change_nothing(kind: Kind, seed: int) -> None:
    # With a valid boundary new positions reach into the image; what they may add can only lower the minimum. With as
    # many zeros around from the start, wider margins add positions that see nothing.
    g = rng(seed)
    kernels = normal(2, 1, 3, generator=g)
    kernels = kernels / torch.linalg.vector_norm(kernels, dim=(1, 2), keepdim=True)
    inner = 2 * normal(2, 1, randint(3, 6, g), generator=g)
    values = []
    for margin in (0, 2, 24, 30):
        signal = torch.nn.functional.pad(inner, (margin, margin)) if margin else inner
        values.append(_objective(kind, Setting((kernels,), signal)))
    assert bool((values[1][0] <= values[0][0] + values[1][1] + 1e-10).all())
    assert bool((values[2][0] <= values[1][0] + values[2][1] + 1e-10).all())
    # Far from the image codes fall off; 24 zeros more or less are the same to many digits.
    assert torch.allclose(values[2][0], values[3][0], rtol=1e-6)
