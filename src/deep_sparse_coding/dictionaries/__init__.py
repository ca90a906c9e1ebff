"""Linear synthesis operators and what is known about their atoms."""

from .base import Dictionary as Dictionary
from .cascade import Cascade as Cascade
from .cascade import as_cascade as as_cascade
from .convolutional import ConvDictionary as ConvDictionary
from .dense import DenseDictionary as DenseDictionary
from .files import load as load
from .files import save as save
from .matching import Match as Match
from .matching import match as match
from .norms import OperatorNorm as OperatorNorm
from .sampling import Sample as Sample
from .sampling import sample as sample
from .stripes import place_sparsity as place_sparsity
from .stripes import stripe_sparsity as stripe_sparsity
