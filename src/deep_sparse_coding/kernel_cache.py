"""Compiled kernels on disk: what was compiled from other sources than these is thrown away.

Numba looks only at the file of a function to see whether its compiled form is still good. Kernels call functions of
other files, and one that was compiled against an older version of those crashes at worst.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_PACKAGE = Path(__file__).parent
_COMPILED = ("*.nbi", "*.nbc")


@cache
def forget_stale_kernels(package: Path = _PACKAGE) -> int:
    """Delete compiled kernels unless they come from the kernels' present sources, and return how many files went.

    Looks once per process. Where nothing can be written, nothing is cached beside the sources either.

    Args:
        package: The folder of the package.
    """
    digest = hashlib.sha256()
    for source in sorted(package.rglob("_kernels*.py")):
        digest.update(source.relative_to(package).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    known = package / "__pycache__" / "kernels.sha256"
    try:
        if known.is_file() and known.read_text() == digest.hexdigest():
            return 0
        stale = [file for kind in _COMPILED for file in package.rglob(f"__pycache__/_kernels{kind}")]
        for file in stale:
            file.unlink(missing_ok=True)
        known.parent.mkdir(exist_ok=True)
        known.write_text(digest.hexdigest())
    except OSError:
        return 0
    return len(stale)
