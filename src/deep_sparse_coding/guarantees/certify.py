"""A certificate for codes from anywhere: a network, another library, a guess."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from deep_sparse_coding.checks import require_number
from deep_sparse_coding.problems import Certificate, Codes, Problem, assess
from deep_sparse_coding.problems.certificate import DEFAULT_TOL

from .posterior import Posterior, posterior


@dataclass(frozen=True, eq=False)
class CertifiedCodes:
    """Codes with evidence of how good they are, whoever computed them.

    Attributes:
        problem: What is minimized.
        signal: For which signal.
        codes: The codes as they were given.
        certificate: Objective, dual value and gap in float64.
    """

    problem: Problem
    signal: Tensor
    codes: Codes
    certificate: Certificate

    @property
    def objective(self) -> Tensor:
        """``P(x)`` per sample."""
        return self.certificate.objective

    @property
    def dual(self) -> Tensor:
        """A lower bound of the minimum, per sample."""
        return self.certificate.dual

    @property
    def gap(self) -> Tensor:
        """``P(x) - P* ≤ gap`` per sample."""
        return self.certificate.gap

    @property
    def relative_gap(self) -> Tensor:
        """The gap over the objective, per sample."""
        return self.certificate.relative_gap

    def posterior(self) -> Posterior | tuple[Posterior, ...]:
        """Return what is certain about the minimizer: zeros, support, uniqueness, distance (see `posterior`)."""
        return posterior(self)

    def __str__(self) -> str:
        return str(self.certificate)

    def __repr__(self) -> str:
        return f"<CertifiedCodes {self}>"


def certify(problem: Problem, signal: Tensor, codes: Codes, *, tol: float = DEFAULT_TOL) -> CertifiedCodes:
    """Return a certificate for codes from anywhere.

    Args:
        problem: A Lasso, a joint or a layered problem.
        signal: ``(*batch, ...)``.
        codes: As the problem's solutions have them: a tensor, or a tuple with one per layer.
        tol: The relative gap that is small enough, as `solve` takes it: codes that are near it, but above, get a second
            dual point, and the better of the two counts. With the `tol` of a solution its certificate comes again.

    Returns:
        `CertifiedCodes`; where codes are NaN or violate a constraint, the gap is NaN or infinite, and proves nothing.

    Raises:
        ParameterError: Not a problem, or a negative tol.
        DSCError: Shapes, dtypes or devices that do not fit.

    Source: "Gap" in G5 of docs/theory.md.
    """
    tol = require_number("tol", tol, minimum=0.0)
    return CertifiedCodes(problem, signal, codes, assess(problem, signal, codes, tol))
