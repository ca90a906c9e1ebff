"""Denoising: mean PSNR and seconds over a folder of grey images, beside what scikit-image has.

    python benchmarks/denoising.py FOLDER [--sigma 15 25 50] [--images 3] [--json PATH] [--pictures FOLDER]

All methods see the same noise (one seed per image) and know σ, except where the row says "estimated"; entries are
clipped to [0, 1] before they are compared. Seconds are processor time on one thread. Every method has one setting for
all images, except total variation, which gets the best of six weights per image. What is in the JSON file is not run
again, so that a run that was stopped goes on. For Set12 the published averages of BM3D stand below the table. Needs
scikit-image and PyWavelets.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deep_sparse_coding.images import find_images, image_bytes, read_image
from deep_sparse_coding.jobs import denoise, inpaint

# Dabov et al. 2007 as reported for Set12 by Zhang et al., Beyond a Gaussian denoiser, 2017.
BM3D = {15: 32.37, 25: 29.97, 50: 26.72}
WEIGHTS = (0.05, 0.08, 0.1, 0.15, 0.2, 0.3)
Array = np.ndarray


def psnr(found: Array, truth: Array) -> float:
    """Return the peak signal-to-noise ratio in dB of what is clipped to [0, 1]."""
    return float(-10 * np.log10(np.mean((np.clip(found, 0, 1) - truth) ** 2)))


def noisy_image(truth: Array, sigma: int, number: int) -> Array:
    """Return the image with noise of σ in 8-bit units, by a seed of the image's number."""
    return truth + np.random.default_rng(number).standard_normal(truth.shape) * sigma / 255


def ours(passes: int, known: bool = True) -> Callable[[Array, float, Array], Array]:
    def run(noisy: Array, sigma: float, _: Array) -> Array:
        return denoise(torch.from_numpy(noisy)[None], sigma if known else None, passes=passes).image[0].numpy()

    return run


def wavelet(noisy: Array, sigma: float, _: Array) -> Array:
    from skimage.restoration import denoise_wavelet

    return denoise_wavelet(noisy, sigma=sigma, method="BayesShrink", mode="soft", rescale_sigma=True)


def total_variation(noisy: Array, sigma: float, truth: Array) -> Array:
    from skimage.restoration import denoise_tv_chambolle

    tried = [denoise_tv_chambolle(noisy, weight=weight) for weight in WEIGHTS]
    return max(tried, key=lambda found: psnr(found, truth))


def nonlocal_means(noisy: Array, sigma: float, _: Array) -> Array:
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(noisy, h=0.8 * sigma, sigma=sigma, fast_mode=True, patch_size=5, patch_distance=6)


METHODS: dict[str, Callable[[Array, float, Array], Array]] = {
    "ours, two passes": ours(2),
    "ours, dictionary alone": ours(1),
    "ours, two passes, σ estimated": ours(2, known=False),
    "wavelets, BayesShrink": wavelet,
    "total variation, best weight": total_variation,
    "non-local means": nonlocal_means,
}


def measure(files: list[Path], sigmas: list[int], path: Path) -> dict[str, list[float]]:
    """Return PSNR and seconds by "σ, method, file"; what the file of results has is not run again."""
    results: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    warm = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise(warm, 0.1)  # compiles
    for sigma in sigmas:
        for number, file in enumerate(files):
            truth = read_image(file, channels=1, dtype=torch.float64)[0].numpy()
            noisy = noisy_image(truth, sigma, number)
            for name, method in METHODS.items():
                key = f"{sigma}|{name}|{file.name}"
                if key in results:
                    continue
                began = time.process_time()
                found = method(noisy, sigma / 255, truth)
                results[key] = [psnr(found, truth), time.process_time() - began]
                path.write_text(json.dumps(results, indent=1, ensure_ascii=False))
            print(
                f"σ = {sigma} · {file.name} · {results[f'{sigma}|ours, two passes|{file.name}'][0]:.2f} dB", flush=True
            )
    return results


