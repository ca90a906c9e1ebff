"""Limits on memory: parts give what the whole gives, with one certificate; what is needed is said before."""

import pytest
import torch
from hypothesis import given, settings

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess_form
from deep_sparse_coding.problems.strips import assess_strips, window_form, windows_of
from deep_sparse_coding.solvers.memory import MemoryNeed, memory_need, parse_memory
from deep_sparse_coding.solvers.tiles import plan_tiles
from strategies import SEEDS, draw_conv, normal, randint, rng


def _conv_problem(seed: int, boundary: str | None = None, weights: bool = False, mask: bool = False):
    """Return a Lasso on a drawn convolution, and signals for it."""
    g = rng(seed)
    boundary = ("valid", "same", "circular")[seed % 3] if boundary is None else boundary
    dictionary = draw_conv(seed, boundary=boundary)
    grid = tuple(k + randint(3, 7, g) for k in dictionary.kernel_size)
    signal = normal(2, *dictionary.signal_shape(grid), generator=g)
    options = {}
    if weights:
        options["weights"] = 0.5 + torch.rand(
            *dictionary.exact_code_shape(signal.shape[2:]), generator=g, dtype=torch.float64
        )
    if mask:
        options["mask"] = (torch.rand(signal.shape, generator=g) < 0.7).double()
    lam = 0.2 * dsc.Lasso(dictionary, 1.0, **options).lam_max(signal)
    lam = lam.reshape(2, *(1,) * (signal.ndim - 1))
    return dsc.Lasso(dictionary, lam, **options), signal


def _sparse_codes(form, seed: int):
    x = normal(form.batch, *form.code_shapes[0], generator=rng(seed))
    return torch.where(x.abs() > 1.2, x, 0.0)


@given(seed=SEEDS)
@settings(max_examples=60)
def test_a_certificate_in_strips_is_the_certificate(seed):
    problem, signal = _conv_problem(seed, weights=seed % 3 == 0, mask=seed % 5 == 0)
    form = problem.exact_form(signal)
    codes = (_sparse_codes(form, seed),)
    whole = assess_form(form, codes)
    for rows in (1, 3, 1000):
        strips = assess_strips(form, codes, rows)
        for name in ("objective", "gap", "dual"):
            torch.testing.assert_close(getattr(strips, name), getattr(whole, name), rtol=1e-9, atol=1e-9)


def test_a_certificate_in_strips_sees_forbidden_and_negative_codes():
    dictionary = dsc.ConvDictionary.random(atoms=3, channels=1, size=3, seed=0, dtype=torch.float64)
    problem = dsc.Lasso(dictionary, lam=torch.tensor([1.0, float("inf"), 1.0], dtype=torch.float64), nonnegative=True)
    signal = normal(2, 1, 9, 9, generator=rng(0))
    form = problem.exact_form(signal)
    codes = form.zeros()[0]
    codes[0, 1, 2, 2] = 1.0  # forbidden
    codes[1, 0, 2, 2] = -1.0  # negative
    assert torch.isinf(assess_strips(form, (codes,), 2).objective).all()
    assert torch.isinf(assess_strips(form, (codes,), 2).gap).all()


