"""What a penalty measures of an activation: ℓ1 and its relatives, each a small frozen object."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ...checks import check_flag, require_integer, require_number
from ...errors import NameMatchError, ParameterError, ShapeError, near_misses
from .following import Following, Reader, column_squares, following_layers
from .values import Call, Statistics, absolute_sum, form_value

Over = Literal["sample", "position", "channel"]


class Form(ABC):
    """A penalty of one activation x with the axes (batch, channels, positions): samples, channels, all the rest.

    A form of your own is a frozen dataclass with `value` and `unit`. `value` gets float32 or float64, also under
    autocast and in half precision, and its gradient is taken by autograd; let it be finite at x = 0.
    """

    hint: ClassVar[str] = ""
    """What a value that is not finite usually comes from, for the message."""

    @abstractmethod
    def value(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Return a scalar that does not change when the batch is repeated: mostly the mean over samples."""

    @abstractmethod
    def unit(self, channels: int, positions: int) -> float:
        """Return the value of a sample whose entries are all 1, or another number by which layers become alike."""

    def parameters(self) -> tuple[Tensor, ...]:
        """Return further tensors that `value` depends on, such as the weights of the next layer."""
        return ()

    def bind(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, Form]:
        """Return the form of every module, called once when the penalty is made."""
        return dict.fromkeys(modules, self)

    def evaluate(self, x: Tensor, call: Call, statistics: Statistics | None) -> Tensor:
        """Return the value of one call of a module, and hand |x| to `statistics`."""
        return form_value(x, self, call, statistics)


@dataclass(frozen=True)
class L1(Form):
    """``‖x‖_1`` of every sample. Scales with x; the subgradient at 0 is 0.

    Source: section "Sparsity in training" of docs/theory.md.
    """

    def value(self, x: Tensor, *parameters: Tensor) -> Tensor:  # noqa: D102
        return x.abs().sum() / max(x.shape[0], 1)

    def unit(self, channels: int, positions: int) -> float:  # noqa: D102
        return channels * positions

    def evaluate(self, x: Tensor, call: Call, statistics: Statistics | None) -> Tensor:
        """Return the value in one pass, whatever the axes; see `Form.evaluate`."""
        return absolute_sum(x, call, statistics) / max(x.shape[call.batch_axis], 1)


@dataclass(frozen=True)
class HoyerRatio(Form):
    """``‖x‖_1 / ‖x‖_2`` of every sample, between 1 and √n; with `squared`, its square.

    Does not change when a sample is scaled, so layers that shrink do not lower it; its gradient grows like 1/‖x‖.
    A sample x = 0 counts 0, with gradient 0.

    Source: Krishnan, Tay & Fergus, Blind deconvolution using a normalized sparsity measure, CVPR 2011; the square:
    Yang, Wen & Li, DeepHoyer, ICLR 2020.
    """

    squared: bool = False

    def __post_init__(self) -> None:
        check_flag("squared", self.squared)

    def value(self, x: Tensor, *parameters: Tensor) -> Tensor:  # noqa: D102
        x = x.flatten(1)
        if x.numel() == 0:
            return x.sum()
        # The ratio is free of scale, so its derivative with respect to the scale is 0 and dividing by a constant is
        # exact; squares then neither over- nor underflow.
        scale = x.detach().abs().amax(1, keepdim=True)
        x = x / torch.where(scale > torch.finfo(x.dtype).tiny, scale, 1)
        squares = x.square().sum(1)
        ratio = x.abs().sum(1) / torch.where(squares > 0, squares, 1).sqrt()
        return (ratio.square() if self.squared else ratio).mean()

    def unit(self, channels: int, positions: int) -> float:  # noqa: D102
        size = channels * positions
        return size if self.squared else math.sqrt(size)


@dataclass(frozen=True)
class GroupL1(Form):
    """``Σ_g √|g|·‖x_g‖_2``: whole groups become zero. Scales with x; the subgradient of a group of zeros is 0.

    Args:
        axis: ``"channel"``: a group is one channel of one sample, so that samples use few channels. ``"position"``: a
            group is all channels at one position of one sample.
        across_batch: A group reaches over all samples of the batch, so that channels (or positions) die altogether.

    Source: Yuan & Lin, Model selection and estimation in regression with grouped variables, JRSS B 2006.
    """

    axis: Literal["channel", "position"] = "channel"
    across_batch: bool = False

    def __post_init__(self) -> None:
        _require_word("axis", self.axis, ("channel", "position"))
        check_flag("across_batch", self.across_batch)

    def value(self, x: Tensor, *parameters: Tensor) -> Tensor:  # noqa: D102
        within = [2 if self.axis == "channel" else 1] + ([0] if self.across_batch else [])
        size = math.prod(x.shape[axis] for axis in within)
        return math.sqrt(size) * _root(x.square().sum(within)).sum() / max(x.shape[0], 1)

    def unit(self, channels: int, positions: int) -> float:  # noqa: D102
        return channels * positions


