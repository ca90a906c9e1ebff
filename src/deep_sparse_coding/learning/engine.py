"""One layer at work: codes of a part of the data, its statistics, and atoms that follow; online or in batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import ConvDictionary, Dictionary

from .coding import Coder
from .decohere import decohere
from .initial import worst_pieces
from .recenter import proposed_moves
from .statistics import SparseCodes, Statistics, gather
from .updates import AtomRules, from_rows, lag_table, objective, project_atoms, to_rows, update_atoms

# Statistics of parts are kept up to this many bytes, beyond that computed again from the codes.
_KEPT_BYTES = 1 << 29
# The first codes of a part begin at zero and get this many times the steps.
_COLD = 2
# Steps towards less coherence after every update of the atoms, and after the last one.
_DECOHERE, _DECOHERE_LAST = 20, 2000
# Online, an atom that no code has used for so many batches is dead.
_IDLE_BATCHES = 10
# Online, kernels are moved at visits whose number is a power of two, from this one on.
_FIRST_MOVE = 4


@dataclass
class Part:
    """Some samples: their signal, and what was last known of their codes.

    Attributes:
        source: The signal ``(samples, ...)``, or the sparse codes of the layer below.
        codes: This layer's codes.
        statistics: Of signal and codes, where they are kept.
        mask: 1 where the signal was observed, in its shape; None for everywhere.
        filled: The signal with what was not observed as the codes had it at the last visit.
    """

    source: Tensor | SparseCodes
    codes: SparseCodes | None = None
    statistics: Statistics | None = None
    mask: Tensor | None = None
    filled: Tensor | None = None

    def signal(self) -> Tensor:
        """Return the signal ``(samples, channels, ...)``."""
        return self.source if isinstance(self.source, Tensor) else self.source.dense()

    def target(self) -> Tensor:
        """Return the signal as the atoms see it, without holes."""
        return self.signal() if self.filled is None else self.filled

    def fill(self, dictionary: Dictionary, codes: Tensor) -> Tensor | None:
        """Return the signal with ``D x`` where it was not observed; None if there are no holes.

        ``½‖M(y - Dx)‖²`` lies below ``½‖y' - Dx‖²`` for the filled y', and they are equal for the atoms and codes that
        filled it: atoms that lower the second lower the first.
        """
        if self.mask is None:
            return None
        return torch.where(self.mask > 0, self.signal(), dictionary.synthesize(codes))


@dataclass(frozen=True)
class Settings:
    """How a layer is learned; see `learn` for the meaning."""

    lam: float
    epochs: int
    steps: int
    sweeps: int
    nonnegative: bool
    rules: AtomRules
    seed: int
    tol: float = 1e-2
    forgetting: float = 1.0
    online: bool = False


class Engine:
    """Atoms in float64, the statistics that they were fitted to, and the coder that follows them.

    Args:
        dictionary: Where the atoms begin.
        settings: How they are learned.
    """

    def __init__(self, dictionary: Dictionary, settings: Settings) -> None:
        self.settings = settings
        self.table = lag_table(dictionary)
        self.coder = Coder(settings.lam, settings.nonnegative, settings.seed, settings.tol)
        self.total: Statistics | None = None
        self.idle = torch.zeros(dictionary.atoms, dtype=torch.float64)
        self.visits = 0
        rules = settings.rules
        rows = to_rows(dictionary)
        self.set_rows(dictionary, project_atoms(rows, rows, rules.nonnegative, rules.nonzeros))

    def set_rows(self, dictionary: Dictionary, rows: Tensor) -> None:
        """Take other atoms, of the kind of `dictionary`."""
        self.rows = rows
        self.dictionary = from_rows(dictionary, rows)

    def learn_in_batch(self, part: Part, parts: int) -> None:
        """Improve the codes of one of `parts` parts, put its statistics in the place of its old ones, move the atoms.

        Codes that are worse than the old ones are not taken, so that nothing here can raise the objective.
        """
        settings, old = self.settings, part.codes
        known: Statistics | None = None
        if old is not None and self.total is not None:
            known = part.statistics or gather(self.dictionary, part.target(), old, settings.lam)
        codes, filled = self._code(part)
        new = gather(self.dictionary, part.signal() if filled is None else filled, codes, settings.lam)
        if known is None or self.value(new) <= self.value(known):
            part.codes, part.filled, part.statistics = codes, filled, keep(new, parts)
            rest = self.total if known is None or self.total is None else self.total - known
            self.total = new if rest is None else rest + new
        self.move()

    def learn_online(self, part: Part) -> Statistics:
        """Code some samples, let what was known before count less, move the atoms; return the new statistics."""
        codes, filled = self._code(part)
        part.codes, part.filled = codes, filled
        new = gather(self.dictionary, part.signal() if filled is None else filled, codes, self.settings.lam)
        self.visits += 1
        if self.total is None:
            self.total = new
        else:
            # Mairal et al. 2009, section 3.4: the weights of the past fall as (1 - 1/t)^ρ.
            self.total = self.total.scaled((1 - 1 / self.visits) ** self.settings.forgetting) + new
        self.idle = torch.where(new.nonzeros > 0, 0.0, self.idle + 1)
        self.move()
        if self.visits >= _FIRST_MOVE and self.visits & (self.visits - 1) == 0:
            self._center(part)
        return new

    def _center(self, part: Part) -> None:
        """Move kernels that sit off center; what was known of them stood elsewhere and is forgotten."""
        if not isinstance(self.dictionary, ConvDictionary) or self.total is None or part.codes is None:
            return
        atoms = torch.arange(len(self.rows))
        own = self.total.gram[atoms, atoms, self.total.gram.shape[2] // 2]
        steps, fresh = proposed_moves(self.dictionary, self.rows, own, [(part.target(), part.codes)])
        moved = steps.any(1).nonzero().flatten().tolist()
        if moved:
            rules = self.settings.rules
            self.total = self.total.without(moved)
            self.set_rows(self.dictionary, project_atoms(fresh, self.rows, rules.nonnegative, rules.nonzeros))

    def revive(self, part: Part) -> int:
        """Replace atoms that have had no code for some batches by what of this part is explained worst."""
        dead = (self.idle >= _IDLE_BATCHES).nonzero().flatten().tolist()
        if not dead or self.total is None:
            return 0
        replaced = self.replace(dead, [part])
        self.total = self.total.without(dead)
        self.idle[dead] = 0.0
        return replaced

    def replace(self, dead: list[int], parts: list[Part]) -> int:
        """Put pieces of most residual energy in the place of atoms that no code uses: the objective stays."""
        rules = self.settings.rules
        pieces: list[tuple[float, Tensor]] = []
        for part in parts:
            assert part.codes is not None
            residual = part.target() - self.dictionary.synthesize(part.codes.dense())
            pieces += worst_pieces(self.dictionary, residual, len(dead), rules.nonnegative)
        pieces.sort(key=lambda pair: -pair[0])
        rows = self.rows.clone()
        for i, (_, piece) in zip(dead, pieces, strict=False):
            rows[i] = project_atoms(piece[None], rows[i : i + 1], rules.nonnegative, rules.nonzeros)[0]
        self.set_rows(self.dictionary, rows)
        return min(len(dead), len(pieces))

    def move(self) -> None:
        """Let the atoms follow the statistics."""
        assert self.total is not None
        self.set_rows(self.dictionary, self.moved(self.rows, self.total))

    def moved(self, rows: Tensor, statistics: Statistics) -> Tensor:
        """Return atoms after one update."""
        rules = self.settings.rules
        rows = update_atoms(
            rows,
            statistics,
            self.table,
            sweeps=self.settings.sweeps,
            nonnegative=rules.nonnegative,
            nonzeros=rules.nonzeros,
        )
        return self._apart(rows, _DECOHERE)

    def finish(self) -> None:
        """Bring the atoms apart as far as they are to be."""
        self.set_rows(self.dictionary, self._apart(self.rows, _DECOHERE_LAST))

    def _apart(self, rows: Tensor, steps: int) -> Tensor:
        rules = self.settings.rules
        if rules.coherence >= 1:
            return rows
        return decohere(
            self.dictionary,
            rows,
            self.table,
            rules.coherence,
            nonnegative=rules.nonnegative,
            nonzeros=rules.nonzeros,
            steps=steps,
        )

    def value(self, statistics: Statistics) -> float:
        """Return the objective of the data that the statistics are of, for the atoms as they are."""
        return objective(self.rows, statistics, self.table)

    def _code(self, part: Part) -> tuple[SparseCodes, Tensor | None]:
        steps = self.settings.steps * (_COLD if part.codes is None else 1)
        start = None if part.codes is None else part.codes.dense()
        codes = self.coder.improve(self.dictionary, part.signal(), start, steps, part.mask)
        return SparseCodes.of(codes), part.fill(self.dictionary, codes)


def keep(statistics: Statistics, parts: int) -> Statistics | None:
    """Return the statistics if those of all parts can be kept, else None."""
    size = 8 * (statistics.gram.numel() + statistics.cross.numel()) * parts
    return statistics if size <= _KEPT_BYTES else None
