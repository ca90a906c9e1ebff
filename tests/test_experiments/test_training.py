"""Training: the same weights after a kill and from two processes; checkpoints and logs that are never half-written."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deep_sparse_coding.errors import DSCError, FileFormatError, NotConvergedError, ParameterError, ShapeError
from deep_sparse_coding.experiments.data import LabelledImages, SegmentedImages
from deep_sparse_coding.experiments.models import build
from deep_sparse_coding.experiments.store import open_folder
from deep_sparse_coding.experiments.training import PenaltySettings, TrainSettings, dry_run, evaluate, train
from deep_sparse_coding.experiments.training.samples import Scaling, batches, noisy_labels

SETTINGS = TrainSettings(
    epochs=4, batch=8, lr=0.05, augmentation="crop-flip", threads=1, accelerator="cpu", log_every=2
)
PENALTY = PenaltySettings("fixed", weight=0.05, schedule="warm-up")


def labelled(count: int = 40, seed: int = 0, classes: int = 3) -> LabelledImages:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 120, (count, 3, 12, 12), generator=rng, dtype=torch.uint8)
    images[torch.arange(count), labels % 3] += 100
    return LabelledImages(images, labels, tuple(f"class {k}" for k in range(classes)))


def segmented(count: int = 24, seed: int = 0) -> SegmentedImages:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, 3, 16, 16), generator=rng, dtype=torch.uint8)
    masks = torch.zeros(count, 16, 16, dtype=torch.uint8)
    masks[:, 4:10, 5:12] = 1
    images += 100 * masks[:, None]
    return SegmentedImages(images, masks, ("ground", "thing"), None, tuple(map(str, range(count))))


def network(seed: int = 0, norm: bool = True, width: int = 8) -> nn.Sequential:
    """Return a small network of modules that a report knows, whose weights come from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(9 * width, 3),
        )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))


# ---------------------------------------------------------------------- learning


def test_training_lowers_the_loss_and_reaches_the_classes(tmp_path: Path) -> None:
    net, data = network(), labelled()
    result = train(net, data, "classification", replace(SETTINGS, epochs=8), tmp_path, validation=data, seed=0)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert result.last["validation"]["accuracy"] > 0.9
    assert [("validation" in line) for line in result.history] == [False, True] * 4
    assert not net.training
    found = evaluate(net, data, "classification", result.scaling)
    assert found.numbers() == result.last["validation"]


def test_the_penalty_makes_the_activations_sparser(tmp_path: Path) -> None:
    zeros = []
    for number, penalty in enumerate((None, PenaltySettings("fixed", weight=2.0))):
        net = network(norm=False)
        settings = replace(SETTINGS, epochs=10)
        data = labelled()
        result = train(net, data, "classification", settings, tmp_path / str(number), penalty=penalty, seed=0)
        zeros.append(evaluate(net, data, "classification", result.scaling).sparsity.zero_fraction)
        assert (result.last["penalty"] > 0) is (penalty is not None)
    assert zeros[1] > zeros[0] + 0.1


def test_segmentation_learns_what_stands_out(tmp_path: Path) -> None:
    data = segmented()
    net = build("unet", 2, width=0.0625, image_size=16, seed=0)
    settings = replace(SETTINGS, optimizer="adamw", lr=1e-2, epochs=15, augmentation="flip")
    result = train(net, data, "segmentation", settings, tmp_path, validation=data, seed=0)
    found = evaluate(net, data, "segmentation", result.scaling)
    assert found.measures["mean_iou"] > 0.8
    assert found.measures["mae"] < 0.2
    assert {"max_f", "weighted_f", "max_e", "s"} <= found.measures.keys()


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_mixed_precision_trains_with_the_penalty(tmp_path: Path, precision: str) -> None:
    settings = replace(SETTINGS, precision=precision, epochs=2)
    result = train(network(), labelled(), "classification", settings, tmp_path, penalty=PENALTY, seed=0)
    assert math.isfinite(result.last["loss"])
    assert result.last["penalty"] > 0


