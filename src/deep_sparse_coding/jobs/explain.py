"""Which atoms explain a pixel or a region of a reconstruction, and how much of its energy each of them makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import require_float_tensor, require_integer, require_same_kind
from ..dictionaries import Cascade, Dictionary
from ..dictionaries.cascade import as_cascade
from ..errors import DtypeError, ParameterError, ShapeError
from ..solvers import Solution

Region = int | slice | Tensor | Sequence[int | slice] | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """The non-zeros of a code that reach a region, those of the largest share first.

    With ``c_i = x_i · d_i`` on the region and ``ŷ = Σ c_i`` there, the share of entry i is ``⟨c_i, ŷ⟩ / ‖ŷ‖²``. Shares
    add up to 1; one below 0 works against the others. If ŷ is zero on the region all shares are 0.

    Attributes:
        layer: Whose codes these are, counted from 1.
        atoms: The atom of every entry, ``(n,)``.
        places: Where it stands in the code map, ``(n, axes)``; no axes for dense dictionaries.
        codes: ``x_i``, ``(n,)``.
        values: The mean of ``c_i`` over the region, ``(n,)``: for one grey pixel the contribution itself. They add up
            to `reconstruction`.
        shares: The share of the energy of ŷ, ``(n,)``.
        energy: ``‖ŷ‖²`` on the region.
        reconstruction: The mean of ŷ over the region.
        residual: ``‖y - ŷ‖² / ‖y‖²`` on the region; None where no signal was given, or it is zero there.
        region: True where, ``(d,)`` or the spatial size of the signal.
        count: How many atoms the layer has.
    """

    layer: int
    atoms: Tensor
    places: Tensor
    codes: Tensor
    values: Tensor
    shares: Tensor
    energy: float
    reconstruction: float
    residual: float | None
    region: Tensor
    count: int

    def __len__(self) -> int:
        return len(self.atoms)

    def by_atom(self) -> Tensor:
        """Return the share of every atom of the layer, its places added up, ``(count,)``, float64."""
        return self.shares.new_zeros(self.count).index_add(0, self.atoms, self.shares)

    def __str__(self) -> str:
        lines = [
            f"layer {self.layer}: {len(self)} non-zeros reach {int(self.region.sum())} of {self.region.numel()} places"
            f" · mean {self.reconstruction:.4g}"
            + ("" if self.residual is None else f" · {100 * self.residual:.2g} % of the energy is not explained")
        ]
        for i in range(min(len(self), 8)):
            place = f" at {tuple(self.places[i].tolist())}" if self.places.shape[1] else ""
            lines.append(
                f"{100 * float(self.shares[i]):7.1f} %  atom {int(self.atoms[i])}{place}, code "
                f"{float(self.codes[i]):.4g}, gives {float(self.values[i]):.4g}"
            )
        if len(self) > 8:
            lines.append(f"{100 * float(self.shares[8:].sum()):7.1f} %  {len(self) - 8} more")
        return "\n".join(lines)


def explain(
    codes: Solution | Tensor | Sequence[Tensor],
    model: Dictionary | Cascade,
    region: Region = None,
    *,
    layer: int | None = None,
    sample: int | None = None,
    signal: Tensor | None = None,
) -> Explanation:
    """Return which atoms explain a pixel or a region, and the share of its energy that each of them makes.

    Of a cascade the atoms of layer j are the effective ones, those of ``D_1 ··· D_j``: by default the deepest, so that
    a pixel is explained by the parts that the last layer knows.

    Args:
        codes: A solution; or a tensor ``(*batch, atoms, ...)``; or, of a cascade, one tensor per layer.
        model: The dictionary, or the cascade, that the codes belong to.
        region: A place or a box: an index or slice per spatial axis, ``(120, 64)`` or ``(slice(0, 9), slice(3, 12))``,
            of dense signals one; or a mask of True and False of the spatial size; None for the whole signal.
        layer: j, counted from 1; None for the deepest.
        sample: Which sample of the flattened batch; may be left out if there is one.
        signal: What was coded, ``(*batch, channels, H, W)``, for the part that nothing explains; of a solution its own.

    Returns:
        An `Explanation`.

    Raises:
        DtypeError: Codes or a signal that are no float32 or float64 tensors, or differ in kind from the model.
        ParameterError: A region that is empty, out of range or of other axes; no such layer or sample; codes that are
            not finite.
        ShapeError: Codes, signal or mask that do not fit.
    """
    cascade = as_cascade(model)
    depth = len(cascade) if layer is None else require_integer("layer", layer, minimum=1)
    if depth > len(cascade):
        raise ParameterError(f"layer is {depth}; expected 1 to {len(cascade)}, the number of layers")
    if isinstance(codes, Solution):
        signal = codes.signal if signal is None else signal
        codes = codes.codes
    below = Cascade(cascade.layers[:depth])
    code = _one("codes", below.layers[-1].check_codes(_codes_of(codes, len(cascade), depth)), below.layers[-1], sample)
    if not bool(torch.isfinite(code).all()):
        raise ParameterError("codes have entries that are not finite; expected finite codes: look at solution.status")
    exact, code = below.cast(torch.float64), code.detach().double()
    estimate = exact.synthesize(code)
    spatial = tuple(estimate.shape) if exact.layers[0].event_axes == 1 else tuple(estimate.shape[1:])
    inside = region_mask(region, spatial).to(code.device)
    held = torch.where(inside, estimate, 0.0)
    energy, entries = float(held.square().sum()), int(inside.sum()) * (estimate.numel() // inside.numel())
    # ⟨c_i, ŷ⟩ over the region is x_i·(Dᵀ of ŷ there)_i, and the sum of c_i is x_i·(Dᵀ of ones there)_i.
    ones = torch.where(inside, torch.ones_like(estimate), 0.0)
    shares = code * analyze_down(exact, held) / energy if energy > 0 else torch.zeros_like(code)
    values = code * analyze_down(exact, ones) / entries
    magnitudes = Cascade([part.with_weight(part.weight.detach().abs()) for part in exact.layers])
    places = ((code != 0) & (analyze_down(magnitudes, ones) > 0)).nonzero()
    picked = tuple(places.unbind(1))
    order = shares[picked].argsort(descending=True, stable=True)
    picked = tuple(index[order] for index in picked)
    return Explanation(
        depth,
        places[order][:, 0],
        places[order][:, 1:],
        code[picked],
        values[picked],
        shares[picked],
        energy,
        float(held.sum()) / entries,
        _residual(signal, estimate, inside, below.layers[0], sample),
        inside,
        below.layers[-1].atoms,
    )


def analyze_down(cascade: Cascade, signal: Tensor) -> Tensor:
    """Return ``(D_1 ··· D_J)ᵀ r`` for a signal r."""
    for layer in cascade.layers:
        signal = layer.analyze(signal)
    return signal


def region_mask(region: Region, spatial: tuple[int, ...]) -> Tensor:
    """Return a region as a mask of the spatial size, True inside.

    Args:
        region: See `explain`.
        spatial: The spatial size, or ``(d,)``.

    Raises:
        DtypeError: A mask that is not of True and False.
        ParameterError: Empty, out of range, or of other axes.
        ShapeError: A mask of another shape.
    """
    if isinstance(region, Tensor):
        if region.dtype != torch.bool:
            raise DtypeError(f"region is a tensor of {region.dtype}; expected a mask of True and False: region > 0")
        if tuple(region.shape) != spatial:
            raise ShapeError(f"region has shape {tuple(region.shape)}; expected {spatial}, the signal's places")
        inside = region.clone()
    else:
        given = (
            (slice(None),) * len(spatial)
            if region is None
            else tuple(region)
            if isinstance(region, Sequence)
            else (region,)
        )
        if len(given) != len(spatial):
            raise ParameterError(
                f"region has {len(given)} axes; expected {len(spatial)}, an index or a slice for each axis of {spatial}"
            )
        inside = torch.zeros(spatial, dtype=torch.bool)
        inside[tuple(_slice(part, n) for part, n in zip(given, spatial, strict=True))] = True
    if not bool(inside.any()):
        raise ParameterError(f"region {region!r} is empty; expected some of the places {spatial}")
    return inside


def _slice(part: object, size: int) -> slice:
    if isinstance(part, slice):
        return part
    index = require_integer("region", part, minimum=-size)
    if index >= size:
        raise ParameterError(f"region has the index {index}; expected {-size} to {size - 1}")
    return slice(index, index + 1 or None)


def _codes_of(codes: object, layers: int, depth: int) -> Tensor:
    if isinstance(codes, Tensor):
        if depth < layers:
            raise ShapeError(
                f"codes is one tensor and layer is {depth} of {layers}; expected a tuple with one tensor per layer"
            )
        return codes
    if not isinstance(codes, Sequence) or len(codes) != layers:
        found = f"{len(codes)} blocks" if isinstance(codes, Sequence) else f"a {type(codes).__name__}"
        raise ShapeError(f"codes are {found}; expected a Solution, a tensor, or a tuple of {layers}, one per layer")
    return codes[depth - 1]


def _one(name: str, tensor: Tensor, dictionary: Dictionary, sample: int | None) -> Tensor:
    """Return one sample of a tensor with batch axes."""
    flat = tensor.reshape(-1, *tensor.shape[tensor.ndim - dictionary.event_axes :])
    if sample is None:
        if len(flat) != 1:
            raise ParameterError(f"{name} has {len(flat)} samples and sample is None; expected the index of one")
        return flat[0]
    index = require_integer("sample", sample, minimum=-len(flat))
    if index >= len(flat):
        raise ParameterError(f"sample is {index} and {name} has {len(flat)} samples; expected a smaller one")
    return flat[index]


def _residual(
    signal: Tensor | None, estimate: Tensor, inside: Tensor, dictionary: Dictionary, sample: int | None
) -> float | None:
    if signal is None:
        return None
    require_same_kind("signal", require_float_tensor("signal", signal), "model", dictionary.weight)
    one = _one("signal", dictionary.check_signal(signal), dictionary, sample).detach().double()
    if one.shape != estimate.shape:
        raise ShapeError(f"signal has shape {tuple(one.shape)}; expected {tuple(estimate.shape)}, what the codes make")
    whole = float(torch.where(inside, one, 0.0).square().sum())
    return float(torch.where(inside, one - estimate, 0.0).square().sum()) / whole if whole > 0 else None
