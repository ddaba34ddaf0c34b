"""From scores to experts: an order of a layer's experts whose every allowed beginning is a plan."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeworks.errors import BadData

__all__ = ["first_of", "rank"]

Array = NDArray[Any]


def rank(scores: Array, *, protected: Collection[int] = (), groups: int = 1) -> tuple[int, ...]:
    """Return a layer's experts, best first: protected ones, then by score, the lower number first among equal ones.

    With groups, the best of every group come first, then the second best of every group, and so on, so that each
    multiple of the number of groups keeps equally many of each.

    Args:
        scores: (E,) higher is kept.
        protected: experts that come before all others (of their group).
        groups: of neighbouring experts, all of one size.

    Raises:
        BadData: a score is not a finite number.
    """
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        bad = ", ".join(map(str, np.flatnonzero(~np.isfinite(values))))
        raise BadData(f"the score of expert {bad} is not finite; collect the statistics again.")
    must = np.isin(np.arange(len(values)), list(protected))
    order = np.lexsort((-values, ~must))  # stable: equal ones by number
    if groups == 1:
        return tuple(order.tolist())
    place = np.empty(len(values), np.int64)  # rank within its group
    for group in range(groups):
        members = order[order // (len(values) // groups) == group]
        place[members] = np.arange(len(members))
    return tuple(order[np.argsort(place[order], kind="stable")].tolist())


def first_of(order: Collection[int], count: int) -> tuple[int, ...]:
    """Return the best `count` experts of an order, ascending."""
    return tuple(sorted(list(order)[:count]))
