"""How kernels are compiled: those of images, dense ones that Python calls, and dense ones that only kernels call."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numba

from deep_sparse_coding.kernel_cache import forget_stale_kernels

forget_stale_kernels()

_njit: Any = numba.njit  # its declared types know no options
# No promises about inf and NaN: weights may be inf. Sums may be reordered: that is what makes them vectors.
_COMMON: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz"},
}
_OPTIONS: dict[str, Any] = {
    **_COMMON,
    "no_cfunc_wrapper": True,
    "no_rewrites": True,  # of array expressions, of which there are none
}

#: For kernels of images, convolutional ones, whoever calls them.
image_jit: Any = _njit(**_COMMON)
#: For kernels that Python calls.
entry: Any = _njit(**_OPTIONS)
#: For functions that only kernels call: unpacking arguments from Python takes as long to compile as the work itself.
jit: Any = _njit(no_cpython_wrapper=True, **_OPTIONS)


@contextmanager
def uncollected(*kernels: Any) -> Iterator[None]:
    """Keep the garbage collector from running while one of the kernels may have to be compiled or loaded.

    Compilers make millions of small objects, and every full collection looks at all objects of PyTorch.
    """
    pause = gc.isenabled() and not all(kernel.signatures for kernel in kernels)
    if pause:
        gc.disable()
    try:
        yield
    finally:
        if pause:
            gc.enable()
