"""Estimators for scikit-learn: codes as features, in pipelines and searches.

They need scikit-learn: ``pip install 'deep_sparse_coding[sklearn]'``.
"""

from .deep_sparse_coder import DeepSparseCoder as DeepSparseCoder
from .dictionary_learner import DictionaryLearner as DictionaryLearner
from .sparse_coder import SparseCoder as SparseCoder
