"""What `ActivationPenalty` adds to training steps of a VGG11 and of a U-Net with batch normalization.

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

ASKED = {"VGG11": 1.05, "U-Net": 1.10}


def vgg11(classes: int = 10) -> nn.Sequential:
    """Return convolutions 3 × 3 with batch normalization and in-place ReLU, pooling between them, and a linear head."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512):
        if width is None:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class UNet(nn.Module):
    """Two convolutions with batch normalization and ReLU at every scale, skips between down and up."""

    def __init__(self, widths: tuple[int, ...], channels: int = 3, classes: int = 1) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((channels, *widths), widths, strict=False))
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(_block(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return one map per class, of the size of the image."""
        kept: list[Tensor] = []
        for number, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if number else x)
            kept.append(x)
        for grow, block, skip in zip(self.grow, self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([grow(x), skip], dim=1))
        return self.head(x)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def race(
    net: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor], rounds: int, warmup: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Return the median step of each kind in milliseconds, and the ratios to the plain step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step(penalty: Callable[[], Tensor] | None) -> float:
        _wait(x.device)
        start = clock()
        optimizer.zero_grad()
        total = loss(net(x))
        if penalty is not None:
            total = total + penalty()
        total.backward()
        optimizer.step()
        _wait(x.device)
        return 1000 * (clock() - start)

    def penalized(measure: bool) -> float:
        with ActivationPenalty(net, targets=[nn.ReLU], weight=1e-6, measure=measure) as penalty:
            return step(penalty.value)

    kinds: dict[str, Callable[[], float]] = {
        "plain": lambda: step(None),
        "penalty": lambda: penalized(True),
        "penalty, not measured": lambda: penalized(False),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(warmup + rounds):
        # The order turns around every round, so that none always runs on what another left in the caches.
        for kind in list(kinds)[:: 1 if number % 2 else -1]:
            elapsed = kinds[kind]()
            if number >= warmup:
                times[kind].append(elapsed)
    result = {}
    for kind, values in times.items():
        ratios = [value / plain for value, plain in zip(values, times["plain"], strict=True)]
        result[f"{kind}: median ms"] = round(statistics.median(values), 3)
        result[f"{kind}: median ratio"] = round(statistics.median(ratios), 4)
    return result


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float | int | str]]:
    """Run both networks and return what is printed."""
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(arguments.batch, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(10, (arguments.batch,), generator=generator).to(device)
    side = arguments.side
    large = torch.randn(arguments.images, 3, side, side, generator=generator).to(device)
    mask = (torch.rand(arguments.images, 1, side, side, generator=generator) < 0.3).float().to(device)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    rounds = {"rounds": arguments.rounds, "warmup": arguments.warmup, "clock": clock}
    unet = UNet(tuple(arguments.widths))
    return {
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count() or 0,
            "rounds": arguments.rounds,
            "clock": clock.__name__,
        },
        "VGG11": race(vgg11().to(device), small, lambda y: F.cross_entropy(y, labels), **rounds),
        "U-Net": race(unet.to(device), large, lambda y: F.binary_cross_entropy_with_logits(y, mask), **rounds),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="images of 32 × 32 for the VGG11")
    parser.add_argument("--images", type=int, default=4, help="images for the U-Net")
    parser.add_argument("--side", type=int, default=96, help="their height and width")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 256], help="channels of the U-Net")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; torch's choice if left out")
    parser.add_argument("--processor-time", action="store_true", help="time of all threads, for a machine that is busy")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    result = measure(arguments)
    for part, numbers in result.items():
        print(part + (f" (asked: at most {ASKED[part]:.2f})" if part in ASKED else ""))
        for name, value in numbers.items():
            print(f"  {name:38} {value}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