@given(seed=SEEDS)
@settings(max_examples=40)
def test_windows_put_together_are_the_dictionary(seed):
    problem, signal = _conv_problem(seed, mask=seed % 2 == 0)
    form = problem.exact_form(signal)
    codes = _sparse_codes(form, seed)
    windows = windows_of(form)
    tile = tuple(max(1, n // 3) for n in windows.grid)
    for shift in (True, False):
        rest = form.data[0].clone()
        axes = len(tile)
        for window in windows.tiling(tile, (0,) * axes, (shift,) * axes):
            window.add(
                rest, -window_form(form, windows, window).form.operator.synthesize((window.cut_codes(codes),))[0]
            )
        torch.testing.assert_close(rest, form.residual((codes,))[0], rtol=1e-10, atol=1e-10)


@given(seed=SEEDS)
@settings(max_examples=30)
def test_a_window_is_a_lasso_of_its_own(seed):
    """Changing the codes of one window changes the objective as its own form says."""
    problem, signal = _conv_problem(seed, mask=seed % 2 == 0, weights=seed % 3 == 0)
    form = problem.exact_form(signal)
    codes = _sparse_codes(form, seed)
    windows = windows_of(form)
    box = [(0, max(1, min(n // 2, largest))) for n, largest in zip(windows.grid, windows.largest(), strict=True)]
    window = windows.at(box)
    rest = form.residual((codes,))[0]
    part = window_form(form, windows, window, window.take(rest)).form
    before = window.cut_codes(codes)
    part = window_form(form, windows, window, part.data[0] + part.operator.synthesize((before,))[0]).form
    after = _sparse_codes(part, seed + 1)
    changed = codes.clone()
    window.put_codes(changed, after)
    whole = assess_form(form, (changed,)).objective - assess_form(form, (codes,)).objective
    own = assess_form(part, (after,)).objective - assess_form(part, (before,)).objective
    torch.testing.assert_close(whole, own, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("boundary", ["valid", "same", "circular"])
@pytest.mark.parametrize("masked", [False, True])
def test_tiles_solve_what_the_whole_solves(boundary, masked):
    dictionary = dsc.ConvDictionary.random(atoms=6, channels=1, size=5, seed=0, dtype=torch.float64)
    dictionary = dictionary.with_boundary(boundary)
    signal = normal(2, 1, 36, 28, generator=rng(1))
    mask = (torch.rand(signal.shape, generator=rng(2)) < 0.6).double() if masked else None
    problem = dsc.Lasso(dictionary, lam=0.8, mask=mask)
    whole = dsc.solve(problem, signal, tol=1e-5)
    form = problem.form(signal)
    limit = memory_need(form.select(torch.tensor([0])), dsc.FISTA()).total  # two answers leave less than this
    tiled = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-5, max_memory=limit)
    assert tiled.solver == "FISTA on tiles"
    assert tiled.converged.all()
    assert 1 < int(tiled.steps.max()) < 20
    torch.testing.assert_close(tiled.certificate.objective, whole.certificate.objective, rtol=2e-5, atol=0)
    # Strips know the scaled residual only; the whole has a second dual point, which may be better.
    again = assess_form(problem.exact_form(signal), (tiled.codes,), tol=float("inf"))
    torch.testing.assert_close(tiled.certificate.gap, again.gap, rtol=1e-6, atol=1e-12)
    warm = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-5, max_memory=limit, start=tiled.codes)
    assert int(warm.steps.max()) == 0


def test_tiles_on_a_line_and_in_float32():
    dictionary = dsc.ConvDictionary.random(atoms=5, channels=2, size=(9,), stride=2, seed=0)
    signal = torch.randn(1, 2, 9 + 2 * 600, generator=rng(0))
    problem = dsc.Lasso(dictionary, lam=1.5)
    need = memory_need(problem.form(signal), dsc.FISTA())
    solution = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-5, max_memory=int(0.75 * need.total))
    assert solution.solver == "FISTA on tiles"
    assert solution.converged.all()
    assert solution.codes.dtype == torch.float32


@pytest.mark.parametrize("solver", [None, dsc.FISTA()])
def test_groups_of_samples_give_what_all_at_once_give(solver):
    dictionary = dsc.DenseDictionary.random(12, 30, seed=0, dtype=torch.float64)
    signal = normal(7, 12, generator=rng(0))
    signal[3, 0] = float("nan")
    lam = torch.linspace(0.3, 0.6, 7, dtype=torch.float64)
    problem = dsc.Lasso(dictionary, lam=lam)
    with pytest.warns(dsc.DSCWarning, match="NaN or infinite"):
        whole = dsc.solve(problem, signal, solver)
    form = problem.form(signal)
    need = memory_need(form, solver or dsc.CoordinateDescent())
    limit = need.shared + need.samples * need.answer + 2 * need.work
    with pytest.warns(dsc.DSCWarning, match="NaN or infinite"):
        parts = dsc.solve(problem, signal, solver, max_memory=limit)
    assert parts.status == whole.status
    torch.testing.assert_close(parts.codes, whole.codes, rtol=1e-4, atol=1e-4, equal_nan=True)
    torch.testing.assert_close(
        parts.certificate.objective, whole.certificate.objective, rtol=2e-6, atol=0, equal_nan=True
    )
    assert parts.history[0].objective.shape[1] == 7


def test_a_stop_in_the_first_group_leaves_the_others_at_their_start():
    dictionary = dsc.DenseDictionary.random(12, 30, seed=0, dtype=torch.float64)
    signal = normal(6, 12, generator=rng(0))
    problem = dsc.Lasso(dictionary, lam=0.3)
    need = memory_need(problem.form(signal), dsc.FISTA())
    limit = need.samples * need.answer + 2 * need.work
    solution = dsc.solve(problem, signal, dsc.FISTA(), max_memory=limit, callback=lambda _: True, on_failure="ignore")
    assert solution.stopped
    assert not solution.codes.any()


def test_layers_keep_to_the_limit_too():
    model = dsc.Cascade(
        [
            dsc.ConvDictionary.random(atoms=4, channels=1, size=3, seed=0, dtype=torch.float64),
            dsc.ConvDictionary.random(atoms=6, channels=4, size=3, seed=1, dtype=torch.float64),
        ]
    )
    signal = normal(3, 1, 20, 20, generator=rng(0))
    problem = dsc.LayeredLasso(model, lam=(0.5, 0.2))
    whole = dsc.solve(problem, signal)
    parts = dsc.solve(problem, signal, max_memory="0.6 MB")
    assert parts.converged.all()
    torch.testing.assert_close(parts.certificate.layers[0].objective, whole.certificate.layers[0].objective)


# ---------------------------------------------------------------------- what is said


def test_a_large_solve_says_what_it_needs(monkeypatch):
    monkeypatch.setattr("deep_sparse_coding.solvers.memory._WORTH_SAYING", 10_000)
    dictionary = dsc.DenseDictionary.random(12, 30, seed=0)
    signal = torch.randn(50, 12, generator=rng(0))
    with pytest.warns(dsc.DSCWarning, match=r"needs about .* for 50 sample\(s\).*max_memory"):
        dsc.solve(dsc.Lasso(dictionary, lam=0.5), signal, tol=1e-3)
    dsc.solve(dsc.Lasso(dictionary, lam=0.5), signal, tol=1e-3, max_memory="1 GB")


def test_limits_are_read():
    assert parse_memory("max_memory", "2 GB") == 2 * 10**9
    assert parse_memory("max_memory", "1.5MiB") == 3 * 2**19
    assert parse_memory("max_memory", 1000) == 1000
    assert parse_memory("max_memory", None) is None


@pytest.mark.parametrize("value", ["2 apples", "", "-1 GB", 0, -5, float("nan"), float("inf"), True, [1]])
def test_bad_limits_are_refused(value):
    dictionary = dsc.DenseDictionary.random(4, 6, seed=0)
    with pytest.raises(dsc.ParameterError, match="max_memory"):
        dsc.solve(dsc.Lasso(dictionary, lam=0.5), torch.ones(1, 4), max_memory=value)


def test_limits_that_nothing_meets_say_what_would():
    dense = dsc.Lasso(dsc.DenseDictionary.random(12, 30, seed=0), lam=0.5)
    with pytest.raises(dsc.ParameterError, match="expected at least"):
        dsc.solve(dense, torch.ones(3, 12), max_memory=100)
    conv = dsc.Lasso(dsc.ConvDictionary.random(atoms=4, channels=1, size=3, seed=0), lam=0.5)
    with pytest.raises(dsc.ParameterError, match=r"expected at least .* tiles of"):
        dsc.solve(conv, torch.ones(1, 1, 30, 30), max_memory=100)


def test_limits_are_refused_where_they_would_be_ignored():
    dictionary = dsc.DenseDictionary.random(12, 30, seed=0)
    for problem in (dsc.BasisPursuit(dictionary, epsilon=0.1), dsc.SparseApproximation(dictionary, sparsity=2)):
        with pytest.raises(dsc.UnsupportedError, match=r"max_memory is for dsc.Lasso"):
            dsc.solve(problem, torch.ones(1, 12), max_memory="1 GB")


def test_needs_add_up():
    need = MemoryNeed(answer=10, work=100, shared=1000, samples=5)
    assert need.total == 1000 + 5 * 110
    assert need.group_size(1000 + 50 + 250) == 2
    assert need.group_size(1000) == 0


def test_tiles_fit_the_limit():
    dictionary = dsc.ConvDictionary.random(atoms=16, channels=1, size=7, seed=0)
    form = dsc.Lasso(dictionary, lam=1.0).form(torch.zeros(1, 1, 300, 200))
    need = memory_need(form, dsc.FISTA())
    plan = plan_tiles(form, lambda _: dsc.FISTA(), int(0.6 * need.total))
    assert all(t + 2 * o <= n for t, o, n in zip(plan.tile, plan.overlap, form.code_shapes[0][1:], strict=True))
    assert max(plan.overlap) > 0
