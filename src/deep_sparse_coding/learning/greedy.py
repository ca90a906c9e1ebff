"""Layers one after the other, with checkpoints: what `learn` does once its arguments are checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from deep_sparse_coding.dictionaries import Cascade, Dictionary
from deep_sparse_coding.dictionaries.random import generator
from deep_sparse_coding.errors import ParameterError

from .checkpoint import pack_engine, pack_parts, read_checkpoint, unpack_engine, unpack_parts, write_checkpoint
from .engine import Engine, Part, Settings
from .initial import initial_dictionary, template
from .inputs import LayerSettings
from .layer import learn_layer, refine
from .result import LearningHistory, LearningProgress, LearningResult
from .updates import AtomRules
from .watch import LayerRecord, Watch

Callback = Callable[[LearningProgress], object]

# The codes that a layer hands to the next get this many times the steps of a visit.
REFINE = 5
# Parts that initial atoms are drawn from.
_SEEDING_PARTS = 16


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be learned, checked.

    Attributes:
        groups: The data, one tensor per image size.
        masks: For every group its mask or None.
        heldout: Data that are not learned from, likewise.
        layers: The settings of every layer.
        boundary: "valid" or "circular".
        deep: Whether the result is a cascade.
        starts: Where layers begin; empty where pieces of the data are to be taken.
        batch: Samples that are coded together, per group.
        nonnegative: Of codes.
        nonnegative_atoms: Of atoms.
        coherence: The largest cosine of atoms.
        steps, sweeps, tol, forgetting, online, seed, patience: See `learn`.
    """

    groups: list[Tensor]
    masks: list[Tensor | None]
    heldout: list[Tensor]
    layers: tuple[LayerSettings, ...]
    boundary: str
    deep: bool
    starts: tuple[Dictionary, ...]
    batch: tuple[int, ...]
    nonnegative: bool
    nonnegative_atoms: bool
    coherence: tuple[float, ...]
    steps: int
    sweeps: int
    tol: float
    forgetting: float
    online: bool
    seed: int
    patience: int | None

    def settings(self, j: int) -> Settings:
        """Return the settings of layer j."""
        layer = self.layers[j]
        rules = AtomRules(self.nonnegative_atoms, layer.nonzeros, self.coherence[j])
        return Settings(
            layer.lam, layer.epochs, self.steps, self.sweeps, self.nonnegative, rules, self.seed, self.tol,
            self.forgetting, self.online,
        )  # fmt: skip

    def kind(self, j: int) -> Dictionary:
        """Return a dictionary of the kind of layer j."""
        layer, first = self.layers[j], self.groups[0]
        channels = first.shape[1] if j == 0 else self.layers[j - 1].atoms
        return template(layer.atoms, channels, layer.size, layer.stride, self.boundary, first.dtype, first.device)

    def words(self) -> dict[str, Any]:
        """Return what a checkpoint has to agree with."""
        told = {name: getattr(self, name) for name in _TOLD}
        told["layers"] = [asdict(layer) for layer in self.layers]
        told["images"] = [[list(group.shape), str(group.dtype), float(group.double().sum())] for group in self.groups]
        told["masks"] = [None if mask is None else float(mask.double().sum()) for mask in self.masks]
        told["heldout"] = [[list(group.shape), float(group.double().sum())] for group in self.heldout]
        told["start"] = [float(layer.weight.detach().double().abs().sum()) for layer in self.starts]
        return told


