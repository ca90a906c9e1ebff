"""`DictionaryLearner`: a dictionary learned from data, and codes under it."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from deep_sparse_coding.checks import require_integer
from deep_sparse_coding.dictionaries import Cascade, DenseDictionary, Dictionary
from deep_sparse_coding.learning import OnlineLearner, learn
from deep_sparse_coding.problems import Codes, Lasso, Problem

from .base import CodingTransformer, rows_of, seed_of, validated
from .encoding import to_tensor


class DictionaryLearner(CodingTransformer):
    """Components that make ``Σ ½‖y - D x‖² + lam‖x‖₁`` small over the data, and codes under them as features.

    `lam` is absolute, the ``alpha`` of scikit-learn's ``DictionaryLearning`` and ``MiniBatchDictionaryLearning``.
    Components have unit norm. Data are taken as they are: subtract means and divide by scales before, where that is
    wanted, in a pipeline.

    Args:
        n_components: Their number; None takes the number of features.
        lam: The weight of the ℓ1 norm, above 0.
        epochs: Passes over the data.
        batch_size: Samples that are coded between two updates of the components; None chooses.
        method: "batch" keeps the codes of all samples and lowers the objective; "online" forgets what is old and is for
            very many samples. None chooses by the number of samples.
        nonnegative: Hold the codes at or above zero.
        nonnegative_components: Hold the components at or above zero.
        coherence: The largest cosine that two components may have; None for no limit.
        patience: End when the objective has not fallen by one part in a thousand over so many epochs; None never does.
        tol: The relative duality gap of the codes that `transform` returns.
        max_steps: The most steps for them.
        sparse_output: Return ``scipy.sparse.csr_array``; codes are then never all held dense.
        random_state: A whole number, a `RandomState`, or None for other components every time.

    Attributes:
        components_: ``(n_components, n_features)``.
        n_components_: Their number.
        n_features_in_: The length of a sample.
        feature_names_in_: Names of the columns that `fit` saw, if it saw any.
        n_iter_: Epochs, or after `partial_fit` the batches seen.
        converged_: Whether the codes of all samples of `fit`, under the final components, reached `tol`.
        dual_gap_: Their duality gaps, ``(n_samples,)``.
        objective_: Their objectives, ``(n_samples,)``.
        error_: The objective summed over the samples after every epoch; after `partial_fit`, the objective per sample
            of every batch under the components that it met.
        dead_atoms_: Components that no code of the training data uses.
        model_: The dictionary as a `DenseDictionary`, for `dsc.prove` and the like.

    Source: Olshausen & Field 1996; Mairal, Bach, Ponce & Sapiro 2009.
    """

    model_: DenseDictionary
    _learner: OnlineLearner

    def __init__(
        self,
        n_components: int | None = None,
        *,
        lam: float = 0.1,
        epochs: int = 10,
        batch_size: int | None = None,
        method: str | None = None,
        nonnegative: bool = False,
        nonnegative_components: bool = False,
        coherence: float | None = None,
        patience: int | None = None,
        tol: float = 1e-4,
        max_steps: int = 10_000,
        sparse_output: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.n_components = n_components
        self.lam = lam
        self.epochs = epochs
        self.batch_size = batch_size
        self.method = method
        self.nonnegative = nonnegative
        self.nonnegative_components = nonnegative_components
        self.coherence = coherence
        self.patience = patience
        self.tol = tol
        self.max_steps = max_steps
        self.sparse_output = sparse_output
        self.random_state = random_state

    def partial_fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn from some more samples, online; the first call begins, or goes on from the components of `fit`.

        The settings of the first call hold for those that follow. What `fit` told of its samples (`converged_`,
        `dual_gap_`, `objective_`, `dead_atoms_`) is dropped.

        Args:
            X: ``(n_samples, n_features)``, numbers; not all the same in the first batch.
            y: Not used.

        Returns:
            This estimator.

        Raises:
            ValueError: Settings or data that cannot be used.
        """
        begun = "_learner" in vars(self)
        known = "components_" in vars(self)
        array = validated(self, X, reset=not known)
        learner = self._learner if begun else self._new_learner(array, self.model_ if known else None)
        signal = to_tensor(array)
        learner.partial_fit(signal.to(learner.model.dtype) if begun else signal)
        error = np.array(learner.objectives)
        self._take(_fitted(learner.model) | {"error_": error, "n_iter_": len(error), "_learner": learner})
        return self

    @property
    def _fewest_samples(self) -> int:
        return 2

    def _make_model(self, X: NDArray[np.floating]) -> dict[str, Any]:
        batch = None if self.batch_size is None else require_integer("batch_size", self.batch_size, minimum=1)
        result = learn(
            to_tensor(X),
            self._count(X),
            lam=self.lam,
            epochs=self.epochs,
            seed=seed_of(self.random_state),
            nonnegative=self.nonnegative,
            nonnegative_atoms=self.nonnegative_components,
            batch=batch,
            method=self.method,
            patience=self.patience,
            coherence=self.coherence,
        )
        error = np.array(result.history.objective[0])
        return _fitted(result.model) | {"error_": error, "n_iter_": len(error), "dead_atoms_": result.dead_atoms[0]}

    def _problem(self, dtype: torch.dtype) -> Problem:
        return Lasso(self.model_.cast(dtype), self.lam, nonnegative=self.nonnegative)

    def _join(self, codes: Codes) -> Tensor:
        assert isinstance(codes, Tensor)
        return codes

    def _count(self, X: NDArray[np.floating]) -> int:
        return (
            X.shape[1] if self.n_components is None else require_integer("n_components", self.n_components, minimum=1)
        )

    def _new_learner(self, X: NDArray[np.floating], start: DenseDictionary | None) -> OnlineLearner:
        dtype = torch.float32 if X.dtype == np.float32 else torch.float64
        return OnlineLearner(
            self._count(X) if start is None else start.atoms,
            lam=self.lam,
            seed=seed_of(self.random_state),
            nonnegative=self.nonnegative,
            nonnegative_atoms=self.nonnegative_components,
            coherence=self.coherence,
            start=None if start is None else start.cast(dtype),
        )


def _fitted(model: Dictionary | Cascade) -> dict[str, Any]:
    """Return what is kept of a dictionary, in memory of its own."""
    assert isinstance(model, DenseDictionary)
    own = model.with_weight(model.weight.detach().clone())
    return {"model_": own, "components_": rows_of(own.weight), "n_components_": own.atoms}
