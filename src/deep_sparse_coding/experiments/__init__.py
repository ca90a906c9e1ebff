"""The experiments of the paper and pictures of the theory: what one is, how it runs, its data, models and measures."""

from .compare import Comparison as Comparison
from .compare import compare_settings as compare_settings
from .experiment import Experiment as Experiment
from .experiment import Measure as Measure
from .experiment import Part as Part
from .experiment import Run as Run
from .store import Record as Record
