"""Compilation of sparse coding into standard transformer blocks: attention to shifted positions, then an MLP (N8)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from ...checks import per_axis, require_float_tensor, require_integer, require_same_kind
from ...dictionaries import Cascade, ConvDictionary, DenseDictionary, Dictionary, as_cascade
from ...errors import ParameterError, ShapeError, UnsupportedError
from ...guarantees.hypotheses import layer_hypotheses
from ...guarantees.schedule import check_steps
from ..plan import Estimate, asked_layers, bound_in_use
from .attention import attention, filled
from .plan import TransformerLayer, TransformerPlan, make_transformer_plan

_CONV: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_WRAP: dict[int, Any] = {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d}
_CLOSED = 2.0**20


class TransformerBlock(nn.Module):
    """A standard block without normalization: ``h ← h + attention(h)``, then ``h ← h + MLP(h)``, the MLP with a ReLU.

    One block takes one step of one layer. The attention adds ``Dᵀx_{j-1} - DᵀDx_j`` to the codes ``x_j`` in a token,
    and the MLP turns what is there, u (first layer: with ``v = Dᵀy`` beside it), into ``S_θ(u + v)``:
    ``MLP = -ReLU(u) + ReLU(-u) + ReLU(u + v - θ) - ReLU(-u - v - θ)``. In floating point, too, ``u + MLP`` is exactly
    zero where the threshold makes it zero.

    Source: statement N8 of docs/theory.md.
    """

    def __init__(self, attention: nn.MultiheadAttention, mlp: nn.Sequential) -> None:
        super().__init__()
        self.attention = attention
        self.mlp = mlp

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the tokens after the block, ``(batch, n, width)``."""
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return tokens + self.mlp(tokens)


