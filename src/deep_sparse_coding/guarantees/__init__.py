"""What can be proved: about a model before any signal is seen, and about any codes after the fact."""

from .certify import CertifiedCodes as CertifiedCodes
from .certify import certify as certify
from .convergence import convergence as convergence
from .convergence import convergence_plan as convergence_plan
from .counterpart import Counterpart as Counterpart
from .counterpart import counterpart as counterpart
from .equivalence import equivalence as equivalence
from .guarantee import Condition as Condition
from .guarantee import Guarantee as Guarantee
from .posterior import Posterior as Posterior
from .posterior import posterior as posterior
from .recovery import recovery as recovery
from .robustness import Robustness as Robustness
from .robustness import robustness as robustness
from .runtime import LinearRate as LinearRate
from .runtime import TruthBound as TruthBound
from .runtime import against_truth as against_truth
from .runtime import linear_rate as linear_rate
from .schedule import LayerConvergence as LayerConvergence
from .stability import stability as stability
from .uniqueness import uniqueness as uniqueness
