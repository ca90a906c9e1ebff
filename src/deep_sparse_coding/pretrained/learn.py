"""Learn a shipped dictionary anew: ``python -m deep_sparse_coding.pretrained.learn NAME [--out DIR]``."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._version import __version__
from ..dictionaries import Cascade, Dictionary, save
from ..errors import DSCWarning
from ..files import write_whole
from ..learning import LearningProgress, LearningResult, learn
from ..problems import Lasso, LayeredLasso
from ..solvers import solve
from . import NAMES
from .photographs import HELD_OUT, pixel_digest, read_photograph
from .recipes import RECIPES, Recipe, patches, training_data

# The held-out photograph is judged on a square of this side around its middle, and patches at every fourth pixel.
_SIDE, _STEP = 256, 4
# The relative duality gap to which held-out images are solved.
_TOL = 1e-4


def learn_pretrained(recipe: Recipe, *, quiet: bool = True) -> tuple[LearningResult, dict[str, Any]]:
    """Learn what a recipe says, and return the result and its card (without the digest of the file).

    The same recipe gives the same bits on one thread of the same machine and versions.

    Args:
        recipe: The settings.
        quiet: Show no progress.

    Raises:
        MissingExtraError: scikit-image or scikit-learn is not installed.
    """
    deep = len(recipe.atoms) > 1

    def report(seen: LearningProgress) -> None:
        print(seen, flush=True)

    result = learn(
        training_data(recipe),
        recipe.atoms if deep else recipe.atoms[0],
        size=None if recipe.dense else recipe.size if deep else recipe.size[0],
        lam=recipe.lam if deep else recipe.lam[0],
        stride=recipe.stride if deep else recipe.stride[0],
        epochs=recipe.epochs,
        seed=recipe.seed,
        method="online" if recipe.dense else "batch",
        nonzeros=None if recipe.nonzeros is None else (None,) + (recipe.nonzeros,) * (len(recipe.atoms) - 1),
        callback=None if quiet else report,
    )
    return result, _card(recipe, result)


def judge(recipe: Recipe, model: Dictionary | Cascade) -> dict[str, Any]:
    """Return what a model reaches on the middle of the held-out photograph, at the recipe's lam.

    Of a dense dictionary patches without their means are coded; of the others the picture without its mean under a
    Gaussian window, divided by one number so that its standard deviation is 1. What was taken away is given back before
    the picture is compared.

    Args:
        recipe: How the model was learned.
        model: The model.

    Returns:
        ``"objective"`` of every layer per patch or pixel, ``"density"`` of the codes of every layer, ``"psnr"`` in dB
        of the picture from the codes of every layer (white is 1), ``"relative_gap"`` of the codes.
    """
    image = read_photograph(HELD_OUT, color=recipe.color)
    # A first layer of stride q makes signals of size k + q·n only.
    side = _SIDE - (_SIDE - recipe.size[0]) % recipe.stride[0]
    top, left = ((n - side) // 2 for n in image.shape[1:])
    area = (..., slice(top, top + side), slice(left, left + side))
    if recipe.dense:
        signal, scale, units = patches(image[area], recipe.size[0], _STEP), 1.0, 1
    else:
        detail = image - local_mean(image, recipe.sigma)
        scale = float(detail.std())
        signal, units = (detail[area] / scale)[None], side * side
    if isinstance(model, Cascade):
        problem = LayeredLasso(model.cast(torch.float64), recipe.lam)
        solution = solve(problem, signal, tol=_TOL)
        codes = tuple(solution.codes)
        pictures = [Cascade(problem.model.layers[:j]).synthesize(x) for j, x in enumerate(codes, start=1)]
        objectives = [float(layer.objective.mean()) / units for layer in solution.certificate.layers]
    else:
        exact = model.cast(torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DSCWarning)  # flat patches have codes that are all zero, as they should
            solution = solve(Lasso(exact, recipe.lam[0]), signal, tol=_TOL)
        codes = (torch.as_tensor(solution.codes),)
        pictures = [exact.synthesize(codes[0])]
        objectives = [float(solution.certificate.objective.mean()) / units]
    errors = [scale**2 * float((signal - picture).square().mean()) for picture in pictures]
    return {
        "photograph": asdict(HELD_OUT),
        "region": f"{side}×{side} pixels around the middle",
        "objective": objectives,
        "objective_per": "patch" if recipe.dense else "pixel",
        "density": [float(x.count_nonzero()) / x.numel() for x in codes],
        "psnr": [-10 * math.log10(error) for error in errors],
        "relative_gap": float(solution.certificate.relative_gap.max()),
    }


def local_mean(image: Tensor, sigma: float) -> Tensor:
    """Return the mean over all channels under a Gaussian window, ``(1, H, W)``.

    Args:
        image: ``(channels, H, W)``, float64.
        sigma: Width of the window in pixels.
    """
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(image.mean(0).numpy(), sigma, mode="reflect"))[None]


def write_pretrained(recipe: Recipe, folder: Path, *, quiet: bool = True) -> Path:
    """Learn what a recipe says, and write ``NAME.safetensors`` and its card ``NAME.json``.

    Args:
        recipe: The settings.
        folder: Where to; it is made if missing.
        quiet: Show no progress.

    Returns:
        The file of the model.
    """
    result, card = learn_pretrained(recipe, quiet=quiet)
    folder.mkdir(parents=True, exist_ok=True)
    path = save(result.model, folder / f"{recipe.name}.safetensors")
    content = path.read_bytes()
    card |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    text = json.dumps(card, indent=2, ensure_ascii=False)
    write_whole(folder / f"{recipe.name}.json", f"{text}\n".encode())
    return path


def _card(recipe: Recipe, result: LearningResult) -> dict[str, Any]:
    model = result.model
    layers = list(model.layers) if isinstance(model, Cascade) else [model]
    settings = asdict(recipe)
    del settings["photographs"], settings["name"]
    images = [asdict(photograph) | {"pixels_sha256": pixel_digest(photograph)} for photograph in (*recipe.photographs,)]
    return {
        "name": recipe.name,
        "command": f"python -m deep_sparse_coding.pretrained.learn {recipe.name}",
        "preparation": recipe.preparation,
        "settings": settings,
        "images": images,
        "versions": {"deep_sparse_coding": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "shapes": [list(layer.weight.shape) for layer in layers],
        "objective": [[values[0], values[-1]] for values in result.history.objective],
        "training_density": [values[-1] for values in result.history.density],
        "dead_atoms": [len(atoms) for atoms in result.dead_atoms],
        "coherence": [layer.mutual_coherence() for layer in layers],
        "held_out": judge(recipe, model),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Learn the named dictionaries and write them.

    Args:
        arguments: Those of the command line if None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m deep_sparse_coding.pretrained.learn", description="Learn the dictionaries that are shipped."
    )
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--out", type=Path, default=Path("pretrained"), help="folder for the models and their cards")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads come in any order: no two runs would give the same bits
    try:
        for name in options.names:
            print(f"{write_pretrained(RECIPES[name], options.out, quiet=options.quiet)}", flush=True)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    main(sys.argv[1:])