@dataclass(frozen=True)
class TransformedL1(Form):
    """``Σ_i (a + 1)|x_i| / (a + |x_i|)``: ℓ1 for a → ∞, the number of non-zeros for a → 0.

    Large entries are shrunk less than by ℓ1, small ones more: the slope falls from (a + 1)/a at 0 like 1/x². The
    subgradient at 0 is 0.

    Source: Zhang & Xin, Minimization of transformed ℓ1 penalty, Mathematical Programming 2018.
    """

    a: float = 1.0

    def __post_init__(self) -> None:
        require_number("a", self.a, minimum=0, strict=True)

    def value(self, x: Tensor, *parameters: Tensor) -> Tensor:  # noqa: D102
        size = x.abs()
        return (self.a + 1) * (size / (self.a + size)).sum() / max(x.shape[0], 1)

    def unit(self, channels: int, positions: int) -> float:  # noqa: D102
        return channels * positions


@dataclass(frozen=True)
class ScaleInvariantL1(Form):
    """``Σ_c ‖W_{·c}‖_2·‖x_c‖_1`` with the weights W of the linear or convolutional layer that reads x.

    Multiplying a layer by α and dividing the next by α changes neither the network nor this value, where ℓ1 is
    multiplied by α. The gradient goes to W too; without that, rescaling would still lower the value step by step.
    Behind a flattening, every entry has its own column of W. It is invariant against the layer that reads x, and no
    further: where that layer grows and a later one shrinks instead, the value grows with it. Weight decay, or a
    penalty on the last activations only, holds that in check; `HoyerRatio` needs neither.

    Args:
        following: The layer that reads x, by the name of the penalized module: ``{"1": "2"}``, values names or modules.
            ``None``: found by torch.fx, through pooling, dropout, flattening and the like; a normalization, a sum of
            branches or a network that cannot be traced is refused with the reason. Where several layers read x, their
            weights count as one matrix.
        detach: Take W as a constant.

    Source: section "Sparsity in training" of docs/theory.md.
    """

    following: Following = None
    detach: bool = False

    def __post_init__(self) -> None:
        check_flag("detach", self.detach)

    def value(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Raise: the form of a module is what `bind` returns."""
        raise ParameterError("ScaleInvariantL1 has no value without the next layer; expected a call of bind() first")

    def unit(self, channels: int, positions: int) -> float:  # noqa: D102
        return channels * positions

    def bind(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, Form]:
        """Return ℓ1 weighted by the layers that follow, for every module.

        Raises:
            NameMatchError: A name in `following` is not known.
            UnsupportedError: What reads a module's output was not found, or is no linear or convolutional layer.
        """
        found = following_layers(model, modules, self.following)
        return {name: _ColumnL1(name, readers, self.detach) for name, readers in found.items()}


@dataclass(frozen=True, eq=False)
class _ColumnL1(Form):
    """ℓ1 weighted by the norms of the columns of the next layers."""

    name: str
    readers: tuple[Reader, ...]
    detach: bool

    def parameters(self) -> tuple[Tensor, ...]:
        weights = tuple(reader.weight for reader in self.readers)
        return tuple(weight.detach() for weight in weights) if self.detach else weights

    def value(self, x: Tensor, *parameters: Tensor) -> Tensor:
        channels, positions = x.shape[1:]
        total = x.new_zeros(channels, 1)
        for reader, weight in zip(self.readers, parameters, strict=True):
            total = total + column_squares(reader, weight, channels, positions, self.name)
        return (_root(total) * x.abs()).sum() / max(x.shape[0], 1)

    def unit(self, channels: int, positions: int) -> float:
        return channels * positions


@dataclass(frozen=True)
class TopK(Form):
    """The ℓ1 mass outside of the k largest entries, ``‖x‖_1 - Σ_{k largest} |x_i|``: zero once x has k non-zeros.

    The k largest are not shrunk. Scales with x. `TopKActivation` zeroes the rest instead.

    Args:
        k: How many entries are free: a whole number, or a share of them as a float in (0, 1).
        over: Among which: all entries of a ``"sample"``, the channels at a ``"position"`` (tokens), or the positions of
            a ``"channel"``.

    Source: Gotoh, Takeda & Tono, DC formulations and algorithms for sparse optimization problems, Math. Prog. 2018.
    """

    k: int | float
    over: Over = "sample"

    def __post_init__(self) -> None:
        require_top("k", self.k)
        _require_word("over", self.over, get_args(Over))

    def value(self, x: Tensor, *parameters: Tensor) -> Tensor:  # noqa: D102
        return (x.abs() * ~top_mask(x, self.k, self.over)).sum() / max(x.shape[0], 1)

    def unit(self, channels: int, positions: int) -> float:  # noqa: D102
        return channels * positions


@dataclass(frozen=True)
class KLRate(Form):
    """``Σ_c KL(ρ ‖ ρ̂_c)`` with ρ̂_c the mean of |x| in channel c over batch and positions: 0 where every rate is ρ.

    Unlike the other forms it raises what is too rarely active. It depends on the batch as a whole: rates of small
    batches are rough, and parts of an accumulated batch have their own. Rates are kept off 0 (and 1) by
    ``ρ̂ → (ρ̂ + ε)/(1 + 2ε)``, ε = ρ/1000, on both sides, so that the value is finite at x = 0 and still 0 at ρ.

    Args:
        rate: ρ, above 0; below 1 for ``"bernoulli"``.
        distribution: ``"bernoulli"``: activations in [0, 1], such as those of a sigmoid. ``"poisson"``: of any size,
            such as those of ReLU: ``ρ log(ρ/ρ̂) - ρ + ρ̂``.

    Source: Hinton, A practical guide to training restricted Boltzmann machines, 2010, section 11.
    """

    rate: float
    distribution: Literal["bernoulli", "poisson"] = "bernoulli"

    hint: ClassVar[str] = (
        '; KLRate with distribution "bernoulli" needs activations in [0, 1]: use "poisson" for those of ReLU'
    )

    def __post_init__(self) -> None:
        _require_word("distribution", self.distribution, ("bernoulli", "poisson"))
        require_number("rate", self.rate, minimum=0, strict=True)
        if self.distribution == "bernoulli" and self.rate >= 1:
            raise ParameterError(f'rate is {self.rate}; expected a number below 1, or distribution="poisson"')

    def value(self, x: Tensor, *parameters: Tensor) -> Tensor:  # noqa: D102
        if x.numel() == 0:
            return x.sum()
        rates, epsilon = x.abs().mean((0, 2)), self.rate / 1000
        if self.distribution == "poisson":
            target, rates = self.rate + epsilon, rates + epsilon
            return (target * (target / rates).log() - target + rates).sum()
        target, rates = (self.rate + epsilon) / (1 + 2 * epsilon), (rates + epsilon) / (1 + 2 * epsilon)
        return (target * (target / rates).log() + (1 - target) * ((1 - target) / (1 - rates)).log()).sum()

    def unit(self, channels: int, positions: int) -> float:  # noqa: D102
        return channels


def resolve_form(form: str | Form) -> Form:
    """Return the form that a word stands for, or the form itself.

    Raises:
        NameMatchError: The word stands for none.
        ParameterError: It is neither.
    """
    if isinstance(form, Form):
        return form
    if not isinstance(form, str):
        raise ParameterError(
            f"form is {form!r}; expected one of {', '.join(map(repr, _WORDS))}, or a form such as L1() or GroupL1()"
        )
    if form not in _WORDS:
        raise NameMatchError(
            f"form is {form!r}{near_misses(form, _WORDS)}; expected one of {', '.join(map(repr, _WORDS))}, or a form "
            "with settings, such as TopK(0.1) or KLRate(0.05)"
        )
    return _WORDS[form]


def top_mask(x: Tensor, k: float, over: Over) -> Tensor:
    """Return where the k largest absolute entries are, in the layout ``(batch, channels, positions)``.

    Raises:
        ShapeError: There are fewer than k entries.
    """
    flat = x.detach().abs()
    flat = flat.flatten(1) if over == "sample" else flat.transpose(1, 2) if over == "position" else flat
    size = flat.shape[-1]
    count = max(1, round(k * size)) if isinstance(k, float) else k
    if count > size:
        raise ShapeError(
            f"k is {k}, and a {over} has {size} entries (the activation has {x.shape[1]} channels with {x.shape[2]} "
            "positions each); expected at most that many: lower k, give a share such as 0.1, or set over"
        )
    if flat.numel() == 0:
        return torch.zeros_like(x, dtype=torch.bool)
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, flat.topk(count, dim=-1).indices, True)
    return mask.reshape(x.shape) if over == "sample" else mask.transpose(1, 2) if over == "position" else mask


def require_top(name: str, k: object) -> int | float:
    """Return a count of at least 1, or a share in (0, 1).

    Raises:
        ParameterError: It is neither.
    """
    if isinstance(k, float):
        if not 0 < k < 1:
            raise ParameterError(f"{name} is {k}; expected a whole number of entries, or a share of them in (0, 1)")
        return k
    return require_integer(name, k, minimum=1)


def _require_word(name: str, value: object, words: tuple[str, ...]) -> None:
    if value not in words:
        raise ParameterError(f"{name} is {value!r}; expected {' or '.join(map(repr, words))}")


def _root(squares: Tensor) -> Tensor:
    """Return ``√squares``, with gradient 0 at 0 to every order, where that of the root is infinite."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)


_WORDS: dict[str, Form] = {
    "l1": L1(),
    "hoyer": HoyerRatio(),
    "hoyer-square": HoyerRatio(squared=True),
    "group": GroupL1(),
    "transformed": TransformedL1(),
    "scale-invariant": ScaleInvariantL1(),
}
