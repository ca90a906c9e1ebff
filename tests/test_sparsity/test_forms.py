"""Forms: value against the formula, gradient in float64, what scaling does, and x = 0."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deep_sparse_coding.errors import HookError, NameMatchError, ParameterError, ShapeError, UnsupportedError
from deep_sparse_coding.sparsity.penalties.forms import (
    L1,
    Form,
    GroupL1,
    HoyerRatio,
    KLRate,
    ScaleInvariantL1,
    TopK,
    TransformedL1,
    resolve_form,
)
from deep_sparse_coding.sparsity.penalties.penalty import ActivationPenalty
from deep_sparse_coding.sparsity.penalties.projection import TopKActivation
from deep_sparse_coding.sparsity.penalties.values import Call, three_axes

SEEDS = st.integers(0, 2**31 - 1)
FORMS: list[Form] = [
    L1(),
    HoyerRatio(),
    HoyerRatio(squared=True),
    GroupL1(),
    GroupL1("position"),
    GroupL1(across_batch=True),
    TransformedL1(0.5),
    TopK(3),
    TopK(0.25, over="position"),
    TopK(2, over="channel"),
    KLRate(0.1),
    KLRate(0.1, "poisson"),
]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return entries in [0.01, 0.9] with signs, so that KL is defined and nothing is near a kink."""
    generator = torch.Generator().manual_seed(seed)
    size = 0.01 + 0.89 * torch.rand(shape, generator=generator, dtype=torch.float64)
    sign = 2 * torch.randint(0, 2, shape, generator=generator) - 1
    return (size * sign).to(dtype)


def value(form: Form, x: Tensor, keep: bool = False, channel_axis: int = 1, batch_axis: int = 0) -> Tensor:
    return form.evaluate(x, Call("layer", batch_axis, channel_axis, keep), None)


def by_hand(form: Form, x: Tensor) -> float:
    """The formulas again, with loops over samples, for (batch, channels, positions)."""
    batch, channels, positions = x.shape
    total = 0.0
    for sample in x:
        a = [[abs(float(v)) for v in channel] for channel in sample]
        flat = [v for row in a for v in row]
        match form:
            case L1():
                total += sum(flat)
            case HoyerRatio(squared=squared):
                total += (sum(flat) / math.sqrt(sum(v * v for v in flat))) ** (2 if squared else 1)
            case GroupL1("channel", False):
                total += sum(math.sqrt(positions) * math.sqrt(sum(v * v for v in row)) for row in a)
            case GroupL1("position", False):
                total += sum(math.sqrt(channels) * math.sqrt(sum(v * v for v in col)) for col in zip(*a, strict=True))
            case TransformedL1(alpha):
                total += sum((alpha + 1) * v / (alpha + v) for v in flat)
            case TopK(k, over):
                groups = {"sample": [flat], "position": list(zip(*a, strict=True)), "channel": a}[over]
                for group in groups:
                    count = round(k * len(group)) if isinstance(k, float) else k
                    total += sum(sorted(group)[: len(group) - count])
    if isinstance(form, GroupL1) and form.across_batch:
        total = sum(
            math.sqrt(batch * positions) * math.sqrt(sum(float(v) ** 2 for v in x[:, c].flatten()))
            for c in range(channels)
        )
    if isinstance(form, KLRate):
        total = 0.0
        for c in range(channels):
            r, p = float(x[:, c].abs().mean()), form.rate
            if form.distribution == "poisson":
                total += p * math.log(p / r) - p + r
            else:
                total += p * math.log(p / r) + (1 - p) * math.log((1 - p) / (1 - r))
        return total
    return total / batch


