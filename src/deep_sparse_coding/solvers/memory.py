"""How much memory a solve needs, said before work begins, and the parts it is cut into to stay within a limit."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deep_sparse_coding.checks import require_number
from deep_sparse_coding.errors import DSCWarning, ParameterError
from deep_sparse_coding.problems import StandardForm

from .base import Solver

# Above this a solve without a limit says what it needs.
_WORTH_SAYING = 10**9
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
# Maps of float64 as large as the codes that the certificate of one group of samples holds at once: the codes, their
# correlations with the residual, and what is made of them on the way.
_CERTIFICATE_MAPS = 3
# The answer, the best codes so far and the start, in the user's precision.
_KEPT_MAPS = 3


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a solve holds at its peak, beside the signal: an estimate, good to a factor of about 1.5.

    Attributes:
        answer: What the codes of one sample take, and stay.
        work: What working on one sample takes beside them.
        shared: What all samples share, such as a Gram matrix.
        samples: The number of samples.
    """

    answer: int
    work: int
    shared: int
    samples: int

    @property
    def total(self) -> int:
        """Bytes for all samples at once."""
        return self.shared + self.samples * (self.answer + self.work)

    def group_size(self, limit: int) -> int:
        """Return how many samples may be worked on at once under a limit in bytes; 0 if not even one."""
        room = limit - self.shared - self.samples * self.answer
        return min(self.samples, max(room, 0) // max(self.work, 1))


def memory_need(form: StandardForm, solver: Solver[Any]) -> MemoryNeed:
    """Return what solving a form with a solver needs.

    Args:
        form: The problem.
        solver: Its `workspace` says what a step needs.
    """
    item = form.data[0].element_size()
    codes = sum(math.prod(shape) for shape in form.code_shapes)
    data = sum(math.prod(block.shape[1:]) for block in form.data)
    shared, step = solver.workspace(form)
    certificate = 8 * (_CERTIFICATE_MAPS * codes + 4 * data + _columns(form))
    return MemoryNeed(item * codes, (_KEPT_MAPS - 1) * item * codes + max(step, certificate), shared, form.batch)


def _columns(form: StandardForm) -> int:
    """Return the entries of the largest matrix of columns that a convolution in `form` unfolds to on a CPU."""
    layers = form.operator.dictionaries
    kernels = [layer.weight[0].numel() if layer.event_axes > 1 else 0 for layer in layers]
    # Twice: unfolded, and as the matrix product wants it.
    return 2 * max(n * math.prod(shape[1:]) for n, shape in zip(kernels, form.code_shapes, strict=True))


def parse_memory(name: str, value: int | float | str | None) -> int | None:
    """Return a limit in bytes: a number, or words such as "2 GB" and "512 MiB"; None for no limit.

    Raises:
        ParameterError: Anything else, or a limit that is not above 0.
    """
    if value is None:
        return None
    if isinstance(value, str):
        parts = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([A-Za-z]*)\s*", value)
        unit = parts.group(2).upper() if parts else ""
        if parts is None or unit not in _UNITS:
            raise ParameterError(f"{name} is {value!r}; expected bytes, or words such as '2 GB' or '512 MiB'")
        value = float(parts.group(1)) * _UNITS[unit]
    return int(require_number(name, value, minimum=0.0, strict=True))


def in_words(size: int) -> str:
    """Return a number of bytes as people say it."""
    for unit in ("GB", "MB", "kB"):
        if size >= _UNITS[unit.upper()]:
            return f"{size / _UNITS[unit.upper()]:.3g} {unit}"
    return f"{size} bytes"


def say_memory(need: MemoryNeed, limit: int | None) -> None:
    """Warn of a solve that needs more than 1 GB, unless a limit was given."""
    if limit is None and need.total > _WORTH_SAYING:
        warnings.warn(
            f"this solve needs about {in_words(need.total)} for {need.samples} sample(s), beside the signal; "
            "max_memory='1 GB' has it done in parts, any max_memory silences this warning",
            DSCWarning,
            stacklevel=6,
        )


def sample_groups(rows: Tensor, size: int) -> Iterator[Tensor]:
    """Yield the indices `rows` in groups of at most `size`."""
    if len(rows):
        yield from torch.split(rows, max(size, 1))
