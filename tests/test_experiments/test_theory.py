"""The pictures of the theory: the smoke runs, what their numbers must be, and that nothing violates a bound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.experiments.execute import draw, prepare
from deep_sparse_coding.experiments.registry import find_experiment
from deep_sparse_coding.experiments.store import Record
from deep_sparse_coding.experiments.theory import THEORY
from deep_sparse_coding.experiments.theory.adversary import SignalClass, drive, errors_by_depth

F64 = torch.float64


@contextmanager
def untouched_generator() -> Iterator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


def smoke(name: str, folder: Path) -> Record:
    with untouched_generator():
        return prepare(find_experiment(name), "smoke", out=folder / name).execute()


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    folder = tmp_path_factory.mktemp("curves")
    names = ("theory-depth", "theory-activations", "theory-transformer")
    return {name: smoke(name, folder) for name in names}


@pytest.mark.parametrize("name", ["theory-depth", "theory-activations", "theory-transformer"])
def test_bounds_hold_and_the_search_comes_no_less_near_than_random(
    name: str, curves: dict[str, Record], tmp_path: Path
) -> None:
    record = curves[name]
    for part in record.runs:
        assert part["measures"]["violations"] == 0
        assert part["measures"]["signals"] > 0
        assert len(part["bounds"]) == len(part["depths"]) == len(part["driven"]) == len(part["random"])
        for bound, driven, random in zip(part["bounds"], part["driven"], part["random"], strict=True):
            assert random <= driven <= bound
        assert part["measures"]["tightness_end"] > 40
    figures = draw(find_experiment(name), record, tmp_path / "figures")
    assert [path.read_bytes()[:4] for path in figures] == [b"\x89PNG"]


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    first, second = (smoke("theory-transformer", tmp_path / where).runs for where in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_the_search_attains_the_bound_of_equal_angles(curves: dict[str, Record]) -> None:
    (part,) = (part for part in curves["theory-depth"].runs if part["setting"] == "one layer")
    assert part["measures"]["tightness_end"] > 99.9
    assert part["random"][-1] < 0.9 * part["driven"][-1]


def test_the_search_never_leaves_the_class() -> None:
    model = dsc.DenseDictionary.random(12, 8, seed=0, dtype=F64)
    start = dsc.sample(model, sparsity=3, batch=8, seed=0).codes[0]

    def trace(signal: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        # The atoms are independent: these are nine tenths of the truth, so the error is a tenth of its largest entry.
        return [(1, 0.9 * torch.linalg.lstsq(model.matrix, signal.T).solution.T)]

    largest = drive(model, trace, start, SignalClass((3,), (), 2.0), [0], 2)
    assert float(largest) == pytest.approx(0.2, rel=1e-9)
    capped = drive(model, trace, start, SignalClass((3,), (), 1.0), [0], 2)
    assert float(capped) == pytest.approx(0.1, rel=1e-9)
    nothing = drive(model, trace, start, SignalClass((2,), (), 2.0), [0], 2)
    assert float(nothing) == 0.0


def test_errors_by_depth_are_those_of_the_network() -> None:
    model = dsc.DenseDictionary.low_coherence(40, 60, seed=0, dtype=F64)
    net = dsc.to_cnn(model, sparsity=2, steps=3)
    drawn = dsc.sample(model, sparsity=2, batch=5, seed=1)

    def trace(signal: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        return [(estimate.layer, estimate.codes) for estimate in dsc.codes_by_depth(net, signal)]

    errors = errors_by_depth(model, trace, drawn.codes[0])
    assert errors.shape == (5, 3)
    assert torch.allclose(errors[:, -1], (net(drawn.signal) - drawn.codes[0]).abs().amax(1))


def test_attention_looks_where_the_shift_says(tmp_path: Path) -> None:
    record = smoke("theory-attention", tmp_path)
    soft, sharp = (record.values(setting, "inside")[0] for setting in ("soft", "sharp"))
    assert sharp > 99.999
    assert soft < sharp
    grid = record.results["grid"]
    part = next(part for part in record.runs if part["setting"] == "sharp")
    for (down, right), weights in zip(part["shifts"], part["middle"], strict=True):
        peak = int(torch.tensor(weights).argmax())
        assert (peak // grid, peak % grid) == (grid // 2 + down, grid // 2 + right)
    for (down, right), weights in zip(part["shifts"], part["corner"], strict=True):
        assert float(torch.tensor(weights).sum()) == pytest.approx(float(down >= 0 and right >= 0), abs=1e-3)
    assert draw(find_experiment("theory-attention"), record, tmp_path / "figures")


def test_the_map_proves_no_more_than_is_true(tmp_path: Path) -> None:
    record = smoke("theory-map", tmp_path)
    for part in record.runs:
        m = part["measures"]
        assert 1 <= m["coherence"] <= m["convergence"]
        assert m["coherence"] <= m["uniqueness"]
        assert all(share == 1.0 for share in part["recovered"][: int(m["uniqueness"])])
        assert part["rates"] == sorted(part["rates"])
        assert (m["convergence"] == 0) == (part["rates"][0] >= 1)
    assert draw(find_experiment("theory-map"), record, tmp_path / "figures")


def test_unfolding_counts_the_steps_of_ista(tmp_path: Path) -> None:
    record = smoke("theory-unfolding", tmp_path)
    steps = record.results["steps"]
    errors = {part["setting"]: part["errors"] for part in record.runs}
    assert record.values("ISTA", "ista_steps")[0] <= steps
    for setting in ("lista", "lista-cpss", "alista"):
        k = int(record.values(setting, "ista_steps")[0])
        assert k == record.config["most"] or errors["ISTA"][k] <= errors[setting][steps]
        assert errors["ISTA"][k - 1] > errors[setting][steps]
        assert len(errors[setting]) == steps + 1
    assert draw(find_experiment("theory-unfolding"), record, tmp_path / "figures")


def test_the_caption_names_the_preset() -> None:
    assert len({experiment.name for experiment in THEORY}) == 6
    for experiment in THEORY:
        assert experiment.name.startswith("theory-")
        assert set(experiment.presets) == {"smoke", "cpu"}
