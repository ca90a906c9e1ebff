"""Unfolded networks: a few steps of a solver with weights that are trained, and what these weights prove."""

from .base import Unfolded as Unfolded
from .build import unfold as unfold
from .training import TrainingHistory as TrainingHistory
from .training import TrainingProgress as TrainingProgress
