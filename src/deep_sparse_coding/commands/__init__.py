"""The commands of the command line, one file each: a function whose arguments are the options."""

from collections.abc import Callable, Mapping

from .demo import demo as demo

COMMANDS: Mapping[str, Callable[..., None]] = {"demo": demo}
