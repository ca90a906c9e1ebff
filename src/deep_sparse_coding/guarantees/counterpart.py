"""Lasso and basis pursuit with the same codes: which ε belongs to a λ, and which λ to an ε. Statement G6."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.errors import ParameterError, UnsupportedError
from deep_sparse_coding.problems import BasisPursuit, Lasso

from .analysis import analyze
from .guarantee import rounded_up
from .posterior import HasCodes
from .pursuit import given_epsilon, multipliers, pursuit_sphere
from .sphere import EPS, Rounding, norm

SOURCE = "G6 of docs/theory.md"


@dataclass(frozen=True, eq=False)
class Counterpart:
    """An interval that holds the other problem's setting, per sample ``(*batch,)``.

    Attributes:
        name: "epsilon" if the codes solve a Lasso, "lam" if they solve basis pursuit.
        lower: A proved lower bound.
        upper: A proved upper bound.
    """

    name: str
    lower: Tensor
    upper: Tensor
    source: str = SOURCE

    def __str__(self) -> str:
        if not self.lower.numel():
            return "counterpart of an empty batch"
        least, most = -rounded_up(-float(self.lower.min()), 6), rounded_up(float(self.upper.max()), 6)
        widest = rounded_up(float((self.upper - self.lower).max()), 2)
        return f"{self.name} from {least:.6g} to {most:.6g}, each known within {widest:.2g} (source: {self.source})"

    def __repr__(self) -> str:
        return f"<Counterpart {self}>"


def counterpart(solution: HasCodes) -> Counterpart:
    """Return bounds of the ε (or λ) at which the constrained (or penalized) problem has the same minimizers.

    The minimizer of a Lasso solves basis pursuit with ``ε = ρ(λ) = ‖y - Dx*‖``, and ``|ρ(λ) - ‖c‖| ≤ R``. A minimizer
    of basis pursuit solves the Lasso with ``λ = max_i|d_iᵀr*|/w_i``, and its residual r* lies in a known sphere.

    Args:
        solution: What `solve` or `certify` returned for a Lasso or for basis pursuit.

    Raises:
        ParameterError: Bare codes, or anything else without problem, signal and codes.
        UnsupportedError: Another problem.

    Source: G6 of docs/theory.md.
    """
    if not isinstance(solution, HasCodes):
        raise ParameterError(f"solution is a {type(solution).__name__}; expected what solve or certify returned")
    problem = solution.problem
    signal = problem.check_signal(solution.signal)
    batch = problem.batch_shape(signal)
    with torch.no_grad():
        if isinstance(problem, Lasso):
            analysis = analyze(problem, signal, solution.codes)
            if len(analysis.flat.form.data) > 1:
                raise UnsupportedError("no counterpart of a Lasso with a ridge; expected ridge=0")
            center, radius = analysis.sharpest()
            size = norm(center)
            slack = radius + 8 * EPS * size
            return Counterpart("epsilon", (size - slack).clamp_min(0).reshape(batch), (size + slack).reshape(batch))
        if isinstance(problem, BasisPursuit):
            form = problem.form(signal)
            blocks = tuple(block.double() for block in problem.pack(solution.codes, signal))
            found = pursuit_sphere(form, given_epsilon(problem, form), blocks)
            low, high = multipliers(form, found, Rounding.of(form))
            return Counterpart("lam", low.reshape(batch), high.reshape(batch))
    raise UnsupportedError(f"no counterpart of a {type(problem).__name__}; expected a Lasso or BasisPursuit")
