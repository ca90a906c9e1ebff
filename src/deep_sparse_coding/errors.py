"""The exceptions and the warning of this library, and the words they share.

Every error is a `DSCError` and also the built-in that a caller would catch without knowing this library (`ValueError`,
`TypeError`, ...). A message says what was given, what is expected, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DSCError(Exception):
    """Base of all errors that this library raises on purpose."""


class ShapeError(DSCError, ValueError):
    """A tensor has the wrong number of axes, channels or entries."""


class DtypeError(DSCError, TypeError):
    """A tensor has a number type that the operation does not support (half precision, integers, complex)."""


class DeviceError(DSCError, ValueError):
    """Tensors that must meet live on different devices."""


class ParameterError(DSCError, ValueError):
    """A setting is outside its range, or two settings contradict each other."""


class DictionaryError(DSCError, ValueError):
    """A dictionary cannot be used: zero atoms, entries that are not finite, layers that do not fit together."""


class NameMatchError(DSCError, ValueError):
    """A name, glob, type or predicate matches nothing; the message lists near misses."""


class HookError(DSCError, RuntimeError):
    """A module that is watched did not run, or ran in a way that cannot be watched."""


class FileFormatError(DSCError, ValueError):
    """A file is not one of ours, is damaged, or was written by a version that this one cannot read."""


class NotConvergedError(DSCError, RuntimeError):
    """Codes were asked for of a solution that did not converge; the message names the samples and the remedy."""


class UnsupportedError(DSCError, NotImplementedError):
    """A combination that this version does not offer; the message says which one does the same."""


class MissingExtraError(DSCError, ImportError):
    """An optional dependency is not installed; the message says which extra brings it."""


class DSCWarning(UserWarning):
    """Everything this library warns about."""


def near_misses(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return ``"; did you mean 'a', 'b'?"`` for the known names most like `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return f"; did you mean {', '.join(repr(item) for item in found)}?" if found else ""


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """Return the error for an optional `package` that is not installed, naming the `extra` that brings it."""
    return MissingExtraError(
        f"{purpose} needs the package '{package}', which is not installed; "
        f"install it with: pip install 'deep_sparse_coding[{extra}]'"
    )
