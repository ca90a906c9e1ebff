"""The command line: ``dsc COMMAND``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._version import __version__
from .commands import COMMANDS
from .errors import DSCError, missing_extra, near_misses

_USAGE = """\
usage: dsc COMMAND [options]

Deep sparse coding with certificates.

commands:
{commands}

options:
  -h, --help   show this text; dsc COMMAND --help shows a command's options
  --version    show the version
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0 done, 1 an error of this library, 2 a command line in error.

    Args:
        args: What stands behind ``dsc``; None for the command line of this process.
    """
    given = list(sys.argv[1:] if args is None else args)
    if not given or given[0] in ("-h", "--help"):
        lines = (f"  {name:<12} {(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items())
        print(_USAGE.format(commands="\n".join(lines)), end="")
        return 0 if given else 2
    if given[0] == "--version":
        print(f"dsc {__version__}")
        return 0
    name, rest = given[0], given[1:]
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        known = ("--help", "--version") if kind == "option" else tuple(COMMANDS)
        hint = near_misses(name, known)
        return _fail(f"{name!r} is no {kind} of dsc; expected {' or '.join(map(repr, known))}{hint}", 2)
    try:
        try:
            import tyro
        except ImportError:
            raise missing_extra("tyro", "cli", "the command line") from None
        tyro.cli(COMMANDS[name], args=rest, prog=f"dsc {name}")
    except DSCError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    return 0


def _fail(message: str, status: int) -> int:
    print(f"dsc: {message}", file=sys.stderr)
    return status
