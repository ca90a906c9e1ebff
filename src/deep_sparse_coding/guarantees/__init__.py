"""What can be proved: about a model before any signal is seen, and about any codes after the fact."""

from .certify import CertifiedCodes as CertifiedCodes
from .certify import certify as certify
from .equivalence import equivalence as equivalence
from .guarantee import Condition as Condition
from .guarantee import Guarantee as Guarantee
from .posterior import Posterior as Posterior
from .posterior import posterior as posterior
from .uniqueness import uniqueness as uniqueness
