"""Compiled CNNs against solving to the same true error, on the class of signals that they were compiled for.

    python benchmarks/compiled.py [--small] [--json PATH] [--threads 2] [--repeats 9]

Signals ``y = D x*`` whose codes are known: s non-zeros in every stripe that holds any, magnitudes from 0.5 to 1, signs
at random; one image of 256² and 64 images of 3 × 32². The error is the true one, ``‖x - x*‖_∞`` of the deepest codes,
computed in float64; solved means at most 0.01. Networks are compiled by `dsc.to_cnn` for a proved bound of 0.01, in
float32: analysis weights, kernels whole or split into 3 × 3, `channels_last`, and `torch.compile` on the fastest of
them. Solvers get the loosest tolerance of a list and the larger lam of two at which they reach the error; a cascade is
solved both layer after layer and at once, by its effective atoms. SPORCO (ConvBPDN, steps at the best ρ of a sweep) gets
the effective atoms too: it knows stride 1 only, so weights keep its codes on the grid. Boundaries are circular, as
SPORCO's are. Settings are found before the timing; the timed runs are interleaved in one process, medians shown.
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

from racing import Ask, Call, Entry, Method, Options, Work, clocked, installed, missing, prepare, race

TARGET = 1e-2
ASKED = 3.0
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5, 1e-6)
SHARES = (0.8, 0.4)
RHOS = (1.0, 10.0, 100.0, 1000.0)
MOST = 400


@dataclass(frozen=True)
class Case:
    """A class of signals: the model, its limits, and how many of which size are coded."""

    name: str
    layers: tuple[dict[str, Any], ...]
    sparsity: int
    size: int
    batch: int

    def model(self) -> Any:
        """Return the cascade, circular, in float32."""
        import deep_sparse_coding as dsc

        kinds = [dsc.ConvDictionary.low_coherence(**kind, boundary="circular", seed=0) for kind in self.layers]
        return dsc.Cascade(kinds)


@dataclass(frozen=True)
class Drawn:
    """A case with its signals: codes of all layers, and the limits that they meet."""

    case: Case
    model: Any
    signal: Any
    codes: tuple[Any, ...]
    limits: dict[str, Any]


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


def cases(small: bool) -> list[Case]:
    """Return the classes; on the large image with one channel, on the small ones with three."""
    image, batch = (64, 8) if small else (256, 64)
    tile = {"channels": 1, "size": 8, "stride": 8}
    second = {"atoms": 24, "channels": 16, "size": 4, "stride": 4, "nonzeros": 4}
    three = {"channels": 3, "size": 8}
    return [
        Case(f"{image}², 48 kernels 8², stride 8", ({"atoms": 48, **tile},), 4, image, 1),
        Case(f"{image}², 16 kernels 8², stride 4", ({"atoms": 16, **tile, "stride": 4},), 2, image, 1),
        Case(f"{image}², 4 kernels 9², stride 1", ({"atoms": 4, "channels": 1, "size": 9},), 1, image, 1),
        Case(f"{image}², two layers", ({"atoms": 16, **tile, "stride": 4}, second), 1, image, 1),
        Case(f"{batch} × 3×32², 96 kernels 8², stride 8", ({"atoms": 96, **three, "stride": 8},), 4, 32, batch),
        Case(f"{batch} × 3×32², 16 kernels 8², stride 4", ({"atoms": 16, **three, "stride": 4},), 2, 32, batch),
        Case(f"{batch} × 3×32², two layers", ({"atoms": 16, **three, "stride": 4}, second), 1, 32, batch),
    ]


def draw(case: Case) -> Drawn:
    """Return signals of the class: the deepest codes at places so far apart that no stripe holds two of them."""
    import torch

    import deep_sparse_coding as dsc

    model = case.model()
    exact = dsc.Cascade([layer.cast(torch.float64) for layer in model.layers])
    rng = torch.Generator().manual_seed(0)
    apart = 1
    for layer in exact.layers:
        apart *= layer.stride[0]
    deepest, grid = exact.layers[-1], case.size // apart
    step = 2 * deepest.lags[0] + 1
    codes = torch.zeros(case.batch, deepest.atoms, grid, grid, dtype=torch.float64)
    for image in codes:
        for row in range(0, grid - step + 1, step):
            for column in range(0, grid - step + 1, step):
                where = torch.randperm(deepest.atoms, generator=rng)[: case.sparsity]
                sizes = 0.5 + 0.5 * torch.rand(case.sparsity, generator=rng, dtype=torch.float64)
                image[where, row, column] = sizes * (2.0 * torch.randint(0, 2, sizes.shape, generator=rng) - 1)
    every = [codes]
    for layer in reversed(exact.layers[1:]):
        every.insert(0, layer.synthesize(every[0]))
    with torch.no_grad():
        signal = exact.layers[0].synthesize(every[0]).float()
    pairs = list(zip(exact.layers, every, strict=True))
    limits: dict[str, Any] = {
        "sparsity": tuple(int(dsc.stripe_sparsity(d, x).max()) for d, x in pairs),
        "amplitude": tuple(max(1.0, float(x.detach().abs().max()) * (1 + 1e-9)) for _, x in pairs),
    }
    if len(pairs) > 1:
        from deep_sparse_coding.dictionaries import place_sparsity

        counts = [int(place_sparsity(d, x).max()) for d, x in zip(exact.layers[1:], every[:-1], strict=True)]
        limits["place_sparsity"] = tuple(counts)
    return Drawn(case, model, signal.detach(), tuple(x.detach() for x in every), limits)


def true_error(drawn: Drawn, codes: Any) -> float:
    """Return ``‖x - x*‖_∞`` of the deepest codes."""
    return float((codes.double() - drawn.codes[-1]).abs().max())


# ---------------------------------------------------------------------- networks


def networks(drawn: Drawn) -> tuple[list[Method], list[Network]]:
    """Return the compiled networks, and what is known of each; the last is the fastest through `torch.compile`."""
    import torch

    import deep_sparse_coding as dsc

    found, facts = [], []
    strategies = ("layerwise", "interleaved") if len(drawn.codes) > 1 else ("layerwise",)
    for strategy in strategies:
        for weights in ("atoms", "pseudo-inverse", "best"):
            for split in (None, 3):
                options: dict[str, Any] = {"strategy": strategy, "weights": weights, "max_kernel": split}
                name = f"{strategy}, {weights}{', 3×3' if split else ''}"
                try:
                    make = partial(dsc.to_cnn, drawn.model, target_error=TARGET, **options, **drawn.limits)
                    net, seconds = clocked(make)
                except dsc.DSCError as error:
                    found.append(Method(name, None, ours=True, note=str(error).split(";")[0]))
                    continue
                plan = net.plan
                count = plan.multiply_adds(drawn.case.size)
                known = Network(name, seconds, net.error_bound, plan.steps, plan.parameters, count)
                for last in (False, True):
                    label = f"{name}, channels last" if last else name
                    method, error = _timed(label, net, drawn, channels_last=last)
                    found.append(method)
                    facts.append(_by_digit(replace(known, method=label), error))
    made = [(m, f) for m, f in zip([m for m in found if m.call is not None], facts, strict=True) if m.reached]
    if made:
        best, known = min(made, key=lambda pair: pair[0].once)
        call: Any = best.call
        compiled, seconds = None, 0.0
        try:
            fused: Any = torch.compile(call.args[0], dynamic=False)
            compiled = partial(_codes, fused, call.args[1])
            _, seconds = clocked(compiled)
        except Exception as error:  # the compiler's errors have no common class, and it may be missing
            found.append(Method("torch.compile", None, ours=True, note=str(error).splitlines()[0][:80]))
        if compiled is not None:
            name = f"{best.name}, torch.compile"
            found.append(_method(name, compiled, drawn))
            total = known.compile_seconds + seconds
            facts.append(replace(known, method=name, compile_seconds=total))
    return found, facts


def _codes(net: Any, signal: Any) -> Any:
    import torch

    with torch.inference_mode():
        return net(signal)


def _timed(name: str, net: Any, drawn: Drawn, *, channels_last: bool) -> tuple[Method, float]:
    import copy

    import torch

    signal = drawn.signal
    if channels_last:
        net = copy.deepcopy(net).to(memory_format=torch.channels_last)
        signal = signal.to(memory_format=torch.channels_last)
    method = _method(name, partial(_codes, net, signal), drawn)
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
    import torch

    import deep_sparse_coding as dsc

    model = drawn.model
    atoms = model.effective().detach()
    norms = torch.linalg.vector_norm(atoms.flatten(1), dim=1)
    stride = math.prod(layer.stride[0] for layer in model.layers)
    whole = dsc.ConvDictionary(atoms / norms.reshape(-1, 1, 1, 1), stride=stride, boundary="circular")
    scale = norms.reshape(1, -1, 1, 1)

    def single(solver: Any, tol: float, share: float) -> Any:
        problem = dsc.Lasso(whole, share * TARGET * float(norms.min()))
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
    if stride >= whole.kernel_size[0]:
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


def sporco(drawn: Drawn) -> Method:
    """Return SPORCO's ADMM with the ρ of the sweep that reaches the error in the fewest steps."""
    if not installed("sporco"):
        return missing("SPORCO ADMM", "sporco")
    best: tuple[int, float] | None = None
    lam = SHARES[0] * TARGET
    for rho in RHOS:
        solver, read = _sporco(drawn, lam, rho * lam, 1)
        done, most = 1, MOST if best is None else best[0] - 1
        while done < most:
            part = min(5, most - done)
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
    from sporco.admm import cbpdn

    model = drawn.model
    atoms = model.effective().detach()
    norms = torch.linalg.vector_norm(atoms.flatten(1), dim=1)
    stride = math.prod(layer.stride[0] for layer in model.layers)
    kernels = (atoms / norms.reshape(-1, 1, 1, 1)).permute(2, 3, 1, 0).numpy()
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
            "AutoRho": {"Enabled": True},
            "FastSolve": True,
            "L1Weight": closed,
        }
    )
    solver = cbpdn.ConvBPDN(np.ascontiguousarray(kernels), np.ascontiguousarray(images), lam, options)
    solver.solve()

    def read(run: Any) -> Any:
        codes = torch.from_numpy(np.asarray(run.getcoef()))[::stride, ::stride, 0]
        return codes.permute(2, 3, 0, 1) / norms.reshape(1, -1, 1, 1)

    return solver, read


