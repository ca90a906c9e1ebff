"""Figures: what they show is what they were given."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import deep_sparse_coding as dsc
from deep_sparse_coding.plotting import plot_atoms, plot_bound, plot_codes, plot_convergence, plot_sparsity
from deep_sparse_coding.sparsity import Probe, SparsityReport


def conv(atoms: int = 6, channels: int = 1, seed: int = 0) -> dsc.ConvDictionary:
    return dsc.ConvDictionary.random(atoms=atoms, channels=channels, size=4, stride=2, seed=seed)


def texts(figure: Figure) -> str:
    found = []
    for axes in figure.axes:
        found += [axes.get_title("left"), axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        found += [text.get_text() for text in axes.texts]
    return " | ".join(found)


# ---------------------------------------------------------------------- atoms


@pytest.mark.parametrize(
    "atoms",
    [
        conv(),
        conv().weight.detach(),
        conv(channels=3),
        dsc.DenseDictionary.random(16, 6, seed=0),
        torch.ones(6, 4, 4),
        dsc.Cascade([conv(), conv(channels=6)]).effective(),
    ],
    ids=["conv", "kernels", "color", "dense", "images", "effective"],
)
def test_atoms_are_one_mosaic_of_tiles(atoms: dsc.Dictionary | torch.Tensor) -> None:
    figure = plot_atoms(atoms, columns=3, title="atoms")
    assert isinstance(figure, Figure)
    assert "atoms" in texts(figure)
    image = np.asarray(figure.axes[0].images[0].get_array())
    opaque = image[..., 3] == 1
    # Two rows of three tiles, transparent in between.
    assert not opaque.all()
    runs = np.diff(np.concatenate([[0], opaque[0].astype(int), [0]]))
    assert (runs == 1).sum() == 3
    runs = np.diff(np.concatenate([[0], opaque[:, 0].astype(int), [0]]))
    assert (runs == 1).sum() == 2


def test_every_tile_has_zero_at_mid_gray_and_its_own_scale() -> None:
    atoms = torch.zeros(2, 2, 2)
    atoms[0, 0, 0], atoms[1, 1, 1] = 0.1, -8.0
    image = np.asarray(plot_atoms(atoms, columns=2).axes[0].images[0].get_array())[..., 0]
    assert image.max() == 1.0
    assert image[-1, -1] == 0.0
    assert image[0, -1] == 0.5


def test_limit_draws_the_first_atoms() -> None:
    image = np.asarray(plot_atoms(conv(), columns=6, limit=2).axes[0].images[0].get_array())
    opaque = np.concatenate([[False], image[0, :, 3] == 1])
    assert int((np.diff(opaque.astype(int)) == 1).sum()) == 2


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (torch.ones(3, 5, 4, 4), r"\(3, 5, 4, 4\).*effective"),
        (torch.ones(3, 7), r"vectors of 7 entries.*shape="),
        (torch.ones(5), r"\(5,\)"),
    ],
)
def test_atoms_that_are_no_images_are_refused(atoms: torch.Tensor, words: str) -> None:
    with pytest.raises(dsc.ShapeError, match=words):
        plot_atoms(atoms)


# ---------------------------------------------------------------------- codes


def test_codes_are_dots_at_the_centers_of_their_atoms() -> None:
    codes = torch.zeros(5, 6, 6)
    codes[3, 1, 2], codes[3, 4, 5], codes[0, 0, 0] = 2.0, -1.0, 0.5
    figure = plot_codes(codes, torch.rand(14, 14, generator=torch.Generator().manual_seed(0)), stride=2, size=4, maps=2)
    first, second = figure.axes
    offsets = np.asarray(first.collections[0].get_offsets())
    assert sorted(map(tuple, offsets.tolist())) == [(2 * 2 + 1.5, 1 * 2 + 1.5), (5 * 2 + 1.5, 4 * 2 + 1.5)]
    assert len(np.asarray(second.collections[0].get_offsets())) == 1
    colors = first.collections[0].get_facecolor()
    assert not np.allclose(colors[0], colors[1])


def test_codes_show_their_atoms() -> None:
    dictionary = conv()
    figure = plot_codes(torch.ones(6, 3, 3), stride=2, size=4, maps=4, atoms=dictionary.weight.detach())
    assert len(figure.axes) == 4
    assert all(len(axes.child_axes) == 1 for axes in figure.axes)


def test_codes_of_a_batch_and_foreign_images_are_refused() -> None:
    with pytest.raises(dsc.ShapeError, match=r"one sample's maps"):
        plot_codes(torch.ones(2, 5, 6, 6))
    with pytest.raises(dsc.ShapeError, match=r"expected about \(14, 14\)"):
        plot_codes(torch.ones(5, 6, 6), torch.ones(60, 60), stride=2, size=4)


# ---------------------------------------------------------------------- lines


def test_convergence_shows_gap_against_steps_and_seconds() -> None:
    dictionary = dsc.DenseDictionary.random(10, 20, seed=0)
    signal = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    solution = dsc.solve(dsc.Lasso(dictionary, 0.3), signal, dsc.FISTA(), tol=1e-4)
    figure = plot_convergence(solution)
    left, right = figure.axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("steps", "seconds")
    assert left.get_yscale() == "log"
    worst = solution.history[0].relative_gap.amax(1).numpy()
    assert any(len(line.get_ydata()) == len(worst) and np.allclose(line.get_ydata(), worst) for line in left.lines)
    assert "asked for: 1e-04" in texts(figure)


def test_convergence_of_layers_names_them() -> None:
    model = dsc.Cascade([dsc.DenseDictionary.random(10, 12, seed=0), dsc.DenseDictionary.random(12, 14, seed=1)])
    signal = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    figure = plot_convergence(dsc.solve(dsc.LayeredLasso(model, (0.2, 0.1)), signal, dsc.FISTA(), tol=1e-4))
    assert "layer 1" in texts(figure)
    assert "layer 2" in texts(figure)


def test_convergence_of_an_empty_batch_is_refused() -> None:
    solution = dsc.solve(dsc.Lasso(dsc.DenseDictionary.random(4, 6, seed=0), 0.1), torch.zeros(0, 4))
    with pytest.raises(dsc.ParameterError, match="no history"):
        plot_convergence(solution)


def test_bound_shows_both_lines_and_the_border_between_layers() -> None:
    errors = torch.tensor([[0.5, 0.1, 0.4, 0.0], [0.4, 0.2, 0.3, 0.0]])
    figure = plot_bound([1, 2, 3, 4], errors, [0.9, 0.3, 0.8, 0.2], layers=[1, 1, 2, 2])
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    assert any(np.allclose(line, [0.9, 0.3]) for line in drawn if line.shape == (2,))
    assert any(np.allclose(line, [0.5, 0.2]) for line in drawn if line.shape == (2,))
    assert any(np.allclose(np.asarray(line.get_xdata(), dtype=float), 2.5) for line in axes.lines)
    assert all(word in texts(figure) for word in ("proved bound", "largest error", "layer 1", "layer 2"))


def test_bound_refuses_lengths_that_differ() -> None:
    with pytest.raises(dsc.ShapeError, match="3, 2 and 3 entries"):
        plot_bound([1, 2, 3], [0.1, 0.2], [1.0, 1.0, 1.0])
    with pytest.raises(dsc.ShapeError, match="at least 1"):
        plot_bound([], [], [])


def report(share: float) -> SparsityReport:
    net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Identity())
    x = torch.ones(10, 10)
    x[:, : round(10 * share)] = -1.0
    with Probe(net, targets=["0", "1"]) as probe:
        net(x)
    return probe.report()


def test_sparsity_shows_every_run_and_the_mean() -> None:
    figure = plot_sparsity({"plain": report(0.2), "sparse": [report(0.6), report(0.8)]})
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1"]
    drawn = [tuple(np.round(np.asarray(line.get_xdata(), dtype=float), 6)) for line in axes.lines]
    assert (60.0, 80.0) in drawn
    assert (70.0,) in drawn
    assert "plain" in texts(figure)
    assert "sparse" in texts(figure)


def test_sparsity_refuses_reports_of_different_layers() -> None:
    other = SparsityReport(report(0.5).layers[:1])
    with pytest.raises(dsc.ParameterError, match="same layers"):
        plot_sparsity({"a": report(0.5), "b": other})
    with pytest.raises(dsc.ParameterError, match="at least one report"):
        plot_sparsity({})


# ---------------------------------------------------------------------- surroundings


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(dsc.MissingExtraError, match=r"matplotlib.*deep_sparse_coding\[plot\]"):
        plot_atoms(conv())


def test_global_style_and_figures_are_left_alone() -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    before = dict(mpl.rcParams)
    plot_bound([1, 2], [0.1, 0.05], [0.2, 0.1])
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
