"""Denoising: it lowers the error, any cut of the work gives the same image, bad input is named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.commands.denoise import denoise as command
from deep_sparse_coding.images import image_bytes, read_image
from deep_sparse_coding.jobs import denoise, estimate_noise
from deep_sparse_coding.jobs._kernels_groups import refine_groups
from deep_sparse_coding.jobs.denoise import filter_groups
from deep_sparse_coding.jobs.patches import average_patches, color_basis, cut_patches, patch_dictionary

seeds = st.integers(0, 2**31 - 1)


def drawn(height: int = 48, width: int = 56, channels: int = 1) -> Tensor:
    """A disc before stripes and a slope."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    base = torch.where((x - 20) ** 2 + (y - 24) ** 2 < 150, 0.8, 0.35 + 0.1 * torch.sign(torch.sin(0.5 * (x + y))))
    return torch.stack([(base + 0.003 * (k + 1) * x).clamp(0, 1) for k in range(channels)])


def with_noise(image: Tensor, sigma: float, seed: int = 0) -> Tensor:
    return image + sigma * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=image.dtype)


def psnr(found: Tensor, truth: Tensor) -> float:
    return float(-10 * (found - truth).square().mean().log10())


@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_both_passes_lower_the_error(seed: int) -> None:
    truth = drawn()
    noisy = with_noise(truth, 0.1, seed)
    found = denoise(noisy, 0.1)
    assert psnr(found.pilot, truth) > psnr(noisy, truth) + 4
    assert psnr(found.image, truth) > psnr(found.pilot, truth)


def test_first_pass_is_the_average_of_the_patches_that_the_solver_finds() -> None:
    noisy = with_noise(drawn(14, 17), 0.1)
    atoms, side = patch_dictionary(None)
    total, weight = torch.zeros(14, 17, dtype=torch.float64), torch.zeros(14, 17, dtype=torch.float64)
    for r in range(14 - side + 1):
        for c in range(17 - side + 1):
            patch = noisy[0, r : r + side, c : c + side].reshape(-1)
            problem = dsc.SparseApproximation(atoms, epsilon=1.1 * 0.1 * side)
            codes = dsc.solve(problem, (patch - patch.mean())[None], dsc.OMP()).codes
            assert isinstance(codes, Tensor)
            total[r : r + side, c : c + side] += (atoms.synthesize(codes)[0] + patch.mean()).reshape(side, side)
            weight[r : r + side, c : c + side] += 1
    torch.testing.assert_close(denoise(noisy, 0.1, passes=1).image[0], (total / weight).clamp(0, 1))


def test_a_group_is_filtered_by_its_covariance() -> None:
    pilot, noisy = drawn(30, 30), with_noise(drawn(30, 30), 0.1)
    import numpy as np

    places, counts = np.zeros((1, 50, 2), np.int64), np.zeros(1, np.int64)
    found = np.zeros((1, 1, 50, 64))
    corner = np.array([[9, 11]])
    refine_groups(pilot[0].numpy(), pilot.numpy(), noisy.numpy(), corner, 0, 1, 8, 15, 0.01, places, counts, found)
    assert counts[0] == 50
    assert places[0, 0].tolist() == [9, 11]
    cut = [torch.stack([x[0, r : r + 8, c : c + 8].reshape(-1) for r, c in places[0]]) for x in (pilot, noisy)]
    C = torch.cov(cut[0].T, correction=0)
    middle = cut[1].mean(0)
    shifted = C + 0.01 * torch.eye(64, dtype=torch.float64)
    expected = middle + (cut[1] - middle) @ torch.linalg.solve(shifted, C)
    torch.testing.assert_close(torch.from_numpy(found[0, 0]), expected)
    distances = (cut[0] - cut[0][0]).square().sum(1)
    assert bool((distances.diff() >= -1e-12).all())  # the nearest first


def test_memory_and_threads_do_not_change_the_image() -> None:
    noisy = with_noise(drawn(channels=3), 0.1)
    whole = denoise(noisy, 0.1)
    torch.testing.assert_close(denoise(noisy, 0.1, max_memory="400 kB").image, whole.image, rtol=0, atol=1e-12)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        torch.testing.assert_close(denoise(noisy, 0.1).image, whole.image, rtol=0, atol=1e-12)
    finally:
        torch.set_num_threads(threads)


