"""What holds for every test: one thread, seeded and replayable examples, no warning of ours left unread."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, database=None, **_COMMON)
settings.register_profile("local", **_COMMON)
settings.load_profile("ci" if os.environ.get("CI") else "local")
