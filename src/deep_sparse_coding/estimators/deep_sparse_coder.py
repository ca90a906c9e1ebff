"""`DeepSparseCoder`: a cascade of dictionaries learned from data, and the codes of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deep_sparse_coding.checks import check_flag, require_integer
from deep_sparse_coding.dictionaries import Cascade
from deep_sparse_coding.errors import ParameterError
from deep_sparse_coding.learning import learn
from deep_sparse_coding.problems import Codes, JointLasso, LayeredLasso, Problem

from .base import CodingTransformer, rows_of, seed_of
from .encoding import to_tensor


class DeepSparseCoder(CodingTransformer):
    """Codes of a cascade ``y ≈ D_1 x_1, x_1 ≈ D_2 x_2, ...`` that is learned from data, as features.

    Layer after layer, ``x_j = argmin ½‖x_{j-1} - D_j x‖² + lam_j‖x‖₁``; or, with `joint`, all layers at once,
    ``min Σ_j (β_j/2)‖x_{j-1} - D_j x_j‖² + lam_j‖x_j‖₁``. `lam` is absolute, as in `DictionaryLearner`.

    Args:
        n_components: Components of every layer, the one next to the data first; a whole number for one layer.
        lam: The weight of the ℓ1 norm, above 0, one for all layers or one each.
        joint: Solve for all layers at once, and refine the dictionaries that way after they were learned in turn.
        beta: With `joint`: one positive weight for all layers or one each.
        joint_epochs: With `joint`: epochs of that refinement; 0 for none.
        layer: Whose codes are the features: "deepest", "all" side by side, or a number from 1.
        epochs: Passes over the data for every layer.
        batch_size: Samples that are coded between two updates of the components; None chooses.
        nonnegative: Hold the codes at or above zero.
        tol: The relative duality gap, of every layer or of the joint problem, of the codes that `transform` returns.
        max_steps: The most steps per layer for them.
        sparse_output: Return ``scipy.sparse.csr_array``; codes are then never all held dense.
        random_state: A whole number, a `RandomState`, or None for other components every time.

    Attributes:
        components_: ``(n_features_out, n_features)``: what each feature stands for in the data, rows of
            ``(D_1 ··· D_j)ᵀ``.
        n_components_: Components of every layer, a tuple.
        layers_: Whose codes are the features, counted from 1.
        n_features_in_: The length of a sample.
        feature_names_in_: Names of the columns that `fit` saw, if it saw any.
        n_iter_: Epochs of all layers together, with those of the refinement.
        converged_: Whether the codes of all samples of `fit` reached `tol`.
        dual_gap_: Their duality gaps, ``(n_samples,)``, added up over the layers unless `joint`.
        objective_: Their objectives, likewise; `score` is minus the mean of such.
        error_: A tuple with one array per layer: the objective summed over the samples after every epoch.
        joint_error_: The joint objective before and after every epoch of the refinement.
        dead_atoms_: Per layer the components that no code of the training data uses.
        model_: The `Cascade`, for `dsc.prove` and the like.

    `inverse_transform` takes the codes of one layer through ``D_1 ··· D_j``; of "all" those of the first.

    Source: greedy layers: Zeiler, Krishnan, Taylor & Fergus 2010; DSC₁: Li, Feng & Zhou 2024, Definition 4; the joint
        problem: section 1 of docs/theory.md.
    """

    model_: Cascade
    layers_: tuple[int, ...]
    n_components_: tuple[int, ...]

    def __init__(
        self,
        n_components: int | Sequence[int] = (64, 128),
        *,
        lam: float | Sequence[float] = 0.1,
        joint: bool = False,
        beta: float | Sequence[float] = 1.0,
        joint_epochs: int = 3,
        layer: str | int = "deepest",
        epochs: int = 10,
        batch_size: int | None = None,
        nonnegative: bool = False,
        tol: float = 1e-4,
        max_steps: int = 10_000,
        sparse_output: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.n_components = n_components
        self.lam = lam
        self.joint = joint
        self.beta = beta
        self.joint_epochs = joint_epochs
        self.layer = layer
        self.epochs = epochs
        self.batch_size = batch_size
        self.nonnegative = nonnegative
        self.tol = tol
        self.max_steps = max_steps
        self.sparse_output = sparse_output
        self.random_state = random_state

    @property
    def _fewest_samples(self) -> int:
        return 2

    def _make_model(self, X: NDArray[np.floating]) -> dict[str, Any]:
        counts = tuple(self.n_components) if isinstance(self.n_components, Sequence) else (self.n_components,)
        atoms = [require_integer(f"n_components[{j}]", count, minimum=1) for j, count in enumerate(counts)]
        layers = self._layers(len(atoms))
        joint = check_flag("joint", self.joint)
        refine = require_integer("joint_epochs", self.joint_epochs, minimum=0)
        result = learn(
            to_tensor(X),
            atoms,
            lam=self.lam,
            epochs=self.epochs,
            seed=seed_of(self.random_state),
            nonnegative=self.nonnegative,
            batch=None if self.batch_size is None else require_integer("batch_size", self.batch_size, minimum=1),
            joint=refine if joint else 0,
            beta=self.beta,
        )
        assert isinstance(result.model, Cascade)
        history = result.history
        return {
            "model_": result.model,
            "components_": np.concatenate([rows_of(result.model.effective(j).T) for j in layers]),
            "n_components_": tuple(atoms),
            "layers_": layers,
            "error_": tuple(np.array(values) for values in history.objective),
            "joint_error_": np.array(history.joint),
            "n_iter_": sum(map(len, history.objective)) + max(len(history.joint) - 1, 0),
            "dead_atoms_": result.dead_atoms,
        }

    def _problem(self, dtype: torch.dtype) -> Problem:
        model = self.model_.cast(dtype)
        if self.joint:
            return JointLasso(model, self.lam, self.beta, nonnegative=self.nonnegative)
        return LayeredLasso(model, self.lam, nonnegative=self.nonnegative)

    def _join(self, codes: Codes) -> Tensor:
        assert isinstance(codes, tuple)
        return torch.cat([codes[j - 1] for j in self.layers_], dim=1)

    def _explaining(self) -> slice:
        return slice(self.n_components_[0] if len(self.layers_) > 1 else None)

    def _layers(self, depth: int) -> tuple[int, ...]:
        """Return whose codes are features, counted from 1."""
        if self.layer == "all":
            return tuple(range(1, depth + 1))
        if self.layer == "deepest":
            return (depth,)
        if isinstance(self.layer, str) or require_integer("layer", self.layer, minimum=1) > depth:
            raise ParameterError(f"layer is {self.layer!r}; expected 'deepest', 'all', or a number from 1 to {depth}")
        return (int(self.layer),)
