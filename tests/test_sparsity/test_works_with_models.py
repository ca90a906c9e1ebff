"""One penalty and one probe on many networks: ours, torch's transformers, ResNet, ViT and GPT-2 of Hugging Face."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deep_sparse_coding.errors import HookError
from deep_sparse_coding.sparsity import ActivationPenalty, Probe
from deep_sparse_coding.sparsity.inference.operations import multiply_adds
from deep_sparse_coding.sparsity.measuring.survey import measure_sparsity
from watched import MAKERS, WEIGHT, Branches, Case, drawn, encoder, gradients, penalty_of, same


@pytest.fixture(params=MAKERS)
def case(request: pytest.FixtureRequest) -> Case:
    made = MAKERS[request.param]()
    made.model.requires_grad_(True)  # what is compiled from a dictionary is fixed at first
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.model.named_parameters():
        if request.param not in ("to_cnn", "unfold") and "norm" not in name.lower():
            parameter.data = torch.randn(parameter.shape, generator=generator) / max(2.0, parameter[0].numel() ** 0.5)
    return made


def by_hand(case: Case, model: nn.Module) -> tuple[Tensor, list[Tensor | None]]:
    """Return value and gradients of mean square + penalty, the penalty written out."""
    with Probe(model, case.targets, detach=False) as probe:
        output = case.run(model)
    outputs = [x for calls in probe.activations.values() for x in calls]
    value = sum((WEIGHT * x.abs().sum() / x.shape[0] for x in outputs), torch.zeros(()))
    return value, gradients(model, output.square().mean() + value)


def test_value_and_gradient_are_those_written_out(case: Case) -> None:
    model = case.model.eval()
    if isinstance(model, Branches):
        model.act.inplace = False  # the sums written out need what in-place activations overwrite
    expected, wanted = by_hand(case, model)
    for inplace in (False, True):
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = inplace
        with penalty_of(case, model) as penalty:
            output = case.run(model)
            value = penalty.value()
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
        same(gradients(model, output.square().mean() + value), wanted)
    row = next(iter(penalty.report()))
    assert row.calls == (3 if isinstance(model, Branches) else 1)
    assert 0 < penalty.report().zero_fraction < 1


def test_autocast(case: Case) -> None:
    model = case.model.eval()
    with penalty_of(case, model) as penalty:
        with torch.no_grad():
            case.run(model)
            expected = penalty.value()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = case.run(model)
            value = penalty.value()
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.detach(), expected, rtol=0.03, atol=0)
        found = gradients(model, output.float().square().mean() + value)
    assert all(bool(g.isfinite().all()) for g in found if g is not None)
    assert any(g is not None and g.any() for g in found)


def test_gradient_accumulation_of_halves_is_the_whole(case: Case) -> None:
    model = case.model.eval()
    with penalty_of(case, model) as penalty:
        case.run(model)
        whole = penalty.value()
        wanted = gradients(model, whole)
        total: list[Tensor | None] = [None] * len(wanted)
        values = []
        for half in (slice(0, 2), slice(2, 4)):
            batch = case.batch
            part = (
                {k: v[half] if isinstance(v, Tensor) else v for k, v in batch.items()}
                if isinstance(batch, dict)
                else batch[half]
            )
            case.run(model, part)
            value = penalty.value() / 2
            values.append(value.detach())
            for index, g in enumerate(gradients(model, value)):
                total[index] = g if total[index] is None else total[index] + g  # type: ignore[operator]
    torch.testing.assert_close(sum(values), whole.detach(), rtol=1e-5, atol=0)
    same(total, wanted)


def test_activation_checkpointing(case: Case) -> None:
    model = case.model.eval()
    with penalty_of(case, model) as penalty:
        output = case.run(model)
        value = penalty.value()
        wanted = gradients(model, output.square().mean() + value)
        inputs = drawn(1).requires_grad_()
        for _ in range(2):
            output = checkpoint(lambda _: case.run(model), inputs, use_reentrant=False)
            again = penalty.value()
            torch.testing.assert_close(again.detach(), value.detach())
            model.zero_grad()
            (output.square().mean() + again).backward()
            same([p.grad for p in model.parameters() if p.requires_grad], wanted)
    calls = 3 if isinstance(model, Branches) else 1
    assert next(iter(penalty.report())).calls == 3 * calls


@pytest.mark.parametrize("name", ["vit", "gpt2"])
def test_checkpointing_of_hugging_face(name: str) -> None:
    case = MAKERS[name]()
    model: Any = case.model.train()
    with penalty_of(case, model) as penalty:
        output = case.run(model)
        value = penalty.value()
        wanted = gradients(model, output.square().mean() + value)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        output = case.run(model)
        again = penalty.value()
        torch.testing.assert_close(again.detach(), value.detach())
        (output.square().mean() + again).backward()
        same([p.grad for p in model.parameters() if p.requires_grad], wanted)


def test_copies_pickles_and_exceptions(case: Case) -> None:
    model = case.model.eval()
    keys = list(model.state_dict())
    with penalty_of(case, model) as penalty:
        case.run(model)
        expected = penalty.value().detach()
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            case.run(twin)
            with penalty_of(case, twin) as other:
                case.run(twin)
                torch.testing.assert_close(other.value().detach(), expected)
        assert list(model.state_dict()) == keys
    with pytest.raises(ZeroDivisionError), penalty_of(case, model):
        float(case.run(model).detach().sum()) / 0
    assert all(not module._forward_hooks for module in model.modules())


def test_training_with_the_penalty_makes_it_sparser(case: Case) -> None:
    found = []
    with torch.no_grad():
        target = case.run(case.model.train())
    for weight in (0.0, 1.0):
        model = copy.deepcopy(case.model).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        with ActivationPenalty(model, case.targets, weight, per_entry=True, channel_axis=case.channel_axis) as penalty:
            for _ in range(40):
                optimizer.zero_grad()
                ((case.run(model) - target).square().mean() + penalty.value()).backward()
                optimizer.step()
            penalty.reset()
            case.run(model)
        report = penalty.report()
        found.append((report.zero_fraction, sum(row.l1_per_entry for row in report)))
    assert found[1][0] >= found[0][0] + 0.02
    assert found[1][1] < 0.8 * found[0][1]


def test_over_a_loader_and_multiply_adds(case: Case) -> None:
    model = case.model.train()
    report = measure_sparsity(model, [case.batch] * 2, case.targets, channel_axis=case.channel_axis)
    with torch.no_grad(), penalty_of(case, model.eval()) as penalty:
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        case.run(model)
        torch.backends.mha.set_fastpath_enabled(fused)
    assert report.zero_fraction == pytest.approx(penalty.report().zero_fraction, abs=1e-6)
    if any(isinstance(module, nn.Linear | nn.Conv2d) for module in model.modules()):
        operations = multiply_adds(model, case.batch)
        assert 0 <= operations.fraction < 1
        assert operations.dense > 0


def test_copies_of_torch_decoder_layers_say_that_their_activation_is_not_the_module() -> None:
    # torch's own deepcopy of a decoder layer replaces the activation by the function relu, the module stays beside it.
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, activation=nn.ReLU(), batch_first=True)
    x, memory = drawn(4, 5, 8), drawn(4, 3, 8)
    with ActivationPenalty(layer, [nn.ReLU], WEIGHT, channel_axis=-1) as penalty:
        layer(x, memory)
        assert penalty.value() > 0
    net = nn.TransformerDecoder(layer, 2)
    with ActivationPenalty(net, [nn.ReLU], WEIGHT, channel_axis=-1) as penalty:
        net(x, memory)
        with pytest.raises(HookError, match=r"none of 'layers.0.activation', .*the modules are not used in forward"):
            penalty.value()


def test_torch_encoder_in_evaluation_without_gradients_runs_its_modules_while_watched() -> None:
    case = encoder()
    model = case.model.eval()
    with torch.no_grad():
        expected = case.run(model)
        with penalty_of(case, model) as penalty:
            torch.testing.assert_close(case.run(model), expected, rtol=1e-4, atol=1e-5)
            assert penalty.value() > 0
