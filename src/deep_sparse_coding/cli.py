"""The command line: ``dsc demo``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ._version import __version__
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


def demo(
    out: Path = Path("runs/demo"),
    preset: Literal["full", "small"] = "full",
    seed: int = 0,
    quiet: bool = False,
) -> None:
    """The main job on a real photograph and on digits: learn, solve, prove, compile, train, and report.

    Args:
        out: The folder for report.html, summary.json and hero.png; it is made if need be.
        preset: "full" takes about two minutes on two cores, "small" some seconds.
        seed: Of everything that is random; the same seed gives the same numbers.
        quiet: Show no progress, only the place of the report.
    """
    from .demo import run_demo

    result = run_demo(out, preset_name=preset, seed=seed, quiet=quiet)
    print(f"report: {result.report.resolve()}")


_COMMANDS: Mapping[str, Callable[..., None]] = {"demo": demo}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0 done, 1 an error of this library, 2 a command line in error.

    Args:
        args: What stands behind ``dsc``; None for the command line of this process.
    """
    given = list(sys.argv[1:] if args is None else args)
    if not given or given[0] in ("-h", "--help"):
        lines = (f"  {name:<12} {(command.__doc__ or '').splitlines()[0]}" for name, command in _COMMANDS.items())
        print(_USAGE.format(commands="\n".join(lines)), end="")
        return 0 if given else 2
    if given[0] == "--version":
        print(f"dsc {__version__}")
        return 0
    name, rest = given[0], given[1:]
    if name not in _COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        known = ("--help", "--version") if kind == "option" else tuple(_COMMANDS)
        hint = near_misses(name, known)
        return _fail(f"{name!r} is no {kind} of dsc; expected {' or '.join(map(repr, known))}{hint}", 2)
    try:
        try:
            import tyro
        except ImportError:
            raise missing_extra("tyro", "cli", "the command line") from None
        tyro.cli(_COMMANDS[name], args=rest, prog=f"dsc {name}")
    except DSCError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    return 0


def _fail(message: str, status: int) -> int:
    print(f"dsc: {message}", file=sys.stderr)
    return status
