"""DistributedDataParallel over two processes on the CPU: the gradient is that of the whole batch in one process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deep_sparse_coding.sparsity import ActivationPenalty, SparsityReport

WEIGHT, STEPS = 0.05, 3


def network() -> nn.Sequential:
    act = nn.ReLU(inplace=True)
    net = nn.Sequential(nn.Linear(6, 16), act, nn.Linear(16, 16), act, nn.Linear(16, 2)).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 3
    return net


def signals(step: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def train(net: nn.Module, watched: nn.Module, part: slice) -> SparsityReport:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with ActivationPenalty(watched, [nn.ReLU], WEIGHT) as penalty:
        for step in range(STEPS):
            optimizer.zero_grad()
            (net(signals(step)[part]).square().mean() + penalty.value()).backward()
            optimizer.step()
    return penalty.report()


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for kind in ("module", "wrapper"):
        net = network()
        wrapped = DistributedDataParallel(net)
        report = train(wrapped, net if kind == "module" else wrapped, slice(4 * rank, 4 * rank + 4))
        found[kind] = [parameter.detach() for parameter in net.parameters()]
        found[f"{kind} zeros"] = report.zero_fraction
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_on_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    alone = network()
    report = train(alone, alone, slice(None))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind in ("module", "wrapper"):
        for found in ranks:
            for have, want in zip(found[kind], alone.parameters(), strict=True):
                torch.testing.assert_close(have, want.detach(), rtol=1e-10, atol=1e-12)
        # Each process reports what it saw itself.
        mean = sum(found[f"{kind} zeros"] for found in ranks) / 2
        assert abs(mean - report.zero_fraction) < 1e-12
        assert ranks[0][f"{kind} zeros"] != ranks[1][f"{kind} zeros"]
    start = network()
    assert not torch.equal(start[0].weight, alone[0].weight)
