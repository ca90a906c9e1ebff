"""Checkpoints: a run that was killed goes on to the same bits; early stop, time left, held-out data."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.errors import FileFormatError, ParameterError
from deep_sparse_coding.learning import LearningProgress, LearningResult, learn

SETTINGS: dict[str, Any] = {"atoms": (5, 4), "size": (5, 3), "lam": 0.1, "epochs": (4, 3), "seed": 3, "joint": 1}

SCRIPT = """
import sys, time
import torch
from deep_sparse_coding.learning import learn
torch.set_num_threads(1)
data = torch.load(sys.argv[1], weights_only=True)
def report(seen):
    print(seen.layer, seen.epoch, flush=True)
    time.sleep(0.2)
learn(data, (5, 4), size=(5, 3), lam=0.1, epochs=(4, 3), seed=3, joint=1, checkpoint=sys.argv[2], callback=report)
"""


class StoppedError(Exception):
    """Raised to end a run in the middle."""


def images() -> Tensor:
    planted = dsc.ConvDictionary.random(atoms=5, channels=1, size=5, seed=3, dtype=torch.float64)
    return dsc.sample(planted, sparsity=10, size=(16, 16), batch=8, noise=0.02, seed=1).signal


def weights(result: LearningResult) -> list[Tensor]:
    layers = result.model.layers if isinstance(result.model, dsc.Cascade) else (result.model,)
    return [layer.weight for layer in layers]


def assert_same(one: LearningResult, two: LearningResult) -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(two), strict=True))
    assert one.history.objective == two.history.objective
    assert one.history.heldout == two.history.heldout
    assert one.history.joint == two.history.joint
    assert one.dead_atoms == two.dead_atoms


@pytest.mark.parametrize("at", [(1, 2), (1, 4), (2, 1), (2, 3)])
@pytest.mark.parametrize("method", ["batch", "online"])
def test_a_run_that_broke_off_goes_on_to_the_same_bits(tmp_path: Path, at: tuple[int, int], method: str) -> None:
    data, path = images(), tmp_path / "run.safetensors"
    told = SETTINGS | {"method": method, "heldout": 0.25}

    def stop(seen: LearningProgress) -> None:
        # Raised before the checkpoint of this epoch is written: the epoch is done again.
        if (seen.layer, seen.epoch) == at:
            raise StoppedError

    whole = learn(data, **told)
    with pytest.raises(StoppedError):
        learn(data, **told, checkpoint=path, callback=stop)
    assert path.exists() == (at != (1, 1))
    seen: list[tuple[int, int]] = []
    resumed = learn(data, **told, checkpoint=path, callback=lambda p: seen.append((p.layer, p.epoch)))
    assert seen[0] == at
    assert_same(whole, resumed)
    # And once more, all done: nothing is learned again.
    again = learn(data, **told, checkpoint=path, callback=lambda p: seen.append((9, 9)))
    assert (9, 9) not in seen
    assert_same(whole, again)


def test_masks_and_constraints_survive(tmp_path: Path) -> None:
    data, path = images(), tmp_path / "run.safetensors"
    mask = torch.rand(data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) > 0.2
    told: dict[str, Any] = {"atoms": 4, "size": 5, "lam": 0.1, "epochs": 4, "seed": 0, "mask": mask, "nonzeros": 15}

    def stop(seen: LearningProgress) -> None:
        if seen.epoch == 3:
            raise StoppedError

    whole = learn(data, **told)
    with pytest.raises(StoppedError):
        learn(data, **told, checkpoint=path, callback=stop)
    assert_same(whole, learn(data, **told, checkpoint=path))


def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    data, path = images(), tmp_path / "run.safetensors"
    torch.save(data, tmp_path / "data.pt")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "data.pt"), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    for line in process.stdout:
        if line.split() == ["1", "3"]:
            time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["run.safetensors"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed, whole = learn(data, **SETTINGS, checkpoint=path), learn(data, **SETTINGS)
    finally:
        torch.set_num_threads(threads)
    assert_same(whole, resumed)


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    data, path = images(), tmp_path / "run.safetensors"
    told: dict[str, Any] = {"atoms": 4, "size": 5, "lam": 0.1, "epochs": 1, "seed": 0, "checkpoint": path}
    learn(data, **told)
    with pytest.raises(ParameterError, match=r"belongs to another run: steps 20 there and 7 here"):
        learn(data, **told, steps=7)
    with pytest.raises(ParameterError, match=r"another run: images"):
        learn(2 * data, **told)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileFormatError, match="no complete checkpoint"):
        learn(data, **told)
    dsc.save(dsc.DenseDictionary.random(3, 4, seed=0), path)
    with pytest.raises(FileFormatError, match="no complete checkpoint"):
        learn(data, **told)
    with pytest.raises(FileFormatError, match="expected an existing folder"):
        learn(data, **{**told, "checkpoint": tmp_path / "none" / "run"})


def test_progress_says_how_long_it_takes_and_patience_ends_a_layer() -> None:
    data = images()
    seen: list[LearningProgress] = []
    result = learn(
        data[:6], (4, 3), size=(5, 3), lam=0.1, epochs=40, seed=0, heldout=data[6:], patience=2, callback=seen.append
    )
    counts = [len(values) for values in result.history.objective]
    assert all(3 <= count < 40 for count in counts)
    assert [len(values) for values in result.history.heldout] == counts
    assert [p.heldout for p in seen] == [value for values in result.history.heldout for value in values]
    assert all(p.seconds_left > 0 for p in seen[:-1])
    assert seen[-1].seconds_left == 0
    assert seen[0].seconds > 0
    assert "held out" in str(result)
    last = result.history.heldout[0]
    assert min(last[-2:]) > min(last[:-2]) * (1 - 1e-3)


def test_a_callback_ends_a_layer() -> None:
    result = learn(images(), (4, 3), size=(5, 3), lam=0.1, epochs=5, seed=0, callback=lambda p: p.epoch == 2)
    assert [len(values) for values in result.history.objective] == [2, 2]
    assert result.history.heldout == ((), ())


def test_the_held_out_objective_is_that_of_the_codes() -> None:
    data = images()
    result = learn(data[:6], 4, size=5, lam=0.1, epochs=3, seed=0, heldout=data[6:])
    exact = float(result.solve(data[6:]).certificate.objective.sum())
    assert result.history.heldout[0][-1] == pytest.approx(exact, rel=2e-3)
    assert math.isfinite(result.history.heldout[0][0])
