"""Every boundary, 1 to 3 axes, stride, channels: certified, against the explicit matrix and exact minimizers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from torch import Tensor

import deep_sparse_coding as dsc
from deep_sparse_coding.guarantees.columns import Columns
from deep_sparse_coding.problems.operators import ChainOperator, SingleOperator
from operators import OPERATORS, SAME_OPERATORS, Operator, explicit_matrix
from references import kkt_violation, lasso_objective, scipy_lasso
from strategies import SEEDS, code_size, draw_conv, normal, rng

F64 = torch.float64
CONVOLUTIONS = [op for op in (*OPERATORS, *SAME_OPERATORS) if op.name.startswith("conv")]
each_convolution = pytest.mark.parametrize("operator", CONVOLUTIONS, ids=[op.name for op in CONVOLUTIONS])
each_same = pytest.mark.parametrize("operator", SAME_OPERATORS, ids=[op.name for op in SAME_OPERATORS])


def conv(operator: Operator) -> dsc.ConvDictionary:
    """Return the operator's dictionary."""
    dictionary = operator.build()
    assert isinstance(dictionary, dsc.ConvDictionary)
    return dictionary


def only(solution: dsc.Solution) -> Tensor:
    """Return the codes of a problem that has a single layer."""
    assert isinstance(solution.codes, Tensor)
    return solution.codes


def signals(dictionary: dsc.Dictionary, size: tuple[int, ...], seed: int, batch: int = 2) -> Tensor:
    """Return Gaussian signals."""
    return normal(batch, *dictionary.signal_shape(size), generator=rng(seed))


def lam_of(dictionary: dsc.Dictionary, signal: Tensor, share: float = 0.2) -> float:
    """Return a share of the smallest lam that leaves every code zero."""
    return share * float(dsc.Lasso(dictionary, 1.0).lam_max(signal).min())


@each_convolution
@pytest.mark.parametrize("solver", [dsc.FISTA(), dsc.ISTA()], ids=["FISTA", "ISTA"])
def test_certified_codes_on_every_boundary(operator: Operator, solver: dsc.Solver) -> None:
    dictionary = conv(operator)
    signal = signals(dictionary, operator.size, 3)
    lam = lam_of(dictionary, signal)
    matrix = explicit_matrix(dictionary, operator.size)
    tol = 1e-9 if isinstance(solver, dsc.FISTA) else 1e-6
    solution = dsc.solve(dsc.Lasso(dictionary, lam), signal, solver, tol=tol, max_steps=100_000)
    assert bool(solution.converged.all())
    for i in range(2):
        want = lasso_objective(matrix, signal[i], scipy_lasso(matrix, signal[i], lam), lam)
        got = lasso_objective(matrix, signal[i], solution.codes[i], lam)
        scale = float(signal[i].square().sum())
        assert got == pytest.approx(float(solution.certificate.objective[i]), rel=1e-12)
        assert -1e-12 * scale <= got - want <= float(solution.certificate.gap[i]) + 1e-12 * scale
        if isinstance(solver, dsc.FISTA):
            assert kkt_violation(matrix, signal[i], solution.codes[i], lam) < 1e-3 * lam