@pytest.mark.parametrize("form", FORMS, ids=str)
@given(seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_value_is_the_formula(form: Form, seed: int) -> None:
    x = draw(seed, 3, 4, 5)
    # KL shifts both rates by ε = ρ/1000.
    assert float(value(form, x)) == pytest.approx(by_hand(form, x), rel=3e-3 if isinstance(form, KLRate) else 1e-12)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("keep", [False, True])
def test_gradient_is_that_of_the_value(form: Form, keep: bool) -> None:
    x = draw(3, 2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: value(form, x, keep), x)
    if not keep and not isinstance(form, L1 | TopK):  # piecewise linear: nothing to see
        assert torch.autograd.gradgradcheck(lambda x: value(form, x), x)


def test_second_derivative_of_a_kept_copy_is_refused() -> None:
    x = draw(3, 2, 4, 3).requires_grad_()
    with pytest.raises(HookError, match=r"'layer' keeps a copy.*save_signs=False"):
        torch.autograd.grad(value(TransformedL1(), x, keep=True), x, create_graph=True)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zero_has_a_finite_value_and_gradient(form: Form, dtype: torch.dtype) -> None:
    for x in (torch.zeros(3, 4, 5, dtype=dtype), draw(0, 3, 4, 5, dtype=dtype) * (torch.arange(3) > 0)[:, None, None]):
        leaf = x.to(dtype).requires_grad_()
        result = value(form, leaf)
        (gradient,) = torch.autograd.grad(result, leaf)
        assert bool(result.isfinite())
        assert bool(gradient.isfinite().all())
        if not isinstance(form, KLRate):
            assert bool((gradient[0] == 0).all())
        assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert gradient.dtype == dtype


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_repeating_the_batch_leaves_the_value_and_empty_batches_give_zero(form: Form) -> None:
    x = draw(1, 3, 4, 5)
    torch.testing.assert_close(value(form, x.repeat(2, 1, 1)), value(form, x))
    assert value(form, x[:0]) == 0


@pytest.mark.parametrize("form", FORMS, ids=str)
@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_what_scaling_does(form: Form, seed: int) -> None:
    x = draw(seed, 3, 4, 5)
    before, after = value(form, x), value(form, x / 8)
    match form:
        case HoyerRatio():
            torch.testing.assert_close(after, before)
        case TransformedL1():
            assert before / 8 < after < before  # between the norm and the count
        case KLRate():
            assert after != before
        case _:
            torch.testing.assert_close(after, before / 8)


@given(seed=SEEDS)
@settings(max_examples=6, deadline=None)
def test_limits(seed: int) -> None:
    x = draw(seed, 3, 4, 5)
    torch.testing.assert_close(value(TransformedL1(1e9), x), value(L1(), x), rtol=1e-6, atol=0)
    assert float(value(TransformedL1(1e-9), x)) == pytest.approx(20, rel=1e-5)
    one = torch.zeros(1, 4, 5, dtype=torch.float64)
    one[0, 1, 2] = -3
    assert float(value(HoyerRatio(), one)) == pytest.approx(1)
    assert float(value(HoyerRatio(), torch.full((1, 4, 5), 0.3))) == pytest.approx(math.sqrt(20))
    assert value(TopK(20), x) == 0
    for distribution in ("bernoulli", "poisson"):
        form = KLRate(0.25, distribution)
        level = torch.full((2, 4, 5), 0.25, dtype=torch.float64)
        assert float(value(form, level)) == pytest.approx(0, abs=1e-12)
        assert value(form, level * 1.1) > 1e-4
        assert value(form, level * 0.9) > 1e-4


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_extreme_scales_stay_finite(form: Form) -> None:
    if isinstance(form, KLRate):
        pytest.skip("a rate has a scale")
    for scale in (1e-30, 1e18):
        x = (draw(2, 3, 4, 5, dtype=torch.float32) * scale).requires_grad_()
        result = value(form, x)
        (gradient,) = torch.autograd.grad(result, x)
        assert bool(result.isfinite())
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_axes_can_be_anywhere(form: Form) -> None:
    x = draw(5, 3, 4, 5)
    expected = value(form, x)
    torch.testing.assert_close(value(form, x.movedim(1, 2), channel_axis=-1), expected)
    torch.testing.assert_close(value(form, x.permute(2, 0, 1), batch_axis=1, channel_axis=2), expected)
    torch.testing.assert_close(value(form, x.reshape(3, 4, 1, 5)), expected)
    if not (isinstance(form, TopK) and form.over == "channel"):
        torch.testing.assert_close(value(form, x[:, :, :1].contiguous()), value(form, x[:, :, 0]))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("per_entry", [False, True])
def test_autocast_gives_the_value_of_float32(form: Form, per_entry: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid())
    nn.init.constant_(net[0].bias, -1.0)
    nn.init.eye_(net[0].weight)
    x, outputs = draw(1, 8, 4, dtype=torch.float32), []
    net[1].register_forward_hook(lambda m, i, o: outputs.append(o))
    if isinstance(form, TopK):
        form = TopK(2, "sample")
    with (
        ActivationPenalty(net, [nn.Sigmoid], 1.0, form, per_entry=per_entry) as penalty,
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        net(x)
        result = penalty.value()
    assert outputs[0].dtype == torch.bfloat16
    wide = outputs[0].detach().float().requires_grad_()
    expected = value(form, wide) / (form.unit(6, 1) if per_entry else 1)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)
    (have,) = torch.autograd.grad(result, outputs[0], retain_graph=True)
    (want,) = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(have, want.bfloat16())


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_unit_makes_layers_alike(form: Form) -> None:
    small, large = torch.ones(2, 4, 9), torch.ones(2, 8, 16)
    shares = [float(value(form, x / 2)) / form.unit(x.shape[1], x.shape[2]) for x in (small, large)]
    if not isinstance(form, TopK):
        assert shares[0] == pytest.approx(shares[1], rel=1e-5)


@pytest.mark.parametrize("form", ["transformed", TopK(2), "hoyer"])
def test_overwritten_activation_says_so_or_is_kept(form: str | Form) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True))
    x = draw(1, 8, 4, dtype=torch.float32)
    with ActivationPenalty(net, ["0"], 1.0, form) as penalty:
        net(x)
        with pytest.raises(HookError, match=r"output of '0' was overwritten in place.*save_signs=True"):
            penalty.value().backward()
    with ActivationPenalty(net, ["0"], 1.0, form, save_signs=True) as penalty:
        net(x)
        (have,) = torch.autograd.grad(penalty.value(), net[0].weight)
    (want,) = torch.autograd.grad(value(resolve_form(form), net[0](x)), net[0].weight)
    torch.testing.assert_close(have, want)