def table(results: dict[str, list[float]], files: list[Path], sigmas: list[int]) -> str:
    """Return the averages as a table in Markdown."""
    lines = [f"| mean of {len(files)} images | " + " | ".join(f"σ = {s} | s" for s in sigmas) + " |"]
    lines.append("|---" * (1 + 2 * len(sigmas)) + "|")
    for name in METHODS:
        cells = []
        for sigma in sigmas:
            mean = np.mean([results[f"{sigma}|{name}|{file.name}"] for file in files], 0)
            cells.append(f"{mean[0]:.2f} | {mean[1]:.1f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if len(files) == 12 and all(s in BM3D for s in sigmas):
        lines.append("| BM3D, as published | " + " | ".join(f"{BM3D[s]:.2f} | " for s in sigmas) + " |")
    return "\n".join(lines)


def pictures(folder: Path) -> None:
    """Write how a photograph that the dictionary was not learned from is denoised and filled: before, after, true."""
    from skimage.data import astronaut

    folder.mkdir(parents=True, exist_ok=True)
    truth = torch.from_numpy(astronaut()[0:200, 120:320] / 255).movedim(-1, 0)
    for sigma in (25, 50):
        noisy = torch.from_numpy(noisy_image(truth.numpy(), sigma, 0))
        found = denoise(noisy, sigma / 255).image
        (folder / f"denoise_{sigma}.png").write_bytes(image_bytes(torch.cat([noisy, found, truth], 2)))
        print(f"astronaut, σ = {sigma}: {psnr(noisy.numpy(), truth.numpy()):.2f} dB, "
              f"{psnr(found.numpy(), truth.numpy()):.2f} dB denoised")  # fmt: skip
    for kind in ("text", "80"):
        known = torch.from_numpy(holes((truth.shape[1], truth.shape[2]), kind, 0))
        found = inpaint(truth, known).image
        (folder / f"denoise_fill_{kind}.png").write_bytes(image_bytes(torch.cat([truth * known, found, truth], 2)))
        print(f"astronaut, missing {kind}: {psnr(found.numpy(), truth.numpy()):.2f} dB")


def holes(shape: tuple[int, int], kind: str, seed: int) -> Array:
    """Return True where pixels are observed: a share missing at random ("50", "80"), or words written over it."""
    rng = np.random.default_rng(seed)
    if kind != "text":
        return rng.random(shape) >= int(kind) / 100
    from skimage.data import text

    strokes = text() < 110
    tiled = np.tile(strokes, (shape[0] // strokes.shape[0] + 1, shape[1] // strokes.shape[1] + 1))
    return ~tiled[: shape[0], : shape[1]]


def measure_filling(files: list[Path]) -> None:
    """Print a table of filled images beside scikit-image's biharmonic filling."""
    from skimage.restoration import inpaint_biharmonic

    print("| image | missing | masked Lasso | s | 12 passes | s | biharmonic | s |\n|---|---|---|---|---|---|---|---|")
    for file in files:
        truth = read_image(file, channels=1, dtype=torch.float64)
        for kind in ("50", "80", "text"):
            known = holes((truth.shape[1], truth.shape[2]), kind, 0)
            cells = []
            for passes in (0, 12):
                began = time.process_time()
                found = inpaint(truth, torch.from_numpy(known), passes=passes).image[0].numpy()
                cells.append(f"{psnr(found, truth[0].numpy()):.2f} | {time.process_time() - began:.1f}")
            began = time.process_time()
            found = inpaint_biharmonic(truth[0].numpy(), ~known)
            cells.append(f"{psnr(found, truth[0].numpy()):.2f} | {time.process_time() - began:.1f}")
            missing = "text" if kind == "text" else f"{kind} %"
            print(f"| {file.stem} | {missing} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sigma", type=int, nargs="*", default=[15, 25, 50])
    parser.add_argument("--images", type=int, default=None, help="how many of the folder's images")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks/denoising.json"))
    parser.add_argument("--pictures", type=Path, default=None, help="also write pictures to this folder")
    parser.add_argument("--fill", type=int, default=0, help="also fill holes in so many images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = find_images(options.folder)[: options.images]
    if options.sigma:
        print(table(measure(files, options.sigma, options.json), files, options.sigma))
    if options.fill:
        measure_filling(files[: options.fill])
    if options.pictures:
        pictures(options.pictures)


if __name__ == "__main__":
    main()
