"""What a layer budget is, and the arithmetic that all share: how many go, and whole numbers from quotas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.edit.budgets.constraints import Constraints
from moeworks.errors import BadPlan
from moeworks.registry import Registry

__all__ = ["BUDGETS", "Budget", "dropped", "hamilton", "needs_scores", "proportional", "target"]

Array = NDArray[Any]
# (scores (L, E), keep, constraints, *, statistics, …options) → counts (L,) int64
Budget = Callable[..., Array]
BUDGETS: Registry[Budget] = Registry("budget", "moeworks.edit_budgets")


def needs_scores(function: Budget) -> Budget:
    """Mark a budget that looks at the scores, so that it has none where a method gives no scores."""
    function.__dict__["needs_scores"] = True
    return function


def dropped(experts: int, keep: float) -> int:
    """Return how many of a layer's experts go: int(E × (1 - keep)), as REAP rounds.

    0.1 of 10 is 1 and no 0.99…: the product is rounded at the ninth place first.
    """
    if not 0 < keep <= 1:
        raise BadPlan(f"keep is the share of experts that stay, above 0 and up to 1, not {keep}.")
    return int(round(experts * (1 - keep), 9))


def target(constraints: Constraints, keep: float) -> int:
    """Return how many experts stay in all layers together."""
    total = sum(shape.experts for shape in constraints.shapes)
    return total - dropped(total, keep)


def hamilton(quotas: Sequence[float] | Array, total: int, caps: Sequence[int] | Array) -> Array:
    """Return whole numbers with the given sum, next to the quotas: largest remainders get the places left over.

    Equal remainders (to nine digits): the earlier layer. Nothing goes above its cap.

    Raises:
        BadPlan: the quotas are further from the sum than one place for each.
    """
    quota = np.round(np.asarray(quotas, np.float64), 9)
    cap = np.asarray(caps, np.int64)
    counts = np.minimum(np.floor(quota).astype(np.int64), cap)
    left = total - int(counts.sum())
    order = sorted(range(len(quota)), key=lambda place: (-round(float(quota[place] - counts[place]), 9), place))
    for place in order:
        if left <= 0:
            break
        if counts[place] < cap[place]:
            counts[place] += 1
            left -= 1
    if left:
        raise BadPlan(f"{total} experts cannot be shared out over layers in these proportions.")
    return counts


def proportional(weights: Sequence[float] | Array, total: int, constraints: Constraints) -> Array:
    """Return counts in proportion to weights, none below its layer's floor or above its experts, with the given sum.

    The quota is c × weight, cut off at floor and at E, with the c that gives the sum; then Hamilton's rule. Where
    counts have to be multiples of a step, steps are what is shared out, and the sum is rounded down to them.

    Raises:
        BadPlan: the floors alone are above the sum, or layers have different steps.
    """
    steps = {constraints.step(place) for place in range(len(constraints.shapes))}
    if len(steps) > 1:
        raise BadPlan("layers have to keep multiples of different numbers; plan them apart with --layers.")
    step = steps.pop()
    caps = np.array([shape.experts // step for shape in constraints.shapes])
    floors = np.minimum([-(-floor // step) for floor in constraints.floors()], caps)
    places = min(total // step, int(caps.sum()))
    if floors.sum() > places:
        raise BadPlan(
            f"{total} experts are to stay in all, and the layers need {int(floors.sum()) * step} at least; keep more."
        )
    weight = np.maximum(np.asarray(weights, np.float64), 0.0)
    weight = np.ones_like(weight) if weight.sum() == 0 else np.maximum(weight, weight.max() * 1e-12)
    quotas = _clipped(weight, float(places), floors.astype(np.float64), caps.astype(np.float64))
    return hamilton(quotas, places, caps) * step


def _clipped(weight: Array, total: float, floors: Array, caps: Array) -> Array:
    """Return clip(c × weight, floors, caps) with the c for which it sums to the total."""
    low, high = 0.0, float((caps / weight).max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * weight, floors, caps).sum() < total else (low, middle)
    return np.asarray(np.clip(high * weight, floors, caps))
