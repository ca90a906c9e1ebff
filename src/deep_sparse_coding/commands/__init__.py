"""The commands of the command line, one file each: a function whose arguments are the options, or a group of them."""

from .compile import compile_model as compile_model
from .demo import demo as demo
from .denoise import denoise as denoise
from .dispatch import Group as Group
from .dispatch import dispatch as dispatch
from .experiment import EXPERIMENT as EXPERIMENT
from .inpaint import inpaint as inpaint
from .learn import learn as learn
from .prove import prove as prove
from .solve import solve as solve

COMMANDS = Group(
    summary="Deep sparse coding with certificates.",
    commands={
        "demo": demo,
        "learn": learn,
        "solve": solve,
        "prove": prove,
        "compile": compile_model,
        "denoise": denoise,
        "inpaint": inpaint,
        "experiment": EXPERIMENT,
    },
    options={"--version": "show the version"},
)
