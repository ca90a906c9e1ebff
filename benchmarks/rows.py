"""The rows of the table: each makes its problems, finds every method's loosest sufficient setting, and times them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from racing import Ask, Call, Options, Work, clocked, installed, missing, prepare, race
from rows_conv import conv, conv_large, series

TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
Row = Callable[[Options], list[Work]]


# ---------------------------------------------------------------------- dense


def dense_row(make: Callable[[int], tuple[Any, Any]], name: str, count: int, ratio: float, options: Options) -> Work:
    """Compare `solve` end to end and the kernel with the Gram matrix's time to SPAMS and scikit-learn."""
    import dense_lasso
    import numpy as np
    import torch

    import deep_sparse_coding as dsc
    from deep_sparse_coding.solvers._kernels_dense import solve_batch

    D, Y = make(count // 10 if options.small else count)
    lam = 0.1 * float(np.abs(Y @ D).max(1).mean())
    lams, weights = np.full(len(Y), lam), np.ones(D.shape[1])
    problem, signal = dsc.Lasso(dsc.DenseDictionary(torch.from_numpy(D)), lam), torch.from_numpy(Y)
    target = dense_lasso.TARGET

    def kernel() -> Any:
        return solve_batch(D, D.T @ D, Y, lams, weights, tol=target, threads=options.threads)[0]

    def solve() -> Any:
        return dsc.solve(problem, signal, tol=target).codes

    def gap(codes: Any) -> float:
        codes = codes.numpy() if isinstance(codes, torch.Tensor) else dense_lasso.dense(codes)
        return dense_lasso.largest_gap(D, Y, codes, lam)

    search = partial(prepare, error=gap, target=target, deadline=options.deadline)
    methods = [search("solve", {"tol 1e-06": solve}, ours=True), search("kernel", {"tol 1e-06": kernel}, ours=True)]
    for peer, (module, command, calls) in dense_lasso.peers(D, Y, lam, options.threads).items():
        if not installed(module):
            methods.append(missing(peer, command.removeprefix("pip install ")))
            continue
        methods.append(search(peer, {f"setting {i + 1} of {len(calls)}": call for i, call in enumerate(calls)}))
    return Work(name, "gap", target, len(Y), (Ask(ratio),), race(methods, options))


def photograph_patches(count: int, options: Options) -> tuple[Any, Any]:
    """Return 256 learned atoms and patches; learning takes half a minute of processor time, so they are kept."""
    import dense_lasso
    import numpy as np

    kept = options.folder / f"patches-{count}.npz"
    if not kept.exists():
        D, Y = dense_lasso.patches(count, 256)
        np.savez(kept, D=D, Y=Y)
    with np.load(kept) as arrays:
        return arrays["D"], arrays["Y"]


def patches(options: Options) -> list[Work]:
    """20,000 8×8 patches of a photograph, 256 learned atoms."""
    return [
        dense_row(
            lambda count: photograph_patches(count, options), "8×8 patches, 256 learned atoms", 20_000, 2.5, options
        )
    ]


def gaussian(d: int, atoms: int, count: int, ratio: float, options: Options) -> list[Work]:
    """Gaussian signals and dictionary, 5 % support."""
    from dense_lasso import gaussian as make

    return [dense_row(lambda n: make(n, d, atoms), f"Gaussian signals {d}×{atoms}", count, ratio, options)]


# ---------------------------------------------------------------------- joint


def joint(kind: str, options: Options) -> list[Work]:
    """Two layers as one problem: dense (both shares of lam) or convolutional."""
    import joint_lasso

    import deep_sparse_coding as dsc

    if kind == "dense":
        shares = ((0.3, 0.1), (0.1, 0.1))
        made = [joint_lasso.dense(options.small, share, 1.0) for share in shares]
    else:
        made = [joint_lasso.convolutional(options.small, (0.1, 0.02), 1.0, None)]
    works = []
    for name, problem, signal in made:
        search = partial(
            prepare,
            error=partial(joint_lasso.joint_gap, problem, signal),
            target=joint_lasso.TARGET,
            deadline=options.deadline,
        )

        def answer(solver: Any, tol: float, problem: Any = problem, signal: Any = signal) -> Any:
            return joint_lasso.library(problem, signal, solver, tol)

        def ours_gap(solution: Any, problem: Any = problem, signal: Any = signal) -> float:
            return joint_lasso.joint_gap(problem, signal, solution.codes)

        def peer_gap(solution: Any, ours_gap: Any = ours_gap) -> float:
            # Ours is judged by the plain dual point alone; for FISTA's codes the library often knows a better one.
            return min(ours_gap(solution), float(solution.certificate.relative_gap.max()))

        def with_solver(solver: Any, answer: Any = answer) -> dict[str, Call]:
            return {f"tol {tol:g}": partial(answer, solver, tol) for tol in TOLERANCES}

        methods = [search("solve", with_solver(None), error=ours_gap, ours=True)]
        asks: list[Ask] = [Ask(12.0, ("FISTA, no restart",))]
        if kind == "dense":
            asks.append(Ask(3.0, ("SPAMS LARS",)))
            call = joint_lasso.kernel(problem, signal, options.threads)
            methods.append(search("kernel", {"tol 9e-05": call}, ours=True))
            if installed("spams"):
                call, codes = joint_lasso.lars(problem, signal, options.threads)
                gap = partial(joint_lasso.joint_gap, problem, signal)
                found = prepare(
                    "SPAMS LARS", {"exact": call}, lambda a, gap=gap, codes=codes: gap(codes(a)), joint_lasso.TARGET
                )
                methods.append(found)
            else:
                methods.append(missing("SPAMS LARS", "spams-bin"))
        for peer, restart in (("FISTA, no restart", False), ("FISTA", True)):
            calls = with_solver(dsc.FISTA(restart=restart))
            loose = {tol: calls[tol] for tol in ("tol 0.0001", "tol 1e-06")}
            methods.append(search(peer, loose, error=peer_gap))
        count = len(signal)
        works.append(Work(name, "gap", joint_lasso.TARGET, count, tuple(asks), race(methods, options)))
    return works


# --------------------------------------------------------------------- greedy


def omp(options: Options) -> list[Work]:
    """20,000 patches, 10 non-zeros; ``spams.omp`` computes what ``OMP(forward=True)`` does."""
    import dense_lasso
    import numpy as np
    import torch
    from omp import NONZEROS

    import deep_sparse_coding as dsc

    D, Y = photograph_patches(2_000 if options.small else 20_000, options)
    problem = dsc.SparseApproximation(dsc.DenseDictionary(torch.from_numpy(D)), NONZEROS)
    signal = torch.from_numpy(Y)

    def ours(forward: bool) -> Any:
        return dsc.solve(problem, signal, dsc.OMP(forward=forward)).codes.numpy()  # type: ignore[union-attr]

    def residual(codes: Any) -> float:
        return float(np.square(Y - dense_lasso.dense(codes) @ D.T).sum() / np.square(Y).sum())

    codes, first = clocked(partial(ours, True))
    target = 1.001 * residual(codes)
    search = partial(prepare, error=residual, target=target)
    methods = [
        replace(search("solve, OMP(forward=True)", {"": partial(ours, True)}, ours=True), first=first),
        # The classical rule reaches a slightly larger residual: other codes, not worse ones by its own rule.
        replace(search("solve, OMP()", {"": partial(ours, False)}, ours=True), reached=True, note=""),
    ]
    if installed("spams"):
        import spams

        DF, YF = np.asfortranarray(D), np.asfortranarray(Y.T)
        call = partial(spams.omp, YF, DF, L=NONZEROS, eps=0.0, numThreads=options.threads)
        methods.append(search("SPAMS OMP", {"": call}, error=lambda codes: residual(dense_lasso.dense(codes).T)))
    else:
        methods.append(missing("SPAMS OMP", "spams-bin"))
    return [Work("OMP, patches, 10 non-zeros", "residual", target, len(Y), (Ask(1.5),), race(methods, options))]


# ----------------------------------------------------- one signal, and a path


def one_signal(options: Options) -> list[Work]:
    """One signal, 20,000 atoms."""
    import numpy as np
    import one_signal as script
    import torch

    import deep_sparse_coding as dsc
    from deep_sparse_coding.solvers._kernels_dense import solve_batch

    atoms = 2_000 if options.small else 20_000
    D, Y = script.problem(200, atoms)
    lam = 0.1 * float(np.abs(Y @ D).max())
    problem, signal = dsc.Lasso(dsc.DenseDictionary(torch.from_numpy(D)), lam), torch.from_numpy(Y)
    target = script.TARGET

    def kernel() -> Any:
        lams, weights = np.array([lam]), np.ones(atoms)
        return solve_batch(D, None, Y, lams, weights, tol=target, threads=options.threads)[0]

    def gap(codes: Any) -> float:
        return script.largest_gap(D, Y, np.asarray(codes).reshape(1, -1), lam)

    search = partial(prepare, error=gap, target=target, deadline=options.deadline)
    methods = [
        search("solve", {"tol 1e-06": lambda: dsc.solve(problem, signal, tol=target).codes}, ours=True),
        search("kernel", {"tol 1e-06": kernel}, ours=True),
    ]
    for peer, (module, call) in script.peers(D, Y[0], lam).items():
        if installed(module):
            methods.append(search(peer, {f"tol {t:g}": partial(call, t) for t in TOLERANCES}))
        else:
            methods.append(missing(peer, {"sklearn": "scikit-learn"}.get(module, module)))
    entries = race(methods, options)
    return [Work(f"one signal, 200×{atoms:,}", "gap", target, 1, (Ask(1.0, ("celer",)), Ask(1.0)), entries)]


def path(several: bool, options: Options) -> list[Work]:
    """50 lams: SPAMS on 2,000 patches; on twenty celer and skglm too, which follow one signal at a time."""
    import numpy as np
    import path as script
    import torch

    import deep_sparse_coding as dsc
    from deep_sparse_coding.solvers._kernels_dense import solve_batch

    D, every = photograph_patches(20_000, options)
    works = []
    for count in ((200 if options.small else 2_000) if several else 20,):
        Y = every[:count]
        top = float(np.abs(Y @ D).max(1).mean())
        grid = np.geomspace(top, 0.01 * top, script.COUNT)
        lams, weights = np.repeat(grid[:, None], len(Y), 1), np.ones(D.shape[1])
        lasso, signal = dsc.Lasso(dsc.DenseDictionary(torch.from_numpy(D)), 1.0), torch.from_numpy(Y)

        def kernel(Y: Any = Y, lams: Any = lams, weights: Any = weights) -> Any:
            return solve_batch(D, D.T @ D, Y, lams, weights, tol=script.TARGET, threads=options.threads)[0]

        def whole(lasso: Any = lasso, signal: Any = signal, grid: Any = grid) -> Any:
            return [np.asarray(s.codes) for s in dsc.solve_path(lasso, signal, lams=grid.tolist(), tol=script.TARGET)]

        def gap(answer: Any, Y: Any = Y, grid: Any = grid) -> float:
            return script.worst_gap(D, Y, answer, grid)

        search = partial(prepare, error=gap, target=script.TARGET, deadline=options.deadline)
        methods = [
            search("solve_path", {"tol 1e-06": whole}, ours=True),
            search("kernel", {"tol 1e-06": kernel}, ours=True),
        ]
        for peer, (module, command, calls) in script.peers(D, Y, grid, options.threads).items():
            if installed(module):
                settings = {f"setting {i + 1} of {len(calls)}": call for i, call in enumerate(calls)}
                methods.append(search(peer, settings))
            else:
                methods.append(missing(peer, command.removeprefix("pip install ")))
        name = f"path of {script.COUNT} lams, {count:,} patches"
        works.append(Work(name, "gap", script.TARGET, count, (Ask(2.0),), race(methods, options)))
    return works


def quiet() -> None:
    """Silence what peers say of their own convergence: gaps are recomputed here."""
    warnings.filterwarnings("ignore", module="celer|skglm|sklearn|sporco")
    warnings.filterwarnings("ignore", message="Objective did not converge")


# A row's parts run in processes of their own, so that an interrupted run repeats only the part it was in.
PARTS: dict[str, dict[str, Row]] = {
    "patches": {"patches": patches},
    "gaussian64": {"gaussian64": partial(gaussian, 64, 256, 20_000, 3.3)},
    "gaussian256": {"gaussian256": partial(gaussian, 256, 1024, 5_000, 6.0)},
    "conv": {f"conv-{lam}": partial(conv, lam, ask) for lam, ask in ((0.2, 30.0), (0.05, 15.0), (0.01, 3.0))},
    "joint": {"joint-dense": partial(joint, "dense"), "joint-conv": partial(joint, "conv")},
    "omp": {"omp": omp},
    "one-signal": {"one-signal": one_signal},
    "path": {"path": partial(path, True), "path-few": partial(path, False)},
    "conv512": {"conv512": partial(conv_large, 0.2)},
    "series": {"series": series},
}
