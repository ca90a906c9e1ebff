"""Training of the experiments' networks on Lightning Fabric: resumable bit for bit, logged, measured on a split."""

from .evaluate import Evaluation as Evaluation
from .evaluate import evaluate as evaluate
from .loop import TrainResult as TrainResult
from .loop import dry_run as dry_run
from .loop import train as train
from .settings import PenaltySettings as PenaltySettings
from .settings import TrainSettings as TrainSettings
