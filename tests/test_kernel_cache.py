"""Compiled kernels on disk are thrown away when any kernel's source is another than when they were compiled."""

from __future__ import annotations

import ast
from pathlib import Path

import deep_sparse_coding
from deep_sparse_coding.kernel_cache import forget_stale_kernels

forget = forget_stale_kernels.__wrapped__


def package(tmp_path: Path) -> Path:
    folder = tmp_path / "solvers"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "_kernels_a.py").write_text("a = 1")
    (folder / "_kernels_b.py").write_text("b = 1")
    (folder / "__pycache__" / "_kernels_a.f-1.py311.nbi").write_text("index")
    (folder / "__pycache__" / "_kernels_a.f-1.py311.1.nbc").write_text("code")
    (folder / "__pycache__" / "other.cpython-311.pyc").write_text("kept")
    return tmp_path


def test_what_was_compiled_from_other_sources_goes(tmp_path: Path) -> None:
    root = package(tmp_path)
    compiled = root / "solvers" / "__pycache__"
    assert forget(root) == 2  # of unknown sources
    assert [file.name for file in compiled.iterdir()] == ["other.cpython-311.pyc"]
    index = compiled / "_kernels_a.f-1.py311.nbi"
    index.write_text("index")
    assert forget(root) == 0
    assert index.exists()
    # A function of another file: numba would not notice.
    (root / "solvers" / "_kernels_b.py").write_text("b = 2")
    assert forget(root) == 1
    assert not index.exists()
    index.write_text("index")
    (root / "solvers" / "_kernels_c.py").write_text("")
    assert forget(root) == 1


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    root = package(tmp_path)
    (root / "__pycache__").write_text("a file where the folder should be")
    assert forget(root) == 0


def test_every_file_of_kernels_asks() -> None:
    sources = sorted(Path(deep_sparse_coding.__file__).parent.rglob("_kernels*.py"))
    assert len(sources) > 15
    silent = [source.name for source in sources if "forget_stale_kernels()" not in source.read_text()]
    assert not silent
    # The words may stand in a docstring: the call must be a statement of the module.
    for source in sources:
        statements = [ast.unparse(node) for node in ast.parse(source.read_text()).body]
        assert "forget_stale_kernels()" in statements, source