@given(seed=SEEDS)
@settings(max_examples=25)
def test_same_has_the_minimizers_of_valid_under_a_mask(seed: int) -> None:
    same = draw_conv(seed, axes=1 + seed % 2, boundary="same")
    valid = same.with_boundary("valid")
    signal = signals(same, code_size(same, seed), seed)
    lam = lam_of(same, signal)
    pads = [n for pair in reversed(same.padding) for n in pair]
    mask = F.pad(torch.ones_like(signal[0]), pads)
    padded = F.pad(signal, pads)
    first = dsc.solve(dsc.Lasso(same, lam), signal, dsc.FISTA(), tol=1e-9, max_steps=50_000)
    second = dsc.solve(dsc.Lasso(valid, lam, mask=mask), padded, dsc.FISTA(), tol=1e-9, max_steps=50_000)
    # Entries after the last atom, under none, are part of the "same" signal alone.
    left = 0.5 * (signal.flatten(1).square().sum(1) - (mask * padded).flatten(1).square().sum(1))
    objective = second.certificate.objective + left
    torch.testing.assert_close(first.certificate.objective, objective, rtol=1e-7, atol=1e-12)
    again = dsc.Lasso(same, lam).objective(second.codes, signal)
    torch.testing.assert_close(again, objective, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------- what is proved


def require_sound(posterior: dsc.Posterior, codes: Tensor, exact: Tensor, sample: int) -> None:
    """Raise unless all that is said of a sample is true of a minimizer."""
    slack = 1e-9 * (1 + float(exact.abs().max()))
    zeros, support = posterior.zeros[sample].flatten(), posterior.support[sample].flatten()
    assert float(exact[zeros].abs().sum()) <= slack
    assert bool((exact[support].abs() > 0).all())
    signs = posterior.signs[sample].flatten()
    assert torch.equal(exact[support].sign().to(signs.dtype), signs[support])
    assert bool((posterior.lower[sample].flatten() - slack <= exact).all())
    assert bool((exact <= posterior.upper[sample].flatten() + slack).all())
    if bool(posterior.unique[sample]):
        assert float((codes.flatten() - exact).norm()) <= float(posterior.distance[sample]) + slack


@given(seed=SEEDS)
@settings(max_examples=40)
def test_the_posterior_of_cut_atoms_is_true_of_exact_minimizers(seed: int) -> None:
    dictionary = draw_conv(seed, axes=1 + seed % 2, boundary="same")
    size = code_size(dictionary, seed, 5)
    signal = signals(dictionary, size, seed)
    lam = lam_of(dictionary, signal, 0.4)
    problem = dsc.Lasso(dictionary, lam)
    matrix = explicit_matrix(dictionary, size)
    for steps in (10, 5000):
        solution = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-12, max_steps=steps, on_failure="ignore")
        posterior = dsc.prove.posterior(solution)
        assert isinstance(posterior, dsc.Posterior)
        for i in range(2):
            exact = scipy_lasso(matrix, signal[i], lam)
            require_sound(posterior, solution.codes[i], exact, i)
            gap = lasso_objective(matrix, signal[i], solution.codes[i], lam) - lasso_objective(
                matrix, signal[i], exact, lam
            )
            assert gap <= float(posterior.gap[i]) + 1e-12 * float(signal[i].square().sum())


@each_same
def test_the_posterior_proves_the_minimizer_where_it_is_well_determined(operator: Operator) -> None:
    dictionary = conv(operator)
    signal = signals(dictionary, operator.size, 4)
    lam = lam_of(dictionary, signal, 0.5)
    solution = dsc.solve(dsc.Lasso(dictionary, lam), signal, dsc.FISTA(), tol=1e-11, max_steps=50_000)
    posterior = dsc.prove.posterior(solution)
    assert isinstance(posterior, dsc.Posterior)
    assert bool(posterior.unique.all())
    matrix = explicit_matrix(dictionary, operator.size)
    for i in range(2):
        exact = scipy_lasso(matrix, signal[i], lam)
        require_sound(posterior, solution.codes[i], exact, i)
        assert float(posterior.distance[i]) < 1e-3
        sigma = float(posterior.smallest_singular[i])
        support = exact != 0
        if bool(support.any()) and math.isfinite(sigma):
            assert sigma <= float(torch.linalg.svdvals(matrix[:, support])[-1]) * (1 + 1e-9)


def test_an_atom_that_the_border_cuts_to_nothing_is_a_certain_zero() -> None:
    kernels = torch.zeros(1, 1, 3, dtype=F64)
    kernels[0, 0, 0] = 1.0  # of the first position only this entry is cut off, and no other is there
    dictionary = dsc.ConvDictionary(kernels, boundary="same")
    assert dictionary.squared_norms(size=(4,)).flatten().tolist() == [0.0, 1.0, 1.0, 1.0]
    signal = normal(1, 1, 4, generator=rng(0)) + 3.0
    solution = dsc.solve(dsc.Lasso(dictionary, 0.1), signal, dsc.FISTA(), tol=1e-10)
    codes = only(solution)
    assert float(codes[0, 0, 0]) == 0.0
    posterior = dsc.prove.posterior(solution)
    assert isinstance(posterior, dsc.Posterior)
    assert isinstance(posterior.zeros, Tensor)
    assert posterior.zeros.flatten().tolist() == [True, False, False, False]
    assert bool(posterior.unique.all())
    torch.testing.assert_close(codes.flatten()[1:], signal.flatten()[:3] - 0.1)
    greedy = dsc.solve(dsc.SparseApproximation(dictionary, 4), signal, dsc.OMP())
    assert (only(greedy) != 0).flatten().tolist() == [False, True, True, True]


# ---------------------------------------------------------------------- operators


@each_same
def test_columns_written_out_are_those_of_the_matrix(operator: Operator) -> None:
    dictionary = conv(operator)
    signal = signals(dictionary, operator.size, 5)
    mask = (torch.rand(signal.shape, generator=rng(1), dtype=F64) < 0.7).double()
    matrix = explicit_matrix(dictionary, operator.size)
    index = torch.arange(matrix.shape[1]).numpy()
    columns = Columns.of(dsc.Lasso(dictionary, 0.1).form(signal)).take(0, index)
    torch.testing.assert_close(torch.from_numpy(columns.toarray()), matrix, rtol=0, atol=1e-15)
    # Zeros that are stored where an atom was cut off must not make neighbors of columns that share no place.
    apart = (matrix.abs().T @ matrix.abs()) == 0
    stored = columns.copy()
    stored.data[:] = 1.0
    touching = torch.from_numpy((stored.T @ stored).toarray())
    assert bool((touching[apart] == 0).all())
    masked = Columns.of(dsc.Lasso(dictionary, 0.1, mask=mask).form(signal)).take(1, index)
    torch.testing.assert_close(torch.from_numpy(masked.toarray()), mask[1].flatten()[:, None] * matrix)


