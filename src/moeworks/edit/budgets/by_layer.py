"""Budgets by layer: in proportion to how differently two labels are routed, and rising with depth; both uneven."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from moeworks.edit.budgets.base import BUDGETS, Array, proportional, target
from moeworks.edit.budgets.constraints import Constraints
from moeworks.edit.scores.base import stacked
from moeworks.edit.statistics import LayerStatistics
from moeworks.errors import BadPlan
from moeworks.stats.distributions import jensen_shannon

__all__ = ["divergence", "trapezoid"]


@BUDGETS.register("divergence")
def divergence(
    scores: Array | None,
    keep: float,
    constraints: Constraints,
    *,
    statistics: Sequence[LayerStatistics],
    label: str | None = None,
    against: str | None = None,
    of: Literal["gate", "count"] = "gate",
) -> Array:
    """More experts where two values of the label are routed more differently: in proportion to the divergence.

    Source: arXiv 2605.28042 [secondary]: Jensen–Shannon divergence between the routing distributions of the language
    and of English, at least k and at most E experts a layer, Hamilton's rule for whole numbers. The distribution is the
    share of routing mass (`of=count`: of tokens); which of the two the paper takes is not known here.
    """
    if label is None or against is None or label == against:
        raise BadPlan("the budget divergence compares two values of the label; name them as label and against.")
    if of not in ("gate", "count"):
        raise BadPlan(f"of is 'gate' or 'count', not '{of}'.")
    first, second = (stacked(statistics, of, value) for value in (label, against))
    for value, mass in ((label, first), (against, second)):
        if (mass.sum(1) <= 0).any():
            raise BadPlan(f"no token of '{value}' ran an expert in some layer; score more text of it.")
    weights = jensen_shannon(first / first.sum(1, keepdims=True), second / second.sum(1, keepdims=True))
    return proportional(weights, target(constraints, keep), constraints)


@BUDGETS.register("trapezoid")
def trapezoid(
    scores: Array | None, keep: float, constraints: Constraints, *, statistics: object = None, slope: float = 0.2
) -> Array:
    """More experts in depth: the share rises in a line from keep × (1 - slope) to keep × (1 + slope).

    After TENP, arXiv 2606.09885 [secondary], which keeps more important experts in deep layers; its exact ramp is not
    known here. The sum over layers is that of `uniform`. A negative slope keeps more in early layers.
    """
    if not -1 < slope < 1:
        raise BadPlan("slope is between -1 and 1.")
    number = len(constraints.shapes)
    ramp = np.ones(number) if number == 1 else 1 + slope * np.linspace(-1, 1, number)
    experts = np.array([shape.experts for shape in constraints.shapes])
    return proportional(ramp * experts, target(constraints, keep), constraints)
