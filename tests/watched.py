"""Networks of many makers, and how to run and watch them: ours, torch's, Hugging Face's from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import deep_sparse_coding as dsc
from deep_sparse_coding.sparsity import ActivationPenalty

WEIGHT = 0.01


@dataclass(frozen=True)
class Case:
    """A network, a batch of keyword arguments or a tensor, what to watch, and how to read the output."""

    model: nn.Module
    batch: Any
    targets: Any = (nn.ReLU,)
    channel_axis: int = 1

    def run(self, model: nn.Module, batch: Any = None) -> Tensor:
        batch = self.batch if batch is None else batch
        output = model(**batch) if isinstance(batch, dict) else model(batch)
        return output if isinstance(output, Tensor) else output.logits


class Branches(nn.Module):
    """Uses one in-place activation three times, once behind a sum of two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(True)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        return self.act(y + self.act(self.norm(self.second(y))))


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def ours() -> dsc.Cascade:
    first = dsc.ConvDictionary.low_coherence(atoms=8, channels=1, size=8, stride=4, seed=0)
    return dsc.Cascade(
        [first, dsc.ConvDictionary.low_coherence(atoms=8, channels=8, size=3, stride=2, nonzeros=4, seed=0)]
    )


def cnn() -> Case:
    net = dsc.to_cnn(ours(), sparsity=(2, 1), amplitude=1.0, noise=0.0, target_error=0.3)
    return Case(net, drawn(4, 1, 32, 32))


def unfolded() -> Case:
    problem = dsc.Lasso(dsc.DenseDictionary.random(16, 32, seed=0), lam=0.1)
    return Case(dsc.unfold(problem, steps=3, learn=("analysis", "threshold")), drawn(4, 16), targets=("",))


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.ReLU(), batch_first=True)
    return Case(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), drawn(4, 5, 8), channel_axis=-1)


def resnet() -> Case:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3)
    return Case(ResNetForImageClassification(config), {"pixel_values": drawn(4, 3, 32, 32)})


def vit() -> Case:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        hidden_act="relu", num_labels=3,
    )  # fmt: skip
    return Case(ViTForImageClassification(config), {"pixel_values": drawn(4, 3, 8, 8)}, channel_axis=-1)


def gpt2() -> Case:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, activation_function="relu", resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    tokens = torch.randint(0, 32, (4, 7), generator=torch.Generator().manual_seed(2))
    return Case(GPT2LMHeadModel(config), {"input_ids": tokens, "use_cache": False}, "transformer.h.*.mlp.act", -1)


MAKERS: dict[str, Callable[[], Case]] = {
    "to_cnn": cnn, "unfold": unfolded, "encoder": encoder, "resnet": resnet, "vit": vit,
    "gpt2": gpt2, "used three times": lambda: Case(Branches(), drawn(4, 3, 8, 8)),
}  # fmt: skip


def penalty_of(case: Case, model: nn.Module, **settings: Any) -> ActivationPenalty:
    return ActivationPenalty(model, case.targets, WEIGHT, channel_axis=case.channel_axis, **settings)


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True))


def same(found: list[Tensor | None], expected: list[Tensor | None], rtol: float = 1e-4) -> None:
    assert len(found) == len(expected)
    scale = max(float(b.abs().max()) for b in expected if b is not None)
    assert scale > 0
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * scale / 10)
