"""Budgets that look at the scores: one threshold for all layers, and the same share of the score in each."""

from __future__ import annotations

from typing import Literal

import numpy as np

from moeworks.edit.budgets.base import BUDGETS, Array, needs_scores, proportional, target
from moeworks.edit.budgets.constraints import Constraints
from moeworks.edit.scores.combine import layer_normalised
from moeworks.errors import BadPlan

__all__ = ["coverage", "global_threshold"]


@BUDGETS.register("global")
@needs_scores
def global_threshold(
    scores: Array,
    keep: float,
    constraints: Constraints,
    *,
    statistics: object = None,
    normalise: Literal["sum", "l2", "max"] = "sum",
) -> Array:
    """One threshold for all layers on scores divided by their sum (or maximum) in the layer; uneven.

    Every layer gets its floor first, then the best of what is left in the whole model, protected experts in any case.
    Equal scores: the earlier layer.
    """
    relative = layer_normalised(np.asarray(scores, np.float64), normalise)
    counts = np.array(constraints.floors(), np.int64)
    places = target(constraints, keep)
    if counts.sum() > places:
        raise BadPlan(f"{places} experts are to stay in all, and the layers need {counts.sum()} at least; keep more.")
    values, layers = [], []
    for place, shape in enumerate(constraints.shapes):
        ranked = -np.sort(-_protected_first(relative[place], constraints.protected_in(shape.layer)), kind="stable")
        values.append(ranked[counts[place] :])
        layers.append(np.full(shape.experts - counts[place], place))
    value, layer = np.concatenate(values), np.concatenate(layers)
    best = np.lexsort((layer, -value))[: places - counts.sum()]
    counts += np.bincount(layer[best], minlength=len(counts))
    return _in_steps(counts, places, constraints)


@BUDGETS.register("coverage")
@needs_scores
def coverage(scores: Array, keep: float, constraints: Constraints, *, statistics: object = None) -> Array:
    """The same share of the score in every layer: the fewest experts that hold it, as large as fits; uneven.

    Source: SHAPE, arXiv 2606.09886 [secondary]: the smallest prefix that covers a share of the layer's sum, bisected on
    the share to meet the rate of the whole model. Negative scores count as 0. Places that ties leave over go one at a
    time to the layer that covers least.
    """
    ranked = np.stack(
        [
            -np.sort(-_protected_first(np.maximum(row, 0.0), constraints.protected_in(shape.layer)))
            for row, shape in zip(np.asarray(scores, np.float64), constraints.shapes, strict=True)
        ]
    )
    top = np.where(np.isinf(ranked), 0.0, ranked)  # protected ones stand first and cover what they cover
    for place, shape in enumerate(constraints.shapes):
        inside = sorted(constraints.protected_in(shape.layer))
        top[place, : len(inside)] = -np.sort(-np.maximum(np.asarray(scores, np.float64)[place, inside], 0.0))
    total = top.sum(1, keepdims=True)
    covered = np.divide(top.cumsum(1), total, out=np.ones_like(top), where=total > 0)  # (L, E)
    floors = np.array(constraints.floors(), np.int64)
    caps = np.array([shape.experts for shape in constraints.shapes])
    places = target(constraints, keep)

    def counts_at(share: float) -> Array:
        return np.asarray(np.clip((covered < share - 1e-12).sum(1) + (share > 0), floors, caps))

    if counts_at(0.0).sum() > places:
        raise BadPlan(f"{places} experts are to stay in all, and the layers need {floors.sum()} at least; keep more.")
    low, high = 0.0, 1.0
    if counts_at(1.0).sum() <= places:
        low = 1.0
    else:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if counts_at(middle).sum() <= places else (low, middle)
    counts = counts_at(low).astype(np.int64)
    while counts.sum() < places:
        share = np.where(counts < caps, np.take_along_axis(covered, counts[:, None] - 1, 1)[:, 0], np.inf)
        counts[int(np.argmin(share))] += 1
    return _in_steps(counts, places, constraints)


def _protected_first(row: Array, protected: frozenset[int]) -> Array:
    row = np.array(row, np.float64)
    row[sorted(protected)] = np.inf
    return row


def _in_steps(counts: Array, places: int, constraints: Constraints) -> Array:
    """Return counts as they are, or in proportion to them in multiples where these are asked for."""
    if all(constraints.step(place) == 1 for place in range(len(counts))):
        return counts
    return proportional(counts, places, constraints)
