"""`unfold`: a few steps of a solver as a network whose matrices, steps and thresholds can be trained."""

from __future__ import annotations

from collections.abc import Sequence

from ...checks import require_integer, require_number
from ...errors import ParameterError, UnsupportedError, near_misses
from ...problems import JointLasso, Lasso, MultiLayerLasso, Problem
from .base import Unfolded
from .lasso import UnfoldedLasso
from .layers import UnfoldedCascade, UnfoldedJoint

_LEARNABLE = {
    "lista": ("analysis", "threshold"),
    "lista-cpss": ("analysis", "threshold"),
    "alista": ("step", "threshold"),
    "ml-lista": ("analysis", "threshold"),
    "joint": ("analysis", "step", "threshold"),
}
_DEFAULTS: dict[type[Problem], str] = {Lasso: "lista-cpss", JointLasso: "joint", MultiLayerLasso: "ml-lista"}
_METHODS: dict[str, type[Problem]] = {
    "lista": Lasso,
    "lista-cpss": Lasso,
    "alista": Lasso,
    "ml-lista": MultiLayerLasso,
    "joint": JointLasso,
}


def unfold(
    problem: Problem,
    steps: int = 12,
    learn: Sequence[str] | None = None,
    *,
    method: str | None = None,
    support_selection: tuple[float, float] | None = None,
) -> Unfolded:
    """Return a few steps of proximal gradient as a network with weights of its own in every step.

    Untrained it computes the codes of so many steps of `dsc.ISTA` ("alista": of ISTA with the analytic weights in the
    place of the atoms); ``fit`` trains it.

    - "lista": ``x ← S_θ(W_e y + S x)``, all of it free (Gregor & LeCun 2010); convolutional
      ``x ← S_θ(x + Aᵀ(y - B x))`` with kernels A and B (Sreter & Giryes 2018).
    - "lista-cpss": ``x ← S_θ(x + Wᵀ(y - D x))``, the coupled form that linear convergence needs (Chen et al. 2018).
    - "alista": the same with W fixed, the analytic one, and a step and thresholds that are learned (Liu et al. 2019).
    - "ml-lista": the nested thresholds of `dsc.MLISTA` with weights per layer (Sulam et al. 2019).
    - "joint": the proximal gradient of the joint problem (N4) with weights per layer.

    Args:
        problem: A `Lasso` (dense or convolutional), a `JointLasso`, or a `MultiLayerLasso` (multi-layer cascades).
        steps: How many.
        learn: What is trained: "analysis" (the matrices or kernels), "step" ("alista", "joint") and "threshold" (one
            per atom and step). None for what the method is known for: all of these but the step of "joint".
        method: None for "lista-cpss" on a `Lasso`, "joint" on a `JointLasso`, "ml-lista" on a `MultiLayerLasso`.
        support_selection: ``(share, most)`` for the methods on a `Lasso`: in step k the ``min(k·share, most)`` (shares
            of all entries, at most 1) largest entries pass their threshold unchanged (Chen et al. 2018).

    Returns:
        An `Unfolded` network in the problem's dtype and on its device.

    Raises:
        ParameterError: No such method or part, a method for another problem, or a number out of range.
        UnsupportedError: A problem with a mask, bounds, a ridge, groups, or lam per sample or per position.

    Source: N4 and N11 of docs/theory.md; Gregor & LeCun 2010; Chen, Liu, Wang & Yin 2018; Liu, Chen, Wang & Yin 2019;
        Sulam, Aberdam, Beck & Elad 2019.
    """
    steps = require_integer("steps", steps, minimum=1)
    if type(problem) not in _DEFAULTS:
        raise UnsupportedError(
            f"unfold does not take a {type(problem).__name__}; use dsc.Lasso, dsc.JointLasso or dsc.MultiLayerLasso"
        )
    chosen = _DEFAULTS[type(problem)] if method is None else method
    if chosen not in _METHODS:
        raise ParameterError(
            f"method is {method!r}; expected one of {', '.join(_METHODS)}{near_misses(str(method), _METHODS)}"
        )
    if not isinstance(problem, _METHODS[chosen]):
        raise ParameterError(
            f"method {chosen!r} is for a dsc.{_METHODS[chosen].__name__}, and the problem is a "
            f"{type(problem).__name__}; expected {_DEFAULTS[type(problem)]!r} or None"
        )
    parts = _parts(chosen, learn)
    selection = _selection(support_selection)
    if isinstance(problem, Lasso):
        return UnfoldedLasso(problem, steps, chosen, parts, selection)
    if selection is not None:
        raise ParameterError(f"support_selection is {support_selection}; expected None for method {chosen!r}")
    if isinstance(problem, JointLasso):
        return UnfoldedJoint(problem, steps, chosen, parts)
    assert isinstance(problem, MultiLayerLasso), "the last of the problems that can be unfolded"
    return UnfoldedCascade(problem, steps, chosen, parts)


def _parts(method: str, learn: Sequence[str] | None) -> tuple[str, ...]:
    possible = _LEARNABLE[method]
    if learn is None:
        return tuple(part for part in possible if not (method == "joint" and part == "step"))
    parts = (learn,) if isinstance(learn, str) else tuple(learn)
    for part in parts:
        if part not in possible:
            raise ParameterError(
                f"learn has {part!r}; expected some of {', '.join(repr(p) for p in possible)} for method {method!r}"
                f"{near_misses(str(part), possible)}"
            )
    return parts


def _selection(value: tuple[float, float] | None) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ParameterError(f"support_selection is {value!r}; expected two shares (per step, at most) or None")
    share, most = (require_number(f"support_selection[{i}]", v, minimum=0, maximum=1) for i, v in enumerate(value))
    return share, most
