"""A target that is held: on a small real training, per layer and over all, and how it reacts to what can go wrong."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deep_sparse_coding.errors import DSCWarning, NameMatchError, ParameterError
from deep_sparse_coding.sparsity.penalties.penalty import ActivationPenalty
from deep_sparse_coding.sparsity.penalties.target import Multiplier, TargetSparsity


def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, t = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32)[:1437], torch.tensor(t)[:1437]


def network(norm: bool = False, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    norms = [nn.BatchNorm1d(128)] if norm else []
    net = nn.Sequential(
        nn.Linear(64, 128), *norms, activation(), nn.Linear(128, 128), *(norms and [nn.BatchNorm1d(128)]), activation()
    )
    net.append(nn.Linear(128, 10))
    generator = torch.Generator().manual_seed(0)
    for module in net:
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            for parameter in module.parameters():
                parameter.data.uniform_(-bound, bound, generator=generator)
    return net


def train(
    net: nn.Sequential, weight: TargetSparsity, *, rate: float, adam: bool = True, steps: int = 900, accumulate: int = 1
) -> tuple[Tensor, float]:
    """Return the fraction of zeros of every layer at every step, and the accuracy on the training data."""
    x, t = digits()
    generator = torch.Generator().manual_seed(1)
    optimizer = (
        torch.optim.Adam(net.parameters(), lr=rate)
        if adam
        else torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    )
    seen: list[list[float]] = []
    outputs: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda m, i, y: outputs.append(y)) for module in net if isinstance(module, nn.ReLU)
    ]
    with ActivationPenalty(net, [nn.ReLU], weight, measure=False, manual_steps=accumulate > 1) as penalty:
        for _ in range(steps):
            rows = torch.randint(len(x), (64,), generator=generator)
            outputs.clear()
            optimizer.zero_grad()
            for part in rows.chunk(accumulate):
                loss = F.cross_entropy(net(x[part]), t[part]) + penalty.value()
                (loss / accumulate).backward()
            optimizer.step()
            if accumulate > 1:
                penalty.step()
            layers = len(outputs) // accumulate
            seen.append([float((torch.cat(outputs[layer::layers]) == 0).float().mean()) for layer in range(layers)])
    for handle in handles:
        handle.remove()
    net.eval()
    with torch.no_grad():
        accuracy = float((net(x).argmax(1) == t).float().mean())
    assert penalty.steps == steps
    return torch.tensor(seen), accuracy


@pytest.mark.parametrize(
    ("per_layer", "norm", "adam", "rate", "accumulate"),
    [
        (False, False, True, 2e-3, 1),
        (True, False, False, 0.05, 1),
        (True, False, True, 1e-2, 2),
        (True, True, True, 5e-3, 1),
    ],
)
def test_target_is_reached_and_held_within_a_point(
    per_layer: bool, norm: bool, adam: bool, rate: float, accumulate: int
) -> None:
    weight = TargetSparsity(0.9, per_layer=per_layer)
    zeros, accuracy = train(network(norm), weight, rate=rate, adam=adam, accumulate=accumulate)
    assert bool((zeros[0] < 0.7).all())  # it had to be found
    held = zeros if per_layer else zeros.mean(1, keepdim=True)  # both layers have 128 entries
    epochs = held[-230:].unfold(0, 23, 1).mean(-1)  # every window of an epoch's length in the last ten
    assert float((epochs - 0.9).abs().max()) <= 0.01
    assert float(held.max()) < 0.94
    assert accuracy > 0.97
    if not per_layer:
        assert abs(float(zeros[-230:].mean(0).diff())) > 0.01  # the layers found their own shares


def test_targets_by_layer() -> None:
    zeros, _ = train(network(), TargetSparsity({"1": 0.8, "*": 0.9}), rate=3e-3, steps=700)
    assert zeros[-230:].mean(0).tolist() == pytest.approx([0.8, 0.9], abs=0.01)
    with pytest.raises(NameMatchError, match="target has the key '2'"):
        ActivationPenalty(network(), [nn.ReLU], TargetSparsity({"2": 0.8, "*": 0.9}))


def simulated(settings: TargetSparsity, response: float, delay: float, steps: int = 1500) -> list[float]:
    """Zeros that follow the weight: ``0.5 + response·log10(ω/1e-3)`` in [0, 1], with a delay."""
    multiplier, zeros, seen = Multiplier(settings, 0.9), 0.5, []
    for _ in range(steps):
        goal = min(max(0.5 + response * math.log10(multiplier.weight / 1e-3), 0.0), 1.0)
        zeros += (goal - zeros) / delay
        seen.append(zeros)
        multiplier.update(zeros)
    return seen


@pytest.mark.parametrize("response", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("delay", [1.0, 10.0, 50.0])
def test_control_is_stable_over_a_range_of_networks(response: float, delay: float) -> None:
    seen = simulated(TargetSparsity(0.9, bounds=(1e-8, 1e12)), response, delay, steps=3000)
    assert max(abs(zeros - 0.9) for zeros in seen[2000:]) < 0.01
    assert max(seen) < 0.96


def test_weight_falls_to_its_bound_and_says_so_where_the_network_is_sparser() -> None:
    multiplier, texts = Multiplier(TargetSparsity(0.5), 0.5), []
    for _ in range(3000):
        multiplier.update(0.8)
        texts.append(multiplier.complaint())
    assert multiplier.weight == pytest.approx(1e-6)
    (text,) = [text for text in texts if text is not None]
    assert "80.0% zeros with the weight at its lower bound 1e-06, and 50.0% is the target" in text


@pytest.mark.parametrize("zeros", [0.0, 1.0])
def test_no_zeros_and_nothing_but_zeros_stay_finite(zeros: float) -> None:
    multiplier = Multiplier(TargetSparsity(0.999), 0.999)
    for _ in range(5000):
        multiplier.update(zeros)
        assert multiplier.weight >= 0.999999e-6
        assert multiplier.weight <= 1e4 * 1.000001


def test_activations_without_zeros_are_said_once_and_tol_helps() -> None:
    net, (x, t) = network(activation=nn.GELU), digits()
    weight = TargetSparsity(0.9, rate=1.0, bounds=(1e-3, 1.0))

    def run(tol: float, steps: int) -> ActivationPenalty:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        with ActivationPenalty(net, [nn.GELU], weight, tol=tol, measure=False) as penalty:
            for _ in range(steps):
                optimizer.zero_grad()
                (F.cross_entropy(net(x[:32]), t[:32]) + penalty.value()).backward()
                optimizer.step()
        return penalty

    with pytest.warns(
        DSCWarning, match=r"the network has 0.0% zeros with the weight at its upper bound 1, .*GELU"
    ) as seen:
        run(0.0, 700)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert run(0.01, 50).sparsity[""] > 0.2


def test_validation_and_discarded_passes_do_not_move_the_weight() -> None:
    net, (x, _) = network(), digits()
    with ActivationPenalty(net, [nn.ReLU], TargetSparsity(0.9, per_layer=True)) as penalty:
        with torch.no_grad():
            net(x)
            penalty.value()
        net(x)
        penalty.discard()
        assert penalty.steps == 0
        assert math.isnan(penalty.sparsity["1"])
        y = net[:2](x[:64])
        net[2:](y)
        penalty.value()
        assert penalty.sparsity["1"] == pytest.approx(float((y == 0).double().mean()))
        assert set(penalty.weights) == {"1", "3"}
    with pytest.raises(ParameterError, match="sparsity is kept for TargetSparsity only"):
        _ = ActivationPenalty(net, [nn.ReLU], 0.1).sparsity


PROCESS = """
import sys, json, torch
from torch import nn
import torch.distributed as dist
from deep_sparse_coding.sparsity.penalties.penalty import ActivationPenalty
from deep_sparse_coding.sparsity.penalties.target import TargetSparsity
rank, path, together = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
dist.init_process_group("gloo", init_method="file://" + path, rank=rank, world_size=2)
net = nn.Sequential(nn.Identity(), nn.ReLU())
with ActivationPenalty(net, [nn.ReLU], TargetSparsity(0.9, synchronize=together)) as penalty:
    for step in range(3):
        x = torch.full((2 + 2 * rank, 4), 1.0 - 2 * rank).requires_grad_()  # no zeros on one, only zeros on the other
        net(x)
        penalty.value().backward()