def test_the_rate_follows_its_schedule() -> None:
    cycle = replace(SETTINGS, lr=1.0)
    assert cycle.rate(0, 100) == pytest.approx(0.04)
    assert cycle.rate(30, 100) == pytest.approx(1.0)
    assert cycle.rate(99, 100) < 1e-3
    assert replace(cycle, schedule="cosine").rate(50, 100) == pytest.approx(0.5)
    assert replace(cycle, schedule="constant").rate(99, 100) == 1.0


# ---------------------------------------------------------------------- the same again


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {paths}
from test_experiments_training import PENALTY, SETTINGS, labelled, network
from deep_sparse_coding.experiments.training import train

def advance(share):
    if share > 0.55:  # in the third of four epochs
        os.kill(os.getpid(), signal.SIGKILL)

train(network(), labelled(), "classification", SETTINGS, Path({folder!r}), penalty=PENALTY, seed=3, advance=advance)
"""


def script(tmp_path: Path, text: str, folder: Path) -> Path:
    """Write a script that imports this file under a name of its own."""
    copy = tmp_path / "test_experiments_training.py"
    copy.write_text(Path(__file__).read_text())
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text).format(paths=[str(tmp_path), *sys.path], folder=str(folder)))
    return path


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = subprocess.run([sys.executable, script(tmp_path, KILLED, folder)], timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    with open(folder / "log.jsonl", "ab") as file:
        file.write(b'{"epoch": 3, "lo')  # what a kill inside of a write leaves
    killed, whole = network(), network()
    result = train(killed, labelled(), "classification", SETTINGS, folder, penalty=PENALTY, seed=3)
    straight = train(whole, labelled(), "classification", SETTINGS, tmp_path / "whole", penalty=PENALTY, seed=3)
    assert (result.resumed, straight.resumed) == (2, 0)
    assert same(killed, whole)
    assert not same(killed, network())
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    for ours, theirs in zip(lines, straight.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


class StoppedError(Exception):
    """What a user's interrupt raises in the middle of an epoch."""


@pytest.mark.parametrize(
    "penalty",
    [PenaltySettings("target", target=0.7), PenaltySettings("fixed", weight=0.1, form="hoyer", schedule="decay")],
    ids=["target", "decay"],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_run_goes_on_with_the_weight_of_its_penalty(
    tmp_path: Path, penalty: PenaltySettings, optimizer: str
) -> None:
    def stop(share: float) -> None:
        if share > 0.55:
            raise StoppedError

    settings = replace(SETTINGS, optimizer=optimizer)
    stopped, whole = network(), network()
    with pytest.raises(StoppedError):
        train(network(), labelled(), "classification", settings, tmp_path, penalty=penalty, seed=3, advance=stop)
    result = train(stopped, labelled(), "classification", settings, tmp_path, penalty=penalty, seed=3)
    straight = train(whole, labelled(), "classification", settings, tmp_path / "whole", penalty=penalty, seed=3)
    assert result.resumed == 2
    assert same(stopped, whole)
    assert [line["weight"] for line in result.history] == [line["weight"] for line in straight.history]
    assert len({line["weight"] for line in result.history}) > 1


DISTRIBUTED = """
import sys
from pathlib import Path
sys.path[:0] = {paths}
import torch
from test_experiments_training import PENALTY, SETTINGS, labelled, network
from deep_sparse_coding.experiments.training import train

net = network(norm=False)
train(net, labelled(), "classification", SETTINGS, Path({folder!r}), penalty=PENALTY, validation=labelled(), seed=3)
assert torch.distributed.get_world_size() == 2
"""


@pytest.mark.slow
def test_two_processes_train_the_same_network_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, script(tmp_path, DISTRIBUTED, folder)],
        timeout=300,
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = torch.load(folder / "checkpoint.pt", weights_only=True)
    one = network(norm=False)
    result = train(one, labelled(), "classification", SETTINGS, tmp_path / "one", penalty=PENALTY, seed=3)
    for name, value in weights(one).items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-5)
    line = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    assert line["loss"] == pytest.approx(result.last["loss"], rel=1e-4)
    assert line["penalty"] == pytest.approx(result.last["penalty"], rel=1e-4)


