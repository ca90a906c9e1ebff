"""Compiled CNNs against solving to the same true error, on the class of signals that they were compiled for.

    python benchmarks/compiled.py [--small] [--json PATH] [--threads 2] [--repeats 9]

Signals ``y = D x*`` whose codes are known: s non-zeros in every stripe that holds any, magnitudes from 0.5 to 1, signs
at random; one image of 256² and 64 images of 3 × 32². The error is the true one, ``‖x - x*‖_∞`` of the deepest codes,
computed in float64; solved means at most 0.01. Networks are compiled by `dsc.to_cnn` for a proved bound of 0.01, in
float32: analysis weights, kernels whole or split into 3 × 3, `channels_last`, and `torch.compile` on the fastest of
them. Solvers get the loosest tolerance of a list and the larger lam of two at which they reach the error. A cascade is
solved, and compiled, both layer after layer and at once, by its effective atoms. SPORCO (ConvBPDN, steps at the best
fixed ρ of a sweep: its adaptation never reached the error) gets the effective atoms; it knows stride 1 only, so weights
keep its codes on the grid. Boundaries are circular, as SPORCO's are. Settings are found before the timing; the timed
runs are interleaved in one process, medians shown.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from compiled_cases import Case, Drawn, cases, draw, effective, true_error
from racing import Ask, Call, Entry, Method, Options, Work, clocked, installed, missing, prepare, race

TARGET = 1e-2
ASKED = 3.0
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5, 1e-6)
SHARES = (0.8, 0.4)
RHOS = (100.0, 300.0, 1000.0, 3000.0)
MOST = 400
# Split kernels are not timed where they multiply this many times as much.
WORTH = 50


@dataclass(frozen=True)
class Network:
    """What a compiled network costs and promises."""

    method: str
    compile_seconds: float
    bound: float
    steps: tuple[int, ...]
    parameters: int
    multiply_adds: float
    parameters_per_digit: float | None = None
    multiply_adds_per_digit: float | None = None


# ---------------------------------------------------------------------- networks


def networks(drawn: Drawn) -> tuple[list[Method], list[Network]]:
    """Return the compiled networks, and what is known of each; the last is the fastest through `torch.compile`."""
    import torch

    import deep_sparse_coding as dsc

    found, facts = [], []
    cascade = len(drawn.codes) > 1
    for strategy in ("layerwise", "interleaved", "effective atoms") if cascade else ("layerwise",):
        for weights in ("atoms", "pseudo-inverse", "best"):
            whole = math.inf
            for split in (None, 3) if weights == "atoms" else (None,):
                options: dict[str, Any] = {"weights": weights, "max_kernel": split}
                model, limits, scale = drawn.model, {**drawn.limits, "strategy": strategy}, None
                if strategy == "effective atoms":
                    model, scale = effective(drawn.model)
                    limits = {"sparsity": drawn.limits["sparsity"][-1], "amplitude": float(scale.max())}
                    options["target_error"] = TARGET * float(scale.min())
                name = f"{strategy}, {weights}{', 3×3' if split else ''}"
                try:
                    make = partial(dsc.to_cnn, model, **{"target_error": TARGET, **options, **limits})
                    net, seconds = clocked(make)
                except dsc.DSCError as error:
                    found.append(Method(name, None, ours=True, note=str(error).split(";")[0]))
                    continue
                plan = net.plan
                count = plan.multiply_adds(drawn.case.size)
                if split is None:
                    whole = count
                elif count > WORTH * whole:
                    note = f"not timed: {count / whole:.0f} times the multiply-adds of whole kernels"
                    found.append(Method(name, None, ours=True, note=note))
                    continue
                bound = net.error_bound / (1.0 if scale is None else float(scale.min()))
                known = Network(name, seconds, bound, plan.steps, plan.parameters, count)
                for last in (False, True):
                    label = f"{name}, channels last" if last else name
                    method, error = _timed(label, net, drawn, scale, channels_last=last)
                    found.append(method)
                    facts.append(_by_digit(replace(known, method=label), error))
    made = [(m, f) for m, f in zip([m for m in found if m.call is not None], facts, strict=True) if m.reached]
    if made:
        best, known = min(made, key=lambda pair: pair[0].once)
        call: Any = best.call
        compiled, seconds = None, 0.0
        try:
            fused: Any = torch.compile(call.args[0], dynamic=False)
            compiled = partial(_codes, fused, *call.args[1:])
            _, seconds = clocked(compiled)
        except Exception as error:  # the compiler's errors have no common class, and it may be missing
            found.append(Method("torch.compile", None, ours=True, note=str(error).splitlines()[0][:80]))
        if compiled is not None:
            name = f"{best.name}, torch.compile"
            found.append(_method(name, compiled, drawn))
            total = known.compile_seconds + seconds
            facts.append(replace(known, method=name, compile_seconds=total))
    return found, facts


def _codes(net: Any, signal: Any, scale: Any) -> Any:
    import torch

    with torch.inference_mode():
        codes = net(signal)
        return codes if scale is None else codes / scale


def _timed(name: str, net: Any, drawn: Drawn, scale: Any, *, channels_last: bool) -> tuple[Method, float]:
    import copy

    import torch

    signal = drawn.signal
    if channels_last:
        net = copy.deepcopy(net).to(memory_format=torch.channels_last)
        signal = signal.to(memory_format=torch.channels_last)
    method = _method(name, partial(_codes, net, signal, scale), drawn)
    return method, method.error if method.error is not None else math.inf


def _method(name: str, call: Call, drawn: Drawn) -> Method:
    """Return a network as a method, timed once after a first call."""
    _, first = clocked(call)
    codes, once = clocked(call)
    error = true_error(drawn, codes)
    return Method(name, call, error, error <= TARGET, first, once, "", True)


def _by_digit(network: Network, error: float) -> Network:
    digits = -math.log10(max(error, 1e-16))
    if digits <= 0:
        return network
    return replace(
        network,
        parameters_per_digit=network.parameters / digits,
        multiply_adds_per_digit=network.multiply_adds / digits,
    )


# ---------------------------------------------------------------------- solvers


def solvers(drawn: Drawn, options: Options) -> list[Method]:
    """Return this library's solvers, each with the loosest tolerance of the list that reaches the error."""
    import deep_sparse_coding as dsc

    model = drawn.model
    whole, scale = effective(model)

    def single(solver: Any, tol: float, share: float) -> Any:
        problem = dsc.Lasso(whole, share * TARGET * float(scale.min()))
        return dsc.solve(problem, drawn.signal, solver, tol=tol, max_steps=5000, on_failure="ignore").codes / scale

    def layered(tol: float, share: float) -> Any:
        lams = tuple(share * TARGET for _ in model.layers)
        problem = dsc.LayeredLasso(model, lams)
        codes: Any = dsc.solve(problem, drawn.signal, tol=tol, max_steps=5000, on_failure="ignore").codes
        return codes[-1]

    ways: dict[str, Callable[..., Any]] = {}
    if len(drawn.codes) > 1:
        ways["solve, layer after layer"] = layered
    for name, solver in (("coordinate descent", dsc.ConvCoordinateDescent()), ("FISTA", dsc.FISTA())):
        ways[f"solve, {name}"] = partial(single, solver)
    if whole.stride[0] >= whole.kernel_size[0]:
        ways["solve, patches as vectors"] = partial(_by_patch, whole, drawn.signal, scale)
    found = []
    for name, way in ways.items():
        calls = {f"tol {t:g}, lam {s * TARGET:g}": partial(way, t, s) for t in TOLERANCES for s in SHARES}
        found.append(prepare(name, calls, partial(true_error, drawn), TARGET, ours=True, deadline=options.deadline))
    return found