def test_a_batch_is_image_by_image_in_the_dtype_given() -> None:
    images = torch.stack([with_noise(drawn(20, 24), level, 1) for level in (0.05, 0.2)]).float()
    together = denoise(images, torch.tensor([0.05, 0.2]))
    assert together.image.dtype == torch.float32
    assert together.sigma.shape == (2,)
    for i, level in enumerate((0.05, 0.2)):
        torch.testing.assert_close(together.image[i], denoise(images[i], torch.tensor([level])[0]).image)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_color_basis_is_orthonormal_and_begins_with_the_mean(channels: int) -> None:
    basis = color_basis(channels)
    torch.testing.assert_close(basis @ basis.T, torch.eye(channels, dtype=torch.float64))
    torch.testing.assert_close(basis[0], torch.full((channels,), channels**-0.5, dtype=torch.float64))


@given(seed=seeds)
@settings(max_examples=4, deadline=None)
def test_noise_level_is_estimated(seed: int) -> None:
    noisy = with_noise(drawn(96, 96, 3), 0.1, seed)
    assert float(estimate_noise(noisy)) == pytest.approx(0.1, rel=0.08)
    found = denoise(noisy[:, :24, :24])
    assert found.estimated
    assert "estimated" in str(found)


def test_patches_are_cut_along_rows() -> None:
    plane = torch.arange(7 * 9).double().reshape(7, 9)
    every = torch.stack([plane[r : r + 3, c : c + 3].reshape(-1) for r in range(5) for c in range(7)])
    for first, last in ((0, 35), (3, 4), (5, 20), (34, 35)):
        torch.testing.assert_close(cut_patches(plane, 3, first, last), every[first:last])


def test_adapting_to_an_image_uses_fewer_atoms() -> None:
    y, x = torch.meshgrid(torch.arange(40).double(), torch.arange(40).double(), indexing="ij")
    texture = 0.5 + 0.3 * torch.sign(torch.sin(1.3 * x) * torch.sin(0.9 * y))
    noisy = with_noise(texture[None], 0.1)
    atoms = dsc.DenseDictionary.random(25, 40, seed=0, dtype=torch.float64)
    plain, adapted = (denoise(noisy, 0.1, dictionary=atoms, passes=1, adapt=n) for n in (0, 5))
    assert float(adapted.atoms_per_patch) < float(plain.atoms_per_patch)
    assert psnr(adapted.image, texture[None]) > psnr(plain.image, texture[None])


def test_small_patches_and_odd_sizes_cover_every_pixel() -> None:
    atoms = dsc.DenseDictionary.dct(9, 12, dtype=torch.float64)
    for shape in ((1, 3, 3), (1, 3, 11), (1, 9, 10)):
        noisy = with_noise(torch.full(shape, 0.5, dtype=torch.float64), 0.1)
        assert bool(torch.isfinite(denoise(noisy, 0.1, dictionary=atoms).image).all())


def test_constant_images_and_no_noise_come_back_as_they_are() -> None:
    flat = torch.full((1, 12, 12), 0.3)
    assert torch.equal(denoise(flat).image, flat)
    assert float(denoise(flat).sigma) == 0
    image = drawn(12, 12)
    assert torch.equal(denoise(image, 0.0).image, image)


def test_integers_are_scaled_and_said_so() -> None:
    noisy = (with_noise(drawn(16, 16), 0.1).clamp(0, 1) * 255).round()
    with pytest.warns(dsc.DSCWarning, match=r"dtype torch.uint8; its numbers are divided by 255"):
        found = denoise(noisy.to(torch.uint8), 0.1)
    torch.testing.assert_close(found.image, denoise((noisy / 255).float(), 0.1).image)


