"""What `ActivationPenalty` adds to a training step of a VGG-style network.

Steps without the penalty, with it, and with it but without measuring, take turns on the same data, so that a change of
clock speed or another process touches all three alike; the ratio is the median over rounds of the ratios of neighbors.

    python benchmarks/activation_penalty.py --rounds 15 --json activation_penalty.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from deep_sparse_coding.sparsity import ActivationPenalty


def vgg(widths: tuple[int | str, ...], classes: int = 10) -> nn.Sequential:
    """Return convolutions 3 × 3 with batch normalization and in-place ReLU, "M" for pooling, and a linear head."""
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def median_ratios(arguments: argparse.Namespace) -> dict[str, float | int | str]:
    """Run the rounds and return medians in milliseconds and the ratios to the plain step."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    net = vgg((64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512)).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(arguments.batch, 3, 32, 32, generator=generator).to(device)
    t = torch.randint(10, (arguments.batch,), generator=generator).to(device)

    def step(penalty: Callable[[], Tensor] | None) -> float:
        _wait(device)
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), t)
        if penalty is not None:
            loss = loss + penalty()
        loss.backward()
        optimizer.step()
        _wait(device)
        return 1000 * (time.perf_counter() - start)

    def penalized(measure: bool) -> float:
        with ActivationPenalty(net, targets=[nn.ReLU], weight=1e-6, measure=measure) as penalty:
            return step(penalty.value)

    kinds: dict[str, Callable[[], float]] = {
        "plain": lambda: step(None),
        "penalty": lambda: penalized(True),
        "penalty, not measured": lambda: penalized(False),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(arguments.warmup + arguments.rounds):
        # The order turns around every round, so that none always runs on what another left in the caches.
        for kind in list(kinds)[:: 1 if number % 2 else -1]:
            elapsed = kinds[kind]()
            if number >= arguments.warmup:
                times[kind].append(elapsed)
    result: dict[str, float | int | str] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "batch": arguments.batch,
        "rounds": arguments.rounds,
    }
    for kind, values in times.items():
        ratios = [value / plain for value, plain in zip(values, times["plain"], strict=True)]
        result[f"{kind}: median ms"] = round(statistics.median(values), 3)
        result[f"{kind}: median ratio"] = round(statistics.median(ratios), 4)
    return result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; torch's choice if left out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    result = median_ratios(arguments)
    for name, value in result.items():
        print(f"{name:38} {value}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
