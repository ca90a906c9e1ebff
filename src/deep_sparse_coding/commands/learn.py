"""``dsc learn``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def learn(
    images: tuple[Path, ...],
    /,
    *,
    atoms: tuple[int, ...] = (64,),
    size: tuple[int, ...] = (8,),
    lam: tuple[float, ...] = (1.0,),
    stride: tuple[int, ...] = (1,),
    epochs: int = 10,
    out: Path = Path("model.safetensors"),
    seed: int = 0,
    color: bool = False,
    method: Literal["auto", "batch", "online"] = "auto",
    prepare: Literal["contrast", "none"] = "contrast",
    sigma: float = 6.0,
    heldout: float | None = None,
    patience: int | None = None,
    coherence: float | None = None,
    nonzeros: int | None = None,
    joint: int = 0,
    checkpoint: Path | None = None,
    skip_unreadable: bool = False,
    quiet: bool = False,
) -> None:
    """Learn a convolutional dictionary, or a cascade of them, from image files.

    Args:
        images: Files, or folders of them; sizes may differ.
        atoms: Atoms of every layer.
        size: Kernel size of every layer.
        lam: The weight of the ℓ1 norm of every layer; after contrast normalization about an eighth of the kernel size.
        stride: Of every layer.
        epochs: Passes over the images.
        out: The file for the model.
        seed: Of everything that is random; the same seed gives the same bits.
        color: Learn from three channels, not from grey.
        method: "batch" keeps all codes, "online" forgets; "auto" chooses by the size of the data.
        prepare: "contrast" takes the local mean away and divides by the local deviation, "none" leaves the images.
        sigma: Width of the window of "contrast", in pixels.
        heldout: The share of the images that is held out to judge by.
        patience: Epochs without progress that end a layer.
        coherence: The largest cosine that two atoms may have.
        nonzeros: The most non-zeros of an atom of the second layer and of those above.
        joint: Epochs of refining all layers together at the end.
        checkpoint: A file to go on from if the run is stopped.
        skip_unreadable: Leave out files that are no images, and name them.
        quiet: Show no progress.
    """
    from ..dictionaries import save
    from ..images import read_images
    from ..learning import LearningProgress, contrast_normalize
    from ..learning import learn as learn_model

    pictures = read_images(images, channels=3 if color else 1, skip_unreadable=skip_unreadable)
    if prepare == "contrast":
        pictures = [contrast_normalize(picture, sigma) for picture in pictures]
    if not quiet:
        pixels = sum(picture[0].numel() for picture in pictures) / 1e6
        print(f"{len(pictures)} images, {pixels:.3g} megapixels, scaled to [0, 1]", flush=True)

    def report(seen: LearningProgress) -> None:
        print(seen, flush=True)

    depth = len(atoms)
    limits = None if nonzeros is None or depth == 1 else (None,) + (nonzeros,) * (depth - 1)
    result = learn_model(
        pictures,
        atoms if depth > 1 else atoms[0],
        size=size[0] if len(size) == 1 else size,
        lam=lam[0] if len(lam) == 1 else lam,
        stride=stride[0] if len(stride) == 1 else stride,
        epochs=epochs,
        seed=seed,
        method=None if method == "auto" else method,
        heldout=heldout,
        patience=patience,
        coherence=coherence,
        nonzeros=limits,
        joint=joint,
        checkpoint=checkpoint,
        callback=None if quiet else report,
    )
    save(result.model, out)
    print(result)
    print(f"model: {out.resolve()}")
