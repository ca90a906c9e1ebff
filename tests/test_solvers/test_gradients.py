"""Gradients of codes: against finite differences of independent references and of the solvers themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from references import explicit_matrix, scipy_lasso
from strategies import SEEDS, duplicate_matrix, normal, rng

KIND = {"dtype": torch.float64}
STEP = 1e-5


def dense(seed: int = 0, d: int = 10, atoms: int = 16) -> dsc.DenseDictionary:
    return dsc.DenseDictionary.random(d, atoms, seed=seed, **KIND).requires_grad_()


def conv(seed: int = 0, **settings: object) -> dsc.ConvDictionary:
    chosen = {"atoms": 3, "channels": 2, "size": 3, **settings}
    return dsc.ConvDictionary.random(**chosen, seed=seed, **KIND).requires_grad_()  # type: ignore[arg-type]


def cascade(*, images: bool) -> dsc.Cascade:
    if images:
        upper = dsc.ConvDictionary.random(atoms=4, channels=3, size=2, nonzeros=3, seed=1, **KIND)
        return dsc.Cascade([conv(), upper.requires_grad_()])
    return dsc.Cascade([dense(), dense(1, 16, 20)])


def blocks(codes: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return codes if isinstance(codes, tuple) else (codes,)


def check(build: Callable[[], dsc.Problem], signal: Tensor, inputs: Sequence[Tensor], *, rel: float = 5e-5) -> None:
    """Compare gradients of a linear loss with a central difference along one random direction in all inputs."""

    def codes(differentiable: bool) -> tuple[Tensor, ...]:
        solution = dsc.solve(
            build(), signal, tol=1e-15, max_steps=20_000, on_failure="ignore", differentiable=differentiable
        )
        assert float(solution.certificate.relative_gap.max()) < 1e-11
        return blocks(solution.codes)

    found = codes(True)
    generator = rng(5)
    pull = [normal(*x.shape, generator=generator) for x in found]
    loss = torch.stack([(c * x).sum() for c, x in zip(pull, found, strict=True)]).sum()
    gradients = torch.autograd.grad(loss, list(inputs))
    assert all(int((x != 0).sum()) > 1 for x in found)
    assert all(g.shape == x.shape and float(g.abs().max()) > 0 for g, x in zip(gradients, inputs, strict=True))
    directions = [torch.randn(x.shape, generator=generator, **KIND) for x in inputs]
    values = []
    for step in (STEP, -STEP):
        with torch.no_grad():
            before = [x.clone() for x in inputs]
            for x, direction in zip(inputs, directions, strict=True):
                x += step * direction
            moved = codes(False)
            for x, old in zip(inputs, before, strict=True):
                x.copy_(old)
        # A change of the support would be a kink: the case must be away from those.
        assert all(torch.equal(a != 0, b != 0) for a, b in zip(found, moved, strict=True))
        values.append(sum(float((c * x).sum()) for c, x in zip(pull, moved, strict=True)))
    got = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    assert got == pytest.approx((values[0] - values[1]) / (2 * STEP), rel=rel, abs=5e-6)


@given(seed=SEEDS)
@settings(max_examples=25, deadline=None)
def test_dense_codes_against_differences_of_an_independent_solver(seed: int) -> None:
    dictionary = dense(seed, 6, 9)
    signal = normal(6, generator=rng(seed)).requires_grad_()
    top = float(dsc.Lasso(dictionary, 1.0).lam_max(signal.detach()).detach())
    lam = torch.tensor(0.3 * top, **KIND, requires_grad=True)
    codes = dsc.solve(dsc.Lasso(dictionary, lam), signal, tol=1e-12, on_failure="ignore", differentiable=True).codes
    assert isinstance(codes, Tensor)
    pull = normal(9, generator=rng(seed + 1))
    (codes * pull).sum().backward()
    with torch.no_grad():
        matrix, step = explicit_matrix(dictionary), 1e-5
        moves = [normal(6, 9, generator=rng(seed + 2)), normal(6, generator=rng(seed + 3)), torch.ones((), **KIND)]
        for tensor, move, which in zip((dictionary.matrix, signal, lam), moves, range(3), strict=True):
            values = []
            for sign in (step, -step):
                near = [matrix, signal.detach(), lam.detach()]
                near[which] = near[which] + sign * move
                x = scipy_lasso(*near)
                if not torch.equal(x.abs() > 1e-9, codes != 0):
                    return  # a kink within the step
                values.append(float(pull @ x))
            assert tensor.grad is not None
            want = (values[0] - values[1]) / (2 * step)
            assert float((tensor.grad * move).sum()) == pytest.approx(want, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("masked", ["", "shared", "own"])
def test_dense_with_masks_and_non_negative_codes(nonnegative: bool, masked: str) -> None:
    dictionary, signal = dense(), normal(2, 10, generator=rng(1)).requires_grad_()
    lam = torch.tensor(0.3, **KIND, requires_grad=True)
    shape = {"": None, "shared": (10,), "own": (2, 10)}[masked]
    mask = None if shape is None else torch.rand(*shape, generator=rng(2)) < 0.7
    problem = lambda: dsc.Lasso(dictionary, lam, nonnegative=nonnegative, mask=mask)  # noqa: E731
    check(problem, signal, [signal, dictionary.matrix, lam])
    if mask is not None:
        codes = dsc.solve(problem(), signal, differentiable=True).codes
        (gradient,) = torch.autograd.grad(codes.sum(), signal)  # type: ignore[union-attr]
        assert float(gradient.masked_fill(mask, 0.0).abs().max()) == 0.0


def test_lam_per_sample_per_atom_and_weights() -> None:
    dictionary, signal = dense(), normal(3, 10, generator=rng(1)).requires_grad_()
    per_sample = torch.tensor([0.1, 0.2, 0.3], **KIND, requires_grad=True)
    per_atom = torch.linspace(0.1, 0.4, 16, **KIND).requires_grad_()
    weights = torch.linspace(0.5, 1.5, 16, **KIND).requires_grad_()
    check(lambda: dsc.Lasso(dictionary, per_sample), signal, [per_sample, signal])
    check(lambda: dsc.Lasso(dictionary, per_atom), signal, [per_atom, signal])
    check(lambda: dsc.Lasso(dictionary, per_sample, weights), signal, [per_sample, weights])
    # The gradient per sample is that sample's own.
    codes = dsc.solve(dsc.Lasso(dictionary, per_sample), signal, differentiable=True).codes
    (gradient,) = torch.autograd.grad(codes[1].sum(), per_sample)
    assert [float(g) != 0 for g in gradient] == [False, True, False]


def test_lam_that_is_computed_and_weights_that_are_settings() -> None:
    """Gradients reach what lam was computed from; forbidden and unpenalized atoms spoil nothing with 0·inf."""
    dictionary, signal = dense(), normal(2, 10, generator=rng(1))
    logarithm = torch.tensor([-1.0, -1.5], **KIND, requires_grad=True)
    weights = torch.ones(16, **KIND)
    weights[3], weights[5] = math.inf, 0.0
    weights.requires_grad_()
    check(lambda: dsc.Lasso(dictionary, logarithm.exp(), weights), signal, [logarithm, dictionary.matrix])
    codes = dsc.solve(dsc.Lasso(dictionary, logarithm.exp(), weights), signal, differentiable=True).codes
    (gradient,) = torch.autograd.grad(codes.sum(), weights)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient[3]) == float(gradient[5]) == 0.0
    assert bool((codes[:, 5] != 0).all())


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize(
    "how", [{}, {"stride": 2}, {"boundary": "circular"}, {"size": (4,)}], ids=["plain", "stride", "circular", "1d"]
)
def test_convolutional(how: dict[str, object], nonnegative: bool) -> None:
    dictionary = conv(**how)
    size = dictionary.signal_shape((5,) * dictionary.axes)
    signal = normal(2, *size, generator=rng(1)).requires_grad_()
    lam = torch.tensor([0.8, 1.1], **KIND, requires_grad=True)
    mask = torch.rand(size, generator=rng(2)) < 0.8
    problem = lambda: dsc.Lasso(dictionary, lam, nonnegative=nonnegative, mask=mask)  # noqa: E731
    check(problem, signal, [signal, dictionary.kernels, lam])


@pytest.mark.parametrize("images", [False, True], ids=["dense", "convolutional"])
@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("kind", [dsc.JointLasso, dsc.LayeredLasso])
def test_joint_and_layered(kind: type[dsc.JointLasso | dsc.LayeredLasso], nonnegative: bool, images: bool) -> None:
    model = cascade(images=images)
    shape = (2, 6, 6) if images else (10,)
    signal = (3 * normal(2, *shape, generator=rng(1))).requires_grad_()
    lam = [torch.tensor(0.4, **KIND, requires_grad=True), torch.tensor([0.1, 0.15], **KIND, requires_grad=True)]
    mask = torch.rand(shape, generator=rng(2)) < 0.8
    more = {"beta": (1.0, 2.0)} if kind is dsc.JointLasso else {}
    problem = lambda: kind(model, lam, nonnegative=nonnegative, mask=mask, **more)  # type: ignore[arg-type]  # noqa: E731
    check(problem, signal, [signal, *(layer.weight for layer in model.layers), *lam])


def test_gradcheck_over_two_batch_axes() -> None:
    dictionary = dense(0, 5, 7)

    def codes(signal: Tensor, lam: Tensor) -> Tensor:
        problem = dsc.Lasso(dictionary, lam)
        return dsc.solve(problem, signal, tol=0.0, on_failure="ignore", differentiable=True).codes  # type: ignore

    signal = normal(2, 3, 5, generator=rng(3)).requires_grad_()
    lam = torch.rand(2, 3, generator=rng(4), **KIND).mul(0.2).add(0.1).requires_grad_()
    assert codes(signal, lam).shape == (2, 3, 7)
    assert torch.autograd.gradcheck(codes, (signal, lam), atol=1e-6, rtol=1e-5)


def test_a_network_on_top_and_below_trains_through_the_codes() -> None:
    dictionary = dense()
    below, head = torch.nn.Linear(6, 10, **KIND), torch.nn.Linear(16, 2, **KIND)
    for parameter in [*below.parameters(), *head.parameters()]:
        parameter.data = 0.4 * normal(*parameter.shape, generator=rng(parameter.numel()))
    inputs = normal(8, 6, generator=rng(7))
    targets = normal(8, 2, generator=rng(8))
    parameters = [*below.parameters(), dictionary.matrix, *head.parameters()]

    def loss() -> Tensor:
        codes = dsc.solve(dsc.Lasso(dictionary, 0.1), below(inputs), tol=1e-8, differentiable=True).codes
        return (head(codes) - targets).square().mean()

    optimizer = torch.optim.SGD(parameters, lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_atoms_changed_before_the_backward_pass_are_noticed() -> None:
    dictionary = dense()
    codes = dsc.solve(dsc.Lasso(dictionary, 0.2), normal(2, 10, generator=rng(0)), differentiable=True).codes
    with torch.no_grad():
        dictionary.matrix.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        codes.sum().backward()  # type: ignore[union-attr]


def test_zero_codes_and_empty_batches_give_zero_gradients() -> None:
    dictionary = dense()
    signal = normal(3, 10, generator=rng(0)).requires_grad_()
    with pytest.warns(dsc.DSCWarning, match="at or above lam_max"):
        codes = dsc.solve(dsc.Lasso(dictionary, 100.0), signal, differentiable=True).codes
    gradients = torch.autograd.grad(codes.sum(), [signal, dictionary.matrix])  # type: ignore[union-attr]
    assert all(float(g.abs().max()) == 0.0 for g in gradients)
    image = torch.zeros(0, 2, 6, 6, **KIND, requires_grad=True)
    kernels = conv()
    codes = dsc.solve(dsc.Lasso(kernels, 1.0), image, differentiable=True).codes
    gradients = torch.autograd.grad(codes.sum(), [image, kernels.kernels])  # type: ignore[union-attr]
    assert gradients[0].shape == image.shape
    assert float(gradients[1].abs().max()) == 0.0


@pytest.mark.parametrize("images", [False, True], ids=["dense", "convolutional"])
def test_a_sample_that_is_not_finite_spoils_no_gradient(images: bool) -> None:
    dictionary = conv() if images else dense()
    shape = (2, 6, 6) if images else (10,)
    signal = normal(3, *shape, generator=rng(0))
    bad = signal.clone()
    bad[1].flatten()[0] = math.nan

    def gradients(y: Tensor) -> tuple[Tensor, ...]:
        y = y.clone().requires_grad_()
        lam = torch.tensor(0.3, **KIND, requires_grad=True)
        codes = dsc.solve(dsc.Lasso(dictionary, lam), y, tol=1e-10, on_failure="ignore", differentiable=True).codes
        keep = torch.tensor([True, False, True]).reshape(3, *(1,) * len(shape))
        return torch.autograd.grad(torch.where(keep, codes, 0.0).sum(), [y, dictionary.weight, lam])

    for got, want in zip(gradients(bad), gradients(signal), strict=True):
        assert torch.allclose(got, want, atol=1e-7)


def test_dependent_atoms_warn_and_give_the_least_norm() -> None:
    with pytest.warns(dsc.DSCWarning, match="the same up to scale"):
        dictionary = dsc.DenseDictionary(duplicate_matrix(6, 5, 0))
    single = dsc.DenseDictionary(dictionary.matrix[:, :4].clone())
    signal = (2 * dictionary.matrix[:, 0] + 0.1 * normal(6, generator=rng(1))).detach().requires_grad_()
    reference = dsc.solve(dsc.Lasso(single, 0.2), signal, tol=1e-12, differentiable=True).codes
    (want,) = torch.autograd.grad(reference[0], signal)
    start = torch.cat([reference, reference[:1]]).detach()
    start[0], start[4] = 0.5 * start[0], 0.5 * start[0]
    solution = dsc.solve(dsc.Lasso(dictionary, 0.2), signal, tol=1e-10, start=start, differentiable=True)
    assert int(solution.steps) == 0
    with pytest.warns(dsc.DSCWarning, match="linearly dependent for 1 of 1 samples.*least norm: raise lam, or remove"):
        (got,) = torch.autograd.grad(solution.codes[0], signal)
    assert torch.allclose(got, want / 2, atol=1e-8)


def test_a_system_that_does_not_converge_warns() -> None:
    kernels = torch.zeros(2, 1, 3, **KIND)
    kernels[:, 0, 0], kernels[:, 0, 1] = 1.0, 0.1
    with pytest.warns(dsc.DSCWarning, match="the same up to scale"):
        dictionary = dsc.ConvDictionary(kernels, normalize=True)
    signal = normal(1, 8, generator=rng(0)).requires_grad_()
    first = dsc.ConvDictionary(kernels[:1], normalize=True)
    half = 0.5 * dsc.solve(dsc.Lasso(first, 0.1), signal, tol=1e-12).codes  # type: ignore[operator]
    start = torch.cat([half, half])
    codes = dsc.solve(dsc.Lasso(dictionary, 0.1), signal, tol=1e-9, start=start, differentiable=True).codes
    with pytest.warns(dsc.DSCWarning, match=r"gradients of 1 of 1 samples are inexact.*raise lam for a sparser code"):
        torch.autograd.grad(codes[0].sum(), signal)
    (gradient,) = torch.autograd.grad(
        dsc.solve(dsc.Lasso(dictionary, 0.1), signal, tol=1e-9, start=start, differentiable=True).codes.sum(), signal
    )  # what both copies share is determined: no warning
    assert bool(torch.isfinite(gradient).all())


def test_float32_and_nothing_to_differentiate() -> None:
    exact = dense()
    rough = exact.cast(torch.float32).requires_grad_()
    signal = normal(3, 10, generator=rng(1))
    gradients = []
    for dictionary, y in ((exact, signal.clone()), (rough, signal.float())):
        y.requires_grad_()
        codes = dsc.solve(dsc.Lasso(dictionary, 0.2), y, tol=1e-6, differentiable=True).codes
        gradients.append(torch.autograd.grad(codes.sum(), [y, dictionary.weight]))  # type: ignore[union-attr]
    for want, got in zip(*gradients, strict=True):
        assert got.dtype == torch.float32
        assert torch.allclose(got.double(), want, atol=1e-3)
    frozen = dsc.DenseDictionary.random(10, 16, seed=0, **KIND)
    for solution in (
        dsc.solve(dsc.Lasso(frozen, 0.2), signal, differentiable=True),
        dsc.solve(dsc.Lasso(exact, 0.2), signal.clone().requires_grad_()),
    ):
        assert not solution.codes.requires_grad  # type: ignore[union-attr]
    solution = dsc.solve(dsc.Lasso(exact, 0.2), signal, differentiable=True)
    assert solution.codes.requires_grad  # type: ignore[union-attr]
    assert not solution.certificate.gap.requires_grad
    assert not solution.signal.requires_grad
    with torch.no_grad():
        assert not dsc.solve(dsc.Lasso(exact, 0.2), signal, differentiable=True).codes.requires_grad  # type: ignore
    with pytest.raises(dsc.UnsupportedError, match=r"differentiated once; expected .* without create_graph"):
        torch.autograd.grad(solution.codes.sum(), exact.matrix, create_graph=True)  # type: ignore[union-attr]


def test_bad_lam_is_refused_also_with_gradients() -> None:
    for bad in (-1.0, math.nan):
        with pytest.raises(dsc.ParameterError, match=r"lam is .*; expected a number at least 0"):
            dsc.Lasso(dense(), torch.tensor(bad, **KIND, requires_grad=True))
    assert dsc.Lasso(dense(), torch.tensor(0.5)).lam == 0.5


def test_problems_that_are_not_differentiated_are_refused_before_any_work() -> None:
    signal = normal(2, 10, generator=rng(0))
    with pytest.raises(dsc.UnsupportedError, match="does not take a BasisPursuit; expected a dsc"):
        dsc.solve(dsc.BasisPursuit(dense(), 0.1), signal, differentiable=True)
