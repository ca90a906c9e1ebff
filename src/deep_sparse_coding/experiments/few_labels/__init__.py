"""Codes as features where labels are few: a linear classifier on them, beside others and a small network."""

from .experiment import FEW_LABELS as FEW_LABELS
