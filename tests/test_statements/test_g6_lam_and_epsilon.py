"""G6: how the residual grows with lam, what a sphere says about it, and basis pursuit as the Lasso at the right lam."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import deep_sparse_coding as dsc
from deep_sparse_coding.guarantees.sphere import Rounding, sphere
from references import sklearn_lasso
from strategies import draw_codes, draw_dense, draw_signal

SEEDS = st.integers(0, 2**31 - 1)


@given(seed=SEEDS)
@settings(max_examples=25)
def test_the_residual_grows_with_lam_but_no_faster(seed: int) -> None:
    dictionary, signal = draw_dense(seed), draw_signal(draw_dense(seed), seed)
    matrix = dictionary.matrix.detach()
    top = float(dsc.Lasso(dictionary, 1.0).lam_max(signal))
    lams = [top * share for share in (0.02, 0.1, 0.3, 0.6, 0.95, 1.2)]
    norms = [float((signal - matrix @ sklearn_lasso(matrix, signal, lam)).norm()) for lam in lams]
    room = 1e-7 * float(signal.norm())
    for (lam, low), (larger, high) in zip(
        zip(lams, norms, strict=True), list(zip(lams, norms, strict=True))[1:], strict=False
    ):
        assert low <= high + room
        assert high / larger <= low / lam + room / lam


def test_both_are_attained() -> None:
    # One atom: above lam_max the residual stays as it is; an atom and a signal along it: it grows exactly as lam does.
    dictionary = dsc.DenseDictionary(torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    along = torch.tensor([2.0, 0.0], dtype=torch.float64)
    one, two = (dsc.solve(dsc.Lasso(dictionary, lam), along, tol=1e-12).codes for lam in (0.5, 1.0))
    assert float((along - dictionary.synthesize(two)).norm()) == 2 * float((along - dictionary.synthesize(one)).norm())


@given(seed=SEEDS, scale=st.sampled_from([1.0, 1e-2, 1e-5]))
@settings(max_examples=40)
def test_a_sphere_knows_the_residual_of_the_minimizer(seed: int, scale: float) -> None:
    dictionary, signal = draw_dense(seed), draw_signal(draw_dense(seed), seed)
    matrix = dictionary.matrix.detach()
    lam = 0.2 * float(dsc.Lasso(dictionary, 1.0).lam_max(signal))
    best = sklearn_lasso(matrix, signal, lam)
    codes = best + scale * draw_codes(dictionary, seed + 1)
    form = dsc.Lasso(dictionary, lam).exact_form(signal)
    found = sphere(form, (codes[None],), Rounding.of(form))
    rho, center = float((signal - matrix @ best).norm()), float(found.center[0].norm())
    assert abs(rho - center) <= float(found.radius[0]) + 1e-7 * float(signal.norm())


@given(seed=SEEDS, share=st.floats(0.05, 0.9))
@settings(max_examples=25)
def test_basis_pursuit_is_the_lasso_at_the_lam_whose_residual_is_epsilon(seed: int, share: float) -> None:
    dictionary, signal = draw_dense(seed), draw_signal(draw_dense(seed), seed)
    matrix = dictionary.matrix.detach()
    lam = share * float(dsc.Lasso(dictionary, 1.0).lam_max(signal))
    lasso = sklearn_lasso(matrix, signal, lam)
    epsilon = float((signal - matrix @ lasso).norm())
    solution = dsc.solve(dsc.BasisPursuit(dictionary, epsilon), signal, tol=1e-7, on_failure="ignore")
    want = float(lasso.abs().sum())
    assert abs(float(solution.codes.abs().sum()) - want) <= 1e-4 * want + 1e-9
    assert float((signal - matrix @ solution.codes).norm()) <= epsilon * (1 + 1e-9)