@pytest.mark.parametrize(
    ("image", "settings_", "error", "text"),
    [
        (torch.full((1, 9, 9), math.nan), {}, dsc.ParameterError, r"81 entries .* the first at \(0, 0, 0\)"),
        (200 * torch.ones(1, 9, 9), {}, dsc.ParameterError, "goes up to 200; expected numbers from 0"),
        (torch.zeros(1, 7, 30), {}, dsc.ShapeError, "7×30 pixels; expected at least 8×8"),
        (torch.zeros(30, 30), {}, dsc.ShapeError, r"expected \(channels, H, W\)"),
        (torch.zeros(1, 9, 9).half(), {}, dsc.DtypeError, "half precision"),
        (torch.zeros(1, 9, 9), {"sigma": -0.1}, dsc.ParameterError, "sigma is -0.1; expected a finite number"),
        (torch.zeros(1, 9, 9), {"sigma": torch.zeros(3)}, dsc.ShapeError, r"sigma has shape \(3,\)"),
        (torch.zeros(1, 9, 9), {"passes": 0}, dsc.ParameterError, "passes is 0; expected a whole number of at least 1"),
        (torch.zeros(1, 9, 9), {"max_memory": 100}, dsc.ParameterError, "max_memory is 100 bytes; expected at least"),
        (torch.zeros(1, 9, 9), {"dictionary": dsc.DenseDictionary(torch.eye(60))}, dsc.DictionaryError, "60 entries"),
        (torch.zeros(1, 9, 9), {"dictionary": "dense"}, dsc.DictionaryError, "dictionary is a str; expected"),
    ],
)  # fmt: skip
def test_bad_input_is_named(image: Tensor, settings_: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        denoise(image, **settings_)  # type: ignore[arg-type]


def test_progress_rises_to_one() -> None:
    seen: list[float] = []
    denoise(with_noise(drawn(20, 20, 3), 0.1), 0.1, max_memory="400 kB", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)
    assert len(seen) > 4


def test_filter_leaves_a_pilot_without_noise_nearly_alone() -> None:
    truth = drawn(24, 24)
    torch.testing.assert_close(filter_groups(truth, truth, 1e-6, 8), truth, rtol=0, atol=1e-5)
    atoms, _ = patch_dictionary(None)
    torch.testing.assert_close(average_patches(truth[0], atoms, 1e-6, 10**6)[0], truth[0], rtol=0, atol=1e-5)


def test_command_writes_pictures_of_several_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "noisy"
    folder.mkdir()
    (folder / "grey.png").write_bytes(image_bytes(with_noise(drawn(20, 24), 0.1)))
    (folder / "colour.png").write_bytes(image_bytes(with_noise(drawn(24, 16, 3), 0.1)))
    command((folder,), out=tmp_path / "clean", sigma=25.5)
    told = capsys.readouterr().out
    assert "2/2" in told
    assert "σ = 25.5 of 255 (given)" in told
    assert read_image(tmp_path / "clean" / "colour.png").shape == (3, 24, 16)
    noisy = read_image(folder / "grey.png")
    expected = (denoise(noisy, 0.1).image * 255).round() / 255
    torch.testing.assert_close(read_image(tmp_path / "clean" / "grey.png"), expected, rtol=0, atol=1.01 / 255)
    with pytest.raises(dsc.ParameterError, match="there are 2 pictures; expected a folder"):
        command((folder,), out=tmp_path / "one.png", quiet=True)
    with pytest.raises(dsc.ParameterError, match="is one of the pictures that are read"):
        command((folder,), out=folder, quiet=True)
    with pytest.raises(dsc.ParameterError, match=r"expected a name that ends in \.png"):
        command((folder / "grey.png",), out=tmp_path / "one.jpg", quiet=True)


def test_command_leaves_out_what_is_no_picture_only_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "b.png").write_bytes(image_bytes(with_noise(drawn(20, 24), 0.1)))
    with pytest.raises(dsc.FileFormatError, match=r"a\.png cannot be read as a picture"):
        command((tmp_path,), out=tmp_path / "clean", quiet=True)
    command((tmp_path,), out=tmp_path / "clean", skip_unreadable=True)
    assert "1/2 left out" in capsys.readouterr().out
    assert [file.name for file in (tmp_path / "clean").iterdir()] == ["b.png"]
