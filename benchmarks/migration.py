"""The same job in SPAMS, SPORCO, scikit-learn and here: the largest difference between the codes.

    python benchmarks/migration.py

What docs/coming-from-other-libraries.md says side by side. Libraries that are not installed are named and left out.
Codes are compared in float64, each library at its tightest tolerance; of the learned dictionaries, which are not unique
in general, one is compared that is: signals made of two of 24 atoms each, from which all learners find these atoms.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import deep_sparse_coding as dsc

Rows = list[tuple[str, str, str, float]]


def unit_columns(matrix: Any) -> Any:
    return matrix / np.linalg.norm(matrix, axis=0)


def dense(codes: Any) -> Any:
    return codes if isinstance(codes, np.ndarray) else codes.toarray()


def ours(problem: Any, signal: Any, *, tol: float = 1e-13, **settings: Any) -> Any:
    return dsc.solve(problem, torch.from_numpy(signal), tol=tol, on_failure="ignore", **settings).codes.numpy()  # type: ignore[union-attr]


def difference(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max())


def digits() -> tuple[Any, Any]:
    """Return 500 digits as rows ``(500, 64)`` and 128 atoms as columns ``(64, 128)``, digits among them and noise."""
    from sklearn.datasets import load_digits

    Y = load_digits().data / 16
    rng = np.random.default_rng(0)
    atoms = Y[rng.choice(len(Y), 128, replace=False)].T + 0.3 * rng.standard_normal((64, 128))
    return np.ascontiguousarray(Y[:500]), unit_columns(atoms)


def lasso_in_scikit_learn(Y: Any, D: Any, lam: float) -> Rows:
    from sklearn.decomposition import SparseCoder
    from sklearn.linear_model import Lasso

    from deep_sparse_coding.estimators import SparseCoder as OurCoder

    codes = ours(dsc.Lasso(dsc.DenseDictionary(torch.from_numpy(D)), lam), Y)
    lars = SparseCoder(D.T, transform_algorithm="lasso_lars", transform_alpha=lam, transform_max_iter=10_000)
    descent = SparseCoder(D.T, transform_algorithm="lasso_cd", transform_alpha=lam, transform_max_iter=100_000)
    lasso = Lasso(alpha=lam / len(D), fit_intercept=False, tol=1e-14, max_iter=100_000).fit(D, Y.T)
    estimator = OurCoder(D.T, lam=lam, tol=1e-13).fit(Y)
    return [
        ("Lasso", "scikit-learn", "SparseCoder lasso_lars", difference(codes, lars.transform(Y))),
        ("Lasso", "scikit-learn", "SparseCoder lasso_cd (its tol is 1e-4)", difference(codes, descent.transform(Y))),
        ("Lasso", "scikit-learn", "Lasso(alpha=lam/d)", difference(codes, lasso.coef_)),
        ("Lasso", "dsc.estimators", "SparseCoder", difference(codes, estimator.transform(Y))),
    ]


def lasso_in_spams(Y: Any, D: Any, lam: float) -> Rows:
    import spams

    X, A = np.asfortranarray(Y.T), np.asfortranarray(D)
    dictionary = dsc.DenseDictionary(torch.from_numpy(D))
    rows: Rows = []
    for words, theirs, problem in (
        ("lasso(mode=2)", {"lambda1": lam}, dsc.Lasso(dictionary, lam)),
        ("lasso(mode=2, pos=True)", {"lambda1": lam, "pos": True}, dsc.Lasso(dictionary, lam, nonnegative=True)),
        ("lasso(mode=2, lambda2)", {"lambda1": lam, "lambda2": 0.1}, dsc.Lasso(dictionary, lam, ridge=0.1)),
    ):
        codes = dense(spams.lasso(X, A, mode=2, numThreads=1, **theirs)).T
        rows.append(("Lasso", "SPAMS", words, difference(ours(problem, Y), codes)))
    epsilon = 0.5
    codes = dense(spams.lasso(X, A, mode=1, lambda1=epsilon**2, numThreads=1)).T
    bounded = ours(dsc.BasisPursuit(dictionary, epsilon), Y)
    rows.append(("‖y - Dx‖ ≤ ε", "SPAMS", "lasso(mode=1, lambda1=ε²)", difference(bounded, codes)))
    return rows


def lasso_in_sporco(Y: Any, D: Any, lam: float) -> Rows:
    from sporco.admm import bpdn

    options = bpdn.BPDN.Options({"Verbose": False, "MaxMainIter": 5000, "RelStopTol": 1e-11})
    codes = bpdn.BPDN(D, Y.T, lam, options).solve().T
    expected = ours(dsc.Lasso(dsc.DenseDictionary(torch.from_numpy(D)), lam), Y)
    return [("Lasso", "SPORCO", "admm.bpdn.BPDN", difference(expected, codes))]


def pursuit_in_scikit_learn(Y: Any, D: Any) -> Rows:
    from sklearn.decomposition import SparseCoder

    problem = dsc.SparseApproximation(dsc.DenseDictionary(torch.from_numpy(D)), 8)
    theirs = SparseCoder(D.T, transform_algorithm="omp", transform_n_nonzero_coefs=8).transform(Y)
    return [("OMP, 8 non-zeros", "scikit-learn", "SparseCoder omp", difference(ours(problem, Y), theirs))]


def pursuit_in_spams(Y: Any, D: Any) -> Rows:
    import spams

    problem = dsc.SparseApproximation(dsc.DenseDictionary(torch.from_numpy(D)), 8)
    theirs = dense(spams.omp(np.asfortranarray(Y.T), np.asfortranarray(D), L=8, eps=0.0, numThreads=1)).T
    forward = ours(problem, Y, solver=dsc.OMP(forward=True))
    return [("OMP, 8 non-zeros", "SPAMS", "omp(L=8), here OMP(forward=True)", difference(forward, theirs))]


def convolutional_in_sporco() -> Rows:
    from scipy.ndimage import gaussian_filter
    from skimage import data
    from sporco.admm import cbpdn

    photograph = data.camera()[100:164, 200:264] / 255.0
    image = photograph - gaussian_filter(photograph, 3)
    kernels = np.random.default_rng(0).standard_normal((8, 7, 7))
    kernels /= np.linalg.norm(kernels, axis=(1, 2), keepdims=True)
    lam = 0.02
    options = {"Verbose": False, "MaxMainIter": 3000, "RelStopTol": 1e-11, "AutoRho": {"Enabled": True}}
    solver = cbpdn.ConvBPDN(np.moveaxis(kernels, 0, -1), image, lam, cbpdn.ConvBPDN.Options(options))
    solver.solve()
    theirs = np.moveaxis(np.asarray(solver.getcoef()).squeeze(), -1, 0)
    dictionary = dsc.ConvDictionary(torch.from_numpy(kernels[:, None]), boundary="circular")
    codes = ours(dsc.Lasso(dictionary, lam), image[None, None], tol=1e-11)[0]
    return [("convolutional Lasso", "SPORCO", "admm.cbpdn.ConvBPDN", difference(codes, theirs))]


def planted(count: int = 1000) -> Any:
    """Return signals of two out of 24 atoms in 16 dimensions, in rows."""
    rng = np.random.default_rng(0)
    D = unit_columns(rng.standard_normal((16, 24)))
    codes = np.zeros((count, 24))
    for row in codes:
        row[rng.choice(24, 2, replace=False)] = rng.choice([-1.0, 1.0], 2) * rng.uniform(1, 2, 2)
    return codes @ D.T


def learned(Y: Any, lam: float, peer: Callable[[], Any], job: str, name: str, words: str) -> Rows:
    """Compare atoms and codes, paired by `dsc.match`, of our dictionary and of a peer's (atoms in columns)."""
    result = dsc.learn(torch.from_numpy(Y), 24, lam=lam, epochs=200, seed=0, tol=1e-6)
    mine = result.model
    theirs = dsc.DenseDictionary(torch.from_numpy(np.ascontiguousarray(peer())), normalize=True)
    pairs = dsc.match(mine, theirs)  # type: ignore[arg-type]
    order, signs = pairs.permutation.numpy(), pairs.signs.numpy()
    atoms = difference(mine.weight.numpy(), theirs.matrix.numpy()[:, order] * signs)  # type: ignore[union-attr]
    first, second = (ours(dsc.Lasso(dictionary, lam), Y) for dictionary in (mine, theirs))
    return [
        (job, name, f"{words}: atoms", atoms),
        (job, name, f"{words}: codes", difference(first, second[:, order] * signs)),
    ]


