"""The linear layers of a network in which all sparse coding layers step together, their states side by side (N3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import Tensor

from ...dictionaries import Dictionary
from .kernels import LinearMap, atoms_first, gram_kernel
from .layout import LayerLayout, Reading


@dataclass(frozen=True)
class _Group:
    """Channels of the state that belong together: `kind` is "x", "v", "on" or "off", `parts` 2 for a pair."""

    kind: str
    layer: int
    parts: int
    width: int
    start: int
    phases: tuple[int, ...]

    def channels(self, part: int, phase: tuple[int, ...]) -> slice:
        """Return the channels of one part at one phase."""
        at = 0
        for own, count in zip(phase, self.phases, strict=True):
            at = at * count + own
        every = 1
        for count in self.phases:
            every *= count
        first = self.start + (part * every + at) * self.width
        return slice(first, first + self.width)


@dataclass(frozen=True)
class _Space:
    """The grids of the layers, per axis, and the grid that the state lies on.

    A position of the state holds ``phases[j]`` positions of layer j. Along an axis layer 1 has ``(n_J - 1)Q + E``
    positions, so what a state has too many is the same number whatever the signal's size.
    """

    layouts: tuple[LayerLayout, ...]
    spacing: tuple[tuple[int, ...], ...] = field(init=False)
    extent: tuple[tuple[int, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        axes = self.layouts[0].axes
        spacing, extent = [(1,) * axes], [(1,) * axes]
        for layout in self.layouts[1:]:
            extent.append(
                tuple((k - 1) * q + e for k, q, e in zip(layout.kernel, spacing[-1], extent[-1], strict=True))
            )
            spacing.append(tuple(q * s for q, s in zip(layout.stride, spacing[-1], strict=True)))
        object.__setattr__(self, "spacing", tuple(spacing))
        object.__setattr__(self, "extent", tuple(extent))

    @property
    def valid(self) -> bool:
        """Whether grids end, and do not wrap."""
        return self.layouts[0].boundary == "valid"

    @property
    def coarse(self) -> tuple[int, ...]:
        """Q: positions of layer 1 in one of the state."""
        return self.spacing[-1]

    @property
    def axes(self) -> int:
        """Spatial axes."""
        return self.layouts[0].axes

    def phases(self, j: int) -> tuple[int, ...]:
        """Return the positions of layer j (from 0) in one of the state."""
        return tuple(q // s for q, s in zip(self.coarse, self.spacing[j], strict=True))

    def surplus(self, j: int) -> tuple[int, ...]:
        """Return how many positions too many the state has for layer j."""
        if not self.valid:
            return (0,) * self.axes
        found = []
        for q, e, s, own in zip(self.coarse, self.extent[-1], self.spacing[j], self.extent[j], strict=True):
            found.append((-(-e // q) * q - e + own - s) // s)
        return tuple(found)

    @property
    def ends(self) -> tuple[int, ...]:
        """The layers whose grid ends before the state's."""
        return tuple(j for j in range(len(self.layouts)) if any(self.surplus(j)))

    @property
    def framed(self) -> bool:
        """Whether the state needs another grid than the codes of layer 1, or marks of where grids end."""
        return bool(self.ends) or any(q > 1 for q in self.coarse)


def interleaved_maps(
    dictionaries: Sequence[Dictionary],
    layouts: Sequence[LayerLayout],
    thresholds: Sequence[Tensor],
    analyses: Sequence[Tensor | None],
    *,
    off: float,
    height: float,
) -> list[LinearMap]:
    """Return the linear layers of a network that steps all layers together, up to the deepest codes as pairs.

    Linear layer t takes step ``t - j + 1`` of layer j, for all j at once: layer j hears ``x_{j-1}`` as it is after as
    many steps, which is the order of N3, in ``K + J - 1`` layers and not ``K·J``. With strides the state lies on the
    grid of the deepest layer, several positions of the others side by side in channels. Grids of layers end at
    different places: what lies beyond is kept at zero by marks that are 0 elsewhere. Where one of the two is needed,
    two linear layers without activation come first, for ``v = Wᵀy`` and for the marks and the grid.

    Args:
        dictionaries: D of every layer.
        layouts: Their layouts, steps not through the signal.
        thresholds: θ, ``(steps, atoms)`` per layer, as many steps for each.
        analyses: W of every layer; None for the atoms.
        off: What a mark subtracts from an argument: more than any argument is.
        height: The value of a mark, at most what the activation passes on.

    Source: statements N3 and N6 of docs/theory.md.
    """
    space = _Space(tuple(layouts))
    builder = _Builder(tuple(dictionaries), space, tuple(thresholds), tuple(analyses), off, height)
    return list(builder.maps())


