"""The main job on real images: `dsc demo` and its report."""

from .run import DemoResult as DemoResult
from .run import run_demo as run_demo
from .settings import PRESETS as PRESETS
from .settings import DemoSettings as DemoSettings
