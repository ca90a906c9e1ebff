"""``dsc denoise``: pictures without their noise."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..dictionaries import DenseDictionary


def denoise(
    images: tuple[Path, ...],
    /,
    out: Path = Path("denoised"),
    sigma: float | None = None,
    dictionary: Path | None = None,
    passes: int = 2,
    adapt: int = 0,
    max_memory: str | None = None,
    skip_unreadable: bool = False,
    quiet: bool = False,
) -> None:
    """Remove the noise from pictures, grey or colour, of any sizes.

    Args:
        images: Pictures, or folders of them.
        out: A file that ends in .png for one picture; a folder for several, which keep their names.
        sigma: The standard deviation of the noise in 8-bit units: 25 is 25 of 255. Left out, it is estimated for each.
        dictionary: A dense dictionary of square patches (what dsc.save wrote); left out, the one that comes with dsc.
        passes: 1 uses the dictionary alone, each further pass filters groups of similar patches.
        adapt: Epochs of learning the dictionary further on the picture itself, first.
        max_memory: For what is held beside the picture, such as "100 MB".
        skip_unreadable: Leave out files that are no pictures, and name them.
        quiet: Say nothing.
    """
    from ..errors import FileFormatError
    from ..images import find_images, read_image
    from ..jobs import denoise as remove_noise

    files = find_images(images)
    targets = output_files(files, out)
    atoms = load_dictionary(dictionary)
    for i, (file, target) in enumerate(zip(files, targets, strict=True)):
        try:
            picture = read_image(file)
        except FileFormatError as error:
            if not skip_unreadable:
                raise
            print(f"{i + 1}/{len(files)} left out: {error}", flush=True)
            continue
        found = remove_noise(
            picture,
            None if sigma is None else sigma / 255,
            dictionary=atoms,
            passes=passes,
            adapt=adapt,
            max_memory=max_memory,
            progress=None if quiet else show_share,
        )
        write_picture(found.image, target)
        if not quiet:
            print(f"{i + 1}/{len(files)} {file}: {found} · {target}", flush=True)


def output_files(files: list[Path], out: Path) -> list[Path]:
    """Return where each picture goes: `out` itself if it ends in .png, else a file of its name in the folder `out`.

    Raises:
        ParameterError: One file for several pictures, two pictures of one name, a picture that would be overwritten.
    """
    from ..errors import ParameterError

    if out.suffix.lower() == ".png":
        if len(files) > 1:
            raise ParameterError(f"out is the file {out} and there are {len(files)} pictures; expected a folder")
        targets = [out]
    elif out.suffix and not out.is_dir():
        raise ParameterError(f"out is {out}; expected a name that ends in .png, or a folder")
    else:
        targets = [out / f"{file.stem}.png" for file in files]
    if len(set(targets)) < len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise ParameterError(
            f"two pictures would be written to {twice}; expected names that differ: call once for each"
        )
    sources = {file.resolve() for file in files}
    for target in targets:
        if target.resolve() in sources:
            raise ParameterError(f"{target} is one of the pictures that are read; expected another place for out")
    return targets


def load_dictionary(path: Path | None) -> DenseDictionary | None:
    """Return the dictionary in a file, or None for the one that comes with the library.

    Raises:
        DictionaryError: It is not dense.
    """
    if path is None:
        return None
    import deep_sparse_coding as dsc

    found = dsc.load(path)
    if not isinstance(found, dsc.DenseDictionary):
        raise dsc.DictionaryError(f"{path} holds {found!r}; expected a dense dictionary of square patches")
    return found


def write_picture(picture: Tensor, target: Path) -> None:
    """Write a picture as PNG, whole or not at all; the folder is made."""
    from ..files import write_whole
    from ..images import image_bytes

    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, image_bytes(picture))


def show_share(share: float) -> None:
    """Show on a terminal how much is done."""
    if sys.stderr.isatty():
        print(f"\r{100 * share:3.0f} %" if share < 1 else "\r      \r", end="", file=sys.stderr, flush=True)