_TOLD = (
    "boundary", "deep", "batch", "nonnegative", "nonnegative_atoms", "coherence", "steps", "sweeps", "tol",
    "forgetting", "online", "seed", "patience",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Learned:
    """Layers as they were learned, and the parts with the codes of each: what joint refinement goes on from."""

    layers: list[Dictionary]
    records: list[LayerRecord]
    dead: list[tuple[int, ...]]
    parts: list[list[Part]]

    def history(self) -> LearningHistory:
        """Return the records."""
        records = self.records
        return LearningHistory(
            tuple(tuple(record.objective) for record in records),
            tuple(tuple(record.density) for record in records),
            tuple(tuple(record.replaced) for record in records),
            tuple(tuple(record.seconds) for record in records),
            tuple(tuple(record.heldout) for record in records),
        )

    def result(self, job: Job) -> LearningResult:
        """Return what `learn` returns."""
        model = Cascade(self.layers) if job.deep else self.layers[0]
        lam = tuple(layer.lam for layer in job.layers)
        method = "online" if job.online else "batch"
        return LearningResult(model, self.history(), tuple(self.dead), lam, job.nonnegative, method)


def learn_layers(job: Job, callback: Callback | None, checkpoint: str | os.PathLike[str] | None) -> Learned:
    """Learn every layer on the codes of the one below; go on from a checkpoint if there is one."""
    rng = generator(job.seed)
    parts = split(job, rng)
    saved = None if checkpoint is None else read_checkpoint(checkpoint, job.words())
    learned = Learned([], [], [], [])
    heldout = job.heldout
    begin_at = 0
    if saved is not None:
        begin_at = int(saved.words["layer"])
        rng.set_state(saved.tensors["rng"])
        for j in range(begin_at):
            weight = saved.tensors[f"layer{j}.weight"].to(job.groups[0].device)
            learned.layers.append(job.kind(j).with_weight(weight))
            learned.records.append(LayerRecord(**saved.words["records"][j]))
            learned.dead.append(tuple(saved.words["dead"][j]))
            below = _parts_below(saved, parts, j)
            learned.parts.append(below)
            heldout = _encode(job, j, learned.layers[j], heldout)
    for j in range(begin_at, len(job.layers)):
        settings = job.settings(j)
        watch = Watch(
            j, [one.epochs for one in job.layers], settings.lam, job.nonnegative, heldout, job.patience, callback
        )
        here = saved if j == begin_at else None
        if here is not None:
            parts = unpack_parts(parts, here, deep=j > 0)
            engine = Engine(job.kind(j), settings)
            unpack_engine(engine, here)
            watch.resume(LayerRecord(**here.words["records"][j]), bool(here.words["over"]))
        else:
            if j:
                parts = [Part(part.codes) for part in parts if part.codes is not None]
            engine = Engine(_begin(job, j, parts, rng), settings)

        def save(engine: Engine = engine, watch: Watch = watch, parts: list[Part] = parts, j: int = j) -> None:
            if checkpoint is not None:
                _save(checkpoint, job, learned, (engine, watch, parts, j), rng)

        learn_layer(parts, engine, rng, watch, save)
        learned.layers.append(engine.dictionary)
        learned.records.append(watch.record)
        assert engine.total is not None
        learned.dead.append(tuple((engine.total.nonzeros == 0).nonzero().flatten().tolist()))
        if len(job.layers) > 1:
            refine(parts, engine.dictionary, settings, REFINE * job.steps)
            heldout = _encode(job, j, engine.dictionary, heldout)
        learned.parts.append(parts)
    return learned


def split(job: Job, rng: torch.Generator) -> list[Part]:
    """Return the data in parts, drawn at random, each of one image size."""
    parts = []
    for group, mask, batch in zip(job.groups, job.masks, job.batch, strict=True):
        order = torch.randperm(len(group), generator=rng).to(group.device)
        for chunk in order.split(batch):
            hole = None if mask is None else mask[chunk]
            parts.append(Part(group[chunk].contiguous(), mask=hole))
    return parts


def require_codes(dictionary: Dictionary, parts: list[Part], lam: float, j: int, nonnegative: bool) -> None:
    """Raise if lam leaves every code zero."""
    largest = 0.0
    for part in parts:
        correlations = dictionary.analyze(part.signal())
        largest = max(largest, float(correlations.amax() if nonnegative else correlations.abs().amax()))
        if largest > lam:
            return
    raise ParameterError(
        f"lam of layer {j + 1} is {lam:g} and leaves every code zero: the largest correlation of a piece of its signal "
        f"with an initial atom is {largest:.4g}; expected a smaller lam, such as {0.1 * largest:.2g}"
    )


def seed_dictionary(
    kind: Dictionary, parts: list[Part], rng: torch.Generator, settings: Settings, j: int
) -> Dictionary:
    """Return a dictionary of pieces of the data that some code uses.

    Raises:
        ParameterError: The signal is zero everywhere, or lam leaves every code zero.
    """
    seeding = [part.signal() for part in parts[:_SEEDING_PARTS]]
    begin = initial_dictionary(kind, seeding, rng, settings.rules.nonnegative)
    if begin is None:
        raise ParameterError(f"layer {j + 1} has nothing to learn from: its signal is zero everywhere")
    require_codes(begin, parts, settings.lam, j, settings.nonnegative)
    return begin


def _begin(job: Job, j: int, parts: list[Part], rng: torch.Generator) -> Dictionary:
    settings = job.settings(j)
    if job.starts:
        require_codes(job.starts[j], parts, settings.lam, j, job.nonnegative)
        return job.starts[j]
    return seed_dictionary(job.kind(j), parts, rng, settings, j)


def _encode(job: Job, j: int, dictionary: Dictionary, groups: list[Tensor]) -> list[Tensor]:
    """Return the codes of held-out data, the signal of the next layer; nothing after the last."""
    if j + 1 >= len(job.layers):
        return []
    parts = [Part(group) for group in groups]
    refine(parts, dictionary, job.settings(j), REFINE * job.steps)
    return [part.codes.dense() for part in parts if part.codes is not None]


def _save(
    path: str | os.PathLike[str],
    job: Job,
    learned: Learned,
    work: tuple[Engine, Watch, list[Part], int],
    rng: torch.Generator,
) -> None:
    engine, watch, parts, j = work
    tensors, words = pack_engine(engine)
    tensors |= pack_parts(parts, deep=j > 0) | {"rng": rng.get_state()}
    for k, layer in enumerate(learned.layers):
        tensors[f"layer{k}.weight"] = layer.weight.detach()
        for index, part in enumerate(learned.parts[k]):
            if part.codes is not None:
                below = pack_parts([part], deep=k > 0)
                tensors |= {f"below{k}.{index}.{name}": value for name, value in below.items()}
    words |= {
        "settings": job.words(),
        "layer": j,
        "over": watch.over,
        "records": [asdict(one) for one in (*learned.records, watch.record)],
        "dead": [list(dead) for dead in learned.dead],
    }
    write_checkpoint(path, tensors, words)


def _parts_below(saved: Any, parts: list[Part], k: int) -> list[Part]:
    """Return the parts of a finished layer as a checkpoint has them."""
    found = []
    for index, part in enumerate(parts):
        start = f"below{k}.{index}."
        own = {name.removeprefix(start): value for name, value in saved.tensors.items() if name.startswith(start)}
        found += unpack_parts([part], type(saved)(own, saved.words), deep=k > 0)
    return found
