"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from .errors import FileFormatError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its place, flush it to disk, then rename it.

    Raises:
        FileFormatError: The folder is missing, not writable or full; nothing is left behind.
    """
    # Opened anew ("x"), not by tempfile: the file is to have the permissions that any new file of the user has.
    temporary = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise FileFormatError(
            f"cannot write {path} ({error}); expected an existing folder with room to write"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
