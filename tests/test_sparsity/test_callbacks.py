"""The penalty in Lightning's and Hugging Face's trainers: it enters the gradient as in a plain loop, and goes again."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from deep_sparse_coding.errors import HookError, ParameterError, UnsupportedError
from deep_sparse_coding.sparsity import ActivationPenalty
from deep_sparse_coding.sparsity.callbacks import lightning_callback, penalized


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / 2
    return net


def samples(count: int = 32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 6, generator=generator)
    return list(zip(x, x[:, :3].argmax(1), strict=True))


def batches(size: int) -> list[tuple[Tensor, Tensor]]:
    pairs = samples()
    parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return [(torch.stack([x for x, _ in part]), torch.stack([t for _, t in part])) for part in parts]


def plain_loop(weight: float, epochs: int, size: int, accumulate: int = 1) -> nn.Sequential:
    """Return the network that a loop written out trains."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with ActivationPenalty(net, [nn.ReLU], weight) as penalty:
        for _ in range(epochs):
            for number, (x, t) in enumerate(batches(size)):
                loss = F.cross_entropy(net(x), t) + penalty.value()
                (loss / accumulate).backward()
                if (number + 1) % accumulate == 0:
                    optimizer.step()
                    optimizer.zero_grad()
    return net


def same_weights(net: nn.Module, other: nn.Module) -> None:
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def no_hooks(net: nn.Module) -> bool:
    return all(not module._forward_hooks for module in net.modules())


