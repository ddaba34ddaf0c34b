"""Budgets that stock checkpoints can hold: the same number of experts in every layer, and in every group."""

from __future__ import annotations

from math import ceil

import numpy as np

from moeworks.edit.budgets.base import BUDGETS, Array, dropped
from moeworks.edit.budgets.constraints import Constraints, expert_groups

__all__ = ["group_equal", "uniform"]


@BUDGETS.register("uniform")
def uniform(scores: Array | None, keep: float, constraints: Constraints, *, statistics: object = None) -> Array:
    """The same share of every layer: int(E × share) experts go, as in REAP; counts go up to a multiple asked for.

    Groups of a group-limited router are no multiple that was asked for: a count that does not divide is refused, and
    `group_equal` makes it divide.
    """
    counts = []
    for place, shape in enumerate(constraints.shapes):
        asked = np.lcm(constraints.multiple_of, constraints.expert_parallel)
        step = constraints.step(place) if asked > 1 else 1
        counts.append(min(ceil((shape.experts - dropped(shape.experts, keep)) / step) * step, shape.experts))
    return np.array(counts, np.int64)


@BUDGETS.register("group_equal")
def group_equal(scores: Array | None, keep: float, constraints: Constraints, *, statistics: object = None) -> Array:
    """The same number from every group of every layer: round(int(E × share) / groups) go from each.

    For group-limited routers (DeepSeek-V3 type), as llm-compressor does it; without groups it is `uniform`. Halves are
    rounded to even.
    """
    counts = []
    for place, shape in enumerate(constraints.shapes):
        groups, step = expert_groups(shape), constraints.step(place)
        count = shape.experts - groups * round(dropped(shape.experts, keep) / groups)
        counts.append(min(ceil(count / step) * step, shape.experts))
    return np.array(counts, np.int64)
