"""Where dictionaries come from: learning them from data, layer by layer, in batch or online."""

from .learn import learn as learn
from .online import OnlineLearner as OnlineLearner
from .preprocess import contrast_normalize as contrast_normalize
from .result import LearningHistory as LearningHistory
from .result import LearningProgress as LearningProgress
from .result import LearningResult as LearningResult
