"""Codes as Parquet files: a row per non-zero entry, shapes and certificates beside them; whole or not at all."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DtypeError, FileFormatError, missing_extra
from ..files import write_whole
from .solution import Solution

_KEY = b"deep_sparse_coding.codes"
_VERSION = 1
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def save_codes(codes: Solution | Tensor | Sequence[Tensor], path: str | os.PathLike[str]) -> Path:
    """Write codes as Parquet, for pandas, Polars, DuckDB or Spark: ``layer, sample, entry, value`` per non-zero.

    `layer` counts from 1; `sample` is the place in the flattened batch and `entry` the place in the sample's flattened
    code, row-major. The shapes stand in the file's metadata, and so do status and certificate of a solution.

    Args:
        codes: A solution, a code tensor ``(batch, ...)``, or one tensor per layer.
        path: Where; a file that is there is replaced.

    Returns:
        The path.

    Raises:
        DtypeError: Codes that are not float32 or float64.
        FileFormatError: The folder is missing or cannot be written.
        MissingExtraError: pyarrow is not installed.
    """
    pa, parquet = _pyarrow()
    tensors = codes.codes if isinstance(codes, Solution) else codes
    layers = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    description: dict[str, Any] = {"version": _VERSION, "cascade": not isinstance(tensors, Tensor), "layers": []}
    columns: dict[str, list[Tensor]] = {"layer": [], "sample": [], "entry": [], "value": []}
    for j, x in enumerate(layers, start=1):
        kind = str(x.dtype).removeprefix("torch.")
        if kind not in _DTYPES:
            raise DtypeError(f"the codes of layer {j} have dtype {x.dtype}; expected float32 or float64")
        flat = x.detach().cpu().reshape(x.shape[0] if x.ndim > 1 else 1, -1)
        sample, entry = flat.nonzero(as_tuple=True)
        columns["layer"].append(torch.full_like(sample, j, dtype=torch.int16))
        columns["sample"].append(sample)
        columns["entry"].append(entry)
        columns["value"].append(flat[sample, entry].double())  # float32 values are kept exactly
        description["layers"].append({"shape": list(x.shape), "dtype": kind})
    if isinstance(codes, Solution):
        certificate = codes.certificate
        description["solution"] = {
            "solver": codes.solver,
            "tol": codes.tol,
            "status": [status.name for status in codes.status],
            **{
                name: [float(value) for value in getattr(certificate, name).reshape(-1)]
                for name in ("objective", "dual", "gap", "relative_gap")
            },
        }
    table = pa.table({name: torch.cat(parts).numpy() for name, parts in columns.items()})
    table = table.replace_schema_metadata({_KEY: json.dumps(description).encode()})
    stream = io.BytesIO()
    parquet.write_table(table, stream, compression="zstd")
    path = Path(path)
    write_whole(path, stream.getvalue())
    return path


def load_codes(path: str | os.PathLike[str]) -> Tensor | tuple[Tensor, ...]:
    """Read what `save_codes` wrote: the same tensors, on the CPU.

    Raises:
        FileFormatError: No such file, damaged, not one of ours, or of a later version.
        MissingExtraError: pyarrow is not installed.
    """
    _, parquet = _pyarrow()
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"{path} is not a file; expected one that save_codes wrote")
    try:
        table = parquet.read_table(io.BytesIO(path.read_bytes()))
        description = json.loads((table.schema.metadata or {})[_KEY])
        if description["version"] > _VERSION:
            raise FileFormatError(f"{path} has version {description['version']}; this version reads {_VERSION}: update")
        columns = {
            name: torch.from_numpy(table[name].to_numpy().copy()) for name in ("layer", "sample", "entry", "value")
        }
        layers = []
        for j, layer in enumerate(description["layers"], start=1):
            shape, here = tuple(layer["shape"]), columns["layer"] == j
            x = torch.zeros(shape, dtype=_DTYPES[layer["dtype"]])
            flat = x.reshape(shape[0] if len(shape) > 1 else 1, -1)
            flat[columns["sample"][here], columns["entry"][here]] = columns["value"][here].to(x.dtype)
            layers.append(x)
    except FileFormatError:
        raise
    except Exception as error:  # pyarrow raises errors of many kinds for damaged files
        raise FileFormatError(
            f"{path} is no file of codes, or is damaged ({error}); expected what save_codes wrote"
        ) from error
    return tuple(layers) if description["cascade"] else layers[0]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("pyarrow", "vision", "codes as Parquet files") from None
    return pyarrow, parquet
