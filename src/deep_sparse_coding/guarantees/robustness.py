"""How far a signal can move before support or signs of its codes can change: statement G7, for any codes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deep_sparse_coding.checks import require_number
from deep_sparse_coding.errors import ParameterError, UnsupportedError
from deep_sparse_coding.problems import Codes, ConvexProblem, JointLasso, LayeredLasso, Problem

from .analysis import Analysis, analyze
from .conditioning import factorize
from .guarantee import rounded_up
from .polish import join
from .posterior import HasCodes
from .sphere import EPS
from .widen import Widened, widen

SOURCE = "G7 of docs/theory.md"


@dataclass(frozen=True, eq=False)
class Robustness:
    """What is proved about the minimizers of all signals within ϵ, sample by sample.

    Attributes:
        asked: ϵ, ``(*batch,)``: what was asked for; for a deeper layer of a layered problem how far its input can be
            from the given codes of the layer below when the signal moves by that much.
        radius: The largest ϵ up to which support and signs provably stay, ``(*batch,)``; 0 where they are not even
            known at the signal itself. For a deeper layer, of its own input.
        signal_radius: The same for the signal, with all layers up to this one.
        stays: Where support and signs stay for all signals within `asked`.
        zeros: True where ``x*_i = 0`` for all of them; in the structure of the codes, as are the next four.
        support: True where ``x*_i ≠ 0`` for all of them.
        signs: The sign of x*_i where it is on that support, else 0; int8.
        lower: ``x*_i ≥ lower`` for all of them.
        upper: ``x*_i ≤ upper`` for all of them.
        unique: Where every one of them has exactly one minimizer, ``(*batch,)``.
        moves: ``‖x*(y') - x*(y)‖_2 ≤ moves``, ``(*batch,)``; inf where not unique.
        readout: ``|vᵀx*(y') - vᵀx*(y)| ≤ readout``, if a read-out v was given.
        reasons: Why uniqueness is not proved, one text per sample of the flattened batch.
        note: What the statement is relative to, for a layer of a layered problem.
    """

    asked: Tensor
    radius: Tensor
    signal_radius: Tensor
    stays: Tensor
    zeros: Codes
    support: Codes
    signs: Codes
    lower: Codes
    upper: Codes
    unique: Tensor
    moves: Tensor
    readout: Tensor | None
    reasons: tuple[str, ...]
    note: str = ""
    source: str = SOURCE

    def __str__(self) -> str:
        samples = self.radius.numel()
        if not samples:
            return "robustness of an empty batch"
        head = f"{self.note}: " if self.note else ""
        asked = rounded_up(float(self.asked.max()), 3)
        # Radii are lower bounds: they are printed rounded down.
        least, most = (-rounded_up(-float(value), 3) for value in (self.radius.min(), self.radius.max()))
        lines = [
            f"{head}support and signs stay for every signal within {asked:.3g} in {int(self.stays.sum())}/{samples}; "
            f"certified radius from {least:.3g} to {most:.3g}"
        ]
        if bool(self.unique.any()):
            moves = rounded_up(float(self.moves[self.unique].max()), 3)
            lines.append(f"  codes move by at most {moves:.3g} in {int(self.unique.sum())}/{samples}")
        unknown = [i for i, text in enumerate(self.reasons) if text]
        lines += [f"  sample {i} not proved unique: {self.reasons[i]}" for i in unknown[:3]]
        return "\n".join([*lines, f"  source: {self.source}"])

    def __repr__(self) -> str:
        return f"<Robustness {str(self).splitlines()[0]}>"


def robustness(
    solution: HasCodes, radius: float | Tensor = 0.0, *, readout: Codes | None = None
) -> Robustness | tuple[Robustness, ...]:
    """Prove what holds for the minimizers of all signals within `radius`, and how large it can be.

    The dual solution is a projection of the signal, so it moves by no more than the signal does: what a posterior
    proves by a margin stays true within it. Where the minimizer is known exactly (see `Posterior.polish`) the certified
    radius of a Lasso is exact: at any larger one some signal has another support or sign.

    Args:
        solution: Anything with `problem`, `signal` and `codes`: what `solve` or `certify` returned.
        radius: ϵ, in ℓ2 over the whole signal: a number or one per sample.
        readout: v, like one sample's codes (for layered problems like those of the deepest layer): bounds ``vᵀx*``.

    Returns:
        A `Robustness`; for a layered problem one per layer, layer j for the inputs that layers below can give.

    Raises:
        ParameterError: Bare codes, a radius that is negative, or a read-out of another shape.
        UnsupportedError: A problem that is no Lasso, joint or layered Lasso; box constraints or groups.

    Source: G7 of docs/theory.md.
    """
    if not isinstance(solution, HasCodes):
        raise ParameterError(
            f"solution is a {type(solution).__name__}; expected what dsc.solve returned, or "
            "dsc.certify(problem, signal, codes) of codes from anywhere"
        )
    problem = solution.problem
    signal = problem.check_signal(solution.signal)
    asked = _asked(radius, problem.batch_shape(signal), signal)
    with torch.no_grad():
        if isinstance(problem, ConvexProblem):
            analysis = analyze(problem, signal, solution.codes)
            scale = math.sqrt(_first_beta(problem)) * (1 + 4 * EPS)
            found = widen(analysis, asked * scale)
            return _assemble(analysis, found, asked, found.radius / scale, found.radius / scale, readout, scale, "")
        if isinstance(problem, LayeredLasso):
            problem.pack(solution.codes, signal)
            return _layered(problem, signal, solution.codes, asked, readout)
    raise UnsupportedError(
        f"no robustness for a {type(problem).__name__}; expected a Lasso, JointLasso or LayeredLasso: with a fixed "
        "epsilon or sparsity, codes can jump (dsc.prove.counterpart gives the Lasso that has the same codes)"
    )


def _layered(
    problem: LayeredLasso, signal: Tensor, codes: Codes, asked: Tensor, readout: Codes | None
) -> tuple[Robustness, ...]:
    found: list[Robustness] = []
    epsilon, start, slope = asked, torch.zeros_like(asked), torch.ones_like(asked)
    reachable = torch.full_like(asked, math.inf)
    for j, (stage, x, z) in enumerate(problem.by_layer(codes, signal), start=1):
        if not isinstance(stage, ConvexProblem):  # pragma: no cover - the stages of a layered Lasso are Lassos
            raise TypeError("a stage that is not convex")
        analysis = analyze(stage, z.detach(), x)
        usable = torch.isfinite(epsilon)
        wide = widen(analysis, torch.where(usable, epsilon, 0.0))
        # The input of layer j is within start + slope·(distance of the signals), as long as supports below stay.
        room = (wide.radius - start).clamp_min(0)
        own = torch.where(room > 0, room / slope * (1 - 4 * EPS), 0.0)
        reachable = torch.where(torch.isfinite(start), torch.minimum(reachable, own), 0.0)
        last = j == len(problem.stages)
        note = f"layer {j}" if j == 1 else f"layer {j}, for every input that layer {j - 1} can give"
        told = _assemble(
            analysis, wide, epsilon, wide.radius, reachable, readout if last else None, torch.ones(()), note, usable
        )
        found.append(told)
        still = widen(analysis, torch.where(torch.isfinite(start), start, 0.0))
        epsilon = torch.where(usable, wide.distance, math.inf)
        start = torch.where(torch.isfinite(start), _at(analysis, still, start), math.inf)
        slope = slope / still.sigma * (1 + 4 * EPS)
    return tuple(found)


def _at(analysis: Analysis, still: Widened, start: Tensor) -> Tensor:
    """Return the bound of ``‖x - x*(z')‖`` for inputs z' within `start`, where the support stays."""
    moved = torch.where((~still.zeros).any(1), start / still.sigma, 0.0)
    return torch.minimum(still.distance, (analysis.distance() + moved) * (1 + 8 * EPS))


def _assemble(
    analysis: Analysis,
    found: Widened,
    asked: Tensor,
    radius: Tensor,
    signal_radius: Tensor,
    readout: Codes | None,
    scale: float | Tensor,
    note: str,
    usable: Tensor | None = None,
) -> Robustness:
    batch, intervals = analysis.batch, found.intervals
    fine = torch.ones_like(found.unique) if usable is None else usable
    rows = fine[:, None]
    bound = None if readout is None else _readout(analysis, found, asked * scale, readout)
    return Robustness(
        asked.reshape(batch),
        radius.reshape(batch),
        signal_radius.reshape(batch),
        (fine & (asked < radius)).reshape(batch),
        analysis.shaped(intervals.zeros & rows),
        analysis.shaped(intervals.support & rows),
        analysis.shaped(torch.where(rows, intervals.signs, 0)),
        analysis.shaped(torch.where(rows, intervals.lower, -math.inf)),
        analysis.shaped(torch.where(rows, intervals.upper, math.inf)),
        (fine & found.unique).reshape(batch),
        torch.where(fine, found.moves, math.inf).reshape(batch),
        None if bound is None else torch.where(fine, bound, math.inf).reshape(batch),
        found.reasons,
        note,
    )


def _readout(analysis: Analysis, found: Widened, epsilon: Tensor, readout: Codes) -> Tensor:
    """Return ``ϵ‖(A_E^†)ᵀ v_E‖ = ϵ√(v_Eᵀ G_E⁻¹ v_E)``; the solve is checked by its residual."""
    flat = analysis.flat
    blocks = readout if isinstance(readout, tuple) else (readout,)
    shapes = flat.form.code_shapes
    if tuple(tuple(block.shape) for block in blocks) != tuple(shapes):
        got = [tuple(block.shape) for block in blocks]
        raise ParameterError(f"readout has shape {got}; expected that of one sample's codes, {list(shapes)}")
    weights = join(tuple(block.detach().double()[None] for block in blocks))[0].cpu().numpy()
    bounds = torch.full_like(epsilon, math.inf)
    for sample in found.unique.nonzero().flatten().tolist():
        index = (~found.zeros[sample]).nonzero().flatten().cpu().numpy()
        own = weights[index]
        if not len(index) or not own.any():
            bounds[sample] = 0.0
            continue
        columns = flat.columns.take(sample, index)
        factor = factorize(columns, flat.gram_terms)
        if factor.squared <= 0:
            continue
        # ‖A_E G⁻¹v‖ = ‖(A_E^†)ᵀ v‖; an error d of the solve, G z = v - d, adds at most ‖d‖/σ_min.
        solved = factor.solve(own)
        image = columns @ solved
        defect = np.linalg.norm(own - columns.T @ image)
        length = float(np.linalg.norm(image))
        rounding = (flat.rounding.synthesis + flat.rounding.analysis) * np.linalg.norm(abs(columns) @ abs(solved))
        total = length + rounding + (defect + math.sqrt(factor.trace) * rounding) / factor.sigma
        bounds[sample] = float(float(epsilon[sample]) * total * (1 + (len(image) + 8) * EPS))
    return bounds


def _first_beta(problem: Problem) -> float:
    """Return β_1 of a joint problem, whose data are ``√β_1 y``; 1 for all others."""
    if not isinstance(problem, JointLasso):
        return 1.0
    beta = problem.beta
    return float(beta[0]) if isinstance(beta, tuple | list) else float(beta)  # type: ignore[arg-type]


def _asked(radius: float | Tensor, batch: tuple[int, ...], signal: Tensor) -> Tensor:
    count = math.prod(batch)
    if isinstance(radius, Tensor) and radius.ndim:
        if tuple(radius.shape) != batch or not bool((radius >= 0).all()) or not bool(torch.isfinite(radius).all()):
            raise ParameterError(
                f"radius has shape {tuple(radius.shape)}; expected a number of at least 0, or one per sample: {batch}"
            )
        return radius.detach().to(device=signal.device, dtype=torch.float64).reshape(-1)
    number = require_number("radius", radius, minimum=0)
    return torch.full((count,), number, dtype=torch.float64, device=signal.device)
