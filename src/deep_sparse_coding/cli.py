"""The command line: ``dsc COMMAND``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._version import __version__
from .commands import COMMANDS, dispatch


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0 done, 1 an error of this library, 2 a command line in error.

    Args:
        args: What stands behind ``dsc``; None for the command line of this process.
    """
    given = list(sys.argv[1:] if args is None else args)
    if given and given[0] == "--version":
        print(f"dsc {__version__}")
        return 0
    return dispatch(COMMANDS, given, "dsc")
