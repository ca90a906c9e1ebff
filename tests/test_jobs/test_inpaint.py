"""Filling of missing pixels: what is observed stays, what is missing comes closer, bad input is named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.commands.inpaint import inpaint as command
from deep_sparse_coding.images import image_bytes, read_image
from deep_sparse_coding.jobs import inpaint

seeds = st.integers(0, 2**31 - 1)


def drawn(height: int = 32, width: int = 40, channels: int = 1) -> Tensor:
    """Waves of two directions over a slope."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    base = 0.5 + 0.2 * torch.sin(0.4 * x + 0.2 * y) + 0.1 * torch.sin(0.7 * y)
    return torch.stack([base - 0.004 * k * x for k in range(channels)])


def holes(shape: tuple[int, ...], share: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) >= share


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).square().mean().sqrt())


@given(seed=seeds)
@settings(max_examples=3, deadline=None)
def test_random_holes_are_filled_and_what_was_observed_stays(seed: int) -> None:
    truth = drawn(channels=3)
    mask = holes(tuple(truth.shape), 0.5, seed)
    broken = torch.where(mask, truth, math.nan)
    found = inpaint(broken, mask, passes=4)
    assert torch.equal(found.image[mask], truth[mask])
    assert float(found.missing) == pytest.approx(float((~mask).double().mean()))
    assert error(found.first, truth) < 0.25 * error(torch.where(mask, truth, truth.mean()), truth)
    assert error(found.image, truth) < 0.25 * error(torch.where(mask, truth, truth.mean()), truth)


def test_holes_wider_than_a_patch_take_rounds() -> None:
    truth = drawn(40, 40)
    mask = torch.ones(40, 40)
    mask[8:34, 8:34] = 0
    found = inpaint(truth, mask, passes=0)
    assert found.rounds[0] == 2
    assert bool(torch.isfinite(found.image).all())
    assert "2 rounds to fill" in str(found)


def test_one_observed_pixel_fills_all_with_its_value() -> None:
    image, mask = torch.zeros(1, 12, 12), torch.zeros(12, 12, dtype=torch.bool)
    image[0, 3, 4], mask[3, 4] = 0.7, True
    torch.testing.assert_close(inpaint(image, mask, passes=1).image, torch.full((1, 12, 12), 0.7))


def test_a_whole_image_comes_back_as_it_is() -> None:
    image = drawn()
    assert torch.equal(inpaint(image, torch.ones(32, 40)).image, image)


def test_memory_does_not_change_the_image_and_a_batch_is_image_by_image() -> None:
    images = torch.stack([drawn(20, 24), drawn(20, 24).flip(2)])
    mask = holes((20, 24), 0.4, 3)
    together = inpaint(images, mask, passes=2)
    assert together.missing.shape == (2,)
    parts = inpaint(images[1], mask, passes=2, max_memory="400 kB")
    torch.testing.assert_close(together.image[1], parts.image, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("image", "mask", "kind", "text"),
    [
        (torch.zeros(1, 9, 9), torch.ones(9, 8), dsc.ShapeError, r"mask has shape \(9, 8\); expected \(1, 9, 9\)"),
        (torch.zeros(1, 9, 9), torch.zeros(9, 9), dsc.ParameterError, "all pixels are missing in 1 of 1 channels"),
        (torch.zeros(1, 9, 9), torch.full((9, 9), 0.5), dsc.ParameterError, "other numbers than 0 and 1"),
        (torch.zeros(1, 9, 9), None, dsc.ParameterError, "mask is a NoneType; expected a tensor"),
        (torch.full((1, 9, 9), math.nan), torch.ones(9, 9), dsc.ParameterError, "part of image has 81 entries"),
        (torch.zeros(1, 5, 9), torch.ones(5, 9), dsc.ShapeError, "5×9 pixels; expected at least 8×8"),
    ],
)  # fmt: skip
def test_bad_input_is_named(image: Tensor, mask: Tensor, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        inpaint(image, mask)


def test_integers_are_scaled_and_said_so() -> None:
    mask = holes((16, 16), 0.3, 0)
    image = (drawn(16, 16) * 255).round().to(torch.uint8)
    with pytest.warns(dsc.DSCWarning, match="divided by 255"):
        found = inpaint(image, mask, passes=0)
    torch.testing.assert_close(found.image[:, mask], image[:, mask].double().div(255).float())


def test_command_fills_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, mask = drawn(20, 20, 3), holes((20, 20), 0.3, 0)
    (tmp_path / "broken.png").write_bytes(image_bytes(truth * mask))
    (tmp_path / "mask.png").write_bytes(image_bytes(mask.double()))
    command(tmp_path / "broken.png", mask=tmp_path / "mask.png", out=tmp_path / "filled.png", passes=1)
    assert "missing" in capsys.readouterr().out
    assert error(read_image(tmp_path / "filled.png").double(), truth) < 0.05
