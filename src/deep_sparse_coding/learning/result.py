"""What learning returns: the model, how it went, and codes of new data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from deep_sparse_coding.dictionaries import Cascade, Dictionary
from deep_sparse_coding.problems import Codes, Lasso, LayeredLasso
from deep_sparse_coding.solvers import Solution, solve

from .inputs import check_images


@dataclass(frozen=True)
class LearningProgress:
    """What a callback sees after every epoch.

    Attributes:
        layer: The layer at work, counted from 1.
        layers: How many there are.
        epoch: The epoch that has ended, counted from 1.
        epochs: How many this layer has.
        objective: ``Σ ½‖y - D x‖² + lam‖x‖₁`` over the training data.
        density: The share of code entries that are not zero.
        heldout: The objective on held-out data; NaN if there are none.
        seconds: Seconds since the layer was begun.
        seconds_left: About how long the epochs to come will take, if those of deeper layers cost the same.
    """

    layer: int
    layers: int
    epoch: int
    epochs: int
    objective: float
    density: float
    heldout: float = math.nan
    seconds: float = 0.0
    seconds_left: float = 0.0

    def __str__(self) -> str:
        line = f"layer {self.layer}/{self.layers} · epoch {self.epoch}/{self.epochs} · objective {self.objective:.6g}"
        if not math.isnan(self.heldout):
            line += f" · held out {self.heldout:.6g}"
        return f"{line} · {100 * self.density:.2f} % non-zeros · {self.seconds_left:.0f} s left"


@dataclass(frozen=True)
class LearningHistory:
    """How learning went: one tuple per layer, with one entry per epoch.

    Attributes:
        objective: ``Σ ½‖y - D x‖² + lam‖x‖₁`` over the training data: in batch at the end of the epoch, where it
            falls; online summed up as the samples came by, each under the atoms of its time.
        density: The share of code entries that are not zero.
        replaced: Atoms that no code used and that were replaced after the epoch.
        seconds: Seconds since the layer was begun.
        heldout: The objective on held-out data, codes solved for; empty without such data.
        joint: The joint objective over all layers before and after every epoch of joint refinement; it falls.
    """

    objective: tuple[tuple[float, ...], ...]
    density: tuple[tuple[float, ...], ...]
    replaced: tuple[tuple[int, ...], ...]
    seconds: tuple[tuple[float, ...], ...]
    heldout: tuple[tuple[float, ...], ...] = ()
    joint: tuple[float, ...] = ()

    def __str__(self) -> str:
        lines = []
        for j, values in enumerate(self.objective):
            lines.append(
                f"layer {j + 1}: {len(values)} epochs · objective {values[0]:.5g} → {values[-1]:.5g} · "
                f"{100 * self.density[j][-1]:.2f} % non-zeros · {sum(self.replaced[j])} atoms replaced · "
                f"{self.seconds[j][-1]:.1f} s"
            )
            if self.heldout and self.heldout[j]:
                lines[-1] += f" · held out {self.heldout[j][0]:.5g} → {self.heldout[j][-1]:.5g}"
        if self.joint:
            lines.append(f"all layers: {len(self.joint) - 1} epochs · {self.joint[0]:.5g} → {self.joint[-1]:.5g}")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class LearningResult:
    """A learned model.

    Attributes:
        model: A dictionary, or a cascade if `atoms` was a sequence.
        history: Objective, density and seconds per layer and epoch.
        dead_atoms: Per layer the atoms that no code of the training data uses.
        lam: The weight of the ℓ1 norm of every layer.
        nonnegative: Whether codes are held at or above zero.
        method: "online" or "batch".
    """

    model: Dictionary | Cascade
    history: LearningHistory
    dead_atoms: tuple[tuple[int, ...], ...]
    lam: tuple[float, ...]
    nonnegative: bool
    method: str = "batch"

    @property
    def problem(self) -> Lasso | LayeredLasso:
        """The problem that the codes of this model solve, for `dsc.solve`."""
        if isinstance(self.model, Cascade):
            return LayeredLasso(self.model, self.lam, nonnegative=self.nonnegative)
        return Lasso(self.model, self.lam[0], nonnegative=self.nonnegative)

    def encode(
        self, images: Tensor | list[Tensor] | tuple[Tensor, ...], *, tol: float = 1e-4, max_steps: int = 10_000
    ) -> Codes:
        """Return the codes of images: a tensor, or a tuple with one per layer of a cascade.

        A sample that does not converge is warned of; `solve` returns the certificate too.

        Args:
            images: As for `learn`, prepared in the same way.
            tol: The relative duality gap to reach.
            max_steps: The most steps per layer.

        Raises:
            DSCError: Images that do not fit the model.
        """
        return self.solve(images, tol=tol, max_steps=max_steps).codes

    def solve(
        self, images: Tensor | list[Tensor] | tuple[Tensor, ...], *, tol: float = 1e-4, max_steps: int = 10_000
    ) -> Solution:
        """Return the codes of images, layer after layer, as a solution with their certificate.

        Args:
            images: As for `learn`, prepared in the same way.
            tol: The relative duality gap to reach.
            max_steps: The most steps per layer.

        Raises:
            DSCError: Images that do not fit the model.
        """
        first = self.model.layers[0] if isinstance(self.model, Cascade) else self.model
        tensor = check_images(images, dense=first.event_axes == 1, dtype=first.dtype, finite=False)
        return solve(self.problem, tensor.to(first.device), tol=tol, max_steps=max_steps)

    def __str__(self) -> str:
        dead = sum(len(atoms) for atoms in self.dead_atoms)
        return f"{self.history}\n{dead} dead atom(s)" if dead else str(self.history)
