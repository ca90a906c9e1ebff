"""`SparseCoder`: codes under a dictionary that is given, or made for the number of features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from deep_sparse_coding.checks import require_integer, require_number
from deep_sparse_coding.dictionaries import DenseDictionary, Dictionary
from deep_sparse_coding.errors import ParameterError, ShapeError
from deep_sparse_coding.problems import Codes, Lasso, Problem

from .base import CodingTransformer, checked_array, rows_of, seed_of
from .encoding import to_tensor


class SparseCoder(CodingTransformer):
    """Codes ``argmin_x ½‖y - D x‖² + lam‖x‖₁`` as features, under a dictionary that is not learned.

    `lam` is absolute, the ``transform_alpha`` of scikit-learn's ``SparseCoder(transform_algorithm="lasso_cd")``; the
    ``alpha`` of ``sklearn.linear_model.Lasso`` is lam divided by the number of features.

    Args:
        dictionary: ``(n_components, n_features)``, components in rows as scikit-learn has them; a `DenseDictionary`,
            atoms in columns; "dct" or "random"; or None for "dct" where there are at least as many components as
            features, else "random".
        n_components: For a dictionary that is made: its number of components; None takes the number of features.
        lam: The weight of the ℓ1 norm; 0 allowed.
        nonnegative: Hold the codes at or above zero.
        tol: The relative duality gap at which a sample has converged.
        max_steps: The most steps.
        sparse_output: Return ``scipy.sparse.csr_array``; codes are then never all held dense.
        random_state: For "random": a whole number, a `RandomState`, or None for another dictionary every time.

    Attributes:
        components_: ``(n_components, n_features)``.
        n_components_: Their number.
        n_features_in_: The length of a sample.
        feature_names_in_: Names of the columns that `fit` saw, if it saw any.
        n_iter_: The most steps that a sample of `fit` took.
        converged_: Whether all of them reached `tol`.
        dual_gap_: Their duality gaps, ``(n_samples,)``.
        objective_: Their objectives, ``(n_samples,)``.
        model_: The dictionary as a `DenseDictionary`, for `dsc.prove` and the like.

    Source: Tibshirani 1996; Chen, Donoho & Saunders 1998; gaps: G5 of docs/theory.md.
    """

    model_: DenseDictionary

    def __init__(
        self,
        dictionary: ArrayLike | DenseDictionary | str | None = None,
        *,
        n_components: int | None = None,
        lam: float = 0.1,
        nonnegative: bool = False,
        tol: float = 1e-4,
        max_steps: int = 10_000,
        sparse_output: bool = False,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.dictionary = dictionary
        self.n_components = n_components
        self.lam = lam
        self.nonnegative = nonnegative
        self.tol = tol
        self.max_steps = max_steps
        self.sparse_output = sparse_output
        self.random_state = random_state

    @property
    def _fewest_samples(self) -> int:
        return 1

    def _make_model(self, X: NDArray[np.floating]) -> dict[str, Any]:
        require_number("lam", self.lam, minimum=0.0)
        model = self._dictionary(X)
        return {"model_": model, "components_": rows_of(model.weight), "n_components_": model.atoms}

    def _problem(self, dtype: torch.dtype) -> Problem:
        return Lasso(self.model_.cast(dtype), self.lam, nonnegative=self.nonnegative)

    def _join(self, codes: Codes) -> Tensor:
        assert isinstance(codes, Tensor)
        return codes

    def _dictionary(self, X: NDArray[np.floating]) -> DenseDictionary:
        count = None if self.n_components is None else require_integer("n_components", self.n_components, minimum=1)
        features = X.shape[1]
        if self.dictionary is None or isinstance(self.dictionary, str):
            dtype = torch.float32 if X.dtype == np.float32 else torch.float64
            return self._made(features, features if count is None else count, dtype)
        if isinstance(self.dictionary, Dictionary):
            if not isinstance(self.dictionary, DenseDictionary):
                raise ParameterError(
                    f"dictionary is a {type(self.dictionary).__name__}; expected a dense one: rows of X are vectors"
                )
            given = DenseDictionary(self.dictionary.matrix.detach().cpu())
        else:
            rows = checked_array(self.dictionary, input_name="dictionary")
            given = DenseDictionary(to_tensor(rows).T)
        if given.channels != features:
            raise ShapeError(
                f"dictionary has components of {given.channels} features and X has {features}; expected the same: "
                "an array has one component per row, a DenseDictionary one atom per column"
            )
        if count is not None and count != given.atoms:
            raise ParameterError(
                f"n_components is {count} and the dictionary has {given.atoms}; expected no n_components with a "
                "dictionary that is given"
            )
        return given

    def _made(self, features: int, count: int, dtype: torch.dtype) -> DenseDictionary:
        kind = self.dictionary if self.dictionary is not None else ("dct" if count >= features else "random")
        if kind == "random":
            return DenseDictionary.random(features, count, seed=seed_of(self.random_state), dtype=dtype)
        if kind != "dct":
            raise ParameterError(
                f"dictionary is {kind!r}; expected 'dct', 'random', an array (n_components, n_features), a "
                "DenseDictionary or None"
            )
        if count < features:
            raise ParameterError(
                f"n_components is {count} and X has {features} features; expected at least as many components for "
                "dictionary='dct': use 'random' for fewer"
            )
        return DenseDictionary.dct(features, count, dtype=dtype)
