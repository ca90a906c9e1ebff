"""What the estimators share: transform, inverse_transform, score, and what is kept of a fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from deep_sparse_coding.checks import check_flag, require_integer, require_number
from deep_sparse_coding.errors import ShapeError
from deep_sparse_coding.problems import Codes, Problem

from .encoding import Encoded, encode

_FLOATS = [np.float64, np.float32]
_FIT = ("n_iter_", "converged_", "dual_gap_", "objective_", "error_", "joint_error_", "dead_atoms_", "_learner")


def seed_of(random_state: object) -> int:
    """Return a seed: a whole number as it is, one drawn from a `RandomState`, or, for None, one that nobody knows.

    NumPy's global generator is not read.

    Raises:
        ValueError: Something else.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(check_random_state(random_state).randint(2**31 - 1))
    return require_integer("random_state", random_state, minimum=0)


class CodingTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, ABC):
    """A transformer whose features are the codes of a model under an ℓ1 penalty.

    Subclasses name their settings in ``__init__``, make a model in `_make_model`, and say what problem its codes solve.
    Nothing that is fitted changes in `transform`.
    """

    tol: float
    max_steps: int
    sparse_output: bool
    nonnegative: bool
    model_: Any  # DenseDictionary or Cascade
    components_: NDArray[np.floating]

    @abstractmethod
    def _make_model(self, X: NDArray[np.floating]) -> dict[str, Any]:
        """Return what is fitted, by name: `model_`, `components_`, `n_components_`, and what is told of learning."""

    @abstractmethod
    def _problem(self, dtype: torch.dtype) -> Problem:
        """Return what the codes minimize, with the model in a number type."""

    @abstractmethod
    def _join(self, codes: Codes) -> Tensor:
        """Return codes as features, ``(n, n_features_out)``."""

    @property
    @abstractmethod
    def _fewest_samples(self) -> int:
        """How many samples a fit needs."""

    def _explaining(self) -> slice:
        """Return which features, times their components, add up to the signal."""
        return slice(None)

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Make the model for `X`, and code `X` with it.

        Args:
            X: ``(n_samples, n_features)``, numbers.
            y: Not used.

        Returns:
            This estimator.

        Raises:
            ValueError: Settings or data that cannot be used; the message says what is expected.
        """
        self._fit(X)
        return self

    def fit_transform(self, X: ArrayLike, y: object = None, **fit_params: object) -> Any:
        """Return ``fit(X).transform(X)``, solved once.

        Args:
            X: ``(n_samples, n_features)``, numbers.
            y: Not used.
            **fit_params: None are taken.

        Returns:
            Codes, as `transform` returns them.

        Raises:
            TypeError: For `fit_params`.
            ValueError: As `fit`.
        """
        if fit_params:
            raise TypeError(f"{type(self).__name__}.fit takes no {sorted(fit_params)}; expected X alone")
        return self._fit(X).features

    def transform(self, X: ArrayLike) -> Any:
        """Return the codes of `X`.

        A `ConvergenceWarning` says which samples did not reach `tol`.

        Args:
            X: ``(n_samples, n_features)``, numbers.

        Returns:
            ``(n_samples, n_features_out)`` in the number type of `X` (float64 for integers); an array, a CSR array with
            ``sparse_output=True``, or what `set_output` asks for.

        Raises:
            NotFittedError: Before `fit`.
            ValueError: Data that do not fit.
        """
        return self._encode(self._checked(X)).features

    def inverse_transform(self, X: Any) -> NDArray[np.floating]:
        """Return the signals that codes stand for, ``codes @ components_``.

        Args:
            X: ``(n_samples, n_features_out)``, an array or a sparse one.

        Returns:
            ``(n_samples, n_features)``.

        Raises:
            NotFittedError: Before `fit`.
            ShapeError: Another number of features.
        """
        check_is_fitted(self, "components_")
        X = checked_array(X, accept_sparse="csr")
        if X.shape[1] != self._n_features_out:
            raise ShapeError(f"X has {X.shape[1]} features; expected the {self._n_features_out} that transform returns")
        part = self._explaining()
        return np.asarray(X[:, part] @ self.components_[part].astype(X.dtype, copy=False))

    def score(self, X: ArrayLike, y: object = None) -> float:
        """Return minus the mean objective of the codes of `X`: the larger the better.

        It compares models under one lam, and not several lam: a smaller lam has a smaller objective. To choose lam
        score what the features are for, or take `dsc.choose_lam`.

        Args:
            X: ``(n_samples, n_features)``, numbers.
            y: Not used.

        Returns:
            ``-(1/n) Σ ½‖y - D x‖² + lam‖x‖₁``; for several layers see the class.

        Raises:
            NotFittedError: Before `fit`.
            ValueError: Data that do not fit.
        """
        return -float(self._encode(self._checked(X)).objective.mean())

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        assert tags.transformer_tags is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def _fit(self, X: ArrayLike) -> Encoded:
        array = validated(self, X, ensure_min_samples=self._fewest_samples)
        self._encoding()  # settings out of range are told before any work
        check_flag("nonnegative", self.nonnegative)
        self._take(self._make_model(array))
        encoded = self._encode(array)
        self.converged_ = encoded.converged
        self.dual_gap_ = encoded.gap
        self.objective_ = encoded.objective
        vars(self).setdefault("n_iter_", encoded.steps)
        return encoded

    def _take(self, fitted: dict[str, Any]) -> None:
        """Keep what is fitted, and drop what an earlier fit told: it is not true of another model."""
        for name in _FIT:
            vars(self).pop(name, None)
        vars(self).update(fitted)

    def _encoding(self) -> dict[str, Any]:
        """Return the settings of `encode`, checked."""
        return {
            "tol": require_number("tol", self.tol, minimum=0.0),
            "max_steps": require_integer("max_steps", self.max_steps, minimum=1),
            "sparse_output": check_flag("sparse_output", self.sparse_output),
        }

    def _checked(self, X: ArrayLike) -> NDArray[np.floating]:
        check_is_fitted(self, "components_")
        return validated(self, X, reset=False)

    def _encode(self, X: NDArray[np.floating]) -> Encoded:
        dtype = torch.float32 if X.dtype == np.float32 else torch.float64
        return encode(self._problem(dtype), X, self._join, self._n_features_out, **self._encoding())


def checked_array(X: Any, **settings: Any) -> Any:
    """Return what scikit-learn's `check_array` makes of X: two axes, finite, float32 or float64."""
    return check_array(X, dtype=cast(Any, _FLOATS), **settings)


def validated(estimator: BaseEstimator, X: ArrayLike, **settings: Any) -> NDArray[np.floating]:
    """Return what scikit-learn's `validate_data` makes of X: as `checked_array`, and of as many features as before."""
    return cast(NDArray[np.floating], validate_data(estimator, cast(Any, X), dtype=_FLOATS, **settings))


def rows_of(dictionary: Tensor) -> NDArray[np.floating]:
    """Return atoms in columns as components in rows, in memory of their own."""
    return np.ascontiguousarray(dictionary.detach().cpu().numpy().T)