print(json.dumps(penalty.state_dict()["multipliers"][""]))
dist.destroy_process_group()
"""


@pytest.mark.parametrize("together", [True, False])
def test_processes_count_together(tmp_path: Path, together: bool) -> None:
    commands = [[sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "meet"), str(together)] for rank in (0, 1)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for command in commands]
    first, second = (json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in running)
    assert (first == second) == together
    assert first["zeros"] == pytest.approx(2 / 3 if together else 0)  # 16 of 24 entries


def test_unit_of_the_weight_is_the_mean_entry() -> None:
    net, (x, _) = network(), digits()
    outputs = [net[:2](x), net[:4](x)]
    for per_layer, expected in (
        (False, sum(y.abs().mean() for y in outputs) / 2),
        (True, sum(y.abs().mean() for y in outputs)),
    ):
        for per_entry in (False, True):
            settings = TargetSparsity(0.9, per_layer=per_layer, initial=0.5)
            with ActivationPenalty(net, [nn.ReLU], settings, per_entry=per_entry) as penalty:
                net(x)
                torch.testing.assert_close(penalty.value(), 0.5 * expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 1.0}, "target is 1; expected a fraction of zeros below 1"),
        ({"target": 90}, "target is 90.*at most 1"),
        ({"target": 0.0}, "target is 0.0; expected a finite number above 0"),
        ({"target": {"a": 2}}, r"target\['a'\] is 2"),
        ({"target": math.nan}, "target is nan"),
        ({"target": 0.9, "rate": 0}, "rate is 0.0"),
        ({"target": 0.9, "smoothing": 0}, "smoothing is 0"),
        ({"target": 0.9, "ramp": 0}, "ramp is 0"),
        ({"target": 0.9, "horizon": -1}, "horizon is -1"),
        ({"target": 0.9, "initial": 1e9}, "initial is 1000000000.0; .*at most 10000"),
        ({"target": 0.9, "bounds": (1, 0.5)}, r"bounds\[1\] is 0.5; expected a finite number above 1"),
        ({"target": 0.9, "bounds": 3}, "bounds is 3; expected the smallest and the largest weight"),
        ({"target": 0.9, "per_layer": 1}, "per_layer is 1; expected True or False"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        TargetSparsity(**settings)  # type: ignore[arg-type]
