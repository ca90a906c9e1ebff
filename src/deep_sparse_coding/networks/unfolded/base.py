"""What all unfolded networks share: steps, what is learned, thresholds, training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...dictionaries import Dictionary
from ...errors import UnsupportedError
from ...guarantees import Guarantee
from ...problems import Codes, Problem
from .training import TrainingHistory, train_unfolded


class Unfolded(nn.Module, ABC):
    """A few steps of a solver as a network: signal in, codes out, as the problem's solutions have them.

    Attributes:
        problem: What the steps minimize.
        steps: How many there are.
        method: Which unfolding.
        learn: What is trained; the other weights ask for no gradients.
        history: How the last training went; None before.
    """

    history: TrainingHistory | None

    def __init__(self, problem: Problem, steps: int, method: str, learn: tuple[str, ...]) -> None:
        super().__init__()
        self.problem = problem
        self.steps = steps
        self.method = method
        self.learn = learn
        self.history = None

    @abstractmethod
    def trace(self, signal: Tensor) -> list[Codes]:
        """Return the codes after every step, the last of them what the network returns.

        Args:
            signal: ``(*batch, ...)``.
        """

    @abstractmethod
    def objective(self, codes: Codes, signal: Tensor) -> Tensor:
        """Return the problem's objective per sample, ``(samples,)``, differentiable in the codes."""

    @abstractmethod
    def thresholds(self) -> list[nn.Parameter]:
        """Return the thresholds and steps that training keeps at or above zero."""

    def forward(self, signal: Tensor) -> Codes:
        """Return the codes after the last step.

        Args:
            signal: ``(*batch, ...)`` as the problem takes it.
        """
        return self.trace(signal)[-1]

    fit = train_unfolded

    def error_bound(
        self, sparsity: int | Sequence[int], *, amplitude: float | Sequence[float] = 1.0, noise: float = 0.0
    ) -> Guarantee:
        """Bound the distance of the codes to true ones from the weights as they are now.

        Raises:
            UnsupportedError: N11 does not speak of the method.

        Source: N11 of docs/theory.md.
        """
        raise UnsupportedError(
            f"error_bound of method {self.method!r}: no statement bounds it; certify the codes at run time instead: "
            "dsc.certify(problem, signal, codes), or dsc.Safeguarded(net, problem)"
        )

    def keep_supports(
        self, sparsity: int | Sequence[int], *, amplitude: float | Sequence[float] = 1.0, noise: float = 0.0
    ) -> None:
        """Raise thresholds that lie below the leak to it, so that no code off the true support is ever non-zero.

        The leak of an atom is how far its argument can be from zero where its code is zero, ``B_i e + ν_i`` and
        rounding. Smaller thresholds change, no others; `error_bound` then speaks of exact supports. Where the error
        does not fall even so (``ρ ≥ 1``), thresholds rise to the amplitude and the bound stays not proved.

        Args:
            sparsity: The most non-zeros of x* (convolutional: per stripe).
            amplitude: Bound of ``‖x*‖_∞``.
            noise: Bound of ``‖n‖_2`` (convolutional: of its part under any one atom).

        Raises:
            ParameterError: A number out of range, or atoms that are not of unit norm.
            UnsupportedError: No bound speaks of the method.

        Source: N11 of docs/theory.md.
        """
        raise UnsupportedError(
            f"keep_supports of method {self.method!r}: no statement bounds it; leave "
            "supports_up_to out of fit, and certify the codes at run time: dsc.certify(problem, signal, codes)"
        )

    def extra_repr(self) -> str:
        """Return the words between the brackets of the printed form."""
        return f"method={self.method!r}, steps={self.steps}, learn={self.learn}"


def shrink(points: Tensor, thresholds: Tensor, nonnegative: bool) -> Tensor:
    """Return ``S_θ(u)``, for non-negative codes ``ReLU(u - θ)``, by standard layers; a negative θ counts as zero."""
    theta = F.relu(thresholds)
    above = F.relu(points - theta)
    return above if nonnegative else above - F.relu(-points - theta)


def copy_of(dictionary: Dictionary, weight: Tensor, learned: bool) -> Dictionary:
    """Return a dictionary of the same kind that holds a copy of `weight`, trained or not."""
    made = dictionary.with_weight(weight.detach().clone())
    return made.requires_grad_(learned)


def per_channel(values: Tensor, axes: int) -> Tensor:
    """Return one number per atom in a shape that broadcasts against codes with so many event axes."""
    return values.reshape(*values.shape, *(1,) * (axes - 1))


def weights_by_atom(name: str, lam: object, weights: Tensor | None, dictionary: Dictionary) -> Tensor:
    """Return the problem's lam · weights of one layer as one number per atom, ``(atoms,)``.

    Args:
        name: How the user calls lam.
        lam: A number, or a tensor.
        weights: Multipliers, or None.
        dictionary: Of the layer.

    Raises:
        UnsupportedError: They differ between samples or positions, or are infinite.
    """
    total = dictionary.weight.new_ones(dictionary.atoms)
    for what, value in ((name, lam), ("weights", weights)):
        if value is None:
            continue
        factor = value.detach().to(total) if isinstance(value, Tensor) else total.new_tensor(value)
        flat = factor.flatten() if factor.numel() == 1 else factor
        if tuple(flat.shape) not in ((1,), (dictionary.atoms,)):
            raise UnsupportedError(
                f"{what} has shape {tuple(factor.shape)}; unfold takes a number or one per atom, ({dictionary.atoms},)"
            )
        total = total * flat
    if not bool(torch.isfinite(total).all()):
        raise UnsupportedError(f"{name} has infinite entries; leave these atoms out of the dictionary")
    return total
