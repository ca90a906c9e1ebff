"""Deep sparse coding with evidence: solvers with certificates, guarantees, networks that compute codes."""

from ._version import __version__ as __version__
from .dictionaries import Cascade as Cascade
from .dictionaries import ConvDictionary as ConvDictionary
from .dictionaries import DenseDictionary as DenseDictionary
from .dictionaries import Dictionary as Dictionary
from .dictionaries import Match as Match
from .dictionaries import OperatorNorm as OperatorNorm
from .dictionaries import Sample as Sample
from .dictionaries import load as load
from .dictionaries import match as match
from .dictionaries import place_sparsity as place_sparsity
from .dictionaries import sample as sample
from .dictionaries import save as save
from .dictionaries import stripe_sparsity as stripe_sparsity
