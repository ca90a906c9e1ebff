"""Subspace pursuit, CoSaMP, iterative hard thresholding and forward selection: what theorems and words promise."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from deep_sparse_coding.problems import assess
from deep_sparse_coding.solvers.greedy import IHT, OMP, CoSaMP, Pursuit, SubspacePursuit
from deep_sparse_coding.solvers.hard_thresholding import descend
from deep_sparse_coding.solvers.pursuit import fit_support, largest_entries
from references import explicit_matrix
from references_constrained import best_residual, least_squares
from strategies import code_size, draw_conv, draw_dense, normal, rng

DENSE = dsc.DenseDictionary.random(12, 20, seed=0, dtype=torch.float64)
CONV = dsc.ConvDictionary.random(atoms=3, channels=1, size=3, seed=0, dtype=torch.float64)
CASCADE = dsc.Cascade([DENSE, dsc.DenseDictionary.random(20, 26, seed=2, dtype=torch.float64)])
SIGNAL = normal(6, 12, generator=rng(0))
STEPS = ("fixed", "normalized", "accelerated")
FAMILY: tuple[Pursuit, ...] = (SubspacePursuit(), CoSaMP(), *(IHT(step) for step in STEPS))
IDS = ["SubspacePursuit", "CoSaMP", *(f"IHT-{step}" for step in STEPS)]
family = pytest.mark.parametrize("solver", FAMILY, ids=IDS)
every = pytest.mark.parametrize("solver", [*FAMILY, OMP(forward=True)], ids=[*IDS, "forward"])


def residual_norms(dictionary: dsc.Dictionary, signal: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return (signal.double() - dictionary.cast(torch.float64).synthesize(codes.double())).flatten(1).norm(dim=1)


def counts(codes: torch.Tensor) -> torch.Tensor:
    return (codes != 0).flatten(1).sum(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IHT("accelerate"), "step is 'accelerate'; expected 'accelerated', 'normalized' or 'fixed'; did you"),
        (lambda: IHT(1.0), "step is 1.0; expected 'accelerated'"),
        (lambda: IHT(rounds=0), "rounds is 0; expected a whole number of at least 1"),
        (lambda: IHT(tol=-1.0), "tol is -1.0; expected"),
        (lambda: IHT(polish=3), "polish is 3"),
        (lambda: SubspacePursuit(rounds=0), "rounds is 0; expected a whole number of at least 1"),
        (lambda: CoSaMP(rounds=2.5), "rounds is 2.5; expected a whole number of at least 1"),
        (lambda: OMP(forward=2), "forward is 2"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, message: str) -> None:
    with pytest.raises(dsc.ParameterError, match=message):
        make()  # type: ignore[operator]


def test_forward_selection_says_what_it_does_not_take() -> None:
    for problem in (dsc.SparseApproximation(CONV, 3), dsc.SparseApproximation(DENSE, 3, nonnegative=True)):
        signal = SIGNAL if problem.dictionary is DENSE else torch.ones(1, 5, 5, dtype=torch.float64)
        with pytest.raises(dsc.UnsupportedError, match=r"forward=True\) takes dense dictionaries.*use dsc.OMP\(\)"):
            dsc.solve(problem, signal, OMP(forward=True))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_forward_selection_lowers_the_residual_most_at_every_step(seed: int) -> None:
    dictionary, signal = draw_dense(seed), None
    signal = normal(2, dictionary.matrix.shape[0], generator=rng(seed))
    a = dictionary.matrix.detach().numpy()
    sparsity = min(3, int(torch.linalg.matrix_rank(dictionary.matrix)))
    got = dsc.solve(dsc.SparseApproximation(dictionary, sparsity), signal, OMP(forward=True)).codes
    for i in range(2):
        chosen: list[int] = []
        for _ in range(sparsity):
            rest = [j for j in range(a.shape[1]) if j not in chosen]
            left = [least_squares(a[:, [*chosen, j]], signal[i].numpy(), False)[1] for j in rest]
            chosen.append(rest[left.index(min(left))])
        want = least_squares(a[:, chosen], signal[i].numpy(), False)[1]
        assert float(residual_norms(dictionary, signal, got)[i]) == pytest.approx(want, abs=1e-9 * float(signal.norm()))


@every
def test_exact_recovery_where_coherence_allows_it(solver: Pursuit) -> None:
    # μ = 1/8: with two atoms μ(2s - 1) < 1 (G1), far inside what each theorem of the family asks for.
    eye = torch.eye(64, dtype=torch.float64)
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(6):
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    dictionary = dsc.DenseDictionary(torch.cat([eye, hadamard / 8], 1))
    truth = torch.zeros(60, 128, dtype=torch.float64)
    generator = rng(3)
    for row in truth:
        row[torch.randperm(128, generator=generator)[:2]] = 1 + torch.rand(2, generator=generator).double()
    signal = dictionary.synthesize(truth)
    found = dsc.solve(dsc.SparseApproximation(dictionary, 2), signal, solver)
    assert torch.allclose(found.codes, truth, atol=1e-9)
    fewest = dsc.solve(dsc.SparseApproximation(dictionary, epsilon=1e-4), signal, solver)
    assert torch.allclose(fewest.codes, truth, atol=1e-9)
    assert torch.equal(fewest.certificate.objective, torch.full((60,), 2.0, dtype=torch.float64))


@family
@pytest.mark.parametrize("nonnegative", [False, True])
def test_no_better_than_enumeration_and_stationary(solver: Pursuit, nonnegative: bool) -> None:
    signal = normal(8, 6, generator=rng(5))
    tiny = dsc.DenseDictionary.random(6, 9, seed=1, dtype=torch.float64)
    problem = dsc.SparseApproximation(tiny, 2, nonnegative=nonnegative)
    found = dsc.solve(problem, signal, solver)
    norms = residual_norms(tiny, signal, found.codes)
    hits = 0
    for i in range(8):
        best = best_residual(tiny.matrix.detach(), signal[i], 2, nonnegative=nonnegative)
        assert float(norms[i]) >= best - 1e-12
        hits += float(norms[i]) < best * 1.0001
    assert hits >= 1  # of eight: greedy methods miss some
    assert int(counts(found.codes).max()) <= 2
    assert float(found.codes.min()) >= (0.0 if nonnegative else -math.inf)
    slope = tiny.analyze(signal - tiny.synthesize(found.codes))
    assert float((slope * (found.codes != 0)).abs().max()) < 1e-7  # least squares on the support


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_the_objective_of_hard_thresholding_never_rises(seed: int) -> None:
    dictionary = draw_dense(seed) if seed % 2 else draw_conv(seed)
    size = code_size(dictionary, seed, largest=4)
    signal = normal(3, *dictionary.signal_shape(size), generator=rng(seed))
    nonnegative = bool(seed % 3 == 0)
    problem = dsc.SparseApproximation(dictionary, 1, nonnegative=nonnegative)
    form = problem.form(signal)
    sizes = torch.tensor([1, 2, 3]).clamp_max(math.prod(form.code_shapes[0]))
    for step in STEPS:
        seen: list[torch.Tensor] = []
        codes = descend(IHT(step, tol=0.0, rounds=30), form, sizes, seen)
        values = torch.stack([signal.flatten(1).square().sum(1), *seen])
        assert bool((values[1:] <= values[:-1]).all())
        assert torch.allclose(residual_norms(dictionary, signal, codes) ** 2, values[-1], rtol=1e-9, atol=1e-20)
        assert bool((counts(codes) <= sizes).all())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31 - 1))
def test_a_round_of_subspace_pursuit_and_polish_lower_the_residual(seed: int) -> None:
    dictionary = draw_dense(seed) if seed % 2 else draw_conv(seed)
    size = code_size(dictionary, seed, largest=4)
    signal = normal(2, *dictionary.signal_shape(size), generator=rng(seed))
    matrix = explicit_matrix(dictionary, size)
    sparsity = min(2, int(torch.linalg.matrix_rank(matrix)))
    problem = dsc.SparseApproximation(dictionary, sparsity)
    last = signal.flatten(1).norm(dim=1)
    for rounds in (1, 2, 4, 8):
        now = residual_norms(dictionary, signal, dsc.solve(problem, signal, SubspacePursuit(rounds)).codes)
        assert bool((now <= last * (1 + 1e-12)).all())
        last = now
    for step in STEPS:
        plain, fine = (dsc.solve(problem, signal, IHT(step, rounds=3, polish=p)).codes for p in (False, True))
        assert bool(
            (residual_norms(dictionary, signal, fine) <= residual_norms(dictionary, signal, plain) * (1 + 1e-12)).all()
        )


@every
def test_epsilon_is_met_with_one_atom_fewer_missing_it(solver: Pursuit) -> None:
    epsilon = torch.tensor([0.5, 1.0, 1.5, 0.7, 1.2, 0.3], dtype=torch.float64)
    found = dsc.solve(dsc.SparseApproximation(DENSE, epsilon=epsilon), SIGNAL, solver, on_failure="ignore")
    met = found.converged
    assert bool((residual_norms(DENSE, SIGNAL, found.codes)[met] <= epsilon[met]).all())
    assert int(met.sum()) >= 5
    for i in met.nonzero().flatten().tolist():
        allowed = int(found.steps[i])
        if allowed > 1 and not isinstance(solver, IHT | CoSaMP):
            fewer = dsc.solve(dsc.SparseApproximation(DENSE, allowed - 1), SIGNAL[i], solver).codes
            assert float(residual_norms(DENSE, SIGNAL[i : i + 1], fewer[None])) > float(epsilon[i])
    with pytest.warns(dsc.DSCWarning, match="did not come within epsilon with the 1 atoms it may use"):
        short = dsc.solve(dsc.SparseApproximation(DENSE, 1, 0.1), SIGNAL, solver)
    assert set(short.status) == {dsc.Status.STALLED}


@family
def test_masks_per_sample_are_each_sample_alone(solver: Pursuit) -> None:
    mask = torch.rand(6, 12, generator=rng(7)) > 0.3
    together = dsc.solve(dsc.SparseApproximation(DENSE, 3, mask=mask), SIGNAL, solver)
    for i in range(6):
        alone = dsc.solve(dsc.SparseApproximation(DENSE, 3, mask=mask[i]), SIGNAL[i], solver)
        if isinstance(solver, IHT) and solver.step == "fixed":
            continue  # its step is that of the whole batch
        assert torch.allclose(together.codes[i], alone.codes, atol=1e-7)


@family
def test_convolutions_are_their_matrix(solver: Pursuit) -> None:
    signal = normal(2, 1, 8, 8, generator=rng(8))
    dense = dsc.DenseDictionary(explicit_matrix(CONV, (6, 6)), normalize=False)
    for nonnegative in (False, True):
        one = dsc.solve(dsc.SparseApproximation(CONV, 5, nonnegative=nonnegative), signal, solver)
        two = dsc.solve(dsc.SparseApproximation(dense, 5, nonnegative=nonnegative), signal.flatten(1), solver)
        assert int(counts(one.codes).max()) <= 5
        if not (isinstance(solver, IHT) and solver.step == "fixed"):
            assert torch.allclose(one.codes.flatten(1), two.codes, atol=1e-7)


@every
def test_layers_zeros_scales_bad_samples_and_float32(solver: Pursuit) -> None:
    layered = dsc.solve(dsc.LayeredSparseApproximation(CASCADE, sparsity=(4, 3)), SIGNAL, solver)
    assert bool(layered.converged.all())
    assert [int(counts(block).max()) for block in layered.codes] == [4, 3]
    problem = dsc.SparseApproximation(DENSE, 3)
    flat = dsc.solve(problem, SIGNAL, solver)
    assert dsc.solve(problem, SIGNAL[:0], solver).codes.shape == (0, 20)
    assert torch.equal(dsc.solve(problem, SIGNAL.reshape(2, 3, 12), solver).codes.reshape(6, 20), flat.codes)
    assert torch.equal(dsc.solve(problem, SIGNAL, solver).codes, flat.codes)
    assert bool((dsc.solve(problem, torch.zeros_like(SIGNAL), solver).codes == 0).all())
    for scale in (1e-30, 1e30):
        scaled = dsc.solve(problem, SIGNAL * scale, solver).codes / scale
        assert torch.allclose(scaled, flat.codes, rtol=1e-6, atol=1e-9)
    bad = SIGNAL.clone()
    bad[2, 5] = math.nan
    with pytest.warns(dsc.DSCWarning, match="sample 2: the signal or its lam is NaN"):
        spoiled = dsc.solve(problem, bad, solver)
    others = [0, 1, 3, 4, 5]
    assert torch.allclose(spoiled.codes[others], flat.codes[others], atol=1e-12)
    single = dsc.solve(dsc.SparseApproximation(DENSE.cast(torch.float32), 3), SIGNAL.float(), solver)
    assert single.codes.dtype == torch.float32
    assert torch.allclose(single.codes.double(), flat.codes, atol=1e-4)
    with pytest.warns(dsc.DSCWarning, match="sparsity is 15 and no more than 12 atoms are independent") as seen:
        dsc.solve(dsc.SparseApproximation(DENSE, 15), SIGNAL, solver)
    assert len(seen) == 1


@every
def test_the_certificate_is_the_assessors(solver: Pursuit) -> None:
    for problem in (dsc.SparseApproximation(DENSE, 4), dsc.SparseApproximation(DENSE, 6, 1.5)):
        found = dsc.solve(problem, SIGNAL, solver, on_failure="ignore")
        again = assess(problem, SIGNAL, found.codes)
        for name in ("objective", "dual", "gap", "relative_gap"):
            assert torch.allclose(getattr(found.certificate, name), getattr(again, name), rtol=1e-12, atol=1e-14)


def test_largest_entries_take_the_first_of_equals_and_no_zeros() -> None:
    score = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 3.0, 0.0, 0.0]])
    got = largest_entries(score, torch.tensor([2, 4]))
    assert got.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]]


def test_nearly_equal_atoms_are_chosen_as_in_float64() -> None:
    # Below float32's resolution: the second atom is the better one by 1e-9.
    atoms = torch.eye(4, dtype=torch.float64)
    dictionary = dsc.DenseDictionary(atoms)
    signal = torch.tensor([[1.0, 1.0 + 1e-9, 0.5, 0.0]], dtype=torch.float64)
    assert dsc.solve(dsc.SparseApproximation(dictionary, 1), signal).codes[0].nonzero().tolist() == [[1]]


def test_dependent_supports_still_get_least_squares() -> None:
    with pytest.warns(dsc.DSCWarning, match="the same up to scale and sign"):
        dictionary = dsc.DenseDictionary(torch.cat([torch.eye(3), torch.eye(3)[:, :1]], 1).double())
    problem = dsc.SparseApproximation(dictionary, 2)
    signal = normal(3, 3, generator=rng(1))
    support = torch.tensor([[True, True, False, True]] * 3)
    codes = fit_support(problem.form(signal), support)
    assert torch.allclose(dictionary.synthesize(codes)[:, :2], signal[:, :2], atol=1e-10)
