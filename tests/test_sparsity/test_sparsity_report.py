"""The report: running sums equal the measures of all outputs together."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deep_sparse_coding.errors import HookError, NameMatchError, ParameterError, ShapeError
from deep_sparse_coding.sparsity import ActivationPenalty, Probe, hoyer


class Fixed(nn.Module):
    """Puts out what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def sparse(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return x * (torch.rand(*shape, generator=generator) < 0.2)


@pytest.mark.parametrize(
    ("shape", "batch_axis", "channel_axis"),
    [((3, 4, 5, 2), 0, 1), ((3, 6), 0, 1), ((3, 5, 4), 0, -1), ((5, 3, 4), 1, 2), ((4, 3, 5), 1, 0), ((4, 3), 1, 0)],
)
@given(seed=st.integers(0, 2**31 - 1))
@settings(max_examples=8, deadline=None)
def test_running_sums_equal_the_measures_of_everything(
    shape: tuple[int, ...], batch_axis: int, channel_axis: int, seed: int
) -> None:
    net = nn.Sequential(Fixed())
    outputs = [sparse(seed + call, *shape) for call in range(3)]
    outputs[1].select(batch_axis, 0).zero_()
    for tol in (0.0, 0.5):
        penalty = ActivationPenalty(net, [Fixed], 1.0, tol=tol, batch_axis=batch_axis, channel_axis=channel_axis)
        with penalty, Probe(net, [Fixed]) as probe:
            for x in outputs:
                net(x)
        report = penalty.report()
        other = probe.report(tol=tol, batch_axis=batch_axis, channel_axis=channel_axis)
        assert other == report or math.isnan(report["0"].hoyer)
        row = report["0"]
        stacked = torch.stack(outputs)
        samples = torch.cat([x.movedim(batch_axis, 0).flatten(1) for x in outputs])
        channels = torch.cat([x.movedim(channel_axis, 0).flatten(1) for x in outputs], dim=1)
        assert (row.calls, row.entries) == (3, stacked.numel())
        assert row.zero_fraction == pytest.approx((stacked.abs() <= tol).double().mean().item(), abs=1e-12)
        assert row.l1_per_entry == pytest.approx(stacked.abs().mean().item(), rel=1e-12)
        assert row.hoyer == pytest.approx(hoyer(samples).nanmean().item(), abs=1e-12, nan_ok=True)
        assert row.channels == channels.shape[0]
        assert row.dead_channels == int((channels.abs() <= tol).all(1).sum())


def test_a_channel_is_dead_only_if_it_never_was_active() -> None:
    net = nn.Sequential(Fixed())
    x = torch.zeros(2, 3, 2, 2)
    with ActivationPenalty(net, [Fixed], 1.0) as penalty:
        x[:, 0] = 1
        net(x)
        assert penalty.report()["0"].dead_channels == 2
        x.zero_()[1, 2] = 1
        net(x)
        assert penalty.report()["0"].dead_channels == 1
        penalty.reset()
        net(x)
        assert penalty.report()["0"].dead_channels == 2
        net(torch.ones(2, 5, 2, 2))
        row = penalty.report()["0"]
        assert row.channels is None
        assert row.dead_channels is None
        assert "–" in str(penalty.report())


def test_table_is_aligned_and_names_every_layer() -> None:
    net = nn.Sequential(Fixed(), nn.ReLU(), Fixed(), nn.LeakyReLU(0.5))
    with Probe(net, targets=[nn.ReLU, "3"]) as probe:
        net(torch.tensor([[1.0, -1.0, 2.0, -2.0]]))
    report = probe.report()
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "type", "calls", "zeros", "Hoyer", "l1", "per", "entry", "dead", "channels"]
    assert len(lines) == 6
    assert lines[2] == "1      ReLU           1  50.0 %  0.658     7.500e-01         2 of 4"
    assert lines[3].endswith("50.0 %  0.658     7.500e-01         2 of 4")
    assert len({len(line) for line in lines[:4]}) == 1
    assert [row.name for row in report] == ["1", "3"]
    assert len(report) == 2
    assert report.zero_fraction == pytest.approx((report["1"].zero_fraction + report["3"].zero_fraction) / 2)
    with pytest.raises(NameMatchError, match=r"the report has no layer '2'.*it has: \['1', '3'\]"):
        report["2"]


def test_dictionary_can_be_written_as_json() -> None:
    net = nn.Sequential(Fixed())
    with Probe(net, targets=[Fixed]) as probe:
        net(torch.zeros(2, 3))
    written = probe.report().to_dict()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert written["layers"][0] == {
        "name": "0", "kind": "Fixed", "calls": 1, "entries": 6, "zero_fraction": 1.0, "hoyer": None,
        "l1_per_entry": 0.0, "channels": 3, "dead_channels": 3,
    }  # fmt: skip


def test_outputs_with_one_axis_and_empty_batches() -> None:
    net = nn.Sequential(Fixed())
    with ActivationPenalty(net, [Fixed], 1.0) as penalty:
        net(torch.tensor([0.0, 2.0]))
        row = penalty.report()["0"]
        assert (row.zero_fraction, row.channels, row.dead_channels) == (0.5, 1, 0)
        assert math.isnan(row.hoyer)
        penalty.reset()
        net(torch.ones(0, 3, 4))
        assert math.isnan(penalty.report()["0"].zero_fraction)


def test_report_refuses_what_was_not_measured() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with ActivationPenalty(net, [nn.ReLU], 1.0, measure=False) as penalty:
        net(torch.ones(1, 2))
        with pytest.raises(ParameterError, match=r"measure is False.*expected True"):
            penalty.report()
    with (
        ActivationPenalty(net, [nn.ReLU], 1.0) as penalty,
        pytest.raises(HookError, match=r"report\(\) found no activations: none of '1' ran"),
    ):
        penalty.report()
    with (
        ActivationPenalty(net, [nn.ReLU], 1.0, channel_axis=2),
        pytest.raises(ShapeError, match=r"'1' put out the shape \(1, 2\), and channel_axis is 2"),
    ):
        net(torch.ones(1, 2))