class CompiledTransformer(nn.Module):
    """A transformer that computes sparse codes: convolutional embedding, position codes, standard blocks; and its plan.

    A token holds the codes of all layers at its position, ``v = Dᵀy``, for every layer but the first a mark that is 1
    where the layer has no code, zeros, and the position code. Takes ``(batch, channels, H, W)`` or one signal without
    the batch axis, of the size it was compiled for; returns the deepest codes.

    Attributes:
        plan: Depth, heads, temperature, thresholds and bounds, and what they take for granted.

    Source: statement N8 of docs/theory.md.
    """

    def __init__(
        self, embed: nn.Sequential, positions: Tensor, blocks: Sequence[TransformerBlock], plan: TransformerPlan
    ) -> None:
        super().__init__()
        self.embed = embed
        self.positions = nn.Parameter(positions, requires_grad=False)
        self.blocks = nn.ModuleList(blocks)
        self.plan = plan

    @property
    def error_bound(self) -> float:
        """``‖codes - truth‖_∞`` is at most this for every signal that meets ``plan.hypotheses``.

        Softmax and rounding are counted. It speaks of the weights that `to_transformer` set; in a number type narrower
        than ``plan.dtype`` nothing is proved: inf.
        """
        return bound_in_use(self, self.plan.error_bound, self.plan.dtype)

    def forward(self, signal: Tensor) -> Tensor:
        """Return the deepest codes, ``(batch, atoms, h, w)``, for signals ``(batch, channels, H, W)``."""
        tokens, batch = self._embed(signal)
        for block in self.blocks:
            tokens = block(tokens)
        return self._read(tokens, len(self.plan.layers) - 1, batch)

    def codes_by_depth(self, signal: Tensor) -> list[Estimate]:
        """Return the codes after every block, of the layer that it brings forward: one per ``plan.bound_by_depth``."""
        tokens, batch = self._embed(signal)
        found = []
        for block, mark in zip(self.blocks, self.plan.bound_by_depth, strict=True):
            tokens = block(tokens)
            found.append(Estimate(mark.depth, mark.layer, mark.step, self._read(tokens, mark.layer - 1, batch)))
        return found

    def attention_maps(self, block: int = 0, head: int = 0) -> Tensor:
        """Return where a head looks: for every token the weights of all tokens, as images ``(n, h, w)``.

        They do not depend on the signal. A weight that is missing to 1 lies on the null slot: its token's shift,
        ``plan.layers[j].kernels.shifts[head]``, leads across the border.

        Args:
            block: The block, from 0.
            head: The head of that block, from 0.

        Raises:
            ParameterError: No such block or head; heads past the shifts do nothing.
        """
        if not 0 <= block < len(self.blocks):
            raise ParameterError(f"block is {block}; expected 0 to {len(self.blocks) - 1}")
        shifts = self.plan.layers[self.plan.order[block]].kernels.shifts
        if not 0 <= head < len(shifts):
            raise ParameterError(f"head is {head}; expected 0 to {len(shifts) - 1}, one per shift")
        chosen = self.blocks[block]
        assert isinstance(chosen, TransformerBlock)
        with torch.no_grad():
            _, weights = chosen.attention(self.positions, self.positions, self.positions, average_attn_weights=False)
        return weights[0, head, :, : self.plan.tokens].reshape(-1, *self.plan.layers[0].grid)

    def _embed(self, signal: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return the first tokens, and the batch axes of the signal."""
        require_same_kind("signal", require_float_tensor("signal", signal), "the network", self.positions)
        channels, size = self.plan.layers[0].dictionary.channels, self.plan.size
        event = (channels,) if self.plan.vectors else (channels, *size)
        batch = tuple(signal.shape[: max(signal.ndim - len(event), 0)])
        if tuple(signal.shape[len(batch) :]) != event or (len(batch) > 1 and not self.plan.vectors):
            if self.plan.vectors:
                raise ShapeError(f"signal has shape {tuple(signal.shape)}; expected (*batch, {channels})")
            raise ShapeError(
                f"signal has shape {tuple(signal.shape)}; expected (batch, {channels}, "
                f"{', '.join(str(n) for n in size)}) or the same without batch: the tokens are those of one size, "
                "compile again for another"
            )
        # An axis that is there already stays as it is: exporters then keep it free.
        flat = signal if len(batch) == 1 else signal.reshape(-1, *event)
        lifted = self.embed(flat[..., None] if self.plan.vectors else flat)
        return lifted.flatten(2).transpose(1, 2) + self.positions, batch

    def _read(self, tokens: Tensor, j: int, batch: tuple[int, ...]) -> Tensor:
        """Return the codes of layer j (from 0) in the batch's shape."""
        layer = self.plan.layers[j]
        first = sum(lower.atoms for lower in self.plan.layers[:j])
        codes = tokens[..., first : first + layer.atoms].transpose(1, 2).unflatten(2, self.plan.layers[0].grid)
        for axis, (n, apart) in enumerate(zip(layer.grid, layer.spacing, strict=True), start=2):
            codes = codes.narrow(axis, 0, (n - 1) * apart + 1)
            codes = codes[(slice(None),) * axis + (slice(None, None, apart),)]
        codes = codes.squeeze(2) if self.plan.vectors else codes
        return codes.contiguous() if len(batch) == 1 else codes.reshape(*batch, *codes.shape[1:])


def to_transformer(
    model: Dictionary | Cascade,
    *,
    sparsity: int | Sequence[int],
    amplitude: float | Sequence[float] = 1.0,
    noise: float = 0.0,
    target_error: float | None = None,
    strategy: str = "layerwise",
    steps: int | Sequence[int] | None = None,
    size: int | Sequence[int] | None = None,
    place_sparsity: int | Sequence[int] | None = None,
    nonnegative: bool | Sequence[bool] = False,
    epsilon: float | Sequence[float] = 0.0,
    layer: int | None = None,
    tolerance: float | None = None,
    frequencies: int | None = None,
    period: int | Sequence[int] | None = None,
) -> CompiledTransformer:
    """Compile a model into standard transformer blocks that compute its codes within a proved error.

    Tokens are the positions of the first layer's codes. One block is one step ``x_j ← S_θ(x_j + Dᵀ(x_{j-1} - Dx_j))``:
    an attention head per shift, which finds its token by Fourier codes of the positions, and a two-layer ReLU MLP that
    is the soft threshold; both with a residual connection, no normalization. What softmax leaves on other tokens is
    part of the bound.

    Args:
        model: A dictionary or a cascade, atoms of unit norm; convolutional: all "valid" or all "circular". A vector is
            one token, on which attention is exact: a dense dictionary's blocks have one head.
        sparsity: The most non-zeros of ``x_j`` in a stripe, for all layers or one per layer.
        amplitude: Bound of ``‖x_j‖_∞``, for all layers or one per layer.
        noise: Bound of the ℓ2 norm of the signal's noise under any one atom.
        target_error: The bound of ``‖codes - truth‖_∞`` to reach in few blocks; 0.01 without `steps`.
        strategy: "layerwise" (all blocks of layer 1, then of layer 2, ...) or "interleaved" (one of every layer in
            turn: an answer of all layers after any block).
        steps: The number of steps, for all layers or one per layer, in place of `target_error`.
        size: The spatial size of the signals, one number for all axes or one per axis; None for dense dictionaries.
        place_sparsity: The most non-zeros of ``x_{j-1}`` under one atom of layer j, one per layer but the deepest; None
            for the bound by covering the place with stripes.
        nonnegative: Whether codes are non-negative, for all layers or one per layer.
        epsilon: Bound of ``‖x_{j-1} - D_j x_j‖_2`` under any one atom, for all layers or one each.
        layer: Compile for the codes of this layer, counted from 1; the deepest if None.
        tolerance: How far softmax may move the argument of a threshold, in any step; None for a millionth of the target
            or what rounding does. It sets the temperature, which grows only like its logarithm.
        frequencies: Frequencies of the position codes per axis; None for as many as heads have room for anyway.
        period: The period of the position codes; None for the smallest.

    Returns:
        A `CompiledTransformer` in the model's dtype and on its device, without gradients.

    Raises:
        ParameterError: Settings out of range; a layer whose bound does not shrink (ρ ≥ 1); a target below what noise,
            softmax and rounding leave at any depth; a period shorter than positions + largest shift.
        ShapeError: A size smaller than a kernel, or a circular one that no code grid makes.
        UnsupportedError: Boundary "same", or layers of different boundaries.

    Source: statements N1 to N3 and N8 of docs/theory.md; the idea: Cordonnier, Loukas & Jaggi 2020.
    """
    cascade = as_cascade(model)
    depth = asked_layers(cascade, layer, steps, target_error)
    dictionaries = _grids(cascade.layers[:depth])
    vectors = isinstance(cascade.layers[0], DenseDictionary)
    if (size is None) != vectors:
        raise ParameterError(
            f"size is {size}; expected "
            + (
                "None: the model is dense, a signal is a vector and one token"
                if vectors
                else "the signals' spatial size"
            )
        )
    assumed = layer_hypotheses(
        cascade,
        sparsity=sparsity,
        amplitude=amplitude,
        noise=noise,
        epsilon=epsilon,
        place_sparsity=place_sparsity,
        nonnegative=nonnegative,
    )[:depth]
    counts = None if steps is None else list(check_steps(steps, depth, minimum=1))
    plan = make_transformer_plan(
        dictionaries,
        assumed,
        size=(1,) if size is None else per_axis("size", size, dictionaries[0].axes),
        vectors=vectors,
        hypotheses=[text for d, h in zip(cascade.layers, assumed, strict=False) for text in h.sentences(d)],
        target_error=target_error,
        steps=counts,
        strategy=strategy,
        tolerance=tolerance,
        frequencies=None if frequencies is None else require_integer("frequencies", frequencies, minimum=1),
        period=None if period is None else per_axis("period", period, dictionaries[0].axes),
    )
    return _build(plan)


def _grids(layers: Sequence[Dictionary]) -> list[ConvDictionary]:
    """Return the layers if tokens can carry them."""
    found: list[ConvDictionary] = []
    for dictionary in layers:
        if not isinstance(dictionary, ConvDictionary):
            # A kernel of size 1 on a ring of one position: no shift but 0, no null slot.
            kernels = dictionary.weight.detach().T[..., None].contiguous()
            found.append(ConvDictionary(kernels, boundary="circular"))
            continue
        if dictionary.boundary == "same":
            raise UnsupportedError(
                f"cannot compile {dictionary!r}: with boundary 'same' atoms that the border cuts off have other "
                "correlations; expected boundary 'valid' or 'circular': use .with_boundary('valid') on padded signals"
            )
        found.append(dictionary)
    for lower, upper in pairwise(found):
        if lower.boundary != upper.boundary:
            raise UnsupportedError(
                f"layers have the boundaries {lower.boundary!r} and {upper.boundary!r}; expected one for all: the "
                "position codes either wrap around or do not; use .with_boundary(...)"
            )
    return found


# ---------------------------------------------------------------------- weights


def _build(plan: TransformerPlan) -> CompiledTransformer:
    first = plan.layers[0].dictionary
    kind: dict[str, Any] = {"device": first.device, "dtype": first.dtype}
    starts = [sum(lower.atoms for lower in plan.layers[:j]) for j in range(len(plan.layers) + 1)]
    v = starts[-1]
    marks = v + first.atoms
    blocks = []
    taken = [0] * len(plan.layers)
    for j in plan.order:
        layer = plan.layers[j]
        heads = attention(
            layer.kernels,
            plan.positions,
            plan.sharpness,
            token_width=plan.token_width,
            heads=layer.heads,
            reads=(starts[max(j - 1, 0)], starts[j]),
            writes=starts[j],
            **kind,
        )
        mlp = _threshold(
            layer,
            layer.thresholds[taken[j]],
            plan.token_width,
            codes=starts[j],
            beside=None if j else v,
            mark=marks + j - 1 if j else None,
            kind=kind,
        )
        taken[j] += 1
        blocks.append(TransformerBlock(heads, mlp))
    return CompiledTransformer(_embedding(first, plan, v), _positions(plan, marks).to(**kind), blocks, plan)


def _embedding(dictionary: ConvDictionary, plan: TransformerPlan, v: int) -> nn.Sequential:
    """Return the convolution that writes ``v = Dᵀy`` into the tokens."""
    kind: dict[str, Any] = {"device": dictionary.device, "dtype": dictionary.dtype}
    modules: list[nn.Module] = []
    after = [max(k - q, 0) for k, q in zip(dictionary.kernel_size, dictionary.stride, strict=True)]
    if dictionary.boundary == "circular" and any(after):
        modules.append(_WRAP[dictionary.axes](tuple(n for far in reversed(after) for n in (0, far))))
    conv: nn.Module = skip_init(
        _CONV[dictionary.axes],
        dictionary.channels,
        plan.token_width,
        dictionary.kernel_size,
        stride=dictionary.stride,
        bias=False,
        **kind,
    )
    weight = torch.zeros(plan.token_width, *dictionary.kernels.shape[1:], **kind)
    weight[v : v + dictionary.atoms] = dictionary.kernels.detach()
    return nn.Sequential(*modules, filled(conv, weight=weight))


def _positions(plan: TransformerPlan, marks: int) -> Tensor:
    """Return what every token holds at first apart from v: its position code, and where layers have no codes."""
    tokens = torch.zeros(1, plan.tokens, plan.token_width, dtype=torch.float64)
    tokens[0, :, plan.token_width - plan.positions.width :] = plan.positions.codes()
    for j, layer in enumerate(plan.layers[1:], start=1):
        absent = torch.ones(plan.layers[0].grid, dtype=torch.float64)
        places = tuple(slice(0, (n - 1) * q + 1, q) for n, q in zip(layer.grid, layer.spacing, strict=True))
        absent[places] = 0.0
        tokens[0, :, marks + j - 1] = absent.flatten()
    return tokens


def _threshold(
    layer: TransformerLayer,
    theta: Tensor,
    width: int,
    *,
    codes: int,
    beside: int | None,
    mark: int | None,
    kind: dict[str, Any],
) -> nn.Sequential:
    """Return the two-layer MLP that turns u, or u + v, into ``S_θ`` of it (non-negative codes: ``ReLU(u + v - θ)``)."""
    c = layer.atoms
    identity = torch.eye(c, dtype=torch.float64)
    here = torch.zeros(c, width, dtype=torch.float64)
    here[:, codes : codes + c] = identity
    argument = here.clone()
    if beside is not None:
        argument[:, beside : beside + c] = identity
    absent = torch.zeros_like(here)
    if mark is not None:
        # Where the layer has no code, heads leave at most the sum of their bounds; far above it costs nothing, and
        # keeps these tokens empty for signals that no bound speaks of.
        absent[:, mark] = _CLOSED * float(layer.kernels.bounds.sum(0).max())
    rows, signs = [here, -here, argument - absent], [-identity, identity, identity]
    biases = [torch.zeros_like(theta)] * 2 + [-theta]
    if not layer.hypotheses.nonnegative:
        rows.append(-argument - absent)
        signs.append(-identity)
        biases.append(-theta)
    back = torch.zeros(width, layer.hidden, dtype=torch.float64)
    back[codes : codes + c] = torch.cat(signs, 1)
    lift: nn.Module = skip_init(nn.Linear, width, layer.hidden, **kind)
    lower: nn.Module = skip_init(nn.Linear, layer.hidden, width, **kind)
    return nn.Sequential(
        filled(lift, weight=torch.cat(rows), bias=torch.cat(biases)),
        nn.ReLU(),
        filled(lower, weight=back, bias=back.new_zeros(width)),
    )
