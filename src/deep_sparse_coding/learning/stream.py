"""Learning from batches that come by: the data need not fit in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, per_layer, require_integer, require_number
from deep_sparse_coding.dictionaries import Cascade, Dictionary
from deep_sparse_coding.dictionaries.random import generator
from deep_sparse_coding.errors import ShapeError, UnsupportedError

from .decohere import check_coherence
from .engine import Engine, Part, Settings
from .greedy import REFINE, Callback, Learned, seed_dictionary
from .initial import template
from .inputs import check_groups, check_layers, require_content, tolerance, warn_of_few
from .layer import online_epoch, refine
from .result import LearningResult
from .starts import check_start
from .updates import AtomRules
from .watch import Watch

# Batches that are read ahead: initial atoms are drawn from them.
_SEEDING_BATCHES = 4


class Batches:
    """Batches of an iterable, checked one by one, as parts: ``(images, ...)`` counts for its images.

    Args:
        source: What gives the batches.
        dense: Whether vectors are expected.
        dtype: The number type to convert to; None keeps it.
    """

    def __init__(self, source: Iterable[object], dense: bool, dtype: torch.dtype | None) -> None:
        self._source, self._dense, self._dtype = source, dense, dtype
        self._iterator: Iterator[object] | None = iter(source)
        self._ahead = list(itertools.islice(self._iterator, _SEEDING_BATCHES))
        if not self._ahead:
            raise ShapeError("images is an iterable without batches; expected at least one tensor of images")
        self.first = [part for item in self._ahead for part in self._parts(item, None)]

    def __iter__(self) -> Iterator[Part]:
        """Go through the batches once."""
        if self._iterator is not None:
            items: Iterable[object] = itertools.chain(self._ahead, self._iterator)
            self._iterator = None
            self._ahead = []
        else:
            items = self._source
        for item in items:
            yield from self._parts(item, self.first[0].signal())

    def _parts(self, item: object, like: Tensor | None) -> Iterator[Part]:
        if isinstance(item, list | tuple) and item and isinstance(item[0], Tensor):
            item = item[0]
        for group in check_groups(item, dense=self._dense, dtype=self._dtype, level=6):
            if like is not None and (group.shape[1] != like.shape[1] or group.dtype != like.dtype):
                raise ShapeError(
                    f"a batch has shape {tuple(group.shape)} and {group.dtype}; expected {like.shape[1]} channels (or "
                    f"entries) of {like.dtype}, as the first has"
                )
            yield Part(group)


def learn_stream(
    images: Iterable[object],
    atoms: int | Sequence[int],
    size: object,
    stride: object,
    lam: object,
    epochs: object,
    boundary: str,
    nonzeros: object,
    *,
    start: object,
    seed: int,
    callback: Callback | None,
    dtype: torch.dtype | None,
    nonnegative: object,
    nonnegative_atoms: object,
    coherence: object,
    steps: object,
    sweeps: object,
    forgetting: object,
    tol: object,
    heldout: object,
    patience: object,
    refused: dict[str, bool],
) -> LearningResult:
    """Learn as `learn` does, from batches, online; see there for the arguments.

    Raises:
        UnsupportedError: A setting that needs all data at hand.
    """
    given = [name for name, is_given in refused.items() if is_given]
    if given:
        raise UnsupportedError(
            f"{', '.join(given)}: needs all data in memory, and images is an iterable of batches; give a tensor or a "
            "list of images (for checkpoints of a stream use OnlineLearner.save)"
        )
    if isinstance(heldout, int | float):
        raise UnsupportedError("heldout as a share needs all data in memory; give a tensor of images that are held out")
    rng = generator(seed)
    dense = size is None
    batches = Batches(images, dense, dtype)
    first = batches.first[0].signal()
    layers = check_layers(first, atoms, size, stride, lam, epochs, boundary, nonzeros)
    require_content([part.signal() for part in batches.first], dense)
    if dense:
        warn_of_few(sum(len(part.signal()) for part in batches.first), layers[0].atoms, level=4)
    starts = check_start(start, layers, first, boundary)
    apart = [] if heldout is None else check_groups(heldout, dense=dense, dtype=first.dtype)
    limits = per_layer("coherence", coherence, len(layers))
    flags = (check_flag("nonnegative", nonnegative), check_flag("nonnegative_atoms", nonnegative_atoms))
    common: dict[str, Any] = {
        "steps": require_integer("steps", steps, minimum=1),
        "sweeps": require_integer("sweeps", sweeps, minimum=1),
        "nonnegative": flags[0],
        "seed": seed,
        "tol": tolerance(tol, online=True),
        "forgetting": require_number("forgetting", forgetting, minimum=0.0),
        "online": True,
    }
    patience = None if patience is None else require_integer("patience", patience, minimum=1)
    learned = Learned([], [], [], [])
    every: list[Settings] = []
    with torch.no_grad():
        for j, layer in enumerate(layers):
            channels = first.shape[1] if j == 0 else layers[j - 1].atoms
            kind = template(layer.atoms, channels, layer.size, layer.stride, boundary, first.dtype, first.device)
            rules = AtomRules(flags[1], layer.nonzeros, check_coherence(limits[j], kind))
            settings = Settings(lam=layer.lam, epochs=layer.epochs, rules=rules, **common)
            seeding = list(_lift(batches.first, learned.layers, every))
            begin = starts[j] if starts else seed_dictionary(kind, seeding, rng, settings, j)
            watch = Watch(j, [one.epochs for one in layers], layer.lam, flags[0], apart, patience, callback)
            engine = Engine(begin, settings)
            while not watch.over:
                watch.note(engine.dictionary, online_epoch(engine, _lift(batches, learned.layers, every)))
                watch.judge()
            engine.finish()
            _finish(learned, engine, watch)
            apart = [part.signal() for part in _lift([Part(x) for x in apart], [engine.dictionary], [settings])]
            every.append(settings)
    model = Cascade(learned.layers) if isinstance(atoms, Sequence) else learned.layers[0]
    lams = tuple(layer.lam for layer in layers)
    return LearningResult(model, learned.history(), tuple(learned.dead), lams, flags[0], "online")


def _finish(learned: Learned, engine: Engine, watch: Watch) -> None:
    assert engine.total is not None, "an epoch has at least one batch"
    learned.layers.append(engine.dictionary)
    learned.records.append(watch.record)
    learned.dead.append(tuple((engine.total.nonzeros == 0).nonzero().flatten().tolist()))


def _lift(parts: Iterable[Part], layers: Sequence[Dictionary], settings: Sequence[Settings]) -> Iterator[Part]:
    """Yield parts with the codes of the last of these layers for a signal."""
    for part in parts:
        for layer, one in zip(layers, settings, strict=True):
            part = Part(part.source)
            refine([part], layer, one, REFINE * one.steps)
            assert part.codes is not None
            part = Part(part.codes)
        yield Part(part.source)
