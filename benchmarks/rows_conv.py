"""The convolutional rows of the table: photographs against SPORCO, a time series against alphacsc."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from racing import Ask, Call, Method, Options, Work, clocked, installed, missing, prepare, race


def sporco_steps(
    problem: tuple[Any, Any, float], target: float, limit: int, settings: list[tuple[float, bool]]
) -> tuple[int, float, bool] | None:
    """Return the number of steps, ρ and the switch of its adaptation that reach the target in the fewest steps."""
    from conv_lasso import objective, sporco, sporco_codes

    kernels, image, lam = problem
    found: tuple[int, float, bool] | None = None
    for rho, auto in settings:
        most = limit if found is None else found[0] - 1
        done, step = 1, 5
        solver = sporco(kernels, image, lam, rho, auto, done)
        while done < most:
            part = min(step, most - done)
            solver.opt["MaxMainIter"] = part
            solver.solve()
            done += part
            if objective(kernels, image, sporco_codes(solver), lam) <= target:
                found = done, rho, auto
                break
    return found


def near(setting: tuple[int, float, bool] | None, lam: float) -> list[tuple[float, bool]]:
    """Return the settings of ρ to try: a sweep, or the neighborhood of one that was the best elsewhere."""
    if setting is None:
        return [(lam * factor, auto) for auto in (True, False) for factor in (10.0, 1.0, 3.0, 30.0, 100.0)]
    _, rho, auto = setting
    return [(rho * factor, auto) for factor in (1.0, 0.6, 1.7)]


def conv_work(
    name: str, problem: tuple[Any, Any, float], asks: tuple[Ask, ...], setting: Any, options: Options
) -> tuple[Work, Any]:
    """Compare on one photograph; return also SPORCO's best setting, which the next photograph starts from."""
    import numpy as np
    from conv_lasso import EXCESS, TOLERANCES, library, objective, sporco, sporco_codes

    import deep_sparse_coding as dsc

    kernels, image, lam = problem
    kernels = kernels / np.sqrt((kernels**2).sum((1, 2), keepdims=True))
    kernels32 = kernels.astype(np.float32)
    problem = (kernels32, image, lam)
    ours = dsc.ConvCoordinateDescent()

    def answer(solver: Any, tol: float) -> Call:
        return lambda: library(kernels32, image, lam, solver, tol, 10_000).codes.numpy()

    _, first = clocked(answer(ours, TOLERANCES[0]))
    exact = library(kernels32.astype(np.float64), image.astype(np.float64), lam, ours, 1e-7, 10_000)
    best = objective(kernels32, image, exact.codes.numpy(), lam)

    def excess(codes: Any) -> float:
        return objective(kernels32, image, codes, lam) / best - 1

    search = partial(prepare, error=excess, target=EXCESS, deadline=options.deadline)
    found = search("solve", {f"tol {t:g}": answer(ours, t) for t in TOLERANCES}, ours=True)
    methods = [replace(found, first=first)]
    if lam <= 0.02:
        methods.append(search("solve, ADMM", {f"tol {t:g}": answer(dsc.ADMM(), t) for t in TOLERANCES}, ours=True))
    if installed("sporco"):
        setting = sporco_steps(problem, best * (1 + EXCESS), 100 if options.small else 300, near(setting, lam))
        if setting is None:
            methods.append(Method("SPORCO ADMM", None, note="target not reached at any ρ"))
        else:
            steps, rho, auto = setting
            label = f"ρ {rho:g}{' auto' if auto else ''}, {steps} steps"
            call = partial(sporco, kernels32, image, lam, rho, auto, steps)
            methods.append(search("SPORCO ADMM", {label: call}, error=lambda s: excess(sporco_codes(s))))
    else:
        methods.append(missing("SPORCO ADMM", "sporco"))
    return Work(name, "excess", EXCESS, 1, asks, race(methods, options)), setting


def conv(lam: float, ratio: float, options: Options) -> list[Work]:
    """Three photographs of 256², 32 learned kernels 8×8."""
    from conv_lasso import learned_kernels, photographs

    size, atoms = (128, 16) if options.small else (256, 32)
    images = photographs(size)
    kernels = learned_kernels(images, atoms, 8)
    works, setting = [], None
    for index, image in enumerate(images[: 2 if options.small else 3]):
        name = f"{size}² photograph {index + 1}, {atoms} kernels, lam {lam}"
        work, setting = conv_work(name, (kernels, image, lam), (Ask(ratio),), setting, options)
        works.append(work)
    return works


def conv_large(lam: float, options: Options) -> list[Work]:
    """A photograph of 512² and 64 learned kernels; ρ comes from a sweep on its middle."""
    from conv_lasso import camera, learned_kernels, photographs

    image = camera() if installed("skimage") else photographs(400)[0]
    kernels = learned_kernels([image], 64, 8)
    middle = len(image) // 4
    few = replace(options, repeats=1)
    half = image[middle : 3 * middle, middle : 3 * middle]
    if options.small:
        image, half, kernels = half, half[:64, :64], kernels[:16]
    _, setting = conv_work("", (kernels, half.copy(), lam), (), None, few)
    name = f"{len(image)}² photograph, {len(kernels)} kernels, lam {lam}"
    return [conv_work(name, (kernels, image.copy(), lam), (), setting, options)[0]]


def series(options: Options) -> list[Work]:
    """A time series (the rows of a photograph in line) under kernels of 64 entries, against alphacsc."""
    import numpy as np
    import torch
    from conv_lasso import EXCESS, alphacsc, photographs, series_objective

    import deep_sparse_coding as dsc

    line = photographs(64 if options.small else 256)[0].astype(np.float64).reshape(-1)
    windows = np.random.default_rng(0).choice(len(line) - 64, 4000 if len(line) > 8000 else 2000, replace=False)
    strong = sorted((line[i : i + 64] for i in windows), key=lambda part: -float(part @ part))[:8]
    kernels, lam = np.stack([part / np.linalg.norm(part) for part in strong]), 0.2
    problem = dsc.Lasso(dsc.ConvDictionary(torch.from_numpy(kernels)[:, None]), lam)
    signal = torch.from_numpy(line)[None]

    def answer(tol: float) -> Any:
        codes: Any = dsc.solve(problem, signal, dsc.ConvCoordinateDescent(), tol=tol).codes
        return codes.numpy()

    best = series_objective(kernels, line, answer(1e-8), lam)
    search = partial(
        prepare,
        error=lambda codes: series_objective(kernels, line, codes, lam) / best - 1,
        target=EXCESS,
        deadline=options.deadline,
    )
    methods = [search("solve", {f"tol {t:g}": partial(answer, t) for t in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)}, ours=True)]
    if installed("alphacsc"):
        calls = {f"tol {t:g}": partial(alphacsc, kernels, line, lam, t * lam) for t in (0.3, 0.1, 0.03, 0.01, 1e-3)}
        methods.append(search("alphacsc LGCD", calls))
    else:
        methods.append(missing("alphacsc LGCD", "alphacsc"))
    return [Work(f"series of {len(line):,}, 8 kernels, lam 0.2", "excess", EXCESS, 1, (), race(methods, options))]
