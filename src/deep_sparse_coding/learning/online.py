"""A learner that is given batches as they come, and asked for its atoms at any time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, require_integer, require_number
from deep_sparse_coding.dictionaries import Dictionary
from deep_sparse_coding.dictionaries.random import generator
from deep_sparse_coding.errors import FileFormatError, ParameterError, ShapeError

from .checkpoint import Saved, pack_engine, read_checkpoint, unpack_engine, write_checkpoint
from .decohere import check_coherence
from .engine import Engine, Part, Settings
from .greedy import seed_dictionary
from .initial import template
from .inputs import check_groups, check_layers, check_masks, require_content, tolerance, warn_of_few
from .starts import check_start
from .updates import AtomRules, objective


class OnlineLearner:
    """Learns one dictionary from batches, each seen once or as often as it is given (Mairal et al. 2009).

    Every batch is coded under the atoms as they are; its statistics are added to those of the past, which count the
    less the older they are; then the atoms move. Memory does not grow with the data. Atoms that no code has used for
    ten batches are replaced by what is explained worst.

    Args:
        atoms: Their number.
        lam: The weight of the ℓ1 norm.
        size: Kernel size; None for dense dictionaries.
        seed: Of where atoms begin: pieces of the first batch.
        stride, boundary, nonnegative, nonnegative_atoms, coherence, nonzeros, steps, sweeps, forgetting, tol, dtype:
            As for `learn`.
        start: A dictionary to begin from.

    Raises:
        DSCError: Settings out of range; some are looked at when the first batch is.

    Source: Mairal, Bach, Ponce & Sapiro 2009, Algorithm 1.
    """

    def __init__(
        self,
        atoms: int,
        *,
        lam: float,
        seed: int,
        size: int | Sequence[int] | None = None,
        stride: int | Sequence[int] = 1,
        boundary: str = "valid",
        nonnegative: bool = False,
        nonnegative_atoms: bool = False,
        coherence: float | None = None,
        nonzeros: int | None = None,
        steps: int = 20,
        sweeps: int = 1,
        forgetting: float = 3.0,
        tol: float | None = None,
        start: Dictionary | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._atoms = require_integer("atoms", atoms, minimum=1)
        self._lam = require_number("lam", lam, minimum=0.0, strict=True)
        self._size, self._stride, self._boundary = size, stride, boundary
        self._nonzeros, self._coherence = nonzeros, coherence
        self._start, self._dtype = start, dtype
        self._common: dict[str, Any] = {
            "steps": require_integer("steps", steps, minimum=1),
            "sweeps": require_integer("sweeps", sweeps, minimum=1),
            "nonnegative": check_flag("nonnegative", nonnegative),
            "seed": require_integer("seed", seed, minimum=0),
            "tol": tolerance(tol, online=True),
            "forgetting": require_number("forgetting", forgetting, minimum=0.0),
        }
        self._nonnegative_atoms = check_flag("nonnegative_atoms", nonnegative_atoms)
        self._engine: Engine | None = None
        self._samples = 0
        self._fitting: set[tuple[int, ...]] = set()
        self._objectives: list[float] = []

    @property
    def model(self) -> Dictionary:
        """The dictionary as it is now.

        Raises:
            ParameterError: No batch has been seen.
        """
        if self._engine is None:
            raise ParameterError("the learner has seen no batch; expected partial_fit(batch) before model")
        return self._engine.dictionary

    @property
    def samples(self) -> int:
        """How many samples have been seen."""
        return self._samples

    @property
    def objectives(self) -> tuple[float, ...]:
        """For every batch ``½‖y - Dx‖² + lam‖x‖₁`` per sample, under the atoms that it met."""
        return tuple(self._objectives)

    def partial_fit(self, batch: Tensor | Sequence[Tensor], *, mask: Tensor | Sequence[Tensor] | None = None) -> Self:
        """Learn from some more samples, and return this learner.

        Args:
            batch: ``(n, channels, H, W)`` and the like, ``(n, d)`` for dense dictionaries, or a list of samples.
            mask: Where they were observed, as for `learn`.

        Raises:
            DSCError: A batch that does not fit, is not finite, or (the first) has nothing to learn from.
        """
        dense = self._size is None
        groups = check_groups(batch, dense=dense, dtype=self._dtype, finite=mask is None, level=4)
        masks = check_masks(mask, batch, groups)
        if mask is not None:
            groups = [x if m is None else torch.where(m > 0, x, 0.0) for x, m in zip(groups, masks, strict=True)]
            groups = [check_groups(x, dense=dense, dtype=self._dtype)[0] for x in groups]
        parts = [Part(x, mask=m) for x, m in zip(groups, masks, strict=True)]
        with torch.no_grad():
            engine = self._begin(parts) if self._engine is None else self._engine
            like = engine.dictionary
            for part in parts:
                signal = part.signal()
                if signal.shape[1] != like.channels or signal.dtype != like.dtype:
                    raise ShapeError(
                        f"batch has shape {tuple(signal.shape)} and {signal.dtype}; expected {like.channels} channels "
                        f"(or entries) of {like.dtype}, as the first batch had"
                    )
                if tuple(signal.shape[1:]) not in self._fitting:
                    self._settings_for(signal)
                    self._fitting.add(tuple(signal.shape[1:]))
            self._engine = engine
            for part in parts:
                rows = engine.rows
                new = engine.learn_online(part)
                self._samples += len(part.signal())
                self._objectives.append(objective(rows, new, engine.table) / max(len(part.signal()), 1))
                engine.revive(part)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that this learner knows to a file, whole or not at all; `load` goes on from it to the same bits.

        Raises:
            FileFormatError: The folder does not exist or cannot be written.
            ParameterError: No batch has been seen.
        """
        engine_of = self.model  # raises before the first batch
        assert self._engine is not None
        tensors, words = pack_engine(self._engine)
        told = {name: getattr(self, f"_{name}") for name in _TOLD}
        words |= {
            "settings": {"kind": "OnlineLearner"},
            "learner": told | self._common | {"dtype": str(self._dtype or "None")},
            "channels": engine_of.channels,
            "number": str(engine_of.dtype),
            "samples": self._samples,
            "objectives": self._objectives,
        }
        write_checkpoint(path, tensors, words)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return a learner as `save` wrote it.

        Raises:
            FileFormatError: No such file, or not one of a learner.
        """
        saved = read_checkpoint(path, {"kind": "OnlineLearner"})
        if saved is None:
            raise FileFormatError(f"{path} is not a file; expected one that OnlineLearner.save wrote")
        told = dict(saved.words["learner"])
        number = told.pop("dtype")
        kinds = {str(kind): kind for kind in (torch.float32, torch.float64)}
        learner = cls(dtype=kinds.get(number), **told)
        learner._restore(saved, kinds[saved.words["number"]])
        return learner

    def _restore(self, saved: Saved, number: torch.dtype) -> None:
        weight = saved.tensors["weight"]
        shape = (
            (1, saved.words["channels"], *(n for n in weight.shape[2:])) if self._size is not None else (1, len(weight))
        )
        like = torch.zeros(shape, dtype=number)
        settings, kind = self._settings_for(like)
        self._engine = Engine(kind, settings)
        unpack_engine(self._engine, saved)
        self._samples = int(saved.words["samples"])
        self._objectives = list(saved.words["objectives"])

    def _settings_for(self, signal: Tensor) -> tuple[Settings, Dictionary]:
        """Return the settings, and a dictionary of the kind to be learned; raise if the signal does not fit."""
        layer = check_layers(
            signal, self._atoms, self._size, self._stride, self._lam, 1, self._boundary, self._nonzeros
        )[0]
        kind = template(
            layer.atoms, signal.shape[1], layer.size, layer.stride, self._boundary, signal.dtype, signal.device
        )
        rules = AtomRules(self._nonnegative_atoms, layer.nonzeros, check_coherence(self._coherence, kind))
        return Settings(lam=layer.lam, epochs=1, rules=rules, online=True, **self._common), kind

    def _begin(self, parts: list[Part]) -> Engine:
        first = parts[0].signal()
        settings, kind = self._settings_for(first)
        require_content([part.signal() for part in parts], self._size is None)
        if self._size is None:
            warn_of_few(len(first), self._atoms, level=4)
        layer = check_layers(first, self._atoms, self._size, self._stride, self._lam, 1, self._boundary, self._nonzeros)
        starts = check_start(self._start, layer, first, self._boundary)
        begin = starts[0] if starts else seed_dictionary(kind, parts, generator(settings.seed), settings, 0)
        return Engine(begin, settings)


_TOLD = ("atoms", "lam", "size", "stride", "boundary", "nonnegative_atoms", "coherence", "nonzeros")
