"""Orthogonal matching pursuit, and its greedier form, forward selection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deep_sparse_coding.checks import check_flag
from deep_sparse_coding.errors import UnsupportedError
from deep_sparse_coding.problems import Blocks, StandardForm
from deep_sparse_coding.problems.base import squared_norm

from .pursuit import LARGEST_GRAM, Pursuit, column_norms, fit_support

# Correlations below this share of ‖a_i‖‖b‖ are rounding, and choose no atom.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class OMP(Pursuit):
    """Orthogonal matching pursuit: the atom most correlated with the residual, then least squares on all chosen.

    Dense dictionaries on a CPU (with a mask that all samples share, signed codes) run in a compiled kernel, which
    chooses atoms in float32 as long as no two are nearly equally good; everything else takes ``D`` and ``Dᵀ`` only,
    with conjugate gradients on the support. Codes that must not be negative choose the largest positive correlation;
    coefficients that turn negative leave for good. Coefficients are least squares in float64.

    `steps` of a solution counts atoms.

    Attributes:
        forward: Choose the atom that lowers the residual the most *after* least squares (forward selection; what
            ``spams.omp`` computes): ``|d_jᵀr|/‖d_j - P d_j‖`` with P onto the chosen atoms, in place of
            ``|d_jᵀr|/‖d_j‖``. In the compiled kernel only.

    Source: Pati, Rezaiifar & Krishnaprasad 1993; Rubinstein, Zibulevsky & Elad 2008; non-negative: Bruckstein, Elad &
    Zibulevsky 2008; forward selection: Rebollo-Neira & Lowe 2002.
    """

    forward: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "forward", check_flag("forward", self.forward))

    def pursue(self, form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
        """Return codes and the number of atoms chosen.

        Raises:
            UnsupportedError: Forward selection of what the compiled kernel does not take.
        """
        matrix = form.operator.matrix()
        small = matrix is not None and matrix.shape[1] <= LARGEST_GRAM
        if matrix is None or not small or form.nonnegative or form.data[0].device.type != "cpu":
            if self.forward:
                raise UnsupportedError(
                    f"OMP(forward=True) takes dense dictionaries of at most {LARGEST_GRAM} atoms on a CPU, with signed "
                    "codes and a mask that all samples share; use dsc.OMP()"
                )
            return _pursue_any(form, sparsity, limits)
        from ._kernels_greedy import pursue_batch

        data = form.data[0]
        goal = data.new_zeros(form.batch) if limits is None else limits
        codes, counts = pursue_batch(
            matrix.numpy(), data.numpy(), goal.numpy(), sparsity, torch.get_num_threads(), self.forward
        )
        return (torch.from_numpy(codes),), torch.from_numpy(counts)


def _pursue_any(form: StandardForm, sparsity: int, limits: Tensor | None) -> tuple[Blocks, Tensor]:
    """Orthogonal matching pursuit by the operator alone, all samples at once, one atom per sample and step."""
    _, inverse = column_norms(form)
    energy = squared_norm(form.data).sqrt()
    (codes,), residual = form.zeros(), form.data[0]
    support, closed = torch.zeros_like(codes, dtype=torch.bool), torch.zeros_like(codes, dtype=torch.bool)
    going, steps = energy > 0, torch.zeros(form.batch, dtype=torch.int64)
    nothing = torch.zeros_like(energy)
    for _ in range(2 * sparsity if form.nonnegative else sparsity):
        if limits is not None:
            going &= squared_norm((residual,)).sqrt() > limits
        going &= support.flatten(1).sum(1) < sparsity
        score = form.operator.analyze((residual,))[0] * inverse
        score = torch.where(closed, 0.0, score.clamp_min(0) if form.nonnegative else score.abs()).flatten(1)
        top, place = score.max(1) if score.shape[1] else (nothing, nothing.long())
        going &= top > _ROUNDING * energy
        rows = going.nonzero().flatten()
        if not len(rows):
            break
        for flags in (support, closed):
            flags.flatten(1)[rows, place[rows]] = True
        steps[rows.cpu()] += 1
        here = form.select(rows)
        x = fit_support(here, support[rows])
        codes[rows], support[rows] = x, support[rows] & ((x != 0) | (not form.nonnegative))
        residual = residual.index_copy(0, rows, here.residual((x,))[0])
    return (codes,), steps
