"""``dsc solve``: the codes of pictures, with their certificate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..dictionaries import Cascade


def solve(
    images: tuple[Path, ...],
    /,
    model: Path,
    lam: tuple[float, ...],
    out: Path = Path("codes.parquet"),
    joint: bool = False,
    nonnegative: bool = False,
    normalize: bool = False,
    tol: float = 1e-4,
    max_steps: int = 10_000,
) -> None:
    """The codes of pictures under a model, with a certificate for each, written as Parquet.

    Args:
        images: Pictures, or folders of them; all of one size.
        model: The model: what dsc.save or dsc learn wrote.
        lam: The weight of the l1 norm, one for all layers or one each.
        out: The file of codes: one row per non-zero entry.
        joint: All layers at once, instead of layer after layer.
        nonnegative: Hold the codes at or above zero.
        normalize: Local contrast normalization first, as dsc learn does.
        tol: The relative duality gap to reach.
        max_steps: The most steps.
    """
    import torch

    import deep_sparse_coding as dsc

    from ..dictionaries.cascade import as_cascade
    from ..images import find_images, read_images
    from ..solvers.files import save_codes

    dictionary = dsc.load(model)
    cascade = as_cascade(dictionary)
    first = cascade.layers[0]
    if not isinstance(first, dsc.ConvDictionary):
        raise dsc.DictionaryError(f"{model} begins with {first!r}; expected convolutional layers to code pictures with")
    files = find_images(images)
    pictures = read_images(files, channels=1 if first.channels == 1 else 3, dtype=first.dtype)
    sizes = sorted({tuple(picture.shape[1:]) for picture in pictures})
    if len(sizes) > 1:
        raise dsc.ShapeError(f"the pictures have the sizes {sizes}; expected one size: call the command for each")
    signal = torch.stack(pictures)
    if normalize:
        signal = dsc.contrast_normalize(signal)
    signal = crop_to_grid(cascade, signal)
    weights = lam if len(lam) != 1 else lam * len(cascade.layers)
    if isinstance(dictionary, dsc.Cascade):
        kind = dsc.JointLasso if joint else dsc.LayeredLasso
        problem = kind(dictionary, weights, nonnegative=nonnegative)
    else:
        problem = dsc.Lasso(dictionary, weights[0], nonnegative=nonnegative)
    solution = dsc.solve(problem, signal, tol=tol, max_steps=max_steps, on_failure="ignore")
    save_codes(solution, out)
    print(solution)
    for i, file in enumerate(files):
        print(f"{file}: {solution.message(i)}")
    print(f"codes: {out.resolve()}")


def crop_to_grid(cascade: Cascade, signal: Tensor) -> Tensor:
    """Cut rows and columns at the far borders that no whole stride of the layers reaches."""
    size = tuple(signal.shape[2:])
    for layer in cascade.layers:
        size = layer.code_shape(size)[1:]
    for layer in reversed(cascade.layers):
        size = layer.signal_shape(size)[1:]
    return signal[(..., *(slice(0, n) for n in size))].contiguous()
