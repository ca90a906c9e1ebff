"""One layer: codes and atoms in turn, part of the data by part, the objective falling all the way."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary, Dictionary
from deep_sparse_coding.errors import DSCWarning

from .coding import Coder
from .initial import worst_pieces
from .recenter import move_codes, proposed_moves
from .statistics import SparseCodes, Statistics, gather
from .updates import from_rows, lag_table, objective, project_atoms, to_rows, update_atoms

# Statistics of parts are kept up to this many bytes, beyond that computed again from the codes.
_KEPT_BYTES = 1 << 29
# The first codes of a part begin at zero and get this many times the steps.
_COLD = 2
# An objective that has risen by more than this share is more than rounding.
_RISE = 1e-5


@dataclass
class Part:
    """Some samples: their signal, and what was last known of their codes.

    Attributes:
        source: The signal ``(samples, ...)``, or the sparse codes of the layer below.
        codes: This layer's codes.
        statistics: Of signal and codes, where they are kept.
    """

    source: Tensor | SparseCodes
    codes: SparseCodes | None = None
    statistics: Statistics | None = None

    def signal(self) -> Tensor:
        """Return the signal ``(samples, channels, ...)``."""
        return self.source if isinstance(self.source, Tensor) else self.source.dense()


@dataclass(frozen=True)
class Settings:
    """How a layer is learned; see `learn` for the meaning."""

    lam: float
    epochs: int
    steps: int
    sweeps: int
    nonnegative: bool
    nonnegative_atoms: bool
    seed: int


@dataclass
class LayerRecord:
    """What every epoch left: objective over the data, share of non-zeros, atoms replaced, seconds since the start."""

    objective: list[float] = field(default_factory=list)
    density: list[float] = field(default_factory=list)
    replaced: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


EpochCallback = Callable[[int, float, float], None]


def learn_layer(
    parts: list[Part], dictionary: Dictionary, settings: Settings, rng: torch.Generator, callback: EpochCallback | None
) -> tuple[Dictionary, LayerRecord, tuple[int, ...]]:
    """Learn one dictionary; the parts keep their last codes.

    The objective ``Σ ½‖y - D x‖² + lam‖x‖₁`` over all data is lowered in turn in the codes of one part and in the
    atoms, which see every part through its statistics: an epoch holds as many dictionary updates as there are parts,
    and no step can raise the objective. In the first epoch the atoms follow the parts seen so far.

    Returns:
        The dictionary, what every epoch left, and the atoms that no code uses.

    Source: block coordinate descent; Mairal, Bach, Ponce & Sapiro 2009 for the statistics, whose old terms are here
        replaced and not forgotten.
    """
    began = time.perf_counter()
    table = lag_table(dictionary)
    coder = Coder(settings.lam, settings.nonnegative, settings.seed)
    rows = to_rows(dictionary)
    total: Statistics | None = None
    record = LayerRecord()
    for epoch in range(settings.epochs):
        for index in torch.randperm(len(parts), generator=rng).tolist():
            total = _visit(parts[index], len(parts), dictionary, coder, settings, total)
            rows = update_atoms(rows, total, table, sweeps=settings.sweeps, nonnegative=settings.nonnegative_atoms)
            dictionary = from_rows(dictionary, rows)
        assert total is not None
        value = objective(rows, total, table)
        if isinstance(dictionary, ConvDictionary) and 2 * (epoch + 1) <= settings.epochs:
            found = _recenter(parts, dictionary, rows, coder, settings, total, table)
            if found is not None and found.value < value:
                rows, total, value = found.rows, found.total, found.value
                dictionary = from_rows(dictionary, rows)
                for part, codes, kept in zip(parts, found.codes, found.statistics, strict=True):
                    part.codes, part.statistics = codes, kept
        density = float(total.nonzeros.sum()) / max(total.entries, 1)
        if record.objective and value > record.objective[-1] * (1 + _RISE):
            warnings.warn(
                f"the objective rose from {record.objective[-1]:.6g} to {value:.6g} in epoch {epoch + 1}, which only "
                "rounding can do; expected it to fall: learn in float64 (dtype=torch.float64)",
                DSCWarning,
                stacklevel=3,
            )
        dead = (total.nonzeros == 0).nonzero().flatten().tolist()
        # New atoms of the last epoch would never have met a code.
        if dead and epoch + 1 < settings.epochs:
            rows, replaced = _replace(rows, dead, parts, dictionary, settings.nonnegative_atoms)
            dictionary = from_rows(dictionary, rows)
        else:
            replaced = 0
        record.objective.append(value)
        record.density.append(density)
        record.replaced.append(replaced)
        record.seconds.append(time.perf_counter() - began)
        if callback is not None:
            callback(epoch + 1, value, density)
    assert total is not None
    return dictionary, record, tuple((total.nonzeros == 0).nonzero().flatten().tolist())


def refine(parts: list[Part], dictionary: Dictionary, settings: Settings, steps: int) -> None:
    """Bring the codes of all parts nearer to their optimum under the final atoms."""
    coder = Coder(settings.lam, settings.nonnegative, settings.seed)
    for part in parts:
        start = None if part.codes is None else part.codes.dense()
        part.codes = SparseCodes.of(coder.improve(dictionary, part.signal(), start, steps))


def _visit(
    part: Part, parts: int, dictionary: Dictionary, coder: Coder, settings: Settings, total: Statistics | None
) -> Statistics:
    """Improve the codes of one part and return the statistics of all data with its terms replaced."""
    signal, old = part.signal(), part.codes
    if old is not None and total is not None:
        total = total - (part.statistics or gather(dictionary, signal, old, settings.lam))
    steps = settings.steps * (_COLD if old is None else 1)
    codes = SparseCodes.of(coder.improve(dictionary, signal, None if old is None else old.dense(), steps))
    new = gather(dictionary, signal, codes, settings.lam)
    part.codes = codes
    part.statistics = _kept(new, parts)
    return new if total is None else total + new


def _kept(statistics: Statistics, parts: int) -> Statistics | None:
    """Return the statistics if those of all parts can be kept, else None."""
    size = 8 * (statistics.gram.numel() + statistics.cross.numel()) * parts
    return statistics if size <= _KEPT_BYTES else None


@dataclass(frozen=True, eq=False)
class _Trial:
    """Atoms, codes and statistics that are taken if their objective is lower."""

    value: float
    rows: Tensor
    total: Statistics
    codes: list[SparseCodes]
    statistics: list[Statistics | None]


def _recenter(
    parts: list[Part],
    dictionary: ConvDictionary,
    rows: Tensor,
    coder: Coder,
    settings: Settings,
    total: Statistics,
    table: Tensor,
) -> _Trial | None:
    """Move the kernels that sit off center and improve the codes once; None where none does."""
    known = [(part.signal(), part.codes) for part in parts if part.codes is not None]
    own = total.gram[torch.arange(len(rows)), torch.arange(len(rows)), total.gram.shape[2] // 2]
    steps, fresh = proposed_moves(dictionary, rows, own, known)
    if not bool(steps.any()):
        return None
    fresh = project_atoms(fresh, rows, settings.nonnegative_atoms)
    moved = from_rows(dictionary, fresh)
    codes: list[SparseCodes] = []
    kept: list[Statistics | None] = []
    gathered: Statistics | None = None
    for signal, old in known:
        start = move_codes(old.dense(), steps, dictionary.boundary == "circular")
        codes.append(SparseCodes.of(coder.improve(moved, signal, start, settings.steps)))
        new = gather(moved, signal, codes[-1], settings.lam)
        gathered = new if gathered is None else gathered + new
        kept.append(_kept(new, len(parts)))
    assert gathered is not None
    fresh = update_atoms(fresh, gathered, table, sweeps=settings.sweeps, nonnegative=settings.nonnegative_atoms)
    return _Trial(objective(fresh, gathered, table), fresh, gathered, codes, kept)


def _replace(
    rows: Tensor, dead: list[int], parts: list[Part], dictionary: Dictionary, nonnegative: bool
) -> tuple[Tensor, int]:
    """Return the atoms with those that no code uses replaced by what is explained worst: the objective stays."""
    pieces: list[tuple[float, Tensor]] = []
    for part in parts:
        assert part.codes is not None
        residual = part.signal() - dictionary.synthesize(part.codes.dense())
        pieces += worst_pieces(dictionary, residual, len(dead), nonnegative)
    pieces.sort(key=lambda pair: -pair[0])
    rows = rows.clone()
    replaced = 0
    for i, (_, piece) in zip(dead, pieces, strict=False):
        rows[i] = piece
        replaced += 1
    return rows, replaced
