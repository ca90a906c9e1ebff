"""``dsc inpaint``: pictures with their missing pixels filled."""

from __future__ import annotations

from pathlib import Path


def inpaint(
    image: Path,
    /,
    mask: Path,
    out: Path = Path("filled.png"),
    dictionary: Path | None = None,
    passes: int = 12,
    max_memory: str | None = None,
    quiet: bool = False,
) -> None:
    """Fill the missing pixels of a picture.

    Args:
        image: The picture, grey or colour.
        mask: A picture of the same size: white where pixels are observed, black where they are missing.
        out: The file to write, a PNG.
        dictionary: A dense dictionary of square patches (what dsc.save wrote); left out, the one that comes with dsc.
        passes: Passes after the first filling.
        max_memory: For what is held beside the picture, such as "100 MB".
        quiet: Say nothing.
    """
    from ..images import read_image
    from ..jobs import inpaint as fill
    from .denoise import load_dictionary, output_files, show_share, write_picture

    target = output_files([image], out)[0]
    picture, observed = read_image(image), read_image(mask, channels=1) > 0.5
    found = fill(
        picture,
        observed,
        dictionary=load_dictionary(dictionary),
        passes=passes,
        max_memory=max_memory,
        progress=None if quiet else show_share,
    )
    write_picture(found.image, target)
    if not quiet:
        print(f"{image}: {found} · {target}")
