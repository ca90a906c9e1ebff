"""Compiled before the context and inside of it: the same value, gradient and report as without compiling."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from watched import MAKERS, Branches, gradients, penalty_of, same

slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("to_cnn", "aot_eager"),
        ("unfold", "eager"),
        ("encoder", "eager"),
        ("used three times", "eager"),
        ("used three times", "aot_eager"),
        pytest.param("used three times", "inductor", marks=slow),
        pytest.param("resnet", "eager", marks=slow),
        pytest.param("vit", "eager", marks=slow),
        pytest.param("gpt2", "aot_eager", marks=slow),
    ],
)
@pytest.mark.parametrize("when", ["before", "inside"])
def test_compiled(name: str, backend: str, when: str) -> None:
    case = MAKERS[name]()
    model = case.model.eval().requires_grad_(True)
    with penalty_of(case, model) as penalty:
        output = case.run(model)
        value = penalty.value()
        wanted = gradients(model, output.square().mean() + value)
    expected = penalty.report()
    compiled = torch.compile(model, backend=backend)
    assert isinstance(compiled, nn.Module)
    with penalty_of(case, compiled if when == "before" else model) as penalty:
        if when == "inside":
            compiled = torch.compile(model, backend=backend)
        for _ in range(2):
            output = case.run(compiled)
            again = penalty.value()
            torch.testing.assert_close(again, value, rtol=1e-4, atol=0)
            same(gradients(model, output.square().mean() + again), wanted, rtol=1e-3)
    row, whole = next(iter(penalty.report())), next(iter(expected))
    assert row.calls == 2 * whole.calls == (6 if isinstance(model, Branches) else 2)
    assert row.zero_fraction == pytest.approx(whole.zero_fraction, abs=1e-3)
