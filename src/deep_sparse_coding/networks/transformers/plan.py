"""The plan of a transformer that computes sparse codes: depth, heads, temperature and bounds, before it has weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...checks import require_number
from ...dictionaries import ConvDictionary
from ...errors import ParameterError
from ...guarantees.depth import fewest_rounds, fewest_steps
from ...guarantees.guarantee import rounded_up
from ...guarantees.hypotheses import LayerHypotheses
from ...guarantees.recursion import MOST_STEPS, LayerRecursion, layer_recursion
from ...guarantees.schedule import floors, run, step_order
from ..plan import LayerPlan, StepBound, in_columns
from .attention import Sharpness, ShiftedKernels, sharpen, step_kernels
from .positions import PositionCode, position_code

# Softmax may take this share of the target, as temperature is cheap; where no depth reaches it, no more than rounding.
_SHARES = (1e-6, 0.0)
_DEFAULT_TARGET = 1e-2


@dataclass(frozen=True, eq=False)
class TransformerLayer(LayerPlan):
    """What the network does for one sparse coding layer.

    Attributes:
        dictionary: D.
        kernels: What its heads compute, one shift each.
        grid: The spatial size of its codes.
        spacing: Tokens from one code to the next, per axis.
        heads: Heads of its blocks; as many as shifts, or a few more that do nothing, to divide the token width.
        softmax_error: What softmax does to the argument of the threshold in one step, at most; a part of ν.
        rounding: What rounding does to it beyond the slack h; a part of ν too.
    """

    dictionary: ConvDictionary
    kernels: ShiftedKernels
    grid: tuple[int, ...]
    spacing: tuple[int, ...]
    heads: int
    softmax_error: float
    rounding: float

    @property
    def atoms(self) -> int:
        """The number of atoms."""
        return self.dictionary.atoms

    @property
    def hidden(self) -> int:
        """Hidden units of the feed-forward part of its blocks."""
        return (3 if self.hypotheses.nonnegative else 4) * self.atoms


@dataclass(frozen=True, eq=False)
class TransformerPlan:
    """The plan of a transformer that computes sparse codes, and what it rests on.

    Attributes:
        layers: One entry per sparse coding layer.
        order: The layer (from 0) of every block.
        strategy: "layerwise" or "interleaved".
        size: The spatial size of a signal.
        positions: The code of the tokens' positions.
        sharpness: Temperature and null slot of all heads.
        token_width: Entries of a token.
        hypotheses: What is assumed of the signal, in words; the bounds hold for every signal that meets it.
        dtype: The number type whose rounding the bounds include.
        vectors: Whether signals are vectors (dense dictionaries), one token each.
    """

    layers: tuple[TransformerLayer, ...]
    order: tuple[int, ...]
    strategy: str
    size: tuple[int, ...]
    positions: PositionCode
    sharpness: Sharpness
    token_width: int
    hypotheses: tuple[str, ...]
    dtype: torch.dtype
    vectors: bool = False

    @property
    def error_bound(self) -> float:
        """The bound of ``‖codes - truth‖_∞`` for the deepest layer."""
        return self.layers[-1].error_bound

    @property
    def bounds(self) -> tuple[float, ...]:
        """The bound of the deepest layer after each of its steps."""
        return self.layers[-1].bounds

    @property
    def bound_by_depth(self) -> list[StepBound]:
        """The bound after every block, for the layer whose codes it brings forward."""
        taken = [0] * len(self.layers)
        found = []
        for depth, j in enumerate(self.order, start=1):
            taken[j] += 1
            found.append(StepBound(depth, j + 1, taken[j], self.layers[j].bounds[taken[j] - 1]))
        return found

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps per layer."""
        return tuple(layer.steps for layer in self.layers)

    @property
    def depth(self) -> int:
        """The number of transformer blocks."""
        return len(self.order)

    @property
    def tokens(self) -> int:
        """The number of tokens, n."""
        return self.positions.tokens

    @property
    def heads(self) -> int:
        """The most heads of any block."""
        return max(layer.heads for layer in self.layers)

    @property
    def head_width(self) -> int:
        """Entries of a head in the blocks with the most heads."""
        return self.token_width // self.heads

    @property
    def temperature(self) -> float:
        """t, by which queries are multiplied."""
        return self.sharpness.temperature

    @property
    def parameters(self) -> int:
        """The number of weights and biases, zeros included."""
        e, first = self.token_width, self.layers[0].dictionary
        blocks = sum(4 * e * e + 5 * e + (2 * e + 1) * self.layers[j].hidden for j in self.order)
        return blocks + e * first.analysis_terms + self.tokens * e

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one signal, those with zeros included."""
        n, e, first = self.tokens, self.token_width, self.layers[0].dictionary
        keys = n + (self.sharpness.null_logit is not None)
        blocks = sum(4 * e * e + 2 * keys * e + 2 * e * self.layers[j].hidden for j in self.order)
        return n * (blocks + e * first.analysis_terms)

    def __str__(self) -> str:
        rows = [("layer", "atoms", "kernel", "non-zeros", "ρ", "softmax", "ν", "e_0", "steps", "heads", "bound")]
        for layer in self.layers:
            assumed = layer.hypotheses
            rows.append(
                (
                    str(assumed.layer),
                    str(layer.atoms),
                    "–" if self.vectors else "×".join(str(k) for k in layer.dictionary.kernel_size),
                    f"{assumed.sparsity}{'' if self.vectors else ' per stripe'}",
                    f"{layer.rate:.3f}",
                    f"{rounded_up(layer.softmax_error, 2):.2g}",
                    f"{rounded_up(layer.noise, 3):.3g}",
                    f"{layer.start:g}",
                    str(layer.steps),
                    str(layer.heads),
                    f"{rounded_up(layer.error_bound, 3):.3g}",
                )
            )
        code = self.positions
        word = str(self.dtype).removeprefix("torch.")
        return "\n".join(
            [
                f"Plan: {self.depth} transformer blocks of up to {self.heads} heads of width {self.head_width}, "
                f"{self.tokens} tokens of width {self.token_width}, {self.parameters} parameters, "
                f"{self.multiply_adds:.4g} multiply-adds per signal",
                f"positions: {code.width // 2} frequencies, period {'×'.join(str(p) for p in code.periods)}, "
                f"gap {code.gap:.3g} of peak {code.peak:g}, temperature {self.temperature:.4g}",
                *in_columns(rows),
                f"‖codes - truth‖_∞ ≤ {rounded_up(self.error_bound, 3):.3g} in {word} for every signal with:",
                *(f"  - {sentence}" for sentence in self.hypotheses),
            ]
        )


def make_transformer_plan(
    dictionaries: Sequence[ConvDictionary],
    assumed: Sequence[LayerHypotheses],
    *,
    size: tuple[int, ...],
    vectors: bool,
    hypotheses: Sequence[str],
    target_error: float | None,
    steps: Sequence[int] | None,
    strategy: str,
    tolerance: float | None,
    frequencies: int | None,
    period: Sequence[int] | None,
) -> TransformerPlan:
    """Return the plan for the given numbers of steps, or one that reaches `target_error` in few blocks.

    Raises:
        ParameterError: A layer whose bound does not shrink (ρ ≥ 1); a target below what noise, softmax and rounding
            leave; a period in which positions wrap onto each other; a circular grid whose lags add up.
        ShapeError: A size smaller than a kernel, or a ring that no code grid makes.

    Source: statements N1 to N3 and N8 of docs/theory.md.
    """
    dtype, circular = dictionaries[0].dtype, dictionaries[0].boundary == "circular"
    step_order(strategy, steps or (1,) * len(dictionaries))
    target = _DEFAULT_TARGET if target_error is None else require_number("target_error", target_error, minimum=0)
    recursions = [layer_recursion(d, h, through_signal=False) for d, h in zip(dictionaries, assumed, strict=True)]
    rates = [(recursion.rate(), recursion.babel_rate()) for recursion in recursions]
    for h, (rate, _) in zip(assumed, rates, strict=True):
        if rate >= 1:
            raise ParameterError(
                f"layer {h.layer}: the error bound does not shrink, ρ = {rate:.3f} at {h.sparsity} non-zeros per "
                "stripe; expected ρ < 1: a lower sparsity, or less coherent atoms (low_coherence(...))"
            )

    grids, spacings, kernels = _shifts(dictionaries, assumed, size)
    widest, null = max(d.atoms for d in dictionaries), 0 if circular else 1
    code = position_code(
        grids[0],
        tuple(max(far) for far in zip(*(shifted.reach for shifted in kernels), strict=True)),
        circular=circular,
        frequencies=frequencies,
        period=period,
        width=widest - null,
    )
    heads = max(len(shifted.shifts) for shifted in kernels)
    held = sum(d.atoms for d in dictionaries) + dictionaries[0].atoms + len(dictionaries) - 1 + code.width
    narrowest = max(widest, code.width + null)
    head_width = max(narrowest, -(-held // heads))
    token_width = heads * head_width
    counts = [
        next(h for h in range(len(k.shifts), heads + 1) if token_width % h == 0 and token_width // h >= narrowest)
        for k in kernels
    ]

    scale = max(float(shifted.bounds.sum(0).max()) for shifted in kernels)
    tries = [max(share * target, torch.finfo(dtype).eps * scale) for share in _SHARES]
    if tolerance is not None:
        tries = [require_number("tolerance", tolerance, minimum=0, strict=True)]
    attended: list[LayerRecursion] = []
    for allowed in tries:
        sharpness = sharpen(
            code, allowed / scale, null=not circular, head_width=token_width // min(counts), dtype=dtype
        )
        heard = [_heard(recursions, j, kernels[j], sharpness, counts[j]) for j in range(len(recursions))]
        attended = [
            replace(r, hypotheses=replace(h, residual=h.residual + sum(errors) * (1 + 256 * torch.finfo(dtype).eps)))
            for r, h, errors in zip(recursions, assumed, heard, strict=True)
        ]
        found = _steps(attended, strategy, target) if steps is None else tuple(steps)
        if found is not None:
            break
    else:
        raise ParameterError(_under_the_floor(attended, assumed, target))

    order = step_order(strategy, found)
    planned = run(attended, order, rates, carried=False)
    layers = tuple(
        TransformerLayer(replace(layer, hypotheses=h), d, shifted, grid, spacing, count, *errors)
        for d, h, layer, shifted, grid, spacing, count, errors in zip(
            dictionaries, assumed, planned, kernels, grids, spacings, counts, heard, strict=True
        )
    )
    word = str(dtype).removeprefix("torch.")
    told = (
        *hypotheses,
        *(() if vectors else (f"signals have the spatial size {'×'.join(str(n) for n in size)}",)),
        f"the network runs in {word} or better, sums of products in any order (no TF32)",
    )
    return TransformerPlan(layers, order, strategy, size, code, sharpness, token_width, told, dtype, vectors)


def _steps(recursions: Sequence[LayerRecursion], strategy: str, target: float) -> tuple[int, ...] | None:
    if strategy == "layerwise":
        return fewest_steps(recursions, target, carried=False)
    rounds = fewest_rounds(recursions, target, carried=False)
    return None if rounds is None else (rounds,) * len(recursions)


def _shifts(
    dictionaries: Sequence[ConvDictionary], assumed: Sequence[LayerHypotheses], size: tuple[int, ...]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[ShiftedKernels]]:
    """Return, per layer, the code grid, the tokens from one code to the next, and the kernels by shift."""
    grids, spacings, kernels = list[tuple[int, ...]](), list[tuple[int, ...]](), list[ShiftedKernels]()
    spacing, below = (1,) * len(size), None
    for j, (dictionary, h) in enumerate(zip(dictionaries, assumed, strict=True)):
        # Entries past the last atom are left unread, as by a convolution; a ring has none.
        fitting = dictionary.exact_code_shape if dictionary.boundary == "circular" else dictionary.code_shape
        grid = fitting(grids[-1] if grids else size)[1:]
        if dictionary.aliases(grid):
            least = tuple(2 * lag + 1 for lag in dictionary.lags)
            raise ParameterError(
                f"the codes of layer {j + 1} have the circular grid {grid}, on which lags add up; expected at least "
                f"{least} positions: a larger size"
            )
        if j:
            spacing = tuple(apart * q for apart, q in zip(spacing, dictionary.stride, strict=True))
        shifted = step_kernels(dictionary, spacing=spacing, sparsity=h.sparsity, amplitude=h.amplitude, below=below)
        grids.append(grid)
        spacings.append(spacing)
        kernels.append(shifted)
        below = (dictionary.atoms, h.sparsity, h.amplitude, spacing)
    return grids, spacings, kernels


def _heard(
    recursions: Sequence[LayerRecursion], j: int, kernels: ShiftedKernels, sharpness: Sharpness, heads: int
) -> tuple[float, float]:
    """Return what softmax and what rounding do to the argument of a threshold, at most, in any step.

    Rounding: values sum at most s codes here and p below; then softmax, the sum over the heads, the residual
    connection, and the feed-forward part. Adding a small number to a large one errs by no more than the small one: the
    n terms of softmax, all but one small, cost what they add up to, for weights and values, not n roundings.

    Source: N8 and "Rounding" of docs/theory.md.
    """
    recursion = recursions[j]
    h, start = recursion.hypotheses, recursion.start
    softmax = sharpness.error * kernels.bounds.sum(0)
    lower = recursions[j - 1] if j else None
    noise = recursion.noise(lower.start if lower is not None else None)
    summed, terms = (1 + recursion.own) * start + recursion.above(start), h.sparsity
    v = summed + noise
    if h.nonnegative:
        summed = v = summed + recursion.below(start)
        v = v + noise
    if lower is not None and h.place_sparsity is not None:
        summed, terms = summed + v, terms + h.place_sparsity
    summed = summed + softmax
    unit = 0.51 * torch.finfo(recursion.dtype).eps
    mixed = torch.minimum(
        2 * (sharpness.tokens + 32) * unit * summed, (128 + sharpness.tokens // 128) * unit * summed + 2.02 * softmax
    )
    threshold = recursion.above(start) + noise
    rounding = mixed + unit * ((heads + terms + 4) * summed + 8 * (start + summed + v + threshold))
    return float(softmax.max()), float(rounding.max()) * 1.01


def _under_the_floor(recursions: Sequence[LayerRecursion], assumed: Sequence[LayerHypotheses], target: float) -> str:
    lowest = floors(recursions, carried=False)
    told = "; ".join(
        f"layer {h.layer}: softmax and rounding {r.hypotheses.residual - h.residual:.3g}, floor {float(e.max()):.3g}"
        for r, h, e in zip(recursions, assumed, lowest, strict=True)
    )
    return (
        f"target_error is {target:g}, and the bound stays above {float(lowest[-1].max()):.3g} at any depth up to "
        f"{MOST_STEPS} steps per layer ({told}); expected a target above that: raise target_error, or lower the floor "
        "with less noise=, epsilon=, sparsity=, place_sparsity= or tolerance=, less coherent atoms, or the model in "
        "float64"
    )