def test_order_and_augmentation_are_the_same_for_one_process_and_two() -> None:
    data = labelled()

    def epoch(number: int, rank: int, world: int) -> list[Tensor]:
        parts = batches(
            data.images,
            data.labels,
            batch=8,
            seed=1,
            epoch=number,
            augmentation="crop-flip",
            rank=rank,
            world=world,
        )
        return [images for images, _ in parts]

    for whole, left, right in zip(epoch(0, 0, 1), epoch(0, 0, 2), epoch(0, 1, 2), strict=True):
        assert torch.equal(whole[0::2], left)
        assert torch.equal(whole[1::2], right)
    assert not torch.equal(epoch(0, 0, 1)[0], epoch(1, 0, 1)[0])


def test_masks_move_with_their_images() -> None:
    data = segmented()
    images = data.images.clone()
    images[:, 0] = 50 * data.masks
    for epoch in range(3):
        for moved, masks in batches(
            images, data.masks, batch=8, seed=0, epoch=epoch, augmentation="crop-flip", rank=0, world=1
        ):
            assert torch.equal(moved[:, 0], 50 * masks)


def test_the_global_generator_stays_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    train(network(), labelled(), "classification", replace(SETTINGS, epochs=1), tmp_path, seed=0)
    assert torch.equal(torch.rand(3), want)


def test_noisy_labels_are_the_share_asked_for_and_all_wrong() -> None:
    labels = torch.arange(200) % 4
    noisy = noisy_labels(labels, 4, 0.25, seed=1)
    assert int((noisy != labels).sum()) == 50
    assert noisy.min() >= 0
    assert noisy.max() < 4
    assert torch.equal(noisy, noisy_labels(labels, 4, 0.25, seed=1))


# ---------------------------------------------------------------------- what is refused


