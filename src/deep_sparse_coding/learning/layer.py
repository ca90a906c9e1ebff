"""One layer: codes and atoms in turn, part of the data by part, in batch or online."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary, Dictionary
from deep_sparse_coding.errors import ParameterError

from .coding import Coder
from .engine import Engine, Part, Settings, keep
from .recenter import move_codes, proposed_moves
from .statistics import SparseCodes, Statistics, gather
from .updates import from_rows, objective, project_atoms
from .watch import Epoch, Watch


def learn_layer(
    parts: list[Part], engine: Engine, rng: torch.Generator, watch: Watch, save: Callable[[], None]
) -> None:
    """Learn one dictionary; the parts keep their last codes.

    In batch, the objective ``Σ ½‖y - D x‖² + lam‖x‖₁`` over all data is lowered in turn in the codes of one part and in
    the atoms, which see every part through its statistics: an epoch holds as many dictionary updates as there are
    parts, and no step can raise the objective. In the first epoch the atoms follow the parts seen so far. Online, old
    statistics are not replaced but forgotten.

    Args:
        parts: The data, in memory.
        engine: Where learning stands.
        rng: Draws the order of the parts.
        watch: Keeps the record and says when to end.
        save: Called after every epoch.

    Source: block coordinate descent; Mairal, Bach, Ponce & Sapiro 2009 for the statistics.
    """
    settings = engine.settings
    while not watch.over:
        order = torch.randperm(len(parts), generator=rng).tolist()
        if settings.online:
            epoch = online_epoch(engine, (parts[index] for index in order))
        else:
            epoch = _batch_epoch(engine, parts, order, len(watch.record.objective))
        watch.note(engine.dictionary, epoch)
        if not settings.online and settings.rules.coherence >= 1:
            watch.warn_of_rise()
        watch.judge()
        save()
    engine.finish()


def online_epoch(engine: Engine, parts: Iterable[Part]) -> Epoch:
    """Let every part come by once."""
    value = density = entries = 0.0
    replaced = count = 0
    for part in parts:
        before = engine.rows
        new = engine.learn_online(part)
        value += objective(before, new, engine.table)
        density += float(new.nonzeros.sum())
        entries += new.entries
        replaced += engine.revive(part)
        count += 1
    if not count:
        raise ParameterError(
            "the iterable of images gave no batch in this epoch; expected one that can be gone through once per epoch: "
            "a DataLoader or a list rather than a generator, or epochs=1"
        )
    return Epoch(value, density / max(entries, 1.0), replaced)


def _batch_epoch(engine: Engine, parts: list[Part], order: list[int], epoch: int) -> Epoch:
    settings = engine.settings
    for index in order:
        engine.learn_in_batch(parts[index], len(parts))
    assert engine.total is not None
    value = engine.value(engine.total)
    if isinstance(engine.dictionary, ConvDictionary) and 2 * (epoch + 1) <= settings.epochs:
        found = _recenter(engine, engine.dictionary, parts, engine.total)
        if found is not None and found.value < value:
            value, engine.total = found.value, found.total
            engine.set_rows(engine.dictionary, found.rows)
            for part, codes, filled, kept in zip(parts, found.codes, found.filled, found.statistics, strict=True):
                part.codes, part.filled, part.statistics = codes, filled, kept
    density = float(engine.total.nonzeros.sum()) / max(engine.total.entries, 1)
    dead = (engine.total.nonzeros == 0).nonzero().flatten().tolist()
    # New atoms of the last epoch would never have met a code.
    replaced = engine.replace(dead, parts) if dead and epoch + 1 < settings.epochs else 0
    return Epoch(value, density, replaced)


def refine(parts: list[Part], dictionary: Dictionary, settings: Settings, steps: int) -> None:
    """Bring the codes of all parts nearer to their optimum under the final atoms."""
    coder = Coder(settings.lam, settings.nonnegative, settings.seed, 0.1 * settings.tol)
    for part in parts:
        start = None if part.codes is None else part.codes.dense()
        part.codes = SparseCodes.of(coder.improve(dictionary, part.signal(), start, steps, part.mask))


@dataclass(frozen=True, eq=False)
class _Trial:
    """Atoms, codes and statistics that are taken if their objective is lower."""

    value: float
    rows: Tensor
    total: Statistics
    codes: list[SparseCodes]
    filled: list[Tensor | None]
    statistics: list[Statistics | None]


def _recenter(engine: Engine, dictionary: ConvDictionary, parts: list[Part], total: Statistics) -> _Trial | None:
    """Move the kernels that sit off center and improve the codes once; None where none does."""
    rows, rules = engine.rows, engine.settings.rules
    steps, fresh = proposed_moves(dictionary, rows, own_energy(total), _signals_and_codes(parts))
    if not bool(steps.any()):
        return None
    fresh = project_atoms(fresh, rows, rules.nonnegative, rules.nonzeros)
    moved = from_rows(dictionary, fresh)
    codes: list[SparseCodes] = []
    filled: list[Tensor | None] = []
    kept: list[Statistics | None] = []
    gathered: Statistics | None = None
    for part in parts:
        assert part.codes is not None
        start = move_codes(part.codes.dense(), steps, dictionary.boundary == "circular")
        dense = engine.coder.improve(moved, part.signal(), start, engine.settings.steps, part.mask)
        codes.append(SparseCodes.of(dense))
        filled.append(part.fill(moved, dense))
        whole = filled[-1]
        new = gather(moved, part.signal() if whole is None else whole, codes[-1], engine.settings.lam)
        gathered = new if gathered is None else gathered + new
        kept.append(keep(new, len(parts)))
    assert gathered is not None
    fresh = engine.moved(fresh, gathered)
    return _Trial(objective(fresh, gathered, engine.table), fresh, gathered, codes, filled, kept)


def own_energy(total: Statistics) -> Tensor:
    """Return ``Σ x_i²`` per atom."""
    atoms = torch.arange(len(total.gram))
    return total.gram[atoms, atoms, total.gram.shape[2] // 2]


def _signals_and_codes(parts: list[Part]) -> Iterator[tuple[Tensor, SparseCodes]]:
    for part in parts:
        if part.codes is not None:
            yield part.target(), part.codes