@dataclass(frozen=True, eq=False)
class _Builder:
    dictionaries: tuple[Dictionary, ...]
    space: _Space
    thresholds: tuple[Tensor, ...]
    analyses: tuple[Tensor | None, ...]
    off: float
    height: float

    @property
    def depth(self) -> int:
        """J."""
        return len(self.dictionaries)

    @property
    def rounds(self) -> int:
        """K."""
        return len(self.thresholds[0])

    @property
    def marked(self) -> tuple[int, ...]:
        """The layers with marks."""
        return self.space.ends

    def maps(self) -> Iterator[LinearMap]:
        """Yield the layers."""
        first = 0 if self.space.framed else 1
        state = self._groups(first, fine=True)
        yield self._analyze(state)
        if self.space.framed:
            framed = self._groups(0, fine=False)
            yield self._frame(state, framed)
            state = framed
        for t in range(first + 1, self.rounds + self.depth):
            after = self._groups(t, fine=False)
            yield self._step(t, state, after)
            state = after

    def _groups(self, t: int, *, fine: bool) -> list[_Group]:
        """Return the channels after linear layer t."""
        found: list[_Group] = []
        start = 0
        one = (1,) * self.space.axes

        def add(kind: str, j: int, parts: int, width: int) -> None:
            nonlocal start
            phases = one if fine else self.space.phases(j)
            group = _Group(kind, j, parts, width, start, phases)
            found.append(group)
            every = 1
            for count in phases:
                every *= count
            start += parts * width * every

        for j, layout in enumerate(self.space.layouts):
            if 1 <= t - j <= self.rounds:
                add("x", j, 2 if layout.signed else 1, layout.atoms)
        pair = 2 if t else 1  # nothing is rectified before the first step
        if t < self.rounds:
            add("v", 0, pair, self.space.layouts[0].atoms)
        if fine and self.marked:
            add("on", 0, 1, 1)
        if not fine:
            for j in self.marked:
                if t < self.rounds + j:
                    add("off", j, pair, 1)
        return found

    def _analyze(self, state: list[_Group]) -> LinearMap:
        layout = self.space.layouts[0]
        weight = atoms_first(self.dictionaries[0], self.analyses[0])
        rows, bias = [], []
        theta = self.thresholds[0][0].to(weight.device)
        for group in state:
            if group.kind == "on":
                rows.append(weight.new_zeros(1, *weight.shape[1:]))
                bias.append(theta.new_full((1,), self.height))
                continue
            rows += [weight, -weight][: group.parts]
            bias += [-theta if group.kind == "x" else torch.zeros_like(theta)] * group.parts
        wrap = layout.boundary == "circular"
        after = [max(k - q, 0) if wrap else 0 for k, q in zip(layout.kernel, layout.stride, strict=True)]
        padding = tuple((0, n) for n in after)
        linear = self._map(1, "analyze", torch.cat(rows), torch.cat(bias), layout.stride, padding, state, fine=True)
        if self.space.framed:
            return replace(linear, name="analyze", activated=False, readings=(), carried=None)
        return linear

    def _frame(self, state: list[_Group], framed: list[_Group]) -> LinearMap:
        """Return the layer that gathers positions into channels, and marks where grids end, without an activation."""
        space = self.space
        marked = [group.layer for group in framed if group.kind == "off"]
        reach = [
            max([q, *(q - space.spacing[j][axis] + space.extent[j][axis] for j in marked)])
            for axis, q in enumerate(space.coarse)
        ]
        like = self.thresholds[0].to(self.dictionaries[0].device)
        weight = like.new_zeros(_width(framed), _width(state), *reach)
        bias = like.new_zeros(len(weight))
        for group in framed:
            source = next(g for g in state if g.kind == ("on" if group.kind == "off" else group.kind))
            for phase in product(*(range(count) for count in group.phases)):
                for part in range(group.parts):
                    rows = group.channels(part, phase)
                    columns = source.channels(part, (0,) * space.axes)
                    tap = phase
                    if group.kind == "off":
                        tap = tuple(
                            a * s + e - 1
                            for a, s, e in zip(
                                phase, space.spacing[group.layer], space.extent[group.layer], strict=True
                            )
                        )
                        bias[rows] = self.height
                    eye = torch.eye(group.width, dtype=weight.dtype, device=weight.device)
                    _add(weight, rows, columns, tap, -eye if group.kind == "off" else eye)
        padding = ((0, 0),) * space.axes
        if space.valid:
            ends = zip(reach, space.coarse, space.extent[-1], strict=True)
            padding = tuple((0, k + (-(-e // q) - 1) * q - e) for k, q, e in ends)
        return LinearMap("frame", "frame", 1, 1, weight, bias if marked else None, False, space.coarse, padding)

    def _step(self, t: int, state: list[_Group], after: list[_Group]) -> LinearMap:
        space = self.space
        taps: list[tuple[slice, slice, tuple[int, ...], Tensor]] = []
        like = self.thresholds[0].to(self.dictionaries[0].device)
        bias = like.new_zeros(_width(after))
        before = {(group.kind, group.layer): group for group in state}
        zero = (0,) * space.axes
        for group in after:
            for phase in product(*(range(count) for count in group.phases)):
                if group.kind != "x":
                    eye = torch.eye(group.width, dtype=like.dtype, device=like.device)
                    source = before[group.kind, group.layer]
                    for part in range(group.parts):
                        # What is rectified already goes on as it is; what is not becomes a pair.
                        own = part if source.parts == group.parts else 0
                        turned = -eye if part > own else eye
                        taps.append((group.channels(part, phase), source.channels(own, phase), zero, turned))
                    continue
                theta = self.thresholds[group.layer][t - group.layer - 1].to(like.device)
                off = before.get(("off", group.layer))
                for part, sign in enumerate((1.0, -1.0)[: group.parts]):
                    rows = group.channels(part, phase)
                    bias[rows] = -theta
                    for source, offset, block in self._argument(group.layer, before, phase):
                        cell, own = _divide(offset, source.phases)
                        for other, turn in enumerate((1.0, -1.0)[: source.parts]):
                            taps.append((rows, source.channels(other, own), cell, sign * turn * block))
                    if off is not None:
                        mark = like.new_full((group.width, 1), -self.off / self.height)
                        for other, turn in enumerate((1.0, -1.0)[: off.parts]):
                            taps.append((rows, off.channels(other, phase), zero, turn * mark))
        cells = [cell for _, _, cell, _ in taps]
        low = tuple(min(0, *(cell[axis] for cell in cells)) for axis in range(space.axes))
        high = tuple(max(0, *(cell[axis] for cell in cells)) for axis in range(space.axes))
        size = tuple(b - a + 1 for a, b in zip(low, high, strict=True))
        weight = like.new_zeros(_width(after), _width(state), *size)
        for rows, columns, cell, block in taps:
            place = tuple(c - a for c, a in zip(cell, low, strict=True))
            _add(weight, rows, columns, place, block)
        padding = tuple((-a, b) for a, b in zip(low, high, strict=True))
        return self._map(t, "steps", weight, bias, (1,) * space.axes, padding, after)

    def _argument(
        self, j: int, before: dict[tuple[str, int], _Group], phase: tuple[int, ...]
    ) -> Iterator[tuple[_Group, tuple[int, ...], Tensor]]:
        """Yield what the argument of layer j adds up: a group, the offset on its own grid, and the matrix."""
        layout, dictionary, analysis = self.space.layouts[j], self.dictionaries[j], self.analyses[j]
        own = before.get(("x", j))
        if own is not None:
            gram = gram_kernel(dictionary, layout, analysis)
            yield own, phase, torch.eye(layout.atoms, dtype=gram.dtype, device=gram.device)
            for place in product(*(range(2 * lag + 1) for lag in layout.lags)):
                offset = tuple(a + at - lag for a, at, lag in zip(phase, place, layout.lags, strict=True))
                yield own, offset, -gram[(slice(None), slice(None), *place)]
        if j == 0:
            yield before["v", 0], phase, torch.eye(layout.atoms, dtype=torch.float64, device=dictionary.device)
            return
        below = before["x", j - 1]
        weight = atoms_first(dictionary, analysis)
        for place in product(*(range(k) for k in layout.kernel)):
            offset = tuple(a * q + at for a, q, at in zip(phase, layout.stride, place, strict=True))
            yield below, offset, weight[(slice(None), slice(None), *place)]

    def _map(
        self,
        t: int,
        kind: str,
        weight: Tensor,
        bias: Tensor,
        stride: tuple[int, ...],
        padding: tuple[tuple[int, int], ...],
        state: list[_Group],
        *,
        fine: bool = False,
    ) -> LinearMap:
        readings = list[Reading]()
        for group in state:
            if group.kind == "x":
                surplus = (0,) * self.space.axes if fine else self.space.surplus(group.layer)
                step = t - group.layer
                signed = group.parts == 2
                readings.append(Reading(group.layer + 1, step, group.start, group.width, signed, group.phases, surplus))
        handed = [group.start for group in state if group.kind != "x"]
        carried = slice(min(handed), len(weight)) if handed else None
        return LinearMap(
            f"steps{t}" if kind == "steps" else "layer1_step1",
            kind,
            readings[-1].layer if readings else 1,
            readings[-1].step if readings else 1,
            weight,
            bias,
            True,
            stride,
            padding,
            not self.space.valid and self.space.axes > 0,
            tuple(readings),
            carried,
        )


def _width(groups: Sequence[_Group]) -> int:
    return max(group.start + group.parts * group.width * _product(group.phases) for group in groups)


def _product(numbers: tuple[int, ...]) -> int:
    found = 1
    for number in numbers:
        found *= number
    return found


def _divide(offset: tuple[int, ...], phases: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return, for an offset on a layer's grid, the offset on the state's and the phase there."""
    pairs = [divmod(at, count) for at, count in zip(offset, phases, strict=True)]
    return tuple(cell for cell, _ in pairs), tuple(phase for _, phase in pairs)


def _add(weight: Tensor, rows: slice, columns: slice, place: tuple[int, ...], block: Tensor) -> None:
    weight[(rows, columns, *place)] += block
