"""The torchmetrics classes equal the functions on everything at once: updates, merges, two processes, pickles."""

from __future__ import annotations

import builtins
import importlib
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from deep_sparse_coding.errors import DtypeError, MissingExtraError, ParameterError, ShapeError
from deep_sparse_coding.sparsity import dead_channels, hoyer, l1_per_entry, zero_fraction
from deep_sparse_coding.sparsity.metrics import DeadChannels, HoyerSparsity, L1PerEntry, ZeroFraction

CASES: dict[str, tuple[Callable[[], Metric], Callable[[Tensor], Tensor]]] = {
    "zeros": (ZeroFraction, zero_fraction),
    "tolerant": (lambda: ZeroFraction(tol=0.5), lambda x: zero_fraction(x, 0.5)),
    "hoyer": (HoyerSparsity, lambda x: hoyer(x).nanmean()),
    "l1": (L1PerEntry, l1_per_entry),
    "dead": (lambda: DeadChannels(4), lambda x: dead_channels(x).sum()),
    "dead tokens": (lambda: DeadChannels(5, -1, tol=0.9), lambda x: dead_channels(x, -1, 0.9).sum()),
}
every = pytest.mark.parametrize("case", CASES)


def drawn(seed: int, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, 5, generator=generator, dtype=torch.float64)
    x = x * (torch.rand(batch, 4, 5, generator=generator) < 0.15)
    x[0] = 0
    return x


@every
@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=8, deadline=None)
def test_updates_and_merges_equal_everything_at_once(case: str, seed: int) -> None:
    make, measure = CASES[case]
    parts = [drawn(seed + k, batch) for k, batch in enumerate((3, 1, 4))]
    expected = measure(torch.cat(parts)).double()
    one, other = make(), make()
    for x in parts:
        one.update(x)
    torch.testing.assert_close(one.compute().double(), expected, rtol=1e-6, atol=0, equal_nan=True)
    one.reset()
    one.update(parts[0])
    other.update(parts[1])
    other.update(parts[2])
    one.merge_state(other)
    torch.testing.assert_close(one.compute().double(), expected, rtol=1e-6, atol=0, equal_nan=True)


@every
def test_forward_pickle_reset_and_dtypes(case: str) -> None:
    make, measure = CASES[case]
    metric = make()
    x = drawn(0)
    torch.testing.assert_close(metric(x).double(), measure(x).double(), rtol=1e-6, atol=0, equal_nan=True)
    metric.update(drawn(1))
    twin = pickle.loads(pickle.dumps(metric))
    assert type(twin) is type(metric)
    twin.update(drawn(2))
    metric.update(drawn(2))
    assert twin.compute() == metric.compute()
    metric.reset()
    half = x.bfloat16()
    metric.update(half)
    torch.testing.assert_close(metric.compute().double(), measure(half).double(), rtol=1e-6, atol=0, equal_nan=True)
    with pytest.raises(DtypeError, match="expected a dense real tensor"):
        metric.update(torch.ones(2, 4, 5, dtype=torch.complex64))


def test_many_small_updates_lose_no_digits() -> None:
    metric = L1PerEntry()
    for _ in range(2000):
        metric.update(torch.full((1000,), 0.1))
    assert metric.compute().item() == pytest.approx(0.1, rel=1e-7)


def test_bad_settings_and_shapes() -> None:
    for channels in (0, -1, 2.0, True, None):
        with pytest.raises(ParameterError, match=r"channels is .*; expected the number of channels, at least 1"):
            DeadChannels(channels)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="tol is -1"):
        ZeroFraction(tol=-1)
    with pytest.raises(ShapeError, match=r"x has shape \(3, 4, 5\) with 4 channels at axis 1; expected 7"):
        DeadChannels(7).update(drawn(0))
    collection = MetricCollection([ZeroFraction(), HoyerSparsity(), L1PerEntry()])
    collection.update(drawn(0))
    assert set(collection.compute()) == {"ZeroFraction", "HoyerSparsity", "L1PerEntry"}


def _worker(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for case, (make, _) in CASES.items():
        metric = make()
        for k in range(2 + rank):
            metric.update(drawn(10 * rank + k))
        found[case] = metric.compute()
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    # No gradients are taken, so that forked processes do, which need not import everything again.
    torch.multiprocessing.start_processes(_worker, (str(tmp_path),), nprocs=2, start_method="fork")
    everything = torch.cat([drawn(k) for k in (0, 1, 10, 11, 12)])
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for case, (_, measure) in CASES.items():
            torch.testing.assert_close(
                found[case].double(), measure(everything).double(), rtol=1e-6, atol=0, equal_nan=True
            )


def test_without_torchmetrics_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "deep_sparse_coding.sparsity.metrics"
    monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def refuse(target: str, *args: object, **settings: object) -> object:
        if target == "torchmetrics":
            raise ImportError(target)
        return real(target, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"needs the package 'torchmetrics'.*deep_sparse_coding\[train\]"):
        importlib.import_module(name)