def test_nan_stops_at_the_step_and_names_the_module(tmp_path: Path) -> None:
    class Poison(nn.Module):
        """Puts out NaN from its 13th call in training on."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += self.training
            return x * float("nan") if self.calls > 12 else x

    net = network()
    net[1] = Poison()
    with pytest.raises(
        NotConvergedError, match=r"step 13, in epoch 3 .*'1' \(Poison\); the checkpoint after epoch 2 is"
    ):
        train(net, labelled(), "classification", replace(SETTINGS, batch=6, lr=1e-3), tmp_path, seed=0)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 2
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    train(network(), labelled(), "classification", replace(SETTINGS, epochs=2), tmp_path, penalty=PENALTY, seed=0)
    return tmp_path


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"settings": replace(SETTINGS, epochs=2, lr=0.1)}, r"train.lr: there 0.05, now 0.1"),
        ({"penalty": replace(PENALTY, weight=0.1)}, r"penalty.weight: there 0.05, now 0.1"),
        ({"seed": 1}, r"seed: there 0, now 1"),
        ({"data": labelled(seed=1)}, r"data: there '40 samples, "),
        ({"model": network(width=4)}, r"model.0.weight: there '8x3x3x3 torch.float32', now '4x3x3x3"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(trained: Path, change: dict[str, object], match: str) -> None:
    given = {
        "model": network(),
        "data": labelled(),
        "settings": replace(SETTINGS, epochs=2),
        "penalty": PENALTY,
        "seed": 0,
    }
    given |= change
    model, data, settings = given.pop("model"), given.pop("data"), given.pop("settings")
    with pytest.raises(ParameterError, match=match):
        train(model, data, "classification", settings, trained, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_damaged_checkpoint_is_refused(trained: Path, keep: int) -> None:
    path = trained / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileFormatError, match=r"checkpoint.pt is no checkpoint that can be read .* delete it"):
        train(network(), labelled(), "classification", replace(SETTINGS, epochs=2), trained, penalty=PENALTY, seed=0)


def test_a_checkpoint_of_another_version_is_refused(trained: Path) -> None:
    path = trained / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format": 99}, path)
    with pytest.raises(FileFormatError, match="has format 99; expected 1"):
        train(network(), labelled(), "classification", replace(SETTINGS, epochs=2), trained, penalty=PENALTY, seed=0)


def test_a_log_that_lacks_epochs_of_its_checkpoint_is_refused(trained: Path) -> None:
    (trained / "log.jsonl").write_text("")
    with pytest.raises(FileFormatError, match=r"holds 0 whole lines, and the checkpoint beside it 2 epochs"):
        train(network(), labelled(), "classification", replace(SETTINGS, epochs=2), trained, penalty=PENALTY, seed=0)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, replaced, files = replace(SETTINGS, epochs=3), os.replace, []

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "checkpoint.pt":
            files.append(target)
            if len(files) == 3:
                raise OSError(28, "No space left on device")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileFormatError, match=r"cannot write .*checkpoint.pt .*No space left"):
        train(network(), labelled(), "classification", settings, tmp_path, seed=0)
    monkeypatch.setattr(os, "replace", replaced)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == 2
    assert not list(tmp_path.glob(".*.part"))
    resumed, whole = network(), network()
    assert train(resumed, labelled(), "classification", settings, tmp_path, seed=0).resumed == 2
    train(whole, labelled(), "classification", settings, tmp_path / "whole", seed=0)
    assert same(resumed, whole)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        open_folder(tmp_path, {"kind": "training"}, {}, {}),
        pytest.raises(ParameterError, match="in use by another run"),
    ):
        train(network(), labelled(), "classification", SETTINGS, tmp_path, seed=0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epochs": 0}, "epochs is 0; expected a whole number of at least 1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"optimizer": "sdg"}, "optimizer is 'sdg'; expected 'sgd' or 'adamw'; did you mean 'sgd'"),
        ({"schedule": "onecycle"}, "did you mean 'one-cycle'"),
        ({"precision": "16"}, "precision is '16'"),
        ({"label_noise": 1.5}, "label_noise is 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        replace(SETTINGS, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"kind": "fixed"}, "weight is 0 with kind 'fixed'"),
        ({"weight": 0.1}, "weight is 0.1 with kind 'none'"),
        ({"kind": "target"}, "target is 0 with kind 'target'"),
        ({"kind": "target", "target": 1.0}, "target is 1.0"),
        ({"kind": "target", "target": 0.5, "schedule": "decay"}, "schedule is 'decay' with kind 'target'"),
        ({"kind": "fixed", "weight": -1.0}, "weight is -1"),
    ],
)
def test_penalties_that_contradict_themselves_are_refused(values: dict[str, object], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        PenaltySettings(**values)  # type: ignore[arg-type]


def test_data_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="batch is 64 of 40 samples"):
        train(network(), labelled(), "classification", replace(SETTINGS, batch=64), tmp_path, seed=0)
    with pytest.raises(ParameterError, match="expected SegmentedImages"):
        train(network(), labelled(), "segmentation", SETTINGS, tmp_path, seed=0)
    with pytest.raises(ParameterError, match=r"label_noise is 0\.5 with task 'segmentation'"):
        train(network(), segmented(), "segmentation", replace(SETTINGS, label_noise=0.5), tmp_path, seed=0)
    with pytest.raises(ShapeError, match=r"put out the shape \(8, 3\); expected \(8, 4\)"):
        train(network(), labelled(classes=4), "classification", SETTINGS, tmp_path, seed=0)
    with pytest.raises(DSCError, match="seed is -1"):
        train(network(), labelled(), "classification", SETTINGS, tmp_path, seed=-1)


# ---------------------------------------------------------------------- beside it


def test_a_dry_run_says_how_large_and_leaves_the_network() -> None:
    net = network()
    found = dry_run(net, labelled(), "classification", SETTINGS, penalty=PENALTY)
    assert found.parameters == sum(weight.numel() for weight in net.parameters())
    assert (found.inputs, found.outputs, found.steps, found.layers) == ((8, 3, 12, 12), (8, 3), 5, 2)
    assert "5 steps per epoch" in str(found)
    assert same(net, network())


def test_tensorboard_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=1, tensorboard=True)
    train(network(), labelled(), "classification", settings, tmp_path, seed=0)
    assert list((tmp_path / "tensorboard").iterdir())


def test_scaling_gives_mean_zero_and_deviation_one() -> None:
    images = labelled().images
    scaled = Scaling.of(images)(images)
    assert scaled.mean((0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(scaled.std((0, 2, 3), correction=0), torch.ones(3), rtol=1e-5, atol=1e-5)