# ---------------------------------------------------------------------- the table


def compare(case: Case, options: Options) -> tuple[Work, list[Network]]:
    """Find every method's setting on one case, and time them in turns."""
    drawn = draw(case)
    nets, facts = networks(drawn)
    methods = [*nets, *solvers(drawn, options), sporco(drawn)]
    work = Work(case.name, "true error", TARGET, case.batch, (Ask(ASKED),), race(methods, options))
    return work, facts


def lines(work: Work, facts: list[Network]) -> Iterator[str]:
    """Return the table of one case; the last line says by how much the network is ahead."""
    known = {fact.method: fact for fact in facts}
    yield f"{work.name}: true error at most {work.target:g}"
    yield (
        f"  {'method':<46} {'setting':<24} {'ms':>9} {'error':>8} {'bound':>8} {'compile s':>9} {'steps':>7} "
        f"{'param.':>9} {'Mult-adds':>9} {'p./digit':>9} {'M./digit':>9}"
    )
    for entry in work.entries:
        if entry.seconds is None or entry.error is None:
            yield f"  {entry.method:<46} {entry.note}"
            continue
        line = f"  {entry.method:<46} {entry.setting:<24} {1e3 * entry.seconds:>9.3f} {entry.error:>8.1e}"
        fact = known.get(entry.method)
        if fact is not None:
            cost = f" {fact.bound:>8.1e} {fact.compile_seconds:>9.2f} {'+'.join(map(str, fact.steps)):>7}"
            line += f"{cost} {fact.parameters:>9.3g} {fact.multiply_adds:>9.3g}"
            if fact.parameters_per_digit is not None and fact.multiply_adds_per_digit is not None:
                line += f" {fact.parameters_per_digit:>9.3g} {fact.multiply_adds_per_digit:>9.3g}"
        yield f"{line} {entry.note}"
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
