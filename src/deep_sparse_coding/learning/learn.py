"""The entry point: learn a dictionary, or a cascade layer by layer, from data."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, per_layer, require_integer, require_number
from deep_sparse_coding.dictionaries import Cascade, Dictionary
from deep_sparse_coding.dictionaries.random import generator
from deep_sparse_coding.errors import ParameterError, UnsupportedError

from .decohere import check_coherence
from .greedy import Callback, Job, Learned, learn_layers
from .inputs import (
    LayerSettings,
    check_groups,
    check_layers,
    check_masks,
    code_entries,
    default_batch,
    require_content,
    tolerance,
    warn_of_few,
)
from .joint import refine_jointly
from .result import LearningResult
from .starts import check_start
from .stream import learn_stream

# From so many samples (dense), or entries of codes (convolutional), one pass teaches enough: learning is online.
_MANY_SAMPLES, _MANY_ENTRIES = 1 << 18, 1 << 32


def learn(
    images: Tensor | Sequence[Tensor] | Iterable[object],
    atoms: int | Sequence[int],
    *,
    lam: float | Sequence[float],
    size: int | Sequence[int | Sequence[int]] | None = None,
    epochs: int | Sequence[int] = 10,
    seed: int,
    stride: int | Sequence[int | Sequence[int]] = 1,
    boundary: str = "valid",
    nonnegative: bool = False,
    nonnegative_atoms: bool = False,
    batch: int | None = None,
    steps: int = 20,
    sweeps: int = 1,
    start: Dictionary | Cascade | None = None,
    callback: Callback | None = None,
    dtype: torch.dtype | None = None,
    method: str | None = None,
    heldout: Tensor | Sequence[Tensor] | float | None = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    coherence: float | Sequence[float | None] | None = None,
    nonzeros: int | Sequence[int | None] | None = None,
    mask: Tensor | Sequence[Tensor] | None = None,
    joint: int = 0,
    beta: float | Sequence[float] = 1.0,
    forgetting: float = 3.0,
    tol: float | None = None,
) -> LearningResult:
    """Learn atoms such that ``Σ ½‖y - D x‖² + lam‖x‖₁`` is small over the data, layer after layer.

    Layer j + 1 is learned on the codes of layer j, as `LayeredLasso` takes them. All atoms have unit norm. Codes and
    atoms are improved in turn and no step raises the objective; atoms that no code uses are replaced by the piece of
    data that is explained worst, and kernels that sit off what they stand for are moved.

    How to choose lam: it is absolute, on the scale of correlations ``⟨d_i, y⟩``; above the largest of them,
    ``dsc.Lasso(dictionary, 1.0).lam_max(images)``, all codes are zero. From 0.05 to 0.3 times that is usual. After
    `contrast_normalize` a k×k atom correlates with its like at about k, and lam between k/10 and k/4 leaves some
    non-zeros per atom's area; the larger, the more an atom looks like an edge and the less like noise. The signal of a
    deeper layer is the codes below, so begin with the same lam there and look at ``history.density``; the larger lam
    is, the more entries of the codes below one atom gathers.

    Args:
        images: ``(n, channels, H, W)`` (1-d and 3-d alike), or ``(n, d)`` for dense dictionaries; or a list of samples,
            images of several sizes allowed; or any other iterable of such batches, as a DataLoader is (of tuples the
            first entry counts), gone through once per epoch and layer, so that the data need not fit in memory. float32
            or float64; integers are scaled to [0, 1], and said so. See `contrast_normalize` for photographs.
        atoms: Atoms of every layer; a single number gives a single dictionary.
        lam: The weight of the ℓ1 norm, one for all layers or one each.
        size: Kernel size of every layer: a number for square kernels on images, or a tuple with one number per axis;
            None for dense dictionaries.
        epochs: Passes over the data, one number or one per layer.
        seed: Of all that is random: parts, their order, and where atoms begin.
        stride: Of every layer, as `size`.
        boundary: "valid" or "circular".
        nonnegative: Hold the codes at or above zero.
        nonnegative_atoms: Hold the atoms at or above zero.
        batch: Samples that are coded together between two updates of the atoms; None chooses.
        steps: The most steps on the codes per visit, of coordinate descent on a CPU and of FISTA elsewhere; the first
            visit takes twice as many.
        sweeps: Passes over the atoms per update.
        start: A dictionary or cascade to begin from, of the shape to be learned.
        callback: Called with a `LearningProgress` after every epoch; if it returns True the layer ends there.
        dtype: The number type to learn in; None for the images' own. float32 is faster.
        method: "batch" keeps the codes of all data and lowers the objective over them; "online" forgets what is old
            (Mairal et al. 2009) and is for data that come by once or are very many. None chooses by the data.
        heldout: Data that are not learned from, or the share of the images to hold out: their objective is evaluated
            after every epoch, see ``history.heldout``.
        patience: End a layer when over so many epochs the objective (of the held-out data if there are any) has not
            fallen by one part in a thousand.
        checkpoint: A file that is written after every epoch, whole or not at all; a run with the same settings and data
            goes on from it to the same bits.
        coherence: The largest cosine that two atoms may have, at any lag; one number or one per layer. The lower it is,
            the more is proved and the worse the atoms fit. Online and in batch atoms are moved apart after every
            update, so that the objective need not fall.
        nonzeros: The most non-zeros of an atom, one number or one per layer (None: no limit).
        mask: Where images were observed, True or 1, as a tensor that broadcasts against them, or a list like them; what
            the images hold elsewhere, NaN too, is not looked at. The objective counts what was observed.
        joint: Epochs in which, after the layers were learned one by one, the codes of all layers together and all
            dictionaries take turns on the joint problem (`JointLasso`).
        beta: Its weights.
        forgetting: Online: batch t leaves the share ``(1 - 1/t)^forgetting`` of what was known; 0 forgets nothing.
        tol: The relative duality gap at which the codes of a visit are good enough; None takes 0.1 online, where looser
            codes teach as much in less time, and 0.01 in batch.

    Returns:
        A `LearningResult`: ``model``, ``history``, ``dead_atoms`` and ``encode``.

    Raises:
        DSCError: Before any work: integer or half precision images, entries that are not finite, constant or too small
            images, masks that do not fit, a coherence that no atoms have, a checkpoint of another run, settings out of
            range. During the work: a lam that leaves every code zero.

    Source: Olshausen & Field 1996; Mairal, Bach, Ponce & Sapiro 2009; greedy layers as in Zeiler, Krishnan, Taylor &
        Fergus 2010.
    """
    dense = size is None
    if isinstance(images, Iterable) and not isinstance(images, Tensor | list | tuple | np.ndarray | str | bytes | dict):
        return learn_stream(
            images, atoms, size, stride, lam, epochs, boundary, nonzeros, start=start, seed=seed, callback=callback,
            dtype=dtype, nonnegative=nonnegative, nonnegative_atoms=nonnegative_atoms, coherence=coherence,
            steps=steps, sweeps=sweeps, forgetting=forgetting, tol=tol, heldout=heldout, patience=patience,
            refused={"method": method == "batch", "checkpoint": checkpoint is not None, "mask": mask is not None,
                     "joint": joint != 0, "batch": batch is not None},
        )  # fmt: skip
    rng = generator(seed)
    groups = check_groups(images, dense=dense, dtype=dtype, finite=mask is None)
    masks = check_masks(mask, images, groups)
    if mask is not None:
        seen = [x if m is None else torch.where(m > 0, x, 0.0) for x, m in zip(groups, masks, strict=True)]
        groups = [check_groups(x, dense=dense, dtype=dtype)[0] for x in seen]
    layers = [check_layers(x, atoms, size, stride, lam, epochs, boundary, nonzeros) for x in groups][-1]
    require_content(groups, dense)
    deep = isinstance(atoms, Sequence)
    starts = check_start(start, layers, groups[0], boundary)
    groups, masks, apart = _hold_out(groups, masks, heldout, dense, rng)
    if dense:
        warn_of_few(sum(map(len, groups)), layers[0].atoms, level=3)
    many = sum(code_entries(tuple(x.shape[2:]), layers[0]) * len(x) for x in groups)
    online = _is_online(method, sum(map(len, groups)), many, dense)
    job = Job(
        groups,
        masks,
        apart,
        layers,
        boundary,
        deep,
        starts,
        tuple(_batch_of(batch, group, layers[0]) for group in groups),
        check_flag("nonnegative", nonnegative),
        check_flag("nonnegative_atoms", nonnegative_atoms),
        (),
        require_integer("steps", steps, minimum=1),
        require_integer("sweeps", sweeps, minimum=1),
        tolerance(tol, online=online),
        require_number("forgetting", forgetting, minimum=0.0),
        online,
        seed,
        None if patience is None else require_integer("patience", patience, minimum=1),
    )
    limits = per_layer("coherence", coherence, len(layers))
    job = replace(job, coherence=tuple(check_coherence(limit, job.kind(j)) for j, limit in enumerate(limits)))
    epochs_together = require_integer("joint", joint, minimum=0)
    if epochs_together and not deep:
        raise ParameterError(
            "joint is for cascades and atoms is a single number; give atoms per layer, or leave it out"
        )
    with torch.no_grad():
        learned = learn_layers(job, callback, checkpoint)
        result = learned.result(job)
        return _refine(job, learned, result, epochs_together, beta) if epochs_together else result


def _refine(job: Job, learned: Learned, result: LearningResult, epochs: int, beta: object) -> LearningResult:
    weights = per_layer("beta", beta, len(job.layers))
    checked = tuple(require_number(f"beta[{j}]", value, minimum=0.0, strict=True) for j, value in enumerate(weights))
    signals = [(part.signal(), part.mask) for part in learned.parts[0]]
    codes = [
        tuple(part.codes.dense() for part in column if part.codes is not None)
        for column in zip(*learned.parts, strict=True)
    ]
    settings = [job.settings(j) for j in range(len(job.layers))]
    layers, values = refine_jointly(learned.layers, signals, codes, settings, checked, epochs, 10 * job.steps)
    return replace(result, model=Cascade(layers), history=replace(result.history, joint=tuple(values)))


def _hold_out(
    groups: list[Tensor], masks: list[Tensor | None], heldout: object, dense: bool, rng: torch.Generator
) -> tuple[list[Tensor], list[Tensor | None], list[Tensor]]:
    """Return data and masks to learn from, and data that are held out."""
    if heldout is None:
        return groups, masks, []
    if not isinstance(heldout, int | float):
        apart = check_groups(heldout, dense=dense, dtype=groups[0].dtype)
        for group in apart:
            if group.shape[1] != groups[0].shape[1]:
                raise ParameterError(
                    f"heldout has shape {tuple(group.shape)}; expected {groups[0].shape[1]} channels (or entries), as "
                    "images have"
                )
        return groups, masks, [group.to(groups[0].device) for group in apart]
    share = require_number("heldout", heldout, minimum=0.0, strict=True)
    if share >= 1 or min(map(len, groups)) * (1 - share) < 1:
        raise ParameterError(
            f"heldout is {heldout!r} of {sum(map(len, groups))} images; expected a share below 1 that leaves some of "
            "each size, or a tensor of images"
        )
    if any(mask is not None for mask in masks):
        raise UnsupportedError("heldout as a share is not offered with mask=: give complete images as heldout=")
    kept, apart = [], []
    for group in groups:
        order = torch.randperm(len(group), generator=rng).to(group.device)
        count = math.ceil(share * len(group))
        apart.append(group[order[:count]])
        kept.append(group[order[count:]])
    return kept, masks, apart


def _is_online(method: object, samples: int, entries: int, dense: bool) -> bool:
    if method is None:
        return samples >= _MANY_SAMPLES if dense else entries >= _MANY_ENTRIES
    if method not in ("online", "batch"):
        raise ParameterError(f"method is {method!r}; expected 'online', 'batch', or None to have it chosen")
    return method == "online"


def _batch_of(batch: object, group: Tensor, first: LayerSettings) -> int:
    if batch is None:
        return default_batch(len(group), code_entries(tuple(group.shape[2:]), first))
    return require_integer("batch", batch, minimum=1)