def lightning_module(package: Any, net: nn.Module, manual: bool = False, fail_at: int | None = None) -> Any:
    class Classifier(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.automatic_optimization = not manual

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            if batch_idx == fail_at:
                raise ValueError("from the step")
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.net(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Classifier()


def lightning_trainer(package: Any, callback: Any, **settings: Any) -> Any:
    return package.Trainer(
        accelerator="cpu", max_epochs=4, callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip


packages = pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pl"])
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*"),
]


@packages
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_trains_like_the_plain_loop(package: Any, accumulate: int) -> None:
    net = network()
    penalty = ActivationPenalty(net, [nn.ReLU], 0.02)
    trainer = lightning_trainer(package, lightning_callback(penalty), accumulate_grad_batches=accumulate)
    trainer.fit(lightning_module(package, net), DataLoader(samples(), batch_size=8), DataLoader(samples(), 16))  # type: ignore[arg-type]
    same_weights(net, plain_loop(0.02, 4, 8, accumulate))
    assert no_hooks(net)
    report = penalty.report()
    assert report.zero_fraction > 0.3
    assert trainer.callback_metrics["activation_penalty"] > 0
    assert trainer.callback_metrics["zero_fraction"] == pytest.approx(report.zero_fraction)


def test_lightning_sparsity_rises_with_the_weight() -> None:
    found = []
    for weight in (0.0, 0.3, 1.0):
        net = network()
        penalty = ActivationPenalty(net, [nn.ReLU], weight)
        trainer = lightning_trainer(lightning.pytorch, lightning_callback(penalty, log=False))
        trainer.fit(lightning_module(lightning.pytorch, net), DataLoader(samples(), batch_size=8))  # type: ignore[arg-type]
        found.append(penalty.report().zero_fraction)
    assert found[0] + 0.03 < found[1] < found[2] - 0.03


def test_lightning_exceptions_and_manual_optimization() -> None:
    net = network()
    penalty = ActivationPenalty(net, [nn.ReLU], 0.1)
    trainer = lightning_trainer(lightning.pytorch, lightning_callback(penalty))
    with pytest.raises(ValueError, match="from the step"):
        trainer.fit(lightning_module(lightning.pytorch, net, fail_at=1), DataLoader(samples(), batch_size=8))  # type: ignore[arg-type]
    assert no_hooks(net)
    trainer = lightning_trainer(lightning.pytorch, lightning_callback(penalty))
    with pytest.raises(UnsupportedError, match=r"Classifier optimizes by hand.*add penalty.value\(\) to your loss"):
        trainer.fit(lightning_module(lightning.pytorch, net, manual=True), DataLoader(samples(), batch_size=8))  # type: ignore[arg-type]
    assert no_hooks(net)
    other = ActivationPenalty(network(), [nn.ReLU], 0.1)
    trainer = lightning_trainer(lightning.pytorch, lightning_callback(other))
    with pytest.raises(HookError, match="found no activations: none of '1' ran"):
        trainer.fit(lightning_module(lightning.pytorch, net), DataLoader(samples(), batch_size=8))  # type: ignore[arg-type]


def test_lightning_callback_refuses_others_and_says_what_it_is() -> None:
    with pytest.raises(ParameterError, match="penalty is a float; expected an ActivationPenalty made on the model"):
        lightning_callback(0.1)  # type: ignore[arg-type]
    callback = lightning_callback(ActivationPenalty(network(), [nn.ReLU], 0.1))
    assert isinstance(callback, lightning.pytorch.Callback)
    assert isinstance(callback, pytorch_lightning.Callback)


class Items(Dataset[dict[str, Tensor]]):
    """Samples as the Trainer wants them."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, t = samples()[index]
        return {"x": x, "labels": t}


class Classifier(nn.Module):
    """Puts out its loss, as models of transformers do; `counts`: divided by the number of items in all batches."""

    def __init__(self, counts: bool = False) -> None:
        super().__init__()
        self.net = network()
        self.accepts_loss_kwargs = counts

    def forward(self, x: Tensor, labels: Tensor, num_items_in_batch: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(x)
        if num_items_in_batch is None:
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}
        return {"loss": F.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch, "logits": logits}


def hugging_face_trainer(model: nn.Module, folder: Path, **settings: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=8, num_train_epochs=4, learning_rate=0.1, optim="sgd", use_cpu=True,
        lr_scheduler_type="constant", report_to=[], save_strategy="no", disable_tqdm=True, max_grad_norm=0.0,
        train_sampling_strategy="sequential", logging_steps=1, **settings,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=Items(), eval_dataset=Items())


@pytest.mark.parametrize(("accumulate", "counts"), [(1, False), (2, False), (2, True)])
def test_hugging_face_trains_like_the_plain_loop(tmp_path: Path, accumulate: int, counts: bool) -> None:
    model = Classifier(counts)
    trainer = hugging_face_trainer(model, tmp_path, gradient_accumulation_steps=accumulate, eval_strategy="epoch")
    penalty = ActivationPenalty(model, ["net.1"], 0.02)
    with penalized(trainer, penalty) as entered:
        assert entered is penalty
        trainer.train()
    same_weights(model.net, plain_loop(0.02, 4, 8, accumulate))
    assert no_hooks(model)
    assert "compute_loss" not in vars(trainer)
    assert penalty.report().zero_fraction > 0.3


def test_hugging_face_logs_the_penalty_in_training_only_and_two_add_up(tmp_path: Path) -> None:
    model = Classifier()
    trainer = hugging_face_trainer(model, tmp_path, max_steps=1)
    one, two = ActivationPenalty(model, ["net.1"], 0.02), ActivationPenalty(model, [nn.ReLU], 0.03)
    with ActivationPenalty(model, [nn.ReLU], 0.05) as both:
        x, t = batches(8)[0]
        expected = F.cross_entropy(model.net(x), t) + both.value()
    evaluated = trainer.evaluate()["eval_loss"]
    with penalized(trainer, one), penalized(trainer, two):
        assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluated)
        trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0] == pytest.approx(float(expected.detach()), rel=1e-3)
    assert "compute_loss" not in vars(trainer)


@pytest.fixture
def failing(tmp_path: Path) -> Any:
    model = Classifier()

    def fail(module: nn.Module, inputs: object) -> None:
        raise ValueError("from the model")

    model.net[2].register_forward_pre_hook(fail)
    return hugging_face_trainer(model, tmp_path)


def test_hugging_face_is_given_back_after_an_exception(failing: Any) -> None:
    penalty = ActivationPenalty(failing.model, [nn.ReLU], 0.1)
    with pytest.raises(ValueError, match="from the model"), penalized(failing, penalty):
        failing.train()
    assert no_hooks(failing.model)
    assert "compute_loss" not in vars(failing)
    with pytest.raises(ParameterError, match="penalty is a int"), penalized(failing, 3):  # type: ignore[arg-type]
        pass
    failing.args._n_gpu = 2
    with pytest.raises(UnsupportedError, match=r"2 devices from one process.*torchrun"), penalized(failing, penalty):
        pass


def test_callback_can_be_copied_by_pickle() -> None:
    callback = lightning_callback(ActivationPenalty(network(), [nn.ReLU], 0.1), log=False)
    twin: Any = pickle.loads(pickle.dumps(callback))
    assert twin.penalty.weights == {"1": 0.1}