def learning_in_scikit_learn(Y: Any, lam: float) -> Rows:
    from sklearn.decomposition import DictionaryLearning

    def peer() -> Any:
        settings: dict[str, Any] = {"fit_algorithm": "cd", "transform_algorithm": "lasso_cd", "random_state": 0}
        return DictionaryLearning(24, alpha=lam, max_iter=150, tol=1e-12, **settings).fit(Y).components_.T

    return learned(Y, lam, peer, "learning", "scikit-learn", "DictionaryLearning")


def learning_in_spams(Y: Any, lam: float) -> Rows:
    import spams

    def peer() -> Any:
        settings: dict[str, Any] = {"iter": 400, "batch": True, "mode": 2, "numThreads": 1, "verbose": False}
        return spams.trainDL(np.asfortranarray(Y.T), K=24, lambda1=lam, **settings)

    return learned(Y, lam, peer, "learning", "SPAMS", "trainDL(batch=True)")


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of peers at tolerances that they do not reach
    Y, D = digits()
    lam, signals = 0.1, planted()
    jobs: list[tuple[str, Callable[[], Rows]]] = [
        ("sklearn", lambda: lasso_in_scikit_learn(Y, D, lam)),
        ("spams", lambda: lasso_in_spams(Y, D, lam)),
        ("sporco", lambda: lasso_in_sporco(Y, D, lam)),
        ("sklearn", lambda: pursuit_in_scikit_learn(Y, D)),
        ("spams", lambda: pursuit_in_spams(Y, D)),
        ("sporco", convolutional_in_sporco),
        ("sklearn", lambda: learning_in_scikit_learn(signals, 0.05)),
        ("spams", lambda: learning_in_spams(signals, 0.05)),
    ]
    print(f"{'job':<20} {'library':<15} {'call':<40} largest difference")
    for module, job in jobs:
        if importlib.util.find_spec(module) is None:
            print(f"{'':<20} {module}: not installed")
            continue
        for row in job():
            print(f"{row[0]:<20} {row[1]:<15} {row[2]:<40} {row[3]:.1e}", flush=True)


if __name__ == "__main__":
    main()
