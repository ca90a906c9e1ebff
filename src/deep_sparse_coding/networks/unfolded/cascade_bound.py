"""N11 for dense cascades: what learned weights of the joint network and of ML-LISTA prove about the codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...dictionaries import Cascade, DenseDictionary, Dictionary
from ...dictionaries.coherence import top_sum
from ...errors import UnsupportedError
from ...guarantees import Condition, Guarantee
from ...guarantees.hypotheses import LayerHypotheses, layer_hypotheses
from ...guarantees.recursion import OUTWARDS

_SOURCE = "N11 (cascades) and Rounding of docs/theory.md"


@dataclass(frozen=True, eq=False)
class LayerStep:
    """One layer's part of a step, float64: W ``(d, atoms)``, θ ``(atoms,)``, and the joint network's c (else 0)."""

    analysis: Tensor
    thresholds: Tensor
    coupling: float = 0.0

    @classmethod
    def of(cls, analysis: Dictionary, thresholds: Tensor, coupling: Tensor | None = None) -> LayerStep:
        """Return the part with the weights of a network."""
        c = 0.0 if coupling is None else float(coupling.detach().clamp_min(0))
        theta = thresholds.detach().double().cpu().clamp_min(0)
        return cls(analysis.weight.detach().double().cpu(), theta, c)


@dataclass(frozen=True, eq=False)
class _Errors:
    """Bounds per atom: e on the support, η off it (``η ≤ e``)."""

    on: Tensor
    off: Tensor

    def through(self, matrix: Tensor, count: int) -> Tensor:
        """Bound ``|M v|`` for v with at most `count` entries up to e, the others up to η."""
        sizes = matrix.abs()
        return top_sum(sizes * (self.on - self.off), count) + sizes @ self.off

    def mass(self, assumed: LayerHypotheses) -> float:
        """Bound the ℓ1 norm of the codes."""
        return assumed.sparsity * (assumed.amplitude + float(self.on.max())) + float(self.off.sum())


@dataclass(frozen=True, eq=False)
class CascadeBound:
    """The recursion of N11 through a dense cascade.

    Attributes:
        matrices: ``D_1, ..., D_J`` in float64.
        assumed: What is assumed of the layers' codes.
        dtype: In which the network computes.
        hold: Whether thresholds below the leak are raised to it.
    """

    matrices: tuple[Tensor, ...]
    assumed: tuple[LayerHypotheses, ...]
    dtype: torch.dtype
    hold: bool = False

    @classmethod
    def of(
        cls,
        layers: Sequence[Dictionary],
        *,
        sparsity: int | Sequence[int],
        amplitude: float | Sequence[float],
        noise: float,
        nonnegative: bool,
        hold: bool = False,
    ) -> CascadeBound:
        """Return the recursion, after checks.

        Raises:
            UnsupportedError: Convolutional layers.
        """
        dense = [layer for layer in layers if isinstance(layer, DenseDictionary)]
        if len(dense) < len(layers):
            raise UnsupportedError(
                "error_bound of a convolutional cascade: the recursion needs the rows of D_j···D_J and their products "
                "with W, which differ from place to place; certify the codes at run time instead: "
                "dsc.certify(problem, signal, codes), or dsc.Safeguarded(net, problem)"
            )
        given = {"sparsity": sparsity, "amplitude": amplitude, "noise": noise, "nonnegative": nonnegative}
        assumed = layer_hypotheses(Cascade(dense), **given)
        matrices = tuple(layer.matrix.detach().double().cpu() for layer in dense)
        return cls(matrices, assumed, dense[0].dtype, hold)

    def joint(self, steps: Sequence[Sequence[LayerStep]]) -> tuple[list[list[_Errors]], list[list[Tensor]]]:
        """Return errors and thresholds of every step and layer of the joint network."""
        now = [self._start(j) for j in range(len(self.matrices))]
        found, taken = [], []
        for step in steps:
            after, thetas = [], []
            for j, part in enumerate(step):
                assumed, e = self.assumed[j], now[j]
                gram = part.analysis.T @ self.matrices[j]
                heard = torch.linalg.vector_norm(part.analysis, dim=0) * assumed.residual
                inputs = now[j - 1].mass(self.assumed[j - 1]) if j else assumed.sparsity * assumed.amplitude
                if j:
                    heard = heard + now[j - 1].through(part.analysis.T, self.assumed[j - 1].sparsity)
                above = 0.0
                if j + 1 < len(self.matrices):
                    upper = self.assumed[j + 1]
                    pulled = now[j + 1].through(self.matrices[j + 1], upper.sparsity) + upper.residual
                    heard = heard + part.coupling * pulled
                    above = part.coupling * (now[j + 1].mass(upper) + assumed.amplitude + float(e.on.max()))
                heard = heard + self._slack(j, part, inputs + e.mass(assumed), above)
                errors, theta = self._threshold(j, (1 - part.coupling) * torch.eye(len(gram)) - gram, e, heard, part)
                after.append(errors)
                thetas.append(theta)
            now = after
            found.append(after)
            taken.append(thetas)
        return found, taken

    def nested(self, steps: Sequence[Sequence[LayerStep]]) -> tuple[list[list[_Errors]], list[list[Tensor]]]:
        """Return errors and thresholds of every pass and layer of ML-LISTA; the last layer's are those of its codes."""
        depth = len(self.matrices)
        # P_j = D_{j+1}···D_J: what the deepest codes make.
        made = [torch.eye(self.matrices[-1].shape[1], dtype=torch.float64)]
        for matrix in reversed(self.matrices[1:]):
            made.insert(0, matrix @ made[0])
        deepest, last = self._start(depth - 1), self.assumed[-1]
        found, taken = [], []
        for step in steps:
            passed: list[_Errors] = []
            thetas = []
            for j, part in enumerate(step):
                matrix = made[j] - part.analysis.T @ self.matrices[j] @ made[j]
                if j:
                    heard = passed[-1].through(part.analysis.T, self.assumed[j - 1].sparsity)
                    inputs = passed[-1].mass(self.assumed[j - 1])
                else:
                    heard = torch.linalg.vector_norm(part.analysis, dim=0) * self.assumed[0].residual
                    inputs = self.assumed[0].sparsity * self.assumed[0].amplitude
                # Synthesis multiplies no norm by more than the norms of the atoms, layer after layer in ℓ1.
                growth = max(float(m.abs().sum(0).max()) for m in made)
                heard = heard + self._slack(j, part, inputs + growth * deepest.mass(last) * depth, 0.0)
                if j + 1 < depth:
                    heard = heard + deepest.through(matrix, last.sparsity)
                    errors, theta = self._apply(j, heard, heard, part)
                else:
                    errors, theta = self._threshold(j, matrix, deepest, heard, part)
                passed.append(errors)
                thetas.append(theta)
            deepest = passed[-1]
            found.append(passed)
            taken.append(thetas)
        return found, taken

    def guarantee(self, found: Sequence[Sequence[_Errors]], method: str, layers: Sequence[Dictionary]) -> Guarantee:
        """Return what the errors prove: of the deepest codes, and as bounds of all layers'."""
        last, depth = found[-1], len(self.matrices)
        bounds = {
            f"e_{k} = ‖x_{depth}^{k} - x_{depth}‖_∞": float(step[-1].on.max()) for k, step in enumerate(found, start=1)
        }
        for j, errors in enumerate(last, start=1):
            bounds[f"‖x_{j} - truth‖_∞ after the last step"] = float(errors.on.max())
            bounds[f"leak off the support of layer {j}"] = float(errors.off.max())
        bounds = {name: value if value == value else float("inf") for name, value in bounds.items()}
        condition = Condition(
            f"e_{len(found)}, error after {len(found)} steps",
            bounds[f"e_{len(found)} = ‖x_{depth}^{len(found)} - x_{depth}‖_∞"],
            self.assumed[-1].amplitude,
        )
        clean = not any(bool(errors.off.any()) for step in found for errors in step)
        told = [sentence for layer, h in zip(layers, self.assumed, strict=True) for sentence in h.sentences(layer)]
        return Guarantee(
            condition.holds,
            f"{len(found)} learned steps ({method}) find the deepest codes better than zero codes do"
            + (", with no non-zero outside the true supports" if clean else ""),
            (condition,),
            _SOURCE,
            (condition,),
            (*told, f"steps are computed in {str(self.dtype).removeprefix('torch.')} or better"),
            bounds,
        )

    def _start(self, j: int) -> _Errors:
        start = torch.full((self.matrices[j].shape[1],), self.assumed[j].amplitude, dtype=torch.float64)
        return _Errors(start, torch.zeros_like(start))

    def _threshold(
        self, j: int, matrix: Tensor, errors: _Errors, heard: Tensor, part: LayerStep
    ) -> tuple[_Errors, Tensor]:
        """Take a step whose argument is ``x* + M E + heard``, M on the layer's own errors E."""
        own, others = matrix.diagonal().abs(), matrix - torch.diag(matrix.diagonal())
        s = self.assumed[j].sparsity
        return self._apply(
            j,
            own * errors.on + errors.through(others, s - 1) + heard,
            own * errors.off + errors.through(others, s) + heard,
            part,
        )

    def _apply(self, j: int, inside: Tensor, outside: Tensor, part: LayerStep) -> tuple[_Errors, Tensor]:
        """Take the threshold of arguments that are off by so much on the support and off it."""
        inside, outside, theta = inside * OUTWARDS, outside * OUTWARDS, part.thresholds
        if self.hold:
            theta = torch.maximum(theta, outside * (1 + 32 * torch.finfo(self.dtype).eps))
        reached = (inside + theta) * OUTWARDS
        reached = torch.where(inside <= theta, reached.clamp_max(self.assumed[j].amplitude), reached)
        left = ((outside - theta) * OUTWARDS).clamp_min(0)
        return _Errors(torch.maximum(reached, left), left), theta

    def _slack(self, j: int, part: LayerStep, mass: float, above: float) -> Tensor:
        """Return how far a computed argument lies from the exact one: sums of n products err by ``n u Σ|products|``.

        Source: "Rounding" of docs/theory.md.
        """
        unit = 0.51 * torch.finfo(self.dtype).eps
        terms = 16 + 2 * sum(sum(matrix.shape) for matrix in self.matrices)
        norms = torch.linalg.vector_norm(part.analysis, dim=0)
        kept = self.assumed[j].amplitude + mass
        return (
            2 * unit * (terms * (norms * 2 * (mass + self.assumed[j].residual) + above) + 4 * (kept + part.thresholds))
        )