@each_convolution
def test_column_norms_are_exact_where_the_size_is_known_and_bounds_where_not(operator: Operator) -> None:
    dictionary = conv(operator)
    matrix = explicit_matrix(dictionary, operator.size)
    shape = (1, dictionary.atoms, *operator.size)
    known = SingleOperator(dictionary, None, operator.size)
    unknown = SingleOperator(dictionary)
    torch.testing.assert_close(known.squared_norms()[0].expand(shape).flatten(), matrix.square().sum(0))
    assert bool((unknown.squared_norms()[0].expand(shape).flatten() * (1 + 1e-12) >= matrix.square().sum(0)).all())
    for other in (known.cast(F64), known.entrywise_abs(), known.select(torch.tensor([0]))):
        assert other.size == operator.size
        torch.testing.assert_close(other.squared_norms()[0], known.squared_norms()[0])
    assert float(torch.linalg.matrix_norm(matrix, 2)) ** 2 <= known.lipschitz()[0] * (1 + 1e-12)


def layered(boundaries: tuple[str, str]) -> tuple[dsc.Cascade, tuple[tuple[int, ...], ...]]:
    """Return two layers over lines and the spatial sizes of their codes."""
    lower = dsc.ConvDictionary.random(atoms=3, channels=1, size=(4,), stride=2, seed=0, dtype=F64)
    upper = dsc.ConvDictionary.random(atoms=4, channels=3, size=(3,), seed=1, dtype=F64)
    model = dsc.Cascade([lower.with_boundary(boundaries[0]), upper.with_boundary(boundaries[1])])
    size = (4,)
    return model, (model.layers[1].signal_shape(size)[1:], size)


MIXED = [("same", "same"), ("same", "valid"), ("valid", "same"), ("circular", "same"), ("same", "circular")]


def stacked(model: dsc.Cascade, sizes: tuple[tuple[int, ...], ...], beta: tuple[float, float]) -> Tensor:
    """Return the matrix of the joint problem."""
    first, second = (explicit_matrix(layer, size) for layer, size in zip(model.layers, sizes, strict=True))
    corner = first.new_zeros(len(first), second.shape[1])
    below = -(beta[1] ** 0.5) * torch.eye(len(second), dtype=F64)
    return torch.cat([torch.cat([beta[0] ** 0.5 * first, corner], 1), torch.cat([below, beta[1] ** 0.5 * second], 1)])


@pytest.mark.parametrize("boundaries", MIXED)
def test_norms_and_steps_of_chains_that_mix_boundaries(boundaries: tuple[str, str]) -> None:
    model, sizes = layered(boundaries)
    beta = (1.5, 0.5)
    matrix = stacked(model, sizes, beta)
    shapes = [(layer.atoms, *size) for layer, size in zip(model.layers, sizes, strict=True)]
    chain = ChainOperator(model.layers, beta, sizes=sizes)
    for operator in (chain, chain.cast(F64), chain.select(torch.tensor([0]))):
        norms = torch.cat([n[0].expand(s).flatten() for n, s in zip(operator.squared_norms(), shapes, strict=True)])
        torch.testing.assert_close(norms, matrix.square().sum(0))
    loose = [
        n[0].expand(s).flatten() for n, s in zip(ChainOperator(model.layers, beta).squared_norms(), shapes, strict=True)
    ]
    assert bool((torch.cat(loose) * (1 + 1e-12) >= matrix.square().sum(0)).all())
    steps = torch.cat(
        [torch.full((math.prod(s),), v, dtype=F64) for v, s in zip(chain.lipschitz(), shapes, strict=True)]
    )
    assert float(torch.linalg.eigvalsh(steps.diag() - matrix.T @ matrix)[0]) >= -1e-10


