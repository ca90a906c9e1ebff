"""The entry point: learn a dictionary, or a cascade layer by layer, from data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag, require_integer
from deep_sparse_coding.dictionaries import Cascade, Dictionary
from deep_sparse_coding.dictionaries.random import generator
from deep_sparse_coding.errors import DictionaryError, ParameterError

from .initial import initial_dictionary, template
from .inputs import LayerSettings, check_images, check_layers, code_entries, default_batch, require_content
from .layer import LayerRecord, Part, Settings, learn_layer, refine
from .result import LearningHistory, LearningProgress, LearningResult

Callback = Callable[[LearningProgress], None]

# The codes that a layer hands to the next get this many times the steps of a visit.
_REFINE = 5
# Parts that initial atoms are drawn from.
_SEEDING_PARTS = 16


def learn(
    images: Tensor | Sequence[Tensor],
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
        images: ``(n, channels, H, W)`` (1-d and 3-d alike), or ``(n, d)`` for dense dictionaries; or a list of samples
            of one shape. float32 or float64; see `contrast_normalize` for photographs.
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
        steps: FISTA steps on the codes per visit; the first visit takes twice as many.
        sweeps: Passes over the atoms per update.
        start: A dictionary or cascade to begin from, of the shape to be learned.
        callback: Called with a `LearningProgress` after every epoch.
        dtype: The number type to learn in; None for the images' own. float32 is faster.

    Returns:
        A `LearningResult`: ``model``, ``history``, ``dead_atoms`` and ``encode``.

    Raises:
        DSCError: Before any work: integer or half precision images, entries that are not finite, constant or too small
            images, settings out of range. During the work: a lam that leaves every code zero.

    Source: Olshausen & Field 1996; Mairal, Bach, Ponce & Sapiro 2009; greedy layers as in Zeiler, Krishnan, Taylor &
        Fergus 2010.
    """
    dense = size is None
    signal = check_images(images, dense=dense, dtype=dtype)
    layers = check_layers(signal, atoms, size, stride, lam, epochs, boundary)
    require_content(signal, dense)
    steps = require_integer("steps", steps, minimum=1)
    sweeps = require_integer("sweeps", sweeps, minimum=1)
    nonnegative = check_flag("nonnegative", nonnegative)
    nonnegative_atoms = check_flag("nonnegative_atoms", nonnegative_atoms)
    rng = generator(seed)
    starts = _check_start(start, layers, signal, boundary)
    first = layers[0]
    if batch is None:
        batch = default_batch(len(signal), code_entries(tuple(signal.shape[2:]), first))
    parts = _split(signal, require_integer("batch", batch, minimum=1), rng)

    learned: list[Dictionary] = []
    records: list[LayerRecord] = []
    dead: list[tuple[int, ...]] = []
    with torch.no_grad():
        for j, layer in enumerate(layers):
            settings = Settings(layer.lam, layer.epochs, steps, sweeps, nonnegative, nonnegative_atoms, seed)
            channels = signal.shape[1] if j == 0 else layers[j - 1].atoms
            begin = starts[j] if starts else None
            if begin is None:
                kind = template(layer.atoms, channels, layer.size, layer.stride, boundary, signal.dtype, signal.device)
                seeding = [part.signal() for part in parts[:_SEEDING_PARTS]]
                begin = initial_dictionary(kind, seeding, rng, nonnegative_atoms)
                if begin is None:
                    raise ParameterError(f"layer {j + 1} has nothing to learn from: its signal is zero everywhere")
            _require_codes(begin, parts, layer.lam, j, nonnegative)
            report = None if callback is None else _reporter(callback, j, layers)
            dictionary, record, unused = learn_layer(parts, begin, settings, rng, report)
            learned.append(dictionary)
            records.append(record)
            dead.append(unused)
            if j + 1 < len(layers):
                refine(parts, dictionary, settings, _REFINE * steps)
                parts = [Part(part.codes) for part in parts if part.codes is not None]
    history = LearningHistory(
        tuple(tuple(record.objective) for record in records),
        tuple(tuple(record.density) for record in records),
        tuple(tuple(record.replaced) for record in records),
        tuple(tuple(record.seconds) for record in records),
    )
    model = Cascade(learned) if isinstance(atoms, Sequence) else learned[0]
    return LearningResult(model, history, tuple(dead), tuple(layer.lam for layer in layers), nonnegative)


def _split(signal: Tensor, batch: int, rng: torch.Generator) -> list[Part]:
    order = torch.randperm(len(signal), generator=rng).to(signal.device)
    return [Part(signal[chunk].contiguous()) for chunk in order.split(batch)]


def _check_start(
    start: object, layers: tuple[LayerSettings, ...], signal: Tensor, boundary: str
) -> tuple[Dictionary, ...]:
    """Return copies of the layers to begin from, atoms scaled to unit norm; nothing if there is no start."""
    if start is None:
        return ()
    if isinstance(start, Cascade):
        given = start.layers
    elif isinstance(start, Dictionary):
        given = (start,)
    else:
        raise DictionaryError(f"start is a {type(start).__name__}; expected a dictionary or a Cascade")
    kinds = []
    channels = signal.shape[1]
    for layer in layers:
        kinds.append(template(layer.atoms, channels, layer.size, layer.stride, boundary, signal.dtype, signal.device))
        channels = layer.atoms
    if [repr(kind) for kind in kinds] != [repr(layer) for layer in given]:
        raise DictionaryError(
            f"start is {list(given)!r}; expected {kinds!r}, the layers to be learned: give atoms=, size=, stride= and "
            "boundary= of the start"
        )
    copies = []
    for layer in given:
        norms = layer.column_norms()
        if not bool((torch.isfinite(norms) & (norms > 0)).all()):
            raise DictionaryError("start has atoms that are zero or not finite; expected atoms that can be scaled")
        axis = 0 if layer.event_axes > 1 else 1
        shape = [-1 if a == axis else 1 for a in range(layer.weight.ndim)]
        scaled = layer.weight.detach().double() / norms.reshape(shape)
        copies.append(layer.with_weight(scaled.to(dtype=signal.dtype, device=signal.device)))
    return tuple(copies)


def _require_codes(dictionary: Dictionary, parts: list[Part], lam: float, j: int, nonnegative: bool) -> None:
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


def _reporter(callback: Callback, j: int, layers: tuple[LayerSettings, ...]) -> Callable[[int, float, float], None]:
    def report(epoch: int, objective: float, density: float) -> None:
        callback(LearningProgress(j + 1, len(layers), epoch, layers[j].epochs, objective, density))

    return report
