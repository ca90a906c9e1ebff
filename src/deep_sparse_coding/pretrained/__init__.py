"""Dictionaries that come with the library, each with a card that says how it was learned and what it reaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..dictionaries import Cascade, Dictionary, load
from ..errors import FileFormatError, NameMatchError, near_misses

NAMES = ("dense-grey-8", "conv-grey-64", "conv-colour-32", "cascade-grey")
_FOLDER = Path(__file__).parent


def load_pretrained(name: str) -> Dictionary | Cascade:
    """Return a dictionary, or a cascade, that was learned from photographs and comes with the library.

    Args:
        name: One of `NAMES`: "dense-grey-8" (256 atoms of 8×8 pixels), "conv-grey-64" (64 kernels), "conv-colour-32"
            (32 kernels of three channels), "cascade-grey" (two layers). `pretrained_card` says how images are prepared
            for it.

    Returns:
        The model in float32, on the CPU; ``.cast(torch.float64)`` or ``.to(device)`` for others.

    Raises:
        FileFormatError: The file is missing or damaged: the installation is not whole.
        NameMatchError: No such name; the message lists near misses.
    """
    return load(_FOLDER / f"{_known(name)}.safetensors")


def pretrained_card(name: str) -> dict[str, Any]:
    """Return the card of a dictionary that comes with the library: a dict of numbers, texts, lists and dicts.

    Args:
        name: One of `NAMES`.

    Returns:
        ``"command"`` and ``"settings"`` it was learned with, ``"images"`` with authors and licenses, ``"preparation"``
        of images in words, ``"coherence"``, ``"dead_atoms"``, ``"held_out"``: what it reaches on a photograph it was
        not learned from, ``"sha256"`` of the file.

    Raises:
        FileFormatError: The card is missing or damaged: the installation is not whole.
        NameMatchError: No such name; the message lists near misses.
    """
    path = _FOLDER / f"{_known(name)}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read ({error}); expected a card: install the library anew") from error


def _known(name: object) -> str:
    if name not in NAMES:
        close = near_misses(str(name), NAMES)
        raise NameMatchError(f"no pretrained model is named {name!r}{close}; expected one of {', '.join(NAMES)}")
    return str(name)
