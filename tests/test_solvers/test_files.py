"""Codes in Parquet files: the same bits come back, other programs can read them, damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.solvers.files import load_codes, save_codes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 4, 5, 6), (2, 0)])
def test_the_same_bits_come_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    x = torch.where(x > 0.5, x, 0)
    back = load_codes(save_codes(x, tmp_path / "c.parquet"))
    assert isinstance(back, torch.Tensor)
    assert back.dtype == dtype
    assert torch.equal(back, x)


def test_a_solution_brings_its_certificate(tmp_path: Path) -> None:
    import json

    import pandas
    from pyarrow import parquet

    model = dsc.Cascade([dsc.DenseDictionary.random(8, 16, seed=0), dsc.DenseDictionary.random(16, 24, seed=1)])
    signal = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    solution = dsc.solve(dsc.LayeredLasso(model, (0.1, 0.05)), signal, tol=1e-5)
    path = save_codes(solution, tmp_path / "c.parquet")
    back = load_codes(path)
    assert all(torch.equal(a, b) for a, b in zip(back, solution.codes, strict=True))
    table = pandas.read_parquet(path)
    assert list(table.columns) == ["layer", "sample", "entry", "value"]
    assert len(table) == sum(int((x != 0).sum()) for x in solution.codes)
    told = json.loads(parquet.read_schema(path).metadata[b"deep_sparse_coding.codes"])["solution"]
    assert told["status"] == ["CONVERGED"] * 5
    assert max(told["relative_gap"]) <= 1e-5


def test_damage_is_told(tmp_path: Path) -> None:
    import pandas

    path = save_codes(torch.eye(3), tmp_path / "c.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(dsc.FileFormatError, match="damaged"):
        load_codes(path)
    pandas.DataFrame({"value": [1.0]}).to_parquet(path)
    with pytest.raises(dsc.FileFormatError, match="no file of codes"):
        load_codes(path)
    with pytest.raises(dsc.FileFormatError, match="is not a file"):
        load_codes(tmp_path / "none")
    with pytest.raises(dsc.FileFormatError, match="cannot write"):
        save_codes(torch.eye(3), tmp_path / "none" / "c.parquet")
    with pytest.raises(dsc.DtypeError, match="float16"):
        save_codes(torch.eye(3).half(), path)