@pytest.mark.parametrize("boundaries", MIXED)
def test_joint_and_layered_problems_that_mix_boundaries(boundaries: tuple[str, str]) -> None:
    model, sizes = layered(boundaries)
    signal = normal(2, *model.layers[0].signal_shape(sizes[0]), generator=rng(2))
    beta, lam = (1.0, 0.5), (0.3, 0.1)
    joint = dsc.solve(dsc.JointLasso(model, lam, beta=beta), signal, dsc.FISTA(), tol=1e-9, max_steps=100_000)
    matrix = stacked(model, sizes, beta)
    widths = [layer.atoms * size[0] for layer, size in zip(model.layers, sizes, strict=True)]
    weights = torch.cat([torch.full((n,), value, dtype=F64) for n, value in zip(widths, lam, strict=True)])
    for i in range(2):
        data = torch.cat([signal[i].flatten(), torch.zeros(widths[0], dtype=F64)])
        want = lasso_objective(matrix, data, scipy_lasso(matrix, data, weights), weights)
        assert float(joint.certificate.objective[i]) == pytest.approx(want, rel=1e-8)
    posterior = dsc.prove.posterior(joint)
    assert isinstance(posterior, dsc.Posterior)
    for i in range(2):
        data = torch.cat([signal[i].flatten(), torch.zeros(widths[0], dtype=F64)])
        exact = scipy_lasso(matrix, data, weights)
        zeros = torch.cat([part[i].flatten() for part in posterior.zeros])
        assert float(exact[zeros].abs().sum()) <= 1e-9
    layers = dsc.solve(dsc.LayeredLasso(model, lam), signal, dsc.FISTA(), tol=1e-8, max_steps=50_000)
    assert bool(layers.converged.all())
    first, second = layers.codes
    matrices = [explicit_matrix(layer, size) for layer, size in zip(model.layers, sizes, strict=True)]
    for i in range(2):
        assert kkt_violation(matrices[0], signal[i], first[i], lam[0]) < 1e-2 * lam[0]
        assert kkt_violation(matrices[1], first[i], second[i], lam[1]) < 1e-2 * lam[1]


# ---------------------------------------------------------------------- compiled, and in single precision


@pytest.mark.parametrize("operator", [op for op in SAME_OPERATORS if len(op.size) < 3], ids=lambda op: op.name)
@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_compiled_solver_on_cut_atoms(operator: Operator, nonnegative: bool) -> None:
    dictionary = conv(operator)
    signal = signals(dictionary, operator.size, 8)
    lam = lam_of(dictionary, signal)
    problem = dsc.Lasso(dictionary, lam, nonnegative=nonnegative)
    solution = dsc.solve(problem, signal, dsc.ConvCoordinateDescent(), tol=1e-9)
    assert bool(solution.converged.all())
    again = dsc.certify(problem, signal, only(solution)).certificate
    torch.testing.assert_close(solution.certificate.objective, again.objective, rtol=1e-10, atol=1e-12)
    matrix = explicit_matrix(dictionary, operator.size)
    for i in range(2):
        best = scipy_lasso(matrix, signal[i], lam, nonnegative=nonnegative)
        want = lasso_objective(matrix, signal[i], best, lam)
        assert float(solution.certificate.objective[i]) == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize("stride", [1, 2, 7])
def test_single_precision_by_the_solver_that_is_chosen(stride: int) -> None:
    dictionary = dsc.ConvDictionary.random(atoms=6, channels=1, size=5, stride=stride, seed=0).with_boundary("same")
    images = torch.randn(2, 1, 14, 14, generator=rng(0))
    solution = dsc.solve(dsc.Lasso(dictionary, 0.3), images, tol=1e-4)
    assert bool(solution.converged.all())
    exact = dsc.certify(dsc.Lasso(dictionary.cast(F64), 0.3), images.double(), only(solution).double())
    assert float(exact.certificate.relative_gap.max()) <= 2e-4


@each_same
def test_problems_know_the_norm_of_every_atom_at_its_place(operator: Operator) -> None:
    dictionary = conv(operator)
    signal = signals(dictionary, operator.size, 6)
    matrix = explicit_matrix(dictionary, operator.size)
    (norms,) = dsc.Lasso(dictionary, 0.1).form(signal).operator.squared_norms()
    torch.testing.assert_close(norms.flatten(), matrix.square().sum(0))
    first = dsc.solve(dsc.SparseApproximation(dictionary, 1), signal, dsc.OMP())
    score = (signal.flatten(1) @ matrix).abs() / matrix.norm(dim=0)
    assert (only(first).flatten(1) != 0).nonzero()[:, 1].tolist() == score.argmax(1).tolist()


@pytest.mark.parametrize("boundaries", MIXED)
def test_joint_problems_know_them_too(boundaries: tuple[str, str]) -> None:
    model, sizes = layered(boundaries)
    signal = normal(1, *model.layers[0].signal_shape(sizes[0]), generator=rng(3))
    form = dsc.JointLasso(model, 0.1, beta=(1.5, 0.5)).form(signal)
    expected = stacked(model, sizes, (1.5, 0.5)).square().sum(0)
    pairs = zip(form.operator.squared_norms(), form.code_shapes, strict=True)
    torch.testing.assert_close(torch.cat([norms[0].expand(shape).flatten() for norms, shape in pairs]), expected)