def _by_patch(whole: Any, signal: Any, scale: Any, tol: float, share: float) -> Any:
    """Solve every patch by itself, where no two atoms overlap: one dense problem with many signals."""
    import torch.nn.functional as F  # noqa: N812

    import deep_sparse_coding as dsc

    k = whole.kernel_size[0]
    dense = dsc.DenseDictionary(whole.kernels.detach().flatten(1).T.contiguous())
    patches = F.unfold(signal, k, stride=k).transpose(1, 2)
    problem = dsc.Lasso(dense, share * TARGET)
    codes: Any = dsc.solve(problem, patches, tol=tol, max_steps=5000, on_failure="ignore").codes
    grid = tuple(n // k for n in signal.shape[2:])
    return codes.transpose(1, 2).unflatten(2, grid) / scale


# ---------------------------------------------------------------------- SPORCO


def sporco(drawn: Drawn, options: Options) -> Method:
    """Return SPORCO's ADMM with the ρ of the sweep that reaches the error in the fewest steps."""
    if not installed("sporco"):
        return missing("SPORCO ADMM", "sporco")
    best: tuple[int, float] | None = None
    lam = SHARES[0] * TARGET
    for rho in RHOS:
        if best is not None and time.monotonic() > options.deadline:
            break
        solver, read = _sporco(drawn, lam, rho * lam, 1)
        done, most = 1, MOST if best is None else best[0] - 1
        while done < most:
            part = min(2, most - done)
            solver.opt["MaxMainIter"] = part
            solver.solve()
            done += part
            if true_error(drawn, read(solver)) <= TARGET:
                best = done, rho
                break
    if best is None:
        return Method("SPORCO ADMM", None, note=f"error not reached in {MOST} steps at any ρ")
    steps, rho = best

    def call() -> Any:
        solver, read = _sporco(drawn, lam, rho * lam, steps)
        return read(solver)

    return prepare("SPORCO ADMM", {f"ρ {rho:g} lam, {steps} steps": call}, partial(true_error, drawn), TARGET)


def _sporco(drawn: Drawn, lam: float, rho: float, steps: int) -> tuple[Any, Callable[[Any], Any]]:
    """Return a solver that ran for some steps, and what reads its codes on the grid."""
    import numpy as np
    import torch
    from sporco.admm import cbpdn  # type: ignore[import-not-found]

    whole, scale = effective(drawn.model)
    stride = whole.stride[0]
    kernels = whole.kernels.detach().permute(2, 3, 1, 0).numpy()
    images = drawn.signal.permute(2, 3, 1, 0).numpy()
    closed = np.full((*images.shape[:2], 1, 1, 1), 1e4, np.float32)
    closed[::stride, ::stride] = 1.0
    options = cbpdn.ConvBPDN.Options(
        {
            "Verbose": False,
            "MaxMainIter": steps,
            "RelStopTol": 1e-12,
            "DataType": np.float32,
            "rho": rho,
            "AutoRho": {"Enabled": False},
            "FastSolve": True,
            "L1Weight": closed,
        }
    )
    solver = cbpdn.ConvBPDN(np.ascontiguousarray(kernels), np.ascontiguousarray(images), lam, options)
    solver.solve()

    def read(run: Any) -> Any:
        codes = torch.from_numpy(np.asarray(run.getcoef()))[::stride, ::stride, 0]
        return codes.permute(2, 3, 0, 1) / scale

    return solver, read


# ---------------------------------------------------------------------- the table


def compare(case: Case, options: Options) -> tuple[Work, list[Network]]:
    """Find every method's setting on one case, and time them in turns."""
    drawn = draw(case)
    nets, facts = networks(drawn)
    methods = [*nets, *solvers(drawn, options), sporco(drawn, options)]
    work = Work(case.name, "true error", TARGET, case.batch, (Ask(ASKED),), race(methods, options))
    return work, facts


def lines(work: Work, facts: list[Network]) -> Iterator[str]:
    """Return the table of one case; the last line says by how much the network is ahead."""
    known = {fact.method: fact for fact in facts}
    yield f"{work.name}: true error at most {work.target:g}"
    yield (
        f"  {'method':<46} {'setting':<24} {'ms':>9} {'CPU ms':>9} {'error':>8} {'bound':>8} {'compile s':>9} "
        f"{'steps':>7} {'param.':>9} {'Mult-adds':>9} {'p./digit':>9} {'M./digit':>9}"
    )
    for entry in work.entries:
        if entry.seconds is None or entry.error is None:
            yield f"  {entry.method:<46} {entry.note}"
            continue
        line = f"  {entry.method:<46} {entry.setting:<24} {1e3 * entry.seconds:>9.3f}"
        line += f" {1e3 * (entry.cpu_seconds or 0.0):>9.3f} {entry.error:>8.1e}"
        fact = known.get(entry.method)
        if fact is not None:
            cost = f" {fact.bound:>8.1e} {fact.compile_seconds:>9.2f} {'+'.join(map(str, fact.steps)):>7}"
            line += f"{cost} {fact.parameters:>9.3g} {fact.multiply_adds:>9.3g}"
            if fact.parameters_per_digit is not None and fact.multiply_adds_per_digit is not None:
                line += f" {fact.parameters_per_digit:>9.3g} {fact.multiply_adds_per_digit:>9.3g}"
        yield f"{line} {entry.note}".rstrip()
    yield f"  {verdict(work, known)}"


def verdict(work: Work, known: dict[str, Network]) -> str:
    """Return the ratio to the fastest solver and to SPORCO, and whether it is what is asked for."""
    done = [entry for entry in work.entries if entry.reached and entry.seconds]
    nets = [entry for entry in done if entry.method in known]
    ours = [entry for entry in done if entry.ours and entry.method not in known]
    peers = [entry for entry in done if not entry.ours]
    if not nets or not ours:
        return "no comparison: the network or the solver missed the error"
    net, best = (min(some, key=_seconds) for some in (nets, ours))
    ratio = _seconds(best) / _seconds(net)
    told = f"{net.method}: {ratio:.1f} times as fast as {best.method} ({ASKED:g} asked)"
    if net.cpu_seconds and best.cpu_seconds:
        told += f", {best.cpu_seconds / net.cpu_seconds:.1f} by processor time"
    if ratio < ASKED:
        count = known[net.method].multiply_adds
        told += f"; missed: its {count:.2g} multiply-adds a signal go everywhere, the solver visits non-zero codes only"
    if peers:
        told += f", {_seconds(min(peers, key=_seconds)) / _seconds(net):.0f} times as fast as SPORCO"
    return told


def _seconds(entry: Entry) -> float:
    return math.inf if entry.seconds is None else entry.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one image of 64², 8 images of 3 × 32²")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--minutes", type=float, default=10, help="after this time slow methods run fewer times")
    given = parser.parse_args()
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, str(given.threads))
    import torch

    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    deadline = time.monotonic() + 60 * given.minutes
    options = Options(given.small, given.threads, given.repeats, deadline, Path())
    rows = []
    for case in cases(given.small):
        work, facts = compare(case, options)
        print("\n".join(lines(work, facts)), "\n", flush=True)
        rows.append({**work.to_json(), "networks": [asdict(fact) for fact in facts]})
        if given.json:
            told = {"threads": given.threads, "python": sys.version, "torch": torch.__version__, "target": TARGET}
            given.json.write_text(json.dumps({**told, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
