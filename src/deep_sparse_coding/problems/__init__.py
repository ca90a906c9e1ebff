"""What is minimized, and the certificate that says how well."""

from .base import Blocks as Blocks
from .base import Codes as Codes
from .base import ConvexProblem as ConvexProblem
from .base import Problem as Problem
from .base import StandardForm as StandardForm
from .cascaded import LayeredProblem as LayeredProblem
from .certificate import Certificate as Certificate
from .certificate import CertifiedProblem as CertifiedProblem
from .certificate import assess as assess
from .certificate import assess_form as assess_form
from .certificate import combine as combine
from .constrained import BasisPursuit as BasisPursuit
from .constrained import LayeredBasisPursuit as LayeredBasisPursuit
from .dual import DualPoint as DualPoint
from .dual import dual_point as dual_point
from .joint import JointLasso as JointLasso
from .l0 import LayeredSparseApproximation as LayeredSparseApproximation
from .l0 import SparseApproximation as SparseApproximation
from .lasso import Lasso as Lasso
from .layered import LayeredLasso as LayeredLasso
from .multilayer import MultiLayerLasso as MultiLayerLasso
from .screening import Screening as Screening
