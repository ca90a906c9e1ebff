"""How the words of a command line find their function: commands, groups of commands, near misses."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DSCError, missing_extra, near_misses

Function = Callable[..., None]


@dataclass(frozen=True)
class Tailored:
    """A command whose options depend on its other words.

    Attributes:
        summary: One line for the help of its group.
        tailor: Called with the words; returns the dataclass whose fields are the options, and what takes an instance.
    """

    summary: str
    tailor: Callable[[Sequence[str]], tuple[type, Callable[[Any], None]]]


@dataclass(frozen=True)
class Group:
    """Commands behind one word.

    Attributes:
        summary: What they are about, one line.
        commands: A function whose arguments are the options, by name; or a command with tailored options, or a group.
        options: Options of the group itself, with what they do; ``--help`` has every group.
    """

    summary: str
    commands: Mapping[str, Function | Tailored | Group]
    options: Mapping[str, str]

    def usage(self, program: str) -> str:
        """Return the help text."""
        options = {"-h, --help": f"show this text; {program} COMMAND --help shows a command's options", **self.options}
        return "\n".join(
            [
                f"usage: {program} COMMAND [options]",
                "",
                self.summary,
                "",
                "commands:",
                *(f"  {name:<12} {_summary(command)}" for name, command in self.commands.items()),
                "",
                "options:",
                *(f"  {name:<12} {text}" for name, text in options.items()),
            ]
        )


def dispatch(group: Group, args: Sequence[str], program: str) -> int:
    """Run the command that `args` name and return the exit status.

    Args:
        group: The commands.
        args: What stands behind the name of the program.
        program: Its name: ``"dsc"``.

    Returns:
        0 done, 1 an error of this library, 2 a command line in error, 130 stopped by the user.
    """
    if not args or args[0] in ("-h", "--help"):
        print(group.usage(program))
        return 0 if args else 2
    name, rest = args[0], list(args[1:])
    command = group.commands.get(name)
    if command is None:
        kind = "option" if name.startswith("-") else "command"
        known = ("--help", *group.options) if kind == "option" else tuple(group.commands)
        hint = near_misses(name, known)
        return _fail(f"{name!r} is no {kind} of {program}; expected {' or '.join(map(repr, known))}{hint}", 2)
    if isinstance(command, Group):
        return dispatch(command, rest, f"{program} {name}")
    try:
        try:
            import tyro
        except ImportError:
            raise missing_extra("tyro", "cli", "the command line") from None
        if isinstance(command, Tailored):
            form, act = command.tailor(rest)
            act(tyro.cli(form, args=rest, prog=f"{program} {name}"))
        else:
            tyro.cli(command, args=rest, prog=f"{program} {name}")
    except DSCError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    return 0


def _summary(command: Function | Tailored | Group) -> str:
    if isinstance(command, (Tailored, Group)):
        return command.summary
    return (command.__doc__ or "").splitlines()[0]


def _fail(message: str, status: int) -> int:
    print(f"dsc: {message}", file=sys.stderr)
    return status