# ------------------------------------------------------------------------------------------------------ scale-invariant


def convolutional(seed: int, groups: int = 1, pool: bool = True) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=groups),
        nn.ReLU(),
        *([nn.MaxPool2d(2)] if pool else []),
        nn.Flatten(),
        nn.Linear(6 * (9 if pool else 36), 3),
    ).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
    return net


def scale_invariant(net: nn.Sequential, x: Tensor, targets: list[str], **settings: object) -> Tensor:
    with ActivationPenalty(net, targets, 1.0, ScaleInvariantL1(**settings)) as penalty:  # type: ignore[arg-type]
        net(x)
        return penalty.value()


@given(seed=SEEDS, groups=st.sampled_from([1, 2]), pool=st.booleans())
@settings(max_examples=10, deadline=None)
def test_scaling_a_layer_against_the_next_leaves_network_and_value(seed: int, groups: int, pool: bool) -> None:
    net, x = convolutional(seed, groups, pool), draw(seed, 2, 1, 8, 8)
    scales = 0.1 + 5 * torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    output, both = net(x), scale_invariant(net, x, ["1", "3"])
    with torch.no_grad():
        net[0].weight.mul_(scales[:, None, None, None])
        net[0].bias.mul_(scales)
        read = scales.reshape(groups, 1, -1).expand(groups, 6 // groups, -1).reshape(6, -1)
        net[2].weight.div_(read[:, :, None, None])
    torch.testing.assert_close(net(x), output)
    torch.testing.assert_close(scale_invariant(net, x, ["1", "3"]), both)
    first, second = scale_invariant(net, x, ["1"]), scale_invariant(net, x, ["3"])
    with torch.no_grad():
        net[2].weight.mul_(5)
        net[2].bias.mul_(5)
        net[-1].weight.div_(5)
    torch.testing.assert_close(net(x), output)
    torch.testing.assert_close(scale_invariant(net, x, ["3"]), second)
    # The first activation is read by the layer that grew: its term is invariant only against that one layer.
    torch.testing.assert_close(scale_invariant(net, x, ["1"]), 5 * first)


def test_scale_invariant_by_hand_and_its_gradient_to_both_layers() -> None:
    net, x = convolutional(0, groups=2, pool=False), draw(0, 2, 1, 8, 8)
    a = net[:2](x)
    kernel = net[2].weight  # (6, 2, 3, 3): rows 0 to 2 read channels 0, 1; rows 3 to 5 read 2, 3
    norms = torch.stack([kernel[:3, 0].norm(), kernel[:3, 1].norm(), kernel[3:, 0].norm(), kernel[3:, 1].norm()])
    expected = (norms * a.abs().sum((2, 3))).sum() / 2
    b = net[:4](x)
    columns = net[-1].weight.norm(dim=0)
    expected = expected + (columns * b.flatten(1).abs()).sum() / 2
    result = scale_invariant(net, x, ["1", "3"])
    torch.testing.assert_close(result, expected)
    parameters = [p for p in net.parameters() if p is not net[-1].bias]
    for have, want in zip(
        torch.autograd.grad(result, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(have, want)
    # With respect to scaling (W_1, b_1) up and W_2 down, the first term has no slope.
    alone = scale_invariant(net, x, ["1"])
    w1, b1, w2 = torch.autograd.grad(alone, [net[0].weight, net[0].bias, net[2].weight])
    up = (w1 * net[0].weight).sum() + (b1 * net[0].bias).sum()
    torch.testing.assert_close(up, (w2 * net[2].weight).sum())
    detached = scale_invariant(net, x, ["1"], detach=True)
    assert torch.autograd.grad(detached, net[2].weight, allow_unused=True) == (None,)
    net[2].weight.data.zero_()
    dead = scale_invariant(net, x, ["1"])
    assert dead == 0
    assert bool(torch.autograd.grad(dead, net[2].weight)[0].isfinite().all())


class Branches(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem, self.act = nn.Linear(4, 5), nn.ReLU()
        self.left, self.right, self.norm = nn.Linear(5, 2), nn.Linear(5, 3), nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.act(self.stem(x))
        if self.kind == "norm":
            return self.left(self.norm(a))
        if self.kind == "sum":
            return self.left(a + x[:, :1])
        if self.kind == "control" and a.sum() > 0:
            return a
        return torch.cat([self.left(torch.relu(a)), self.right(torch.nn.functional.dropout(a, 0.0))], 1)


def test_scale_invariant_finds_all_layers_that_read() -> None:
    net, x = Branches("two").double(), draw(0, 3, 4)
    a = net.act(net.stem(x))
    norms = torch.cat([net.left.weight, net.right.weight]).norm(dim=0)
    torch.testing.assert_close(scale_invariant(net, x, ["act"]), (norms * a).sum() / 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("norm", r"'act' needs .* it goes into LayerNorm \(norm\).*following=\{'act'.*form='hoyer'"),
        ("sum", "it goes into add"),
        ("control", r"torch.fx cannot trace Branches \(TraceError.*following="),
    ],
)
def test_scale_invariant_says_why_it_cannot_and_takes_the_layer(kind: str, message: str) -> None:
    net, x = Branches(kind).double(), draw(0, 3, 4)
    with pytest.raises(UnsupportedError, match=message):
        ActivationPenalty(net, ["act"], 1.0, "scale-invariant")
    result = scale_invariant(net, x, ["act"], following={"act": "left"})  # type: ignore[arg-type]
    torch.testing.assert_close(result, (net.left.weight.norm(dim=0) * net.act(net.stem(x))).sum() / 3)


def test_scale_invariant_settings_are_checked() -> None:
    net = convolutional(0)
    with pytest.raises(UnsupportedError, match="it is part of what the network puts out"):
        ActivationPenalty(net[:2], ["1"], 1.0, "scale-invariant")
    for following, error, message in (
        ({"9": "2"}, NameMatchError, "following has the key '9'"),
        ({}, ParameterError, "following has no layer for '1'"),
        ({"1": "22"}, NameMatchError, "names the layer '22'.*did you mean '2'"),
        ({"1": "3"}, ParameterError, "gives '1' a ReLU; expected a torch.nn.Linear or a convolution"),
    ):
        with pytest.raises(error, match=message):
            ActivationPenalty(net, ["1"], 1.0, ScaleInvariantL1(following))
    with (
        ActivationPenalty(net, ["1"], 1.0, ScaleInvariantL1(), channel_axis=2, measure=False),
        pytest.raises(ShapeError, match=r"'1' put out 8 channels.*Conv2d that reads it has 4 inputs.*channel_axis"),
    ):
        net(draw(0, 2, 1, 8, 8))


# ----------------------------------------------------------------------------------------------------------- projection


@given(seed=SEEDS, k=st.sampled_from([1, 3, 0.3]), over=st.sampled_from(["sample", "position", "channel"]))
@settings(max_examples=15, deadline=None)
def test_projection_keeps_exactly_the_largest(seed: int, k: float, over: str) -> None:
    x = draw(seed, 3, 4, 2, 3).requires_grad_()
    layer = TopKActivation(k, over)  # type: ignore[arg-type]
    y = layer(x)
    axes = {"sample": (1, 2, 3), "position": (1,), "channel": (2, 3)}[over]
    size = math.prod(x.shape[axis] for axis in axes)
    count = k if isinstance(k, int) else round(k * size)
    assert bool(((y != 0).sum(axes) == count).all())
    kept = y != 0
    assert torch.equal(y[kept], x[kept])
    assert bool((x.abs().masked_fill(kept, 0).amax(axes) <= x.abs().masked_fill(~kept, 9).amin(axes)).all())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, kept.double())
    # What is left has no penalty, and the penalty is what is gone.
    assert value(TopK(count, over), y) == 0  # type: ignore[arg-type]
    torch.testing.assert_close(value(TopK(k, over), x), (x - y).abs().sum() / 3)  # type: ignore[arg-type]
    assert three_axes(x, Call("layer")).shape == (3, 4, 6)
    tokens = x.detach().movedim(1, -1)
    torch.testing.assert_close(TopKActivation(k, over, channel_axis=-1)(tokens), y.movedim(1, -1))  # type: ignore[arg-type]


def test_projection_of_equal_entries_infinite_entries_and_half_precision() -> None:
    assert int((TopKActivation(2)(torch.ones(1, 5)) != 0).sum()) == 2
    y = TopKActivation(1, "position")(torch.tensor([[[1.0], [-math.inf], [2.0]]]))
    assert y.flatten().tolist() == [0, -math.inf, 0]
    assert TopKActivation(0.5)(torch.randn(2, 6).bfloat16()).dtype == torch.bfloat16
    assert TopKActivation(3)(torch.zeros(0, 6)).shape == (0, 6)
    assert str(TopKActivation(3)) == "TopKActivation(k=3, over='sample', channel_axis=1)"


# ------------------------------------------------------------------------------------------------------------- refusals


def test_settings_out_of_range_are_refused() -> None:
    for make, message in (
        (lambda: TransformedL1(0), "a is 0.0; expected a finite number above 0"),
        (lambda: TopK(0), "k is 0; expected a whole number of at least 1"),
        (lambda: TopK(1.0), r"k is 1.0; expected a whole number of entries, or a share of them in \(0, 1\)"),
        (lambda: TopK(2, "sampel"), "over is 'sampel'; expected 'sample' or 'position' or 'channel'"),
        (lambda: TopKActivation(2, "all"), "over is 'all'"),
        (lambda: GroupL1("batch"), "axis is 'batch'; expected 'channel' or 'position'"),
        (lambda: KLRate(1.0), 'rate is 1.0; expected a number below 1, or distribution="poisson"'),
        (lambda: KLRate(0.1, "gauss"), "distribution is 'gauss'"),
        (lambda: HoyerRatio(squared=1), "squared is 1; expected True or False"),
        (lambda: resolve_form(3), "form is 3; expected one of 'l1', 'hoyer'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ParameterError, match=message):
            make()
    with pytest.raises(NameMatchError, match="form is 'hoyr'; did you mean 'hoyer'"):
        resolve_form("hoyr")
    with pytest.raises(ShapeError, match=r"k is 9, and a position has 4 entries.*4 channels with 5 positions"):
        value(TopK(9, "position"), draw(0, 3, 4, 5))
    with pytest.raises(ShapeError, match=r"'layer' has the shape \(3, 4\), and channel_axis is 2"):
        value(GroupL1(), draw(0, 3, 4), channel_axis=2)
    net = nn.Sequential(nn.ReLU())
    with ActivationPenalty(net, [nn.ReLU], 1.0, KLRate(0.1)) as penalty:
        net(torch.full((2, 3), 4.0, requires_grad=True))
        with pytest.raises(HookError, match=r"not finite.*KLRate with distribution .bernoulli. needs .*use .poisson."):
            penalty.value()


def test_forms_of_your_own() -> None:
    class Squares(Form):
        def value(self, x: Tensor, *parameters: Tensor) -> Tensor:
            return x.square().sum() / x.shape[0]

        def unit(self, channels: int, positions: int) -> float:
            return channels * positions

    x = draw(0, 3, 4)
    net = nn.Sequential(nn.Linear(4, 4).double())
    with ActivationPenalty(net, ["0"], 2.0, Squares()) as penalty:
        y = net(x)
        torch.testing.assert_close(penalty.value(), 2 * y.square().sum() / 3)
