"""Estimators for scikit-learn: codes as features, in pipelines and searches.

They need scikit-learn 1.6 or later: ``pip install 'deep_sparse_coding[sklearn]'``.
"""

from deep_sparse_coding.errors import missing_extra

try:
    import sklearn as _sklearn  # noqa: F401 - so that what is missing is told before anything else
except ImportError as error:
    raise missing_extra("scikit-learn", "sklearn", "deep_sparse_coding.estimators") from error

from .deep_sparse_coder import DeepSparseCoder as DeepSparseCoder
from .dictionary_learner import DictionaryLearner as DictionaryLearner
from .sparse_coder import SparseCoder as SparseCoder
